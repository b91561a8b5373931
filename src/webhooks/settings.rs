//! Which endpoints there are, what each wants to know, and where deliveries are kept.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::{HeaderMap, Uri};

use crate::model::{AppId, ChannelName, FactKind};

#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Where events and deliveries survive the process; without it they are kept in memory.
    pub dir: Option<PathBuf>,
    /// Whether every write waits for the disk. Without it they survive the end of the process,
    /// not that of the machine.
    pub fsync: bool,
    /// Beyond it the oldest goes: first deliveries that are over, then dead letters, then events.
    pub store_bytes_max: usize,
    /// Whether a body is kept after its delivery. Those of dead letters always are.
    pub keep_bodies: bool,
    /// The names of an app's endpoints are distinct.
    pub endpoints: Vec<Endpoint>,
}

/// A URL of an application.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    pub app: AppId,
    /// What lists and logs call it. Without credentials, as the query of a URL may hold them.
    pub name: String,
    pub url: Uri,
    /// Names of events.
    pub events: Vec<&'static str>,
    /// Empty: every channel.
    pub channel_prefixes: Vec<String>,
    /// Sent in addition. May hold credentials.
    pub headers: HeaderMap,
    /// Events in one request; 1 is batching switched off.
    pub batch_events_max: usize,
    /// From connecting to the last byte of the answer.
    pub timeout: Duration,
    /// How old an event may become before it is a dead letter.
    pub retry_window: Duration,
    /// Whether it may be on this machine or in a private network.
    pub allow_private_networks: bool,
}

impl Settings {
    pub const DISK_BYTES_MAX: usize = 1 << 30;
    pub const MEMORY_BYTES_MAX: usize = 64 << 20;
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dir: None,
            fsync: false,
            store_bytes_max: Self::MEMORY_BYTES_MAX,
            keep_bodies: false,
            endpoints: Vec::new(),
        }
    }
}

impl Endpoint {
    pub const TIMEOUT: Duration = Duration::from_secs(10);
    /// Hosted's own (`pusher.md` 6.4). Python's verifier refuses what is older.
    pub const RETRY_WINDOW: Duration = Duration::from_secs(300);
    pub const BATCH_EVENTS_MAX: usize = 100;

    pub fn wants(&self, event_name: &str, channel: &str) -> bool {
        let has_prefix = |prefix: &String| channel.starts_with(prefix.as_str());
        self.events.contains(&event_name)
            && (self.channel_prefixes.is_empty() || self.channel_prefixes.iter().any(has_prefix))
    }

    /// Whether the endpoint wants this event, or the one that takes it back.
    pub(super) fn concerns(&self, channel: &ChannelName, kind: &FactKind) -> bool {
        let names: &[&str] = match kind {
            FactKind::ChannelOccupied | FactKind::ChannelVacated => {
                &["channel_occupied", "channel_vacated"]
            }
            FactKind::MemberAdded { .. } | FactKind::MemberRemoved { .. } => {
                &["member_added", "member_removed"]
            }
            other => &[other.name()],
        };
        names.iter().any(|name| self.wants(name, channel.as_str()))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {:?}", self.app, self.name, self.events)
    }
}
