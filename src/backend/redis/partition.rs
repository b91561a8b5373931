//! One partition on this node: two tasks and what they share.
//!
//! *Membership* takes joins and leaves one batch after the other, so that Redis hears of them in
//! the order in which the hub does. It alone waits for Redis. *Delivery* hands over what the
//! subscription hears, in its order, and waits for nobody but the hub.
//!
//! ```text
//!      the link is up: subscribe, begin a session, read the log, state what waits, say what is held
//!   away ───────────────────────────────────────────────────────────────────────────► in sync
//!     ▲                                                                                  │
//!     └────────────────────────────────── the link broke ────────────────────────────────┘
//! ```
//!
//! While away the hub alone decides. A session that Redis does not know (this node was declared
//! dead, or Redis lost its data) is begun anew from what the hub holds.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::link::{Broken, Up, subscribe_verb};
use super::record;
use super::scripts::{self, with};
use super::unstated::Unstated;
use super::view::{Change, View};
use super::{Inner, Status, now_us};
use crate::backend::{Joined, Joining, Left};
use crate::hub::{MemberLimitReached, Roster};
use crate::metrics::WEBHOOK_EVENTS_LOST;
use crate::model::{
    AppId, Body, ChannelFact, ChannelId, ChannelName, Event, EventId, FactKind, Member, SocketId,
    UserId,
};

const REQUESTS_MAX: usize = 1024;
const BATCH_MAX: usize = 256;
/// Records that may wait for their delivery in one partition.
const DELIVERIES_MAX: usize = 65_536;
/// Bytes of records that may wait in all partitions together.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Event ids remembered to recognise repeats: more than the log of a partition holds.
const SEEN_MAX: usize = 4096;
pub const LOG_RECORDS_MAX: usize = 1000;
/// A channel stays subscribed for so long after its last subscriber: flapping is cheap.
const LINGER: Duration = Duration::from_secs(1);
/// After so long every node that lives has said again what it holds.
const SETTLING: Duration = Duration::from_millis(2500);
/// Facts that are written at once when Redis is back.
const STATED_AT_ONCE: usize = 256;
/// A publish waits so long, so often, until its node has a session that Redis knows.
const SESSION_WAIT: Duration = Duration::from_secs(1);
const SESSIONS_TRIED_MAX: usize = 3;
/// An event of ours that did not come back in this time was not meant for us.
const RETURN_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Partition {
    prefix: String,
    requests: mpsc::Sender<Request>,
    deliveries: mpsc::Sender<Delivery>,
    shared: Mutex<Shared>,
    /// Redis's clock when the subscription was last known to hear everything.
    horizon_ms: AtomicU64,
    session_began: Notify,
    waiting_bytes: Arc<AtomicUsize>,
}

struct Shared {
    /// What publishes go through; absent while Redis is away.
    up: Option<Arc<Up>>,
    /// The number of the newest session.
    session: u64,
    unstated: Unstated,
    seen: Seen,
    /// Our events that have not come back yet, by serial number.
    awaited: BTreeMap<u64, (Event, Instant)>,
    views: HashMap<ChannelId, View>,
    /// The newest version that was heard of.
    version: u64,
}

pub enum Request {
    Join(
        ChannelId,
        Joining,
        oneshot::Sender<Result<Joined, MemberLimitReached>>,
    ),
    Leave(ChannelId, SocketId, oneshot::Sender<Option<Left>>),
    /// Everything of an app is wanted, or not any more.
    Watch(AppId, bool, oneshot::Sender<()>),
    Up(Arc<Up>),
    Down(Arc<Up>),
    /// Redis does not know of this node's session of this number.
    Register(u64),
}

enum Delivery {
    Record(Vec<u8>),
    Roster {
        channel: ChannelId,
        version: u64,
        roster: Vec<Arc<Member>>,
        may_go: bool,
        /// Gets what subscribers have been told when all this is with them.
        told: Option<oneshot::Sender<(Vec<Arc<Member>>, u64)>>,
    },
    CaughtUp(oneshot::Sender<()>),
}

/// The ends of a partition's queues, for its tasks.
pub struct Ends(mpsc::Receiver<Request>, mpsc::Receiver<Delivery>);

impl Partition {
    pub fn new(
        prefix: String,
        waiting_bytes: &Arc<AtomicUsize>,
        unstated_bytes: &Arc<AtomicUsize>,
    ) -> (Self, Ends) {
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let partition = Self {
            prefix,
            requests,
            deliveries,
            shared: Mutex::new(Shared {
                up: None,
                session: 0,
                unstated: Unstated::new(unstated_bytes.clone()),
                seen: Seen::default(),
                awaited: BTreeMap::new(),
                views: HashMap::new(),
                version: 0,
            }),
            horizon_ms: AtomicU64::new(0),
            session_began: Notify::new(),
            waiting_bytes: waiting_bytes.clone(),
        };
        (partition, Ends(requested, delivered))
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub async fn request(&self, request: Request) {
        // Without a receiver the node is stopping.
        let _ = self.requests.send(request).await;
    }

    /// The link, while there is one.
    pub fn up(&self) -> Option<Arc<Up>> {
        self.shared().up.clone()
    }

    /// The link heard everything up to then.
    pub fn heard_until(&self, up: &Arc<Up>, redis_ms: u64) {
        let now = Instant::now();
        let mut shared = self.shared();
        // Before it is in use here, the log is still to be read.
        if !shared
            .up
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, up))
        {
            return;
        }
        self.horizon_ms.store(redis_ms, Ordering::Release);
        (shared.awaited).retain(|_, (_, since)| now.duration_since(*since) < RETURN_TIMEOUT);
    }

    /// Whether there was room for the record.
    pub fn take_in(&self, record: Vec<u8>) -> bool {
        let bytes = record.len();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before < WAITING_BYTES_MAX
            && self.deliveries.try_send(Delivery::Record(record)).is_ok();
        if !fits {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Publishes are local from now on; what did not come back is delivered here.
    pub async fn down(&self, up: &Arc<Up>, status: &Status) {
        self.lose(up, status);
        self.request(Request::Down(up.clone())).await;
    }

    fn lose(&self, up: &Arc<Up>, status: &Status) {
        let mut shared = self.shared();
        if shared
            .up
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, up))
        {
            shared.up = None;
            status.partition_is_down();
        }
    }

    #[cfg(test)]
    /// Returns when everything that Redis published before is with the subscribers here.
    pub async fn caught_up(&self) {
        if let Some(up) = self.up() {
            let _ = up.run_in_order(&[cmd("PING")]).await;
        }
        self.delivered().await;
    }

    /// Returns when everything that was taken in is with the subscribers here.
    pub async fn delivered(&self) {
        let (done, is_done) = oneshot::channel();
        if self.deliveries.send(Delivery::CaughtUp(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Redis does not know of this node.
    pub async fn register_again(&self) {
        let session = self.shared().session;
        self.request(Request::Register(session)).await;
    }

    /// Redis does not know of the session: waits for the next one.
    async fn next_session(&self, session: u64) {
        self.request(Request::Register(session)).await;
        let is_there = async {
            loop {
                let began = self.session_began.notified();
                if self.shared().session != session {
                    return;
                }
                began.await;
            }
        };
        let _ = timeout(SESSION_WAIT, is_there).await;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// A version for what happens while Redis is away: newer than all, and older than what Redis
    /// will give out then.
    fn next_version(&mut self) -> u64 {
        self.version = now_us().max(self.version + 1);
        self.version
    }
}

impl Inner {
    pub async fn publish(&self, event: Event, keep: Option<Duration>, fact: Option<FactKind>) {
        let partition = self.partition(&event.channel);
        let serial = event.id.serial();
        let is_heard = self.hub.is_heard(&event.channel);
        let line = fact.and_then(|fact| self.state_with(partition, &event, fact));
        let mut was_tried = false;
        for tried in 1..=SESSIONS_TRIED_MAX {
            let (up, session, line) = {
                let mut shared = partition.shared();
                let up = shared.up.clone().filter(|up| !up.is_broken());
                if up.is_some() && is_heard {
                    shared
                        .awaited
                        .insert(serial, (event.clone(), Instant::now()));
                }
                // Else it was stated when a link began.
                let is_unstated = shared.unstated.contains(serial);
                (up, shared.session, line.clone().filter(|_| is_unstated))
            };
            let Some(up) = up else {
                break;
            };
            was_tried = true;
            let commands = self.publish_commands(partition, &up, session, &event, keep, &line);
            match up.run(&commands).await {
                Err(Broken) => break,
                Ok(answers) if matches!(answers[0], Value::ServerError(_)) => match tried {
                    // The next link will state what waits.
                    SESSIONS_TRIED_MAX => up.fail("no session lasts"),
                    _ => partition.next_session(session).await,
                },
                Ok(_) => {
                    partition.shared().unstated.remove(serial);
                    return;
                }
            }
        }
        self.status.not_shared();
        // What was tried was perhaps shared, perhaps not, and may have come back.
        let is_due = !was_tried || {
            let mut shared = partition.shared();
            shared.awaited.remove(&serial);
            shared.seen.insert(event.id)
        };
        if is_due {
            self.publish_here(event, keep).await;
        }
    }

    /// States what goes with a publish; or gives it, where it is written together with the publish.
    fn state_with(
        &self,
        partition: &Partition,
        event: &Event,
        kind: FactKind,
    ) -> Option<Arc<[u8]>> {
        let Some(lines) = &self.lines else {
            self.facts.state(&event.channel, kind);
            return None;
        };
        let fact = ChannelFact {
            channel: event.channel.clone(),
            kind,
            at_ms: now_us() / 1000,
        };
        let line: Arc<[u8]> = lines(&fact)?.into();
        let serial = event.id.serial();
        let fits = partition.shared().unstated.insert(serial, line.clone());
        if !fits {
            WEBHOOK_EVENTS_LOST.add(1);
        }
        fits.then_some(line)
    }

    fn publish_commands(
        &self,
        partition: &Partition,
        up: &Up,
        session: u64,
        event: &Event,
        keep: Option<Duration>,
        line: &Option<Arc<[u8]>>,
    ) -> Vec<Cmd> {
        let record = record::encode(event);
        let (app, name) = (event.channel.app.as_str(), event.channel.name.as_str());
        if up.is_sharded || keep.is_some() || line.is_some() {
            let keep_ms = keep.map_or(0, |keep| keep.as_millis() as u64);
            let (prefix, states) = (&partition.prefix, line.is_some());
            let call = scripts::PUBLISH.call(prefix, states, up.is_sharded, self.node, session);
            let mut call = with(call, [&app, &name, &record, &keep_ms]);
            if let Some(line) = line {
                call.arg(&line[..]);
            }
            return vec![call];
        }
        let mut log = cmd("XADD");
        log.arg(format!("{}log", partition.prefix))
            .arg("MAXLEN")
            .arg("~");
        log.arg(LOG_RECORDS_MAX).arg("*").arg("r").arg(&record);
        let mut publish = cmd("PUBLISH");
        publish.arg(self.keys.topic(&event.channel)).arg(record);
        vec![log, publish]
    }

    async fn publish_here(&self, event: Event, keep: Option<Duration>) {
        self.hub.deliver(event.clone()).await;
        if let Some(keep) = keep {
            self.last_events().insert(event, keep);
        }
    }

    pub fn partition(&self, channel: &ChannelId) -> &Partition {
        &self.partitions[super::keys::partition_of(channel)]
    }
}

/// Runs the partition's two tasks.
pub fn start(inner: &Arc<Inner>, index: usize, ends: Ends) {
    let Ends(requests, deliveries) = ends;
    tokio::spawn(deliver(inner.clone(), index, deliveries));
    let membership = Membership {
        inner: inner.clone(),
        index,
        topics: HashMap::new(),
        apps: HashSet::new(),
        untold: HashSet::new(),
        link: None,
        settles_at: None,
        data: None,
    };
    tokio::spawn(membership.run(requests));
}

async fn deliver(inner: Arc<Inner>, index: usize, mut deliveries: mpsc::Receiver<Delivery>) {
    let partition = &inner.partitions[index];
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.recv() => delivery,
            () = inner.stop.cancelled() => return,
        };
        let Some(delivery) = delivery else {
            return;
        };
        match delivery {
            Delivery::Record(bytes) => {
                partition
                    .waiting_bytes
                    .fetch_sub(bytes.len(), Ordering::Relaxed);
                if let Some(event) = record::decode(&bytes)
                    && is_news(partition, inner.node, &event)
                {
                    inner.hub.deliver(event).await;
                }
            }
            Delivery::Roster {
                channel,
                version,
                roster,
                may_go,
                told,
            } => {
                let changes = {
                    let mut shared = partition.shared();
                    shared.version = shared.version.max(version);
                    match shared.views.get_mut(&channel) {
                        Some(view) => view.differences(version, &roster, may_go),
                        None => Vec::new(),
                    }
                };
                for change in changes {
                    let event = inner.event_of(&channel, change, version, roster.len(), None);
                    inner.hub.deliver(event).await;
                }
                if let Some(told) = told {
                    let shared = partition.shared();
                    if let Some(view) = shared.views.get(&channel) {
                        let _ = told.send((view.roster(), view.version()));
                    }
                }
            }
            Delivery::CaughtUp(done) => drop(done.send(())),
        }
    }
}

/// Whether the event is neither a repeat nor known already.
fn is_news(partition: &Partition, node: u32, event: &Event) -> bool {
    let mut shared = partition.shared();
    if !shared.seen.insert(event.id) {
        return false;
    }
    if event.id.node() == node {
        shared.awaited.remove(&event.id.serial());
    }
    let (version, change) = match &event.body {
        Body::MemberAdded {
            member, version, ..
        } => (*version, Change::Added(member.clone())),
        Body::MemberRemoved {
            user_id, version, ..
        } => (*version, Change::Removed(user_id.clone())),
        _ => return true,
    };
    shared.version = shared.version.max(version);
    match shared.views.get_mut(&event.channel) {
        Some(view) => view.hear(version, change),
        None => true,
    }
}

struct Membership {
    inner: Arc<Inner>,
    index: usize,
    /// The channels with subscribers here, or which had some a moment ago.
    topics: HashMap<ChannelId, Topic>,
    /// The apps of which everything is wanted here.
    apps: HashSet<AppId>,
    /// Users who came while Redis was away: the application has not been told of them.
    untold: HashSet<(ChannelId, UserId)>,
    link: Option<Session>,
    settles_at: Option<Instant>,
    /// In which this node began its last session.
    data: Option<Data>,
}

/// Tells whether Redis has all that it had.
#[derive(PartialEq)]
struct Data {
    /// A server that was started again, or another one, may have lost the newest.
    run_id: String,
    /// Another one if everything was lost.
    epoch: u64,
}

#[derive(Default)]
struct Topic {
    is_subscribed: bool,
    /// Redis knew of it, so that the application was told that it is occupied.
    is_told: bool,
    idle_since: Option<Instant>,
}

#[derive(Clone)]
struct Session {
    up: Arc<Up>,
    number: u64,
}

/// What the hub has done already and Redis has yet to hear of.
enum Done {
    Joined {
        channel: ChannelId,
        who: SocketId,
        member: Option<Arc<Member>>,
        members_max: usize,
        connections: u64,
        roster: Roster,
        reply: oneshot::Sender<Result<Joined, MemberLimitReached>>,
    },
    Left {
        channel: ChannelId,
        who: SocketId,
        gone: Option<Arc<Member>>,
        connections: u64,
        reply: oneshot::Sender<Option<Left>>,
    },
}

impl Membership {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = interval(LINGER / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settles_at = self.settles_at;
            let first = tokio::select! {
                request = requests.recv() => request,
                () = self.inner.stop.cancelled() => return,
                _ = tick.tick() => {
                    self.tidy().await;
                    continue;
                }
                () = sleep_until(settles_at.unwrap_or_else(Instant::now)), if settles_at.is_some() => {
                    self.settle().await;
                    continue;
                }
            };
            let Some(first) = first else {
                return;
            };
            let mut changes = Vec::new();
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Join(..) | Request::Leave(..) => changes.push(request),
                    other => {
                        self.change(std::mem::take(&mut changes)).await;
                        self.control(other).await;
                    }
                }
                if changes.len() == BATCH_MAX {
                    break;
                }
                next = requests.try_recv().ok();
            }
            self.change(changes).await;
        }
    }

    async fn control(&mut self, request: Request) {
        match request {
            Request::Up(up) => {
                if self.begin(up.clone()).await.is_err() {
                    self.lose(&up).await;
                }
            }
            Request::Down(up) => self.lose(&up).await,
            Request::Register(number) => {
                // Of many who found it out, the first is heard.
                if let Some(session) = self.link.take_if(|link| link.number == number) {
                    self.register_or_lose(session.up).await;
                }
            }
            Request::Watch(app, is_wanted, reply) => {
                self.watch(app, is_wanted).await;
                let _ = reply.send(());
            }
            Request::Join(..) | Request::Leave(..) => unreachable!("changes go in batches"),
        }
    }

    async fn lose(&mut self, up: &Arc<Up>) {
        let partition = &self.inner.partitions[self.index];
        partition.lose(up, &self.inner.status);
        if self
            .link
            .as_ref()
            .is_none_or(|link| Arc::ptr_eq(&link.up, up))
        {
            self.link = None;
            self.settles_at = None;
            for topic in self.topics.values_mut() {
                topic.is_subscribed = false;
            }
        }
        // What was heard before it broke is delivered; then what of ours did not come back.
        partition.delivered().await;
        let awaited = {
            let mut shared = partition.shared();
            if shared.up.is_some() {
                return;
            }
            let awaited = std::mem::take(&mut shared.awaited);
            let is_due = |(event, _): (Event, Instant)| {
                let is_new = shared.seen.insert(event.id);
                is_new.then_some(event)
            };
            awaited.into_values().filter_map(is_due).collect::<Vec<_>>()
        };
        for event in awaited {
            self.inner.hub.deliver(event).await;
        }
    }

    async fn watch(&mut self, app: AppId, is_wanted: bool) {
        match is_wanted {
            true => self.apps.insert(app.clone()),
            false => self.apps.remove(&app),
        };
        if let Some(Session { up, .. }) = self.link.clone()
            && (up.is_sharded || self.index == 0)
        {
            let (verb, topic) = self.app_subscription(&up, &app);
            let verb = match is_wanted {
                true => verb.to_owned(),
                false => verb.replace("SUB", "UNSUB"),
            };
            let _ = up.subscribe(&verb, &[topic]).await;
        }
    }

    fn app_subscription(&self, up: &Up, app: &AppId) -> (&'static str, String) {
        let keys = &self.inner.keys;
        match up.is_sharded {
            true => ("SSUBSCRIBE", keys.app_topic(self.index, app)),
            false => ("PSUBSCRIBE", keys.app_pattern(app)),
        }
    }

    /// From away to in sync.
    async fn begin(&mut self, up: Arc<Up>) -> Result<(), Broken> {
        let inner = self.inner.clone();
        self.topics
            .retain(|channel, _| inner.hub.occupancy(channel).is_some());
        let topics: Vec<_> = self
            .topics
            .keys()
            .map(|channel| inner.keys.topic(channel))
            .collect();
        (inner.partitions[self.index].shared().views.values_mut()).for_each(View::falls_behind);
        up.subscribe(subscribe_verb(up.is_sharded), &topics).await?;
        // Without sharding one pattern serves all partitions.
        if up.is_sharded || self.index == 0 {
            for app in &self.apps {
                let (verb, topic) = self.app_subscription(&up, app);
                up.subscribe(verb, &[topic]).await?;
            }
        }
        for topic in self.topics.values_mut() {
            topic.is_subscribed = true;
        }
        // First of all, so that nothing comes late that is not in the log now.
        let begun = self.begin_session(&up).await?;
        self.read_log(&up).await?;
        self.share(&up).await?;
        self.say_held(up, begun).await
    }

    /// States what waits, and lets publishes go through the link then.
    async fn share(&self, up: &Arc<Up>) -> Result<(), Broken> {
        let partition = &self.inner.partitions[self.index];
        loop {
            let waiting = {
                let mut shared = partition.shared();
                let waiting = shared.unstated.first(STATED_AT_ONCE);
                if waiting.is_empty() {
                    if shared.up.replace(up.clone()).is_none() {
                        self.inner.status.partition_is_up();
                    }
                    return Ok(());
                }
                waiting
            };
            let add = |line: &[u8]| {
                let mut add = cmd("XADD");
                add.arg(format!("{}{}", partition.prefix, scripts::FACTS));
                add.arg("MAXLEN").arg("~").arg(scripts::FACTS_MAX);
                add.arg("*").arg("f").arg(line);
                add
            };
            let commands: Vec<Cmd> = waiting.iter().map(|(_, line)| add(line)).collect();
            up.run(&commands).await?;
            let mut shared = partition.shared();
            for (serial, _) in waiting {
                shared.unstated.remove(serial);
            }
        }
    }

    /// Takes in what the subscription missed.
    async fn read_log(&self, up: &Up) -> Result<(), Broken> {
        let partition = &self.inner.partitions[self.index];
        let from = partition.horizon_ms.load(Ordering::Acquire);
        if from == 0 {
            partition.horizon_ms.store(up.began_ms, Ordering::Release);
            return Ok(());
        }
        let mut read = cmd("XRANGE");
        read.arg(format!("{}log", partition.prefix))
            .arg(from)
            .arg("+");
        let answers = up.run(&[read]).await?;
        // Each entry is its id and its one field: name, record.
        let entries = redis::from_redis_value::<Vec<(String, Vec<Vec<u8>>)>>(answers[0].clone());
        let Ok(entries) = entries else {
            up.fail("the log cannot be read");
            return Err(Broken);
        };
        if entries.len() >= LOG_RECORDS_MAX {
            self.inner.status.log_overran();
        }
        for (_, fields) in entries {
            if let Some(record) = fields.into_iter().nth(1) {
                if let Some(id) = record::id_of(&record)
                    && id.node() == self.inner.node
                {
                    partition.shared().unstated.remove(id.serial());
                }
                let bytes = record.len();
                partition.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
                let _ = partition.deliveries.send(Delivery::Record(record)).await;
            }
        }
        Ok(())
    }

    /// From now on Redis refuses what was sent in older sessions.
    async fn begin_session(&mut self, up: &Arc<Up>) -> Result<Begun, Broken> {
        let partition = &self.inner.partitions[self.index];
        let session = Session {
            up: up.clone(),
            number: self.inner.next_session(),
        };
        let seen = partition.shared().next_version();
        let call = self.call(&scripts::BEGIN, &session);
        let answers = up.run(&[with(call, [&seen])]).await?;
        let Some(begun) = Begun::read(session, &answers[0]) else {
            // Somebody has a newer session of ours: ids are not unique, or time went back.
            up.fail("a newer session of this node is there");
            return Err(Broken);
        };
        partition.shared().session = begun.session.number;
        partition.session_began.notify_waiters();
        Ok(begun)
    }

    async fn register(&mut self, up: Arc<Up>) -> Result<(), Broken> {
        let begun = self.begin_session(&up).await?;
        self.say_held(up, begun).await
    }

    /// Says everything that is held here.
    async fn say_held(&mut self, up: Arc<Up>, begun: Begun) -> Result<(), Broken> {
        let inner = self.inner.clone();
        let session = begun.session;
        // Declared dead: the application was told that everything here has gone.
        let is_known_data = self
            .data
            .as_ref()
            .is_some_and(|data| data.epoch == begun.epoch);
        let was_dead = !begun.was_known && is_known_data;
        let data = Data {
            run_id: up.run_id.clone(),
            epoch: begun.epoch,
        };
        let is_same_data = self.data.as_ref() == Some(&data);
        self.data = Some(data);
        let mut channels: HashSet<ChannelId> = self.topics.keys().cloned().collect();
        channels.extend(begun.held);
        let mut members: HashMap<ChannelId, Vec<UserId>> = HashMap::new();
        for (channel, user_id) in begun.members {
            members.entry(channel).or_default().push(user_id);
        }
        let mut commands = Vec::with_capacity(channels.len());
        let channels: Vec<_> = channels.into_iter().collect();
        for channel in &channels {
            let holding = inner.hub.holding(channel);
            let is_told = !was_dead && self.topics.get(channel).is_some_and(|topic| topic.is_told);
            let (app, name) = (channel.app.as_str(), channel.name.as_str());
            let call = self.call(&scripts::SET, &session);
            let told = u8::from(is_told);
            let mut call = with(call, [&app, &name, &holding.connections, &told]);
            for (member, _) in &holding.members {
                let key = (channel.clone(), member.user_id.clone());
                let told = u8::from(is_told && !self.untold.contains(&key));
                call.arg(&*member.user_id)
                    .arg(record::optional(&member.user_info));
                call.arg(1).arg(told);
            }
            for user_id in members.remove(channel).unwrap_or_default() {
                if !holding
                    .members
                    .iter()
                    .any(|(member, _)| member.user_id == user_id)
                {
                    call.arg(&*user_id).arg("0").arg(0).arg(0);
                }
            }
            commands.push(call);
        }
        let answers = up.run(&commands).await?;
        for (channel, answer) in channels.iter().zip(answers) {
            let facts: Vec<String> = match answer {
                Value::ServerError(_) => {
                    up.fail("the session ended while it began");
                    return Err(Broken);
                }
                answer => redis::from_redis_value(answer).unwrap_or_default(),
            };
            for fact in facts.chunks_exact(2) {
                inner.state(channel, &fact[0], &fact[1]);
            }
        }
        for topic in self.topics.values_mut() {
            topic.is_told = true;
        }
        self.untold.clear();
        self.keep_last_events(&up).await?;
        self.link = Some(session);
        // Otherwise other nodes may have yet to say again whom they hold.
        self.settles_at = (!is_same_data).then(|| Instant::now() + SETTLING);
        self.fetch_rosters(is_same_data).await
    }

    /// What cache channels got while Redis was away.
    async fn keep_last_events(&self, up: &Up) -> Result<(), Broken> {
        let index = self.index;
        let kept = self
            .inner
            .last_events()
            .take(|id| super::keys::partition_of(id) == index);
        let commands: Vec<Cmd> = kept
            .into_iter()
            .map(|last| {
                let mut set = cmd("SET");
                set.arg(self.inner.keys.last_event(&last.event.channel));
                set.arg(record::encode(&last.event)).arg("PX");
                set.arg(last.expires_in.as_millis() as u64 + 1);
                set
            })
            .collect();
        up.run(&commands).await.map(drop)
    }

    async fn fetch_rosters(&mut self, may_go: bool) -> Result<(), Broken> {
        let Some(session) = self.link.clone() else {
            return Ok(());
        };
        let channels: Vec<_> = self
            .topics
            .keys()
            .filter(|channel| channel.name.is_presence())
            .cloned()
            .collect();
        let commands: Vec<Cmd> = channels
            .iter()
            .map(|channel| {
                let (app, name) = (channel.app.as_str(), channel.name.as_str());
                with(self.call(&scripts::ROSTER, &session), [&app, &name])
            })
            .collect();
        let answers = session.up.run(&commands).await?;
        let partition = &self.inner.partitions[self.index];
        for (channel, answer) in channels.into_iter().zip(answers) {
            let Ok((version, infos)) = redis::from_redis_value::<(u64, Vec<String>)>(answer) else {
                continue;
            };
            let roster = roster_of(infos);
            let delivery = Delivery::Roster {
                channel,
                version,
                roster,
                may_go,
                told: None,
            };
            let _ = partition.deliveries.send(delivery).await;
        }
        Ok(())
    }

    fn call(&self, script: &scripts::Script, session: &Session) -> Cmd {
        let prefix = &self.inner.partitions[self.index].prefix;
        script.call(
            prefix,
            self.inner.states_there(),
            session.up.is_sharded,
            self.inner.node,
            session.number,
        )
    }

    /// Joins and leaves: in the hub, then in Redis, all in one round trip.
    async fn change(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let done: Vec<Done> = requests
            .into_iter()
            .filter_map(|request| self.change_here(request))
            .collect();
        let answers = match self.link.clone() {
            Some(session) => match self.change_there(&session, &done).await {
                Ok(answers) => Some(answers),
                Err(Broken) => {
                    self.lose(&session.up).await;
                    None
                }
            },
            None => None,
        };
        let Some(answers) = answers else {
            for done in done {
                self.finish_alone(done).await;
            }
            return;
        };
        let mut is_stale = false;
        for (done, answer) in done.into_iter().zip(answers) {
            match &answer {
                Value::ServerError(error) if error.code() == "FULL" => self.refuse(done),
                Value::ServerError(_) => {
                    is_stale = true;
                    self.finish_alone(done).await;
                }
                _ => self.finish(done, answer).await,
            }
        }
        if is_stale && let Some(session) = self.link.take() {
            self.register_or_lose(session.up).await;
        }
    }

    async fn register_or_lose(&mut self, up: Arc<Up>) {
        tracing::debug!(partition = self.index, "this node registers again");
        if self.register(up.clone()).await.is_err() {
            self.lose(&up).await;
        }
    }

    fn change_here(&mut self, request: Request) -> Option<Done> {
        let inner = self.inner.clone();
        match request {
            Request::Join(channel, joining, reply) => {
                let Joining {
                    subscriber,
                    member,
                    members_max,
                } = joining;
                let who = subscriber.id;
                let max_here = match self.link {
                    Some(_) => usize::MAX,
                    None => members_max,
                };
                let arrival = match inner
                    .hub
                    .join(&channel, subscriber, member.clone(), max_here)
                {
                    Ok(arrival) => arrival,
                    Err(full) => {
                        let _ = reply.send(Err(full));
                        return None;
                    }
                };
                self.topics.entry(channel.clone()).or_default().idle_since = None;
                if member.is_some() {
                    let mut shared = inner.partitions[self.index].shared();
                    shared.views.entry(channel.clone()).or_default();
                }
                Some(Done::Joined {
                    channel,
                    who,
                    member,
                    members_max,
                    connections: arrival.connections,
                    roster: arrival.roster,
                    reply,
                })
            }
            Request::Leave(channel, who, reply) => {
                let Some(departure) = inner.hub.leave(&channel, who) else {
                    let _ = reply.send(None);
                    return None;
                };
                if departure.last
                    && let Some(topic) = self.topics.get_mut(&channel)
                {
                    topic.idle_since = Some(Instant::now());
                }
                Some(Done::Left {
                    channel,
                    who,
                    gone: departure.member_gone,
                    connections: departure.connections,
                    reply,
                })
            }
            _ => None,
        }
    }

    async fn change_there(
        &mut self,
        session: &Session,
        done: &[Done],
    ) -> Result<Vec<Value>, Broken> {
        // Before the join, so that nothing is missed behind it.
        let mut wanted = Vec::new();
        for done in done {
            if let Done::Joined { channel, .. } = done
                && let Some(topic) = self.topics.get_mut(channel)
                && !topic.is_subscribed
            {
                topic.is_subscribed = true;
                topic.is_told = true;
                wanted.push(self.inner.keys.topic(channel));
            }
        }
        if !wanted.is_empty() {
            session
                .up
                .subscribe(subscribe_verb(session.up.is_sharded), &wanted)
                .await?;
        }
        let commands: Vec<Cmd> = done
            .iter()
            .map(|done| match done {
                Done::Joined {
                    channel,
                    who,
                    member,
                    members_max,
                    ..
                } => {
                    let (app, name) = (channel.app.as_str(), channel.name.as_str());
                    let (is_presence, user_id, info) = match member {
                        Some(member) => (1, &*member.user_id, record::optional(&member.user_info)),
                        None => (0, "", String::new()),
                    };
                    let except = record::except_part(Some(*who));
                    let members_max = *members_max as u64;
                    let call = self.call(&scripts::JOIN, session);
                    with(
                        call,
                        [
                            &app,
                            &name,
                            &except,
                            &members_max,
                            &is_presence,
                            &user_id,
                            &info,
                        ],
                    )
                }
                Done::Left {
                    channel, who, gone, ..
                } => {
                    let (app, name) = (channel.app.as_str(), channel.name.as_str());
                    let (is_gone, user_id) = match gone {
                        Some(member) => (1, &*member.user_id),
                        None => (0, ""),
                    };
                    let except = record::except_part(Some(*who));
                    let call = self.call(&scripts::LEAVE, session);
                    with(call, [&app, &name, &except, &is_gone, &user_id])
                }
            })
            .collect();
        session.up.run(&commands).await
    }

    /// As Redis says.
    async fn finish(&mut self, done: Done, answer: Value) {
        let inner = self.inner.clone();
        let partition = &inner.partitions[self.index];
        let parts: Vec<Value> = redis::from_redis_value(answer).unwrap_or_default();
        let number = |at: usize| -> u64 {
            let part = parts.get(at).cloned().map(redis::from_redis_value::<u64>);
            part.and_then(Result::ok).unwrap_or_default()
        };
        let (connections, version) = (number(0), number(1));
        let (is_turn, is_member_turn) = (number(2) == 1, number(3) == 1);
        {
            let mut shared = partition.shared();
            shared.version = shared.version.max(version);
        }
        match done {
            Done::Joined {
                channel,
                who,
                member,
                reply,
                ..
            } => {
                if is_turn {
                    inner.facts.state(&channel, FactKind::ChannelOccupied);
                }
                let (mut roster, mut version) = (None, version);
                if let Some(member) = member {
                    if is_member_turn {
                        let user_id = member.user_id.clone();
                        (inner.facts).state(&channel, FactKind::MemberAdded { user_id });
                    }
                    let infos = parts.get(4).cloned();
                    let infos = infos.map(redis::from_redis_value::<Vec<String>>);
                    let there = roster_of(infos.and_then(Result::ok).unwrap_or_default());
                    // The answer may be faster than what was published before: the others are
                    // told first, and the new one gets what they have been told.
                    let (told, is_told) = oneshot::channel();
                    let delivery = Delivery::Roster {
                        channel: channel.clone(),
                        version,
                        roster: there.clone(),
                        may_go: self.settles_at.is_none(),
                        told: Some(told),
                    };
                    let _ = partition.deliveries.send(delivery).await;
                    let told = is_told.await.unwrap_or((there, version));
                    roster = Some(told.0);
                    version = version.max(told.1);
                }
                let joined = Joined {
                    connections,
                    roster,
                    version,
                };
                self.answer(channel, who, reply, joined);
            }
            Done::Left {
                channel,
                gone,
                reply,
                ..
            } => {
                if let Some(member) = gone
                    && is_member_turn
                {
                    let user_id = member.user_id.clone();
                    inner
                        .facts
                        .state(&channel, FactKind::MemberRemoved { user_id });
                }
                if is_turn {
                    inner.facts.state(&channel, FactKind::ChannelVacated);
                }
                let _ = reply.send(Some(Left {
                    connections,
                    version,
                }));
            }
        }
    }

    /// As this node alone knows.
    async fn finish_alone(&mut self, done: Done) {
        let inner = self.inner.clone();
        let partition = &inner.partitions[self.index];
        match done {
            Done::Joined {
                channel,
                who,
                member,
                connections,
                roster,
                reply,
                ..
            } => {
                let mut news = None;
                let (roster, version) = {
                    let mut shared = partition.shared();
                    let version = shared.next_version();
                    let roster = member.map(|member| {
                        let view = shared.views.entry(channel.clone()).or_default();
                        if !view.is_ready() {
                            view.begin(version - 1, &[]);
                        }
                        // Those who joined in the same batch.
                        for other in roster.iter().flatten() {
                            if other.user_id != member.user_id {
                                view.change(version, Change::Added(other.clone()));
                            }
                        }
                        let change = Change::Added(member.clone());
                        if view.change(version, change.clone()) {
                            self.untold
                                .insert((channel.clone(), member.user_id.clone()));
                            news = Some((change, view.len()));
                        }
                        view.roster()
                    });
                    (roster, version)
                };
                if let Some((change, users)) = news {
                    let event = inner.event_of(&channel, change, version, users, Some(who));
                    inner.hub.deliver(event).await;
                }
                let joined = Joined {
                    connections,
                    roster,
                    version,
                };
                self.answer(channel, who, reply, joined);
            }
            Done::Left {
                channel,
                who,
                gone,
                connections,
                reply,
            } => {
                let (version, news) = {
                    let mut shared = partition.shared();
                    let version = shared.next_version();
                    let news = gone.and_then(|member| {
                        self.untold
                            .remove(&(channel.clone(), member.user_id.clone()));
                        let change = Change::Removed(member.user_id.clone());
                        let view = shared.views.get_mut(&channel)?;
                        view.change(version, change.clone())
                            .then(|| (change, view.len()))
                    });
                    (version, news)
                };
                if let Some((change, users)) = news {
                    let event = inner.event_of(&channel, change, version, users, Some(who));
                    inner.hub.deliver(event).await;
                }
                let _ = reply.send(Some(Left {
                    connections,
                    version,
                }));
            }
        }
    }

    fn refuse(&mut self, done: Done) {
        if let Done::Joined {
            channel,
            who,
            reply,
            ..
        } = done
        {
            self.undo(&channel, who);
            let _ = reply.send(Err(MemberLimitReached));
        }
    }

    fn answer(
        &self,
        channel: ChannelId,
        who: SocketId,
        reply: oneshot::Sender<Result<Joined, MemberLimitReached>>,
        joined: Joined,
    ) {
        if reply.send(Ok(joined)).is_err() {
            // Whoever asked has gone, and does not know that it is to be taken out again.
            let inner = self.inner.clone();
            let index = self.index;
            tokio::spawn(async move {
                let (reply, _) = oneshot::channel();
                inner.partitions[index]
                    .request(Request::Leave(channel, who, reply))
                    .await;
            });
        }
    }

    fn undo(&mut self, channel: &ChannelId, who: SocketId) {
        let departure = self.inner.hub.leave(channel, who);
        if departure.is_some_and(|departure| departure.last)
            && let Some(topic) = self.topics.get_mut(channel)
        {
            topic.idle_since = Some(Instant::now());
        }
    }

    /// Every node has spoken: who is in no roster has gone.
    async fn settle(&mut self) {
        self.settles_at = None;
        if self.fetch_rosters(true).await.is_err()
            && let Some(session) = self.link.clone()
        {
            self.lose(&session.up).await;
        }
    }

    /// Gives up channels without subscribers.
    async fn tidy(&mut self) {
        let inner = self.inner.clone();
        if let Some(session) = self.link.clone()
            && session.up.is_broken()
        {
            self.lose(&session.up).await;
        }
        let idle: Vec<ChannelId> = (self.topics.iter())
            .filter(|(_, topic)| {
                topic
                    .idle_since
                    .is_some_and(|since| since.elapsed() >= LINGER)
            })
            .map(|(channel, _)| channel.clone())
            .collect();
        if idle.is_empty() {
            return;
        }
        for channel in &idle {
            self.topics.remove(channel);
            inner.partitions[self.index].shared().views.remove(channel);
        }
        if let Some(Session { up, .. }) = &self.link {
            let topics: Vec<_> = idle
                .iter()
                .map(|channel| inner.keys.topic(channel))
                .collect();
            let verb = subscribe_verb(up.is_sharded).replace("SUB", "UNSUB");
            let _ = up.subscribe(&verb, &topics).await;
        }
    }
}

impl Inner {
    fn event_of(
        &self,
        channel: &ChannelId,
        change: Change,
        version: u64,
        users: usize,
        except: Option<SocketId>,
    ) -> Event {
        let users = users as u64;
        let body = match change {
            Change::Added(member) => Body::MemberAdded {
                member,
                users,
                version,
            },
            Change::Removed(user_id) => Body::MemberRemoved {
                user_id,
                users,
                version,
            },
        };
        Event {
            id: self.ids.event_id(),
            channel: channel.clone(),
            except,
            body,
        }
    }

    /// States a fact as the scripts name it.
    pub fn state(&self, channel: &ChannelId, kind: &str, user: &str) {
        let user_id = user.into();
        let kind = match kind {
            "occupied" => FactKind::ChannelOccupied,
            "vacated" => FactKind::ChannelVacated,
            "added" => FactKind::MemberAdded { user_id },
            "removed" => FactKind::MemberRemoved { user_id },
            _ => return,
        };
        self.facts.state(channel, kind);
    }
}

/// What Redis said when a session began.
struct Begun {
    session: Session,
    was_known: bool,
    epoch: u64,
    held: Vec<ChannelId>,
    members: Vec<(ChannelId, UserId)>,
}

impl Begun {
    fn read(session: Session, answer: &Value) -> Option<Self> {
        type Answer = (u8, u64, Vec<String>, Vec<String>);
        let (was_known, epoch, held, members): Answer =
            redis::from_redis_value(answer.clone()).ok()?;
        let held = held.chunks_exact(2);
        let members = members.chunks_exact(2).filter_map(|pair| {
            let (channel, user_id) = pair[0].split_once('\0')?;
            Some((channel_of(channel)?, user_id.into()))
        });
        Some(Self {
            session,
            was_known: was_known == 1,
            epoch,
            held: held.filter_map(|pair| channel_of(&pair[0])).collect(),
            members: members.collect(),
        })
    }
}

fn channel_of(text: &str) -> Option<ChannelId> {
    let (app, name) = text.rsplit_once(':')?;
    Some(ChannelId::new(
        &AppId::new(app),
        &ChannelName::of_the_cluster(name),
    ))
}

/// From user, info, …: in the order of the ids.
pub fn roster_of(infos: Vec<String>) -> Vec<Arc<Member>> {
    let mut roster: Vec<_> = (infos.chunks_exact(2))
        .map(|pair| {
            Arc::new(Member {
                user_id: pair[0].as_str().into(),
                user_info: record::present(&pair[1]),
            })
        })
        .collect();
    roster.sort_unstable_by(|a, b| a.user_id.cmp(&b.user_id));
    roster
}

/// The newest event ids, to recognise repeats.
#[derive(Default)]
struct Seen {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Seen {
    /// Whether it is new.
    fn insert(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}
