//! Publishes over HTTP to channels with subscribers: fan-out, many small channels, long-polling.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};

use super::client::{Failure, patiently};
use super::publisher::{Lane, Sent};
use super::report::Report;
use super::subscriber::{Subscriber, Transport};
use super::tally::{Tally, lock};
use super::target::Protocol;
use super::{BenchError, CONNECTING_AT_ONCE, REPEATS_WITHIN, STALLED_AFTER, Stage};

/// Publishers of an open loop; a server that lets so many wait falls behind its schedule.
const LANES_MAX: usize = 256;
/// Between two looks at what has arrived.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// Open loop: so many events a second, whether the server keeps up or not.
    PerSec(u32),
    /// Closed loop: as many as it takes with so many publishes under way.
    InFlight(usize),
}

#[derive(Clone, Debug)]
pub struct Publishing {
    pub channels: usize,
    /// Of each channel, each on a connection of its own.
    pub subscribers: usize,
    pub pace: Pace,
    pub secs: u64,
    pub payload_bytes: usize,
    /// Whether publishers keep their connection, or open one for each event.
    pub keep_alive: bool,
}

impl Publishing {
    pub(super) async fn run(
        self,
        stage: &Stage,
        transport: Transport,
        report: &mut Report,
    ) -> Result<(), BenchError> {
        if transport == Transport::LongPolling
            && matches!(stage.target.protocol, Protocol::Pusher(_))
        {
            return Err(BenchError::NotIn("Pusher's protocol"));
        }
        let tally = Tally::new(self.channels);
        let names = (0..self.channels).map(|n| stage.target.channel(&n.to_string()));
        let names: Arc<Vec<String>> = Arc::new(names.collect());
        let resident_before = stage.resident_kib();
        self.subscribe(stage, transport, &tally, &names).await?;
        report.connections = tally.subscribers();
        report.event = "publishes";

        let cpu_before = stage.cpu_secs();
        let failures = Arc::new(Failures::default());
        let sent = Arc::new(Sent::default());
        let lane = || {
            Lane::new(
                stage.target.clone(),
                sent.clone(),
                self.keep_alive,
                self.payload_bytes,
            )
        };
        let started_us = tally.now_us();
        let publishing = async {
            match self.pace {
                Pace::InFlight(count) => {
                    let lanes = (0..count).map(|_| lane()).collect();
                    self.closed_loop(lanes, &tally, &names, &failures).await
                }
                Pace::PerSec(rate) => self.open_loop(rate, lane, &tally, &names, &failures).await,
            }
        };
        tokio::select! {
            () = publishing => {}
            never = watch(stage, &tally, "publishing") => match never {},
        }
        let expected = || sent.total() * self.subscribers as u64;
        arrive(&tally, expected).await;
        let secs = (tally.now_us() - started_us) as f64 / 1e6;
        let cost = stage.cost(cpu_before, resident_before);
        tokio::time::sleep(REPEATS_WITHIN).await;
        tally.end();
        let faults = tally.faults(&sent.lanes());
        report.fill(secs, sent.total(), &tally, faults, cost);
        failures.tell(report);
        Ok(())
    }

    async fn subscribe(
        &self,
        stage: &Stage,
        transport: Transport,
        tally: &Arc<Tally>,
        names: &Arc<Vec<String>>,
    ) -> Result<(), Failure> {
        let total = self.channels * self.subscribers;
        let (tally, names, target) = (tally.clone(), names.clone(), stage.target.clone());
        open_all(stage, total, move |nth| {
            let (tally, names, target) = (tally.clone(), names.clone(), target.clone());
            async move {
                let channel = nth % names.len();
                let subscriber = Subscriber::open(&target, transport, &names[channel]).await?;
                let ear = tally.listen(channel);
                tokio::spawn(subscriber.listen(tally, ear));
                Ok(())
            }
        })
        .await
    }

    async fn closed_loop(
        &self,
        lanes: Vec<Lane>,
        tally: &Arc<Tally>,
        names: &Arc<Vec<String>>,
        failures: &Arc<Failures>,
    ) {
        let until = Instant::now() + Duration::from_secs(self.secs);
        let turn = Arc::new(AtomicUsize::new(0));
        let working: Vec<_> = lanes
            .into_iter()
            .map(|mut lane| {
                let (tally, names) = (tally.clone(), names.clone());
                let (failures, turn) = (failures.clone(), turn.clone());
                tokio::spawn(async move {
                    while Instant::now() < until {
                        let channel = turn.fetch_add(1, Ordering::Relaxed) % names.len();
                        let due_us = tally.now_us();
                        let outcome = lane.publish((channel, &names[channel]), due_us).await;
                        if failures.note(outcome) {
                            // A server that refuses everything is not to be flooded.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                })
            })
            .collect();
        for worker in working {
            let _ = worker.await;
        }
    }

    async fn open_loop(
        &self,
        rate: u32,
        lane: impl Fn() -> Lane,
        tally: &Arc<Tally>,
        names: &Arc<Vec<String>>,
        failures: &Arc<Failures>,
    ) {
        let mut dues = schedule(tally.epoch(), rate, self.secs);
        let gate = Arc::new(Semaphore::new(LANES_MAX));
        let resting: Arc<Mutex<Vec<Lane>>> = Arc::default();
        let mut turn = 0;
        while let Some(due_us) = dues.recv().await {
            let Ok(permit) = gate.clone().acquire_owned().await else {
                return;
            };
            let rested = lock(&resting).pop();
            let mut lane = rested.unwrap_or_else(&lane);
            let channel = turn % names.len();
            turn += 1;
            let (names, failures, resting) = (names.clone(), failures.clone(), resting.clone());
            tokio::spawn(async move {
                failures.note(lane.publish((channel, &names[channel]), due_us).await);
                lock(&resting).push(lane);
                drop(permit);
            });
        }
        // All lanes have come home.
        let _ = gate.acquire_many(LANES_MAX as u32).await;
    }
}

/// The times at which events are due, each sent when it is: by a thread that sleeps, as the timers
/// of a runtime are late by up to a millisecond.
pub fn schedule(epoch: Instant, rate: u32, secs: u64) -> mpsc::Receiver<u64> {
    let (sender, receiver) = mpsc::channel(4096);
    let first = Instant::now() + Duration::from_millis(20);
    std::thread::spawn(move || {
        for n in 0..u64::from(rate) * secs {
            let due = first + Duration::from_secs_f64(n as f64 / f64::from(rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let due_us = due.saturating_duration_since(epoch).as_micros() as u64;
            if sender.blocking_send(due_us).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Opens so many clients, some at a time, and tells how far it is. The first failure ends it.
pub async fn open_all<F>(
    stage: &Stage,
    total: usize,
    open: impl Fn(usize) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let gate = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
    let mut opening = tokio::task::JoinSet::new();
    let (mut started, mut done, mut told) = (0, 0, Instant::now());
    while done < total {
        while started < total {
            let Ok(permit) = gate.clone().try_acquire_owned() else {
                break;
            };
            let open = open(started);
            started += 1;
            opening.spawn(async move {
                let outcome = patiently(open).await;
                drop(permit);
                outcome
            });
        }
        match opening.join_next().await {
            Some(Ok(outcome)) => outcome?,
            Some(Err(_)) | None => return Err(Failure::Closed),
        }
        done += 1;
        if told.elapsed() >= Duration::from_secs(1) {
            stage.tell(&format!("connecting: {done} of {total}"));
            told = Instant::now();
        }
    }
    stage.tell(&format!("connected: {total}"));
    // What a server tells about the last who came is not to be mixed with what is measured.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(())
}

/// A line each second.
pub async fn watch(stage: &Stage, tally: &Tally, doing: &str) -> std::convert::Infallible {
    let mut before = tally.received();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    for secs in 1_u64.. {
        second.tick().await;
        let received = tally.received();
        let p99_ms = tally.latencies_us().value_at_quantile(0.99) as f64 / 1000.0;
        let rate = received - before;
        before = received;
        stage.tell(&format!(
            "{doing}: {secs} s, {received} deliveries ({rate}/s), p99 {p99_ms:.2} ms"
        ));
    }
    std::future::pending().await
}

/// Waits until as many have arrived as there should, or nothing comes any more.
pub async fn arrive(tally: &Tally, expected: impl Fn() -> u64) {
    let (mut received, mut since) = (tally.received(), Instant::now());
    while tally.received() < expected() && since.elapsed() < STALLED_AFTER {
        tokio::time::sleep(LOOK).await;
        if tally.received() != received {
            (received, since) = (tally.received(), Instant::now());
        }
    }
}

/// How often it failed, and how the first time.
#[derive(Default)]
pub struct Failures {
    count: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Failures {
    /// Whether it is one.
    pub fn note(&self, outcome: Result<(), Failure>) -> bool {
        let Err(failure) = outcome else {
            return false;
        };
        self.count.fetch_add(1, Ordering::Relaxed);
        lock(&self.first).get_or_insert_with(|| failure.to_string());
        true
    }

    pub fn tell(&self, report: &mut Report) {
        report.failed = self.count.load(Ordering::Relaxed);
        report.first_failure = lock(&self.first).clone();
    }
}
