//! The way to one primary: a connection for commands and one for subscriptions, both watched.
//!
//! ```text
//!            connected, is a primary           an answer fails or is late, a probe is not heard
//!  (nothing) ─────────────────────────► up ──────────────────────────────────────────────► broken
//!      ▲                                                                                     │
//!      └──────────────────────── after a pause that grows to half a second ──────────────────┘
//! ```
//!
//! A link is probed end to end: what the node publishes to its own inbox has to come back over the
//! subscription. So a connection whose packets vanish without an error is noticed. Routing in a
//! Redis Cluster, and what to subscribe again, are known here better than a library could guess
//! them; it brings the protocol, TLS and pipelining.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, PushInfo, PushKind, Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::keys::REGISTRY;
use super::partition::Request;
use super::target::Primary;
use super::{Inner, scripts};

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Commands in one write.
const PIPELINE_COMMANDS_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A link that lived so long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(5);
/// How often Sentinel or the cluster is asked where the primaries are, though nothing broke.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// A link that can be used.
pub struct Up {
    commands: MultiplexedConnection,
    subscription: MultiplexedConnection,
    pub is_sharded: bool,
    /// Of the server's life: another one after it was started again, or on another server.
    pub run_id: String,
    /// Redis's clock, milliseconds since 1970, when it came up.
    pub began_ms: u64,
    ear: Arc<Ear>,
    why: OnceLock<String>,
}

/// The link is broken; who looks after it knows already.
#[derive(Clone, Copy, Debug)]
pub struct Broken;

/// What the subscription hears of the link itself.
#[derive(Default)]
struct Ear {
    probe: AtomicU64,
    heard: Notify,
    broken: CancellationToken,
}

impl Up {
    pub fn fail(&self, why: impl ToString) {
        let _ = self.why.set(why.to_string());
        self.ear.broken.cancel();
    }

    pub fn is_broken(&self) -> bool {
        self.ear.broken.is_cancelled()
    }

    /// The answers, in order; errors that a script states itself are among them.
    pub async fn run(&self, commands: &[Cmd]) -> Result<Vec<Value>, Broken> {
        self.run_on(self.commands.clone(), commands).await
    }

    /// As [`Up::run`], behind everything that was heard until Redis answers.
    pub async fn run_in_order(&self, commands: &[Cmd]) -> Result<Vec<Value>, Broken> {
        self.run_on(self.subscription.clone(), commands).await
    }

    pub async fn subscribe(&self, verb: &str, topics: &[String]) -> Result<(), Broken> {
        let commands: Vec<Cmd> = topics
            .iter()
            .map(|topic| {
                let mut subscribe = cmd(verb);
                subscribe.arg(topic);
                subscribe
            })
            .collect();
        self.run_in_order(&commands).await.map(drop)
    }

    async fn run_on(
        &self,
        mut connection: MultiplexedConnection,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, Broken> {
        let mut answers = Vec::with_capacity(commands.len());
        for chunk in commands.chunks(PIPELINE_COMMANDS_MAX) {
            if self.is_broken() {
                return Err(Broken);
            }
            let mut pipeline = Pipeline::with_capacity(chunk.len());
            for command in chunk {
                pipeline.add_command(command.clone());
            }
            let got = connection
                .req_packed_commands(&pipeline, 0, chunk.len())
                .await;
            match got {
                Ok(got) => answers.extend(got),
                Err(error) => {
                    self.fail(error);
                    return Err(Broken);
                }
            }
        }
        for answer in &answers {
            if let Value::ServerError(error) = answer
                && !matches!(error.code(), "STALE" | "FULL")
            {
                self.fail(format!(
                    "{} {}",
                    error.code(),
                    error.details().unwrap_or_default()
                ));
                return Err(Broken);
            }
        }
        Ok(answers)
    }
}

/// Keeps a link to every primary for as long as the node runs.
pub async fn keep_up(inner: Arc<Inner>) {
    let mut links: JoinSet<(Primary, Duration)> = JoinSet::new();
    let mut running: Vec<(Primary, CancellationToken)> = Vec::new();
    let mut failures = 0;
    loop {
        let asked = timeout(
            inner.settings.command_timeout * 2,
            inner.settings.primaries(),
        );
        let found = match asked.await {
            Ok(Ok(primaries)) => Some(primaries),
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot ask where the primaries of Redis are");
                None
            }
            Err(_) => None,
        };
        if let Some(found) = found {
            for (primary, stop) in &running {
                if !found.contains(primary) {
                    stop.cancel();
                }
            }
            for primary in found {
                if running
                    .iter()
                    .any(|(known, _)| known.address == primary.address)
                {
                    continue;
                }
                let stop = CancellationToken::new();
                running.push((primary.clone(), stop.clone()));
                links.spawn(live(inner.clone(), primary, stop));
            }
        }
        let ended = tokio::select! {
            ended = links.join_next(), if !links.is_empty() => ended,
            () = sleep(LOOK_AROUND), if !links.is_empty() => continue,
            () = std::future::ready(()), if links.is_empty() => None,
            () = inner.stop.cancelled() => return,
        };
        let mut lived = Duration::ZERO;
        if let Some(Ok((primary, life))) = ended {
            running.retain(|(known, _)| *known != primary);
            lived = life;
        }
        failures = match lived > GOOD_LIFE {
            true => 0,
            false => failures + 1,
        };
        let pause = PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow(failures));
        sleep(pause.mul_f64(0.5 + inner.chance())).await;
    }
}

/// One link from its beginning to its end.
async fn live(inner: Arc<Inner>, primary: Primary, stop: CancellationToken) -> (Primary, Duration) {
    let began = Instant::now();
    let attempt = timeout(
        inner.settings.command_timeout * 2,
        connect(&inner, &primary),
    )
    .await;
    let up = match attempt {
        Ok(Ok(up)) => Arc::new(up),
        Ok(Err(error)) => {
            inner.status.say_away(&error);
            return (primary, Duration::ZERO);
        }
        Err(_) => {
            inner.status.say_away("no answer in time");
            return (primary, Duration::ZERO);
        }
    };
    // The highest place is the registry of nodes: first of all this one says that it lives.
    for place in primary.places.iter().rev() {
        if *place == REGISTRY {
            inner.nodes.up(Some(up.clone()));
        } else {
            let up = up.clone();
            inner.partitions[*place].request(Request::Up(up)).await;
        }
    }
    tokio::select! {
        () = probe(&inner, &primary, &up) => {}
        () = up.ear.broken.cancelled() => {}
        () = stop.cancelled() => up.fail("another primary is responsible"),
    }
    for place in &primary.places {
        if *place == REGISTRY {
            inner.nodes.up(None);
        } else {
            inner.partitions[*place].down(&up, &inner.status).await;
        }
    }
    inner
        .status
        .say_away(up.why.get().map_or("", String::as_str));
    (primary, began.elapsed())
}

async fn connect(inner: &Arc<Inner>, primary: &Primary) -> Result<Up, String> {
    let settings = &inner.settings;
    let ear = Arc::new(Ear::default());
    let hear = {
        let (inner, ear) = (Arc::downgrade(inner), ear.clone());
        move |push: PushInfo| -> Result<(), ()> {
            match inner.upgrade() {
                Some(inner) => hear(&inner, &ear, push),
                None => ear.broken.cancel(),
            }
            Ok(())
        }
    };
    let config = AsyncConnectionConfig::new().set_push_sender(hear);
    let (commands, subscription) = tokio::join!(
        settings.connect(&primary.address, None),
        settings.connect(&primary.address, Some(config)),
    );
    let mut up = Up {
        commands: commands.map_err(|error| error.to_string())?,
        subscription: subscription.map_err(|error| error.to_string())?,
        is_sharded: primary.is_sharded,
        run_id: String::new(),
        began_ms: 0,
        ear,
        why: OnceLock::new(),
    };
    let failed = |up: &Up| up.why.get().cloned().unwrap_or_default();
    let mut info = cmd("INFO");
    info.arg("server");
    let mut commands = vec![cmd("ROLE"), cmd("TIME"), info];
    commands.extend(scripts::all().iter().map(|script| script.load()));
    let answers = up.run(&commands).await.map_err(|Broken| failed(&up))?;
    if !is_primary(&answers[0]) {
        return Err("it is a replica".to_owned());
    }
    up.began_ms = time_ms(&answers[1]).ok_or("it does not tell the time")?;
    up.run_id = run_id(&answers[2]).ok_or("it does not say which server it is")?;
    let inbox = [inner.keys.inbox(primary.places[0], inner.node)];
    up.subscribe(subscribe_verb(up.is_sharded), &inbox)
        .await
        .map_err(|Broken| failed(&up))?;
    if primary.places[0] != REGISTRY && primary.places.contains(&REGISTRY) {
        let inbox = [inner.keys.inbox(REGISTRY, inner.node)];
        up.subscribe(subscribe_verb(up.is_sharded), &inbox)
            .await
            .map_err(|Broken| failed(&up))?;
    }
    Ok(up)
}

pub fn subscribe_verb(is_sharded: bool) -> &'static str {
    match is_sharded {
        true => "SSUBSCRIBE",
        false => "SUBSCRIBE",
    }
}

/// Ends when the probe is not heard in time.
async fn probe(inner: &Inner, primary: &Primary, up: &Arc<Up>) {
    let within = inner.settings.command_timeout;
    let inbox = inner.keys.inbox(primary.places[0], inner.node);
    for number in 1_u64.. {
        let heard = async {
            let mut publish = cmd(match up.is_sharded {
                true => "SPUBLISH",
                false => "PUBLISH",
            });
            publish.arg(&inbox).arg(format!("probe {number}"));
            let answers = up.run(&[cmd("TIME"), cmd("ROLE"), publish]).await.ok()?;
            if !is_primary(&answers[1]) {
                up.fail("it became a replica");
                return None;
            }
            loop {
                let heard = up.ear.heard.notified();
                if up.ear.probe.load(Ordering::Acquire) >= number {
                    break;
                }
                heard.await;
            }
            time_ms(&answers[0])
        };
        match timeout(within, heard).await {
            Ok(Some(redis_ms)) => {
                for place in &primary.places {
                    if *place != REGISTRY {
                        inner.partitions[*place].heard_until(up, redis_ms);
                    }
                }
            }
            Ok(None) => return up.fail("a probe failed"),
            Err(_) => return up.fail("the subscription does not hear what is published"),
        }
        sleep(PROBE_INTERVAL).await;
    }
}

/// Of an answer to TIME.
fn time_ms(answer: &Value) -> Option<u64> {
    let (secs, micros): (u64, u64) = redis::from_redis_value(answer.clone()).ok()?;
    Some(secs * 1000 + micros / 1000)
}

/// Of an answer to INFO.
fn run_id(answer: &Value) -> Option<String> {
    let info: String = redis::from_redis_value(answer.clone()).ok()?;
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix("run_id:").map(str::to_owned))
}

fn is_primary(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    let name = parts
        .first()
        .cloned()
        .map(redis::from_redis_value::<String>);
    matches!(name, Some(Ok(name)) if name == "master")
}

/// Runs in the connection's own task: must not wait.
fn hear(inner: &Inner, ear: &Ear, push: PushInfo) {
    let mut data = push.data;
    match push.kind {
        PushKind::Message | PushKind::PMessage | PushKind::SMessage => {}
        PushKind::Disconnection => return ear.broken.cancel(),
        _ => return,
    }
    let (Some(Value::BulkString(payload)), Some(Value::BulkString(topic))) =
        (data.pop(), data.pop())
    else {
        return;
    };
    let Some((place, rest)) = std::str::from_utf8(&topic)
        .ok()
        .and_then(|topic| inner.keys.place_of(topic))
    else {
        return;
    };
    if rest.starts_with("inbox:") {
        let text = std::str::from_utf8(&payload).unwrap_or_default();
        if let Some(number) = text.strip_prefix("probe ").and_then(|n| n.parse().ok()) {
            ear.probe.fetch_max(number, Ordering::AcqRel);
            ear.heard.notify_waiters();
        } else if place == REGISTRY && inner.letters.try_send(payload).is_err() {
            // Whoever wrote it waits for an answer, but not for ever.
            tracing::warn!("too many letters of other nodes are waiting; one was dropped");
        }
    } else if place != REGISTRY && !inner.partitions[place].take_in(payload) {
        // Later, what is missing is read from the log.
        ear.broken.cancel();
    }
}
