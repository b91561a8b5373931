use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Page;

/// Upper bounds in microseconds; everything above has a place too.
const BOUNDS_US: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000,
];

/// How long something took.
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len() + 1],
            sum_us: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(super) fn print(&self, page: &mut Page, name: &str, help: &str) {
        page.family(name, "histogram", help);
        let mut count = 0;
        for (nth, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = (BOUNDS_US.get(nth)).map_or("+Inf".to_owned(), |us| secs(*us).to_string());
            page.sample(&format!("{name}_bucket"), &[("le", &bound)], count as f64);
        }
        let sum = secs(self.sum_us.load(Relaxed));
        page.sample(&format!("{name}_sum"), &[], sum);
        page.sample(&format!("{name}_count"), &[], count as f64);
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

fn secs(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_up_to_their_bound() {
        let histogram = Histogram::new();
        for us in [1, 250, 251, 1_000, 3_000_000, 20_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let mut page = Page::default();
        histogram.print(&mut page, "t_seconds", "Time.");
        let text = page.into_text();
        for line in [
            "# TYPE t_seconds histogram",
            "t_seconds_bucket{le=\"0.00025\"} 2",
            "t_seconds_bucket{le=\"0.0005\"} 3",
            "t_seconds_bucket{le=\"0.001\"} 4",
            "t_seconds_bucket{le=\"2.5\"} 4",
            "t_seconds_bucket{le=\"10\"} 5",
            "t_seconds_bucket{le=\"+Inf\"} 6",
            "t_seconds_sum 23.001502",
            "t_seconds_count 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
