//! The API without a server: signed requests in, answers out, and what subscribers got.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use warp::http::header::CONTENT_TYPE;
use warp::http::{self, HeaderMap};

use super::Front;
use crate::apps::{App, AppKey, AppRegistry, Features, Limits};
use crate::auth::{Secret, SignedRequest};
use crate::backend::{Memory, fact_queue};
use crate::broker::Broker;
use crate::hub::{Acknowledgement, Encoding, Frame, Hub, Outbox, Subscriber};
use crate::model::ids::IdSource;
use crate::model::{AppId, Body, ChannelName, Event, Member, SocketId};
use crate::transport::peer::Peer;

/// The clock of the published vectors, which the API under test goes by.
pub const NOW_SECS: u64 = 1_353_088_179;
pub const BODY_BYTES_MAX: usize = 50_000;
const PEER: Peer = Peer {
    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    secure: false,
    certified: false,
};

/// Serves the app of the published vectors (id 3), one with two keys (id 4) and a disabled one
/// (id 5).
pub struct Api {
    pub front: Arc<Front>,
}

/// How the requests of an app are signed.
#[derive(Clone, Copy)]
pub struct Signer {
    pub app: &'static str,
    pub key: &'static str,
    pub secret: &'static str,
}

pub const APP: Signer = Signer {
    app: "3",
    key: "278d425bdf160c739803",
    secret: "7ad3773142a6692b25b8",
};
pub const OLD_KEY: Signer = Signer {
    app: "4",
    key: "old",
    secret: "old-secret",
};
pub const NEW_KEY: Signer = Signer {
    app: "4",
    key: "new",
    secret: "new-secret",
};
pub const DISABLED: Signer = Signer {
    app: "5",
    key: "disabled",
    secret: "disabled-secret",
};

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
        let content_type = self.headers.get(CONTENT_TYPE);
        let expected = match status {
            200 => Some("application/json"),
            202 => None,
            _ => Some("text/plain; charset=utf-8"),
        };
        assert_eq!(
            content_type.map(|value| value.to_str().unwrap()),
            expected,
            "content type"
        );
    }
}

impl Api {
    pub fn new() -> Self {
        let hub = Arc::new(Hub::new());
        let ids = Arc::new(IdSource::new(7));
        let (facts, _) = fact_queue(1);
        let backend = Arc::new(Memory::new(hub.clone(), ids.clone(), facts.clone()));
        let apps = vec![
            app(&[APP], true),
            app(&[OLD_KEY, NEW_KEY], true),
            app(&[DISABLED], false),
        ];
        let front = Arc::new(Front {
            broker: Broker::new(hub, backend, facts, ids),
            apps: Arc::new(AppRegistry::new(apps)),
            request_body_bytes_max: BODY_BYTES_MAX,
            wants_client_certificate: false,
            clock: || NOW_SECS,
        });
        Self { front }
    }

    /// `target` is a path with its query.
    pub async fn send(&self, method: &str, target: &str, body: &str) -> Answer {
        let request = http::Request::builder().method(method).uri(target);
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        self.serve(request.body(body).unwrap()).await
    }

    pub async fn serve<B>(&self, request: http::Request<B>) -> Answer
    where
        B: hyper::body::Body<Data = Bytes>,
    {
        let answer = self.front.clone().answer(request, PEER).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Sends a signed request; `path` follows the app's id.
    pub async fn call(&self, method: &str, path: &str, query: &str, body: &str) -> Answer {
        self.send(method, &APP.target(method, path, query, body), body)
            .await
    }

    pub async fn get(&self, path: &str, query: &str) -> Answer {
        self.call("GET", path, query, "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.call("POST", path, "", body).await
    }

    /// A new connection, subscribed to the channels of app 3; as `user` to presence channels.
    pub async fn listen(&self, user: &str, channels: &[&str]) -> Listener {
        let app = self.front.apps.by_id(APP.app).unwrap();
        let outbox = Arc::new(Outbox::new(1_000_000));
        let listener = Listener {
            socket_id: self.front.broker.new_socket_id(),
            outbox: outbox.clone(),
        };
        for channel in channels {
            let subscriber = listener.subscriber();
            let channel = ChannelName::parse(channel, 200).unwrap();
            let member = Member {
                user_id: user.into(),
                user_info: None,
            };
            let member = channel.is_presence().then(|| Arc::new(member));
            (self.front.broker)
                .subscribe(&app, &channel, subscriber, member, |_| {
                    Acknowledgement::default()
                })
                .await
                .unwrap();
        }
        listener
    }
}

impl Signer {
    /// Where to send a request of now; `path` follows the app's id.
    pub fn target(self, method: &str, path: &str, query: &str, body: &str) -> String {
        let path = format!("/apps/{}{path}", self.app);
        self.sign(NOW_SECS, method, &path, query, body)
    }

    /// The whole `path` with its signed query.
    pub fn sign(self, now_secs: u64, method: &str, path: &str, query: &str, body: &str) -> String {
        let request = SignedRequest {
            method,
            path,
            query,
            body: body.as_bytes(),
        };
        let query = request.signed_query(now_secs, self.key, &Secret::new(self.secret));
        format!("{path}?{query}")
    }
}

pub struct Listener {
    pub socket_id: SocketId,
    outbox: Arc<Outbox>,
}

impl Listener {
    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            id: self.socket_id,
            outbox: self.outbox.clone(),
            encoding: &PlainText,
        }
    }

    /// What came since the last time, each as `CHANNEL NAME DATA`.
    pub fn received(&self) -> Vec<String> {
        let mut frames = VecDeque::new();
        match self.poll(&mut frames) {
            Poll::Ready(Ok(())) => frames.iter().map(|f| f.as_str().to_owned()).collect(),
            _ => Vec::new(),
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.poll(&mut VecDeque::new()), Poll::Ready(Err(_)))
    }

    fn poll(&self, frames: &mut VecDeque<Frame>) -> Poll<Result<(), crate::hub::Closing>> {
        let mut cx = Context::from_waker(Waker::noop());
        self.outbox.poll_take(&mut cx, frames)
    }
}

struct PlainText;

impl Encoding for PlainText {
    fn name(&self) -> &'static str {
        "plain text"
    }

    fn encode(&self, event: &Event) -> Option<Frame> {
        let Body::Message(message) = &event.body else {
            return None;
        };
        let text = format!("{} {} {}", event.channel.name, message.name, message.data);
        Some(text.into())
    }
}

fn app(signers: &[Signer], enabled: bool) -> App {
    let key = |signer: &Signer| AppKey {
        key: signer.key.to_owned(),
        secret: Secret::new(signer.secret),
    };
    App {
        id: AppId::new(signers[0].app),
        name: None,
        enabled,
        keys: signers.iter().map(key).collect(),
        features: Features::default(),
        limits: Limits::default(),
        allowed_origins: Vec::new(),
    }
}
