//! The forms in which messages travel over HTTP (`bayeux.md` 3.2, 3.5, 3.7), apart from HTTP
//! itself.

use std::borrow::Cow;

/// The function that a GET without `jsonp` calls.
pub const DEFAULT_CALLBACK: &str = "jsonpcallback";

const CALLBACK_BYTES_MAX: usize = 128;

/// Whether a POST body is JSON as a whole. Any other body, also one without a type, is a form:
/// browsers send `text/plain` across origins.
pub fn is_json_type(content_type: Option<&str>) -> bool {
    let media_type = content_type.unwrap_or_default().split(';').next();
    let media_type = media_type.unwrap_or_default().trim().to_ascii_lowercase();
    media_type == "application/json" || media_type.ends_with("+json")
}

/// What a form body or a query holds for Bayeux.
#[derive(PartialEq, Eq, Default)]
pub struct Form {
    /// The values of all `message` fields, each the text of a message or an array of them.
    pub messages: Vec<String>,
    /// The last `jsonp` field, unchecked.
    pub jsonp: Option<String>,
}

/// Not UTF-8 after decoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotText;

/// Reads `application/x-www-form-urlencoded`, from a body or a query. Fields of other names are
/// ignored; a `%` that starts no escape stands for itself.
pub fn parse_form(encoded: &[u8]) -> Result<Form, NotText> {
    let mut form = Form::default();
    for field in encoded.split(|byte| *byte == b'&') {
        let at = field.iter().position(|byte| *byte == b'=');
        let (name, value) = match at {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        };
        match &*decode(name) {
            b"message" => form.messages.push(text(value)?),
            b"jsonp" => form.jsonp = Some(text(value)?),
            _ => {}
        }
    }
    Ok(form)
}

/// A form with these messages.
pub fn write_form<S: AsRef<str>>(messages: &[S]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for message in messages {
        form.append_pair("message", message.as_ref());
    }
    form.finish()
}

/// Whether the name may stand as a function in a script: identifiers joined by dots.
pub fn is_callback(name: &str) -> bool {
    let is_identifier = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$')
    };
    name.len() <= CALLBACK_BYTES_MAX && name.split('.').all(is_identifier)
}

/// The script that hands `json` to a checked callback. The comment in front keeps the text from
/// being read as a Flash file; two separators that JSON allows ended lines in older JavaScript.
pub fn callback_script(callback: &str, json: &str) -> String {
    let escaped = json
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    format!("/**/{callback}({escaped});")
}

/// One event of an event stream. White space in JSON may break lines, and each line needs its own
/// field; the reader joins them with line feeds.
pub fn stream_event(json: &str) -> String {
    let mut event = String::with_capacity(json.len() + 12);
    for line in json.split(['\r', '\n']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push_str("\r\n");
    }
    event.push_str("\r\n");
    event
}

fn text(encoded: &[u8]) -> Result<String, NotText> {
    String::from_utf8(decode(encoded).into_owned()).map_err(|_| NotText)
}

fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    if !encoded.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(encoded);
    }
    let hex = |digit: &u8| char::from(*digit).to_digit(16);
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [byte, after @ ..] = rest {
        rest = after;
        decoded.push(match (byte, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, tail @ ..]) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    rest = tail;
                    (high << 4 | low) as u8
                }
                _ => b'%',
            },
            _ => *byte,
        });
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_is_recognised_by_its_type_alone() {
        for json in [
            "application/json",
            "application/json; charset=utf-8",
            "application/json ;charset=UTF-8",
            " Application/JSON",
            "application/vnd.api+json",
        ] {
            assert!(is_json_type(Some(json)), "{json}");
        }
        for form in [
            "application/x-www-form-urlencoded",
            "text/plain;charset=UTF-8",
            "application/xml",
            "application/jsonp",
            "x; application/json",
            "",
        ] {
            assert!(!is_json_type(Some(form)), "{form}");
        }
        assert!(!is_json_type(None));
    }

    fn messages(encoded: &str) -> Vec<String> {
        parse_form(encoded.as_bytes()).unwrap().messages
    }

    #[test]
    fn a_form_holds_messages_and_a_callback() {
        assert_eq!(
            messages("message=%7B%22channel%22%3A%22%2Ffoo%22%2C+%22data%22%3a%22h%C3%A9%22%7D"),
            [r#"{"channel":"/foo", "data":"hé"}"#]
        );
        assert_eq!(
            messages(r#"message={"channel":"/foo","data":"a=b"}"#),
            [r#"{"channel":"/foo","data":"a=b"}"#]
        );
        assert_eq!(
            messages("x=1&message=[1]&m%65ssage=[2]&&message"),
            ["[1]", "[2]", ""]
        );
        assert!(messages("").is_empty());
        assert_eq!(messages("message=100%&message=%zz%4"), ["100%", "%zz%4"]);
        let both = parse_form(b"jsonp=a&message=[]&jsonp=cb.a_1%24").unwrap();
        assert_eq!(both.jsonp.as_deref(), Some("cb.a_1$"));
    }

    #[test]
    fn a_form_must_be_utf_8_where_it_is_read() {
        assert!(parse_form(b"message=%ff").is_err());
        assert!(parse_form(b"message=\xff").is_err());
        assert!(parse_form(b"jsonp=%c3").is_err());
        assert!(parse_form(b"other=%ff&%fe=1&message=[]").is_ok());
    }

    #[test]
    fn a_callback_is_a_path_of_identifiers() {
        for good in [
            "__jsonp1__",
            "_cometd_jsonp_0",
            "$",
            "cb.a_1$",
            "A.b.C",
            &"x".repeat(128),
        ] {
            assert!(is_callback(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "1a",
            "a b",
            "a-b",
            "a[0]",
            "alert(1)",
            "é",
            "a\n",
            &"x".repeat(129),
        ] {
            assert!(!is_callback(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_script_calls_the_callback_with_the_array() {
        assert_eq!(
            callback_script("cb.a_1$", "[{\"id\":\"x\u{2028}y\u{2029}\"}]"),
            r#"/**/cb.a_1$([{"id":"x\u2028y\u2029"}]);"#
        );
    }

    #[test]
    fn a_stream_event_has_a_field_for_each_line() {
        assert_eq!(stream_event("[{}]"), "data: [{}]\r\n\r\n");
        assert_eq!(stream_event("[\n1]"), "data: [\r\ndata: 1]\r\n\r\n");
        assert_eq!(stream_event("[\r1]"), "data: [\r\ndata: 1]\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_url_encodes_is_read_back(values in prop::collection::vec(any::<String>(), 0..4)) {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            for value in &values {
                form.append_pair("message", value);
            }
            prop_assert_eq!(messages(&form.finish()), values);
        }

        #[test]
        fn no_bytes_make_a_form_panic(bytes: Vec<u8>) {
            let _ = parse_form(&bytes);
        }
    }
}
