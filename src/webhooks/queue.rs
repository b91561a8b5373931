//! What waits for one endpoint, by channel. The events of a channel are delivered one delivery
//! after the other, so that a repeated one keeps their order; other channels go on meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::store::Event;

/// The part of the log that is held in memory for one endpoint.
const EVENTS_MAX: usize = 10_000;
const BYTES_MAX: usize = 8 << 20;
/// One body, unless a single event is larger.
const BATCH_BYTES_MAX: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Queue {
    waiting: HashMap<Arc<str>, VecDeque<Event>>,
    /// Channels with events and without a delivery, in the order in which their turn comes.
    ready: VecDeque<Arc<str>>,
    /// Channels of deliveries that are not over.
    busy: HashSet<Arc<str>>,
    events: usize,
    bytes: usize,
}

impl Queue {
    pub fn has_room(&self) -> bool {
        self.events < EVENTS_MAX && self.bytes < BYTES_MAX
    }

    /// To be called in the order of the log.
    pub fn push(&mut self, event: Event) {
        self.events += 1;
        self.bytes += event.json.len();
        let channel = event.channel.clone();
        let waiting = self.waiting.entry(channel.clone()).or_default();
        waiting.push_back(event);
        if waiting.len() == 1 && !self.busy.contains(&channel) {
            self.ready.push_back(channel);
        }
    }

    /// The channel has a delivery of its own from before.
    pub fn occupy(&mut self, channel: &Arc<str>) {
        self.busy.insert(channel.clone());
    }

    /// Takes the events of the next delivery, in the order of the log. Their channels are busy
    /// until [`Queue::free`].
    pub fn compose(&mut self, events_max: usize) -> Vec<Event> {
        let mut batch: Vec<Event> = Vec::new();
        let mut bytes = 0;
        while batch.len() < events_max
            && let Some(channel) = self.ready.front().cloned()
        {
            let waiting = self.waiting.get_mut(&channel);
            let waiting = waiting.expect("a ready channel has events");
            let mut is_full = false;
            while let Some(event) = waiting.front() {
                bytes += event.json.len() + 1;
                is_full = batch.len() == events_max || !batch.is_empty() && bytes > BATCH_BYTES_MAX;
                if is_full {
                    break;
                }
                batch.extend(waiting.pop_front());
            }
            let is_taken = batch.last().is_some_and(|event| event.channel == channel);
            if is_taken {
                self.ready.pop_front();
                if waiting.is_empty() {
                    self.waiting.remove(&channel);
                }
                self.busy.insert(channel);
            }
            if is_full {
                break;
            }
        }
        self.forget(&batch);
        batch.sort_unstable_by_key(|event| event.seq);
        batch
    }

    /// The channel's delivery is over.
    pub fn free(&mut self, channel: &Arc<str>) {
        if self.busy.remove(channel) && self.waiting.contains_key(channel) {
            self.ready.push_back(channel.clone());
        }
    }

    /// Takes out what happened before `at_ms`, in the order of the log.
    pub fn expired(&mut self, at_ms: u64) -> Vec<Event> {
        let mut expired = Vec::new();
        self.waiting.retain(|_, waiting| {
            while waiting.front().is_some_and(|event| event.at_ms < at_ms) {
                expired.extend(waiting.pop_front());
            }
            !waiting.is_empty()
        });
        let waiting = &self.waiting;
        (self.ready).retain(|channel| waiting.contains_key(channel));
        self.forget(&expired);
        expired.sort_unstable_by_key(|event| event.seq);
        expired
    }

    fn forget(&mut self, taken: &[Event]) {
        self.events -= taken.len();
        self.bytes -= taken.iter().map(|event| event.json.len()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, channel: &str) -> Event {
        Event {
            seq,
            channel: channel.into(),
            at_ms: seq,
            name: "client_event".to_owned(),
            json: "{}".into(),
        }
    }

    fn queue(channels: &[&str]) -> Queue {
        let mut queue = Queue::default();
        for (nth, channel) in channels.iter().enumerate() {
            queue.push(event(nth as u64, channel));
        }
        queue
    }

    fn seqs(events: Vec<Event>) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn a_batch_is_in_the_order_of_the_log() {
        let mut queue = queue(&["a", "b", "a", "c", "b"]);
        assert_eq!(seqs(queue.compose(10)), [0, 1, 2, 3, 4]);
        assert_eq!((queue.events, queue.bytes), (0, 0));
        assert!(queue.compose(10).is_empty());
    }

    #[test]
    fn a_channel_waits_for_its_delivery_and_others_do_not() {
        let mut queue = queue(&["a", "b", "a", "c", "b"]);
        assert_eq!(seqs(queue.compose(1)), [0]);
        assert_eq!(seqs(queue.compose(1)), [1]);
        assert_eq!(seqs(queue.compose(1)), [3]);
        assert!(queue.compose(1).is_empty());
        queue.push(event(5, "a"));
        assert!(queue.compose(1).is_empty());
        queue.free(&"b".into());
        assert_eq!(seqs(queue.compose(10)), [4]);
        queue.free(&"a".into());
        queue.free(&"b".into());
        assert_eq!(seqs(queue.compose(10)), [2, 5]);
    }

    #[test]
    fn a_delivery_from_before_holds_its_channel() {
        let mut queue = Queue::default();
        queue.occupy(&"a".into());
        queue.push(event(1, "a"));
        queue.push(event(2, "b"));
        assert_eq!(seqs(queue.compose(10)), [2]);
        queue.free(&"a".into());
        assert_eq!(seqs(queue.compose(10)), [1]);
    }

    #[test]
    fn a_batch_is_bounded_in_number_and_bytes() {
        let mut queue = queue(&["a"; 25]);
        for expected in [10, 10, 5] {
            assert_eq!(queue.compose(10).len(), expected);
            queue.free(&"a".into());
        }
        for seq in 0..4 {
            queue.push(Event {
                json: "x".repeat(BATCH_BYTES_MAX / 2 - 2).into(),
                ..event(seq, if seq < 3 { "a" } else { "b" })
            });
        }
        assert_eq!(seqs(queue.compose(10)), [0, 1]);
        assert_eq!(seqs(queue.compose(10)), [3]);
        queue.free(&"a".into());
        assert_eq!(seqs(queue.compose(10)), [2]);
        queue.push(Event {
            json: "x".repeat(BATCH_BYTES_MAX + 1).into(),
            ..event(9, "big")
        });
        assert_eq!(seqs(queue.compose(10)), [9]);
    }

    #[test]
    fn a_batch_that_is_full_leaves_the_next_channel_ready() {
        let mut queue = queue(&["a", "a", "b"]);
        assert_eq!(seqs(queue.compose(2)), [0, 1]);
        assert_eq!(seqs(queue.compose(2)), [2]);
    }

    #[test]
    fn what_is_too_old_leaves_also_behind_a_busy_channel() {
        let mut queue = queue(&["a", "b", "a", "b"]);
        assert_eq!(seqs(queue.compose(1)), [0]);
        assert_eq!(seqs(queue.expired(3)), [1, 2]);
        queue.free(&"a".into());
        assert_eq!(seqs(queue.compose(10)), [3]);
        assert_eq!((queue.events, queue.bytes), (0, 0));
    }

    #[test]
    fn there_is_a_limit() {
        let mut queue = queue(&vec!["a"; EVENTS_MAX - 1]);
        assert!(queue.has_room());
        queue.push(event(EVENTS_MAX as u64, "a"));
        assert!(!queue.has_room());
        queue.compose(1);
        assert!(queue.has_room());
        queue.push(Event {
            json: "x".repeat(BYTES_MAX).into(),
            ..event(1, "b")
        });
        assert!(!queue.has_room());
    }
}
