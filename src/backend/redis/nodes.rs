//! The nodes of the cluster: each says every second that it lives, each watches the others.
//!
//! A node writes a number that grows. Others measure with their own clocks for how long it has not
//! grown, and only while Redis answers them; so neither clocks that differ nor a Redis that was
//! away make a living node look dead. Whoever has been silent too long is taken out of every
//! partition by the scripts, each entry once, whichever nodes do it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::keys::{Keys, REGISTRY};
use super::link::{Broken, Up};
use super::partition::Partition;
use super::scripts::{self, with};
use super::{Inner, now_us};
use crate::model::{AppId, ChannelId, ChannelName};

const BEAT_INTERVAL: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The second of the living waits so much longer before it does what the first should have done.
const TURN: Duration = Duration::from_millis(700);
/// Entries that one script takes out, so that Redis is not kept busy for long.
const REAPED_AT_ONCE: usize = 200;
/// Beats between two looks for nodes that the partitions know and the registry does not.
const BEATS_PER_AUDIT: u64 = 4;

#[derive(Default)]
pub struct Nodes {
    /// This node says no more that it lives.
    pub leaving: CancellationToken,
    registry: Mutex<Option<Arc<Up>>>,
    is_up: Notify,
    /// How often the link of the registry came or went.
    turns: AtomicU64,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeInfo {
    pub node: u32,
    /// Where it listens.
    pub address: String,
    pub version: String,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// Milliseconds since 1970, by the node's own clock.
    pub beat_ms: u64,
    /// How many channels have subscribers on the node.
    pub channels: u64,
}

impl Nodes {
    pub fn up(&self, up: Option<Arc<Up>>) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = up;
        self.is_up.notify_one();
    }

    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub fn registry(&self) -> Option<Arc<Up>> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.clone().filter(|up| !up.is_broken())
    }
}

impl NodeInfo {
    fn written(&self) -> String {
        let Self {
            address,
            version,
            started_ms,
            beat_ms,
            channels,
            ..
        } = self;
        format!("{beat_ms} {started_ms} {channels} {version} {address}")
    }

    fn read(node: &str, text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, ' ');
        let mut next = || parts.next();
        let (beat_ms, started_ms, channels) = (next()?, next()?, next()?);
        Some(Self {
            node: node.parse().ok()?,
            beat_ms: beat_ms.parse().ok()?,
            started_ms: started_ms.parse().ok()?,
            channels: channels.parse().ok()?,
            version: next()?.to_owned(),
            address: next()?.to_owned(),
        })
    }
}

pub fn beats_key(keys: &Keys) -> String {
    format!("{}beats", keys.of(REGISTRY))
}

/// The nodes that Redis knows, by number.
pub fn listed(answer: &Value) -> Vec<NodeInfo> {
    let written: HashMap<String, String> =
        redis::from_redis_value(answer.clone()).unwrap_or_default();
    let read = |(node, text): (&String, &String)| NodeInfo::read(node, text);
    let mut nodes: Vec<_> = written.iter().filter_map(read).collect();
    nodes.sort_by_key(|node| node.node);
    nodes
}

/// A node as others see it.
struct Seen {
    beat: String,
    since: Instant,
}

pub async fn watch(inner: Arc<Inner>) {
    let mut ticks = interval(BEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: HashMap<u32, Seen> = HashMap::new();
    let mut last_tick = Instant::now();
    for beat in 0_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            // So that others know of this node before it holds anything.
            () = inner.nodes.is_up.notified() => {}
            () = inner.stop.cancelled() => return,
            () = inner.nodes.leaving.cancelled() => return,
        }
        // While Redis was away, or this node was paused, nobody was watched.
        if last_tick.elapsed() > BEAT_INTERVAL * 3 {
            seen.clear();
        }
        let Some(up) = inner.nodes.registry() else {
            continue;
        };
        if look(&inner, &up, beat, &mut seen).await.is_ok() {
            last_tick = Instant::now();
        }
    }
}

async fn look(
    inner: &Arc<Inner>,
    up: &Up,
    beat: u64,
    seen: &mut HashMap<u32, Seen>,
) -> Result<(), Broken> {
    let key = beats_key(&inner.keys);
    let mut say = cmd("HSET");
    say.arg(&key).arg(inner.node).arg(inner.info().written());
    let mut ask = cmd("HGETALL");
    ask.arg(&key);
    let answers = up.run(&[say, ask]).await?;
    let beats: HashMap<u32, String> =
        redis::from_redis_value(answers[1].clone()).unwrap_or_default();
    let mut there: HashMap<u32, String> = beats;
    // The registry did not know of this node: it has just come, or was forgotten.
    let is_new = redis::from_redis_value::<u64>(answers[0].clone()).is_ok_and(|added| added > 0);
    if is_new || beat % BEATS_PER_AUDIT == BEATS_PER_AUDIT - 1 {
        for node in registered(inner).await {
            there.entry(node).or_default();
        }
    } else {
        // Found by an audit, and still silent.
        for (node, seen) in seen.iter().filter(|(_, seen)| seen.beat.is_empty()) {
            there.entry(*node).or_insert_with(|| seen.beat.clone());
        }
    }
    there.remove(&inner.node);
    seen.retain(|node, _| there.contains_key(node));
    let now = Instant::now();
    for (node, beat) in there {
        let seen = seen.entry(node).or_insert_with(|| Seen {
            beat: beat.clone(),
            since: now,
        });
        if seen.beat != beat {
            *seen = Seen { beat, since: now };
        }
    }
    let is_silent = |seen: &Seen| now.duration_since(seen.since) >= SILENCE_MAX;
    let before_us = seen
        .iter()
        .filter(|(node, s)| **node < inner.node && !is_silent(s))
        .count();
    let patience = SILENCE_MAX + TURN * before_us as u32;
    let dead: Vec<u32> = seen
        .iter()
        .filter(|(_, seen)| now.duration_since(seen.since) >= patience)
        .map(|(node, _)| *node)
        .collect();
    for node in dead {
        tracing::warn!(
            node,
            "a node has been silent for too long; what it held is taken out"
        );
        if reap(inner, node).await.is_err() {
            continue;
        }
        seen.remove(&node);
        let mut forget = cmd("HDEL");
        forget.arg(&key).arg(node);
        up.run(&[forget]).await?;
    }
    Ok(())
}

/// The nodes that have a session in any partition. Where this one has none it was declared dead, or
/// Redis lost its data: it registers again.
async fn registered(inner: &Inner) -> Vec<u32> {
    let each = inner.partitions.iter().map(|partition| async {
        let mut ask = cmd("HKEYS");
        ask.arg(format!("{}nodes", partition.prefix()));
        let mut answers = partition.up()?.run(&[ask]).await.ok()?;
        let nodes = redis::from_redis_value::<Vec<u32>>(answers.remove(0)).ok()?;
        if !nodes.contains(&inner.node) {
            partition.register_again().await;
        }
        Some(nodes)
    });
    let found = futures_util::future::join_all(each).await;
    let mut found: Vec<u32> = found.into_iter().flatten().flatten().collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Takes out of every partition what the node held.
pub async fn reap(inner: &Inner, node: u32) -> Result<(), Broken> {
    let each = inner.partitions.iter();
    let each = each.map(|partition| reap_in(inner, partition, node));
    futures_util::future::try_join_all(each).await.map(drop)
}

async fn reap_in(inner: &Inner, partition: &Partition, node: u32) -> Result<(), Broken> {
    let up = partition.up().ok_or(Broken)?;
    for is_first in std::iter::once(true).chain(std::iter::repeat(false)) {
        let call = scripts::REAP.call(
            partition.prefix(),
            inner.states_there(),
            up.is_sharded,
            node,
            0,
        );
        let call = with(call, [&REAPED_AT_ONCE, &u8::from(is_first)]);
        let answer = up.run(&[call]).await?.remove(0);
        let parts: Vec<String> = redis::from_redis_value(answer).unwrap_or_default();
        let (is_over, facts) = parts.split_first().ok_or(Broken)?;
        for fact in facts.chunks_exact(4) {
            let name = ChannelName::of_the_cluster(&fact[2]);
            let channel = ChannelId::new(&AppId::new(&fact[1]), &name);
            inner.state(&channel, &fact[0], &fact[3]);
        }
        if is_over == "1" {
            break;
        }
    }
    Ok(())
}

impl Inner {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            node: self.node,
            address: self.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_us / 1000,
            beat_ms: now_us() / 1000,
            channels: self.hub.channel_count(),
        }
    }
}
