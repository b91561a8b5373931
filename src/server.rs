//! Builds everything, listens, serves, drains.

mod reload;
mod status;
mod tls;

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::TryFutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::Filter;
use warp::http::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use warp::http::{HeaderMap, Request, StatusCode, Uri};
use warp::reply::Response;

use crate::apps::AppRegistry;
use crate::backend::{Backend, Memory, Redis, fact_queue, redis};
use crate::broker::Broker;
use crate::config::Config;
use crate::hub::{Hub, Load};
use crate::metrics::{self, CUT_OFFS, CutOff, HTTP_ANSWERS, Page};
use crate::model::AppId;
use crate::model::ids::IdSource;
use crate::transport::http::text;
use crate::transport::outbound::OutboundError;
use crate::transport::peer::{Addresses, Peer, Room, Seat, TrustedProxies};
use crate::transport::receipt::{Connection, Receipted, Receipts};
use crate::transport::websocket::{self, is_websocket_request};
use crate::transport::writer::Flushers;
use crate::webhooks::{self, Webhooks};
use crate::{bayeux, pusher, rest};

pub use reload::Reloader;
use reload::StartedWith;
pub use status::Status;
use status::StatusListener;
use tls::Certificate;

/// How long start-up waits for Redis.
const REDIS_START_TIMEOUT: Duration = Duration::from_secs(3);
/// Facts that may wait for whoever tells the application.
const FACTS_MAX: usize = 65_536;
/// How long an HTTP connection may rest between requests, and the head of a later request take.
/// Libraries expect a kept connection to be there still (`pusher.md` 5.1).
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// What is read ahead of one HTTP connection; also the limit of a request's head.
const HTTP_BUFFER_BYTES: usize = 16 * 1024;

pub struct Server {
    listener: TcpListener,
    tls: Option<(TcpListener, Certificate)>,
    broker: Arc<Broker>,
    pusher: Arc<pusher::Front>,
    fallback: Arc<pusher::Fallback>,
    rest: Arc<rest::Front>,
    bayeux: Arc<bayeux::Front>,
    settings: HttpSettings,
    lives: Lives,
    shutdown_grace: Duration,
    shutdown_spread: Duration,
    webhooks: Option<Webhooks>,
    pub status: Arc<Status>,
    redis: Option<Arc<Redis>>,
    status_listener: Option<StatusListener>,
    reloader: Reloader,
}

/// Why a server cannot start.
#[derive(Debug)]
pub enum StartError {
    Listen(std::io::Error),
    Tls(String),
    Webhooks(webhooks::StartError),
    Bayeux(OutboundError),
}

/// What lives while the server runs.
#[derive(Clone, Default)]
struct Lives {
    /// Every connection, whatever it has become.
    tasks: TaskTracker,
    /// Told to those that speak HTTP.
    stopping: CancellationToken,
}

#[derive(Clone)]
struct HttpSettings {
    /// For the first request of a connection.
    head_timeout: Duration,
    /// A peer that accepts nothing for this long is cut off.
    write_timeout: Duration,
    /// Without a slash at its end; empty for none.
    path_prefix: Arc<str>,
    trusted_proxies: Arc<TrustedProxies>,
    addresses: Addresses,
}

/// In the extensions of a request whose address has as many connections as it may have.
#[derive(Clone, Copy)]
struct OneTooMany;

impl Server {
    /// Listens from now on; serves once run.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let started_with = Arc::new(StartedWith::of(&config));
        let Config {
            server: settings,
            apps,
            bayeux,
            webhooks,
            redis,
            ..
        } = config;
        let listener = TcpListener::bind(settings.listen).await;
        let listener = listener.map_err(StartError::Listen)?;
        let tls = match &settings.tls {
            Some(tls) => {
                let certificate = Certificate::load(tls).map_err(StartError::Tls)?;
                let listener = TcpListener::bind(tls.listen).await;
                Some((listener.map_err(StartError::Listen)?, certificate))
            }
            None => None,
        };
        let status_listener = match settings.metrics_listen {
            Some(address) => {
                let bound = StatusListener::bind(address).await;
                Some(bound.map_err(StartError::Listen)?)
            }
            None => None,
        };
        let lives = Lives::default();
        let flushers = Arc::new(Flushers::start());
        let hub = Arc::new(Hub::new());
        let ids = Arc::new(IdSource::new(
            (RandomState::new().hash_one(()) as u32).max(1),
        ));
        let apps = Arc::new(AppRegistry::new(apps));
        let registry = apps.clone();
        let (fact_sink, facts) = fact_queue(FACTS_MAX);
        let are_logged = tracing::enabled!(target: webhooks::FACTS_LOG, tracing::Level::DEBUG);
        let redis = match redis {
            Some(settings) => {
                let address = listener.local_addr().map_err(StartError::Listen)?;
                let facts = match webhooks.endpoints.is_empty() {
                    true => redis::Facts::Here(fact_sink.clone()),
                    false => {
                        let lines = webhooks::lines(&webhooks.endpoints);
                        redis::Facts::InStreams(fact_sink.clone(), lines)
                    }
                };
                let (hub, ids) = (hub.clone(), ids.clone());
                let redis = Redis::start(settings, address.to_string(), hub, ids, facts);
                // Who comes before Redis is there is served all the same, by this node alone.
                let _ = timeout(REDIS_START_TIMEOUT, redis.connected()).await;
                Some(Arc::new(redis))
            }
            None => None,
        };
        let places = (redis.clone()).map(|redis| -> Arc<dyn webhooks::Places> { redis });
        let webhooks = Webhooks::start(webhooks, apps.clone(), facts, places).await;
        let webhooks = webhooks.map_err(StartError::Webhooks)?;
        let are_wanted = webhooks.as_ref().is_some_and(Webhooks::want_sessions);
        fact_sink.want_sessions(are_logged || are_wanted);
        let fact_sink = match &webhooks {
            Some(webhooks) => webhooks.note(fact_sink),
            None => fact_sink,
        };
        let backend: Arc<dyn Backend> = match &redis {
            Some(redis) => redis.clone(),
            None => Arc::new(Memory::new(hub.clone(), ids.clone(), fact_sink.clone())),
        };
        let broker = Broker::new(hub, backend, fact_sink, ids);
        let pusher = Arc::new(pusher::Front {
            broker: broker.clone(),
            apps: apps.clone(),
            websocket: Arc::new(websocket::Settings {
                ping_after: settings.activity_timeout,
                pong_within: settings.pong_timeout,
                write_timeout: settings.write_timeout,
                inbound_message_bytes_max: settings.inbound_message_bytes_max,
                tasks: lives.tasks.clone(),
                flushers: flushers.clone(),
            }),
            activity_timeout: settings.activity_timeout,
            assume_protocol: settings.assume_protocol,
            outbox_bytes_max: settings.outbox_bytes_max,
        });
        let bayeux = bayeux::Front::start(
            bayeux,
            apps.clone(),
            broker.clone(),
            settings.write_timeout,
            &lives.tasks,
            &flushers,
        )
        .map_err(StartError::Bayeux)?;
        let rest = rest::Front {
            broker: broker.clone(),
            apps,
            request_body_bytes_max: settings.request_body_bytes_max,
        };
        let status = Arc::new(Status::default());
        show(&status, broker.clone(), lives.tasks.clone());
        if let Some(redis) = &redis {
            show_redis(&status, redis);
        }
        tokio::spawn(watch_memory(
            Arc::downgrade(&broker),
            settings.outbox_bytes_total_max,
        ));
        let certificate = tls.as_ref().map(|(_, certificate)| certificate.clone());
        let reloader = Reloader {
            certificate,
            apps: registry,
            started_with,
        };
        Ok(Self {
            redis,
            reloader,
            status,
            status_listener,
            listener,
            tls,
            broker,
            fallback: pusher::Fallback::start(pusher.clone()),
            pusher,
            rest: Arc::new(rest),
            bayeux: Arc::new(bayeux),
            settings: HttpSettings {
                head_timeout: settings.handshake_timeout,
                write_timeout: settings.write_timeout,
                path_prefix: settings.path_prefix.into(),
                trusted_proxies: Arc::new(settings.trusted_proxies),
                addresses: Addresses::new(settings.connections_per_address_max),
            },
            lives,
            shutdown_grace: settings.shutdown_grace,
            shutdown_spread: settings.shutdown_spread,
            webhooks,
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Of the listener for TLS, if there is one.
    pub fn tls_address(&self) -> std::io::Result<Option<SocketAddr>> {
        let listener = self.tls.as_ref().map(|(listener, _)| listener.local_addr());
        listener.transpose()
    }

    /// Takes a new configuration while the server runs.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Of the listener of metrics, if there is one.
    pub fn metrics_address(&self) -> std::io::Result<Option<SocketAddr>> {
        let listener = self.status_listener.as_ref();
        listener.map(StatusListener::address).transpose()
    }

    /// Serves until `shutdown` is there. Then tells every connection to go elsewhere, lets
    /// requests finish, and waits for all to leave, but not longer than the configured grace.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) {
        if let Some(listener) = self.status_listener.take() {
            tokio::spawn(listener.serve(self.status.clone()));
        }
        tokio::select! {
            () = self.accept() => {}
            () = shutdown => {}
        }
        let Self {
            listener,
            tls,
            broker,
            lives,
            shutdown_grace,
            shutdown_spread,
            webhooks,
            status,
            redis,
            ..
        } = self;
        status.stop();
        // First of all, so that nobody comes back to this server.
        drop((listener, tls));
        broker.drain(shutdown_spread).await;
        lives.stopping.cancel();
        lives.tasks.close();
        if timeout(shutdown_grace, lives.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not leave in time");
        }
        if let Some(webhooks) = webhooks {
            if timeout(shutdown_grace, broker.all_have_left())
                .await
                .is_err()
            {
                tracing::warn!("some connections did not leave their channels in time");
            }
            webhooks.stop().await;
        }
        if let Some(redis) = redis {
            redis.leave_cluster().await;
        }
    }

    async fn accept(&self) {
        let (pusher, rest) = (self.pusher.clone(), self.rest.clone());
        let (fallback, bayeux) = (self.fallback.clone(), self.bayeux.clone());
        let routes = routes(pusher, fallback, rest, bayeux, self.status.clone());
        let plain = self.accept_from(&self.listener, None, &routes);
        match &self.tls {
            Some((listener, certificate)) => {
                let encrypted = self.accept_from(listener, Some(certificate), &routes);
                tokio::join!(plain, encrypted);
            }
            None => plain.await,
        }
    }

    async fn accept_from<F>(
        &self,
        listener: &TcpListener,
        certificate: Option<&Certificate>,
        routes: &F,
    ) where
        F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
        F::Future: Send,
    {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    metrics::ACCEPTED.add(1);
                    // An event is worth sending by itself; waiting for more is the outbox's
                    // business.
                    let _ = stream.set_nodelay(true);
                    let (settings, stopping) = (self.settings.clone(), self.lives.stopping.clone());
                    let routes = routes.clone();
                    match certificate {
                        None => {
                            let stream = Connection::Tcp(stream);
                            let served = serve(stream, address, routes, settings, stopping);
                            self.lives.tasks.spawn(served);
                        }
                        Some(certificate) => {
                            let acceptor = certificate.acceptor();
                            self.lives.tasks.spawn(async move {
                                let accepted =
                                    timeout(settings.head_timeout, acceptor.accept(stream));
                                match accepted.await {
                                    Ok(Ok(stream)) => {
                                        let stream = Connection::Tls(Box::new(stream));
                                        serve(stream, address, routes, settings, stopping).await;
                                    }
                                    Ok(Err(error)) => {
                                        tracing::debug!(%address, %error, "no TLS");
                                    }
                                    Err(_) => CUT_OFFS.count(CutOff::HeadTimeout),
                                }
                            });
                        }
                    }
                }
                Err(error) => {
                    // Usually too many open files: others have to close before the next can come.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve<F>(
    stream: Connection,
    address: SocketAddr,
    routes: F,
    settings: HttpSettings,
    stopping: CancellationToken,
) where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let direct = Peer {
        address: address.ip().to_canonical(),
        secure: matches!(stream, Connection::Tls(_)),
    };
    let HttpSettings {
        trusted_proxies,
        addresses,
        ..
    } = settings;
    let seat = Seat::default();
    if !trusted_proxies.contains(direct.address)
        && seat.take(&addresses, direct.address) == Room::Crowded
    {
        return CUT_OFFS.count(CutOff::AddressConnections);
    }
    let service = TowerToHyperService::new(warp::service(routes));
    let prefix = settings.path_prefix;
    let receipts = Receipts::default();
    let stream = Receipted::new(
        stream,
        seat.clone(),
        receipts.clone(),
        settings.write_timeout,
    );
    let has_asked = Arc::new(AtomicBool::new(false));
    let asks = has_asked.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let peer = trusted_proxies.peer(direct, request.headers());
        if seat.take(&addresses, peer.address) != Room::Free {
            CUT_OFFS.count(CutOff::AddressConnections);
            request.extensions_mut().insert(OneTooMany);
        }
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(receipts.clone());
        strip_prefix(&mut request, &prefix);
        let answer = hyper::service::Service::call(&service, request);
        answer.inspect_ok(|answer| HTTP_ANSWERS.count(answer.status().as_u16()))
    });
    // A peer that shuts its side down has given its request up: a poll held for it ends at once.
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let mut head_is_due = pin!(sleep(settings.head_timeout));
    let (mut was_due, mut is_stopping) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = &mut served => break ended,
            () = &mut head_is_due, if !was_due => {
                was_due = true;
                if !has_asked.load(Ordering::Relaxed) {
                    CUT_OFFS.count(CutOff::HeadTimeout);
                    return tracing::debug!(%address, "no request in time");
                }
            }
            () = stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "HTTP connection ended");
    }
}

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

/// The whole URL table.
fn routes(
    pusher: Arc<pusher::Front>,
    fallback: Arc<pusher::Fallback>,
    rest: Arc<rest::Front>,
    bayeux: Arc<bayeux::Front>,
    status: Arc<Status>,
) -> impl Filter<Extract = (Response,), Error = Infallible, Future: Send> + Clone + Send + Sync {
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
            let message = "Too many connections from this address";
            let mut refusal = text(StatusCode::TOO_MANY_REQUESTS, message);
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
    // In front of the HTTP API: also on a path of its own a WebSocket is refused as one.
    let nobodys_websocket = warp::header::headers_cloned()
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
        .or(bayeux::routes(bayeux))
        .unify()
        .or(nobodys_websocket)
        .unify()
        .or(rest::routes(rest))
        .unify()
        .or(live)
        .unify()
        .or(ready)
        .unify()
        .or(nobodys)
        .unify()
}

/// Looks at what waits for all connections, the more often the more it is. Ends with the broker.
async fn watch_memory(broker: Weak<Broker>, outbox_bytes_max: usize) {
    let mut waiting = 0;
    loop {
        let interval_ms = if waiting > outbox_bytes_max / 2 {
            50
        } else {
            1000
        };
        sleep(Duration::from_millis(interval_ms)).await;
        let Some(broker) = broker.upgrade() else {
            return;
        };
        waiting = broker.relieve(outbox_bytes_max);
    }
}

/// How it stands with the other nodes. A node without Redis stays ready: it serves its clients, and
/// if Redis is away for all nodes, none would be left.
fn show_redis(status: &Status, redis: &Redis) {
    let redis = redis.status();
    let remarked = redis.clone();
    status.remark(move || {
        let is_degraded = remarked.is_degraded();
        is_degraded.then(|| "degraded: Redis is away".to_owned())
    });
    status.show(move |page| {
        page.gauge(
            "raptor_redis_up",
            "1 while events are shared with the other nodes through Redis, else 0.",
            f64::from(u8::from(!redis.is_degraded())),
        );
        page.counter(
            "raptor_redis_events_not_shared_total",
            "Events that other nodes did not get, or perhaps not, because Redis was away.",
            redis.not_shared_count(),
        );
        page.counter(
            "raptor_redis_log_overruns_total",
            "Times that a subscription was away for longer than the log of a partition reaches.",
            redis.log_overruns_count(),
        );
    });
}

/// What the channel model can tell when somebody asks.
fn show(status: &Status, broker: Arc<Broker>, tasks: TaskTracker) {
    status.show(move |page| {
        let name = "raptor_connections";
        page.family(
            name,
            "gauge",
            "Connections of Pusher clients and sessions of Bayeux clients.",
        );
        let connections = broker.connections().into_iter();
        per_app(
            page,
            name,
            connections.map(|(app, count)| (app, count as u64)),
        );
        let loads = broker.loads();
        for (name, help, pick) in [
            (
                "raptor_subscriptions",
                "Subscriptions to channels on this node.",
                (|load| load.subscriptions) as fn(&Load) -> u64,
            ),
            (
                "raptor_channels",
                "Channels with subscribers on this node.",
                |load| load.channels,
            ),
        ] {
            page.family(name, "gauge", help);
            per_app(
                page,
                name,
                loads.iter().map(|(app, load)| (app.clone(), pick(load))),
            );
        }
        page.gauge(
            "raptor_outbox_bytes",
            "What waits for slow connections; an event that several wait for counts as often.",
            broker.outbox_bytes() as f64,
        );
        page.gauge(
            "raptor_open_connections",
            "Connections open on the listeners, whatever they are used for.",
            tasks.len() as f64,
        );
        let tasks = tokio::runtime::Handle::try_current();
        let tasks = tasks.map_or(0, |runtime| runtime.metrics().num_alive_tasks());
        page.gauge(
            "raptor_tasks",
            "Tasks of the asynchronous runtime.",
            tasks as f64,
        );
    });
}

/// One sample for each app, the largest first; beyond so many they are one.
fn per_app(page: &mut Page, name: &str, values: impl Iterator<Item = (AppId, u64)>) {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let others = values.split_off(values.len().min(metrics::APP_LABELS_MAX));
    for (app, value) in values {
        page.sample(name, &[("app", app.as_str())], value as f64);
    }
    if !others.is_empty() {
        let sum: u64 = others.iter().map(|(_, value)| value).sum();
        page.sample(name, &[("app", metrics::OTHER_APPS)], sum as f64);
    }
}

impl std::error::Error for StartError {}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tls(error) => f.write_str(error),
            Self::Listen(error) => error.fmt(f),
            Self::Webhooks(error) => error.fmt(f),
            Self::Bayeux(error) => error.fmt(f),
        }
    }
}
