//! Events of the channel model as a Pusher client reads them.

use crate::broker::{Cache, Welcome};
use crate::hub::{Acknowledgement, Encoding, Frame};
use crate::model::{Body, ChannelName, Event};
use crate::wire::{pusher, sockjs};

/// One event, one JSON text, in the form in which a transport carries texts.
pub struct Pusher {
    name: &'static str,
    carried: fn(String) -> Frame,
}

/// As it is.
pub static WEBSOCKET: Pusher = Pusher {
    name: "pusher",
    carried: Frame::from,
};

/// As the JSON string that stands in an array.
pub static HTTP: Pusher = Pusher {
    name: "pusher over HTTP",
    carried: |text| sockjs::quoted(&text).into(),
};

impl Pusher {
    /// One message to a client.
    pub fn frame(&self, text: String) -> Frame {
        (self.carried)(text)
    }
}

impl Encoding for Pusher {
    fn name(&self) -> &'static str {
        self.name
    }

    fn encode(&self, event: &Event) -> Option<Frame> {
        let channel = event.channel.name.as_str();
        let text = match &event.body {
            Body::Message(message) => pusher::message(channel, message),
            Body::MemberAdded { member, .. } => pusher::member_added(channel, member),
            Body::MemberRemoved { user_id, .. } => pusher::member_removed(channel, user_id),
            Body::SubscriptionCount { connections, .. } => {
                pusher::subscription_count(channel, *connections)
            }
            Body::UserOnline { user_id } => {
                pusher::watchlist_events(std::slice::from_ref(user_id), &[])?
            }
            Body::UserOffline { user_id } => {
                pusher::watchlist_events(&[], std::slice::from_ref(user_id))?
            }
            Body::Terminate => return None,
        };
        Some(self.frame(text))
    }
}

impl Pusher {
    /// What an accepted subscription is answered with (`pusher.md` 2.4, 2.7).
    pub fn welcome(&self, channel: &ChannelName, welcome: Welcome<'_>) -> Acknowledgement {
        let name = channel.as_str();
        let succeeded = pusher::subscription_succeeded(name, welcome.roster.as_deref());
        let mut frames = vec![self.frame(succeeded)];
        let mut replay = None;
        match welcome.cache {
            Cache::NotCached => {}
            Cache::Miss => frames.push(self.frame(pusher::cache_miss(name))),
            Cache::Hit(event) => replay = self.encode(event).map(|frame| (event.id, frame)),
        }
        Acknowledgement { frames, replay }
    }
}
