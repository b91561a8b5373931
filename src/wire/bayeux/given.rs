//! JSON values as clients gave them: kept as text, looked into only where needed.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// How deep objects and arrays may stand in each other, in a request and in a payload. Ruby's JSON
/// library, which Faye's Ruby client uses, refuses to read anything deeper.
pub const NESTING_LEVELS_MAX: usize = 100;

/// A JSON value that a client gave.
#[derive(Clone, Copy)]
pub struct Given<'a>(&'a RawValue);

impl<'a> Given<'a> {
    pub(super) fn new(raw: &'a RawValue) -> Self {
        Self(raw)
    }

    /// `None` for what is no JSON.
    pub fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok().map(Self)
    }

    /// `None` for `null`, `false`, `0` and `""`: to Faye such a member is absent.
    pub(super) fn truthy(given: Option<Self>) -> Option<Self> {
        given.filter(|given| {
            let is_zero = || given.json().parse::<f64>() == Ok(0.0);
            !matches!(given.json(), "null" | "false" | "\"\"") && !is_zero()
        })
    }

    /// The JSON text, without white space around it.
    pub fn json(self) -> &'a str {
        self.0.get()
    }

    /// The content of a string. `None` for other types, and for a string that is no Unicode text
    /// because it holds half of a surrogate pair.
    pub fn text(self) -> Option<Cow<'a, str>> {
        let content = self.string_content()?;
        if content.contains('\\') {
            serde_json::from_str(self.json()).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(content))
        }
    }

    pub fn is_number(self) -> bool {
        self.json()
            .starts_with(|first: char| first == '-' || first.is_ascii_digit())
    }

    /// What error texts say of the value: JavaScript's string conversion, except that an array
    /// within an array stays JSON.
    pub fn describe(self) -> String {
        match self.text() {
            Some(text) => text.into_owned(),
            None => match self.elements() {
                Some(elements) => {
                    let texts: Vec<_> = elements
                        .into_iter()
                        .map(|element| match element.json().starts_with('[') {
                            true => element.json().to_owned(),
                            false => element.describe_scalar(),
                        })
                        .collect();
                    texts.join(",")
                }
                None => self.describe_scalar(),
            },
        }
    }

    /// The elements of an array.
    pub fn elements(self) -> Option<Vec<Given<'a>>> {
        if !self.json().starts_with('[') {
            return None;
        }
        let elements: Vec<&RawValue> = serde_json::from_str(self.json()).ok()?;
        Some(elements.into_iter().map(Given).collect())
    }

    /// A member of an object, the last of a repeated name.
    pub fn member(self, name: &str) -> Option<Given<'a>> {
        let mut member = None;
        self.each_member(|given, value| {
            if given == name {
                member = Some(value);
            }
        });
        member
    }

    /// Hands over the members of an object in their order; returns whether it was one. A name that
    /// is no Unicode text cannot be one that anybody asks for, and is passed over.
    pub(super) fn each_member(self, take: impl FnMut(Cow<'a, str>, Given<'a>)) -> bool {
        serde_json::Deserializer::from_str(self.json())
            .deserialize_map(Members(take))
            .is_ok()
    }

    fn describe_scalar(self) -> String {
        match self.json().as_bytes()[0] {
            b'{' => "[object Object]".to_owned(),
            b'n' => String::new(),
            b'"' => match self.text() {
                Some(text) => text.into_owned(),
                None => self.string_content().unwrap_or_default().to_owned(),
            },
            _ => self.json().to_owned(),
        }
    }

    fn string_content(self) -> Option<&'a str> {
        self.json().strip_prefix('"')?.strip_suffix('"')
    }
}

struct Members<F>(F);

impl<'de, F: FnMut(Cow<'de, str>, Given<'de>)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(name) = Given(name).text() {
                (self.0)(name, Given(value));
            }
        }
        Ok(())
    }
}

/// The `ext` member: an object in which extensions keep what is theirs. Anything but an object
/// counts as absent.
#[derive(Default)]
pub struct Ext<'a> {
    json: Option<&'a str>,
    /// In their order, a repeated name more than once.
    members: Vec<(Cow<'a, str>, Given<'a>)>,
}

impl<'a> Ext<'a> {
    pub(super) fn new(given: Option<Given<'a>>) -> Self {
        let mut members = Vec::new();
        let is_object =
            |given: &Given<'a>| given.each_member(|name, value| members.push((name, value)));
        let json = given.filter(is_object).map(Given::json);
        Self { json, members }
    }

    /// The whole object, if there was one.
    pub fn json(&self) -> Option<&'a str> {
        self.json
    }

    /// Of a repeated name the last, as JavaScript reads it.
    pub fn get(&self, name: &str) -> Option<Given<'a>> {
        let mut latest_first = self.members.iter().rev();
        latest_first
            .find(|(n, _)| n == name)
            .map(|(_, value)| *value)
    }

    /// A member that is a string.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name)?.text()
    }

    /// What subscribers may see of a publisher's `ext`: all but what the server itself writes
    /// there and what `withheld` names, the keys of the app's authorisation idioms (2.9).
    pub fn forwardable(&self, withheld: impl Fn(&str) -> bool) -> Option<String> {
        let kept: Vec<_> = self
            .members
            .iter()
            .filter(|(name, _)| !SERVER_KEYS.contains(&&**name) && !withheld(name))
            .collect();
        if kept.is_empty() {
            return None;
        }
        let mut object = super::Object::default();
        for (name, value) in kept {
            object = object.json(name, value.json());
        }
        Some(object.end())
    }
}

/// Members of `ext` that the server writes on something it sends, or that carry a proof to it.
const SERVER_KEYS: [&str; 10] = [
    "ack",
    "auth",
    "cache",
    "cached",
    "channel_data",
    "event",
    "presence",
    "socket_id",
    "timesync",
    "user_id",
];

/// The size of a text as a reader will meet it, measured without reading it: how deep its objects
/// and arrays are nested, and how many commas stand directly within the outermost.
pub(super) fn measure(json: &str) -> (usize, usize) {
    let (mut levels, mut levels_max, mut commas) = (0usize, 0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                levels += 1;
                levels_max = levels_max.max(levels);
            }
            b']' | b'}' => levels = levels.saturating_sub(1),
            b',' if levels == 1 => commas += 1,
            _ => {}
        }
    }
    (levels_max, commas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_member_that_javascript_takes_as_false_is_absent() {
        for falsy in ["null", "false", "0", "-0", "0.0", "0e5", "1e-999", "\"\""] {
            assert!(Given::truthy(Some(Given(raw(falsy)))).is_none(), "{falsy}");
        }
        for truthy in ["true", "1", "-1e-3", "\"0\"", "\" \"", "[]", "{}", "1e999"] {
            assert!(
                Given::truthy(Some(Given(raw(truthy)))).is_some(),
                "{truthy}"
            );
        }
        assert!(Given::truthy(None).is_none());
    }

    #[test]
    fn a_value_is_described_as_javascript_would() {
        for (json, expected) in [
            (r#""/a b""#, "/a b"),
            (r#""\u002fa\n""#, "/a\n"),
            ("5", "5"),
            ("-1.5e300", "-1.5e300"),
            ("true", "true"),
            ("null", ""),
            (r#"{"a":1}"#, "[object Object]"),
            (r#"["iframe","flash"]"#, "iframe,flash"),
            (r#"["a",null,1,{},[2,3]]"#, "a,,1,[object Object],[2,3]"),
            ("[]", ""),
            (r#""/a\ud800""#, r"/a\ud800"),
        ] {
            assert_eq!(Given(raw(json)).describe(), expected, "{json}");
        }
    }

    #[test]
    fn only_unicode_strings_have_text() {
        assert_eq!(Given(raw(r#""caf\u00e9""#)).text().unwrap(), "café");
        assert!(matches!(
            Given(raw(r#""plain""#)).text(),
            Some(Cow::Borrowed("plain"))
        ));
        for other in [r#""\ud800""#, "1", "[]", "null"] {
            assert!(Given(raw(other)).text().is_none(), "{other}");
        }
    }

    #[test]
    fn of_a_repeated_member_the_last_counts() {
        let ext = Ext::new(Some(Given(raw(r#"{"a":1,"\u0061":"last","\ud800":2}"#))));
        assert_eq!(ext.text("a").unwrap(), "last");
        assert!(ext.get("b").is_none());
    }

    #[test]
    fn an_ext_of_another_type_is_absent() {
        for json in ["[]", "1", "\"x\"", "true"] {
            let ext = Ext::new(Some(Given(raw(json))));
            assert!(ext.json().is_none() && ext.get("a").is_none(), "{json}");
        }
    }

    #[test]
    fn proofs_and_what_the_server_writes_are_not_forwarded() {
        let forwarded =
            |json: &str| Ext::new(Some(Given(raw(json)))).forwardable(|name| name == "password");
        assert_eq!(
            forwarded(r#"{"password":1,"x":{"y": 2},"ev\u0065nt":"e","auth":"k:s","password":2}"#)
                .unwrap(),
            r#"{"x":{"y": 2}}"#
        );
        assert_eq!(forwarded(r#"{"password":"p"}"#), None);
        assert_eq!(forwarded("{}"), None);
    }

    #[test]
    fn nesting_and_top_level_commas_are_counted_outside_strings() {
        for (json, expected) in [
            ("[]", (1, 0)),
            ("[1,[2,3],{\"a\":[4,5]}]", (3, 2)),
            (r#"["[[[,,,\"[[",1]"#, (1, 1)),
            (r#"["\\",[],1]"#, (2, 2)),
            ("1", (0, 0)),
            ("]]]][", (1, 0)),
        ] {
            assert_eq!(measure(json), expected, "{json}");
        }
    }
}
