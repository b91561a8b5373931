//! A cluster of one node: what the hub knows is the whole truth.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::last_events::LastEvents;
use super::{Backend, Done, FactSink, Joined, Joining, LastEvent, Left};
use crate::hub::{Expansion, Hub, MemberLimitReached, Occupancy, Subscriber};
use crate::model::ids::IdSource;
use crate::model::{
    AppId, Body, ChannelId, ChannelName, Event, FactKind, Member, SocketId, UserId,
};

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
    fn publish(
        &self,
        event: Event,
        keep: Option<Duration>,
        fact: Option<FactKind>,
    ) -> Done<'_, ()> {
        if let Some(fact) = fact {
            self.facts.state(&event.channel, fact);
        }
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
