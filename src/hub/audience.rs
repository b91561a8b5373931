//! To whom an event is handed, and in which form.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

use super::outbox::wake_few;
use super::{Closing, Encoding, Frame, Outbox, Subscriber};
use crate::model::{Body, Event, SocketId};

/// After so many pushes a delivery lets other tasks run.
const PUSHES_BEFORE_YIELD: usize = 1024;

/// So many subscribers are written to by whoever delivers: to wake another task costs more.
const FEW: usize = 8;

/// The subscribers at one moment, grouped by wire format. Immutable and shared.
#[derive(Default)]
pub struct Audience {
    groups: Vec<Group>,
    /// Made when patterns ask who is among them already.
    ids: OnceLock<HashSet<SocketId>>,
}

struct Group {
    encoding: &'static dyn Encoding,
    outboxes: Vec<(SocketId, Arc<Outbox>)>,
}

impl Audience {
    pub fn of<'a>(subscribers: impl Iterator<Item = &'a Subscriber>) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for subscriber in subscribers {
            let entry = (subscriber.id, subscriber.outbox.clone());
            let name = subscriber.encoding.name();
            match (groups.iter_mut()).find(|group| group.encoding.name() == name) {
                Some(group) => group.outboxes.push(entry),
                None => groups.push(Group {
                    encoding: subscriber.encoding,
                    outboxes: vec![entry],
                }),
            }
        }
        // As they came: what the kernel and we keep for one connection lies beside that of the next,
        // which a round over all of them finds sooner than in any order.
        for group in &mut groups {
            group.outboxes.sort_unstable_by_key(|(id, _)| *id);
        }
        Self {
            groups,
            ids: OnceLock::new(),
        }
    }

    fn len(&self) -> usize {
        self.groups.iter().map(|group| group.outboxes.len()).sum()
    }

    pub fn contains(&self, id: SocketId) -> bool {
        let ids = self.ids.get_or_init(|| {
            let outboxes = self.groups.iter().flat_map(|group| &group.outboxes);
            outboxes.map(|(id, _)| *id).collect()
        });
        ids.contains(&id)
    }
}

/// An event being handed over: made once for each wire format, its bytes shared.
pub struct HandOver<'e> {
    event: &'e Event,
    made: Vec<(&'static str, Option<Parcel>)>,
    pushes: usize,
    since: Instant,
    /// Those to be woken when all is handed over, as long as they are few.
    woken: Vec<Waker>,
}

impl<'e> HandOver<'e> {
    /// `since`: when the event came.
    pub fn of(event: &'e Event, since: Instant) -> Self {
        Self {
            event,
            made: Vec::new(),
            pushes: 0,
            since,
            woken: Vec::new(),
        }
    }

    /// To all but those who are `served` already.
    pub async fn to(&mut self, audience: &Audience, served: impl Fn(SocketId) -> bool) {
        let are_few = audience.len() <= FEW;
        for group in &audience.groups {
            let Some(parcel) = self.parcel(group.encoding) else {
                continue;
            };
            let is_excepted = |id: &SocketId| self.event.except == Some(*id);
            // One of each format is timed, so that it costs the others nothing.
            let timed = group.outboxes.iter().rposition(|(id, _)| !is_excepted(id));
            for (nth, (id, outbox)) in group.outboxes.iter().enumerate() {
                if is_excepted(id) || served(*id) {
                    continue;
                }
                if Some(nth) == timed {
                    outbox.time(self.since);
                }
                match parcel.put(outbox) {
                    Some(owner) if are_few && self.woken.len() < FEW => self.woken.push(owner),
                    Some(owner) => owner.wake(),
                    None => {}
                }
                self.pushes += 1;
                if self.pushes.is_multiple_of(PUSHES_BEFORE_YIELD) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// How often it was handed over.
    pub fn pushes(&self) -> usize {
        self.pushes
    }

    fn parcel(&mut self, encoding: &'static dyn Encoding) -> Option<Parcel> {
        let name = encoding.name();
        if let Some((_, parcel)) = self.made.iter().find(|(made, _)| *made == name) {
            return parcel.clone();
        }
        let parcel = Parcel::of(self.event, encoding);
        self.made.push((name, parcel.clone()));
        parcel
    }
}

/// However it ends, nobody is left asleep.
impl Drop for HandOver<'_> {
    fn drop(&mut self) {
        wake_few(self.woken.drain(..));
    }
}

/// What an event is to the outboxes of one wire format.
#[derive(Clone)]
pub enum Parcel {
    Frame(Frame),
    Closing(Closing),
}

impl Parcel {
    pub fn of(event: &Event, encoding: &dyn Encoding) -> Option<Self> {
        match event.body {
            Body::Terminate => Some(Self::Closing(Closing::Terminated)),
            _ => {
                let frame = encoding.encode(event)?;
                Some(Self::Frame(frame.of_event(event.id)))
            }
        }
    }

    pub fn give(&self, outbox: &Outbox) {
        if let Some(owner) = self.put(outbox) {
            owner.wake();
        }
    }

    /// The same, but leaves waking the owner, where it waits, to the caller.
    fn put(&self, outbox: &Outbox) -> Option<Waker> {
        match self {
            Self::Frame(frame) => outbox.put(frame.clone()),
            Self::Closing(why) => {
                outbox.close(*why);
                None
            }
        }
    }
}
