//! Who is subscribed on this node, and the hand-over of events to them.
//!
//! A sharded table of channels. Each has its subscribers and, made when first needed, a snapshot
//! of them grouped by wire format. [`Hub::deliver`] takes that snapshot under the shard's lock and
//! pushes outside it: an event is encoded once per wire format and its bytes are shared.
//!
//! ```text
//!            join                 acknowledge                    leave
//!  (nothing) ────► pending ──────────────────────► subscribed ─────────► (nothing)
//!                  holds back what is delivered    in the snapshot
//! ```
//!
//! A pending subscriber counts as subscribed, but receives nothing before its acknowledgement;
//! what came meanwhile follows right behind it. So nothing is missed and nothing comes early.

mod channel;
mod outbox;
mod presence;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use channel::{Audience, Channel};
pub use outbox::{Closing, Frame, Outbox};
pub use presence::Roster;

use crate::model::{AppId, Body, ChannelId, Event, EventId, Member, SocketId, UserId};

const SHARDS: usize = 64;
/// After so many pushes a delivery lets other tasks run.
const PUSHES_BEFORE_YIELD: usize = 1024;

/// A wire format, given by a front end.
pub trait Encoding: Sync {
    /// Unique among the formats: subscribers are grouped by it.
    fn name(&self) -> &'static str;
    /// `None` where this format has nothing to say about the event.
    fn encode(&self, event: &Event) -> Option<Frame>;
}

/// Where one connection's events go, and in which wire format.
#[derive(Clone)]
pub struct Subscriber {
    pub id: SocketId,
    pub outbox: Arc<Outbox>,
    pub encoding: &'static dyn Encoding,
}

pub struct Hub {
    shards: Vec<Mutex<HashMap<ChannelId, Channel>>>,
    hasher: RandomState,
    /// Joins and leaves in all channels. A channel is forgotten with its last subscriber; one of
    /// the same name must not begin with versions that were there before.
    changes: AtomicU64,
}

/// The state of a channel right after a subscriber was added.
#[derive(Debug)]
pub struct Arrival {
    /// The channel had no subscriber here before.
    pub first: bool,
    /// The subscriber's user was not in the roster before.
    pub new_member: bool,
    pub connections: u64,
    pub roster: Roster,
    /// Grows with every join and leave of the channel.
    pub version: u64,
}

/// The state of a channel right after a subscriber was taken out.
#[derive(Debug)]
pub struct Departure {
    /// The channel has no subscriber here any more.
    pub last: bool,
    /// The user, if this was its last connection in the channel.
    pub member_gone: Option<Arc<Member>>,
    pub connections: u64,
    pub version: u64,
}

/// The presence channel is full and the user is not in it (`pusher.md` 2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberLimitReached;

/// What the front end answers to an accepted subscription.
#[derive(Default)]
pub struct Acknowledgement {
    pub frames: Vec<Frame>,
    /// Follows the frames, unless it repeats an event that came in the meantime.
    pub replay: Option<(EventId, Frame)>,
}

/// How many subscribe to a channel here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupancy {
    pub connections: u64,
    /// Distinct users; 0 unless it is a presence channel.
    pub users: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            changes: AtomicU64::new(0),
        }
    }

    /// Adds a pending subscriber. A connection joins a channel once at a time.
    ///
    /// `member` is given on presence channels, which take at most `members_max` distinct users.
    pub fn join(
        &self,
        id: &ChannelId,
        subscriber: Subscriber,
        member: Option<Arc<Member>>,
        members_max: usize,
    ) -> Result<Arrival, MemberLimitReached> {
        let mut shard = self.shard(id);
        let version = self.next_version();
        match shard.entry(id.clone()) {
            Entry::Occupied(mut channel) => {
                (channel.get_mut()).join(subscriber, member, members_max, version)
            }
            Entry::Vacant(vacant) => {
                let mut channel = Channel::default();
                let arrival = channel.join(subscriber, member, members_max, version)?;
                vacant.insert(channel);
                Ok(arrival)
            }
        }
    }

    /// Ends the pending state. Membership events that the roster of version `roster_version`
    /// already shows are left out of what was held back.
    pub fn acknowledge(
        &self,
        id: &ChannelId,
        subscriber: SocketId,
        acknowledgement: Acknowledgement,
        roster_version: u64,
    ) {
        if let Some(channel) = self.shard(id).get_mut(id) {
            channel.acknowledge(subscriber, acknowledgement, roster_version);
        }
    }

    /// `None` if it was not subscribed.
    pub fn leave(&self, id: &ChannelId, subscriber: SocketId) -> Option<Departure> {
        let mut shard = self.shard(id);
        let channel = shard.get_mut(id)?;
        let departure = channel.leave(subscriber, self.next_version());
        if channel.is_unused() {
            shard.remove(id);
        }
        departure
    }

    /// Hands the event to everyone subscribed here. Returns when it is in every outbox.
    ///
    /// Deliveries to one channel take turns, so that all its subscribers see one order. The turn
    /// is no lock around data: joining, leaving and other channels do not wait for it.
    pub async fn deliver(&self, event: Event) {
        let Some(turns) = self
            .shard(&event.channel)
            .get(&event.channel)
            .map(Channel::turns)
        else {
            return;
        };
        let turn = turns.lock().await;
        if let Some(audience) = self.audience(&event) {
            hand_over(&event, &audience).await;
        }
        drop(turn);
        drop(turns);
        // The last subscriber may have left meanwhile, when the turn kept the channel in place.
        let mut shard = self.shard(&event.channel);
        if shard.get(&event.channel).is_some_and(Channel::is_unused) {
            shard.remove(&event.channel);
        }
    }

    /// `None` if nobody is subscribed here.
    pub fn occupancy(&self, id: &ChannelId) -> Option<Occupancy> {
        self.shard(id).get(id).and_then(Channel::occupancy)
    }

    /// The ids of the users in a presence channel, in the order of their text.
    pub fn user_ids(&self, id: &ChannelId) -> Vec<UserId> {
        self.shard(id)
            .get(id)
            .map_or_else(Vec::new, Channel::user_ids)
    }

    /// The app's occupied channels whose names start with `prefix`, in no order.
    pub fn channels(&self, app: &AppId, prefix: &str) -> Vec<(ChannelId, Occupancy)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            for (id, channel) in &*lock(shard) {
                if id.app == *app
                    && id.name.as_str().starts_with(prefix)
                    && let Some(occupancy) = channel.occupancy()
                {
                    found.push((id.clone(), occupancy));
                }
            }
        }
        found
    }

    /// The snapshot to deliver to; pending subscribers get their copy to hold back.
    fn audience(&self, event: &Event) -> Option<Arc<Audience>> {
        let mut shard = self.shard(&event.channel);
        let channel = shard.get_mut(&event.channel)?;
        if channel.is_outdated(event) {
            return None;
        }
        channel.hold_back(event);
        Some(channel.audience())
    }

    /// To be taken under the lock of the shard.
    fn next_version(&self) -> u64 {
        1 + self.changes.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, id: &ChannelId) -> MutexGuard<'_, HashMap<ChannelId, Channel>> {
        lock(&self.shards[self.hasher.hash_one(id) as usize % SHARDS])
    }
}

async fn hand_over(event: &Event, audience: &Audience) {
    let mut pushes = 0;
    for group in &audience.groups {
        let Some(parcel) = Parcel::of(event, group.encoding) else {
            continue;
        };
        for (id, outbox) in &group.outboxes {
            if event.except == Some(*id) {
                continue;
            }
            parcel.give(outbox);
            pushes += 1;
            if pushes % PUSHES_BEFORE_YIELD == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// What an event is to the outboxes of one wire format.
enum Parcel {
    Frame(Frame),
    Closing(Closing),
}

impl Parcel {
    fn of(event: &Event, encoding: &dyn Encoding) -> Option<Self> {
        match event.body {
            Body::Terminate => Some(Self::Closing(Closing::Terminated)),
            _ => encoding.encode(event).map(Self::Frame),
        }
    }

    fn give(&self, outbox: &Outbox) {
        match self {
            Self::Frame(frame) => outbox.push(frame.clone()),
            Self::Closing(why) => outbox.close(*why),
        }
    }
}

/// A poisoned lock is taken all the same: what it guards is changed in single steps that cannot
/// panic half-way, and one bad task must not end the service.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
