//! What the load tests share: the server as a process, and clients that do as little as possible.

#![allow(dead_code, reason = "each load test uses a part of it")]

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{BufRead, BufReader};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// A server under test, ended when dropped.
pub struct Server {
    process: Child,
    pub port: u16,
}

impl Server {
    pub fn raptor() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_raptor"));
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        Self::start(command)
    }

    /// The first line that the command prints has to end in `:PORT`.
    pub fn start(mut command: Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let port = port.expect("the first line tells the address");
        // Nobody reads the rest, which is short enough for the pipe.
        std::mem::forget(stdout);
        Self { process, port }
    }

    pub fn resident_kib(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// User and system time of all threads.
    pub fn cpu_secs(&self) -> f64 {
        const TICKS_PER_SEC: f64 = 100.0;
        let stat = self.proc_file("stat");
        let after_name = stat.rsplit_once(") ").unwrap().1;
        let fields: Vec<&str> = after_name.split(' ').collect();
        let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / TICKS_PER_SEC
    }

    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id())).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection with what was read of it and not used yet.
struct Stream {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Stream {
    async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("the server listens");
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// One for which the kernel, on both sides, keeps little.
    async fn narrow(port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        SockRef::from(&socket).set_tcp_mss(536).unwrap();
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await;
        Self {
            stream: stream.expect("the server listens"),
            unread: Vec::new(),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    /// Whether there was more. All streams read into one buffer, so that thousands of them take
    /// little memory and time.
    async fn fill(&mut self) -> bool {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
        }
        poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut read = ReadBuf::new(buffer);
                let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
                self.unread.extend_from_slice(read.filled());
                Poll::Ready(outcome.is_ok() && !read.filled().is_empty())
            })
        })
        .await
    }

    /// Takes the head of an HTTP answer.
    async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return String::from_utf8(head).ok();
            }
            if !self.fill().await {
                return None;
            }
        }
    }
}

pub struct WebSocket(Stream);

impl WebSocket {
    pub async fn connect(port: u16, path: &str) -> Self {
        Self::open(Stream::connect(port).await, path).await
    }

    /// For a peer that is to be slow soon when it stops reading.
    pub async fn narrow(port: u16, path: &str) -> Self {
        Self::open(Stream::narrow(port).await, path).await
    }

    async fn open(mut stream: Stream, path: &str) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        stream
            .write(request.as_bytes())
            .await
            .expect("the server reads");
        let head = stream.head().await.expect("the server answers");
        assert!(head.starts_with("HTTP/1.1 101"), "no WebSocket: {head}");
        Self(stream)
    }

    pub async fn send(&mut self, text: &str) {
        // A mask of zeros leaves the payload as it is.
        let mut frame = vec![0x81];
        match text.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.0.write(&frame).await.expect("the server reads");
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        let frame = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
        self.0.write(&frame).await.expect("the server reads");
    }

    /// The payload of the next frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((start, end)) = frame_bounds(&self.0.unread) {
                let payload = self.0.unread[start..end].to_vec();
                self.0.unread.drain(..end);
                return Some(payload);
            }
            if !self.0.fill().await {
                return None;
            }
        }
    }

    /// Everything that came, as it is on the wire: whole frames and pieces of frames.
    pub async fn raw(&mut self) -> Option<&mut Vec<u8>> {
        match self.0.fill().await {
            true => Some(&mut self.0.unread),
            false => None,
        }
    }

    /// The next frame that holds `part`.
    pub async fn expect(&mut self, part: &str) -> String {
        loop {
            let frame = self.frame().await.expect("the connection stays open");
            let text = String::from_utf8_lossy(&frame);
            if text.contains(part) {
                return text.into_owned();
            }
        }
    }
}

fn frame_bounds(bytes: &[u8]) -> Option<(usize, usize)> {
    let short = usize::from(*bytes.get(1)?);
    let (start, length) = match short {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        ),
        _ => (2, short),
    };
    (bytes.len() >= start + length).then_some((start, start + length))
}

/// One keep-alive connection.
pub struct Http(Stream);

impl Http {
    pub async fn connect(port: u16) -> Self {
        Self(Stream::connect(port).await)
    }

    /// The body of the answer, which has to be a 200 with a length. `None` once the server has
    /// gone.
    pub async fn try_post_json(&mut self, target: &str, body: &str) -> Option<String> {
        let length = body.len();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.0.write(request.as_bytes()).await?;
        let head = self.0.head().await?.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "refused: {head}");
        let length = head.split_once("content-length:").expect("a length").1;
        let length = length
            .split("\r\n")
            .next()
            .and_then(|n| n.trim().parse().ok());
        let length: usize = length.expect("a length");
        while self.0.unread.len() < length {
            if !self.0.fill().await {
                return None;
            }
        }
        String::from_utf8(self.0.unread.drain(..length).collect()).ok()
    }

    /// The body of an answer without end, as it is on the wire: call [`Http::raw`] for more.
    pub async fn post_stream(&mut self, target: &str) {
        let request =
            format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let written = self.0.write(request.as_bytes()).await;
        written.expect("the server reads");
        let head = self.0.head().await.expect("the server answers");
        assert!(head.starts_with("HTTP/1.1 200"), "refused: {head}");
    }

    /// Everything that came and was not used yet.
    pub fn unread(&mut self) -> &mut Vec<u8> {
        &mut self.0.unread
    }

    /// The same, once there is more of it.
    pub async fn raw(&mut self) -> Option<&mut Vec<u8>> {
        match self.0.fill().await {
            true => Some(&mut self.0.unread),
            false => None,
        }
    }

    /// An answer without a body.
    pub async fn post_unanswered(&mut self, target: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let written = self.0.write(request.as_bytes()).await;
        written.expect("the server reads");
        let head = self.0.head().await.expect("the server answers");
        assert!(head.starts_with("HTTP/1.1 204"), "refused: {head}");
    }

    pub async fn post_json(&mut self, target: &str, body: &str) -> String {
        let answer = self.try_post_json(target, body).await;
        answer.expect("the server answers")
    }
}
