//! A server on a free port, and clients that see every byte.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use raptor::apps::App;
use raptor::bayeux::Settings;
use raptor::config::Config;
use raptor::server::Server;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Nothing that is to happen takes longer.
const SOON: Duration = Duration::from_secs(5);

pub struct Running {
    pub address: SocketAddr,
    shutdown: Arc<Notify>,
    served: JoinHandle<()>,
}

pub async fn serve() -> Running {
    serve_with(|_, _| {}).await
}

/// The development app, after a change.
pub async fn serve_with(change: impl FnOnce(&mut Settings, &mut App)) -> Running {
    let mut config = Config::development();
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    change(&mut config.bayeux[0].1, &mut config.apps[0]);
    let server = Server::start(config).await.unwrap();
    let address = server.address().unwrap();
    let shutdown = Arc::new(Notify::new());
    let served = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { server.run_until(shutdown.notified()).await }
    });
    Running {
        address,
        shutdown,
        served,
    }
}

pub struct Answer {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Vec<Value> {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no array: {}", self.body))
    }
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.notify_one();
        timeout(SOON, self.served).await.unwrap().unwrap();
    }

    /// Sends a request and leaves the connection open.
    pub async fn send(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    pub async fn request(&self, head: &str, body: &str) -> Answer {
        let stream = self.send(head, body).await;
        read_answer(stream).await
    }

    /// A poll that can be dropped.
    pub async fn send_messages(&self, messages: &Value) -> TcpStream {
        let head = "POST /faye HTTP/1.1\r\nContent-Type: application/json";
        self.send(head, &messages.to_string()).await
    }

    pub async fn post(&self, messages: Value) -> Vec<Value> {
        let stream = self.send_messages(&messages).await;
        let answer = read_answer(stream).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// The only reply to the only message.
    pub async fn ask(&self, message: Value) -> Value {
        let mut replies = self.post(message).await;
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }

    pub async fn websocket(&self, path: &str) -> Socket {
        let url = format!("ws://{}{path}", self.address);
        Socket(connect_async(url).await.unwrap().0)
    }

    /// A pusher-js client after its greeting.
    pub async fn pusher(&self) -> Socket {
        let mut socket = self.websocket("/app/app-key?protocol=7").await;
        let greeting = socket.next().await;
        assert_eq!(greeting["event"], "pusher:connection_established");
        socket
    }
}

pub async fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Answer {
        status,
        headers: headers.collect(),
        body: body.to_owned(),
    }
}

pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub async fn send_binary(&mut self, text: &str) {
        self.0.send(Message::binary(text.to_owned())).await.unwrap();
    }

    /// The JSON of the next text frame.
    pub async fn next(&mut self) -> Value {
        loop {
            match timeout(SOON, self.0.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The code with which the server closes, right away.
    pub async fn close_code(&mut self) -> u16 {
        match timeout(SOON, self.0.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("{other:?}"),
        }
    }
}

/// A Bayeux session over long-polling.
pub struct Session<'s> {
    pub server: &'s Running,
    pub id: String,
    pub socket_id: String,
}

impl Running {
    pub async fn session(&self) -> Session<'_> {
        let types = ["long-polling", "callback-polling"];
        let handshake = serde_json::json!({"channel": "/meta/handshake", "version": "1.0",
            "supportedConnectionTypes": types, "id": "1"});
        let reply = self.ask(handshake).await;
        assert_eq!(reply["successful"], true, "{reply}");
        Session {
            server: self,
            id: reply["clientId"].as_str().unwrap().to_owned(),
            socket_id: reply["ext"]["socket_id"].as_str().unwrap().to_owned(),
        }
    }
}

impl Session<'_> {
    pub fn connect(&self, hold_ms: u64) -> Value {
        serde_json::json!({"channel": "/meta/connect", "clientId": self.id, "id": "c",
            "connectionType": "long-polling", "advice": {"timeout": hold_ms}})
    }

    /// What came behind the reply of a poll.
    pub async fn poll(&self, hold_ms: u64) -> Vec<Value> {
        let mut messages = self.server.post(self.connect(hold_ms)).await;
        let reply = messages.remove(0);
        assert_eq!(reply["channel"], "/meta/connect");
        assert_eq!(reply["successful"], true, "{reply}");
        messages
    }

    pub async fn subscribe(&self, subscription: impl Into<Value>) -> Value {
        self.subscribe_with(subscription, Value::Null).await
    }

    pub async fn subscribe_with(&self, subscription: impl Into<Value>, ext: Value) -> Value {
        let message = serde_json::json!({"channel": "/meta/subscribe", "clientId": self.id,
            "subscription": subscription.into(), "ext": ext, "id": "s"});
        self.server.ask(message).await
    }

    pub async fn publish(&self, channel: &str, data: Value) -> Value {
        let message = serde_json::json!({"channel": channel, "clientId": self.id, "data": data});
        self.server.ask(message).await
    }

    /// A subscription as the application's auth endpoint signs it.
    pub fn signed(&self, channel: &str, channel_data: Option<&str>) -> Value {
        let text = raptor::auth::subscription_text(&self.socket_id, channel, channel_data);
        let signature = raptor::auth::Secret::new("app-secret").sign(text.as_bytes());
        let auth = format!("app-key:{signature}");
        match channel_data {
            Some(data) => serde_json::json!({"auth": auth, "channel_data": data}),
            None => serde_json::json!({ "auth": auth }),
        }
    }
}
