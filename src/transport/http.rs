//! What the HTTP side of every front end needs.

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

/// A successful answer.
pub fn json(body: String) -> Response {
    let mut response = Response::new(body.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A plain text answer. Its body ends in one line feed (`pusher.md` 5.9).
pub fn text(status: StatusCode, message: &str) -> Response {
    let mut response = Response::new(format!("{message}\n").into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
