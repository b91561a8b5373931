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
//! [`targets`] has the endpoints of now, which a new configuration replaces; each keeps its
//! [worker](workers) as long as it stays as it is.

mod cluster;
mod deliver;
mod dispatch;
mod journal;
mod queue;
mod settings;
mod settle;
mod source;
mod store;
mod targets;
mod workers;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

pub use cluster::{Places, lines};
pub use deliver::ID_HEADER;
pub use settings::{Endpoint, Settings};
pub use store::{Archive, Attempt, Delivery, Listed, State, StoreError};
pub use targets::{Target, Targets};

use crate::apps::AppRegistry;
use crate::backend::{FACTS_LOG, FactSink};
use crate::model::Fact;
use crate::transport::outbound::OutboundError;
use cluster::Cluster;
use dispatch::{Dispatcher, End, Parts, Past};
use journal::Journal;
use settle::Settler;
use source::Queue;
use store::{Local, Store};

/// Webhooks of a running server.
pub struct Webhooks {
    form: Form,
    targets: Arc<Targets>,
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
    /// Reads `facts` from now on. `places` is there where several nodes are one.
    pub async fn start(
        settings: Settings,
        targets: Arc<Targets>,
        apps: Arc<AppRegistry>,
        facts: mpsc::Receiver<Fact>,
        places: Option<Arc<dyn Places>>,
    ) -> Result<Self, StartError> {
        let parts = Parts {
            settings: Arc::new(settings),
            targets: targets.clone(),
            apps,
        };
        if let Some(places) = places {
            return Ok(Self {
                form: Form::OfMany(Cluster::start(parts, places, facts)),
                targets,
                journal: None,
            });
        }
        let local = Local::open(&parts.settings).map_err(StartError::Store)?;
        let store: Arc<dyn Store> = Arc::new(local);
        let told = store.told().await.map_err(StartError::Store)?;
        let position = store.position().await.map_err(StartError::Store)?;
        let committed = position.first().and_then(|(_, text)| text.parse().ok());
        let (journal, missed, serial) = match &parts.settings.dir {
            Some(dir) => {
                let journal = Journal::open(dir, committed.unwrap_or_default());
                let (journal, missed, serial) = journal.map_err(StartError::Journal)?;
                (Some(Arc::new(journal)), missed, serial)
            }
            None => (None, Vec::new(), 0),
        };
        let past = Past {
            settler: Settler::knowing(told, Instant::now()),
            missed: Some(missed),
        };
        let queue = Queue {
            facts,
            journal: journal.clone(),
            serial,
        };
        let end = end(journal.as_deref());
        let dispatcher = Dispatcher::start(parts, store, past, Box::new(queue), end).await;
        Ok(Self {
            form: Form::Alone(dispatcher.map_err(StartError::Store)?),
            targets,
            journal,
        })
    }

    /// The sink with facts written down as they are stated, where there is a directory.
    pub fn note(&self, sink: FactSink) -> FactSink {
        match self.journal.clone() {
            None => sink,
            Some(journal) => {
                let targets = self.targets.clone();
                sink.noted_by(move |fact| match fact {
                    Fact::Channel(fact) => journal.note(fact, targets.concerns(fact)),
                    Fact::Session(_) => {}
                })
            }
        }
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

/// All that is done with facts where nobody can want them.
pub async fn log_facts(mut facts: mpsc::Receiver<Fact>) {
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
