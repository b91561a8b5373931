//! What travels through channels.

use std::sync::Arc;

use super::ids::{EventId, SocketId, UserId};
use super::name::ChannelId;

/// Something that happened in a channel, on its way to the channel's subscribers.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    pub id: EventId,
    pub channel: ChannelId,
    /// The one connection that does not receive it.
    pub except: Option<SocketId>,
    pub body: Body,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// Published by the application or by a client.
    Message(Message),
    /// A user's first connection joined. `version` is the roster's after the change, `users` how
    /// many are in it.
    MemberAdded {
        member: Arc<Member>,
        users: u64,
        version: u64,
    },
    /// A user's last connection left.
    MemberRemoved {
        user_id: UserId,
        users: u64,
        version: u64,
    },
    /// How many connections are subscribed. Of two counts the one with the higher version holds.
    SubscriptionCount { connections: u64, version: u64 },
    /// On a watchers' channel: the watched user's first sign-in.
    UserOnline { user_id: UserId },
    /// On a watchers' channel: the watched user's last sign-out.
    UserOffline { user_id: UserId },
    /// On a signed-in channel: the application closes the user's connections.
    Terminate,
}

impl Body {
    /// The roster version of a membership event.
    pub fn roster_version(&self) -> Option<u64> {
        match self {
            Self::MemberAdded { version, .. } | Self::MemberRemoved { version, .. } => {
                Some(*version)
            }
            _ => None,
        }
    }
}

/// An application's event. `data` is the publisher's string, never parsed or re-formatted.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    pub name: Arc<str>,
    pub data: Arc<str>,
    /// The sender of a client event on a presence channel.
    pub user_id: Option<UserId>,
    /// What a Bayeux publisher's extensions said to its subscribers: the text of a JSON object
    /// (`bayeux.md` 2.9). Pusher has no place for it.
    pub ext: Option<Arc<str>>,
    /// What else such a publisher's message held, where the app forwards that: the text of a JSON
    /// object.
    pub members: Option<Arc<str>>,
}

/// A user in a presence channel.
#[derive(Clone, PartialEq, Debug)]
pub struct Member {
    pub user_id: UserId,
    /// The text of a JSON object as the application signed it.
    pub user_info: Option<Arc<str>>,
}
