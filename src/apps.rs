//! The applications this server serves: their keys, switches and limits.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::auth::Secret;
use crate::model::AppId;

/// Finds an app by its id or by one of its keys. The whole table can be replaced while it is read.
#[derive(Debug)]
pub struct AppRegistry(RwLock<Arc<Table>>);

/// Never changed once built, so that both maps always hold the same apps.
#[derive(Debug)]
struct Table {
    by_id: HashMap<String, Arc<App>>,
    by_key: HashMap<String, Arc<App>>,
}

impl AppRegistry {
    /// `apps` have distinct ids and keys.
    pub fn new(apps: Vec<App>) -> Self {
        Self(RwLock::new(Arc::new(Table::new(apps))))
    }

    pub fn by_id(&self, id: &str) -> Option<Arc<App>> {
        self.table().by_id.get(id).cloned()
    }

    pub fn by_key(&self, key: &str) -> Option<Arc<App>> {
        self.table().by_key.get(key).cloned()
    }

    /// Who already holds an `Arc<App>` goes on with that one.
    pub fn replace(&self, apps: Vec<App>) {
        let table = Arc::new(Table::new(apps));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    fn table(&self) -> Arc<Table> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Table {
    fn new(apps: Vec<App>) -> Self {
        let apps: Vec<_> = apps.into_iter().map(Arc::new).collect();
        let ids = apps.iter().map(|app| (app.id.to_string(), app.clone()));
        let keys = apps.iter().flat_map(|app| {
            let of_app = |key: &AppKey| (key.key.clone(), app.clone());
            app.keys.iter().map(of_app)
        });
        Self {
            by_id: ids.collect(),
            by_key: keys.collect(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct App {
    pub id: AppId,
    pub name: Option<String>,
    /// A disabled app refuses connections (4003) and requests (403).
    pub enabled: bool,
    /// At least one, the oldest first. All are valid, so that keys can be rotated.
    pub keys: Vec<AppKey>,
    pub features: Features,
    pub limits: Limits,
    /// Empty: any.
    pub allowed_origins: Vec<OriginPattern>,
}

#[derive(Clone, Debug)]
pub struct AppKey {
    pub key: String,
    pub secret: Secret,
}

impl App {
    pub fn key(&self, key: &str) -> Option<&AppKey> {
        self.keys.iter().find(|known| known.key == key)
    }

    /// Whether a connection with this `Origin` header may be made. Only browsers send the header,
    /// and they always do; other clients could send what they like, so its absence says nothing.
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        let allowed = &self.allowed_origins;
        match origin {
            Some(origin) => {
                allowed.is_empty() || allowed.iter().any(|pattern| pattern.matches(origin))
            }
            None => true,
        }
    }
}

/// The switches of Pusher's dashboard. The defaults are hosted's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Features {
    pub client_events: bool,
    pub subscription_count_events: bool,
    pub watchlist_events: bool,
    /// `Some`: a connection must sign in or subscribe to a private channel within this time
    /// (`pusher.md` 1.8).
    pub authorized_connections: Option<Duration>,
    pub force_tls: bool,
}

/// What one app may use. The defaults are hosted's (`pusher.md` 12); `None` is no limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    pub connections_max: Option<NonZeroUsize>,
    pub subscriptions_per_connection_max: Option<NonZeroUsize>,
    /// At most [`CHANNEL_NAME_CHARS_MAX`].
    pub channel_name_chars_max: usize,
    pub event_name_chars_max: usize,
    pub event_data_bytes_max: usize,
    pub channels_per_event_max: usize,
    pub events_per_batch_max: usize,
    pub presence_members_max: usize,
    pub user_info_bytes_max: usize,
    pub user_id_chars_max: usize,
    /// Per connection.
    pub client_events_per_sec_max: usize,
    /// Per connection; whoever sends more is read no faster. Pings, unsubscriptions and whatever is
    /// refused: what a client may repeat without end, as nothing of it lasts.
    pub control_messages_per_sec_max: usize,
    /// Of the application; an event counts once for each of its channels.
    pub backend_events_per_sec_max: Option<NonZeroUsize>,
    pub watchlist_ids_max: usize,
    pub cache_ttl: Duration,
}

/// What the server libraries let through (`pusher.md` 2.1).
pub const CHANNEL_NAME_CHARS_MAX: usize = 200;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: None,
            subscriptions_per_connection_max: None,
            channel_name_chars_max: 164,
            event_name_chars_max: 200,
            event_data_bytes_max: 10_240,
            channels_per_event_max: 100,
            events_per_batch_max: 10,
            presence_members_max: 100,
            user_info_bytes_max: 1_024,
            user_id_chars_max: 128,
            client_events_per_sec_max: 10,
            control_messages_per_sec_max: 1_000,
            backend_events_per_sec_max: None,
            watchlist_ids_max: 100,
            cache_ttl: Duration::from_secs(1_800),
        }
    }
}

/// An origin as browsers send it, `https://a.example` or `http://localhost:3000`; or all
/// subdomains of one at any depth, `https://*.a.example`, which leaves out `https://a.example`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OriginPattern {
    scheme: String,
    subdomains: bool,
    /// With the port, unless it is the scheme's own.
    host: String,
}

/// The text is no origin, or one with a `*` elsewhere than as its first label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidOrigin;

impl OriginPattern {
    pub fn parse(text: &str) -> Result<Self, InvalidOrigin> {
        let (scheme, host) = split_origin(text).ok_or(InvalidOrigin)?;
        let (subdomains, host) = match host.strip_prefix("*.") {
            Some(host) => (true, host.to_owned()),
            None => (false, host),
        };
        // As it was written: without its port another may be left.
        let (_, written) = text.split_once("://").ok_or(InvalidOrigin)?;
        let written = written.strip_prefix("*.").unwrap_or(written);
        let well_formed = is_scheme(&scheme) && is_host_and_port(written);
        well_formed
            .then_some(Self {
                scheme,
                subdomains,
                host,
            })
            .ok_or(InvalidOrigin)
    }

    pub fn matches(&self, origin: &str) -> bool {
        split_origin(origin).is_some_and(|(scheme, host)| {
            let host_matches = match host.strip_suffix(&self.host) {
                Some("") => !self.subdomains,
                Some(labels) => self.subdomains && labels.len() > 1 && labels.ends_with('.'),
                None => false,
            };
            scheme == self.scheme && host_matches
        })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subdomains = if self.subdomains { "*." } else { "" };
        write!(f, "{}://{subdomains}{}", self.scheme, self.host)
    }
}

/// Scheme and host in lower case, the port left out where it is the scheme's own.
fn split_origin(origin: &str) -> Option<(String, String)> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, host) = origin.split_once("://")?;
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(own_port).unwrap_or(host);
    Some((scheme.to_owned(), host.to_owned()))
}

fn is_scheme(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(rest)
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_holds = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let in_label = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !label.is_empty() && label.bytes().all(in_label)
        }),
    };
    let is_port = |port: &str| !port.starts_with('+') && port.parse::<u16>().is_ok();
    host_holds && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(id: &str, keys: &[&str]) -> App {
        let key = |key: &&str| AppKey {
            key: key.to_string(),
            secret: Secret::new("secret"),
        };
        App {
            id: AppId::new(id),
            name: None,
            enabled: true,
            keys: keys.iter().map(key).collect(),
            features: Features::default(),
            limits: Limits::default(),
            allowed_origins: Vec::new(),
        }
    }

    #[test]
    fn an_app_is_found_by_its_id_and_by_each_of_its_keys() {
        let registry = AppRegistry::new(vec![app("1", &["a", "b"]), app("2", &["c"])]);
        let found = |app: Option<Arc<App>>| app.map(|app| app.id.to_string());
        assert_eq!(found(registry.by_id("1")).as_deref(), Some("1"));
        assert_eq!(found(registry.by_id("2")).as_deref(), Some("2"));
        assert_eq!(found(registry.by_key("b")).as_deref(), Some("1"));
        assert_eq!(found(registry.by_key("c")).as_deref(), Some("2"));
        assert_eq!(found(registry.by_id("a")), None);
        assert_eq!(found(registry.by_key("1")), None);

        let one = registry.by_id("1").unwrap();
        assert_eq!(one.key("b").map(|key| key.key.as_str()), Some("b"));
        assert!(one.key("c").is_none());
    }

    #[test]
    fn replacing_the_table_leaves_holders_of_an_app_alone() {
        let registry = AppRegistry::new(vec![app("1", &["a"]), app("2", &["b"])]);
        let held = registry.by_key("a").unwrap();
        registry.replace(vec![app("1", &["new"])]);
        assert!(registry.by_key("a").is_none());
        assert!(registry.by_id("2").is_none());
        assert!(registry.by_key("new").is_some());
        assert!(held.key("a").is_some());
    }

    #[test]
    fn an_apps_secrets_are_not_in_its_debug_output() {
        let shown = format!("{:?}", AppRegistry::new(vec![app("1", &["a"])]));
        assert!(shown.contains("***"), "{shown}");
        assert!(!shown.contains("\"secret\""), "{shown}");
    }

    #[test]
    fn origins_are_matched_whole() {
        for (pattern, origin, matches) in [
            ("https://a.example", "https://a.example", true),
            ("https://A.example:443", "https://a.EXAMPLE", true),
            ("http://a.example", "http://a.example:80", true),
            ("http://localhost:3000", "http://localhost:3000", true),
            ("http://[::1]:3000", "http://[::1]:3000", true),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("https://*.a.example", "https://b.a.example", true),
            ("https://*.a.example", "https://c.b.a.example", true),
            ("https://*.a.example:8443", "https://b.a.example:8443", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://b.a.example", false),
            ("https://a.example", "https://nota.example", false),
            ("https://a.example", "https://a.example.evil.example", false),
            ("https://a.example", "a.example", false),
            ("https://a.example", "null", false),
            ("https://a.example", "", false),
            ("https://*.a.example", "https://a.example", false),
            ("https://*.a.example", "https://.a.example", false),
            ("https://*.a.example", "https://nota.example", false),
            ("https://*.a.example", "https://b.a.example:8443", false),
        ] {
            let parsed = OriginPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(origin), matches, "{pattern} {origin}");
        }
    }

    #[test]
    fn a_pattern_is_a_full_origin() {
        for bad in [
            "",
            "*",
            "null",
            "a.example",
            "https://",
            "https://*",
            "https://a.example/",
            "https://a.example/path",
            "https://a.*.example",
            "https://*a.example",
            "https://a b",
            "https://a..example",
            "https://a.example:",
            "https://a.example:99999",
            "https://a.example:+8",
            "https://a.example:443:443",
            "://a.example",
            "https://user@a.example",
            "https://[::1",
            "https://::1",
            "https://ä.example",
        ] {
            assert_eq!(OriginPattern::parse(bad), Err(InvalidOrigin), "{bad:?}");
        }
    }

    #[test]
    fn only_listed_origins_are_allowed_where_there_is_a_list() {
        let mut app = app("1", &["a"]);
        assert!(app.allows_origin(Some("https://evil.example")));
        app.allowed_origins = vec![OriginPattern::parse("https://a.example").unwrap()];
        assert!(app.allows_origin(Some("https://a.example")));
        assert!(!app.allows_origin(Some("https://evil.example")));
        assert!(!app.allows_origin(Some("")));
        assert!(app.allows_origin(None));
    }
}
