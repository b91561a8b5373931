//! Events of the channel model as a Pusher client reads them.

use crate::broker::{Cache, Welcome};
use crate::hub::{Acknowledgement, Encoding, Frame};
use crate::model::{Body, ChannelName, Event};
use crate::wire::pusher;

/// One event, one JSON text.
pub struct Pusher;

pub static PUSHER: Pusher = Pusher;

impl Encoding for Pusher {
    fn name(&self) -> &'static str {
        "pusher"
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
        Some(text.into())
    }
}

/// What an accepted subscription is answered with (`pusher.md` 2.4, 2.7).
pub fn welcome(channel: &ChannelName, welcome: Welcome<'_>) -> Acknowledgement {
    let name = channel.as_str();
    let succeeded = pusher::subscription_succeeded(name, welcome.roster.as_deref());
    let mut frames = vec![succeeded.into()];
    let mut replay = None;
    match welcome.cache {
        Cache::NotCached => {}
        Cache::Miss => frames.push(pusher::cache_miss(name).into()),
        Cache::Hit(event) => replay = PUSHER.encode(event).map(|frame| (event.id, frame)),
    }
    Acknowledgement { frames, replay }
}
