//! Which channel a Bayeux name is (`bayeux.md` 8.1–8.4). A channel's key is its Pusher name; a
//! Bayeux name is another spelling of it.
//!
//! | Bayeux | Pusher |
//! |---|---|
//! | leading `/` | nothing |
//! | `/` between segments | `.` |
//! | `! $ ( ) ~` | `=;` and two hex digits |
//! | `!~` and two hex digits | `, ; =`, and `.` where it cannot stand for a slash |
//! | typed: `/private/…`, `/presence/…`, `/public/…` | `private-…`, `presence-…`, `public-…` |
//! | untyped: `/private-…`, `/presence-…` | `=;70` in place of the `p`: public |
//! | `!~` and two hex digits in front | first letters that Bayeux reserves, and `#` |

use crate::model::{ChannelKind, ChannelName};
use crate::wire::bayeux::{FORBIDDEN_CHANNEL, INVALID_CHANNEL, Reason};

use super::channel::{Pattern, Reach, Space, is_name};

/// Longer keys than Pusher's own limit are good for Bayeux alone.
pub const KEY_BYTES_MAX: usize = 1024;

/// How an app's Bayeux names show the type of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Style {
    /// By a first segment: `/presence/room` is `presence-room`.
    #[default]
    Typed,
    /// As Pusher does: `/presence-room` is `presence-room`.
    Flat,
    /// Not at all: every channel is public, as with Faye (`bayeux.md` 8.1, `channel_types: off`).
    Untyped,
}

impl Style {
    pub const ALL: [Self; 3] = [Self::Typed, Self::Flat, Self::Untyped];
}

/// Why a Bayeux name or pattern is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Outside the grammar.
    Malformed,
    /// Not the one spelling of its channel, or of no channel that clients may name.
    Misspelt,
    TooLong,
    /// In the spaces `/meta` and `/service`.
    Reserved,
    /// Looks typed to a Pusher reader, but would be public: `/private-room` in typed style.
    LooksTyped,
    /// A pattern below presence or encrypted channels.
    NotForPatterns,
}

impl Refusal {
    /// What a client is told, about the name as it wrote it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Malformed | Self::Misspelt | Self::TooLong => INVALID_CHANNEL,
            Self::Reserved | Self::LooksTyped | Self::NotForPatterns => FORBIDDEN_CHANNEL,
        }
    }
}

/// The channel that a Bayeux name means.
pub fn to_pusher(name: &str, style: Style) -> Result<ChannelName, Refusal> {
    if !is_name(name) {
        return Err(Refusal::Malformed);
    }
    if Space::of(name) != Space::Open {
        return Err(Refusal::Reserved);
    }
    let key = encode(name, style);
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    if decode(&key, style) != name {
        return Err(Refusal::Misspelt);
    }
    if style == Style::Typed && behind_escaped_p(&key, style).is_some() {
        return Err(Refusal::LooksTyped);
    }
    ChannelName::parse(&key, KEY_BYTES_MAX).map_err(|_| Refusal::Misspelt)
}

/// The Bayeux name of a channel. `None` for the few that have none: their key holds an escape
/// that nothing needs, or they are not to be named outside.
pub fn to_bayeux(key: &ChannelName, style: Style) -> Option<String> {
    if key.kind() == ChannelKind::Internal {
        return None;
    }
    let name = decode(key.as_str(), style);
    (is_name(&name) && encode(&name, style) == key.as_str()).then_some(name)
}

/// Which channels a pattern may match, of those that lie below its prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Public ones: for everybody.
    Public,
    /// Private ones: for who has a proof for the pattern. `signed_as` stands where a channel name
    /// stands in Pusher's string to sign.
    Private { signed_as: String },
}

impl Scope {
    /// Of what a pattern means. Presence and encrypted channels have no patterns (8.4).
    pub fn of(pattern: &Pattern, style: Style) -> Result<Self, Refusal> {
        if Space::of(pattern.as_str()) != Space::Open {
            return Err(Refusal::Reserved);
        }
        // What the key of one name below the prefix begins with, all of them begin with.
        let child = format!("{}/x", pattern.prefix());
        let below = encode(&child, style);
        if below.len() > KEY_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        if decode(&below, style) != child {
            return Err(Refusal::Misspelt);
        }
        let below = below.strip_suffix('x').unwrap_or(&below);
        if style == Style::Typed && behind_escaped_p(below, style).is_some() {
            return Err(Refusal::LooksTyped);
        }
        match ChannelName::parse(below, KEY_BYTES_MAX).map(|key| key.kind()) {
            Ok(ChannelKind::Private) => Ok(Self::Private {
                signed_as: match pattern.reach() {
                    Reach::Children => format!("{below}*"),
                    Reach::Descendants => format!("{below}**"),
                },
            }),
            // `/*` and `/**` have no prefix to parse.
            Ok(ChannelKind::Public) => Ok(Self::Public),
            Err(_) if pattern.prefix().is_empty() => Ok(Self::Public),
            _ => Err(Refusal::NotForPatterns),
        }
    }

    /// Whether a channel of this kind may be matched.
    pub fn covers(&self, kind: ChannelKind) -> bool {
        match self {
            Self::Public => kind == ChannelKind::Public,
            Self::Private { .. } => kind == ChannelKind::Private,
        }
    }
}

const TYPES: [&str; 3] = ["private", "presence", "public"];

/// Escapes on the Pusher side: `=;` and the code of a character that only Bayeux has.
const IN_PUSHER: Escapes = Escapes {
    introducer: "=;",
    codes: &[
        ("21", '!'),
        ("24", '$'),
        ("28", '('),
        ("29", ')'),
        ("7E", '~'),
    ],
};

/// Escapes on the Bayeux side: `!~` and the code of a character that only Pusher has.
const IN_BAYEUX: Escapes = Escapes {
    introducer: "!~",
    codes: &[("2C", ','), ("2E", '.'), ("3B", ';'), ("3D", '=')],
};

/// Escapes at the start of a Bayeux name alone.
const FIRST_IN_BAYEUX: Escapes = Escapes {
    introducer: "!~",
    codes: &[("23", '#'), ("6D", 'm'), ("70", 'p'), ("73", 's')],
};

/// In front of a key: a public channel whose Bayeux name would else look typed.
const ESCAPED_P: &str = "=;70";

struct Escapes {
    introducer: &'static str,
    codes: &'static [(&'static str, char)],
}

impl Escapes {
    /// The character escaped at the start of `text`, and what follows.
    fn read<'a>(&self, text: &'a str) -> Option<(char, &'a str)> {
        let text = text.strip_prefix(self.introducer)?;
        self.codes
            .iter()
            .find_map(|(code, c)| Some((*c, text.strip_prefix(code)?)))
    }

    /// Appends a character, escaped if it is one of ours.
    fn push(&self, out: &mut String, c: char) {
        match self.codes.iter().find(|(_, escaped)| *escaped == c) {
            Some((code, _)) => {
                out.push_str(self.introducer);
                out.push_str(code);
            }
            None => out.push(c),
        }
    }
}

/// A type and what it is the type of: the words before and after a separator, none empty.
fn split_type(text: &str, separator: char) -> Option<(&'static str, &str)> {
    TYPES.into_iter().find_map(|word| {
        let rest = text.strip_prefix(word)?.strip_prefix(separator)?;
        (!rest.is_empty()).then_some((word, rest))
    })
}

/// What follows the escaped first letter of a key that would else have or seem to have a type.
fn behind_escaped_p(key: &str, style: Style) -> Option<&str> {
    let rest = key.strip_prefix(ESCAPED_P)?;
    needs_escaped_p(&format!("p{rest}"), style).then_some(rest)
}

/// Whether a key, made of a name that says nothing of a type, has to be kept from having one.
fn needs_escaped_p(key: &str, style: Style) -> bool {
    match style {
        Style::Typed => split_type(key, '-').is_some(),
        Style::Flat => false,
        Style::Untyped => key.starts_with("private-") || key.starts_with("presence-"),
    }
}

fn encode(name: &str, style: Style) -> String {
    let name = name.strip_prefix('/').unwrap_or(name);
    let mut key = String::with_capacity(name.len() + 16);
    if style == Style::Typed
        && let Some((word, rest)) = split_type(name, '/')
    {
        key.push_str(word);
        key.push('-');
        push_encoded(&mut key, rest);
        return key;
    }
    match FIRST_IN_BAYEUX.read(name) {
        Some((c, rest)) => {
            key.push(c);
            push_encoded(&mut key, rest);
        }
        None => push_encoded(&mut key, name),
    }
    if needs_escaped_p(&key, style) {
        key.replace_range(..1, ESCAPED_P);
    }
    key
}

fn push_encoded(key: &mut String, mut name: &str) {
    while let Some(c) = name.chars().next() {
        if let Some((c, rest)) = IN_BAYEUX.read(name) {
            key.push(c);
            name = rest;
            continue;
        }
        match c {
            '/' => key.push('.'),
            c => IN_PUSHER.push(key, c),
        }
        name = &name[c.len_utf8()..];
    }
}

fn decode(key: &str, style: Style) -> String {
    let mut name = String::with_capacity(key.len() + 16);
    name.push('/');
    if let Some(rest) = key.strip_prefix('#') {
        FIRST_IN_BAYEUX.push(&mut name, '#');
        push_decoded(&mut name, rest, true);
        return name;
    }
    if style == Style::Typed
        && let Some((word, rest)) = split_type(key, '-')
    {
        name.push_str(word);
        name.push('/');
        push_decoded(&mut name, rest, true);
        return name;
    }
    if let Some(rest) = behind_escaped_p(key, style) {
        name.push('p');
        push_decoded(&mut name, rest, false);
        return name;
    }
    push_decoded(&mut name, key, true);
    let is_reserved = Space::of(&name) != Space::Open
        || style == Style::Typed && split_type(&name[1..], '/').is_some();
    if is_reserved {
        let first = name.remove(1);
        let rest = name.split_off(1);
        FIRST_IN_BAYEUX.push(&mut name, first);
        name.push_str(&rest);
    }
    name
}

/// `at_start`: nothing comes before `key` that a dot could separate from what follows.
fn push_decoded(name: &mut String, mut key: &str, at_start: bool) {
    let mut after_separator = at_start;
    while let Some(c) = key.chars().next() {
        if let Some((c, rest)) = IN_PUSHER.read(key) {
            name.push(c);
            key = rest;
            after_separator = false;
            continue;
        }
        key = &key[c.len_utf8()..];
        let is_separator = c == '.' && !after_separator && !key.is_empty();
        if is_separator {
            name.push('/');
        } else {
            IN_BAYEUX.push(name, c);
        }
        after_separator = is_separator;
    }
}

#[cfg(test)]
mod tests;
