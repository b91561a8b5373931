//! To whom an event is handed, and in which form.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

use super::outbox::wake_at_once;
use super::pace::Pace;
use super::{Closing, Encoding, Frame, Outbox, Subscriber};
use crate::model::{Body, Event, SocketId};

/// After so many pushes a delivery lets other tasks run.
const PUSHES_BEFORE_YIELD: usize = 1024;

/// So many subscribers are written to by whoever delivers: to wake another task costs more.
const FEW: usize = 8;
/// So many are too while the node is quiet: some milliseconds' work, which costs less on one thread.
const MANY: usize = 1024;
/// They are written to so many at a time, while what a push has touched is in the processor's caches.
const WRITTEN_TOGETHER: usize = 64;

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
    pace: &'e Pace,
    pushes: usize,
    /// The part of `pushes` that other tasks write.
    left_to_others: usize,
    since: Instant,
    /// Those to be written to next.
    woken: Vec<Waker>,
}

impl<'e> HandOver<'e> {
    /// `since`: when the event came.
    pub fn of(event: &'e Event, since: Instant, pace: &'e Pace) -> Self {
        Self {
            event,
            made: Vec::new(),
            pace,
            pushes: 0,
            left_to_others: 0,
            since,
            woken: Vec::new(),
        }
    }

    /// To all but those who are `served` already.
    pub async fn to(&mut self, audience: &Audience, served: impl Fn(SocketId) -> bool) {
        let pushes_before = self.pushes;
        let writes = match audience.len() {
            ..=FEW => true,
            // Asked of every size, since it counts.
            len => self.pace.is_quiet_before(len) && len <= MANY,
        };
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
                    Some(owner) if writes => self.woken.push(owner),
                    Some(owner) => owner.wake(),
                    None => {}
                }
                if self.woken.len() == WRITTEN_TOGETHER {
                    self.write();
                }
                self.pushes += 1;
                if self.pushes.is_multiple_of(PUSHES_BEFORE_YIELD) {
                    tokio::task::yield_now().await;
                }
            }
        }
        if !writes {
            self.left_to_others += self.pushes - pushes_before;
        }
    }

    /// How often it was handed over.
    pub fn pushes(&self) -> usize {
        self.pushes
    }

    /// How often it was handed over to somebody whom another task writes to.
    pub fn left_to_others(&self) -> usize {
        self.left_to_others
    }

    fn write(&mut self) {
        wake_at_once(self.woken.drain(..));
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
        self.write();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::super::outbox::may_at_once;
    use super::*;
    use crate::model::ids::IdSource;
    use crate::model::{AppId, ChannelId, ChannelName, EventId};

    struct Numbers;

    impl Encoding for Numbers {
        fn name(&self) -> &'static str {
            "numbers"
        }

        fn encode(&self, event: &Event) -> Option<Frame> {
            Some(format!("{:?}", event.id).into())
        }
    }

    /// Counts those that were woken to write at once, and the others.
    #[derive(Default)]
    struct Woken {
        at_once: AtomicUsize,
        later: AtomicUsize,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let count = match may_at_once() {
                Some(_) => &self.at_once,
                None => &self.later,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Room {
        ids: IdSource,
        subscribers: Vec<Subscriber>,
        pace: Pace,
    }

    impl Room {
        fn of(subscribers: usize) -> Self {
            let ids = IdSource::new(1);
            let subscriber = |_| Subscriber {
                id: ids.socket_id(),
                outbox: Arc::new(Outbox::new(1000)),
                encoding: &Numbers,
            };
            Self {
                subscribers: (0..subscribers).map(subscriber).collect(),
                ids,
                pace: Pace::default(),
            }
        }

        /// How many are woken to write at once, and how many to do it later, and how many of the
        /// pushes are left to them.
        async fn hand_over(&self) -> (usize, usize, usize) {
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            let mut cx = Context::from_waker(&waker);
            for subscriber in &self.subscribers {
                let mut batch = Default::default();
                while subscriber.outbox.poll_take(&mut cx, &mut batch).is_ready() {
                    batch.clear();
                }
            }
            let name = ChannelName::parse("room", 164).unwrap();
            let event = Event {
                id: EventId::new(1, 1),
                channel: ChannelId::new(&AppId::new("1"), &name),
                except: Some(self.ids.socket_id()),
                body: Body::MemberRemoved {
                    user_id: "1".into(),
                    users: 0,
                    version: 1,
                },
            };
            let audience = Audience::of(self.subscribers.iter());
            let mut hand_over = HandOver::of(&event, Instant::now(), &self.pace);
            hand_over.to(&audience, |_| false).await;
            assert_eq!(hand_over.pushes(), self.subscribers.len());
            let left = hand_over.left_to_others();
            drop(hand_over);
            let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            (count(&woken.at_once), count(&woken.later), left)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_node_is_quiet_whoever_delivers_also_writes() {
        let room = Room::of(MANY);
        assert_eq!(room.hand_over().await, (MANY, 0, 0));
        assert_eq!(room.hand_over().await, (0, MANY, MANY));
    }

    #[tokio::test]
    async fn few_are_always_written_to_at_once_and_more_than_many_never() {
        let few = Room::of(FEW);
        for _ in 0..3 {
            assert_eq!(few.hand_over().await, (FEW, 0, 0));
        }
        assert_eq!(Room::of(FEW + 1).hand_over().await, (FEW + 1, 0, 0));
        assert_eq!(
            Room::of(MANY + 1).hand_over().await,
            (0, MANY + 1, MANY + 1)
        );
    }
}
