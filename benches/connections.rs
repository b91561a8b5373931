//! Starts the server, connects and subscribes many clients, and prints what an idle one costs in
//! resident memory; then publishes over the HTTP API and checks that every client received every
//! event once and in order.
//!
//! `cargo bench --bench connections [-- CONNECTIONS [EVENTS]]`

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use raptor::auth::{Secret, SignedRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const KEY: &str = "app-key";
const SECRET: &str = "app-secret";
const EVENTS_PATH: &str = "/apps/app-id/events";
/// With the sequence number in front.
const DATA_BYTES: usize = 256;
const CONNECTING_AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let numbers: Vec<u64> = (std::env::args().filter_map(|arg| arg.parse().ok())).collect();
    let connections = numbers.first().copied().unwrap_or(10_000);
    let events = numbers.get(1).copied().unwrap_or(1_000);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(connections, events));
}

async fn run(connections: u64, events: u64) {
    let server = Server::start();
    // One connection first, so that what the first request sets up counts for nobody.
    let warm_up = Arc::new(Tally::default());
    tokio::spawn(Subscriber::open(server.port).await.receive(warm_up, 0));

    let empty_kib = server.resident_kib();
    let started = Instant::now();
    let tally = Arc::new(Tally::default());
    let gate = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
    let opening: Vec<_> = (0..connections)
        .map(|_| {
            let (gate, tally, port) = (gate.clone(), tally.clone(), server.port);
            tokio::spawn(async move {
                let permit = gate.acquire_owned().await;
                let subscriber = Subscriber::open(port).await;
                drop(permit);
                tokio::spawn(subscriber.receive(tally, events));
            })
        })
        .collect();
    for opened in opening {
        opened.await.expect("every client connects");
    }
    println!(
        "{connections} connections subscribed in {:.1} s",
        started.elapsed().as_secs_f64()
    );

    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown_bytes = (server.resident_kib() - empty_kib) as f64 * 1024.0;
    let each_kib = grown_bytes / connections as f64 / 1024.0;
    println!("resident memory per idle subscribed connection: {each_kib:.2} KiB");

    let (started, cpu_before) = (Instant::now(), server.cpu_secs());
    let mut publisher = Publisher::connect(server.port).await;
    for number in 0..events {
        publisher.publish(number).await;
    }
    let expected = connections * events;
    let deadline = Instant::now() + PATIENCE;
    while tally.received.load(Ordering::Relaxed) < expected && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (elapsed, cpu) = (started.elapsed(), server.cpu_secs() - cpu_before);
    // Anything sent twice would come now.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let received = tally.received.load(Ordering::Relaxed);
    let out_of_order = tally.out_of_order.load(Ordering::Relaxed);
    println!(
        "{events} events to {connections} connections in {:.1} s: {received} of {expected} \
         deliveries, {out_of_order} lost, repeated or out of order",
        elapsed.as_secs_f64()
    );
    println!(
        "{:.0} deliveries/s, {:.2} µs of server CPU each, resident memory afterwards {} MiB",
        received as f64 / elapsed.as_secs_f64(),
        cpu * 1e6 / received as f64,
        server.resident_kib() / 1024
    );
    assert_eq!((received, out_of_order), (expected, 0));
}

#[derive(Default)]
struct Tally {
    received: AtomicU64,
    out_of_order: AtomicU64,
}

/// A WebSocket client that does as little as possible.
struct Subscriber {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Subscriber {
    /// Connects and subscribes.
    async fn open(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("the server listens");
        stream.set_nodelay(true).unwrap();
        let request = format!(
            "GET /app/{KEY}?protocol=7 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut subscriber = Self {
            stream,
            unread: Vec::new(),
        };
        subscriber.skip_head().await;
        subscriber.expect("connection_established").await;
        let subscribe = br#"{"event":"pusher:subscribe","data":{"channel":"room"}}"#;
        // A mask of zeros leaves the payload as it is.
        let mut frame = vec![0x81, 0x80 | subscribe.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(subscribe);
        subscriber.stream.write_all(&frame).await.unwrap();
        subscriber.expect("subscription_succeeded").await;
        subscriber
    }

    /// Counts what comes; `subscription_count` events do not matter.
    async fn receive(mut self, tally: Arc<Tally>, events: u64) {
        let mut next = 0;
        while next < events + 1 {
            let Some(frame) = self.frame().await else {
                return;
            };
            let Some(number) = number_of(&frame) else {
                continue;
            };
            tally.received.fetch_add(1, Ordering::Relaxed);
            if number != next {
                tally.out_of_order.fetch_add(1, Ordering::Relaxed);
            }
            next = number + 1;
        }
    }

    async fn skip_head(&mut self) {
        loop {
            if let Some(end) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                self.unread.drain(..end + 4);
                return;
            }
            assert!(self.fill().await, "the server answers the upgrade");
        }
    }

    async fn expect(&mut self, event: &str) {
        loop {
            let frame = self.frame().await.expect("the connection stays open");
            if String::from_utf8_lossy(&frame).contains(event) {
                return;
            }
        }
    }

    /// The payload of the next frame.
    async fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((start, end)) = frame_bounds(&self.unread) {
                let payload = self.unread[start..end].to_vec();
                self.unread.drain(..end);
                return Some(payload);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
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

/// The sequence number behind `"data":"`, on the room's own events.
fn number_of(frame: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(frame).ok()?;
    let data = text
        .strip_prefix(r#"{"event":"tick""#)?
        .split_once(r#""data":""#)?
        .1;
    data.split_once(' ')?.0.parse().ok()
}

/// One keep-alive connection to the HTTP API.
struct Publisher {
    stream: TcpStream,
    secret: Secret,
}

impl Publisher {
    async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            secret: Secret::new(SECRET),
        }
    }

    async fn publish(&mut self, number: u64) {
        let data = format!("{:x<DATA_BYTES$}", format!("{number} "));
        let body = format!(r#"{{"name":"tick","channel":"room","data":"{data}"}}"#);
        let request = SignedRequest {
            method: "POST",
            path: EVENTS_PATH,
            query: "",
            body: body.as_bytes(),
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let query = request.signed_query(now, KEY, &self.secret);
        let length = body.len();
        let request = format!(
            "POST {EVENTS_PATH}?{query} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n{}") {
            let mut buffer = [0; 1024];
            let count = self.stream.read(&mut buffer).await.unwrap();
            answer.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&answer);
            assert!(
                count > 0 && text.starts_with("HTTP/1.1 200"),
                "not published: {text}"
            );
        }
    }
}

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_raptor"))
            .args(["serve", "--listen", "127.0.0.1:0"])
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

    fn resident_kib(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// User and system time of all threads.
    fn cpu_secs(&self) -> f64 {
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
