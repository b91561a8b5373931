//! In which order a session's messages are taken. A browser spreads requests over several
//! connections, so that they may overtake each other, and it or a proxy may send one twice. The
//! number that pusher-js puts into each URL tells ([`super::numbers`]): messages wait for all
//! lower numbers but those that are other sessions'.

use std::collections::BTreeMap;
use tokio::time::Instant;

use super::numbers::{Numbers, Stamp};

pub struct Inbox {
    numbers: Numbers,
    /// By the number of their request; of the same number, in the order of arrival.
    waiting: BTreeMap<(u64, u64), Vec<String>>,
    arrivals: u64,
    newest: u64,
}

/// What is next to be taken.
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    Messages(Vec<String>),
    /// Something lower may still come until then, here or in another session.
    Wait(Instant),
    Nothing,
}

impl Inbox {
    pub fn new(numbers: Numbers) -> Self {
        Self {
            numbers,
            waiting: BTreeMap::new(),
            arrivals: 0,
            newest: 0,
        }
    }

    /// A request is there. Whether it was there before.
    pub fn has_seen(&mut self, stamp: Stamp, now: Instant) -> bool {
        self.newest = self.newest.max(stamp.number);
        !self.numbers.note(stamp, now)
    }

    /// Messages of a request that has a number and was not seen before, or has none.
    pub fn put(&mut self, number: Option<u64>, messages: Vec<String>) {
        self.arrivals += 1;
        let number = number.unwrap_or(self.newest);
        self.waiting.insert((number, self.arrivals), messages);
    }

    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// How many requests wait to be taken.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn take(&mut self, now: Instant) -> Next {
        let Some(first) = self.waiting.first_entry() else {
            return Next::Nothing;
        };
        match self.numbers.missing_below(first.key().0, now) {
            Some(until) => Next::Wait(until),
            None => Next::Messages(first.remove()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pusher::numbers::Browsers;
    use std::net::IpAddr;
    use std::time::Duration;
    use warp::http::HeaderMap;

    fn inbox(browsers: &Browsers, id: &str) -> Inbox {
        Inbox::new(browsers.numbers(IpAddr::from([127, 0, 0, 1]), &HeaderMap::new(), id))
    }

    fn see(inbox: &mut Inbox, number: u64) -> bool {
        let ms = number;
        inbox.has_seen(Stamp { number, ms }, Instant::now())
    }

    fn arrive(inbox: &mut Inbox, number: u64) {
        if !see(inbox, number) {
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
        let mut inbox = inbox(&Browsers::default(), "s");
        assert!(!see(&mut inbox, 1));
        for number in [4, 3, 4] {
            arrive(&mut inbox, number);
        }
        tokio::time::advance(Duration::from_millis(1_900)).await;
        assert!(take_all(&mut inbox).is_empty());
        arrive(&mut inbox, 2);
        assert_eq!(take_all(&mut inbox), [2, 3, 4]);
        for number in [2, 3, 4, 5] {
            arrive(&mut inbox, number);
        }
        assert_eq!(take_all(&mut inbox), [5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_requests_in_any_order_are_taken_in_theirs() {
        let mut inbox = inbox(&Browsers::default(), "s");
        see(&mut inbox, 1);
        let mut taken = Vec::new();
        for nth in 0..100 {
            arrive(&mut inbox, 2 + (nth * 37) % 100);
            taken.extend(take_all(&mut inbox));
        }
        assert_eq!(taken, (2..=101).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_of_another_session_of_the_page_is_not_waited_for() {
        let browsers = Browsers::default();
        let mut one = inbox(&browsers, "one");
        let mut other = inbox(&browsers, "other");
        arrive(&mut one, 1);
        see(&mut other, 2);
        arrive(&mut one, 3);
        assert_eq!(take_all(&mut one), [1, 3]);
        // It may also be the other's and still on its way.
        arrive(&mut one, 5);
        assert!(take_all(&mut one).is_empty());
        arrive(&mut other, 4);
        assert_eq!(take_all(&mut one), [5]);
        assert_eq!(take_all(&mut other), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_never_comes_holds_up_once_and_a_late_one_is_taken() {
        let mut inbox = inbox(&Browsers::default(), "s");
        for number in [1, 3] {
            arrive(&mut inbox, number);
        }
        assert_eq!(take_all(&mut inbox), [1]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(take_all(&mut inbox), [3]);
        for number in [4, 6] {
            arrive(&mut inbox, number);
        }
        assert_eq!(take_all(&mut inbox), [4]);
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(take_all(&mut inbox), [6]);
        arrive(&mut inbox, 2);
        assert_eq!(take_all(&mut inbox), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_without_numbers_are_taken_as_they_come() {
        let mut inbox = inbox(&Browsers::default(), "s");
        for text in ["1", "2", "3"] {
            inbox.put(None, vec![text.to_owned()]);
        }
        assert_eq!(take_all(&mut inbox), [1, 2, 3]);
    }
}
