//! Sessions of clients that come over HTTP (`pusher.md` 7.6): what the client chose the name of,
//! and the [`Connection`] behind it, which knows nothing of how its messages travel.
//!
//! ```text
//!  (nothing) ──first request──► Open ──close──► Over ──5 s──► (gone)
//!        └──of SockJS──► Unopened ─┴──client gone for 2 s or 3 s──► (gone)
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::http::Asks;
use super::inbox::{Inbox, Next};
use super::moving::HOUSE;
use super::numbers::{Browsers, Numbers, Stamp};
use super::sockjs::{self, Visitor};
use super::stats::Stats;
use super::{Front, close};
use crate::audit;
use crate::hub::{Frame, Outbox};
use crate::metrics::{CUT_OFFS, CutOff, Page};
use crate::peers::{Elsewhere, Peers, Search};
use crate::transport::receipt::Receipts;
use crate::transport::session::{
    Carrier, Earlier, Parted, Session, Sessions, TooManySessions, Vehicle, Visit,
};
use crate::transport::websocket::{Close, Conversation};
use crate::wire::pusher;
use crate::wire::sockjs::quoted;

/// How often sessions are looked through for those whose time is over.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a client may take from the end of one answer to its next request.
pub const NEXT_REQUEST_WITHIN: Duration = Duration::from_secs(3);
/// The same where the answer was cut off. pusher-js then comes with another session; only what
/// repeats requests unasked may come with this one.
const REPETITION_WITHIN: Duration = Duration::from_secs(2);
/// How long a session that is over keeps saying so.
const OVER_FOR: Duration = Duration::from_secs(5);
/// No stream is quiet for longer than twice this: proxies cut it after 30 s and more.
const BEAT: Duration = Duration::from_secs(12);
/// A poll is held for so long, for the same reason.
pub const HOLD: Duration = Duration::from_secs(25);
/// From so many requests of one session on they are answered when their messages are taken.
const UNANSWERED_MAX: usize = 64;
/// While a lower number is waited for, how often to look whether another session got it.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// A session of a longer name is this node's own.
const SHARED_ID_BYTES_MAX: usize = 256;

pub type ClientSession = Arc<Session<Client>>;

/// What a new configuration leaves as it is.
#[derive(Clone)]
pub struct Kept {
    pub(super) sessions: Arc<Sessions<Client>>,
    stats: Arc<Stats>,
    pub(super) browsers: Arc<Browsers>,
    /// Where there are other nodes.
    pub(super) peers: Option<Arc<Peers>>,
    /// As it is configured now.
    pub(super) front: Arc<Mutex<Weak<Front>>>,
}

/// The HTTP side of the Pusher front end.
pub struct Fallback {
    pub front: Arc<Front>,
    pub sessions: Arc<Sessions<Client>>,
    pub stats: Arc<Stats>,
    pub browsers: Arc<Browsers>,
    pub peers: Option<Arc<Peers>>,
}

/// What stands behind a session.
pub struct Client {
    /// One message at a time.
    pub(super) talk: tokio::sync::Mutex<Talk>,
    /// Who says for which app a session of SockJS is.
    pub(super) visitor: OnceLock<Visitor>,
    /// How it was closed, and when.
    over: OnceLock<(Close, Instant)>,
    requests: Mutex<Requests>,
    /// An empty array asks for one; SockJS only answers with it.
    pub(super) wants_pongs: bool,
    /// Something is in the inbox.
    arrived: Notify,
}

pub enum Talk {
    /// The first message says for which app it is, until then or never.
    Unopened {
        by: Instant,
    },
    Open(Box<Connection>),
    Over,
}

pub(super) struct Requests {
    pub(super) inbox: Inbox,
    /// The number of the newest request that receives.
    pub(super) receiving: Option<u64>,
    /// It has received the opening frame.
    pub(super) is_open: bool,
}

/// A request that receives.
pub enum Receiving {
    /// `opens`: the client has yet to be told that its session is open.
    Carrier {
        carrier: Carrier<Client>,
        opens: bool,
    },
    /// Another request has its place.
    Refused,
}

/// What there is for a client.
pub enum Taken {
    Messages,
    /// The last thing to say.
    Close(Close),
    /// Another request took the place of this one.
    Superseded,
    /// The next request finds the session on another node.
    Moved,
}

impl Kept {
    pub fn new(peers: Option<Arc<Peers>>) -> Self {
        Self {
            // Until there is a front that says how many.
            sessions: Arc::new(Sessions::new(0)),
            stats: Arc::default(),
            browsers: Arc::default(),
            front: Arc::default(),
            peers,
        }
    }

    /// What can be told when somebody asks.
    pub fn show(&self, page: &mut Page) {
        page.gauge(
            "raptor_http_sessions",
            "Sessions of Pusher clients that come over HTTP.",
            self.sessions.count() as f64,
        );
        self.stats.show(page);
    }
}

impl Fallback {
    /// Looks after the sessions from now on, with the settings of this front.
    pub fn start(front: Arc<Front>, kept: &Kept) -> Arc<Self> {
        let Kept {
            sessions,
            stats,
            browsers,
            peers,
            front: newest,
        } = kept.clone();
        sessions.limit(front.http_sessions_max);
        *newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&front);
        let fallback = Arc::new(Self {
            front,
            sessions,
            stats,
            browsers,
            peers,
        });
        tokio::spawn(sweep(Arc::downgrade(&fallback)));
        fallback
    }

    /// Sees to it that a session stays here until the visit ends. `None` if it is not there yet, or
    /// nowhere.
    pub async fn visit(&self, id: &str, asks: Asks) -> Result<Option<Visit<Client>>, Elsewhere> {
        let search = match asks {
            Asks::Receives => Search::Claim,
            Asks::Sends => Search::Find,
        };
        match &self.peers {
            Some(peers) if id.len() <= SHARED_ID_BYTES_MAX => {
                peers.visit(HOUSE, &self.sessions, (id, id), search).await
            }
            _ => Ok(self.sessions.find(id).and_then(|session| session.visit())),
        }
    }

    /// Of a request that sends: every byte of the largest message may be escaped, some by six.
    pub fn body_bytes_max(&self) -> usize {
        6 * self.front.websocket.inbound_message_bytes_max + 1024
    }

    /// The session of this id, or a new one with what `open` makes. `Err` says how the client is
    /// turned away, which comes from this address.
    pub fn find_or_open(
        &self,
        id: &str,
        address: IpAddr,
        open: impl FnOnce(&Arc<Outbox>) -> Result<(Talk, Numbers), Close>,
    ) -> Result<ClientSession, Close> {
        let found = self.sessions.find_or_open(id, NEXT_REQUEST_WITHIN, || {
            let outbox = Arc::new(Outbox::new(self.front.outbox_bytes_max));
            let (talk, numbers) = open(&outbox).map_err(Turned::Away)?;
            Ok((outbox, Client::new(talk, numbers)))
        });
        found.map_err(|turned| match turned {
            Turned::Away(close) => close,
            Turned::NoRoom => {
                CUT_OFFS.count(CutOff::HttpSessions);
                let close = close::close(close::TOO_MANY_SESSIONS);
                let stranger = audit::Stranger {
                    address: Some(address),
                    ..Default::default()
                };
                stranger.refused(&close.reason);
                close
            }
        })
    }

    /// Attaches a request that receives. One that repeats the request before it, because that
    /// got no answer, is answered instead of it; but nothing drives out a request that lives.
    pub async fn receive(
        &self,
        session: &ClientSession,
        stamp: Option<Stamp>,
        vehicle: Vehicle,
    ) -> Receiving {
        const LOOKS: usize = 40;
        session.touch();
        for _ in 0..LOOKS {
            if let Some(receiving) = session.client.receive(session, stamp, vehicle) {
                return receiving;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Receiving::Refused
    }

    /// Takes what a client sends. Returns before it is done, unless much is waiting: a browser has
    /// few connections, and the request that this one waits for needs one of them.
    pub async fn send(&self, session: &ClientSession, stamp: Option<Stamp>, messages: Vec<String>) {
        session.touch();
        let client = &session.client;
        let are_many_waiting = {
            let mut requests = client.requests();
            if stamp.is_some_and(|stamp| requests.inbox.has_seen(stamp, Instant::now())) {
                return;
            }
            // It answers what it received; an empty array is how it answers a heartbeat.
            if !std::mem::replace(&mut requests.is_open, true) || messages.is_empty() {
                session.stream_arrives();
            }
            if messages.is_empty() {
                drop(requests);
                return client.is_asked(session);
            }
            let number = stamp.map(|stamp| stamp.number);
            requests.inbox.put(number, messages);
            requests.inbox.waiting() > UNANSWERED_MAX
        };
        client.arrived.notify_one();
        let session = session.clone();
        let front = self.front.clone();
        let taken = tokio::spawn(async move { session.client.take_in(&session, &front).await });
        if are_many_waiting {
            // It does not panic, and nobody stops it.
            let _ = taken.await;
        }
    }

    /// Ends a session with a close; the client is told when it asks next.
    pub fn close(session: &ClientSession, close: Close) {
        if session.client.end_with(session, close) {
            let session = session.clone();
            tokio::spawn(async move { *session.client.talk.lock().await = Talk::Over });
        }
    }

    /// Waits for something to tell the client, of which as much as is enough is moved to `batch`.
    pub fn poll_take(
        carrier: &Carrier<Client>,
        cx: &mut Context<'_>,
        batch: &mut VecDeque<Frame>,
        is_enough: impl FnMut(&Frame) -> bool,
        receipts: &Receipts,
    ) -> Poll<Taken> {
        let session = &carrier.session;
        match carrier.poll_take_to(receipts, cx, batch, is_enough) {
            Poll::Ready(Ok(())) => Poll::Ready(Taken::Messages),
            Poll::Ready(Err(Parted::Superseded)) => Poll::Ready(Taken::Superseded),
            Poll::Ready(Err(Parted::Moved)) => Poll::Ready(Taken::Moved),
            Poll::Ready(Err(Parted::Ended)) => Poll::Ready(Taken::Close(
                (session.client.over()).unwrap_or_else(|| close::close(close::NO_PONG)),
            )),
            Poll::Ready(Err(Parted::Closed(why))) => {
                Self::close(session, close::of_outbox(why));
                let said = session.client.over();
                Poll::Ready(Taken::Close(said.unwrap_or_else(|| close::of_outbox(why))))
            }
            // Looked at last: what waits is told first, and whoever closes wakes.
            Poll::Pending => match session.client.over() {
                Some(close) => Poll::Ready(Taken::Close(close)),
                None => Poll::Pending,
            },
        }
    }

    /// How often a stream sees to it that it is not quiet.
    pub fn beat(&self) -> Duration {
        BEAT.min(self.front.websocket.ping_after / 4)
    }

    /// Whether the client has to show that it is there.
    pub fn is_to_be_asked(&self, session: &ClientSession) -> bool {
        Instant::now() >= session.heard_at() + self.front.websocket.ping_after
    }

    fn sweep(&self) {
        let now = Instant::now();
        for session in self.sessions.all() {
            self.look_after(&session, now);
        }
        self.browsers.sweep(now);
    }

    fn look_after(&self, session: &ClientSession, now: Instant) {
        // One that is going to another node is looked at there.
        let Some(_visit) = session.visit() else {
            return;
        };
        let idle = session.idle();
        let patience = match idle {
            Some(idle) if idle.answered => NEXT_REQUEST_WITHIN,
            _ => REPETITION_WITHIN,
        };
        // What it sent last may still wait for what it sent before.
        let has_sent = session.client.requests().inbox.waiting() > 0;
        let is_gone = idle.is_some_and(|idle| now >= idle.since + patience) && !has_sent;
        let was_told = (session.client.over.get()).is_some_and(|(_, at)| now >= *at + OVER_FOR);
        if is_gone || was_told && idle.is_some() {
            if self.sessions.end(session)
                && let Some(peers) = &self.peers
            {
                peers.forget(HOUSE, session.id.to_string());
            }
            return;
        }
        if let Some(why) = session.outbox.closing() {
            return Self::close(session, close::of_outbox(why));
        }
        let settings = &self.front.websocket;
        let silence = settings.ping_after + self.beat() + settings.pong_within;
        if session.carried_by() == Some(Vehicle::Stream) && now >= session.heard_at() + silence {
            return Self::close(session, close::close(close::NO_PONG));
        }
        // Whoever is just talking is looked at the next time.
        if let Ok(mut talk) = session.client.talk.try_lock()
            && let Err(close) = talk.on_time(now)
        {
            drop(talk);
            Self::close(session, close);
        }
    }
}

enum Turned {
    Away(Close),
    NoRoom,
}

impl From<TooManySessions> for Turned {
    fn from(_: TooManySessions) -> Self {
        Self::NoRoom
    }
}

impl Client {
    pub(super) fn new(talk: Talk, numbers: Numbers) -> Self {
        Self {
            wants_pongs: matches!(talk, Talk::Open(_)),
            talk: tokio::sync::Mutex::new(talk),
            visitor: OnceLock::new(),
            over: OnceLock::new(),
            requests: Mutex::new(Requests {
                inbox: Inbox::new(numbers),
                receiving: None,
                is_open: false,
            }),
            arrived: Notify::new(),
        }
    }

    /// The first one counts.
    pub fn introduce(&self, visitor: Visitor) {
        let _ = self.visitor.set(visitor);
    }

    /// How it was closed.
    pub fn over(&self) -> Option<Close> {
        self.over.get().map(|(close, _)| close.clone())
    }

    /// `None` while it may turn out that this repeats a request that is dead.
    fn receive(
        &self,
        session: &ClientSession,
        stamp: Option<Stamp>,
        vehicle: Vehicle,
    ) -> Option<Receiving> {
        let mut requests = self.requests();
        let before = requests.receiving;
        let number = stamp.map(|stamp| stamp.number);
        let earlier = match (number, before) {
            (Some(number), Some(before)) if number < before => return Some(Receiving::Refused),
            (Some(number), Some(before)) if number == before => {
                if session.carried_by().is_some() {
                    return None;
                }
                Earlier::Lost
            }
            (Some(_), Some(_)) => Earlier::Received,
            (Some(_), None) => Earlier::Lost,
            (None, _) => Earlier::Unknown,
        };
        if let Some(stamp) = stamp {
            requests.inbox.has_seen(stamp, Instant::now());
            requests.receiving = number;
        }
        // It would not ask for more if it had not been told that there is a session.
        requests.is_open |= earlier == Earlier::Received;
        let opens = !requests.is_open;
        requests.is_open |= earlier == Earlier::Unknown;
        let carrier = session.attach_after(earlier, vehicle);
        Some(Receiving::Carrier { carrier, opens })
    }

    /// Takes what is in the inbox, in its order, and whatever comes meanwhile.
    async fn take_in(&self, session: &ClientSession, front: &Arc<Front>) {
        let mut talk = self.talk.lock().await;
        loop {
            let next = self.requests().inbox.take(Instant::now());
            match next {
                Next::Messages(messages) => {
                    let taken = talk.take_in(session, front, messages).await;
                    if let Err(close) = taken {
                        *talk = Talk::Over;
                        self.end_with(session, close);
                    }
                }
                Next::Wait(until) => {
                    tokio::select! {
                        () = self.arrived.notified() => {}
                        () = sleep_until(until.min(Instant::now() + LOOK_EVERY)) => {}
                    }
                }
                Next::Nothing => return,
            }
        }
    }

    /// Whether it was not over before.
    fn end_with(&self, session: &ClientSession, close: Close) -> bool {
        let is_new = self.over.set((close, Instant::now())).is_ok();
        session.outbox.wake();
        is_new
    }

    /// Whether we are there, as `pusher:ping` does over a WebSocket (7.5). That needs no order.
    fn is_asked(&self, session: &ClientSession) {
        if self.wants_pongs {
            let pong = quoted(&pusher::pong());
            session.outbox.push(pong.into());
        }
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Talk {
    async fn take_in(
        &mut self,
        session: &ClientSession,
        front: &Arc<Front>,
        messages: Vec<String>,
    ) -> Result<(), Close> {
        for message in messages {
            if message.len() > front.websocket.inbound_message_bytes_max {
                return Err(Close::plain(1009, "Message too large"));
            }
            match self {
                Self::Unopened { .. } => {
                    let visitor = session.client.visitor.get();
                    let opened = sockjs::open(front, visitor, &message, &session.outbox)?;
                    *self = Self::Open(Box::new(opened));
                }
                Self::Open(connection) => connection.on_text(&message).await?,
                Self::Over => return Ok(()),
            }
        }
        Ok(())
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Close> {
        match self {
            Self::Open(connection) if connection.deadline().is_some_and(|due| due <= now) => {
                connection.on_deadline()
            }
            Self::Unopened { by } if *by <= now => Err(close::close(close::NO_PATH_IN_TIME)),
            _ => Ok(()),
        }
    }
}

/// Ends with its front end.
async fn sweep(fallback: Weak<Fallback>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match fallback.upgrade() {
            Some(fallback) => fallback.sweep(),
            None => return,
        }
    }
}
