//! How busy the node is with handing over events.
//!
//! While it is quiet, whoever delivers an event also writes it to the sockets: nothing would gather
//! for a common write anyway, and a second thread only costs. While it is busy, writing is left to
//! those who gather: each write takes more with it, and deliveries do not wait for each other.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// A quiet node hands over no more than this: a fifth to a half of one processor's work.
const QUIET_PUSHES_PER_SEC: u32 = 60_000;
/// However much it was, after so long the node is quiet again.
const BUSY_MAX: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Pace {
    /// When all that was handed over would be done at the rate of a quiet node. Absent at first.
    busy_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// Whether the node was quiet before these pushes, which count from now on.
    pub fn is_quiet_before(&self, pushes: usize, now: Instant) -> bool {
        let pushes = pushes.min(QUIET_PUSHES_PER_SEC as usize) as u32;
        let takes = Duration::from_secs(1) * pushes / QUIET_PUSHES_PER_SEC;
        let mut busy_until = lock(&self.busy_until);
        let begins = busy_until.map_or(now, |until| until.max(now));
        *busy_until = Some((begins + takes).min(now + BUSY_MAX));
        begins == now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_node_that_hands_over_little_is_quiet_and_one_that_hands_over_more_is_busy() {
        let (paced, busy, start) = (Pace::default(), Pace::default(), Instant::now());
        for nth in 0..20 {
            assert!(paced.is_quiet_before(1000, start + nth * 20 * MILLISECOND));
            let was_quiet = busy.is_quiet_before(1000, start + nth * 10 * MILLISECOND);
            assert_eq!(was_quiet, nth == 0);
        }
    }

    #[test]
    fn what_comes_together_counts_together() {
        let (pace, start) = (Pace::default(), Instant::now());
        assert!(pace.is_quiet_before(600, start));
        assert!(!pace.is_quiet_before(600, start));
        assert!(!pace.is_quiet_before(600, start + 19 * MILLISECOND));
        assert!(pace.is_quiet_before(600, start + 30 * MILLISECOND));
    }

    #[test]
    fn however_busy_it_was_it_is_quiet_again_soon() {
        let (pace, start) = (Pace::default(), Instant::now());
        for _ in 0..1000 {
            pace.is_quiet_before(usize::MAX, start);
        }
        assert!(!pace.is_quiet_before(1, start + BUSY_MAX - MILLISECOND));
        assert!(pace.is_quiet_before(1, start + 2 * BUSY_MAX));
    }
}
