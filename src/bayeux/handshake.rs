//! `/meta/handshake` (`bayeux.md` 2.2): a client becomes a session.

use std::sync::Arc;

use super::check;
use super::client::{Client, ClientSession};
use super::encoding::encoding;
use super::exchange::Sender;
use super::extensions::{TimeSync, wants_acks};
use super::permission::{Matter, Question, ShownHeaders};
use super::site::{SUPPORTED, Site};
use crate::audit;
use crate::hub::Outbox;
use crate::metrics::{CUT_OFFS, CutOff};
use crate::model::now_ms;
use crate::wire::bayeux::{
    APPLICATION_UNREACHABLE, Advice, BayeuxError, HANDSHAKE_DENIED, Handshake, Object,
    TOO_MANY_REQUESTS,
};

const CHANNEL: &str = "/meta/handshake";
/// Before a client whose handshake made no sense may try again.
const TRY_AGAIN_MS: u64 = 5_000;
const WHEN_FULL_MS: u64 = 10_000;

impl Site {
    /// `version` and `supportedConnectionTypes` are required. The reply's `ext.socket_id` is what
    /// the application signs (8.6).
    pub(super) async fn handshake(&self, request: &Handshake<'_>, sender: &Sender) -> String {
        match self.open(request, &sender.headers).await {
            Ok(session) => {
                let client = &session.client;
                audit::connected(&client.app.id, client.socket_id, sender.address);
                let mut ext = Object::default().text("socket_id", &client.socket_id.to_string());
                if client.unacknowledged.is_some() {
                    ext = ext.json("ack", "true");
                }
                let now = now_ms();
                let timesync = TimeSync::asked(&request.ext, now).and_then(|t| t.answer(now));
                let ext = ext.json_if_any("timesync", timesync.as_deref()).end();
                request.accepted(&session.id, &SUPPORTED, &self.advice(), Some(&ext))
            }
            Err((error, advice)) => {
                match error.reason {
                    TOO_MANY_REQUESTS => self.audit_refused(None, sender, CHANNEL, &error),
                    _ => self.note_refused(None, sender, CHANNEL, &error),
                }
                request.refused(&error, &SUPPORTED, &advice)
            }
        }
    }

    async fn open(
        &self,
        request: &Handshake<'_>,
        headers: &ShownHeaders,
    ) -> Result<ClientSession, (BayeuxError, Advice)> {
        let again = |error: BayeuxError| (error, Advice::handshake(TRY_AGAIN_MS));
        // Without an interval, or with `handshake`, Faye's clients would come back at once.
        let denied = |error: BayeuxError| (error, Advice::never());
        let full = || (TOO_MANY_REQUESTS.into(), Advice::handshake(WHEN_FULL_MS));

        check::handshake(request, &SUPPORTED).map_err(again)?;
        self.settings
            .check_handshake(&request.ext)
            .map_err(denied)?;
        let app = self.app().filter(|app| app.enabled);
        let app = app.ok_or_else(|| denied(HANDSHAKE_DENIED.into()))?;

        let question = Question {
            matter: Matter::Handshake,
            channel: CHANNEL,
            client_id: None,
            subscription: None,
            ext: request.ext.json(),
            headers,
        };
        let asked = self.ask(&app, question).await;
        asked.map_err(|error| match error.reason {
            APPLICATION_UNREACHABLE => (error, Advice::handshake(WHEN_FULL_MS)),
            _ => denied(error),
        })?;

        let limits = &self.settings.limits;
        let queue = Outbox::bounded(limits.queue_bytes_max, limits.queue_messages_max);
        let queue = Arc::new(queue);
        let socket_id = self.broker.new_socket_id();
        let mut admission = self.broker.admit(&app, socket_id, queue.clone());
        admission.can_move();
        let counted = admission.count(app.limits.connections_max);
        counted.map_err(|_| full())?;
        let encoding = encoding(self.settings.style, self.settings.event_in);
        let broker = self.broker.clone();
        let acknowledges = wants_acks(&request.ext);
        let queued = queue.clone();
        let client = Client::new(
            app,
            encoding,
            socket_id,
            broker,
            queued,
            admission,
            acknowledges,
        );
        let session = (self.sessions)
            .open(limits.session_lifetime, queue, client)
            .map_err(|_| {
                CUT_OFFS.count(CutOff::HttpSessions);
                full()
            })?;
        session.client.open();
        self.note(&session).await;
        Ok(session)
    }
}
