//! Starts the server, connects and subscribes many clients, and prints what an idle one costs in
//! resident memory; then publishes over the HTTP API and checks that every client received every
//! event once and in order.
//!
//! `cargo bench --bench connections [-- CONNECTIONS [EVENTS]]`

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use raptor::auth::{Secret, SignedRequest};
use support::{Http, Server, WebSocket};
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
    let server = Server::raptor();
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

struct Subscriber(WebSocket);

impl Subscriber {
    /// Connects and subscribes.
    async fn open(port: u16) -> Self {
        let mut socket = WebSocket::connect(port, &format!("/app/{KEY}?protocol=7")).await;
        socket.expect("connection_established").await;
        let subscribe = r#"{"event":"pusher:subscribe","data":{"channel":"room"}}"#;
        socket.send(subscribe).await;
        socket.expect("subscription_succeeded").await;
        Self(socket)
    }

    /// Counts what comes; `subscription_count` events do not matter.
    async fn receive(mut self, tally: Arc<Tally>, events: u64) {
        let mut next = 0;
        while next < events + 1 {
            let Some(frame) = self.0.frame().await else {
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

struct Publisher {
    http: Http,
    secret: Secret,
}

impl Publisher {
    async fn connect(port: u16) -> Self {
        let http = Http::connect(port).await;
        let secret = Secret::new(SECRET);
        Self { http, secret }
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
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let query = request.signed_query(since_1970.as_secs(), KEY, &self.secret);
        let target = format!("{EVENTS_PATH}?{query}");
        assert_eq!(self.http.post_json(&target, &body).await, "{}");
    }
}
