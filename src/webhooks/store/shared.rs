//! The store of a cluster, in Redis. All of it is in one slot, and every step is one script that
//! first looks whether the lease is still ours: a node that was given up changes nothing any more.
//!
//! ```text
//! lease            string  who dispatches
//! seq              number of the newest event
//! position         hash    partition -> place in its stream of facts
//! events:APP       stream  SEQ-0 -> c channel, n name, t at_ms, j json
//! told             hash    subject -> '', or since when it is leaving, ms since 1970
//! endpoints        hash    [app,name] -> id;  `active` set of ids;  `cursors` hash id -> seq
//! d:ID             hash    a delivery;  `a:ID` list of its attempts
//! open:ENDPOINT    zset    deliveries behind the cursor, by their last event
//! pending:ENDPOINT, replay:ENDPOINT   sets;  dead, delivered   zsets by time
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, ToRedisArgs, Value, cmd, from_redis_value};

use super::archive::Listed;
use super::{
    Attempt, Delivery, EndpointId, Entry, Event, Kept, Lost, Position, Resumed, State, Store,
    StoreError,
};
use crate::backend::redis::{Registry, Settings};
use crate::model::now_ms;
use crate::model::{AppId, ChannelId, ChannelName};
use crate::webhooks::cluster::{HOME, Places};
use crate::webhooks::settle::{Subject, Told};

const FENCED: &str = include_str!("fenced.lua");
/// Events of one app that may wait.
const EVENTS_MAX: usize = 1_000_000;
const DEAD_MAX: usize = 100_000;
const DELIVERED_MAX: usize = 10_000;
/// Forgotten in one step.
const AT_ONCE: usize = 100;

pub(in crate::webhooks) struct Shared {
    places: Arc<dyn Places>,
    /// What the names of keys start with.
    prefix: String,
    token: String,
    /// Number of the newest event.
    seq: tokio::sync::Mutex<u64>,
}

/// Commands of one step.
#[derive(Default)]
struct Step(Vec<Vec<Vec<u8>>>);

impl Step {
    fn add(&mut self, words: &[&dyn Word]) -> &mut Self {
        self.0
            .push(words.iter().flat_map(|word| word.written()).collect());
        self
    }
}

trait Word {
    fn written(&self) -> Vec<Vec<u8>>;
}

impl<T: ToRedisArgs> Word for T {
    fn written(&self) -> Vec<Vec<u8>> {
        self.to_redis_args()
    }
}

impl Shared {
    /// `token` is what the lease says while it is ours.
    pub async fn open(places: Arc<dyn Places>, token: String) -> Result<Self, StoreError> {
        let prefix = places.home();
        let mut store = Self {
            places,
            prefix,
            token,
            seq: tokio::sync::Mutex::new(0),
        };
        let mut step = Step::default();
        step.add(&[&"GET", &store.key("seq")]);
        let seq: Option<u64> = store.one(step).await?;
        store.seq = tokio::sync::Mutex::new(seq.unwrap_or_default());
        Ok(store)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn of(&self, name: &str, of: impl std::fmt::Display) -> String {
        format!("{}{name}:{of}", self.prefix)
    }

    async fn run(&self, step: Step) -> Result<Vec<Value>, StoreError> {
        let mut script = cmd("EVAL");
        script
            .arg(FENCED)
            .arg(1)
            .arg(self.key("lease"))
            .arg(&self.token);
        for words in step.0 {
            script.arg(words.len());
            for word in words {
                script.arg(word);
            }
        }
        let answers = self.places.at_home(vec![script]).await?;
        read(answers.into_iter().next().unwrap_or(Value::Nil))
    }

    /// The answer to the only command.
    async fn one<T: FromRedisValue>(&self, step: Step) -> Result<T, StoreError> {
        let answers = self.run(step).await?;
        read(answers.into_iter().next().unwrap_or(Value::Nil))
    }

    async fn deliveries(&self, ids: Vec<String>) -> Result<Vec<Delivery>, StoreError> {
        let mut step = Step::default();
        for id in &ids {
            step.add(&[&"HGETALL", &self.of("d", id)]);
        }
        let found = self.run(step).await?;
        let mut deliveries = Vec::new();
        for (id, fields) in ids.into_iter().zip(found) {
            deliveries.extend(delivery(id, read(fields)?));
        }
        Ok(deliveries)
    }

    fn write_delivery(&self, step: &mut Step, delivery: &Delivery) {
        let last = last_seq(delivery);
        step.add(&[
            &"HSET",
            &self.of("d", &delivery.id),
            &"endpoint",
            &delivery.endpoint.0,
            &"state",
            &delivery.state.name(),
            &"created_ms",
            &delivery.created_ms,
            &"expires_ms",
            &delivery.expires_ms,
            &"seqs",
            &json(&delivery.seqs),
            &"channels",
            &json(&delivery.channels.iter().map(|c| &**c).collect::<Vec<_>>()),
            &"key",
            &delivery.key,
            &"signature",
            &delivery.signature,
            &"body",
            &delivery.body.as_deref().unwrap_or_default(),
            &"is_replay",
            &u8::from(delivery.is_replay),
        ]);
        if !delivery.is_replay {
            let open = self.of("open", delivery.endpoint.0);
            step.add(&[&"ZADD", &open, &last, &delivery.id]);
        }
        let pending = self.of("pending", delivery.endpoint.0);
        match delivery.state {
            State::Pending => step.add(&[&"SADD", &pending, &delivery.id]),
            _ => step.add(&[
                &"ZADD",
                &self.key("dead"),
                &delivery.created_ms,
                &delivery.id,
            ]),
        };
    }

    /// Those of a set ordered by time that are too many, oldest first.
    async fn surplus(&self, set: &str, kept_max: usize) -> Result<Vec<String>, StoreError> {
        let mut step = Step::default();
        step.add(&[&"ZCARD", &self.key(set)]);
        let count: usize = self.one(step).await?;
        let over = count.saturating_sub(kept_max).min(AT_ONCE);
        if over == 0 {
            return Ok(Vec::new());
        }
        let mut step = Step::default();
        step.add(&[&"ZRANGE", &self.key(set), &0, &(over - 1)]);
        self.one(step).await
    }

    async fn forget(&self, set: &str, ids: &[String]) -> Result<(), StoreError> {
        let mut step = Step::default();
        for id in ids {
            step.add(&[&"DEL", &self.of("d", id), &self.of("a", id)]);
            step.add(&[&"ZREM", &self.key(set), id]);
        }
        self.run(step).await.map(drop)
    }
}

impl Store for Shared {
    fn told(&self) -> Kept<'_, Vec<(Subject, Option<Duration>)>> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HGETALL", &self.key("told")]);
            let told: HashMap<String, String> = self.one(step).await?;
            let told = told.into_iter().filter_map(|(subject, since)| {
                let away = since.parse().ok();
                let away = away.map(|since| Duration::from_millis(now_ms().saturating_sub(since)));
                Some((read_subject(&subject)?, away))
            });
            Ok(told.collect())
        })
    }

    fn position(&self) -> Kept<'_, Position> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HGETALL", &self.key("position")]);
            let position: HashMap<usize, String> = self.one(step).await?;
            Ok(position.into_iter().collect())
        })
    }

    fn append(&self, entries: Arc<Vec<Entry>>, at_ms: u64, position: Position) -> Kept<'_, ()> {
        Box::pin(async move {
            let mut newest = self.seq.lock().await;
            let mut seq = *newest;
            let mut step = Step::default();
            // Whoever asks again because the answer was lost must not tell everything twice.
            step.add(&[&"only-if", &self.key("seq"), &seq]);
            for entry in entries.iter() {
                if let Some((subject, told)) = &entry.told {
                    let (key, subject) = (self.key("told"), write_subject(subject));
                    match told {
                        Told::Present => step.add(&[&"HSET", &key, &subject, &""]),
                        Told::Leaving => step.add(&[&"HSET", &key, &subject, &at_ms]),
                        Told::Gone => step.add(&[&"HDEL", &key, &subject]),
                    };
                }
                if let Some(text) = &entry.json {
                    seq += 1;
                    step.add(&[
                        &"XADD",
                        &self.of("events", &entry.app),
                        &format!("{seq}-0"),
                        &"c",
                        &&*entry.channel,
                        &"n",
                        &entry.name,
                        &"t",
                        &at_ms,
                        &"j",
                        text,
                    ]);
                }
            }
            if !position.is_empty() {
                let places: Vec<_> = position.iter().map(|(n, place)| (*n, &**place)).collect();
                step.add(&[&"HSET", &self.key("position"), &places]);
            }
            step.add(&[&"SET", &self.key("seq"), &seq]);
            self.run(step).await?;
            *newest = seq;
            Ok(())
        })
    }

    fn activate(&self, endpoints: Vec<(AppId, String)>) -> Kept<'_, Vec<EndpointId>> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HGETALL", &self.key("endpoints")]);
            step.add(&[&"SMEMBERS", &self.key("active")]);
            let mut answers = self.run(step).await?.into_iter();
            let mut answer = || answers.next().unwrap_or(Value::Nil);
            let mut known: HashMap<String, i64> = read(answer())?;
            let was_active: HashSet<i64> = read(answer())?;
            let end = *self.seq.lock().await;
            let mut ids = Vec::new();
            let mut step = Step::default();
            for (app, name) in &endpoints {
                let field = json(&[app.as_str(), name]);
                let next = known.values().max().copied().unwrap_or_default() + 1;
                let id = *known.entry(field.clone()).or_insert(next);
                if !was_active.contains(&id) {
                    step.add(&[&"HSET", &self.key("endpoints"), &field, &id]);
                    step.add(&[&"HSET", &self.key("cursors"), &id, &end]);
                    step.add(&[&"SADD", &self.key("active"), &id]);
                }
                ids.push(EndpointId(id));
            }
            let mut gone = was_active;
            gone.retain(|id| !ids.contains(&EndpointId(*id)));
            for id in gone {
                step.add(&[&"SREM", &self.key("active"), &id]);
                let mut ask = Step::default();
                ask.add(&[&"SMEMBERS", &self.of("pending", id)]);
                let pending: Vec<String> = self.one(ask).await?;
                for delivery in self.deliveries(pending).await? {
                    let dead = Delivery {
                        state: State::Dead,
                        ..delivery
                    };
                    self.write_delivery(&mut step, &dead);
                }
                step.add(&[&"DEL", &self.of("pending", id), &self.of("open", id)]);
            }
            self.run(step).await?;
            Ok(ids)
        })
    }

    fn resume(&self, endpoint: EndpointId) -> Kept<'_, Resumed> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HGET", &self.key("cursors"), &endpoint.0]);
            let cursor: Option<u64> = self.one(step).await?;
            let cursor = cursor.unwrap_or_default();
            let mut step = Step::default();
            let open = self.of("open", endpoint.0);
            step.add(&[&"ZRANGEBYSCORE", &open, &format!("({cursor}"), &"+inf"]);
            step.add(&[&"SMEMBERS", &self.of("pending", endpoint.0)]);
            let mut answers = self.run(step).await?.into_iter();
            let mut answer = || answers.next().unwrap_or(Value::Nil);
            let (open, pending): (Vec<String>, Vec<String>) = (read(answer())?, read(answer())?);
            let mut taken = Vec::new();
            for ids in open.chunks(AT_ONCE) {
                for delivery in self.deliveries(ids.to_vec()).await? {
                    taken.extend(delivery.seqs);
                }
            }
            let mut pending = self.deliveries(pending).await?;
            pending.sort_by_key(last_seq);
            Ok(Resumed {
                cursor,
                taken,
                pending,
            })
        })
    }

    fn read<'a>(&'a self, app: &AppId, seq: u64, events_max: usize) -> Kept<'a, Vec<Event>> {
        let key = self.of("events", app);
        Box::pin(async move {
            let mut step = Step::default();
            let first = format!("{}-0", seq + 1);
            step.add(&[&"XRANGE", &key, &first, &"+", &"COUNT", &events_max]);
            let found: Vec<(String, HashMap<String, String>)> = self.one(step).await?;
            let events = found.into_iter().filter_map(|(id, mut fields)| {
                let mut take = |name: &str| fields.remove(name);
                Some(Event {
                    seq: id.split_once('-')?.0.parse().ok()?,
                    channel: take("c")?.into(),
                    name: take("n")?,
                    at_ms: take("t")?.parse().ok()?,
                    json: take("j")?.into(),
                })
            });
            Ok(events.collect())
        })
    }

    fn begin(&self, begun: Arc<Vec<Delivery>>) -> Kept<'_, ()> {
        Box::pin(async move {
            let mut step = Step::default();
            for delivery in begun.iter() {
                self.write_delivery(&mut step, delivery);
            }
            self.run(step).await.map(drop)
        })
    }

    fn attempted<'a>(
        &'a self,
        id: &str,
        attempt: Attempt,
        state: State,
        keep_body: bool,
    ) -> Kept<'a, ()> {
        let id = id.to_owned();
        Box::pin(async move {
            let mut step = Step::default();
            let Attempt {
                at_ms,
                took_ms,
                status,
                error,
            } = &attempt;
            let text = json(&(at_ms, took_ms, status, error));
            step.add(&[&"RPUSH", &self.of("a", &id), &text]);
            if state != State::Pending {
                let mut ask = Step::default();
                ask.add(&[&"HMGET", &self.of("d", &id), &"endpoint", &"created_ms"]);
                let (endpoint, created_ms): (i64, u64) = self.one(ask).await?;
                step.add(&[&"HSET", &self.of("d", &id), &"state", &state.name()]);
                if !keep_body {
                    step.add(&[&"HDEL", &self.of("d", &id), &"body"]);
                }
                step.add(&[&"SREM", &self.of("pending", endpoint), &id]);
                let over = self.key(state.name());
                step.add(&[&"ZADD", &over, &created_ms, &id]);
            }
            self.run(step).await.map(drop)
        })
    }

    fn advance(&self, endpoint: EndpointId, cursor: u64) -> Kept<'_, ()> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HSET", &self.key("cursors"), &endpoint.0, &cursor]);
            let open = self.of("open", endpoint.0);
            step.add(&[&"ZREMRANGEBYSCORE", &open, &"-inf", &cursor]);
            self.run(step).await.map(drop)
        })
    }

    fn replays(&self, endpoint: EndpointId, deliveries_max: usize) -> Kept<'_, Vec<Delivery>> {
        Box::pin(async move {
            let mut step = Step::default();
            let key = self.of("replay", endpoint.0);
            step.add(&[&"SRANDMEMBER", &key, &deliveries_max]);
            let ids: Vec<String> = self.one(step).await?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let mut found = self.deliveries(ids).await?;
            found.sort_by_key(|delivery| (delivery.created_ms, last_seq(delivery)));
            Ok(found)
        })
    }

    fn renew(&self, delivery: Delivery) -> Kept<'_, ()> {
        Box::pin(async move {
            let mut step = Step::default();
            for over in ["dead", "delivered"] {
                step.add(&[&"ZREM", &self.key(over), &delivery.id]);
            }
            let replay = self.of("replay", delivery.endpoint.0);
            step.add(&[&"SREM", &replay, &delivery.id]);
            self.write_delivery(&mut step, &delivery);
            self.run(step).await.map(drop)
        })
    }

    /// Redis has a limit of its own for its memory; here numbers are bounded.
    fn tidy(&self, _: usize) -> Kept<'_, Lost> {
        Box::pin(async move {
            let mut step = Step::default();
            step.add(&[&"HGETALL", &self.key("endpoints")]);
            step.add(&[&"SMEMBERS", &self.key("active")]);
            step.add(&[&"HGETALL", &self.key("cursors")]);
            let mut answers = self.run(step).await?.into_iter();
            let mut answer = || answers.next().unwrap_or(Value::Nil);
            let endpoints: HashMap<String, i64> = read(answer())?;
            let active: HashSet<i64> = read(answer())?;
            let cursors: HashMap<i64, u64> = read(answer())?;
            let mut done: HashMap<String, u64> = HashMap::new();
            for (field, id) in endpoints.iter().filter(|(_, id)| active.contains(id)) {
                let (app, _): (String, String) = serde_json::from_str(field).unwrap_or_default();
                let cursor = cursors.get(id).copied().unwrap_or_default();
                let done = done.entry(app).or_insert(cursor);
                *done = cursor.min(*done);
            }
            let mut lost = Lost::default();
            for (app, cursor) in done {
                let key = self.of("events", app);
                let mut step = Step::default();
                step.add(&[&"XTRIM", &key, &"MINID", &format!("{}-0", cursor + 1)]);
                step.add(&[&"XTRIM", &key, &"MAXLEN", &EVENTS_MAX]);
                let trimmed = self.run(step).await?;
                lost.events += read::<usize>(trimmed.into_iter().nth(1).unwrap_or(Value::Int(0)))?;
            }
            let delivered = self.surplus("delivered", DELIVERED_MAX).await?;
            self.forget("delivered", &delivered).await?;
            let dead = self.surplus("dead", DEAD_MAX).await?;
            self.forget("dead", &dead).await?;
            lost.dead_letters = dead.len();
            Ok(lost)
        })
    }

    fn unfinished(&self) -> Kept<'_, usize> {
        Box::pin(std::future::ready(Ok(0)))
    }
}

/// See [`super::Archive`].
pub struct Archive {
    registry: Registry,
}

/// KEYS: the delivery, and what the names of the sets start with; ARGV: its id. Whether it will be
/// sent again.
const REPLAY: &str = "
local state, body, endpoint = unpack(redis.call('HMGET', KEYS[1], 'state', 'body', 'endpoint'))
if (state ~= 'dead' and state ~= 'delivered') or not body or body == '' then return 0 end
redis.call('SADD', KEYS[2] .. endpoint, ARGV[1])
return 1";

impl Archive {
    pub async fn open(settings: &Settings) -> Result<Self, StoreError> {
        let registry = Registry::of(settings).await;
        let registry = registry.map_err(|error| StoreError(error.into()))?;
        Ok(Self { registry })
    }

    pub async fn list(
        &self,
        state: Option<State>,
        deliveries_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let wants = |one: State| state.is_none_or(|state| state == one);
        let names = self.names().await?;
        let mut ask = Vec::new();
        for over in [State::Dead, State::Delivered] {
            if wants(over) {
                let mut newest = cmd("ZREVRANGE");
                newest.arg(self.key(over.name())).arg(0);
                ask.push(newest.arg(deliveries_max as i64 - 1).to_owned());
            }
        }
        if wants(State::Pending) {
            for id in names.keys() {
                let mut members = cmd("SMEMBERS");
                ask.push(members.arg(self.key(&format!("pending:{id}"))).to_owned());
            }
        }
        let mut ids = Vec::new();
        for answer in self.run(ask).await? {
            ids.extend(read::<Vec<String>>(answer)?);
        }
        let mut found = self.deliveries(ids).await?;
        found.sort_by_key(|delivery| std::cmp::Reverse((delivery.created_ms, last_seq(delivery))));
        found.truncate(deliveries_max);
        self.listed(found, &names).await
    }

    pub async fn find(&self, id: &str) -> Result<Option<Listed>, StoreError> {
        let found = self.deliveries(vec![id.to_owned()]).await?;
        let found = self.listed(found, &self.names().await?).await?;
        Ok(found.into_iter().next())
    }

    pub async fn replay(&self, id: &str) -> Result<bool, StoreError> {
        Ok(self.replay_each(&[id.to_owned()]).await? > 0)
    }

    pub async fn replay_dead(&self) -> Result<usize, StoreError> {
        let mut dead = cmd("ZRANGE");
        dead.arg(self.key("dead")).arg(0).arg(-1);
        let answers = self.run(vec![dead]).await?;
        let ids: Vec<String> = read(answers.into_iter().next().unwrap_or(Value::Nil))?;
        self.replay_each(&ids).await
    }

    /// How many will be sent again.
    async fn replay_each(&self, ids: &[String]) -> Result<usize, StoreError> {
        let mark = |id: &String| {
            let mut mark = cmd("EVAL");
            mark.arg(REPLAY).arg(2).arg(self.key(&format!("d:{id}")));
            mark.arg(self.key("replay:")).arg(id);
            mark
        };
        let mut marked = 0;
        for answer in self.run(ids.iter().map(mark).collect()).await? {
            marked += read::<usize>(answer)?;
        }
        Ok(marked)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{HOME}{name}", self.registry.prefix())
    }

    async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        let answers = self.registry.run(&commands).await;
        answers.map_err(|error| StoreError(error.into()))
    }

    /// App and name of each endpoint.
    async fn names(&self) -> Result<HashMap<i64, (String, String)>, StoreError> {
        let mut endpoints = cmd("HGETALL");
        endpoints.arg(self.key("endpoints"));
        let answers = self.run(vec![endpoints]).await?;
        let ids: HashMap<String, i64> = read(answers.into_iter().next().unwrap_or(Value::Nil))?;
        let named = ids.into_iter();
        let named = named.map(|(name, id)| (id, serde_json::from_str(&name).unwrap_or_default()));
        Ok(named.collect())
    }

    async fn deliveries(&self, ids: Vec<String>) -> Result<Vec<Delivery>, StoreError> {
        let ask = |id: &String| {
            let mut ask = cmd("HGETALL");
            ask.arg(self.key(&format!("d:{id}")));
            ask
        };
        let answers = self.run(ids.iter().map(ask).collect()).await?;
        let mut found = Vec::new();
        for (id, fields) in ids.into_iter().zip(answers) {
            found.extend(delivery(id, read(fields)?));
        }
        Ok(found)
    }

    async fn listed(
        &self,
        found: Vec<Delivery>,
        names: &HashMap<i64, (String, String)>,
    ) -> Result<Vec<Listed>, StoreError> {
        let ask = |delivery: &Delivery| {
            let mut ask = cmd("LRANGE");
            ask.arg(self.key(&format!("a:{}", delivery.id)))
                .arg(0)
                .arg(-1);
            ask
        };
        let answers = self.run(found.iter().map(ask).collect()).await?;
        let mut listed = Vec::new();
        for (delivery, attempts) in found.into_iter().zip(answers) {
            let (app, endpoint_name) =
                (names.get(&delivery.endpoint.0).cloned()).unwrap_or_default();
            let attempts: Vec<String> = read(attempts)?;
            listed.push(Listed {
                delivery,
                app,
                endpoint_name,
                attempts: attempts.iter().filter_map(|text| attempt(text)).collect(),
            });
        }
        Ok(listed)
    }
}

fn attempt(text: &str) -> Option<Attempt> {
    let (at_ms, took_ms, status, error) = serde_json::from_str(text).ok()?;
    Some(Attempt {
        at_ms,
        took_ms,
        status,
        error,
    })
}

fn delivery(id: String, mut fields: HashMap<String, String>) -> Option<Delivery> {
    let mut take = |name: &str| fields.remove(name);
    let channels: Vec<String> = serde_json::from_str(&take("channels")?).ok()?;
    Some(Delivery {
        id,
        endpoint: EndpointId(take("endpoint")?.parse().ok()?),
        state: State::named(&take("state")?),
        created_ms: take("created_ms")?.parse().ok()?,
        expires_ms: take("expires_ms")?.parse().ok()?,
        seqs: serde_json::from_str(&take("seqs")?).ok()?,
        channels: channels.into_iter().map(Into::into).collect(),
        key: take("key")?,
        signature: take("signature")?,
        body: take("body")
            .filter(|body| !body.is_empty())
            .map(Bytes::from),
        is_replay: take("is_replay")? == "1",
    })
}

fn last_seq(delivery: &Delivery) -> u64 {
    delivery.seqs.iter().max().copied().unwrap_or_default()
}

fn write_subject(subject: &Subject) -> String {
    let ChannelId { app, name } = &subject.channel;
    json(&(app.as_str(), name.as_str(), subject.user_id.as_deref()))
}

fn read_subject(text: &str) -> Option<Subject> {
    let (app, name, user_id): (String, String, Option<String>) = serde_json::from_str(text).ok()?;
    let name = ChannelName::parse(&name, name.len()).ok()?;
    Some(Subject {
        channel: ChannelId::new(&AppId::new(&app), &name),
        user_id: user_id.map(Into::into),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("numbers and strings are JSON")
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, StoreError> {
    if let Value::ServerError(error) = &value {
        return Err(StoreError(format!("Redis: {error:?}").into()));
    }
    from_redis_value(value).map_err(|error| StoreError(format!("Redis: {error}").into()))
}

/// The lease, as one that is not ours yet asks for it.
pub(in crate::webhooks) fn take_lease(prefix: &str, token: &str, lease: Duration) -> Cmd {
    let mut take = cmd("SET");
    let ms = lease.as_millis() as u64;
    take.arg(format!("{prefix}lease"))
        .arg(token)
        .arg("NX")
        .arg("PX")
        .arg(ms);
    take
}

/// Prolongs the lease if it is ours, or gives it back if `lease` is none.
pub(in crate::webhooks) fn keep_lease(prefix: &str, token: &str, lease: Option<Duration>) -> Cmd {
    let key = format!("{prefix}lease");
    let mut step = Step::default();
    match lease {
        Some(lease) => step.add(&[&"PEXPIRE", &key, &(lease.as_millis() as u64)]),
        None => step.add(&[&"DEL", &key]),
    };
    let mut script = cmd("EVAL");
    script.arg(FENCED).arg(1).arg(&key).arg(token);
    for words in step.0 {
        script.arg(words.len());
        for word in words {
            script.arg(word);
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::super::testing::{append, attempt, delivery, named, occupied};
    use super::*;
    use crate::webhooks::cluster::testing::LocalRedis;

    async fn store(redis: &LocalRedis) -> (Shared, EndpointId) {
        let places = redis.places().await;
        let lease = take_lease(&places.home(), "mine", Duration::from_secs(60));
        places.at_home(vec![lease]).await.unwrap();
        let store = Shared::open(places, "mine".to_owned()).await.unwrap();
        let ids = store.activate(vec![named("hook")]).await.unwrap();
        (store, ids[0])
    }

    #[tokio::test]
    async fn another_node_goes_on_where_the_last_one_was() {
        let redis = LocalRedis::start().await;
        let (store, id) = store(&redis).await;
        append(&store, &["a", "b", "c", "d", "e"]).await;
        let mut leaving = occupied("a");
        leaving.json = None;
        leaving.told = leaving.told.map(|(subject, _)| (subject, Told::Leaving));
        let mut gone = occupied("b");
        gone.json = None;
        gone.told = gone.told.map(|(subject, _)| (subject, Told::Gone));
        let position = vec![(3, "7-1".to_owned()), (5, "9-0".to_owned())];
        store
            .append(Arc::new(vec![leaving, gone]), now_ms(), position.clone())
            .await
            .unwrap();
        let pending = delivery(id, "pending", State::Pending, &[3, 4]);
        let over = delivery(id, "over", State::Pending, &[2, 5]);
        store
            .begin(Arc::new(vec![over, pending.clone()]))
            .await
            .unwrap();
        store
            .attempted("pending", attempt(500), State::Pending, true)
            .await
            .unwrap();
        store
            .attempted("over", attempt(200), State::Delivered, false)
            .await
            .unwrap();
        store.advance(id, 1).await.unwrap();

        let places = redis.places().await;
        let next = Shared::open(places, "mine".to_owned()).await.unwrap();
        assert_eq!(next.activate(vec![named("hook")]).await.unwrap(), [id]);
        let resumed = next.resume(id).await.unwrap();
        assert_eq!((resumed.cursor, resumed.pending), (1, vec![pending]));
        let mut taken = resumed.taken;
        taken.sort_unstable();
        assert_eq!(taken, [2, 3, 4, 5]);
        let mut found = next.position().await.unwrap();
        found.sort();
        assert_eq!(found, position);
        let told = next.told().await.unwrap();
        let mut told: Vec<_> = (told.iter())
            .map(|(subject, away)| (subject.channel.name.as_str(), away.is_some()))
            .collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [("a", true), ("c", false), ("d", false), ("e", false)]
        );
        append(&next, &["f"]).await;
        let read = next.read(&AppId::new("1"), 4, 10).await.unwrap();
        let read: Vec<_> = read
            .iter()
            .map(|event| (event.seq, &*event.channel))
            .collect();
        assert_eq!(read, [(5, "e"), (6, "f")]);
        assert_eq!(next.tidy(0).await.unwrap(), Lost::default());
        assert_eq!(next.read(&AppId::new("1"), 0, 1).await.unwrap()[0].seq, 2);
    }

    #[tokio::test]
    async fn who_has_lost_the_lease_changes_nothing() {
        let redis = LocalRedis::start().await;
        let (store, id) = store(&redis).await;
        append(&store, &["a"]).await;
        let places = redis.places().await;
        let mut take = cmd("SET");
        take.arg(format!("{}lease", places.home())).arg("another");
        places.at_home(vec![take]).await.unwrap();
        let entries = Arc::new(vec![occupied("b")]);
        assert!(store.append(entries, 5, vec![]).await.is_err());
        assert!(store.advance(id, 1).await.is_err());
        let other = Shared::open(places, "another".to_owned()).await.unwrap();
        assert_eq!(other.read(&AppId::new("1"), 0, 9).await.unwrap().len(), 1);
        assert_eq!(other.resume(id).await.unwrap().cursor, 0);
    }

    #[tokio::test]
    async fn an_append_whose_answer_was_lost_is_not_done_twice() {
        let redis = LocalRedis::start().await;
        let (store, _) = store(&redis).await;
        append(&store, &["a"]).await;
        *store.seq.lock().await = 0;
        append(&store, &["a"]).await;
        append(&store, &["b"]).await;
        let read = store.read(&AppId::new("1"), 0, 9).await.unwrap();
        assert_eq!(read.len(), 2);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_gone_leaves_dead_letters_and_a_replay_keeps_its_id() {
        let redis = LocalRedis::start().await;
        let (store, id) = store(&redis).await;
        append(&store, &["a"]).await;
        let pending = delivery(id, "d", State::Pending, &[1]);
        store.begin(Arc::new(vec![pending.clone()])).await.unwrap();
        let other = store.activate(vec![named("other")]).await.unwrap()[0];
        assert_eq!(store.resume(other).await.unwrap().cursor, 1);
        assert!(store.resume(id).await.unwrap().pending.is_empty());
        assert_eq!(store.activate(vec![named("hook")]).await.unwrap(), [id]);
        let mut replay = Step::default();
        replay.add(&[&"SADD", &store.of("replay", id.0), &"d"]);
        store.run(replay).await.unwrap();
        let found = store.replays(id, 9).await.unwrap();
        assert_eq!((found.len(), found[0].state), (1, State::Dead));
        let renewed = Delivery {
            is_replay: true,
            ..pending
        };
        store.renew(renewed.clone()).await.unwrap();
        assert!(store.replays(id, 9).await.unwrap().is_empty());
        assert_eq!(store.resume(id).await.unwrap().pending, [renewed]);
    }
}
