//! Makes the hubs of all nodes one. The seam is [`Backend`]; every backend passes the list of
//! behaviours in `contract.rs`.
//!
//! Only a backend delivers to a hub. It also tells of joins and leaves, to the other subscribers
//! as events and to the application as facts, because only it knows their order in the cluster.

#[cfg(test)]
mod contract;
mod facts;
mod last_events;
mod memory;
pub mod redis;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use facts::{FACTS_LOG, FactSink, Wanted, fact_queue};
pub use memory::Memory;
pub use redis::Redis;

use crate::hub::{Expansion, MemberLimitReached, Occupancy, Roster, Subscriber};
use crate::model::{AppId, ChannelId, ChannelName, Event, FactKind, Member, SocketId};

/// One allocation for each operation, never for each recipient.
pub type Done<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub trait Backend: Send + Sync {
    /// Delivers the event to every subscriber of its channel in the cluster, and keeps it as the
    /// channel's last event for `keep`. `fact` is what the application is told of it: stated before
    /// anybody can see the event.
    fn publish(&self, event: Event, keep: Option<Duration>, fact: Option<FactKind>)
    -> Done<'_, ()>;

    /// Adds a pending subscriber (see [`crate::hub`]). If its user is new to the channel, the
    /// others are told. If it is a user's first sign-in, the user's watchers are told.
    fn join<'a>(
        &'a self,
        channel: &'a ChannelId,
        joining: Joining,
    ) -> Done<'a, Result<Joined, MemberLimitReached>>;

    /// Takes a subscriber out, with the reverse of what [`Backend::join`] tells. `None` if it was
    /// not subscribed.
    fn leave<'a>(&'a self, channel: &'a ChannelId, who: SocketId) -> Done<'a, Option<Left>>;

    /// Subscribes to every channel of the app that the pattern matches, now or later; see
    /// [`crate::hub::Hub::join_pattern`]. Nobody is told, and it counts nowhere.
    fn join_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) -> Done<'a, ()>;

    fn leave_pattern<'a>(&'a self, app: &'a AppId, pattern: &'a str, who: SocketId)
    -> Done<'a, ()>;

    /// The app's occupied channels whose names start with `prefix`, in the order of their names.
    fn channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> Done<'a, Vec<(ChannelName, Occupancy)>>;

    /// `None` for a channel without subscribers.
    fn occupancy<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<Occupancy>>;

    /// The distinct users of a presence channel, in the order of their ids.
    fn members<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Vec<Arc<Member>>>;

    fn last_event<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<LastEvent>>;
}

pub struct Joining {
    pub subscriber: Subscriber,
    /// On presence channels.
    pub member: Option<Arc<Member>>,
    /// Distinct users that a presence channel takes.
    pub members_max: usize,
}

/// The state of a channel in the cluster right after a join.
#[derive(Debug)]
pub struct Joined {
    pub connections: u64,
    pub roster: Roster,
    /// Grows with every join and leave of the channel, though it be empty in between.
    pub version: u64,
}

/// The state of a channel in the cluster right after a leave.
#[derive(Debug)]
pub struct Left {
    pub connections: u64,
    pub version: u64,
}

/// What a cache channel remembers (`pusher.md` 2.7).
#[derive(Clone, PartialEq, Debug)]
pub struct LastEvent {
    pub event: Event,
    pub expires_in: Duration,
}
