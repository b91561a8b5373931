//! Connections for their own sake: what an idle one costs, and how fast they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::client::patiently;
use super::publishing::{Failures, open_all, watch};
use super::report::Report;
use super::subscriber::{Subscriber, Transport};
use super::tally::{Faults, Tally, lock};
use super::{BenchError, Stage};

/// After the last connection, until the server's memory is looked at.
const SETTLING: Duration = Duration::from_secs(2);

/// Connections with one subscription each, and silence.
#[derive(Clone, Debug)]
pub struct Idle {
    pub connections: usize,
    /// All connections on one channel, or each on its own.
    pub one_channel: bool,
    pub secs: u64,
}

impl Idle {
    pub(super) async fn run(self, stage: &Stage, report: &mut Report) -> Result<(), BenchError> {
        let tally = Tally::new(1);
        let target = stage.target.clone();
        let open = |nth: usize| {
            let (target, tally) = (target.clone(), tally.clone());
            let name = match self.one_channel {
                true => "idle".to_owned(),
                false => format!("idle-{nth}"),
            };
            async move {
                let channel = target.channel(&name);
                let client = Subscriber::open(&target, Transport::WebSocket, &channel).await?;
                let ear = tally.listen(0);
                tokio::spawn(client.listen(tally, ear));
                Ok(())
            }
        };
        // One first, so that what the first client sets up counts for nobody.
        patiently(open(self.connections)).await?;
        let resident_before = stage.resident_kib();
        open_all(stage, self.connections, open).await?;
        tokio::time::sleep(SETTLING).await;
        let cpu_before = stage.cpu_secs();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(self.secs)) => {}
            never = watch(stage, &tally, "idle") => match never {},
        }
        tally.end();
        let cost = stage.cost(cpu_before, resident_before).map(|mut cost| {
            let grown_kib = cost.resident_kib_after.saturating_sub(resident_before);
            let bytes = grown_kib as f64 * 1024.0 / self.connections as f64;
            cost.resident_bytes_per_connection = Some(bytes);
            cost
        });
        report.connections = self.connections as u64;
        report.event = "events";
        report.fill(self.secs as f64, 0, &tally, Faults::default(), cost);
        Ok(())
    }
}

/// Connects with a signed private subscription each, as fast as they are answered. All stay until
/// the last has come.
#[derive(Clone, Debug)]
pub struct Storm {
    pub connections: usize,
    pub in_flight: usize,
}

impl Storm {
    pub(super) async fn run(self, stage: &Stage, report: &mut Report) -> Result<(), BenchError> {
        let tally = Tally::new(1);
        let failures = Arc::new(Failures::default());
        let channel = stage.target.private_channel("storm");
        let resident_before = stage.resident_kib();
        let (cpu_before, started) = (stage.cpu_secs(), Instant::now());
        let turn = Arc::new(AtomicUsize::new(0));
        let connected = Arc::new(std::sync::Mutex::new(Vec::new()));
        let workers: Vec<_> = (0..self.in_flight)
            .map(|_| {
                let (target, tally) = (stage.target.clone(), tally.clone());
                let (turn, connected) = (turn.clone(), connected.clone());
                let (failures, channel) = (failures.clone(), channel.clone());
                tokio::spawn(async move {
                    while turn.fetch_add(1, Ordering::Relaxed) < self.connections {
                        let since_us = tally.now_us();
                        let open = Subscriber::open(&target, Transport::WebSocket, &channel);
                        match patiently(open).await {
                            Ok(client) => {
                                tally.took(tally.now_us() - since_us);
                                lock(&connected).push(client);
                            }
                            Err(failure) => {
                                failures.note(Err(failure));
                            }
                        }
                    }
                })
            })
            .collect();
        let all = async {
            for worker in workers {
                let _ = worker.await;
            }
        };
        let progress = async {
            let mut second = tokio::time::interval(Duration::from_secs(1));
            second.tick().await;
            loop {
                second.tick().await;
                stage.tell(&format!("connected: {}", lock(&connected).len()));
            }
        };
        tokio::select! {
            () = all => {}
            () = progress => {}
        }
        let secs = started.elapsed().as_secs_f64();
        let cost = stage.cost(cpu_before, resident_before);
        tally.end();
        let connects = lock(&connected).len() as u64;
        report.connections = connects;
        report.event = "connects";
        report.fill(secs, connects, &tally, Faults::default(), cost);
        failures.tell(report);
        Ok(())
    }
}
