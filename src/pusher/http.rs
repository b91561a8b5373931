//! The URLs of the transports over HTTP (`pusher.md` 7.2), and what all their answers share.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_TYPE,
    HeaderName, HeaderValue,
};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::numbers::Stamp;
use super::sessions::Fallback;
use super::stats::ReportTransport;
use super::xhr;
use crate::transport::http::text;
use crate::transport::peer::Peer;
use crate::transport::receipt::Receipts;
use crate::transport::session::Vehicle;

pub const JAVASCRIPT: &str = "application/javascript; charset=UTF-8";
/// Nobody keeps an answer, or changes it on its way.
const UNCACHED: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";

/// A request without its body.
pub struct Request {
    pub fallback: Arc<Fallback>,
    pub method: Method,
    pub query: String,
    pub headers: HeaderMap,
    pub peer: Peer,
    pub receipts: Receipts,
}

/// What a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    /// `xhr_streaming`, `xhr` or `xhr_send` of the app of this key.
    Xhr {
        key: String,
        session_id: String,
        transport: String,
    },
    /// A report of pusher-js about itself.
    Timeline {
        transport: ReportTransport,
        receiver: String,
    },
}

/// Every path of the transports. Rejects all others.
pub fn routes(
    fallback: Arc<Fallback>,
) -> impl Filter<Extract = (Response,), Error = Rejection, Future: Send> + Clone + Send + Sync {
    let target = warp::path::full().and_then(|path: FullPath| {
        let found = target(path.as_str());
        std::future::ready(found.ok_or_else(warp::reject::not_found))
    });
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    target
        .and(warp::method())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::ext::get::<Receipts>())
        .map(move |target, method, query, headers, peer, receipts| {
            let request = Request {
                fallback: fallback.clone(),
                method,
                query,
                headers,
                peer,
                receipts,
            };
            (target, request)
        })
        .untuple_one()
        .and(warp::body::stream())
        .then(answer)
}

/// `/pusher` is pusher-js's `httpPath` unless it was told another (7.2).
fn target(path: &str) -> Option<Target> {
    let path = path.strip_prefix("/pusher").unwrap_or(path);
    let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    match segments[..] {
        [
            "app",
            key,
            server,
            session,
            transport @ ("xhr_streaming" | "xhr" | "xhr_send"),
        ] if is_name(server) && is_name(session) => Some(Target::Xhr {
            key: key.to_owned(),
            session_id: format!("{key}/{server}/{session}"),
            transport: transport.to_owned(),
        }),
        ["timeline", "v2", transport @ ("jsonp" | "xhr"), receiver] => Some(Target::Timeline {
            transport: match transport {
                "jsonp" => ReportTransport::Jsonp,
                _ => ReportTransport::Xhr,
            },
            receiver: receiver.to_owned(),
        }),
        _ => None,
    }
}

/// As SockJS wants it: neither empty nor with a dot, within reason.
fn is_name(segment: &str) -> bool {
    const CHARS_MAX: usize = 64;
    !segment.is_empty() && segment.len() <= CHARS_MAX && !segment.contains('.')
}

async fn answer(
    target: Target,
    request: Request,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Response {
    let method = &request.method;
    let mut response = match &target {
        Target::Xhr {
            key,
            session_id,
            transport,
        } => match (method, &**transport) {
            (&Method::OPTIONS, _) => preflight(&request.headers),
            (&Method::POST, "xhr_streaming") => {
                xhr::receive(&request, key, session_id, Vehicle::Stream).await
            }
            (&Method::POST, "xhr") => xhr::receive(&request, key, session_id, Vehicle::Poll).await,
            (&Method::POST, _) => xhr::send(&request, session_id, body).await,
            _ => wrong_method(),
        },
        Target::Timeline {
            transport,
            receiver,
        } => match *method {
            Method::GET => (request.fallback.stats).answer(*transport, receiver, &request.query),
            _ => wrong_method(),
        },
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

fn wrong_method() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

impl Request {
    /// How the client counts its requests, where it tells (7.2).
    pub fn stamp(&self) -> Option<Stamp> {
        /// JavaScript counts no further.
        const NUMBER_MAX: u64 = (1 << 53) - 1;
        let named = |wanted: &str| {
            let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
            let (_, value) = pairs.find(|(name, _)| name == wanted)?;
            value.parse().ok()
        };
        let number = named("n").filter(|number| *number <= NUMBER_MAX)?;
        let ms = named("t").unwrap_or_default();
        Some(Stamp { number, ms })
    }

    /// So that no other session of the page waits for it.
    pub fn is_of_no_session(&self, session_id: &str) {
        if let Some(stamp) = self.stamp() {
            let browsers = &self.fallback.browsers;
            browsers.stray(self.peer.address, &self.headers, session_id, stamp);
        }
    }
}

/// A page of another origin may ask for everything (7.2).
pub fn preflight(request: &HeaderMap) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(ACCESS_CONTROL_ALLOW_METHODS, "POST, OPTIONS");
    set(ACCESS_CONTROL_MAX_AGE, "31536000");
    if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    response
}

/// An answer that brings frames.
pub fn receiving(body: String, content_type: &'static str) -> Response {
    with_receiving_headers(Response::new(body.into()), content_type)
}

pub fn with_receiving_headers(mut response: Response, content_type: &'static str) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, UNCACHED),
        // nginx would collect what is to arrive at once.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_transports() {
        for (path, session_id) in [
            ("/pusher/app/k/7/abcdefgh/xhr", Some("k/7/abcdefgh")),
            ("/app/k/7/abcdefgh/xhr_send", Some("k/7/abcdefgh")),
            (
                "/pusher/app/k/7/abcdefgh/xhr_streaming",
                Some("k/7/abcdefgh"),
            ),
            ("/pusher/app/k/7/abcdefgh/xhr/", None),
            ("/pusher/app/k/7//xhr", None),
            ("/pusher/app/k/7/a.b/xhr", None),
            ("/pusher/app/k", None),
            ("/timeline/v2/jsonp/1", Some("a report")),
            ("/timeline/v2/script/1", None),
            ("/pusherx/app/k/7/abcdefgh/xhr", None),
            ("/apps/3/events", None),
        ] {
            let found = target(path).map(|target| match target {
                Target::Xhr { session_id, .. } => session_id,
                Target::Timeline { .. } => "a report".to_owned(),
            });
            assert_eq!(found.as_deref(), session_id, "{path}");
        }
    }
}
