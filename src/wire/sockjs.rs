//! The frames of SockJS, which carry Pusher's messages over HTTP (`pusher.md` 7.3, 7.4).

use super::json::push_string;

/// The session is open.
pub const OPEN: &str = "o";
/// Asks pusher-js for a sign of life: it answers with an empty array on a stream.
pub const HEARTBEAT: &str = "h";
/// An array without messages: a sign of life that asks for nothing.
pub const NOTHING: &str = "a[]";
/// What proxies and browsers hold back before they pass on anything. Read as a heartbeat.
pub const PRELUDE_BYTES: usize = 2048;
/// pusher-js asks for a new answer once it has read more than this of one, in units of UTF-16.
pub const ANSWER_UNITS_MAX: usize = 256 * 1024;

/// A message as it stands in an array: a JSON string. Outside the Basic Multilingual Plane, and
/// where JavaScript sees the end of a line, characters are escaped.
pub fn quoted(message: &str) -> String {
    let mut out = String::with_capacity(message.len() + message.len() / 4 + 2);
    push_string(&mut out, message);
    if out.is_ascii() {
        return out;
    }
    let is_escaped = |c: char| c > '\u{ffff}' || matches!(c, '\u{2028}' | '\u{2029}');
    if !out.contains(is_escaped) {
        return out;
    }
    let mut escaped = String::with_capacity(out.len() + 32);
    for c in out.chars() {
        if is_escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Several messages, each [`quoted`].
pub fn array<'m>(messages: impl Iterator<Item = &'m str> + Clone) -> String {
    let bytes: usize = messages.clone().map(|message| message.len() + 1).sum();
    let mut out = String::with_capacity(bytes + 2);
    out.push_str("a[");
    for (nth, message) in messages.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        out.push_str(message);
    }
    out.push(']');
    out
}

pub fn close(code: u16, reason: &str) -> String {
    let mut out = format!("c[{code},");
    push_string(&mut out, reason);
    out.push(']');
    out
}

/// The length of a text in units of UTF-16, which JavaScript counts.
pub fn units(text: &str) -> usize {
    let starts = |byte: &u8| *byte & 0b1100_0000 != 0b1000_0000;
    let pairs = |byte: &u8| *byte >= 0b1111_0000;
    let bytes = text.as_bytes();
    bytes.iter().filter(|b| starts(b)).count() + bytes.iter().filter(|b| pairs(b)).count()
}

/// How frames stand in an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Framing {
    Lines,
    EventSource,
    /// A page whose scripts call the methods of this object of the page around it.
    Htmlfile(String),
    /// A script that calls this function, with one frame.
    Jsonp(String),
}

impl Framing {
    /// What a stream begins with. Browsers and proxies hold back the first kilobytes.
    pub fn prelude(&self) -> String {
        match self {
            Self::Lines => HEARTBEAT.repeat(PRELUDE_BYTES) + "\n",
            Self::EventSource => "\r\n".to_owned(),
            Self::Htmlfile(object) => format!(
                "<!DOCTYPE html><html><head><meta charset=\"utf-8\"></head><body>\n\
                 <script>\nvar c = parent.{object};\nc.start();\n\
                 function p(d) {{ c.message(d); }}\nwindow.onload = c.stop;\n</script>\n{}\r\n",
                " ".repeat(PRELUDE_BYTES)
            ),
            Self::Jsonp(_) => String::new(),
        }
    }

    pub fn frame(&self, frame: &str) -> String {
        match self {
            Self::Lines => format!("{frame}\n"),
            // The client unescapes it.
            Self::EventSource => format!("data: {}\r\n\r\n", frame.replace('%', "%25")),
            Self::Htmlfile(_) => {
                let mut text = String::with_capacity(frame.len() + frame.len() / 4 + 32);
                push_string(&mut text, frame);
                let text = text.replace('<', "\\u003c");
                format!("<script>\np({text});\n</script>\r\n")
            }
            Self::Jsonp(function) => {
                let mut text = format!("/**/{function}(");
                push_string(&mut text, frame);
                text.push_str(");\r\n");
                text
            }
        }
    }

    /// Whether an answer has one frame only.
    pub fn is_single(&self) -> bool {
        matches!(self, Self::Jsonp(_))
    }
}

/// Why a client's request brings no messages; the text is SockJS's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    Empty,
    Broken,
}

impl Unreadable {
    pub fn text(self) -> &'static str {
        match self {
            Self::Empty => "Payload expected.",
            Self::Broken => "Broken JSON encoding.",
        }
    }
}

/// The messages in what a client sends: an array of strings, or a single string.
pub fn messages(body: &str) -> Result<Vec<String>, Unreadable> {
    let body = body.trim_ascii();
    if body.is_empty() {
        return Err(Unreadable::Empty);
    }
    let read = match body.starts_with('"') {
        true => serde_json::from_str(body).map(|message| vec![message]),
        false => serde_json::from_str(body),
    };
    read.map_err(|_| Unreadable::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_strings_in_an_array() {
        let messages = [quoted("{\"a\":\"\\n\"}"), quoted("Zoë")];
        let array = array(messages.iter().map(String::as_str));
        assert_eq!(array, r#"a["{\"a\":\"\\n\"}","Zoë"]"#);
        assert_eq!(super::array(std::iter::empty()), NOTHING);
        assert_eq!(close(4001, "\"x\""), r#"c[4001,"\"x\""]"#);
    }

    #[test]
    fn what_javascript_and_old_browsers_stumble_over_is_escaped() {
        assert_eq!(quoted("\u{2028}🦖é\u{1}"), r#""\u2028\ud83e\udd96é\u0001""#);
    }

    #[test]
    fn a_request_brings_messages_or_says_why_not() {
        for (body, expected) in [
            ("[]", Ok(vec![])),
            (" [\"a\", \"b\\\"\"]\n", Ok(vec!["a", "b\""])),
            ("\"a\"", Ok(vec!["a"])),
            ("", Err(Unreadable::Empty)),
            (" \n", Err(Unreadable::Empty)),
            ("[1]", Err(Unreadable::Broken)),
            ("[\"a\"", Err(Unreadable::Broken)),
            ("[{\"event\":\"pusher:ping\"}]", Err(Unreadable::Broken)),
            ("{}", Err(Unreadable::Broken)),
            ("null", Err(Unreadable::Broken)),
            ("[\"\\ud800\"]", Err(Unreadable::Broken)),
        ] {
            let read = messages(body);
            let expected = expected.map(|all| all.into_iter().map(str::to_owned).collect());
            assert_eq!(read, expected, "{body:?}");
        }
    }

    #[test]
    fn a_frame_stands_as_its_transport_wants_it() {
        let frame = r#"a["</script>%é\n"]"#;
        for (framing, expected) in [
            (Framing::Lines, "a[\"</script>%é\\n\"]\n"),
            (
                Framing::EventSource,
                "data: a[\"</script>%25é\\n\"]\r\n\r\n",
            ),
            (
                Framing::Htmlfile("_jp.a".to_owned()),
                "<script>\np(\"a[\\\"\\u003c/script>%é\\\\n\\\"]\");\n</script>\r\n",
            ),
            (
                Framing::Jsonp("_jp.a".to_owned()),
                "/**/_jp.a(\"a[\\\"</script>%é\\\\n\\\"]\");\r\n",
            ),
        ] {
            assert_eq!(framing.frame(frame), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back_as_itself(text: String) {
            let quoted = quoted(&text);
            let is_in_plane = quoted.chars().all(|c| c <= '\u{ffff}');
            prop_assert!(is_in_plane);
            prop_assert_eq!(messages(&quoted), Ok(vec![text]));
        }

        #[test]
        fn units_are_those_of_utf_16(text: String) {
            prop_assert_eq!(units(&text), text.encode_utf16().count());
        }
    }
}
