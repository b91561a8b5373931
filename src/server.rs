//! Builds everything, listens, serves, drains.

mod http;
mod listen;
mod live;
mod reload;
mod status;
mod tls;

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{FutureExt, join_all};
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apps::AppRegistry;
use crate::backend::{Backend, Memory, Redis, fact_queue, redis};
use crate::broker::Broker;
use crate::config::{Config, Problem, Problems, ServerSettings};
use crate::hub::{Hub, Load};
use crate::metrics::{self, CUT_OFFS, CutOff, Page};
use crate::model::ids::IdSource;
use crate::model::{AppId, since_1970};
use crate::peers::Peers;
use crate::transport::outbound::OutboundError;
use crate::transport::peer::Addresses;
use crate::transport::socket::Socket;
use crate::transport::websocket;
use crate::transport::writer::Flushers;
use crate::webhooks::{self, Target, Targets, Webhooks};
use crate::{bayeux, pusher, rest};

use http::{Serving, routes, serve};
use listen::{Greeting, Listener};
use live::Live;
pub use reload::Reloader;
use reload::StartedWith;
pub use status::Status;
use status::StatusListener;
use tls::Certificate;

/// How long start-up waits for Redis.
const REDIS_START_TIMEOUT: Duration = Duration::from_secs(3);
/// Facts that may wait for whoever tells the application.
const FACTS_MAX: usize = 65_536;

pub struct Server {
    listeners: Vec<Listener>,
    status_listener: Option<StatusListener>,
    serving: Arc<Live<Serving>>,
    broker: Arc<Broker>,
    lives: Lives,
    webhooks: Option<Webhooks>,
    pub status: Arc<Status>,
    redis: Option<Arc<Redis>>,
    peers: Option<Arc<Peers>>,
    reloader: Reloader,
}

/// Why a server cannot start.
#[derive(Debug)]
pub enum StartError {
    Listen(std::io::Error),
    Tls(Problem),
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

/// What front ends are made of, again and again.
struct Rooms {
    broker: Arc<Broker>,
    apps: Arc<AppRegistry>,
    kept: pusher::Kept,
    bayeux: Arc<bayeux::Front>,
    status: Arc<Status>,
    tasks: TaskTracker,
    flushers: Arc<Flushers>,
}

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
        let listeners = listen(&settings).await?;
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
        let (fact_sink, facts) = fact_queue(FACTS_MAX);
        let targets = Target::all(&webhooks.endpoints).map_err(StartError::Webhooks)?;
        let targets = Arc::new(Targets::new(targets, fact_sink.clone()));
        // What is in Redis is for those who read it there.
        let is_dispatching = redis.is_none() || !webhooks.endpoints.is_empty();
        let redis = match redis {
            Some(settings) => {
                let address = plain_address(&listeners).map_err(StartError::Listen)?;
                let facts = match is_dispatching {
                    true => {
                        let lines = webhooks::lines(targets.clone());
                        redis::Facts::InStreams(fact_sink.clone(), lines)
                    }
                    false => redis::Facts::Here(fact_sink.clone()),
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
        let webhooks = match is_dispatching {
            true => {
                let of = Webhooks::start(webhooks, targets.clone(), apps.clone(), facts, places);
                Some(of.await.map_err(StartError::Webhooks)?)
            }
            false => {
                tokio::spawn(webhooks::log_facts(facts));
                None
            }
        };
        let fact_sink = match &webhooks {
            Some(webhooks) => webhooks.note(fact_sink),
            None => fact_sink,
        };
        let backend: Arc<dyn Backend> = match &redis {
            Some(redis) => redis.clone(),
            None => Arc::new(Memory::new(hub.clone(), ids.clone(), fact_sink.clone())),
        };
        let broker = Broker::new(hub, backend, fact_sink, ids);
        let peers = redis.clone().map(Peers::new);
        let bayeux = bayeux::Front::start(
            bayeux,
            apps.clone(),
            broker.clone(),
            peers.clone(),
            settings.write_timeout,
            &lives.tasks,
            &flushers,
        )
        .map_err(StartError::Bayeux)?;
        let bayeux = Arc::new(bayeux);
        let status = Arc::new(Status::default());
        show(&status, broker.clone(), lives.tasks.clone());
        if let Some(redis) = &redis {
            show_redis(&status, redis);
        }
        let kept = pusher::Kept::new(peers.clone());
        let shown = kept.clone();
        status.show(move |page| shown.show(page));
        let rooms = Rooms {
            broker: broker.clone(),
            apps,
            kept: kept.clone(),
            bayeux: bayeux.clone(),
            status: status.clone(),
            tasks: lives.tasks.clone(),
            flushers,
        };
        let addresses = Addresses::new(settings.address_limits);
        let serving = Arc::new(Live::new(rooms.serve(settings, addresses)));
        tokio::spawn(watch_memory(Arc::downgrade(&broker), serving.clone()));
        if let Some(peers) = &peers {
            let shown = peers.clone();
            status.show(move |page| shown.show(page));
            let passed_on = serving.clone();
            let serve = move |request, peer, receipts: &_| {
                passed_on.get().answer_passed_on(request, peer, receipts)
            };
            peers.start(vec![bayeux, Arc::new(kept)], Box::new(serve));
        }
        let mut certificates = listeners
            .iter()
            .filter_map(|of| of.greeting.certificate.clone());
        let reloader = Reloader {
            certificate: certificates.next(),
            rooms: Arc::new(rooms),
            serving: serving.clone(),
            targets,
            started_with,
        };
        Ok(Self {
            listeners,
            status_listener,
            serving,
            broker,
            lives,
            webhooks,
            status,
            redis,
            peers,
            reloader,
        })
    }

    /// Of the plain listener.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        plain_address(&self.listeners)
    }

    /// Of the listener for TLS, if there is one.
    pub fn tls_address(&self) -> std::io::Result<Option<SocketAddr>> {
        let mut tls = (self.listeners.iter()).filter(|of| of.greeting.certificate.is_some());
        tls.next().map_or(Ok(None), Listener::address)
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
        self.accept_who_came();
        let Self {
            listeners,
            serving,
            broker,
            lives,
            webhooks,
            status,
            redis,
            peers,
            ..
        } = self;
        status.stop();
        // First of all, so that nobody comes back to this server.
        drop(listeners);
        let settings = &serving.get().settings;
        let shutdown_grace = settings.shutdown_grace;
        let spread = settings.shutdown_spread;
        let moving = peers.as_ref().map(|peers| peers.leave(spread));
        if moving.is_some() {
            // What a client asks for next is better asked where its session goes.
            lives.stopping.cancel();
        }
        broker.drain(spread, moving).await;
        lives.stopping.cancel();
        lives.tasks.close();
        if timeout(shutdown_grace, lives.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not leave in time");
        }
        if let Some(peers) = peers {
            peers.finish(shutdown_grace).await;
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
        let accepting = self.listeners.iter().map(|from| self.accept_from(from));
        join_all(accepting).await;
    }

    async fn accept_from(&self, listener: &Listener) {
        loop {
            match listener.accept().await {
                Ok(accepted) => self.receive(listener, accepted),
                Err(error) => {
                    // Usually too many open files: others have to close before the next can come.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Server {
    /// Takes whoever came before the listeners close: the kernel would send them away.
    fn accept_who_came(&self) {
        for listener in &self.listeners {
            // Unconstrained: tokio lets a task accept only some at a time.
            while let Some(Ok(accepted)) = unconstrained(listener.accept()).now_or_never() {
                self.receive(listener, accepted);
            }
        }
    }

    fn receive(&self, listener: &Listener, (socket, address): (Socket, IpAddr)) {
        metrics::ACCEPTED.add(1);
        let (live, stopping) = (self.serving.clone(), self.lives.stopping.clone());
        let greeting = listener.greeting.clone();
        (self.lives.tasks).spawn(receive(socket, address, greeting, live, stopping));
    }
}

/// A new connection, until it ends or has become something else.
async fn receive(
    socket: Socket,
    address: IpAddr,
    greeting: Greeting,
    live: Arc<Live<Serving>>,
    stopping: CancellationToken,
) {
    let serving = live.get();
    let settings = &serving.settings;
    // Boxed, so that it takes no room in the task afterwards.
    let met = Box::pin(greeting.meet(socket, address, &settings.trusted_proxies));
    let met = timeout(settings.handshake_timeout, met).await;
    drop(serving);
    match met {
        Ok(Some((connection, peer))) => serve(connection, peer, live, stopping).await,
        Ok(None) => {}
        Err(_) => CUT_OFFS.count(CutOff::HeadTimeout),
    }
}

/// What a valid configuration has wrong all the same: files that cannot be used.
pub fn check_files(config: &Config) -> Result<(), Problems> {
    let tls = config.server.tls.as_ref();
    let mut problems = tls.map_or_else(Vec::new, tls::problems);
    if let Some(unix) = &config.server.unix
        && !unix.listen.value.parent().is_some_and(Path::is_dir)
    {
        problems.push(Problem {
            site: unix.listen.site.clone(),
            what: format!("{} is in no directory", unix.listen.value.display()),
            mend: "make the directory, or write the path of a socket in another one".to_owned(),
        });
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Problems(problems)),
    }
}

/// The plain one first.
async fn listen(settings: &ServerSettings) -> Result<Vec<Listener>, StartError> {
    let greeting = Greeting {
        certificate: None,
        proxy_protocol: settings.proxy_protocol,
    };
    let plain = Listener::tcp(settings.listen, greeting).await;
    let mut listeners = vec![plain.map_err(StartError::Listen)?];
    if let Some(tls) = &settings.tls {
        let certificate = Certificate::load(tls).map_err(StartError::Tls)?;
        let greeting = Greeting {
            certificate: Some(certificate),
            proxy_protocol: tls.proxy_protocol,
        };
        let listener = Listener::tcp(tls.listen.value, greeting).await;
        listeners.push(listener.map_err(StartError::Listen)?);
    }
    #[cfg(unix)]
    if let Some(unix) = &settings.unix {
        listeners.push(Listener::unix(unix).map_err(StartError::Listen)?);
    }
    Ok(listeners)
}

fn plain_address(listeners: &[Listener]) -> std::io::Result<SocketAddr> {
    let plain = listeners[0].address()?;
    plain.ok_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())
}

impl Rooms {
    /// What requests meet by these settings.
    fn serve(&self, settings: ServerSettings, addresses: Addresses) -> Serving {
        let (broker, apps) = (self.broker.clone(), self.apps.clone());
        let pusher = Arc::new(pusher::Front {
            broker: broker.clone(),
            apps: apps.clone(),
            websocket: Arc::new(websocket::Settings {
                ping_after: settings.activity_timeout,
                pong_within: settings.pong_timeout,
                write_timeout: settings.write_timeout,
                inbound_message_bytes_max: settings.inbound_message_bytes_max,
                tasks: self.tasks.clone(),
                flushers: self.flushers.clone(),
            }),
            activity_timeout: settings.activity_timeout,
            assume_protocol: settings.assume_protocol,
            outbox_bytes_max: settings.outbox_bytes_max,
            http_sessions_max: settings.http_sessions_max,
        });
        let api = Arc::new(rest::Front {
            broker,
            apps,
            request_body_bytes_max: settings.request_body_bytes_max,
            wants_client_certificate: (settings.tls.as_ref())
                .is_some_and(|tls| tls.api_client_ca.is_some()),
            clock: || since_1970().as_secs(),
        });
        let fallback = pusher::Fallback::start(pusher.clone(), &self.kept);
        let routes = routes(pusher, fallback, self.status.clone());
        Serving::new(settings, addresses, api, self.bayeux.clone(), routes)
    }
}

/// Looks at what waits for all connections, the more often the more it is. Ends with the broker.
async fn watch_memory(broker: Weak<Broker>, serving: Arc<Live<Serving>>) {
    let mut waiting = 0;
    loop {
        let outbox_bytes_max = serving.get().settings.outbox_bytes_total_max;
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
            Self::Tls(problem) => problem.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::Webhooks(error) => error.fmt(f),
            Self::Bayeux(error) => error.fmt(f),
        }
    }
}
