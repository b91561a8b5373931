//! Builds everything, listens, serves, drains.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::Filter;
use warp::http::{HeaderMap, Request, StatusCode, Uri};
use warp::reply::Response;

use crate::apps::AppRegistry;
use crate::backend::{Memory, fact_queue};
use crate::broker::Broker;
use crate::config::Config;
use crate::hub::Hub;
use crate::model::Fact;
use crate::model::ids::IdSource;
use crate::transport::http::{Peer, text};
use crate::transport::receipt::{Receipted, Receipts};
use crate::transport::websocket::{self, is_websocket_request};
use crate::{bayeux, pusher, rest};

/// Facts that may wait for whoever tells the application.
const FACTS_MAX: usize = 65_536;
/// How long an HTTP connection may rest between requests, and the head of a later request take.
/// Libraries expect a kept connection to be there still (`pusher.md` 5.1).
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// What is read ahead of one HTTP connection; also the limit of a request's head.
const HTTP_BUFFER_BYTES: usize = 16 * 1024;

pub struct Server {
    listener: TcpListener,
    broker: Arc<Broker>,
    pusher: Arc<pusher::Front>,
    fallback: Arc<pusher::Fallback>,
    rest: Arc<rest::Front>,
    bayeux: Arc<bayeux::Front>,
    settings: HttpSettings,
    lives: Lives,
    shutdown_grace: Duration,
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
    /// Without a slash at its end; empty for none.
    path_prefix: Arc<str>,
}

impl Server {
    /// Listens from now on; serves once run.
    pub async fn start(config: Config) -> std::io::Result<Self> {
        let Config {
            server: settings,
            apps,
            bayeux,
            ..
        } = config;
        let listener = TcpListener::bind(settings.listen).await?;
        let lives = Lives::default();
        let hub = Arc::new(Hub::new());
        let ids = Arc::new(IdSource::new(RandomState::new().hash_one(()) as u32));
        let (fact_sink, facts) = fact_queue(FACTS_MAX);
        tokio::spawn(log_facts(facts));
        let backend = Arc::new(Memory::new(hub.clone(), ids.clone(), fact_sink.clone()));
        let broker = Broker::new(hub, backend, fact_sink, ids);
        let apps = Arc::new(AppRegistry::new(apps));
        let pusher = Arc::new(pusher::Front {
            broker: broker.clone(),
            apps: apps.clone(),
            websocket: Arc::new(websocket::Settings {
                ping_after: settings.activity_timeout,
                pong_within: settings.pong_timeout,
                write_timeout: settings.write_timeout,
                inbound_message_bytes_max: settings.inbound_message_bytes_max,
                tasks: lives.tasks.clone(),
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
        );
        let rest = rest::Front {
            broker: broker.clone(),
            apps,
            request_body_bytes_max: settings.request_body_bytes_max,
        };
        Ok(Self {
            listener,
            broker,
            fallback: pusher::Fallback::start(pusher.clone()),
            pusher,
            rest: Arc::new(rest),
            bayeux: Arc::new(bayeux),
            settings: HttpSettings {
                head_timeout: settings.handshake_timeout,
                path_prefix: settings.path_prefix.into(),
            },
            lives,
            shutdown_grace: settings.shutdown_grace,
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is there. Then tells every connection to go elsewhere, lets
    /// requests finish, and waits for all to leave, but not longer than the configured grace.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = self.accept() => {}
            () = shutdown => {}
        }
        let Self {
            listener,
            broker,
            lives,
            shutdown_grace,
            ..
        } = self;
        // First of all, so that nobody comes back to this server.
        drop(listener);
        broker.drain();
        lives.stopping.cancel();
        lives.tasks.close();
        if timeout(shutdown_grace, lives.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not leave in time");
        }
    }

    async fn accept(&self) {
        let (pusher, rest) = (self.pusher.clone(), self.rest.clone());
        let routes = routes(pusher, self.fallback.clone(), rest, self.bayeux.clone());
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let (settings, lives) = (self.settings.clone(), self.lives.clone());
                    let served = serve(stream, address, routes.clone(), settings, lives.stopping);
                    lives.tasks.spawn(served);
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
    stream: TcpStream,
    address: SocketAddr,
    routes: F,
    settings: HttpSettings,
    stopping: CancellationToken,
) where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    // An event is worth sending by itself; waiting for more is the outbox's business.
    let _ = stream.set_nodelay(true);
    let peer = Peer {
        address,
        secure: false,
    };
    let service = TowerToHyperService::new(warp::service(routes));
    let prefix = settings.path_prefix;
    let receipts = Receipts::default();
    let stream = Receipted::new(stream, receipts.clone());
    let has_asked = Arc::new(AtomicBool::new(false));
    let asks = has_asked.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(receipts.clone());
        strip_prefix(&mut request, &prefix);
        hyper::service::Service::call(&service, request)
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
) -> impl Filter<Extract = (Response,), Error = Infallible, Future: Send> + Clone + Send + Sync {
    let pusher = warp::any().map(move || pusher.clone());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let upgrade = warp::ext::optional::<OnUpgrade>();

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
    let nobodys = warp::any().map(|| text(StatusCode::NOT_FOUND, "NOT FOUND"));
    (app.or(pusher::routes(fallback)).unify())
        .or(bayeux::routes(bayeux))
        .unify()
        .or(nobodys_websocket)
        .unify()
        .or(rest::routes(rest))
        .unify()
        .or(nobodys)
        .unify()
}

/// Until something else reads them, facts go to the log, without what they carry.
async fn log_facts(mut facts: mpsc::Receiver<Fact>) {
    while let Some(fact) = facts.recv().await {
        let Fact { channel, kind, .. } = fact;
        tracing::debug!(target: "raptor::facts", app = %channel.app, channel = %channel.name, "{}", kind.name());
    }
}
