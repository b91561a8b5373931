//! Webhooks as applications receive them (`pusher.md` 6.1, 6.2).

use serde::Serialize;

use crate::model::{ChannelName, FactKind, SessionFact, SessionFactKind};

/// The events of Pusher's webhooks, in the groups that hosted's dashboard selects (6.3).
pub const GROUPS: [(&str, &[&str]); 5] = [
    (
        "channel_existence",
        &["channel_occupied", "channel_vacated"],
    ),
    ("presence", &["member_added", "member_removed"]),
    ("client_events", &["client_event"]),
    ("cache_channels", &["cache_miss"]),
    ("subscription_count", &["subscription_count"]),
];

/// What Faye's monitoring told of Bayeux clients (`bayeux.md` 6). Pusher knows none of it.
pub const SESSION_GROUP: (&str, &[&str]) = (
    "bayeux_sessions",
    &[
        "handshake",
        "subscribe",
        "unsubscribe",
        "publish",
        "disconnect",
    ],
);

/// One object of a body's `events`.
pub fn event(channel: &ChannelName, kind: &FactKind) -> String {
    let mut event = Event {
        name: kind.name(),
        channel: Some(channel.as_str()),
        ..Event::default()
    };
    match kind {
        FactKind::ChannelOccupied | FactKind::ChannelVacated | FactKind::CacheMiss => {}
        FactKind::MemberAdded { user_id } | FactKind::MemberRemoved { user_id } => {
            event.user_id = Some(user_id);
        }
        FactKind::ClientEvent {
            name,
            data,
            socket_id,
            user_id,
        } => {
            event.event = Some(name);
            event.data = Some(data);
            event.socket_id = socket_id.map(|id| id.to_string());
            // Elsewhere nobody vouches for it.
            event.user_id = user_id.as_deref().filter(|_| channel.is_presence());
        }
        FactKind::SubscriptionCount { connections } => {
            event.subscription_count = Some(*connections);
        }
    }
    event.json()
}

/// The same of a session, which is named by its `socket_id`. Channels are in Bayeux's spelling;
/// `data` is JSON text.
pub fn session_event(fact: &SessionFact) -> String {
    let data = match &fact.kind {
        SessionFactKind::Publish { data, .. } => Some(&**data),
        _ => None,
    };
    let event = Event {
        name: fact.kind.name(),
        channel: fact.kind.channel(),
        data,
        socket_id: fact.session.map(|id| id.to_string()),
        ..Event::default()
    };
    event.json()
}

/// The body of a webhook. Verifiers want `time_ms` as a number. `events` are objects as
/// [`event`] writes them.
pub fn body<'e>(time_ms: u64, events: impl IntoIterator<Item = &'e str>) -> String {
    let mut body = format!(r#"{{"time_ms":{time_ms},"events":["#);
    for (nth, event) in events.into_iter().enumerate() {
        if nth > 0 {
            body.push(',');
        }
        body += event;
    }
    body += "]}";
    body
}

/// A body of [`body`] with another `time_ms`.
pub fn renewed(body: &str, time_ms: u64) -> String {
    match body.split_once(',') {
        Some((_, events)) => format!(r#"{{"time_ms":{time_ms},{events}"#),
        None => body.to_owned(),
    }
}

#[derive(Serialize, Default)]
struct Event<'f> {
    name: &'f str,
    /// Every event of Pusher's has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'f str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'f str>,
    /// The very text that subscribers got, never an object: Go reads it as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'f str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'f str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_count: Option<u64>,
}

impl Event<'_> {
    fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::auth::Secret;
    use crate::model::SocketId;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name, 164).unwrap()
    }

    fn typing(data: &str) -> FactKind {
        FactKind::ClientEvent {
            name: "client-typing".into(),
            data: data.into(),
            socket_id: Some(SocketId::new(1234, 1234)),
            user_id: Some("10".into()),
        }
    }

    #[test]
    fn the_published_webhooks_are_written_and_signed_byte_for_byte() {
        let vectors = include_str!("../../fixtures/pusher/webhooks.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let secret = Secret::new(vectors["credentials"]["secret"].as_str().unwrap());
        let written = [
            event(&channel("my-channel"), &FactKind::ChannelOccupied),
            event(&channel("presence-room"), &typing(r#"{"on":true}"#)),
        ];
        for (event, vector) in written.iter().zip(vectors["webhooks"].as_array().unwrap()) {
            let body = body(1_327_078_148_132, [event.as_str()]);
            assert_eq!(body, vector["body"]);
            assert_eq!(secret.sign(body.as_bytes()), vector["signature"]);
        }
    }

    #[test]
    fn each_event_has_its_own_members_and_no_others() {
        let user_id = || "ë\"".into();
        let nobody = FactKind::ClientEvent {
            name: "client-x".into(),
            data: "plain".into(),
            socket_id: None,
            user_id: None,
        };
        for (name, kind, expected) in [
            (
                "c",
                FactKind::ChannelVacated,
                r#"{"name":"channel_vacated","channel":"c"}"#,
            ),
            (
                "presence-c",
                FactKind::MemberAdded { user_id: user_id() },
                r#"{"name":"member_added","channel":"presence-c","user_id":"ë\""}"#,
            ),
            (
                "presence-c",
                FactKind::MemberRemoved { user_id: user_id() },
                r#"{"name":"member_removed","channel":"presence-c","user_id":"ë\""}"#,
            ),
            (
                "cache-c",
                FactKind::CacheMiss,
                r#"{"name":"cache_miss","channel":"cache-c"}"#,
            ),
            (
                "c",
                FactKind::SubscriptionCount { connections: 3 },
                r#"{"name":"subscription_count","channel":"c","subscription_count":3}"#,
            ),
            (
                "private-c",
                typing("7"),
                r#"{"name":"client_event","channel":"private-c","event":"client-typing","data":"7","socket_id":"1234.1234"}"#,
            ),
            (
                "c",
                nobody,
                r#"{"name":"client_event","channel":"c","event":"client-x","data":"plain"}"#,
            ),
        ] {
            assert_eq!(event(&channel(name), &kind), expected);
        }
    }

    #[test]
    fn a_body_holds_any_number_of_events() {
        let seven = body(7, ["{}", "[]"]);
        assert_eq!(seven, r#"{"time_ms":7,"events":[{},[]]}"#);
        assert_eq!(renewed(&seven, 89), r#"{"time_ms":89,"events":[{},[]]}"#);
    }
}
