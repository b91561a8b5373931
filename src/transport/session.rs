//! Sessions that outlive a connection: what a client that comes with one HTTP request after
//! another, or changes its transport, keeps between them.
//!
//! A session's queue is the [`Outbox`] that the hub fills. At most one [`Carrier`] at a time takes
//! from it: a poll, a stream or a socket. What a carrier took and did not certainly write goes
//! back to the front when it is dropped, or when a newer one takes its place: a client that comes
//! anew has given up the earlier one. Only what is just being written, to a peer that takes it, the
//! newer one waits for.
//!
//! ```text
//!           attach               poll_take              written
//!  idle ─────────────► waiting ───────────► in flight ───────────► waiting
//!    ▲                    │                     │
//!    └────────────────────┴─── drop, attach ────┘ (in flight: back to the front)
//! ```
//!
//! What the kernel has is not yet with the client. Where the client's next request tells what
//! became of the answer before ([`Earlier`]), that counts, and what was written is kept until then.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::receipt::{Receipts, Wanted, Writing};
use crate::hub::{Closing, Frame, Outbox};

/// The sessions of one front end or app, each with what its protocol keeps as `T`.
pub struct Sessions<T> {
    by_id: RwLock<HashMap<Arc<str>, Arc<Session<T>>>>,
    sessions_max: AtomicUsize,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManySessions;

impl<T> Sessions<T> {
    pub fn new(sessions_max: usize) -> Self {
        Self {
            by_id: RwLock::default(),
            sessions_max: AtomicUsize::new(sessions_max),
        }
    }

    /// Those who are here stay, even if they are more.
    pub fn limit(&self, sessions_max: usize) {
        self.sessions_max.store(sessions_max, Ordering::Relaxed);
    }

    /// `lifetime`: how long the session outlives the last sign of its client.
    pub fn open(
        &self,
        lifetime: Duration,
        outbox: Arc<Outbox>,
        client: T,
    ) -> Result<Arc<Session<T>>, TooManySessions> {
        self.find_or_open(&random_id(), lifetime, || Ok((outbox, client)))
    }

    /// The session of an id that the client chose. Where there is none, `make` makes what it is
    /// to hold.
    pub fn find_or_open<E: From<TooManySessions>>(
        &self,
        id: &str,
        lifetime: Duration,
        make: impl FnOnce() -> Result<(Arc<Outbox>, T), E>,
    ) -> Result<Arc<Session<T>>, E> {
        if let Some(session) = self.find(id) {
            return Ok(session);
        }
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = by_id.get(id) {
            return Ok(session.clone());
        }
        if by_id.len() >= self.sessions_max.load(Ordering::Relaxed) {
            return Err(TooManySessions.into());
        }
        let (outbox, client) = make()?;
        let session = Arc::new(Session::new(id.into(), lifetime, outbox, client));
        by_id.insert(session.id.clone(), session.clone());
        Ok(session)
    }

    /// Lets a session be found that was made elsewhere. It counts, but is not refused.
    pub fn insert(&self, session: Arc<Session<T>>) {
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        by_id.insert(session.id.clone(), session);
    }

    pub fn is_full(&self) -> bool {
        self.count() >= self.sessions_max.load(Ordering::Relaxed)
    }

    pub fn find(&self, id: &str) -> Option<Arc<Session<T>>> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.get(id).cloned()
    }

    pub fn count(&self) -> usize {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.len()
    }

    pub fn all(&self) -> Vec<Arc<Session<T>>> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.values().cloned().collect()
    }

    /// Nobody finds the session any more, its carrier learns of it, and its queue is dropped.
    /// Whether it was there.
    pub fn end(&self, session: &Session<T>) -> bool {
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        let was_there = by_id.remove(&session.id).is_some();
        drop(by_id);
        session.state().ended = true;
        session.outbox.wake();
        was_there
    }
}

pub struct Session<T> {
    /// Whoever knows it is the client: 160 random bits in base 36, unless the client chose it.
    pub id: Arc<str>,
    pub client: T,
    pub outbox: Arc<Outbox>,
    lifetime: Duration,
    state: Mutex<State>,
}

/// What takes from a session's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vehicle {
    /// One held HTTP request.
    Poll,
    /// An HTTP answer without end.
    Stream,
    Socket,
}

/// What a client's new request says about the answer to the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Earlier {
    /// All that it was given has arrived.
    Received,
    /// Nothing of it has.
    Lost,
    /// Nothing is said: what was written counts as received.
    Unknown,
}

/// What a session without a carrier has behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Idle {
    pub since: Instant,
    /// What the last carrier was.
    pub vehicle: Vehicle,
    /// Its answer was written to its end; the client is expected to come again.
    pub answered: bool,
}

/// In this order: what every delivery looks at comes first, and lies in two cache lines.
#[repr(C)]
struct State {
    /// Taken and not known to be written.
    in_flight: VecDeque<Frame>,
    /// So many of them are with the carrier.
    handed: usize,
    /// The serial number of the carrier that took it: perhaps not the newest, while it is being
    /// written.
    taken_by: u64,
    /// Of the HTTP connection that is writing it.
    receipts: Option<Receipts>,
    /// The serial number of the newest carrier.
    attached: u64,
    /// Carriers with lower numbers were told that it is on its way.
    left_at: u64,
    /// A socket is about to write it.
    is_with_socket: bool,
    ended: bool,
    keeps: bool,
    /// It is on its way to another node.
    is_leaving: bool,
    /// Absent after the newest carrier was dropped.
    carried_by: Option<Vehicle>,
    /// Of the time before the newest carrier, or after it.
    idle: Idle,
    heard_at: Instant,
    /// Written, and perhaps to be written again. Only used while it `keeps`.
    kept: VecDeque<Frame>,
    /// Requests that do something with it just now.
    visitors: usize,
}

/// What a session has for its client, to be taken along to another node.
#[derive(Default)]
pub struct Luggage {
    /// See [`Earlier::Lost`]; absent where nothing is kept.
    pub kept: Option<Vec<Frame>>,
    pub waiting: Vec<Frame>,
}

impl<T> Session<T> {
    /// Nobody finds it; see [`Sessions`].
    pub fn new(id: Arc<str>, lifetime: Duration, outbox: Arc<Outbox>, client: T) -> Self {
        let now = Instant::now();
        Self {
            id,
            client,
            outbox,
            lifetime,
            state: Mutex::new(State {
                heard_at: now,
                ended: false,
                attached: 0,
                carried_by: None,
                idle: Idle {
                    since: now,
                    vehicle: Vehicle::Poll,
                    answered: false,
                },
                in_flight: VecDeque::new(),
                taken_by: 0,
                receipts: None,
                is_with_socket: false,
                handed: 0,
                kept: VecDeque::new(),
                keeps: false,
                is_leaving: false,
                left_at: 0,
                visitors: 0,
            }),
        }
    }

    /// The session stays here until this is dropped. `None` if it is on its way to another node, or
    /// there already; see [`Session::settled`].
    pub fn visit(self: &Arc<Self>) -> Option<Visit<T>> {
        let mut state = self.state();
        if state.is_leaving {
            return None;
        }
        state.visitors += 1;
        Some(Visit(self.clone()))
    }

    /// The client has shown itself.
    pub fn touch(&self) {
        self.state().heard_at = Instant::now();
    }

    /// When the client last showed itself.
    pub fn heard_at(&self) -> Instant {
        self.state().heard_at
    }

    /// Whether its time is over, or its queue was closed and nobody is there to be told.
    pub fn is_over(&self, now: Instant) -> bool {
        let state = self.state();
        let closing = self.outbox.closing();
        state.heard_at + self.lifetime <= now
            || closing == Some(Closing::Slow)
            || closing.is_some() && state.carried_by.is_none()
    }

    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub fn carried_by(&self) -> Option<Vehicle> {
        self.state().carried_by
    }

    /// While nothing takes from the queue.
    pub fn idle(&self) -> Option<Idle> {
        let state = self.state();
        state.carried_by.is_none().then_some(state.idle)
    }

    /// Takes the place of any other carrier, which is told so.
    ///
    /// A client that has its answer may come anew before we know that it was written: then this
    /// waits for the receipt, or the answer would come once more. What a connection is about to
    /// write belongs to the carrier that took it, unless the peer does not take it at once.
    pub fn attach(self: &Arc<Self>, vehicle: Vehicle) -> Carrier<T> {
        self.attach_after(Earlier::Unknown, vehicle)
    }

    /// As [`Session::attach`], by a client that tells what it has received.
    pub fn attach_after(self: &Arc<Self>, earlier: Earlier, vehicle: Vehicle) -> Carrier<T> {
        let serial = self.between_writes(|state, is_on_its_way| {
            Some(self.change_places(state, earlier, vehicle, is_on_its_way))
        });
        self.carrier(serial)
    }

    /// As [`Session::attach`], by a poll, but not in the place of a stream.
    pub fn attach_poll(self: &Arc<Self>) -> Option<Carrier<T>> {
        let serial = self.between_writes(|state, is_on_its_way| {
            let is_free = state.carried_by != Some(Vehicle::Stream);
            let change =
                || self.change_places(state, Earlier::Unknown, Vehicle::Poll, is_on_its_way);
            Some(is_free.then(change))
        });
        serial.map(|serial| self.carrier(serial))
    }

    /// The serial number of the new carrier.
    fn change_places(
        &self,
        state: &mut State,
        earlier: Earlier,
        vehicle: Vehicle,
        is_on_its_way: bool,
    ) -> u64 {
        if state.is_leaving {
            // No carrier has this number.
            return 0;
        }
        state.attached += 1;
        state.carried_by = Some(vehicle);
        state.idle.answered = false;
        state.keeps = earlier != Earlier::Unknown;
        match earlier {
            Earlier::Received => {
                state.in_flight.drain(..state.handed);
                state.kept.clear();
            }
            Earlier::Lost => {
                state.kept.append(&mut state.in_flight);
                std::mem::swap(&mut state.kept, &mut state.in_flight);
            }
            Earlier::Unknown => {
                state.kept.clear();
                if is_on_its_way {
                    return state.attached;
                }
            }
        }
        self.take_back(state);
        state.attached
    }

    fn carrier(self: &Arc<Self>, serial: u64) -> Carrier<T> {
        self.outbox.wake();
        Carrier {
            session: self.clone(),
            serial,
        }
    }

    /// Does something while no HTTP connection writes anything of the session here, until it gives
    /// `Some`. It learns whether some is on its way to a peer, and not blocked there: whether it was
    /// written will be known soon, or when another node tells.
    fn between_writes<R>(&self, act: impl Fn(&mut State, bool) -> Option<R>) -> R {
        loop {
            let receipts = self.state().receipts.clone();
            let try_it = |writing| {
                let mut state = self.state();
                let is_of_these = |of: &Receipts| {
                    receipts
                        .as_ref()
                        .is_some_and(|known| known.are_of_one_connection(of))
                };
                let is_on_its_way = match &state.receipts {
                    Some(of) if !is_of_these(of) => return None,
                    Some(_) => writing != Writing::Blocked,
                    None => state.is_with_socket,
                };
                act(&mut state, is_on_its_way)
            };
            let done = match &receipts {
                Some(known) => known.between_writes(try_it),
                None => try_it(Writing::default()),
            };
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// What was taken and is not written waits again, in front of all else. This wakes the outbox's
    /// owner under the session's lock: to queue up, not to write at once (`hub::wake_at_once`).
    fn take_back(&self, state: &mut State) {
        state.receipts = None;
        state.is_with_socket = false;
        state.handed = 0;
        self.outbox.put_back(&mut state.in_flight);
    }

    /// From now on nobody takes from the queue and nobody visits: the session is about to go to
    /// another node. If it is on its way already, waits for what becomes of that. `false` if it has
    /// ended, or gone.
    pub async fn begin_to_leave(&self) -> bool {
        /// A visitor may wait for Redis; what is on its way is written soon, or another node tells
        /// of the end or is given up (`crate::peers`).
        const LOOK_EVERY: Duration = Duration::from_millis(2);
        while !self.stops() {
            self.settled().await;
            if self.has_ended() {
                return false;
            }
        }
        self.outbox.wake();
        while !self.between_writes(|state, is_on_its_way| {
            let is_quiet = state.visitors == 0 && !(is_on_its_way && state.handed > 0);
            if is_quiet {
                self.take_back(state);
            }
            Some(is_quiet)
        }) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut state = self.state();
        // A visitor may have ended it.
        state.is_leaving = !state.ended;
        state.is_leaving
    }

    /// `false` if it has ended, or is on its way already.
    fn stops(&self) -> bool {
        let mut state = self.state();
        if state.is_leaving || state.ended {
            return false;
        }
        state.is_leaving = true;
        state.attached += 1;
        state.left_at = state.attached;
        if let Some(vehicle) = state.carried_by.take() {
            state.idle.since = Instant::now();
            state.idle.vehicle = vehicle;
        }
        true
    }

    /// Has the client come anew, to whichever node: what takes from the queue ends as if the session
    /// moved.
    pub async fn shake_off(&self) {
        if self.begin_to_leave().await {
            self.stay();
        }
    }

    /// It stays after all.
    pub fn stay(&self) {
        self.state().is_leaving = false;
        self.outbox.wake();
    }

    /// Waits while it is on its way: then it has gone, or stays.
    pub async fn settled(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(2);
        while self.is_leaving() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// It is on its way, and has not gone yet.
    pub fn is_leaving(&self) -> bool {
        let state = self.state();
        state.is_leaving && !state.ended
    }

    pub fn luggage(&self) -> Luggage {
        let state = self.state();
        Luggage {
            kept: state.keeps.then(|| state.kept.iter().cloned().collect()),
            waiting: self.outbox.waiting(),
        }
    }

    /// Takes what came from another node, before all that has come here meanwhile.
    pub fn unpack(&self, luggage: Luggage) {
        let mut state = self.state();
        // Its last answer said that there is more to ask for.
        state.idle.answered = true;
        state.idle.since = Instant::now();
        state.keeps = luggage.kept.is_some();
        state.kept = luggage.kept.unwrap_or_default().into();
        self.outbox.put_in_front(luggage.waiting);
    }

    /// The client has shown that its stream reaches it: nothing of it will be asked for again.
    pub fn stream_arrives(&self) {
        let mut state = self.state();
        if state.carried_by == Some(Vehicle::Stream) {
            state.keeps = false;
            state.kept = VecDeque::new();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something is being done with a session.
pub struct Visit<T>(pub Arc<Session<T>>);

impl<T> Drop for Visit<T> {
    fn drop(&mut self) {
        self.0.state().visitors -= 1;
    }
}

/// Takes from a session's queue until it is dropped or another takes its place.
pub struct Carrier<T> {
    pub session: Arc<Session<T>>,
    serial: u64,
}

/// Why there is nothing more to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parted {
    /// Another carrier took the place.
    Superseded,
    /// The session is on another node, or on its way there.
    Moved,
    /// The session is over.
    Ended,
    Closed(Closing),
}

impl<T> Carrier<T> {
    /// Waits until there is something and nothing is in flight; then adds all of it to `batch`.
    pub fn poll_take(
        &self,
        cx: &mut Context<'_>,
        batch: &mut VecDeque<Frame>,
    ) -> Poll<Result<(), Parted>> {
        self.poll_take_from(&mut self.session.state(), cx, |frame| {
            batch.push_back(frame.clone());
            false
        })
    }

    /// As [`Carrier::poll_take`], up to and with the frame at which it `is_enough`, for a stream that
    /// is about to write this by the connection that gives these receipts.
    pub fn poll_take_to(
        &self,
        receipts: &Receipts,
        cx: &mut Context<'_>,
        batch: &mut VecDeque<Frame>,
        mut is_enough: impl FnMut(&Frame) -> bool,
    ) -> Poll<Result<(), Parted>> {
        let mut state = self.session.state();
        let taken = self.poll_take_from(&mut state, cx, |frame| {
            batch.push_back(frame.clone());
            is_enough(frame)
        });
        if let Poll::Ready(Ok(())) = taken {
            state.receipts = Some(receipts.clone());
        }
        taken
    }

    /// As [`Carrier::poll_take`], for a socket that has written all that it took before, and is about
    /// to write this: gives frames to `take`, which says whether it has enough.
    pub fn poll_next(
        &self,
        cx: &mut Context<'_>,
        take: impl FnMut(&Frame) -> bool,
    ) -> Poll<Result<(), Parted>> {
        let mut state = self.session.state();
        if self.settle(&mut state) && state.attached != self.serial {
            drop(state);
            self.session.outbox.wake();
            state = self.session.state();
        }
        let taken = self.poll_take_from(&mut state, cx, take);
        if let Poll::Ready(Ok(())) = taken {
            state.is_with_socket = true;
        }
        taken
    }

    /// The socket does not take it: a newer carrier need not wait for that.
    pub fn blocked(&self) {
        let mut state = self.session.state();
        if self.holds(&state) {
            state.is_with_socket = false;
            if state.attached != self.serial {
                self.session.take_back(&mut state);
            }
        }
    }

    fn poll_take_from(
        &self,
        state: &mut State,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&Frame) -> bool,
    ) -> Poll<Result<(), Parted>> {
        if let Some(parted) = self.parted(state) {
            return Poll::Ready(Err(parted));
        }
        let outbox = &self.session.outbox;
        if state.handed > 0 {
            return outbox
                .poll_slow(cx)
                .map(|()| Err(Parted::Closed(Closing::Slow)));
        }
        if state.in_flight.is_empty() {
            match outbox.poll_take(cx, &mut state.in_flight) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(why)) => return Poll::Ready(Err(Parted::Closed(why))),
                Poll::Pending => return Poll::Pending,
            }
        }
        state.taken_by = self.serial;
        for frame in &state.in_flight {
            state.handed += 1;
            if take(frame) {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// From now on what was taken is being written by the connection that gives these receipts. If a
    /// newer carrier has it, tells what became of this one.
    pub fn writes_by(&self, receipts: &Receipts) -> Result<(), Parted> {
        let mut state = self.session.state();
        if !self.holds(&state) {
            return Err(self.parted(&state).unwrap_or(Parted::Superseded));
        }
        state.receipts = Some(receipts.clone());
        Ok(())
    }

    /// All that was taken is written.
    pub fn written(&self) {
        self.hand_over();
    }

    /// From now on the caller cares for all that was taken. `false` if there is nothing, or a newer
    /// carrier has it.
    pub fn hand_over(&self) -> bool {
        let mut state = self.session.state();
        if !self.settle(&mut state) {
            return false;
        }
        if state.in_flight.is_empty() {
            self.session.outbox.written();
        }
        let is_waited_for = state.attached != self.serial;
        drop(state);
        if is_waited_for {
            self.session.outbox.wake();
        }
        true
    }

    /// What was handed out is written. Whether anything was. The outbox is not told: the next look
    /// into it does that too.
    fn settle(&self, state: &mut State) -> bool {
        if !self.holds(state) {
            return false;
        }
        let written = state.in_flight.drain(..state.handed);
        match state.keeps {
            true => state.kept.extend(written),
            false => drop(written),
        }
        state.handed = 0;
        state.receipts = None;
        state.is_with_socket = false;
        true
    }

    /// The whole answer is written, with all that was taken.
    pub fn answered(&self) {
        self.written();
        let mut state = self.session.state();
        if state.attached == self.serial {
            state.idle.answered = true;
        }
    }

    /// While writing: waits until it is of no use to go on.
    pub fn poll_parted(&self, cx: &mut Context<'_>) -> Poll<Parted> {
        // Held meanwhile: a newer carrier that is not seen here yet must not have its waker replaced.
        let state = self.session.state();
        if let Some(parted) = self.parted(&state) {
            return Poll::Ready(parted);
        }
        let slow = self.session.outbox.poll_slow(cx);
        slow.map(|()| Parted::Closed(Closing::Slow))
    }

    pub fn is_newest(&self) -> bool {
        self.session.state().attached == self.serial
    }

    /// What it took last is still its own to write.
    fn holds(&self, state: &State) -> bool {
        state.taken_by == self.serial && state.handed > 0
    }

    /// Whether what it took last is still to be written.
    pub fn wanted(&self) -> Wanted {
        let state = self.session.state();
        match self.holds(&state) {
            false => Wanted::No,
            true if state.attached == self.serial => Wanted::Yes,
            true => Wanted::AtOnce,
        }
    }

    fn parted(&self, state: &State) -> Option<Parted> {
        // First: it ends here when it has gone.
        if self.serial < state.left_at {
            return Some(Parted::Moved);
        }
        if state.ended {
            return Some(match self.session.outbox.closing() {
                Some(why) => Parted::Closed(why),
                None => Parted::Ended,
            });
        }
        (state.attached != self.serial).then_some(Parted::Superseded)
    }
}

impl<T> Drop for Carrier<T> {
    fn drop(&mut self) {
        let mut state = self.session.state();
        if state.attached == self.serial
            && let Some(vehicle) = state.carried_by.take()
        {
            state.idle.since = Instant::now();
            state.idle.vehicle = vehicle;
        }
        let is_newest = state.attached == self.serial;
        let is_written = match state.handed > 0 {
            true => state.taken_by != self.serial,
            false => !is_newest,
        };
        if !is_written {
            self.session.take_back(&mut state);
        }
    }
}

const ID_CHARS: usize = 31;

/// 36^31 ids: a little more than 160 bits.
pub fn random_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    /// Bytes from here on would make some digits likelier than others.
    const UNFAIR_FROM: u8 = 252;
    let mut id = String::with_capacity(ID_CHARS);
    while id.len() < ID_CHARS {
        let mut bytes = [0; 2 * ID_CHARS];
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        let fair = bytes.iter().filter(|byte| **byte < UNFAIR_FROM);
        let digits = fair.map(|byte| DIGITS[usize::from(byte % 36)] as char);
        id.extend(digits.take(ID_CHARS - id.len()));
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::future::poll_fn;

    const LIFETIME: Duration = Duration::from_secs(90);

    fn session() -> Arc<Session<()>> {
        let outbox = Arc::new(Outbox::bounded(10_000, 5));
        Sessions::new(1).open(LIFETIME, outbox, ()).unwrap()
    }

    fn push(session: &Session<()>, texts: &[&str]) {
        for text in texts {
            session.outbox.push(Frame::from((*text).to_owned()));
        }
    }

    async fn take(carrier: &Carrier<()>) -> Result<Vec<String>, Parted> {
        let mut batch = VecDeque::new();
        poll_fn(|cx| carrier.poll_take(cx, &mut batch)).await?;
        Ok(batch.iter().map(|f| f.as_str().to_owned()).collect())
    }

    #[test]
    fn ids_are_unlike_each_other_and_alphanumeric() {
        let ids: HashSet<_> = (0..1000).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 1000);
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        assert!(ids.iter().all(|id| id.len() == 31 && id.bytes().all(legal)));
    }

    #[tokio::test]
    async fn what_an_aborted_carrier_took_comes_again_first() {
        let session = session();
        push(&session, &["1", "2"]);
        let aborted = session.attach(Vehicle::Poll);
        assert_eq!(take(&aborted).await.unwrap(), ["1", "2"]);
        push(&session, &["3"]);
        drop(aborted);
        let next = session.attach(Vehicle::Poll);
        assert_eq!(take(&next).await.unwrap(), ["1", "2", "3"]);
        next.written();
        drop(next);
        push(&session, &["4"]);
        let last = session.attach(Vehicle::Socket);
        assert_eq!(take(&last).await.unwrap(), ["4"]);
    }

    #[tokio::test]
    async fn whoever_takes_the_next_has_written_what_was_before() {
        let session = session();
        let carrier = session.attach(Vehicle::Socket);
        for text in ["1", "2"] {
            push(&session, &[text]);
            let mut got = Vec::new();
            let mut take = |frame: &Frame| {
                got.push(frame.as_str().to_owned());
                false
            };
            let taken = poll_fn(|cx| carrier.poll_next(cx, &mut take)).await;
            assert_eq!(taken, Ok(()));
            assert_eq!(got, [text]);
        }
        push(&session, &["3"]);
        let newest = session.attach(Vehicle::Poll);
        assert_eq!(carrier.wanted(), Wanted::AtOnce);
        let waiting = tokio::spawn(async move { take(&newest).await.unwrap() });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let taken = poll_fn(|cx| carrier.poll_next(cx, |_| false)).await;
        assert_eq!(taken, Err(Parted::Superseded));
        assert_eq!(waiting.await.unwrap(), ["3"]);
    }

    #[tokio::test]
    async fn what_a_socket_does_not_take_is_taken_over() {
        for is_blocked_before in [true, false] {
            let session = session();
            push(&session, &["1"]);
            let carrier = session.attach(Vehicle::Socket);
            let taken = poll_fn(|cx| carrier.poll_next(cx, |_| false)).await;
            assert_eq!(taken, Ok(()));
            if is_blocked_before {
                carrier.blocked();
            }
            let newest = session.attach(Vehicle::Poll);
            carrier.blocked();
            assert_eq!(carrier.wanted(), Wanted::No);
            assert_eq!(take(&newest).await.unwrap(), ["1"]);
            newest.written();
            let taken = poll_fn(|cx| carrier.poll_next(cx, |_| false)).await;
            assert_eq!(taken, Err(Parted::Superseded));
            assert_eq!(session.outbox.bytes(), 0);
        }
    }

    #[tokio::test]
    async fn a_new_carrier_takes_over_what_is_in_flight() {
        let session = session();
        push(&session, &["1"]);
        let old = session.attach(Vehicle::Socket);
        take(&old).await.unwrap();
        let new = session.attach(Vehicle::Poll);
        assert_eq!(take(&new).await.unwrap(), ["1"]);
        // Too late to say so, or to give it back.
        assert!(!old.hand_over());
        assert_eq!(take(&old).await, Err(Parted::Superseded));
        drop(old);
        assert_eq!(session.carried_by(), Some(Vehicle::Poll));
        assert!(new.hand_over());
        push(&session, &["2"]);
        assert_eq!(take(&new).await.unwrap(), ["2"]);
    }

    #[tokio::test]
    async fn a_client_that_answers_before_we_know_what_it_has_is_not_sent_it_again() {
        let (session, receipts) = (session(), Receipts::default());
        push(&session, &["1"]);
        let old = session.attach(Vehicle::Poll);
        take(&old).await.unwrap();
        old.writes_by(&receipts).unwrap();
        let came = receipts.between_writes(|_| {
            // The kernel has it, and so has the client; the receipt is still to come.
            let came = std::thread::spawn({
                let session = session.clone();
                move || session.attach(Vehicle::Poll)
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!came.is_finished());
            old.written();
            came
        });
        let new = came.join().unwrap();
        push(&session, &["2"]);
        assert_eq!(take(&new).await.unwrap(), ["2"]);
    }

    /// What the carrier took is given to a connection, which cares for it from now on.
    fn give(carrier: Arc<Carrier<()>>, receipts: &Receipts) {
        carrier.writes_by(receipts).unwrap();
        let holder = carrier.clone();
        receipts.when_written_if(move || holder.wanted(), move || carrier.written());
    }

    #[tokio::test]
    async fn what_is_about_to_be_written_is_not_taken_over_unless_it_is_lost() {
        for is_written in [true, false] {
            let (session, receipts) = (session(), Receipts::default());
            push(&session, &["1"]);
            let old = Arc::new(session.attach(Vehicle::Poll));
            take(&old).await.unwrap();
            give(old.clone(), &receipts);
            let new = Arc::new(session.attach(Vehicle::Poll));
            assert_eq!(old.wanted(), Wanted::AtOnce);
            push(&session, &["2"]);
            let waiting = tokio::spawn(async move { take(&new).await.unwrap() });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            drop(old);
            match is_written {
                true => receipts.written_away(),
                false => receipts.lost(),
            }
            let got = waiting.await.unwrap();
            assert_eq!(got, if is_written { &["2"][..] } else { &["1", "2"] });
        }
    }

    #[tokio::test]
    async fn a_poll_does_not_take_the_place_of_a_stream() {
        let session = session();
        let stream = session.attach(Vehicle::Stream);
        assert!(session.attach_poll().is_none());
        push(&session, &["1"]);
        assert_eq!(take(&stream).await.unwrap(), ["1"]);
        drop(stream);
        let poll = session.attach_poll().unwrap();
        assert_eq!(take(&poll).await.unwrap(), ["1"]);
    }

    #[tokio::test]
    async fn what_was_taken_over_is_nobody_elses_to_write() {
        let (session, receipts) = (session(), Receipts::default());
        push(&session, &["1"]);
        let old = session.attach(Vehicle::Poll);
        take(&old).await.unwrap();
        let new = session.attach(Vehicle::Poll);
        assert_eq!(old.writes_by(&receipts), Err(Parted::Superseded));
        assert_eq!(old.wanted(), Wanted::No);
        drop(old);
        assert_eq!(take(&new).await.unwrap(), ["1"]);
        assert_eq!(new.writes_by(&receipts), Ok(()));
        assert_eq!(new.wanted(), Wanted::Yes);
    }

    #[tokio::test]
    async fn a_waiting_carrier_learns_that_it_was_superseded_or_that_all_is_over() {
        let sessions = Sessions::new(1);
        let outbox = Arc::new(Outbox::new(100));
        let session = sessions.open(LIFETIME, outbox, ()).unwrap();
        let old = session.attach(Vehicle::Poll);
        let waiting = tokio::spawn(async move { take(&old).await });
        tokio::task::yield_now().await;
        let new = session.attach(Vehicle::Poll);
        assert_eq!(waiting.await.unwrap(), Err(Parted::Superseded));

        let waiting = tokio::spawn(async move { take(&new).await });
        tokio::task::yield_now().await;
        assert!(sessions.end(&session));
        assert!(!sessions.end(&session));
        assert_eq!(waiting.await.unwrap(), Err(Parted::Ended));
        assert!(sessions.find(&session.id).is_none());
    }

    #[tokio::test]
    async fn nothing_is_taken_while_something_is_in_flight() {
        let session = session();
        push(&session, &["1"]);
        let carrier = Arc::new(session.attach(Vehicle::Stream));
        take(&carrier).await.unwrap();
        push(&session, &["2"]);
        let waiting = tokio::spawn({
            let carrier = carrier.clone();
            async move { take(&carrier).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        carrier.written();
        session.outbox.wake();
        assert_eq!(waiting.await.unwrap().unwrap(), ["2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_over_some_time_after_the_last_sign_of_its_client() {
        let session = session();
        tokio::time::advance(LIFETIME / 2).await;
        session.touch();
        tokio::time::advance(LIFETIME * 3 / 4).await;
        assert!(!session.is_over(Instant::now()));
        tokio::time::advance(LIFETIME / 4).await;
        assert!(session.is_over(Instant::now()));
    }

    #[tokio::test]
    async fn a_session_whose_queue_overflows_is_over() {
        let session = session();
        push(&session, &["1", "2", "3", "4", "5"]);
        assert!(!session.is_over(Instant::now()));
        push(&session, &["6"]);
        assert!(session.is_over(Instant::now()));
        let carrier = session.attach(Vehicle::Poll);
        assert_eq!(take(&carrier).await, Err(Parted::Closed(Closing::Slow)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_leaves_when_its_visitors_have_gone_and_with_all_that_was_not_written() {
        let session = session();
        push(&session, &["1"]);
        let carrier = session.attach(Vehicle::Poll);
        take(&carrier).await.unwrap();
        push(&session, &["2"]);
        let visit = session.visit().unwrap();
        let leaving = tokio::spawn({
            let session = session.clone();
            async move { session.begin_to_leave().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!leaving.is_finished());
        assert!(session.visit().is_none());
        assert_eq!(take(&carrier).await, Err(Parted::Moved));
        let again = tokio::spawn({
            let session = session.clone();
            async move { session.begin_to_leave().await }
        });
        drop(visit);
        assert!(leaving.await.unwrap());
        assert_eq!(carrier.wanted(), Wanted::No);
        drop(carrier);
        let texts = |luggage: Luggage| {
            let frames = luggage.waiting.iter();
            frames.map(|f| f.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(texts(session.luggage()), ["1", "2"]);

        let away = session.attach(Vehicle::Poll);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!again.is_finished());
        session.stay();
        assert!(again.await.unwrap());
        session.stay();
        assert!(session.visit().is_some());
        assert_eq!(take(&away).await, Err(Parted::Moved));
        let carrier = session.attach(Vehicle::Poll);
        assert_eq!(take(&away).await, Err(Parted::Moved));
        assert_eq!(take(&carrier).await.unwrap(), ["1", "2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_node_writes_is_waited_for_before_a_session_leaves() {
        for is_written in [true, false] {
            let (session, receipts) = (session(), Receipts::default());
            push(&session, &["1"]);
            let carrier = Arc::new(session.attach(Vehicle::Poll));
            take(&carrier).await.unwrap();
            give(carrier, &receipts);
            assert!(receipts.send_away());
            let leaving = tokio::spawn({
                let session = session.clone();
                async move { session.begin_to_leave().await }
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!leaving.is_finished());
            match is_written {
                true => receipts.written_away(),
                false => receipts.lost(),
            }
            assert!(leaving.await.unwrap());
            assert_eq!(session.luggage().waiting.is_empty(), is_written);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_visitor_may_end_a_session_that_is_about_to_leave() {
        let sessions = Sessions::new(1);
        let outbox = Arc::new(Outbox::new(100));
        let session = sessions.open(LIFETIME, outbox, ()).unwrap();
        let visit = session.visit();
        let leaving = tokio::spawn({
            let session = session.clone();
            async move { session.begin_to_leave().await }
        });
        tokio::task::yield_now().await;
        sessions.end(&session);
        drop(visit);
        assert!(!leaving.await.unwrap());
    }

    #[test]
    fn there_are_only_so_many_sessions() {
        let sessions = Sessions::new(2);
        let open = || sessions.open(LIFETIME, Arc::new(Outbox::new(100)), ());
        let first = open().unwrap();
        open().unwrap();
        assert_eq!(open().err(), Some(TooManySessions));
        sessions.end(&first);
        assert!(open().is_ok());
        assert_eq!(sessions.all().len(), 2);
    }
}
