//! What one publish to 10,000 subscribers costs inside the process, up to their outboxes; and
//! that nobody waits for it: others join and leave the same channel meanwhile.
//!
//! `cargo bench --bench fanout`

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use criterion::{Criterion, criterion_group, criterion_main};
use raptor::hub::{Acknowledgement, Encoding, Frame, Hub, Outbox, Subscriber};
use raptor::model::ids::IdSource;
use raptor::model::{AppId, Body, ChannelId, ChannelName, Event, Message};
use raptor::wire::pusher;

const SUBSCRIBERS: usize = 10_000;
const DATA_BYTES: usize = 256;

/// The Pusher format, with a count of how often it is asked.
struct Counting(AtomicU64);
static COUNTING: Counting = Counting(AtomicU64::new(0));

impl Encoding for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn encode(&self, event: &Event) -> Option<Frame> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match &event.body {
            Body::Message(message) => {
                Some(pusher::message(event.channel.name.as_str(), message).into())
            }
            _ => None,
        }
    }
}

struct Room {
    hub: Arc<Hub>,
    ids: IdSource,
    channel: ChannelId,
    outboxes: Vec<Arc<Outbox>>,
}

impl Room {
    fn new() -> Self {
        let name = ChannelName::parse("room", 164).unwrap();
        let mut room = Self {
            hub: Arc::new(Hub::new()),
            ids: IdSource::new(1),
            channel: ChannelId::new(&AppId::new("1"), &name),
            outboxes: Vec::new(),
        };
        for _ in 0..SUBSCRIBERS {
            let subscriber = room.subscriber();
            room.outboxes.push(subscriber.outbox.clone());
            room.join(subscriber);
        }
        room
    }

    fn subscriber(&self) -> Subscriber {
        Subscriber {
            id: self.ids.socket_id(),
            outbox: Arc::new(Outbox::new(1 << 20)),
            encoding: &COUNTING,
        }
    }

    fn join(&self, subscriber: Subscriber) {
        let id = subscriber.id;
        let arrival = self.hub.join(&self.channel, subscriber, None, 0).unwrap();
        let nothing = Acknowledgement::default();
        (self.hub).acknowledge(&self.channel, id, nothing, arrival.version);
    }

    fn event(&self) -> Event {
        Event {
            id: self.ids.event_id(),
            channel: self.channel.clone(),
            except: None,
            body: Body::Message(Message {
                name: "new-message".into(),
                data: "x".repeat(DATA_BYTES).into(),
                user_id: None,
                ext: None,
                members: None,
            }),
        }
    }

    /// What the owners of the outboxes do, without the writing.
    fn drain(&self) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut batch = VecDeque::new();
        for outbox in &self.outboxes {
            let _ = black_box(outbox.poll_take(&mut cx, &mut batch));
            batch.clear();
        }
    }
}

fn publish(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let room = Room::new();
    let (mut publishes, before) = (0, COUNTING.0.load(Ordering::Relaxed));
    c.bench_function("publish to 10,000 subscribers", |b| {
        b.iter_custom(|times| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..times {
                let event = room.event();
                let start = std::time::Instant::now();
                runtime.block_on(room.hub.deliver(event));
                spent += start.elapsed();
                room.drain();
                publishes += 1;
            }
            spent
        })
    });
    let encoded = COUNTING.0.load(Ordering::Relaxed) - before;
    println!("{publishes} publishes to {SUBSCRIBERS} subscribers, encoded {encoded} times");
    assert_eq!(
        encoded, publishes,
        "an event is encoded once, not for each subscriber"
    );
}

/// Joining and leaving a channel while another thread publishes to it without a pause. With a
/// lock held over the fan-out this would take as long as a publish.
fn join_meanwhile(c: &mut Criterion) {
    let room = Arc::new(Room::new());
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = std::thread::spawn({
        let (room, stop) = (room.clone(), stop.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            while !stop.load(Ordering::Relaxed) {
                runtime.block_on(room.hub.deliver(room.event()));
                room.drain();
            }
        }
    });
    c.bench_function("subscribe and leave during a publish to 10,000", |b| {
        b.iter(|| {
            let subscriber = room.subscriber();
            let id = subscriber.id;
            room.hub.join(&room.channel, subscriber, None, 0).unwrap();
            room.hub.leave(&room.channel, id)
        })
    });
    stop.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
}

criterion_group!(benches, publish, join_meanwhile);
criterion_main!(benches);
