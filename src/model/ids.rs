//! Identifiers. All are cheap to clone and compare.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An application's id as it stands in `/apps/:app_id`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

impl AppId {
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A user's id, a string whatever JSON type the application signed (`pusher.md` 0, rule 10).
pub type UserId = Arc<str>;

/// Names one connection in the whole cluster, on either protocol. Written `node.serial`, two
/// decimal integers of at most ten digits (`pusher.md` 1.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId {
    node: u32,
    serial: u32,
}

impl SocketId {
    /// The id for the `serial`-th connection of the node numbered `node`.
    pub const fn new(node: u32, serial: u32) -> Self {
        Self { node, serial }
    }

    pub const fn node(self) -> u32 {
        self.node
    }

    pub const fn serial(self) -> u32 {
        self.serial
    }

    /// `None` for text that no node of ours can have given out. That is not the same as malformed:
    /// see [`SocketId::is_well_formed`].
    pub fn parse(text: &str) -> Option<Self> {
        let (node, serial) = text.split_once('.')?;
        if !Self::is_well_formed(text) {
            return None;
        }
        Some(Self {
            node: node.parse().ok()?,
            serial: serial.parse().ok()?,
        })
    }

    /// Whether `text` matches `\A\d+\.\d+\z`, what every server library insists on.
    pub fn is_well_formed(text: &str) -> bool {
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        text.split_once('.')
            .is_some_and(|(node, serial)| digits(node) && digits(serial))
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.serial)
    }
}

/// Names one event in the whole cluster, so that a repeat can be recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EventId {
    node: u32,
    serial: u64,
}

impl EventId {
    pub const fn new(node: u32, serial: u64) -> Self {
        Self { node, serial }
    }

    pub const fn node(self) -> u32 {
        self.node
    }

    pub const fn serial(self) -> u64 {
        self.serial
    }
}

/// Hands out the ids of one node.
#[derive(Debug)]
pub struct IdSource {
    node: u32,
    sockets: AtomicU64,
    events: AtomicU64,
}

impl IdSource {
    pub fn new(node: u32) -> Self {
        Self {
            node,
            sockets: AtomicU64::new(1),
            events: AtomicU64::new(1),
        }
    }

    pub fn node(&self) -> u32 {
        self.node
    }

    /// Unique until 2³² further connections have been opened.
    pub fn socket_id(&self) -> SocketId {
        SocketId::new(
            self.node,
            self.sockets.fetch_add(1, Ordering::Relaxed) as u32,
        )
    }

    pub fn event_id(&self) -> EventId {
        EventId {
            node: self.node,
            serial: self.events.fetch_add(1, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_id_is_two_decimal_integers_joined_by_a_dot() {
        for good in ["1.1", "1234.1234", "4294967295.4294967295"] {
            assert_eq!(SocketId::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "", ".", "1.", ".1", "1", "1.2.3", "+1.2", "1.-2", " 1.2", "1.2\n", "a.b", "1.٢",
        ] {
            assert!(!SocketId::is_well_formed(bad), "{bad:?}");
            assert_eq!(SocketId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_id_beyond_our_range_is_well_formed_but_nobodys() {
        let foreign = "123456789012.98765432109876";
        assert!(SocketId::is_well_formed(foreign));
        assert_eq!(SocketId::parse(foreign), None);
    }
}
