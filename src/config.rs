//! Configuration in two steps: what the user [`Written`] has in a file, in environment variables
//! and in flags becomes the [`Config`] that the program uses. Only the step between them can fail,
//! and then it names every problem at once.

mod apps;
mod bayeux;
mod convert;
mod problem;
mod redis;
mod section;
#[cfg(test)]
mod tests;
mod webhooks;
mod written;

pub use problem::{Problem, Problems, Site};
pub use written::{Sited, Written, WrittenFile};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::{ParseError, Targets};

use crate::apps::{App, AppKey, Features, Limits};
use crate::auth::Secret;
use crate::model::AppId;
use crate::transport::peer::{AddressLimits, Network, TrustedProxies};

/// A configuration that can be used as it is.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerSettings,
    pub log: LogSettings,
    /// At least one. Ids and keys are distinct.
    pub apps: Vec<App>,
    /// For each app what it says about Bayeux. Mounts are distinct.
    pub bayeux: Vec<(AppId, crate::bayeux::Settings)>,
    pub webhooks: crate::webhooks::Settings,
    /// Absent for a node that is alone.
    pub redis: Option<crate::backend::redis::Settings>,
    /// What is allowed, but probably not meant.
    pub warnings: Vec<Problem>,
}

/// What concerns all apps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSettings {
    pub listen: SocketAddr,
    /// Whether connections to `listen` begin with the header of a proxy.
    pub proxy_protocol: bool,
    pub tls: Option<TlsSettings>,
    pub unix: Option<UnixSettings>,
    /// Where Prometheus reads, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Empty, or starting with a slash and not ending with one. Everything is served below it as
    /// well as without it.
    pub path_prefix: String,
    /// Told to clients when their connection is established. At least 1 s (`pusher.md` 1.2).
    pub activity_timeout: Duration,
    /// How long a silent peer has to answer our ping before 4201.
    pub pong_timeout: Duration,
    /// How long a new connection may take to make its first request.
    pub handshake_timeout: Duration,
    /// How long a peer may accept no byte of what waits for it.
    pub write_timeout: Duration,
    pub shutdown_grace: Duration,
    /// Over how long clients are sent to other servers; zero where there are none.
    pub shutdown_spread: Duration,
    /// The protocol version of clients that name none; without it they are refused with 4008.
    pub assume_protocol: Option<u8>,
    pub request_body_bytes_max: usize,
    /// One WebSocket message from a client.
    pub inbound_message_bytes_max: usize,
    /// Of one IPv4 address, or of one IPv6 network of 64 bits.
    pub address_limits: AddressLimits,
    /// Believed when they say for whom they ask.
    pub trusted_proxies: TrustedProxies,
    /// What may wait for all connections together.
    pub outbox_bytes_total_max: usize,
    /// What may wait for one slow connection before 4100.
    pub outbox_bytes_max: usize,
    /// Of Pusher clients without WebSockets.
    pub http_sessions_max: usize,
}

/// A listener beside the plain one. Its files are PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsSettings {
    pub listen: Sited<SocketAddr>,
    pub proxy_protocol: bool,
    /// The certificate, then those that vouch for it.
    pub certificate: Sited<PathBuf>,
    pub key: Sited<PathBuf>,
    /// Who vouches for callers of the HTTP API; the API is closed to all others then, on every
    /// listener.
    pub api_client_ca: Option<Sited<PathBuf>>,
}

/// A listener for processes of this machine. They count as 127.0.0.1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnixSettings {
    pub listen: Sited<PathBuf>,
    /// Who may connect: the permissions of the socket's file.
    pub mode: u32,
    pub proxy_protocol: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// A level, or levels by target: `info`, or `warn,raptor=debug`.
    pub level: String,
    pub format: LogFormat,
    pub audit: Option<AuditLog>,
}

impl LogSettings {
    /// What the level lets pass.
    pub fn targets(&self) -> Result<Targets, ParseError> {
        targets(&self.level)
    }
}

/// Of `tracing`'s filters those that name levels and targets. Those of spans and fields would be
/// regular expressions, which take seconds and gigabytes to build if somebody means ill.
fn targets(level: &str) -> Result<Targets, ParseError> {
    let level: String = level.split_whitespace().collect();
    level.parse()
}

/// Where the audit log goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuditLog {
    Stdout,
    File(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// What there is without any configuration: the well-known development app on loopback, with
    /// its events switched on and hosted Pusher's limits.
    pub fn development() -> Self {
        Self {
            server: ServerSettings::default(),
            log: LogSettings::default(),
            apps: vec![development_app()],
            bayeux: vec![development_bayeux()],
            webhooks: Default::default(),
            redis: None,
            warnings: Vec::new(),
        }
    }
}

impl UnixSettings {
    /// The user that runs the server, and its group.
    pub const MODE: u32 = 0o660;
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 6001)),
            proxy_protocol: false,
            tls: None,
            unix: None,
            metrics_listen: None,
            path_prefix: String::new(),
            activity_timeout: Duration::from_secs(120),
            pong_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(5),
            shutdown_spread: Duration::ZERO,
            assume_protocol: None,
            request_body_bytes_max: 1_048_576,
            inbound_message_bytes_max: 65_536,
            address_limits: AddressLimits {
                connections_max: None,
                refusals_per_sec_max: 100,
            },
            trusted_proxies: TrustedProxies(
                (LOOPBACK.iter())
                    .filter_map(|network| Network::parse(network))
                    .collect(),
            ),
            outbox_bytes_total_max: 1_073_741_824,
            outbox_bytes_max: 1_048_576,
            http_sessions_max: 100_000,
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            audit: None,
        }
    }
}

/// A proxy on the same machine is trusted unless the configuration says otherwise.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];

/// The development app's credentials. Everybody knows them, so that they are refused on every
/// address that is not loopback.
pub const DEVELOPMENT_APP_ID: &str = "app-id";
pub const DEVELOPMENT_APP_KEY: &str = "app-key";
pub const DEVELOPMENT_APP_SECRET: &str = "app-secret";

/// Others than this machine may reach it.
fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Whether it is the development app's.
pub fn is_well_known(secret: &Secret) -> bool {
    let signature = Secret::new(DEVELOPMENT_APP_SECRET).sign(b"");
    secret.verify(b"", &signature)
}

impl Config {
    /// Whether an app has the development app's secret.
    pub fn has_well_known_secret(&self) -> bool {
        let mut keys = self.apps.iter().flat_map(|app| &app.keys);
        keys.any(|key| is_well_known(&key.secret))
    }
}

impl ServerSettings {
    /// Whether others than this machine may reach it.
    pub fn is_exposed(&self) -> bool {
        let tls = self.tls.as_ref().map(|tls| tls.listen.value);
        is_exposed(self.listen) || tls.is_some_and(is_exposed)
    }
}

fn development_bayeux() -> (AppId, crate::bayeux::Settings) {
    let app_id = AppId::new(DEVELOPMENT_APP_ID);
    (app_id, crate::bayeux::Settings::development())
}

fn development_app() -> App {
    App {
        id: AppId::new(DEVELOPMENT_APP_ID),
        name: Some("development".to_owned()),
        enabled: true,
        keys: vec![AppKey {
            key: DEVELOPMENT_APP_KEY.to_owned(),
            secret: Secret::new(DEVELOPMENT_APP_SECRET),
        }],
        features: Features {
            client_events: true,
            subscription_count_events: true,
            watchlist_events: true,
            ..Features::default()
        },
        limits: Limits::default(),
        allowed_origins: Vec::new(),
    }
}
