//! Whether a message is in order (`bayeux.md` 2.2–2.6), before anybody asks who may do what.
//!
//! Where several things are wrong, the one reported is the one that Faye reports: it checks all
//! and keeps the last. What follows therefore tests in reverse.

use crate::model::{ChannelKind, ChannelName};
use crate::wire::bayeux::{
    BayeuxError, CONNECTION_TYPES_NOT_SUPPORTED, Connect, ConnectionType, Disconnect,
    FORBIDDEN_CHANNEL, Given, Handshake, INVALID_CHANNEL, MISSING_PARAMETER, Publish, Subscribe,
    UNKNOWN_CLIENT,
};

use super::channel::{Pattern, Space, is_name};
use super::mapping::{Scope, Style, to_bayeux, to_pusher};

pub fn handshake(request: &Handshake, supported: &[ConnectionType]) -> Result<(), BayeuxError> {
    let Some(offered) = request.connection_types else {
        return Err(MISSING_PARAMETER.of("supportedConnectionTypes"));
    };
    let offered_types = offered.elements().unwrap_or_default();
    if !offered_types
        .iter()
        .any(|given| is_supported(*given, supported))
    {
        return Err(CONNECTION_TYPES_NOT_SUPPORTED.of(offered.describe()));
    }
    if !request.has_version {
        return Err(MISSING_PARAMETER.of("version"));
    }
    Ok(())
}

pub fn connect(
    request: &Connect,
    client_is_known: bool,
    supported: &[ConnectionType],
) -> Result<(), BayeuxError> {
    let Some(given) = request.connection_type else {
        return Err(MISSING_PARAMETER.of("connectionType"));
    };
    if !is_supported(given, supported) {
        return Err(CONNECTION_TYPES_NOT_SUPPORTED.of(given.describe()));
    }
    client(request.client_id, client_is_known)
}

pub fn disconnect(request: &Disconnect, client_is_known: bool) -> Result<(), BayeuxError> {
    client(request.client_id, client_is_known)
}

/// What a client can subscribe to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Channel(ChannelName),
    Pattern(Pattern, Scope),
    /// Never [`Service::Other`].
    Service(Service),
}

/// What stands behind a channel below `/service` (8.6, 8.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Service {
    /// `/service/user`: sign in, and what is sent to the user then.
    User,
    /// `/service/presence/room`: who is in the room `/presence/room`.
    Presence(ChannelName),
    /// Of the application's own making: acknowledged, and delivered to nobody.
    Other,
}

impl Service {
    /// Of a valid name in the service space.
    fn of(name: &str, style: Style) -> Self {
        let companion = name.strip_prefix(SERVICE).unwrap_or_default();
        match to_pusher(companion, style) {
            _ if companion == "/user" => Self::User,
            Ok(room) if room.kind() == ChannelKind::Presence => Self::Presence(room),
            _ => Self::Other,
        }
    }
}

const SERVICE: &str = "/service";
pub const SERVICE_USER: &str = "/service/user";

/// The channel that tells the members of a presence channel who comes and goes.
pub fn presence_service(room: &ChannelName, style: Style) -> Option<String> {
    to_bayeux(room, style).map(|name| format!("{SERVICE}{name}"))
}

/// All that the message subscribes to or unsubscribes from, or the first thing wrong with it. One
/// bad name spoils the whole message.
pub fn subscribe(
    request: &Subscribe,
    client_is_known: bool,
    style: Style,
) -> Result<Vec<Target>, BayeuxError> {
    let Some(subscription) = &request.subscription else {
        return Err(MISSING_PARAMETER.of("subscription"));
    };
    client(request.client_id, client_is_known)?;
    let elements = subscription.elements().iter();
    elements.map(|given| target(*given, style)).collect()
}

/// Where a publish goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    Channel(ChannelName),
    Service(Service),
}

/// Where to and what, as JSON text. The client id is neither required nor looked at (0, rule 11).
pub fn publish<'a>(
    request: &Publish<'a>,
    style: Style,
) -> Result<(Destination, &'a str), BayeuxError> {
    let name = &*request.channel;
    let is_legal = is_name(name);
    if Space::of(name) == Space::Meta && (is_legal || Pattern::parse(name).is_some()) {
        return Err(FORBIDDEN_CHANNEL.of(name));
    }
    let Some(data) = request.data else {
        return Err(MISSING_PARAMETER.of("data"));
    };
    if is_legal && Space::of(name) == Space::Service {
        return Ok((Destination::Service(Service::of(name, style)), data));
    }
    match to_pusher(name, style) {
        Ok(channel) => Ok((Destination::Channel(channel), data)),
        Err(refusal) => Err(refusal.reason().of(name)),
    }
}

fn client(client_id: Option<Given>, client_is_known: bool) -> Result<(), BayeuxError> {
    match client_id {
        None => Err(MISSING_PARAMETER.of("clientId")),
        Some(given) if !client_is_known => Err(UNKNOWN_CLIENT.of(given.describe())),
        Some(_) => Ok(()),
    }
}

fn is_supported(given: Given, supported: &[ConnectionType]) -> bool {
    let known = given.text().and_then(|text| ConnectionType::parse(&text));
    known.is_some_and(|known| supported.contains(&known))
}

fn target(given: Given, style: Style) -> Result<Target, BayeuxError> {
    let invalid = || INVALID_CHANNEL.of(given.describe());
    let text = given.text().ok_or_else(invalid)?;
    if let Some(pattern) = Pattern::parse(&text) {
        return match Scope::of(&pattern, style) {
            Ok(scope) => Ok(Target::Pattern(pattern, scope)),
            Err(refusal) => Err(refusal.reason().of(text)),
        };
    }
    if is_name(&text) && Space::of(&text) == Space::Service {
        return match Service::of(&text, style) {
            Service::Other => Err(FORBIDDEN_CHANNEL.of(text)),
            offered => Ok(Target::Service(offered)),
        };
    }
    to_pusher(&text, style)
        .map(Target::Channel)
        .map_err(|refusal| refusal.reason().of(&*text))
}
