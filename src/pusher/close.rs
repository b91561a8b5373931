//! Every code with which a Pusher connection is refused or closed (`pusher.md` 1.7), and what it
//! makes clients do: 40xx stay away until told to connect, 41xx come back after a second, 42xx
//! come back at once. 43xx never closes: clients would stay away for ever.

use std::borrow::Cow;

use crate::hub::{Closing, Frame};
use crate::transport::websocket::Close;
use crate::wire::pusher;

/// A control frame holds 125 bytes, two of which are the code.
const REASON_BYTES_MAX: usize = 125 - 2;

macro_rules! closes {
    ($($(#[$doc:meta])* $name:ident = $code:literal $reason:literal;)*) => {
        $($(#[$doc])* pub const $name: (u16, &str) = ($code, $reason);)*
    };
}

closes! {
    NOT_OVER_TLS = 4000 "Application only accepts SSL connections, reconnect using wss://";
    UNKNOWN_APP = 4001 "Application does not exist";
    APP_DISABLED = 4003 "Application disabled";
    OVER_QUOTA = 4004 "Application is over connection quota";
    PATH_NOT_FOUND = 4005 "Path not found";
    UNSUPPORTED_PROTOCOL = 4007 "Unsupported protocol version";
    NO_PROTOCOL = 4008 "No protocol version supplied";
    NOT_AUTHORIZED_IN_TIME = 4009 "Connection not authorized within timeout";
    ORIGIN_NOT_ALLOWED = 4009 "Origin not allowed";
    TERMINATED = 4009 "You got disconnected by the app.";
    /// The peer did not read fast enough.
    OVER_CAPACITY = 4100 "Over capacity";
    /// There are `http_sessions_max`.
    TOO_MANY_SESSIONS = 4100 "Too many sessions over HTTP";
    TOO_MANY_OF_ADDRESS = 4100 "Too many connections from this address";
    /// Whoever came back at once would find nobody, and then wait for long.
    RESTARTING = 4100 "Server is restarting";
    RECONNECT_NOW = 4200 "Generic reconnect immediately";
    /// A client of SockJS names its app in its first message.
    NO_PATH_IN_TIME = 4201 "No path was sent in time";
    NO_PONG = 4201 "Pong reply not received";
}

/// The close, with the `pusher:error` event in front of it that clients without close codes
/// need, and that the others accept.
pub fn close((code, reason): (u16, &'static str)) -> Close {
    debug_assert!(reason.len() <= REASON_BYTES_MAX);
    Close {
        last_words: Some(Frame::from(pusher::error(Some(code), reason))),
        code,
        reason: Cow::Borrowed(reason),
    }
}

pub fn of_outbox(why: Closing) -> Close {
    close(match why {
        Closing::Slow => OVER_CAPACITY,
        Closing::Terminated => TERMINATED,
        Closing::Draining => RECONNECT_NOW,
        Closing::Restarting => RESTARTING,
    })
}
