//! The tokens of the faye-authentication gem (`bayeux.md` 5.3): JSON web tokens, HS256 only, that
//! name one channel and one client.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;

use crate::wire::bayeux::{
    BayeuxError, Given, JWT_EXPIRED, JWT_INVALID, JWT_NOT_ABOUT_THIS, Publish, Subscribe,
    Subscription,
};

use super::authorise::Token;

/// The subscription is signed as a single string; an array has no signature.
pub fn check_subscribe(
    secret: &Token,
    request: &Subscribe,
    now_secs: u64,
) -> Result<(), BayeuxError> {
    let claims = claims(secret, request.signature, now_secs)?;
    let subscription = request.subscription.as_ref().and_then(Subscription::single);
    claims.name(subscription.as_deref(), request.client_id)
}

pub fn check_publish(secret: &Token, request: &Publish, now_secs: u64) -> Result<(), BayeuxError> {
    let claims = claims(secret, request.signature, now_secs)?;
    claims.name(Some(&request.channel), request.client_id)
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: f64,
    #[serde(default)]
    channel: Value,
    #[serde(default, rename = "clientId")]
    client_id: Value,
}

impl Claims {
    fn name(&self, channel: Option<&str>, client_id: Option<Given>) -> Result<(), BayeuxError> {
        let is_signed = |claim: &Value, given: Option<&str>| {
            given.is_some_and(|given| !given.is_empty() && claim.as_str() == Some(given))
        };
        let client_id = client_id.and_then(Given::text);
        let are_signed =
            is_signed(&self.channel, channel) && is_signed(&self.client_id, client_id.as_deref());
        match are_signed {
            true => Ok(()),
            false => Err(JWT_NOT_ABOUT_THIS.into()),
        }
    }
}

/// What the token says, if its signature is right and its time not over. Nothing in it is looked
/// at before the signature.
fn claims(secret: &Token, token: Option<Given>, now_secs: u64) -> Result<Claims, BayeuxError> {
    let token = token.and_then(Given::text).unwrap_or_default();
    let claims = verified(secret, &token).ok_or(JWT_INVALID)?;
    if claims.exp <= now_secs as f64 {
        return Err(JWT_EXPIRED.into());
    }
    Ok(claims)
}

fn verified(secret: &Token, token: &str) -> Option<Claims> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .ok()?
        .chain_update(signed)
        .verify_slice(&BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?)
        .ok()?;
    let read = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
    let header: Header = serde_json::from_slice(&read(header)?).ok()?;
    if header.alg != "HS256" {
        return None;
    }
    serde_json::from_slice(&read(claims)?).ok()
}
