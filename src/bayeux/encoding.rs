//! Events of the channel model as a Bayeux client reads them (`bayeux.md` 2.9, 8.5–8.7), and which
//! of its patterns mean a channel (8.4).

use std::sync::Arc;

use super::channel::candidates;
use super::check::{SERVICE_USER, presence_service};
use super::mapping::{Style, to_bayeux};
use super::settings::Wildcards;
use crate::hub::{Encoding, Expansion, Frame};
use crate::model::{Body, ChannelKind, ChannelName, Event, Member, Message};
use crate::wire::bayeux::payload::{PLAIN_EVENT, UNTRUSTED_PLAIN_EVENT, bayeux_data};
use crate::wire::bayeux::{Delivery, Object, join};

/// One event, one array of one message: a frame as it is on a socket.
pub struct Bayeux {
    name: &'static str,
    style: Style,
    event_in: EventIn,
}

/// Where a delivery has the name of a Pusher event (8.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EventIn {
    /// In `ext.event`: callbacks are given the data alone, whoever published.
    #[default]
    Ext,
    /// `data` is `{"event": …, "data": …}`, but for plain messages.
    Data,
}

pub fn encoding(style: Style, event_in: EventIn) -> &'static Bayeux {
    const fn format(name: &'static str, style: Style, event_in: EventIn) -> Bayeux {
        Bayeux {
            name,
            style,
            event_in,
        }
    }
    static TYPED: Bayeux = format("bayeux", Style::Typed, EventIn::Ext);
    static FLAT: Bayeux = format("bayeux, flat", Style::Flat, EventIn::Ext);
    static UNTYPED: Bayeux = format("bayeux, untyped", Style::Untyped, EventIn::Ext);
    static TYPED_DATA: Bayeux = format("bayeux, in data", Style::Typed, EventIn::Data);
    static FLAT_DATA: Bayeux = format("bayeux, flat, in data", Style::Flat, EventIn::Data);
    static UNTYPED_DATA: Bayeux = format("bayeux, untyped, in data", Style::Untyped, EventIn::Data);
    match (style, event_in) {
        (Style::Typed, EventIn::Ext) => &TYPED,
        (Style::Flat, EventIn::Ext) => &FLAT,
        (Style::Untyped, EventIn::Ext) => &UNTYPED,
        (Style::Typed, EventIn::Data) => &TYPED_DATA,
        (Style::Flat, EventIn::Data) => &FLAT_DATA,
        (Style::Untyped, EventIn::Data) => &UNTYPED_DATA,
    }
}

impl Encoding for Bayeux {
    fn name(&self) -> &'static str {
        self.name
    }

    fn encode(&self, event: &Event) -> Option<Frame> {
        let channel = &event.channel.name;
        let message = match &event.body {
            Body::Message(message) => self.delivery(channel, message, false)?,
            Body::MemberAdded { member, users, .. } => {
                let info = member.user_info.as_deref();
                let joined = Object::default()
                    .text("event", "join")
                    .text("user_id", &member.user_id)
                    .json_if_any("user_info", info);
                self.presence(channel, joined, *users)?
            }
            Body::MemberRemoved { user_id, users, .. } => {
                let left = Object::default()
                    .text("event", "leave")
                    .text("user_id", user_id);
                self.presence(channel, left, *users)?
            }
            Body::UserOnline { user_id } => watchlist_events(std::slice::from_ref(user_id), &[])?,
            Body::UserOffline { user_id } => watchlist_events(&[], std::slice::from_ref(user_id))?,
            Body::SubscriptionCount { .. } | Body::Terminate => return None,
        };
        Some(frame(&message))
    }
}

impl Bayeux {
    /// How clients of the app call the channel.
    pub fn name_of(&self, channel: &ChannelName) -> Arc<str> {
        let name = to_bayeux(channel, self.style);
        name.map_or_else(|| channel.as_str().into(), Into::into)
    }

    /// The last event of a cache channel, for a new subscriber.
    pub fn cached(&self, event: &Event) -> Option<Frame> {
        let Body::Message(message) = &event.body else {
            return None;
        };
        let delivery = self.delivery(&event.channel.name, message, true)?;
        Some(frame(&delivery))
    }

    /// Who is in a presence channel, on its companion.
    pub fn roster(&self, channel: &ChannelName, roster: &[Arc<Member>]) -> Option<Frame> {
        let service = presence_service(channel, self.style)?;
        let listed = roster_members(Object::default().text("event", "list"), roster);
        Some(frame(&plain(&service, &listed.end())))
    }

    /// What is sent to a user arrives on one channel, whoever the user is.
    fn delivery(
        &self,
        channel: &ChannelName,
        message: &Message,
        is_cached: bool,
    ) -> Option<String> {
        let name = match channel.addressed_user() {
            Some(_) => SERVICE_USER.to_owned(),
            None => to_bayeux(channel, self.style)?,
        };
        let event = match &*message.name {
            UNTRUSTED_PLAIN_EVENT => PLAIN_EVENT,
            event => event,
        };
        let mut data = bayeux_data(&message.data);
        let mut event_in_ext = event;
        if self.event_in == EventIn::Data && event != PLAIN_EVENT {
            let enveloped = Object::default().text("event", event).json("data", &data);
            data = enveloped.end().into();
            event_in_ext = PLAIN_EVENT;
        }
        let delivery = Delivery {
            channel: &name,
            data: &data,
            event: event_in_ext,
            user_id: message.user_id.as_deref(),
            is_cached,
            forwarded: message.ext.as_deref(),
            members: message.members.as_deref(),
        };
        Some(delivery.encode())
    }

    fn presence(&self, channel: &ChannelName, change: Object, users: u64) -> Option<String> {
        let service = presence_service(channel, self.style)?;
        let change = change.json("count", &users.to_string()).end();
        Some(plain(&service, &change))
    }
}

/// `count`, `ids` and `hash` of a roster.
pub fn roster_members(object: Object, roster: &[Arc<Member>]) -> Object {
    let ids = roster.iter().map(|member| quoted(&member.user_id));
    let hash = roster.iter().fold(Object::default(), |hash, member| {
        let info = member.user_info.as_deref();
        hash.json(&member.user_id, info.unwrap_or("null"))
    });
    object
        .json("count", &roster.len().to_string())
        .json("ids", &join(ids))
        .json("hash", &hash.end())
}

/// Which of the watched users came and went; `None` if nobody did.
pub fn watchlist_events(online: &[Arc<str>], offline: &[Arc<str>]) -> Option<String> {
    let part = |name: &str, users: &[Arc<str>]| {
        let ids = users.iter().map(|user_id| quoted(user_id));
        let event = Object::default().text("name", name);
        (!users.is_empty()).then(|| event.json("user_ids", &join(ids)).end())
    };
    let parts = [part("online", online), part("offline", offline)];
    let events: Vec<_> = parts.into_iter().flatten().collect();
    if events.is_empty() {
        return None;
    }
    let data = Object::default().json("events", &join(events)).end();
    let delivery = Delivery {
        channel: SERVICE_USER,
        data: &data,
        event: "pusher_internal:watchlist_events",
        user_id: None,
        is_cached: false,
        forwarded: None,
        members: None,
    };
    Some(delivery.encode())
}

/// A message as the only one of a frame.
pub fn frame(message: &str) -> Frame {
    Frame::from(format!("[{message}]"))
}

/// The message of a frame that [`frame`] made.
pub fn message_of(frame: &Frame) -> &str {
    let text = frame.as_str();
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    inner.unwrap_or(text)
}

/// The patterns that mean a channel, for an app whose patterns mean this. A pattern covers the
/// kind of channel that all names below its prefix are of; only those without a prefix cover
/// public ones alone.
pub fn expansion(style: Style, wildcards: Wildcards) -> Expansion {
    Arc::new(move |channel| {
        let kind = channel.kind();
        let may_match = |prefix: &str| match (wildcards, kind) {
            (Wildcards::Off, _) => false,
            (_, ChannelKind::ServerToUser | ChannelKind::Internal) => false,
            (Wildcards::All, _) | (Wildcards::Public, ChannelKind::Public) => true,
            (Wildcards::Public, ChannelKind::Private) => !prefix.is_empty(),
            (Wildcards::Public, ChannelKind::PrivateEncrypted | ChannelKind::Presence) => false,
        };
        let Some(name) = to_bayeux(channel, style) else {
            return Vec::new();
        };
        let matching = candidates(&name).filter(|candidate| may_match(candidate.prefix));
        matching.map(|candidate| candidate.to_string()).collect()
    })
}

fn plain(channel: &str, data: &str) -> String {
    let message = Object::default().text("channel", channel);
    message.json("data", data).end()
}

fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    crate::wire::json::push_string(&mut json, text);
    json
}

#[cfg(test)]
mod tests {
    use super::super::channel::Pattern;
    use super::super::mapping::Scope;
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = String> {
        let prefix = prop::sample::select(vec![
            "",
            "public-",
            "private-",
            "presence-",
            "private-encrypted-",
            "private-cache-",
            "cache-",
            "private.",
            "=;70rivate-",
        ]);
        (prefix, "[ab.]{1,5}").prop_map(|(prefix, rest)| format!("{prefix}{rest}"))
    }

    proptest! {
        #[test]
        fn a_channel_is_looked_up_under_the_patterns_whose_scope_covers_it(key in key()) {
            let channel = ChannelName::parse(&key, 200).unwrap();
            for style in Style::ALL {
                let Some(name) = to_bayeux(&channel, style) else { continue };
                let scope = |text: &String| Scope::of(&Pattern::parse(text).unwrap(), style);
                let covers = |text: &String| scope(text).is_ok_and(|s| s.covers(channel.kind()));
                let all: Vec<_> = candidates(&name).map(|found| found.to_string()).collect();
                let expected: Vec<_> = all.into_iter().filter(covers).collect();
                // A pattern that is refused has no subscribers that could be found.
                let mut found = expansion(style, Wildcards::Public)(&channel);
                found.retain(|text| scope(text).is_ok());
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn an_app_that_wants_it_shows_patterns_everything_but_what_is_a_users() {
        let found = |name: ChannelName, wildcards| expansion(Style::Typed, wildcards)(&name).len();
        let room = ChannelName::parse("presence-a.b", 200).unwrap();
        assert_eq!(found(room.clone(), Wildcards::All), 4);
        assert_eq!(found(room, Wildcards::Public), 0);
        let public = ChannelName::parse("a", 200).unwrap();
        assert_eq!(found(public, Wildcards::Off), 0);
        for internal in [
            ChannelName::server_to_user("1"),
            ChannelName::signed_in("1"),
        ] {
            assert_eq!(found(internal, Wildcards::All), 0);
        }
    }
}
