//! How many events the application of an app may publish.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::AppId;
use crate::rate::Rate;

/// The events that applications publish, for each app together.
#[derive(Default)]
pub struct AppRates(Mutex<HashMap<AppId, Rate>>);

impl AppRates {
    pub fn allows(&self, app: &AppId, per_sec: usize, events: usize) -> Result<(), Duration> {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Rate::per_sec(per_sec);
        let rate = rates.entry(app.clone()).or_insert_with(new);
        rate.change(per_sec);
        rate.allows(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn apps_have_a_rate_each_and_large_requests_are_owed() {
        let (rates, app, other) = (AppRates::default(), AppId::new("1"), AppId::new("2"));
        let allows = |app, events| rates.allows(app, 10, events);
        assert_eq!(allows(&app, 25), Ok(()));
        assert_eq!(allows(&app, 1), Err(Duration::from_millis(1600)));
        assert_eq!(allows(&other, 10), Ok(()));
        assert_eq!(rates.allows(&other, 20, 5), Err(Duration::from_millis(250)));
        tokio::time::advance(Duration::from_millis(1600)).await;
        assert_eq!(allows(&app, 1), Ok(()));
    }
}
