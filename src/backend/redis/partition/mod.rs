//! One partition on this node: two tasks and what they share.
//!
//! | file | |
//! |---|---|
//! | `publish` | what goes out |
//! | `deliver` | the task that hands over what comes in, in its order; it waits for the hub alone |
//! | `membership` | the task that takes joins and leaves, in the hub's order; it waits for Redis |
//! | `session` | its way from away to in sync |
//! | `change` | its joins and leaves, in the hub and then in Redis |
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

mod change;
mod deliver;
mod membership;
mod publish;
mod session;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::cmd;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::keys::partition_of;
use super::link::Up;
use super::unstated::Unstated;
use super::view::View;
use super::{Inner, Status, now_us};
use crate::backend::{Joined, Joining, Left};
use crate::hub::MemberLimitReached;
use crate::model::{AppId, ChannelId, Event, EventId, Member, SocketId};
use deliver::deliver;
use membership::Membership;
pub use session::roster_of;

const REQUESTS_MAX: usize = 1024;
/// Records that may wait for their delivery in one partition.
const DELIVERIES_MAX: usize = 65_536;
/// Bytes of records that may wait in all partitions together.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Event ids remembered to recognise repeats: more than the log of a partition holds.
const SEEN_MAX: usize = 4096;
const LOG_RECORDS_MAX: usize = 1000;
/// A publish waits so long for a session of its node that Redis knows.
const SESSION_WAIT: Duration = Duration::from_secs(1);
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
        if !shared.goes_through(up) {
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
        if shared.goes_through(up) {
            shared.up = None;
            status.partition_is_down();
        }
    }

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
    fn goes_through(&self, up: &Arc<Up>) -> bool {
        self.up.as_ref().is_some_and(|known| Arc::ptr_eq(known, up))
    }

    /// A version for what happens while Redis is away: newer than all, and older than what Redis
    /// will give out then.
    fn next_version(&mut self) -> u64 {
        self.version = now_us().max(self.version + 1);
        self.version
    }
}

impl Inner {
    pub fn partition(&self, channel: &ChannelId) -> &Partition {
        &self.partitions[partition_of(channel)]
    }
}

/// Runs the partition's two tasks.
pub fn start(inner: &Arc<Inner>, index: usize, ends: Ends) {
    let Ends(requests, deliveries) = ends;
    tokio::spawn(deliver(inner.clone(), index, deliveries));
    let membership = Membership::new(inner.clone(), index);
    tokio::spawn(membership.run(requests));
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
