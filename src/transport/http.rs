//! What the HTTP side of every front end needs.

use std::borrow::Cow;
use std::net::SocketAddr;

use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

/// Who sent a request; the server puts it into the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub secure: bool,
}

impl Peer {
    /// Whether the request came over TLS, to us or to the proxy in front of us.
    pub fn is_secure(self, headers: &HeaderMap) -> bool {
        self.secure
            || headers
                .get("x-forwarded-proto")
                .is_some_and(|p| p == "https")
    }
}

/// A plain text answer. Its body ends in one line feed (`pusher.md` 5.9).
pub fn text(status: StatusCode, message: &str) -> Response {
    let mut response = Response::new(format!("{message}\n").into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// Undoes percent-encoding; text that is not valid UTF-8 stays as it was.
pub fn percent_decoded(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.map(|h| u8::from_str_radix(h, 16)) {
            Some(Ok(decoded)) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(segment), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_where_it_is_valid() {
        for (given, expected) in [
            ("plain", "plain"),
            ("a%3Bb%2c", "a;b,"),
            ("%23server-to-user-%C3%AB", "#server-to-user-ë"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%+1", "%+1"),
            ("%ff", "%ff"),
        ] {
            assert_eq!(percent_decoded(given), expected);
        }
    }
}
