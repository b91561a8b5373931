//! How requests are refused: hosted's texts where they are known, else ours (`pusher.md` 5.4–5.9).

use std::fmt;

use warp::http::StatusCode;
use warp::http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

use crate::auth::AuthError;
use crate::model::InvalidName;
use crate::transport::http::{BodyError, text};
use crate::wire::pusher::{abridged, data_too_large};
use crate::wire::rest::{Malformed, UnknownAttribute};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiError {
    UnknownPath,
    /// Names those that the path has.
    MethodNotAllowed(&'static str),
    BodyTooLarge,
    BodyTooSlow,
    /// The sender went away, or broke the rules of HTTP, within the body.
    BodyCutOff,
    UnknownApp,
    Unauthorized(AuthError),
    AppDisabled,
    /// Callers must show a client certificate, and this one did not.
    NoClientCertificate,

    InvalidJson,
    MissingParameter(&'static str),
    InvalidParameter(&'static str),
    DataIsNotUtf8,
    ReservedEventName,
    EventNameTooLong {
        chars: usize,
        chars_max: usize,
    },
    InvalidChannelName {
        name: String,
        why: InvalidName,
    },
    TooManyChannels {
        channels: usize,
        channels_max: usize,
    },
    BatchTooLarge {
        events: usize,
        events_max: usize,
    },
    DataTooLarge {
        bytes_max: usize,
    },

    /// More events than the app may publish in a second.
    TooManyEvents {
        per_sec_max: usize,
        retry_after_secs: u64,
    },

    UnknownAttribute,
    UserCountOfChannel,
    UserCountOfList,
    CacheOfChannel,
    UsersOfChannel,

    /// A fault of ours.
    Internal,
}

impl ApiError {
    pub fn into_response(self) -> Response {
        let mut response = text(self.status(), &self.to_string());
        if let Self::MethodNotAllowed(allowed) = self {
            let allowed = HeaderValue::from_static(allowed);
            response.headers_mut().insert(ALLOW, allowed);
        } else if let Self::TooManyEvents {
            per_sec_max,
            retry_after_secs,
        } = self
        {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_secs));
            let limit = HeaderName::from_static("x-ratelimit-limit");
            headers.insert(limit, HeaderValue::from(per_sec_max));
            let remaining = HeaderName::from_static("x-ratelimit-remaining");
            headers.insert(remaining, HeaderValue::from(0));
        }
        response
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge | Self::DataTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownPath | Self::UnknownApp => StatusCode::NOT_FOUND,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::AppDisabled | Self::NoClientCertificate => StatusCode::FORBIDDEN,
            Self::TooManyEvents { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPath => f.write_str("NOT FOUND"),
            Self::MethodNotAllowed(_) => f.write_str("Method not allowed"),
            Self::BodyTooLarge => f.write_str("Request body too large"),
            Self::BodyTooSlow => f.write_str("Request body took too long"),
            Self::BodyCutOff => f.write_str("Request body cut off"),
            Self::UnknownApp => f.write_str("Unknown app"),
            Self::Unauthorized(why) => why.fmt(f),
            Self::AppDisabled => f.write_str("App disabled"),
            Self::NoClientCertificate => f.write_str("Client certificate required"),

            Self::InvalidJson => f.write_str("Invalid JSON"),
            Self::MissingParameter(name) => write!(f, "Missing required parameter: {name}"),
            Self::InvalidParameter(name) => write!(f, "Invalid {name}"),
            Self::DataIsNotUtf8 => f.write_str("The data of an event must be UTF-8 text"),
            Self::ReservedEventName => {
                f.write_str("Event names must not start with pusher: or pusher_internal:")
            }
            Self::EventNameTooLong { chars, chars_max } => {
                write!(f, "Event name too long ({chars} > {chars_max})")
            }
            Self::InvalidChannelName { name, why } => {
                let name = abridged(name);
                write!(f, "Invalid channel name {name}: {why}")
            }
            Self::TooManyChannels {
                channels,
                channels_max,
            } => write!(f, "Too many channels ({channels} > {channels_max})"),
            Self::BatchTooLarge { events, events_max } => {
                write!(f, "Batch too large ({events} > {events_max})")
            }
            Self::DataTooLarge { bytes_max } => f.write_str(&data_too_large(*bytes_max)),

            Self::TooManyEvents { per_sec_max, .. } => {
                write!(f, "Too many events ({per_sec_max} a second are allowed)")
            }
            Self::UnknownAttribute => {
                f.write_str("info should be a comma separated list of attributes")
            }
            Self::UserCountOfChannel => f.write_str(
                "Cannot retrieve the user count unless the channel is a presence channel",
            ),
            // Spelt as hosted spells it.
            Self::UserCountOfList => f.write_str(
                "user_count may only be requested for presence channels - please supply \
                 filter_by_prefix begining with presence-",
            ),
            Self::CacheOfChannel => {
                f.write_str("Cannot retrieve the cache unless the channel is a cache channel")
            }
            Self::UsersOfChannel => {
                f.write_str("Users can only be retrieved for presence channels")
            }

            Self::Internal => f.write_str("Internal error"),
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(why: AuthError) -> Self {
        Self::Unauthorized(why)
    }
}

impl From<Malformed> for ApiError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::NoObject => Self::InvalidJson,
            Malformed::Parameter(name) => Self::InvalidParameter(name),
        }
    }
}

impl From<UnknownAttribute> for ApiError {
    fn from(UnknownAttribute: UnknownAttribute) -> Self {
        Self::UnknownAttribute
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::BodyTooLarge,
            BodyError::TooSlow => Self::BodyTooSlow,
            BodyError::CutOff => Self::BodyCutOff,
        }
    }
}
