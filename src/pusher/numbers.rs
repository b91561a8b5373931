//! Which requests of a page belong to which of its sessions. pusher-js numbers the requests of a
//! page (`n` in their URLs, `pusher.md` 7.2), to whichever session they belong and whatever they
//! bring. A session that misses a number has to know whether it is another session's, or on its
//! way.
//!
//! Nobody says which sessions are of one page. Those of one address, browser and origin may be;
//! but a page gives no number twice, and the time in its URLs (`t`) goes forward.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use warp::http::HeaderMap;
use warp::http::header::{ORIGIN, USER_AGENT};

/// How long a number is waited for: longer than a browser needs to open a connection, a lost packet
/// included. Then its request has failed, and pusher-js does not repeat it; or it went elsewhere.
const WAIT: Duration = Duration::from_secs(2);
/// The same after a number of this browser did not come: others may go to another server, too.
const SHORT_WAIT: Duration = Duration::from_millis(200);
/// How long that is remembered.
const SHORT_FOR: Duration = Duration::from_secs(60);
/// A session remembers so many runs of numbers without a gap: one, where it is alone in its page.
const RUNS_MAX: usize = 64;
/// So many sessions of a browser are remembered after their end, while it has others.
const ENDED_MAX: usize = 64;

/// What pusher-js puts into the URL of each request. Numbers begin with 1 and end below 2^53.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub number: u64,
    /// By the client's clock.
    pub ms: u64,
}

#[derive(Default)]
pub struct Browsers {
    by_key: Mutex<HashMap<u64, Arc<Browser>>>,
    hasher: RandomState,
}

/// Sessions that may share a page.
#[derive(Default)]
struct Browser(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    by_session: HashMap<u64, Session>,
    /// Those that are no more, the oldest first.
    ended: VecDeque<u64>,
    /// When the last one ended.
    ended_at: Option<Instant>,
    /// When a number did not come.
    gave_up_at: Option<Instant>,
}

#[derive(Default)]
struct Session {
    runs: Runs,
    is_alive: bool,
}

/// The numbers that one session has seen, and those of its neighbours.
pub struct Numbers {
    browser: Arc<Browser>,
    session: u64,
}

impl Browsers {
    /// For a new session of whoever sent this.
    pub fn numbers(&self, address: IpAddr, headers: &HeaderMap, session_id: &str) -> Numbers {
        let key = self.key(address, headers);
        let mut by_key = self.lock();
        let browser = by_key.entry(key).or_default().clone();
        drop(by_key);
        let session = self.hasher.hash_one(session_id);
        browser.seen().begin(session);
        Numbers { browser, session }
    }

    /// A request of a session that is not there, or that brings nothing.
    pub fn stray(&self, address: IpAddr, headers: &HeaderMap, session_id: &str, stamp: Stamp) {
        let browser = self.lock().get(&self.key(address, headers)).cloned();
        if let Some(browser) = browser {
            let session = self.hasher.hash_one(session_id);
            browser.seen().stray(session, stamp);
        }
    }

    /// Forgets those that have been without sessions for long.
    pub fn sweep(&self, now: Instant) {
        self.lock().retain(|_, browser| {
            let is_used = Arc::strong_count(browser) > 1;
            is_used || (browser.seen().ended_at).is_some_and(|at| now < at + SHORT_FOR)
        });
    }

    fn key(&self, address: IpAddr, headers: &HeaderMap) -> u64 {
        let said = |name| headers.get(name).map(|value| value.as_bytes());
        (self.hasher).hash_one((address, said(USER_AGENT), said(ORIGIN)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Browser>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Browser {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run of numbers, each with the time of its ends: `(first, last, from_ms, to_ms)`.
pub type WrittenRun = (u64, u64, u64, u64);

impl Numbers {
    /// Of a session that comes from another node. Others of its page are not known here.
    pub fn of_runs(runs: Vec<WrittenRun>) -> Self {
        let mut session = Session::default();
        session.runs.0 = (runs.into_iter())
            .map(|(first, last, from_ms, to_ms)| Run {
                first,
                last,
                from_ms,
                to_ms,
                awaited_until: None,
            })
            .collect();
        session.is_alive = true;
        let browser = Browser::default();
        browser.seen().by_session.insert(0, session);
        Self {
            browser: Arc::new(browser),
            session: 0,
        }
    }

    pub fn runs(&self) -> Vec<WrittenRun> {
        let seen = self.browser.seen();
        let runs = (seen.by_session.get(&self.session)).map_or(&[][..], |s| &s.runs.0);
        let written = |run: &Run| (run.first, run.last, run.from_ms, run.to_ms);
        runs.iter().map(written).collect()
    }

    /// Whether it is new.
    pub fn note(&self, stamp: Stamp, now: Instant) -> bool {
        let mut seen = self.browser.seen();
        // That looks at every session of the browser: not while the wait is short anyway.
        let is_patient = seen.patience(now) == WAIT;
        if is_patient && seen.is_first(self.session) && !seen.has_come(stamp.number - 1) {
            seen.gave_up_at = Some(now);
        }
        let until = now + seen.patience(now);
        let session = seen.by_session.entry(self.session).or_default();
        session.runs.insert(stamp, until)
    }

    /// Until when something is waited for that is missing below a number.
    pub fn missing_below(&self, number: u64, now: Instant) -> Option<Instant> {
        self.browser.seen().missing_below(self.session, number, now)
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.browser.seen().end(self.session);
    }
}

impl Seen {
    fn begin(&mut self, session: u64) {
        self.by_session.entry(session).or_default().is_alive = true;
    }

    fn end(&mut self, session: u64) {
        self.by_session.entry(session).or_default().is_alive = false;
        self.ended.push_back(session);
        self.ended_at = Some(Instant::now());
        if self.ended.len() > ENDED_MAX
            && let Some(oldest) = self.ended.pop_front()
            && (self.by_session.get(&oldest)).is_some_and(|session| !session.is_alive)
        {
            self.by_session.remove(&oldest);
        }
    }

    fn stray(&mut self, session: u64, stamp: Stamp) {
        let is_new = !self.by_session.contains_key(&session);
        let of = self.by_session.entry(session).or_default();
        of.runs.insert(stamp, Instant::now());
        if is_new {
            self.end(session);
        }
    }

    /// Whether it will be the first number of a session.
    fn is_first(&self, session: u64) -> bool {
        let session = self.by_session.get(&session);
        session.is_none_or(|session| session.runs.0.is_empty())
    }

    fn has_come(&self, number: u64) -> bool {
        let mut sessions = self.by_session.values();
        number == 0 || sessions.any(|session| session.runs.run_of(number).is_some())
    }

    fn patience(&self, now: Instant) -> Duration {
        let is_short = self.gave_up_at.is_some_and(|at| now < at + SHORT_FOR);
        if is_short { SHORT_WAIT } else { WAIT }
    }

    fn missing_below(&mut self, session: u64, number: u64, now: Instant) -> Option<Instant> {
        let runs = self.by_session.get(&session)?.runs.0.clone();
        for pair in runs.windows(2) {
            let [below, above] = pair else { continue };
            let Some(until) = above.awaited_until.filter(|_| above.first <= number) else {
                continue;
            };
            let is_anothers = self.is_anothers(session, below, above);
            if !is_anothers && until > now {
                return Some(until);
            }
            if let Some(own) = self.by_session.get_mut(&session) {
                own.runs.give_up_below(above.first);
            }
            if !is_anothers {
                self.gave_up_at = Some(now);
            }
        }
        None
    }

    /// Whether all numbers between two runs of a session were seen by others of its page.
    fn is_anothers(&self, own: u64, below: &Run, above: &Run) -> bool {
        let mut number = below.last + 1;
        while number < above.first {
            let others = self.by_session.iter().filter(|(key, _)| **key != own);
            let found = others.filter_map(|(_, other)| {
                let run = other.runs.run_of(number)?;
                let is_of_the_time = run.from_ms <= above.from_ms && below.to_ms <= run.to_ms;
                let has_seen = |number| other.runs.run_of(number).is_some();
                let is_of_the_page = !has_seen(below.last) && !has_seen(above.first);
                (is_of_the_time && is_of_the_page).then_some(run.last)
            });
            match found.max() {
                Some(last) => number = last + 1,
                None => return false,
            }
        }
        true
    }
}

/// Ascending, and with a gap between each and the next.
#[derive(Default)]
struct Runs(Vec<Run>);

#[derive(Clone, Copy)]
struct Run {
    first: u64,
    last: u64,
    from_ms: u64,
    to_ms: u64,
    /// What is missing below.
    awaited_until: Option<Instant>,
}

impl Runs {
    /// Whether it was not there.
    fn insert(&mut self, stamp: Stamp, until: Instant) -> bool {
        let Stamp { number, ms } = stamp;
        let runs = &mut self.0;
        let nth = runs.partition_point(|run| run.last < number);
        let follows = nth > 0 && runs[nth - 1].last + 1 == number;
        match runs.get_mut(nth) {
            Some(run) if run.first <= number => return false,
            // Before all that is remembered.
            Some(_) if nth == 0 => return false,
            Some(run) if run.first == number + 1 => {
                run.first = number;
                run.from_ms = run.from_ms.min(ms);
                if follows {
                    let Run { last, to_ms, .. } = runs.remove(nth);
                    let below = &mut runs[nth - 1];
                    below.last = last;
                    below.to_ms = below.to_ms.max(to_ms);
                }
            }
            _ if follows => {
                let below = &mut runs[nth - 1];
                below.last = number;
                below.to_ms = below.to_ms.max(ms);
            }
            above => {
                let awaited_until = match above {
                    Some(above) => above.awaited_until,
                    None if nth == 0 => None,
                    None => Some(until),
                };
                let run = Run {
                    first: number,
                    last: number,
                    from_ms: ms,
                    to_ms: ms,
                    awaited_until,
                };
                runs.insert(nth, run);
                if runs.len() > RUNS_MAX {
                    runs.remove(0);
                }
            }
        }
        true
    }

    fn run_of(&self, number: u64) -> Option<&Run> {
        let nth = self.0.partition_point(|run| run.last < number);
        self.0.get(nth).filter(|run| run.first <= number)
    }

    fn give_up_below(&mut self, first: u64) {
        if let Some(run) = self.0.iter_mut().find(|run| run.first == first) {
            run.awaited_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(number: u64) -> Stamp {
        let ms = 10 * number;
        Stamp { number, ms }
    }

    fn session(browsers: &Browsers, id: &str, numbers: &[u64]) -> Numbers {
        let address = IpAddr::from([10, 0, 0, 1]);
        let session = browsers.numbers(address, &HeaderMap::new(), id);
        for number in numbers {
            session.note(stamp(*number), Instant::now());
        }
        session
    }

    fn is_missing(session: &Numbers, number: u64) -> bool {
        session.missing_below(number, Instant::now()).is_some()
    }

    #[test]
    fn each_number_is_new_once_whatever_their_order() {
        let browsers = Browsers::default();
        let session = session(&browsers, "s", &[5]);
        for (number, is_new) in [
            (5, false),
            (4, false),
            (8, true),
            (6, true),
            (7, true),
            (7, false),
            (6, false),
            (9, true),
            (11, true),
            (10, true),
        ] {
            assert_eq!(
                session.note(stamp(number), Instant::now()),
                is_new,
                "{number}"
            );
        }
        assert_eq!(
            session.browser.seen().by_session[&session.session]
                .runs
                .0
                .len(),
            1
        );
    }

    #[test]
    fn a_number_is_missing_unless_another_session_of_the_page_has_it() {
        let browsers = Browsers::default();
        let one = session(&browsers, "one", &[1, 4, 6]);
        assert!(is_missing(&one, 4) && is_missing(&one, 6) && !is_missing(&one, 1));
        let other = session(&browsers, "other", &[2, 3]);
        assert!(!is_missing(&one, 4) && is_missing(&one, 6));
        other.note(stamp(5), Instant::now());
        assert!(!is_missing(&one, 6));
    }

    #[test]
    fn what_sessions_had_that_are_gone_or_never_were_is_not_missing() {
        let browsers = Browsers::default();
        let one = session(&browsers, "one", &[1]);
        drop(session(&browsers, "two", &[2]));
        let address = IpAddr::from([10, 0, 0, 1]);
        browsers.stray(address, &HeaderMap::new(), "three", stamp(3));
        one.note(stamp(4), Instant::now());
        assert!(!is_missing(&one, 4));
        for n in 0..1_000 {
            drop(session(&browsers, &n.to_string(), &[100 + n]));
        }
        assert!(one.browser.seen().by_session.len() <= ENDED_MAX + 1);
        drop(one);
        browsers.sweep(Instant::now());
        assert_eq!(browsers.lock().len(), 1);
        browsers.sweep(Instant::now() + SHORT_FOR);
        assert!(browsers.lock().is_empty());
    }

    #[test]
    fn what_cannot_be_of_the_same_page_says_nothing() {
        let browsers = Browsers::default();
        let one = session(&browsers, "one", &[1, 3]);
        // A page that counts for itself has the neighbours of what is missing too.
        let _alike = session(&browsers, "alike", &[1, 2, 3]);
        assert!(is_missing(&one, 3));
        let before = session(&browsers, "another time", &[]);
        before.note(Stamp { number: 2, ms: 9 }, Instant::now());
        let after = session(&browsers, "and another", &[]);
        after.note(Stamp { number: 2, ms: 31 }, Instant::now());
        assert!(is_missing(&one, 3));
        let elsewhere = browsers.numbers(IpAddr::from([10, 0, 0, 2]), &HeaderMap::new(), "e");
        elsewhere.note(stamp(2), Instant::now());
        assert!(is_missing(&one, 3));
        let _of_the_page = session(&browsers, "of the page", &[2]);
        assert!(!is_missing(&one, 3));
    }

    #[test]
    fn a_number_that_did_not_come_makes_the_wait_for_others_short() {
        let browsers = Browsers::default();
        let one = session(&browsers, "one", &[1, 3]);
        let now = Instant::now();
        let until = one.missing_below(3, now).unwrap();
        assert!(until > now + WAIT / 2);
        assert_eq!(one.missing_below(3, until), None);
        // Also in a session that begins now; but not for ever.
        let other = session(&browsers, "other", &[]);
        for (number, at, wait) in [
            (10, until, SHORT_WAIT),
            (12, until + SHORT_FOR / 2, SHORT_WAIT),
            (14, until + SHORT_FOR * 2, WAIT),
        ] {
            other.note(stamp(number), at);
            other.note(stamp(number + 2), at);
            assert_eq!(
                other.missing_below(number + 2, at),
                Some(at + wait),
                "{number}"
            );
            other.note(stamp(number + 1), at);
        }
    }

    #[test]
    fn a_page_whose_first_numbers_went_elsewhere_is_not_waited_for_long() {
        let browsers = Browsers::default();
        let one = session(&browsers, "one", &[7, 9]);
        assert!(one.missing_below(9, Instant::now()) < Some(Instant::now() + SHORT_WAIT));
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let browsers = Browsers::default();
        let session = session(&browsers, "s", &[]);
        for number in (1..1000).step_by(2) {
            session.note(stamp(number), Instant::now());
        }
        let runs = &session.browser.seen().by_session[&session.session].runs.0;
        assert_eq!(runs.len(), RUNS_MAX);
    }
}
