//! The way of facts to whoever tells the application.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::model::{
    AppId, ChannelFact, ChannelId, Fact, FactKind, SessionFact, SessionFactKind, SocketId, now_ms,
};

/// Under which the log has facts, at the level debug.
pub const FACTS_LOG: &str = "raptor::facts";

/// One bounded queue; what does not fit is counted and dropped, so that a slow reader delays no
/// client.
pub fn fact_queue(facts_max: usize) -> (FactSink, mpsc::Receiver<Fact>) {
    let (queue, facts) = mpsc::channel(facts_max);
    let sink = FactSink {
        queue,
        wanted: Arc::default(),
        dropped: Arc::default(),
        note: None,
        is_silent: false,
    };
    (sink, facts)
}

#[derive(Clone)]
pub struct FactSink {
    queue: mpsc::Sender<Fact>,
    wanted: Arc<Flags>,
    dropped: Arc<AtomicU64>,
    note: Option<Note>,
    is_silent: bool,
}

/// Facts of which one comes with every message of a client. Most servers have nobody who would read
/// them, and so they are stated only where they are wanted, or logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    pub sessions: bool,
    pub client_events: bool,
}

#[derive(Default)]
struct Flags {
    sessions: AtomicBool,
    client_events: AtomicBool,
}

/// Does not wait for anything.
type Note = Arc<Mutex<dyn FnMut(&Fact) + Send>>;

impl FactSink {
    /// `note` sees each fact before anybody else does, in the order of the queue.
    pub fn noted_by(self, note: impl FnMut(&Fact) + Send + 'static) -> Self {
        let note: Note = Arc::new(Mutex::new(note));
        Self {
            note: Some(note),
            ..self
        }
    }

    /// For whoever's facts are stated by somebody else.
    pub fn silent(self) -> Self {
        Self {
            is_silent: true,
            ..self
        }
    }

    /// States the fact, unless the channel is one that applications are not told about.
    pub fn state(&self, channel: &ChannelId, kind: FactKind) {
        if self.is_silent || !channel.name.is_reported() {
            return;
        }
        self.send(Fact::Channel(ChannelFact {
            channel: channel.clone(),
            kind,
            is_told: false,
            at_ms: now_ms(),
        }));
    }

    /// From now on. At first nothing is wanted.
    pub fn want(&self, wanted: Wanted) {
        let flags = &self.wanted;
        flags.sessions.store(wanted.sessions, Ordering::Relaxed);
        (flags.client_events).store(wanted.client_events, Ordering::Relaxed);
    }

    pub fn wants_client_events(&self) -> bool {
        self.wanted.client_events.load(Ordering::Relaxed) || are_logged()
    }

    /// States what `kind` makes, if anybody wants it. Half of the queue is kept for the facts about
    /// channels: those must not be lost because clients publish fast.
    pub fn state_session(
        &self,
        app: &AppId,
        session: Option<SocketId>,
        kind: impl FnOnce() -> SessionFactKind,
    ) {
        if !self.wanted.sessions.load(Ordering::Relaxed) && !are_logged() {
            return;
        }
        if self.queue.capacity() <= self.queue.max_capacity() / 2 {
            return self.count_dropped();
        }
        self.send(Fact::Session(SessionFact {
            app: app.clone(),
            session,
            kind: kind(),
            at_ms: now_ms(),
        }));
    }

    fn send(&self, fact: Fact) {
        let sent = match &self.note {
            None => self.queue.try_send(fact).is_ok(),
            Some(note) => {
                let mut note = note.lock().unwrap_or_else(PoisonError::into_inner);
                let place = self.queue.try_reserve();
                place.is_ok_and(|place| {
                    note(&fact);
                    place.send(fact);
                    true
                })
            }
        };
        if !sent {
            self.count_dropped();
        }
    }

    fn count_dropped(&self) {
        let dropped = 1 + self.dropped.fetch_add(1, Ordering::Relaxed);
        if dropped.is_power_of_two() {
            tracing::warn!(dropped, "facts do not fit into their queue");
        }
    }
}

/// The log's levels may change at any time.
fn are_logged() -> bool {
    tracing::enabled!(target: FACTS_LOG, tracing::Level::DEBUG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChannelName;

    const SESSIONS: Wanted = Wanted {
        sessions: true,
        client_events: false,
    };

    fn names(facts: &mut mpsc::Receiver<Fact>) -> Vec<&'static str> {
        let stated = std::iter::from_fn(|| facts.try_recv().ok());
        stated.map(|fact| fact.name()).collect()
    }

    #[test]
    fn facts_about_sessions_are_not_even_made_unless_somebody_wants_them() {
        let (sink, mut facts) = fact_queue(10);
        let app = AppId::new("1");
        sink.state_session(&app, None, || panic!("nobody wants it"));
        sink.want(SESSIONS);
        sink.state_session(&app, None, || SessionFactKind::Handshake);
        sink.want(Wanted::default());
        sink.state_session(&app, None, || panic!("nobody wants it any more"));
        assert_eq!(names(&mut facts), ["handshake"]);
    }

    #[test]
    fn facts_about_sessions_leave_room_for_those_about_channels() {
        let (sink, mut facts) = fact_queue(4);
        sink.want(SESSIONS);
        let app = AppId::new("1");
        let room = ChannelId::new(&app, &ChannelName::parse("room", 164).unwrap());
        for _ in 0..5 {
            sink.state_session(&app, None, || SessionFactKind::Disconnect);
        }
        sink.state(&room, FactKind::ChannelOccupied);
        sink.state(&room, FactKind::ChannelVacated);
        sink.state(&room, FactKind::ChannelOccupied);
        assert_eq!(
            names(&mut facts),
            [
                "disconnect",
                "disconnect",
                "channel_occupied",
                "channel_vacated"
            ]
        );
    }
}
