//! `raptor bench`: flags, progress on stderr, and the report on stdout.

use std::io::{self, Write};

use clap::{Args, Subcommand, builder::RangedU64ValueParser, value_parser};
use raptor::bench::{
    self, Bench as Run, Echo, Idle, Pace, Presence, Publishing, Scenario, Storm, Target,
};

/// A run and where its report goes.
pub struct Bench {
    run: Result<Run, String>,
    /// `-` is stdout, instead of the table.
    json: Option<String>,
}

impl Bench {
    /// The table, if it goes to stdout. An error, too, if anything was lost, repeated, late or
    /// refused: a figure of such a run is worth nothing.
    pub fn run(self) -> Result<String, String> {
        let run = self.run?;
        let progress = |line: &str| {
            // Who does not see it does not need it.
            let _ = writeln!(io::stderr(), "{line}");
        };
        let report = run.run(progress).map_err(|error| error.to_string())?;
        let text = match self.json.as_deref() {
            Some("-") => report.to_json(),
            Some(file) => {
                std::fs::write(file, report.to_json() + "\n")
                    .map_err(|error| format!("cannot write {file}: {error}"))?;
                report.table()
            }
            None => report.table(),
        };
        match report.is_clean() {
            true => Ok(text),
            false => {
                // The report is what says why.
                let _ = writeln!(io::stdout(), "{text}");
                Err("the server lost, repeated, reordered or refused something".to_owned())
            }
        }
    }
}

#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args)]
struct TargetArgs {
    /// A Pusher server: http://HOST:PORT [default: http://127.0.0.1:6001]
    #[arg(long, value_name = "URL", global = true, conflicts_with = "bayeux")]
    pusher: Option<String>,
    /// The app's id
    #[arg(long, value_name = "ID", global = true, default_value = "app-id")]
    app_id: String,
    /// The app's key
    #[arg(long, value_name = "KEY", global = true, default_value = "app-key")]
    key: String,
    /// The app's secret; better given in the environment [env: RAPTOR_APP_SECRET] [default: that
    /// of the development app]
    #[arg(long, value_name = "SECRET", global = true)]
    secret: Option<String>,
    /// A Bayeux server with its mount: http://HOST:PORT/faye
    #[arg(long, value_name = "URL", global = true)]
    bayeux: Option<String>,
    /// Load a server that is not on this machine
    ///
    /// A load test disturbs everybody who uses the server, and providers may forbid it.
    #[arg(long, global = true)]
    remote: bool,
    /// The server's process on this machine, to tell its CPU time and memory
    #[arg(long, value_name = "PID", global = true)]
    pid: Option<u32>,
    /// Write the report as JSON; "-" prints it instead of the table
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<String>,
}

#[derive(Subcommand)]
enum ScenarioArgs {
    /// One channel with many subscribers
    FanOut {
        #[arg(long, default_value_t = 1000, value_parser = connections())]
        subscribers: u64,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Many channels with few subscribers each
    Channels {
        #[arg(long, default_value_t = 1000, value_parser = connections())]
        channels: u64,
        /// Of each channel, each on a connection of its own
        #[arg(long, default_value_t = 3, value_parser = connections())]
        subscribers: u64,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// One channel with many subscribers over Bayeux long-polling
    Polling {
        #[arg(long, default_value_t = 500, value_parser = connections())]
        subscribers: u64,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Connections with one subscription each, and silence
    Idle {
        #[arg(long, default_value_t = 5000, value_parser = connections())]
        connections: u64,
        /// All on one channel, instead of each on its own
        #[arg(long)]
        one_channel: bool,
        #[arg(long, default_value_t = 5, value_parser = secs())]
        secs: u64,
    },
    /// Client events: pairs of which one speaks and the other hears it
    Echo {
        #[arg(long, default_value_t = 500, value_parser = connections())]
        pairs: u64,
        /// Events a second of all pairs; Pusher allows 10 for a connection
        #[arg(long, default_value_t = 2000, value_parser = rate())]
        rate: u32,
        #[arg(long, default_value_t = 5, value_parser = secs())]
        secs: u64,
        #[arg(long, default_value_t = 256, value_parser = bytes())]
        bytes: u64,
    },
    /// Members who come and go in a presence channel
    Presence {
        /// Who stay and are told of every join
        #[arg(long, default_value_t = 50, value_parser = connections())]
        members: u64,
        /// Who come and go without a pause
        #[arg(long, default_value_t = 8, value_parser = connections())]
        churning: u64,
        #[arg(long, default_value_t = 5, value_parser = secs())]
        secs: u64,
    },
    /// Connects with a signed private subscription, as fast as they are answered
    Storm {
        #[arg(long, default_value_t = 5000, value_parser = connections())]
        connections: u64,
        /// Under way at the same time
        #[arg(long, default_value_t = 64, value_parser = connections())]
        in_flight: u64,
    },
}

#[derive(Args)]
struct LoadArgs {
    /// Open loop: events a second, whether the server keeps up or not
    #[arg(long, value_parser = rate(), conflicts_with = "in_flight")]
    rate: Option<u32>,
    /// Closed loop, the default: as many events as it takes with so many publishes under way
    #[arg(long, default_value_t = 16, value_parser = RangedU64ValueParser::<u64>::new().range(1..=1000))]
    in_flight: u64,
    #[arg(long, default_value_t = 5, value_parser = secs())]
    secs: u64,
    /// Of an event's data
    #[arg(long, default_value_t = 256, value_parser = bytes())]
    bytes: u64,
    /// Publish over a new connection each time, as libraries without keep-alive do
    #[arg(long)]
    new_connections: bool,
}

fn connections() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=bench::CONNECTIONS_MAX as u64)
}

fn secs() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=bench::SECS_MAX)
}

fn bytes() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=60_000)
}

fn rate() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=i64::from(bench::RATE_MAX))
}

impl LoadArgs {
    fn publishing(self, channels: u64, subscribers: u64) -> Publishing {
        Publishing {
            channels: channels as usize,
            subscribers: subscribers as usize,
            pace: match self.rate {
                Some(rate) => Pace::PerSec(rate),
                None => Pace::InFlight(self.in_flight as usize),
            },
            secs: self.secs,
            payload_bytes: self.bytes as usize,
            keep_alive: !self.new_connections,
        }
    }
}

impl BenchArgs {
    pub fn bench(self, variable: impl Fn(&str) -> Option<String>) -> Bench {
        let json = self.target.json.clone();
        Bench {
            run: self.into_run(variable),
            json,
        }
    }

    fn into_run(self, variable: impl Fn(&str) -> Option<String>) -> Result<Run, String> {
        let scenario = self.scenario.scenario()?;
        let pid = self.target.pid;
        Ok(Run {
            target: self.target.target(variable)?,
            scenario,
            pid,
        })
    }
}

impl TargetArgs {
    fn target(self, variable: impl Fn(&str) -> Option<String>) -> Result<Target, String> {
        let target = match self.bayeux {
            Some(url) => Target::bayeux(&url, self.remote),
            None => {
                let url = self.pusher.as_deref().unwrap_or("http://127.0.0.1:6001");
                let secret = self.secret.or_else(|| variable("RAPTOR_APP_SECRET"));
                let secret = secret.as_deref().unwrap_or("app-secret");
                Target::pusher(url, (&self.app_id, &self.key, secret), self.remote)
            }
        };
        target.map_err(|error| error.to_string())
    }
}

impl ScenarioArgs {
    fn scenario(self) -> Result<Scenario, String> {
        Ok(match self {
            Self::FanOut { subscribers, load } => Scenario::FanOut(load.publishing(1, subscribers)),
            Self::Channels {
                channels,
                subscribers,
                load,
            } => {
                let max = bench::CONNECTIONS_MAX as u64;
                if channels * subscribers > max {
                    return Err(format!("a run has at most {max} connections"));
                }
                Scenario::Channels(load.publishing(channels, subscribers))
            }
            Self::Polling { subscribers, load } => {
                Scenario::Polling(load.publishing(1, subscribers))
            }
            Self::Idle {
                connections,
                one_channel,
                secs,
            } => Scenario::Idle(Idle {
                connections: connections as usize,
                one_channel,
                secs,
            }),
            Self::Echo {
                pairs,
                rate,
                secs,
                bytes,
            } => Scenario::Echo(Echo {
                pairs: pairs as usize,
                events_per_sec: rate,
                secs,
                payload_bytes: bytes as usize,
            }),
            Self::Presence {
                members,
                churning,
                secs,
            } => Scenario::Presence(Presence {
                members: members as usize,
                churning: churning as usize,
                secs,
            }),
            Self::Storm {
                connections,
                in_flight,
            } => Scenario::Storm(Storm {
                connections: connections as usize,
                in_flight: in_flight as usize,
            }),
        })
    }
}
