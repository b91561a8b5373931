//! The part of an app's configuration that is about Bayeux, `[apps.bayeux]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, ORIGIN};

use super::problem::Site;
use super::section::{Section, nearest};
use super::webhooks::url;
use super::written::Sited;
use crate::bayeux::authorise::{
    Channels, ExtToken, PublishTokens, SignedChannels, SubscribeTokens, Token,
};
use crate::bayeux::channel::{Pattern, is_name};
use crate::bayeux::mapping::Style;
use crate::bayeux::permission::{Matter, PermissionWebhook};
use crate::bayeux::settings::{ClientPublish, EventIn, Limits, Wildcards};
use crate::bayeux::{Settings, TAKEN};

/// What was written, with the place of each mount so that apps can be compared.
pub(super) struct BayeuxDraft {
    pub settings: Settings,
    pub mounts: Vec<Sited<String>>,
}

pub(super) fn bayeux(app: &mut Section) -> BayeuxDraft {
    app.table("bayeux", "[apps.bayeux]", |table| {
        let default = Settings::default();
        let mounts = mounts(table);
        let settings = Settings {
            mounts: mounts.iter().map(|mount| mount.value.clone()).collect(),
            style: choice(
                table,
                "style",
                &[
                    ("typed", Style::Typed),
                    ("flat", Style::Flat),
                    ("untyped", Style::Untyped),
                ],
            ),
            event_in: choice(
                table,
                "event_in",
                &[("ext", EventIn::Ext), ("data", EventIn::Data)],
            ),
            client_publish: choice(
                table,
                "client_publish",
                &[
                    ("open", ClientPublish::Open),
                    ("token", ClientPublish::Token),
                    ("none", ClientPublish::Nobody),
                ],
            ),
            wildcards: choice(
                table,
                "wildcards",
                &[
                    ("all", Wildcards::All),
                    ("public", Wildcards::Public),
                    ("off", Wildcards::Off),
                ],
            ),
            forward_ext: table.switch("forward_ext", default.forward_ext),
            forward_unknown_members: table.switch("forward_unknown_members", false),
            handshake_tokens: tokens(
                table,
                "handshake_tokens",
                "[[apps.bayeux.handshake_tokens]]",
            ),
            publish_tokens: PublishTokens(tokens(
                table,
                "publish_tokens",
                "[[apps.bayeux.publish_tokens]]",
            )),
            subscribe_tokens: subscribe_tokens(table),
            signed_channels: signed_channels(table),
            jwt_secret: secret(table, "jwt_secret"),
            jwt_exempt: channel_list(table, "jwt_exempt"),
            permission: permission(table),
            browser_polls_max: table.number("browser_polls_max", 1..=1_000),
            browser_interval: table.duration(
                "browser_interval_secs",
                1..=3_600,
                default.browser_interval,
            ),
            limits: limits(table),
        };
        BayeuxDraft { settings, mounts }
    })
}

fn mounts(table: &mut Section) -> Vec<Sited<String>> {
    let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    let mut mounts = Vec::new();
    for mount in table.texts("mounts") {
        let path = mount
            .value
            .strip_suffix('/')
            .unwrap_or(&mount.value)
            .to_owned();
        let segments = path.strip_prefix('/').unwrap_or(&path);
        let first = segments.split('/').next().unwrap_or_default();
        let is_root = mount.value == "/";
        let is_path = path.starts_with('/')
            && segments
                .split('/')
                .all(|part| !part.is_empty() && part.bytes().all(in_segment));
        if !is_root && !is_path {
            table.reading.note(
                &mount.site,
                format!("{:?} is not a path to mount at", mount.value),
                "write it as \"/faye\", of letters, digits and - _ ~ after each slash",
            );
        } else if TAKEN.contains(&first) {
            let what = format!("the path {:?} belongs to Pusher's protocol", mount.value);
            let mend = "choose another, such as \"/faye\"";
            table.reading.note(&mount.site, what, mend);
        } else {
            mounts.push(mount.map(|_| path));
        }
    }
    mounts
}

/// One of a few words.
fn choice<T: Copy + Default>(table: &mut Section, key: &'static str, words: &[(&str, T)]) -> T {
    let Some(text) = table.text(key) else {
        return T::default();
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
        return *value;
    }
    let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    table.reading.note(
        &text.site,
        format!("{:?} is no value for `{key}`", text.value),
        match nearest(&text.value, &names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("write one of {}", names.join(", ")),
        },
    );
    T::default()
}

fn tokens(table: &mut Section, key: &'static str, name: &'static str) -> Vec<ExtToken> {
    let tokens = table.tables(key, name, token);
    tokens.into_iter().flatten().collect()
}

/// `key` is the member of `ext`, `token` what it has to hold.
fn token(table: &mut Section) -> Option<ExtToken> {
    let key = required(table, "key", "the name of a member of ext");
    let token = secret(table, "token");
    if table.site_of("token").is_none() {
        missing(table, "token", "what the member of ext has to hold");
    }
    Some(ExtToken {
        key: key?,
        token: token?,
    })
}

fn subscribe_tokens(table: &mut Section) -> SubscribeTokens {
    let read = |entry: &mut Section| {
        let channels = channels(entry);
        let token = token(entry);
        Some((channels?, token?))
    };
    let name = "[[apps.bayeux.subscribe_tokens]]";
    let tokens = table.tables("subscribe_tokens", name, read);
    SubscribeTokens(tokens.into_iter().flatten().collect())
}

fn channels(entry: &mut Section) -> Option<Channels> {
    let Some(text) = entry.text("channels") else {
        missing(entry, "channels", "a Bayeux channel or pattern");
        return None;
    };
    channel_or_pattern(entry, &text)
}

fn channel_list(table: &mut Section, key: &'static str) -> Vec<Channels> {
    let texts = table.texts(key).into_iter();
    texts
        .filter_map(|text| channel_or_pattern(table, &text))
        .collect()
}

fn channel_or_pattern(entry: &mut Section, text: &Sited<String>) -> Option<Channels> {
    let channels = match Pattern::parse(&text.value) {
        Some(pattern) => Some(Channels::Matching(pattern)),
        None => is_name(&text.value).then(|| Channels::Named(text.value.clone())),
    };
    if channels.is_none() {
        entry.reading.note(
            &text.site,
            format!("{:?} is no Bayeux channel and no pattern", text.value),
            "write it as \"/chat/1\", \"/chat/*\" or \"/chat/**\"",
        );
    }
    channels
}

/// private_pub and danthes differ in the names of their `ext` members alone.
fn signed_channels(table: &mut Section) -> Option<SignedChannels> {
    let mut read = |key: &'static str, name: &'static str| {
        let site = table.site_of(key)?;
        let signed = table.table(key, name, |table| {
            let secret = secret(table, "secret");
            if table.site_of("secret").is_none() {
                missing(table, "secret", "the secret_token of the application");
            }
            let expiration_secs = table.number("expiration_secs", 0..=315_360_000);
            secret.map(|secret| SignedChannels {
                prefix: key.to_owned(),
                secret,
                expiration_secs: (expiration_secs.filter(|secs| *secs > 0)).map(|s| s as u64),
            })
        });
        Some((site, signed))
    };
    let private_pub = read("private_pub", "[apps.bayeux.private_pub]");
    let danthes = read("danthes", "[apps.bayeux.danthes]");
    if let (Some(_), Some((site, _))) = (&private_pub, &danthes) {
        let what = "an app has either private_pub or danthes";
        table.reading.note(site, what, "remove one of the two");
    }
    private_pub.or(danthes)?.1
}

fn permission(table: &mut Section) -> Option<PermissionWebhook> {
    table.site_of("webhook")?;
    table.table("webhook", "[apps.bayeux.webhook]", |table| {
        let url = url(table);
        let webhook = PermissionWebhook {
            url: Uri::default(),
            headers: shown_headers(table),
            about: matters(table),
            timeout: table.duration("timeout_secs", 1..=60, PermissionWebhook::TIMEOUT),
            cache: table.duration("cache_secs", 0..=86_400, Duration::ZERO),
            allow_private_networks: table.switch("allow_private_networks", false),
        };
        url.map(|url| PermissionWebhook {
            url: url.value,
            ..webhook
        })
    })
}

/// By default those that say who somebody is.
fn shown_headers(table: &mut Section) -> Vec<HeaderName> {
    let texts = table.texts("headers");
    if table.site_of("headers").is_none() {
        return vec![AUTHORIZATION, COOKIE, ORIGIN];
    }
    let mut names = Vec::new();
    for text in texts {
        match text.value.parse() {
            Ok(name) => names.push(name),
            Err(_) => table.reading.note(
                &text.site,
                format!("{:?} is no name of a header", text.value),
                "use letters, digits and -",
            ),
        }
    }
    names
}

fn matters(table: &mut Section) -> Vec<Matter> {
    const MATTERS: [(&str, Matter); 3] = [
        ("handshake", Matter::Handshake),
        ("subscribe", Matter::Subscribe),
        ("publish", Matter::Publish),
    ];
    let texts = table.texts("about");
    if table.site_of("about").is_none() {
        return MATTERS.map(|(_, matter)| matter).into();
    }
    let mut matters = Vec::new();
    for text in texts {
        match MATTERS.iter().find(|(name, _)| *name == text.value) {
            Some((_, matter)) => matters.push(*matter),
            None => table.reading.note(
                &text.site,
                format!("{:?} is nothing that is asked about", text.value),
                match nearest(&text.value, &MATTERS.map(|(name, _)| name)) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "write some of handshake, subscribe, publish".to_owned(),
                },
            ),
        }
    }
    matters
}

fn limits(table: &mut Section) -> Limits {
    const SECS: RangeInclusive<usize> = 1..=3_600;
    const COUNT: RangeInclusive<usize> = 1..=1_000_000_000;
    const BYTES: RangeInclusive<usize> = 1_024..=1_073_741_824;
    let default = Limits::default();
    let hold = table.duration("hold_secs", SECS, default.hold);
    let session_lifetime = table.duration("session_secs", SECS, 2 * hold);
    let limits = Limits {
        hold,
        session_lifetime,
        presence_grace: table.duration("presence_grace_secs", SECS, default.presence_grace),
        inactivity: (table.number("inactivity_secs", 1..=31_536_000))
            .map(|secs| Duration::from_secs(secs as u64)),
        sessions_max: table.count("sessions_max", COUNT, default.sessions_max),
        subscriptions_per_session_max: table.count(
            "subscriptions_per_session_max",
            COUNT,
            default.subscriptions_per_session_max,
        ),
        queue_messages_max: table.count("queue_messages_max", COUNT, default.queue_messages_max),
        queue_bytes_max: table.count("queue_bytes_max", BYTES, default.queue_bytes_max),
        data_bytes_max: table.count("data_bytes_max", BYTES, default.data_bytes_max),
        request_bytes_max: table.count("request_bytes_max", BYTES, default.request_bytes_max),
        messages_per_request_max: table.count(
            "messages_per_request_max",
            COUNT,
            default.messages_per_request_max,
        ),
    };
    let at = |key| table.site_of(key).unwrap_or_else(|| table.site.clone());
    if session_lifetime < hold + Duration::from_secs(1) {
        let what = "a session would end while its client waits";
        let mend = "write a `session_secs` of about twice `hold_secs`";
        table.reading.note(&at("session_secs"), what, mend);
    }
    if limits.data_bytes_max > limits.queue_bytes_max / 2 {
        let what = "two messages of that size do not fit a session's queue";
        let mend = "raise queue_bytes_max to twice data_bytes_max, or lower data_bytes_max";
        table.reading.note(&at("data_bytes_max"), what, mend);
    }
    limits
}

fn required(table: &mut Section, key: &'static str, what: &str) -> Option<String> {
    let text = table.text(key).filter(|text| !text.value.is_empty());
    if text.is_none() {
        missing(table, key, what);
    }
    text.map(|text| text.value)
}

/// Without white space at its ends, and never empty: everybody has the empty secret.
fn secret(table: &mut Section, key: &'static str) -> Option<Token> {
    let text = table.text(key)?;
    let valid = !text.value.is_empty() && text.value.trim() == text.value;
    if !valid {
        table.reading.note(
            &text.site,
            format!("`{key}` is empty or has white space at an end"),
            "`openssl rand -hex 20` makes a good one",
        );
    }
    valid.then(|| Token::new(&text.value))
}

fn missing(table: &Section, key: &str, what: &str) {
    let site: Site = table.site.clone();
    let mend = format!("write {key} = \"…\", {what}");
    table
        .reading
        .note(&site, format!("`{key}` is missing here"), mend);
}
