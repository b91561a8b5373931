//! What the application can be told about (webhooks, the event log). Each is stated once in the
//! cluster, by the node whose change made it true.

use std::sync::Arc;

use super::ids::{SocketId, UserId};
use super::name::ChannelId;

#[derive(Clone, PartialEq, Debug)]
pub struct Fact {
    pub channel: ChannelId,
    pub kind: FactKind,
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
