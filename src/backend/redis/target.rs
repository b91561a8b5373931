//! Which Redis: what the user wrote as a URL, and where its primaries are now.
//!
//! ```text
//! redis://[user:password@]host[:6379][/database]
//! unix:///path/to/redis.sock[?db=0]
//! redis-sentinel://[user:password@]host[:26379],host…/name-of-the-master[?db=0]
//! redis-cluster://[user:password@]host[:6379],host…
//! ```
//!
//! `rediss`, `rediss-sentinel` and `rediss-cluster` are the same over TLS.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, TlsCertificates, Value, cmd,
};

use super::keys::{PLACES, slot_of};

#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    target: Target,
    tls: bool,
    username: Option<String>,
    password: Option<String>,
    database: i64,
    /// What every key and topic starts with.
    pub key_prefix: String,
    /// For how long Redis may not answer before it counts as away.
    pub command_timeout: Duration,
    /// Where TLS trusts something else than the system's roots, or a client certificate is wanted.
    pub certificates: Certificates,
}

/// PEM texts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    pub authority: Option<Vec<u8>>,
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Single(String, u16),
    Socket(PathBuf),
    Sentinel { sentinels: Hosts, master: String },
    Cluster(Hosts),
}

type Hosts = Vec<(String, u16)>;

/// A primary and what it is responsible for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Primary {
    pub address: Address,
    pub places: Vec<usize>,
    /// Whether topics are published with SPUBLISH.
    pub is_sharded: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    Tcp(String, u16),
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Without the password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.target;
        write!(f, "{target:?} tls={} database={}", self.tls, self.database)
    }
}

impl Settings {
    /// The error says what is wrong with the URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("a Redis URL starts with redis:// or one of its relatives")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (username, password) = match credentials.map(|c| c.split_once(':').unwrap_or((c, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        let mut database = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("db", number)) => database = Some(number),
                _ => return Err(format!("{pair:?} is no parameter of a Redis URL; db=N is")),
            }
        }
        let (hosts, path) = match scheme {
            "unix" | "redis+unix" => ("", rest),
            _ => rest.split_once('/').unwrap_or((rest, "")),
        };
        let (base, tls) = match scheme.strip_prefix("rediss") {
            Some(base) => (format!("redis{base}"), true),
            None => (scheme.to_owned(), false),
        };
        let target = match base.as_str() {
            "redis" => {
                if !path.is_empty() {
                    database = Some(path);
                }
                match host_list(hosts, 6379)?.as_slice() {
                    [(host, port)] => Target::Single(host.clone(), *port),
                    _ => {
                        return Err(
                            "several hosts are for redis-sentinel:// or redis-cluster://".into(),
                        );
                    }
                }
            }
            "unix" | "redis+unix" if path.starts_with('/') => Target::Socket(path.into()),
            "unix" | "redis+unix" => {
                return Err("write a socket as unix:///path/to/redis.sock".into());
            }
            "redis-sentinel" if path.is_empty() => {
                return Err(
                    "the name of the master is missing: redis-sentinel://HOSTS/NAME".into(),
                );
            }
            "redis-sentinel" => Target::Sentinel {
                sentinels: host_list(hosts, 26_379)?,
                master: path.to_owned(),
            },
            "redis-cluster" if path.is_empty() && database.is_none() => {
                Target::Cluster(host_list(hosts, 6379)?)
            }
            "redis-cluster" => return Err("a Redis Cluster has only database 0".into()),
            _ => return Err(format!("{scheme}:// is no scheme of a Redis URL")),
        };
        let database = match database.unwrap_or("0").parse::<u16>() {
            Ok(number) => number.into(),
            Err(_) => return Err("a database is a number".into()),
        };
        Ok(Self {
            target,
            tls,
            username,
            password,
            database,
            key_prefix: "raptor".to_owned(),
            command_timeout: Duration::from_secs(2),
            certificates: Certificates::default(),
        })
    }

    pub fn is_tls(&self) -> bool {
        self.tls
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster(_))
    }

    /// Where the primaries are. Asks Sentinel or the cluster.
    pub async fn primaries(&self) -> Result<Vec<Primary>, RedisError> {
        let all = |address| {
            vec![Primary {
                address,
                places: (0..PLACES).collect(),
                is_sharded: false,
            }]
        };
        match &self.target {
            Target::Single(host, port) => Ok(all(Address::Tcp(host.clone(), *port))),
            Target::Socket(path) => Ok(all(Address::Socket(path.clone()))),
            Target::Sentinel { sentinels, master } => {
                let address = first_of(sentinels, |at| self.ask_sentinel(at, master)).await?;
                Ok(all(address))
            }
            Target::Cluster(seeds) => first_of(seeds, |at| self.ask_cluster(at)).await,
        }
    }

    async fn ask_sentinel(&self, at: Address, master: &str) -> Result<Address, RedisError> {
        let mut sentinel = self.open(&at, RedisConnectionInfo::default(), None).await?;
        let mut ask = cmd("SENTINEL");
        ask.arg("get-master-addr-by-name").arg(master);
        let (host, port) = ask.query_async(&mut sentinel).await?;
        Ok(Address::Tcp(host, port))
    }

    async fn ask_cluster(&self, at: Address) -> Result<Vec<Primary>, RedisError> {
        let mut node = self.connect(&at, None).await?;
        let info: String = cmd("INFO").arg("server").query_async(&mut node).await?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        let major = version.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
        let is_sharded = major.is_some_and(|major| major >= 7);
        let ranges: Vec<Value> = cmd("CLUSTER").arg("SLOTS").query_async(&mut node).await?;
        let mut primaries: Vec<Primary> = Vec::new();
        for range in ranges {
            let parts: Vec<Value> = redis::from_redis_value(range)?;
            let [from, to, primary, ..] = &parts[..] else {
                continue;
            };
            let from: u16 = redis::from_redis_value(from.clone())?;
            let to: u16 = redis::from_redis_value(to.clone())?;
            let primary: Vec<Value> = redis::from_redis_value(primary.clone())?;
            let [host, port, ..] = &primary[..] else {
                continue;
            };
            let port: u16 = redis::from_redis_value(port.clone())?;
            // A node that does not know its own address leaves it out.
            let host: Option<String> = redis::from_redis_value(host.clone())?;
            let host = match (host.filter(|host| !host.is_empty()), &at) {
                (Some(host), _) => host,
                (None, Address::Tcp(host, _)) => host.clone(),
                (None, Address::Socket(_)) => continue,
            };
            let address = Address::Tcp(host, port);
            let places = (0..PLACES).filter(|place| (from..=to).contains(&slot_of(*place)));
            match primaries.iter_mut().find(|known| known.address == address) {
                Some(known) => known.places.extend(places),
                None => primaries.push(Primary {
                    address,
                    places: places.collect(),
                    is_sharded,
                }),
            }
        }
        primaries.retain(|primary| !primary.places.is_empty());
        for primary in &mut primaries {
            primary.places.sort_unstable();
        }
        Ok(primaries)
    }

    pub async fn connect(
        &self,
        address: &Address,
        config: Option<AsyncConnectionConfig>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut info = RedisConnectionInfo::default()
            .set_db(self.database)
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = self.username.as_ref().filter(|name| !name.is_empty()) {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        self.open(address, info, config).await
    }

    async fn open(
        &self,
        address: &Address,
        info: RedisConnectionInfo,
        config: Option<AsyncConnectionConfig>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let address = match address.clone() {
            Address::Socket(path) => ConnectionAddr::Unix(path),
            Address::Tcp(host, port) if self.tls => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host, port),
        };
        let info = address.into_connection_info()?.set_redis_settings(info);
        let Certificates { authority, client } = self.certificates.clone();
        let client = match self.tls {
            true => Client::build_with_tls(
                info,
                TlsCertificates {
                    client_tls: client.map(|(client_cert, client_key)| ClientTlsConfig {
                        client_cert,
                        client_key,
                    }),
                    root_cert: authority,
                },
            )?,
            false => Client::open(info)?,
        };
        let config = config
            .unwrap_or_default()
            .set_connection_timeout(Some(self.command_timeout))
            .set_response_timeout(Some(self.command_timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

/// What the first host that answers says.
async fn first_of<T, F: Future<Output = Result<T, RedisError>>>(
    hosts: &Hosts,
    ask: impl Fn(Address) -> F,
) -> Result<T, RedisError> {
    let mut last = None;
    for (host, port) in hosts {
        match ask(Address::Tcp(host.clone(), *port)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| (redis::ErrorKind::InvalidClientConfig, "no host").into()))
}

fn decoded(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "user and password are UTF-8, percent-encoded")?;
    Ok(Some(decoded.into_owned()))
}

fn host_list(hosts: &str, default_port: u16) -> Result<Hosts, String> {
    let host = |text: &str| {
        let wrong = || format!("{text:?} is no host with a port");
        // A colon in brackets belongs to an IPv6 address.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (text, default_port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match host.is_empty() {
            true => Err(wrong()),
            false => Ok((host.to_owned(), port)),
        }
    };
    hosts.split(',').map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_a_socket_sentinels_or_a_cluster() {
        let host = |name: &str, port| (name.to_owned(), port);
        for (url, target) in [
            ("redis://h", Target::Single("h".into(), 6379)),
            ("rediss://u:p%40@h:1/3", Target::Single("h".into(), 1)),
            ("redis://[::1]:7", Target::Single("::1".into(), 7)),
            ("redis://[::1]", Target::Single("::1".into(), 6379)),
            ("unix:///a/b?db=3", Target::Socket("/a/b".into())),
            (
                "redis-sentinel://a,b:2/m?db=3",
                Target::Sentinel {
                    sentinels: vec![host("a", 26_379), host("b", 2)],
                    master: "m".into(),
                },
            ),
            (
                "rediss-cluster://:p@a:1,b",
                Target::Cluster(vec![host("a", 1), host("b", 6379)]),
            ),
        ] {
            let settings = Settings::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(settings.target, target, "{url}");
            assert_eq!(settings.tls, url.starts_with("rediss"), "{url}");
            assert_eq!(
                settings.database,
                if url.contains('3') { 3 } else { 0 },
                "{url}"
            );
        }
        let settings = Settings::parse("rediss://u:p%40@h").unwrap();
        assert_eq!(settings.username.as_deref(), Some("u"));
        assert_eq!(settings.password.as_deref(), Some("p@"));
        assert!(!format!("{settings:?}").contains("p@"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in [
            "",
            "h:6379",
            "http://h",
            "redis://",
            "redis://a,b",
            "redis://h:port",
            "redis://h/one",
            "redis://h?x=1",
            "redis-sentinel://h",
            "redis-cluster://h/1",
            "unix://a",
        ] {
            assert!(Settings::parse(url).is_err(), "{url}");
        }
    }
}
