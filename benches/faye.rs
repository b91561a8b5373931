//! Raptor beside Faye on Node, in one run, taking turns: one channel with many subscribers, over
//! WebSocket and over long-polling.
//!
//! `cargo bench --bench faye [-- ROUNDS [PART…]]` (`websocket`, `polling`, `rates`), after `compat-tests/run` has installed Faye.
//!
//! - saturation: 16 publishes in flight over HTTP, 256 bytes each, for some seconds; deliveries
//!   per second until the last has arrived, and CPU time of the server for each;
//! - rates: publishes at fixed times, latency from the time at which each was due.

#[path = "support/mod.rs"]
mod support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Http, Server, WebSocket};
use tokio::sync::Semaphore;

const PARTS: [&str; 3] = ["websocket", "polling", "rates"];
const MOUNT: &str = "/faye";
const DATA_BYTES: usize = 256;
const IN_FLIGHT: usize = 16;
const SOCKETS: usize = 1_000;
const POLLERS: usize = 500;
const SATURATED: Duration = Duration::from_secs(5);
const PACED: Duration = Duration::from_secs(4);
/// Events per second to all sockets; Faye holds the last of them just so.
const RATES: [u32; 3] = [5, 12, 20];
const CONNECTING_AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let rounds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let parts: Vec<String> = std::env::args()
        .filter(|arg| PARTS.contains(&&**arg))
        .collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    runtime.block_on(async {
        if wants("websocket") {
            saturate("WebSocket", Transport::WebSocket, SOCKETS, rounds).await;
        }
        if wants("polling") {
            saturate("long-polling", Transport::LongPolling, POLLERS, rounds).await;
        }
        if wants("rates") {
            for rate in RATES {
                pace(rate, rounds).await;
            }
        }
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    WebSocket,
    LongPolling,
}

fn faye() -> Server {
    let mut command = Command::new("node");
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/faye-server.mjs"
    ));
    Server::start(command)
}

async fn saturate(name: &str, transport: Transport, clients: usize, rounds: usize) {
    let (mut rates, mut costs) = (Pairs::default(), Pairs::default());
    for _ in 0..rounds {
        let raptor = saturation(Server::raptor(), transport, clients).await;
        let faye = saturation(faye(), transport, clients).await;
        rates.push(raptor.0, faye.0);
        costs.push(raptor.1, faye.1);
    }
    println!("{name}, {clients} clients, saturated, medians of {rounds}:");
    println!("  deliveries/s: {}", rates.summary(0));
    println!("  server CPU per delivery, µs: {}", costs.summary(2));
}

async fn pace(rate: u32, rounds: usize) {
    let mut p99 = Pairs::default();
    for _ in 0..rounds {
        p99.push(
            paced(Server::raptor(), rate).await,
            paced(faye(), rate).await,
        );
    }
    println!("WebSocket, {SOCKETS} clients, {rate} events/s, medians of {rounds}:");
    println!("  p99 latency, ms: {}", p99.summary(2));
}

/// One figure of both servers, by round.
#[derive(Default)]
struct Pairs {
    raptor: Vec<f64>,
    faye: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, raptor: f64, faye: f64) {
        self.raptor.push(raptor);
        self.faye.push(faye);
    }

    fn summary(&self, digits: usize) -> String {
        let (raptor, faye) = (median(&self.raptor), median(&self.faye));
        let ratio = raptor / faye;
        format!("Raptor {raptor:.digits$}, Faye {faye:.digits$}, ratio {ratio:.3}")
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Deliveries per second, and microseconds of the server's CPU time for each.
async fn saturation(server: Server, transport: Transport, clients: usize) -> (f64, f64) {
    let room = Room::open(&server, transport, clients).await;
    let (cpu, started) = (server.cpu_secs(), Instant::now());
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (stop, port, epoch) = (stop.clone(), server.port, room.epoch);
            tokio::spawn(async move {
                let mut http = Http::connect(port).await;
                let mut published = 0;
                while !stop.load(Ordering::Relaxed) {
                    publish(&mut http, epoch.elapsed()).await;
                    published += 1;
                }
                published
            })
        })
        .collect();
    tokio::time::sleep(SATURATED).await;
    stop.store(true, Ordering::Relaxed);
    let mut published = 0;
    for publisher in publishers {
        published += publisher.await.unwrap();
    }
    let deliveries = published * clients as u64;
    room.await_deliveries(deliveries).await;
    let elapsed = started.elapsed().as_secs_f64();
    let cpu_us = (server.cpu_secs() - cpu) * 1e6;
    (deliveries as f64 / elapsed, cpu_us / deliveries as f64)
}

/// The 99th percentile of latency in milliseconds.
async fn paced(server: Server, rate: u32) -> f64 {
    let room = Room::open(&server, Transport::WebSocket, SOCKETS).await;
    let events = (PACED.as_secs_f64() * f64::from(rate)) as u32;
    let first = room.epoch.elapsed() + Duration::from_millis(50);
    let publishers: Vec<_> = (0..events)
        .map(|n| {
            let (due, port, epoch) = (
                first + n * Duration::from_secs(1) / rate,
                server.port,
                room.epoch,
            );
            tokio::spawn(async move {
                let mut http = Http::connect(port).await;
                tokio::time::sleep_until((epoch + due).into()).await;
                publish(&mut http, due).await;
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    room.await_deliveries(u64::from(events) * SOCKETS as u64)
        .await;
    let mut latencies = std::mem::take(&mut *room.tally.latencies_us.lock().unwrap());
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100] as f64 / 1000.0
}

/// The data begins with the time at which the event is due, in microseconds.
async fn publish(http: &mut Http, due: Duration) {
    let data = format!("{:x<DATA_BYTES$}", format!("due {} ", due.as_micros()));
    let body = format!(r#"[{{"channel":"/bench","data":"{data}"}}]"#);
    let answer = http.post_json(MOUNT, &body).await;
    assert!(
        answer.contains(r#""successful":true"#),
        "not published: {answer}"
    );
}

/// The clients of one server, all subscribed to one channel.
struct Room {
    epoch: Instant,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    received: AtomicU64,
    latencies_us: Mutex<Vec<u64>>,
}

impl Room {
    async fn open(server: &Server, transport: Transport, clients: usize) -> Self {
        let (epoch, tally) = (Instant::now(), Arc::new(Tally::default()));
        let gate = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
        let opening: Vec<_> = (0..clients)
            .map(|_| {
                let (gate, tally, port) = (gate.clone(), tally.clone(), server.port);
                tokio::spawn(async move {
                    let _permit = gate.acquire_owned().await;
                    match transport {
                        Transport::WebSocket => {
                            let socket = subscribed_socket(port).await;
                            tokio::spawn(hear(socket, tally, epoch));
                        }
                        Transport::LongPolling => {
                            let (http, client_id) = subscribed_poller(port).await;
                            tokio::spawn(poll(http, client_id, tally, epoch));
                        }
                    }
                })
            })
            .collect();
        for opened in opening {
            opened.await.expect("every client subscribes");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        Self { epoch, tally }
    }

    /// Exactly so many: what is lost or comes twice ends the run.
    async fn await_deliveries(&self, expected: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.received() < expected && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(self.received(), expected, "lost or repeated deliveries");
    }

    fn received(&self) -> u64 {
        self.tally.received.load(Ordering::Relaxed)
    }
}

impl Tally {
    /// Counts the events in a text that holds any number of messages and returns how much of it
    /// is done with.
    fn count(&self, text: &[u8], epoch: Instant) -> usize {
        const MARK: &[u8] = b"\"data\":\"due ";
        let now_us = epoch.elapsed().as_micros() as u64;
        let mut latencies_us = self.latencies_us.lock().unwrap();
        let (mut done, mut count) = (0, 0);
        while let Some(at) = memchr::memmem::find(&text[done..], MARK) {
            let data = done + at + MARK.len();
            // The rest of the data is filling.
            let end = data - "due ".len() + DATA_BYTES;
            if end > text.len() {
                break;
            }
            let digits = text[data..].iter().take_while(|byte| byte.is_ascii_digit());
            let due_us = digits.fold(0, |n, byte| n * 10 + u64::from(byte - b'0'));
            latencies_us.push(now_us.saturating_sub(due_us));
            count += 1;
            done = end;
        }
        self.received.fetch_add(count, Ordering::Relaxed);
        done
    }
}

const HANDSHAKE: &str = r#"[{"channel":"/meta/handshake","version":"1.0","supportedConnectionTypes":["websocket","long-polling"],"id":"1"}]"#;

fn client_id(reply: &str) -> String {
    let after = reply.split_once(r#""clientId":""#).expect("a client id").1;
    after.split('"').next().unwrap().to_owned()
}

fn subscribe(client_id: &str) -> String {
    format!(
        r#"[{{"channel":"/meta/subscribe","clientId":"{client_id}","subscription":"/bench","id":"2"}}]"#
    )
}

fn connect(client_id: &str, connection_type: &str) -> String {
    format!(
        r#"[{{"channel":"/meta/connect","clientId":"{client_id}","connectionType":"{connection_type}","id":"3"}}]"#
    )
}

async fn subscribed_socket(port: u16) -> WebSocket {
    let mut socket = WebSocket::connect(port, MOUNT).await;
    socket.send(HANDSHAKE).await;
    let client_id = client_id(&socket.expect("/meta/handshake").await);
    socket.send(&subscribe(&client_id)).await;
    socket.expect(r#""successful":true"#).await;
    // Held for longer than any run takes; it binds the socket to the session.
    socket.send(&connect(&client_id, "websocket")).await;
    socket
}

async fn hear(mut socket: WebSocket, tally: Arc<Tally>, epoch: Instant) {
    while let Some(bytes) = socket.raw().await {
        let done = tally.count(bytes, epoch);
        bytes.drain(..done);
    }
}

async fn subscribed_poller(port: u16) -> (Http, String) {
    let mut http = Http::connect(port).await;
    let client_id = client_id(&http.post_json(MOUNT, HANDSHAKE).await);
    let reply = http.post_json(MOUNT, &subscribe(&client_id)).await;
    assert!(
        reply.contains(r#""successful":true"#),
        "not subscribed: {reply}"
    );
    (http, client_id)
}

async fn poll(mut http: Http, client_id: String, tally: Arc<Tally>, epoch: Instant) {
    let connect = connect(&client_id, "long-polling");
    while let Some(answer) = http.try_post_json(MOUNT, &connect).await {
        tally.count(answer.as_bytes(), epoch);
    }
}
