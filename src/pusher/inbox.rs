//! In which order a session's messages are taken. A browser spreads requests over several
//! connections, so that they may overtake each other, and it or a proxy may send one twice. The
//! number that pusher-js puts into each URL tells (`n`, `pusher.md` 7.2): it counts the requests
//! of a page, those of other sessions and those that bring nothing included.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long messages wait for a request with a lower number, which may be somebody else's.
const MISSING_WAIT: Duration = Duration::from_millis(25);
/// How long they wait for a request that a preflight has announced.
const ANNOUNCED_WAIT: Duration = Duration::from_secs(1);
/// So many numbers that did not come are remembered.
const MISSING_MAX: usize = 64;

#[derive(Default)]
pub struct Inbox {
    /// One more than the highest number that was seen.
    next: Option<u64>,
    /// Lower numbers that were not seen, and until when they are waited for.
    missing: BTreeMap<u64, Instant>,
    /// By the number of their request; of the same number, in the order of arrival.
    waiting: BTreeMap<(u64, u64), Vec<String>>,
    arrivals: u64,
}

/// What is next to be taken.
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    Messages(Vec<String>),
    /// Something lower may still come until then.
    Wait(Instant),
    Nothing,
}

impl Inbox {
    /// A request is there. Whether it was there before.
    pub fn has_seen(&mut self, number: u64, now: Instant) -> bool {
        if self.next.is_some_and(|next| number < next) {
            return self.missing.remove(&number).is_none();
        }
        self.advance(number, now);
        false
    }

    /// A request is about to come.
    pub fn announce(&mut self, number: u64, now: Instant) {
        let until = now + ANNOUNCED_WAIT;
        if self.next.is_some_and(|next| number < next) {
            if let Some(waits_until) = self.missing.get_mut(&number) {
                *waits_until = until;
            }
            return;
        }
        self.advance(number, now);
        self.missing.insert(number, until);
    }

    /// Messages of a request that has a number and was not seen before, or has none.
    pub fn put(&mut self, number: Option<u64>, messages: Vec<String>) {
        let number = number.or(self.next).unwrap_or(0);
        self.arrivals += 1;
        self.waiting.insert((number, self.arrivals), messages);
    }

    /// How many requests wait to be taken.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn take(&mut self, now: Instant) -> Next {
        let Some((&(number, _), _)) = self.waiting.first_key_value() else {
            return Next::Nothing;
        };
        let waits = self.missing.range(..number).map(|(_, until)| *until);
        match waits.max().filter(|until| *until > now) {
            Some(until) => Next::Wait(until),
            None => match self.waiting.pop_first() {
                Some((_, messages)) => Next::Messages(messages),
                None => Next::Nothing,
            },
        }
    }

    fn advance(&mut self, number: u64, now: Instant) {
        let earliest = number.saturating_sub(MISSING_MAX as u64);
        let first = self.next.map_or(number, |next| next.max(earliest));
        let until = now + MISSING_WAIT;
        (self.missing).extend((first..number).map(|missing| (missing, until)));
        while self.missing.len() > MISSING_MAX {
            self.missing.pop_first();
        }
        self.next = Some(number.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(inbox: &mut Inbox, number: u64) {
        if !inbox.has_seen(number, Instant::now()) {
            inbox.put(Some(number), vec![number.to_string()]);
        }
    }

    fn take_all(inbox: &mut Inbox) -> Vec<u64> {
        let mut taken = Vec::new();
        while let Next::Messages(messages) = inbox.take(Instant::now()) {
            taken.extend(messages.iter().map(|m| m.parse::<u64>().unwrap()));
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_overtake_each_other_are_taken_in_their_order_and_once() {
        let mut inbox = Inbox::default();
        assert!(!inbox.has_seen(10, Instant::now()));
        for number in [13, 12, 13] {
            arrive(&mut inbox, number);
        }
        assert!(take_all(&mut inbox).is_empty());
        arrive(&mut inbox, 11);
        assert_eq!(take_all(&mut inbox), [11, 12, 13]);
        for number in [11, 12, 13, 14] {
            arrive(&mut inbox, number);
        }
        assert_eq!(take_all(&mut inbox), [14]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_of_somebody_else_is_waited_for_once_and_a_late_one_is_taken() {
        let mut inbox = Inbox::default();
        arrive(&mut inbox, 1);
        arrive(&mut inbox, 3);
        assert_eq!(take_all(&mut inbox), [1]);
        tokio::time::advance(MISSING_WAIT).await;
        assert_eq!(take_all(&mut inbox), [3]);
        arrive(&mut inbox, 4);
        assert_eq!(take_all(&mut inbox), [4]);
        arrive(&mut inbox, 2);
        assert_eq!(take_all(&mut inbox), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_preflight_announced_is_waited_for_longer() {
        let mut inbox = Inbox::default();
        arrive(&mut inbox, 1);
        inbox.announce(2, Instant::now());
        arrive(&mut inbox, 3);
        tokio::time::advance(MISSING_WAIT * 4).await;
        assert_eq!(take_all(&mut inbox), [1]);
        arrive(&mut inbox, 2);
        assert_eq!(take_all(&mut inbox), [2, 3]);
        inbox.announce(5, Instant::now());
        arrive(&mut inbox, 6);
        tokio::time::advance(ANNOUNCED_WAIT).await;
        assert_eq!(take_all(&mut inbox), [6]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_without_numbers_are_taken_as_they_come() {
        let mut inbox = Inbox::default();
        for text in ["1", "2", "3"] {
            inbox.put(None, vec![text.to_owned()]);
        }
        assert_eq!(take_all(&mut inbox), [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_a_limit() {
        let mut inbox = Inbox::default();
        for number in [1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            arrive(&mut inbox, number);
            assert!(inbox.missing.len() <= MISSING_MAX);
        }
    }
}
