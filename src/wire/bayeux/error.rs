//! The `error` member of replies, in one table (`bayeux.md` 2.7, 5).

use std::fmt;

/// Why an operation failed, without the argument that names the culprit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reason {
    /// Absent in the free texts of Faye's extension gems.
    code: Option<u16>,
    text: &'static str,
}

pub const CONNECTION_TYPES_NOT_SUPPORTED: Reason = coded(301, "Connection types not supported");
pub const UNKNOWN_CLIENT: Reason = coded(401, "Unknown client");
pub const MISSING_PARAMETER: Reason = coded(402, "Missing required parameter");
pub const FORBIDDEN_CHANNEL: Reason = coded(403, "Forbidden channel");
pub const INVALID_CHANNEL: Reason = coded(405, "Invalid channel");
pub const MESSAGE_TOO_LARGE: Reason = coded(413, "Message too large");
pub const TOO_MANY_REQUESTS: Reason = coded(429, "Too many requests");

pub const HANDSHAKE_DENIED: Reason = coded(403, "Handshake denied");
pub const AUTHENTICATION_REQUIRED: Reason = coded(403, "Authentication required");
pub const PASSWORD_REQUIRED: Reason = coded(403, "Password required");
/// Of a private subscription (8.6), or a sign-in on `/service/user` (8.7).
pub const INVALID_SIGNATURE: Reason = coded(403, "Invalid signature");
/// `channel_data` or `user_data` names no user, or more than the limits allow.
pub const INVALID_USER: Reason = coded(403, "Invalid user");
pub const INVALID_EVENT_NAME: Reason = coded(400, "Invalid event name");
/// The application was asked (5.1, `webhook`).
pub const REFUSED_BY_APPLICATION: Reason = coded(403, "Refused by the application");
pub const APPLICATION_UNREACHABLE: Reason = coded(503, "Application unreachable");

/// Faye's documentation, for a subscription token (5.1).
pub const INVALID_SUBSCRIPTION_TOKEN: Reason = free("Invalid subscription auth token");
/// private_pub and danthes (5.2).
pub const INCORRECT_SIGNATURE: Reason = free("Incorrect signature.");
pub const SIGNATURE_EXPIRED: Reason = free("Signature has expired.");
pub const INCORRECT_TOKEN: Reason = free("Incorrect token.");
/// faye-authentication (5.3). Its client asks for a new signature on exactly these.
pub const JWT_EXPIRED: Reason = free("Expired signature");
pub const JWT_NOT_ABOUT_THIS: Reason = free("Required argument not signed");
pub const JWT_INVALID: Reason = free("Invalid signature");

const fn coded(code: u16, text: &'static str) -> Reason {
    assert!(code >= 100 && code <= 999);
    Reason {
        code: Some(code),
        text: legible(text),
    }
}

const fn free(text: &'static str) -> Reason {
    Reason {
        code: None,
        text: legible(text),
    }
}

/// Stops the build for a text that Faye's client could not take apart.
const fn legible(text: &'static str) -> &'static str {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        assert!(
            bytes[at].is_ascii_alphanumeric()
                || matches!(
                    bytes[at],
                    b'-' | b'_'
                        | b'!'
                        | b'~'
                        | b'('
                        | b')'
                        | b'$'
                        | b'@'
                        | b' '
                        | b'/'
                        | b'*'
                        | b'.'
                )
        );
        at += 1;
    }
    text
}

impl Reason {
    pub const fn code(self) -> Option<u16> {
        self.code
    }

    pub const fn text(self) -> &'static str {
        self.text
    }

    /// Whether it is about what somebody may do, and not about how it is written.
    pub const fn is_denial(self) -> bool {
        matches!(self.code, None | Some(403))
    }

    /// The error about one channel, parameter or client. The argument is sent as it is, because
    /// Faye does: outside the alphabet of 2.7 a client sees the whole error as its message.
    pub fn of(self, argument: impl Into<String>) -> BayeuxError {
        BayeuxError {
            reason: self,
            argument: argument.into(),
            said: None,
        }
    }
}

impl From<Reason> for BayeuxError {
    fn from(reason: Reason) -> Self {
        reason.of("")
    }
}

/// What a failed reply carries: `CODE:ARGUMENT:TEXT`, or the bare text of a reason without code.
#[derive(Clone, PartialEq, Eq)]
pub struct BayeuxError {
    pub reason: Reason,
    argument: String,
    /// Instead of all that, as from an extension of Faye.
    said: Option<String>,
}

impl BayeuxError {
    /// The application's own words for the client.
    pub fn said_by_application(text: String) -> Self {
        Self {
            said: Some(text),
            ..REFUSED_BY_APPLICATION.into()
        }
    }
}

impl fmt::Display for BayeuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason.code, &self.said) {
            (_, Some(text)) => f.write_str(text),
            (Some(code), None) => write!(f, "{code}:{}:{}", self.argument, self.reason.text),
            (None, None) => f.write_str(self.reason.text),
        }
    }
}

/// Without the argument, which may be a client id.
impl fmt::Debug for BayeuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_code_an_argument_and_a_text() {
        for (error, expected) in [
            (UNKNOWN_CLIENT.of("nosuch"), "401:nosuch:Unknown client"),
            (INVALID_CHANNEL.into(), "405::Invalid channel"),
            (HANDSHAKE_DENIED.into(), "403::Handshake denied"),
            (INCORRECT_SIGNATURE.into(), "Incorrect signature."),
        ] {
            assert_eq!(BayeuxError::to_string(&error), expected);
        }
    }

    #[test]
    fn a_client_id_does_not_reach_debug_output() {
        assert!(!format!("{:?}", UNKNOWN_CLIENT.of("s3ss10n")).contains("s3ss10n"));
    }
}
