//! Lanes: publishers over HTTP that each wait for an answer before they send the next.

use std::sync::{Arc, Mutex};

use super::client::{Failure, Http, patiently};
use super::tally::{Stamp, lock};
use super::target::{Protocol, Target};

/// How many numbers each lane has used in each channel, by lane, then channel.
#[derive(Default)]
pub struct Sent(Mutex<Vec<Vec<u64>>>);

impl Sent {
    fn new_lane(&self) -> usize {
        let mut lanes = lock(&self.0);
        lanes.push(Vec::new());
        lanes.len() - 1
    }

    pub fn lanes(&self) -> Vec<Vec<u64>> {
        lock(&self.0).clone()
    }

    /// How many were accepted, times the subscribers of each channel.
    pub fn total(&self) -> u64 {
        lock(&self.0).iter().flatten().sum()
    }

    /// The number of the next event, which is not used up yet.
    pub fn next(&self, lane: usize, channel: usize) -> u64 {
        lock(&self.0)[lane].get(channel).copied().unwrap_or(0)
    }

    /// The next number is used.
    pub fn add(&self, lane: usize, channel: usize) {
        let mut lanes = lock(&self.0);
        let channels = &mut lanes[lane];
        if channels.len() <= channel {
            channels.resize(channel + 1, 0);
        }
        channels[channel] += 1;
    }

    /// With lanes made before anything is sent.
    pub fn with_lanes(count: usize) -> Arc<Self> {
        let sent = Self::default();
        for _ in 0..count {
            sent.new_lane();
        }
        Arc::new(sent)
    }
}

pub struct Lane {
    id: usize,
    target: Arc<Target>,
    sent: Arc<Sent>,
    http: Option<Http>,
    keep_alive: bool,
    payload_bytes: usize,
}

impl Lane {
    pub fn new(
        target: Arc<Target>,
        sent: Arc<Sent>,
        keep_alive: bool,
        payload_bytes: usize,
    ) -> Self {
        Self {
            id: sent.new_lane(),
            target,
            sent,
            http: None,
            keep_alive,
            payload_bytes,
        }
    }

    /// Publishes the next number. After a failure nobody knows whether it will be delivered, so
    /// that its lane ends there, and the next number is the first of a new lane.
    pub async fn publish(
        &mut self,
        (channel, name): (usize, &str),
        due_us: u64,
    ) -> Result<(), Failure> {
        let stamp = Stamp {
            lane: self.id,
            number: self.sent.next(self.id, channel),
            due_us,
        };
        let (url, body) = (self.target).publish(name, &stamp.payload(self.payload_bytes));
        let outcome = patiently(self.post(&url, &body)).await;
        match &outcome {
            Ok(()) => self.sent.add(self.id, channel),
            Err(_) => {
                self.http = None;
                self.id = self.sent.new_lane();
            }
        }
        outcome
    }

    async fn post(&mut self, url: &str, body: &str) -> Result<(), Failure> {
        let mut http = match self.http.take() {
            Some(http) => http,
            None => Http::connect(self.target.address).await?,
        };
        let answer = http.post(url, body, self.keep_alive).await?;
        if answer.is_kept {
            self.http = Some(http);
        }
        match self.target.protocol {
            Protocol::Bayeux(_) if !answer.body.contains(r#""successful":true"#) => {
                Err(Failure::Refused(answer.body))
            }
            _ => Ok(()),
        }
    }
}
