//! What the server sends (`bayeux.md` 2): replies in Faye's order of members, and deliveries.
//!
//! Each function makes the text of one JSON object; [`join`] makes the array that goes out.

use super::advice::{Advice, ConnectionType};
use super::error::{BayeuxError, MISSING_PARAMETER, UNKNOWN_CLIENT};
use super::given::Given;
use super::incoming::{
    CONNECT, Connect, DISCONNECT, Disconnect, HANDSHAKE, Handshake, Invalid, Publish, Subscribe,
};
use super::object::{Object, join};
use super::payload::PLAIN_EVENT;

impl Handshake<'_> {
    /// `supported` is all that the server offers, not what both have in common (2.2).
    pub fn accepted(
        &self,
        client_id: &str,
        supported: &[ConnectionType],
        advice: &Advice,
        ext: Option<&str>,
    ) -> String {
        self.head(true)
            .json("supportedConnectionTypes", &listed(supported))
            .text("clientId", client_id)
            .json("advice", &advice.to_string())
            .json_if_any("ext", ext)
            .end()
    }

    pub fn refused(
        &self,
        error: &BayeuxError,
        supported: &[ConnectionType],
        advice: &Advice,
    ) -> String {
        let error = error.to_string();
        let supported = listed(supported);
        let head = self.head(false);
        // Faye looks at the version first, and a later error takes the place of an earlier one.
        let body = if self.has_version {
            head.json("supportedConnectionTypes", &supported)
                .text("error", &error)
        } else {
            head.text("error", &error)
                .json("supportedConnectionTypes", &supported)
        };
        body.json("advice", &advice.to_string()).end()
    }

    fn head(&self, successful: bool) -> Object {
        head(self.id, None, HANDSHAKE, successful).text("version", "1.0")
    }
}

impl Connect<'_> {
    pub fn accepted(&self, advice: &Advice, ext: Option<&str>) -> String {
        connect_accepted(self.id, self.client_id.map(Given::json), advice, ext)
    }

    pub fn refused(&self, error: &BayeuxError, advice: &Advice) -> String {
        connect_refused(self.id, error, advice)
    }

    /// What it takes to answer later, when the request's text is gone.
    pub fn hold(&self) -> HeldConnect {
        HeldConnect {
            id: self.id.map(Into::into),
            client_id: self.client_id.map(|id| id.json().into()),
        }
    }
}

/// A connect that waits for its answer.
pub struct HeldConnect {
    id: Option<Box<str>>,
    client_id: Option<Box<str>>,
}

impl HeldConnect {
    pub fn accepted(&self, advice: &Advice, ext: Option<&str>) -> String {
        connect_accepted(self.id.as_deref(), self.client_id.as_deref(), advice, ext)
    }

    pub fn refused(&self, error: &BayeuxError, advice: &Advice) -> String {
        connect_refused(self.id.as_deref(), error, advice)
    }
}

impl Disconnect<'_> {
    pub fn accepted(&self) -> String {
        head(self.id, self.client_id.map(Given::json), DISCONNECT, true).end()
    }

    pub fn refused(&self, error: &BayeuxError) -> String {
        head(self.id, None, DISCONNECT, false)
            .text("error", &error.to_string())
            .end()
    }
}

impl Subscribe<'_> {
    pub fn accepted(&self, ext: Option<&str>) -> String {
        self.head(true)
            .json("subscription", self.repeated())
            .json_if_any("ext", ext)
            .end()
    }

    /// Faye writes the error of a client or of a missing parameter before the subscription, and
    /// that of a channel after it.
    pub fn refused(&self, error: &BayeuxError) -> String {
        let text = error.to_string();
        let head = self.head(false);
        match error.reason {
            UNKNOWN_CLIENT | MISSING_PARAMETER => head
                .text("error", &text)
                .json("subscription", self.repeated())
                .end(),
            _ => head
                .json("subscription", self.repeated())
                .text("error", &text)
                .end(),
        }
    }

    fn head(&self, successful: bool) -> Object {
        let client_id = self.client_id.map(Given::json);
        head(self.id, client_id, self.channel, successful)
    }

    fn repeated(&self) -> &str {
        self.subscription.as_ref().map_or("[]", |s| s.json())
    }
}

impl Publish<'_> {
    pub fn accepted(&self) -> String {
        self.head(true).end()
    }

    pub fn refused(&self, error: &BayeuxError) -> String {
        self.head(false).text("error", &error.to_string()).end()
    }

    fn head(&self, successful: bool) -> Object {
        let client_id = self.client_id.map(Given::json);
        head(self.id, client_id, &self.channel, successful)
    }
}

impl Invalid<'_> {
    pub fn refused(&self) -> String {
        Object::default()
            .json_if_any("id", self.id)
            .json_if_any("clientId", self.client_id.map(Given::json))
            .json_if_any("channel", self.channel.map(Given::json))
            .json("successful", "false")
            .text("error", &self.error.to_string())
            .end()
    }
}

/// An event on its way to a subscriber. Nothing of the publisher's message but its data and
/// perhaps its `ext` is in it: `id`, `advice` and the like are obeyed by those who receive them
/// (0, rules 2 and 3).
pub struct Delivery<'a> {
    /// The published name, never the pattern that matched it.
    pub channel: &'a str,
    /// JSON text.
    pub data: &'a str,
    /// Pusher's name of the event.
    pub event: &'a str,
    /// Who sent a client event on a presence channel.
    pub user_id: Option<&'a str>,
    /// The last event of a cache channel, sent to a new subscriber.
    pub is_cached: bool,
    /// What [`super::Ext::forwardable`] left of the publisher's `ext`.
    pub forwarded: Option<&'a str>,
    /// What [`super::Publish::forwardable`] left of the publisher's message.
    pub members: Option<&'a str>,
}

impl Delivery<'_> {
    pub fn encode(&self) -> String {
        Object::default()
            .text("channel", self.channel)
            .json("data", self.data)
            .json_if_any("ext", self.ext().as_deref())
            .members_of(self.members.unwrap_or_default())
            .end()
    }

    /// `None` for a plain message, which looks as from Faye (8.5).
    fn ext(&self) -> Option<String> {
        let mut ext = Object::default();
        if self.event != PLAIN_EVENT {
            ext = ext.text("event", self.event);
        }
        if let Some(user_id) = self.user_id {
            ext = ext.text("user_id", user_id);
        }
        if self.is_cached {
            ext = ext.json("cached", "true");
        }
        if let Some(object) = self.forwarded {
            ext = ext.members_of(object);
        }
        (!ext.is_empty()).then(|| ext.end())
    }
}

fn connect_accepted(
    id: Option<&str>,
    client_id: Option<&str>,
    advice: &Advice,
    ext: Option<&str>,
) -> String {
    head(id, client_id, CONNECT, true)
        .json("advice", &advice.to_string())
        .json_if_any("ext", ext)
        .end()
}

fn connect_refused(id: Option<&str>, error: &BayeuxError, advice: &Advice) -> String {
    head(id, None, CONNECT, false)
        .text("error", &error.to_string())
        .json("advice", &advice.to_string())
        .end()
}

fn head(id: Option<&str>, client_id: Option<&str>, channel: &str, successful: bool) -> Object {
    Object::default()
        .json_if_any("id", id)
        .json_if_any("clientId", client_id)
        .text("channel", channel)
        .json("successful", if successful { "true" } else { "false" })
}

fn listed(types: &[ConnectionType]) -> String {
    join(types.iter().map(|known| format!("\"{}\"", known.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::bayeux::{IncomingMessage, parse};

    const PLAIN: Delivery = Delivery {
        channel: "/foo",
        data: "1",
        event: PLAIN_EVENT,
        user_id: None,
        is_cached: false,
        forwarded: None,
        members: None,
    };

    #[test]
    fn a_held_connect_is_answered_before_what_it_waited_for() {
        let text = r#"{"channel":"/meta/connect","clientId":"c01","connectionType":"long-polling","id":"f"}"#;
        let held = match &parse(text, 1).unwrap()[..] {
            [IncomingMessage::Connect(request)] => request.hold(),
            _ => panic!("no connect"),
        };
        let mut objects = vec![held.accepted(&Advice::retry(0, 3000), None)];
        for data in [r#"{"n":1}"#, r#""hello""#, "null"] {
            objects.push(Delivery { data, ..PLAIN }.encode());
        }
        assert_eq!(
            join(objects),
            concat!(
                r#"[{"id":"f","clientId":"c01","channel":"/meta/connect","successful":true,"#,
                r#""advice":{"reconnect":"retry","interval":0,"timeout":3000}},"#,
                r#"{"channel":"/foo","data":{"n":1}},{"channel":"/foo","data":"hello"},"#,
                r#"{"channel":"/foo","data":null}]"#
            )
        );
        assert_eq!(join::<&str>([]), "[]");
    }

    #[test]
    fn what_a_delivery_is_rides_in_ext() {
        for (delivery, expected) in [
            (PLAIN, ""),
            (
                Delivery {
                    event: "new-msg",
                    ..PLAIN
                },
                r#""event":"new-msg""#,
            ),
            (
                Delivery {
                    is_cached: true,
                    ..PLAIN
                },
                r#""cached":true"#,
            ),
            (
                Delivery {
                    forwarded: Some(r#"{"a":[1]}"#),
                    ..PLAIN
                },
                r#""a":[1]"#,
            ),
            (
                Delivery {
                    event: "client-\"x\"",
                    user_id: Some("10"),
                    forwarded: Some(r#"{"a":1,"b":2}"#),
                    ..PLAIN
                },
                r#""event":"client-\"x\"","user_id":"10","a":1,"b":2"#,
            ),
        ] {
            let ext = match expected {
                "" => String::new(),
                members => format!(r#","ext":{{{members}}}"#),
            };
            assert_eq!(
                delivery.encode(),
                format!(r#"{{"channel":"/foo","data":1{ext}}}"#)
            );
        }
    }

    #[test]
    fn a_reply_carries_the_servers_ext_last() {
        let ext = Object::default().text("socket_id", "1.2").end();
        let requests = r#"[{"channel":"/meta/handshake"},{"channel":"/meta/subscribe","clientId":"c","subscription":"/a"}]"#;
        match &parse(requests, 2).unwrap()[..] {
            [
                IncomingMessage::Handshake(handshake),
                IncomingMessage::Subscribe(subscribe),
            ] => {
                let types = [ConnectionType::LongPolling];
                assert_eq!(
                    handshake.accepted("c", &types, &Advice::never(), Some(&ext)),
                    concat!(
                        r#"{"channel":"/meta/handshake","successful":true,"version":"1.0","#,
                        r#""supportedConnectionTypes":["long-polling"],"clientId":"c","#,
                        r#""advice":{"reconnect":"none"},"ext":{"socket_id":"1.2"}}"#
                    )
                );
                assert_eq!(
                    subscribe.accepted(Some(&ext)),
                    concat!(
                        r#"{"clientId":"c","channel":"/meta/subscribe","successful":true,"#,
                        r#""subscription":"/a","ext":{"socket_id":"1.2"}}"#
                    )
                );
            }
            _ => panic!("other messages"),
        }
    }
}
