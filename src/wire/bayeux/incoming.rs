//! What clients send (`bayeux.md` 2.1–2.6): the text of a request becomes typed messages.
//!
//! Reading is as lenient as Faye's. What a client may not set has no field here: `error`,
//! `successful`, and all of `advice` but the wish for a shorter hold.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::error::{BayeuxError, INVALID_CHANNEL, MISSING_PARAMETER};
use super::given::{Ext, Given, NESTING_LEVELS_MAX, measure};
use super::object::Object;

pub enum IncomingMessage<'a> {
    Handshake(Handshake<'a>),
    Connect(Connect<'a>),
    Disconnect(Disconnect<'a>),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Subscribe<'a>),
    /// Every other channel, legal or not.
    Publish(Publish<'a>),
    Invalid(Invalid<'a>),
}

impl<'a> IncomingMessage<'a> {
    /// The session that it names.
    pub fn client_id(&self) -> Option<Given<'a>> {
        match self {
            Self::Handshake(_) | Self::Invalid(_) => None,
            Self::Connect(message) => message.client_id,
            Self::Disconnect(message) => message.client_id,
            Self::Subscribe(message) | Self::Unsubscribe(message) => message.client_id,
            Self::Publish(message) => message.client_id,
        }
    }
}

/// `version` and `supportedConnectionTypes` are required.
pub struct Handshake<'a> {
    /// JSON text of the `id` to repeat: a string or a number. So in every message.
    pub id: Option<&'a str>,
    pub has_version: bool,
    pub connection_types: Option<Given<'a>>,
    pub ext: Ext<'a>,
}

/// `clientId` and `connectionType` are required.
pub struct Connect<'a> {
    pub id: Option<&'a str>,
    pub client_id: Option<Given<'a>>,
    pub connection_type: Option<Given<'a>>,
    /// `advice.timeout`: hold no longer than this. The server's own limit still applies.
    pub hold_ms: Option<u64>,
    pub ext: Ext<'a>,
}

/// `clientId` is required.
pub struct Disconnect<'a> {
    pub id: Option<&'a str>,
    pub client_id: Option<Given<'a>>,
    pub ext: Ext<'a>,
}

/// `clientId` and `subscription` are required.
pub struct Subscribe<'a> {
    pub id: Option<&'a str>,
    pub client_id: Option<Given<'a>>,
    pub subscription: Option<Subscription<'a>>,
    /// The token of faye-authentication (5.3).
    pub signature: Option<Given<'a>>,
    pub ext: Ext<'a>,
    pub(super) channel: &'static str,
}

/// One channel or several. A reply repeats it in the form in which it came.
pub struct Subscription<'a> {
    given: Given<'a>,
    elements: Vec<Given<'a>>,
}

/// `data` is required, `clientId` is not.
pub struct Publish<'a> {
    pub id: Option<&'a str>,
    pub client_id: Option<Given<'a>>,
    /// Not empty.
    pub channel: Cow<'a, str>,
    /// JSON text as it came; `null` is a value.
    pub data: Option<&'a str>,
    /// The token of faye-authentication (5.3).
    pub signature: Option<Given<'a>>,
    pub ext: Ext<'a>,
    /// Members that no operation knows, in their order.
    others: Vec<(Cow<'a, str>, Given<'a>)>,
}

/// Not an object, or without a string for a channel: good for nothing but an error.
pub struct Invalid<'a> {
    pub error: BayeuxError,
    pub(super) id: Option<&'a str>,
    pub(super) client_id: Option<Given<'a>>,
    pub(super) channel: Option<Given<'a>>,
}

/// Why a request holds no messages at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    NotJson,
    /// JSON, but neither an object nor an array.
    NotMessages,
    /// Nested deeper than [`NESTING_LEVELS_MAX`].
    TooDeep,
    TooManyMessages {
        messages_max: usize,
    },
}

/// Reads the messages of a request: an object, or an array of any length.
pub fn parse(text: &str, messages_max: usize) -> Result<Vec<IncomingMessage<'_>>, Unreadable> {
    parse_all([text], messages_max)
}

/// Reads a request that has its messages in several texts, as a form may (3.2).
pub fn parse_all<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    messages_max: usize,
) -> Result<Vec<IncomingMessage<'a>>, Unreadable> {
    let mut messages = Vec::new();
    for text in texts {
        let (levels, commas) = measure(text);
        if levels > NESTING_LEVELS_MAX {
            return Err(Unreadable::TooDeep);
        }
        let is_array = text.trim_ascii_start().starts_with('[');
        let messages_here = if is_array { commas + 1 } else { 1 };
        if messages.len() + messages_here > messages_max {
            return Err(Unreadable::TooManyMessages { messages_max });
        }
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| Unreadable::NotJson)?;
        let given = Given::new(raw);
        match given.elements() {
            Some(elements) => messages.extend(elements.into_iter().map(message)),
            None if given.json().starts_with('{') => messages.push(message(given)),
            None => return Err(Unreadable::NotMessages),
        }
    }
    Ok(messages)
}

impl<'a> Subscription<'a> {
    fn new(given: Given<'a>) -> Self {
        let elements = given.elements().unwrap_or_else(|| vec![given]);
        Self { given, elements }
    }

    /// The value as it came, for the reply.
    pub fn json(&self) -> &'a str {
        self.given.json()
    }

    /// What to subscribe to; whether each is the name of a channel remains to be seen.
    pub fn elements(&self) -> &[Given<'a>] {
        &self.elements
    }

    /// The value of the form `"/foo"`. An array has none, whatever its length: idioms that sign
    /// one name must not take it for that name (5.2, 9.2).
    pub fn single(&self) -> Option<Cow<'a, str>> {
        self.given.text()
    }
}

fn message(given: Given<'_>) -> IncomingMessage<'_> {
    let mut members = Members::default();
    if !given.each_member(|name, value| members.take(name, value)) {
        return IncomingMessage::Invalid(Invalid {
            error: MISSING_PARAMETER.of("data"),
            id: None,
            client_id: None,
            channel: None,
        });
    }
    let (id, client_id, ext) = (members.id(), members.client_id(), Ext::new(members.ext));
    let Some(channel) = members.channel() else {
        let channel = Given::truthy(members.channel);
        return IncomingMessage::Invalid(Invalid {
            error: match members.data {
                Some(_) => {
                    INVALID_CHANNEL.of(members.channel.map_or(String::new(), Given::describe))
                }
                None => MISSING_PARAMETER.of("data"),
            },
            id,
            client_id,
            channel,
        });
    };
    let subscribe = |channel, ext| Subscribe {
        id,
        client_id,
        subscription: Given::truthy(members.subscription).map(Subscription::new),
        signature: members.signature,
        ext,
        channel,
    };
    // Whole names only: matching their beginning was CVE-2020-11020.
    match &*channel {
        HANDSHAKE => IncomingMessage::Handshake(Handshake {
            id,
            has_version: Given::truthy(members.version).is_some(),
            connection_types: Given::truthy(members.supported_connection_types),
            ext,
        }),
        CONNECT => IncomingMessage::Connect(Connect {
            id,
            client_id,
            connection_type: Given::truthy(members.connection_type),
            hold_ms: members.hold_ms(),
            ext,
        }),
        DISCONNECT => IncomingMessage::Disconnect(Disconnect { id, client_id, ext }),
        SUBSCRIBE => IncomingMessage::Subscribe(subscribe(SUBSCRIBE, ext)),
        UNSUBSCRIBE => IncomingMessage::Unsubscribe(subscribe(UNSUBSCRIBE, ext)),
        _ => IncomingMessage::Publish(Publish {
            id,
            client_id,
            channel,
            data: members.data.map(Given::json),
            signature: members.signature,
            ext,
            others: members.others,
        }),
    }
}

impl Publish<'_> {
    /// What an app may forward beside `ext` (2.9): members of the publisher's own making, as the
    /// text of an object. Never one that a subscriber's client would obey.
    pub fn forwardable(&self) -> Option<String> {
        let mut members = Object::default();
        for (name, value) in &self.others {
            if !OBEYED.contains(&&**name) {
                members = members.json(name, value.json());
            }
        }
        (!members.is_empty()).then(|| members.end())
    }
}

/// Beside those that some operation reads.
const OBEYED: [&str; 3] = ["error", "minimumVersion", "successful"];

pub(super) const HANDSHAKE: &str = "/meta/handshake";
pub(super) const CONNECT: &str = "/meta/connect";
pub(super) const DISCONNECT: &str = "/meta/disconnect";
pub(super) const SUBSCRIBE: &str = "/meta/subscribe";
pub(super) const UNSUBSCRIBE: &str = "/meta/unsubscribe";

/// The members that some operation reads. Of a repeated one the last counts, as in JavaScript.
#[derive(Default)]
struct Members<'a> {
    id: Option<Given<'a>>,
    channel: Option<Given<'a>>,
    client_id: Option<Given<'a>>,
    connection_type: Option<Given<'a>>,
    supported_connection_types: Option<Given<'a>>,
    version: Option<Given<'a>>,
    subscription: Option<Given<'a>>,
    data: Option<Given<'a>>,
    advice: Option<Given<'a>>,
    signature: Option<Given<'a>>,
    ext: Option<Given<'a>>,
    others: Vec<(Cow<'a, str>, Given<'a>)>,
}

impl<'a> Members<'a> {
    fn take(&mut self, name: Cow<'a, str>, value: Given<'a>) {
        let member = match &*name {
            "id" => &mut self.id,
            "channel" => &mut self.channel,
            "clientId" => &mut self.client_id,
            "connectionType" => &mut self.connection_type,
            "supportedConnectionTypes" => &mut self.supported_connection_types,
            "version" => &mut self.version,
            "subscription" => &mut self.subscription,
            "data" => &mut self.data,
            "advice" => &mut self.advice,
            "signature" => &mut self.signature,
            "ext" => &mut self.ext,
            _ => return self.others.push((name, value)),
        };
        *member = Some(value);
    }

    fn id(&self) -> Option<&'a str> {
        let id = self.id?;
        (id.json().starts_with('"') || id.is_number()).then_some(id.json())
    }

    fn client_id(&self) -> Option<Given<'a>> {
        Given::truthy(self.client_id)
    }

    fn channel(&self) -> Option<Cow<'a, str>> {
        self.channel?.text().filter(|channel| !channel.is_empty())
    }

    fn hold_ms(&self) -> Option<u64> {
        let timeout = self.advice?.member("timeout")?;
        let timeout = Some(timeout).filter(|timeout| timeout.is_number())?;
        // Saturates: below zero is none, beyond the largest integer is for ever.
        timeout.json().parse::<f64>().ok().map(|ms| ms as u64)
    }
}
