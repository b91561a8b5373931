//! What the application can be told about (webhooks, statistics, the event log). Each is stated
//! once in the cluster, by the node whose change made it true.
//!
//! There are two sorts, and whoever reads facts chooses: what is told of channels, for clients of
//! both protocols alike, and what an application on Faye could see of its clients.

use std::sync::Arc;

use super::ids::{AppId, SocketId, UserId};
use super::name::ChannelId;

#[derive(Clone, PartialEq, Debug)]
pub enum Fact {
    Channel(ChannelFact),
    Session(SessionFact),
}

#[derive(Clone, PartialEq, Debug)]
pub struct ChannelFact {
    pub channel: ChannelId,
    pub kind: FactKind,
    /// The application has been told; who tells it may have lost that.
    pub is_told: bool,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// Named as Pusher's webhooks name them (`pusher.md` 6.2).
#[derive(Clone, PartialEq, Debug)]
pub enum FactKind {
    ChannelOccupied,
    ChannelVacated,
    MemberAdded {
        user_id: UserId,
    },
    MemberRemoved {
        user_id: UserId,
    },
    ClientEvent {
        name: Arc<str>,
        data: Arc<str>,
        /// Absent for a Bayeux client that publishes without a session.
        socket_id: Option<SocketId>,
        user_id: Option<UserId>,
    },
    CacheMiss,
    SubscriptionCount {
        connections: u64,
    },
}

/// About a Bayeux session.
#[derive(Clone, PartialEq, Debug)]
pub struct SessionFact {
    pub app: AppId,
    /// Names the session without being its credential, as its `clientId` is (`bayeux.md` 8.6).
    /// Absent for a publisher without a session.
    pub session: Option<SocketId>,
    pub kind: SessionFactKind,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// Named as Faye's monitoring names them (`bayeux.md` 6). Channels are in Bayeux's spelling.
#[derive(Clone, PartialEq, Debug)]
pub enum SessionFactKind {
    Handshake,
    /// To a channel or a pattern that the session was not subscribed to.
    Subscribe {
        channel: Arc<str>,
    },
    /// On request, or because the session ends.
    Unsubscribe {
        channel: Arc<str>,
    },
    /// Accepted, whether or not anybody receives it.
    Publish {
        channel: Arc<str>,
        /// JSON text.
        data: Arc<str>,
    },
    /// On request or because its time was over; after it was unsubscribed from everything.
    Disconnect,
}

impl Fact {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Channel(fact) => fact.kind.name(),
            Self::Session(fact) => fact.kind.name(),
        }
    }

    pub fn app(&self) -> &AppId {
        match self {
            Self::Channel(fact) => &fact.channel.app,
            Self::Session(fact) => &fact.app,
        }
    }
}

impl FactKind {
    pub fn name(&self) -> &'static str {
        match self {
            Self::ChannelOccupied => "channel_occupied",
            Self::ChannelVacated => "channel_vacated",
            Self::MemberAdded { .. } => "member_added",
            Self::MemberRemoved { .. } => "member_removed",
            Self::ClientEvent { .. } => "client_event",
            Self::CacheMiss => "cache_miss",
            Self::SubscriptionCount { .. } => "subscription_count",
        }
    }
}

impl SessionFactKind {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Subscribe { .. } => "subscribe",
            Self::Unsubscribe { .. } => "unsubscribe",
            Self::Publish { .. } => "publish",
            Self::Disconnect => "disconnect",
        }
    }

    /// In Bayeux's spelling; a pattern where it is about one.
    pub fn channel(&self) -> Option<&str> {
        match self {
            Self::Subscribe { channel }
            | Self::Unsubscribe { channel }
            | Self::Publish { channel, .. } => Some(channel),
            Self::Handshake | Self::Disconnect => None,
        }
    }
}
