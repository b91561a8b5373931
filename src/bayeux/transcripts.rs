//! What Faye 1.4 was recorded to answer, against what our reading, checking and writing make of
//! the same requests; and that no request at all makes them panic. The sessions that a server
//! would keep are a list of ids here.

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::check;
use super::mapping::Style;
use crate::wire::bayeux::http::{DEFAULT_CALLBACK, callback_script, is_callback, parse_form};
use crate::wire::bayeux::{
    Advice, BayeuxError, ConnectionType, Given, IncomingMessage, Reconnect, Unreadable, join,
    parse, parse_all,
};

const TIMEOUT_MS: u64 = 3000;
const SUPPORTED: [ConnectionType; 5] = ConnectionType::ALL;

/// Faye's, which lacks the interval that ours has.
const HANDSHAKE_AGAIN: Advice = Advice {
    reconnect: Reconnect::Handshake,
    interval_ms: None,
    ..Advice::never()
};

struct Sessions<'a> {
    known: Vec<&'a str>,
    assigned: Vec<&'a str>,
    style: Style,
}

impl Sessions<'_> {
    fn knows(&self, client_id: Option<Given>) -> bool {
        let text = client_id.and_then(Given::text);
        text.is_some_and(|text| self.known.contains(&&*text))
    }

    fn answer(&mut self, message: &IncomingMessage) -> String {
        use IncomingMessage::*;
        let retry = Advice::retry(0, TIMEOUT_MS);
        match message {
            Handshake(request) => match check::handshake(request, &SUPPORTED) {
                Ok(()) => {
                    let client_id = self.assigned.remove(0);
                    request.accepted(client_id, &SUPPORTED, &retry, None)
                }
                Err(error) => request.refused(&error, &SUPPORTED, &HANDSHAKE_AGAIN),
            },
            Connect(request) => {
                match check::connect(request, self.knows(request.client_id), &SUPPORTED) {
                    Ok(()) => {
                        let is_stream = request
                            .connection_type
                            .is_some_and(|given| given.json() == "\"eventsource\"");
                        let advice = match is_stream {
                            true => Advice::retry(TIMEOUT_MS, 0),
                            false => retry,
                        };
                        assert_eq!(
                            request.accepted(&advice, None),
                            request.hold().accepted(&advice, None)
                        );
                        request.accepted(&advice, None)
                    }
                    Err(error) => request.refused(&error, &HANDSHAKE_AGAIN),
                }
            }
            Disconnect(request) => {
                match check::disconnect(request, self.knows(request.client_id)) {
                    Ok(()) => request.accepted(),
                    Err(error) => request.refused(&error),
                }
            }
            Subscribe(request) | Unsubscribe(request) => {
                match check::subscribe(request, self.knows(request.client_id), self.style) {
                    Ok(_) => request.accepted(None),
                    Err(error) => request.refused(&error),
                }
            }
            Publish(request) => match check::publish(request, self.style) {
                Ok(_) => request.accepted(),
                Err(error) => request.refused(&error),
            },
            Invalid(request) => request.refused(),
        }
    }

    fn answer_all(&mut self, messages: Vec<IncomingMessage>) -> String {
        join(messages.iter().map(|message| self.answer(message)))
    }
}

#[derive(Deserialize)]
struct Exchange {
    name: String,
    json: Option<String>,
    form: Option<Vec<(String, String)>>,
    query: Option<Vec<(String, String)>>,
    known: Vec<String>,
    assigned: Vec<String>,
    /// Absent where Faye answered 400.
    reply: Option<String>,
    /// Where we differ, and `why`.
    #[serde(default, deserialize_with = "given")]
    ours: Option<Option<String>>,
    why: Option<String>,
}

/// Tells `null` from absence.
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

fn urlencoded(fields: &[(String, String)]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields).finish()
}

fn answer(exchange: &Exchange) -> Option<String> {
    let mut sessions = Sessions {
        known: exchange.known.iter().map(String::as_str).collect(),
        assigned: exchange.assigned.iter().map(String::as_str).collect(),
        style: Style::Typed,
    };
    if let Some(json) = &exchange.json {
        return Some(sessions.answer_all(parse(json, 1000).ok()?));
    }
    let fields = exchange.form.as_ref().or(exchange.query.as_ref())?;
    let form = parse_form(urlencoded(fields).as_bytes()).ok()?;
    let callback = form.jsonp.as_deref().unwrap_or(DEFAULT_CALLBACK);
    if !is_callback(callback) || form.messages.is_empty() {
        return None;
    }
    let texts = form.messages.iter().map(String::as_str);
    let replies = sessions.answer_all(parse_all(texts, 1000).ok()?);
    Some(match exchange.form {
        Some(_) => replies,
        None => callback_script(callback, &replies),
    })
}

#[test]
fn what_faye_answered_is_answered() {
    let exchanges: Vec<Exchange> =
        serde_json::from_str(include_str!("../../fixtures/bayeux/transcripts.json")).unwrap();
    assert!(exchanges.len() > 60);
    for exchange in exchanges {
        assert_eq!(
            exchange.ours.is_some(),
            exchange.why.is_some(),
            "{}",
            exchange.name
        );
        let expected = exchange.ours.clone().unwrap_or(exchange.reply.clone());
        assert_eq!(answer(&exchange), expected, "{}", exchange.name);
    }
}

/// What serde cannot hold of legal JSON is echoed as given, and read as something else here.
fn values(replies: &str) -> Vec<Value> {
    let replies = replies.replace(r#""\ud800"#, "\"x").replace("1e999", "1e9");
    serde_json::from_str(&replies).unwrap()
}

fn reply(json: &str) -> String {
    let mut sessions = Sessions {
        known: vec!["known"],
        assigned: vec!["new"; 3],
        style: Style::Typed,
    };
    sessions.answer_all(parse(json, 3).unwrap())
}

#[test]
fn the_last_check_decides_which_error_is_told() {
    for (request, expected) in [
        (
            r#"{"channel":"/meta/handshake"}"#,
            "402:supportedConnectionTypes:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/handshake","supportedConnectionTypes":["x"]}"#,
            "301:x:Connection types not supported",
        ),
        (
            r#"{"channel":"/meta/handshake","supportedConnectionTypes":[]}"#,
            "301::Connection types not supported",
        ),
        (
            r#"{"channel":"/meta/handshake","supportedConnectionTypes":{}}"#,
            "301:[object Object]:Connection types not supported",
        ),
        (
            r#"{"channel":"/meta/handshake","supportedConnectionTypes":0,"version":1}"#,
            "402:supportedConnectionTypes:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/handshake","supportedConnectionTypes":["websocket"],"version":""}"#,
            "402:version:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/connect"}"#,
            "402:connectionType:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/connect","connectionType":"x"}"#,
            "301:x:Connection types not supported",
        ),
        (
            r#"{"channel":"/meta/connect","connectionType":["websocket"]}"#,
            "301:websocket:Connection types not supported",
        ),
        (
            r#"{"channel":"/meta/connect","connectionType":"websocket","clientId":["known"]}"#,
            "401:known:Unknown client",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"x"}"#,
            "402:subscription:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/subscribe","subscription":"/a b"}"#,
            "402:clientId:Missing required parameter",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"x","subscription":"/a b"}"#,
            "401:x:Unknown client",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":["/a","/meta/x","/b c"]}"#,
            "403:/meta/x:Forbidden channel",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":"/meta/a b"}"#,
            "405:/meta/a b:Invalid channel",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":[["/a"]]}"#,
            "405:/a:Invalid channel",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":[null]}"#,
            "405::Invalid channel",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":"/private-x"}"#,
            "403:/private-x:Forbidden channel",
        ),
        (
            r#"{"channel":"/meta/subscribe","clientId":"known","subscription":"/presence/**"}"#,
            "403:/presence/**:Forbidden channel",
        ),
        (r#"{"channel":"/meta/*"}"#, "403:/meta/*:Forbidden channel"),
        (
            r#"{"channel":"/meta/a b","data":1}"#,
            "405:/meta/a b:Invalid channel",
        ),
        (
            r#"{"channel":"/meta/a b"}"#,
            "402:data:Missing required parameter",
        ),
        (
            r#"{"channel":"/a b"}"#,
            "402:data:Missing required parameter",
        ),
        (
            r#"{"channel":"/service/*","data":1}"#,
            "405:/service/*:Invalid channel",
        ),
        (
            r#"{"channel":"/private-x","data":1}"#,
            "403:/private-x:Forbidden channel",
        ),
        (r#"{"channel":false,"data":1}"#, "405:false:Invalid channel"),
        (
            r#"{"channel":"\ud800","data":1}"#,
            "405:\\ud800:Invalid channel",
        ),
        (
            r#"{"channel":"/a\nb","data":1}"#,
            "405:/a\nb:Invalid channel",
        ),
        ("{}", "402:data:Missing required parameter"),
        ("[[]]", "402:data:Missing required parameter"),
        (r#"["x"]"#, "402:data:Missing required parameter"),
    ] {
        let replies = values(&reply(request));
        assert_eq!(replies[0]["error"], expected, "{request}");
        assert_eq!(replies[0]["successful"], false, "{request}");
    }
}

#[test]
fn what_the_server_offers_below_service_can_be_subscribed_to() {
    for offered in [
        "/service/user",
        "/service/presence/room",
        "/service/presence/a/b",
    ] {
        let request = format!(
            r#"{{"channel":"/meta/subscribe","clientId":"known","subscription":"{offered}"}}"#
        );
        assert!(
            reply(&request).contains(r#""successful":true"#),
            "{offered}"
        );
    }
    for other in [
        "/service/presence",
        "/service/presence-room",
        "/service/private/x",
        "/service/users",
    ] {
        let request = format!(
            r#"{{"channel":"/meta/subscribe","clientId":"known","subscription":"{other}"}}"#
        );
        assert!(reply(&request).contains("Forbidden channel"), "{other}");
    }
}

#[test]
fn of_a_repeated_member_the_last_counts() {
    assert_eq!(
        reply(
            r#"{"id":1,"channel":"/a","channel":"/b","id":"\u0032","data":1,"\u0063hannel":"/c"}"#
        ),
        r#"[{"id":"\u0032","channel":"/c","successful":true}]"#
    );
}

#[test]
fn a_hold_can_only_be_asked_for_in_milliseconds() {
    let hold = |advice: &str| {
        let text = format!(r#"{{"channel":"/meta/connect","advice":{advice}}}"#);
        match &parse(&text, 1).unwrap()[..] {
            [IncomingMessage::Connect(request)] => request.hold_ms,
            _ => panic!("no connect"),
        }
    };
    for (advice, expected) in [
        (r#"{"timeout":0}"#, Some(0)),
        (r#"{"timeout":1500.9}"#, Some(1500)),
        (r#"{"timeout":-1}"#, Some(0)),
        (r#"{"timeout":1e300}"#, Some(u64::MAX)),
        (r#"{"timeout":1e999}"#, Some(u64::MAX)),
        (r#"{"timeout":60000,"interval":0}"#, Some(60000)),
        (r#"{"timeout":"0"}"#, None),
        (r#"{"timeout":null}"#, None),
        ("{}", None),
        ("[0]", None),
        ("0", None),
    ] {
        assert_eq!(hold(advice), expected, "{advice}");
    }
}

#[test]
fn data_and_ext_are_kept_to_the_letter() {
    let text =
        r#"[{"channel":"/a","data": { "n" : 1.0, "s":"\u00e9\ud800" } ,"ext":{ "x" : 1e3 }}]"#;
    match &parse(text, 1).unwrap()[..] {
        [IncomingMessage::Publish(request)] => {
            assert_eq!(request.data, Some(r#"{ "n" : 1.0, "s":"\u00e9\ud800" }"#));
            assert_eq!(request.ext.json(), Some(r#"{ "x" : 1e3 }"#));
        }
        _ => panic!("no publish"),
    }
}

#[test]
fn a_request_has_limits() {
    let error = |text: &str| parse(text, 3).err();
    assert_eq!(error("nope"), Some(Unreadable::NotJson));
    assert_eq!(error(""), Some(Unreadable::NotJson));
    assert_eq!(error("[{}]]"), Some(Unreadable::NotJson));
    for scalar in ["42", "null", "\"[]\"", "true"] {
        assert_eq!(error(scalar), Some(Unreadable::NotMessages), "{scalar}");
    }
    let too_many = Some(Unreadable::TooManyMessages { messages_max: 3 });
    assert_eq!(error("[{},{},{}]"), None);
    assert_eq!(error("[{},{},{},{}]"), too_many);
    assert_eq!(error(r#"{"a":1,"b":2,"c":3,"d":4}"#), None);
    assert_eq!(parse_all(["[{},{}]", "[{},{}]"], 3).err(), too_many);
    assert_eq!(
        parse_all(["[{},{}]", "{}"], 3).map(|m| m.len()).ok(),
        Some(3)
    );
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert_eq!(error(&nested(100)), None);
    assert_eq!(error(&nested(101)), Some(Unreadable::TooDeep));
    assert_eq!(error(&nested(100_000)), Some(Unreadable::TooDeep));
    assert_eq!(error(&"[".repeat(100_000)), Some(Unreadable::TooDeep));
}

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(
            &[
                "null",
                "true",
                "false",
                "0",
                "-0.0",
                "7",
                "-1",
                "1.5e3",
                "1e999",
                "\"\"",
                "[]",
                "{}",
                r#""known""#,
                r#""\ud800""#,
                r#""/a""#,
                r#""/a b""#,
                r#""/**""#,
                r#""/meta/x""#,
                r#""/service/user""#,
                r#""/private/x""#,
                r#""/private-x""#,
                r#""/a!~2Eb""#,
                r#""/meta/handshake""#,
                r#""/meta/connect""#,
                r#""/meta/disconnect""#,
                r#""/meta/subscribe""#,
                r#""/meta/unsubscribe""#,
                r#""websocket""#,
                r#""eventsource""#,
                "12345678901234567890123",
            ][..]
        )
        .prop_map(str::to_owned),
        any::<String>().prop_map(|text| Value::from(text).to_string()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let name = prop::sample::select(&["timeout", "a", "b", "\\u0061", "\\ud800"][..]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(join),
            prop::collection::vec((name, inner), 0..4).prop_map(|members| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(n, v)| format!("\"{n}\":{v}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

fn any_message() -> impl Strategy<Value = String> {
    const MEMBERS: &[&str] = &[
        "channel",
        "channel",
        "channel",
        "id",
        "clientId",
        "connectionType",
        "version",
        "advice",
        "supportedConnectionTypes",
        "subscription",
        "data",
        "ext",
        "signature",
        "error",
        "successful",
        "\\u0063hannel",
        "\\ud800",
    ];
    prop::collection::vec((prop::sample::select(MEMBERS), any_json()), 0..9).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(n, v)| format!("\"{n}\": {v}"))
            .collect();
        format!("{{{}}}", members.join(" ,"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn every_json_type_in_every_member_gets_an_answer(
        messages in prop::collection::vec(prop_oneof![4 => any_message(), 1 => any_json()], 0..4),
        flat: bool,
    ) {
        let text = join(&messages);
        let mut sessions = Sessions {
            known: vec!["known"],
            assigned: vec!["new"; 4],
            style: if flat { Style::Flat } else { Style::Typed },
        };
        let replies = sessions.answer_all(parse(&text, 4).unwrap());
        let replies = values(&replies);
        prop_assert_eq!(replies.len(), messages.len());
        for reply in replies {
            prop_assert_ne!(reply["successful"].as_bool().unwrap(), reply["error"].is_string());
            prop_assert!(reply.get("data").is_none());
        }
    }

    #[test]
    fn no_text_makes_reading_panic(text: String) {
        if let Ok(messages) = parse(&text, 10) {
            let count = messages.len();
            prop_assert!(count <= 10);
        }
    }

    #[test]
    fn errors_hold_whatever_name_they_are_about(name: String) {
        let error: BayeuxError = crate::wire::bayeux::INVALID_CHANNEL.of(name.as_str());
        prop_assert_eq!(error.to_string(), format!("405:{name}:Invalid channel"));
    }
}
