//! Where facts come from: this node's queue, or the streams of a cluster.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::journal::Journal;
use super::store::Position;
use crate::backend::Done;
use crate::model::Fact;

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
    pub journal: Option<Arc<Journal>>,
    /// Of the next fact about a channel.
    pub serial: u64,
}

impl Source for Queue {
    fn next<'a>(&'a mut self, facts: &'a mut Vec<Fact>) -> Done<'a, bool> {
        Box::pin(async move {
            let first = facts.len();
            let count = self.facts.recv_many(facts, FACTS_AT_ONCE).await;
            let new = facts[first..].iter();
            let numbered = new.filter(|fact| matches!(fact, Fact::Channel(_)));
            self.serial += numbered.count() as u64;
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
