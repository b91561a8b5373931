//! HTTP on a connection, and the URL table.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::http::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use warp::http::{HeaderMap, Request, StatusCode, Uri};
use warp::reply::Response;

use super::Status;
use super::live::Live;
use crate::config::ServerSettings;
use crate::metrics::{CUT_OFFS, CutOff, HTTP_ANSWERS, Limit};
use crate::peers::PassedOn;
use crate::rate::Rate;
use crate::transport::http::{ControlMessages, text};
use crate::transport::peer::{Addresses, Peer, Room, Seat};
use crate::transport::receipt::{Connection, Receipted, Receipts};
use crate::transport::websocket::is_websocket_request;
use crate::{audit, bayeux, pusher, rest};

/// How long an HTTP connection may rest between requests, and the head of a later request take.
/// Libraries expect a kept connection to be there still (`pusher.md` 5.1).
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a new connection has for its first request when the server stops.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);
/// What is read ahead of one HTTP connection; also the limit of a request's head.
const HTTP_BUFFER_BYTES: usize = 16 * 1024;
const TOO_MANY_OF_ADDRESS: &str = "Too many connections from this address";

/// What a request meets. A new configuration makes a new one; connections that are open go on with
/// that one from their next request on.
pub struct Serving {
    pub settings: ServerSettings,
    pub addresses: Addresses,
    api: Arc<rest::Front>,
    bayeux: Arc<bayeux::Front>,
    answer: Answer<Incoming>,
    answer_passed_on: Answer<Full<Bytes>>,
}

/// A URL table, with an answer for everything.
pub trait Table:
    Filter<Extract = (Response,), Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<F> Table for F where
    F: Filter<Extract = (Response,), Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

type Answer<B> = Box<dyn Fn(Request<B>) -> Answering + Send + Sync>;
type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

impl Serving {
    /// `routes` has an answer for everything but the HTTP API and Bayeux's mounts.
    pub fn new(
        settings: ServerSettings,
        addresses: Addresses,
        api: Arc<rest::Front>,
        bayeux: Arc<bayeux::Front>,
        routes: impl Table,
    ) -> Self {
        let service = TowerToHyperService::new(warp::service(routes));
        let passed_on = service.clone();
        Self {
            settings,
            addresses,
            api,
            bayeux,
            answer: Box::new(move |request| answering(service.call(request))),
            answer_passed_on: Box::new(move |request| answering(passed_on.call(request))),
        }
    }

    /// `is_one_too_many`: its address has as many connections as it may have.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: Peer,
        receipts: &Receipts,
        is_one_too_many: bool,
    ) -> Answering {
        let path = request.uri().path();
        let is_of_api = API_PATHS.iter().any(|start| path.starts_with(start));
        if is_of_api && !is_one_too_many && !is_websocket_request(request.headers()) {
            return Box::pin(self.api.clone().answer(request, peer));
        }
        if is_one_too_many {
            request.extensions_mut().insert(OneTooMany);
            return by_table(&self.answer, request, peer, receipts);
        }
        self.answer_by(&self.answer, request, peer, receipts)
    }

    /// Answers a request that another node passed on, after it was checked there.
    pub fn answer_passed_on(
        &self,
        mut request: Request<Full<Bytes>>,
        peer: Peer,
        receipts: &Receipts,
    ) -> Answering {
        request.extensions_mut().insert(PassedOn);
        self.answer_by(&self.answer_passed_on, request, peer, receipts)
    }

    fn answer_by<B>(
        &self,
        table: &Answer<B>,
        request: Request<B>,
        peer: Peer,
        receipts: &Receipts,
    ) -> Answering
    where
        B: Body<Data: Buf + Send, Error: Send> + Send + 'static,
    {
        match self.bayeux.mounted(request.uri().path()) {
            Some(at) => Box::pin(bayeux::answer(at, request, peer, receipts.clone())),
            None => by_table(table, request, peer, receipts),
        }
    }
}

fn by_table<B>(
    table: &Answer<B>,
    mut request: Request<B>,
    peer: Peer,
    receipts: &Receipts,
) -> Answering {
    let extensions = request.extensions_mut();
    extensions.insert(peer);
    extensions.insert(receipts.clone());
    table(request)
}

fn answering(
    answer: impl Future<Output = Result<Response, Infallible>> + Send + 'static,
) -> Answering {
    Box::pin(async move {
        match answer.await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    })
}

/// Serves a connection until it ends, or has become something else.
pub async fn serve(
    connection: Connection,
    direct: Peer,
    live: Arc<Live<Serving>>,
    stopping: CancellationToken,
) {
    let serving = live.get();
    let settings = &serving.settings;
    let address = direct.address;
    let seat = Seat::default();
    if !settings.trusted_proxies.contains(address)
        && seat.take(&serving.addresses, address) == Room::Crowded
    {
        return count_crowded(address);
    }
    let receipts = Receipts::default();
    let stream = Receipted::new(
        connection,
        seat.clone(),
        receipts.clone(),
        settings.write_timeout,
    );
    let has_asked = Arc::new(Asked::default());
    let asks = has_asked.clone();
    let head_timeout = settings.handshake_timeout;
    drop(serving);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let asks = asks.clone();
        asks.note();
        let serving = live.get();
        let settings = &serving.settings;
        let peer = settings.trusted_proxies.peer(direct, request.headers());
        let is_one_too_many = seat.take(&serving.addresses, peer.address) != Room::Free;
        if is_one_too_many {
            count_crowded(peer.address);
        }
        strip_prefix(&mut request, &settings.path_prefix);
        let is_by_proxy = peer.address != address;
        let answer = serving.answer(request, peer, &receipts, is_one_too_many);
        async move {
            let answer = answer.await;
            if is_refusal(answer.status()) {
                // Boxed, because few requests need the room.
                Box::pin(serving.addresses.refuse(peer.address)).await;
            }
            // A proxy's connection serves many, of whom one must not slow the others.
            if !is_by_proxy {
                asks.note_control_messages(&answer);
            }
            HTTP_ANSWERS.count(answer.status().as_u16());
            Ok::<_, Infallible>(answer)
        }
    });
    // A peer that shuts its side down has given its request up: a poll held for it ends at once.
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    // How many there may be, the answers say.
    let mut control_messages = Rate::per_sec(usize::MAX);
    let mut head_is_due = pin!(sleep(head_timeout));
    let (mut was_due, mut is_stopping) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = turn(served.as_mut(), &has_asked) => match ended {
                Some(ended) => break ended,
                None => {
                    if let Some(new) = has_asked.take_control_messages() {
                        control_messages.change(new.per_sec_max);
                        control_messages.pace(new.count, Limit::ControlMessages).await;
                    }
                    give_way().await;
                }
            },
            () = &mut head_is_due, if !was_due => {
                was_due = true;
                if !has_asked.is_true() {
                    CUT_OFFS.count(CutOff::HeadTimeout);
                    return tracing::debug!(%address, "no request in time");
                }
            }
            () = to_stop(&stopping, &has_asked), if !is_stopping => {
                is_stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "HTTP connection ended");
    }
}

/// What has a limit of its own is not counted against its address too.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS
}

/// This address has as many connections as it may have.
fn count_crowded(address: IpAddr) {
    let stranger = audit::Stranger {
        address: Some(address),
        ..audit::Stranger::default()
    };
    stranger.refused(TOO_MANY_OF_ADDRESS);
    CUT_OFFS.count(CutOff::AddressConnections);
}

/// The server stops, and so may a connection: its first request may be on its way, and is answered.
async fn to_stop(stopping: &CancellationToken, has_asked: &Asked) {
    stopping.cancelled().await;
    let _ = timeout(FIRST_REQUEST_WITHIN, has_asked.becomes_true()).await;
}

/// Serves until the connection has ended, or others should have their turn: hyper answers requests
/// that are there already one after the other, and wakes itself for more. `None` also when there were
/// control messages.
async fn turn<S: Future>(mut served: Pin<&mut S>, asked: &Asked) -> Option<S::Output> {
    poll_fn(|cx| {
        let before = asked.times();
        match served.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if asked.times() > before + 1 || asked.has_control_messages() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Lets others run, and has the runtime look for those who woke up meanwhile.
async fn give_way() {
    // A wake-up that is due already ends the first.
    yield_now().await;
    yield_now().await;
}

/// What there was on a connection.
#[derive(Default)]
struct Asked {
    requests: AtomicUsize,
    /// Those that were not paced yet.
    control_messages: Mutex<Option<ControlMessages>>,
    becomes_true: Notify,
}

impl Asked {
    fn note(&self) {
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            self.becomes_true.notify_waiters();
        }
    }

    fn note_control_messages(&self, answer: &Response) {
        if let Some(new) = answer.extensions().get::<ControlMessages>() {
            let mut noted = self.control_messages();
            let count = noted.map_or(0, |before| before.count) + new.count;
            *noted = Some(ControlMessages { count, ..*new });
        }
    }

    fn take_control_messages(&self) -> Option<ControlMessages> {
        self.control_messages().take()
    }

    fn has_control_messages(&self) -> bool {
        self.control_messages().is_some()
    }

    fn control_messages(&self) -> MutexGuard<'_, Option<ControlMessages>> {
        (self.control_messages.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    fn is_true(&self) -> bool {
        self.times() > 0
    }

    async fn becomes_true(&self) {
        let becomes_true = self.becomes_true.notified();
        if !self.is_true() {
            becomes_true.await;
        }
    }
}

/// In the extensions of a request whose address has as many connections as it may have.
#[derive(Clone, Copy)]
struct OneTooMany;

/// Everything is served with the configured prefix and without it; nothing below knows of it.
fn strip_prefix(request: &mut Request<Incoming>, prefix: &str) {
    let Some(given) = request.uri().path_and_query() else {
        return;
    };
    if let Some(rest) = given.as_str().strip_prefix(prefix)
        && rest.starts_with('/')
        && !prefix.is_empty()
        && let Ok(uri) = Uri::try_from(rest)
    {
        *request.uri_mut() = uri;
    }
}

/// What the HTTP API is below.
const API_PATHS: [&str; 2] = ["/apps/", "/users/"];

/// The URL table of everything else.
pub fn routes(
    pusher: Arc<pusher::Front>,
    fallback: Arc<pusher::Fallback>,
    status: Arc<Status>,
) -> impl Table {
    let pusher = warp::any().map(move || pusher.clone());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let upgrade = warp::ext::optional::<OnUpgrade>();

    let too_many = warp::ext::get::<OneTooMany>()
        .and(warp::header::headers_cloned())
        .and(upgrade)
        .and(pusher.clone())
        .map(|_, headers: HeaderMap, upgrade, front| {
            if is_websocket_request(&headers) {
                return pusher::too_many(front, &headers, upgrade);
            }
            let mut refusal = text(StatusCode::TOO_MANY_REQUESTS, TOO_MANY_OF_ADDRESS);
            let headers = refusal.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            refusal
        });
    let app = warp::path!("app" / String)
        .and(warp::get())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(upgrade)
        .and(pusher.clone())
        .map(
            |key: String, query: String, headers: HeaderMap, peer, upgrade, front| {
                pusher::app_path(front, &key, &query, &headers, peer, upgrade)
            },
        );
    // On whatever path, a WebSocket is refused as one.
    let nobodys_websocket = warp::header::value("upgrade")
        .map(drop)
        .untuple_one()
        .and(warp::header::headers_cloned())
        .and(upgrade)
        .and(pusher)
        .and_then(|headers: HeaderMap, upgrade, front| async move {
            match is_websocket_request(&headers) {
                true => Ok(pusher::any_path(front, &headers, upgrade)),
                false => Err(warp::reject::not_found()),
            }
        });
    let live = warp::path!("livez").and(warp::get()).map(Status::live);
    let ready = warp::path!("readyz")
        .and(warp::get())
        .map(move || status.ready());
    let nobodys = warp::any().map(|| text(StatusCode::NOT_FOUND, "NOT FOUND"));
    (too_many.or(app).unify())
        .or(pusher::routes(fallback))
        .unify()
        .or(nobodys_websocket)
        .unify()
        .or(live)
        .unify()
        .or(ready)
        .unify()
        .or(nobodys)
        .unify()
}
