//! What arrived: numbers in payloads, and what is wrong with their sequence.
//!
//! A payload begins with `raptor-bench LANE NUMBER DUE `, DUE in microseconds since the run's
//! epoch; the rest is filling.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use memchr::memmem::Finder;

static MARK: LazyLock<Finder> = LazyLock::new(|| Finder::new(b"raptor-bench "));
/// Gaps of one sequence that are remembered. What fills an older one counts as a duplicate.
const GAPS_MAX: usize = 1024;
/// Longer than any run may take.
const LATENCY_US_MAX: u64 = 2 * 3_600_000_000;

/// The beginning of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub lane: usize,
    pub number: u64,
    pub due_us: u64,
}

impl Stamp {
    pub fn text(self) -> String {
        let Self {
            lane,
            number,
            due_us,
        } = self;
        format!("raptor-bench {lane} {number} {due_us} ")
    }

    /// A payload of so many bytes, or as few as there have to be.
    pub fn payload(self, bytes: usize) -> String {
        let mut text = self.text();
        text.push_str(&"x".repeat(bytes.saturating_sub(text.len())));
        text
    }

    /// The first in `text` and where it ends.
    pub fn find(text: &[u8]) -> Option<(Self, usize)> {
        let mut at = MARK.find(text)? + MARK.needle().len();
        let mut number = || {
            let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit());
            let (mut value, mut count) = (0_u64, 0);
            for digit in digits {
                value = value
                    .checked_mul(10)?
                    .checked_add(u64::from(digit - b'0'))?;
                count += 1;
            }
            at += count + 1;
            (count > 0 && text.get(at - 1) == Some(&b' ')).then_some(value)
        };
        let stamp = Self {
            lane: usize::try_from(number()?).ok()?,
            number: number()?,
            due_us: number()?,
        };
        Some((stamp, at))
    }
}

/// The numbers of one lane in one channel, as one subscriber receives them.
#[derive(Clone, Default)]
pub struct Sequence {
    next: u64,
    /// Below `next` and not received, oldest first.
    missing: Vec<Range<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Later than all before it.
    InOrder,
    /// After one that was sent later.
    Late,
    Repeated,
}

impl Sequence {
    pub fn take(&mut self, number: u64) -> Arrival {
        if number >= self.next {
            if number > self.next {
                if self.missing.len() == GAPS_MAX {
                    self.missing.remove(0);
                }
                self.missing.push(self.next..number);
            }
            self.next = number + 1;
            return Arrival::InOrder;
        }
        let Some(nth) = self.missing.iter().position(|gap| gap.contains(&number)) else {
            return Arrival::Repeated;
        };
        let gap = self.missing.remove(nth);
        for rest in [number + 1..gap.end, gap.start..number] {
            if !rest.is_empty() {
                self.missing.insert(nth, rest);
            }
        }
        Arrival::Late
    }
}

/// What one subscriber has received.
#[derive(Default)]
pub struct Ear {
    /// By lane.
    sequences: Vec<Sequence>,
    /// Of the lane, how many different ones came.
    received: Vec<u64>,
    repeated: u64,
    late: u64,
    /// Of the order in which everything came, to compare with that of others.
    order: u64,
}

/// Lanes beyond this are not numbers of ours.
const LANES_MAX: usize = 100_000;

impl Ear {
    /// Whether it had not come before.
    fn take(&mut self, stamp: Stamp) -> bool {
        let Stamp { lane, number, .. } = stamp;
        if lane >= LANES_MAX {
            return false;
        }
        if lane >= self.sequences.len() {
            self.sequences.resize(lane + 1, Sequence::default());
            self.received.resize(lane + 1, 0);
        }
        match self.sequences[lane].take(number) {
            Arrival::Repeated => {
                self.repeated += 1;
                return false;
            }
            Arrival::Late => self.late += 1,
            Arrival::InOrder => {}
        }
        self.received[lane] += 1;
        // FNV-1a, by words.
        for word in [lane as u64, number] {
            self.order = (self.order ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
        true
    }
}

/// What went wrong, over all subscribers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Faults {
    pub lost: u64,
    pub duplicates: u64,
    /// Received after one that the same lane sent later.
    pub reordered: u64,
    /// Channels whose subscribers did not all see one order.
    pub channels_in_several_orders: u64,
}

/// What all subscribers of a run have received.
pub struct Tally {
    epoch: Instant,
    /// Different ones: what is repeated does not count.
    received: AtomicU64,
    /// Connections that ended while they should not.
    closed: AtomicU64,
    is_over: AtomicBool,
    latencies_us: Mutex<Histogram<u64>>,
    /// By channel.
    ears: Mutex<Vec<Vec<Arc<Mutex<Ear>>>>>,
}

impl Tally {
    pub fn new(channels: usize) -> Arc<Self> {
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Arc::new(Self {
            epoch: Instant::now(),
            received: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            latencies_us: Mutex::new(latencies_us.expect("the bounds are in order")),
            ears: Mutex::new((0..channels).map(|_| Vec::new()).collect()),
        })
    }

    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    pub fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    pub fn listen(&self, channel: usize) -> Arc<Mutex<Ear>> {
        let ear = Arc::new(Mutex::new(Ear::default()));
        lock(&self.ears)[channel].push(ear.clone());
        ear
    }

    /// Counts the stamps in `text`; `true` if there was one.
    pub fn count(&self, ear: &Mutex<Ear>, text: &[u8], now_us: u64) -> bool {
        let (mut at, mut count, mut any) = (0, 0, false);
        let mut ear = lock(ear);
        while let Some((stamp, end)) = Stamp::find(&text[at..]) {
            any = true;
            if ear.take(stamp) {
                count += 1;
                self.took(now_us.saturating_sub(stamp.due_us));
            }
            at += end;
        }
        self.received.fetch_add(count, Ordering::Relaxed);
        any
    }

    /// A latency.
    pub fn took(&self, us: u64) {
        lock(&self.latencies_us).saturating_record(us);
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    pub fn connection_ended(&self) {
        if !self.is_over.load(Ordering::Relaxed) {
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What happens to connections from now on does not count.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn latencies_us(&self) -> MutexGuard<'_, Histogram<u64>> {
        lock(&self.latencies_us)
    }

    pub fn subscribers(&self) -> u64 {
        lock(&self.ears).iter().map(|ears| ears.len() as u64).sum()
    }

    /// `sent` says how many numbers a lane used in a channel: lanes, of these channels.
    pub fn faults(&self, sent: &[Vec<u64>]) -> Faults {
        let mut faults = Faults::default();
        for (channel, ears) in lock(&self.ears).iter().enumerate() {
            let mut orders = Vec::new();
            for ear in ears {
                let ear = lock(ear);
                faults.duplicates += ear.repeated;
                faults.reordered += ear.late;
                for (lane, sent) in sent.iter().enumerate() {
                    let received = ear.received.get(lane).copied().unwrap_or(0);
                    let sent = sent.get(channel).copied().unwrap_or(0);
                    faults.lost += sent.saturating_sub(received);
                }
                orders.push(ear.order);
            }
            orders.sort_unstable();
            orders.dedup();
            faults.channels_in_several_orders += u64::from(orders.len() > 1);
        }
        faults
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(lane: usize, number: u64) -> Stamp {
        Stamp {
            lane,
            number,
            due_us: 7,
        }
    }

    /// What one subscriber makes of these numbers of one lane, of which ten were sent.
    fn heard(numbers: &[u64]) -> Faults {
        let tally = Tally::new(1);
        let ear = tally.listen(0);
        for number in numbers {
            assert!(tally.count(&ear, stamp(0, *number).payload(100).as_bytes(), 9));
        }
        tally.faults(&[vec![10]])
    }

    #[test]
    fn a_payload_is_found_wherever_it_stands() {
        let payload = stamp(3, 17).payload(256);
        assert_eq!(payload.len(), 256);
        let frame = format!(r#"{{"data":"{payload}"}}"#);
        let (found, end) = Stamp::find(frame.as_bytes()).unwrap();
        assert_eq!(found, stamp(3, 17));
        assert_eq!(&frame[end..end + 1], "x");
        for text in ["raptor-bench ", "raptor-bench 1 2", "raptor-bench 1  2 3 "] {
            assert_eq!(Stamp::find(text.as_bytes()), None, "{text}");
        }
        let tally = Tally::new(1);
        let ear = tally.listen(0);
        let several = stamp(0, 0).payload(80) + &stamp(0, 1).payload(80);
        assert!(tally.count(&ear, several.as_bytes(), 9));
        assert!(!tally.count(&ear, b"nothing", 9));
        assert_eq!((tally.received(), tally.latencies_us().max()), (2, 2));
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_counted() {
        let faults = |lost, duplicates, reordered| Faults {
            lost,
            duplicates,
            reordered,
            channels_in_several_orders: 0,
        };
        let cases: [(&[u64], Faults); 8] = [
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], faults(0, 0, 0)),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8], faults(1, 0, 0)),
            (&[2, 3, 4, 5, 6, 7, 8, 9], faults(2, 0, 0)),
            (&[0, 1, 2, 6, 7, 8, 9], faults(3, 0, 0)),
            (&[0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0], faults(0, 2, 0)),
            (&[0, 1, 3, 2, 4, 5, 6, 7, 8, 9], faults(0, 0, 1)),
            (&[0, 1, 9, 5, 5, 8], faults(5, 1, 2)),
            (&[], faults(10, 0, 0)),
        ];
        for (numbers, expected) in cases {
            assert_eq!(heard(numbers), expected, "{numbers:?}");
        }
    }

    #[test]
    fn two_lanes_may_come_in_any_order_but_to_all_in_the_same() {
        for (second, in_several_orders) in [([(0, 0), (1, 0)], 0), ([(1, 0), (0, 0)], 1)] {
            let tally = Tally::new(1);
            for order in [[(0, 0), (1, 0)], second] {
                let ear = tally.listen(0);
                for (lane, number) in order {
                    tally.count(&ear, stamp(lane, number).text().as_bytes(), 9);
                }
            }
            let expected = Faults {
                channels_in_several_orders: in_several_orders,
                ..Faults::default()
            };
            assert_eq!(tally.faults(&[vec![1], vec![1]]), expected);
        }
    }
}
