//! Channel names and the kinds that their prefixes give them (`pusher.md` 2.1, 2.2).

use std::fmt;
use std::sync::Arc;

use super::ids::AppId;

/// A valid channel name in Pusher's spelling, the key of a channel within its app.
///
/// Names that start with `#` are made by the server only; [`ChannelName::parse`] accepts the one
/// such form that clients and applications may name, `#server-to-user-ID`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Why a text is no channel name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidName {
    Empty,
    TooLong { chars_max: usize },
    ForbiddenCharacter,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a channel name must not be empty"),
            Self::TooLong { chars_max } => {
                write!(f, "a channel name has at most {chars_max} characters")
            }
            Self::ForbiddenCharacter => {
                f.write_str("only letters, digits and the characters _ - = @ , . ; are allowed")
            }
        }
    }
}

/// What a prefix makes of a channel. The hyphen belongs to the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelKind {
    Public,
    Private,
    PrivateEncrypted,
    Presence,
    /// `#server-to-user-ID`: only connections signed in as that user (2.9).
    ServerToUser,
    /// Kept by the server for itself: never named, listed or reported outside.
    Internal,
}

const SERVER_TO_USER: &str = "#server-to-user-";
const SIGNED_IN: &str = "#signed-in-";
const WATCHERS: &str = "#watchers-";

/// What the part after the prefix may hold. `#` is not among it.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-=@,.;".contains(&byte)
}

impl ChannelName {
    /// Checks charset and length (in bytes; every legal character is one byte).
    pub fn parse(text: &str, chars_max: usize) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > chars_max {
            return Err(InvalidName::TooLong { chars_max });
        }
        let rest = text.strip_prefix(SERVER_TO_USER).unwrap_or(text);
        if rest.is_empty() || !rest.bytes().all(is_name_byte) {
            return Err(InvalidName::ForbiddenCharacter);
        }
        Ok(Self(text.into()))
    }

    /// A name that a node of this cluster has parsed or made.
    pub fn of_the_cluster(text: &str) -> Self {
        Self(text.into())
    }

    /// The channel that carries what is sent to one user (2.9).
    pub fn server_to_user(user_id: &str) -> Self {
        Self(format!("{SERVER_TO_USER}{user_id}").into())
    }

    /// Every connection signed in as the user; its occupancy is the user's online state.
    pub fn signed_in(user_id: &str) -> Self {
        Self(format!("{SIGNED_IN}{user_id}").into())
    }

    /// The user of a [`ChannelName::signed_in`] channel.
    pub fn signed_in_user(&self) -> Option<&str> {
        self.0.strip_prefix(SIGNED_IN)
    }

    /// Every connection whose watchlist holds the user.
    pub fn watchers(user_id: &str) -> Self {
        Self(format!("{WATCHERS}{user_id}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn kind(&self) -> ChannelKind {
        let name = self.as_str();
        if name.starts_with("private-encrypted-") {
            ChannelKind::PrivateEncrypted
        } else if name.starts_with("private-") {
            ChannelKind::Private
        } else if name.starts_with("presence-") {
            ChannelKind::Presence
        } else if name.starts_with(SERVER_TO_USER) {
            ChannelKind::ServerToUser
        } else if name.starts_with('#') {
            ChannelKind::Internal
        } else {
            ChannelKind::Public
        }
    }

    pub fn is_presence(&self) -> bool {
        self.kind() == ChannelKind::Presence
    }

    /// Whether the channel keeps its last event (2.7).
    pub fn is_cached(&self) -> bool {
        [
            "cache-",
            "private-cache-",
            "presence-cache-",
            "private-encrypted-cache-",
        ]
        .iter()
        .any(|prefix| self.0.starts_with(prefix))
    }

    /// The user of an internal or addressed channel, else the whole name: what is decided together
    /// about a user has this in common.
    pub fn locality(&self) -> &str {
        let prefixes = [SERVER_TO_USER, SIGNED_IN, WATCHERS];
        (prefixes
            .iter()
            .find_map(|prefix| self.0.strip_prefix(prefix)))
        .unwrap_or(&self.0)
    }

    /// Whether applications are told of the channel: lists, counts, webhooks.
    pub fn is_reported(&self) -> bool {
        !self.0.starts_with('#')
    }

    /// The user a `#server-to-user-` channel belongs to.
    pub fn addressed_user(&self) -> Option<&str> {
        self.0.strip_prefix(SERVER_TO_USER)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::borrow::Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A channel of one app: the key of everything the hub and the backends keep.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ChannelId {
    pub app: AppId,
    pub name: ChannelName,
}

impl ChannelId {
    pub fn new(app: &AppId, name: &ChannelName) -> Self {
        Self {
            app: app.clone(),
            name: name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text, 200).unwrap()
    }

    #[test]
    fn a_name_is_made_of_the_documented_characters() {
        for good in [
            "a",
            "A-z_0=@,.;",
            "private-App.Models.User.1",
            "#server-to-user-12",
        ] {
            assert_eq!(name(good).as_str(), good);
        }
        for bad in [
            "a b",
            "a/b",
            "ä",
            "a\n",
            "a#b",
            "#x",
            "#server-to-user-",
            "#signed-in-1",
            "#watchers-1",
            "#server-to-user-a#b",
            "a\0",
            "a*",
            "a%20",
        ] {
            assert_eq!(
                ChannelName::parse(bad, 200),
                Err(InvalidName::ForbiddenCharacter),
                "{bad:?}"
            );
        }
        assert_eq!(ChannelName::parse("", 200), Err(InvalidName::Empty));
    }

    #[test]
    fn a_name_has_a_limit() {
        assert!(ChannelName::parse(&"x".repeat(164), 164).is_ok());
        assert_eq!(
            ChannelName::parse(&"x".repeat(165), 164),
            Err(InvalidName::TooLong { chars_max: 164 })
        );
    }

    #[test]
    fn the_kind_follows_the_whole_prefix_and_only_at_the_start() {
        use ChannelKind::*;
        for (text, kind, cached) in [
            ("room", Public, false),
            ("private", Public, false),
            ("privateer", Public, false),
            ("my-private-room", Public, false),
            ("x-cache-y", Public, false),
            ("cacheable", Public, false),
            ("cache-news", Public, true),
            ("private-", Private, false),
            ("private-encrypted", Private, false),
            ("private-presence-x", Private, false),
            ("private-cache-x", Private, true),
            ("private-encrypted-x", PrivateEncrypted, false),
            ("private-encrypted-cache-x", PrivateEncrypted, true),
            ("presence-room", Presence, false),
            ("presence-encrypted-x", Presence, false),
            ("presence-cache-x", Presence, true),
            ("Private-x", Public, false),
            ("#server-to-user-1", ServerToUser, false),
        ] {
            assert_eq!(name(text).kind(), kind, "{text}");
            assert_eq!(name(text).is_cached(), cached, "{text}");
        }
        assert_eq!(ChannelName::signed_in("1").kind(), Internal);
        assert_eq!(ChannelName::watchers("1").kind(), Internal);
    }
}
