//! Facts of publishes that Redis has not confirmed: under way, or waiting until it is back.
//!
//! A fact goes into its partition's stream in the same step as its publish. If the link breaks,
//! the step was done or not: the partition's log tells, once the node has begun a session in which
//! late commands of the old one are refused. What was not done is stated then, before anything new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// In all partitions together.
const UNSTATED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// By the serial number of the event, as the stream has them.
pub struct Unstated {
    lines: BTreeMap<u64, Arc<[u8]>>,
    /// Of all partitions.
    bytes: Arc<AtomicUsize>,
}

impl Unstated {
    pub fn new(bytes: Arc<AtomicUsize>) -> Self {
        Self {
            lines: BTreeMap::new(),
            bytes,
        }
    }

    /// Whether there was room for it.
    pub fn insert(&mut self, serial: u64, line: Arc<[u8]>) -> bool {
        let bytes = line.len();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) >= UNSTATED_BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.lines.insert(serial, line);
        true
    }

    pub fn contains(&self, serial: u64) -> bool {
        self.lines.contains_key(&serial)
    }

    /// It is in the stream.
    pub fn remove(&mut self, serial: u64) {
        if let Some(line) = self.lines.remove(&serial) {
            self.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        }
    }

    /// The first of them, in order.
    pub fn first(&self, lines_max: usize) -> Vec<(u64, Arc<[u8]>)> {
        let lines = self.lines.iter().take(lines_max);
        lines
            .map(|(serial, line)| (*serial, line.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_wait_in_order_and_up_to_a_number_of_bytes() {
        let bytes = Arc::default();
        let [mut one, mut two] = [0, 1].map(|_| Unstated::new(Arc::clone(&bytes)));
        let large: Arc<[u8]> = vec![b'x'; UNSTATED_BYTES_MAX - 1].into();
        assert!(one.insert(9, large));
        assert!(two.insert(3, Arc::from(*b"c")));
        assert!(!two.insert(4, Arc::from(*b"d")));
        one.remove(9);
        assert!(two.insert(2, Arc::from(*b"b")) && two.contains(2));
        let found = two.first(9);
        assert_eq!(found.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(two.first(1).len(), 1);
    }
}
