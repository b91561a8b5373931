//! What a Pusher client asks for and what it gets (`pusher.md` 2–4), whatever carries its
//! messages.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::encoding::Pusher;
use super::refusal::Refusal;
use super::{Front, close, handshake};
use crate::apps::App;
use crate::audit;
use crate::auth::{self, split_auth};
use crate::broker::{Admission, Held, Membership, OverQuota, SignedInAsAnother, Welcome};
use crate::hub::{Closing, Expansion, Outbox, Subscriber};
use crate::metrics::{CUT_OFFS, CutOff, Limit, REFUSALS};
use crate::model::{AppId, ChannelKind, ChannelName, Member, Message, SocketId, UserId};
use crate::rate::Rate;
use crate::transport::websocket::{Close, Conversation};
use crate::transport::writer::{Encoded, Source};
use crate::wire::json::TextField;
use crate::wire::pusher::{self, ClientEvent, MemberError, Subscribe, Trigger, UserData, abridged};

/// An accepted connection. Dropping it leaves everything that it is subscribed to.
pub struct Connection {
    front: Arc<Front>,
    app: Arc<App>,
    socket_id: SocketId,
    outbox: Arc<Outbox>,
    encoding: &'static Pusher,
    membership: Membership,
    client_events: Rate,
    control_messages: Rate,
    /// By when it has to sign in or subscribe to a private channel, if it has to and has not.
    authorize_by: Option<Instant>,
    admission: Admission,
}

/// What a connection is, for another node.
pub struct Described {
    pub socket_id: SocketId,
    pub held: Held,
    /// If it has yet to sign in or subscribe to a private channel.
    pub authorize_within: Option<Duration>,
}

impl Connection {
    /// Greets the client: nothing may come before `connection_established`.
    pub fn open(
        front: Arc<Front>,
        app: Arc<App>,
        outbox: Arc<Outbox>,
        encoding: &'static Pusher,
    ) -> Result<Self, Close> {
        let socket_id = front.broker.new_socket_id();
        let mut admission = front.broker.admit(&app, socket_id, outbox.clone());
        let authorize_by = (app.features.authorized_connections).map(|d| Instant::now() + d);
        if authorize_by.is_none() {
            count(&mut admission, &app)?;
        }
        tracing::debug!(app = %app.id, %socket_id, "connected");
        let activity_timeout_secs = front.activity_timeout.as_secs();
        let greeting = pusher::connection_established(socket_id, activity_timeout_secs);
        outbox.push(encoding.frame(greeting));
        let subscriber = Subscriber {
            id: socket_id,
            outbox: outbox.clone(),
            encoding,
        };
        Ok(Self {
            client_events: Rate::per_sec(app.limits.client_events_per_sec_max),
            control_messages: Rate::per_sec(app.limits.control_messages_per_sec_max),
            authorize_by,
            membership: Membership::new(front.broker.clone(), app.clone(), subscriber),
            admission,
            front,
            app,
            socket_id,
            outbox,
            encoding,
        })
    }

    /// One that was open on another node. `None` if there is no room for it.
    pub async fn resume(
        front: Arc<Front>,
        app: Arc<App>,
        outbox: Arc<Outbox>,
        encoding: &'static Pusher,
        described: Described,
    ) -> Option<Self> {
        let Described {
            socket_id,
            held,
            authorize_within,
        } = described;
        let mut admission = front.broker.admit(&app, socket_id, outbox.clone());
        admission.can_move();
        if authorize_within.is_none() {
            count(&mut admission, &app).ok()?;
        }
        let subscriber = Subscriber {
            id: socket_id,
            outbox: outbox.clone(),
            encoding,
        };
        let mut membership = Membership::new(front.broker.clone(), app.clone(), subscriber);
        // Pusher's clients have no patterns.
        let no_patterns = || -> Expansion { Arc::new(|_| Vec::new()) };
        (membership.resume(held, no_patterns, |_| false))
            .await
            .ok()?;
        Some(Self {
            client_events: Rate::per_sec(app.limits.client_events_per_sec_max),
            control_messages: Rate::per_sec(app.limits.control_messages_per_sec_max),
            authorize_by: authorize_within.map(|within| Instant::now() + within),
            membership,
            admission,
            front,
            app,
            socket_id,
            outbox,
            encoding,
        })
    }

    /// It may go on on another node.
    pub fn can_move(&self) {
        self.admission.can_move();
    }

    pub fn held(&self) -> &Held {
        self.membership.held()
    }

    pub fn authorize_within(&self) -> Option<Duration> {
        let by = self.authorize_by?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    /// It goes on on another node: here it leaves without a word.
    pub async fn hand_over(&mut self) {
        self.membership.hand_over().await;
    }

    pub fn id(&self) -> (&AppId, SocketId) {
        (&self.app.id, self.socket_id)
    }

    /// The line of its connection has the address.
    fn in_audit_log(&self) -> audit::Client<'_> {
        audit::Client {
            app: &self.app.id,
            socket_id: Some(self.socket_id),
            address: None,
        }
    }

    fn note_refused(
        &self,
        limit: Limit,
        key: Option<&str>,
        channel: Option<&ChannelName>,
        why: &str,
    ) {
        REFUSALS.count(limit);
        let channel = channel.map(ChannelName::as_str);
        self.in_audit_log().refused(key, channel, why);
    }

    fn reply(&self, event: String) {
        self.outbox.push(self.encoding.frame(event));
    }

    fn refuse(&self, refusal: &Refusal) {
        self.reply(refusal.to_event());
    }

    /// A refused subscription is told twice: the second form reaches the channel object of
    /// pusher-js and Echo (`pusher.md` 2.5).
    fn refuse_subscription(&self, channel: &str, refusal: &Refusal) {
        self.refuse(refusal);
        self.reply(refusal.to_subscription_error(channel));
    }

    /// Whether it is accepted.
    async fn on_subscribe(&mut self, request: Subscribe) -> bool {
        let TextField::Text(name) = &request.channel else {
            self.refuse(&missing_channel());
            return false;
        };
        let limit = self.app.limits.channel_name_chars_max;
        let channel = match ChannelName::parse(name, limit) {
            Ok(channel) => channel,
            Err(why) => {
                let name = abridged(name);
                let message = format!("Invalid channel name {name}: {why}");
                let refusal = Refusal::invalid_channel(message);
                self.refuse_subscription(&name, &refusal);
                return false;
            }
        };
        if self.membership.held().channels.contains_key(&channel) {
            let message = format!("Existing subscription to channel {channel}");
            self.refuse(&Refusal::plain(message));
            return false;
        }
        let subscribed = self.subscribe(&channel, &request).await;
        if let Err(refusal) = &subscribed {
            self.refuse_subscription(channel.as_str(), refusal);
        }
        subscribed.is_ok()
    }

    async fn subscribe(
        &mut self,
        channel: &ChannelName,
        request: &Subscribe,
    ) -> Result<(), Refusal> {
        let limits = &self.app.limits;
        if let Some(max) = limits.subscriptions_per_connection_max
            && self.membership.held().channels.len() >= max.get()
        {
            REFUSALS.count(Limit::Subscriptions);
            let message = format!("Connection is over its limit of {max} subscriptions");
            return Err(Refusal::limit_reached(message, 429));
        }
        let member = match channel.kind() {
            ChannelKind::Public => None,
            ChannelKind::ServerToUser => {
                self.check_addressed_user(channel)?;
                None
            }
            ChannelKind::Private | ChannelKind::PrivateEncrypted => {
                self.check_signature(channel, request)?;
                None
            }
            ChannelKind::Presence => {
                let channel_data = self.check_signature(channel, request)?;
                Some(self.member(channel, channel_data)?)
            }
            ChannelKind::Internal => {
                let message = format!("Invalid channel name {channel}: it is reserved");
                return Err(Refusal::invalid_channel(message));
            }
        };
        let is_authorised = matches!(
            channel.kind(),
            ChannelKind::Private | ChannelKind::PrivateEncrypted | ChannelKind::Presence
        );

        let encoding = self.encoding;
        let acknowledge = |arrived: Welcome<'_>| encoding.welcome(channel, arrived);
        let joined = self.membership.subscribe(channel, member, acknowledge);
        if joined.await.is_err() {
            REFUSALS.count(Limit::PresenceMembers);
            let max = self.app.limits.presence_members_max;
            let message = format!("Presence channel {channel} is over its limit of {max} members");
            return Err(Refusal::limit_reached(message, 429));
        }
        if is_authorised {
            self.authorize_by = None;
        }
        Ok(())
    }

    /// The `channel_data` that was signed along, if any (`pusher.md` 2.3).
    fn check_signature<'a>(
        &self,
        channel: &ChannelName,
        request: &'a Subscribe,
    ) -> Result<Option<&'a str>, Refusal> {
        let channel_data = match &request.channel_data {
            TextField::Absent => None,
            TextField::Text(text) => Some(text.as_str()),
            TextField::NotText => {
                let message =
                    format!("Invalid channel_data for channel {channel}: must be a string");
                return Err(Refusal::not_authorised(message));
            }
        };
        let auth = match &request.auth {
            TextField::Absent => "",
            TextField::Text(text) => text,
            TextField::NotText => {
                self.note_refused(Limit::Signature, None, Some(channel), "no signature");
                let message = format!("Invalid auth for channel {channel}: must be a string");
                return Err(Refusal::not_authorised(message));
            }
        };
        if auth.is_empty() {
            self.note_refused(Limit::Signature, None, Some(channel), "no signature");
            let message = format!("Auth info required to subscribe to {channel}");
            return Err(Refusal::not_authorised(message));
        }
        let socket_id = self.socket_id.to_string();
        let signed = auth::subscription_text(&socket_id, channel.as_str(), channel_data);
        self.verify(auth, &signed, Some(channel))?;
        Ok(channel_data)
    }

    /// `auth` is `KEY:SIGNATURE` with any of the app's keys. The answer to a wrong signature
    /// tells what should have been signed, never the expected digest (`pusher.md` 1.7).
    fn verify(
        &self,
        auth: &str,
        signed: &str,
        channel: Option<&ChannelName>,
    ) -> Result<(), Refusal> {
        let (key, signature) = split_auth(auth);
        let Some(app_key) = self.app.key(key) else {
            let key = abridged(key);
            self.note_refused(Limit::Signature, None, channel, "unknown key");
            let message = format!("Invalid key in subscription auth data: '{key}'");
            return Err(Refusal::not_authorised(message));
        };
        if !app_key.secret.verify(signed.as_bytes(), signature) {
            self.note_refused(Limit::Signature, Some(key), channel, "signature");
            let signature = abridged(signature);
            let message = format!(
                "Invalid signature: Expected HMAC SHA256 hex digest of {signed}, but got {signature}"
            );
            return Err(Refusal::not_authorised(message));
        }
        Ok(())
    }

    /// The member that `channel_data` names, else the signed-in user (`pusher.md` 2.6).
    fn member(
        &self,
        channel: &ChannelName,
        channel_data: Option<&str>,
    ) -> Result<Arc<Member>, Refusal> {
        let Some(channel_data) = channel_data else {
            return match self.membership.user() {
                Some(user) => Ok(user.clone()),
                None => Err(Refusal::not_authorised(format!(
                    "{channel} is a presence channel and subscription must include channel_data"
                ))),
            };
        };
        let member = pusher::parse_member(channel_data).map_err(|error| {
            Refusal::not_authorised(match error {
                MemberError::NoUserId => format!(
                    "Invalid channel_data for channel {channel}: it must be a JSON object with a user_id"
                ),
                MemberError::UserInfoIsNoObject => {
                    "user_info supplied to presence subscription is invalid - \
                     if supplied it must be a type of hash"
                        .to_owned()
                }
            })
        })?;
        self.check_user_limits(&member)?;
        Ok(Arc::new(member))
    }

    fn check_user_limits(&self, member: &Member) -> Result<(), Refusal> {
        let limits = &self.app.limits;
        let exceeds = |what, max, unit| {
            let message = format!("{what} exceeds the allowed maximum ({max} {unit})");
            Refusal::limit_reached(message, 413)
        };
        if member.user_id.chars().count() > limits.user_id_chars_max {
            return Err(exceeds("user_id", limits.user_id_chars_max, "characters"));
        }
        let user_info_bytes = member.user_info.as_ref().map_or(0, |info| info.len());
        if user_info_bytes > limits.user_info_bytes_max {
            return Err(exceeds("user_info", limits.user_info_bytes_max, "bytes"));
        }
        Ok(())
    }

    fn check_addressed_user(&self, channel: &ChannelName) -> Result<(), Refusal> {
        let signed_in = self.membership.user().map(|user| &*user.user_id);
        if signed_in.is_some() && signed_in == channel.addressed_user() {
            return Ok(());
        }
        let why = "not signed in as this user";
        self.note_refused(Limit::Permission, None, Some(channel), why);
        let message = format!("Not signed in as the user of channel {channel}");
        Err(Refusal::not_authorised(message))
    }

    async fn on_unsubscribe(&mut self, channel: TextField) {
        let TextField::Text(name) = channel else {
            return self.refuse(&missing_channel());
        };
        if self.membership.unsubscribe(&name).await.is_none() {
            self.refuse(&Refusal::plain(format!(
                "No current subscription to channel {}, or subscription in progress",
                abridged(&name)
            )));
        }
    }

    /// Whether it is accepted.
    async fn on_trigger(&mut self, trigger: Trigger) -> bool {
        let triggered = self.trigger(trigger).await;
        if let Err(refusal) = &triggered {
            self.refuse(refusal);
        }
        triggered.is_ok()
    }

    /// All conditions of `pusher.md` 3.
    async fn trigger(&mut self, trigger: Trigger) -> Result<(), Refusal> {
        let Trigger {
            name,
            channel,
            data,
        } = trigger;
        if !self.app.features.client_events {
            return Err(Refusal::plain(
                "To send client events, you must enable this feature in the Settings page of \
                 your dashboard.",
            ));
        }
        let TextField::Text(channel) = channel else {
            return Err(missing_channel());
        };
        let held = self.membership.held();
        let Some((channel, member)) = held.channels.get_key_value(channel.as_str()) else {
            return Err(Refusal::plain(format!(
                "Cannot broadcast client event (connection not subscribed to channel {})",
                abridged(&channel)
            )));
        };
        match channel.kind() {
            ChannelKind::Private | ChannelKind::PrivateEncrypted | ChannelKind::Presence => {}
            ChannelKind::Public | ChannelKind::ServerToUser | ChannelKind::Internal => {
                return Err(Refusal::plain(
                    "Client event rejected - only supported on private and presence channels",
                ));
            }
        }
        let limits = &self.app.limits;
        if name.chars().count() > limits.event_name_chars_max {
            let max = limits.event_name_chars_max;
            return Err(Refusal::plain(format!(
                "The name of this event exceeds the allowed maximum ({max} characters)"
            )));
        }
        if data.len() > limits.event_data_bytes_max {
            let message = pusher::data_too_large(limits.event_data_bytes_max);
            return Err(Refusal::plain(message));
        }
        if !self.client_events.allows_one_more() {
            REFUSALS.count(Limit::ClientEvents);
            let message = "Client event rejected due to rate limit";
            return Err(Refusal::plain(message).with_code(4301));
        }
        let message = Message {
            name: name.into(),
            data: data.into(),
            user_id: member.as_ref().map(|member| member.user_id.clone()),
            ext: None,
            members: None,
        };
        let sender = self.in_audit_log();
        sender.published(&message.name, channel.as_str(), false);
        (self.front.broker)
            .client_event(
                &self.app,
                channel,
                message,
                Some(self.socket_id),
                Some(self.socket_id),
            )
            .await;
        Ok(())
    }

    async fn on_sign_in(&mut self, auth: TextField, user_data: TextField) {
        if let Err(refusal) = self.sign_in(auth, user_data).await {
            self.refuse(&refusal.with_code(4009));
        }
    }

    /// Signing in again as the same user replaces the watchlist (`pusher.md` 4.1).
    async fn sign_in(&mut self, auth: TextField, user_data: TextField) -> Result<(), Refusal> {
        let (TextField::Text(auth), TextField::Text(text)) = (auth, user_data) else {
            self.note_refused(Limit::Signature, None, None, "no signature");
            return Err(Refusal::not_authorised("Auth info required to sign in"));
        };
        let signed = auth::user_text(&self.socket_id.to_string(), &text);
        self.verify(&auth, &signed, None)?;
        let Some(UserData { user, watchlist }) = pusher::parse_user_data(&text) else {
            let message = "Invalid user_data: it must be a JSON object with a non-empty string id";
            return Err(Refusal::not_authorised(message));
        };
        self.check_user_limits(&user)?;

        let user_id = user.user_id.clone();
        if self.membership.sign_in(user).await == Err(SignedInAsAnother) {
            let message = "Connection is already signed in as another user";
            return Err(Refusal::not_authorised(message));
        }
        audit::signed_in(&self.app.id, self.socket_id, &user_id);
        self.authorize_by = None;
        self.reply(pusher::signin_success(&text));
        self.watch(watchlist).await;
        Ok(())
    }

    async fn watch(&mut self, watchlist: Vec<UserId>) {
        let ids_max = self.app.limits.watchlist_ids_max;
        if self.app.features.watchlist_events && watchlist.len() > ids_max {
            let message = format!(
                "Watchlist limit exceeded. Only the first {ids_max} user IDs are accepted."
            );
            self.refuse(&Refusal::plain(message).with_code(4302));
        }
        let introduce = |online: &[_], offline: &[_]| {
            pusher::watchlist_events(online, offline).map(|text| self.encoding.frame(text))
        };
        self.membership.watch(watchlist, introduce).await;
    }
}

impl Conversation for Connection {
    type Source = Outgoing;

    fn source(&self) -> Outgoing {
        Outgoing(self.outbox.clone())
    }

    async fn on_text(&mut self, text: &str) -> Result<(), Close> {
        self.app = current(&self.front, &self.app)?;
        let limits = &self.app.limits;
        (self.client_events).change(limits.client_events_per_sec_max);
        (self.control_messages).change(limits.control_messages_per_sec_max);
        let mut has_limit_of_its_own = false;
        match pusher::parse(text) {
            Ok(ClientEvent::Ping) => self.reply(pusher::pong()),
            Ok(ClientEvent::Pong) => {}
            Ok(ClientEvent::Subscribe(request)) => {
                has_limit_of_its_own = self.on_subscribe(request).await;
            }
            Ok(ClientEvent::Unsubscribe { channel }) => self.on_unsubscribe(channel).await,
            Ok(ClientEvent::SignIn { auth, user_data }) => self.on_sign_in(auth, user_data).await,
            Ok(ClientEvent::Trigger(trigger)) => {
                has_limit_of_its_own = self.on_trigger(trigger).await;
            }
            Ok(ClientEvent::Unsupported { name }) => {
                let name = abridged(&name);
                let message = format!("Unsupported event received on socket: {name}");
                self.refuse(&Refusal::plain(message));
            }
            Err(pusher::Malformed) => self.refuse(&Refusal::plain("Received invalid JSON")),
        }
        if self.authorize_by.is_none() {
            count(&mut self.admission, &self.app)?;
        }
        if !has_limit_of_its_own {
            self.control_messages.pace(1, Limit::ControlMessages).await;
        }
        Ok(())
    }

    async fn on_ping(&mut self) {
        self.control_messages.pace(1, Limit::ControlMessages).await;
    }

    fn deadline(&self) -> Option<Instant> {
        self.authorize_by
    }

    fn on_deadline(&mut self) -> Result<(), Close> {
        CUT_OFFS.count(CutOff::NotAuthorized);
        let (_, why) = close::NOT_AUTHORIZED_IN_TIME;
        self.in_audit_log().refused(None, None, why);
        Err(close::close(close::NOT_AUTHORIZED_IN_TIME))
    }

    fn on_silence(&self) -> Close {
        close::close(close::NO_PONG)
    }
}

/// What a connection is to receive.
pub struct Outgoing(Arc<Outbox>);

impl Source for Outgoing {
    fn poll_encode(
        &mut self,
        cx: &mut Context<'_>,
        encoded: &mut Encoded,
    ) -> Poll<Result<(), Close>> {
        let taken = self.0.poll_next(cx, |frame| encoded.push(frame));
        taken.map_err(close::of_outbox)
    }

    fn poll_abandon(&self, cx: &mut Context<'_>) -> Poll<Close> {
        let slow = self.0.poll_slow(cx);
        slow.map(|()| close::of_outbox(Closing::Slow))
    }
}

/// The membership leaves by itself.
impl Drop for Connection {
    fn drop(&mut self) {
        tracing::debug!(app = %self.app.id, socket_id = %self.socket_id, "disconnected");
    }
}

/// The app as it is configured now: keys are rotated under open connections.
fn current(front: &Front, app: &App) -> Result<Arc<App>, Close> {
    handshake::enabled(front.apps.by_id(app.id.as_str()))
}

/// Connections that have yet to be authorized are not counted (`pusher.md` 1.8).
fn count(admission: &mut Admission, app: &App) -> Result<(), Close> {
    let counted = admission.count(app.limits.connections_max);
    counted.map_err(|OverQuota| close::close(close::OVER_QUOTA))
}

fn missing_channel() -> Refusal {
    Refusal::plain("Missing required parameter: channel")
}
