//! What a Bayeux session is subscribed to, and how it leaves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::channel::Pattern;
use super::encoding::Bayeux;
use super::extensions::Unacknowledged;
use crate::apps::App;
use crate::broker::{Admission, Broker, Cache, Held, Membership, Welcome};
use crate::hub::{Acknowledgement, Expansion, Frame, MemberLimitReached, Outbox, Subscriber};
use crate::metrics::CutOff;
use crate::model::{ChannelName, Member, SessionFactKind, SocketId};
use crate::rate::Rate;
use crate::transport::session::{Carrier, Session};

pub type ClientSession = Arc<Session<Client>>;

/// The client behind a session. Dropping it leaves everything that it is subscribed to.
pub struct Client {
    pub app: Arc<App>,
    /// What applications sign and exclude, as with Pusher. No secret, unlike the session's id.
    pub socket_id: SocketId,
    pub encoding: &'static Bayeux,
    /// Of a client that acknowledges what it receives; its messages then travel behind connect
    /// replies alone.
    pub unacknowledged: Option<Mutex<Unacknowledged>>,
    /// One operation of a client at a time.
    pub state: tokio::sync::Mutex<ClientState>,
    /// When it last did more than wait.
    active_at: Mutex<Instant>,
    /// From the handshake until it leaves, in whatever way.
    is_open: AtomicBool,
    broker: Arc<Broker>,
    outbox: Arc<Outbox>,
    _admission: Admission,
}

pub struct ClientState {
    pub membership: Membership,
    pub client_events: Rate,
    /// Nothing was heard for so long that the presence channels were left, for the time being.
    pub is_absent: bool,
}

/// What a subscription was answered with, besides success.
#[derive(Default)]
pub struct Subscribed {
    /// On presence channels.
    pub roster: Option<Vec<Arc<Member>>>,
    pub is_cache_miss: bool,
}

impl Client {
    pub fn new(
        app: Arc<App>,
        encoding: &'static Bayeux,
        socket_id: SocketId,
        broker: Arc<Broker>,
        outbox: Arc<Outbox>,
        admission: Admission,
        acknowledges: bool,
    ) -> Self {
        let subscriber = Subscriber {
            id: socket_id,
            outbox: outbox.clone(),
            encoding,
        };
        Self {
            socket_id,
            encoding,
            unacknowledged: acknowledges.then(Mutex::default),
            state: tokio::sync::Mutex::new(ClientState {
                membership: Membership::new(broker.clone(), app.clone(), subscriber),
                client_events: Rate::per_sec(app.limits.client_events_per_sec_max),
                is_absent: false,
            }),
            app,
            active_at: Mutex::new(Instant::now()),
            is_open: AtomicBool::new(false),
            broker,
            outbox,
            _admission: admission,
        }
    }

    /// The handshake is accepted.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
        self.tell(|| SessionFactKind::Handshake);
    }

    /// It was open on another node, and is here from now on.
    pub fn settle(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// It goes on on another node: here it leaves without a word.
    pub async fn hand_over(&self) {
        let mut state = self.state.lock().await;
        self.is_open.store(false, Ordering::Relaxed);
        state.membership.hand_over().await;
    }

    /// To be asked by whoever has the lock of `state`, before subscribing: what comes after the
    /// end would not be left any more.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub fn be_active(&self) {
        *lock(&self.active_at) = Instant::now();
    }

    pub fn was_active_at(&self, at: Instant) {
        *lock(&self.active_at) = at;
    }

    pub fn active_at(&self) -> Instant {
        *lock(&self.active_at)
    }

    /// A connect says that it has received everything up to this batch.
    pub fn acknowledge(&self, batch: Option<u64>) {
        if let Some(sent) = &self.unacknowledged {
            lock(sent).acknowledge(batch.unwrap_or(0));
        }
    }

    /// Whether something has to be sent again. To be asked by whoever is the newest carrier: before,
    /// another may still be sending.
    pub fn has_lost(&self) -> bool {
        let sent = self.unacknowledged.as_ref();
        sent.is_some_and(|sent| lock(sent).len() > 0)
    }

    /// What goes out with a connect reply, and its number if the client wants one: then `new`, which
    /// `carrier` took, is kept here until it is acknowledged and needs no other care. More than
    /// `frames_max` of it, and the session is too slow.
    pub fn next_batch(
        &self,
        carrier: &Carrier<Client>,
        mut new: VecDeque<Frame>,
        frames_max: usize,
    ) -> (Option<u64>, VecDeque<Frame>) {
        let Some(sent) = &self.unacknowledged else {
            return (None, new);
        };
        // Locked before: a newer carrier must find here what it does not find in the queue.
        let mut sent = lock(sent);
        if !carrier.hand_over() {
            // A newer one has it.
            new.clear();
        }
        let (batch, frames) = sent.next_batch(new);
        if sent.len() > frames_max {
            self.outbox.cut_off(CutOff::SlowConsumer);
        }
        (Some(batch), frames)
    }

    pub fn push(&self, frame: Frame) {
        self.outbox.push(frame);
    }

    /// Subscribes to a channel that the client asked for and `state` does not hold yet.
    pub async fn subscribe(
        &self,
        state: &mut ClientState,
        channel: &ChannelName,
        member: Option<Arc<Member>>,
    ) -> Result<Subscribed, MemberLimitReached> {
        let subscribed = self.join(state, channel, member).await?;
        self.tell(|| SessionFactKind::Subscribe {
            channel: self.encoding.name_of(channel),
        });
        Ok(subscribed)
    }

    /// The same without a word to the application.
    pub async fn join(
        &self,
        state: &mut ClientState,
        channel: &ChannelName,
        member: Option<Arc<Member>>,
    ) -> Result<Subscribed, MemberLimitReached> {
        let mut subscribed = Subscribed::default();
        let acknowledge = |welcome: Welcome<'_>| {
            subscribed.roster.clone_from(welcome.roster);
            subscribed.is_cache_miss = matches!(welcome.cache, Cache::Miss);
            let replay = match welcome.cache {
                Cache::Hit(event) => self.encoding.cached(event).map(|frame| (event.id, frame)),
                Cache::NotCached | Cache::Miss => None,
            };
            Acknowledgement {
                frames: Vec::new(),
                replay,
            }
        };
        (state.membership)
            .subscribe(channel, member, acknowledge)
            .await?;
        Ok(subscribed)
    }

    pub async fn unsubscribe(&self, state: &mut ClientState, channel: &ChannelName) {
        let left = state.membership.unsubscribe(channel.as_str()).await;
        if left.is_some() {
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: self.encoding.name_of(channel),
            });
        }
    }

    pub async fn subscribe_pattern(
        &self,
        state: &mut ClientState,
        pattern: &Pattern,
        expansion: Expansion,
    ) {
        let pattern = pattern.as_str();
        if state.membership.subscribe_pattern(pattern, expansion).await {
            self.tell(|| SessionFactKind::Subscribe {
                channel: pattern.into(),
            });
        }
    }

    pub async fn unsubscribe_pattern(&self, state: &mut ClientState, pattern: &Pattern) {
        let pattern = pattern.as_str();
        if state.membership.unsubscribe_pattern(pattern).await {
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: pattern.into(),
            });
        }
    }

    /// The client was silent: its user leaves the presence channels, but may come back (8.6).
    pub async fn step_out(&self) {
        let mut state = self.state.lock().await;
        if state.is_absent {
            return;
        }
        state.is_absent = true;
        let channels = state.membership.held().channels.keys();
        for channel in channels.filter(|name| name.is_presence()) {
            let broker = &self.broker;
            broker.unsubscribe(&self.app, channel, self.socket_id).await;
        }
    }

    pub async fn heard(&self) {
        let mut state = self.state.lock().await;
        self.step_in(&mut state).await;
    }

    /// The client was heard: its user joins again where it had stepped out, and learns who is
    /// there. To be done before it subscribes anew, or its user would be there twice. A channel that has filled up meanwhile is lost to it.
    pub async fn step_in(&self, state: &mut ClientState) {
        if !std::mem::take(&mut state.is_absent) {
            return;
        }
        let left = state.membership.held().channels.clone();
        for (channel, member) in left.into_iter().filter(|(name, _)| name.is_presence()) {
            if let Ok(subscribed) = self.join(state, &channel, member).await {
                let roster = subscribed.roster.unwrap_or_default();
                if let Some(frame) = self.encoding.roster(&channel, &roster) {
                    self.push(frame);
                }
            }
        }
    }

    pub async fn leave_all(&self) {
        let mut state = self.state.lock().await;
        if self.is_open() {
            self.tell_left(state.membership.held());
            state.membership.leave().await;
        }
    }

    fn tell(&self, kind: impl FnOnce() -> SessionFactKind) {
        let who = Some(self.socket_id);
        self.broker.state_session(&self.app, who, kind);
    }

    /// `held` is all that the client is leaving. It is open no more.
    fn tell_left(&self, held: &Held) {
        self.is_open.store(false, Ordering::Relaxed);
        // A user's own channel came with the sign-in.
        for channel in held.channels.keys().filter(|name| name.is_reported()) {
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: self.encoding.name_of(channel),
            });
        }
        for pattern in &held.patterns {
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: pattern.clone(),
            });
        }
        self.tell(|| SessionFactKind::Disconnect);
    }
}

impl ClientState {
    pub fn subscriptions(&self) -> usize {
        let held = self.membership.held();
        held.channels.len() + held.patterns.len()
    }
}

/// For a session that nobody ended in order: its membership leaves by itself.
impl Drop for Client {
    fn drop(&mut self) {
        if self.is_open()
            && let Ok(state) = self.state.try_lock()
        {
            self.tell_left(state.membership.held());
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
