//! What one connection or session is subscribed to and signed in as: all that it has to leave, in
//! one place for both protocols.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::sync::Arc;

use super::{Broker, Welcome};
use crate::apps::App;
use crate::hub::{Acknowledgement, Expansion, Frame, MemberLimitReached, Subscriber};
use crate::model::{AppId, ChannelId, ChannelName, Member, SocketId, UserId};

/// Dropping it leaves everything, in the background.
pub struct Membership {
    broker: Arc<Broker>,
    app: Arc<App>,
    subscriber: Subscriber,
    held: Held,
}

/// Enough to leave it all here, or to take it up again elsewhere.
#[derive(Default)]
pub struct Held {
    /// With the member that the subscription stands for, on presence channels.
    pub channels: HashMap<ChannelName, Option<Arc<Member>>>,
    pub patterns: HashSet<Arc<str>>,
    pub user: Option<Box<SignedIn>>,
}

pub struct SignedIn {
    pub user: Arc<Member>,
    pub watchlist: Vec<UserId>,
}

/// Whether it is the first time that the membership signs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignIn {
    First,
    /// As the same user. Its watchlist is gone.
    Again,
}

/// It is signed in already, as another user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedInAsAnother;

impl Membership {
    pub fn new(broker: Arc<Broker>, app: Arc<App>, subscriber: Subscriber) -> Self {
        Self {
            broker,
            app,
            subscriber,
            held: Held::default(),
        }
    }

    pub fn held(&self) -> &Held {
        &self.held
    }

    pub fn user(&self) -> Option<&Arc<Member>> {
        self.held.user.as_ref().map(|signed_in| &signed_in.user)
    }

    /// See [`Broker::subscribe`]. A channel that it holds already is joined anew, which is for one
    /// that has been left meanwhile; if that fails it is held no more.
    pub async fn subscribe(
        &mut self,
        channel: &ChannelName,
        member: Option<Arc<Member>>,
        acknowledge: impl FnOnce(Welcome<'_>) -> Acknowledgement,
    ) -> Result<(), MemberLimitReached> {
        // Noted first, so that the subscription is left whatever happens from here on.
        self.held.channels.insert(channel.clone(), member.clone());
        let subscriber = self.subscriber.clone();
        let joined = (self.broker)
            .subscribe(&self.app, channel, subscriber, member, acknowledge)
            .await;
        if joined.is_err() {
            self.held.channels.remove(channel);
        }
        joined
    }

    /// The channel, if it was held.
    pub async fn unsubscribe(&mut self, channel: &str) -> Option<ChannelName> {
        let (channel, _) = self.held.channels.remove_entry(channel)?;
        let who = self.subscriber.id;
        self.broker.unsubscribe(&self.app, &channel, who).await;
        Some(channel)
    }

    /// Whether it is new.
    pub async fn subscribe_pattern(&mut self, pattern: &str, expansion: Expansion) -> bool {
        if !self.held.patterns.insert(pattern.into()) {
            return false;
        }
        let subscriber = self.subscriber.clone();
        (self.broker)
            .subscribe_pattern(&self.app, pattern, expansion, subscriber)
            .await;
        true
    }

    /// Whether it was held.
    pub async fn unsubscribe_pattern(&mut self, pattern: &str) -> bool {
        let was_held = self.held.patterns.remove(pattern);
        if was_held {
            let who = self.subscriber.id;
            self.broker
                .unsubscribe_pattern(&self.app, pattern, who)
                .await;
        }
        was_held
    }

    /// The user watches nobody then; see [`Membership::watch`].
    pub async fn sign_in(&mut self, user: Member) -> Result<SignIn, SignedInAsAnother> {
        let user = Arc::new(user);
        let signed_in = |user| {
            Some(Box::new(SignedIn {
                user,
                watchlist: Vec::new(),
            }))
        };
        let (app, who) = (&self.app, self.subscriber.id);
        if let Some(earlier) = &mut self.held.user {
            if earlier.user.user_id != user.user_id {
                return Err(SignedInAsAnother);
            }
            let watchlist = take(&mut earlier.watchlist);
            self.broker.unwatch(app, who, &watchlist).await;
            self.held.user = signed_in(user);
            return Ok(SignIn::Again);
        }
        // Noted first, so that the user is signed out whatever happens from here on.
        self.held.user = signed_in(user.clone());
        let subscriber = self.subscriber.clone();
        self.broker.sign_in(app, subscriber, &user.user_id).await;
        Ok(SignIn::First)
    }

    /// Watches these users and nobody else yet; `introduce` makes of those `(online, offline)` what
    /// comes first. Only so many as the app allows.
    pub async fn watch(
        &mut self,
        mut watchlist: Vec<UserId>,
        introduce: impl FnOnce(&[UserId], &[UserId]) -> Option<Frame>,
    ) {
        if !self.app.features.watchlist_events {
            return;
        }
        watchlist.truncate(self.app.limits.watchlist_ids_max);
        watchlist.sort_unstable();
        watchlist.dedup();
        if let Some(signed_in) = &mut self.held.user {
            signed_in.watchlist.clone_from(&watchlist);
        }
        let subscriber = self.subscriber.clone();
        (self.broker)
            .watch(&self.app, subscriber, &watchlist, introduce)
            .await;
    }

    /// Takes up what was held on another node, where it is not left yet; but nothing that `is_left`
    /// says it does not need. Nobody is told. `Err` if something cannot be taken up: then nothing is.
    pub async fn resume(
        &mut self,
        held: Held,
        expansion: impl Fn() -> Expansion,
        is_left: impl Fn(&ChannelName) -> bool,
    ) -> Result<(), MemberLimitReached> {
        self.held = held;
        let (broker, app) = (self.broker.clone(), self.app.clone());
        let subscriber = || self.subscriber.clone();
        for (channel, member) in &self.held.channels {
            if !is_left(channel) {
                let resumed = broker.resume(&app, channel, subscriber(), member.clone());
                resumed.await?;
            }
        }
        for pattern in &self.held.patterns {
            (broker.subscribe_pattern(&app, pattern, expansion(), subscriber())).await;
        }
        if let Some(signed_in) = &self.held.user {
            let SignedIn { user, watchlist } = &**signed_in;
            broker.sign_in(&app, subscriber(), &user.user_id).await;
            (broker.watch(&app, subscriber(), watchlist, |_, _| None)).await;
        }
        Ok(())
    }

    /// All of it goes on on another node: here it is left without a word.
    pub async fn hand_over(&mut self) {
        let (app, who) = (self.app.clone(), self.subscriber.id);
        let mut held = take(&mut self.held);
        for (channel, _) in held.channels.drain() {
            self.broker.hand_over(&app, &channel, who).await;
        }
        held.leave(&self.broker, &app, who).await;
    }

    pub async fn leave(&mut self) {
        let held = take(&mut self.held);
        held.leave(&self.broker, &self.app, self.subscriber.id)
            .await;
    }
}

impl Held {
    /// All channels, also those that no client can name.
    pub fn all_channels(&self, app: &AppId) -> Vec<ChannelId> {
        let mut names: Vec<ChannelName> = self.channels.keys().cloned().collect();
        if let Some(signed_in) = &self.user {
            names.push(ChannelName::signed_in(&signed_in.user.user_id));
            let watched = signed_in.watchlist.iter();
            names.extend(watched.map(|user| ChannelName::watchers(user)));
        }
        names.iter().map(|name| ChannelId::new(app, name)).collect()
    }

    fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.patterns.is_empty() && self.user.is_none()
    }

    async fn leave(self, broker: &Broker, app: &App, who: SocketId) {
        for channel in self.channels.keys() {
            broker.unsubscribe(app, channel, who).await;
        }
        for pattern in &self.patterns {
            broker.unsubscribe_pattern(app, pattern, who).await;
        }
        if let Some(signed_in) = self.user {
            broker.unwatch(app, who, &signed_in.watchlist).await;
            broker.sign_out(app, who, &signed_in.user.user_id).await;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let held = take(&mut self.held);
        if held.is_empty() {
            return;
        }
        // Without a runtime the process is at its end, and there is nobody left to tell.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (broker, app, who) = (self.broker.clone(), self.app.clone(), self.subscriber.id);
        let leaving = broker.leaving.clone();
        leaving.spawn_on(
            async move { held.leave(&broker, &app, who).await },
            &runtime,
        );
    }
}
