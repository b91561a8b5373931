//! Publishing (`bayeux.md` 2.6, 8.5): whatever is no `/meta` channel.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::{self, Destination, Service};
use super::client::ClientSession;
use super::exchange::Sender;
use super::permission::{Matter, Question};
use super::settings::{ClientPublish, Trust};
use super::site::Site;
use crate::apps::App;
use crate::audit;
use crate::metrics::{Limit, REFUSALS};
use crate::model::{ChannelKind, ChannelName, Message, SessionFactKind, UserId, now_ms};
use crate::wire::bayeux::payload::{event_name, pusher_data};
use crate::wire::bayeux::{
    AUTHENTICATION_REQUIRED, BayeuxError, FORBIDDEN_CHANNEL, INVALID_EVENT_NAME, MESSAGE_TOO_LARGE,
    PASSWORD_REQUIRED, Publish, Reason, TOO_MANY_REQUESTS,
};

impl Site {
    /// `data` is required, `clientId` is not; proofs that the app asks for stand in `ext`, or in
    /// `signature`. Both are replies; `Err` is that to a refused one.
    pub(super) async fn publish(
        &self,
        request: &Publish<'_>,
        sender: &Sender,
    ) -> Result<String, String> {
        match self.try_publish(request, sender).await {
            Ok(()) => Ok(request.accepted()),
            Err(error) => {
                self.note_refused(request.client_id, sender, &request.channel, &error);
                Err(request.refused(&error))
            }
        }
    }

    async fn try_publish(&self, request: &Publish<'_>, sender: &Sender) -> Result<(), BayeuxError> {
        let (destination, data) = check::publish(request, self.settings.style)?;
        let about = |reason: Reason| reason.of(&*request.channel);
        if data.len() > self.settings.limits.data_bytes_max {
            return Err(about(MESSAGE_TOO_LARGE));
        }
        let session = self.active_session(request.client_id);
        let channel = match destination {
            Destination::Channel(channel) => channel,
            Destination::Service(service) => {
                // What goes to a service of our own may be a proof, and is nobody's business.
                if service == Service::Other
                    && let Some(app) = self.app()
                {
                    self.tell_published(&app, request, session.as_ref(), data);
                }
                let served = self.serve(service, session.as_ref(), data).await;
                return served.map_err(about);
            }
        };
        let app = self.app().filter(|app| app.enabled);
        let app = app.ok_or_else(|| about(FORBIDDEN_CHANNEL))?;
        let mut trust = self.settings.check_publish(request, now_ms())?;
        if trust != Trust::Application {
            let question = Question {
                matter: Matter::Publish,
                channel: &request.channel,
                client_id: request.client_id,
                subscription: None,
                ext: request.ext.json(),
                headers: &sender.headers,
            };
            if self.ask(&app, question).await? {
                trust = Trust::Permitted;
            }
        }
        if channel.kind() == ChannelKind::PrivateEncrypted && !is_ciphertext(data) {
            return Err(about(FORBIDDEN_CHANNEL));
        }
        let user_id = match trust {
            Trust::Application => None,
            _ => (self
                .check_client(&app, &channel, trust, session.as_ref())
                .await)
                .map_err(about)?,
        };

        let is_trusted = trust == Trust::Application;
        let requested = request.ext.text("event");
        let chars_max = app.limits.event_name_chars_max;
        let name = event_name(requested.as_deref(), is_trusted, chars_max)
            .map_err(|_| about(INVALID_EVENT_NAME))?;
        let ext = match self.settings.forward_ext {
            true => request.ext.forwardable(|key| self.settings.is_proof(key)),
            false => None,
        };
        let members = match self.settings.forward_unknown_members {
            true => request.forwardable(),
            false => None,
        };
        let message = Message {
            name: name.into(),
            data: pusher_data(data).into(),
            user_id,
            ext: ext.map(Into::into),
            members: members.map(Into::into),
        };
        self.tell_published(&app, request, session.as_ref(), data);
        let publisher = audit::Client {
            app: &app.id,
            socket_id: session.as_ref().map(|session| session.client.socket_id),
            address: Some(sender.address),
        };
        publisher.published(&message.name, channel.as_str(), is_trusted);
        if is_trusted {
            self.broker.publish(&app, &channel, message, None).await;
        } else {
            // The sender receives its own message, if it is subscribed: Faye's clients count on it.
            let sender = session.map(|session| session.client.socket_id);
            (self.broker)
                .client_event(&app, &channel, message, sender, None)
                .await;
        }
        Ok(())
    }

    fn tell_published(
        &self,
        app: &App,
        request: &Publish,
        session: Option<&ClientSession>,
        data: &str,
    ) {
        let who = session.map(|session| session.client.socket_id);
        (self.broker).state_session(app, who, || SessionFactKind::Publish {
            channel: (*request.channel).into(),
            data: data.into(),
        });
    }

    /// Whether a client may publish here. Public channels are the app's policy, the others follow
    /// the rules of Pusher's client events (`pusher.md` 3). Returns the user that it publishes as.
    async fn check_client(
        &self,
        app: &App,
        channel: &ChannelName,
        trust: Trust,
        session: Option<&ClientSession>,
    ) -> Result<Option<UserId>, Reason> {
        match channel.kind() {
            ChannelKind::Public => match (self.settings.client_publish, trust) {
                (ClientPublish::Open, _) | (ClientPublish::Token, Trust::Permitted) => Ok(None),
                (ClientPublish::Token, _) => Err(PASSWORD_REQUIRED),
                (ClientPublish::Nobody, _) => Err(FORBIDDEN_CHANNEL),
            },
            ChannelKind::Private | ChannelKind::PrivateEncrypted | ChannelKind::Presence => {
                let client = &session.ok_or(AUTHENTICATION_REQUIRED)?.client;
                if !app.features.client_events {
                    return Err(FORBIDDEN_CHANNEL);
                }
                let mut state = client.state.lock().await;
                let held = state.membership.held();
                let member = held.channels.get(channel).ok_or(AUTHENTICATION_REQUIRED)?;
                let user_id = member
                    .as_ref()
                    .map(|member: &Arc<_>| member.user_id.clone());
                match state.client_events.allows_one_more() {
                    true => Ok(user_id),
                    false => {
                        REFUSALS.count(Limit::ClientEvents);
                        Err(TOO_MANY_REQUESTS)
                    }
                }
            }
            ChannelKind::ServerToUser | ChannelKind::Internal => Err(FORBIDDEN_CHANNEL),
        }
    }
}

/// What an encrypted channel carries; anything else would be clear text.
fn is_ciphertext(data: &str) -> bool {
    #[derive(Deserialize)]
    struct Ciphertext {
        #[serde(rename = "nonce")]
        _nonce: IgnoredAny,
        #[serde(rename = "ciphertext")]
        _ciphertext: IgnoredAny,
    }
    data.starts_with('{') && serde_json::from_str::<Ciphertext>(data).is_ok()
}
