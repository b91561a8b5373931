//! What a running server says of itself: whether it is alive, whether it is ready, and its
//! metrics, on a listener of their own. The first two are answered on every listener.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::http::{Method, Request, StatusCode};
use warp::reply::Response;

use crate::metrics::{self, Page};
use crate::transport::http::text;

/// A scrape takes milliseconds; who needs longer than this is no monitoring system.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections to the listener of metrics at the same time.
const CONNECTIONS_MAX: usize = 32;

type Reading = Box<dyn Fn(&mut Page) + Send + Sync>;
type Remark = Box<dyn Fn() -> Option<String> + Send + Sync>;
type Condition = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Whoever has something to show or may be unfit for service says so here once.
#[derive(Default)]
pub struct Status {
    readings: Mutex<Vec<Reading>>,
    conditions: Mutex<Vec<Condition>>,
    remarks: Mutex<Vec<Remark>>,
    stopping: AtomicBool,
}

impl Status {
    /// `read` prints families of metrics whenever somebody asks: what it costs, a scrape costs.
    pub fn show(&self, read: impl Fn(&mut Page) + Send + Sync + 'static) {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.push(Box::new(read));
    }

    /// `check` says why no new client should be sent here, if so.
    pub fn require(&self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let conditions = self.conditions.lock();
        let mut conditions = conditions.unwrap_or_else(PoisonError::into_inner);
        conditions.push(Box::new(check));
    }

    /// `remark` says what is wrong though the server is ready.
    pub fn remark(&self, remark: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let mut remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        remarks.push(Box::new(remark));
    }

    /// From now on the server is not ready any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The process serves requests: what a supervisor restarts it for, if not.
    pub fn live() -> Response {
        uncached(text(StatusCode::OK, "alive"))
    }

    /// 503 with the reason while no new client should be sent here.
    pub fn ready(&self) -> Response {
        let response = match self.unfit() {
            None => text(StatusCode::OK, &self.ready_text()),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        };
        uncached(response)
    }

    fn ready_text(&self) -> String {
        let remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        let remarks: Vec<_> = remarks.iter().filter_map(|remark| remark()).collect();
        match remarks.is_empty() {
            true => "ready".to_owned(),
            false => format!("ready, {}", remarks.join("; ")),
        }
    }

    fn unfit(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        let conditions = self.conditions.lock();
        let conditions = conditions.unwrap_or_else(PoisonError::into_inner);
        conditions.iter().find_map(|check| check().err())
    }

    fn metrics(&self) -> Response {
        let mut page = Page::default();
        let ready = f64::from(self.unfit().is_none());
        page.family("raptor_info", "gauge", "The version of this server.");
        page.sample(
            "raptor_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1.0,
        );
        page.gauge(
            "raptor_ready",
            "Whether new clients should come here.",
            ready,
        );
        metrics::counted(&mut page);
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        for read in &*readings {
            read(&mut page);
        }
        drop(readings);
        metrics::process(&mut page);
        let mut response = Response::new(page.into_text().into());
        let content_type = HeaderValue::from_static(Page::CONTENT_TYPE);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    fn answer(&self, request: &Request<Incoming>) -> Response {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
        }
        match request.uri().path() {
            "/metrics" => self.metrics(),
            "/livez" => Self::live(),
            "/readyz" => self.ready(),
            _ => text(StatusCode::NOT_FOUND, "NOT FOUND"),
        }
    }
}

fn uncached(mut response: Response) -> Response {
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

/// The listener of metrics. It goes on while the server drains.
pub struct StatusListener(TcpListener);

impl StatusListener {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let bound = TcpListener::bind(address).await;
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{address} for metrics: {error}"))
        };
        bound.map(Self).map_err(named)
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    pub async fn serve(self, status: Arc<Status>) {
        let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok((stream, _)) = self.0.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            if let Ok(place) = places.clone().try_acquire_owned() {
                let status = status.clone();
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, serve(stream, status)).await;
                    drop(place);
                });
            }
        }
    }
}

async fn serve(stream: TcpStream, status: Arc<Status>) {
    let service = service_fn(move |request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(status.answer(&request)))
    });
    // A monitoring system that is here every few seconds may as well connect anew.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
