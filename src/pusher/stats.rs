//! Counts.
#[derive(Default)]
pub struct Stats {}
