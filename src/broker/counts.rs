//! Tells subscribers how many they are (`pusher.md` 2.8): on every change while they are few, in
//! larger channels at most once in a while.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::apps::App;
use crate::backend::Backend;
use crate::model::ids::IdSource;
use crate::model::{Body, ChannelId, Event, FactKind};

/// Up to so many connections every change is told at once.
const PROMPT_CONNECTIONS_MAX: u64 = 100;
const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Counts {
    backend: Arc<dyn Backend>,
    ids: Arc<IdSource>,
    /// Large channels that were told less than an interval ago, with what to tell next.
    waiting: Arc<Mutex<HashMap<ChannelId, Option<Count>>>>,
}

#[derive(Clone, Copy)]
struct Count {
    connections: u64,
    version: u64,
}

impl Counts {
    pub fn new(backend: Arc<dyn Backend>, ids: Arc<IdSource>) -> Self {
        Self {
            backend,
            ids,
            waiting: Arc::default(),
        }
    }

    /// The channel has `connections` since its join or leave number `version`.
    pub async fn changed(&self, app: &App, channel: &ChannelId, connections: u64, version: u64) {
        let name = &channel.name;
        if !app.features.subscription_count_events || name.is_presence() || !name.is_reported() {
            return;
        }
        let count = Count {
            connections,
            version,
        };
        if self.may_tell_now(channel, count) {
            self.tell(channel, count).await;
        }
    }

    /// Whether the channel is small, or the interval since the last time is over. If not, the
    /// count is told at the interval's end.
    fn may_tell_now(&self, channel: &ChannelId, count: Count) -> bool {
        let is_small = count.connections <= PROMPT_CONNECTIONS_MAX;
        match self.waiting().entry(channel.clone()) {
            Entry::Vacant(_) if is_small => true,
            Entry::Vacant(entry) => {
                entry.insert(None);
                tokio::spawn(self.clone().tell_at_intervals(channel.clone()));
                true
            }
            Entry::Occupied(mut waiting) => {
                if waiting
                    .get()
                    .is_none_or(|next| next.version < count.version)
                {
                    waiting.insert((!is_small).then_some(count));
                }
                is_small
            }
        }
    }

    /// Ends with the first interval in which nothing changed.
    async fn tell_at_intervals(self, channel: ChannelId) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let next = {
                let mut waiting = self.waiting();
                match waiting.get_mut(&channel).and_then(Option::take) {
                    Some(count) => count,
                    None => {
                        waiting.remove(&channel);
                        return;
                    }
                }
            };
            self.tell(&channel, next).await;
        }
    }

    async fn tell(&self, channel: &ChannelId, count: Count) {
        let Count {
            connections,
            version,
        } = count;
        let fact = FactKind::SubscriptionCount { connections };
        let event = Event {
            id: self.ids.event_id(),
            channel: channel.clone(),
            except: None,
            body: Body::SubscriptionCount {
                connections,
                version,
            },
        };
        self.backend.publish(event, None, Some(fact)).await;
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<ChannelId, Option<Count>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Features;
    use crate::backend::{Memory, fact_queue};
    use crate::hub::Hub;
    use crate::model::{AppId, ChannelFact, ChannelName, Fact};
    use tokio::sync::mpsc::Receiver;

    struct Setup {
        counts: Counts,
        facts: Receiver<Fact>,
        app: App,
        room: ChannelId,
    }

    fn setup() -> Setup {
        let (sink, facts) = fact_queue(1000);
        let ids = Arc::new(IdSource::new(1));
        let backend = Arc::new(Memory::new(Arc::new(Hub::new()), ids.clone(), sink));
        let id = AppId::new("1");
        Setup {
            counts: Counts::new(backend, ids),
            facts,
            room: ChannelId::new(&id, &ChannelName::parse("room", 164).unwrap()),
            app: App {
                id,
                name: None,
                enabled: true,
                keys: Vec::new(),
                features: Features {
                    subscription_count_events: true,
                    ..Features::default()
                },
                limits: Default::default(),
                allowed_origins: Vec::new(),
            },
        }
    }

    impl Setup {
        async fn change(&self, connections: u64, version: u64) {
            self.counts
                .changed(&self.app, &self.room, connections, version)
                .await;
        }

        /// The counts told since the last look.
        fn told(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| self.facts.try_recv().ok())
                .map(|fact| match fact {
                    Fact::Channel(ChannelFact {
                        kind: FactKind::SubscriptionCount { connections },
                        ..
                    }) => connections,
                    other => panic!("{other:?}"),
                })
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_channels_are_told_every_change() {
        let mut setup = setup();
        for n in 1..=100 {
            setup.change(n, n).await;
        }
        assert_eq!(setup.told(), (1..=100).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn large_channels_are_told_the_newest_count_every_five_seconds_if_it_changed() {
        let mut setup = setup();
        for (connections, version) in [(101, 1), (102, 2), (104, 4), (103, 3)] {
            setup.change(connections, version).await;
        }
        assert_eq!(setup.told(), [101]);
        tokio::time::sleep(INTERVAL * 3 / 2).await;
        assert_eq!(setup.told(), [104]);
        setup.change(101, 5).await;
        setup.change(100, 6).await;
        assert_eq!(setup.told(), [100]);
        tokio::time::sleep(INTERVAL * 10).await;
        assert_eq!(setup.told(), [0; 0]);
        assert!(setup.counts.waiting().is_empty());
        setup.change(150, 7).await;
        assert_eq!(setup.told(), [150]);
    }

    #[tokio::test(start_paused = true)]
    async fn presence_and_internal_channels_and_apps_without_the_feature_are_not_counted() {
        let mut setup = setup();
        for name in [
            ChannelName::parse("presence-x", 164).unwrap(),
            ChannelName::signed_in("u"),
        ] {
            let channel = ChannelId::new(&setup.app.id, &name);
            setup.counts.changed(&setup.app, &channel, 1, 1).await;
        }
        setup.app.features.subscription_count_events = false;
        setup.change(1, 1).await;
        assert_eq!(setup.told(), [0; 0]);
    }
}
