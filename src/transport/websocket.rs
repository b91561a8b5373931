//! A WebSocket and the loop that serves it. What the messages mean is the [`Conversation`]'s.
//!
//! The upgrade is done by hand, because the buffers of a connection are most of its memory, and
//! those of a ready-made filter cannot be chosen.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::task::TaskTracker;
use warp::http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::http::text;
use super::peer::Seat;
use super::receipt::Receipted;
use crate::hub::Frame;
use crate::metrics::{CUT_OFFS, CutOff};

/// Both directions of an idle connection together stay far below the size of its kernel buffers.
const READ_BUFFER_BYTES: usize = 1024;
/// Frames are collected up to this size before they are written.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
/// How long a peer may take to answer our close.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

pub struct Settings {
    /// After this much silence the peer is pinged.
    pub ping_after: Duration,
    /// How long after the ping something must come back.
    pub pong_within: Duration,
    /// A peer that accepts nothing for this long is cut off.
    pub write_timeout: Duration,
    pub inbound_message_bytes_max: usize,
    /// Runs the sockets, and knows when the last has said goodbye.
    pub tasks: TaskTracker,
}

/// What a peer says and is told, apart from sockets and timers.
pub trait Conversation: Send {
    /// Answers go into the outbox.
    fn on_text(&mut self, text: &str) -> impl Future<Output = Result<(), Close>> + Send;

    /// Whether binary messages are read as text too.
    const READS_BINARY: bool = false;

    /// Waits for what the peer is to receive and moves it to the empty `batch`; the batch before
    /// it is written. `Err` once nothing more is to come.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut VecDeque<Frame>,
    ) -> Poll<Result<(), Close>>;

    /// While a batch is being written: waits until it is of no use to go on.
    fn poll_abandon(&mut self, cx: &mut Context<'_>) -> Poll<Close>;

    /// When [`Conversation::on_deadline`] is due.
    fn deadline(&self) -> Option<Instant>;

    fn on_deadline(&mut self) -> Result<(), Close>;

    /// What the peer is told when it did not answer a ping.
    fn on_silence(&self) -> Close;
}

/// How the server ends a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// Sent in front of the close.
    pub last_words: Option<Frame>,
    pub code: u16,
    /// At most 123 bytes.
    pub reason: Cow<'static, str>,
}

impl Close {
    pub fn plain(code: u16, reason: &'static str) -> Self {
        Self {
            last_words: None,
            code,
            reason: Cow::Borrowed(reason),
        }
    }
}

/// The answer to an upgrade request and what it promises.
pub struct Upgrade {
    pub response: Response,
    on_upgrade: OnUpgrade,
}

impl Upgrade {
    /// `Err` is the answer to a request that asks for no WebSocket of version 13.
    pub fn accept(
        headers: &HeaderMap,
        on_upgrade: Option<OnUpgrade>,
    ) -> Result<Self, Box<Response>> {
        let (Some(on_upgrade), true) = (on_upgrade, is_websocket_request(headers)) else {
            let mut refusal = text(StatusCode::UPGRADE_REQUIRED, "WebSocket upgrade required");
            let headers = refusal.headers_mut();
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            return Err(Box::new(refusal));
        };
        let key = headers.get(SEC_WEBSOCKET_KEY);
        let (Some(key), true) = (key, has_word(headers, SEC_WEBSOCKET_VERSION, "13")) else {
            let mut refusal = text(StatusCode::BAD_REQUEST, "WebSocket version 13 required");
            let version = HeaderValue::from_static("13");
            refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
            return Err(Box::new(refusal));
        };
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
        let headers = response.headers_mut();
        headers.insert(
            SEC_WEBSOCKET_ACCEPT,
            accept.expect("base64 is a header value"),
        );
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        Ok(Self {
            response,
            on_upgrade,
        })
    }

    /// Sends the answer, then serves the socket in a task of its own.
    pub fn serve<C: Conversation + 'static>(
        self,
        settings: Arc<Settings>,
        conversation: impl FnOnce() -> Result<C, Close> + Send + 'static,
    ) -> Response {
        let on_upgrade = self.on_upgrade;
        let tasks = settings.tasks.clone();
        tasks.spawn(async move {
            let Some((stream, _seat)) = open(on_upgrade, &settings).await else {
                return;
            };
            let mut socket = Socket {
                stream,
                settings,
                last_heard: Instant::now(),
                pinged_at: None,
            };
            let end = match conversation() {
                Ok(mut conversation) => socket.run(&mut conversation).await,
                Err(close) => End::Close(close),
            };
            // Boxed, so that it takes no room in the task while the connection lives.
            Box::pin(socket.end(end)).await;
        });
        self.response
    }
}

/// Whether the client wants to go on as a WebSocket. Others, such as Java's HTTP client, offer to
/// go on as something else.
pub fn is_websocket_request(headers: &HeaderMap) -> bool {
    has_word(headers, UPGRADE, "websocket") && has_word(headers, CONNECTION, "upgrade")
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut words = values.flat_map(|v| v.to_str().unwrap_or_default().split(','));
    words.any(|given| given.trim().eq_ignore_ascii_case(word))
}

async fn open(
    on_upgrade: OnUpgrade,
    settings: &Settings,
) -> Option<(WebSocketStream<TcpStream>, Seat)> {
    let upgraded = on_upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Receipted>>().ok()?;
    let (stream, seat) = parts.io.into_inner().into_parts();
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(settings.inbound_message_bytes_max))
        .max_frame_size(Some(settings.inbound_message_bytes_max));
    let early = parts.read_buf.to_vec();
    let socket =
        WebSocketStream::from_partially_read(stream, early, Role::Server, Some(config)).await;
    Some((socket, seat))
}

struct Socket {
    stream: WebSocketStream<TcpStream>,
    settings: Arc<Settings>,
    last_heard: Instant,
    /// When it was pinged, if nothing came since.
    pinged_at: Option<Instant>,
}

/// Why a socket's loop ended.
enum End {
    /// The peer closed, and is owed the answer to its close frame.
    PeerClosed,
    /// The connection is broken, or takes nothing any more.
    Broken,
    Close(Close),
    /// As `Close`, after bytes that make no frame: nothing that follows can be read.
    CloseUnreadable(Close),
}

impl Socket {
    async fn run(&mut self, conversation: &mut impl Conversation) -> End {
        let Err(end) = self.converse(conversation).await;
        end
    }

    async fn converse(&mut self, conversation: &mut impl Conversation) -> Result<Infallible, End> {
        let mut timer = pin!(sleep_until(self.next_check(conversation)));
        let mut batch = VecDeque::new();
        loop {
            tokio::select! {
                message = self.stream.next() => {
                    self.on_message(message, conversation).await?;
                    let due = conversation.deadline();
                    if due.is_some_and(|due| due < timer.deadline()) {
                        timer.as_mut().reset(self.next_check(conversation));
                    }
                }
                taken = poll_fn(|cx| conversation.poll_take(cx, &mut batch)) => {
                    taken.map_err(End::Close)?;
                    self.write(&mut batch, conversation).await?;
                }
                () = &mut timer => {
                    self.on_timer(conversation).await?;
                    timer.as_mut().reset(self.next_check(conversation));
                }
            }
        }
    }

    /// Timers are not moved by traffic: when one is due, the time of the last message decides.
    fn next_check(&self, conversation: &impl Conversation) -> Instant {
        let check = match self.pinged_at {
            None => self.last_heard + self.settings.ping_after,
            Some(pinged_at) => pinged_at + self.settings.pong_within,
        };
        conversation.deadline().map_or(check, |d| d.min(check))
    }

    async fn on_timer(&mut self, conversation: &mut impl Conversation) -> Result<(), End> {
        let now = Instant::now();
        if conversation.deadline().is_some_and(|due| due <= now) {
            conversation.on_deadline().map_err(End::Close)?;
        }
        let Settings {
            ping_after,
            pong_within,
            ..
        } = *self.settings;
        match self.pinged_at {
            None if now - self.last_heard >= ping_after => {
                let ping = Message::Ping(Bytes::new());
                self.send(ping, true, conversation).await?;
                self.pinged_at = Some(Instant::now());
                Ok(())
            }
            // While something was written nothing was read: the answer may lie there already.
            Some(pinged_at) if now - pinged_at >= pong_within => {
                match self.stream.next().now_or_never() {
                    Some(message) => self.on_message(message, conversation).await,
                    None => {
                        CUT_OFFS.count(CutOff::NoPong);
                        Err(End::Close(conversation.on_silence()))
                    }
                }
            }
            _ => Ok(()),
        }
    }

    async fn on_message<C: Conversation>(
        &mut self,
        message: Option<Result<Message, Error>>,
        conversation: &mut C,
    ) -> Result<(), End> {
        self.last_heard = Instant::now();
        self.pinged_at = None;
        match message {
            // Boxed, so that what a message needs takes no room while none is there.
            Some(Ok(Message::Text(text))) => {
                let answered = Box::pin(conversation.on_text(&text)).await;
                answered.map_err(End::Close)
            }
            Some(Ok(Message::Binary(bytes))) if C::READS_BINARY => {
                let not_text = |_| End::Close(Close::plain(1007, "Text is not valid UTF-8"));
                let text = std::str::from_utf8(&bytes).map_err(not_text)?;
                let answered = Box::pin(conversation.on_text(text)).await;
                answered.map_err(End::Close)
            }
            Some(Ok(Message::Binary(_))) => {
                let close = Close::plain(1003, "Binary messages are not supported");
                Err(End::Close(close))
            }
            Some(Ok(Message::Close(_))) => Err(End::PeerClosed),
            // Sent before more is read: the answers must not pile up in front of a peer that
            // asks and asks and takes none.
            Some(Ok(Message::Ping(payload))) => {
                self.send(Message::Pong(payload), true, conversation).await
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Err(error)) => Err(unreadable(&error).map_or(End::Broken, End::CloseUnreadable)),
            None => Err(End::Broken),
        }
    }

    async fn write(
        &mut self,
        batch: &mut VecDeque<Frame>,
        conversation: &mut impl Conversation,
    ) -> Result<(), End> {
        while let Some(frame) = batch.pop_front() {
            let is_last = batch.is_empty();
            let message = Message::Text(frame.into_text());
            self.send(message, is_last, conversation).await?;
        }
        Ok(())
    }

    /// Writes, as far as the peer keeps accepting bytes and its outbox does not overflow.
    async fn send(
        &mut self,
        message: Message,
        flush: bool,
        conversation: &mut impl Conversation,
    ) -> Result<(), End> {
        let stream = &mut self.stream;
        let written = async move {
            match flush {
                true => stream.send(message).await,
                false => stream.feed(message).await,
            }
        };
        tokio::select! {
            biased;
            written = written => written.map_err(|_| End::Broken),
            close = poll_fn(|cx| conversation.poll_abandon(cx)) => Err(End::Close(close)),
            () = sleep(self.settings.write_timeout) => {
                CUT_OFFS.count(CutOff::WriteTimeout);
                Err(End::Broken)
            }
        }
    }

    async fn end(&mut self, end: End) {
        let (close, readable) = match end {
            End::Broken => return,
            End::PeerClosed => {
                let _ = timeout(CLOSE_WITHIN, self.stream.flush()).await;
                return;
            }
            End::Close(close) => (close, true),
            End::CloseUnreadable(close) => (close, false),
        };
        let write_timeout = self.settings.write_timeout;
        let _ = timeout(write_timeout, self.say_goodbye(close)).await;
        let _ = timeout(CLOSE_WITHIN, self.hear_out(readable)).await;
    }

    async fn say_goodbye(&mut self, close: Close) -> Result<(), Error> {
        if let Some(frame) = close.last_words {
            self.stream.feed(Message::Text(frame.into_text())).await?;
        }
        let frame = CloseFrame {
            code: CloseCode::from(close.code),
            reason: close.reason.as_ref().into(),
        };
        self.stream.send(Message::Close(Some(frame))).await
    }

    /// Reads until the peer is gone: closing a socket with unread bytes would reset it, and the
    /// peer might lose our last words.
    async fn hear_out(&mut self, readable: bool) {
        if readable {
            while let Some(Ok(_)) = self.stream.next().await {}
        }
        let stream = self.stream.get_mut();
        let _ = stream.shutdown().await;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await.is_ok_and(|n| n > 0) {}
    }
}

/// What to tell a peer whose bytes cannot be read; `None` where there is nobody to tell.
fn unreadable(error: &Error) -> Option<Close> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            CUT_OFFS.count(CutOff::MessageTooLarge);
            Some(Close::plain(1009, "Message too large"))
        }
        Error::Utf8(_) => Some(Close::plain(1007, "Text is not valid UTF-8")),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => {
            CUT_OFFS.count(CutOff::ProtocolError);
            Some(Close::plain(1002, "WebSocket protocol error"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];

    struct Silent;

    impl Conversation for Silent {
        async fn on_text(&mut self, _: &str) -> Result<(), Close> {
            Ok(())
        }

        fn deadline(&self) -> Option<Instant> {
            None
        }

        fn on_deadline(&mut self) -> Result<(), Close> {
            Ok(())
        }

        fn poll_take(
            &mut self,
            _: &mut Context<'_>,
            _: &mut VecDeque<Frame>,
        ) -> Poll<Result<(), Close>> {
            Poll::Pending
        }

        fn poll_abandon(&mut self, _: &mut Context<'_>) -> Poll<Close> {
            Poll::Pending
        }

        fn on_silence(&self) -> Close {
            Close::plain(4201, "silence")
        }
    }

    /// A socket and its peer's end of the connection.
    async fn connected() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.unwrap();
        let settings = Settings {
            ping_after: Duration::from_secs(20),
            pong_within: Duration::from_secs(10),
            write_timeout: Duration::from_millis(200),
            inbound_message_bytes_max: 1000,
            tasks: TaskTracker::new(),
        };
        let socket = Socket {
            stream: WebSocketStream::from_raw_socket(stream, Role::Server, None).await,
            settings: Arc::new(settings),
            last_heard: Instant::now(),
            pinged_at: None,
        };
        (socket, peer.unwrap())
    }

    #[tokio::test]
    async fn a_peer_that_pings_and_reads_nothing_is_cut_off() {
        let (mut socket, mut peer) = connected().await;
        let mut ping = vec![0x89, 0x80 | 125, 0, 0, 0, 0];
        ping.resize(6 + 125, b'x');
        let pings = ping.repeat(1000);
        let peer = tokio::spawn(async move {
            for _ in 0..250 {
                peer.write_all(&pings).await?;
            }
            // Still there, had all of it been taken.
            std::future::pending().await
        });
        let served = timeout(Duration::from_secs(10), socket.run(&mut Silent)).await;
        assert!(matches!(served, Ok(End::Broken)));
        peer.abort();
        let _: Result<Result<(), std::io::Error>, _> = peer.await;
    }

    #[tokio::test]
    async fn a_peer_is_pinged_before_it_counts_as_silent() {
        let (mut socket, mut peer) = connected().await;
        // As after a write that took long.
        socket.last_heard = Instant::now() - Duration::from_secs(31);
        assert!(socket.on_timer(&mut Silent).await.is_ok());
        let mut ping = [0; 2];
        peer.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping, [0x89, 0]);
        let left = socket.next_check(&Silent) - Instant::now();
        assert!(left > Duration::from_secs(9), "{left:?}");
    }

    #[tokio::test]
    async fn what_waits_to_be_read_is_a_sign_of_life() {
        let (mut socket, mut peer) = connected().await;
        socket.last_heard = Instant::now() - Duration::from_secs(31);
        socket.on_timer(&mut Silent).await.ok().unwrap();
        peer.write_all(&PING).await.unwrap();
        socket.stream.get_ref().readable().await.unwrap();
        socket.pinged_at = socket.pinged_at.map(|at| at - Duration::from_secs(11));
        assert!(socket.on_timer(&mut Silent).await.is_ok());
        assert!(socket.last_heard.elapsed() < Duration::from_secs(1));
        socket.last_heard -= Duration::from_secs(31);
        assert!(socket.on_timer(&mut Silent).await.is_ok());
        socket.pinged_at = socket.pinged_at.map(|at| at - Duration::from_secs(11));
        let end = socket.on_timer(&mut Silent).await.unwrap_err();
        assert!(matches!(end, End::Close(Close { code: 4201, .. })));
    }
}
