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
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use warp::http::header::{CONTENT_LENGTH, HeaderValue};
use warp::reply::{Reply, Response};

use super::peer::Seat;
use super::stream::Stream;
use crate::metrics::{CUT_OFFS, CutOff};

type Tell = Box<dyn FnOnce() + Send>;

/// Those to be told of one connection's next flush. In the extensions of its requests.
#[derive(Clone, Default)]
pub struct Receipts(Arc<Mutex<Vec<Tell>>>);

impl Receipts {
    /// `tell` is called once all that was given to the connection so far has been written, and
    /// dropped if that cannot be any more.
    pub fn when_written(&self, tell: impl FnOnce() + Send + 'static) {
        self.lock().push(Box::new(tell));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Tell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer whose body, once it is with the kernel, is told of.
pub fn answer(
    body: Bytes,
    receipts: &Receipts,
    tell: impl FnOnce() + Send + Sync + 'static,
) -> Response {
    let length = HeaderValue::from(body.len());
    let receipts = receipts.clone();
    let mut given = Some((body, tell));
    let body = stream::poll_fn(move |_| {
        let given = given.take().map(|(body, tell)| {
            receipts.when_written(tell);
            Ok::<_, Infallible>(body)
        });
        Poll::Ready(given)
    });
    let mut response = warp::reply::stream(body).into_response();
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

/// A connection that gives receipts, and breaks off when its peer accepts nothing for too long.
/// Whoever writes to it flushes only when its own buffer is
/// empty, as hyper does.
pub struct Receipted {
    stream: Connection,
    seat: Seat,
    outstanding: Outstanding,
    patience: Patience,
}

/// What HTTP is spoken over.
pub enum Connection {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
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

struct Outstanding(Receipts);

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
            outstanding: Outstanding(receipts),
            patience: Patience {
                write_timeout,
                ends: None,
            },
        }
    }

    /// A peer that has closed its side does not read any more; the kernel would accept what is
    /// written to it all the same. The socket itself is asked, because tokio may not have heard
    /// of it yet.
    fn check_reader(&self) -> io::Result<()> {
        if self.outstanding.0.lock().is_empty() {
            return Ok(());
        }
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(self.stream.tcp()).peek(&mut byte) {
            Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// For what comes after HTTP. The connection counts for its peer as long as the seat is there.
    pub fn into_parts(self) -> io::Result<(Stream, Seat)> {
        let stream = match self.stream {
            Connection::Tcp(tcp) => Stream::Tcp(tcp),
            Connection::Tls(tls) => {
                let (tcp, session) = tls.into_inner();
                Stream::tls(tcp, session)?
            }
        };
        Ok((stream, self.seat))
    }
}

impl Patience {
    /// What became of a write, unless it has waited for too long.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.ends = None;
            return written;
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

impl Outstanding {
    fn tell_all(&self) {
        let outstanding = std::mem::take(&mut *self.0.lock());
        for tell in outstanding {
            tell();
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        // Dropped outside the lock: they may well look at other locks.
        drop(std::mem::take(&mut *self.0.lock()));
    }
}

impl AsyncRead for Receipted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Connection::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Connection::Tls(s) => Pin::new(&mut **s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Receipted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_reader()?;
        let written = match &mut self.stream {
            Connection::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Connection::Tls(s) => Pin::new(&mut **s).poll_write(cx, buf),
        };
        self.patience.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_reader()?;
        let written = match &mut self.stream {
            Connection::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Connection::Tls(s) => Pin::new(&mut **s).poll_write_vectored(cx, bufs),
        };
        self.patience.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Connection::Tcp(s) => s.is_write_vectored(),
            Connection::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(match &mut self.stream {
            Connection::Tcp(s) => Pin::new(s).poll_flush(cx),
            Connection::Tls(s) => Pin::new(&mut **s).poll_flush(cx),
        })?;
        self.outstanding.tell_all();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Connection::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Connection::Tls(s) => Pin::new(&mut **s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn connection(receipts: Receipts) -> (Receipted, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (stream, _) = listener.accept().await.unwrap();
        let timeout = Duration::from_millis(200);
        let receipted = Receipted::new(Connection::Tcp(stream), Seat::default(), receipts, timeout);
        (receipted, peer.unwrap())
    }

    #[tokio::test]
    async fn a_receipt_comes_with_the_flush_or_never() {
        let receipts = Receipts::default();
        let (mut connection, peer) = connection(receipts.clone()).await;
        let told = Arc::new(AtomicBool::new(false));
        let note = |told: &Arc<AtomicBool>| {
            let told = told.clone();
            move || told.store(true, Ordering::Relaxed)
        };
        receipts.when_written(note(&told));
        connection.write_all(b"x").await.unwrap();
        assert!(!told.load(Ordering::Relaxed));
        connection.flush().await.unwrap();
        assert!(told.load(Ordering::Relaxed));

        let told = Arc::new(AtomicBool::new(false));
        receipts.when_written(note(&told));
        drop(peer);
        assert!(connection.write_all(b"x").await.is_err());
        drop(connection);
        assert_eq!(Arc::strong_count(&told), 1);
        assert!(!told.load(Ordering::Relaxed));
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
