//! `/meta/subscribe` and `/meta/unsubscribe` (`bayeux.md` 2.5, 8.4, 8.6): all that a message names,
//! or nothing.

use std::sync::Arc;

use super::authorise::presence_member;
use super::channel::Pattern;
use super::check::{self, Service, Target};
use super::client::{Client, ClientState};
use super::encoding::{expansion, roster_members};
use super::exchange::Sender;
use super::mapping::Scope;
use super::permission::{Matter, Question, ShownHeaders};
use super::settings::Wildcards;
use super::site::Site;
use crate::auth::{split_auth, subscription_text};
use crate::broker::{Held, Membership};
use crate::metrics::{Limit, REFUSALS};
use crate::model::{ChannelKind, ChannelName, Member, now_ms};
use crate::wire::bayeux::{
    AUTHENTICATION_REQUIRED, BayeuxError, Ext, FORBIDDEN_CHANNEL, Given, INVALID_SIGNATURE, Object,
    Subscribe, Subscription, TOO_MANY_REQUESTS, UNKNOWN_CLIENT,
};

/// What a message asks for and may have.
enum Granted {
    Channel(ChannelName, Option<Arc<Member>>),
    Pattern(Pattern),
    /// Its members receive it without asking; who asks gets the list (8.6).
    Presence(ChannelName),
    /// There is nothing to do: it is received anyway.
    Nothing,
}

impl Granted {
    fn is_new_to(&self, held: &Held) -> bool {
        match self {
            Self::Channel(channel, _) => !held.channels.contains_key(channel),
            Self::Pattern(pattern) => !held.patterns.contains(pattern.as_str()),
            Self::Presence(_) | Self::Nothing => false,
        }
    }
}

impl Site {
    /// `clientId` and `subscription` are required; private and presence channels need a proof in
    /// `ext`, see `Asked::verify`.
    pub(super) async fn subscribe(&self, request: &Subscribe<'_>, sender: &Sender) -> String {
        match self.try_subscribe(request, &sender.headers).await {
            Ok(ext) => request.accepted(ext.as_deref()),
            Err(error) => {
                let asked = request.subscription.as_ref().map(|s| s.elements());
                let asked = asked.into_iter().flatten().filter_map(|name| name.text());
                let asked: Vec<_> = asked.collect();
                self.note_refused(request.client_id, sender, &asked.join(" "), &error);
                request.refused(&error)
            }
        }
    }

    pub(super) async fn unsubscribe(&self, request: &Subscribe<'_>) -> String {
        match self.try_unsubscribe(request).await {
            Ok(()) => request.accepted(None),
            Err(error) => request.refused(&error),
        }
    }

    async fn try_subscribe(
        &self,
        request: &Subscribe<'_>,
        headers: &ShownHeaders,
    ) -> Result<Option<String>, BayeuxError> {
        let session = self.active_session(request.client_id);
        let targets = check::subscribe(request, session.is_some(), self.settings.style)?;
        let session = session.ok_or(UNKNOWN_CLIENT)?;
        let mut is_proven = self.settings.check_subscribe(request, now_ms())?;
        let client = &session.client;
        let question = Question {
            matter: Matter::Subscribe,
            channel: "/meta/subscribe",
            client_id: request.client_id,
            subscription: request.subscription.as_ref().map(Subscription::json),
            ext: request.ext.json(),
            headers,
        };
        is_proven |= self.ask(&client.app, question).await?;
        let mut state = client.state.lock().await;
        if !client.is_open() {
            return Err(UNKNOWN_CLIENT.into());
        }
        client.step_in(&mut state).await;
        let names = request.subscription.as_ref().map(|s| s.elements());
        let mut granted = Vec::with_capacity(targets.len());
        for (target, name) in targets.into_iter().zip(names.unwrap_or_default()) {
            let asked = Asked {
                site: self,
                client,
                name: *name,
                ext: &request.ext,
                is_proven,
            };
            granted.push(asked.grant(target, &state.membership, &granted)?);
        }
        let subscriptions_max = self.settings.limits.subscriptions_per_session_max;
        let held = state.membership.held();
        let new = granted.iter().filter(|granted| granted.is_new_to(held));
        if state.subscriptions() + new.count() > subscriptions_max {
            REFUSALS.count(Limit::Subscriptions);
            return Err(TOO_MANY_REQUESTS.into());
        }
        self.apply(client, &mut state, granted).await
    }

    /// The `ext` of the reply. If a presence channel turns out to be full, what was done before
    /// is undone.
    async fn apply(
        &self,
        client: &Client,
        state: &mut ClientState,
        granted: Vec<Granted>,
    ) -> Result<Option<String>, BayeuxError> {
        let mut ext = Object::default();
        let mut done = Vec::new();
        for granted in granted {
            match granted {
                Granted::Channel(channel, _)
                    if state.membership.held().channels.contains_key(&channel) => {}
                Granted::Channel(channel, member) => {
                    let Ok(subscribed) = client.subscribe(state, &channel, member).await else {
                        for channel in done {
                            client.unsubscribe(state, &channel).await;
                        }
                        return Err(TOO_MANY_REQUESTS.into());
                    };
                    if let Some(roster) = &subscribed.roster {
                        let roster = roster_members(Object::default(), roster);
                        ext = ext.json("presence", &roster.end());
                    }
                    if subscribed.is_cache_miss {
                        ext = ext.text("cache", "miss");
                    }
                    done.push(channel);
                }
                Granted::Pattern(pattern) => {
                    let expansion = expansion(self.settings.style, self.settings.wildcards);
                    client.subscribe_pattern(state, &pattern, expansion).await;
                }
                Granted::Presence(room) => self.send_roster(client, &room).await,
                Granted::Nothing => {}
            }
        }
        Ok((!ext.is_empty()).then(|| ext.end()))
    }

    async fn try_unsubscribe(&self, request: &Subscribe<'_>) -> Result<(), BayeuxError> {
        let session = self.active_session(request.client_id);
        let targets = check::subscribe(request, session.is_some(), self.settings.style)?;
        let session = session.ok_or(UNKNOWN_CLIENT)?;
        let client = &session.client;
        let mut state = client.state.lock().await;
        for target in targets {
            match target {
                Target::Channel(channel) => client.unsubscribe(&mut state, &channel).await,
                Target::Pattern(pattern, _) => {
                    client.unsubscribe_pattern(&mut state, &pattern).await;
                }
                Target::Service(_) => {}
            }
        }
        Ok(())
    }
}

/// One element of a subscription, under the name that its client gave it.
struct Asked<'a> {
    site: &'a Site,
    client: &'a Client,
    name: Given<'a>,
    ext: &'a Ext<'a>,
    /// The message carries a proof of the app's that is good for private channels.
    is_proven: bool,
}

impl Asked<'_> {
    /// `before`: what else the same message was granted.
    fn grant(
        &self,
        target: Target,
        membership: &Membership,
        before: &[Granted],
    ) -> Result<Granted, BayeuxError> {
        let forbidden = || FORBIDDEN_CHANNEL.of(self.name.describe());
        match target {
            Target::Channel(channel) => self.grant_channel(channel, membership),
            Target::Pattern(..) if self.site.settings.wildcards == Wildcards::Off => {
                Err(forbidden())
            }
            Target::Pattern(pattern, Scope::Public) => Ok(Granted::Pattern(pattern)),
            Target::Pattern(pattern, Scope::Private { signed_as }) => {
                if !self.is_proven {
                    self.verify(&signed_as)?;
                }
                Ok(Granted::Pattern(pattern))
            }
            Target::Service(Service::User) => match membership.user() {
                Some(_) => Ok(Granted::Nothing),
                None => Err(self.unproven()),
            },
            Target::Service(Service::Presence(room)) => {
                let is_room = |granted: &Granted| matches!(granted, Granted::Channel(name, _) if *name == room);
                match membership.held().channels.contains_key(&room) || before.iter().any(is_room) {
                    true => Ok(Granted::Presence(room)),
                    false => Err(self.unproven()),
                }
            }
            Target::Service(Service::Other) => Err(forbidden()),
        }
    }

    fn grant_channel(
        &self,
        channel: ChannelName,
        membership: &Membership,
    ) -> Result<Granted, BayeuxError> {
        if membership.held().channels.contains_key(&channel) {
            return Ok(Granted::Nothing);
        }
        let mut member = None;
        match channel.kind() {
            ChannelKind::Public => {}
            ChannelKind::Private if self.is_proven => {}
            ChannelKind::Private | ChannelKind::PrivateEncrypted => {
                self.verify(channel.as_str())?;
            }
            ChannelKind::Presence => {
                let channel_data = self.verify(channel.as_str())?;
                let limits = &self.client.app.limits;
                let found = presence_member(channel_data.as_deref(), membership.user(), limits);
                member = Some(found.map_err(|reason| reason.of(self.name.describe()))?);
            }
            ChannelKind::ServerToUser => {
                let user_id = membership.user().map(|user| &*user.user_id);
                return match user_id.is_some() && user_id == channel.addressed_user() {
                    // Subscribed to since the sign-in.
                    true => Ok(Granted::Nothing),
                    false => Err(self.unproven()),
                };
            }
            ChannelKind::Internal => return Err(FORBIDDEN_CHANNEL.of(self.name.describe())),
        }
        Ok(Granted::Channel(channel, member))
    }

    /// Checks the signature of the application's auth endpoint, `KEY:SIGNATURE` over
    /// `socket_id:signed_as[:channel_data]`, as for Pusher (`pusher.md` 2.3). It stands in
    /// `ext.auth` with `ext.channel_data`; in an array's `ext.auth` by the name of each element.
    /// Returns the `channel_data` that was signed.
    fn verify(&self, signed_as: &str) -> Result<Option<String>, BayeuxError> {
        let proof = self.ext.get("auth").ok_or_else(|| self.unproven())?;
        let (auth, channel_data) = match proof.text() {
            Some(auth) => (Some(auth), self.ext.get("channel_data")),
            None => {
                let name = self.name.text().unwrap_or_default();
                let own = proof.member(&name).ok_or_else(|| self.unproven())?;
                let auth = own.member("auth").and_then(Given::text);
                (auth, own.member("channel_data"))
            }
        };
        let auth = auth.ok_or_else(|| self.unproven())?;
        let channel_data = channel_data.and_then(Given::text);
        let socket_id = self.client.socket_id.to_string();
        let signed = subscription_text(&socket_id, signed_as, channel_data.as_deref());
        let (key, signature) = split_auth(&auth);
        let key = self.client.app.key(key);
        match key.is_some_and(|key| key.secret.verify(signed.as_bytes(), signature)) {
            true => Ok(channel_data.map(|data| data.into_owned())),
            false => Err(INVALID_SIGNATURE.of(self.name.describe())),
        }
    }

    fn unproven(&self) -> BayeuxError {
        AUTHENTICATION_REQUIRED.of(self.name.describe())
    }
}
