//! Tells when an HTTP answer is with the kernel. An answer that never gets there was not received,
//! and what it held can still be sent otherwise; hyper itself says nothing of it.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use warp::http::header::{CONTENT_LENGTH, HeaderValue};
use warp::reply::{Reply, Response};

use super::peer::Seat;
use super::socket::Socket;
use super::stream::Stream;
use crate::metrics::{CUT_OFFS, CutOff};

struct Receipt {
    wanted: Box<dyn Fn() -> Wanted + Send>,
    tell: Box<dyn FnOnce() + Send>,
}

/// Whether what was given to a connection is still to be written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wanted {
    /// Others have it.
    No,
    /// If the peer takes it at once: others wait for it.
    AtOnce,
    Yes,
}

/// What becomes of what a connection is given.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Writing {
    /// It is written before whoever gives it does anything else.
    #[default]
    AtOnce,
    /// It waits for the peer.
    Blocked,
    /// Another node writes it.
    Away,
}

/// Those to be told of what one connection writes next. They go along with its requests.
///
/// The lock is held over each write with its receipts: a client may answer what it was sent before
/// the thread that sent it goes on, and whoever handles that answer can wait for the receipt.
///
/// Where another node writes for us ([`crate::peers`]), no lock can be held until we hear of it:
/// what is away meanwhile belongs to whoever took it.
#[derive(Clone, Default)]
pub struct Receipts(Arc<Mutex<Outstanding>>);

#[derive(Default)]
struct Outstanding {
    receipts: Vec<Receipt>,
    writing: Writing,
}

impl Receipts {
    /// `tell` is called once all that was given to the connection so far has been written, and
    /// dropped if that cannot be any more.
    pub fn when_written(&self, tell: impl FnOnce() + Send + 'static) {
        self.when_written_if(|| Wanted::Yes, tell);
    }

    /// The same for what may not be wanted any more: then it is not written, and the connection
    /// ends. Neither may call back here.
    pub fn when_written_if(
        &self,
        wanted: impl Fn() -> Wanted + Send + 'static,
        tell: impl FnOnce() + Send + 'static,
    ) {
        self.lock().receipts.push(Receipt {
            wanted: Box::new(wanted),
            tell: Box::new(tell),
        });
    }

    /// Does something while nothing is being written here, and all that was written is told of.
    pub fn between_writes<R>(&self, act: impl FnOnce(Writing) -> R) -> R {
        let nothing_is_written = self.lock();
        act(nothing_is_written.writing)
    }

    /// Whether anybody wants to be told of what was given to the connection.
    pub fn are_any(&self) -> bool {
        !self.lock().receipts.is_empty()
    }

    /// Gives to another node what was given to the connection so far. `false` if it is not wanted
    /// any more.
    pub fn send_away(&self) -> bool {
        let mut outstanding = self.lock();
        let is_wanted = outstanding.wanted() != Wanted::No;
        if is_wanted {
            outstanding.writing = Writing::Away;
        }
        is_wanted
    }

    /// The other node has written it.
    pub fn written_away(&self) {
        let mut outstanding = self.lock();
        outstanding.writing = Writing::AtOnce;
        outstanding.tell();
    }

    /// The other node cannot write it, or we shall not hear of it.
    pub fn lost(&self) {
        let mut outstanding = self.lock();
        outstanding.writing = Writing::AtOnce;
        let lost = std::mem::take(&mut outstanding.receipts);
        // Dropped outside the lock: they may well look at other locks.
        drop(outstanding);
        drop(lost);
    }

    pub fn are_of_one_connection(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outstanding {
    fn wanted(&self) -> Wanted {
        let each = self.receipts.iter().map(|receipt| (receipt.wanted)());
        each.min().unwrap_or(Wanted::Yes)
    }

    fn tell(&mut self) {
        (self.receipts.drain(..)).for_each(|receipt| (receipt.tell)());
    }
}

/// So many at most does hyper give to one write.
const WRITEV_BUFFERS_MAX: usize = 64;

/// An answer whose body, once it is given to the connection, is `begun`: that is the moment to ask
/// for a receipt.
pub fn answer(
    body: Bytes,
    receipts: &Receipts,
    begun: impl FnOnce(&Receipts) + Send + Sync + 'static,
) -> Response {
    let length = HeaderValue::from(body.len());
    let receipts = receipts.clone();
    let mut given = Some((body, begun));
    let body = stream::poll_fn(move |_| {
        let given = given.take().map(|(body, begun)| {
            begun(&receipts);
            Ok::<_, Infallible>(body)
        });
        Poll::Ready(given)
    });
    let mut response = warp::reply::stream(body).into_response();
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

/// A connection that gives receipts, and breaks off when its peer accepts nothing for too long.
/// Whoever writes to it gives all that it has to each write, up to [`WRITEV_BUFFERS_MAX`] pieces,
/// and flushes only when nothing is left, as hyper does.
pub struct Receipted {
    stream: Connection,
    seat: Seat,
    receipts: Connected,
    patience: Patience,
}

/// What HTTP is spoken over.
pub enum Connection {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl Connection {
    fn io(&mut self) -> Pin<&mut dyn Io> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Tls(tls) => Pin::new(&mut **tls),
        }
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// How long a peer may accept no byte.
struct Patience {
    write_timeout: Duration,
    /// Since a write had to wait.
    ends: Option<Pin<Box<Sleep>>>,
}

/// Receipts of a connection that is still there.
struct Connected(Receipts);

impl Receipted {
    pub fn new(
        stream: Connection,
        seat: Seat,
        receipts: Receipts,
        write_timeout: Duration,
    ) -> Self {
        Self {
            stream,
            seat,
            receipts: Connected(receipts),
            patience: Patience {
                write_timeout,
                ends: None,
            },
        }
    }

    /// Writes by `write`, all of whose bytes are `bytes`. Under TLS what is taken is not yet with
    /// the kernel: the receipts come with the flush.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        write: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let is_plain = matches!(self.stream, Connection::Plain(_));
        // Whoever writes gives all that it has.
        self.advance(cx, write, |written| is_plain && *written == bytes)
    }

    /// Goes on by `step` with what the connection was given; `is_all` tells from what it gives
    /// whether the kernel has all of that.
    fn advance<T>(
        &mut self,
        cx: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
        is_all: impl FnOnce(&T) -> bool,
    ) -> Poll<io::Result<T>> {
        let mut outstanding = self.receipts.0.lock();
        if !outstanding.receipts.is_empty() {
            check_reader(self.stream.socket())?;
        }
        let wanted = outstanding.wanted();
        if wanted == Wanted::No {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let done = step(self.stream.io(), cx);
        outstanding.writing = match done.is_pending() {
            true => Writing::Blocked,
            false => Writing::AtOnce,
        };
        if done.is_pending() && wanted == Wanted::AtOnce {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let done = ready!(self.patience.judge(cx, done))?;
        if is_all(&done) {
            outstanding.tell();
        }
        Poll::Ready(Ok(done))
    }

    /// For what comes after HTTP. The connection counts for its peer as long as the seat is there.
    pub fn into_parts(self) -> io::Result<(Stream, Seat)> {
        let stream = match self.stream {
            Connection::Plain(socket) => Stream::Plain(socket),
            Connection::Tls(tls) => {
                let (socket, session) = tls.into_inner();
                Stream::tls(socket, session)?
            }
        };
        Ok((stream, self.seat))
    }
}

impl Patience {
    /// What became of a write or a flush, unless it has waited for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.ends = None;
            return done;
        }
        let timeout = self.write_timeout;
        let ends = (self.ends).get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(ends.as_mut().poll(cx));
        // Whoever asks again gets no other answer.
        ends.as_mut().reset(Instant::now());
        CUT_OFFS.count(CutOff::WriteTimeout);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A peer that has closed its side does not read any more; the kernel would accept what is written
/// to it all the same. The socket itself is asked, because tokio may not have heard of it yet.
fn check_reader(socket: &Socket) -> io::Result<()> {
    let mut byte = [MaybeUninit::uninit()];
    match socket.raw().peek(&mut byte) {
        Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.lost();
    }
}

impl AsyncRead for Receipted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Receipted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, buf.len(), |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // With more than the kernel takes at once something may be left, though it takes all.
        let bytes = match bufs.len() < WRITEV_BUFFERS_MAX {
            true => bufs.iter().map(|buf| buf.len()).sum(),
            false => usize::MAX,
        };
        self.write(cx, bytes, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Connection::Plain(s) => s.is_write_vectored(),
            Connection::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.advance(cx, |stream, cx| stream.poll_flush(cx), |()| true)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.stream {
            // Whoever asks for it closes the socket next, which says the same.
            Connection::Plain(_) => Poll::Ready(Ok(())),
            Connection::Tls(_) => self.stream.io().poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn connection(receipts: Receipts) -> (Receipted, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (stream, _) = listener.accept().await.unwrap();
        let timeout = Duration::from_millis(200);
        let stream = Connection::Plain(stream.into());
        let receipted = Receipted::new(stream, Seat::default(), receipts, timeout);
        (receipted, peer.unwrap())
    }

    /// What shows whether it was told, and what tells.
    fn witness() -> (Arc<AtomicBool>, impl FnOnce() + Send + 'static) {
        let told = Arc::new(AtomicBool::new(false));
        let tell = told.clone();
        (told, move || tell.store(true, Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_receipt_comes_with_the_write_or_never() {
        let receipts = Receipts::default();
        let (mut connection, peer) = connection(receipts.clone()).await;
        let (told, tell) = witness();
        receipts.when_written(tell);
        assert!(!told.load(Ordering::Relaxed));
        connection.write_all(b"x").await.unwrap();
        assert!(told.load(Ordering::Relaxed));

        let (told, tell) = witness();
        receipts.when_written(tell);
        drop(peer);
        assert!(connection.write_all(b"x").await.is_err());
        drop(connection);
        assert_eq!(Arc::strong_count(&told), 1);
        assert!(!told.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_not_written() {
        let receipts = Receipts::default();
        let (mut connection, _peer) = connection(receipts.clone()).await;
        let (told, tell) = witness();
        receipts.when_written_if(|| Wanted::No, tell);
        let error = connection.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(!told.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_others_wait_for_is_written_at_once_or_not_at_all() {
        let receipts = Receipts::default();
        let (mut connection, _peer) = connection(receipts.clone()).await;
        let (told, tell) = witness();
        receipts.when_written_if(|| Wanted::AtOnce, tell);
        connection.write_all(b"x").await.unwrap();
        assert!(told.load(Ordering::Relaxed));
        assert_eq!(receipts.between_writes(|it| it), Writing::AtOnce);

        let blocked = tokio::time::timeout(Duration::from_millis(50), async {
            while connection.write_all(&[0; 65_536]).await.is_ok() {}
        });
        assert!(blocked.await.is_err());
        assert_eq!(receipts.between_writes(|it| it), Writing::Blocked);
        receipts.when_written_if(|| Wanted::AtOnce, || unreachable!("nobody reads"));
        let error = connection.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_peer_that_accepts_nothing_is_given_up() {
        let (mut connection, peer) = connection(Receipts::default()).await;
        let written = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                if let Err(error) = connection.write_all(&[0; 65_536]).await {
                    return error.kind();
                }
            }
        });
        assert_eq!(written.await, Ok(io::ErrorKind::TimedOut));
        drop(peer);
    }
}
