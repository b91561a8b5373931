//! Presence churn: members who come and go in front of members who stay.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Failure, WebSocket, patiently};
use super::publisher::Sent;
use super::publishing::{Failures, arrive, open_all, watch};
use super::report::Report;
use super::subscriber::{hear, pusher_socket, pusher_subscribe_signed};
use super::tally::{Ear, Stamp, Tally};
use super::target::{App, Protocol, Target};
use super::{BenchError, REPEATS_WITHIN, Stage};

const CHANNEL: &str = "presence-bench";

#[derive(Clone, Debug)]
pub struct Presence {
    /// Who stay and are told of every join. A channel of Pusher has 100 members.
    pub members: usize,
    /// Who come and go without a pause, each as a new user every time.
    pub churning: usize,
    pub secs: u64,
}

impl Presence {
    pub(super) async fn run(self, stage: &Stage, report: &mut Report) -> Result<(), BenchError> {
        if !matches!(stage.target.protocol, Protocol::Pusher(_)) {
            return Err(BenchError::NotIn("Bayeux"));
        }
        let tally = Tally::new(1);
        let resident_before = stage.resident_kib();
        open_all(stage, self.members, |nth| {
            let (target, tally) = (stage.target.clone(), tally.clone());
            async move {
                let (mut socket, id) = pusher_socket(&target).await?;
                join(&mut socket, &target, &id, &format!("member-{nth}")).await?;
                let ear = tally.listen(0);
                tokio::spawn(async move {
                    let _ended = attend(socket, &tally, &ear).await;
                    tally.connection_ended();
                });
                Ok(())
            }
        })
        .await?;
        report.connections = (self.members + self.churning) as u64;
        report.event = "joins";

        let sent = Sent::with_lanes(self.churning);
        let failures = Arc::new(Failures::default());
        let cpu_before = stage.cpu_secs();
        let started_us = tally.now_us();
        let until = Instant::now() + Duration::from_secs(self.secs);
        let churners: Vec<_> = (0..self.churning)
            .map(|lane| {
                let (target, tally) = (stage.target.clone(), tally.clone());
                let (sent, failures) = (sent.clone(), failures.clone());
                tokio::spawn(async move {
                    failures.note(churn(&target, &tally, &sent, lane, until).await);
                })
            })
            .collect();
        let churning = async {
            for churner in churners {
                let _ = churner.await;
            }
        };
        tokio::select! {
            () = churning => {}
            never = watch(stage, &tally, "churning") => match never {},
        }
        arrive(&tally, || sent.total() * self.members as u64).await;
        let secs = (tally.now_us() - started_us) as f64 / 1e6;
        let cost = stage.cost(cpu_before, resident_before);
        tokio::time::sleep(REPEATS_WITHIN).await;
        tally.end();
        let mut faults = tally.faults(&sent.lanes());
        // Joins of several users are no messages of one channel's publisher.
        faults.channels_in_several_orders = 0;
        report.fill(secs, sent.total(), &tally, faults, cost);
        failures.tell(report);
        Ok(())
    }
}

fn app(target: &Target) -> Result<&App, Failure> {
    match &target.protocol {
        Protocol::Pusher(app) => Ok(app),
        Protocol::Bayeux(_) => Err(Failure::Unreadable),
    }
}

async fn join(
    socket: &mut WebSocket,
    target: &Target,
    socket_id: &str,
    user_id: &str,
) -> Result<(), Failure> {
    let member = json!({ "user_id": user_id }).to_string();
    let place = (socket_id, CHANNEL);
    pusher_subscribe_signed(socket, app(target)?, place, Some(&member)).await
}

/// Counts who joins; a leave names the same user and does not count.
async fn attend(mut socket: WebSocket, tally: &Tally, ear: &Mutex<Ear>) -> Result<(), Failure> {
    loop {
        let joined = |text: &[u8], now_us| {
            memchr::memmem::find(text, b"internal:member_added").is_some()
                && tally.count(ear, text, now_us)
        };
        hear(&mut socket, None, joined, || tally.now_us()).await?;
    }
}

async fn churn(
    target: &Target,
    tally: &Tally,
    sent: &Sent,
    lane: usize,
    until: Instant,
) -> Result<(), Failure> {
    let (mut socket, id) = patiently(pusher_socket(target)).await?;
    let leave = json!({ "event": "pusher:unsubscribe", "data": { "channel": CHANNEL } });
    let leave = leave.to_string();
    while Instant::now() < until {
        let number = sent.next(lane, 0);
        let due_us = tally.now_us();
        let user = Stamp {
            lane,
            number,
            due_us,
        }
        .text();
        patiently(join(&mut socket, target, &id, &user)).await?;
        sent.add(lane, 0);
        socket.send(&leave).await?;
    }
    // Whoever is left hears of the last leave, too.
    Ok(())
}
