//! Signing and verifying, always over bytes as received and always compared in constant time.
//! Knows neither HTTP types nor apps: callers hand in the parts of a request and the secret.

mod error;
mod parameters;
mod request;
#[cfg(test)]
mod vectors;

pub use error::AuthError;
pub use parameters::{Parameters, percent_decode};
pub use request::SignedRequest;

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A signed request is refused when its clock and ours differ by this much or more
/// (`pusher.md` 5.4).
pub const TIMESTAMP_WINDOW_SECS: u64 = 600;

/// The secret half of an app's key. It cannot be printed or read back, only used.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    pub fn new(secret: &str) -> Self {
        Self(Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length"))
    }

    /// Lowercase hex HMAC-SHA256, 64 digits.
    pub fn sign(&self, message: &[u8]) -> String {
        hex(&self.mac(message).finalize().into_bytes())
    }

    /// Whether `signature` is the hex HMAC-SHA256 of `message`. Upper-case digits are accepted,
    /// anything but 64 hex digits is not (`pusher.md` 5.3).
    pub fn verify(&self, message: &[u8], signature: &str) -> bool {
        unhex(signature).is_some_and(|digest| self.mac(message).verify_slice(&digest).is_ok())
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(message)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is signed to subscribe to a private or presence channel. `channel_data` counts on every
/// kind of channel, even when it is the empty string (`pusher.md` 2.3).
pub fn subscription_text(socket_id: &str, channel: &str, channel_data: Option<&str>) -> String {
    match channel_data {
        Some(channel_data) => format!("{socket_id}:{channel}:{channel_data}"),
        None => format!("{socket_id}:{channel}"),
    }
}

/// What is signed to sign a user in (`pusher.md` 4.1).
pub fn user_text(socket_id: &str, user_data: &str) -> String {
    format!("{socket_id}::user::{user_data}")
}

/// Key and signature of an `auth` value `KEY:SIGNATURE`, split at the first colon. Without a colon
/// the whole is the key, as hosted reads it.
pub fn split_auth(auth: &str) -> (&str, &str) {
    auth.split_once(':').unwrap_or((auth, ""))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(nibble)]));
        }
    }
    text
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_itself() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "***");
    }

    #[test]
    fn only_64_hex_digits_can_be_a_signature() {
        let secret = Secret::new("s");
        let right = secret.sign(b"text");
        assert!(secret.verify(b"text", &right));
        assert!(secret.verify(b"text", &right.to_uppercase()));
        for wrong in [
            "",
            "bad",
            &right[..63],
            &format!("{right}0"),
            &format!("{} ", &right[..63]),
            &format!("+{}", &right[1..]),
            &format!("{}é", &right[..62]),
        ] {
            assert!(!secret.verify(b"text", wrong), "{wrong:?}");
        }
    }

    #[test]
    fn an_auth_value_is_split_at_its_first_colon() {
        assert_eq!(split_auth("key:abc"), ("key", "abc"));
        assert_eq!(split_auth("key:a:b"), ("key", "a:b"));
        assert_eq!(split_auth(":abc"), ("", "abc"));
        assert_eq!(split_auth("key"), ("key", ""));
    }

    #[test]
    fn an_empty_channel_data_is_still_signed() {
        assert_eq!(
            subscription_text("1.2", "private-a", Some("")),
            "1.2:private-a:"
        );
        assert_eq!(subscription_text("1.2", "private-a", None), "1.2:private-a");
    }
}
