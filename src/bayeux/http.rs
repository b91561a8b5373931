//! Bayeux over HTTP (`bayeux.md` 3.1–3.5): long-polling, the same across origins, and
//! callback-polling.

use std::sync::Arc;

use bytes::Buf;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::BodyDataStream;
use hyper::body::Body;
use warp::http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL,
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, SET_COOKIE,
    TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::request::Parts;
use warp::http::{self, HeaderMap, Method, StatusCode};
use warp::reply::Response;

use super::browsers::BrowserId;
use super::connect::Polled;
use super::encoding::message_of;
use super::exchange::{Answers, Sender};
use super::moving::HOUSE;
use super::site::Site;
use super::{event_source, files, websocket};
use crate::audit;
use crate::metrics::{CUT_OFFS, CutOff};
use crate::peers::{Elsewhere, PassedOn, Relayed, Tries, misdirected, unavailable};
use crate::transport::http::{BodyError, ControlMessages, read_body, text, to_the_end};
use crate::transport::peer::Peer;
use crate::transport::receipt::{self, Receipts, Wanted};
use crate::transport::session::Carrier;
use crate::transport::websocket::is_websocket_request;
use crate::wire::bayeux::http::{
    DEFAULT_CALLBACK, Form, callback_script, is_callback, is_json_type, parse_form, write_form,
};
use crate::wire::bayeux::{join, parse_all};

/// A request to a site, without its body.
pub struct Request {
    pub site: Arc<Site>,
    pub parts: Parts,
    pub mount_bytes: usize,
    pub peer: Peer,
    pub receipts: Receipts,
}

/// First segments of other front ends' paths: no mount's, even if it is the root.
pub const TAKEN: [&str; 7] = [
    "app", "apps", "livez", "pusher", "readyz", "timeline", "users",
];

/// What follows the mount in a path that belongs to it: nothing, more segments, or an extension
/// alone (`/faye.js`).
pub fn below_mount<'p>(path: &'p str, mount: &str) -> Option<&'p str> {
    let below = path.strip_prefix(mount)?;
    if path
        .split('/')
        .nth(1)
        .is_some_and(|first| TAKEN.contains(&first))
    {
        return None;
    }
    let is_extension = || {
        let name = below.strip_prefix('.');
        name.is_some_and(|name| !name.is_empty() && !name.contains(['.', '/']))
    };
    (below.is_empty() || below.starts_with('/') || is_extension()).then_some(below)
}

/// A mount of a site, which a path begins with.
pub struct Mounted {
    pub site: Arc<Site>,
    pub mount_bytes: usize,
}

/// Answers a request to a path that begins with a mount, in the order in which Faye decides (3.1).
/// This is no table of warp's, like the HTTP API: by such requests whoever has no socket publishes.
pub async fn answer<B>(
    at: Mounted,
    request: http::Request<B>,
    peer: Peer,
    receipts: Receipts,
) -> Response
where
    B: Body<Data: Buf>,
{
    let (parts, body) = request.into_parts();
    let request = Request {
        site: at.site,
        parts,
        mount_bytes: at.mount_bytes,
        peer,
        receipts,
    };
    let below = request.below();
    let headers = &request.parts.headers;
    if below.ends_with(".js") || below.ends_with(".map") {
        return files::answer(below, headers);
    }
    let cors = cors_headers(headers);
    if let Some(refusal) = request.refusal() {
        return with_headers(refusal, cors);
    }
    if is_websocket_request(headers) {
        return websocket::answer(request);
    }
    let asks_for_post = (headers.get(ACCESS_CONTROL_REQUEST_METHOD)).is_some_and(|m| m == "POST");
    let response = match request.parts.method {
        Method::OPTIONS => preflight(headers),
        _ if asks_for_post => preflight(headers),
        Method::GET if accepts_event_stream(headers) => event_source::answer(&request).await,
        Method::GET => callback_polling(&request).await,
        Method::POST => {
            let bytes_max = request.site.settings.limits.request_bytes_max;
            match read_body(headers, BodyDataStream::new(body), bytes_max).await {
                Ok(body) => long_polling(&request, body).await,
                Err(BodyError::TooLarge) => {
                    text(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large")
                }
                Err(BodyError::CutOff | BodyError::TooSlow) => bad_request(),
            }
        }
        _ => bad_request(),
    };
    with_headers(response, cors)
}

impl Request {
    /// What follows the mount.
    pub(super) fn below(&self) -> &str {
        &self.parts.uri.path()[self.mount_bytes..]
    }

    /// Has it answered where its session is. `texts` hold the messages of its body. `None` if it is
    /// to be looked for again.
    pub(super) async fn pass_on(
        &self,
        elsewhere: Elsewhere,
        texts: &[String],
        tries: &mut Tries,
    ) -> Option<Response> {
        if self.parts.extensions.get::<PassedOn>().is_some() {
            return Some(misdirected());
        }
        let (Some(peers), Elsewhere::Node(node, id)) = (&self.site.peers, elsewhere) else {
            return Some(unavailable());
        };
        if !tries.one_more().await {
            return Some(unavailable());
        }
        let Parts { method, uri, .. } = &self.parts;
        let mut headers = self.parts.headers.clone();
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        let body = match (method, texts) {
            (&Method::GET, _) => String::new(),
            (_, [text]) => {
                let json = HeaderValue::from_static("application/json");
                headers.insert(CONTENT_TYPE, json);
                text.clone()
            }
            _ => write_form(texts),
        };
        let target = uri
            .path_and_query()
            .map_or(uri.path(), |both| both.as_str());
        let relayed = Relayed {
            house: HOUSE,
            id,
            method,
            target: target.to_owned(),
            headers: &headers,
            body: body.as_bytes(),
            peer: self.peer,
            receipts: &self.receipts,
        };
        peers.relay(node, relayed).await
    }

    /// Why the app wants nothing from such a request. Its origin is checked where there is one:
    /// requests without are covered by tokens (3.4).
    fn refusal(&self) -> Option<Response> {
        let app = self.site.app()?;
        let origin = self.parts.headers.get(ORIGIN);
        let origin = origin.map(|origin| origin.to_str().unwrap_or_default());
        let stranger = audit::Stranger {
            app: Some(&app.id),
            key: None,
            address: Some(self.peer.address),
        };
        if !app.allows_origin(origin) {
            CUT_OFFS.count(CutOff::Origin);
            stranger.refused("Origin not allowed");
            return Some(text(StatusCode::FORBIDDEN, "Origin not allowed"));
        }
        if app.features.force_tls && !self.peer.secure {
            CUT_OFFS.count(CutOff::NotOverTls);
            stranger.refused("not over TLS");
            return Some(text(
                StatusCode::FORBIDDEN,
                "Only secure connections are allowed",
            ));
        }
        None
    }
}

/// The messages are the whole body, or the fields `message` of a form (3.2).
async fn long_polling(request: &Request, body: Vec<u8>) -> Response {
    let content_type = request.parts.headers.get(CONTENT_TYPE);
    let content_type = content_type.and_then(|given| given.to_str().ok());
    let texts = if is_json_type(content_type) {
        let Ok(text) = String::from_utf8(body) else {
            return bad_request();
        };
        vec![text]
    } else {
        match parse_form(&body) {
            Ok(Form { messages, jsonp }) if jsonp.as_deref().is_none_or(is_callback) => messages,
            _ => return bad_request(),
        }
    };
    respond(request, texts, None).await
}

async fn callback_polling(request: &Request) -> Response {
    let query = request.parts.uri.query().unwrap_or_default();
    let Ok(Form { messages, jsonp }) = parse_form(query.as_bytes()) else {
        return bad_request();
    };
    let callback = jsonp.unwrap_or_else(|| DEFAULT_CALLBACK.to_owned());
    match is_callback(&callback) {
        true => respond(request, messages, Some(&callback)).await,
        false => bad_request(),
    }
}

async fn respond(request: &Request, mut texts: Vec<String>, callback: Option<&str>) -> Response {
    if texts.is_empty() {
        return bad_request();
    }
    let site = &request.site;
    let sender = Sender {
        address: request.peer.address,
        headers: site.shown(&request.parts.headers),
    };
    let mut tries = Tries::default();
    let answers = loop {
        match exchange(site, texts, sender.clone()).await {
            Exchanged::Answers(answers) => break answers,
            Exchanged::NoMessages => return bad_request(),
            Exchanged::Elsewhere(place, again) => {
                if let Some(response) = request.pass_on(place, &again, &mut tries).await {
                    return response;
                }
                texts = again;
            }
        }
    };
    let Answers {
        replies,
        connects,
        has_opened,
        control_messages,
    } = answers;
    let counts_browsers = site.settings.browser_polls_max.is_some();
    let browser = match counts_browsers {
        true => BrowserId::of(&request.parts.headers),
        false => None,
    };
    // In the order in which they end (2.10).
    let polls = connects
        .into_iter()
        .map(|connecting| site.poll(connecting, browser.as_ref()));
    let mut polled: Vec<_> = polls.collect::<FuturesUnordered<_>>().collect().await;
    for poll in &mut polled {
        poll.is_written_by(&request.receipts, site);
    }
    let mut messages: Vec<&str> = replies.iter().map(String::as_str).collect();
    for Polled { reply, events, .. } in &polled {
        messages.push(reply);
        messages.extend(events.iter().map(message_of));
    }
    let json = join(messages);
    let (body, content_type) = match callback {
        Some(callback) => (
            callback_script(callback, &json),
            "text/javascript; charset=utf-8",
        ),
        None => (json, "application/json; charset=utf-8"),
    };
    // What it brings counts as sent once it is with the kernel; until then it belongs to the
    // carriers, which take it back.
    let carriers: Vec<_> = polled.into_iter().filter_map(|poll| poll.carrier).collect();
    let mut response = match carriers.is_empty() {
        true => Response::new(body.into()),
        false => receipt::answer(body.into(), &request.receipts, |receipts| {
            let carriers = Arc::new(carriers);
            let holders = carriers.clone();
            receipts.when_written_if(
                move || (holders.iter().map(Carrier::wanted).min()).unwrap_or(Wanted::Yes),
                move || carriers.iter().for_each(Carrier::written),
            );
        }),
    };
    response.extensions_mut().insert(ControlMessages {
        count: control_messages,
        per_sec_max: site.control_messages_per_sec_max(),
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let uncached = HeaderValue::from_static("no-cache, no-store");
    headers.insert(CACHE_CONTROL, uncached);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if counts_browsers && has_opened && browser.is_none() {
        let cookie = BrowserId::introduce(request.peer.secure);
        headers.extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    }
    if callback.is_some() {
        let attachment = HeaderValue::from_static("attachment; filename=f.txt");
        headers.insert(CONTENT_DISPOSITION, attachment);
    }
    response
}

/// What became of the messages of a request.
enum Exchanged {
    Answers(Answers),
    NoMessages,
    /// They are for a session of another node, and still to be answered.
    Elsewhere(Elsewhere, Vec<String>),
}

/// Done to the end even if the client hangs up meanwhile and its request is dropped: a page that
/// closes says goodbye and does not wait.
async fn exchange(site: &Arc<Site>, texts: Vec<String>, sender: Sender) -> Exchanged {
    let site = site.clone();
    let answering = async move {
        let messages_max = site.settings.limits.messages_per_request_max;
        let parsed = parse_all(texts.iter().map(String::as_str), messages_max);
        let Ok(messages) = parsed else {
            return Exchanged::NoMessages;
        };
        let visits = match site.visit(&messages).await {
            Ok(visits) => visits,
            Err(elsewhere) => {
                drop(messages);
                return Exchanged::Elsewhere(elsewhere, texts);
            }
        };
        let answers = site.answer(&messages, &sender).await;
        drop(visits);
        Exchanged::Answers(answers)
    };
    to_the_end(answering).await.unwrap_or(Exchanged::NoMessages)
}

fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter();
    let mut types = accepted.flat_map(|given| given.to_str().unwrap_or_default().split(','));
    types.any(|given| {
        let media_type = given.split(';').next().unwrap_or_default();
        media_type.trim() == "text/event-stream"
    })
}

/// What every answer to another origin carries (3.4).
fn cors_headers(request: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(VARY, HeaderValue::from_static("Origin"))];
    if let Some(origin) = request.get(ORIGIN) {
        let allowed = HeaderValue::from_static("true");
        headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, allowed));
        headers.push((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
    }
    headers
}

/// All that Faye allows, and whatever headers the page asks for (3.4).
fn preflight(request: &HeaderMap) -> Response {
    const FAYE_HEADERS: &str = "Accept, Authorization, Content-Type, Pragma, X-Requested-With";
    let allowed_headers = match request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        Some(asked) => {
            let both = [FAYE_HEADERS.as_bytes(), b", ", asked.as_bytes()].concat();
            HeaderValue::from_bytes(&both).ok()
        }
        None => None,
    };
    let mut response = Response::default();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
    set(ACCESS_CONTROL_ALLOW_METHODS, "POST, GET");
    set(ACCESS_CONTROL_MAX_AGE, "86400");
    set(ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set(ACCESS_CONTROL_ALLOW_HEADERS, FAYE_HEADERS);
    if let Some(allowed) = allowed_headers {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

fn with_headers(mut response: Response, headers: Vec<(HeaderName, HeaderValue)>) -> Response {
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    response
}

fn bad_request() -> Response {
    text(StatusCode::BAD_REQUEST, "Bad request")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_what_is_below_it_and_its_script() {
        for (path, below) in [
            ("/faye", Some("")),
            ("/faye/", Some("/")),
            ("/faye/connect", Some("/connect")),
            ("/faye/x/y.z", Some("/x/y.z")),
            ("/faye.js", Some(".js")),
            ("/fayex", None),
            ("/faye.js.map", None),
            ("/faye.", None),
            ("/fay", None),
            ("/x/faye", None),
        ] {
            assert_eq!(below_mount(path, "/faye"), below, "{path}");
        }
        assert_eq!(below_mount("/anything", ""), Some("/anything"));
        assert_eq!(below_mount("/apps/3/events", ""), None);
    }
}
