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
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[copied..at]);
        if escape.is_empty() {
            out.push_str(&format!("\\u{byte:04x}"));
        } else {
            out.push_str(escape);
        }
        copied = at + 1;
    }
    out.push_str(&text[copied..]);
    out.push('"');
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

    proptest! {
        #[test]
        fn a_pushed_string_reads_back_as_itself(text: String) {
            let mut out = String::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
