//! What the server tells clients about itself: advice (`bayeux.md` 2.11) and the ways to travel.

use std::fmt;

/// What a handshake or connect reply tells a client to do next (2.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advice {
    pub reconnect: Reconnect,
    /// Wait this long before the next connect or handshake.
    pub interval_ms: Option<u64>,
    /// A connect may be held this long.
    pub timeout_ms: Option<u64>,
    /// How long a session outlives its last connect. Faye ignores it.
    pub session_ms: Option<u64>,
    /// Further sessions of the same browser hold a poll already (6).
    pub multiple_clients: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reconnect {
    Retry,
    /// Only on a failed reply: CometD's client throws otherwise.
    Handshake,
    /// Stop for ever.
    Never,
}

impl Advice {
    pub const fn retry(interval_ms: u64, timeout_ms: u64) -> Self {
        Self {
            interval_ms: Some(interval_ms),
            timeout_ms: Some(timeout_ms),
            ..Self::only(Reconnect::Retry)
        }
    }

    /// A new session is needed. Without the interval Faye's clients try again without a pause.
    pub const fn handshake(interval_ms: u64) -> Self {
        Self {
            interval_ms: Some(interval_ms),
            ..Self::only(Reconnect::Handshake)
        }
    }

    pub const fn never() -> Self {
        Self::only(Reconnect::Never)
    }

    const fn only(reconnect: Reconnect) -> Self {
        Self {
            reconnect,
            interval_ms: None,
            timeout_ms: None,
            session_ms: None,
            multiple_clients: false,
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reconnect = match self.reconnect {
            Reconnect::Retry => "retry",
            Reconnect::Handshake => "handshake",
            Reconnect::Never => "none",
        };
        write!(f, r#"{{"reconnect":"{reconnect}""#)?;
        for (name, ms) in [
            ("interval", self.interval_ms),
            ("timeout", self.timeout_ms),
            ("maxInterval", self.session_ms),
        ] {
            if let Some(ms) = ms {
                write!(f, r#","{name}":{ms}"#)?;
            }
        }
        if self.multiple_clients {
            f.write_str(r#","multiple-clients":true"#)?;
        }
        f.write_str("}")
    }
}

/// How messages travel, in the order in which Faye lists them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ConnectionType {
    LongPolling,
    CrossOriginLongPolling,
    CallbackPolling,
    WebSocket,
    EventSource,
}

impl ConnectionType {
    pub const ALL: [Self; 5] = [
        Self::LongPolling,
        Self::CrossOriginLongPolling,
        Self::CallbackPolling,
        Self::WebSocket,
        Self::EventSource,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LongPolling => "long-polling",
            Self::CrossOriginLongPolling => "cross-origin-long-polling",
            Self::CallbackPolling => "callback-polling",
            Self::WebSocket => "websocket",
            Self::EventSource => "eventsource",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_only_what_it_advises() {
        let session = Advice {
            session_ms: Some(90000),
            ..Advice::retry(0, 45000)
        };
        let crowd = Advice {
            multiple_clients: true,
            timeout_ms: None,
            ..Advice::retry(1500, 0)
        };
        for (advice, expected) in [
            (
                Advice::retry(0, 3000),
                r#"{"reconnect":"retry","interval":0,"timeout":3000}"#,
            ),
            (
                Advice::handshake(0),
                r#"{"reconnect":"handshake","interval":0}"#,
            ),
            (Advice::never(), r#"{"reconnect":"none"}"#),
            (
                session,
                r#"{"reconnect":"retry","interval":0,"timeout":45000,"maxInterval":90000}"#,
            ),
            (
                crowd,
                r#"{"reconnect":"retry","interval":1500,"multiple-clients":true}"#,
            ),
        ] {
            assert_eq!(advice.to_string(), expected);
        }
    }
}
