//! From what the user wrote to a valid configuration.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::apps::{self, Joined, unlimited_or};
use super::problem::Problems;
use super::redis;
use super::section::{Reading, Section, nearest};
use super::webhooks;
use super::written::{Sited, Written};
use crate::transport::peer::{AddressLimits, Network, TrustedProxies};

use super::{AuditLog, Config, LogFormat, LogSettings, ServerSettings, TlsSettings, UnixSettings};

/// What the kernel has room for.
const UNIX_PATH_BYTES_MAX: usize = 107;

impl Config {
    /// Flags and environment variables beat the file, the file beats the defaults.
    pub fn from_written(written: &Written) -> Result<Self, Problems> {
        let reading = Reading::of(written.file.as_ref());
        let (server, log, joined, redis, warnings) = reading.root(|root| {
            let listen = listen(root, written);
            let tls = tls(root, listen.as_slice());
            let listeners: Vec<_> = (listen.iter().cloned())
                .chain(tls.as_ref().map(|tls| tls.listen.clone()))
                .collect();
            let server = server_settings(root, listen, tls, &listeners);
            let log = log_settings(root, written);
            let drafts = apps::drafts(root, written, &server);
            let warnings = apps::warnings(&drafts);
            let webhooks = webhooks::settings(root);
            let redis = redis::settings(root, written);
            let joined = apps::apps(root.reading, drafts, &listeners, webhooks);
            (server, log, joined, redis, warnings)
        });
        let Joined {
            apps,
            bayeux,
            webhooks,
        } = joined;
        let mut problems = reading.into_problems();
        if problems.is_empty() {
            return Ok(Self {
                server,
                log,
                apps,
                bayeux,
                webhooks,
                redis,
                warnings,
            });
        }
        problems.sort_by(|a, b| a.site.cmp(&b.site));
        Err(Problems(problems))
    }
}

fn listen(root: &mut Section, written: &Written) -> Option<Sited<SocketAddr>> {
    let in_file = root.text("listen");
    address(root.reading, written.listen.clone().or(in_file)?)
}

fn address(reading: &Reading, text: Sited<String>) -> Option<Sited<SocketAddr>> {
    match text.value.parse() {
        Ok(address) => Some(text.map(|_| address)),
        Err(_) => {
            reading.note(
                &text.site,
                format!("{:?} is not an IP address with a port", text.value),
                "write it as 127.0.0.1:6001 or [::1]:6001; 0.0.0.0:6001 is every IPv4 address of \
                 the machine",
            );
            None
        }
    }
}

/// All three keys, or no table.
fn tls(root: &mut Section, others: &[Sited<SocketAddr>]) -> Option<TlsSettings> {
    let site = root.site_of("tls");
    root.table("tls", "[tls]", |table| {
        let listen = table.text("listen");
        let (certificate, key) = (table.text("certificate"), table.text("key"));
        let api_client_ca = table.text("api_client_ca");
        let proxy_protocol = table.switch("proxy_protocol", false);
        let site = site?;
        for name in ["listen", "certificate", "key"] {
            if table.site_of(name).is_none() {
                let mend = "write listen = \"0.0.0.0:443\", certificate = \"…\" and key = \"…\"";
                table
                    .reading
                    .note(&site, format!("[tls] has no `{name}`"), mend);
            }
        }
        let listen = address(table.reading, listen?)?;
        let wrong = (
            "TLS needs an address of its own",
            "write another port, as in listen = \"0.0.0.0:443\"",
        );
        distinct(table.reading, listen.clone(), others, wrong);
        Some(TlsSettings {
            listen,
            proxy_protocol,
            certificate: certificate?.map(PathBuf::from),
            key: key?.map(PathBuf::from),
            api_client_ca: api_client_ca.map(|path| path.map(PathBuf::from)),
        })
    })
}

fn unix(root: &mut Section) -> Option<UnixSettings> {
    const MEND: &str = "write listen = \"/run/raptor/raptor.sock\"";
    let site = root.site_of("unix");
    root.table("unix", "[unix]", |table| {
        let listen = table.text("listen");
        let mode = table.text("mode").and_then(|mode| file_mode(table, mode));
        let proxy_protocol = table.switch("proxy_protocol", false);
        let site = site?;
        if table.site_of("listen").is_none() {
            table.reading.note(&site, "[unix] has no `listen`", MEND);
        }
        let listen = listen?;
        if listen.value.len() > UNIX_PATH_BYTES_MAX || !listen.value.starts_with('/') {
            let what = format!("{:?} is no path for a Unix socket", listen.value);
            let mend = format!("{MEND}, a whole path of at most {UNIX_PATH_BYTES_MAX} bytes");
            table.reading.note(&listen.site, what, mend);
        }
        Some(UnixSettings {
            listen: listen.map(PathBuf::from),
            mode: mode.unwrap_or(UnixSettings::MODE),
            proxy_protocol,
        })
    })
}

/// As `chmod` takes it.
fn file_mode(table: &Section, text: Sited<String>) -> Option<u32> {
    let mode = u32::from_str_radix(&text.value, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        let what = format!("{:?} are no permissions of a file", text.value);
        let mend = "write them as chmod takes them, in quotes: mode = \"660\"";
        table.reading.note(&text.site, what, mend);
    }
    mode
}

/// An address that is not among the `others`.
fn distinct(
    reading: &Reading,
    address: Sited<SocketAddr>,
    others: &[Sited<SocketAddr>],
    (what, mend): (&str, &str),
) -> SocketAddr {
    if others.contains(&address) && address.value.port() != 0 {
        reading.note(&address.site, what, mend);
    }
    address.value
}

fn metrics_listen(root: &mut Section, listeners: &[Sited<SocketAddr>]) -> Option<SocketAddr> {
    let text = root.text("metrics_listen")?;
    let address = address(root.reading, text)?;
    let wrong = (
        "metrics need an address of their own",
        "write another port: metrics_listen = \"127.0.0.1:9601\"",
    );
    Some(distinct(root.reading, address, listeners, wrong))
}

fn server_settings(
    root: &mut Section,
    listen: Option<Sited<SocketAddr>>,
    tls: Option<TlsSettings>,
    listeners: &[Sited<SocketAddr>],
) -> ServerSettings {
    const SECS: RangeInclusive<usize> = 1..=86_400;
    const BYTES: RangeInclusive<usize> = 1_024..=1_073_741_824;
    let default = ServerSettings::default();
    let settings = ServerSettings {
        listen: listen.map_or(default.listen, |listen| listen.value),
        proxy_protocol: root.switch("proxy_protocol", default.proxy_protocol),
        tls,
        unix: unix(root),
        metrics_listen: metrics_listen(root, listeners),
        path_prefix: path_prefix(root).unwrap_or(default.path_prefix),
        activity_timeout: root.duration("activity_timeout_secs", SECS, default.activity_timeout),
        pong_timeout: root.duration("pong_timeout_secs", SECS, default.pong_timeout),
        handshake_timeout: root.duration("handshake_timeout_secs", SECS, default.handshake_timeout),
        write_timeout: root.duration("write_timeout_secs", SECS, default.write_timeout),
        shutdown_grace: root.duration("shutdown_grace_secs", 0..=86_400, default.shutdown_grace),
        shutdown_spread: root.duration("shutdown_spread_secs", 0..=3_600, default.shutdown_spread),
        assume_protocol: root
            .number("assume_protocol", 5..=7)
            .map(|version| version as u8),
        request_body_bytes_max: root.count(
            "request_body_bytes_max",
            BYTES,
            default.request_body_bytes_max,
        ),
        inbound_message_bytes_max: root.count(
            "inbound_message_bytes_max",
            BYTES,
            default.inbound_message_bytes_max,
        ),
        address_limits: AddressLimits {
            connections_max: unlimited_or(root, "connections_per_address_max"),
            refusals_per_sec_max: root.count(
                "refusals_per_address_per_sec_max",
                1..=1_000_000_000,
                default.address_limits.refusals_per_sec_max,
            ),
        },
        trusted_proxies: trusted_proxies(root).unwrap_or(default.trusted_proxies),
        outbox_bytes_total_max: root.count(
            "outbox_bytes_total_max",
            1_048_576..=1_099_511_627_776,
            default.outbox_bytes_total_max,
        ),
        outbox_bytes_max: root.count("outbox_bytes_max", BYTES, default.outbox_bytes_max),
        http_sessions_max: root.count(
            "http_sessions_max",
            1..=1_000_000_000,
            default.http_sessions_max,
        ),
    };
    let has_proxies = [
        settings.proxy_protocol,
        (settings.tls.as_ref()).is_some_and(|tls| tls.proxy_protocol),
        (settings.unix.as_ref()).is_some_and(|unix| unix.proxy_protocol),
    ];
    if has_proxies.contains(&true) && settings.trusted_proxies.0.is_empty() {
        let site = root.site_of("trusted_proxies");
        root.reading.note(
            site.as_ref().unwrap_or(&root.site),
            "with `proxy_protocol` only trusted proxies can connect, and there is none",
            "write the address of the proxy: trusted_proxies = [\"10.0.0.7\"]",
        );
    }
    settings
}

/// An empty list trusts nobody.
fn trusted_proxies(root: &mut Section) -> Option<TrustedProxies> {
    let texts = root.texts("trusted_proxies");
    root.site_of("trusted_proxies")?;
    let mut networks = Vec::new();
    for text in texts {
        match Network::parse(&text.value) {
            Some(network) => networks.push(network),
            None => root.reading.note(
                &text.site,
                format!("{:?} is neither an IP address nor a network", text.value),
                "write an address such as \"10.0.0.7\" or a network such as \"10.0.0.0/8\"",
            ),
        }
    }
    Some(TrustedProxies(networks))
}

fn path_prefix(root: &mut Section) -> Option<String> {
    let prefix = root.text("path_prefix")?;
    let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let is_segment = |part: &str| {
        let dots = matches!(part, "" | "." | "..");
        !dots && part.bytes().all(in_segment)
    };
    let well_formed = match prefix.value.strip_prefix('/') {
        Some(path) => path.split('/').all(is_segment),
        None => prefix.value.is_empty(),
    };
    if !well_formed {
        root.reading.note(
            &prefix.site,
            format!("{:?} cannot be a path to serve below", prefix.value),
            "write it as \"/realtime\": a slash before each part and none at the end; parts are \
             made of letters, digits and - _ . ~",
        );
    }
    well_formed.then_some(prefix.value)
}

fn log_settings(root: &mut Section, written: &Written) -> LogSettings {
    let default = LogSettings::default();
    root.table("log", "[log]", |log| LogSettings {
        level: log_level(log, written).unwrap_or(default.level),
        format: log_format(log, written).unwrap_or(default.format),
        audit: log.text("audit").and_then(|to| audit_log(log.reading, to)),
    })
}

/// A bare word is taken for a level only, though `tracing` would take any other word for the name
/// of a module and then log nothing at all.
fn log_level(log: &mut Section, written: &Written) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let in_file = log.text("level");
    let level = written.log_level.clone().or(in_file)?;
    let filter = level.value.to_ascii_lowercase();
    let unknown = filter
        .split(',')
        .map(str::trim)
        .find(|part| part.contains('[') || !part.contains('=') && !LEVELS.contains(part));
    let what = match unknown {
        Some(word) => format!("{word:?} is not a log level"),
        None => match super::targets(&level.value) {
            Ok(_) => return Some(level.value),
            Err(error) => format!("{:?} is not a log filter: {error}", level.value),
        },
    };
    let mend = match unknown.and_then(|word| nearest(word, &LEVELS)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "write one of {}, or a filter such as warn,raptor=debug",
            LEVELS.join(", ")
        ),
    };
    log.reading.note(&level.site, what, mend);
    None
}

fn audit_log(reading: &Reading, to: Sited<String>) -> Option<AuditLog> {
    match to.value.as_str() {
        "stdout" => Some(AuditLog::Stdout),
        path if path.contains('/') => Some(AuditLog::File(path.into())),
        other => {
            let what = format!("{other:?} is no place for the audit log");
            let mend = "write \"stdout\", or a file with its path: \"/var/log/raptor/audit.jsonl\"";
            reading.note(&to.site, what, mend);
            None
        }
    }
}

fn log_format(log: &mut Section, written: &Written) -> Option<LogFormat> {
    let in_file = log.text("format");
    let format = written.log_format.clone().or(in_file)?;
    match format.value.as_str() {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        other => {
            let what = format!("{other:?} is not a log format");
            log.reading.note(&format.site, what, "write text or json");
            None
        }
    }
}
