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

mod audience;
mod channel;
mod outbox;
mod pace;
mod patterns;
mod presence;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use audience::{Audience, HandOver};
use channel::Channel;
pub use outbox::{Closing, Frame, Outbox, may_at_once};
use pace::Pace;
pub use patterns::Expansion;
use patterns::Patterns;
pub use presence::Roster;

use crate::metrics::{DELIVERIES, EVENTS};
use crate::model::{AppId, ChannelId, Event, EventId, Member, SocketId};

const SHARDS: usize = 64;
/// After so many pushes those who write to the sockets have their turn before the channel's next
/// event: many publishers at once must not outrun them until outboxes overflow.
const PUSHES_BEFORE_TURN_ENDS: usize = 64;

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
    patterns: Patterns,
    pace: Pace,
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
    /// Distinct users in the roster.
    pub users: u64,
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
    /// Distinct users in the roster.
    pub users: u64,
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

/// Everything that is subscribed to a channel here.
#[derive(Clone, Default, Debug)]
pub struct Holding {
    pub connections: u64,
    /// The users of a presence channel and how many connections each has.
    pub members: Vec<(Arc<Member>, u32)>,
}

/// How many subscribe to a channel here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupancy {
    pub connections: u64,
    /// Distinct users; 0 unless it is a presence channel.
    pub users: u64,
}

/// What an app keeps here.
#[derive(Clone, Copy, Default, Debug)]
pub struct Load {
    pub channels: u64,
    pub subscriptions: u64,
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
            patterns: Patterns::default(),
            pace: Pace::default(),
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

    /// Adds a subscriber to every channel of the app that the pattern matches, now or later. It
    /// counts in none of them. `expansion` is the same for all patterns of an app.
    pub fn join_pattern(
        &self,
        app: &AppId,
        pattern: &str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) {
        self.patterns.join(app, pattern, expansion, subscriber);
    }

    /// Whether it was subscribed.
    pub fn leave_pattern(&self, app: &AppId, pattern: &str, subscriber: SocketId) -> bool {
        self.patterns.leave(app, pattern, subscriber)
    }

    /// Hands the event to everyone subscribed here, by name or by pattern, once. Returns when it
    /// is in every outbox.
    ///
    /// Deliveries to one channel take turns, so that all its subscribers see one order. The turn
    /// is no lock around data: joining, leaving and other channels do not wait for it.
    pub async fn deliver(&self, event: Event) {
        let since = Instant::now();
        EVENTS.add(event.channel.app.as_str(), 1);
        let has_patterns = self.patterns.has_any(&event.channel.app);
        let Some(turns) = self.turns(&event.channel, has_patterns) else {
            return;
        };
        let mut hand_over = HandOver::of(&event, since, &self.pace);
        let turn = turns.lock().await;
        if let Some(snapshot) = self.snapshot(&event, has_patterns) {
            hand_over.to(&snapshot.audience, |_| false).await;
            if has_patterns {
                self.deliver_to_patterns(&mut hand_over, &event.channel, snapshot)
                    .await;
            }
            let pushes = hand_over.pushes();
            DELIVERIES.add(event.channel.app.as_str(), pushes as u64);
            if hand_over.left_to_others() >= PUSHES_BEFORE_TURN_ENDS {
                tokio::task::yield_now().await;
            }
        }
        drop(turn);
        drop(turns);
        drop(hand_over);
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

    /// Empty if nobody is subscribed here.
    pub fn holding(&self, id: &ChannelId) -> Holding {
        (self.shard(id).get(id)).map_or_else(Holding::default, Channel::holding)
    }

    /// Whether anybody here would be handed an event of the channel.
    pub fn is_heard(&self, id: &ChannelId) -> bool {
        self.patterns.has_any(&id.app)
            || (self.shard(id).get(id)).is_some_and(|channel| channel.occupancy().is_some())
    }

    /// The users in a presence channel, in the order of their ids.
    pub fn members(&self, id: &ChannelId) -> Vec<Arc<Member>> {
        (self.shard(id).get(id)).map_or_else(Vec::new, Channel::members)
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

    /// How many channels are occupied here, about.
    pub fn channel_count(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| lock(shard).len() as u64)
            .sum()
    }

    /// How many channels of each app are occupied here, and how many subscriptions they have.
    pub fn loads(&self) -> HashMap<AppId, Load> {
        let mut loads: HashMap<AppId, Load> = HashMap::new();
        for shard in &self.shards {
            for (id, channel) in &*lock(shard) {
                if let Some(occupancy) = channel.occupancy() {
                    let load = loads.entry(id.app.clone()).or_default();
                    load.channels += 1;
                    load.subscriptions += occupancy.connections;
                }
            }
        }
        loads
    }

    /// `None` for a channel that nobody can be subscribed to. With `has_patterns` a channel
    /// without subscribers has a place in the table too, for as long as it is delivered to.
    fn turns(&self, id: &ChannelId, has_patterns: bool) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let mut shard = self.shard(id);
        match has_patterns {
            true => Some(shard.entry(id.clone()).or_default().turns()),
            false => shard.get(id).map(Channel::turns),
        }
    }

    /// Whom to deliver to; pending subscribers get their copy to hold back.
    fn snapshot(&self, event: &Event, has_patterns: bool) -> Option<Snapshot> {
        let mut shard = self.shard(&event.channel);
        let channel = shard.get_mut(&event.channel)?;
        if channel.is_outdated(event) {
            return None;
        }
        channel.hold_back(event);
        Some(Snapshot {
            audience: channel.audience(),
            pending: match has_patterns {
                true => channel.pending_ids(),
                false => Vec::new(),
            },
        })
    }

    /// Within the same turn, so that these subscribers see the channel's order too.
    async fn deliver_to_patterns(
        &self,
        hand_over: &mut HandOver<'_>,
        channel: &ChannelId,
        snapshot: Snapshot,
    ) {
        let audiences = self.patterns.audiences(channel);
        for (nth, audience) in audiences.iter().enumerate() {
            let served = |id| {
                snapshot.audience.contains(id)
                    || snapshot.pending.contains(&id)
                    || audiences[..nth].iter().any(|earlier| earlier.contains(id))
            };
            hand_over.to(audience, served).await;
        }
    }

    /// To be taken under the lock of the shard.
    fn next_version(&self) -> u64 {
        1 + self.changes.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, id: &ChannelId) -> MutexGuard<'_, HashMap<ChannelId, Channel>> {
        lock(&self.shards[self.hasher.hash_one(id) as usize % SHARDS])
    }
}

/// Who is subscribed to a channel by its name.
struct Snapshot {
    audience: Arc<Audience>,
    /// Asked for only where patterns might serve them too.
    pending: Vec<SocketId>,
}

/// A poisoned lock is taken all the same: what it guards is changed in single steps that cannot
/// panic half-way, and one bad task must not end the service.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
