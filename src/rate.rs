//! How often something may be done: so many at once, and as many again in each second.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::metrics::{Limit, REFUSALS};

/// Whoever is held up is not looked at for each single message.
const HELD_UP_AT_LEAST: Duration = Duration::from_millis(50);

/// Allows a number of events at once, and as many again evenly over each second.
pub struct Rate {
    per_sec: f64,
    left: f64,
    counted_at: Instant,
}

impl Rate {
    pub fn per_sec(events_max: usize) -> Self {
        let per_sec = events_max as f64;
        Self {
            per_sec,
            left: per_sec,
            counted_at: Instant::now(),
        }
    }

    pub fn allows_one_more(&mut self) -> bool {
        self.allows(1).is_ok()
    }

    /// Whether there is room for so many. More than a second's worth is let through after a
    /// second's rest, and owed. `Err` says after what time to try again.
    pub fn allows(&mut self, events: usize) -> Result<(), Duration> {
        self.earn();
        let needed = (events as f64).min(self.per_sec).max(1.0);
        if self.left < needed {
            let missing = needed - self.left;
            let wait = Duration::try_from_secs_f64(missing / self.per_sec);
            return Err(wait.unwrap_or(Duration::MAX));
        }
        self.left -= events as f64;
        Ok(())
    }

    /// As `allows`, but waits until there is room, and counts that.
    pub async fn pace(&mut self, events: usize, limit: Limit) {
        if events == 0 {
            return;
        }
        while let Err(wait) = self.allows(events) {
            REFUSALS.count(limit);
            sleep(wait.max(HELD_UP_AT_LEAST)).await;
        }
    }

    /// Takes them whether there is room or not, and owes the rest, but never more than it earns in
    /// `wait_max`. How long it is until nothing is owed.
    pub fn take(&mut self, events: usize, wait_max: Duration) -> Duration {
        self.earn();
        let owed_max = wait_max.as_secs_f64() * self.per_sec;
        self.left = (self.left - events as f64).max(-owed_max);
        Duration::from_secs_f64((-self.left).max(0.0) / self.per_sec)
    }

    /// Whether all is there again that there is at once: it is as good as new.
    pub fn is_full(&mut self) -> bool {
        self.earn();
        self.left >= self.per_sec
    }

    fn earn(&mut self) {
        let now = Instant::now();
        let earned = (now - self.counted_at).as_secs_f64() * self.per_sec;
        self.counted_at = now;
        self.left = (self.left + earned).min(self.per_sec);
    }

    /// From now on as many as this.
    pub fn change(&mut self, events_max: usize) {
        self.per_sec = events_max as f64;
        self.left = self.left.min(self.per_sec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_at_once_and_ten_more_in_each_second() {
        let mut rate = Rate::per_sec(10);
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 10);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_beyond_it_is_held_up_and_gets_all_of_it() {
        let (mut rate, begin) = (Rate::per_sec(100), Instant::now());
        for _ in 0..100 {
            rate.pace(1, Limit::ControlMessages).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        for _ in 0..200 {
            rate.pace(1, Limit::ControlMessages).await;
        }
        let took = begin.elapsed();
        assert!((1_950..=2_050).contains(&took.as_millis()), "{took:?}");
        rate.pace(0, Limit::ControlMessages).await;
        assert_eq!(begin.elapsed(), took);
    }
}
