//! `raptor bench`: loads a Pusher or Bayeux server, Raptor or another, and says what it did and what
//! it cost.
//!
//! One thread with one runtime: the clients share the machine with the server and have to leave
//! it most of the time. Everything is bounded in number and time, and a run ends by itself.
//!
//! What is published is numbered, by lane and channel. A lane is one publisher that waits for each
//! answer before it sends the next, so that the order of its events is certain, and what comes out
//! of order, twice or not at all is counted. Latency is taken from the time at which an event was
//! due, not from when it could be sent: a server that makes its publishers wait is not forgiven.

mod client;
mod connecting;
mod echo;
mod presence;
mod process;
mod publisher;
mod publishing;
mod report;
mod subscriber;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

pub use client::Failure;
pub use connecting::{Idle, Storm};
pub use echo::Echo;
pub use presence::Presence;
pub use process::Process;
pub use publishing::{Pace, Publishing};
pub use report::{Latency, Report, ServerCost};
pub use target::{App, Protocol, Target};

pub const CONNECTIONS_MAX: usize = 60_000;
pub const SECS_MAX: u64 = 3_600;
pub const RATE_MAX: u32 = 100_000;

/// Clients that connect at the same time while a scenario is set up.
const CONNECTING_AT_ONCE: usize = 64;
/// For one client to connect and subscribe, and for one publish to be answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing arrived for so long: what is missing then is lost.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// All has arrived; what comes within this time came twice.
const REPEATS_WITHIN: Duration = Duration::from_millis(300);

/// What is to be run against what.
pub struct Bench {
    pub target: Target,
    pub scenario: Scenario,
    /// The server's process on this machine, to tell its CPU time and memory.
    pub pid: Option<u32>,
}

pub enum Scenario {
    /// One channel, or many, with subscribers over WebSocket.
    FanOut(Publishing),
    Channels(Publishing),
    /// As fan-out, over Bayeux long-polling.
    Polling(Publishing),
    Idle(Idle),
    Echo(Echo),
    Presence(Presence),
    Storm(Storm),
}

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Self::FanOut(_) => "fan-out",
            Self::Channels(_) => "channels",
            Self::Polling(_) => "polling",
            Self::Idle(_) => "idle",
            Self::Echo(_) => "echo",
            Self::Presence(_) => "presence",
            Self::Storm(_) => "storm",
        }
    }
}

/// Why there is no report.
#[derive(Debug)]
pub enum BenchError {
    Client(Failure),
    /// No process of that id, or no `/proc`.
    Process(u32, io::Error),
    Runtime(io::Error),
    /// The protocol has no such thing.
    NotIn(&'static str),
}

impl std::fmt::Display for BenchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(failure) => failure.fmt(f),
            Self::Process(pid, error) => write!(f, "cannot watch process {pid}: {error}"),
            Self::Runtime(error) => write!(f, "cannot start: {error}"),
            Self::NotIn(protocol) => write!(f, "this scenario is not in {protocol}"),
        }
    }
}

impl From<Failure> for BenchError {
    fn from(failure: Failure) -> Self {
        Self::Client(failure)
    }
}

impl Bench {
    /// Runs to its end, on a thread of its own: to be called outside any runtime. Lines for those
    /// who wait go to `progress`.
    pub fn run(self, progress: impl Fn(&str) + Send + 'static) -> Result<Report, BenchError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(BenchError::Runtime)?;
        runtime.block_on(self.run_here(progress))
    }

    async fn run_here(
        self,
        progress: impl Fn(&str) + Send + 'static,
    ) -> Result<Report, BenchError> {
        let server = match self.pid {
            Some(pid) => Some(Process::of(pid).map_err(|e| BenchError::Process(pid, e))?),
            None => None,
        };
        let mut report = Report::new(self.scenario.name(), &self.target);
        let stage = Stage {
            target: std::sync::Arc::new(self.target),
            server,
            progress: Box::new(progress),
        };
        match self.scenario {
            Scenario::FanOut(load) | Scenario::Channels(load) => {
                load.run(&stage, subscriber::Transport::WebSocket, &mut report)
                    .await?
            }
            Scenario::Polling(load) => {
                load.run(&stage, subscriber::Transport::LongPolling, &mut report)
                    .await?
            }
            Scenario::Idle(load) => load.run(&stage, &mut report).await?,
            Scenario::Echo(load) => load.run(&stage, &mut report).await?,
            Scenario::Presence(load) => load.run(&stage, &mut report).await?,
            Scenario::Storm(load) => load.run(&stage, &mut report).await?,
        }
        report.client_cpu_secs = Process::own().and_then(|own| own.cpu_secs()).unwrap_or(0.0);
        Ok(report)
    }
}

/// What every scenario plays on.
struct Stage {
    target: std::sync::Arc<Target>,
    server: Option<Process>,
    progress: Box<dyn Fn(&str) + Send>,
}

impl Stage {
    fn tell(&self, line: &str) {
        (self.progress)(line);
    }

    /// The server's CPU time so far; 0 where nobody watches it.
    fn cpu_secs(&self) -> f64 {
        let server = self.server.as_ref();
        server.and_then(|s| s.cpu_secs().ok()).unwrap_or(0.0)
    }

    fn resident_kib(&self) -> u64 {
        let server = self.server.as_ref();
        server.and_then(|s| s.resident_kib().ok()).unwrap_or(0)
    }

    /// `None` where nobody watches the server, or it is gone.
    fn cost(&self, cpu_secs_before: f64, resident_kib_before: u64) -> Option<ServerCost> {
        let server = self.server.as_ref()?;
        Some(ServerCost {
            pid: server.pid(),
            cpu_secs: server.cpu_secs().ok()? - cpu_secs_before,
            cpu_us_per_event: None,
            cpu_us_per_delivery: None,
            resident_kib_before,
            resident_kib_after: self.resident_kib(),
            resident_bytes_per_connection: None,
        })
    }
}
