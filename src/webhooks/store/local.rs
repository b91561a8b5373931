//! Where events and deliveries are kept: an SQLite database in a directory, or the same in memory.
//!
//! Events stand once in a log, each endpoint has a cursor on it. One thread owns the database and
//! puts everything that waits for it into one transaction, so that the log keeps up with many
//! events and a delivery is on disk before it is first sent. The command `raptor webhooks` reads
//! and marks the same database from another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::archive::Listed;
use super::{
    Attempt, Delivery, EndpointId, Entry, Event, Kept, Lost, Position, Resumed, State, Store,
    StoreError,
};
use crate::model::{AppId, ChannelId, ChannelName};
use crate::webhooks::settings::Settings;
use crate::webhooks::settle::{Subject, Told};

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

#[derive(Clone)]
pub(in crate::webhooks) struct Local {
    tasks: mpsc::Sender<Box<dyn Task>>,
}

impl Local {
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

    fn run<'a, T: Send + 'static>(
        &'a self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Kept<'a, T> {
        let (reply, answer) = oneshot::channel();
        let task = Work {
            work: Some(work),
            outcome: None,
            reply,
        };
        let ended = || StoreError("the store has ended".into());
        Box::pin(async move {
            let sent = self.tasks.send(Box::new(task)).await;
            sent.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        })
    }
}

impl Store for Local {
    fn told(&self) -> Kept<'_, Vec<(Subject, Option<Duration>)>> {
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
            let present = rows?.into_iter().flatten();
            // Nobody is there when this is asked: the time since they left does not matter.
            Ok(present.map(|subject| (subject, None)).collect())
        })
    }

    fn position(&self) -> Kept<'_, Position> {
        self.run(|db| {
            let committed: i64 =
                db.query_row("SELECT committed FROM journal", [], |row| row.get(0))?;
            Ok(vec![(0, committed.to_string())])
        })
    }

    fn append(&self, entries: Arc<Vec<Entry>>, at_ms: u64, position: Position) -> Kept<'_, ()> {
        self.run(move |db| {
            let committed = position.first().and_then(|(_, text)| text.parse().ok());
            db.prepare_cached("UPDATE journal SET committed = ?")?
                .execute([committed.unwrap_or(0_i64)])?;
            let mut insert = db.prepare_cached(
                "INSERT INTO events (app, channel, name, at_ms, json) VALUES (?, ?, ?, ?, ?)",
            )?;
            for entry in entries.iter() {
                let app = entry.app.as_str();
                if let Some((subject, told)) = &entry.told {
                    let sql = match told {
                        Told::Present | Told::Leaving => {
                            "INSERT OR IGNORE INTO told (app, channel, is_user, user_id) \
                             VALUES (?, ?, ?, ?)"
                        }
                        Told::Gone => {
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
    }

    fn activate(&self, endpoints: Vec<(AppId, String)>) -> Kept<'_, Vec<EndpointId>> {
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
    }

    fn resume(&self, endpoint: EndpointId) -> Kept<'_, Resumed> {
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
    }

    fn read<'a>(&'a self, app: &AppId, seq: u64, events_max: usize) -> Kept<'a, Vec<Event>> {
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
    }

    fn begin(&self, begun: Arc<Vec<Delivery>>) -> Kept<'_, ()> {
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
    }

    fn attempted<'a>(
        &'a self,
        id: &str,
        attempt: Attempt,
        state: State,
        keep_body: bool,
    ) -> Kept<'a, ()> {
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
    }

    fn advance(&self, endpoint: EndpointId, cursor: u64) -> Kept<'_, ()> {
        self.run(move |db| {
            db.prepare_cached("UPDATE endpoints SET cursor = ? WHERE id = ?")?
                .execute(params![cursor as i64, endpoint.0])?;
            Ok(())
        })
    }

    fn replays(&self, endpoint: EndpointId, deliveries_max: usize) -> Kept<'_, Vec<Delivery>> {
        self.run(move |db| {
            deliveries(
                db,
                "endpoint = ? AND state = 'replay' ORDER BY created_ms, last_seq LIMIT ?",
                params![endpoint.0, deliveries_max as i64],
            )
        })
    }

    fn renew(&self, delivery: Delivery) -> Kept<'_, ()> {
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
    }

    fn tidy(&self, bytes_max: usize) -> Kept<'_, Lost> {
        self.run(move |db| tidy(db, bytes_max))
    }

    fn unfinished(&self) -> Kept<'_, usize> {
        self.run(|db| {
            db.query_row(
                "SELECT (SELECT count(*) FROM deliveries WHERE state = 'pending') + \
                 (SELECT count(*) FROM events e JOIN endpoints p \
                  ON p.app = e.app AND p.is_active AND e.seq > p.cursor)",
                [],
                |row| row.get::<_, i64>(0).map(|count| count as usize),
            )
        })
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string().into())
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

/// Ends when the last [`Local`] has gone.
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

/// See [`super::Archive`].
pub struct Archive {
    db: Connection,
}

impl Archive {
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path: PathBuf = dir.join(DATABASE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(|error| {
            StoreError(format!("cannot open {}: {error}", path.display()).into())
        })?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self { db })
    }

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

    pub fn replay(&self, id: &str) -> Result<bool, StoreError> {
        let marked = self.db.execute(
            "UPDATE deliveries SET state = 'replay' \
             WHERE id = ? AND state IN ('dead', 'delivered') AND body IS NOT NULL",
            params![id],
        )?;
        Ok(marked > 0)
    }

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
    use super::super::testing::{append, attempt, delivery, named, occupied};
    use super::*;

    fn settings(store_bytes_max: usize) -> Settings {
        Settings {
            store_bytes_max,
            ..Settings::default()
        }
    }

    /// A store in memory with one endpoint of app 1.
    async fn store() -> (Local, EndpointId) {
        let store = Local::open(&settings(0)).unwrap();
        let ids = store.activate(vec![named("hook")]).await.unwrap();
        (store, ids[0])
    }

    async fn begin(store: &Local, deliveries: Vec<Delivery>) {
        store.begin(Arc::new(deliveries)).await.unwrap();
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
        gone.told = gone.told.map(|(subject, _)| (subject, Told::Gone));
        let position = vec![(0, "7".to_owned())];
        store
            .append(Arc::new(vec![gone]), 5, position)
            .await
            .unwrap();
        let told = store.told().await.unwrap();
        let names: Vec<_> = told
            .iter()
            .map(|(told, _)| told.channel.name.as_str())
            .collect();
        assert_eq!(names, ["b"]);
        assert_eq!(store.position().await.unwrap(), [(0, "7".to_owned())]);
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
