//! One endpoint: reads the log, composes deliveries, sends each until it arrives or is dead.
//!
//! Endpoints know nothing of each other, so that one that is slow or gone delays only itself. What
//! it holds is bounded: a window of the log, and so many deliveries that are not over.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use super::settings::Endpoint;
use super::store::{Attempt, Delivery, EndpointId, Event, State, Store};
use crate::apps::AppRegistry;
use crate::metrics::{Backlog, WEBHOOK_BACKLOG, WEBHOOKS, Webhook};
use crate::model::now_ms;
use crate::transport::outbound::Outbound;
use crate::wire;

/// Sent with each attempt of a delivery, so that a receiver can tell a repeat.
pub const ID_HEADER: &str = "x-raptor-webhook-id";
const BACKOFF_MAX: Duration = Duration::from_secs(128);
/// To one endpoint at the same time.
const REQUESTS_MAX: usize = 16;
/// Being sent, or waiting to be sent again.
const DELIVERIES_MAX: usize = 256;
/// Of an answer; it is not looked at.
const ANSWER_BYTES_MAX: usize = 65_536;
/// Read from the log at once.
const READ_EVENTS_MAX: usize = 1_000;
/// How often the cursor is written, replays are looked for, and old events are given up.
const TICK: Duration = Duration::from_secs(1);
/// An endpoint that fails is named at most so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// Before a write that has failed is tried again.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What a worker needs beside its endpoint.
#[derive(Clone)]
pub(super) struct Shared {
    pub store: Arc<dyn Store>,
    pub apps: Arc<AppRegistry>,
    /// Changes when the log has grown.
    pub news: watch::Receiver<()>,
    pub stop: CancellationToken,
    pub keep_bodies: bool,
}

pub(super) struct Worker {
    id: EndpointId,
    sender: Arc<Sender>,
    queue: Queue,
    /// Read from the log up to here.
    read: u64,
    /// Events that were read and are not over, with when they happened.
    unfinished: BTreeMap<u64, u64>,
    backlog: Backlog<'static>,
    /// Events behind `read` that are over, or in deliveries, since before the start.
    taken: HashSet<u64>,
    cursor_written: u64,
}

/// Makes the attempts.
struct Sender {
    endpoint: Endpoint,
    outbound: Outbound,
    requests: Semaphore,
    shared: Shared,
    complaints: Mutex<Complaints>,
}

/// Failures, of which not each is worth a line of the log.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    since: usize,
}

impl Worker {
    pub fn new(endpoint: Endpoint, id: EndpointId, outbound: Outbound, shared: Shared) -> Self {
        Self {
            id,
            sender: Arc::new(Sender {
                endpoint,
                outbound,
                requests: Semaphore::new(REQUESTS_MAX),
                shared,
                complaints: Mutex::default(),
            }),
            queue: Queue::default(),
            read: 0,
            unfinished: BTreeMap::new(),
            backlog: WEBHOOK_BACKLOG.one(),
            taken: HashSet::new(),
            cursor_written: 0,
        }
    }

    /// Until told to stop; then ends when no request is under way.
    pub async fn run(mut self) {
        let Shared { store, stop, .. } = self.sender.shared.clone();
        let mut news = self.sender.shared.news.clone();
        let resumed = lasting(|| store.resume(self.id)).await;
        (self.read, self.cursor_written) = (resumed.cursor, resumed.cursor);
        self.taken = resumed.taken.into_iter().collect();
        let mut running = FuturesUnordered::new();
        for delivery in resumed.pending {
            self.begins(&delivery);
            running.push(self.sender.clone().deliver(delivery));
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_news = true;
        loop {
            while has_news && self.queue.has_room() {
                has_news = self.fill().await;
            }
            let mut begun = Vec::new();
            while running.len() + begun.len() < DELIVERIES_MAX {
                let events = self.queue.compose(self.sender.endpoint.batch_events_max);
                match self.delivery(&events, State::Pending) {
                    Some(delivery) => begun.push(delivery),
                    None => break,
                }
            }
            let begun = self.begin(begun).await;
            for delivery in begun.iter().cloned() {
                running.push(self.sender.clone().deliver(delivery));
            }
            tokio::select! {
                Some(delivery) = running.next() => self.is_over(&delivery),
                Ok(()) = news.changed() => has_news = true,
                _ = tick.tick() => {
                    self.give_up_the_old().await;
                    self.write_cursor().await;
                    for delivery in self.replayed(DELIVERIES_MAX.saturating_sub(running.len())).await {
                        running.push(self.sender.clone().deliver(delivery));
                    }
                }
                () = stop.cancelled() => break,
            }
        }
        while let Some(delivery) = running.next().await {
            self.is_over(&delivery);
        }
        self.write_cursor().await;
    }

    /// Whether there may be more to read.
    async fn fill(&mut self) -> bool {
        let Shared { store, .. } = &self.sender.shared;
        let endpoint = &self.sender.endpoint;
        let events = lasting(|| store.read(&endpoint.app, self.read, READ_EVENTS_MAX)).await;
        let may_be_more = events.len() == READ_EVENTS_MAX;
        for event in events {
            self.read = event.seq;
            let is_taken = !self.taken.is_empty() && self.taken.remove(&event.seq);
            if !is_taken && endpoint.wants(&event.name, &event.channel) {
                self.unfinished.insert(event.seq, event.at_ms);
                self.queue.push(event);
            }
        }
        may_be_more
    }

    /// `None` without events.
    fn delivery(&self, events: &[Event], state: State) -> Option<Delivery> {
        let newest = events.iter().map(|event| event.at_ms).max()?;
        let mut channels: Vec<_> = events.iter().map(|event| event.channel.clone()).collect();
        channels.sort_unstable();
        channels.dedup();
        let mut delivery = Delivery {
            id: new_id(),
            endpoint: self.id,
            state,
            created_ms: now_ms(),
            expires_ms: newest + self.retry_window_ms(),
            seqs: events.iter().map(|event| event.seq).collect(),
            channels,
            key: String::new(),
            signature: String::new(),
            body: None,
            is_replay: false,
        };
        let events = events.iter().map(|event| &*event.json);
        let body = wire::webhooks::body(delivery.created_ms, events);
        self.sender.sign(&mut delivery, body);
        Some(delivery)
    }

    async fn begin(&mut self, begun: Vec<Delivery>) -> Arc<Vec<Delivery>> {
        let begun = Arc::new(begun);
        if !begun.is_empty() {
            lasting(|| self.sender.shared.store.begin(begun.clone())).await;
        }
        begun
    }

    fn begins(&mut self, delivery: &Delivery) {
        if delivery.is_replay {
            return;
        }
        let happened = delivery.seqs.iter().map(|seq| (*seq, delivery.created_ms));
        self.unfinished.extend(happened);
        for channel in &delivery.channels {
            self.queue.occupy(channel);
        }
    }

    fn is_over(&mut self, delivery: &Delivery) {
        // A delivery that was interrupted by the end goes on at the next start.
        if delivery.state == State::Pending {
            return;
        }
        if delivery.is_replay {
            return;
        }
        for seq in &delivery.seqs {
            self.unfinished.remove(seq);
        }
        for channel in &delivery.channels {
            self.queue.free(channel);
        }
    }

    /// What has waited for the whole window becomes dead letters without an attempt.
    async fn give_up_the_old(&mut self) {
        let oldest = now_ms().saturating_sub(self.retry_window_ms());
        let expired = self.queue.expired(oldest);
        if expired.is_empty() {
            return;
        }
        let dead: Vec<_> = expired
            .chunks(self.sender.endpoint.batch_events_max)
            .filter_map(|events| self.delivery(events, State::Dead))
            .collect();
        let endpoint = &self.sender.endpoint;
        tracing::warn!(app = %endpoint.app, endpoint = endpoint.name, events = expired.len(), "webhook events are dead letters: the endpoint did not take them in time");
        dead.iter()
            .for_each(|_| WEBHOOKS.count(Webhook::DeadLetter));
        self.begin(dead).await;
        for event in &expired {
            self.unfinished.remove(&event.seq);
        }
    }

    fn retry_window_ms(&self) -> u64 {
        self.sender.endpoint.retry_window.as_millis() as u64
    }

    async fn write_cursor(&mut self) {
        let first = self.unfinished.first_key_value();
        self.backlog
            .is(self.unfinished.len(), first.map(|(_, at_ms)| *at_ms));
        let cursor = first.map_or(self.read, |(seq, _)| seq - 1);
        if cursor > self.cursor_written {
            match self.sender.shared.store.advance(self.id, cursor).await {
                Ok(()) => self.cursor_written = cursor,
                Err(error) => tracing::error!(%error, "cannot write to the webhooks' store"),
            }
        }
    }

    async fn replayed(&mut self, deliveries_max: usize) -> Vec<Delivery> {
        let store = &self.sender.shared.store;
        let mut renewed = Vec::new();
        for mut delivery in store
            .replays(self.id, deliveries_max)
            .await
            .unwrap_or_default()
        {
            let Some(body) = delivery.body.take() else {
                continue;
            };
            delivery.created_ms = now_ms();
            delivery.expires_ms = delivery.created_ms + self.retry_window_ms();
            delivery.state = State::Pending;
            delivery.is_replay = true;
            let body =
                wire::webhooks::renewed(&String::from_utf8_lossy(&body), delivery.created_ms);
            self.sender.sign(&mut delivery, body);
            lasting(|| store.renew(delivery.clone())).await;
            renewed.push(delivery);
        }
        renewed
    }
}

impl Sender {
    /// With the app's oldest key (`pusher.md` 6.1).
    fn sign(&self, delivery: &mut Delivery, body: String) {
        if let Some(app) = self.shared.apps.by_id(self.endpoint.app.as_str()) {
            delivery.key = app.keys[0].key.clone();
            delivery.signature = app.keys[0].secret.sign(body.as_bytes());
        }
        delivery.body = Some(Bytes::from(body));
    }

    /// Sends until it has arrived or is dead, or until the server stops. Returns it as it then is.
    async fn deliver(self: Arc<Self>, mut delivery: Delivery) -> Delivery {
        let Shared { store, stop, .. } = &self.shared;
        let mut attempts = 0;
        while !stop.is_cancelled() {
            let permit = tokio::select! {
                permit = self.requests.acquire() => permit,
                () = stop.cancelled() => break,
            };
            let attempt = self.attempt(&delivery).await;
            drop(permit);
            attempts += 1;
            let pause = pause_after(attempts, jitter());
            let next_ms = now_ms() + pause.as_millis() as u64;
            delivery.state = match attempt.status {
                Some(200..=299) => State::Delivered,
                _ if next_ms > delivery.expires_ms => State::Dead,
                _ => State::Pending,
            };
            WEBHOOKS.count(match delivery.state {
                State::Delivered => Webhook::Delivered,
                State::Dead => Webhook::DeadLetter,
                State::Pending | State::Replay => Webhook::Failed,
            });
            self.complain(&delivery, &attempt, attempts);
            let keep_body = delivery.state != State::Delivered || self.shared.keep_bodies;
            lasting(|| store.attempted(&delivery.id, attempt.clone(), delivery.state, keep_body))
                .await;
            if delivery.state != State::Pending {
                break;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        delivery
    }

    fn complain(&self, delivery: &Delivery, attempt: &Attempt, attempts: u32) {
        let Endpoint { app, name, .. } = &self.endpoint;
        let why = match (&attempt.status, &attempt.error) {
            (_, Some(error)) => error.clone(),
            (status, None) => format!("it answered {}", status.unwrap_or_default()),
        };
        match delivery.state {
            State::Delivered => {}
            State::Dead => {
                tracing::warn!(%app, endpoint = name, id = delivery.id, attempts, "a webhook is a dead letter: {why}");
            }
            _ => {
                tracing::debug!(%app, endpoint = name, id = delivery.id, attempts, "a webhook will be sent again: {why}");
                let complaints = self.complaints.lock();
                let mut complaints = complaints.unwrap_or_else(PoisonError::into_inner);
                complaints.since += 1;
                if complaints
                    .last
                    .is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL)
                {
                    let failed = std::mem::take(&mut complaints.since);
                    complaints.last = Some(Instant::now());
                    tracing::warn!(%app, endpoint = name, failed, "webhooks do not arrive and are sent again: {why}");
                }
            }
        }
    }

    async fn attempt(&self, delivery: &Delivery) -> Attempt {
        let (at_ms, started) = (now_ms(), Instant::now());
        let (status, error) = match self.request(delivery) {
            // The app has been taken out of the configuration meanwhile.
            _ if delivery.key.is_empty() => (None, Some("the app is not there".to_owned())),
            Ok(request) => {
                let timeout = self.endpoint.timeout;
                let exchanged = self.outbound.exchange(request, timeout, ANSWER_BYTES_MAX);
                match exchanged.await {
                    Ok((status, _)) => (Some(status.as_u16()), None),
                    Err(error) => (None, Some(error.to_string())),
                }
            }
            Err(error) => (None, Some(error.to_string())),
        };
        Attempt {
            at_ms,
            took_ms: started.elapsed().as_millis() as u64,
            status,
            error,
        }
    }

    /// The media type stands alone: Node compares it as a whole (`pusher.md` 6.1).
    fn request(&self, delivery: &Delivery) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let body = delivery.body.clone().unwrap_or_default();
        let mut request = Request::post(&self.endpoint.url)
            .header("X-Pusher-Key", &delivery.key)
            .header("X-Pusher-Signature", &delivery.signature)
            .header(ID_HEADER, &delivery.id)
            .body(Full::from(body))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("raptor/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &self.endpoint.headers {
            headers.insert(name, value.clone());
        }
        Ok(request)
    }
}

/// Until it succeeds: an event is not given up because a disk is full for a while.
pub(super) async fn lasting<T, F>(mut write: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, super::StoreError>>,
{
    loop {
        match write().await {
            Ok(value) => return value,
            Err(error) => tracing::error!(%error, "the webhooks' store fails; trying again"),
        }
        sleep(STORE_PAUSE).await;
    }
}

/// 1, 2, 4 … 128 s, up to a quarter more or less. `jitter`: 0 to 1.
fn pause_after(attempts: u32, jitter: f64) -> Duration {
    let doubled = Duration::from_secs(1 << (attempts - 1).min(7)).min(BACKOFF_MAX);
    doubled.mul_f64(0.75 + jitter / 2.0)
}

fn jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

pub(super) fn new_id() -> String {
    // Two repeats of one id would be taken for one delivery: without randomness, time must do.
    let random = || getrandom::u64().unwrap_or_else(|_| now_ms());
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_by_a_quarter() {
        let secs = |jitter| (1..=10).map(move |n| pause_after(n, jitter).as_secs_f64());
        let plain: Vec<_> = secs(0.5).collect();
        assert_eq!(plain, [1., 2., 4., 8., 16., 32., 64., 128., 128., 128.]);
        assert!(secs(0.0).eq(plain.iter().map(|secs| secs * 0.75)));
        assert!(secs(1.0).eq(plain.iter().map(|secs| secs * 1.25)));
        assert!(secs(0.5).take(8).sum::<f64>() < Endpoint::RETRY_WINDOW.as_secs_f64());
    }

    #[test]
    fn an_id_is_of_hex_digits_and_new() {
        let (one, other) = (new_id(), new_id());
        assert_ne!(one, other);
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
