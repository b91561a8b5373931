//! The messages of one request, answered in their order (`bayeux.md` 2.10).

use std::sync::Arc;

use super::check;
use super::connect::{Connected, Connecting};
use super::site::Site;
use crate::wire::bayeux::{Disconnect, IncomingMessage};

/// What a request is answered with: replies that are there, and connects that may wait.
#[derive(Default)]
pub struct Answers {
    pub replies: Vec<String>,
    pub connects: Vec<Connecting>,
}

impl Site {
    pub(super) async fn answer(self: &Arc<Self>, messages: &[IncomingMessage<'_>]) -> Answers {
        let mut answers = Answers::default();
        for message in messages {
            let reply = match message {
                IncomingMessage::Handshake(request) => self.handshake(request),
                IncomingMessage::Connect(request) => match self.connect(request).await {
                    Connected::Now(reply) => reply,
                    Connected::Later(connecting) => {
                        answers.connects.push(connecting);
                        continue;
                    }
                },
                IncomingMessage::Disconnect(request) => self.disconnect(request).await,
                IncomingMessage::Subscribe(request) => self.subscribe(request).await,
                IncomingMessage::Unsubscribe(request) => self.unsubscribe(request).await,
                IncomingMessage::Publish(request) => self.publish(request).await,
                IncomingMessage::Invalid(request) => request.refused(),
            };
            answers.replies.push(reply);
        }
        answers
    }

    /// `clientId` is required. The session and what waits for it are gone (2.4).
    async fn disconnect(&self, request: &Disconnect<'_>) -> String {
        let session = self.session(request.client_id);
        if let Err(error) = check::disconnect(request, session.is_some()) {
            return request.refused(&error);
        }
        if let Some(session) = session {
            self.end(&session).await;
        }
        request.accepted()
    }
}
