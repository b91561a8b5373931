//! The part of the configuration that says which apps there are.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::bayeux::{BayeuxDraft, bayeux};
use super::problem::{Problem, Site};
use super::section::{Reading, Section};
use super::webhooks::{self, EndpointDraft};
use super::written::{Sited, Written};
use super::{
    DEVELOPMENT_APP_SECRET, ServerSettings, development_app, development_bayeux, is_exposed,
};
use crate::apps::{App, AppKey, CHANNEL_NAME_CHARS_MAX, Features, Limits, OriginPattern};
use crate::auth::Secret;
use crate::bayeux;
use crate::model::AppId;

/// An app as it was written, before it is compared with the others.
pub(super) struct Draft {
    id: Sited<String>,
    name: Option<String>,
    enabled: bool,
    keys: Vec<DraftKey>,
    features: Features,
    limits: Limits,
    allowed_origins: Vec<OriginPattern>,
    bayeux: Option<BayeuxDraft>,
    webhooks: Vec<EndpointDraft>,
}

/// All that apps say, for each room its part.
pub(super) struct Joined {
    pub apps: Vec<App>,
    pub bayeux: Vec<(AppId, bayeux::Settings)>,
    pub webhooks: crate::webhooks::Settings,
}

struct DraftKey {
    key: Sited<String>,
    secret: Sited<String>,
}

/// The apps of the file with the one of flags and environment, which beats the file's credentials
/// for the same id.
pub(super) fn drafts(root: &mut Section, written: &Written, server: &ServerSettings) -> Vec<Draft> {
    let in_file = root.tables("apps", "[[apps]]", |app| draft(app, server));
    let mut drafts: Vec<_> = in_file.into_iter().flatten().collect();
    if let Some((id, key)) = given_app(root.reading, written) {
        match drafts.iter_mut().find(|draft| draft.id.value == id.value) {
            Some(draft) => draft.keys = vec![key],
            None => drafts.push(Draft {
                id,
                name: None,
                enabled: true,
                keys: vec![key],
                features: Features::default(),
                limits: Limits::default(),
                allowed_origins: Vec::new(),
                bayeux: None,
                webhooks: Vec::new(),
            }),
        }
    }
    drafts
}

/// Python's server library accepts no id but digits (`pusher.md` 5.1).
pub(super) fn warnings(drafts: &[Draft]) -> Vec<Problem> {
    let digits = |draft: &&Draft| draft.id.value.bytes().all(|byte| byte.is_ascii_digit());
    let others = drafts.iter().filter(|draft| !digits(draft));
    others
        .map(|draft| Problem {
            site: draft.id.site.clone(),
            what: format!("the app id {:?} is not a number", draft.id.value),
            mend: "the server libraries for Python and Go accept ids of digits only, such as 3"
                .to_owned(),
        })
        .collect()
}

/// Checks the apps against each other and against the addresses; without any there is the
/// development app.
pub(super) fn apps(
    reading: &Reading,
    drafts: Vec<Draft>,
    listeners: &[Sited<SocketAddr>],
    webhooks: crate::webhooks::Settings,
) -> Joined {
    let exposed = (listeners.iter()).find(|listen| is_exposed(listen.value));
    let refuse_well_known = |site: &Site, address: SocketAddr| {
        reading.note(
            site,
            format!("the development app's well-known secret may not be used on {address}"),
            "listen on 127.0.0.1, or give an app of your own: --app-id, --app-key and \
             --app-secret, the variables RAPTOR_APP_ID, RAPTOR_APP_KEY and RAPTOR_APP_SECRET, or \
             [[apps]] in a file",
        );
    };
    if drafts.is_empty() {
        if let Some(listen) = exposed {
            refuse_well_known(&listen.site, listen.value);
        }
        return Joined {
            apps: vec![development_app()],
            bayeux: vec![development_bayeux()],
            webhooks,
        };
    }

    let mut ids = HashMap::new();
    let mut keys = HashMap::new();
    let mut mounts = HashMap::new();
    for draft in &drafts {
        let id = &draft.id;
        if let Some(first) = ids.insert(&id.value, &id.site) {
            let what = format!("the app id {:?} is already taken: {first}", id.value);
            reading.note(&id.site, what, "give each app an id of its own");
        }
        for mount in draft.bayeux.iter().flat_map(|bayeux| &bayeux.mounts) {
            if let Some(first) = mounts.insert(&mount.value, &mount.site) {
                let what = format!("this path is already a mount: {first}");
                reading.note(
                    &mount.site,
                    what,
                    "give each path once, and to one app only",
                );
            }
        }
        for DraftKey { key, secret } in &draft.keys {
            if let Some(first) = keys.insert(&key.value, &key.site) {
                let what = format!("this key is already in use: {first}");
                reading.note(&key.site, what, "give each key once, and to one app only");
            }
            if let Some(listen) = exposed.filter(|_| secret.value == DEVELOPMENT_APP_SECRET) {
                refuse_well_known(&secret.site, listen.value);
            }
        }
    }
    let mut joined = Joined {
        apps: Vec::new(),
        bayeux: Vec::new(),
        webhooks,
    };
    for draft in drafts {
        draft.join(reading, &mut joined);
    }
    joined
}

impl Draft {
    fn join(self, reading: &Reading, joined: &mut Joined) {
        let keys = self
            .keys
            .into_iter()
            .map(|DraftKey { key, secret }| AppKey {
                key: key.value,
                secret: Secret::new(&secret.value),
            });
        let id = AppId::new(&self.id.value);
        let bayeux = self.bayeux.map(|bayeux| bayeux.settings);
        (joined.bayeux).push((id.clone(), bayeux.unwrap_or_default()));
        let endpoints = webhooks::endpoints(reading, self.webhooks, &id);
        joined.webhooks.endpoints.extend(endpoints);
        joined.apps.push(App {
            id,
            name: self.name,
            enabled: self.enabled,
            keys: keys.collect(),
            features: self.features,
            limits: self.limits,
            allowed_origins: self.allowed_origins,
        });
    }
}

/// `None` without an id, though the rest has been checked as well.
fn draft(app: &mut Section, server: &ServerSettings) -> Option<Draft> {
    let id = app.text("id");
    let id = id.filter(|id| is_identifier(app.reading, "app id", id));
    if app.site_of("id").is_none() {
        let mend = "write the app's id as it stands in URLs: id = \"3\"";
        app.reading.note(&app.site, "this app has no `id`", mend);
    }
    let name = app.text("name").map(|name| name.value);
    let enabled = app.switch("enabled", true);
    let keys = draft_keys(app);
    let features = features(app);
    let allowed_origins = allowed_origins(app);
    let limits = app.table("limits", "[apps.limits]", |table| limits(table, server));
    let bayeux = Some(bayeux(app));
    let webhooks = webhooks::drafts(app);
    Some(Draft {
        id: id?,
        name,
        enabled,
        keys,
        features,
        limits,
        allowed_origins,
        bayeux,
        webhooks,
    })
}

/// `key` and `secret` of the app itself come before those of its list.
fn draft_keys(app: &mut Section) -> Vec<DraftKey> {
    let first = draft_key(app);
    let more = app.tables("keys", "[[apps.keys]]", draft_key);
    let mut shorthand = app.site_of("key").into_iter().chain(app.site_of("secret"));
    if shorthand.next().is_none() && more.is_empty() {
        let mend = "write a key and its secret: key = \"…\" and secret = \"…\"";
        app.reading.note(&app.site, "this app has no key", mend);
    }
    first
        .into_iter()
        .chain(more.into_iter().flatten())
        .collect()
}

/// The `key` and the `secret` of a table, which stand there together or not at all.
fn draft_key(table: &mut Section) -> Option<DraftKey> {
    let (key, secret) = (table.text("key"), table.text("secret"));
    let note = |site: &Site, what: &str, mend: &str| table.reading.note(site, what, mend);
    match (table.site_of("key"), table.site_of("secret")) {
        (Some(site), None) => note(&site, "this key has no secret", "add secret = \"…\""),
        (None, Some(site)) => note(&site, "this secret has no key", "add key = \"…\""),
        _ => {}
    }
    let key = key.filter(|key| is_identifier(table.reading, "key", key));
    let secret = secret.filter(|secret| is_secret(table.reading, secret));
    Some(DraftKey {
        key: key?,
        secret: secret?,
    })
}

/// Id and key of the app that flags and environment describe.
fn given_app(reading: &Reading, written: &Written) -> Option<(Sited<String>, DraftKey)> {
    let parts = [&written.app_id, &written.app_key, &written.app_secret];
    if let [Some(id), Some(key), Some(secret)] = parts {
        let valid = [
            is_identifier(reading, "app id", id),
            is_identifier(reading, "key", key),
            is_secret(reading, secret),
        ];
        let (key, secret) = (key.clone(), secret.clone());
        return (!valid.contains(&false)).then(|| (id.clone(), DraftKey { key, secret }));
    }
    for part in parts.into_iter().flatten() {
        reading.note(
            &part.site,
            "an app's id, key and secret must be given together",
            "give --app-id, --app-key and --app-secret, each as a flag or as RAPTOR_APP_ID, \
             RAPTOR_APP_KEY and RAPTOR_APP_SECRET",
        );
    }
    None
}

/// Ids and keys stand in URLs, and keys before the colon of signatures.
fn is_identifier(reading: &Reading, noun: &str, text: &Sited<String>) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let valid = !text.value.is_empty() && text.value.bytes().all(allowed);
    if !valid {
        let what = format!("this {noun} is empty or has a forbidden character");
        let mend = "use letters, digits and - _ . only";
        reading.note(&text.site, what, mend);
    }
    valid
}

fn is_secret(reading: &Reading, secret: &Sited<String>) -> bool {
    let valid = !secret.value.is_empty() && secret.value.trim() == secret.value;
    if !valid {
        reading.note(
            &secret.site,
            "this secret is empty or has white space at an end",
            "`openssl rand -hex 10` makes a good one",
        );
    }
    valid
}

fn features(app: &mut Section) -> Features {
    let default = Features::default();
    let authorized_connections = app.switch("authorized_connections", false);
    let timeout = app.duration(
        "authorized_connections_timeout_secs",
        1..=86_400,
        Duration::from_secs(30),
    );
    Features {
        client_events: app.switch("client_events", default.client_events),
        subscription_count_events: app.switch(
            "subscription_count_events",
            default.subscription_count_events,
        ),
        watchlist_events: app.switch("watchlist_events", default.watchlist_events),
        authorized_connections: authorized_connections.then_some(timeout),
        force_tls: app.switch("force_tls", default.force_tls),
    }
}

fn allowed_origins(app: &mut Section) -> Vec<OriginPattern> {
    let mut origins = Vec::new();
    for text in app.texts("allowed_origins") {
        match OriginPattern::parse(&text.value) {
            Ok(origin) => origins.push(origin),
            Err(_) => app.reading.note(
                &text.site,
                format!("{:?} is not an origin", text.value),
                "write it as browsers send it, \"https://a.example\", or \"https://*.a.example\" for \
                 its subdomains; an empty list allows any",
            ),
        }
    }
    origins
}

fn limits(table: &mut Section, server: &ServerSettings) -> Limits {
    const COUNT: RangeInclusive<usize> = 1..=1_000_000_000;
    const TTL_SECS: RangeInclusive<usize> = 1..=86_400;
    let default = Limits::default();
    let connections_max = unlimited_or(table, "connections_max");
    let backend_events_max = unlimited_or(table, "backend_events_per_sec_max");
    let subscriptions_max = unlimited_or(table, "subscriptions_per_connection_max");
    let cache_ttl = table.duration("cache_ttl_secs", TTL_SECS, default.cache_ttl);
    let channel_name_chars_max = table.count(
        "channel_name_chars_max",
        1..=CHANNEL_NAME_CHARS_MAX,
        default.channel_name_chars_max,
    );
    let mut count = |key, default| table.count(key, COUNT, default);
    let limits = Limits {
        connections_max,
        subscriptions_per_connection_max: subscriptions_max,
        channel_name_chars_max,
        event_name_chars_max: count("event_name_chars_max", default.event_name_chars_max),
        event_data_bytes_max: count("event_data_bytes_max", default.event_data_bytes_max),
        channels_per_event_max: count("channels_per_event_max", default.channels_per_event_max),
        events_per_batch_max: count("events_per_batch_max", default.events_per_batch_max),
        presence_members_max: count("presence_members_max", default.presence_members_max),
        user_info_bytes_max: count("user_info_bytes_max", default.user_info_bytes_max),
        user_id_chars_max: count("user_id_chars_max", default.user_id_chars_max),
        client_events_per_sec_max: count(
            "client_events_per_sec_max",
            default.client_events_per_sec_max,
        ),
        control_messages_per_sec_max: count(
            "control_messages_per_sec_max",
            default.control_messages_per_sec_max,
        ),
        backend_events_per_sec_max: backend_events_max,
        watchlist_ids_max: count("watchlist_ids_max", default.watchlist_ids_max),
        cache_ttl,
    };
    if let Some(site) = table.site_of("event_data_bytes_max") {
        // An outbox that one event fills would cut off every subscriber.
        let room = server
            .request_body_bytes_max
            .min(server.outbox_bytes_max / 2);
        if limits.event_data_bytes_max > room {
            table.reading.note(
                &site,
                "events of that size do not fit the server's own limits",
                format!(
                    "write at most {room}, or raise request_body_bytes_max, and outbox_bytes_max \
                     to twice the size of an event"
                ),
            );
        }
    }
    limits
}

/// A limit for which 0 stands for none.
pub(super) fn unlimited_or(table: &mut Section, key: &'static str) -> Option<NonZeroUsize> {
    table
        .number(key, 0..=1_000_000_000)
        .and_then(NonZeroUsize::new)
}
