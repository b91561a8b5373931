//! A connection as the operating system has it: TCP, or a Unix socket.

use std::io::{self, IoSlice, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

pub enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! either {
    ($socket:expr, $stream:ident => $does:expr) => {
        match $socket {
            Socket::Tcp($stream) => $does,
            #[cfg(unix)]
            Socket::Unix($stream) => $does,
        }
    };
}

impl Socket {
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read_ready(cx))
    }

    pub async fn writable(&self) -> io::Result<()> {
        either!(self, stream => stream.writable().await)
    }

    /// How many bytes; none at the end. Fewer than there is room for are all there are (epoll(7)):
    /// whoever waits for more then needs no call that finds nothing.
    pub fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        let outcome = either!(self, stream => stream.try_io(Interest::READABLE, || {
            read = (&*SockRef::from(stream)).read(bytes)?;
            match (1..bytes.len()).contains(&read) {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(()),
            }
        }));
        match outcome {
            Err(_) if read > 0 => Ok(read),
            outcome => outcome.map(|()| read),
        }
    }

    /// Asks the kernel first: most sockets take what they are given, and what tokio keeps of each lies
    /// elsewhere in memory.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.raw().send(bytes) {
            // So that tokio learns of it, and tells when the socket takes more.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                either!(self, stream => stream.try_write(bytes))
            }
            outcome => outcome,
        }
    }

    /// For what tokio has no name for.
    pub fn raw(&self) -> SockRef<'_> {
        either!(self, stream => SockRef::from(stream))
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

#[cfg(unix)]
impl From<UnixStream> for Socket {
    fn from(unix: UnixStream) -> Self {
        Self::Unix(unix)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}
