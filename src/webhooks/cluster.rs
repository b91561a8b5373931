//! Webhooks of several nodes. Facts go into the streams of their partitions: joins, leaves and
//! publishes in the very step in which they happen, others a moment later;
//! one node, whoever holds the lease, reads them and dispatches. If it dies another one goes on
//! where it was: what was told, what is being held, and every delivery are in the shared store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Value, cmd, from_redis_value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::deliver::new_id;
use super::dispatch::{Dispatcher, End, Parts, Past};
use super::journal;
use super::settle::Settler;
use super::source::{FACTS_AT_ONCE, Source};
use super::store::shared::{Shared, keep_lease, take_lease};
use super::store::{Position, Store, StoreError};
use super::targets::Targets;
use crate::backend::{Done, Redis, redis::Lines};
use crate::model::{ChannelId, ChannelName, Fact};

/// Where webhooks are, behind the prefix of the registry of nodes.
pub(super) const HOME: &str = "webhooks:";
/// How long the cluster waits for a dispatcher that says nothing.
const LEASE: Duration = Duration::from_secs(8);
const LEASE_KEPT: Duration = Duration::from_secs(2);
/// How often the leader looks into the streams.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Before a fact that Redis did not take is offered again.
const FORWARD_PAUSE: Duration = Duration::from_millis(250);
/// For the last facts, at the end.
const FAREWELL: Duration = Duration::from_secs(3);
/// Read from one stream at once.
const STREAM_FACTS_AT_ONCE: usize = 200;

/// What webhooks need of a shared Redis.
pub trait Places: Send + Sync {
    fn partitions(&self) -> usize;
    /// Whether one command may name keys of several partitions.
    fn are_together(&self) -> bool;
    fn partition_of(&self, channel: &ChannelId) -> usize;
    /// What the names of a partition's keys start with.
    fn prefix(&self, partition: usize) -> String;
    /// What the names of the keys of webhooks start with: one slot of their own.
    fn home(&self) -> String;
    fn run(&self, partition: usize, commands: Vec<Cmd>)
    -> Done<'_, Result<Vec<Value>, StoreError>>;
    fn at_home(&self, commands: Vec<Cmd>) -> Done<'_, Result<Vec<Value>, StoreError>>;
}

impl Places for Redis {
    fn partitions(&self) -> usize {
        Self::PARTITIONS
    }

    fn are_together(&self) -> bool {
        self.partitions_are_together()
    }

    fn partition_of(&self, channel: &ChannelId) -> usize {
        Self::partition_of(channel)
    }

    fn prefix(&self, partition: usize) -> String {
        self.prefix(partition)
    }

    fn home(&self) -> String {
        format!("{}{HOME}", self.prefix(Self::REGISTRY))
    }

    fn run(&self, place: usize, commands: Vec<Cmd>) -> Done<'_, Result<Vec<Value>, StoreError>> {
        Box::pin(async move {
            let answers = self.run(place, &commands).await;
            answers.ok_or_else(|| StoreError::new("Redis is away"))
        })
    }

    fn at_home(&self, commands: Vec<Cmd>) -> Done<'_, Result<Vec<Value>, StoreError>> {
        Places::run(self, Self::REGISTRY, commands)
    }
}

pub(super) struct Cluster {
    forwarding: JoinHandle<()>,
    leading: JoinHandle<()>,
    no_more: CancellationToken,
    stop: CancellationToken,
}

impl Cluster {
    pub fn start(parts: Parts, places: Arc<dyn Places>, facts: mpsc::Receiver<Fact>) -> Self {
        let (no_more, stop) = (CancellationToken::new(), CancellationToken::new());
        let forwarding = forward(parts.clone(), places.clone(), facts, no_more.clone());
        Self {
            forwarding: tokio::spawn(forwarding),
            leading: tokio::spawn(lead(parts, places, stop.clone())),
            no_more,
            stop,
        }
    }

    /// Hands the last facts and the lease over.
    pub async fn stop(self) {
        self.no_more.cancel();
        if timeout(FAREWELL, self.forwarding).await.is_err() {
            tracing::error!("the last facts could not be handed to the other nodes");
        }
        self.stop.cancel();
        let _ = self.leading.await;
    }
}

/// Of what goes with a publish.
pub fn lines(targets: Arc<Targets>) -> Lines {
    Arc::new(move |fact| targets.concerns(fact).then(|| journal::write(0, fact)))
}

/// Writes the facts of this node that go with no change in Redis into their streams, in order.
async fn forward(
    parts: Parts,
    places: Arc<dyn Places>,
    mut facts: mpsc::Receiver<Fact>,
    no_more: CancellationToken,
) {
    let mut batch = Vec::with_capacity(FACTS_AT_ONCE);
    let mut is_ending = false;
    while !is_ending {
        tokio::select! {
            biased;
            count = facts.recv_many(&mut batch, FACTS_AT_ONCE) => is_ending = count == 0,
            () = no_more.cancelled() => is_ending = true,
        }
        let mut streams: BTreeMap<usize, Vec<Cmd>> = BTreeMap::new();
        for fact in batch.drain(..) {
            let (partition, line) = match &fact {
                Fact::Channel(fact) if parts.targets.concerns(fact) => {
                    (places.partition_of(&fact.channel), journal::write(0, fact))
                }
                Fact::Channel(_) => continue,
                // All of an application's in one stream: what is told of a session has an order.
                Fact::Session(fact) => {
                    let name = ChannelName::of_the_cluster("#sessions");
                    let sessions = ChannelId::new(&fact.app, &name);
                    (places.partition_of(&sessions), journal::write_session(fact))
                }
            };
            let add = Redis::add_fact(&places.prefix(partition), &line);
            streams.entry(partition).or_default().push(add);
        }
        for (partition, commands) in streams {
            while places.run(partition, commands.clone()).await.is_err() {
                sleep(FORWARD_PAUSE).await;
            }
        }
    }
}

fn stream(places: &dyn Places, partition: usize) -> String {
    format!("{}{}", places.prefix(partition), Redis::FACTS)
}

/// Tries to get the lease, and dispatches while this node has it.
async fn lead(parts: Parts, places: Arc<dyn Places>, stop: CancellationToken) {
    let prefix = places.home();
    while !stop.is_cancelled() {
        let token = new_id();
        let taken = places
            .at_home(vec![take_lease(&prefix, &token, LEASE)])
            .await;
        let is_ours = taken.is_ok_and(|answers| matches!(answers.first(), Some(Value::Okay)));
        if is_ours {
            tracing::info!("this node sends the webhooks of the cluster");
            match dispatcher(&parts, &places, &token).await {
                Ok(dispatcher) => {
                    keep(&*places, &prefix, &token, &stop).await;
                    dispatcher.stop(End::IsKept).await;
                }
                Err(error) => tracing::error!(%error, "webhooks cannot be sent"),
            }
            let _ = places
                .at_home(vec![keep_lease(&prefix, &token, None)])
                .await;
        }
        tokio::select! {
            () = sleep(LEASE_KEPT) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn dispatcher(
    parts: &Parts,
    places: &Arc<dyn Places>,
    token: &str,
) -> Result<Dispatcher, StoreError> {
    let store = Shared::open(places.clone(), token.to_owned()).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let past = Past {
        settler: Settler::knowing(store.told().await?, Instant::now()),
        missed: None,
    };
    let position = store.position().await?;
    let streams = Streams {
        places: places.clone(),
        position: position.into_iter().collect(),
        trimmed: HashMap::new(),
        count: 0,
    };
    Dispatcher::start(parts.clone(), store, past, Box::new(streams), End::IsKept).await
}

/// Until the lease is lost, or this node stops.
async fn keep(places: &dyn Places, prefix: &str, token: &str, stop: &CancellationToken) {
    let mut kept = Instant::now();
    loop {
        tokio::select! {
            () = sleep(LEASE_KEPT) => {}
            () = stop.cancelled() => return,
        }
        match places
            .at_home(vec![keep_lease(prefix, token, Some(LEASE))])
            .await
        {
            Ok(answers) if matches!(answers.first(), Some(Value::ServerError(_))) => {
                tracing::warn!("another node sends the webhooks of the cluster now");
                return;
            }
            Ok(_) => kept = Instant::now(),
            Err(_) if kept.elapsed() > LEASE => return,
            Err(_) => {}
        }
    }
}

/// The streams of all partitions, read from where the store has them.
struct Streams {
    places: Arc<dyn Places>,
    position: HashMap<usize, String>,
    /// Up to where facts were thrown away.
    trimmed: HashMap<usize, String>,
    count: u64,
}

impl Source for Streams {
    fn next<'a>(&'a mut self, facts: &'a mut Vec<Fact>) -> Done<'a, bool> {
        Box::pin(async move {
            loop {
                let found = self.look().await;
                // Nothing is awaited between here and the return.
                if !found.is_empty() {
                    for (partition, last, new) in found {
                        self.position.insert(partition, last);
                        self.count += new.len() as u64;
                        facts.extend(new);
                    }
                    return true;
                }
                sleep(LOOK_INTERVAL).await;
            }
        })
    }

    fn position(&self) -> Position {
        let position = self.position.iter();
        position
            .map(|(partition, last)| (*partition, last.clone()))
            .collect()
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn committed(&mut self, position: &Position) -> Done<'_, ()> {
        let mut trims: BTreeMap<usize, Vec<Cmd>> = BTreeMap::new();
        for (partition, last) in position {
            if self.trimmed.get(partition) != Some(last) {
                self.trimmed.insert(*partition, last.clone());
                let mut trim = cmd("XTRIM");
                trim.arg(stream(&*self.places, *partition));
                trim.arg("MINID").arg("~").arg(last);
                let place = match self.places.are_together() {
                    true => 0,
                    false => *partition,
                };
                trims.entry(place).or_default().push(trim);
            }
        }
        Box::pin(async move {
            let each = trims.into_iter();
            let each = each.map(|(place, trims)| self.places.run(place, trims));
            // What is not trimmed now is trimmed with the next.
            join_all(each).await;
        })
    }
}

impl Streams {
    /// Partitions that one command may name.
    fn groups(&self) -> Vec<Vec<usize>> {
        let all = 0..self.places.partitions();
        match self.places.are_together() {
            true => vec![all.collect()],
            false => all.map(|partition| vec![partition]).collect(),
        }
    }

    /// What is behind our place in each stream, with the place behind it.
    async fn look(&self) -> Vec<(usize, String, Vec<Fact>)> {
        let groups = self.groups();
        let found = join_all(groups.iter().map(|group| self.read(group))).await;
        found.into_iter().flatten().flatten().collect()
    }

    async fn read(&self, partitions: &[usize]) -> Option<Vec<(usize, String, Vec<Fact>)>> {
        type Entries = Vec<(String, HashMap<String, Vec<u8>>)>;
        let names = partitions.iter().map(|p| stream(&*self.places, *p));
        let names: Vec<String> = names.collect();
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(STREAM_FACTS_AT_ONCE).arg("STREAMS");
        read.arg(&names);
        for partition in partitions {
            read.arg(self.position.get(partition).map_or("0", String::as_str));
        }
        let answers = self.places.run(partitions[0], vec![read]).await.ok()?;
        let answer = answers.into_iter().next()?;
        let found: Option<Vec<(String, Entries)>> = from_redis_value(answer).ok()?;
        let found = found?.into_iter().filter_map(|(name, entries)| {
            let nth = names.iter().position(|known| *known == name)?;
            let last = entries.last()?.0.clone();
            let facts = entries.into_iter();
            let facts = facts.filter_map(|(_, fields)| Some(journal::read(fields.get("f")?)?.1));
            Some((partitions[nth], last, facts.collect()))
        });
        Some(found.collect())
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::process::{Child, Command, Stdio};

    use redis::aio::{ConnectionLike, MultiplexedConnection};
    use redis::{Client, Pipeline};
    use tokio::net::UnixStream;

    use super::*;

    /// A real Redis of its own, ended when dropped.
    pub struct LocalRedis {
        process: Child,
        dir: std::path::PathBuf,
    }

    impl LocalRedis {
        pub async fn start() -> Self {
            let dir = std::env::temp_dir().join(format!("raptor-redis-{}", new_id()));
            std::fs::create_dir_all(&dir).unwrap();
            let process = Command::new("redis-server")
                .args([
                    "--port",
                    "0",
                    "--save",
                    "",
                    "--unixsocket",
                    "socket",
                    "--dir",
                ])
                .arg(&dir)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed");
            let redis = Self { process, dir };
            let started = async {
                let socket = redis.dir.join("socket");
                while UnixStream::connect(&socket).await.is_err() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(10), started).await.unwrap();
            redis
        }

        pub async fn places(&self) -> Arc<dyn Places> {
            let url = format!("unix://{}", self.dir.join("socket").display());
            let client = Client::open(url).unwrap();
            let connection = client.get_multiplexed_async_connection().await.unwrap();
            Arc::new(OnePlace(connection))
        }
    }

    impl Drop for LocalRedis {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    struct OnePlace(MultiplexedConnection);

    impl Places for OnePlace {
        fn partitions(&self) -> usize {
            4
        }

        fn are_together(&self) -> bool {
            true
        }

        fn partition_of(&self, channel: &ChannelId) -> usize {
            channel.name.as_str().len() % 4
        }

        fn prefix(&self, partition: usize) -> String {
            format!("raptor:1:{{p{partition}}}:")
        }

        fn home(&self) -> String {
            "raptor:1:{nodes}:wh:".to_owned()
        }

        fn run(&self, _: usize, commands: Vec<Cmd>) -> Done<'_, Result<Vec<Value>, StoreError>> {
            self.at_home(commands)
        }

        fn at_home(&self, commands: Vec<Cmd>) -> Done<'_, Result<Vec<Value>, StoreError>> {
            let mut connection = self.0.clone();
            Box::pin(async move {
                let mut pipeline = Pipeline::new();
                for command in &commands {
                    pipeline.add_command(command.clone());
                }
                let answers = connection.req_packed_commands(&pipeline, 0, commands.len());
                answers
                    .await
                    .map_err(|error| StoreError::new(&error.to_string()))
            })
        }
    }
}
