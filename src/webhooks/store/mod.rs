//! Where events and deliveries are kept.
//!
//! Events stand once in a log, each endpoint has a cursor on it. A delivery is kept before it is
//! first sent.

mod archive;
mod local;
pub(super) mod shared;
#[cfg(test)]
pub(super) mod testing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use archive::{Archive, Listed};
pub(super) use local::Local;

use super::settle::{Subject, Told};
use crate::backend::Done;
use crate::model::AppId;

pub(super) type Kept<'a, T> = Done<'a, Result<T, StoreError>>;

/// The store of a running server, or of a cluster of them. Every write is over, and safe from the
/// end of the process, when its future is.
pub(super) trait Store: Send + Sync {
    /// Those whom applications believe present, with how long some have been away.
    fn told(&self) -> Kept<'_, Vec<(Subject, Option<Duration>)>>;

    /// Up to where the facts are among the events.
    fn position(&self) -> Kept<'_, Position>;

    /// Adds events to the log. They are all that came of the facts up to `position`.
    fn append(&self, entries: Arc<Vec<Entry>>, at_ms: u64, position: Position) -> Kept<'_, ()>;

    /// The ids of endpoints, given by app and name. One that was not active begins at the end of
    /// the log; what is on its way to one that is not given is dead.
    fn activate(&self, endpoints: Vec<(AppId, String)>) -> Kept<'_, Vec<EndpointId>>;

    fn resume(&self, endpoint: EndpointId) -> Kept<'_, Resumed>;

    /// Up to `events_max` events of the app behind `seq`.
    fn read<'a>(&'a self, app: &AppId, seq: u64, events_max: usize) -> Kept<'a, Vec<Event>>;

    /// Notes deliveries before their first attempt, or dead letters that had none.
    fn begin(&self, begun: Arc<Vec<Delivery>>) -> Kept<'_, ()>;

    /// Notes an attempt and what the delivery is after it.
    fn attempted<'a>(
        &'a self,
        id: &str,
        attempt: Attempt,
        state: State,
        keep_body: bool,
    ) -> Kept<'a, ()>;

    /// Every event up to `cursor` is over for the endpoint.
    fn advance(&self, endpoint: EndpointId, cursor: u64) -> Kept<'_, ()>;

    /// What somebody asked to be sent again.
    fn replays(&self, endpoint: EndpointId, deliveries_max: usize) -> Kept<'_, Vec<Delivery>>;

    /// Puts a replayed delivery with a time and a signature of today in the place of the old one.
    fn renew(&self, delivery: Delivery) -> Kept<'_, ()>;

    /// Deletes what nobody needs, and what no longer fits.
    fn tidy(&self, bytes_max: usize) -> Kept<'_, Lost>;

    /// Deliveries and events that are not over.
    fn unfinished(&self) -> Kept<'_, usize>;
}

/// An event in the log.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Event {
    /// Grows along the log.
    pub seq: u64,
    pub channel: Arc<str>,
    pub name: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// As it stands in a body.
    pub json: Arc<str>,
}

/// What becomes an event in the log, and what an application then believes.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub app: AppId,
    pub channel: Arc<str>,
    pub name: &'static str,
    /// Absent if there is no news, or no endpoint wants it.
    pub json: Option<String>,
    pub told: Option<(Subject, Told)>,
}

/// A place in each stream of facts, in words that only its source reads. There is one stream with
/// the number 0, or one for each partition.
pub(super) type Position = Vec<(usize, String)>;

/// One request, the same at each attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// 32 hex digits.
    pub id: String,
    pub endpoint: EndpointId,
    pub state: State,
    /// Milliseconds since 1970; the body's `time_ms`.
    pub created_ms: u64,
    /// No attempt begins after it, but for the first.
    pub expires_ms: u64,
    /// Of its events in the log.
    pub seqs: Vec<u64>,
    /// Each once.
    pub channels: Vec<Arc<str>>,
    /// The app key whose secret has signed the body.
    pub key: String,
    pub signature: String,
    /// Absent where it was not kept.
    pub body: Option<Bytes>,
    /// Whether it was over before. It then holds up no other delivery.
    pub is_replay: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EndpointId(pub(super) i64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Being sent, or waiting to be sent again.
    Pending,
    Delivered,
    /// A dead letter.
    Dead,
    /// To be sent again though it was over.
    Replay,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Attempt {
    pub at_ms: u64,
    pub took_ms: u64,
    /// Of the answer, if there was one.
    pub status: Option<u16>,
    /// What went wrong, if it was not the status.
    pub error: Option<String>,
}

/// Where an endpoint was when the process ended.
#[derive(Debug)]
pub(super) struct Resumed {
    /// Every event up to here is over.
    pub cursor: u64,
    /// Events behind the cursor that are over or in `pending`.
    pub taken: Vec<u64>,
    pub pending: Vec<Delivery>,
}

/// What has been thrown away because the store was full.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Lost {
    pub dead_letters: usize,
    pub events: usize,
}

#[derive(Clone, Debug)]
pub struct StoreError(pub(super) Arc<str>);

impl StoreError {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
}

impl std::error::Error for StoreError {}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Replay => "replay",
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "pending" => Self::Pending,
            "delivered" => Self::Delivered,
            "replay" => Self::Replay,
            _ => Self::Dead,
        }
    }
}
