//! The one channel model as the front ends use it: subscribe, leave, publish, ask, sign in. Each
//! walk through backend and hub stands here once, for both protocols and the HTTP API.

mod admission;
mod counts;
mod membership;
mod rate;
mod users;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use admission::{Admission, OverQuota};
use counts::Counts;
pub use membership::{Held, Membership, SignIn, SignedIn, SignedInAsAnother};
use rate::AppRates;

use tokio_util::task::TaskTracker;

use crate::apps::App;
use crate::backend::{Backend, FactSink, Joining, LastEvent};
use crate::hub::{
    Acknowledgement, Expansion, Hub, Load, MemberLimitReached, Occupancy, Outbox, Roster,
    Subscriber,
};
use crate::model::ids::IdSource;
use crate::model::{
    AppId, Body, ChannelId, ChannelName, Event, FactKind, Member, Message, SessionFactKind,
    SocketId,
};

pub struct Broker {
    hub: Arc<Hub>,
    backend: Arc<dyn Backend>,
    facts: FactSink,
    ids: Arc<IdSource>,
    counts: Counts,
    admissions: admission::Admissions,
    rates: AppRates,
    /// Those whose connections have gone already.
    leaving: TaskTracker,
}

/// What a new subscriber is to be told.
pub struct Welcome<'a> {
    /// On presence channels.
    pub roster: &'a Roster,
    pub cache: Cache<'a>,
}

/// A channel's last event at the moment of subscribing (`pusher.md` 2.7).
pub enum Cache<'a> {
    NotCached,
    Miss,
    Hit(&'a Event),
}

impl Broker {
    pub fn new(
        hub: Arc<Hub>,
        backend: Arc<dyn Backend>,
        facts: FactSink,
        ids: Arc<IdSource>,
    ) -> Arc<Self> {
        Arc::new(Self {
            counts: Counts::new(backend.clone(), ids.clone()),
            admissions: Default::default(),
            rates: Default::default(),
            leaving: TaskTracker::new(),
            hub,
            backend,
            facts,
            ids,
        })
    }

    pub fn new_socket_id(&self) -> SocketId {
        self.ids.socket_id()
    }

    /// Notes a new connection of the app. It has yet to be counted against the app's limit.
    pub fn admit(&self, app: &App, who: SocketId, outbox: Arc<Outbox>) -> Admission {
        self.admissions.admit(&app.id, who, outbox)
    }

    /// How many connections each app has on this node.
    pub fn connections(&self) -> HashMap<AppId, usize> {
        self.admissions.connections()
    }

    /// How many channels and subscriptions each app has on this node.
    pub fn loads(&self) -> HashMap<AppId, Load> {
        self.hub.loads()
    }

    /// What waits for all connections together, in bytes. Events that several wait for count as
    /// often.
    pub fn outbox_bytes(&self) -> usize {
        self.admissions.outbox_bytes()
    }

    /// Cuts off those that most is waiting for, if more than this waits for all together. Returns
    /// what waits then.
    pub fn relieve(&self, outbox_bytes_max: usize) -> usize {
        self.admissions.relieve(outbox_bytes_max)
    }

    /// Tells every connection to go, spread over this time, also those that still come: to other
    /// servers, or without time to come back here. Those that `others` takes to another node are
    /// told only if they are still here when it is done.
    pub async fn drain(&self, over: Duration, others: Option<impl Future<Output = ()>>) {
        self.admissions.drain(over, others).await;
    }

    /// Waits until whoever has disconnected has left its channels. For the end, when nobody comes.
    pub async fn all_have_left(&self) {
        self.leaving.close();
        self.leaving.wait().await;
    }

    /// Subscribes; `acknowledge` makes what the subscriber receives first. The caller has checked
    /// that it may, and that it is not subscribed yet.
    pub async fn subscribe(
        &self,
        app: &App,
        channel: &ChannelName,
        subscriber: Subscriber,
        member: Option<Arc<Member>>,
        acknowledge: impl FnOnce(Welcome<'_>) -> Acknowledgement,
    ) -> Result<(), MemberLimitReached> {
        let id = ChannelId::new(&app.id, channel);
        let who = subscriber.id;
        let joining = Joining {
            subscriber,
            member,
            members_max: app.limits.presence_members_max,
        };
        let joined = self.backend.join(&id, joining).await?;
        // Before the acknowledgement, so that of clients that come one after the other each is
        // counted. The subscriber itself learns of it behind its acknowledgement all the same.
        (self.counts)
            .changed(app, &id, joined.connections, joined.version)
            .await;
        let last_event = match channel.is_cached() {
            true => Some(self.backend.last_event(&id).await),
            false => None,
        };
        let cache = match &last_event {
            None => Cache::NotCached,
            Some(None) => Cache::Miss,
            Some(Some(last)) => Cache::Hit(&last.event),
        };
        let is_miss = matches!(cache, Cache::Miss);
        let acknowledgement = acknowledge(Welcome {
            roster: &joined.roster,
            cache,
        });
        (self.hub).acknowledge(&id, who, acknowledgement, joined.version);
        if is_miss {
            self.facts.state(&id, FactKind::CacheMiss);
        }
        Ok(())
    }

    /// Subscribes somebody who is subscribed on another node, and goes on here: nobody is told.
    async fn resume(
        &self,
        app: &App,
        channel: &ChannelName,
        subscriber: Subscriber,
        member: Option<Arc<Member>>,
    ) -> Result<(), MemberLimitReached> {
        let id = ChannelId::new(&app.id, channel);
        let who = subscriber.id;
        let joining = Joining {
            subscriber,
            member,
            members_max: app.limits.presence_members_max,
        };
        self.backend.join(&id, joining).await?;
        // It knows no roster of here: whatever came since is news.
        (self.hub).acknowledge(&id, who, Acknowledgement::default(), 0);
        Ok(())
    }

    /// The reverse of [`Broker::resume`], on the other node.
    async fn hand_over(&self, app: &App, channel: &ChannelName, who: SocketId) {
        let id = ChannelId::new(&app.id, channel);
        let _ = self.backend.leave(&id, who).await;
    }

    pub async fn unsubscribe(&self, app: &App, channel: &ChannelName, who: SocketId) {
        let id = ChannelId::new(&app.id, channel);
        if let Some(left) = self.backend.leave(&id, who).await {
            (self.counts)
                .changed(app, &id, left.connections, left.version)
                .await;
        }
    }

    /// Whether the application may publish so many events now; an event counts once for each of
    /// its channels. `Err` says after what time to try again.
    pub fn allows_publishing(&self, app: &App, events: usize) -> Result<(), Duration> {
        match app.limits.backend_events_per_sec_max {
            Some(max) => self.rates.allows(&app.id, max.get(), events),
            None => Ok(()),
        }
    }

    /// Publishes what the application sent; a cache channel remembers it.
    pub async fn publish(
        &self,
        app: &App,
        channel: &ChannelName,
        message: Message,
        except: Option<SocketId>,
    ) {
        let keep = channel.is_cached().then_some(app.limits.cache_ttl);
        let event = self.event(app, channel, except, Body::Message(message));
        self.backend.publish(event, keep, None).await;
    }

    /// Publishes what a client sent. Never remembered. `sender` is absent for a Bayeux client
    /// without a session; `except` is the sender where it does not want its own event back.
    pub async fn client_event(
        &self,
        app: &App,
        channel: &ChannelName,
        message: Message,
        sender: Option<SocketId>,
        except: Option<SocketId>,
    ) {
        let fact = (self.facts.wants_client_events()).then(|| FactKind::ClientEvent {
            name: message.name.clone(),
            data: message.data.clone(),
            socket_id: sender,
            user_id: message.user_id.clone(),
        });
        let event = self.event(app, channel, except, Body::Message(message));
        self.backend.publish(event, None, fact).await;
    }

    /// States what `kind` makes about a Bayeux session, if anybody wants to know of sessions.
    pub fn state_session(
        &self,
        app: &App,
        session: Option<SocketId>,
        kind: impl FnOnce() -> SessionFactKind,
    ) {
        self.facts.state_session(&app.id, session, kind);
    }

    /// Subscribes to every channel of the app that the pattern matches; see
    /// [`Hub::join_pattern`].
    pub async fn subscribe_pattern(
        &self,
        app: &App,
        pattern: &str,
        expansion: Expansion,
        subscriber: Subscriber,
    ) {
        (self.backend)
            .join_pattern(&app.id, pattern, expansion, subscriber)
            .await;
    }

    pub async fn unsubscribe_pattern(&self, app: &App, pattern: &str, who: SocketId) {
        self.backend.leave_pattern(&app.id, pattern, who).await;
    }

    /// The app's occupied channels that applications are told about, by name.
    pub async fn channels(&self, app: &App, prefix: &str) -> Vec<(ChannelName, Occupancy)> {
        let mut channels = self.backend.channels(&app.id, prefix).await;
        channels.retain(|(name, _)| name.is_reported());
        channels
    }

    /// `None` for a channel without subscribers.
    pub async fn occupancy(&self, app: &App, channel: &ChannelName) -> Option<Occupancy> {
        let id = ChannelId::new(&app.id, channel);
        self.backend.occupancy(&id).await
    }

    /// The distinct users of a presence channel, in the order of their ids.
    pub async fn members(&self, app: &App, channel: &ChannelName) -> Vec<Arc<Member>> {
        let id = ChannelId::new(&app.id, channel);
        self.backend.members(&id).await
    }

    pub async fn last_event(&self, app: &App, channel: &ChannelName) -> Option<LastEvent> {
        let id = ChannelId::new(&app.id, channel);
        self.backend.last_event(&id).await
    }

    fn event(
        &self,
        app: &App,
        channel: &ChannelName,
        except: Option<SocketId>,
        body: Body,
    ) -> Event {
        Event {
            id: self.ids.event_id(),
            channel: ChannelId::new(&app.id, channel),
            except,
            body,
        }
    }
}
