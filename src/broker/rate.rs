//! How many client events a connection may still send (`pusher.md` 3).

use tokio::time::Instant;

/// Allows a number of events at once, and as many again evenly over each second.
pub struct Rate {
    per_sec: f32,
    left: f32,
    counted_at: Instant,
}

impl Rate {
    pub fn per_sec(events_max: usize) -> Self {
        let per_sec = events_max as f32;
        Self {
            per_sec,
            left: per_sec,
            counted_at: Instant::now(),
        }
    }

    pub fn allows_one_more(&mut self) -> bool {
        let now = Instant::now();
        let earned = (now - self.counted_at).as_secs_f32() * self.per_sec;
        self.counted_at = now;
        self.left = (self.left + earned).min(self.per_sec);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn ten_at_once_and_ten_more_in_each_second() {
        let mut rate = Rate::per_sec(10);
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 10);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((0..20).filter(|_| rate.allows_one_more()).count(), 10);
    }
}
