//! SockJS (`pusher.md` 7.7), for clients that are told to use it and for browsers that cannot ask
//! across origins. A session is the same as of the other transports over HTTP, but which app it
//! is for only its first message says.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::Deserialize;
use sha1::{Digest, Sha1};
use tokio::time::Instant;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, ORIGIN};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::close::{self, close};
use super::connection::Connection;
use super::http::{self, Body, Request, UNCACHED};
use super::sessions::Talk;
use super::{Front, xhr};
use crate::auth::percent_decode;
use crate::hub::Outbox;
use crate::transport::http::{json, text};
use crate::transport::peer::Peer;
use crate::transport::session::Vehicle;
use crate::transport::websocket::Close;
use crate::wire::json::object;
use crate::wire::sockjs::Framing;

/// How long a client may take to say which app it wants.
const PATH_WITHIN: Duration = Duration::from_secs(10);
/// The client then answers heartbeats, and takes the server for dead after two to three times
/// this without any frame. There is one at least every 25 s.
const HEARTBEAT_MS: u32 = 25_000;
/// On the requests of [`IFRAME`]: the origin of the page around it. No other page can set it,
/// because no preflight allows it.
const PARENT_ORIGIN: &str = "x-parent-origin";
pub const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static("content-type");

/// SockJS wants a page that runs the script which `js_path` in its query names. Whoever frames it
/// could have any script run in our origin that way, so ours brings its own.
const IFRAME: &str = include_str!("iframe.html");
static IFRAME_TAG: LazyLock<String> =
    LazyLock::new(|| format!("\"{:x}\"", Sha1::digest(IFRAME.as_bytes())));

/// What a session is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Receive(Receiver),
    XhrSend,
    JsonpSend,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receiver {
    Xhr,
    XhrStreaming,
    EventSource,
    Htmlfile,
    Jsonp,
}

/// Who says for which app a session is.
pub struct Visitor {
    pub origin: Option<HeaderValue>,
    pub peer: Peer,
}

impl Action {
    /// By the last segment of the path.
    pub fn of(segment: &str) -> Option<Self> {
        Some(match segment {
            "xhr" => Self::Receive(Receiver::Xhr),
            "xhr_streaming" => Self::Receive(Receiver::XhrStreaming),
            "eventsource" => Self::Receive(Receiver::EventSource),
            "htmlfile" => Self::Receive(Receiver::Htmlfile),
            "jsonp" => Self::Receive(Receiver::Jsonp),
            "xhr_send" => Self::XhrSend,
            "jsonp_send" => Self::JsonpSend,
            _ => return None,
        })
    }

    pub fn is_post(self) -> bool {
        match self {
            Self::Receive(Receiver::Xhr | Receiver::XhrStreaming) => true,
            Self::Receive(Receiver::EventSource | Receiver::Htmlfile | Receiver::Jsonp) => false,
            Self::XhrSend | Self::JsonpSend => true,
        }
    }
}

impl Receiver {
    fn vehicle(self) -> Vehicle {
        match self {
            Self::Xhr | Self::Jsonp => Vehicle::Poll,
            Self::XhrStreaming | Self::EventSource | Self::Htmlfile => Vehicle::Stream,
        }
    }

    /// `Err` says why there can be no answer.
    fn framing(self, query: &str) -> Result<Framing, &'static str> {
        Ok(match self {
            Self::Xhr | Self::XhrStreaming => Framing::Lines,
            Self::EventSource => Framing::EventSource,
            Self::Htmlfile => Framing::Htmlfile(callback(query)?),
            Self::Jsonp => Framing::Jsonp(callback(query)?),
        })
    }
}

/// `/info`: what the client has to know before it begins. It draws randomness from it too.
pub fn info() -> Response {
    let entropy = getrandom::u32().unwrap_or_default();
    let mut response = json(format!(
        r#"{{"websocket":false,"origins":["*:*"],"cookie_needed":false,"entropy":{entropy},"server_heartbeat_interval":{HEARTBEAT_MS}}}"#
    ));
    let uncached = HeaderValue::from_static(UNCACHED);
    response.headers_mut().insert(CACHE_CONTROL, uncached);
    response
}

/// `/iframe*.html`.
pub fn iframe(headers: &HeaderMap) -> Response {
    let known = (headers.get(IF_NONE_MATCH)).and_then(|tags| tags.to_str().ok());
    let is_known = known.is_some_and(|tags| tags.contains(IFRAME_TAG.as_str()));
    let mut response = match is_known {
        true => Response::default(),
        false => Response::new(IFRAME.into()),
    };
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    let html = HeaderValue::from_static("text/html; charset=UTF-8");
    headers.insert(CONTENT_TYPE, html);
    let for_a_day = HeaderValue::from_static("public, max-age=86400");
    headers.insert(CACHE_CONTROL, for_a_day);
    if let Ok(tag) = HeaderValue::from_str(&IFRAME_TAG) {
        headers.insert(ETAG, tag);
    }
    response
}

/// Brings what there is for the client. The first such request of a session opens it.
pub async fn receive(request: &Request, session_id: &str, receiver: Receiver) -> Response {
    let framing = match receiver.framing(&request.query) {
        Ok(framing) => framing,
        Err(why) => return text(StatusCode::INTERNAL_SERVER_ERROR, why),
    };
    let fallback = &request.fallback;
    let opened = fallback.find_or_open(session_id, request.peer.address, |_| {
        let by = Instant::now() + PATH_WITHIN;
        let numbers =
            (fallback.browsers).numbers(request.peer.address, &request.headers, session_id);
        Ok((Talk::Unopened { by }, numbers))
    });
    match opened {
        Ok(session) => xhr::answer(request, &session, receiver.vehicle(), framing).await,
        Err(close) => xhr::refused(&close, &framing),
    }
}

/// `xhr_send` and `jsonp_send`: messages. The client waits for the answer before it sends more.
pub async fn send(request: &Request, session_id: &str, action: Action, body: Body) -> Response {
    let Some(session) = request.fallback.sessions.find(session_id) else {
        return text(StatusCode::NOT_FOUND, "Unknown session");
    };
    let said = request.headers.get(PARENT_ORIGIN);
    let origin = said.or_else(|| request.headers.get(ORIGIN)).cloned();
    let peer = request.peer;
    session.client.introduce(Visitor { origin, peer });
    if action == Action::XhrSend {
        return xhr::send(request, session_id, body, |text| text).await;
    }
    let is_form = (request.headers.get(CONTENT_TYPE)).is_some_and(|kind| {
        kind.as_bytes()
            .starts_with(b"application/x-www-form-urlencoded")
    });
    let read = |text: String| match is_form {
        true => field(&text, "d").unwrap_or_default(),
        false => text,
    };
    let response = xhr::send(request, session_id, body, read).await;
    match response.status().is_success() {
        true => text(StatusCode::OK, "ok"),
        false => response,
    }
}

/// What a first message asks for: `{"path":"/app/KEY?protocol=7…"}`.
pub fn open(
    front: &Arc<Front>,
    visitor: Option<&Visitor>,
    message: &str,
    outbox: &Arc<Outbox>,
) -> Result<Connection, Close> {
    #[derive(Deserialize)]
    struct Wish {
        path: String,
    }
    let nowhere = || close(close::PATH_NOT_FOUND);
    let Wish { path } = object(message).ok_or_else(nowhere)?;
    let Visitor { origin, peer } = visitor.ok_or_else(nowhere)?;
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let key = path.strip_prefix("/app/").ok_or_else(nowhere)?;
    let key = percent_decode(key);
    xhr::connect(front, &key, query, origin.as_ref(), *peer, outbox)
}

/// The function that an answer calls, which the client names.
fn callback(query: &str) -> Result<String, &'static str> {
    const CHARS_MAX: usize = 64;
    let callback = field(query, "c").ok_or("\"callback\" parameter required")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = (1..=CHARS_MAX).contains(&callback.len()) && callback.bytes().all(is_plain);
    is_name
        .then_some(callback)
        .ok_or("invalid \"callback\" parameter")
}

fn field(form: &str, wanted: &str) -> Option<String> {
    http::pair(form, wanted).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_are_names_and_nothing_else() {
        for (query, expected) in [
            ("c=_jp.a1_b-2", Some("_jp.a1_b-2")),
            ("t=1&c=%5Fjp.a", Some("_jp.a")),
            ("", None),
            ("c=", None),
            ("c=alert(1)", None),
            ("c=a%3Balert", None),
            ("c=%3Cscript%3E", None),
            ("c=a%0Ab", None),
        ] {
            assert_eq!(callback(query).ok().as_deref(), expected, "{query}");
        }
        assert!(callback(&format!("c={}", "a".repeat(65))).is_err());
    }

    #[test]
    fn the_page_in_the_iframe_is_not_sent_to_whoever_has_it() {
        let first = iframe(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(iframe(&headers).status(), StatusCode::NOT_MODIFIED);
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        assert_eq!(iframe(&headers).status(), StatusCode::OK);
    }
}
