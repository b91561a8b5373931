//! The way of facts to whoever tells the application.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use crate::model::{ChannelId, Fact, FactKind};

/// One bounded queue; what does not fit is counted and dropped, so that a slow reader delays no
/// client.
pub fn fact_queue(facts_max: usize) -> (FactSink, mpsc::Receiver<Fact>) {
    let (queue, facts) = mpsc::channel(facts_max);
    let dropped = Arc::default();
    let sink = FactSink {
        queue,
        dropped,
        note: None,
    };
    (sink, facts)
}

#[derive(Clone)]
pub struct FactSink {
    queue: mpsc::Sender<Fact>,
    dropped: Arc<AtomicU64>,
    note: Option<Note>,
}

/// Does not wait for anything.
type Note = Arc<Mutex<dyn FnMut(&Fact) + Send>>;

impl FactSink {
    /// `note` sees each fact before anybody else does, in the order of the queue.
    pub fn noted_by(self, note: impl FnMut(&Fact) + Send + 'static) -> Self {
        let note: Note = Arc::new(Mutex::new(note));
        Self {
            note: Some(note),
            ..self
        }
    }

    /// States the fact, unless the channel is one that applications are not told about.
    pub fn state(&self, channel: &ChannelId, kind: FactKind) {
        if !channel.name.is_reported() {
            return;
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let fact = Fact {
            channel: channel.clone(),
            kind,
            at_ms: since_1970.map_or(0, |d| d.as_millis() as u64),
        };
        let sent = match &self.note {
            None => self.queue.try_send(fact).is_ok(),
            Some(note) => {
                let mut note = note.lock().unwrap_or_else(PoisonError::into_inner);
                let place = self.queue.try_reserve();
                place.is_ok_and(|place| {
                    note(&fact);
                    place.send(fact);
                    true
                })
            }
        };
        if !sent {
            let dropped = 1 + self.dropped.fetch_add(1, Ordering::Relaxed);
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "facts do not fit into their queue");
            }
        }
    }
}
