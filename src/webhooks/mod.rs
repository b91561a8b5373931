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

mod cluster;
mod deliver;
mod dispatch;
mod journal;
mod queue;
mod settings;
mod settle;
mod source;
mod store;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

pub use cluster::{Places, lines};
pub use deliver::ID_HEADER;
pub use settings::{Endpoint, Settings};
pub use store::{Archive, Attempt, Delivery, Listed, State, StoreError};

use crate::apps::AppRegistry;
use crate::backend::FactSink;
use crate::model::Fact;
use crate::transport::outbound::OutboundError;
use crate::wire;
use cluster::Cluster;
use dispatch::{Dispatcher, End, Parts};
use journal::Journal;
use settle::Settler;
use source::{Queue, concerns};
use store::{Local, Store};

/// Under which the log has facts.
pub const FACTS_LOG: &str = "raptor::facts";

/// Webhooks of a running server.
pub struct Webhooks {
    form: Form,
    endpoints: Arc<Vec<Endpoint>>,
    /// There with a directory.
    journal: Option<Arc<Journal>>,
}

enum Form {
    Alone(Dispatcher),
    OfMany(Cluster),
}

/// Why webhooks cannot be sent.
#[derive(Debug)]
pub enum StartError {
    Store(StoreError),
    Journal(std::io::Error),
    Outbound(OutboundError),
}

impl Webhooks {
    /// Reads `facts` from now on. With no endpoint they are logged and nothing else. `places` is
    /// there where several nodes are one.
    pub async fn start(
        settings: Settings,
        apps: Arc<AppRegistry>,
        facts: mpsc::Receiver<Fact>,
        places: Option<Arc<dyn Places>>,
    ) -> Result<Option<Self>, StartError> {
        if settings.endpoints.is_empty() {
            tokio::spawn(log_facts(facts));
            return Ok(None);
        }
        if let Some(places) = places {
            let parts = Parts::new(settings, apps)?;
            let endpoints = parts.endpoints.clone();
            return Ok(Some(Self {
                form: Form::OfMany(Cluster::start(parts, places, facts)),
                endpoints,
                journal: None,
            }));
        }
        let local = Local::open(&settings).map_err(StartError::Store)?;
        let store: Arc<dyn Store> = Arc::new(local);
        let dir = settings.dir.clone();
        let parts = Parts::new(settings, apps)?;
        let ids = store.activate(parts.names()).await;
        let ids = ids.map_err(StartError::Store)?;
        let told = store.told().await.map_err(StartError::Store)?;
        let position = store.position().await.map_err(StartError::Store)?;
        let committed = position.first().and_then(|(_, text)| text.parse().ok());
        let (journal, missed, serial) = match &dir {
            Some(dir) => {
                let journal = Journal::open(dir, committed.unwrap_or_default());
                let (journal, missed, serial) = journal.map_err(StartError::Journal)?;
                (Some(Arc::new(journal)), missed, serial)
            }
            None => (None, Vec::new(), 0),
        };
        let endpoints = parts.endpoints.clone();
        let queue = Queue {
            facts,
            endpoints: endpoints.clone(),
            journal: journal.clone(),
            serial,
        };
        let dispatcher = Dispatcher::start(
            parts,
            store,
            ids,
            Settler::knowing(told, Instant::now()),
            Box::new(queue),
            Some(missed),
            end(journal.as_deref()),
        );
        Ok(Some(Self {
            form: Form::Alone(dispatcher.await),
            endpoints,
            journal,
        }))
    }

    /// The sink with facts written down as they are stated, where there is a directory.
    pub fn note(&self, sink: FactSink) -> FactSink {
        match self.journal.clone() {
            None => sink,
            Some(journal) => {
                let endpoints = self.endpoints.clone();
                sink.noted_by(move |fact| match fact {
                    Fact::Channel(fact) if concerns(&endpoints, fact) => journal.note(fact),
                    _ => {}
                })
            }
        }
    }

    /// Whether an endpoint asks for what happens to Bayeux sessions.
    pub fn want_sessions(&self) -> bool {
        let (_, names) = wire::webhooks::SESSION_GROUP;
        let mut events = self.endpoints.iter().flat_map(|endpoint| &endpoint.events);
        events.any(|event| names.contains(event))
    }

    /// To be called when everybody has left.
    pub async fn stop(self) {
        match self.form {
            Form::Alone(dispatcher) => dispatcher.stop(end(self.journal.as_deref())).await,
            Form::OfMany(cluster) => cluster.stop().await,
        }
    }
}

fn end(journal: Option<&Journal>) -> End {
    match journal {
        Some(_) => End::IsKept,
        None => End::IsLost,
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
