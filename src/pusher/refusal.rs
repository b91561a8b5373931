//! What a client is told when it may not have what it asked for; the connection stays open.
//! Hosted Pusher's texts where they are known, else ours (`pusher.md` 1.7, 14).

use crate::wire::pusher;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Absent, except where the protocol names one.
    pub code: Option<u16>,
    pub message: String,
    /// What a refused subscription's `pusher:subscription_error` says besides.
    pub kind: &'static str,
    pub status: u16,
}

impl Refusal {
    pub fn to_event(&self) -> String {
        pusher::error(self.code, &self.message)
    }

    pub fn to_subscription_error(&self, channel: &str) -> String {
        pusher::subscription_error(channel, self.kind, &self.message, self.status)
    }

    /// The request itself makes no sense, or asks for what cannot be had.
    pub fn plain(message: impl Into<String>) -> Self {
        Self {
            code: None,
            message: message.into(),
            kind: "Error",
            status: 400,
        }
    }

    pub fn not_authorised(message: impl Into<String>) -> Self {
        Self {
            kind: "AuthError",
            status: 401,
            ..Self::plain(message)
        }
    }

    pub fn limit_reached(message: impl Into<String>, status: u16) -> Self {
        Self {
            kind: "LimitReached",
            status,
            ..Self::plain(message)
        }
    }

    pub fn invalid_channel(message: impl Into<String>) -> Self {
        Self {
            kind: "InvalidChannel",
            ..Self::plain(message)
        }
    }

    pub fn with_code(self, code: u16) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }
}
