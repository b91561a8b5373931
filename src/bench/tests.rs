//! The tool against Raptor, and against a server that does what none should.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::config::Config;
use crate::server::Server;
use crate::wire::websocket::push_text;

/// A server on a thread of its own, until the test's process ends.
fn serve<F: Future<Output = ()>>(
    serving: impl FnOnce(std::sync::mpsc::Sender<SocketAddr>) -> F + Send + 'static,
) -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(serving(sender));
    });
    receiver.recv().unwrap()
}

fn raptor() -> SocketAddr {
    serve(|started| async move {
        let mut config = Config::development();
        config.server.listen = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(config).await.unwrap();
        started.send(server.address().unwrap()).unwrap();
        server.run_until(std::future::pending()).await;
    })
}

fn pusher(address: SocketAddr) -> Target {
    let app = ("app-id", "app-key", "app-secret");
    Target::pusher(&format!("http://{address}"), app, false)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn bayeux(address: SocketAddr) -> Target {
    let url = format!("http://{address}/faye");
    Target::bayeux(&url, false).unwrap_or_else(|error| panic!("{error}"))
}

fn run(target: Target, scenario: Scenario) -> Report {
    let bench = Bench {
        target,
        scenario,
        pid: Some(std::process::id()),
    };
    bench
        .run(|_| {})
        .unwrap_or_else(|error| panic!("no report: {error}"))
}

fn publishing(pace: Pace) -> Publishing {
    Publishing {
        channels: 1,
        subscribers: 5,
        pace,
        secs: 1,
        payload_bytes: 100,
        keep_alive: true,
    }
}

#[track_caller]
fn is_clean(report: &Report, connections: u64, deliveries_per_event: u64) {
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.connections, connections);
    assert!(report.events > 0);
    assert_eq!(report.deliveries, report.events * deliveries_per_event);
    assert!(report.latency.is_some() && report.server.is_some());
}

#[test]
fn raptor_is_loaded_in_every_scenario() {
    let address = raptor();
    for target in [pusher, bayeux] {
        let load = publishing(Pace::InFlight(4));
        is_clean(&run(target(address), Scenario::FanOut(load)), 5, 5);
        let load = publishing(Pace::PerSec(50));
        let report = run(target(address), Scenario::FanOut(load));
        is_clean(&report, 5, 5);
        assert_eq!(report.events, 50, "an open loop sends what it should");
        let echo = Echo {
            pairs: 10,
            events_per_sec: 40,
            secs: 1,
            payload_bytes: 100,
        };
        let report = run(target(address), Scenario::Echo(echo));
        is_clean(&report, 20, 1);
        assert_eq!(report.events, 40);
        let storm = Storm {
            connections: 20,
            in_flight: 4,
        };
        let report = run(target(address), Scenario::Storm(storm));
        is_clean(&report, 20, 0);
        let idle = Idle {
            connections: 20,
            one_channel: false,
            secs: 1,
        };
        let report = run(target(address), Scenario::Idle(idle));
        assert!(report.is_clean() && report.connections == 20, "{report:?}");
        assert!(report.table().contains("memory per connection"));
    }
    for keep_alive in [true, false] {
        let load = Publishing {
            channels: 7,
            keep_alive,
            ..publishing(Pace::InFlight(3))
        };
        let report = run(pusher(address), Scenario::Channels(load));
        is_clean(&report, 35, 5);
    }
    let load = publishing(Pace::InFlight(3));
    is_clean(&run(bayeux(address), Scenario::Polling(load)), 5, 5);
    let churn = Presence {
        members: 5,
        churning: 2,
        secs: 1,
    };
    is_clean(&run(pusher(address), Scenario::Presence(churn)), 7, 5);
}

#[test]
fn a_report_says_the_same_to_people_and_to_machines() {
    let load = publishing(Pace::PerSec(20));
    let report = run(pusher(raptor()), Scenario::FanOut(load));
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["scenario"], "fan-out");
    assert_eq!(
        (&json["events"], &json["deliveries"]),
        (&20.into(), &100.into())
    );
    assert_eq!(json["lost"], 0);
    assert!(json["latency"]["p99_us"].as_u64() > Some(0));
    let table = report.table();
    for part in [
        "fan-out against http://127.0.0.1:",
        "20, ",
        "100, ",
        "0, 0, 0",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(!table.contains("app-secret") && !report.to_json().contains("app-secret"));
}

#[test]
fn refusals_are_counted_and_told_in_the_servers_words() {
    let target = Target::pusher(
        &format!("http://{}", raptor()),
        ("app-id", "app-key", "wrong"),
        false,
    );
    let load = publishing(Pace::PerSec(20));
    let report = run(target.ok().unwrap(), Scenario::FanOut(load));
    assert_eq!((report.failed, report.events, report.lost), (20, 0, 0));
    assert!(!report.is_clean());
    let first = report.first_failure.unwrap();
    assert!(
        first.contains("401") && first.contains("Invalid signature"),
        "{first}"
    );
}

#[test]
fn a_client_event_that_is_refused_is_no_loss_without_a_word() {
    let echo = Echo {
        pairs: 1,
        // An app allows ten.
        events_per_sec: 50,
        secs: 1,
        payload_bytes: 100,
    };
    let report = run(pusher(raptor()), Scenario::Echo(echo));
    assert_eq!(report.failed, 1);
    let first = report.first_failure.unwrap();
    assert!(first.contains("4301"), "{first}");
}

#[test]
fn a_scenario_that_a_protocol_has_not_is_no_report() {
    let bench = Bench {
        target: pusher("127.0.0.1:9".parse().unwrap()),
        scenario: Scenario::Polling(publishing(Pace::InFlight(1))),
        pid: None,
    };
    assert!(matches!(bench.run(|_| {}), Err(BenchError::NotIn(_))));
}

/// What a faulty server makes of an event's frame, the nth of all; `held` is for a later one.
type Fault = fn(nth: usize, frame: &str, held: &mut Vec<String>) -> Vec<String>;

fn faulty(fault: Fault) -> SocketAddr {
    serve(move |started| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        started.send(listener.local_addr().unwrap()).unwrap();
        let sockets: Arc<Mutex<Vec<OwnedWriteHalf>>> = Arc::default();
        let (events, mut published) = mpsc::unbounded_channel::<String>();
        tokio::spawn({
            let sockets = sockets.clone();
            async move {
                let (mut nth, mut held) = (0, Vec::new());
                while let Some(frame) = published.recv().await {
                    let frames = fault(nth, &frame, &mut held);
                    nth += 1;
                    for socket in sockets.lock().unwrap().iter() {
                        for frame in &frames {
                            let mut bytes = Vec::new();
                            push_text(&mut bytes, frame);
                            assert_eq!(socket.try_write(&bytes).unwrap(), bytes.len());
                        }
                    }
                }
            }
        });
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, sockets.clone(), events.clone()));
        }
    })
}

async fn answer(
    stream: TcpStream,
    sockets: Arc<Mutex<Vec<OwnedWriteHalf>>>,
    events: mpsc::UnboundedSender<String>,
) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let (mut head, mut body_bytes) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let mut line = String::new();
            if reader.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if let Some(length) = line.strip_prefix("Content-Length: ") {
                body_bytes = length.trim().parse().ok()?;
            }
            head += &line;
        }
        if head.starts_with("GET") {
            let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
            push_text(
                &mut bytes,
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.1\"}"}"#,
            );
            push_text(
                &mut bytes,
                r#"{"event":"pusher_internal:subscription_succeeded","data":"{}"}"#,
            );
            writer.write_all(&bytes).await.ok()?;
            sockets.lock().unwrap().push(writer);
            // Until the client has gone.
            let _ = reader.read_to_end(&mut Vec::new()).await;
            return None;
        }
        let mut body = vec![0; body_bytes];
        reader.read_exact(&mut body).await.ok()?;
        events.send(String::from_utf8(body).ok()?).ok()?;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        writer.write_all(answer).await.ok()?;
    }
}

/// 50 events, to 5 subscribers each.
fn faults_of(fault: Fault) -> (u64, u64, u64) {
    let load = Publishing {
        // With one publisher at a time, so that the nth event is of number n.
        pace: Pace::PerSec(50),
        ..publishing(Pace::InFlight(1))
    };
    let report = run(pusher(faulty(fault)), Scenario::FanOut(load));
    assert_eq!((report.events, report.failed), (50, 0), "{report:?}");
    let faults = (report.lost, report.duplicates, report.reordered);
    assert_eq!(report.is_clean(), faults == (0, 0, 0));
    assert_eq!(report.deliveries, 250 - report.lost);
    faults
}

#[test]
fn a_server_without_faults_has_none() {
    let none: Fault = |_, frame, _| vec![frame.to_owned()];
    assert_eq!(faults_of(none), (0, 0, 0));
}

#[test]
fn a_server_that_loses_events_is_caught() {
    let fault: Fault = |nth, frame, _| match nth {
        // In the middle, and the last.
        20 | 21 | 49 => vec![],
        _ => vec![frame.to_owned()],
    };
    assert_eq!(faults_of(fault), (15, 0, 0));
}

#[test]
fn a_server_that_repeats_events_is_caught() {
    let fault: Fault = |nth, frame, _| match nth {
        20 | 49 => vec![frame.to_owned(), frame.to_owned()],
        _ => vec![frame.to_owned()],
    };
    assert_eq!(faults_of(fault), (0, 10, 0));
}

#[test]
fn a_server_that_reorders_events_is_caught() {
    let fault: Fault = |nth, frame, held| match nth {
        20 => {
            held.push(frame.to_owned());
            vec![]
        }
        21 => [vec![frame.to_owned()], std::mem::take(held)].concat(),
        _ => vec![frame.to_owned()],
    };
    // Only if both were of one lane is their order certain; they are, as each is answered at once.
    assert_eq!(faults_of(fault), (0, 0, 5));
}
