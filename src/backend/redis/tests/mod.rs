//! Against real Redis servers.

mod faults;
mod schedule;
mod server;
mod thread;

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::backend::contract::{self, Node, Peer, channel};
use crate::backend::fact_queue;
use crate::model::Fact;
use server::RedisServer;
use thread::Thread;
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

/// A node of a cluster under test.
pub struct TestNode {
    node: Node,
    redis: Arc<Redis>,
    facts: mpsc::Receiver<Fact>,
    thread: Thread,
}

fn start(url: &str, prefix: &str) -> TestNode {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let (sink, facts) = fact_queue(100_000);
    let (hub, ids) = (
        Arc::new(Hub::new()),
        Arc::new(IdSource::new(NUMBER.fetch_add(1, Ordering::Relaxed))),
    );
    let thread = Thread::start();
    let redis = thread.enter(|| start_redis(url, prefix, &hub, &ids, sink));
    let backend = redis.clone();
    TestNode {
        node: Node { hub, backend, ids },
        redis,
        facts,
        thread,
    }
}

/// A node that is connected to a server of its own, as long as the first is there.
pub async fn with_one_node() -> (impl Sized, Arc<Redis>) {
    let setup = faults::Setup::of(1).await;
    let redis = setup.nodes[0].redis.clone();
    (setup, redis)
}

fn start_redis(
    url: &str,
    prefix: &str,
    hub: &Arc<Hub>,
    ids: &Arc<IdSource>,
    sink: FactSink,
) -> Arc<Redis> {
    let mut settings = Settings::parse(url).unwrap();
    settings.key_prefix = prefix.to_owned();
    Arc::new(Redis::start(
        settings,
        "test".to_owned(),
        hub.clone(),
        ids.clone(),
        Facts::Here(sink),
    ))
}

/// Returns from each operation only when every node has caught up.
struct Settled {
    of: Arc<Redis>,
    all: Vec<Arc<Redis>>,
}

impl Settled {
    async fn settle(&self, channel: &ChannelId) {
        for redis in &self.all {
            let partition = Redis::partition_of(channel);
            redis.caught_up(std::iter::once(partition)).await;
        }
        // What a script told the watchers is in the same partition.
    }
}

impl Backend for Settled {
    fn publish(
        &self,
        event: Event,
        keep: Option<Duration>,
        fact: Option<FactKind>,
    ) -> Done<'_, ()> {
        Box::pin(async move {
            let channel = event.channel.clone();
            self.of.publish(event, keep, fact).await;
            self.settle(&channel).await;
        })
    }

    fn join<'a>(
        &'a self,
        channel: &'a ChannelId,
        joining: Joining,
    ) -> Done<'a, Result<Joined, MemberLimitReached>> {
        Box::pin(async move {
            let joined = self.of.join(channel, joining).await;
            self.settle(channel).await;
            joined
        })
    }

    fn leave<'a>(&'a self, channel: &'a ChannelId, who: SocketId) -> Done<'a, Option<Left>> {
        Box::pin(async move {
            let left = self.of.leave(channel, who).await;
            self.settle(channel).await;
            left
        })
    }

    fn join_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) -> Done<'a, ()> {
        self.of.join_pattern(app, pattern, expansion, subscriber)
    }

    fn leave_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        who: SocketId,
    ) -> Done<'a, ()> {
        self.of.leave_pattern(app, pattern, who)
    }

    fn channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> Done<'a, Vec<(ChannelName, Occupancy)>> {
        self.of.channels(app, prefix)
    }

    fn occupancy<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<Occupancy>> {
        self.of.occupancy(channel)
    }

    fn members<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Vec<Arc<Member>>> {
        self.of.members(channel)
    }

    fn last_event<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<LastEvent>> {
        self.of.last_event(channel)
    }
}

/// Two nodes of one cluster, as the contract wants them.
async fn pair(url: &str, sink: FactSink) -> [Node; 2] {
    static CLUSTERS: AtomicU32 = AtomicU32::new(1);
    let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("contract-{number}");
    let nodes = [2 * number, 2 * number + 1].map(|node| {
        let (hub, ids) = (Arc::new(Hub::new()), Arc::new(IdSource::new(node)));
        let redis = start_redis(url, &prefix, &hub, &ids, sink.clone());
        (hub, ids, redis)
    });
    let all: Vec<_> = nodes.iter().map(|(.., redis)| redis.clone()).collect();
    for redis in &all {
        timeout(SOON, redis.connected())
            .await
            .expect("no connection");
    }
    nodes.map(|(hub, ids, of)| {
        let all = all.clone();
        let backend = Arc::new(Settled { of, all });
        Node { hub, backend, ids }
    })
}

#[tokio::test]
async fn redis_passes() {
    let server = RedisServer::start(&[]).await;
    let url = server.url();
    contract::check(async |facts| pair(&url, facts).await).await;
}

/// Whether the condition becomes true before the time is over.
async fn becomes(within: Duration, mut is_true: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if is_true().await {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}
