//! A cluster of one node: what the hub knows is the whole truth.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Backend, Done, FactSink, Joined, Joining, LastEvent, Left};
use crate::hub::{Expansion, Hub, MemberLimitReached, Occupancy, Subscriber};
use crate::model::ids::IdSource;
use crate::model::{
    AppId, Body, ChannelId, ChannelName, Event, EventId, FactKind, Member, SocketId, UserId,
};

/// Last events kept for all channels together; beyond it the oldest goes.
const LAST_EVENTS_MAX: usize = 100_000;
const LAST_EVENTS_BYTES_MAX: usize = 256 * 1024 * 1024;
const STRIPES: usize = 256;

pub struct Memory {
    hub: Arc<Hub>,
    ids: Arc<IdSource>,
    facts: FactSink,
    last_events: Mutex<LastEvents>,
    /// Held over a join or leave with its membership event, so that these events go out in the
    /// order of what they tell. Chosen by channel.
    stripes: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
}

impl Memory {
    pub fn new(hub: Arc<Hub>, ids: Arc<IdSource>, facts: FactSink) -> Self {
        Self {
            hub,
            ids,
            facts,
            last_events: Mutex::default(),
            stripes: (0..STRIPES).map(|_| Default::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    fn stripe(&self, channel: &ChannelId) -> &tokio::sync::Mutex<()> {
        &self.stripes[self.hasher.hash_one(channel) as usize % STRIPES]
    }

    fn last_events(&self) -> MutexGuard<'_, LastEvents> {
        let locked = self.last_events.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, channel: ChannelId, except: Option<SocketId>, body: Body) {
        let id = self.ids.event_id();
        let event = Event {
            id,
            channel,
            except,
            body,
        };
        self.hub.deliver(event).await;
    }

    async fn tell_watchers(&self, channel: &ChannelId, body: fn(UserId) -> Body) {
        if let Some(user_id) = channel.name.signed_in_user() {
            let watchers = ChannelId::new(&channel.app, &ChannelName::watchers(user_id));
            self.tell(watchers, None, body(user_id.into())).await;
        }
    }
}

impl Backend for Memory {
    fn publish(&self, event: Event, keep: Option<Duration>) -> Done<'_, ()> {
        let Some(keep) = keep else {
            return Box::pin(self.hub.deliver(event));
        };
        Box::pin(async move {
            // So that the event kept is also the one delivered last.
            let _in_order = self.stripe(&event.channel).lock().await;
            // Kept when it is delivered and not before: whoever is subscribing meanwhile would
            // get it as the last event and then once more.
            self.hub.deliver(event.clone()).await;
            self.last_events().insert(event, keep);
        })
    }

    fn join<'a>(
        &'a self,
        channel: &'a ChannelId,
        joining: Joining,
    ) -> Done<'a, Result<Joined, MemberLimitReached>> {
        Box::pin(async move {
            let Joining {
                subscriber,
                member,
                members_max,
            } = joining;
            let who = subscriber.id;
            let _in_order = self.stripe(channel).lock().await;
            let arrival = (self.hub).join(channel, subscriber, member.clone(), members_max)?;
            let (version, users) = (arrival.version, arrival.users);
            if arrival.first {
                self.facts.state(channel, FactKind::ChannelOccupied);
                self.tell_watchers(channel, |user_id| Body::UserOnline { user_id })
                    .await;
            }
            if let Some(member) = member
                && arrival.new_member
            {
                let user_id = member.user_id.clone();
                self.facts.state(channel, FactKind::MemberAdded { user_id });
                let added = Body::MemberAdded {
                    member,
                    users,
                    version,
                };
                self.tell(channel.clone(), Some(who), added).await;
            }
            Ok(Joined {
                connections: arrival.connections,
                roster: arrival.roster,
                version,
            })
        })
    }

    fn leave<'a>(&'a self, channel: &'a ChannelId, who: SocketId) -> Done<'a, Option<Left>> {
        Box::pin(async move {
            let _in_order = self.stripe(channel).lock().await;
            let departure = self.hub.leave(channel, who)?;
            let (version, users) = (departure.version, departure.users);
            if let Some(member) = departure.member_gone {
                let user_id = member.user_id.clone();
                let fact_user_id = user_id.clone();
                (self.facts).state(
                    channel,
                    FactKind::MemberRemoved {
                        user_id: fact_user_id,
                    },
                );
                let removed = Body::MemberRemoved {
                    user_id,
                    users,
                    version,
                };
                self.tell(channel.clone(), Some(who), removed).await;
            }
            if departure.last {
                self.facts.state(channel, FactKind::ChannelVacated);
                self.tell_watchers(channel, |user_id| Body::UserOffline { user_id })
                    .await;
            }
            Some(Left {
                connections: departure.connections,
                version,
            })
        })
    }

    fn join_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) -> Done<'a, ()> {
        (self.hub).join_pattern(app, pattern, expansion, subscriber);
        now(())
    }

    fn leave_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        who: SocketId,
    ) -> Done<'a, ()> {
        self.hub.leave_pattern(app, pattern, who);
        now(())
    }

    fn channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> Done<'a, Vec<(ChannelName, Occupancy)>> {
        let mut found: Vec<_> = (self.hub.channels(app, prefix).into_iter())
            .map(|(id, occupancy)| (id.name, occupancy))
            .collect();
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        now(found)
    }

    fn occupancy<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<Occupancy>> {
        now(self.hub.occupancy(channel))
    }

    fn members<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Vec<Arc<Member>>> {
        now(self.hub.members(channel))
    }

    fn last_event<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<LastEvent>> {
        now(self.last_events().get(channel))
    }
}

fn now<'a, T: Send + 'a>(value: T) -> Done<'a, T> {
    Box::pin(std::future::ready(value))
}

/// Bounded in number and in time. What has run out goes with a later insertion.
#[derive(Default)]
struct LastEvents {
    events: HashMap<ChannelId, (Event, Instant)>,
    /// Insertions, oldest first; those that were replaced since are passed over.
    inserted: VecDeque<(ChannelId, EventId)>,
    /// Of all `events`.
    bytes: usize,
}

impl LastEvents {
    fn insert(&mut self, event: Event, keep: Duration) {
        let now = Instant::now();
        let channel = event.channel.clone();
        self.inserted.push_back((channel.clone(), event.id));
        self.bytes += cost_bytes(&event);
        let replaced = self.events.insert(channel, (event, now + keep));
        self.bytes -= replaced.map_or(0, |(event, _)| cost_bytes(&event));
        while let Some((channel, id)) = self.inserted.front() {
            if let Some((event, expires)) = self.events.get(channel)
                && event.id == *id
            {
                let fits =
                    self.events.len() <= LAST_EVENTS_MAX && self.bytes <= LAST_EVENTS_BYTES_MAX;
                if *expires > now && fits {
                    break;
                }
                self.bytes -= cost_bytes(event);
                self.events.remove(channel);
            }
            self.inserted.pop_front();
        }
        // A channel that is published to often must not fill the list behind a quiet one.
        if self.inserted.len() > 2 * self.events.len() + 64 {
            let events = &self.events;
            (self.inserted)
                .retain(|(channel, id)| events.get(channel).is_some_and(|(e, _)| e.id == *id));
        }
    }

    fn get(&self, channel: &ChannelId) -> Option<LastEvent> {
        let (event, expires) = self.events.get(channel)?;
        let expires_in = expires.checked_duration_since(Instant::now())?;
        (!expires_in.is_zero()).then(|| LastEvent {
            event: event.clone(),
            expires_in,
        })
    }
}

fn cost_bytes(event: &Event) -> usize {
    let contents = match &event.body {
        Body::Message(message) => message.name.len() + message.data.len(),
        _ => 0,
    };
    size_of::<Event>() + event.channel.name.as_str().len() + contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Message;

    fn event(ids: &IdSource, channel: &str) -> Event {
        Event {
            id: ids.event_id(),
            channel: ChannelId::new(&AppId::new("1"), &ChannelName::parse(channel, 200).unwrap()),
            except: None,
            body: Body::Message(Message {
                name: "e".into(),
                data: "{}".into(),
                user_id: None,
                ext: None,
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn last_events_are_bounded_in_number_and_a_busy_channel_does_not_push_out_a_quiet_one() {
        let (ids, mut kept) = (IdSource::new(1), LastEvents::default());
        let quiet = event(&ids, "cache-quiet");
        kept.insert(quiet.clone(), Duration::from_secs(60));
        for _ in 0..2 * LAST_EVENTS_MAX {
            kept.insert(event(&ids, "cache-busy"), Duration::from_secs(60));
        }
        assert!(kept.get(&quiet.channel).is_some());
        assert!(kept.inserted.len() < 100);
        for n in 0..LAST_EVENTS_MAX {
            kept.insert(event(&ids, &format!("cache-{n}")), Duration::from_secs(60));
        }
        assert!(kept.get(&quiet.channel).is_none());
        assert_eq!(kept.events.len(), LAST_EVENTS_MAX);
        tokio::time::advance(Duration::from_secs(61)).await;
        kept.insert(quiet, Duration::from_secs(60));
        assert_eq!(kept.events.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn last_events_are_bounded_in_bytes() {
        let (ids, mut kept) = (IdSource::new(1), LastEvents::default());
        let data: std::sync::Arc<str> = "x".repeat(LAST_EVENTS_BYTES_MAX / 10).into();
        for round in 0..3 {
            for n in 0..20 {
                let mut event = event(&ids, &format!("cache-{n}"));
                if let Body::Message(message) = &mut event.body {
                    message.data = data.clone();
                }
                kept.insert(event, Duration::from_secs(60));
            }
            assert_eq!(kept.events.len(), 9, "round {round}");
            assert!(kept.bytes <= LAST_EVENTS_BYTES_MAX);
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        let last = event(&ids, "cache-last");
        kept.insert(last.clone(), Duration::from_secs(60));
        assert_eq!(kept.bytes, cost_bytes(&last));
    }
}
