//! One channel's subscribers. Everything here happens under the lock of the channel's shard.

use std::collections::HashMap;
use std::sync::Arc;

use super::audience::{Audience, Parcel};
use super::presence::Presence;
use super::{
    Acknowledgement, Arrival, Departure, Holding, MemberLimitReached, Occupancy, Subscriber,
};
use crate::metrics::CutOff;
use crate::model::{Body, Event, Member, SocketId};

/// What may come for one subscriber before its acknowledgement.
const HELD_EVENTS_MAX: usize = 4096;

#[derive(Default)]
pub struct Channel {
    subscriptions: HashMap<SocketId, Subscription>,
    /// Only those whose acknowledgement is still to come: usually none.
    pending: HashMap<SocketId, Vec<Event>>,
    presence: Presence,
    /// The version of the newest subscription count handed over.
    counted: u64,
    /// Cleared by every change of who is subscribed.
    audience: Option<Arc<Audience>>,
    turns: Arc<tokio::sync::Mutex<()>>,
}

struct Subscription {
    subscriber: Subscriber,
    member: Option<Arc<Member>>,
}

impl Channel {
    pub fn join(
        &mut self,
        subscriber: Subscriber,
        member: Option<Arc<Member>>,
        members_max: usize,
        version: u64,
    ) -> Result<Arrival, MemberLimitReached> {
        let mut new_member = false;
        if let Some(member) = &member {
            if self.presence.len() >= members_max && !self.presence.contains(&member.user_id) {
                return Err(MemberLimitReached);
            }
            new_member = self.presence.add(member);
        }
        let id = subscriber.id;
        let first = self.subscriptions.is_empty();
        let roster = member.is_some().then(|| self.presence.roster());
        let before = (self.subscriptions).insert(id, Subscription { subscriber, member });
        debug_assert!(
            before.is_none(),
            "a connection joins a channel once at a time"
        );
        self.pending.insert(id, Vec::new());
        Ok(Arrival {
            first,
            new_member,
            connections: self.subscriptions.len() as u64,
            users: self.presence.len() as u64,
            roster,
            version,
        })
    }

    pub fn acknowledge(
        &mut self,
        id: SocketId,
        acknowledgement: Acknowledgement,
        roster_version: u64,
    ) {
        let held = self.no_longer_pending(id);
        let (Some(held), Some(subscription)) = (held, self.subscriptions.get(&id)) else {
            return;
        };
        self.audience = None;
        let Subscriber {
            outbox, encoding, ..
        } = &subscription.subscriber;
        for frame in acknowledgement.frames {
            outbox.push(frame);
        }
        if let Some((event, frame)) = acknowledgement.replay
            && !held.iter().any(|held| held.id == event)
        {
            outbox.push(frame);
        }
        for event in held {
            let is_known = (event.body.roster_version()).is_some_and(|v| v <= roster_version);
            if !is_known && let Some(parcel) = Parcel::of(&event, *encoding) {
                parcel.give(outbox);
            }
        }
    }

    pub fn leave(&mut self, id: SocketId, version: u64) -> Option<Departure> {
        let subscription = self.subscriptions.remove(&id)?;
        self.no_longer_pending(id);
        self.audience = None;
        let member_gone = (subscription.member).and_then(|m| self.presence.remove(&m.user_id));
        Some(Departure {
            last: self.subscriptions.is_empty(),
            member_gone,
            connections: self.subscriptions.len() as u64,
            users: self.presence.len() as u64,
            version,
        })
    }

    /// What was held back for it. The table's memory is given back with the last: most channels
    /// are quiet most of the time.
    fn no_longer_pending(&mut self, id: SocketId) -> Option<Vec<Event>> {
        let held = self.pending.remove(&id);
        if self.pending.is_empty() {
            self.pending = HashMap::new();
        }
        held
    }

    /// Whether the event is a subscription count older than one that was handed over.
    pub fn is_outdated(&mut self, event: &Event) -> bool {
        let Body::SubscriptionCount { version, .. } = event.body else {
            return false;
        };
        let outdated = version < self.counted;
        self.counted = self.counted.max(version);
        outdated
    }

    /// Keeps a copy for every pending subscriber that the event is meant for.
    pub fn hold_back(&mut self, event: &Event) {
        for (id, held) in &mut self.pending {
            if event.except == Some(*id) {
                continue;
            }
            if held.len() < HELD_EVENTS_MAX {
                held.push(event.clone());
            } else if let Some(subscription) = self.subscriptions.get(id) {
                let outbox = &subscription.subscriber.outbox;
                outbox.cut_off(CutOff::SlowConsumer);
            }
        }
    }

    pub fn audience(&mut self) -> Arc<Audience> {
        if let Some(audience) = &self.audience {
            return audience.clone();
        }
        let acknowledged = (self.subscriptions.iter())
            .filter(|(id, _)| !self.pending.contains_key(id))
            .map(|(_, subscription)| &subscription.subscriber);
        let audience = Arc::new(Audience::of(acknowledged));
        self.audience = Some(audience.clone());
        audience
    }

    /// Those who get their copy once they are acknowledged.
    pub fn pending_ids(&self) -> Vec<SocketId> {
        self.pending.keys().copied().collect()
    }

    /// `None` when nobody is subscribed.
    pub fn occupancy(&self) -> Option<Occupancy> {
        if self.subscriptions.is_empty() {
            return None;
        }
        Some(Occupancy {
            connections: self.subscriptions.len() as u64,
            users: self.presence.len() as u64,
        })
    }

    pub fn holding(&self) -> Holding {
        Holding {
            connections: self.subscriptions.len() as u64,
            members: self.presence.connections(),
        }
    }

    pub fn members(&self) -> Vec<Arc<Member>> {
        self.presence.roster()
    }

    /// Whoever delivers keeps this while it does, and with it the channel's place in the table.
    pub fn turns(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.clone()
    }

    /// Nobody is subscribed and nobody delivers: the channel can be forgotten.
    pub fn is_unused(&self) -> bool {
        self.subscriptions.is_empty() && Arc::strong_count(&self.turns) == 1
    }
}
