//! The Pusher Channels protocol as text (`pusher.md` 1.3–1.7): what a client sends becomes a
//! [`ClientEvent`], and one function for each event that a server sends.
//!
//! Outbound `data` is a string that holds JSON in every event except `pusher:error`, where it is
//! an object: .NET and Swift ignore the other form (`pusher.md` 0, rule 1).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{TextField, compact, object, push_string};
use crate::model::{Member, Message, SocketId};

/// What a client sends.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientEvent {
    Ping,
    Pong,
    Subscribe(Subscribe),
    Unsubscribe {
        channel: TextField,
    },
    SignIn {
        auth: TextField,
        user_data: TextField,
    },
    /// A name that starts with `client-`.
    Trigger(Trigger),
    Unsupported {
        name: String,
    },
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Subscribe {
    pub channel: TextField,
    pub auth: TextField,
    pub channel_data: TextField,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Trigger {
    pub name: String,
    pub channel: TextField,
    /// The sender's string, or its other JSON value as compact text; `{}` when there was none
    /// (`pusher.md` 3).
    pub data: String,
}

/// Not a JSON object with a string `event`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Reads one message of a client. `data` may be an object, a string that holds one, or absent.
pub fn parse(text: &str) -> Result<ClientEvent, Malformed> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        event: String,
        #[serde(borrow)]
        channel: Option<&'a RawValue>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize, Default)]
    struct Parameters<'a> {
        #[serde(borrow)]
        channel: Option<&'a RawValue>,
        #[serde(borrow)]
        auth: Option<&'a RawValue>,
        #[serde(borrow)]
        channel_data: Option<&'a RawValue>,
        #[serde(borrow)]
        user_data: Option<&'a RawValue>,
    }

    let envelope: Envelope = object(text).ok_or(Malformed)?;
    let unwrapped = TextField::of(envelope.data);
    let data = match &unwrapped {
        TextField::Text(text) => text,
        _ => envelope.data.map_or("{}", RawValue::get),
    };
    let parameters = || object::<Parameters>(data).unwrap_or_default();

    Ok(match envelope.event.as_str() {
        "pusher:ping" => ClientEvent::Ping,
        "pusher:pong" => ClientEvent::Pong,
        "pusher:subscribe" => {
            let given = parameters();
            ClientEvent::Subscribe(Subscribe {
                channel: TextField::of(given.channel),
                auth: TextField::of(given.auth),
                channel_data: TextField::of(given.channel_data),
            })
        }
        "pusher:unsubscribe" => ClientEvent::Unsubscribe {
            channel: TextField::of(parameters().channel),
        },
        "pusher:signin" => {
            let given = parameters();
            ClientEvent::SignIn {
                auth: TextField::of(given.auth),
                user_data: TextField::of(given.user_data),
            }
        }
        name if name.starts_with("client-") => {
            let data = match unwrapped {
                TextField::Text(text) => text,
                _ => compact(data),
            };
            ClientEvent::Trigger(Trigger {
                channel: TextField::of(envelope.channel),
                data,
                name: envelope.event,
            })
        }
        _ => ClientEvent::Unsupported {
            name: envelope.event,
        },
    })
}

/// What `channel_data` of a presence subscription says (`pusher.md` 2.6).
///
/// A numeric `user_id` becomes the digits as they were written, so that ids above 2⁵³ survive.
pub fn parse_member(channel_data: &str) -> Result<Member, MemberError> {
    #[derive(Deserialize)]
    struct ChannelData<'a> {
        #[serde(borrow)]
        user_id: Option<&'a RawValue>,
        #[serde(borrow)]
        user_info: Option<&'a RawValue>,
    }
    let data: ChannelData = object(channel_data).ok_or(MemberError::NoUserId)?;
    let user_id = match (TextField::of(data.user_id), data.user_id) {
        (TextField::Text(id), _) if !id.is_empty() => id,
        (TextField::NotText, Some(raw)) if is_number(raw.get()) => raw.get().to_owned(),
        _ => return Err(MemberError::NoUserId),
    };
    Ok(Member {
        user_id: user_id.into(),
        user_info: user_info(data.user_info).map_err(|()| MemberError::UserInfoIsNoObject)?,
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberError {
    /// No JSON object, or no `user_id` that is a non-empty string or a number.
    NoUserId,
    UserInfoIsNoObject,
}

/// What `user_data` of a sign-in says (`pusher.md` 4.1).
#[derive(Clone, PartialEq, Debug)]
pub struct UserData {
    pub user: Member,
    pub watchlist: Vec<Arc<str>>,
}

/// `None` unless it is an object with a non-empty string `id`; `user_info`, where given, an
/// object; `watchlist`, where given, an array of strings.
pub fn parse_user_data(user_data: &str) -> Option<UserData> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        id: String,
        #[serde(borrow)]
        user_info: Option<&'a RawValue>,
        watchlist: Option<Vec<String>>,
    }
    let fields: Fields = object(user_data)?;
    if fields.id.is_empty() {
        return None;
    }
    Some(UserData {
        user: Member {
            user_id: fields.id.into(),
            user_info: user_info(fields.user_info).ok()?,
        },
        watchlist: (fields.watchlist.unwrap_or_default().into_iter())
            .map(Arc::from)
            .collect(),
    })
}

fn user_info(raw: Option<&RawValue>) -> Result<Option<Arc<str>>, ()> {
    match raw {
        None => Ok(None),
        Some(raw) if raw.get().starts_with('{') => Ok(Some(raw.get().into())),
        Some(_) => Err(()),
    }
}

fn is_number(json: &str) -> bool {
    json.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// Also the HTTP API's text for the same fault (`pusher.md` 1.7, 5.9).
pub fn data_too_large(bytes_max: usize) -> String {
    format!(
        "The data content of this event exceeds the allowed maximum ({bytes_max} bytes). \
         See https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info"
    )
}

/// What is no good is repeated to its sender, but not at any length.
pub fn abridged(text: &str) -> String {
    const ECHOED_CHARS_MAX: usize = 200;
    text.chars().take(ECHOED_CHARS_MAX).collect()
}

/// The first event of every accepted connection. `activity_timeout_secs` must not be 0:
/// pusher-js gives up (`pusher.md` 1.2).
pub fn connection_established(socket_id: SocketId, activity_timeout_secs: u64) -> String {
    let data =
        format!(r#"{{"socket_id":"{socket_id}","activity_timeout":{activity_timeout_secs}}}"#);
    event("pusher:connection_established", None, &data)
}

pub fn pong() -> String {
    event("pusher:pong", None, "{}")
}

/// `code` is absent for errors that leave the connection as it is.
pub fn error(code: Option<u16>, message: &str) -> String {
    let mut out = String::from(r#"{"event":"pusher:error","data":{"code":"#);
    match code {
        Some(code) => out.push_str(&code.to_string()),
        None => out.push_str("null"),
    }
    out.push_str(r#","message":"#);
    push_string(&mut out, message);
    out.push_str("}}");
    out
}

/// `members` is the whole roster, the subscriber included, of a presence channel.
pub fn subscription_succeeded(channel: &str, members: Option<&[Arc<Member>]>) -> String {
    let data = members.map_or_else(|| "{}".to_owned(), presence_data);
    event(
        "pusher_internal:subscription_succeeded",
        Some(channel),
        &data,
    )
}

/// Every id is a key of `hash`: .NET looks each one up (`pusher.md` 2.4).
fn presence_data(members: &[Arc<Member>]) -> String {
    let mut ids = String::new();
    let mut hash = String::new();
    for member in members {
        if !ids.is_empty() {
            ids.push(',');
            hash.push(',');
        }
        push_string(&mut ids, &member.user_id);
        push_string(&mut hash, &member.user_id);
        hash.push(':');
        hash.push_str(member.user_info.as_deref().unwrap_or("null"));
    }
    let count = members.len();
    format!(r#"{{"presence":{{"count":{count},"ids":[{ids}],"hash":{{{hash}}}}}}}"#)
}

/// Reaches `channel.bind('pusher:subscription_error')` of pusher-js and Echo's `error` (2.5).
pub fn subscription_error(channel: &str, kind: &str, error: &str, status: u16) -> String {
    let mut data = String::from(r#"{"type":"#);
    push_string(&mut data, kind);
    data.push_str(r#","error":"#);
    push_string(&mut data, error);
    data.push_str(&format!(r#","status":{status}}}"#));
    event("pusher:subscription_error", Some(channel), &data)
}

pub fn member_added(channel: &str, member: &Member) -> String {
    let mut data = String::from(r#"{"user_id":"#);
    push_string(&mut data, &member.user_id);
    if let Some(info) = &member.user_info {
        data.push_str(r#","user_info":"#);
        data.push_str(info);
    }
    data.push('}');
    event("pusher_internal:member_added", Some(channel), &data)
}

pub fn member_removed(channel: &str, user_id: &str) -> String {
    let mut data = String::from(r#"{"user_id":"#);
    push_string(&mut data, user_id);
    data.push('}');
    event("pusher_internal:member_removed", Some(channel), &data)
}

pub fn subscription_count(channel: &str, connections: u64) -> String {
    let data = format!(r#"{{"subscription_count":{connections}}}"#);
    event("pusher_internal:subscription_count", Some(channel), &data)
}

/// Java's client crashes on reading an event without `data`, so there is some (2.7).
pub fn cache_miss(channel: &str) -> String {
    event("pusher:cache_miss", Some(channel), "{}")
}

pub fn signin_success(user_data: &str) -> String {
    let mut data = String::from(r#"{"user_data":"#);
    push_string(&mut data, user_data);
    data.push('}');
    event("pusher:signin_success", None, &data)
}

/// A list that is empty is left out (4.2); `None` when both are. No `channel`: .NET would lose it.
pub fn watchlist_events(online: &[Arc<str>], offline: &[Arc<str>]) -> Option<String> {
    let mut events = String::new();
    for (name, user_ids) in [("online", online), ("offline", offline)] {
        let Some((first, others)) = user_ids.split_first() else {
            continue;
        };
        if !events.is_empty() {
            events.push(',');
        }
        events.push_str(&format!(r#"{{"name":"{name}","user_ids":["#));
        push_string(&mut events, first);
        for id in others {
            events.push(',');
            push_string(&mut events, id);
        }
        events.push_str("]}");
    }
    if events.is_empty() {
        return None;
    }
    let data = format!(r#"{{"events":[{events}]}}"#);
    Some(event("pusher_internal:watchlist_events", None, &data))
}

/// An application's event or a client event, with the publisher's data string unchanged.
pub fn message(channel: &str, message: &Message) -> String {
    let mut out = envelope(&message.name, Some(channel), &message.data);
    if let Some(user_id) = &message.user_id {
        out.push_str(r#","user_id":"#);
        push_string(&mut out, user_id);
    }
    out.push('}');
    out
}

fn event(name: &str, channel: Option<&str>, data: &str) -> String {
    let mut out = envelope(name, channel, data);
    out.push('}');
    out
}

/// The event's text up to where further members may follow.
fn envelope(name: &str, channel: Option<&str>, data: &str) -> String {
    // Room for the quotes that JSON inside a string needs escaped, in most cases.
    let mut out = String::with_capacity(64 + name.len() + data.len() + data.len() / 4);
    out.push_str(r#"{"event":"#);
    push_string(&mut out, name);
    if let Some(channel) = channel {
        out.push_str(r#","channel":"#);
        push_string(&mut out, channel);
    }
    out.push_str(r#","data":"#);
    push_string(&mut out, data);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn text(text: &str) -> TextField {
        TextField::Text(text.into())
    }

    #[test]
    fn a_subscription_is_read_from_an_object_and_from_a_string_that_holds_one() {
        let expected = Ok(ClientEvent::Subscribe(Subscribe {
            channel: text("private-x"),
            auth: text("k:s"),
            channel_data: TextField::Absent,
        }));
        for given in [
            r#"{"event":"pusher:subscribe","data":{"channel":"private-x","auth":"k:s"}}"#,
            r#"{"event":"pusher:subscribe","data":"{\"channel\":\"private-x\",\"auth\":\"k:s\"}"}"#,
            r#"{"event":"pusher:subscribe","data":{"auth":"k:s","channel_data":null,"channel":"private-x","more":[1]}}"#,
        ] {
            assert_eq!(parse(given), expected, "{given}");
        }
    }

    #[test]
    fn channel_data_is_taken_as_it_was_signed() {
        let given = r#"{"event":"pusher:subscribe","data":{"channel":"presence-x","auth":"a","channel_data":"{ \"user_id\": \"\\u00eb\" }"}}"#;
        let Ok(ClientEvent::Subscribe(subscribe)) = parse(given) else {
            panic!()
        };
        assert_eq!(subscribe.channel_data, text(r#"{ "user_id": "\u00eb" }"#));
    }

    #[test]
    fn pings_come_with_an_object_and_without_data() {
        for given in [
            r#"{"event":"pusher:ping","data":{}}"#,
            r#"{"event": "pusher:ping"}"#,
            r#"{"data":null,"event":"pusher:ping"}"#,
        ] {
            assert_eq!(parse(given), Ok(ClientEvent::Ping), "{given}");
        }
    }

    #[test]
    fn client_event_data_becomes_a_string() {
        for (data, expected) in [
            (r#","data":"plain""#, "plain"),
            (r#","data":"{\"a\":1}""#, r#"{"a":1}"#),
            (r#","data":{ "a" : [1, 2.50] }"#, r#"{"a":[1,2.50]}"#),
            (r#","data":12345678901234567890"#, "12345678901234567890"),
            (r#","data":null"#, "{}"),
            ("", "{}"),
        ] {
            let given = format!(r#"{{"event":"client-x","channel":"private-y"{data}}}"#);
            let expected = Trigger {
                name: "client-x".into(),
                channel: text("private-y"),
                data: expected.into(),
            };
            assert_eq!(parse(&given), Ok(ClientEvent::Trigger(expected)), "{given}");
        }
    }

    #[test]
    fn what_is_no_event_is_malformed() {
        for bad in [
            "",
            "{}",
            "[]",
            "null",
            "1",
            r#""x""#,
            "{",
            r#"{"event":1}"#,
            r#"{"event":null}"#,
            r#"["pusher:ping"]"#,
            r#"{"event":"a"} x"#,
            r#"{"event":"\ud800"}"#,
        ] {
            assert_eq!(parse(bad), Err(Malformed), "{bad}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), Err(Malformed));
        assert_eq!(parse(&r#"{"data":"#.repeat(100_000)), Err(Malformed));
    }

    #[test]
    fn fields_of_another_type_are_seen_as_such() {
        let given =
            r#"{"event":"pusher:subscribe","data":{"channel":5,"auth":{},"channel_data":[]}}"#;
        let expected = Subscribe {
            channel: TextField::NotText,
            auth: TextField::NotText,
            channel_data: TextField::NotText,
        };
        assert_eq!(parse(given), Ok(ClientEvent::Subscribe(expected)));
        for given in [
            r#"{"event":"pusher:subscribe"}"#,
            r#"{"event":"pusher:subscribe","data":"x"}"#,
            r#"{"event":"pusher:subscribe","data":["c"]}"#,
        ] {
            assert_eq!(
                parse(given),
                Ok(ClientEvent::Subscribe(Subscribe::default())),
                "{given}"
            );
        }
    }

    #[test]
    fn a_user_id_is_a_string_or_the_digits_of_a_number() {
        for (given, id) in [
            (r#"{"user_id":"10"}"#, "10"),
            (r#"{"user_id":10}"#, "10"),
            (r#"{"user_id":9007199254740993123}"#, "9007199254740993123"),
            (r#" {"x":1,"user_id":-1,"user_info":null}"#, "-1"),
            (r#"{"user_id":"Zo\u00eb"}"#, "Zoë"),
        ] {
            assert_eq!(&*parse_member(given).unwrap().user_id, id, "{given}");
        }
        for bad in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"user_id":""}"#,
            r#"{"user_id":null}"#,
            r#"{"user_id":true}"#,
            r#"{"user_id":{}}"#,
            r#"{"user_id":[1]}"#,
            r#"["1"]"#,
        ] {
            assert_eq!(parse_member(bad), Err(MemberError::NoUserId), "{bad}");
        }
    }

    #[test]
    fn user_info_is_an_object_or_nothing() {
        let info = |given: &str| parse_member(given).map(|m| m.user_info);
        assert_eq!(
            info(r#"{"user_id":1,"user_info":{"a": 1.0}}"#),
            Ok(Some(r#"{"a": 1.0}"#.into()))
        );
        assert_eq!(info(r#"{"user_id":1,"user_info":null}"#), Ok(None));
        for bad in ["[]", "1", "\"x\"", "true"] {
            let given = format!(r#"{{"user_id":1,"user_info":{bad}}}"#);
            assert_eq!(info(&given), Err(MemberError::UserInfoIsNoObject), "{bad}");
        }
    }

    #[test]
    fn user_data_needs_a_string_id() {
        let data = parse_user_data(r#"{"id":"1","watchlist":["a","b"],"user_info":{"n":1}}"#);
        let data = data.unwrap();
        assert_eq!(&*data.user.user_id, "1");
        assert_eq!(data.user.user_info.as_deref(), Some(r#"{"n":1}"#));
        assert_eq!(data.watchlist, ["a", "b"].map(crate::model::UserId::from));
        for bad in [
            "{}",
            r#"{"id":1}"#,
            r#"{"id":""}"#,
            r#"{"id":null}"#,
            r#"["1"]"#,
            "x",
            r#"{"id":"1","watchlist":[1]}"#,
            r#"{"id":"1","user_info":"x"}"#,
        ] {
            assert_eq!(parse_user_data(bad), None, "{bad}");
        }
    }

    /// The outer object with its `data` decoded.
    fn decoded(frame: &str) -> (Value, Value) {
        let outer: Value = serde_json::from_str(frame).unwrap();
        let data = serde_json::from_str(outer["data"].as_str().unwrap()).unwrap();
        (outer, data)
    }

    #[test]
    fn an_error_has_an_object_and_every_other_event_a_string_as_data() {
        assert_eq!(
            error(Some(4001), "a \"b\""),
            r#"{"event":"pusher:error","data":{"code":4001,"message":"a \"b\""}}"#
        );
        assert_eq!(
            error(None, "x"),
            r#"{"event":"pusher:error","data":{"code":null,"message":"x"}}"#
        );
        assert_eq!(
            connection_established(SocketId::new(3363, 1846347), 120),
            r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"3363.1846347\",\"activity_timeout\":120}"}"#
        );
        assert_eq!(
            subscription_succeeded("my-channel", None),
            r#"{"event":"pusher_internal:subscription_succeeded","channel":"my-channel","data":"{}"}"#
        );
        assert_eq!(pong(), r#"{"event":"pusher:pong","data":"{}"}"#);
    }

    #[test]
    fn a_roster_lists_every_member_once_with_a_hash_entry_each() {
        let members = [
            Arc::new(parse_member(r#"{"user_id":10,"user_info":{"name":"A"}}"#).unwrap()),
            Arc::new(parse_member(r#"{"user_id":"1\"1"}"#).unwrap()),
        ];
        let frame = subscription_succeeded("presence-room", Some(&members));
        let expected = json!({"presence": {
            "count": 2, "ids": ["10", "1\"1"], "hash": {"10": {"name": "A"}, "1\"1": null}}});
        assert_eq!(decoded(&frame).1, expected);
        let empty = subscription_succeeded("presence-room", Some(&[]));
        assert_eq!(
            decoded(&empty).1,
            json!({"presence": {"count": 0, "ids": [], "hash": {}}})
        );
    }

    #[test]
    fn membership_events_name_the_user() {
        let member = parse_member(r#"{"user_id":"11","user_info":{"name":"B"}}"#).unwrap();
        let (outer, data) = decoded(&member_added("presence-room", &member));
        assert_eq!(outer["event"], "pusher_internal:member_added");
        assert_eq!(data, json!({"user_id": "11", "user_info": {"name": "B"}}));
        let (outer, data) = decoded(&member_removed("presence-room", "11"));
        assert_eq!(outer["event"], "pusher_internal:member_removed");
        assert_eq!(data, json!({"user_id": "11"}));
    }

    #[test]
    fn watchlist_events_leave_out_what_is_empty() {
        let ids = |list: &[&str]| list.iter().map(|&id| id.into()).collect::<Vec<Arc<str>>>();
        assert_eq!(watchlist_events(&[], &[]), None);
        let frame = watchlist_events(&ids(&["a"]), &ids(&["b", "c"])).unwrap();
        let (outer, data) = decoded(&frame);
        assert!(outer.get("channel").is_none());
        let expected = json!({"events": [
            {"name": "online", "user_ids": ["a"]}, {"name": "offline", "user_ids": ["b", "c"]}]});
        assert_eq!(data, expected);
        let frame = watchlist_events(&[], &ids(&["b"])).unwrap();
        assert_eq!(
            decoded(&frame).1,
            json!({"events": [{"name": "offline", "user_ids": ["b"]}]})
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(given: String) {
            let _ = parse(&given);
            let _ = parse_member(&given);
            let _ = parse_user_data(&given);
        }

        #[test]
        fn a_message_keeps_name_data_and_user_to_the_letter(
            name: String, data: String, user: Option<String>,
        ) {
            let sent = Message {
                name: name.as_str().into(),
                data: data.as_str().into(),
                user_id: user.as_deref().map(Arc::from),
                ext: None,
                members: None,
            };
            let frame: Value = serde_json::from_str(&message("room", &sent)).unwrap();
            let mut expected = json!({"event": name, "channel": "room", "data": data});
            if let Some(user) = user {
                expected["user_id"] = user.into();
            }
            prop_assert_eq!(frame, expected);
        }
    }
}
