//! Clients that connect, subscribe and listen.

use std::sync::{Arc, LazyLock, Mutex};

use memchr::memmem::Finder;

use super::client::{CLOSE, Failure, Http, PING, TEXT, WebSocket};
use super::tally::{Ear, Tally};
use super::target::{App, Protocol, Target};

/// Looked for in every text, and much dearer to make than to use.
static CONNECT: LazyLock<Finder> = LazyLock::new(|| Finder::new(b"/meta/connect"));
static PUSHER_PING: LazyLock<Finder> = LazyLock::new(|| Finder::new(b"\"pusher:ping\""));

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    LongPolling,
}

pub enum Subscriber {
    Pusher(WebSocket),
    /// With its client id.
    Bayeux(WebSocket, String),
    Polling(Http, String, String),
}

impl Subscriber {
    /// Connected and subscribed. A private channel is signed for.
    pub async fn open(
        target: &Target,
        transport: Transport,
        channel: &str,
    ) -> Result<Self, Failure> {
        match (&target.protocol, transport) {
            (Protocol::Pusher(app), _) => {
                let (mut socket, socket_id) = pusher_socket(target).await?;
                let is_signed = channel.starts_with("private-");
                let auth = is_signed.then(|| app.auth(&socket_id, channel, None));
                pusher_subscribe(&mut socket, channel, auth.as_deref(), None).await?;
                Ok(Self::Pusher(socket))
            }
            (Protocol::Bayeux(path), Transport::WebSocket) => {
                let mut socket = WebSocket::connect(target.address, path).await?;
                socket.send(HANDSHAKE).await?;
                let id = client_id(&socket.expect("/meta/handshake").await?)?;
                socket.send(&subscribe(&id, channel)).await?;
                socket.expect(r#""successful":true"#).await?;
                // It binds the socket to the session.
                socket.send(&connect(&id, "websocket")).await?;
                Ok(Self::Bayeux(socket, id))
            }
            (Protocol::Bayeux(path), Transport::LongPolling) => {
                let mut http = Http::connect(target.address).await?;
                let answer = http.post(path, HANDSHAKE, true).await?;
                let id = client_id(&answer.body)?;
                let answer = http.post(path, &subscribe(&id, channel), true).await?;
                match answer.body.contains(r#""successful":true"#) {
                    true => Ok(Self::Polling(http, id, path.clone())),
                    false => Err(Failure::Refused(answer.body)),
                }
            }
        }
    }

    /// Counts what comes, until the connection ends.
    pub async fn listen(self, tally: Arc<Tally>, ear: Arc<Mutex<Ear>>) {
        let _ended = match self {
            Self::Pusher(mut socket) => listen(&mut socket, None, &tally, &ear).await,
            Self::Bayeux(mut socket, id) => listen(&mut socket, Some(&id), &tally, &ear).await,
            Self::Polling(http, id, path) => poll(http, &id, &path, &tally, &ear).await,
        };
        tally.connection_ended();
    }
}

async fn listen(
    socket: &mut WebSocket,
    client_id: Option<&str>,
    tally: &Tally,
    ear: &Mutex<Ear>,
) -> Result<(), Failure> {
    socket.acknowledge_what_is_read();
    loop {
        hear(
            socket,
            client_id,
            |payload, now_us| tally.count(ear, payload, now_us),
            || tally.now_us(),
        )
        .await?;
    }
}

/// Waits for frames, hands each text to `take`, which says whether there was one of ours in it,
/// and answers those that want an answer. Nothing is lost if it is dropped while it waits.
pub async fn hear(
    socket: &mut WebSocket,
    client_id: Option<&str>,
    mut take: impl FnMut(&[u8], u64) -> bool,
    now_us: impl Fn() -> u64,
) -> Result<(), Failure> {
    let (mut pings, mut wants_pong, mut wants_connect) = (Vec::new(), false, false);
    let (mut is_closed, mut now) = (false, None);
    socket
        .frames(|frame| match frame.opcode {
            TEXT => {
                let is_ours = take(frame.payload, *now.get_or_insert_with(&now_us));
                let holds = |part: &Finder| part.find(frame.payload).is_some();
                match client_id {
                    // Faye puts the answer and events into one frame.
                    Some(_) => wants_connect |= holds(&CONNECT),
                    None => wants_pong |= !is_ours && holds(&PUSHER_PING),
                }
            }
            PING => pings.push(frame.payload.to_vec()),
            CLOSE => is_closed = true,
            _ => {}
        })
        .await?;
    for payload in pings {
        socket.pong(&payload).await?;
    }
    if wants_pong {
        socket.send(r#"{"event":"pusher:pong","data":{}}"#).await?;
    }
    if let (Some(id), true) = (client_id, wants_connect) {
        socket.send(&connect(id, "websocket")).await?;
    }
    match is_closed {
        true => Err(Failure::Closed),
        false => Ok(()),
    }
}

async fn poll(
    mut http: Http,
    id: &str,
    path: &str,
    tally: &Tally,
    ear: &Mutex<Ear>,
) -> Result<(), Failure> {
    let connect = connect(id, "long-polling");
    loop {
        let answer = http.post(path, &connect, true).await?;
        tally.count(ear, answer.body.as_bytes(), tally.now_us());
    }
}

/// A connection and its socket id.
pub async fn pusher_socket(target: &Target) -> Result<(WebSocket, String), Failure> {
    let mut socket = WebSocket::connect(target.address, &target.websocket_path()).await?;
    let established = socket.expect("pusher:connection_established").await?;
    // The data is JSON in a string.
    let after = established.split_once(r#"socket_id\":\""#);
    let socket_id = after.and_then(|(_, after)| after.split_once('\\'));
    let (socket_id, _) = socket_id.ok_or(Failure::Unreadable)?;
    Ok((socket, socket_id.to_owned()))
}

pub async fn pusher_subscribe(
    socket: &mut WebSocket,
    channel: &str,
    auth: Option<&str>,
    channel_data: Option<&str>,
) -> Result<(), Failure> {
    let mut data = serde_json::json!({ "channel": channel });
    if let Some(auth) = auth {
        data["auth"] = auth.into();
    }
    if let Some(channel_data) = channel_data {
        data["channel_data"] = channel_data.into();
    }
    let subscribe = serde_json::json!({ "event": "pusher:subscribe", "data": data });
    socket.send(&subscribe.to_string()).await?;
    (socket
        .expect("pusher_internal:subscription_succeeded")
        .await)
        .map(|_| ())
}

/// On a signed channel of Pusher.
pub async fn pusher_subscribe_signed(
    socket: &mut WebSocket,
    app: &App,
    (socket_id, channel): (&str, &str),
    channel_data: Option<&str>,
) -> Result<(), Failure> {
    let auth = app.auth(socket_id, channel, channel_data);
    pusher_subscribe(socket, channel, Some(&auth), channel_data).await
}

const HANDSHAKE: &str = r#"[{"channel":"/meta/handshake","version":"1.0","supportedConnectionTypes":["websocket","long-polling"],"id":"1"}]"#;

fn client_id(reply: &str) -> Result<String, Failure> {
    let after = reply.split_once(r#""clientId":""#).map(|(_, after)| after);
    let id = after.and_then(|after| after.split_once('"'));
    let (id, _) = id.ok_or_else(|| Failure::Refused(reply.to_owned()))?;
    Ok(id.to_owned())
}

fn subscribe(client_id: &str, channel: &str) -> String {
    format!(
        r#"[{{"channel":"/meta/subscribe","clientId":"{client_id}","subscription":"{channel}","id":"2"}}]"#
    )
}

fn connect(client_id: &str, connection_type: &str) -> String {
    format!(
        r#"[{{"channel":"/meta/connect","clientId":"{client_id}","connectionType":"{connection_type}","id":"3"}}]"#
    )
}
