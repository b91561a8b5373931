//! What is under a WebSocket: a plain socket, or one with TLS.

use std::io::{self, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio_rustls::rustls::ServerConnection;

use super::socket::Socket;

/// What is encrypted at once.
const PLAIN_BYTES: usize = 16 * 1024;

/// Read and written without waiting, from several threads.
pub enum Stream {
    Plain(Socket),
    Tls(Box<Tls>),
}

pub struct Tls {
    socket: Socket,
    session: Mutex<Session>,
}

struct Session {
    connection: ServerConnection,
    /// Decrypted and not read yet.
    plain: usize,
    /// Encrypted, but not all of it is with the kernel: reported as written only then, so that
    /// whoever wrote knows when the peer takes no more.
    owed: usize,
}

impl Stream {
    /// A connection after its handshake.
    pub fn tls(socket: Socket, mut connection: ServerConnection) -> io::Result<Self> {
        let state = connection.process_new_packets();
        let plain = state.map_err(invalid)?.plaintext_bytes_to_read();
        let session = Mutex::new(Session {
            connection,
            plain,
            owed: 0,
        });
        Ok(Self::Tls(Box::new(Tls { socket, session })))
    }

    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read_ready(cx),
            Self::Tls(tls) if tls.session().plain > 0 => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.socket.poll_read_ready(cx),
        }
    }

    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    pub async fn writable(&self) -> io::Result<()> {
        self.socket().writable().await
    }

    /// How many bytes; none at the end.
    pub fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read(bytes),
            Self::Tls(tls) => tls.session().read(&tls.socket, bytes),
        }
    }

    /// How many of the first bytes are written. What could not be is to be given again, with more
    /// behind it or not.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Tls(tls) => tls.session().write(&tls.socket, bytes),
        }
    }

    /// Says that nothing more will be written.
    pub fn shutdown(&self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            let mut session = tls.session();
            session.connection.send_close_notify();
            // It is only polite: who does not take it sees the end of the connection.
            let _ = session.flush(&tls.socket);
        }
        self.socket().raw().shutdown(Shutdown::Write)
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }
}

impl<S: Into<Socket>> From<S> for Stream {
    fn from(socket: S) -> Self {
        Self::Plain(socket.into())
    }
}

impl Tls {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn read(&mut self, socket: &Socket, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(bytes) {
                Ok(read) => {
                    self.plain = self.plain.saturating_sub(read);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.plain = 0,
                Err(error) => return Err(error),
            }
            self.connection.read_tls(&mut NonBlocking(socket))?;
            let state = self.connection.process_new_packets();
            if state.is_err() {
                // The alert that says why.
                let _ = self.flush(socket);
            }
            self.plain = state.map_err(invalid)?.plaintext_bytes_to_read();
        }
    }

    fn write(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        if self.owed == 0 {
            self.flush(socket)?;
            let piece = &bytes[..bytes.len().min(PLAIN_BYTES)];
            self.owed = self.connection.writer().write(piece)?;
        }
        self.flush(socket)?;
        Ok(mem::take(&mut self.owed))
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut NonBlocking(socket))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

struct NonBlocking<'s>(&'s Socket);

impl Read for NonBlocking<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid(error: tokio_rustls::rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
