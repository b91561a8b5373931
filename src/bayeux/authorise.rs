//! The authorisation idioms of existing Faye applications (`bayeux.md` 5.1, 5.2), each a function
//! of what the app has configured, what a message carries, and the time.
//!
//! A check says whether the message may pass. What it looked at in `ext` must not reach
//! subscribers: [`Ext::forwardable`] withholds what `is_mine` claims.

use std::fmt;
use std::sync::Arc;

use hmac::digest::CtOutput;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::apps::Limits;
use crate::model::Member;
use crate::wire::bayeux::{
    BayeuxError, Ext, Given, INCORRECT_SIGNATURE, INCORRECT_TOKEN, INVALID_SUBSCRIPTION_TOKEN,
    INVALID_USER, PASSWORD_REQUIRED, Reason, SIGNATURE_EXPIRED, Subscribe, Subscription,
};
use crate::wire::pusher;

use super::channel::Pattern;

/// A secret that an app shares with its publishers. It is compared in constant time and cannot be
/// printed.
#[derive(Clone)]
pub struct Token(Box<str>);

impl Token {
    pub fn new(secret: &str) -> Self {
        Self(secret.into())
    }

    pub fn is(&self, given: &str) -> bool {
        is_same(&self.0, given)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A token and the member of `ext` in which it comes.
#[derive(Clone, Debug)]
pub struct ExtToken {
    pub key: String,
    pub token: Token,
}

impl ExtToken {
    pub fn is_in(&self, ext: &Ext) -> bool {
        ext.text(&self.key)
            .is_some_and(|given| self.token.is(&given))
    }
}

/// Publishing needs one of several tokens.
#[derive(Clone, Debug)]
pub struct PublishTokens(pub Vec<ExtToken>);

impl PublishTokens {
    pub fn check(&self, ext: &Ext) -> Result<(), BayeuxError> {
        match self.0.iter().any(|token| token.is_in(ext)) {
            true => Ok(()),
            false => Err(PASSWORD_REQUIRED.into()),
        }
    }

    pub fn is_mine(&self, ext_key: &str) -> bool {
        self.0.iter().any(|token| token.key == ext_key)
    }
}

/// Subscribing to some channels needs the token given for them.
#[derive(Clone, Debug)]
pub struct SubscribeTokens(pub Vec<(Channels, ExtToken)>);

impl SubscribeTokens {
    /// Every element of the subscription counts, and a pattern counts for all it would expose.
    pub fn check(&self, subscription: &Subscription, ext: &Ext) -> Result<(), BayeuxError> {
        let passes = |given: &Given| {
            let Some(element) = given.text() else {
                return false;
            };
            self.0
                .iter()
                .filter(|(channels, _)| channels.are_exposed_by(&element))
                .all(|(_, token)| token.is_in(ext))
        };
        match subscription.elements().iter().all(passes) {
            true => Ok(()),
            false => Err(INVALID_SUBSCRIPTION_TOKEN.into()),
        }
    }

    pub fn is_mine(&self, ext_key: &str) -> bool {
        self.0.iter().any(|(_, token)| token.key == ext_key)
    }
}

/// What a rule is about: one channel or those of a pattern, in Bayeux names.
#[derive(Clone, Debug)]
pub enum Channels {
    Named(String),
    Matching(Pattern),
}

impl Channels {
    /// Whether all that `element`, a name or a pattern, means is among them.
    pub fn cover(&self, element: &str) -> bool {
        match (self, Pattern::parse(element)) {
            (Self::Named(name), _) => name == element,
            (Self::Matching(pattern), None) => pattern.matches(element),
            (Self::Matching(pattern), Some(other)) => pattern.covers(&other),
        }
    }

    /// Whether a subscription to `element`, a name or a pattern, would receive any of them.
    fn are_exposed_by(&self, element: &str) -> bool {
        match (self, Pattern::parse(element)) {
            (Self::Named(name), None) => name == element,
            (Self::Named(name), Some(wider)) => wider.matches(name),
            (Self::Matching(pattern), None) => pattern.matches(element),
            (Self::Matching(pattern), Some(other)) => pattern.overlaps(&other),
        }
    }
}

/// The scheme of private_pub and danthes: every subscription is signed by the application, every
/// publish carries the secret (5.2).
#[derive(Clone, Debug)]
pub struct SignedChannels {
    /// In front of the names of its `ext` members: `private_pub` or `danthes`.
    pub prefix: String,
    pub secret: Token,
    /// Absent: a signature holds for ever.
    pub expiration_secs: Option<u64>,
}

/// A timestamp is this long. The signature does not separate it from the channel in front, so that
/// any other length would let digits move from one to the other.
const TIMESTAMP_DIGITS: usize = 13;
const AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

impl SignedChannels {
    /// `signature = hex SHA1(secret + subscription + timestamp)`, over a single name or pattern as
    /// it came; an array is not what was signed, even if its elements read the same in a row.
    pub fn check_subscribe(&self, request: &Subscribe, now_ms: u64) -> Result<(), BayeuxError> {
        let member = |name| request.ext.get(&format!("{}_{name}", self.prefix));
        let subscription = request.subscription.as_ref().and_then(Subscription::single);
        let signature = member("signature").and_then(Given::text);
        let timestamp = member("timestamp").and_then(timestamp);
        let (Some(subscription), Some(signature), Some(timestamp)) =
            (subscription, signature, timestamp)
        else {
            return Err(INCORRECT_SIGNATURE.into());
        };
        let digest = Sha1::new()
            .chain_update(self.secret.as_bytes())
            .chain_update(subscription.as_bytes())
            .chain_update(timestamp.to_string())
            .finalize();
        if !is_same(&format!("{digest:x}"), &signature)
            || timestamp > now_ms.saturating_add(AHEAD_MS_MAX)
        {
            return Err(INCORRECT_SIGNATURE.into());
        }
        let oldest_ms = self
            .expiration_secs
            .map_or(0, |secs| now_ms.saturating_sub(secs.saturating_mul(1000)));
        if timestamp < oldest_ms {
            return Err(SIGNATURE_EXPIRED.into());
        }
        Ok(())
    }

    pub fn check_publish(&self, ext: &Ext) -> Result<(), BayeuxError> {
        let given = ext.text(&format!("{}_token", self.prefix));
        match given.is_some_and(|given| self.secret.is(&given)) {
            true => Ok(()),
            false => Err(INCORRECT_TOKEN.into()),
        }
    }

    pub fn is_mine(&self, ext_key: &str) -> bool {
        ext_key
            .strip_prefix(&*self.prefix)
            .is_some_and(|name| matches!(name, "_signature" | "_timestamp" | "_token"))
    }
}

/// Milliseconds since 1970, in a number or a string of exactly [`TIMESTAMP_DIGITS`] digits.
fn timestamp(given: Given) -> Option<u64> {
    let text = match given.is_number() {
        true => given.json().into(),
        false => given.text()?,
    };
    let is_exact = text.len() == TIMESTAMP_DIGITS
        && !text.starts_with('0')
        && text.bytes().all(|byte| byte.is_ascii_digit());
    is_exact.then(|| text.parse().ok())?
}

/// The member that a signed `channel_data` names, else the signed-in user (`pusher.md` 2.6).
pub fn presence_member(
    channel_data: Option<&str>,
    signed_in: Option<&Arc<Member>>,
    limits: &Limits,
) -> Result<Arc<Member>, Reason> {
    let Some(channel_data) = channel_data else {
        return signed_in.cloned().ok_or(INVALID_USER);
    };
    let member = pusher::parse_member(channel_data).map_err(|_| INVALID_USER)?;
    check_user(&member, limits)?;
    Ok(Arc::new(member))
}

pub fn check_user(user: &Member, limits: &Limits) -> Result<(), Reason> {
    let info_bytes = user.user_info.as_ref().map_or(0, |info| info.len());
    let fits = user.user_id.chars().count() <= limits.user_id_chars_max
        && info_bytes <= limits.user_info_bytes_max;
    if fits { Ok(()) } else { Err(INVALID_USER) }
}

/// Takes the same time wherever the texts differ, and whatever their lengths.
fn is_same(expected: &str, given: &str) -> bool {
    let digest = |text: &str| CtOutput::<Sha256>::new(Sha256::digest(text));
    digest(expected) == digest(given)
}

#[cfg(test)]
mod tests;
