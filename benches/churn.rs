//! Whether what comes and goes leaves anything behind: clients of all kinds connect, subscribe,
//! publish and leave, politely or not. Memory, files and tasks of the server after the first minute
//! are compared with those at the end.
//!
//! Memory is looked at when all has ended: under way it goes by the rate, since abandoned sessions
//! live on for seconds, and the allocator gives back what was freed ten seconds later.
//!
//! ```sh
//! cargo bench --bench churn                              # half an hour
//! cargo bench --bench churn -- --secs 120 --rate 4000    # clients a second
//! ```

mod support;

use std::cell::Cell;
use std::env;
use std::fs;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use raptor::auth::Secret;
use support::{Http, Server, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep};

const CLIENTS: usize = 64;
const FIRST_SAMPLE_AFTER: Duration = Duration::from_secs(60);
const SAMPLE_EVERY: Duration = Duration::from_secs(290);
/// Abandoned sessions have ended by then, and jemalloc has given back their pages
/// (`dirty_decay_ms`, 10 s).
const SETTLES_IN: Duration = Duration::from_secs(25);
const GROWTH_MAX: f64 = 0.05;
/// Of tasks and files a few come and go with timers and with whoever asks.
const FEW: f64 = 3.0;
const OBSERVED: [&str; 4] = [
    "process_resident_memory_bytes",
    "process_open_fds",
    "raptor_tasks",
    "raptor_open_connections",
];

fn main() {
    let arguments: Vec<_> = env::args().collect();
    let number = |name: &str, default: u32| {
        let at = arguments.iter().position(|a| a == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap())
    };
    let (secs, rate) = (number("--secs", 1_800), number("--rate", 500));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, churn(Duration::from_secs(secs.into()), rate));
}

async fn churn(lasts: Duration, rate: u32) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics_port = listener.local_addr().unwrap().port();
    drop(listener);
    let file = env::temp_dir().join(format!("raptor-churn-{}.toml", std::process::id()));
    let config = format!(
        "listen = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:{metrics_port}'\n\
         [[apps]]\nid = '1'\nkey = 'key'\nsecret = 'secret'\nclient_events = true\n\
         bayeux = {{ mounts = ['/faye'], client_publish = 'open', hold_secs = 1, session_secs = 3, \
         presence_grace_secs = 1 }}\n\
         limits = {{ presence_members_max = 1000 }}\n"
    );
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_raptor"));
    command
        .args(["serve", "--log", "error", "--config"])
        .arg(&file);
    let server = Server::start(command);
    let _ = fs::remove_file(&file);

    let (walks, pausing) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(false)));
    for client in 0..CLIENTS {
        let (walks, pausing, port) = (walks.clone(), pausing.clone(), server.port);
        tokio::task::spawn_local(async move {
            let mut publisher = Http::connect(port).await;
            let mut pace = interval(Duration::from_secs(CLIENTS as u64) / rate);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for nth in client as u64.. {
                pace.tick().await;
                while pausing.get() {
                    sleep(Duration::from_millis(50)).await;
                }
                walk(port, &mut publisher, nth * CLIENTS as u64 + client as u64).await;
                walks.set(walks.get() + 1);
            }
        });
    }
    let (mut busy, mut stretch) = (Duration::ZERO, FIRST_SAMPLE_AFTER);
    let mut first = None;
    loop {
        stretch = stretch.min(lasts.saturating_sub(busy));
        sleep(stretch).await;
        busy += stretch;
        stretch = SAMPLE_EVERY;
        pausing.set(true);
        sleep(SETTLES_IN).await;
        let observed = observe(metrics_port).await;
        pausing.set(false);
        let (secs, walks) = (busy.as_secs(), walks.get());
        println!("after {secs} s: {walks} walks, {}", show(&observed));
        let first = first.get_or_insert(observed);
        if busy >= lasts {
            let grew = |n: usize| {
                let more = observed[n] - first[n];
                let few = if n == 0 { 0.0 } else { FEW };
                more > few.max(first[n] * GROWTH_MAX)
            };
            let growing: Vec<_> = (0..OBSERVED.len()).filter(|n| grew(*n)).collect();
            println!("at first: {}", show(first));
            println!("at last:  {}", show(&observed));
            let names: Vec<_> = growing.iter().map(|n| OBSERVED[*n]).collect();
            assert!(growing.is_empty(), "more than 5 % were added to {names:?}");
            return println!("nothing grew by more than 5 %");
        }
    }
}

fn show(observed: &[f64]) -> String {
    let named = OBSERVED.iter().zip(observed);
    let all: Vec<_> = named
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    all.join(", ")
}

async fn observe(metrics_port: u16) -> [f64; OBSERVED.len()] {
    let mut stream = TcpStream::connect(("127.0.0.1", metrics_port))
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    OBSERVED.map(|name| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is shown"))
    })
}

/// One client of a kind, from its first byte to its last.
async fn walk(port: u16, publisher: &mut Http, nth: u64) {
    match nth % 4 {
        0 => abandoned_session(port, publisher, nth).await,
        1 => stream(port, publisher, nth).await,
        _ => socket(port, publisher, nth).await,
    }
}

async fn publish(publisher: &mut Http, channel: &str, data: u64) {
    let body = format!(r#"{{"channel":"/{channel}","data":"n={data}."}}"#);
    publisher.post_json("/faye", &body).await;
}

async fn socket(port: u16, publisher: &mut Http, nth: u64) {
    let mut socket = WebSocket::connect(port, "/app/key?protocol=7").await;
    let established = socket.expect("connection_established").await;
    let (_, rest) = established
        .split_once(r#"socket_id\":\""#)
        .expect("a socket id");
    let socket_id = rest.split('\\').next().unwrap();
    let room = format!("room-{}", nth % 50);
    let subscribe = format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{room}"}}}}"#);
    socket.send(&subscribe).await;
    let hall = format!("presence-hall-{}", nth % 20);
    let member = format!(r#"{{"user_id":"{nth}"}}"#);
    let signed = format!("{socket_id}:{hall}:{member}");
    let signature = Secret::new("secret").sign(signed.as_bytes());
    let data = format!(
        r#"{{"channel":"{hall}","auth":"key:{signature}","channel_data":{}}}"#,
        serde_json::to_string(&member).unwrap()
    );
    let subscribe = format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#);
    socket.send(&subscribe).await;
    socket.expect("presence-hall").await;
    publish(publisher, &room, nth).await;
    socket.expect(&format!("n={nth}.")).await;
    if nth.is_multiple_of(3) {
        let leave = format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{hall}"}}}}"#);
        socket.send(&leave).await;
    }
    // Some end without a word.
    if nth.is_multiple_of(2) {
        socket.close().await;
    }
}

/// pusher-js without WebSockets.
async fn stream(port: u16, publisher: &mut Http, nth: u64) {
    let mut stream = Http::connect(port).await;
    let session = format!("/app/key/000/s{nth}");
    let query = "?protocol=7&client=js&version=8.4.0";
    stream
        .post_stream(&format!("{session}/xhr_streaming{query}"))
        .await;
    let mut sender = Http::connect(port).await;
    let room = format!("room-{}", nth % 50);
    let subscribe = format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{room}"}}}}"#);
    let body = serde_json::to_string(&[subscribe]).unwrap();
    sender
        .post_unanswered(&format!("{session}/xhr_send{query}"), &body)
        .await;
    let mut published = false;
    loop {
        let text = String::from_utf8_lossy(stream.unread()).into_owned();
        if text.contains(&format!("n={nth}.")) {
            return;
        }
        if text.contains("subscription_succeeded") && !published {
            publish(publisher, &room, nth).await;
            published = true;
            continue;
        }
        assert!(stream.raw().await.is_some(), "the stream stays open");
    }
}

/// Long-polling, and gone without a goodbye every other time.
async fn abandoned_session(port: u16, publisher: &mut Http, nth: u64) {
    let mut client = Http::connect(port).await;
    let handshake = r#"[{"channel":"/meta/handshake","version":"1.0","supportedConnectionTypes":["long-polling"]}]"#;
    let answer = client.post_json("/faye", handshake).await;
    let (_, rest) = answer.split_once(r#""clientId":""#).expect("a session");
    let id = rest.split('"').next().unwrap();
    let room = format!("room-{}", nth % 50);
    let subscribe =
        format!(r#"[{{"channel":"/meta/subscribe","clientId":"{id}","subscription":"/{room}"}}]"#);
    client.post_json("/faye", &subscribe).await;
    publish(publisher, &room, nth).await;
    let connect = format!(
        r#"[{{"channel":"/meta/connect","clientId":"{id}","connectionType":"long-polling"}}]"#
    );
    let mut tries = 0;
    while !(client.post_json("/faye", &connect).await).contains(&format!("n={nth}.")) {
        tries += 1;
        assert!(tries < 20, "the event arrives");
    }
    if nth.is_multiple_of(8) {
        let goodbye = format!(r#"[{{"channel":"/meta/disconnect","clientId":"{id}"}}]"#);
        client.post_json("/faye", &goodbye).await;
    }
}
