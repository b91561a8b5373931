//! What single steps cost: frames, messages of both protocols, signatures, patterns.
//!
//! `cargo bench --bench codecs`; the hub's publish is in `fanout`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Waker};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use raptor::auth::{Secret, SignedRequest};
use raptor::bayeux::channel::candidates;
use raptor::hub::{Expansion, Hub, Outbox, Subscriber};
use raptor::model::ids::IdSource;
use raptor::model::{AppId, Body, ChannelId, ChannelName, Event, Message};
use raptor::pusher::WEBSOCKET;
use raptor::wire::websocket::{Decoder, push_text};
use raptor::wire::{bayeux, pusher, rest};

const DATA_BYTES: usize = 256;
const NOW_SECS: u64 = 1_700_000_000;

fn data() -> String {
    "x".repeat(DATA_BYTES)
}

fn message() -> Message {
    Message {
        name: "new-message".into(),
        data: data().into(),
        user_id: None,
        ext: None,
        members: None,
    }
}

/// As a client writes it, with a mask of zeros.
fn masked(text: &str) -> Vec<u8> {
    let mut plain = Vec::new();
    push_text(&mut plain, text);
    plain[1] |= 0x80;
    let head_bytes = plain.len() - text.len();
    plain.splice(head_bytes..head_bytes, [0; 4]);
    plain
}

fn websocket(c: &mut Criterion) {
    let text = data();
    let frame = masked(&text);
    let mut group = c.benchmark_group("websocket");
    group.throughput(Throughput::Bytes(DATA_BYTES as u64));
    group.bench_function("decode a text of 256 bytes", |b| {
        let mut decoder = Decoder::new(10_000);
        b.iter(|| {
            decoder.receive(black_box(&frame));
            decoder.decode()
        })
    });
    group.bench_function("write a text of 256 bytes", |b| {
        let mut bytes = Vec::with_capacity(DATA_BYTES + 4);
        b.iter(|| {
            bytes.clear();
            push_text(&mut bytes, black_box(&text));
            bytes.len()
        })
    });
    group.finish();
}

fn messages(c: &mut Criterion) {
    let message = message();
    c.bench_function("pusher: write an event", |b| {
        b.iter(|| pusher::message("room", black_box(&message)))
    });
    let subscribe = r#"{"event":"pusher:subscribe","data":{"channel":"room"}}"#;
    c.bench_function("pusher: read a subscribe", |b| {
        b.iter(|| pusher::parse(black_box(subscribe)).is_ok())
    });
    let data = data();
    let client = format!(r#"{{"event":"client-x","channel":"private-room","data":"{data}"}}"#);
    c.bench_function("pusher: read a client event", |b| {
        b.iter(|| pusher::parse(black_box(&client)).is_ok())
    });
    let trigger = format!(r#"{{"name":"x","channel":"room","data":"{data}"}}"#);
    c.bench_function("rest: read an event", |b| {
        b.iter(|| rest::Trigger::parse(black_box(trigger.as_bytes())).is_ok())
    });
    let publish = format!(r#"[{{"channel":"/room","clientId":"abc","data":"{data}"}}]"#);
    c.bench_function("bayeux: read a publish", |b| {
        b.iter(|| bayeux::parse(black_box(&publish), 100).is_ok())
    });
    let json = format!("\"{data}\"");
    c.bench_function("bayeux: write an event", |b| {
        b.iter(|| {
            bayeux::Delivery {
                channel: "/room",
                data: black_box(&json),
                event: "new-message",
                user_id: None,
                is_cached: false,
                forwarded: None,
                members: None,
            }
            .encode()
        })
    });
}

fn signatures(c: &mut Criterion) {
    let secret = Secret::new("secret");
    let body = format!(r#"{{"name":"x","channel":"room","data":"{}"}}"#, data());
    let unsigned = SignedRequest {
        method: "POST",
        path: "/apps/3/events",
        query: "",
        body: body.as_bytes(),
    };
    let query = unsigned.signed_query(NOW_SECS, "key", &secret);
    let request = SignedRequest {
        query: &query,
        ..unsigned
    };
    c.bench_function("check a signed request", |b| {
        b.iter(|| {
            black_box(request)
                .verify(NOW_SECS, |_| Some(&secret))
                .is_ok()
        })
    });
    let text = b"123.456:private-room";
    let signature = secret.sign(text);
    c.bench_function("check a subscription's signature", |b| {
        b.iter(|| secret.verify(black_box(text), &signature))
    });
}

/// A publish that one of so many patterns matches. It costs the same however many there are.
fn patterns(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    // As the Bayeux front end looks for them.
    let expansion: Expansion = Arc::new(|_| {
        let candidates = candidates(black_box("/a/b"));
        candidates.map(|candidate| candidate.to_string()).collect()
    });
    for count in [1, 1_000, 100_000] {
        let (hub, ids, app) = (Hub::new(), IdSource::new(1), AppId::new("1"));
        let outbox = Arc::new(Outbox::new(1 << 30));
        let subscriber = || Subscriber {
            id: ids.socket_id(),
            outbox: outbox.clone(),
            encoding: &WEBSOCKET,
        };
        hub.join_pattern(&app, "/a/*", expansion.clone(), subscriber());
        for other in 1..count {
            let elsewhere = format!("/elsewhere/{other}/*");
            hub.join_pattern(&app, &elsewhere, expansion.clone(), subscriber());
        }
        let mut batch = VecDeque::new();
        let name = ChannelName::parse("a.b", 164).unwrap();
        let channel = ChannelId::new(&app, &name);
        c.bench_function(&format!("publish past {count} patterns"), |b| {
            b.iter(|| {
                runtime.block_on(hub.deliver(Event {
                    id: ids.event_id(),
                    channel: channel.clone(),
                    except: None,
                    body: Body::Message(message()),
                }));
                // What its owner does, without the writing.
                let _ = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut batch);
                batch.clear();
            })
        });
    }
}

criterion_group!(benches, websocket, messages, signatures, patterns);
criterion_main!(benches);
