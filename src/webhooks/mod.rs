//! Tells applications what happened, in Pusher's own format (`pusher.md` 6).
//!
//! ```text
//! facts ─▶ journal ─▶ settle ─▶ store ─▶ one worker for each endpoint ─▶ POST
//!                    (damping)  (log)    (queue, deliver)
//! ```
//!
//! [`journal`] has facts from the moment on at which they are true, [`settle`] makes events of
//! them, [`store`] keeps them until every endpoint is done with them,
//! [`deliver`] has the retries, [`queue`] the order. What is under way is in the store before it is
//! sent: whatever ends the process, a delivery is repeated with the same bytes and the same id.

mod deliver;
mod journal;
mod queue;
mod settings;
mod settle;
mod store;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use deliver::ID_HEADER;
pub use settings::{Endpoint, Settings};
pub use store::{Archive, Attempt, Delivery, Listed, State, StoreError};

use crate::apps::AppRegistry;
use crate::backend::FactSink;
use crate::metrics::WEBHOOK_EVENTS_LOST;
use crate::model::{AppId, ChannelFact, Fact, SessionFact};
use crate::transport::outbound::{Outbound, OutboundError, Reach};
use crate::wire;
use deliver::{Shared, Worker, lasting, now_ms};
use journal::Journal;
use settle::{Settled, Settler};
use store::{Entry, Store};

/// Facts of the journal that may be read again for nothing.
const UNCOMMITTED_MAX: u64 = 10_000;
/// Under which the log has facts.
pub const FACTS_LOG: &str = "raptor::facts";
/// Facts that become events together.
const FACTS_AT_ONCE: usize = 1_000;
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether everything has been delivered, at the end.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Without a directory, what is undelivered at the end is lost: it gets so long.
const FAREWELL: Duration = Duration::from_secs(3);

/// Webhooks of a running server.
pub struct Webhooks {
    /// Ends when told that no more facts come.
    settling: JoinHandle<()>,
    no_more: CancellationToken,
    workers: TaskTracker,
    /// No more attempts are made.
    stop: CancellationToken,
    store: Store,
    interest: Arc<Vec<Endpoint>>,
    /// There with a directory.
    journal: Option<Arc<Journal>>,
}

/// Why webhooks cannot be sent.
#[derive(Debug)]
pub enum StartError {
    Store(StoreError),
    Journal(std::io::Error),
    Outbound(OutboundError),
}

impl Webhooks {
    /// Reads `facts` from now on. With no endpoint they are logged and nothing else.
    pub async fn start(
        settings: Settings,
        apps: Arc<AppRegistry>,
        facts: mpsc::Receiver<Fact>,
    ) -> Result<Option<Self>, StartError> {
        if settings.endpoints.is_empty() {
            tokio::spawn(log_facts(facts));
            return Ok(None);
        }
        let store = Store::open(&settings).map_err(StartError::Store)?;
        let named = settings.endpoints.iter();
        let named = named.map(|endpoint| (endpoint.app.clone(), endpoint.name.clone()));
        let ids = store.activate(named.collect()).await;
        let ids = ids.map_err(StartError::Store)?;
        let told = store.told().await.map_err(StartError::Store)?;
        let committed = store.committed().await.map_err(StartError::Store)?;
        let (journal, missed, serial) = match &settings.dir {
            Some(dir) => {
                let journal = Journal::open(dir, committed).map_err(StartError::Journal)?;
                (Some(Arc::new(journal.0)), journal.1, journal.2)
            }
            None => (None, Vec::new(), 0),
        };
        let (grown, news) = watch::channel(());
        let (no_more, stop) = (CancellationToken::new(), CancellationToken::new());
        let interest = Arc::new(settings.endpoints);
        let mut settling = Settling {
            settler: Settler::knowing(told),
            endpoints: interest.clone(),
            store: store.clone(),
            grown,
            no_more: no_more.clone(),
            journal: journal.clone(),
            serial,
            committed,
        };
        settling.catch_up(missed).await;
        let workers = TaskTracker::new();
        for (endpoint, id) in interest.iter().zip(ids) {
            let reach = match endpoint.allow_private_networks {
                true => Reach::Everywhere,
                false => Reach::Public,
            };
            let https = endpoint.url.scheme_str() == Some("https");
            let outbound = Outbound::new(reach, https).map_err(StartError::Outbound)?;
            let shared = Shared {
                store: store.clone(),
                apps: apps.clone(),
                news: news.clone(),
                stop: stop.clone(),
                keep_bodies: settings.keep_bodies,
            };
            let worker = Worker::new(endpoint.clone(), id, outbound, shared);
            workers.spawn(worker.run());
        }
        workers.spawn(tidy(store.clone(), settings.store_bytes_max, stop.clone()));
        Ok(Some(Self {
            settling: tokio::spawn(settling.run(facts)),
            no_more,
            workers,
            stop,
            store,
            interest,
            journal,
        }))
    }

    /// The sink with facts written down as they are stated, where there is a directory.
    pub fn note(&self, sink: FactSink) -> FactSink {
        match self.journal.clone() {
            None => sink,
            Some(journal) => {
                let interest = self.interest.clone();
                sink.noted_by(move |fact| match fact {
                    Fact::Channel(fact) if concerns(&interest, fact) => journal.note(fact),
                    _ => {}
                })
            }
        }
    }

    /// Whether an endpoint asks for what happens to Bayeux sessions.
    pub fn want_sessions(&self) -> bool {
        let (_, names) = wire::webhooks::SESSION_GROUP;
        let mut events = self.interest.iter().flat_map(|endpoint| &endpoint.events);
        events.any(|event| names.contains(event))
    }

    /// Writes down the facts that are there. With a directory it then waits for the requests under
    /// way, which the next start goes on from; without one it tries to deliver everything. Both
    /// for a limited time.
    pub async fn stop(self) {
        self.no_more.cancel();
        let end = Instant::now() + FAREWELL;
        if timeout_at(end, self.settling).await.is_err() {
            tracing::error!("the last facts could not be written to the webhooks' store");
        }
        self.workers.close();
        if self.journal.is_none() {
            let end = Instant::now() + FAREWELL;
            let delivered = timeout_at(end, async {
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
        self.stop.cancel();
        let end = Instant::now() + Endpoint::TIMEOUT;
        if timeout_at(end, self.workers.wait()).await.is_err() {
            tracing::warn!("a webhook request did not end in time");
        }
    }
}

/// The one task that turns facts into events.
struct Settling {
    settler: Settler,
    endpoints: Arc<Vec<Endpoint>>,
    store: Store,
    grown: watch::Sender<()>,
    no_more: CancellationToken,
    journal: Option<Arc<Journal>>,
    /// Of the next fact; up to where the store has them.
    serial: u64,
    committed: u64,
}

/// Whether anybody wants to know.
fn concerns(endpoints: &[Endpoint], fact: &ChannelFact) -> bool {
    let of_app = |endpoint: &&Endpoint| endpoint.app == fact.channel.app;
    (endpoints.iter().filter(of_app))
        .any(|endpoint| endpoint.concerns(&fact.channel.name, &fact.kind))
}

impl Settling {
    async fn run(mut self, mut facts: mpsc::Receiver<Fact>) {
        let mut batch = Vec::with_capacity(FACTS_AT_ONCE);
        let mut is_ending = false;
        while !is_ending {
            let far = Instant::now() + Duration::from_secs(3_600);
            let due = self.settler.next_due().unwrap_or(far);
            tokio::select! {
                // Those that are there come first.
                biased;
                count = facts.recv_many(&mut batch, FACTS_AT_ONCE) => is_ending = count == 0,
                () = sleep_until(due) => {}
                () = self.no_more.cancelled() => is_ending = true,
            }
            let now = Instant::now();
            let mut entries = Vec::new();
            for fact in batch.drain(..) {
                log_fact(&fact);
                match fact {
                    Fact::Channel(fact) if concerns(&self.endpoints, &fact) => {
                        self.serial += 1;
                        let settled = self.settler.fact(fact, now);
                        entries.extend(settled.map(|settled| self.entry(settled)));
                    }
                    Fact::Channel(_) => {}
                    Fact::Session(fact) => entries.extend(self.session_entry(&fact)),
                }
            }
            let mut gone = self.settler.gone(now);
            if is_ending && self.journal.is_none() {
                gone.extend(self.settler.all_gone());
            }
            entries.extend(gone.into_iter().map(|settled| self.entry(settled)));
            self.append(entries).await;
        }
        // The facts that still come belong to nobody.
        drop(facts);
    }

    /// What was stated before the process ended and is not in the store.
    async fn catch_up(&mut self, missed: Vec<ChannelFact>) {
        let now = Instant::now();
        let settled = (missed.into_iter())
            .filter(|fact| concerns(&self.endpoints, fact))
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
            told,
        } = settled;
        let is_wanted = self.is_wanted(&channel.app, kind.name(), channel.name.as_str());
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
        let mut of_app = self.endpoints.iter().filter(|of| of.app == *app);
        of_app.any(|endpoint| endpoint.wants(name, channel))
    }

    async fn append(&mut self, entries: Vec<Entry>) {
        // Those who only leave and return give nothing to write, and yet are over.
        let is_due = self.serial - self.committed >= UNCOMMITTED_MAX;
        if entries.is_empty() && !is_due {
            return;
        }
        let entries = Arc::new(entries);
        lasting(|| self.store.append(entries.clone(), now_ms(), self.serial)).await;
        self.committed = self.serial;
        if let Some(journal) = &self.journal {
            journal.committed(self.committed);
        }
        self.grown.send_replace(());
    }
}

async fn tidy(store: Store, bytes_max: usize, stop: CancellationToken) {
    let mut interval = interval(TIDY_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = pin!(stop.cancelled());
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = &mut stopped => return,
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

async fn log_facts(mut facts: mpsc::Receiver<Fact>) {
    while let Some(fact) = facts.recv().await {
        log_fact(&fact);
    }
}

/// Without what it carries.
fn log_fact(fact: &Fact) {
    let (app, name) = (fact.app(), fact.name());
    match fact {
        Fact::Channel(fact) => {
            let channel = &fact.channel.name;
            tracing::debug!(target: FACTS_LOG, %app, %channel, "{name}");
        }
        Fact::Session(fact) => {
            let session = fact.session.map(tracing::field::display);
            let channel = fact.kind.channel();
            tracing::debug!(target: FACTS_LOG, %app, session, channel, "{name}");
        }
    }
}

impl std::error::Error for StartError {}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => write!(f, "webhooks cannot be kept: {error}"),
            Self::Journal(error) => write!(f, "webhooks cannot be kept: {error}"),
            Self::Outbound(error) => write!(f, "webhooks cannot be sent: {error}"),
        }
    }
}
