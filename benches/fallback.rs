//! Sessions of pusher-js over HTTP under a steady load: every event has to arrive at each of them
//! once and in order, also where a client asks for the next answer.
//!
//! `cargo bench --bench fallback [-- SECONDS [SESSIONS]]`: so many streaming and so many polling
//! sessions (60 s and 1,000 unless told otherwise) on one channel, 10 events per second. Prints
//! the CPU time of the server for each delivery, for each transport alone and for both together.

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{Http, Server};
use tokio::sync::Semaphore;

const EVENTS_PER_SEC: u32 = 10;
const DATA_BYTES: usize = 512;
const KEY: &str = "app-key";
const CONNECTING_AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Streaming,
    Polling,
}

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let seconds: u32 = numbers.next().unwrap_or(60);
    let sessions = numbers.next().unwrap_or(1_000);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        run("streaming", sessions, 0, seconds).await;
        run("polling", 0, sessions, seconds).await;
        run("both", sessions, sessions, seconds).await;
    });
}

async fn run(name: &str, streaming: u32, polling: u32, seconds: u32) {
    let server = Server::raptor();
    let received = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
    let transports = (0..streaming).map(|_| Transport::Streaming);
    let transports = transports.chain((0..polling).map(|_| Transport::Polling));
    let mut opening = Vec::new();
    for (number, transport) in transports.enumerate() {
        let (gate, received, port) = (gate.clone(), received.clone(), server.port);
        opening.push(tokio::spawn(async move {
            let _permit = gate.acquire_owned().await;
            Session::open(port, number, transport, received).await
        }));
    }
    let mut hearing = Vec::new();
    for opened in opening {
        let session = opened.await.expect("every client subscribes");
        hearing.push(tokio::spawn(session.hear()));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;

    let (cpu, started) = (server.cpu_secs(), Instant::now());
    let mut http = Http::connect(server.port).await;
    let events = seconds * EVENTS_PER_SEC;
    for n in 0..events {
        let due = started + n * Duration::from_secs(1) / EVENTS_PER_SEC;
        tokio::time::sleep_until(due.into()).await;
        let data = format!("{:x<DATA_BYTES$}", format!("seq {n};"));
        let body = format!(r#"[{{"channel":"/bench","data":"{data}"}}]"#);
        let answer = http.post_json("/faye", &body).await;
        assert!(
            answer.contains(r#""successful":true"#),
            "not published: {answer}"
        );
    }
    let published = started.elapsed();
    let expected = u64::from(events) * u64::from(streaming + polling);
    while received.load(Ordering::Relaxed) < expected && started.elapsed() < published + PATIENCE {
        assert!(
            hearing.iter().all(|h| !h.is_finished()),
            "a session ended, or heard amiss"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let late_ms = (started.elapsed() - published).as_millis();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        received.load(Ordering::Relaxed),
        expected,
        "lost or repeated deliveries"
    );
    let cpu_us = (server.cpu_secs() - cpu) * 1e6 / expected as f64;
    let rss_mib = server.resident_kib() / 1024;
    println!(
        "{name}: {expected} deliveries, none lost, repeated or out of order; \
         {cpu_us:.1} µs of CPU each, {rss_mib} MiB, the last {late_ms} ms after its publish"
    );
}

struct Session {
    http: Http,
    base: String,
    /// The number of the last request.
    requests: u64,
    transport: Transport,
    /// The number of the event that has to come next.
    next: u64,
    received: Arc<AtomicU64>,
}

impl Session {
    async fn open(
        port: u16,
        number: usize,
        transport: Transport,
        received: Arc<AtomicU64>,
    ) -> Self {
        let base = format!("/pusher/app/{KEY}/{}/s{number:07}", number % 1000);
        let mut session = Self {
            http: Http::connect(port).await,
            base,
            requests: 0,
            transport,
            next: 0,
            received,
        };
        let subscribe = r#"["{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":\"bench\"}}"]"#;
        match transport {
            Transport::Streaming => {
                let target = session.receive_target();
                session.http.post_stream(&target).await;
                session.await_text("connection_established").await;
                session.send(port, subscribe).await;
                session.await_text("subscription_succeeded").await;
            }
            Transport::Polling => {
                let first = session.poll().await.expect("the server answers");
                assert!(first.starts_with("o\n"), "not opened: {first}");
                session.send(port, subscribe).await;
                while !(session.poll().await)
                    .expect("the server answers")
                    .contains("subscription_succeeded")
                {}
            }
        }
        session
    }

    fn receive_target(&mut self) -> String {
        self.requests += 1;
        let transport = match self.transport {
            Transport::Streaming => "xhr_streaming",
            Transport::Polling => "xhr",
        };
        let (base, n) = (&self.base, self.requests);
        format!("{base}/{transport}?protocol=7&client=js&version=8.6.0&t=1&n={n}")
    }

    async fn send(&mut self, port: u16, body: &str) {
        self.requests += 1;
        let target = format!("{}/xhr_send?t=1&n={}", self.base, self.requests);
        let mut http = Http::connect(port).await;
        http.post_unanswered(&target, body).await;
    }

    async fn poll(&mut self) -> Option<String> {
        let target = self.receive_target();
        self.http.try_post_json(&target, "").await
    }

    async fn await_text(&mut self, text: &str) {
        while memchr::memmem::find(self.http.unread(), text.as_bytes()).is_none() {
            self.http.raw().await.expect("the server answers");
        }
        self.http.unread().clear();
    }

    /// Until the server is gone.
    async fn hear(mut self) {
        match self.transport {
            Transport::Polling => {
                while let Some(answer) = self.poll().await {
                    let done = count(answer.as_bytes(), &mut self.next, &self.received);
                    assert!(done <= answer.len());
                }
            }
            Transport::Streaming => loop {
                let Some(unread) = self.http.raw().await else {
                    return;
                };
                let done = count(unread, &mut self.next, &self.received);
                // The end of a chunked answer: the client has read as much as it wants.
                let has_ended = unread.ends_with(b"\r\n0\r\n\r\n");
                match has_ended {
                    true => unread.clear(),
                    false => drop(unread.drain(..done)),
                }
                if has_ended {
                    let target = self.receive_target();
                    self.http.post_stream(&target).await;
                }
            },
        }
    }
}

/// Counts the events in what came, each of which has to be the next, and returns how much of it
/// is done with.
fn count(text: &[u8], next: &mut u64, received: &AtomicU64) -> usize {
    const MARK: &[u8] = b"seq ";
    let (mut done, mut events) = (0, 0);
    while let Some(at) = memchr::memmem::find(&text[done..], MARK) {
        let digits = &text[done + at + MARK.len()..];
        let Some(length) = memchr::memchr(b';', digits) else {
            break;
        };
        let number = digits[..length]
            .iter()
            .fold(0, |n, byte| n * 10 + u64::from(byte - b'0'));
        assert_eq!(number, *next, "lost, repeated or out of order");
        *next += 1;
        events += 1;
        done += at + MARK.len() + length;
    }
    received.fetch_add(events, Ordering::Relaxed);
    done
}
