//! What the server sends (`bayeux.md` 2): replies in Faye's order of members, and deliveries.
//!
//! Each function makes the text of one JSON object; [`join`] makes the array that goes out.

use std::fmt;

use super::error::{BayeuxError, MISSING_PARAMETER, UNKNOWN_CLIENT};
use super::given::Given;
use super::incoming::{
    CONNECT, Connect, DISCONNECT, Disconnect, HANDSHAKE, Handshake, Invalid, Publish, Subscribe,
};

/// The array in which one or more objects travel (0, rule 1).
pub fn join<S: AsRef<str>>(objects: impl IntoIterator<Item = S>) -> String {
    let mut array = String::from("[");
    for object in objects {
        if array.len() > 1 {
            array.push(',');
        }
        array.push_str(object.as_ref());
    }
    array.push(']');
    array
}

/// What a handshake or connect reply tells a client to do next (2.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advice {
    pub reconnect: Reconnect,
    /// Wait this long before the next connect or handshake.
    pub interval_ms: Option<u64>,
    /// A connect may be held this long.
    pub timeout_ms: Option<u64>,
    /// How long a session outlives its last connect. Faye ignores it.
    pub session_ms: Option<u64>,
    /// Further sessions of the same browser hold a poll already (6).
    pub multiple_clients: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reconnect {
    Retry,
    /// Only on a failed reply: CometD's client throws otherwise.
    Handshake,
    /// Stop for ever.
    Never,
}

impl Advice {
    pub const fn retry(interval_ms: u64, timeout_ms: u64) -> Self {
        Self {
            interval_ms: Some(interval_ms),
            timeout_ms: Some(timeout_ms),
            ..Self::only(Reconnect::Retry)
        }
    }

    /// A new session is needed. Without the interval Faye's clients try again without a pause.
    pub const fn handshake(interval_ms: u64) -> Self {
        Self {
            interval_ms: Some(interval_ms),
            ..Self::only(Reconnect::Handshake)
        }
    }

    pub const fn never() -> Self {
        Self::only(Reconnect::Never)
    }

    const fn only(reconnect: Reconnect) -> Self {
        Self {
            reconnect,
            interval_ms: None,
            timeout_ms: None,
            session_ms: None,
            multiple_clients: false,
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reconnect = match self.reconnect {
            Reconnect::Retry => "retry",
            Reconnect::Handshake => "handshake",
            Reconnect::Never => "none",
        };
        write!(f, r#"{{"reconnect":"{reconnect}""#)?;
        for (name, ms) in [
            ("interval", self.interval_ms),
            ("timeout", self.timeout_ms),
            ("maxInterval", self.session_ms),
        ] {
            if let Some(ms) = ms {
                write!(f, r#","{name}":{ms}"#)?;
            }
        }
        if self.multiple_clients {
            f.write_str(r#","multiple-clients":true"#)?;
        }
        f.write_str("}")
    }
}

/// How messages travel, in the order in which Faye lists them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ConnectionType {
    LongPolling,
    CrossOriginLongPolling,
    CallbackPolling,
    WebSocket,
    EventSource,
}

impl ConnectionType {
    pub const ALL: [Self; 5] = [
        Self::LongPolling,
        Self::CrossOriginLongPolling,
        Self::CallbackPolling,
        Self::WebSocket,
        Self::EventSource,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LongPolling => "long-polling",
            Self::CrossOriginLongPolling => "cross-origin-long-polling",
            Self::CallbackPolling => "callback-polling",
            Self::WebSocket => "websocket",
            Self::EventSource => "eventsource",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }
}

impl Handshake<'_> {
    /// `supported` is all that the server offers, not what both have in common (2.2).
    pub fn accepted(
        &self,
        client_id: &str,
        supported: &[ConnectionType],
        advice: &Advice,
        ext: Option<&str>,
    ) -> String {
        self.head(true)
            .json("supportedConnectionTypes", &listed(supported))
            .text("clientId", client_id)
            .json("advice", &advice.to_string())
            .json_if_any("ext", ext)
            .end()
    }

    pub fn refused(
        &self,
        error: &BayeuxError,
        supported: &[ConnectionType],
        advice: &Advice,
    ) -> String {
        let error = error.to_string();
        let supported = listed(supported);
        let head = self.head(false);
        // Faye looks at the version first, and a later error takes the place of an earlier one.
        let body = if self.has_version {
            head.json("supportedConnectionTypes", &supported)
                .text("error", &error)
        } else {
            head.text("error", &error)
                .json("supportedConnectionTypes", &supported)
        };
        body.json("advice", &advice.to_string()).end()
    }

    fn head(&self, successful: bool) -> Object {
        head(self.id, None, HANDSHAKE, successful).text("version", "1.0")
    }
}

impl Connect<'_> {
    pub fn accepted(&self, advice: &Advice, ext: Option<&str>) -> String {
        connect_accepted(self.id, self.client_id.map(Given::json), advice, ext)
    }

    pub fn refused(&self, error: &BayeuxError, advice: &Advice) -> String {
        head(self.id, None, CONNECT, false)
            .text("error", &error.to_string())
            .json("advice", &advice.to_string())
            .end()
    }

    /// What it takes to answer later, when the request's text is gone.
    pub fn hold(&self) -> HeldConnect {
        HeldConnect {
            id: self.id.map(Into::into),
            client_id: self.client_id.map(|id| id.json().into()),
        }
    }
}

/// A connect that waits for its answer.
pub struct HeldConnect {
    id: Option<Box<str>>,
    client_id: Option<Box<str>>,
}

impl HeldConnect {
    pub fn accepted(&self, advice: &Advice, ext: Option<&str>) -> String {
        connect_accepted(self.id.as_deref(), self.client_id.as_deref(), advice, ext)
    }
}

impl Disconnect<'_> {
    pub fn accepted(&self) -> String {
        head(self.id, self.client_id.map(Given::json), DISCONNECT, true).end()
    }

    pub fn refused(&self, error: &BayeuxError) -> String {
        head(self.id, None, DISCONNECT, false)
            .text("error", &error.to_string())
            .end()
    }
}

impl Subscribe<'_> {
    pub fn accepted(&self, ext: Option<&str>) -> String {
        self.head(true)
            .json("subscription", self.repeated())
            .json_if_any("ext", ext)
            .end()
    }

    /// Faye writes the error of a client or of a missing parameter before the subscription, and
    /// that of a channel after it.
    pub fn refused(&self, error: &BayeuxError) -> String {
        let text = error.to_string();
        let head = self.head(false);
        match error.reason {
            UNKNOWN_CLIENT | MISSING_PARAMETER => head
                .text("error", &text)
                .json("subscription", self.repeated())
                .end(),
            _ => head
                .json("subscription", self.repeated())
                .text("error", &text)
                .end(),
        }
    }

    fn head(&self, successful: bool) -> Object {
        let client_id = self.client_id.map(Given::json);
        head(self.id, client_id, self.channel, successful)
    }

    fn repeated(&self) -> &str {
        self.subscription.as_ref().map_or("[]", |s| s.json())
    }
}

impl Publish<'_> {
    pub fn accepted(&self) -> String {
        self.head(true).end()
    }

    pub fn refused(&self, error: &BayeuxError) -> String {
        self.head(false).text("error", &error.to_string()).end()
    }

    fn head(&self, successful: bool) -> Object {
        let client_id = self.client_id.map(Given::json);
        head(self.id, client_id, &self.channel, successful)
    }
}

impl Invalid<'_> {
    pub fn refused(&self) -> String {
        Object::default()
            .json_if_any("id", self.id)
            .json_if_any("clientId", self.client_id.map(Given::json))
            .json_if_any("channel", self.channel.map(Given::json))
            .json("successful", "false")
            .text("error", &self.error.to_string())
            .end()
    }
}

/// An event on its way to a subscriber. Nothing of the publisher's message but its data and
/// perhaps its `ext` is in it: `id`, `advice` and the like are obeyed by those who receive them
/// (0, rules 2 and 3).
pub struct Delivery<'a> {
    pub channel: &'a str,
    /// JSON text.
    pub data: &'a str,
    /// The JSON text of an object, or nothing.
    pub ext: Option<&'a str>,
}

impl Delivery<'_> {
    pub fn encode(&self) -> String {
        Object::default()
            .text("channel", self.channel)
            .json("data", self.data)
            .json_if_any("ext", self.ext)
            .end()
    }
}

/// The text of a JSON object, written member by member.
#[derive(Default)]
pub struct Object(String);

impl Object {
    /// A member whose value is JSON text already.
    pub fn json(mut self, name: &str, json: &str) -> Self {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        push_string(&mut self.0, name);
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    pub fn json_if_any(self, name: &str, json: Option<&str>) -> Self {
        match json {
            Some(json) => self.json(name, json),
            None => self,
        }
    }

    pub fn text(self, name: &str, text: &str) -> Self {
        let mut json = String::with_capacity(text.len() + 2);
        push_string(&mut json, text);
        self.json(name, &json)
    }

    pub fn end(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}

/// Appends a JSON string, quotes included.
pub(super) fn push_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

fn connect_accepted(
    id: Option<&str>,
    client_id: Option<&str>,
    advice: &Advice,
    ext: Option<&str>,
) -> String {
    head(id, client_id, CONNECT, true)
        .json("advice", &advice.to_string())
        .json_if_any("ext", ext)
        .end()
}

fn head(id: Option<&str>, client_id: Option<&str>, channel: &str, successful: bool) -> Object {
    Object::default()
        .json_if_any("id", id)
        .json_if_any("clientId", client_id)
        .text("channel", channel)
        .json("successful", if successful { "true" } else { "false" })
}

fn listed(types: &[ConnectionType]) -> String {
    join(types.iter().map(|known| format!("\"{}\"", known.as_str())))
}
