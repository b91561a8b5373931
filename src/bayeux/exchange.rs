//! The messages of one request, answered in their order (`bayeux.md` 2.10).

use std::net::IpAddr;
use std::sync::Arc;

use super::check;
use super::connect::{Connected, Connecting};
use super::permission::ShownHeaders;
use super::site::Site;
use crate::wire::bayeux::{Disconnect, IncomingMessage};

/// What a request is answered with: replies that are there, and connects that may wait.
#[derive(Default)]
pub struct Answers {
    pub replies: Vec<String>,
    pub connects: Vec<Connecting>,
    /// Whether there was a handshake.
    pub has_opened: bool,
    /// All messages but those that were published.
    pub control_messages: usize,
}

/// Who sent a request, or opened the WebSocket.
#[derive(Clone)]
pub struct Sender {
    pub address: IpAddr,
    pub headers: ShownHeaders,
}

impl Site {
    pub(super) async fn answer(
        self: &Arc<Self>,
        messages: &[IncomingMessage<'_>],
        sender: &Sender,
    ) -> Answers {
        let mut answers = Answers {
            control_messages: messages.len().max(1),
            ..Answers::default()
        };
        for message in messages {
            let reply = match message {
                IncomingMessage::Handshake(request) => {
                    answers.has_opened = true;
                    self.handshake(request, sender).await
                }
                IncomingMessage::Connect(request) => match self.connect(request).await {
                    Connected::Now(reply) => reply,
                    Connected::Later(connecting) => {
                        answers.connects.push(connecting);
                        continue;
                    }
                },
                IncomingMessage::Disconnect(request) => self.disconnect(request).await,
                IncomingMessage::Subscribe(request) => self.subscribe(request, sender).await,
                IncomingMessage::Unsubscribe(request) => self.unsubscribe(request).await,
                IncomingMessage::Publish(request) => match self.publish(request, sender).await {
                    Ok(reply) => {
                        answers.control_messages -= 1;
                        reply
                    }
                    Err(reply) => reply,
                },
                IncomingMessage::Invalid(request) => request.refused(),
            };
            answers.replies.push(reply);
        }
        answers
    }

    /// `clientId` is required. The session and what waits for it are gone (2.4).
    async fn disconnect(&self, request: &Disconnect<'_>) -> String {
        let session = self.session(request.client_id);
        if let Err(error) = check::disconnect(request, session.is_some()) {
            return request.refused(&error);
        }
        if let Some(session) = session {
            self.end(&session).await;
        }
        request.accepted()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::time::Duration;

    use serde_json::Value;
    use tokio::sync::mpsc::Receiver;
    use tokio::time::Instant;

    use super::super::client::Client;
    use super::super::http::Mounted;
    use super::super::site::Front;
    use super::*;
    use crate::apps::AppRegistry;
    use crate::backend::{FactSink, Memory, Wanted, fact_queue};
    use crate::broker::Broker;
    use crate::config::Config;
    use crate::hub::{Frame, Hub};
    use crate::model::Fact;
    use crate::model::ids::IdSource;
    use crate::transport::session::{Carrier, Vehicle};
    use crate::transport::writer::Flushers;
    use crate::wire::bayeux::parse;

    const SESSIONS: Wanted = Wanted {
        sessions: true,
        client_events: false,
    };

    fn sender() -> Sender {
        Sender {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            headers: ShownHeaders::default(),
        }
    }

    struct Setup {
        front: Front,
        sink: FactSink,
        facts: Receiver<Fact>,
    }

    fn setup() -> Setup {
        let config = Config::development();
        let (sink, facts) = fact_queue(1000);
        sink.want(SESSIONS);
        let (hub, ids) = (Arc::new(Hub::new()), Arc::new(IdSource::new(1)));
        let backend = Arc::new(Memory::new(hub.clone(), ids.clone(), sink.clone()));
        let broker = Broker::new(hub, backend, sink.clone(), ids);
        let apps = Arc::new(AppRegistry::new(config.apps));
        let patience = Duration::from_secs(10);
        let flushers = Arc::new(Flushers::start());
        let tasks = Default::default();
        let (bayeux, peers) = (config.bayeux, None);
        let front = Front::start(bayeux, apps, broker, peers, patience, &tasks, &flushers);
        let front = front.unwrap();
        Setup { front, sink, facts }
    }

    impl Setup {
        async fn send(&self, text: &str) -> Vec<Value> {
            let Mounted { site, .. } = self.front.mounted("/faye").unwrap();
            let answers = site.answer(&parse(text, 100).unwrap(), &sender()).await;
            let replies = answers.replies.iter();
            replies.map(|r| serde_json::from_str(r).unwrap()).collect()
        }

        async fn handshake(&self) -> String {
            let replies = self
                .send(r#"{"channel":"/meta/handshake","version":"1.0","supportedConnectionTypes":["long-polling"]}"#)
                .await;
            replies[0]["clientId"].as_str().unwrap().to_owned()
        }

        /// What was stated of sessions since the last look, each with its channel and data; and
        /// whether it names a session.
        fn told(&mut self) -> Vec<(String, bool)> {
            let facts = std::iter::from_fn(|| self.facts.try_recv().ok());
            let of_sessions = facts.filter_map(|fact| match fact {
                Fact::Session(fact) => Some(fact),
                Fact::Channel(_) => None,
            });
            let told = of_sessions.map(|fact| {
                let mut text = fact.kind.name().to_owned();
                if let Some(channel) = fact.kind.channel() {
                    text = format!("{text} {channel}");
                }
                if let crate::model::SessionFactKind::Publish { data, .. } = &fact.kind {
                    text = format!("{text} {data}");
                }
                (text, fact.session.is_some())
            });
            told.collect()
        }

        fn told_of_one(&mut self) -> Vec<String> {
            let told = self.told().into_iter();
            told.map(|(text, has_session)| {
                assert!(has_session, "{text}");
                text
            })
            .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_application_on_faye_could_see_is_stated() {
        let mut setup = setup();
        let id = setup.handshake().await;
        let about = |channel: &str, more: &str| {
            format!(r#"{{"channel":"{channel}","clientId":"{id}",{more}}}"#)
        };
        let subscription = r#""subscription":["/a/b","/a/*","/a/b"]"#;
        setup.send(&about("/meta/subscribe", subscription)).await;
        setup.send(&about("/meta/subscribe", subscription)).await;
        setup
            .send(&about("/nobody/here", r#""data":{"a": 1}"#))
            .await;
        setup.send(&about("/service/mine", r#""data":2"#)).await;
        setup
            .send(&about("/meta/unsubscribe", r#""subscription":"/a/b""#))
            .await;
        setup.send(&about("/meta/disconnect", r#""id":"1""#)).await;
        assert_eq!(
            setup.told_of_one(),
            [
                "handshake",
                "subscribe /a/b",
                "subscribe /a/*",
                "publish /nobody/here {\"a\": 1}",
                "publish /service/mine 2",
                "unsubscribe /a/b",
                "unsubscribe /a/*",
                "disconnect",
            ]
        );
        setup.send(r#"{"channel":"/a","data":null}"#).await;
        assert_eq!(setup.told(), [("publish /a null".to_owned(), false)]);
    }

    /// The client has given a poll up and comes anew, in the moment in which that one has taken what
    /// there is.
    #[tokio::test(start_paused = true)]
    async fn what_two_polls_take_is_sent_by_the_newer_alone() {
        let setup = setup();
        let Mounted { site, .. } = setup.front.mounted("/faye").unwrap();
        let replies = setup
            .send(r#"{"channel":"/meta/handshake","version":"1.0","supportedConnectionTypes":["long-polling"],"ext":{"ack":true}}"#)
            .await;
        let id = replies[0]["clientId"].as_str().unwrap();
        let connect = async |ack: u32| {
            let text = format!(
                r#"{{"channel":"/meta/connect","clientId":"{id}","connectionType":"long-polling","ext":{{"ack":{ack}}}}}"#
            );
            let mut answers = site.answer(&parse(&text, 1).unwrap(), &sender()).await;
            answers.connects.pop().unwrap()
        };
        let take = async |carrier: &Carrier<Client>, events: &mut VecDeque<Frame>| {
            poll_fn(|cx| carrier.poll_take(cx, events)).await
        };
        let (given_up, newer) = (connect(0).await, connect(0).await);
        let session = &given_up.session;
        session.client.push(Frame::from("1".to_owned()));

        let old = session.attach(Vehicle::Poll);
        let mut events = VecDeque::new();
        take(&old, &mut events).await.unwrap();
        let new = session.attach(Vehicle::Poll);
        let advice = site.advice();
        let (_, events) = site.accepted(&old, &given_up.held, &advice, events);
        assert!(events.is_empty());

        let mut events = VecDeque::new();
        take(&new, &mut events).await.unwrap();
        let (_, events) = site.accepted(&new, &newer.held, &advice, events);
        assert_eq!(events, [Frame::from("1".to_owned())]);
        drop(new);

        // That reply is lost as well, and what it brought comes at once.
        let began = Instant::now();
        let polled = site.poll(connect(1).await, None).await;
        assert_eq!(polled.events, [Frame::from("1".to_owned())]);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_runs_out_is_unsubscribed_and_disconnected_once() {
        let mut setup = setup();
        let id = setup.handshake().await;
        setup
            .send(&format!(
                r#"{{"channel":"/meta/subscribe","clientId":"{id}","subscription":"/a"}}"#
            ))
            .await;
        setup.told();
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(setup.told_of_one(), ["unsubscribe /a", "disconnect"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_or_secret_is_not_stated() {
        let mut setup = setup();
        let id = setup.handshake().await;
        setup.told();
        for refused in [
            r#"{"channel":"/meta/handshake","version":"1.0"}"#,
            r#"{"channel":"/meta/subscribe","clientId":"ID","subscription":["/a","/private/b"]}"#,
            r#"{"channel":"/meta/unsubscribe","clientId":"ID","subscription":"/a"}"#,
            r#"{"channel":"/a b","clientId":"ID","data":1}"#,
            r#"{"channel":"/a","clientId":"ID"}"#,
            r#"{"channel":"/service/user","clientId":"ID","data":{"auth":"a secret"}}"#,
            r#"{"channel":"/meta/disconnect","clientId":"nobody"}"#,
        ] {
            setup.send(&refused.replace("ID", &id)).await;
        }
        assert_eq!(setup.told(), []);
        setup.sink.want(Wanted::default());
        setup.send(r#"{"channel":"/a","data":1}"#).await;
        assert_eq!(setup.told(), []);
    }
}
