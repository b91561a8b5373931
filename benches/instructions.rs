//! The two hottest paths, so many times and nothing else, for `benches/count-instructions` to count
//! under callgrind. Counts do not vary with the machine's noise.
//!
//! - `delivery`: one event to 1,000 subscribers, from the hub to the bytes of each frame;
//! - `publish`: what is checked and read of one signed request;
//! - `counting`: what metrics add to one event, however many receive it.
//!
//! `cargo bench --bench instructions -- delivery|publish|counting TIMES`

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use raptor::auth::{Secret, SignedRequest};
use raptor::hub::{Acknowledgement, Hub, Outbox, Subscriber};
use raptor::metrics::{DELIVERIES, DELIVERY_SECONDS, EVENTS, HTTP_ANSWERS};
use raptor::model::ids::IdSource;
use raptor::model::{AppId, Body, ChannelId, ChannelName, Event, Message};
use raptor::pusher::WEBSOCKET;
use raptor::wire::rest;
use raptor::wire::websocket::push_text;

const SUBSCRIBERS: usize = 1_000;
const DATA_BYTES: usize = 256;
const NOW_SECS: u64 = 1_700_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let times = arguments.iter().find_map(|argument| argument.parse().ok());
    let names = |path: &str| arguments.iter().any(|argument| argument == path);
    match times {
        Some(times) if names("delivery") => delivery(times),
        Some(times) if names("publish") => publish(times),
        Some(times) if names("counting") => counting(times),
        _ => println!("benches/count-instructions counts this one's instructions"),
    }
}

fn delivery(times: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (hub, ids) = (Hub::new(), IdSource::new(1));
    let name = ChannelName::parse("room", 164).unwrap();
    let channel = ChannelId::new(&AppId::new("1"), &name);
    let outboxes: Vec<_> = (0..SUBSCRIBERS)
        .map(|_| {
            let (id, outbox) = (ids.socket_id(), Arc::new(Outbox::new(1 << 20)));
            let subscriber = Subscriber {
                id,
                outbox: outbox.clone(),
                encoding: &WEBSOCKET,
            };
            let arrival = hub.join(&channel, subscriber, None, 0).unwrap();
            hub.acknowledge(&channel, id, Acknowledgement::default(), arrival.version);
            outbox
        })
        .collect();
    let data: Arc<str> = "x".repeat(DATA_BYTES).into();
    let mut cx = Context::from_waker(Waker::noop());
    let (mut batch, mut bytes) = (VecDeque::new(), Vec::new());
    for _ in 0..times {
        runtime.block_on(hub.deliver(Event {
            id: ids.event_id(),
            channel: channel.clone(),
            except: None,
            body: Body::Message(Message {
                name: "new-message".into(),
                data: data.clone(),
                user_id: None,
                ext: None,
                members: None,
            }),
        }));
        for outbox in &outboxes {
            let _ = outbox.poll_take(&mut cx, &mut batch);
            for frame in batch.drain(..) {
                push_text(&mut bytes, frame.as_str());
            }
            black_box(&bytes);
            bytes.clear();
        }
    }
}

fn publish(times: u64) {
    let secret = Secret::new("secret");
    let data = "x".repeat(DATA_BYTES);
    let body = format!(r#"{{"name":"new-message","channel":"room","data":"{data}"}}"#);
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
    for _ in 0..times {
        let parameters = black_box(request).verify(NOW_SECS, |_| Some(&secret));
        assert!(parameters.is_ok());
        assert!(rest::Trigger::parse(black_box(body.as_bytes())).is_ok());
    }
}

fn counting(times: u64) {
    for _ in 0..times {
        let arrived = Instant::now();
        EVENTS.add(black_box("1"), 1);
        DELIVERIES.add(black_box("1"), black_box(SUBSCRIBERS as u64));
        DELIVERY_SECONDS.observe(arrived.elapsed());
        HTTP_ANSWERS.count(black_box(200));
    }
}
