//! How busy the node is with handing over events.
//!
//! While it is quiet, whoever delivers an event also writes it to the sockets: nothing would gather
//! for a common write anyway, and a second thread only costs. While it is busy, writing is left to
//! those who gather: each write takes more with it, and deliveries do not wait for each other.

use std::sync::Mutex;
use std::time::Duration;

use super::lock;
use crate::rate::Rate;

/// A quiet node hands over no more than this: a fifth to a half of one processor's work. However much
/// it was, the node is quiet again a second later.
const QUIET_PUSHES_PER_SEC: usize = 60_000;

pub struct Pace(Mutex<Rate>);

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(Rate::per_sec(QUIET_PUSHES_PER_SEC)))
    }
}

impl Pace {
    /// Whether the node was quiet before these pushes, which count from now on.
    pub fn is_quiet_before(&self, pushes: usize) -> bool {
        let mut rate = lock(&self.0);
        let is_quiet = rate.is_full();
        rate.take(pushes, Duration::ZERO);
        is_quiet
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_node_that_hands_over_little_is_quiet_and_one_that_hands_over_more_is_busy() {
        let (paced, busy) = (Pace::default(), Pace::default());
        for nth in 0..20 {
            assert!(paced.is_quiet_before(1000));
            assert_eq!(busy.is_quiet_before(1000), nth == 0);
            advance(10 * MILLISECOND).await;
            assert!(!busy.is_quiet_before(1000));
            advance(10 * MILLISECOND).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_together_counts_together() {
        let pace = Pace::default();
        assert!(pace.is_quiet_before(600));
        assert!(!pace.is_quiet_before(600));
        advance(19 * MILLISECOND).await;
        assert!(!pace.is_quiet_before(600));
        advance(12 * MILLISECOND).await;
        assert!(pace.is_quiet_before(600));
    }

    #[tokio::test(start_paused = true)]
    async fn however_busy_it_was_it_is_quiet_again_soon() {
        let pace = Pace::default();
        for _ in 0..1000 {
            pace.is_quiet_before(usize::MAX);
        }
        advance(999 * MILLISECOND).await;
        assert!(!pace.is_quiet_before(1));
        advance(2 * MILLISECOND).await;
        assert!(pace.is_quiet_before(1));
    }
}
