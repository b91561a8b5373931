//! `/meta/connect` (`bayeux.md` 2.3, 3.10): how a client says that it is there, and waits for what
//! is sent to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::browsers::BrowserId;
use super::check;
use super::client::{Client, ClientSession};
use super::extensions::{TimeSync, acknowledged};
use super::site::{SUPPORTED, Site};
use crate::hub::{Closing, Frame};
use crate::model::now_ms;
use crate::transport::receipt::Receipts;
use crate::transport::session::{Carrier, Parted, Vehicle};
use crate::wire::bayeux::{
    Advice, Connect, ConnectionType, HeldConnect, Object, Reconnect, UNKNOWN_CLIENT,
};

/// Within this time of a poll's end the next one waits for more: events of a burst travel together,
/// at the cost of few requests. An event on its own finds a poll that has waited long enough.
const GATHER: Duration = Duration::from_millis(25);

/// An accepted connect whose answer may wait.
pub struct Connecting {
    pub session: ClientSession,
    pub held: Waiting,
    pub hold: Duration,
}

/// What it takes to answer a connect.
pub struct Waiting {
    session_id: Arc<str>,
    connect: HeldConnect,
    timesync: Option<TimeSync>,
}

impl Waiting {
    /// `batch`: what the reply and the messages behind it are to be acknowledged by.
    fn accepted(&self, advice: &Advice, batch: Option<u64>) -> String {
        let timesync = self.timesync.as_ref().and_then(|t| t.answer(now_ms()));
        let batch = batch.map(|batch| batch.to_string());
        let ext = Object::default()
            .json_if_any("ack", batch.as_deref())
            .json_if_any("timesync", timesync.as_deref());
        let ext = (!ext.is_empty()).then(|| ext.end());
        self.connect.accepted(advice, ext.as_deref())
    }
}

/// What a poll is answered with.
pub struct Polled {
    held: Waiting,
    pub reply: String,
    pub events: VecDeque<Frame>,
    /// Where there are events: to be told whether they were written.
    pub carrier: Option<Carrier<Client>>,
}

impl Polled {
    /// The connection that gives these receipts is about to write it. If a newer connect has taken
    /// its events over, it is answered as superseded after all.
    pub(super) fn is_written_by(&mut self, receipts: &Receipts, site: &Site) {
        let Some(carrier) = &self.carrier else { return };
        if let Err(parted) = carrier.writes_by(receipts) {
            self.reply = site.parting(&self.held, parted);
            self.events.clear();
            self.carrier = None;
        }
    }
}

/// An answer now, or somebody to wait for.
pub enum Connected {
    Now(String),
    Later(Connecting),
}

impl Site {
    /// `clientId` and `connectionType` are required. `advice.timeout` shortens the wait.
    pub(super) async fn connect(&self, request: &Connect<'_>) -> Connected {
        let session = self.session(request.client_id);
        if let Err(error) = check::connect(request, session.is_some(), &SUPPORTED) {
            return Connected::Now(request.refused(&error, &Advice::handshake(0)));
        }
        let Some(session) = session else {
            return Connected::Now(request.refused(&UNKNOWN_CLIENT.into(), &Advice::handshake(0)));
        };
        session.client.heard().await;
        let hold = self.settings.limits.hold;
        let given = request.connection_type.and_then(|given| given.text());
        if given.as_deref() == Some(ConnectionType::EventSource.as_str()) {
            // The stream carries the events: this is a sign of life, once in every hold (3.7).
            let heartbeat = Advice {
                interval_ms: Some(hold.as_millis() as u64),
                timeout_ms: Some(0),
                ..self.advice()
            };
            return Connected::Now(request.accepted(&heartbeat, None));
        }
        session.client.acknowledge(acknowledged(&request.ext));
        let wanted = request.hold_ms.map(Duration::from_millis);
        Connected::Later(Connecting {
            held: Waiting {
                session_id: session.id.clone(),
                connect: request.hold(),
                timesync: TimeSync::asked(&request.ext, now_ms()),
            },
            hold: wanted.map_or(hold, |wanted| wanted.min(hold)),
            session,
        })
    }

    /// Waits for events, but not longer than the hold.
    pub(super) async fn poll(
        self: &Arc<Self>,
        connecting: Connecting,
        browser: Option<&BrowserId>,
    ) -> Polled {
        let Connecting {
            session,
            held,
            mut hold,
        } = connecting;
        let mut advice = self.advice();
        let mut counted = None;
        if let (Some(browser), Some(sessions_max)) = (browser, self.settings.browser_polls_max)
            && !hold.is_zero()
        {
            counted = self.browsers.hold(browser, &session.id, sessions_max);
            if counted.is_none() {
                hold = Duration::ZERO;
                advice.multiple_clients = true;
                advice.interval_ms = Some(self.settings.browser_interval.as_millis() as u64);
            }
        }
        let mut events = VecDeque::new();
        let gathers_until = gathers_until(&session);
        let Some(carrier) = session.attach_poll() else {
            // Sent while the client was opening its stream: the events go there (3.7).
            wait_beside(&session, hold).await;
            let reply = held.accepted(&self.advice(), None);
            return Polled {
                held,
                reply,
                events,
                carrier: None,
            };
        };
        if session.client.has_lost() {
            hold = Duration::ZERO;
        }
        if hold > GATHER {
            tokio::time::sleep_until(gathers_until).await;
        }
        let taken = poll_fn(|cx| carrier.poll_take(cx, &mut events));
        let outcome = match tokio::time::timeout(hold, taken).await {
            Ok(Err(parted)) => Some(parted),
            Ok(Ok(())) | Err(_) => None,
        };
        if let Some(parted) = outcome {
            return Polled {
                reply: self.parting(&held, parted),
                held,
                events,
                carrier: None,
            };
        }
        let (reply, events) = self.accepted(&carrier, &held, &advice, events);
        drop(counted);
        let is_kept = session.client.unacknowledged.is_some();
        let carrier = Some(carrier).filter(|_| !events.is_empty() && !is_kept);
        Polled {
            held,
            reply,
            events,
            carrier,
        }
    }

    /// The reply to a connect that ends as it should, and all that follows it: `events`, which
    /// `carrier` took, and what has to be sent again.
    pub(super) fn accepted(
        &self,
        carrier: &Carrier<Client>,
        held: &Waiting,
        advice: &Advice,
        events: VecDeque<Frame>,
    ) -> (String, VecDeque<Frame>) {
        let session = &carrier.session;
        session.touch();
        let frames_max = self.settings.limits.queue_messages_max;
        let (batch, events) = session.client.next_batch(carrier, events, frames_max);
        (held.accepted(advice, batch), events)
    }

    /// The answer to a connect that waits for nothing any more.
    pub(super) fn parting(&self, held: &Waiting, parted: Parted) -> String {
        let advice = match parted {
            // To be found by the next connect, wherever it is then.
            Parted::Moved => self.advice(),
            // With the interval, whoever takes this for the end of his poll does not come back to
            // supersede the one that superseded it (3.10).
            Parted::Superseded => Advice {
                interval_ms: Some(self.settings.limits.hold.as_millis() as u64),
                ..self.advice()
            },
            Parted::Ended | Parted::Closed(Closing::Terminated) => Advice {
                reconnect: Reconnect::Never,
                ..self.advice()
            },
            // Not all at the same moment.
            Parted::Closed(Closing::Draining | Closing::Restarting) => Advice {
                interval_ms: Some(spread_ms()),
                ..self.advice()
            },
            Parted::Closed(Closing::Slow) => {
                let unknown = UNKNOWN_CLIENT.of(&*held.session_id);
                return held.connect.refused(&unknown, &Advice::handshake(0));
            }
        };
        held.accepted(&advice, None)
    }
}

/// A client that was answered just now may well be in the middle of a burst.
fn gathers_until(session: &ClientSession) -> Instant {
    let idle = session.idle();
    idle.map_or_else(Instant::now, |idle| idle.since + GATHER)
}

/// Until the hold is over or the session is.
async fn wait_beside(session: &ClientSession, hold: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    let wait = async {
        while !session.has_ended() && session.carried_by() == Some(Vehicle::Stream) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // Either way there is nothing more to wait for.
    let _ = tokio::time::timeout(hold, wait).await;
}

fn spread_ms() -> u64 {
    const SPREAD_MS_MAX: u64 = 5_000;
    let mut bytes = [0; 8];
    // Without randomness they all come at once, which is no worse than before.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes) % SPREAD_MS_MAX
}
