//! Payloads and event names between the two protocols (`bayeux.md` 8.5). Pusher has a name and a
//! string, Bayeux has any JSON value; what is kept is Pusher's string.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::given::{NESTING_LEVELS_MAX, measure};
use crate::wire::json::push_string;

/// The event name that a plain Bayeux publish stands for. Deliveries do not mention it.
pub const PLAIN_EVENT: &str = "message";
/// The same from a publisher who is not trusted.
pub const UNTRUSTED_PLAIN_EVENT: &str = "client-message";

/// `data` of a Bayeux delivery, as JSON text: the string itself if it is JSON, else a JSON string
/// that holds it. The text may contain line breaks between its tokens.
pub fn bayeux_data(pusher_data: &str) -> Cow<'_, str> {
    if is_json(pusher_data) {
        return Cow::Borrowed(pusher_data);
    }
    let mut json = String::with_capacity(pusher_data.len() + 2);
    push_string(&mut json, pusher_data);
    Cow::Owned(json)
}

/// The data string for `data` of a Bayeux publish, which is valid JSON text: the content of a
/// string, or the text of anything else. A string whose content is itself JSON keeps its quotes,
/// so that `"123"` does not come back as a number.
pub fn pusher_data(bayeux_data: &str) -> Cow<'_, str> {
    if bayeux_data.starts_with('"')
        && let Ok(content) = serde_json::from_str::<String>(bayeux_data)
        && !is_json(&content)
    {
        return Cow::Owned(content);
    }
    Cow::Borrowed(bayeux_data)
}

/// Why a publisher may not name an event so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidEventName {
    /// Starts with `pusher:` or `pusher_internal:`.
    Reserved,
    TooLong {
        chars_max: usize,
    },
}

/// The name under which Pusher clients see a Bayeux publish; `requested` is `ext.event`. What an
/// untrusted publisher sends can always be told from the application's own events.
pub fn event_name(
    requested: Option<&str>,
    is_trusted: bool,
    chars_max: usize,
) -> Result<Cow<'_, str>, InvalidEventName> {
    let requested = requested.filter(|name| !name.is_empty());
    let name = match requested.unwrap_or(PLAIN_EVENT) {
        name if is_trusted || name.starts_with("client-") => Cow::Borrowed(name),
        name => Cow::Owned(format!("client-{name}")),
    };
    if name.starts_with("pusher:") || name.starts_with("pusher_internal:") {
        return Err(InvalidEventName::Reserved);
    }
    if name.chars().count() > chars_max {
        return Err(InvalidEventName::TooLong { chars_max });
    }
    Ok(name)
}

/// Whether the whole text is one JSON value that every client can read.
fn is_json(text: &str) -> bool {
    measure(text).0 <= NESTING_LEVELS_MAX && serde_json::from_str::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn a_pusher_string_that_is_json_is_that_value() {
        for json in [
            "{\"some\":\"data\"}",
            " {\n \"a\" : 1 } ",
            "[1,2.50]",
            "123456789012345678901234567890",
            "null",
            "\"quoted\"",
            r#""\ud800""#,
        ] {
            assert_eq!(bayeux_data(json), json);
        }
    }

    #[test]
    fn any_other_pusher_string_is_a_string() {
        for (text, expected) in [
            ("hello", r#""hello""#),
            ("", r#""""#),
            (" ", r#"" ""#),
            ("say \"hi\"\n", r#""say \"hi\"\n""#),
            ("{\"a\":1} x", r#""{\"a\":1} x""#),
            ("01", r#""01""#),
            ("NaN", r#""NaN""#),
            ("'a'", r#""'a'""#),
            ("[1,]", r#""[1,]""#),
        ] {
            assert_eq!(bayeux_data(text), expected);
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(bayeux_data(&deep), format!("\"{deep}\""));
    }

    #[test]
    fn a_bayeux_string_is_its_content_unless_that_is_json() {
        for (data, expected) in [
            (r#""hello""#, "hello"),
            (r#""""#, ""),
            (r#""caf\u00e9 \"x\"""#, "café \"x\""),
            (r#""123""#, r#""123""#),
            (r#"" null ""#, r#"" null ""#),
            (r#""{\"a\":1}""#, r#""{\"a\":1}""#),
            (r#""\"x\"""#, r#""\"x\"""#),
            (r#""\ud800""#, r#""\ud800""#),
            ("123", "123"),
            ("{ \"a\": 1.0 }", "{ \"a\": 1.0 }"),
            ("null", "null"),
        ] {
            assert_eq!(pusher_data(data), expected);
        }
    }

    #[test]
    fn an_untrusted_publisher_makes_client_events() {
        for (requested, untrusted, trusted) in [
            (None, "client-message", "message"),
            (Some(""), "client-message", "message"),
            (Some("typing"), "client-typing", "typing"),
            (Some("client-typing"), "client-typing", "client-typing"),
        ] {
            assert_eq!(event_name(requested, false, 200).unwrap(), untrusted);
            assert_eq!(event_name(requested, true, 200).unwrap(), trusted);
        }
    }

    #[test]
    fn nobody_makes_the_servers_events() {
        for reserved in ["pusher:subscribe", "pusher_internal:member_added"] {
            assert_eq!(
                event_name(Some(reserved), true, 200),
                Err(InvalidEventName::Reserved)
            );
            assert_eq!(
                event_name(Some(reserved), false, 200).unwrap(),
                format!("client-{reserved}")
            );
        }
        assert_eq!(
            event_name(Some("typing"), false, 12),
            Err(InvalidEventName::TooLong { chars_max: 12 })
        );
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            // Strings whose content reads as JSON, or nearly.
            r#"[ \t]*(\[|\]|\{|\}|"|\\|1|-|\.|e|null|true| ){0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_bayeux_value_survives_the_way_through_pusher(value in json_value()) {
            let data = value.to_string();
            let kept = pusher_data(&data);
            let back: Value = serde_json::from_str(&bayeux_data(&kept)).unwrap();
            prop_assert_eq!(back, value);
        }

        #[test]
        fn a_value_that_is_no_string_survives_to_the_letter(value in json_value()) {
            let data = serde_json::to_string_pretty(&value).unwrap();
            if !value.is_string() {
                let kept = pusher_data(&data);
                prop_assert_eq!(bayeux_data(&kept), data.as_str());
            }
        }

        #[test]
        fn every_pusher_string_becomes_json(text: String) {
            let data = bayeux_data(&text);
            prop_assert!(serde_json::from_str::<Value>(&data).is_ok());
        }
    }
}
