//! One dispatcher: turns facts into events, and has a worker for each endpoint. A server without
//! a cluster has one; a cluster has one as well, on whichever node holds the lease.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::{STORE_PAUSE, Shared, lasting};
use super::settings::{Endpoint, Settings};
use super::settle::{Settled, Settler};
use super::source::{FACTS_AT_ONCE, Source};
use super::store::{Entry, Position, Store, StoreError};
use super::targets::{List, Targets, concerns, of_app};
use super::workers::{Ends, Workers};
use crate::apps::AppRegistry;
use crate::metrics::WEBHOOK_EVENTS_LOST;
use crate::model::{AppId, ChannelFact, Fact, SessionFact, now_ms};
use crate::wire;

/// Facts that came to nothing and may be read again for nothing.
const UNCOMMITTED_MAX: u64 = 10_000;
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether everything has been delivered, at the end.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// For the last facts; and for what would be lost with the process.
const FAREWELL: Duration = Duration::from_secs(3);

/// What every dispatcher of a node works with.
#[derive(Clone)]
pub(super) struct Parts {
    pub settings: Arc<Settings>,
    pub targets: Arc<Targets>,
    pub apps: Arc<AppRegistry>,
}

/// What was before.
pub(super) struct Past {
    pub settler: Settler,
    /// What was stated before the process began, and nobody of that time is there; absent where
    /// others have been there all the time.
    pub missed: Option<Vec<ChannelFact>>,
}

pub(super) struct Dispatcher {
    /// Ends when told that no more facts come.
    settling: JoinHandle<()>,
    no_more: CancellationToken,
    tasks: TaskTracker,
    ends: Ends,
    store: Arc<dyn Store>,
}

/// What happens at the end to those who have just left, and to what is undelivered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The store knows of both.
    IsKept,
    IsLost,
}

impl Dispatcher {
    pub async fn start(
        parts: Parts,
        store: Arc<dyn Store>,
        past: Past,
        source: Box<dyn Source>,
        end: End,
    ) -> Result<Self, StoreError> {
        let (grown, news) = watch::channel(());
        let (no_more, ends, tasks) = (
            CancellationToken::new(),
            Ends::default(),
            TaskTracker::new(),
        );
        let changes = parts.targets.changes();
        let shared = Shared {
            store: store.clone(),
            apps: parts.apps,
            news,
            stop: ends.stop.clone(),
            keep_bodies: parts.settings.keep_bodies,
        };
        let mut settling = Settling {
            settler: past.settler,
            targets: List::default(),
            changes: changes.clone(),
            workers: Workers::new(shared, ends.clone(), tasks.clone()),
            store: store.clone(),
            grown,
            no_more: no_more.clone(),
            committed: source.count(),
            source,
            end,
        };
        settling.adopt().await?;
        if let Some(missed) = past.missed {
            settling.catch_up(missed).await;
        }
        let bytes_max = parts.settings.store_bytes_max;
        tasks.spawn(tidy(store.clone(), bytes_max, changes, ends.stop.clone()));
        Ok(Self {
            settling: tokio::spawn(settling.run()),
            no_more,
            tasks,
            ends,
            store,
        })
    }

    /// Writes down the facts that are there, and then waits for the requests under way. Where
    /// undelivered events would be lost it first tries to deliver them. All for a limited time.
    pub async fn stop(self, end: End) {
        self.no_more.cancel();
        let settled_by = Instant::now() + FAREWELL;
        let mut settling = self.settling;
        if timeout_at(settled_by, &mut settling).await.is_err() {
            tracing::error!("the last facts could not be written to the webhooks' store");
            // Where the lease is another's by now it would try for ever.
            settling.abort();
        }
        if end == End::IsLost {
            let delivered_by = Instant::now() + FAREWELL;
            let delivered = timeout_at(delivered_by, async {
                while self.store.unfinished().await.is_ok_and(|count| count > 0) {
                    sleep(LOOK_INTERVAL).await;
                }
            });
            if delivered.await.is_err() {
                let lost = self.store.unfinished().await.unwrap_or_default();
                tracing::error!(
                    lost,
                    "webhooks are lost that were kept in memory only; set `dir` in [webhooks] to \
                     keep them"
                );
            }
        }
        self.tasks.close();
        self.ends.stop.cancel();
        let ended_by = Instant::now() + Endpoint::TIMEOUT;
        if timeout_at(ended_by, self.tasks.wait()).await.is_err() {
            tracing::warn!("a webhook request did not end in time");
        }
        self.ends.give_up.cancel();
    }
}

/// The one task that turns facts into events.
struct Settling {
    settler: Settler,
    /// Whom events are for.
    targets: List,
    changes: watch::Receiver<List>,
    workers: Workers,
    store: Arc<dyn Store>,
    grown: watch::Sender<()>,
    no_more: CancellationToken,
    source: Box<dyn Source>,
    /// How many facts of the source the store has.
    committed: u64,
    end: End,
}

impl Settling {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(FACTS_AT_ONCE);
        let mut is_ending = false;
        while !is_ending {
            let far = Instant::now() + Duration::from_secs(3_600);
            let due = self.settler.next_due().unwrap_or(far);
            tokio::select! {
                // Those that are there come first.
                biased;
                may_come = self.source.next(&mut batch) => is_ending = !may_come,
                () = sleep_until(due) => {}
                Ok(()) = self.changes.changed() => self.changes.mark_changed(),
                () = self.no_more.cancelled() => is_ending = true,
            }
            // What was stated after a change is for those who are there since.
            while self.changes.has_changed().unwrap_or(false)
                && let Err(error) = self.adopt().await
            {
                tracing::error!(%error, "the webhooks' store does not take new endpoints");
                self.changes.mark_changed();
                sleep(STORE_PAUSE).await;
            }
            let now = Instant::now();
            let mut entries = Vec::new();
            for fact in batch.drain(..) {
                super::log_fact(&fact);
                match fact {
                    Fact::Channel(fact) if concerns(&self.targets, &fact.channel, &fact.kind) => {
                        let settled = self.settler.fact(fact, now);
                        entries.extend(settled.map(|settled| self.entry(settled)));
                    }
                    Fact::Channel(_) => {}
                    Fact::Session(fact) => entries.extend(self.session_entry(&fact)),
                }
            }
            let mut gone = self.settler.gone(now);
            if is_ending && self.end == End::IsLost {
                gone.extend(self.settler.all_gone());
            }
            entries.extend(gone.into_iter().map(|settled| self.entry(settled)));
            self.append(entries).await;
        }
    }

    /// Goes over to the endpoints that there are now. What is told of whom nobody asks about any
    /// more is forgotten: an endpoint that comes back hears of what happens then.
    async fn adopt(&mut self) -> Result<(), StoreError> {
        let targets = self.changes.borrow_and_update().clone();
        self.workers.keep(&targets).await;
        let endpoints = targets.iter().map(|target| &target.endpoint);
        let names = endpoints.map(|endpoint| (endpoint.app.clone(), endpoint.name.clone()));
        let ids = self.store.activate(names.collect()).await?;
        self.workers.start(&targets, ids);
        let forgotten = (self.settler).forget(|channel, kind| !concerns(&targets, channel, kind));
        let entries = forgotten.into_iter().map(|settled| self.entry(settled));
        self.append(entries.collect()).await;
        self.targets = targets;
        Ok(())
    }

    /// What was stated before the process ended and is not in the store. Now nobody is there.
    async fn catch_up(&mut self, missed: Vec<ChannelFact>) {
        let now = Instant::now();
        let settled = (missed.into_iter())
            .filter(|fact| concerns(&self.targets, &fact.channel, &fact.kind))
            .filter_map(|fact| self.settler.fact(fact, now));
        let settled: Vec<_> = settled.collect();
        let entries = settled.into_iter().map(|settled| self.entry(settled));
        self.append(entries.collect()).await;
        self.settler.nobody_is_there(now);
    }

    fn entry(&self, settled: Settled) -> Entry {
        let Settled {
            channel,
            kind,
            is_news,
            told,
        } = settled;
        let is_wanted = is_news && self.is_wanted(&channel.app, kind.name(), channel.name.as_str());
        Entry {
            json: is_wanted.then(|| wire::webhooks::event(&channel.name, &kind)),
            channel: channel.name.as_str().into(),
            app: channel.app,
            name: kind.name(),
            told,
        }
    }

    /// Those about no channel keep their order among themselves.
    fn session_entry(&self, fact: &SessionFact) -> Option<Entry> {
        let (name, channel) = (fact.kind.name(), fact.kind.channel().unwrap_or_default());
        (self.is_wanted(&fact.app, name, channel)).then(|| Entry {
            json: Some(wire::webhooks::session_event(fact)),
            channel: channel.into(),
            name,
            told: None,
            app: fact.app.clone(),
        })
    }

    fn is_wanted(&self, app: &AppId, name: &str, channel: &str) -> bool {
        of_app(&self.targets, app).any(|endpoint| endpoint.wants(name, channel))
    }

    async fn append(&mut self, entries: Vec<Entry>) {
        let is_due = self.source.count() - self.committed >= UNCOMMITTED_MAX;
        if entries.is_empty() && !is_due {
            return;
        }
        let (entries, position): (_, Position) = (Arc::new(entries), self.source.position());
        lasting(|| (self.store).append(entries.clone(), now_ms(), position.clone())).await;
        self.committed = self.source.count();
        self.source.committed(&position).await;
        self.grown.send_replace(());
    }
}

async fn tidy(
    store: Arc<dyn Store>,
    bytes_max: usize,
    targets: watch::Receiver<List>,
    stop: CancellationToken,
) {
    let mut interval = interval(TIDY_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = pin!(stop.cancelled());
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = &mut stopped => return,
        }
        if targets.borrow().is_empty() {
            continue;
        }
        match store.tidy(bytes_max).await {
            Ok(lost) if lost == Default::default() => {}
            Ok(lost) => {
                WEBHOOK_EVENTS_LOST.add(lost.events as u64);
                tracing::error!(
                    events = lost.events,
                    dead_letters = lost.dead_letters,
                    "the webhooks' store is full: the oldest were thrown away"
                );
            }
            Err(error) => tracing::error!(%error, "the webhooks' store cannot be tidied"),
        }
    }
}
