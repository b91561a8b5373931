//! What a Bayeux session is subscribed to, and how it leaves.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::Pattern;
use super::encoding::{Bayeux, encoding};
use super::extensions::Unacknowledged;
use super::mapping::Style;
use crate::apps::App;
use crate::broker::{Admission, Broker, Cache, Rate, Welcome};
use crate::hub::{
    Acknowledgement, Closing, Expansion, Frame, MemberLimitReached, Outbox, Subscriber,
};
use crate::model::{ChannelName, Member, SessionFactKind, SocketId, UserId};
use crate::transport::session::Session;

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
    /// From the handshake until it leaves, in whatever way.
    is_open: AtomicBool,
    broker: Arc<Broker>,
    outbox: Arc<Outbox>,
    _admission: Admission,
}

pub struct ClientState {
    /// With the member that the subscription stands for, on presence channels.
    pub channels: HashMap<ChannelName, Option<Arc<Member>>>,
    pub patterns: HashSet<Pattern>,
    pub user: Option<SignedIn>,
    pub client_events: Rate,
    /// Nothing was heard for so long that the presence channels were left, for the time being.
    is_absent: bool,
}

pub struct SignedIn {
    pub user: Arc<Member>,
    pub watchlist: Vec<UserId>,
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
        style: Style,
        socket_id: SocketId,
        broker: Arc<Broker>,
        outbox: Arc<Outbox>,
        admission: Admission,
        acknowledges: bool,
    ) -> Self {
        let client_events = Rate::per_sec(app.limits.client_events_per_sec_max);
        Self {
            app,
            socket_id,
            encoding: encoding(style),
            unacknowledged: acknowledges.then(Mutex::default),
            state: tokio::sync::Mutex::new(ClientState {
                client_events,
                ..ClientState::default()
            }),
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

    /// To be asked by whoever has the lock of `state`, before subscribing: what comes after the
    /// end would not be left any more.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            id: self.socket_id,
            outbox: self.outbox.clone(),
            encoding: self.encoding,
        }
    }

    /// A connect says that it has received everything up to this batch. Whether nothing is left
    /// that has to be sent again.
    pub fn acknowledge(&self, batch: Option<u64>) -> bool {
        match &self.unacknowledged {
            Some(sent) => lock(sent).acknowledge(batch.unwrap_or(0)),
            None => true,
        }
    }

    /// What goes out with a connect reply, and its number if the client wants one. More than
    /// `frames_max` without acknowledgement, and the session is too slow.
    pub fn next_batch(
        &self,
        new: VecDeque<Frame>,
        frames_max: usize,
    ) -> (Option<u64>, VecDeque<Frame>) {
        let Some(sent) = &self.unacknowledged else {
            return (None, new);
        };
        let mut sent = lock(sent);
        let (batch, frames) = sent.next_batch(new);
        if sent.len() > frames_max {
            self.outbox.close(Closing::Slow);
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
        // Noted first, so that the subscription is left whatever happens from here on.
        state.channels.insert(channel.clone(), member.clone());
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
        let joined = (self.broker)
            .subscribe(&self.app, channel, self.subscriber(), member, acknowledge)
            .await;
        if let Err(full) = joined {
            state.channels.remove(channel);
            return Err(full);
        }
        Ok(subscribed)
    }

    pub async fn unsubscribe(&self, state: &mut ClientState, channel: &ChannelName) {
        if state.channels.remove(channel).is_some() {
            let broker = &self.broker;
            broker.unsubscribe(&self.app, channel, self.socket_id).await;
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: self.encoding.name_of(channel),
            });
        }
    }

    fn tell(&self, kind: impl FnOnce() -> SessionFactKind) {
        let who = Some(self.socket_id);
        self.broker.state_session(&self.app, who, kind);
    }

    pub async fn subscribe_pattern(
        &self,
        state: &mut ClientState,
        pattern: Pattern,
        expansion: Expansion,
    ) {
        if !state.patterns.insert(pattern.clone()) {
            return;
        }
        let subscriber = self.subscriber();
        (self.broker)
            .subscribe_pattern(&self.app, pattern.as_str(), expansion, subscriber)
            .await;
        self.tell(|| SessionFactKind::Subscribe {
            channel: pattern.as_str().into(),
        });
    }

    pub async fn unsubscribe_pattern(&self, state: &mut ClientState, pattern: &Pattern) {
        if state.patterns.remove(pattern) {
            (self.broker)
                .unsubscribe_pattern(&self.app, pattern.as_str(), self.socket_id)
                .await;
            self.tell(|| SessionFactKind::Unsubscribe {
                channel: pattern.as_str().into(),
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
        for channel in state.channels.keys().filter(|name| name.is_presence()) {
            let broker = &self.broker;
            broker.unsubscribe(&self.app, channel, self.socket_id).await;
        }
    }

    /// The client was heard: its user joins again where it had stepped out, and learns who is
    /// there. A channel that has filled up meanwhile is lost to it.
    pub async fn step_in(&self) {
        let mut state = self.state.lock().await;
        if !std::mem::take(&mut state.is_absent) {
            return;
        }
        let left = state.channels.clone();
        for (channel, member) in left.into_iter().filter(|(name, _)| name.is_presence()) {
            if let Ok(subscribed) = self.join(&mut state, &channel, member).await {
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
            let held = std::mem::take(&mut *state);
            self.leaving(held).leave().await;
        }
    }

    /// `state` is all that the client holds. It is open no more.
    fn leaving(&self, state: ClientState) -> Leaving {
        self.is_open.store(false, Ordering::Relaxed);
        Leaving {
            state,
            broker: self.broker.clone(),
            app: self.app.clone(),
            who: self.socket_id,
            encoding: self.encoding,
        }
    }
}

impl ClientState {
    pub fn subscriptions(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    pub fn user(&self) -> Option<&Arc<Member>> {
        self.user.as_ref().map(|signed_in| &signed_in.user)
    }
}

/// All that a session has to leave, and what it takes to do it.
struct Leaving {
    state: ClientState,
    broker: Arc<Broker>,
    app: Arc<App>,
    who: SocketId,
    encoding: &'static Bayeux,
}

impl Leaving {
    async fn leave(self) {
        let Self {
            state,
            broker,
            app,
            who,
            encoding,
        } = self;
        let tell = |kind: &dyn Fn() -> SessionFactKind| broker.state_session(&app, Some(who), kind);
        for channel in state.channels.keys() {
            broker.unsubscribe(&app, channel, who).await;
            // A user's own channel came with the sign-in.
            if channel.is_reported() {
                tell(&|| SessionFactKind::Unsubscribe {
                    channel: encoding.name_of(channel),
                });
            }
        }
        for pattern in &state.patterns {
            let pattern = pattern.as_str();
            broker.unsubscribe_pattern(&app, pattern, who).await;
            tell(&|| SessionFactKind::Unsubscribe {
                channel: pattern.into(),
            });
        }
        if let Some(signed_in) = state.user {
            broker.unwatch(&app, who, &signed_in.watchlist).await;
            broker.sign_out(&app, who, &signed_in.user.user_id).await;
        }
        tell(&|| SessionFactKind::Disconnect);
    }
}

impl Default for ClientState {
    fn default() -> Self {
        Self {
            channels: HashMap::new(),
            patterns: HashSet::new(),
            user: None,
            client_events: Rate::per_sec(0),
            is_absent: false,
        }
    }
}

/// For a session that nobody ended in order.
impl Drop for Client {
    fn drop(&mut self) {
        if !*self.is_open.get_mut() {
            return;
        }
        // Without a runtime the process is at its end, and there is nobody left to tell.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let state = std::mem::take(self.state.get_mut());
        let leaving = self.leaving(state);
        runtime.spawn(leaving.leave());
    }
}

fn lock(sent: &Mutex<Unacknowledged>) -> MutexGuard<'_, Unacknowledged> {
    sent.lock().unwrap_or_else(PoisonError::into_inner)
}
