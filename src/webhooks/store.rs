//! Where events and deliveries are kept: an SQLite database in a directory, or the same in memory.
//!
//! Events stand once in a log, each endpoint has a cursor on it. One thread owns the database and
//! puts everything that waits for it into one transaction, so that the log keeps up with many
//! events and a delivery is on disk before it is first sent. The command `raptor webhooks` reads
//! and marks the same database from another process.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::settings::Settings;
use super::settle::Subject;
use crate::model::{AppId, ChannelId, ChannelName};

/// Writers that may wait for the database.
const TASKS_MAX: usize = 1_024;
/// Tasks of one transaction.
const GROUP_TASKS_MAX: usize = 256;
/// Deliveries that are over, and kept only to be looked at.
const DELIVERED_MAX: usize = 10_000;
/// Deliveries, or events, that make room together.
const AT_ONCE: usize = 1_000;
/// For the other process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The newest form of the tables that this program knows.
const SCHEMA_VERSION: i64 = 1;
const DATABASE: &str = "webhooks.sqlite";
const OWNER: &str = "owner.sqlite";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    name TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    json TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_of_app ON events (app, seq);
CREATE TABLE IF NOT EXISTS journal (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    committed INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO journal (one, committed) VALUES (1, 0);
CREATE TABLE IF NOT EXISTS told (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    user_id TEXT NOT NULL,
    is_user INTEGER NOT NULL,
    PRIMARY KEY (app, channel, is_user, user_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS endpoints (
    id INTEGER PRIMARY KEY,
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    is_active INTEGER NOT NULL,
    cursor INTEGER NOT NULL,
    UNIQUE (app, name)
) STRICT;
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT PRIMARY KEY,
    endpoint INTEGER NOT NULL,
    state TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    is_replay INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL,
    seqs TEXT NOT NULL,
    channels TEXT NOT NULL,
    key TEXT NOT NULL,
    signature TEXT NOT NULL,
    body TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_of_endpoint ON deliveries (endpoint, last_seq);
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (state, created_ms);
CREATE TABLE IF NOT EXISTS attempts (
    delivery TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    took_ms INTEGER NOT NULL,
    status INTEGER,
    error TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS attempts_of_delivery ON attempts (delivery);
";

/// An event in the log.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Event {
    /// Grows along the log.
    pub seq: u64,
    pub channel: Arc<str>,
    pub name: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// As it stands in a body.
    pub json: Arc<str>,
}

/// What becomes an event in the log, and what an application then believes.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub app: AppId,
    pub channel: Arc<str>,
    pub name: &'static str,
    /// Absent if no endpoint wants it.
    pub json: Option<String>,
    pub told: Option<(Subject, bool)>,
}

/// One request, the same at each attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// 32 hex digits.
    pub id: String,
    pub endpoint: EndpointId,
    pub state: State,
    /// Milliseconds since 1970; the body's `time_ms`.
    pub created_ms: u64,
    /// No attempt begins after it, but for the first.
    pub expires_ms: u64,
    /// Of its events in the log.
    pub seqs: Vec<u64>,
    /// Each once.
    pub channels: Vec<Arc<str>>,
    /// The app key whose secret has signed the body.
    pub key: String,
    pub signature: String,
    /// Absent where it was not kept.
    pub body: Option<Bytes>,
    /// Whether it was over before. It then holds up no other delivery.
    pub is_replay: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EndpointId(i64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Being sent, or waiting to be sent again.
    Pending,
    Delivered,
    /// A dead letter.
    Dead,
    /// To be sent again though it was over.
    Replay,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Attempt {
    pub at_ms: u64,
    pub took_ms: u64,
    /// Of the answer, if there was one.
    pub status: Option<u16>,
    /// What went wrong, if it was not the status.
    pub error: Option<String>,
}

/// Where an endpoint was when the process ended.
#[derive(Debug)]
pub(super) struct Resumed {
    /// Every event up to here is over.
    pub cursor: u64,
    /// Events behind the cursor that are over or in `pending`.
    pub taken: Vec<u64>,
    pub pending: Vec<Delivery>,
}

/// What has been thrown away because the store was full.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Lost {
    pub dead_letters: usize,
    pub events: usize,
}

#[derive(Clone, Debug)]
pub struct StoreError(Arc<str>);

impl std::error::Error for StoreError {}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string().into())
    }
}

/// The store of the running server. Every write is over, and safe from the end of the process,
/// when its future is.
#[derive(Clone)]
pub(super) struct Store {
    tasks: mpsc::Sender<Box<dyn Task>>,
}

impl Store {
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        let (owner, database) = match &settings.dir {
            Some(dir) => {
                let cannot = |error: std::io::Error| {
                    StoreError(format!("cannot make {}: {error}", dir.display()).into())
                };
                std::fs::create_dir_all(dir).map_err(cannot)?;
                let owner = own(dir)?;
                let database = Connection::open(dir.join(DATABASE))?;
                database.pragma_update(None, "journal_mode", "WAL")?;
                (Some(owner), database)
            }
            None => (None, Connection::open_in_memory()?),
        };
        let synchronous = if settings.fsync { "FULL" } else { "NORMAL" };
        database.pragma_update(None, "synchronous", synchronous)?;
        database.busy_timeout(BUSY_TIMEOUT)?;
        database.set_prepared_statement_cache_capacity(64);
        let version: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(StoreError("it was written by a newer Raptor".into()));
        }
        database.execute_batch(SCHEMA)?;
        database.pragma_update(None, "user_version", SCHEMA_VERSION)?;

        let (tasks, waiting) = mpsc::channel(TASKS_MAX);
        std::thread::Builder::new()
            .name("webhooks-store".to_owned())
            .spawn(move || {
                work(database, waiting);
                drop(owner);
            })
            .map_err(|error| StoreError(error.to_string().into()))?;
        Ok(Self { tasks })
    }

    /// Those whom applications believe present.
    pub async fn told(&self) -> Result<Vec<Subject>, StoreError> {
        self.run(|db| {
            let mut query = db.prepare("SELECT app, channel, is_user, user_id FROM told")?;
            let rows = query.query_map([], |row| {
                let (app, channel): (String, String) = (row.get(0)?, row.get(1)?);
                let (is_user, user_id): (bool, String) = (row.get(2)?, row.get(3)?);
                let name = ChannelName::parse(&channel, channel.len().max(1));
                Ok(name.ok().map(|name| Subject {
                    channel: ChannelId::new(&AppId::new(&app), &name),
                    user_id: is_user.then(|| user_id.into()),
                }))
            })?;
            let rows: Result<Vec<_>, _> = rows.collect();
            Ok(rows?.into_iter().flatten().collect())
        })
        .await
    }

    /// The number of the first fact that is not yet among the events.
    pub async fn committed(&self) -> Result<u64, StoreError> {
        self.run(|db| {
            db.query_row("SELECT committed FROM journal", [], |row| {
                row.get::<_, i64>(0).map(|serial| serial as u64)
            })
        })
        .await
    }

    /// Adds events to the log. They are all that came of the facts before number `committed`.
    pub async fn append(
        &self,
        entries: Arc<Vec<Entry>>,
        at_ms: u64,
        committed: u64,
    ) -> Result<(), StoreError> {
        self.run(move |db| {
            db.prepare_cached("UPDATE journal SET committed = ?")?
                .execute([committed as i64])?;
            let mut insert = db.prepare_cached(
                "INSERT INTO events (app, channel, name, at_ms, json) VALUES (?, ?, ?, ?, ?)",
            )?;
            for entry in entries.iter() {
                let app = entry.app.as_str();
                if let Some((subject, is_present)) = &entry.told {
                    let sql = match is_present {
                        true => {
                            "INSERT OR IGNORE INTO told (app, channel, is_user, user_id) \
                             VALUES (?, ?, ?, ?)"
                        }
                        false => {
                            "DELETE FROM told \
                             WHERE app = ? AND channel = ? AND is_user = ? AND user_id = ?"
                        }
                    };
                    db.prepare_cached(sql)?.execute(params![
                        app,
                        subject.channel.name.as_str(),
                        subject.user_id.is_some(),
                        subject.user_id.as_deref().unwrap_or_default(),
                    ])?;
                }
                if let Some(json) = &entry.json {
                    let at_ms = at_ms as i64;
                    insert.execute(params![app, &*entry.channel, entry.name, at_ms, json])?;
                }
            }
            Ok(())
        })
        .await
    }

    /// The ids of an app's endpoints, given by app and name. One that was not active begins at the
    /// end of the log; what is on its way to one that is not given is dead.
    pub async fn activate(
        &self,
        endpoints: Vec<(AppId, String)>,
    ) -> Result<Vec<EndpointId>, StoreError> {
        self.run(move |db| {
            const END: &str = "ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";
            db.execute_batch("UPDATE endpoints SET is_active = is_active * 2")?;
            let mut ids = Vec::new();
            for (app, name) in &endpoints {
                let sql = format!(
                    "INSERT INTO endpoints (app, name, is_active, cursor) VALUES (?, ?, 1, {END}) \
                     ON CONFLICT DO UPDATE SET is_active = 1, \
                     cursor = CASE is_active WHEN 0 THEN {END} ELSE cursor END RETURNING id"
                );
                let id = db.query_row(&sql, params![app.as_str(), name], |row| row.get(0))?;
                ids.push(EndpointId(id));
            }
            db.execute_batch(
                "UPDATE endpoints SET is_active = 0 WHERE is_active = 2;
                 UPDATE deliveries SET state = 'dead' WHERE state IN ('pending', 'replay')
                 AND endpoint IN (SELECT id FROM endpoints WHERE NOT is_active);
                 DELETE FROM events
                 WHERE app NOT IN (SELECT app FROM endpoints WHERE is_active);",
            )?;
            Ok(ids)
        })
        .await
    }

    pub async fn resume(&self, endpoint: EndpointId) -> Result<Resumed, StoreError> {
        self.run(move |db| {
            let cursor: i64 = db.query_row(
                "SELECT cursor FROM endpoints WHERE id = ?",
                [endpoint.0],
                |row| row.get(0),
            )?;
            let mut query =
                db.prepare("SELECT seqs FROM deliveries WHERE endpoint = ? AND last_seq > ?")?;
            let rows =
                query.query_map(params![endpoint.0, cursor], |row| row.get::<_, String>(0))?;
            let mut taken = Vec::new();
            for row in rows {
                taken.extend(seqs(&row?));
            }
            let pending = deliveries(
                db,
                "endpoint = ? AND state = 'pending' ORDER BY last_seq",
                params![endpoint.0],
            )?;
            Ok(Resumed {
                cursor: cursor as u64,
                taken,
                pending,
            })
        })
        .await
    }

    /// Up to `events_max` events of the app behind `seq`.
    pub async fn read(
        &self,
        app: &AppId,
        seq: u64,
        events_max: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let app = app.to_string();
        self.run(move |db| {
            let mut query = db.prepare_cached(
                "SELECT seq, channel, name, at_ms, json FROM events \
                 WHERE app = ? AND seq > ? ORDER BY seq LIMIT ?",
            )?;
            let limit = events_max as i64;
            let rows = query.query_map(params![app, seq as i64, limit], |row| {
                Ok(Event {
                    seq: row.get::<_, i64>(0)? as u64,
                    channel: row.get::<_, String>(1)?.into(),
                    name: row.get(2)?,
                    at_ms: row.get::<_, i64>(3)? as u64,
                    json: row.get::<_, String>(4)?.into(),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Notes deliveries before their first attempt, or dead letters that had none.
    pub async fn begin(&self, begun: Arc<Vec<Delivery>>) -> Result<(), StoreError> {
        self.run(move |db| {
            let mut insert = db.prepare_cached(
                "INSERT INTO deliveries (id, endpoint, state, created_ms, expires_ms, last_seq, \
                 seqs, channels, key, signature, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            for delivery in begun.iter() {
                let body = delivery.body.as_deref();
                insert.execute(params![
                    delivery.id,
                    delivery.endpoint.0,
                    delivery.state.name(),
                    delivery.created_ms as i64,
                    delivery.expires_ms as i64,
                    delivery.seqs.iter().max().copied().unwrap_or_default() as i64,
                    json(&delivery.seqs),
                    json(&delivery.channels.iter().map(|c| &**c).collect::<Vec<_>>()),
                    delivery.key,
                    delivery.signature,
                    body.map(String::from_utf8_lossy),
                ])?;
            }
            Ok(())
        })
        .await
    }

    /// Notes an attempt and what the delivery is after it.
    pub async fn attempted(
        &self,
        id: &str,
        attempt: Attempt,
        state: State,
        keep_body: bool,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.run(move |db| {
            db.prepare_cached(
                "INSERT INTO attempts (delivery, at_ms, took_ms, status, error) \
                 VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id,
                attempt.at_ms as i64,
                attempt.took_ms as i64,
                attempt.status,
                attempt.error
            ])?;
            if state != State::Pending {
                db.prepare_cached(
                    "UPDATE deliveries SET state = ?, body = CASE WHEN ? THEN body END \
                     WHERE id = ?",
                )?
                .execute(params![state.name(), keep_body, id])?;
            }
            Ok(())
        })
        .await
    }

    /// Every event up to `cursor` is over for the endpoint.
    pub async fn advance(&self, endpoint: EndpointId, cursor: u64) -> Result<(), StoreError> {
        self.run(move |db| {
            db.prepare_cached("UPDATE endpoints SET cursor = ? WHERE id = ?")?
                .execute(params![cursor as i64, endpoint.0])?;
            Ok(())
        })
        .await
    }

    /// What somebody asked to be sent again.
    pub async fn replays(
        &self,
        endpoint: EndpointId,
        deliveries_max: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.run(move |db| {
            deliveries(
                db,
                "endpoint = ? AND state = 'replay' ORDER BY created_ms, last_seq LIMIT ?",
                params![endpoint.0, deliveries_max as i64],
            )
        })
        .await
    }

    /// Puts a replayed delivery with a time and a signature of today in the place of the old one.
    pub async fn renew(&self, delivery: Delivery) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute(
                "UPDATE deliveries SET state = 'pending', is_replay = 1, created_ms = ?, expires_ms = ?, \
                 key = ?, signature = ?, body = ? WHERE id = ?",
                params![
                    delivery.created_ms as i64,
                    delivery.expires_ms as i64,
                    delivery.key,
                    delivery.signature,
                    delivery.body.as_deref().map(String::from_utf8_lossy),
                    delivery.id,
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Deletes what nobody needs, and what no longer fits.
    pub async fn tidy(&self, bytes_max: usize) -> Result<Lost, StoreError> {
        self.run(move |db| tidy(db, bytes_max)).await
    }

    /// Deliveries and events that are not over.
    pub async fn unfinished(&self) -> Result<usize, StoreError> {
        self.run(|db| {
            db.query_row(
                "SELECT (SELECT count(*) FROM deliveries WHERE state = 'pending') + \
                 (SELECT count(*) FROM events e JOIN endpoints p \
                  ON p.app = e.app AND p.is_active AND e.seq > p.cursor)",
                [],
                |row| row.get::<_, i64>(0).map(|count| count as usize),
            )
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let task = Work {
            work: Some(work),
            outcome: None,
            reply,
        };
        let ended = || StoreError("the store has ended".into());
        let sent = self.tasks.send(Box::new(task)).await;
        sent.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// What is done in one transaction with others.
trait Task: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Work<F, T> {
    work: Option<F>,
    outcome: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Task for Work<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.outcome = Some(work(db)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let missing = || StoreError("the transaction was given up".into());
        let Self { outcome, reply, .. } = *self;
        // Who no longer waits does not need it.
        let _ = reply.send(committed.and_then(|()| outcome.ok_or_else(missing)));
    }
}

/// Ends when the last [`Store`] has gone.
fn work(mut db: Connection, mut waiting: mpsc::Receiver<Box<dyn Task>>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_TASKS_MAX
            && let Ok(task) = waiting.try_recv()
        {
            group.push(task);
        }
        let committed = commit(&mut db, &mut group).map_err(StoreError::from);
        for task in group {
            task.answer(committed.clone());
        }
    }
}

fn commit(db: &mut Connection, group: &mut [Box<dyn Task>]) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for task in group {
        task.run(&transaction)?;
    }
    transaction.commit()
}

/// Keeps the directory from a second server, until it is dropped or the process ends.
fn own(dir: &Path) -> Result<Connection, StoreError> {
    let owner = Connection::open(dir.join(OWNER))?;
    owner
        .execute_batch("BEGIN EXCLUSIVE")
        .map_err(|_| StoreError(format!("another server uses {}", dir.display()).into()))?;
    Ok(owner)
}

fn tidy(db: &Connection, bytes_max: usize) -> rusqlite::Result<Lost> {
    let cursors = {
        let mut query = db.prepare_cached(
            "SELECT app, min(cursor) FROM endpoints WHERE is_active GROUP BY app",
        )?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<Vec<(String, i64)>>>()?
    };
    for (app, cursor) in cursors {
        db.prepare_cached("DELETE FROM events WHERE app = ? AND seq <= ?")?
            .execute(params![app, cursor])?;
    }
    // Whoever resumes must know which events behind the cursor are over.
    const IS_OLD: &str = "last_seq <= \
                          (SELECT cursor FROM endpoints WHERE endpoints.id = deliveries.endpoint)";
    let surplus =
        format!("state = 'delivered' AND {IS_OLD} ORDER BY created_ms DESC LIMIT -1 OFFSET ?");
    forget(db, &surplus, DELIVERED_MAX)?;
    let mut lost = Lost::default();
    while used_bytes(db)? > bytes_max as u64 {
        let over = format!("{IS_OLD} ORDER BY created_ms LIMIT ?");
        if forget(db, &format!("state = 'delivered' AND {over}"), AT_ONCE)? > 0 {
            continue;
        }
        match forget(db, &format!("state = 'dead' AND {over}"), AT_ONCE)? {
            0 => {}
            forgotten => {
                lost.dead_letters += forgotten;
                continue;
            }
        }
        match db.execute(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT ?)",
            [AT_ONCE as i64],
        )? {
            0 => break,
            forgotten => lost.events += forgotten,
        }
    }
    Ok(lost)
}

/// Deletes deliveries with their attempts. `which` ends in a bound parameter.
fn forget(db: &Connection, which: &str, bound: usize) -> rusqlite::Result<usize> {
    let chosen = format!("SELECT id FROM deliveries WHERE {which}");
    db.prepare_cached(&format!(
        "DELETE FROM attempts WHERE delivery IN ({chosen})"
    ))?
    .execute([bound as i64])?;
    db.prepare_cached(&format!("DELETE FROM deliveries WHERE id IN ({chosen})"))?
        .execute([bound as i64])
}

/// Free pages are used again before the file grows.
fn used_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let used = (number("page_count")? - number("freelist_count")?) * number("page_size")?;
    Ok(used as u64)
}

const COLUMNS: &str = "id, endpoint, state, created_ms, expires_ms, seqs, channels, key, \
                       signature, body, is_replay";

fn deliveries(
    db: &Connection,
    which: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!("SELECT {COLUMNS} FROM deliveries WHERE {which}");
    let mut query = db.prepare_cached(&sql)?;
    query.query_map(parameters, delivery)?.collect()
}

fn delivery(row: &Row) -> rusqlite::Result<Delivery> {
    let channels: String = row.get(6)?;
    let channels: Vec<String> = serde_json::from_str(&channels).unwrap_or_default();
    Ok(Delivery {
        id: row.get(0)?,
        endpoint: EndpointId(row.get(1)?),
        state: State::named(&row.get::<_, String>(2)?),
        created_ms: row.get::<_, i64>(3)? as u64,
        expires_ms: row.get::<_, i64>(4)? as u64,
        seqs: seqs(&row.get::<_, String>(5)?),
        channels: channels.into_iter().map(Into::into).collect(),
        key: row.get(7)?,
        signature: row.get(8)?,
        body: row.get::<_, Option<String>>(9)?.map(Bytes::from),
        is_replay: row.get(10)?,
    })
}

fn seqs(text: &str) -> Vec<u64> {
    serde_json::from_str(text).unwrap_or_default()
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("numbers and strings are JSON")
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Replay => "replay",
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "pending" => Self::Pending,
            "delivered" => Self::Delivered,
            "replay" => Self::Replay,
            _ => Self::Dead,
        }
    }
}

/// The store of a directory, beside a running server or after it.
pub struct Archive {
    db: Connection,
}

/// A delivery as lists show it.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    pub delivery: Delivery,
    pub app: String,
    pub endpoint_name: String,
    pub attempts: Vec<Attempt>,
}

impl Archive {
    /// Never makes a store where none is.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path: PathBuf = dir.join(DATABASE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(|error| {
            StoreError(format!("cannot open {}: {error}", path.display()).into())
        })?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self { db })
    }

    /// The newest deliveries, newest first, of one state or of all.
    pub fn list(
        &self,
        state: Option<State>,
        deliveries_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let found = deliveries(
            &self.db,
            "state = ifnull(?, state) ORDER BY created_ms DESC, last_seq DESC LIMIT ?",
            params![state.map(State::name), deliveries_max as i64],
        )?;
        found.into_iter().map(|found| self.listed(found)).collect()
    }

    pub fn find(&self, id: &str) -> Result<Option<Listed>, StoreError> {
        let found = deliveries(&self.db, "id = ?", params![id])?;
        (found.into_iter().next())
            .map(|found| self.listed(found))
            .transpose()
    }

    /// Asks the server to send the delivery again. `false` if it is not there, not over, or its
    /// body was not kept.
    pub fn replay(&self, id: &str) -> Result<bool, StoreError> {
        let marked = self.db.execute(
            "UPDATE deliveries SET state = 'replay' \
             WHERE id = ? AND state IN ('dead', 'delivered') AND body IS NOT NULL",
            params![id],
        )?;
        Ok(marked > 0)
    }

    /// The same for every dead letter; how many there are.
    pub fn replay_dead(&self) -> Result<usize, StoreError> {
        let sql = "UPDATE deliveries SET state = 'replay' WHERE state = 'dead'";
        Ok(self.db.execute(sql, [])?)
    }

    fn listed(&self, delivery: Delivery) -> Result<Listed, StoreError> {
        let endpoint = self
            .db
            .prepare_cached("SELECT app, name FROM endpoints WHERE id = ?")?
            .query_row([delivery.endpoint.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (app, endpoint_name) = endpoint.unwrap_or_default();
        let mut query = self.db.prepare_cached(
            "SELECT at_ms, took_ms, status, error FROM attempts \
             WHERE delivery = ? ORDER BY rowid",
        )?;
        let attempts = query.query_map([&delivery.id], |row| {
            Ok(Attempt {
                at_ms: row.get::<_, i64>(0)? as u64,
                took_ms: row.get::<_, i64>(1)? as u64,
                status: row.get(2)?,
                error: row.get(3)?,
            })
        })?;
        Ok(Listed {
            attempts: attempts.collect::<Result<_, _>>()?,
            delivery,
            app,
            endpoint_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(store_bytes_max: usize) -> Settings {
        Settings {
            store_bytes_max,
            ..Settings::default()
        }
    }

    /// A store in memory with one endpoint of app 1.
    async fn store() -> (Store, EndpointId) {
        let store = Store::open(&settings(0)).unwrap();
        let ids = store.activate(vec![named("hook")]).await.unwrap();
        (store, ids[0])
    }

    fn named(name: &str) -> (AppId, String) {
        (AppId::new("1"), name.to_owned())
    }

    fn occupied(channel: &str) -> Entry {
        let name = ChannelName::parse(channel, 200).unwrap();
        let app = AppId::new("1");
        let subject = Subject {
            channel: ChannelId::new(&app, &name),
            user_id: None,
        };
        Entry {
            app,
            channel: channel.into(),
            name: "channel_occupied",
            json: Some(format!("{{{channel}}}")),
            told: Some((subject, true)),
        }
    }

    async fn append(store: &Store, channels: &[&str]) {
        let entries = channels.iter().map(|channel| occupied(channel)).collect();
        store.append(Arc::new(entries), 5, 0).await.unwrap();
    }

    fn delivery(endpoint: EndpointId, id: &str, state: State, seqs: &[u64]) -> Delivery {
        Delivery {
            id: id.to_owned(),
            endpoint,
            state,
            created_ms: seqs[0],
            expires_ms: 9,
            seqs: seqs.to_vec(),
            channels: vec!["a".into(), "b\"".into()],
            key: "k".to_owned(),
            signature: "s".to_owned(),
            body: Some(Bytes::from("{}")),
            is_replay: false,
        }
    }

    async fn begin(store: &Store, deliveries: Vec<Delivery>) {
        store.begin(Arc::new(deliveries)).await.unwrap();
    }

    fn attempt(status: u16) -> Attempt {
        Attempt {
            at_ms: 1,
            took_ms: 2,
            status: Some(status),
            error: None,
        }
    }

    #[tokio::test]
    async fn events_are_read_from_a_place_in_the_order_of_the_log() {
        let (store, _) = store().await;
        append(&store, &["a", "b", "c"]).await;
        let read = store.read(&AppId::new("1"), 1, 10).await.unwrap();
        let channels: Vec<_> = read
            .iter()
            .map(|event| (event.seq, &*event.channel))
            .collect();
        assert_eq!(channels, [(2, "b"), (3, "c")]);
        assert_eq!(&*read[0].json, "{b}");
        assert!(
            store
                .read(&AppId::new("2"), 0, 10)
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(store.read(&AppId::new("1"), 0, 2).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_applications_were_told_is_known() {
        let (store, _) = store().await;
        append(&store, &["a", "b"]).await;
        let mut gone = occupied("a");
        gone.json = None;
        gone.told = gone.told.map(|(subject, _)| (subject, false));
        store.append(Arc::new(vec![gone]), 5, 7).await.unwrap();
        let told = store.told().await.unwrap();
        let names: Vec<_> = told.iter().map(|told| told.channel.name.as_str()).collect();
        assert_eq!(names, ["b"]);
        assert_eq!(store.committed().await.unwrap(), 7);
        assert_eq!(store.read(&AppId::new("1"), 0, 10).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn an_endpoint_goes_on_where_it_was() {
        let (store, id) = store().await;
        append(&store, &["a", "b", "c", "d", "e"]).await;
        let pending = delivery(id, "pending", State::Pending, &[3, 4]);
        let over = delivery(id, "over", State::Pending, &[2, 5]);
        begin(&store, vec![over, pending.clone()]).await;
        store
            .attempted("pending", attempt(500), State::Pending, true)
            .await
            .unwrap();
        store
            .attempted("over", attempt(200), State::Delivered, false)
            .await
            .unwrap();
        store.advance(id, 1).await.unwrap();
        let resumed = store.resume(id).await.unwrap();
        assert_eq!(resumed.cursor, 1);
        let mut taken = resumed.taken;
        taken.sort_unstable();
        assert_eq!(taken, [2, 3, 4, 5]);
        assert_eq!(resumed.pending, [pending]);
        assert_eq!(store.unfinished().await.unwrap(), 1 + 4);
    }

    #[tokio::test]
    async fn a_new_endpoint_begins_at_the_end_and_one_that_is_gone_leaves_dead_letters() {
        let (store, id) = store().await;
        append(&store, &["a"]).await;
        begin(&store, vec![delivery(id, "d", State::Pending, &[1])]).await;
        let ids = store.activate(vec![named("other")]).await.unwrap();
        assert_ne!(ids, [id]);
        assert_eq!(store.resume(ids[0]).await.unwrap().cursor, 1);
        assert!(store.resume(id).await.unwrap().pending.is_empty());
        append(&store, &["b"]).await;
        let both = store
            .activate(vec![named("hook"), named("other")])
            .await
            .unwrap();
        assert_eq!(both, [id, ids[0]]);
        assert_eq!(
            store.resume(both[0]).await.unwrap().cursor,
            2,
            "it was away"
        );
        assert_eq!(store.resume(both[1]).await.unwrap().cursor, 1, "it was not");
    }

    #[tokio::test]
    async fn events_go_when_every_endpoint_is_done_with_them() {
        let (store, first) = store().await;
        let ids = store
            .activate(vec![named("hook"), named("two")])
            .await
            .unwrap();
        append(&store, &["a", "b", "c"]).await;
        store.advance(first, 3).await.unwrap();
        store.advance(ids[1], 2).await.unwrap();
        assert_eq!(store.tidy(usize::MAX >> 1).await.unwrap(), Lost::default());
        let left = store.read(&AppId::new("1"), 0, 10).await.unwrap();
        assert_eq!(left.iter().map(|event| event.seq).collect::<Vec<_>>(), [3]);
    }

    #[tokio::test]
    async fn a_full_store_throws_away_the_delivered_then_the_dead_then_events() {
        let (store, id) = store().await;
        let large = |id_text: String, state| Delivery {
            body: Some(Bytes::from("x".repeat(1_000))),
            ..delivery(id, &id_text, state, &[1])
        };
        let many =
            |state: State| (0..2_000).map(move |n| large(format!("{}{n}", state.name()), state));
        append(&store, &["a"]).await;
        store.advance(id, 1).await.unwrap();
        begin(
            &store,
            many(State::Delivered).chain(many(State::Dead)).collect(),
        )
        .await;
        for _ in 0..40 {
            append(&store, &["x"; 200].map(|name| name)).await;
        }
        let count = |state: State| {
            store.run(move |db| {
                let sql = "SELECT count(*) FROM deliveries WHERE state = ?";
                db.query_row(sql, [state.name()], |row| row.get::<_, i64>(0))
            })
        };
        assert_eq!(store.tidy(5_000_000).await.unwrap(), Lost::default());
        assert!(count(State::Delivered).await.unwrap() < 2_000);
        assert_eq!(count(State::Dead).await.unwrap(), 2_000);
        let lost = store.tidy(2_000_000).await.unwrap();
        assert_eq!((lost.dead_letters > 0, lost.events), (true, 0));
        let lost = store.tidy(300_000).await.unwrap();
        assert!(lost.events > 0);
        let used = store.run(used_bytes).await.unwrap();
        assert!(used <= 300_000, "{used}");
        let left = store.read(&AppId::new("1"), 0, 1).await.unwrap();
        assert!(left[0].seq > 1_000, "the oldest went");
    }

    #[tokio::test]
    async fn a_replay_is_found_once_and_keeps_its_id() {
        let (store, id) = store().await;
        begin(&store, vec![delivery(id, "d", State::Dead, &[1])]).await;
        store
            .run(|db| db.execute("UPDATE deliveries SET state = 'replay'", []))
            .await
            .unwrap();
        let mut found = store.replays(id, 10).await.unwrap();
        let renewed = Delivery {
            created_ms: 77,
            state: State::Pending,
            is_replay: true,
            ..found.remove(0)
        };
        store.renew(renewed.clone()).await.unwrap();
        assert!(store.replays(id, 10).await.unwrap().is_empty());
        assert_eq!(store.resume(id).await.unwrap().pending, [renewed]);
    }

    #[tokio::test]
    async fn a_write_that_fails_is_told_and_the_next_one_is_done() {
        let (store, id) = store().await;
        let twice = vec![delivery(id, "d", State::Pending, &[1]); 2];
        assert!(store.begin(Arc::new(twice)).await.is_err());
        begin(&store, vec![delivery(id, "d", State::Pending, &[1])]).await;
        assert_eq!(store.resume(id).await.unwrap().pending.len(), 1);
    }
}
