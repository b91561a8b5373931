//! The URLs of the transports over HTTP (`pusher.md` 7.2), and what all their answers share.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_LENGTH,
    CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::moving::HOUSE;
use super::numbers::Stamp;
use super::sessions::Fallback;
use super::sockjs::{self, Action};
use super::stats::ReportTransport;
use super::xhr;
use crate::peers::{Elsewhere, PassedOn, Relayed, Tries, misdirected, unavailable};
use crate::transport::http::{BodyError, read_body, text};
use crate::transport::peer::Peer;
use crate::transport::receipt::Receipts;
use crate::transport::session::Vehicle;
use crate::wire::sockjs::Framing;

pub const JAVASCRIPT: &str = "application/javascript; charset=UTF-8";
/// Nobody keeps an answer, or changes it on its way.
pub const UNCACHED: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";

/// A request without its body.
pub struct Request {
    pub fallback: Arc<Fallback>,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub peer: Peer,
    pub receipts: Receipts,
    pub is_passed_on: bool,
}

/// The body of a request, or why there is none.
pub type Body = Result<Vec<u8>, BodyError>;

/// What a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    /// `xhr_streaming`, `xhr` or `xhr_send` of the app of this key.
    Xhr {
        key: String,
        session_id: String,
        transport: String,
    },
    /// `/info` of SockJS.
    Info,
    /// Its page for iframes.
    Iframe,
    /// A session of SockJS.
    SockJs { session_id: String, action: Action },
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
        .and(warp::ext::optional::<PassedOn>())
        .and(warp::path::full())
        .map(
            move |target, method, query, headers, peer, receipts, passed_on, path: FullPath| {
                let request = Request {
                    fallback: fallback.clone(),
                    method,
                    path: path.as_str().to_owned(),
                    query,
                    headers,
                    peer,
                    receipts,
                    is_passed_on: Option::<PassedOn>::is_some(&passed_on),
                };
                (target, request)
            },
        )
        .untuple_one()
        .and(warp::body::stream())
        .then(answer)
}

/// `/pusher` is pusher-js's `httpPath` unless it was told another (7.2).
fn target(path: &str) -> Option<Target> {
    let below = path
        .strip_prefix("/pusher")
        .filter(|path| path.starts_with('/'));
    let segments: Vec<_> = below
        .unwrap_or(path)
        .strip_prefix('/')?
        .split('/')
        .collect();
    if below.is_some()
        && let Some(target) = sockjs_target(&segments)
    {
        return Some(target);
    }
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

/// Only below `/pusher`: elsewhere such paths may be others'.
fn sockjs_target(segments: &[&str]) -> Option<Target> {
    match *segments {
        ["info"] => Some(Target::Info),
        [page] if page.starts_with("iframe") && page.ends_with(".html") => Some(Target::Iframe),
        [server, session, transport] if is_name(server) && is_name(session) => {
            Some(Target::SockJs {
                session_id: format!("{server}/{session}"),
                action: Action::of(transport)?,
            })
        }
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
    let mut response = respond(&target, &request, body).await;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn respond(
    target: &Target,
    request: &Request,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Response {
    let method = &request.method;
    let mut read = Ok(Vec::new());
    // It stays here as long as something is sent to it.
    let mut visit = None;
    if let Some((session_id, asks)) = target.session(method) {
        if asks == Asks::Sends {
            read = read_body(&request.headers, body, request.fallback.body_bytes_max()).await;
        }
        let mut tries = Tries::default();
        let found = loop {
            match request.fallback.visit(session_id, asks).await {
                Ok(found) => break found,
                Err(elsewhere) => {
                    let passed_on = request.pass_on(elsewhere, &read, &mut tries);
                    if let Some(response) = passed_on.await {
                        return response;
                    }
                }
            }
        };
        visit = found.filter(|_| asks == Asks::Sends);
    }
    let response = match target {
        Target::Xhr {
            key,
            session_id,
            transport,
        } => match (method, &**transport) {
            (&Method::OPTIONS, _) => {
                let asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
                preflight("POST, OPTIONS", asked.cloned())
            }
            (&Method::POST, "xhr_streaming") => {
                xhr::receive(request, key, session_id, Vehicle::Stream).await
            }
            (&Method::POST, "xhr") => xhr::receive(request, key, session_id, Vehicle::Poll).await,
            (&Method::POST, _) => xhr::send(request, session_id, read, |text| text).await,
            _ => wrong_method(),
        },
        Target::Info => match *method {
            Method::GET => sockjs::info(),
            Method::OPTIONS => preflight("OPTIONS, GET", None),
            _ => wrong_method(),
        },
        Target::Iframe => match *method {
            Method::GET => sockjs::iframe(&request.headers),
            _ => wrong_method(),
        },
        Target::SockJs { session_id, action } => match (method, *action) {
            (&Method::OPTIONS, _) => preflight("POST, OPTIONS", Some(sockjs::ALLOWED_HEADERS)),
            (&Method::GET | &Method::POST, _) if action.is_post() != (method == Method::POST) => {
                wrong_method()
            }
            (&Method::GET | &Method::POST, Action::Receive(receiver)) => {
                sockjs::receive(request, session_id, receiver).await
            }
            (&Method::POST, action) => sockjs::send(request, session_id, action, read).await,
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
    drop(visit);
    response
}

/// What a request does with its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asks {
    Receives,
    Sends,
}

impl Target {
    fn session(&self, method: &Method) -> Option<(&str, Asks)> {
        match self {
            Self::Xhr {
                session_id,
                transport,
                ..
            } if method == Method::POST => match &**transport {
                "xhr_send" => Some((session_id, Asks::Sends)),
                _ => Some((session_id, Asks::Receives)),
            },
            Self::SockJs { session_id, action }
                if matches!(*method, Method::GET | Method::POST)
                    && action.is_post() == (method == Method::POST) =>
            {
                match action {
                    Action::Receive(_) => Some((session_id, Asks::Receives)),
                    Action::XhrSend | Action::JsonpSend => Some((session_id, Asks::Sends)),
                }
            }
            _ => None,
        }
    }
}

fn wrong_method() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

impl Request {
    /// How the client counts its requests, where it tells (7.2).
    pub fn stamp(&self) -> Option<Stamp> {
        /// JavaScript counts no further.
        const NUMBER_MAX: u64 = (1 << 53) - 1;
        let named = |wanted| pair(&self.query, wanted)?.parse::<u64>().ok();
        let number = named("n").filter(|number| (1..=NUMBER_MAX).contains(number))?;
        let ms = named("t").unwrap_or_default();
        Some(Stamp { number, ms })
    }

    /// Has it answered where its session is. `None` if that is to be looked for again.
    async fn pass_on(
        &self,
        elsewhere: Elsewhere,
        body: &Body,
        tries: &mut Tries,
    ) -> Option<Response> {
        if self.is_passed_on {
            return Some(misdirected());
        }
        let (Some(peers), Elsewhere::Node(node, id)) = (&self.fallback.peers, elsewhere) else {
            return Some(unavailable());
        };
        if !tries.one_more().await {
            return Some(unavailable());
        }
        let Ok(body) = body else {
            let message = "Request body too large";
            return Some(text(StatusCode::PAYLOAD_TOO_LARGE, message));
        };
        let mut headers = self.headers.clone();
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        let target = match &*self.query {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        };
        let relayed = Relayed {
            house: HOUSE,
            id,
            method: &self.method,
            target,
            headers: &headers,
            body,
            peer: self.peer,
            receipts: &self.receipts,
        };
        peers.relay(node, relayed).await
    }

    /// So that no session of the page waits for it.
    pub fn brings_nothing(&self, session_id: &str) {
        if let Some(stamp) = self.stamp() {
            let browsers = &self.fallback.browsers;
            browsers.stray(self.peer.address, &self.headers, session_id, stamp);
        }
    }
}

/// A value in a query or a form.
pub fn pair<'q>(query: &'q str, wanted: &str) -> Option<Cow<'q, str>> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(name, value)| (name == wanted).then_some(value))
}

/// A page of another origin may ask (7.2).
fn preflight(methods: &'static str, allowed_headers: Option<HeaderValue>) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(ACCESS_CONTROL_ALLOW_METHODS, methods);
    set(ACCESS_CONTROL_MAX_AGE, "31536000");
    if let Some(allowed) = allowed_headers {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

/// An answer that brings frames.
pub fn receiving(body: String, framing: &Framing) -> Response {
    with_receiving_headers(Response::new(body.into()), framing)
}

pub fn with_receiving_headers(mut response: Response, framing: &Framing) -> Response {
    let content_type = match framing {
        Framing::Lines | Framing::Jsonp(_) => JAVASCRIPT,
        Framing::EventSource => "text/event-stream; charset=UTF-8",
        Framing::Htmlfile(_) => "text/html; charset=UTF-8",
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, UNCACHED),
        // nginx would collect what is to arrive at once.
        (HeaderName::from_static("x-accel-buffering"), "no"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
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
            ("/pusher/007/abcdefgh/eventsource", Some("007/abcdefgh")),
            ("/pusher/007/abcdefgh/jsonp_send", Some("007/abcdefgh")),
            ("/pusher/007/abcdefgh/websocket", None),
            ("/pusher/007/a.b/xhr", None),
            ("/007/abcdefgh/xhr", None),
            ("/pusher/info", Some("info")),
            ("/info", None),
            ("/pusher/iframe-0.3.4.html", Some("iframe")),
            ("/apps/3/events", None),
        ] {
            let found = target(path).map(|target| match target {
                Target::Xhr { session_id, .. } | Target::SockJs { session_id, .. } => session_id,
                Target::Info => "info".to_owned(),
                Target::Iframe => "iframe".to_owned(),
                Target::Timeline { .. } => "a report".to_owned(),
            });
            assert_eq!(found.as_deref(), session_id, "{path}");
        }
    }
}
