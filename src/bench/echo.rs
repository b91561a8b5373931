//! Client events: pairs of clients of which one speaks and the other hears it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::client::{Failure, WebSocket, is_refusal, refused};
use super::publisher::Sent;
use super::publishing::{Failures, arrive, open_all, schedule, watch};
use super::report::Report;
use super::subscriber::{Subscriber, Transport, hear, pusher_socket, pusher_subscribe_signed};
use super::tally::{Stamp, Tally, lock};
use super::target::{Protocol, Target};
use super::{BenchError, REPEATS_WITHIN, Stage};

#[derive(Clone, Debug)]
pub struct Echo {
    pub pairs: usize,
    /// Of all pairs together. Pusher's protocol allows 10 a second for a connection.
    pub events_per_sec: u32,
    pub secs: u64,
    pub payload_bytes: usize,
}

/// When a pair's speaker is to speak.
type Dues = mpsc::UnboundedSender<u64>;

impl Echo {
    pub(super) async fn run(self, stage: &Stage, report: &mut Report) -> Result<(), BenchError> {
        let tally = Tally::new(self.pairs);
        let sent = Sent::with_lanes(1);
        let failures = Arc::new(Failures::default());
        let speakers: Arc<std::sync::Mutex<Vec<Dues>>> = Arc::default();
        let resident_before = stage.resident_kib();
        open_all(stage, self.pairs, |pair| {
            let (target, tally) = (stage.target.clone(), tally.clone());
            let (sent, failures) = (sent.clone(), failures.clone());
            let (speakers, payload_bytes) = (speakers.clone(), self.payload_bytes);
            async move {
                let (dues, receiver) = mpsc::unbounded_channel();
                let channel = target.private_channel(&pair.to_string());
                let speaker = Speaker::open(&target, pair, &channel).await?;
                let hearer = Subscriber::open(&target, Transport::WebSocket, &channel).await?;
                let ear = tally.listen(pair);
                tokio::spawn(hearer.listen(tally.clone(), ear));
                lock(&speakers).push(dues);
                tokio::spawn(async move {
                    let spoken = speaker.speak(receiver, &sent, payload_bytes).await;
                    // At the end of the run there is nothing more to say.
                    if failures.note(spoken) {
                        tally.connection_ended();
                    }
                });
                Ok(())
            }
        })
        .await?;
        report.connections = 2 * self.pairs as u64;
        report.event = "client events";

        let speakers = std::mem::take(&mut *lock(&speakers));
        let cpu_before = stage.cpu_secs();
        let started_us = tally.now_us();
        let speaking = async {
            let mut dues = schedule(tally.epoch(), self.events_per_sec, self.secs);
            let mut turns = speakers.iter().cycle();
            while let Some(due_us) = dues.recv().await {
                if let Some(speaker) = turns.next() {
                    let _ = speaker.send(due_us);
                }
            }
        };
        tokio::select! {
            () = speaking => {}
            never = watch(stage, &tally, "echo") => match never {},
        }
        let expected = u64::from(self.events_per_sec) * self.secs;
        arrive(&tally, || expected).await;
        let secs = (tally.now_us() - started_us) as f64 / 1e6;
        let cost = stage.cost(cpu_before, resident_before);
        tokio::time::sleep(REPEATS_WITHIN).await;
        tally.end();
        let faults = tally.faults(&sent.lanes());
        report.fill(secs, sent.total(), &tally, faults, cost);
        failures.tell(report);
        Ok(())
    }
}

struct Speaker {
    socket: WebSocket,
    pair: usize,
    /// What stands before the payload and behind it.
    around: (String, &'static str),
    client_id: Option<String>,
}

impl Speaker {
    async fn open(target: &Target, pair: usize, channel: &str) -> Result<Self, Failure> {
        match &target.protocol {
            Protocol::Pusher(app) => {
                let (mut socket, id) = pusher_socket(target).await?;
                pusher_subscribe_signed(&mut socket, app, (&id, channel), None).await?;
                let before = format!(r#"{{"event":"client-bench","channel":"{channel}","data":""#);
                Ok(Self {
                    socket,
                    pair,
                    around: (before, r#""}"#),
                    client_id: None,
                })
            }
            Protocol::Bayeux(_) => {
                // Publishing needs no subscription, but a session has to have one here.
                let elsewhere = format!("{channel}-speaker");
                let opened = Subscriber::open(target, Transport::WebSocket, &elsewhere).await?;
                let Subscriber::Bayeux(socket, id) = opened else {
                    return Err(Failure::Unreadable);
                };
                let before =
                    format!(r#"[{{"channel":"{channel}","clientId":"{id}","id":"4","data":""#);
                Ok(Self {
                    socket,
                    pair,
                    around: (before, r#""}]"#),
                    client_id: Some(id),
                })
            }
        }
    }

    /// Until nothing is due any more and the run is over.
    async fn speak(
        mut self,
        mut dues: mpsc::UnboundedReceiver<u64>,
        sent: &Sent,
        payload_bytes: usize,
    ) -> Result<(), Failure> {
        let mut refusal = None;
        loop {
            let id = self.client_id.as_deref();
            let listen = |text: &[u8], _| {
                let text = String::from_utf8_lossy(text);
                if is_refusal(&text) {
                    refusal = Some(refused(&text));
                }
                false
            };
            tokio::select! {
                due_us = dues.recv() => match due_us {
                    Some(due_us) => {
                        let number = sent.next(0, self.pair);
                        sent.add(0, self.pair);
                        let payload = Stamp { lane: 0, number, due_us }.payload(payload_bytes);
                        let (before, after) = &self.around;
                        self.socket.send(&format!("{before}{payload}{after}")).await?;
                    }
                    None => {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        return Ok(());
                    }
                },
                heard = hear(&mut self.socket, id, listen, || 0) => heard?,
            }
            if let Some(refusal) = refusal.take() {
                return Err(refusal);
            }
        }
    }
}
