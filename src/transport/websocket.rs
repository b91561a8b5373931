//! A WebSocket and the loop that serves it. What the messages mean is the [`Conversation`]'s, how
//! they are written [`crate::wire::websocket`]'s, and when, [`super::writer`]'s.
//!
//! The upgrade is done by hand, because the buffers of a connection are most of its memory: here
//! an idle one has none.

use std::borrow::Cow;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
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
use super::stream::Stream;
use super::writer::{Attention, Flushers, Source, Stopped, Writer};
use crate::hub::Frame;
use crate::metrics::{CUT_OFFS, CutOff};
use crate::wire::websocket::{
    Decoder, Incoming, Malformed, push_close, push_ping, push_pong, push_text,
};

/// What is read at once of any socket.
const READ_BYTES: usize = 16 * 1024;
/// After so many messages of one peer others have their turn.
const MESSAGES_BEFORE_YIELD: usize = 32;
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
    /// Write to them.
    pub flushers: Arc<Flushers>,
}

/// What a peer says and is told, apart from sockets and timers.
pub trait Conversation: Send {
    type Source: Source;

    /// What the peer is to receive.
    fn source(&self) -> Self::Source;

    /// Answers come by the source.
    fn on_text(&mut self, text: &str) -> impl Future<Output = Result<(), Close>> + Send;

    /// The peer asked whether anybody is there, and was answered.
    fn on_ping(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether binary messages are read as text too.
    const READS_BINARY: bool = false;

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
        let tasks = settings.tasks.clone();
        let opening = open(self.on_upgrade, conversation, settings.clone());
        // What comes before and after is boxed, so that it takes no room in the task while the
        // connection lives.
        let opening = Box::pin(opening);
        tasks.spawn(async move {
            let Some(mut opened) = opening.await else {
                return;
            };
            let (end, begun) = match &mut opened.socket {
                Ok(socket) => socket.run().await,
                Err(close) => (End::Close(close.clone()), Vec::new()),
            };
            // It has left everything before the peer, which may be slow, is told.
            drop(opened.socket);
            Box::pin(async {
                if end.is_refusal() {
                    opened.seat.refuse().await;
                }
                part(&opened.stream, end, begun, &settings).await;
            })
            .await;
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

/// A connection that has become a WebSocket.
struct Opened<C: Conversation> {
    stream: Arc<Stream>,
    /// `Err`: nobody wants to talk.
    socket: Result<Socket<C>, Close>,
    /// It counts as long as it is open.
    seat: Seat,
}

/// The socket behind an upgrade. Of the HTTP connection nothing is kept, not even the buffer that
/// is behind what was received, be it empty.
async fn open<C: Conversation>(
    on_upgrade: OnUpgrade,
    conversation: impl FnOnce() -> Result<C, Close>,
    settings: Arc<Settings>,
) -> Option<Opened<C>> {
    let upgraded = on_upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Receipted>>().ok()?;
    let (stream, seat) = parts.io.into_inner().into_parts().ok()?;
    let stream = Arc::new(stream);
    let socket = conversation()
        .map(|conversation| Socket::new(stream.clone(), &parts.read_buf, conversation, settings));
    Some(Opened {
        stream,
        socket,
        seat,
    })
}

struct Socket<C: Conversation> {
    stream: Arc<Stream>,
    writer: Arc<Writer<C::Source>>,
    decoder: Decoder,
    conversation: C,
    settings: Arc<Settings>,
    last_heard: Instant,
    /// When it was pinged, if nothing came since.
    pinged_at: Option<Instant>,
}

/// Why a socket's loop ended.
#[derive(Debug)]
enum End {
    /// The peer closed, and is owed an answer with this code.
    PeerClosed(Option<u16>),
    /// The connection is broken, or takes nothing any more.
    Broken,
    Close(Close),
    /// As `Close`, after bytes that make no frame: nothing that follows can be read.
    CloseUnreadable(Close),
}

impl End {
    /// Whether the peer broke the protocol, or is to stay away (`pusher.md` 1.7).
    fn is_refusal(&self) -> bool {
        match self {
            Self::PeerClosed(_) | Self::Broken => false,
            Self::Close(close) | Self::CloseUnreadable(close) => {
                matches!(close.code, 1002..=1009 | 4000..=4099)
            }
        }
    }
}

impl<C: Conversation> Socket<C> {
    fn new(stream: Arc<Stream>, received: &[u8], conversation: C, settings: Arc<Settings>) -> Self {
        let mut decoder = Decoder::new(settings.inbound_message_bytes_max);
        decoder.receive(received);
        let source = conversation.source();
        Self {
            writer: Writer::new(stream.clone(), source, &settings.flushers),
            stream,
            decoder,
            conversation,
            settings,
            last_heard: Instant::now(),
            pinged_at: None,
        }
    }

    /// Serves until one side ends it. What is left of the bytes that were begun goes in front of
    /// the close.
    async fn run(&mut self) -> (End, Vec<u8>) {
        let Err(end) = self.converse().await;
        if !matches!(end, End::Broken) {
            self.writer.flush();
        }
        (end, self.writer.retire())
    }

    async fn converse(&mut self) -> Result<Infallible, End> {
        self.serve().await?;
        let mut timer = pin!(sleep_until(self.next_check()));
        loop {
            let event = poll_fn(|cx| {
                if let Poll::Ready(attention) = self.writer.poll_attention(cx) {
                    return Poll::Ready(Event::Attention(attention));
                }
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Timer);
                }
                self.stream.poll_read_ready(cx).map(|_| Event::Readable)
            });
            match event.await {
                Event::Attention(Attention::Stopped(Stopped::Broken)) => return Err(End::Broken),
                Event::Attention(Attention::Stopped(Stopped::Close(close))) => {
                    return Err(End::Close(close));
                }
                Event::Attention(Attention::Blocked) => Box::pin(self.unblock()).await?,
                Event::Readable => {
                    let received = self.receive()?;
                    if received > 0 {
                        self.serve().await?;
                        let due = self.conversation.deadline();
                        if due.is_some_and(|due| due < timer.deadline()) {
                            timer.as_mut().reset(self.next_check());
                        }
                    }
                    // Who sends without end must not keep a thread to itself.
                    if received == READ_BYTES {
                        yield_now().await;
                    }
                }
                Event::Timer => {
                    Box::pin(self.on_timer()).await?;
                    timer.as_mut().reset(self.next_check());
                }
            }
        }
    }

    /// How many bytes came.
    fn receive(&mut self) -> Result<usize, End> {
        match receive(&self.stream, &mut self.decoder) {
            Ok(0) => Err(End::Broken),
            Ok(received) => Ok(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(End::Broken),
        }
    }

    /// Sees to all messages that were received, and writes what comes of it. Boxed as all that is
    /// rare, so that it takes no room in the task while nothing happens.
    async fn serve(&mut self) -> Result<(), End> {
        let writer = self.writer.clone();
        writer.attend(Box::pin(self.hear())).await
    }

    async fn hear(&mut self) -> Result<(), End> {
        let mut heard = 0;
        loop {
            let incoming = self.decoder.decode();
            let incoming = incoming.map_err(|why| End::CloseUnreadable(unreadable(why)))?;
            let Some(incoming) = incoming else {
                return Ok(());
            };
            self.last_heard = Instant::now();
            self.pinged_at = None;
            self.on_message(incoming).await?;
            heard += 1;
            if heard % MESSAGES_BEFORE_YIELD == 0 {
                yield_now().await;
            }
            // The answers must not pile up in front of a peer that asks and asks and takes none.
            if self.writer.is_blocked() {
                Box::pin(self.unblock()).await?;
            }
        }
    }

    async fn on_message(&mut self, message: Incoming) -> Result<(), End> {
        let text = match message {
            Incoming::Text(text) => text,
            Incoming::Binary(bytes) if C::READS_BINARY => {
                let not_text = |_| End::Close(unreadable(Malformed::NotUtf8));
                String::from_utf8(bytes).map_err(not_text)?
            }
            Incoming::Binary(_) => {
                let close = Close::plain(1003, "Binary messages are not supported");
                return Err(End::Close(close));
            }
            Incoming::Close(code) => return Err(End::PeerClosed(code)),
            Incoming::Ping(payload) => {
                self.writer.control(|bytes| push_pong(bytes, &payload));
                self.conversation.on_ping().await;
                return Ok(());
            }
            Incoming::Pong => return Ok(()),
        };
        self.conversation.on_text(&text).await.map_err(End::Close)
    }

    /// Timers are not moved by traffic: when one is due, the time of the last message decides.
    fn next_check(&self) -> Instant {
        let check = match self.pinged_at {
            None => self.last_heard + self.settings.ping_after,
            Some(pinged_at) => pinged_at + self.settings.pong_within,
        };
        self.conversation.deadline().map_or(check, |d| d.min(check))
    }

    async fn on_timer(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.conversation.deadline().is_some_and(|due| due <= now) {
            self.conversation.on_deadline().map_err(End::Close)?;
            self.writer.flush();
        }
        let Settings {
            ping_after,
            pong_within,
            ..
        } = *self.settings;
        match self.pinged_at {
            None if now - self.last_heard >= ping_after => {
                self.writer.control(push_ping);
                self.pinged_at = Some(now);
                Ok(())
            }
            // While the peer took nothing it was not listened to: its answer may lie there already.
            Some(pinged_at) if now - pinged_at >= pong_within => match self.receive()? {
                1.. => self.serve().await,
                0 => {
                    CUT_OFFS.count(CutOff::NoPong);
                    Err(End::Close(self.conversation.on_silence()))
                }
            },
            _ => Ok(()),
        }
    }

    /// Waits until the peer has taken all there is, as long as it keeps accepting bytes and its
    /// outbox does not overflow. It is not listened to meanwhile.
    async fn unblock(&mut self) -> Result<(), End> {
        let mut patience = pin!(sleep(self.settings.write_timeout));
        while self.writer.is_blocked() {
            tokio::select! {
                biased;
                writable = self.stream.writable() => {
                    writable.map_err(|_| End::Broken)?;
                    if self.writer.resume() {
                        patience.as_mut().reset(Instant::now() + self.settings.write_timeout);
                    }
                }
                close = poll_fn(|cx| self.writer.poll_abandon(cx)) => return Err(End::Close(close)),
                () = &mut patience => {
                    CUT_OFFS.count(CutOff::WriteTimeout);
                    return Err(End::Broken);
                }
            }
        }
        Ok(())
    }
}

/// A task that is given up mid-way keeps nothing open either.
impl<C: Conversation> Drop for Socket<C> {
    fn drop(&mut self) {
        self.writer.retire();
    }
}

enum Event {
    Attention(Attention),
    Readable,
    Timer,
}

/// Reads once, by way of one buffer for all. How many bytes; none at the end.
fn receive(stream: &Stream, decoder: &mut Decoder) -> io::Result<usize> {
    thread_local! {
        static BYTES: RefCell<[u8; READ_BYTES]> = const { RefCell::new([0; READ_BYTES]) };
    }
    BYTES.with_borrow_mut(|bytes| {
        let read = stream.try_read(bytes)?;
        decoder.receive(&bytes[..read]);
        Ok(read)
    })
}

/// Ends the connection in the way the loop ended. `bytes` go first.
async fn part(stream: &Stream, end: End, mut bytes: Vec<u8>, settings: &Settings) {
    let within = match &end {
        End::Broken => return,
        End::PeerClosed(code) => {
            push_close(&mut bytes, *code, "");
            CLOSE_WITHIN
        }
        End::Close(close) | End::CloseUnreadable(close) => {
            if let Some(frame) = &close.last_words {
                push_text(&mut bytes, frame.as_str());
            }
            push_close(&mut bytes, Some(close.code), &close.reason);
            settings.write_timeout
        }
    };
    if !matches!(timeout(within, write_all(stream, &bytes)).await, Ok(Ok(()))) {
        return;
    }
    let bytes_max = settings.inbound_message_bytes_max;
    let decoder = match end {
        End::Close(_) => Some(Decoder::new(bytes_max)),
        _ => None,
    };
    let _ = timeout(CLOSE_WITHIN, hear_out(stream, decoder)).await;
}

async fn write_all(stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the peer is gone: closing a socket with unread bytes would reset it, and the peer
/// might lose our last words. With a decoder the peer may answer our close before we hang up.
async fn hear_out(stream: &Stream, decoder: Option<Decoder>) -> io::Result<()> {
    if let Some(mut decoder) = decoder {
        while !has_said_goodbye(&mut decoder) {
            if hear_more(stream, &mut decoder).await? == 0 {
                return Ok(());
            }
        }
    }
    stream.shutdown()?;
    while hear_more(stream, &mut Decoder::new(0)).await? > 0 {}
    Ok(())
}

async fn hear_more(stream: &Stream, decoder: &mut Decoder) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match receive(stream, decoder) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Or has sent what cannot be read.
fn has_said_goodbye(decoder: &mut Decoder) -> bool {
    loop {
        match decoder.decode() {
            Ok(None) => return false,
            Ok(Some(Incoming::Close(_))) | Err(_) => return true,
            Ok(Some(_)) => {}
        }
    }
}

fn unreadable(why: Malformed) -> Close {
    match why {
        Malformed::TooLarge => {
            CUT_OFFS.count(CutOff::MessageTooLarge);
            Close::plain(1009, "Message too large")
        }
        Malformed::NotUtf8 => Close::plain(1007, "Text is not valid UTF-8"),
        Malformed::Protocol => {
            CUT_OFFS.count(CutOff::ProtocolError);
            Close::plain(1002, "WebSocket protocol error")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Outbox;
    use crate::transport::writer::Encoded;
    use futures_util::task::waker;
    use socket2::SockRef;
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::task::Context;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
    const OUTBOX_BYTES_MAX: usize = 64 * 1024 * 1024;

    struct Silent(Arc<Outbox>);

    impl Conversation for Silent {
        type Source = All;

        fn source(&self) -> All {
            All(self.0.clone())
        }

        async fn on_text(&mut self, text: &str) -> Result<(), Close> {
            self.0.push(text.to_owned().into());
            Ok(())
        }

        async fn on_ping(&mut self) {}

        fn deadline(&self) -> Option<Instant> {
            None
        }

        fn on_deadline(&mut self) -> Result<(), Close> {
            Ok(())
        }

        fn on_silence(&self) -> Close {
            Close::plain(4201, "silence")
        }
    }

    struct All(Arc<Outbox>);

    impl Source for All {
        fn poll_encode(
            &mut self,
            cx: &mut Context<'_>,
            encoded: &mut Encoded,
        ) -> Poll<Result<(), Close>> {
            let taken = self.0.poll_next(cx, |frame| encoded.push(frame));
            taken.map_err(|_| Close::plain(4100, "closed"))
        }

        fn poll_abandon(&self, cx: &mut Context<'_>) -> Poll<Close> {
            self.0.poll_slow(cx).map(|()| Close::plain(4100, "slow"))
        }
    }

    /// Wakes nobody.
    struct Added(Arc<Mutex<VecDeque<Frame>>>);
    impl Source for Added {
        fn poll_encode(
            &mut self,
            _: &mut Context<'_>,
            encoded: &mut Encoded,
        ) -> Poll<Result<(), Close>> {
            let mut frames = self.0.lock().unwrap();
            if frames.is_empty() {
                return Poll::Pending;
            }
            encoded.push_some(&mut frames);
            Poll::Ready(Ok(()))
        }

        fn poll_abandon(&self, _: &mut Context<'_>) -> Poll<Close> {
            Poll::Pending
        }
    }

    /// A socket, what it is to send, and its peer's end of the connection.
    async fn connected() -> (Socket<Silent>, Arc<Outbox>, TcpStream) {
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
            flushers: Arc::new(Flushers::start()),
        };
        let outbox = Arc::new(Outbox::new(OUTBOX_BYTES_MAX));
        let conversation = Silent(outbox.clone());
        let socket = Socket::new(
            Arc::new(stream.into()),
            &[],
            conversation,
            Arc::new(settings),
        );
        (socket, outbox, peer.unwrap())
    }

    /// Sends as many bytes as are taken, and stays.
    fn flood(mut peer: TcpStream, bytes: Vec<u8>) -> tokio::task::JoinHandle<io::Result<()>> {
        tokio::spawn(async move {
            for _ in 0..250 {
                peer.write_all(&bytes).await?;
            }
            std::future::pending().await
        })
    }

    #[tokio::test]
    async fn a_peer_that_pings_and_reads_nothing_is_cut_off() {
        let (mut socket, _, peer) = connected().await;
        let mut ping = vec![0x89, 0x80 | 125, 0, 0, 0, 0];
        ping.resize(6 + 125, b'x');
        let peer = flood(peer, ping.repeat(1000));
        let served = timeout(Duration::from_secs(10), socket.run()).await;
        assert!(matches!(served, Ok((End::Broken, _))));
        peer.abort();
    }

    #[tokio::test]
    async fn a_peer_that_asks_and_reads_no_answers_is_cut_off() {
        let (mut socket, outbox, peer) = connected().await;
        let mut text = vec![0x81, 0x80 | 125, 0, 0, 0, 0];
        text.resize(6 + 125, b'x');
        let peer = flood(peer, text.repeat(1000));
        let served = timeout(Duration::from_secs(10), socket.run()).await;
        assert!(matches!(served, Ok((End::Broken, _))));
        assert_eq!(outbox.closing(), None);
        peer.abort();
    }

    #[tokio::test]
    async fn a_peer_that_sends_without_end_lets_others_have_their_turn() {
        const BYTES: usize = 1_000_000;
        let (mut socket, _, mut peer) = connected().await;
        let mut pong = vec![0x8a, 0x80 | 125, 0, 0, 0, 0];
        pong.resize(6 + 125, b'x');
        // All of it is there before anything is read.
        peer.write_all(&pong.repeat(BYTES / pong.len()))
            .await
            .unwrap();
        peer.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        let served = tokio::spawn(async move { socket.run().await.0 });
        let mut turns = 0;
        while !served.is_finished() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        assert!(matches!(served.await, Ok(End::PeerClosed(None))));
        assert!(turns > BYTES / READ_BYTES / 2, "{turns} turns");
    }

    #[tokio::test]
    async fn what_a_slow_reader_gets_is_whole_and_in_order() {
        const FRAMES: u32 = 20_000;
        let (mut socket, outbox, mut peer) = connected().await;
        socket.writer.flush();
        let served = tokio::spawn(async move { socket.run().await.0 });
        let mut expected = Vec::new();
        for n in 0..FRAMES {
            let text = format!("{n} {}", "x".repeat(n as usize % 300));
            push_text(&mut expected, &text);
            outbox.push(text.into());
        }
        let mut got = vec![0; expected.len()];
        for piece in got.chunks_mut(50_000) {
            peer.read_exact(piece).await.unwrap();
        }
        assert!(got == expected);
        outbox.close(crate::hub::Closing::Draining);
        let end = served.await.unwrap();
        assert!(matches!(end, End::Close(Close { code: 4100, .. })));
    }

    #[tokio::test]
    async fn what_a_turn_adds_is_written_behind_it_whoever_had_looked_before() {
        let (socket, _, mut peer) = connected().await;
        let frames = Arc::new(Mutex::new(VecDeque::new()));
        let flushers = Flushers::start();
        let writer = Writer::new(socket.stream.clone(), Added(frames.clone()), &flushers);
        let mut text = [0; 3];
        for is_queued in [false, true] {
            if is_queued {
                waker(writer.clone()).wake();
            }
            let turn = async {
                // What it was queued for comes to nothing, before there is anything.
                writer.flush();
                frames.lock().unwrap().push_back("x".to_owned().into());
            };
            writer.attend(Box::pin(turn)).await;
            assert!(frames.lock().unwrap().is_empty());
            peer.read_exact(&mut text).await.unwrap();
            assert_eq!(text, [0x81, 1, b'x']);
        }
    }

    #[tokio::test]
    async fn behind_what_cannot_be_written_nothing_more_is_taken() {
        let (socket, _, peer) = connected().await;
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        socket.stream.readable().await.unwrap();
        let frames = Arc::new(Mutex::new(VecDeque::new()));
        let flushers = Flushers::start();
        let writer = Writer::new(socket.stream.clone(), Added(frames.clone()), &flushers);
        for waiting in [0, 1] {
            frames.lock().unwrap().push_back("x".to_owned().into());
            writer.flush();
            let attention = poll_fn(|cx| writer.poll_attention(cx)).await;
            assert_eq!(attention, Attention::Stopped(Stopped::Broken));
            assert_eq!(frames.lock().unwrap().len(), waiting);
        }
    }

    struct Faulty;
    impl Source for Faulty {
        fn poll_encode(&mut self, _: &mut Context<'_>, _: &mut Encoded) -> Poll<Result<(), Close>> {
            panic!("what nobody foresaw");
        }

        fn poll_abandon(&self, _: &mut Context<'_>) -> Poll<Close> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_fault_of_one_socket_ends_that_alone() {
        let (socket, _, mut peer) = connected().await;
        let stream = socket.stream.clone();
        let flushers = Flushers::start();
        // Each flusher gets one of these and one of those.
        let each = std::thread::available_parallelism().map_or(1, usize::from);
        let faulty: Vec<_> = (0..each)
            .map(|_| Writer::new(stream.clone(), Faulty, &flushers))
            .collect();
        for writer in &faulty {
            waker(writer.clone()).wake();
            let attention = poll_fn(|cx| writer.poll_attention(cx)).await;
            assert_eq!(attention, Attention::Stopped(Stopped::Broken));
        }
        for _ in 0..each {
            let frames = Mutex::new(VecDeque::from([Frame::from("x".to_owned())]));
            let writer = Writer::new(stream.clone(), Added(Arc::new(frames)), &flushers);
            waker(writer).wake();
            let mut text = [0; 3];
            peer.read_exact(&mut text).await.unwrap();
            assert_eq!(text, [0x81, 1, b'x']);
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_is_kept_open_by_nobody() {
        let (mut socket, outbox, mut peer) = connected().await;
        peer.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        let (end, _) = socket.run().await;
        assert!(matches!(end, End::PeerClosed(None)));
        drop(socket);
        // The outbox lives on, and with it whoever it would wake.
        assert_eq!(Arc::strong_count(&outbox), 1);
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_is_pinged_before_it_counts_as_silent() {
        let (mut socket, _, mut peer) = connected().await;
        // As after a write that took long.
        socket.last_heard = Instant::now() - Duration::from_secs(31);
        assert!(socket.on_timer().await.is_ok());
        let mut ping = [0; 2];
        peer.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping, [0x89, 0]);
        let left = socket.next_check() - Instant::now();
        assert!(left > Duration::from_secs(9), "{left:?}");
    }

    #[tokio::test]
    async fn what_waits_to_be_read_is_a_sign_of_life() {
        let (mut socket, _, mut peer) = connected().await;
        socket.last_heard = Instant::now() - Duration::from_secs(31);
        socket.on_timer().await.ok().unwrap();
        peer.write_all(&PING).await.unwrap();
        socket.stream.readable().await.unwrap();
        socket.pinged_at = socket.pinged_at.map(|at| at - Duration::from_secs(11));
        assert!(socket.on_timer().await.is_ok());
        assert!(socket.last_heard.elapsed() < Duration::from_secs(1));
        socket.last_heard -= Duration::from_secs(31);
        assert!(socket.on_timer().await.is_ok());
        socket.pinged_at = socket.pinged_at.map(|at| at - Duration::from_secs(11));
        let end = socket.on_timer().await.unwrap_err();
        assert!(matches!(end, End::Close(Close { code: 4201, .. })));
    }
}
