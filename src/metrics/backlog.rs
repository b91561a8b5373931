use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What waits in queues of which each says now and then how it is.
pub struct Backlogs {
    queues: Mutex<Option<HashMap<u64, Waiting>>>,
    next: AtomicU64,
}

/// One of the queues, until it is dropped.
pub struct Backlog<'b> {
    all: &'b Backlogs,
    id: u64,
}

#[derive(Clone, Copy)]
struct Waiting {
    count: usize,
    /// Since 1970.
    oldest_ms: Option<u64>,
}

impl Backlogs {
    pub const fn new() -> Self {
        Self {
            queues: Mutex::new(None),
            next: AtomicU64::new(0),
        }
    }

    pub fn one(&self) -> Backlog<'_> {
        Backlog {
            all: self,
            id: self.next.fetch_add(1, Relaxed),
        }
    }

    /// How many wait in all, and since when the oldest, in ms since 1970.
    pub fn total(&self) -> (usize, Option<u64>) {
        let queues = self.queues();
        let waiting = queues.iter().flat_map(|queues| queues.values());
        let oldest = waiting.clone().filter_map(|waiting| waiting.oldest_ms);
        (waiting.map(|waiting| waiting.count).sum(), oldest.min())
    }

    fn queues(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Backlogs {
    fn default() -> Self {
        Self::new()
    }
}

impl Backlog<'_> {
    pub fn is(&self, count: usize, oldest_ms: Option<u64>) {
        let mut queues = self.all.queues();
        let queues = queues.get_or_insert_default();
        queues.insert(self.id, Waiting { count, oldest_ms });
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        if let Some(queues) = &mut *self.all.queues() {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_add_up_and_the_oldest_counts_until_it_has_gone() {
        let all = Backlogs::new();
        assert_eq!(all.total(), (0, None));
        let (one, other) = (all.one(), all.one());
        one.is(3, Some(20));
        other.is(4, Some(10));
        other.is(5, Some(11));
        assert_eq!(all.total(), (8, Some(11)));
        drop(other);
        assert_eq!(all.total(), (3, Some(20)));
        one.is(0, None);
        assert_eq!(all.total(), (0, None));
    }
}
