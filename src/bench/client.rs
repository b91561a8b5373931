//! Connections that do as little as a client can.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

const READ_BYTES_MAX: usize = 256 * 1024;
/// More than any answer that is waited for.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a server did to a client.
#[derive(Debug)]
pub enum Failure {
    Connect(io::Error),
    /// It closed the connection, or the connection broke.
    Closed,
    /// With the beginning of what it said.
    Refused(String),
    /// It did not answer in time.
    Silent,
    /// What it said is no HTTP or far too long.
    Unreadable,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => {
                write!(f, "cannot connect: {error}")?;
                // Linux' EMFILE.
                match error.raw_os_error() {
                    Some(24) => f.write_str("; raise the limit with `ulimit -n`"),
                    _ => Ok(()),
                }
            }
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Refused(text) => write!(f, "the server refused: {text}"),
            Self::Silent => f.write_str("the server did not answer"),
            Self::Unreadable => f.write_str("the server's answer cannot be read"),
        }
    }
}

/// Waits for the server no longer than is decent.
pub async fn patiently<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let outcome = tokio::time::timeout(super::PATIENCE, work).await;
    outcome.unwrap_or(Err(Failure::Silent))
}

pub fn refused(text: &str) -> Failure {
    const SHOWN_CHARS: usize = 200;
    let shown = text.chars().take(SHOWN_CHARS).collect::<String>();
    Failure::Refused(shown.escape_debug().to_string())
}

/// A connection with what was read of it and not used yet.
struct Stream {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Stream {
    async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await;
        Ok(Self {
            stream: stream.map_err(Failure::Connect)?,
            unread: Vec::new(),
        })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        (self.stream.write_all(bytes).await).map_err(|_| Failure::Closed)
    }

    /// Waits for bytes and gives all that are unread to `take`, which returns how many of them it
    /// has done with. All connections read into one buffer, so that thousands of them take little
    /// memory, and only what is incomplete is kept.
    async fn read(&mut self, mut take: impl FnMut(&[u8]) -> usize) -> Result<(), Failure> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES_MAX]);
        }
        poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut read = ReadBuf::new(buffer);
                let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
                let bytes = read.filled();
                if outcome.is_err() || bytes.is_empty() {
                    return Poll::Ready(Err(Failure::Closed));
                }
                if self.unread.is_empty() {
                    let done = take(bytes);
                    self.unread.extend_from_slice(&bytes[done..]);
                } else {
                    self.unread.extend_from_slice(bytes);
                    let done = take(&self.unread);
                    if done == self.unread.len() {
                        self.unread = Vec::new();
                    } else {
                        self.unread.drain(..done);
                    }
                }
                if self.unread.len() > UNREAD_BYTES_MAX {
                    return Poll::Ready(Err(Failure::Unreadable));
                }
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    async fn more(&mut self) -> Result<(), Failure> {
        self.read(|_| 0).await
    }

    /// Takes the head of an HTTP answer.
    async fn head(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return String::from_utf8(head).map_err(|_| Failure::Unreadable);
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, bytes: usize) -> Result<Vec<u8>, Failure> {
        while self.unread.len() < bytes {
            self.more().await?;
        }
        Ok(self.unread.drain(..bytes).collect())
    }
}

pub struct WebSocket(Stream);

/// One frame of a server.
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: &'a [u8],
}

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
const PONG: u8 = 0xA;

impl WebSocket {
    pub async fn connect(address: SocketAddr, path: &str) -> Result<Self, Failure> {
        let mut stream = Stream::connect(address).await?;
        let no_delay = stream.stream.set_nodelay(true);
        no_delay.map_err(Failure::Connect)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        stream.write(request.as_bytes()).await?;
        let head = stream.head().await?;
        match head.starts_with("HTTP/1.1 101") {
            true => Ok(Self(stream)),
            false => Err(refused(&head)),
        }
    }

    /// Linux holds the acknowledgements of a client back that has just sent something, as Bayeux's
    /// have before they listen, until one of them was late for it. What a write costs the server
    /// depends on it: whoever only listens begins with that behind it.
    pub fn acknowledge_what_is_read(&self) {
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&self.0.stream).set_tcp_quickack(true);
    }

    pub async fn send(&mut self, text: &str) -> Result<(), Failure> {
        self.send_frame(TEXT, text.as_bytes()).await
    }

    pub async fn pong(&mut self, payload: &[u8]) -> Result<(), Failure> {
        self.send_frame(PONG, payload).await
    }

    async fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> Result<(), Failure> {
        let mut frame = Vec::with_capacity(payload.len() + 8);
        frame.push(0x80 | opcode);
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        // A mask of zeros leaves the payload as it is.
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        self.0.write(&frame).await
    }

    /// Waits for bytes and calls `each` with every frame that is whole then. Nothing is lost if
    /// the future is dropped.
    pub async fn frames(&mut self, mut each: impl FnMut(Frame<'_>)) -> Result<(), Failure> {
        let take = |bytes: &[u8]| {
            let mut done = 0;
            while let Some((frame, length)) = first_frame(&bytes[done..]) {
                each(frame);
                done += length;
            }
            done
        };
        // What came behind the head of the handshake is there already.
        if !self.0.unread.is_empty() {
            let mut take = take;
            let done = take(&self.0.unread);
            self.0.unread.drain(..done);
            if done > 0 {
                return Ok(());
            }
            return self.0.read(take).await;
        }
        self.0.read(take).await
    }

    /// The next text that holds `part`.
    pub async fn expect(&mut self, part: &str) -> Result<String, Failure> {
        loop {
            while let Some((frame, length)) = first_frame(&self.0.unread) {
                let (opcode, text) = (frame.opcode, String::from_utf8_lossy(frame.payload));
                let text = text.into_owned();
                self.0.unread.drain(..length);
                match opcode {
                    TEXT if text.contains(part) => return Ok(text),
                    TEXT if is_refusal(&text) => return Err(refused(&text)),
                    CLOSE => return Err(refused(&text)),
                    PING => self.pong(text.as_bytes()).await?,
                    _ => {}
                }
            }
            self.0.more().await?;
        }
    }
}

pub fn is_refusal(text: &str) -> bool {
    text.contains(r#""pusher:error""#)
        || text.contains("subscription_error")
        || text.contains(r#""successful":false"#)
}

/// With its length on the wire. Servers do not mask.
fn first_frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let [first, second, rest @ ..] = bytes else {
        return None;
    };
    let (head, length) = match (second & 0x7F, rest) {
        (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            let length = [*a, *b, *c, *d, *e, *f, *g, *h];
            (10, u64::from_be_bytes(length))
        }
        (126 | 127, _) => return None,
        (short, _) => (2, u64::from(short)),
    };
    let end = usize::try_from(length).ok()?.checked_add(head)?;
    let payload = bytes.get(head..end)?;
    let opcode = first & 0x0F;
    Some((Frame { opcode, payload }, end))
}

/// An HTTP connection that is kept as long as the server keeps it.
pub struct Http {
    stream: Stream,
    host: String,
    /// The last one, for its room.
    request: Vec<u8>,
}

/// A 200.
pub struct Answer {
    pub body: String,
    /// Another request may follow on the same connection.
    pub is_kept: bool,
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self {
            stream: Stream::connect(address).await?,
            host: address.to_string(),
            request: Vec::new(),
        })
    }

    /// `keep`: whether another request shall follow on this connection.
    pub async fn post(&mut self, target: &str, body: &str, keep: bool) -> Result<Answer, Failure> {
        let (host, length) = (&self.host, body.len());
        let close = if keep { "" } else { "Connection: close\r\n" };
        self.request.clear();
        let written = write!(
            self.request,
            "POST {target} HTTP/1.1\r\nHost: {host}\r\n{close}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        written.expect("a vector takes everything");
        self.stream.write(&self.request).await?;
        let head = self.stream.head().await?;
        let header = |name: &str| {
            head.lines().skip(1).find_map(|line| {
                let (known, value) = line.split_once(':')?;
                known.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let says = |name, value| header(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
        let is_kept = keep && !says("connection", "close");
        let body = match header("content-length").map(str::parse) {
            Some(Ok(length)) => self.stream.take(length).await?,
            Some(Err(_)) => return Err(Failure::Unreadable),
            None if says("transfer-encoding", "chunked") => self.chunks().await?,
            None => return Err(Failure::Unreadable),
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        match head.starts_with("HTTP/1.1 200") {
            true => Ok(Answer { body, is_kept }),
            false => {
                let status = head.lines().next().unwrap_or_default();
                Err(refused(&format!("{status} {body}")))
            }
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                match memchr::memmem::find(&self.stream.unread, b"\r\n") {
                    Some(end) => break end,
                    None => self.stream.more().await?,
                }
            };
            let line = self.stream.take(end + 2).await?;
            let digits = std::str::from_utf8(&line[..end]).ok();
            let length = digits.and_then(|d| usize::from_str_radix(d.trim(), 16).ok());
            let length = length.filter(|length| *length <= UNREAD_BYTES_MAX);
            let length = length.ok_or(Failure::Unreadable)?;
            let chunk = self.stream.take(length + 2).await?;
            if length == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }
}
