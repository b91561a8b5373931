//! What is printed on stdout about a configuration.

use std::net::SocketAddr;

use raptor::apps::{App, AppKey};
use raptor::config::{Config, DEVELOPMENT_APP_KEY, DEVELOPMENT_APP_SECRET, is_well_known};
use raptor::webhooks::Endpoint;

use super::trigger::DEVELOPMENT_URL;

const APPS_SHOWN_MAX: usize = 20;

/// The address, the apps and snippets to paste. The first line is one that programs wait for.
/// Shows no secret but the one that everybody knows.
pub fn text(address: SocketAddr, config: &Config) -> String {
    let mut text = format!("Raptor is listening on http://{address}\n");
    if let Some(kept) = webhooks_kept(config) {
        text += &format!("Webhooks are kept {kept}\n");
    }
    for app in config.apps.iter().take(APPS_SHOWN_MAX) {
        let state = if app.enabled { "" } else { ", disabled" };
        text += &format!("\nApp {}{state}\n", title(app));
        for key in &app.keys {
            text += &format!("  key {}\n", key.key);
            text += &format!("  PUSHER_URL={}\n", app_url(address, app, key));
        }
        for mount in mounts(config, app) {
            text += &format!("  Faye at {}\n", url(address, mount));
        }
    }
    if config.apps.len() > APPS_SHOWN_MAX {
        let more = config.apps.len() - APPS_SHOWN_MAX;
        text += &format!("\nand {more} more, which `raptor check` lists\n");
    }
    if let Some(app) = config.apps.iter().find(|app| app.enabled) {
        text += &pusher_snippet(address, app, &config.server.path_prefix);
        if let Some(mount) = mounts(config, app).first() {
            text += &faye_snippet(&url(address, mount));
        }
        text += &trigger_snippet(address, app);
    }
    text.trim_end().to_owned()
}

/// What `raptor check` says of a valid configuration.
pub fn summary(config: &Config) -> String {
    let server = &config.server;
    let mut text = format!(
        "configuration is valid\n  listens on {}{}, logs {}\n",
        server.listen, server.path_prefix, config.log.level
    );
    for app in &config.apps {
        let features = &app.features;
        let mut notes = vec![match app.keys.len() {
            1 => "1 key".to_owned(),
            keys => format!("{keys} keys"),
        }];
        for (on, name) in [
            (!app.enabled, "disabled"),
            (features.client_events, "client_events"),
            (
                features.subscription_count_events,
                "subscription_count_events",
            ),
            (features.watchlist_events, "watchlist_events"),
            (
                features.authorized_connections.is_some(),
                "authorized_connections",
            ),
            (features.force_tls, "force_tls"),
            (!app.allowed_origins.is_empty(), "allowed_origins"),
        ] {
            if on {
                notes.push(name.to_owned());
            }
        }
        text += &format!("  app {}: {}\n", title(app), notes.join(", "));
        for endpoint in config.webhooks.endpoints.iter().filter(|e| e.app == app.id) {
            text += &format!("    webhooks to {}\n", webhook(endpoint));
        }
    }
    if let Some(kept) = webhooks_kept(config) {
        text += &format!("  webhooks are kept {kept}\n");
    }
    for warning in &config.warnings {
        text += &format!("warning: {warning}\n");
    }
    text.trim_end().to_owned()
}

/// Where, and for how long; `None` if there are none.
fn webhooks_kept(config: &Config) -> Option<String> {
    let settings = &config.webhooks;
    let mebibytes = settings.store_bytes_max >> 20;
    (!settings.endpoints.is_empty()).then(|| match &settings.dir {
        _ if config.redis.is_some() => {
            "in Redis, and sent by one node of the cluster at a time".to_owned()
        }
        Some(dir) => {
            let until = match settings.fsync {
                true => "synced to disk at each write",
                false => "synced to disk now and then",
            };
            let dir = dir.display().to_string();
            format!("in {}, up to {mebibytes} MiB, {until}", dir.escape_debug())
        }
        None => format!(
            "in memory only, up to {mebibytes} MiB: they do not survive this process (set `dir` \
             in [webhooks])"
        ),
    })
}

/// No header and no query: both may hold secrets.
fn webhook(endpoint: &Endpoint) -> String {
    let mut text = format!(
        "{}: {}",
        endpoint.name.escape_debug(),
        endpoint.events.join(" ")
    );
    if !endpoint.channel_prefixes.is_empty() {
        let prefixes = endpoint.channel_prefixes.join("*, ");
        text += &format!(", on channels {prefixes}*");
    }
    if endpoint.allow_private_networks {
        text += ", private networks allowed";
    }
    text
}

/// The paths below which the app is a Bayeux server.
fn mounts<'c>(config: &'c Config, app: &App) -> &'c [String] {
    let settings = config.bayeux.iter().find(|(id, _)| *id == app.id);
    settings.map_or(&[], |(_, settings)| &settings.mounts)
}

fn pusher_snippet(address: SocketAddr, app: &App, path_prefix: &str) -> String {
    let path = match path_prefix {
        "" => String::new(),
        prefix => format!("\n    wsPath: \"{prefix}\","),
    };
    format!(
        r#"
In a page, with pusher-js:

  const pusher = new Pusher("{key}", {{
    cluster: "any",
    wsHost: "{host}",
    wsPort: {port},
    wssPort: {port},{path}
    forceTLS: {force_tls},
    enabledTransports: ["ws", "wss"],
  }});
  pusher.subscribe("my-channel").bind("my-event", (data) => console.log(data));
"#,
        key = app.keys[0].key,
        host = host(address),
        port = address.port(),
        force_tls = app.features.force_tls,
    )
}

fn faye_snippet(url: &str) -> String {
    format!(
        r#"
In a page, with Faye, on the same channel:

  <script src="{url}/client.js"></script>
  const client = new Faye.Client("{url}");
  client.subscribe("/my-channel", (data) => console.log(data));
"#
    )
}

fn trigger_snippet(address: SocketAddr, app: &App) -> String {
    let url = match app_url(address, app, &app.keys[0]) {
        default if default == DEVELOPMENT_URL => String::new(),
        url => format!("--url {url} "),
    };
    format!(
        r#"
Then, in a shell:

  raptor trigger {url}my-channel my-event '{{"message":"hello"}}'
"#
    )
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{}:{}{path}", host(address), address.port())
}

/// The URL that server libraries take, with a placeholder for a secret that is one.
fn app_url(address: SocketAddr, app: &App, key: &AppKey) -> String {
    let secret = match is_development(key) {
        true => DEVELOPMENT_APP_SECRET,
        false => "YOUR-SECRET",
    };
    let (host, port) = (host(address), address.port());
    format!("http://{}:{secret}@{host}:{port}/apps/{}", key.key, app.id)
}

fn is_development(key: &AppKey) -> bool {
    key.key == DEVELOPMENT_APP_KEY && is_well_known(&key.secret)
}

/// A name under which this machine reaches `address`, as it stands in URLs.
fn host(address: SocketAddr) -> String {
    match address {
        _ if address.ip().is_unspecified() => "localhost".to_owned(),
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

fn title(app: &App) -> String {
    match &app.name {
        Some(name) => format!("{} ({})", app.id, name.escape_debug()),
        None => app.id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use raptor::config::{Written, WrittenFile};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn config(text: &str) -> Config {
        let file = WrittenFile {
            name: "raptor.toml".to_owned(),
            text: text.to_owned(),
        };
        let written = Written {
            file: Some(file),
            ..Written::default()
        };
        Config::from_written(&written).unwrap_or_else(|problems| panic!("{problems}"))
    }

    const TWO_APPS: &str = r#"
        path_prefix = "/realtime"
        [[apps]]
        id = "3"
        name = "a \u001b"
        enabled = false
        key = "k3"
        secret = "hush"
        [[apps]]
        id = "four"
        keys = [{ key = "old", secret = "hush" }, { key = "new", secret = "hush" }]
        client_events = true
    "#;

    #[test]
    fn the_development_app_comes_with_all_that_is_needed_to_try_it() {
        let shown = text(address("127.0.0.1:6001"), &Config::development());
        let first = shown.lines().next();
        assert_eq!(first, Some("Raptor is listening on http://127.0.0.1:6001"));
        for part in [
            "App app-id (development)\n",
            "PUSHER_URL=http://app-key:app-secret@127.0.0.1:6001/apps/app-id\n",
            "new Pusher(\"app-key\"",
            "wsPort: 6001,",
            "raptor trigger my-channel my-event",
            "Faye at http://127.0.0.1:6001/faye\n",
            "<script src=\"http://127.0.0.1:6001/faye/client.js\"></script>\n",
            "new Faye.Client(\"http://127.0.0.1:6001/faye\")",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let elsewhere = text(address("127.0.0.1:7"), &Config::development());
        let url = "trigger --url http://app-key:app-secret@127.0.0.1:7/apps/app-id my-channel";
        assert!(elsewhere.contains(url), "{elsewhere}");
    }

    #[test]
    fn other_secrets_are_not_shown() {
        let config = config(TWO_APPS);
        let shown = text(address("[::1]:7"), &config);
        assert!(!shown.contains("hush"), "{shown}");
        assert!(!summary(&config).contains("hush"));
        assert!(!shown.contains("Faye"), "no app has a mount: {shown}");
        for part in [
            "App 3 (a \\u{1b}), disabled\n",
            "PUSHER_URL=http://old:YOUR-SECRET@[::1]:7/apps/four\n",
            "PUSHER_URL=http://new:YOUR-SECRET@[::1]:7/apps/four\n",
            "new Pusher(\"old\"",
            "wsPath: \"/realtime\"",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn an_address_that_is_every_address_is_reached_as_localhost() {
        for every in ["0.0.0.0:7", "[::]:7"] {
            let shown = text(address(every), &config(TWO_APPS));
            assert!(shown.starts_with(&format!("Raptor is listening on http://{every}\n")));
            assert!(shown.contains("@localhost:7/apps/four"), "{shown}");
        }
    }

    #[test]
    fn the_summary_names_apps_and_what_is_switched_on() {
        assert_eq!(
            summary(&config(TWO_APPS)),
            "configuration is valid\n  listens on 127.0.0.1:6001/realtime, logs info\n  \
             app 3 (a \\u{1b}): 1 key, disabled\n  app four: 2 keys, client_events\n\
             warning: raptor.toml:10: the app id \"four\" is not a number\n    \
             the server libraries for Python and Go accept ids of digits only, such as 3"
        );
    }
}
