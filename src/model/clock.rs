use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By the machine's clock; nothing if that stands before 1970.
pub fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    since_1970().as_millis() as u64
}
