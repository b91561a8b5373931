//! Many nodes as one, through Redis.
//!
//! | file | |
//! |---|---|
//! | `target` | which Redis: a server, Sentinels, a cluster; where the primaries are now |
//! | `keys` | where things are in Redis: partitions, keys, topics |
//! | `record` | an event as it travels |
//! | `scripts` | the changes that Redis makes in one step |
//! | `link` | the connections to a primary, watched end to end |
//! | `partition` | joins, leaves, publishes and deliveries of one partition |
//! | `unstated` | what the application is to be told and Redis has not confirmed |
//! | `view` | what a presence channel's subscribers here were told |
//! | `nodes` | which nodes live, and taking out those that do not |
//!
//! # Promises
//!
//! - *One order.* A publish goes to Redis and comes back; subscribers of the publisher's own node
//!   get it when it does, so a channel has Redis's order on every node.
//! - *Nothing is lost with a subscription.* Each event is also written to its partition's log (a
//!   short stream); a subscription that broke, or heard nothing for a while, reads there what it
//!   missed. Event ids tell what was there already.
//! - *First and last are decided once,* by scripts that change a channel's state and tell of the
//!   change in one step. Whoever runs the script that made a fact true states it.
//! - *A late command does no harm.* Scripts carry the number of the node's session in the
//!   partition. A session ends when the node is declared dead or begins another one; commands of
//!   an ended session are refused, also those that were under way in a connection given up.
//! - *What anybody heard is stated.* The fact of a publish goes into its partition's stream in the
//!   same step, before the publish itself.
//! - *While Redis is away* publishes are delivered here at once and counted as not shared; joins
//!   and leaves are the hub's alone. When it is back, the node says what it holds, whatever Redis
//!   still knows or has forgotten, and the views let through what is news.
//!
//! What is not promised: an event that a primary acknowledged and lost by dying before it wrote to
//! its subscribers' sockets; and order between an event delivered locally while Redis was away and
//! those of other nodes.

mod keys;
mod link;
mod nodes;
mod partition;
pub mod record;
mod scripts;
mod target;
#[cfg(test)]
pub mod tests;
mod unstated;
mod view;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::last_events::LastEvents;
use super::{Backend, Done, FactSink, Joined, Joining, LastEvent, Left};
use crate::hub::{Expansion, Hub, MemberLimitReached, Occupancy, Subscriber};
use crate::model::ids::IdSource;
use crate::model::{
    AppId, ChannelFact, ChannelId, ChannelName, Event, FactKind, Member, SocketId, since_1970,
};
use keys::{Keys, PARTITIONS, REGISTRY};
pub use nodes::NodeInfo;
use partition::{Partition, Request};
pub use target::{Certificates, Settings};

pub struct Redis(Arc<Inner>);

/// Letters of other nodes that may wait to be read.
const LETTERS_MAX: usize = 16_384;

struct Inner {
    hub: Arc<Hub>,
    ids: Arc<IdSource>,
    facts: FactSink,
    /// There if facts are written into the streams of the partitions. They are not stated here
    /// then.
    lines: Option<Lines>,
    settings: Settings,
    keys: Keys,
    node: u32,
    /// Where this node listens, for `raptor nodes`.
    address: String,
    started_us: u64,
    partitions: Vec<Partition>,
    nodes: nodes::Nodes,
    last_events: Mutex<LastEvents>,
    /// The apps with pattern subscribers here, and how many.
    watched: tokio::sync::Mutex<HashMap<AppId, usize>>,
    sessions: AtomicU64,
    status: Arc<Status>,
    letters: mpsc::Sender<Vec<u8>>,
    inbox: Mutex<Option<mpsc::Receiver<Vec<u8>>>>,
    stop: CancellationToken,
}

/// Where joins and leaves are stated.
pub enum Facts {
    /// Each by the node that ran the script.
    Here(FactSink),
    /// By the scripts themselves, for whoever reads the streams of the partitions. The node's own
    /// sink keeps what no script knows.
    InStreams(FactSink, Lines),
}

/// How the stream has a fact that goes with a publish. `None` for one that nobody asks for.
pub type Lines = Arc<dyn Fn(&ChannelFact) -> Option<Vec<u8>> + Send + Sync>;

/// How it stands with Redis.
#[derive(Default)]
pub struct Status {
    shared_partitions: AtomicUsize,
    was_said: AtomicBool,
    not_shared: AtomicU64,
    log_overruns: AtomicU64,
}

impl Status {
    /// Whether Redis, or a part of it, is away.
    pub fn is_degraded(&self) -> bool {
        self.shared_partitions.load(Ordering::Relaxed) < PARTITIONS
    }

    /// Publishes that other nodes have not got, or perhaps not.
    pub fn not_shared_count(&self) -> u64 {
        self.not_shared.load(Ordering::Relaxed)
    }

    /// How often a subscription was away for longer than the log reaches back.
    pub fn log_overruns_count(&self) -> u64 {
        self.log_overruns.load(Ordering::Relaxed)
    }

    fn not_shared(&self) {
        self.not_shared.fetch_add(1, Ordering::Relaxed);
    }

    fn log_overran(&self) {
        self.log_overruns.fetch_add(1, Ordering::Relaxed);
    }

    fn partition_is_up(&self) {
        let up = 1 + self.shared_partitions.fetch_add(1, Ordering::Relaxed);
        if up == PARTITIONS && self.was_said.swap(false, Ordering::Relaxed) {
            let not_shared = self.not_shared_count();
            tracing::info!(not_shared, "Redis is there again");
        }
    }

    fn partition_is_down(&self) {
        self.shared_partitions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Logs the change, not every attempt.
    fn say_away(&self, why: impl ToString) {
        if !self.was_said.swap(true, Ordering::Relaxed) {
            let why = why.to_string();
            tracing::warn!(why, "Redis is away: this node serves its own clients alone");
        }
    }
}

impl Redis {
    pub const PARTITIONS: usize = PARTITIONS;
    /// The place of what concerns no partition.
    pub const REGISTRY: usize = keys::REGISTRY;
    /// The name of a partition's stream of facts, behind its prefix.
    pub const FACTS: &str = scripts::FACTS;

    /// Adds a line to the stream of facts of the partition with this prefix.
    pub fn add_fact(prefix: &str, line: &[u8]) -> Cmd {
        scripts::add_fact(prefix, line)
    }

    pub fn partition_of(channel: &ChannelId) -> usize {
        keys::partition_of(channel)
    }

    /// A place for what is called so.
    pub fn place_of(text: &str) -> usize {
        keys::partition_of_text(text)
    }

    /// Connects in the background; until then the node serves its own clients. `address` is where
    /// it listens, for people to read.
    pub fn start(
        settings: Settings,
        address: String,
        hub: Arc<Hub>,
        ids: Arc<IdSource>,
        facts: Facts,
    ) -> Self {
        let (facts, lines) = match facts {
            Facts::Here(sink) => (sink, None),
            Facts::InStreams(sink, lines) => (sink.silent(), Some(lines)),
        };
        let keys = Keys::new(&settings.key_prefix);
        let (letters, inbox) = mpsc::channel(LETTERS_MAX);
        let (waiting_bytes, unstated_bytes) = (Arc::default(), Arc::default());
        let (partitions, ends): (Vec<_>, Vec<_>) = (0..PARTITIONS)
            .map(|index| Partition::new(keys.of(index), &waiting_bytes, &unstated_bytes))
            .unzip();
        let inner = Arc::new(Inner {
            hub,
            node: ids.node(),
            ids,
            facts,
            lines,
            settings,
            keys,
            address,
            started_us: now_us(),
            partitions,
            nodes: nodes::Nodes::default(),
            last_events: Mutex::default(),
            watched: tokio::sync::Mutex::default(),
            sessions: AtomicU64::new(0),
            status: Arc::default(),
            letters,
            inbox: Mutex::new(Some(inbox)),
            stop: CancellationToken::new(),
        });
        for (index, ends) in ends.into_iter().enumerate() {
            partition::start(&inner, index, ends);
        }
        tokio::spawn(link::keep_up(inner.clone()));
        tokio::spawn(nodes::watch(inner.clone()));
        Self(inner)
    }

    /// Waits until every partition is shared.
    pub async fn connected(&self) {
        while self
            .0
            .partitions
            .iter()
            .any(|partition| partition.up().is_none())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn status(&self) -> Arc<Status> {
        self.0.status.clone()
    }

    /// Takes this node out of the cluster, so that nobody has to find it dead.
    pub async fn leave_cluster(&self) {
        let inner = &self.0;
        inner.nodes.leaving.cancel();
        let leave = async {
            nodes::reap(inner, inner.node).await.ok()?;
            let mut forget = cmd("HDEL");
            forget.arg(nodes::beats_key(&inner.keys)).arg(inner.node);
            inner.nodes.registry()?.run(&[forget]).await.ok()
        };
        let _ = tokio::time::timeout(inner.settings.command_timeout, leave).await;
        inner.stop.cancel();
    }

    /// Whether one command may name keys of several partitions.
    pub fn partitions_are_together(&self) -> bool {
        !self.0.settings.is_cluster()
    }

    /// What every key of the place starts with: a partition, or [`Redis::REGISTRY`].
    pub fn prefix(&self, place: usize) -> String {
        self.0.keys.of(place)
    }

    /// The answers, in order. `None` while the place is away.
    pub async fn run(&self, place: usize, commands: &[Cmd]) -> Option<Vec<Value>> {
        let up = match self.0.partitions.get(place) {
            Some(partition) => partition.up(),
            None => self.0.nodes.registry(),
        };
        up?.run(commands).await.ok()
    }

    /// The number of this node.
    pub fn node(&self) -> u32 {
        self.0.node
    }

    /// Changes whenever letters may have been lost.
    pub fn turns(&self) -> u64 {
        self.0.nodes.turns()
    }

    /// What other nodes write to this one, from now on; for one reader.
    pub fn letters(&self) -> Option<mpsc::Receiver<Vec<u8>>> {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.take()
    }

    /// From now on whoever writes to this node is told that it is not there. What came before is
    /// still to be read, and behind it an empty letter.
    pub async fn hear_no_letters(&self) {
        let inner = &self.0;
        if let Some(up) = inner.nodes.registry() {
            let verb = link::subscribe_verb(up.is_sharded).replace("SUB", "UNSUB");
            let inbox = [inner.keys.inbox(REGISTRY, inner.node)];
            let _ = up.subscribe(&verb, &inbox).await;
        }
        let _ = inner.letters.send(Vec::new()).await;
    }

    /// Writes to another node, or to this one. Letters of one task arrive in their order, or not
    /// at all. Whether the node hears them.
    pub async fn post(&self, node: u32, letter: &[u8]) -> bool {
        let inner = &self.0;
        let Some(up) = inner.nodes.registry() else {
            return false;
        };
        let mut publish = cmd(match up.is_sharded {
            true => "SPUBLISH",
            false => "PUBLISH",
        });
        publish.arg(inner.keys.inbox(REGISTRY, node)).arg(letter);
        let answers = up.run(&[publish]).await;
        answers.is_ok_and(|answers| !matches!(answers[..], [Value::Int(0)]))
    }

    /// The other nodes that live, or died less than a few seconds ago. `None` while Redis is away.
    pub async fn others(&self) -> Option<Vec<u32>> {
        let mut ask = cmd("HKEYS");
        ask.arg(nodes::beats_key(&self.0.keys));
        let answer = self.run(Self::REGISTRY, &[ask]).await?.pop()?;
        let mut known: Vec<u32> = redis::from_redis_value(answer).ok()?;
        known.retain(|node| *node != self.0.node);
        known.sort_unstable();
        Some(known)
    }

    /// Returns when everything published before has been handed over on this node, in the
    /// partitions of these channels.
    pub async fn caught_up(&self, partitions: impl Iterator<Item = usize>) {
        let partitions = partitions.map(|partition| self.0.partitions[partition].caught_up());
        futures_util::future::join_all(partitions).await;
    }

    /// The nodes that Redis knows.
    pub async fn nodes(settings: &Settings) -> Result<Vec<NodeInfo>, String> {
        let registry = Registry::of(settings).await?;
        let mut ask = cmd("HGETALL");
        ask.arg(nodes::beats_key(&Keys::new(&settings.key_prefix)));
        let answers = registry.run(&[ask]).await?;
        Ok(nodes::listed(&answers[0]))
    }
}

/// The place of what concerns no partition, for a program that is no node.
pub struct Registry {
    connection: MultiplexedConnection,
    prefix: String,
}

impl Registry {
    pub async fn of(settings: &Settings) -> Result<Self, String> {
        let written = |error: redis::RedisError| error.to_string();
        let prefix = Keys::new(&settings.key_prefix).of(keys::REGISTRY);
        for primary in settings.primaries().await.map_err(written)? {
            if primary.places.contains(&keys::REGISTRY) {
                let connection = settings.connect(&primary.address, None).await;
                let connection = connection.map_err(written)?;
                return Ok(Self { connection, prefix });
            }
        }
        Err("no primary has the registry".to_owned())
    }

    /// What every key starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The answers, in order.
    pub async fn run(&self, commands: &[Cmd]) -> Result<Vec<Value>, String> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let mut connection = self.connection.clone();
        let answers = connection.req_packed_commands(&pipeline, 0, commands.len());
        answers.await.map_err(|error| error.to_string())
    }
}

impl Inner {
    fn last_events(&self) -> MutexGuard<'_, LastEvents> {
        self.last_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of one node grow; those of a node of the same number that was there before are
    /// lower.
    fn next_session(&self) -> u64 {
        let next = |last| Some(now_us().max(last + 1));
        let ordering = Ordering::Relaxed;
        let last = self.sessions.fetch_update(ordering, ordering, next);
        next(last.unwrap_or_else(|last| last)).unwrap_or_default()
    }

    fn states_there(&self) -> bool {
        self.lines.is_some()
    }

    /// At random from 0 to 1.
    fn chance(&self) -> f64 {
        RandomState::new().hash_one(self.node) as f64 / u64::MAX as f64
    }
}

/// Microseconds since 1970: below 2^53, where Lua's numbers end, until the year 2255.
fn now_us() -> u64 {
    since_1970().as_micros() as u64
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.0.stop.cancel();
    }
}

impl Backend for Redis {
    fn publish(
        &self,
        event: Event,
        keep: Option<Duration>,
        fact: Option<FactKind>,
    ) -> Done<'_, ()> {
        if fact.is_none() || !self.0.states_there() {
            return Box::pin(self.0.publish(event, keep, fact));
        }
        // To its end, also if whoever publishes goes: what is stated would be so once more.
        let inner = self.0.clone();
        let published = tokio::spawn(async move { inner.publish(event, keep, fact).await });
        Box::pin(async move { drop(published.await) })
    }

    fn join<'a>(
        &'a self,
        channel: &'a ChannelId,
        joining: Joining,
    ) -> Done<'a, Result<Joined, MemberLimitReached>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let request = Request::Join(channel.clone(), joining, reply);
            self.0.partition(channel).request(request).await;
            answer.await.unwrap_or(Err(MemberLimitReached))
        })
    }

    fn leave<'a>(&'a self, channel: &'a ChannelId, who: SocketId) -> Done<'a, Option<Left>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let request = Request::Leave(channel.clone(), who, reply);
            self.0.partition(channel).request(request).await;
            answer.await.unwrap_or(None)
        })
    }

    fn join_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) -> Done<'a, ()> {
        Box::pin(async move {
            let inner = &self.0;
            (inner.hub).join_pattern(app, pattern, expansion, subscriber);
            // Held until it is in force, so that a second one does not return before.
            let mut watched = inner.watched.lock().await;
            let count = watched.entry(app.clone()).or_default();
            *count += 1;
            if *count == 1 {
                inner.watch(app, true).await;
            }
        })
    }

    fn leave_pattern<'a>(
        &'a self,
        app: &'a AppId,
        pattern: &'a str,
        who: SocketId,
    ) -> Done<'a, ()> {
        Box::pin(async move {
            let inner = &self.0;
            if !inner.hub.leave_pattern(app, pattern, who) {
                return;
            }
            let mut watched = inner.watched.lock().await;
            if let Some(count) = watched.get_mut(app) {
                *count -= 1;
                if *count == 0 {
                    watched.remove(app);
                    inner.watch(app, false).await;
                }
            }
        })
    }

    fn channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> Done<'a, Vec<(ChannelName, Occupancy)>> {
        Box::pin(async move {
            let partitions = self.0.partitions.iter();
            let each = partitions.map(|partition| self.0.channels_in(partition, app, prefix));
            let each = futures_util::future::join_all(each).await;
            let mut found = each.concat();
            found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            found
        })
    }

    fn occupancy<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<Occupancy>> {
        Box::pin(async move {
            let inner = &self.0;
            let partition = inner.partition(channel);
            let (app, name) = (&channel.app, &channel.name);
            let mut connections = cmd("HGET");
            connections
                .arg(format!("{}channels:{app}", partition.prefix()))
                .arg(name.as_str());
            let mut users = cmd("HLEN");
            users.arg(format!("{}users:{app}:{name}", partition.prefix()));
            let Some(answers) = inner.ask(partition, &[connections, users]).await else {
                return inner.hub.occupancy(channel);
            };
            let number = |at: usize| redis::from_redis_value::<Option<u64>>(answers[at].clone());
            let connections = number(0).ok().flatten()?;
            let users = number(1).ok().flatten().unwrap_or_default();
            Some(Occupancy { connections, users })
        })
    }

    fn members<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Vec<Arc<Member>>> {
        Box::pin(async move {
            let inner = &self.0;
            let partition = inner.partition(channel);
            let (app, name) = (&channel.app, &channel.name);
            let mut infos = cmd("HGETALL");
            infos.arg(format!("{}info:{app}:{name}", partition.prefix()));
            let Some(mut answers) = inner.ask(partition, &[infos]).await else {
                return inner.hub.members(channel);
            };
            let infos: HashMap<String, String> =
                redis::from_redis_value(answers.remove(0)).unwrap_or_default();
            partition::roster_of(infos.into_iter().flat_map(|(k, v)| [k, v]).collect())
        })
    }

    fn last_event<'a>(&'a self, channel: &'a ChannelId) -> Done<'a, Option<LastEvent>> {
        Box::pin(async move {
            let inner = &self.0;
            let partition = inner.partition(channel);
            let key = inner.keys.last_event(channel);
            let (mut get, mut expires) = (cmd("GET"), cmd("PTTL"));
            get.arg(&key);
            expires.arg(&key);
            let answers = match partition.up() {
                Some(up) => up.run_in_order(&[get, expires]).await.ok(),
                None => None,
            };
            let Some(answers) = answers else {
                return inner.last_events().get(channel);
            };
            let record: Option<Vec<u8>> = redis::from_redis_value(answers[0].clone()).ok()?;
            let expires_ms: i64 = redis::from_redis_value(answers[1].clone()).ok()?;
            let event = record::decode(&record?)?;
            // Whoever is subscribing has got it, or will not get it any more.
            partition.delivered().await;
            let expires_in = Duration::from_millis(u64::try_from(expires_ms).ok()?);
            Some(LastEvent { event, expires_in })
        })
    }
}

impl Inner {
    /// `None` while Redis is away.
    async fn ask(&self, partition: &Partition, commands: &[redis::Cmd]) -> Option<Vec<Value>> {
        partition.up()?.run(commands).await.ok()
    }

    async fn watch(&self, app: &AppId, is_wanted: bool) {
        let each = self.partitions.iter().map(|partition| async {
            let (reply, done) = oneshot::channel();
            partition
                .request(Request::Watch(app.clone(), is_wanted, reply))
                .await;
            let _ = done.await;
        });
        futures_util::future::join_all(each).await;
    }

    async fn channels_in(
        &self,
        partition: &Partition,
        app: &AppId,
        prefix: &str,
    ) -> Vec<(ChannelName, Occupancy)> {
        let asked = async {
            let up = partition.up()?;
            let call = scripts::LIST.call(partition.prefix(), false, up.is_sharded, self.node, 0);
            let call = scripts::with(call, [&app.as_str(), &prefix]);
            let mut answers = up.run(&[call]).await.ok()?;
            redis::from_redis_value::<Vec<(String, u64, u64)>>(answers.remove(0)).ok()
        };
        match asked.await {
            Some(listed) => listed
                .into_iter()
                .map(|(name, connections, users)| {
                    let occupancy = Occupancy { connections, users };
                    (ChannelName::of_the_cluster(&name), occupancy)
                })
                .collect(),
            None => {
                let here = self.hub.channels(app, prefix);
                let here = here
                    .into_iter()
                    .filter(|(id, _)| self.partition_is(id, partition));
                here.map(|(id, occupancy)| (id.name, occupancy)).collect()
            }
        }
    }

    fn partition_is(&self, channel: &ChannelId, partition: &Partition) -> bool {
        std::ptr::eq(self.partition(channel), partition)
    }
}
