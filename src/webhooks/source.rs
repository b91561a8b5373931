//! Where facts come from: this node's queue, or the streams of a cluster.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::journal::Journal;
use super::settings::Endpoint;
use super::store::Position;
use crate::backend::Done;
use crate::model::{ChannelFact, Fact};

/// Facts that become events together.
pub(super) const FACTS_AT_ONCE: usize = 1_000;

pub(super) trait Source: Send {
    /// Waits for facts and adds them to `facts`. `false` says that no more will come. May be
    /// given up: nothing that was not returned is passed over.
    fn next<'a>(&'a mut self, facts: &'a mut Vec<Fact>) -> Done<'a, bool>;

    /// Behind the last fact that was returned.
    fn position(&self) -> Position;

    /// How many facts were returned in all.
    fn count(&self) -> u64;

    /// The store has every fact up to the position.
    fn committed(&mut self, position: &Position) -> Done<'_, ()>;
}

/// Facts of this node, numbered as in its journal if there is one.
pub(super) struct Queue {
    pub facts: mpsc::Receiver<Fact>,
    pub endpoints: Arc<Vec<Endpoint>>,
    pub journal: Option<Arc<Journal>>,
    /// Of the next fact that concerns anybody.
    pub serial: u64,
}

/// Whether anybody wants to know.
pub(super) fn concerns(endpoints: &[Endpoint], fact: &ChannelFact) -> bool {
    let of_app = |endpoint: &&Endpoint| endpoint.app == fact.channel.app;
    (endpoints.iter().filter(of_app))
        .any(|endpoint| endpoint.concerns(&fact.channel.name, &fact.kind))
}

impl Source for Queue {
    fn next<'a>(&'a mut self, facts: &'a mut Vec<Fact>) -> Done<'a, bool> {
        Box::pin(async move {
            let first = facts.len();
            let count = self.facts.recv_many(facts, FACTS_AT_ONCE).await;
            let noted = facts[first..].iter().filter(|fact| match fact {
                Fact::Channel(fact) => concerns(&self.endpoints, fact),
                Fact::Session(_) => false,
            });
            self.serial += noted.count() as u64;
            count > 0
        })
    }

    fn position(&self) -> Position {
        vec![(0, self.serial.to_string())]
    }

    fn count(&self) -> u64 {
        self.serial
    }

    fn committed(&mut self, _: &Position) -> Done<'_, ()> {
        if let Some(journal) = &self.journal {
            journal.committed(self.serial);
        }
        Box::pin(std::future::ready(()))
    }
}
