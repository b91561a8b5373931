//! The HTTP API as text (`pusher.md` 5.5–5.8): the bodies that applications send, and the answers.

use std::borrow::Borrow;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{TextField, compact, object};

/// An event to publish, as far as the application described it. What is required depends on where
/// it stands; null counts as absent, and unknown members are ignored.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trigger {
    pub name: Option<String>,
    /// A string as it is, any other JSON value as compact text.
    pub data: Option<String>,
    /// A list, or one plain string as Ruby allows.
    pub channels: Option<Vec<String>>,
    pub channel: Option<String>,
    pub socket_id: Option<String>,
    pub info: Option<String>,
}

impl Trigger {
    /// Reads the body of `POST events`. An empty one describes nothing.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match utf8(body)? {
            "" => Ok(Self::default()),
            text => Self::from_object(text)?.ok_or(Malformed::NoObject),
        }
    }

    /// `None` if `text` is no JSON object.
    fn from_object(text: &str) -> Result<Option<Self>, Malformed> {
        #[derive(Deserialize)]
        struct Members<'a> {
            #[serde(borrow)]
            name: Option<&'a RawValue>,
            #[serde(borrow)]
            data: Option<&'a RawValue>,
            #[serde(borrow)]
            channels: Option<&'a RawValue>,
            #[serde(borrow)]
            channel: Option<&'a RawValue>,
            #[serde(borrow)]
            socket_id: Option<&'a RawValue>,
            #[serde(borrow)]
            info: Option<&'a RawValue>,
        }
        let Some(members) = object::<Members>(text) else {
            return Ok(None);
        };
        Ok(Some(Self {
            name: string("name", members.name)?,
            data: string_or_json("data", members.data)?,
            channels: strings("channels", members.channels)?,
            channel: string("channel", members.channel)?,
            socket_id: string("socket_id", members.socket_id)?,
            info: string("info", members.info)?,
        }))
    }
}

/// The body of `POST batch_events`: `{"batch": [Trigger, …]}`.
#[derive(Debug)]
pub struct Batch<'a>(Vec<&'a RawValue>);

impl<'a> Batch<'a> {
    /// A missing list is read as an empty one.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Members<'a> {
            #[serde(borrow)]
            batch: Option<&'a RawValue>,
        }
        let members: Members = object(utf8(body)?).ok_or(Malformed::NoObject)?;
        let list = members.batch.map_or("[]", RawValue::get);
        let list = serde_json::from_str(list).map_err(|_| Malformed::Parameter("batch"))?;
        Ok(Self(list))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The events in their order, each read when its turn comes.
    pub fn events(&self) -> impl Iterator<Item = Result<Trigger, Malformed>> {
        self.0.iter().map(|event| {
            let event = Trigger::from_object(event.get())?;
            event.ok_or(Malformed::Parameter("batch"))
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The body is no JSON object.
    NoObject,
    /// The parameter of this name has another type than it should.
    Parameter(&'static str),
}

/// Names attributes of a channel that the answer is to hold (`pusher.md` 5.5, 5.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Info {
    pub user_count: bool,
    pub subscription_count: bool,
    pub cache: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownAttribute;

impl Info {
    /// Reads a comma separated list, as in `user_count,subscription_count`; an empty one names
    /// nothing.
    pub fn parse(list: &str) -> Result<Self, UnknownAttribute> {
        let mut info = Self::default();
        if list.trim().is_empty() {
            return Ok(info);
        }
        for attribute in list.split(',') {
            match attribute.trim() {
                "user_count" => info.user_count = true,
                "subscription_count" => info.subscription_count = true,
                "cache" => info.cache = true,
                _ => return Err(UnknownAttribute),
            }
        }
        Ok(info)
    }
}

/// What an answer says of one channel. What is `None` is left out.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct ChannelInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occupied: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_count: Option<u64>,
    /// `Some(None)` is written as null: nothing is cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Option<Cached>>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cached {
    pub data: String,
    /// Seconds.
    pub ttl: u64,
}

impl ChannelInfo {
    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// `{"channels":{"NAME":{…}}}` in the order of the list. Each name stands in it once.
pub fn channels<N: Borrow<str>>(list: &[(N, ChannelInfo)]) -> String {
    #[derive(Serialize)]
    struct Answer<'a, N: Borrow<str>> {
        #[serde(serialize_with = "object_of")]
        channels: &'a [(N, ChannelInfo)],
    }
    fn object_of<N: Borrow<str>, S: Serializer>(
        list: &&[(N, ChannelInfo)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(list.iter().map(|(name, info)| (name.borrow(), info)))
    }
    json(&Answer { channels: list })
}

/// `{"batch":[{…}]}`. Go cannot read anything but a list here.
pub fn batch(list: &[ChannelInfo]) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        batch: &'a [ChannelInfo],
    }
    json(&Answer { batch: list })
}

/// `{"users":[{"id":"1"}]}`. Ids are strings.
pub fn users(ids: &[impl Borrow<str>]) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        users: Vec<User<'a>>,
    }
    #[derive(Serialize)]
    struct User<'a> {
        id: &'a str,
    }
    let users = ids.iter().map(|id| User { id: id.borrow() });
    json(&Answer {
        users: users.collect(),
    })
}

fn json(answer: &impl Serialize) -> String {
    serde_json::to_string(answer).expect("strings, numbers and lists of them can be written")
}

fn utf8(body: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(body).map_err(|_| Malformed::NoObject)
}

fn string(name: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, Malformed> {
    match TextField::of(raw) {
        TextField::Absent => Ok(None),
        TextField::Text(text) => Ok(Some(text)),
        TextField::NotText => Err(Malformed::Parameter(name)),
    }
}

/// A string that cannot be read, such as half of a surrogate pair, is refused all the same.
fn string_or_json(name: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, Malformed> {
    match raw {
        Some(raw) if !raw.get().starts_with('"') => Ok(Some(compact(raw.get()))),
        _ => string(name, raw),
    }
}

fn strings(name: &'static str, raw: Option<&RawValue>) -> Result<Option<Vec<String>>, Malformed> {
    match raw {
        Some(raw) if raw.get().starts_with('[') => serde_json::from_str(raw.get())
            .map(Some)
            .map_err(|_| Malformed::Parameter(name)),
        _ => Ok(string(name, raw)?.map(|one| vec![one])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trigger(body: &str) -> Trigger {
        Trigger::parse(body.as_bytes()).unwrap()
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_trigger_has_its_members_and_nothing_else() {
        let body = r#"{"name":"e","data":"{\"n\":\"\\u00eb\\/\"}","channels":["a","b"],"channel":"c",
            "socket_id":"1.2","info":"user_count","tags":{"x":[1]},"user_id":7}"#;
        let expected = Trigger {
            name: text("e"),
            data: text(r#"{"n":"\u00eb\/"}"#),
            channels: Some(vec!["a".into(), "b".into()]),
            channel: text("c"),
            socket_id: text("1.2"),
            info: text("user_count"),
        };
        assert_eq!(trigger(body), expected);
        let nulls = r#"{"name":null,"data":null,"channels":null,"channel":null,"socket_id":null,"info":null}"#;
        for nothing in ["", "{}", " {\n} ", nulls] {
            assert_eq!(trigger(nothing), Trigger::default(), "{nothing:?}");
        }
    }

    #[test]
    fn data_that_is_no_string_becomes_compact_text() {
        for (json, data) in [
            (r#"" {} ""#, " {} "),
            (r#""""#, ""),
            (r#"{ "b" : 1.0, "a" : [ ] }"#, r#"{"b":1.0,"a":[]}"#),
            ("9007199254740993", "9007199254740993"),
            ("false", "false"),
        ] {
            let given = trigger(&format!(r#"{{"data": {json} }}"#));
            assert_eq!(given.data.as_deref(), Some(data));
        }
    }

    #[test]
    fn one_plain_string_is_a_list_of_channels() {
        let one = trigger(r#"{"channels":"a,b"}"#);
        assert_eq!(one.channels, Some(vec!["a,b".into()]));
    }

    #[test]
    fn what_has_another_shape_is_malformed() {
        let deep = "[".repeat(100_000);
        for body in [
            "x",
            "[]",
            "null",
            "\"e\"",
            "{",
            "{}{}",
            "{\"name\":}",
            "\u{feff}{}",
            &deep,
        ] {
            let refused = Trigger::parse(body.as_bytes());
            assert_eq!(refused, Err(Malformed::NoObject), "{body:.20}");
        }
        assert_eq!(Trigger::parse(b"{\"\xff\":1}"), Err(Malformed::NoObject));
        for (body, name) in [
            (r#"{"name":1}"#, "name"),
            (r#"{"data":"\ud800"}"#, "data"),
            (r#"{"channels":[1]}"#, "channels"),
            (r#"{"channels":["a",null]}"#, "channels"),
            (r#"{"channels":{}}"#, "channels"),
            (r#"{"channel":["a"]}"#, "channel"),
            (r#"{"socket_id":1.2}"#, "socket_id"),
            (r#"{"info":["user_count"]}"#, "info"),
        ] {
            let refused = Trigger::parse(body.as_bytes());
            assert_eq!(refused, Err(Malformed::Parameter(name)), "{body}");
        }
    }

    #[test]
    fn deeply_nested_data_is_carried_like_any_other() {
        let data = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let given = trigger(&format!(r#"{{"data":{data}}}"#));
        assert_eq!(given.data, Some(data));
    }

    #[test]
    fn a_batch_is_a_list_of_triggers() {
        let read = |body: &'static str| Batch::parse(body.as_bytes());
        let batch = read(r#"{"batch":[{"name":"a"},{},7],"other":1}"#).unwrap();
        assert_eq!(batch.len(), 3);
        let mut events = batch.events();
        assert_eq!(events.next().unwrap().unwrap().name, text("a"));
        assert_eq!(events.next(), Some(Ok(Trigger::default())));
        assert_eq!(events.next(), Some(Err(Malformed::Parameter("batch"))));
        assert_eq!(events.next(), None);
        for empty in ["{}", r#"{"batch":null}"#, r#"{"batch":[]}"#] {
            assert!(read(empty).unwrap().is_empty(), "{empty}");
        }
        for (body, why) in [
            ("", Malformed::NoObject),
            ("[]", Malformed::NoObject),
            (r#"{"batch":{}}"#, Malformed::Parameter("batch")),
            (r#"{"batch":"x"}"#, Malformed::Parameter("batch")),
        ] {
            assert_eq!(read(body).err(), Some(why), "{body}");
        }
    }

    #[test]
    fn info_is_a_comma_separated_list_of_known_attributes() {
        for nothing in ["", " "] {
            assert_eq!(Info::parse(nothing), Ok(Info::default()));
        }
        let users = Info {
            user_count: true,
            ..Info::default()
        };
        assert_eq!(Info::parse("user_count"), Ok(users));
        let all = Info {
            user_count: true,
            subscription_count: true,
            cache: true,
        };
        assert_eq!(Info::parse("cache, user_count,subscription_count"), Ok(all));
        for unknown in [
            ",",
            "user_count,",
            "users",
            "USER_COUNT",
            "user_count;cache",
        ] {
            assert_eq!(Info::parse(unknown), Err(UnknownAttribute), "{unknown}");
        }
    }

    #[test]
    fn answers_are_objects_and_lists_where_libraries_expect_them() {
        let count = |user_count| ChannelInfo {
            user_count,
            ..Default::default()
        };
        let list = [("b", count(Some(2))), ("a\"", count(None))];
        assert_eq!(
            channels(&list),
            r#"{"channels":{"b":{"user_count":2},"a\"":{}}}"#
        );
        assert_eq!(channels::<&str>(&[]), r#"{"channels":{}}"#);
        assert_eq!(
            batch(&[count(None), count(Some(1))]),
            r#"{"batch":[{},{"user_count":1}]}"#
        );
        assert_eq!(users(&["1", "ë"]), r#"{"users":[{"id":"1"},{"id":"ë"}]}"#);
        assert_eq!(users(&[""; 0]), r#"{"users":[]}"#);
        let whole = |cache| ChannelInfo {
            occupied: Some(true),
            user_count: Some(1),
            subscription_count: Some(2),
            cache: Some(cache),
        };
        let cached = Cached {
            data: "{}".into(),
            ttl: 60,
        };
        assert_eq!(
            whole(Some(cached)).to_json(),
            r#"{"occupied":true,"user_count":1,"subscription_count":2,"cache":{"data":"{}","ttl":60}}"#
        );
        assert_eq!(
            whole(None).to_json(),
            r#"{"occupied":true,"user_count":1,"subscription_count":2,"cache":null}"#
        );
    }

    proptest! {
        #[test]
        fn any_string_of_data_is_read_as_it_is(data: String) {
            let body = serde_json::json!({ "data": data }).to_string();
            prop_assert_eq!(trigger(&body).data, Some(data));
        }

        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>, event in ".*") {
            let _ = Trigger::parse(&body);
            let batch = format!(r#"{{"batch":[{event}]}}"#);
            if let Ok(batch) = Batch::parse(batch.as_bytes()) {
                let _: Vec<_> = batch.events().collect();
            }
        }
    }
}
