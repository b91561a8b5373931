//! The parts of the configuration that are about webhooks: `[webhooks]` and `[[apps.webhooks]]`.

use std::collections::HashMap;
use std::path::PathBuf;

use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Uri};

use super::section::{Reading, Section, nearest};
use super::written::Sited;
use crate::model::AppId;
use crate::webhooks::{Endpoint, Settings};
use crate::wire::webhooks::{GROUPS, SESSION_GROUP};

/// What is ours to say, or the connection's.
const TAKEN: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-pusher-key",
    "x-pusher-signature",
];

/// An endpoint with the place of its name, so that those of an app can be compared.
pub(super) struct EndpointDraft {
    name: Sited<String>,
    endpoint: Endpoint,
}

/// Without endpoints, which stand at their apps.
pub(super) fn settings(root: &mut Section) -> Settings {
    root.table("webhooks", "[webhooks]", |table| {
        let dir = table.text("dir");
        if let Some(dir) = dir.as_ref().filter(|dir| dir.value.is_empty()) {
            let what = "this directory has no name";
            let mend = "write the path of a directory that Raptor may make and fill";
            table.reading.note(&dir.site, what, mend);
        }
        let default = match dir {
            Some(_) => Settings::DISK_BYTES_MAX,
            None => Settings::MEMORY_BYTES_MAX,
        };
        Settings {
            dir: dir.map(|dir| PathBuf::from(dir.value)),
            fsync: table.switch("fsync", false),
            store_bytes_max: table.count("store_bytes_max", 1_048_576..=1 << 40, default),
            keep_bodies: table.switch("keep_bodies", false),
            endpoints: Vec::new(),
        }
    })
}

pub(super) fn drafts(app: &mut Section) -> Vec<EndpointDraft> {
    let drafts = app.tables("webhooks", "[[apps.webhooks]]", draft);
    drafts.into_iter().flatten().collect()
}

/// Those of one app, which are told apart by their names.
pub(super) fn endpoints(
    reading: &Reading,
    drafts: Vec<EndpointDraft>,
    app: &AppId,
) -> Vec<Endpoint> {
    let mut names = HashMap::new();
    for EndpointDraft { name, .. } in &drafts {
        if let Some(first) = names.insert(&name.value, &name.site) {
            let what = format!("this webhook is named like another of its app: {first}");
            let mend = "give each a name of its own: name = \"…\"";
            reading.note(&name.site, what, mend);
        }
    }
    let of_app = |draft: EndpointDraft| Endpoint {
        app: app.clone(),
        name: draft.name.value,
        ..draft.endpoint
    };
    drafts.into_iter().map(of_app).collect()
}

fn draft(table: &mut Section) -> Option<EndpointDraft> {
    let url = url(table);
    let name = table.text("name");
    let batching = table.switch("batching", true);
    let batch_events_max = table.count("batch_events_max", 1..=10_000, Endpoint::BATCH_EVENTS_MAX);
    let endpoint = Endpoint {
        app: AppId::new(""),
        name: String::new(),
        url: Uri::default(),
        events: events(table),
        channel_prefixes: channel_prefixes(table),
        headers: headers(table),
        batch_events_max: if batching { batch_events_max } else { 1 },
        timeout: table.duration("timeout_secs", 1..=10, Endpoint::TIMEOUT),
        retry_window: table.duration("retry_secs", 1..=86_400, Endpoint::RETRY_WINDOW),
        allow_private_networks: table.switch("allow_private_networks", false),
    };
    let url = url?;
    Some(EndpointDraft {
        name: name.unwrap_or_else(|| {
            let authority = url.value.authority().map_or("", |a| a.as_str());
            let scheme = url.value.scheme_str().unwrap_or_default();
            let path = url.value.path();
            let name = format!("{scheme}://{authority}{path}");
            url.clone().map(|_| name)
        }),
        endpoint: Endpoint {
            url: url.value,
            ..endpoint
        },
    })
}

pub(super) fn url(table: &mut Section) -> Option<Sited<Uri>> {
    const MEND: &str = "write it as \"https://example.com/pusher/webhooks\"";
    let Some(text) = table.text("url") else {
        if table.site_of("url").is_none() {
            table
                .reading
                .note(&table.site, "this webhook has no `url`", MEND);
        }
        return None;
    };
    let note = |what: &str, mend: &str| table.reading.note(&text.site, what, mend);
    let parsed = url::Url::parse(&text.value).ok();
    let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(mut url) = parsed else {
        note("this is no URL to send webhooks to", MEND);
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        note(
            "a webhook's URL may not hold a user or a password",
            "send them in a header: headers = { Authorization = \"Basic …\" }",
        );
        return None;
    }
    url.set_fragment(None);
    match url.as_str().parse() {
        Ok(uri) => Some(text.map(|_| uri)),
        Err(_) => {
            note("this is no URL to send webhooks to", MEND);
            None
        }
    }
}

/// Groups and names; none are all of Pusher's.
fn events(table: &mut Section) -> Vec<&'static str> {
    let texts = table.texts("events");
    if table.site_of("events").is_none() {
        let names = GROUPS.iter().flat_map(|(_, names)| names.iter().copied());
        return names.collect();
    }
    let groups = || GROUPS.iter().chain([&SESSION_GROUP]);
    let names = || groups().flat_map(|(_, names)| names.iter().copied());
    let mut events = Vec::new();
    for text in texts {
        if let Some((_, names)) = groups().find(|(group, _)| *group == text.value) {
            events.extend(names.iter().copied());
        } else if let Some(name) = names().find(|name| *name == text.value) {
            events.push(name);
        } else {
            let known: Vec<_> = groups().map(|(group, _)| *group).chain(names()).collect();
            table.reading.note(
                &text.site,
                format!("{:?} is no event of webhooks", text.value),
                match nearest(&text.value, &known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known events: {}", known.join(", ")),
                },
            );
        }
    }
    if let Some(site) = table.site_of("events").filter(|_| events.is_empty()) {
        let what = "this webhook asks for no event";
        let mend = "name some, or leave `events` out for all of them";
        table.reading.note(&site, what, mend);
    }
    events
}

fn channel_prefixes(table: &mut Section) -> Vec<String> {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-=@,.;".contains(&byte);
    let mut prefixes = Vec::new();
    for prefix in table.texts("channel_prefixes") {
        if prefix.value.is_empty() || !prefix.value.bytes().all(in_name) {
            table.reading.note(
                &prefix.site,
                format!("no channel's name begins with {:?}", prefix.value),
                "write the beginning of channel names, such as \"presence-\"; without a list \
                 webhooks are about every channel",
            );
        }
        prefixes.push(prefix.value);
    }
    prefixes
}

/// Their values are as secret as secrets.
fn headers(table: &mut Section) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in table.named_texts("headers") {
        let note = |what: String, mend: &str| table.reading.note(&value.site, what, mend);
        let parsed = (
            name.parse::<HeaderName>(),
            HeaderValue::from_str(&value.value),
        );
        match parsed {
            (Ok(name), _) if TAKEN.contains(&name.as_str()) => {
                note(
                    format!("the header {name} is set by Raptor"),
                    "remove it here",
                );
            }
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Err(_), _) => note(
                format!("{name:?} is no name of a header"),
                "use letters, digits and -",
            ),
            (_, Err(_)) => note(
                format!("the value of {name} cannot stand in a header"),
                "use printable characters on one line",
            ),
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Written, WrittenFile};

    fn config(text: &str) -> Config {
        let name = "raptor.toml".to_owned();
        let text = format!("{text}\n[[apps]]\nid = '3'\nkey = 'k'\nsecret = 's'\n").replace(
            "APP",
            "\n[[apps]]\nid = '1'\nkey = 'k1'\nsecret = 's1'\n[[apps.webhooks]]\n",
        );
        let file = Some(WrittenFile { name, text });
        let written = Written {
            file,
            ..Written::default()
        };
        Config::from_written(&written).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn a_url_is_all_that_an_endpoint_needs() {
        let settings = config("APP\nurl = 'https://a.example/hook?token=hush#x'").webhooks;
        assert_eq!(settings.dir, None);
        assert_eq!(settings.store_bytes_max, Settings::MEMORY_BYTES_MAX);
        let [endpoint] = &settings.endpoints[..] else {
            panic!("{settings:?}");
        };
        assert_eq!(endpoint.app.as_str(), "1");
        assert_eq!(endpoint.name, "https://a.example/hook");
        assert_eq!(
            endpoint.url.to_string(),
            "https://a.example/hook?token=hush"
        );
        assert_eq!(endpoint.events.len(), 7);
        assert_eq!(endpoint.timeout, Duration::from_secs(10));
        assert_eq!(endpoint.batch_events_max, 100);
        assert!(!endpoint.allow_private_networks);
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn events_are_groups_and_names() {
        let settings = config("APP\nurl = 'http://h'\nevents = ['presence', 'cache_miss']");
        let events = &settings.webhooks.endpoints[0].events;
        assert_eq!(*events, ["member_added", "member_removed", "cache_miss"]);
        let settings = config("APP\nurl = 'http://h'\nevents = ['publish', 'bayeux_sessions']");
        assert_eq!(settings.webhooks.endpoints[0].events.len(), 6);
    }

    #[test]
    fn with_a_directory_there_is_more_room() {
        let settings = config("[webhooks]\ndir = '/var/lib/raptor'").webhooks;
        assert_eq!(settings.dir, Some("/var/lib/raptor".into()));
        assert_eq!(settings.store_bytes_max, Settings::DISK_BYTES_MAX);
    }
}
