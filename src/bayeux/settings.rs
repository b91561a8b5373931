//! What an app says about its Bayeux clients: `[apps.bayeux]`.

use std::time::Duration;

use super::authorise::{Channels, ExtToken, PublishTokens, SignedChannels, SubscribeTokens, Token};
pub use super::encoding::EventIn;
use super::mapping::Style;
use super::permission::PermissionWebhook;
use crate::wire::bayeux::{
    BayeuxError, Ext, Given, HANDSHAKE_DENIED, Publish, Subscribe, Subscription,
};

use super::jwt;

/// One app's policies and limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The paths under which the app is served, each starting with a slash and not ending with
    /// one. Without any it is not.
    pub mounts: Vec<String>,
    pub style: Style,
    pub event_in: EventIn,
    pub client_publish: ClientPublish,
    pub wildcards: Wildcards,
    /// Whether subscribers see a publisher's `ext`, without what was a proof (2.9).
    pub forward_ext: bool,
    /// And the members of a publish that Bayeux does not know.
    pub forward_unknown_members: bool,
    /// Empty: anybody may have a session.
    pub handshake_tokens: Vec<ExtToken>,
    /// Whoever has one is trusted to publish as the application does.
    pub publish_tokens: PublishTokens,
    pub subscribe_tokens: SubscribeTokens,
    /// private_pub or danthes: every subscription and every publish needs its proof.
    pub signed_channels: Option<SignedChannels>,
    /// faye-authentication: every subscription and every publish needs a token signed with this.
    pub jwt_secret: Option<Token>,
    /// But for these channels (5.3).
    pub jwt_exempt: Vec<Channels>,
    /// The application is asked as well.
    pub permission: Option<PermissionWebhook>,
    /// How many sessions of a browser may have a poll held; absent: any number, as with Faye (6).
    pub browser_polls_max: Option<usize>,
    /// What the clients of the others are told to wait between two connects.
    pub browser_interval: Duration,
    pub limits: Limits,
}

/// Who may publish on public channels without one of the tokens (8.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClientPublish {
    /// Everybody, as with Faye.
    Open,
    #[default]
    Token,
    /// Nobody, and not with a token either.
    Nobody,
}

/// What patterns match (8.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wildcards {
    /// Every channel but those of users, as with Faye. Any client may use them.
    All,
    #[default]
    Public,
    Off,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long a connect is held: Bayeux's `timeout`.
    pub hold: Duration,
    /// How long a session outlives the last message of its client. More than `hold`.
    pub session_lifetime: Duration,
    /// How long a user stays in presence channels after the session's socket has closed (8.6).
    pub presence_grace: Duration,
    /// A session whose client did nothing but wait for this long ends (5.5, activity).
    pub inactivity: Option<Duration>,
    pub sessions_max: usize,
    pub subscriptions_per_session_max: usize,
    /// What may wait for a session between two connects.
    pub queue_messages_max: usize,
    pub queue_bytes_max: usize,
    /// The `data` of one publish.
    pub data_bytes_max: usize,
    /// One request's body, or one WebSocket message.
    pub request_bytes_max: usize,
    pub messages_per_request_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(45),
            session_lifetime: Duration::from_secs(90),
            presence_grace: Duration::from_secs(30),
            inactivity: None,
            sessions_max: 100_000,
            subscriptions_per_session_max: 1000,
            queue_messages_max: 1000,
            queue_bytes_max: 1_048_576,
            data_bytes_max: 262_144,
            request_bytes_max: 1_048_576,
            messages_per_request_max: 1000,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mounts: Vec::new(),
            style: Style::default(),
            event_in: EventIn::default(),
            client_publish: ClientPublish::default(),
            wildcards: Wildcards::default(),
            forward_ext: true,
            forward_unknown_members: false,
            handshake_tokens: Vec::new(),
            publish_tokens: PublishTokens(Vec::new()),
            subscribe_tokens: SubscribeTokens(Vec::new()),
            signed_channels: None,
            jwt_secret: None,
            jwt_exempt: Vec::new(),
            permission: None,
            browser_polls_max: None,
            browser_interval: Self::BROWSER_INTERVAL,
            limits: Limits::default(),
        }
    }
}

impl Settings {
    /// CometD's.
    pub const BROWSER_INTERVAL: Duration = Duration::from_secs(2);

    /// What the development app has: a Faye server without extensions (8, out of the box).
    pub fn development() -> Self {
        Self {
            mounts: vec!["/faye".to_owned(), "/bayeux".to_owned()],
            client_publish: ClientPublish::Open,
            ..Self::default()
        }
    }

    pub fn check_handshake(&self, ext: &Ext) -> Result<(), BayeuxError> {
        let tokens = &self.handshake_tokens;
        match tokens.is_empty() || tokens.iter().any(|token| token.is_in(ext)) {
            true => Ok(()),
            false => Err(HANDSHAKE_DENIED.into()),
        }
    }

    /// Whether the message carries a proof from the application that its sender may subscribe,
    /// which then holds on private channels too (8.6). `Err` if the app asks for one in vain.
    pub fn check_subscribe(&self, request: &Subscribe, now_ms: u64) -> Result<bool, BayeuxError> {
        if let Some(subscription) = &request.subscription {
            self.subscribe_tokens.check(subscription, &request.ext)?;
        }
        if let Some(signed) = &self.signed_channels {
            signed.check_subscribe(request, now_ms)?;
        }
        let mut is_proven = self.signed_channels.is_some();
        if let Some(secret) = &self.jwt_secret
            && !self.is_exempt(request.subscription.as_ref())
        {
            jwt::check_subscribe(secret, request, now_ms / 1000)?;
            is_proven = true;
        }
        Ok(is_proven)
    }

    /// How far the sender of a message is trusted. `Err` if the app asks for a proof in vain.
    pub fn check_publish(&self, request: &Publish, now_ms: u64) -> Result<Trust, BayeuxError> {
        if self.publish_tokens.check(&request.ext).is_ok() {
            return Ok(Trust::Application);
        }
        if let Some(signed) = &self.signed_channels {
            return signed
                .check_publish(&request.ext)
                .map(|()| Trust::Application);
        }
        let exempt = &self.jwt_exempt;
        if let Some(secret) = &self.jwt_secret
            && !exempt.iter().any(|free| free.cover(&request.channel))
        {
            return jwt::check_publish(secret, request, now_ms / 1000).map(|()| Trust::Permitted);
        }
        Ok(Trust::Nobody)
    }

    /// Whether all that a message subscribes to is free of tokens.
    fn is_exempt(&self, subscription: Option<&Subscription>) -> bool {
        let is_free = |given: &Given| {
            let text = given.text();
            text.is_some_and(|text| self.jwt_exempt.iter().any(|free| free.cover(&text)))
        };
        subscription.is_some_and(|s| s.elements().iter().all(is_free))
    }

    /// Whether the member of `ext` is a proof that subscribers must not see.
    pub fn is_proof(&self, ext_key: &str) -> bool {
        self.publish_tokens.is_mine(ext_key)
            || self.subscribe_tokens.is_mine(ext_key)
            || self.handshake_tokens.iter().any(|t| t.key == ext_key)
            || (self.signed_channels.as_ref()).is_some_and(|signed| signed.is_mine(ext_key))
    }
}

/// What a publisher has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// It speaks for the application.
    Application,
    /// A client that the application lets publish here.
    Permitted,
    /// Nothing.
    Nobody,
}
