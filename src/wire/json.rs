//! The few things about JSON text that every wire format needs.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Reads a struct from a JSON object. serde's derived structs accept arrays too; the
/// protocols do not.
pub fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// A member of an object that ought to hold a string. `null` counts as absent, as .NET's Pusher
/// client needs (`pusher.md` 1.5).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum TextField {
    #[default]
    Absent,
    Text(String),
    /// Present, but not a string.
    NotText,
}

impl TextField {
    pub fn of(raw: Option<&RawValue>) -> Self {
        let Some(raw) = raw else { return Self::Absent };
        match serde_json::from_str(raw.get()) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::NotText,
        }
    }
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = first_to_escape(rest.as_bytes()) {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            control => out.push_str(&format!("\\u{control:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Looks at many bytes at a time, which takes the processor few instructions: most of what is sent
/// needs no escapes.
fn first_to_escape(bytes: &[u8]) -> Option<usize> {
    const AT_A_TIME: usize = 32;
    let must_be = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let must_any = |chunk: &[u8]| chunk.iter().fold(false, |any, byte| any | must_be(byte));
    let chunks = bytes.chunks_exact(AT_A_TIME);
    let clean = chunks.take_while(|chunk| !must_any(chunk)).count() * AT_A_TIME;
    let at = bytes[clean..].iter().position(must_be)?;
    Some(clean + at)
}

/// Valid JSON text without the white space between its tokens; every token stays as written.
pub fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
        } else if c.is_ascii_whitespace() {
            continue;
        } else if c == '"' {
            in_string = true;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn compact_drops_white_space_between_tokens_only() {
        for (given, expected) in [
            ("{ \"a\" : [ 1 , 2.50 ] }", "{\"a\":[1,2.50]}"),
            ("\" a \\\" b \"", "\" a \\\" b \""),
            ("[\"\\\\\", 1]", "[\"\\\\\",1]"),
            (" 12345678901234567890 ", "12345678901234567890"),
        ] {
            assert_eq!(compact(given), expected);
        }
    }

    #[test]
    fn an_escape_is_found_at_whatever_place() {
        for length in [1, 31, 32, 33, 100] {
            for at in 0..length {
                for escaped in ['"', '\\', '\n', '\u{1f}', '\0'] {
                    let text = format!("{}{escaped}{}", "x".repeat(at), "é".repeat(length - at));
                    let mut out = String::new();
                    push_string(&mut out, &text);
                    assert_eq!(serde_json::from_str::<String>(&out).ok(), Some(text));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_pushed_string_reads_back_as_itself(text: String) {
            let mut out = String::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
