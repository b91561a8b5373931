//! What webhooks cost the clients: the time of client events from sender to subscriber, at a fixed
//! rate, with no webhooks, with an endpoint that answers, and with one more that never does. The
//! three servers take turns, so that whatever else the machine does meets them all.
//!
//! `cargo bench --bench webhooks [-- ROUNDS [ROUND_SECS [EVENTS_PER_SEC]]]`

#[path = "support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raptor::auth::{Secret, subscription_text};
use support::{Server, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const KEY: &str = "k";
const SECRET: &str = "s";
const PAIRS: u64 = 20;
/// How long the events of a round have to reach the endpoint.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let numbers: Vec<u64> = (std::env::args().filter_map(|arg| arg.parse().ok())).collect();
    let number = |nth: usize, default| numbers.get(nth).copied().unwrap_or(default);
    let (rounds, secs, rate) = (number(0, 5), number(1, 8), number(2, 5_000));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(rounds, secs, rate));
}

async fn run(rounds: u64, secs: u64, rate: u64) {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let mut setups = Vec::new();
    for (name, is_heard, is_dead) in [
        ("no webhooks", false, false),
        ("one that answers", true, false),
        ("and one that never does", true, true),
    ] {
        let receiver = Receiver::start().await;
        // Without batches and with a short window the dead one makes most work: each event soon
        // becomes a dead letter of its own.
        let heard = is_heard.then(|| format!("url = '{}'", receiver.url));
        let dead =
            is_dead.then(|| format!("url = '{silent_url}'\nbatching = false\nretry_secs = 10"));
        let endpoints = heard.into_iter().chain(dead).collect();
        setups.push(Setup::start(name, endpoints, receiver).await);
    }

    for round in 0..rounds {
        for setup in &mut setups {
            let mut latencies = setup.load(secs, rate).await;
            latencies.sort_unstable();
            let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize];
            println!(
                "round {}: {:24} {} events, p50 {} µs, p99 {} µs, {} MiB resident, {:.1} s of CPU \
                 so far",
                round + 1,
                setup.name,
                latencies.len(),
                at(0.5),
                at(0.99),
                setup.server.resident_kib() / 1024,
                setup.server.cpu_secs()
            );
            setup.p50.push(at(0.5));
            setup.p99.push(at(0.99));
            setup.receives_all().await;
        }
    }
    let [none, heard, dead] = &setups[..] else {
        unreachable!("three setups");
    };
    for (what, with, without) in [
        ("an endpoint that answers, to none", heard, none),
        ("a dead endpoint beside it, to it alone", dead, heard),
    ] {
        println!(
            "{what}: p50 × {:.2}, p99 × {:.2} (median of {rounds} rounds)",
            ratio(&with.p50, &without.p50),
            ratio(&with.p99, &without.p99),
        );
    }
    for setup in setups {
        let _ = std::fs::remove_dir_all(setup.dir);
    }
}

/// The median of the ratios of each round.
fn ratio(with: &[u64], without: &[u64]) -> f64 {
    let pairs = with.iter().zip(without);
    let mut ratios: Vec<_> = pairs.map(|(a, b)| *a as f64 / *b as f64).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

struct Setup {
    name: &'static str,
    dir: PathBuf,
    server: Server,
    receiver: Receiver,
    has_webhooks: bool,
    sent: u64,
    pairs: Vec<(WebSocket, WebSocket)>,
    started: Instant,
    p50: Vec<u64>,
    p99: Vec<u64>,
}

impl Setup {
    async fn start(name: &'static str, endpoints: Vec<String>, receiver: Receiver) -> Self {
        let label = name.replace(' ', "-");
        let dir = std::env::temp_dir().join(format!("raptor-bench-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut config = format!(
            "[webhooks]\ndir = {:?}\n[[apps]]\nid = '1'\nkey = '{KEY}'\nsecret = '{SECRET}'\n\
             client_events = true\nlimits = {{ client_events_per_sec_max = 1_000_000 }}\n",
            dir.join("store")
        );
        for endpoint in &endpoints {
            config += &format!(
                "[[apps.webhooks]]\n{endpoint}\nevents = ['client_event']\n\
                 allow_private_networks = true\n"
            );
        }
        let file = dir.join("raptor.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_raptor"));
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "error",
            "--config",
        ]);
        command.arg(file);
        let server = Server::start(command);
        let mut pairs = Vec::new();
        for pair in 0..PAIRS {
            let channel = format!("private-{pair}");
            let sender = subscriber(server.port, &channel).await;
            pairs.push((sender, subscriber(server.port, &channel).await));
        }
        Self {
            name,
            dir,
            server,
            receiver,
            has_webhooks: !endpoints.is_empty(),
            sent: 0,
            pairs,
            started: Instant::now(),
            p50: Vec::new(),
            p99: Vec::new(),
        }
    }

    /// The microseconds that each event took.
    async fn load(&mut self, secs: u64, rate: u64) -> Vec<u64> {
        let (started, each) = (self.started, secs * rate / PAIRS);
        let pause = Duration::from_secs(1) * PAIRS as u32 / rate as u32;
        let (report, mut reports) = mpsc::unbounded_channel();
        let mut running = Vec::new();
        for (pair, (mut sender, mut listener)) in self.pairs.drain(..).enumerate() {
            let report = report.clone();
            let sending = tokio::spawn(async move {
                let begin = Instant::now() + pause * pair as u32 / PAIRS as u32;
                for nth in 0..each {
                    tokio::time::sleep_until((begin + pause * nth as u32).into()).await;
                    let at = started.elapsed().as_micros();
                    let event = format!(
                        r#"{{"event":"client-e","channel":"private-{pair}","data":"{at} "}}"#
                    );
                    sender.send(&event).await;
                }
                sender
            });
            let listening = tokio::spawn(async move {
                for _ in 0..each {
                    let frame = listener.expect("client-e").await;
                    let now = started.elapsed().as_micros() as u64;
                    let sent = frame.split_once(r#""data":""#).unwrap().1;
                    let sent: u64 = sent.split_once(' ').unwrap().0.parse().unwrap();
                    let _ = report.send(now - sent);
                }
                listener
            });
            running.push((sending, listening));
        }
        drop(report);
        for (sending, listening) in running {
            let pair = (sending.await.unwrap(), listening.await.unwrap());
            self.pairs.push(pair);
        }
        self.sent += each * PAIRS;
        let mut latencies = Vec::new();
        while let Some(latency) = reports.recv().await {
            latencies.push(latency);
        }
        latencies
    }

    /// The endpoint that answers is told of every event, whatever the other one does.
    async fn receives_all(&self) {
        let deadline = Instant::now() + PATIENCE;
        let received = || self.receiver.events.load(Ordering::Relaxed);
        while self.has_webhooks && received() < self.sent && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            !self.has_webhooks || received() == self.sent,
            "{}: {} of {} events reached the endpoint",
            self.name,
            received(),
            self.sent
        );
    }
}

async fn subscriber(port: u16, channel: &str) -> WebSocket {
    let mut socket = WebSocket::connect(port, &format!("/app/{KEY}?protocol=7")).await;
    let established = socket.expect("connection_established").await;
    let socket_id = established.split_once(r#"socket_id\":\""#).unwrap().1;
    let socket_id = socket_id.split_once('\\').unwrap().0;
    let text = subscription_text(socket_id, channel, None);
    let signature = Secret::new(SECRET).sign(text.as_bytes());
    let subscribe = format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{KEY}:{signature}"}}}}"#
    );
    socket.send(&subscribe).await;
    socket.expect("subscription_succeeded").await;
    socket
}

/// An endpoint that answers at once, and counts events.
struct Receiver {
    url: String,
    events: Arc<AtomicU64>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let events = Arc::new(AtomicU64::new(0));
        let counted = events.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, counted.clone()));
            }
        });
        Self { url, events }
    }
}

async fn answer(mut stream: TcpStream, events: Arc<AtomicU64>) {
    let mut unread = Vec::new();
    loop {
        while let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end]).to_ascii_lowercase();
            let length = head.split_once("content-length: ").unwrap().1;
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if unread.len() < end + 4 + length {
                break;
            }
            let body = String::from_utf8_lossy(&unread[end + 4..end + 4 + length]);
            let count = body.matches(r#""name":"client_event""#).count();
            events.fetch_add(count as u64, Ordering::Relaxed);
            unread.drain(..end + 4 + length);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut unread).await {
            Ok(1..) => {}
            _ => return,
        }
    }
}
