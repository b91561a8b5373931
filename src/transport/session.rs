//! Sessions that outlive a connection: what a client that comes with one HTTP request after
//! another, or changes its transport, keeps between them.
//!
//! A session's queue is the [`Outbox`] that the hub fills. At most one [`Carrier`] at a time takes
//! from it: a poll, a stream or a socket. What a carrier took and did not certainly write goes
//! back to the front when it is dropped, or when a newer one takes its place: a client that comes
//! anew has given up the earlier one.
//!
//! ```text
//!           attach               poll_take              written
//!  idle ─────────────► waiting ───────────► in flight ───────────► waiting
//!    ▲                    │                     │
//!    └────────────────────┴─── drop, attach ────┘ (in flight: back to the front)
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::receipt::Receipts;
use crate::hub::{Closing, Frame, Outbox};

/// The sessions of one front end or app, each with what its protocol keeps as `T`.
pub struct Sessions<T> {
    by_id: RwLock<HashMap<Arc<str>, Arc<Session<T>>>>,
    sessions_max: usize,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManySessions;

impl<T> Sessions<T> {
    pub fn new(sessions_max: usize) -> Self {
        Self {
            by_id: RwLock::default(),
            sessions_max,
        }
    }

    /// `lifetime`: how long the session outlives the last sign of its client.
    pub fn open(
        &self,
        lifetime: Duration,
        outbox: Arc<Outbox>,
        client: T,
    ) -> Result<Arc<Session<T>>, TooManySessions> {
        let now = Instant::now();
        let session = Arc::new(Session {
            id: random_id().into(),
            client,
            outbox,
            lifetime,
            state: Mutex::new(State {
                expires_at: now + lifetime,
                ended: false,
                attached: 0,
                carried_by: None,
                idle_since: (now, Vehicle::Poll),
                in_flight: VecDeque::new(),
                receipts: None,
            }),
        });
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        if by_id.len() >= self.sessions_max {
            return Err(TooManySessions);
        }
        by_id.insert(session.id.clone(), session.clone());
        Ok(session)
    }

    pub fn find(&self, id: &str) -> Option<Arc<Session<T>>> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.get(id).cloned()
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
    /// 160 random bits in base 36: whoever knows it is the client.
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

struct State {
    expires_at: Instant,
    ended: bool,
    /// The serial number of the newest carrier.
    attached: u64,
    /// Absent after the newest carrier was dropped.
    carried_by: Option<Vehicle>,
    /// When that was, and what it was.
    idle_since: (Instant, Vehicle),
    /// Taken and not known to be written.
    in_flight: VecDeque<Frame>,
    /// Of the connection that is writing it.
    receipts: Option<Receipts>,
}

impl<T> Session<T> {
    /// The client has shown itself.
    pub fn touch(&self) {
        self.state().expires_at = Instant::now() + self.lifetime;
    }

    /// Whether its time is over, or its queue was closed and nobody is there to be told.
    pub fn is_over(&self, now: Instant) -> bool {
        let state = self.state();
        let closing = self.outbox.closing();
        state.expires_at <= now
            || closing == Some(Closing::Slow)
            || closing.is_some() && state.carried_by.is_none()
    }

    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub fn carried_by(&self) -> Option<Vehicle> {
        self.state().carried_by
    }

    /// Since when nothing takes from the queue, and what did last.
    pub fn idle_since(&self) -> Option<(Instant, Vehicle)> {
        let state = self.state();
        state.carried_by.is_none().then_some(state.idle_since)
    }

    /// Takes the place of any other carrier, which is told so.
    ///
    /// A client that has its answer may come anew before we know that it was written: then this
    /// waits for the receipt, or the answer would come once more.
    pub fn attach(self: &Arc<Self>, vehicle: Vehicle) -> Carrier<T> {
        loop {
            let receipts = self.state().receipts.clone();
            let attached = match &receipts {
                Some(writing) => writing.between_writes(|| self.try_attach(vehicle, &receipts)),
                None => self.try_attach(vehicle, &receipts),
            };
            if let Some(carrier) = attached {
                return carrier;
            }
        }
    }

    /// `None` if something began to be written by others than these `receipts`.
    fn try_attach(
        self: &Arc<Self>,
        vehicle: Vehicle,
        receipts: &Option<Receipts>,
    ) -> Option<Carrier<T>> {
        let mut state = self.state();
        if let Some(writing) = &state.receipts
            && !(receipts.as_ref()).is_some_and(|known| known.are_of_one_connection(writing))
        {
            return None;
        }
        state.receipts = None;
        state.attached += 1;
        state.carried_by = Some(vehicle);
        self.outbox.put_back(&mut state.in_flight);
        let serial = state.attached;
        drop(state);
        self.outbox.wake();
        Some(Carrier {
            session: self.clone(),
            serial,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut state = self.session.state();
        if let Some(parted) = self.parted(&state) {
            return Poll::Ready(Err(parted));
        }
        let outbox = &self.session.outbox;
        if !state.in_flight.is_empty() {
            return outbox
                .poll_slow(cx)
                .map(|()| Err(Parted::Closed(Closing::Slow)));
        }
        let taken = outbox.poll_take(cx, &mut state.in_flight);
        taken.map_err(Parted::Closed).map_ok(|()| {
            batch.extend(state.in_flight.iter().cloned());
        })
    }

    /// From now on what was taken is being written by the connection that gives these receipts,
    /// unless another carrier took the place.
    pub fn writes_by(&self, receipts: &Receipts) {
        let mut state = self.session.state();
        if state.attached == self.serial {
            state.receipts = Some(receipts.clone());
        }
    }

    /// All that was taken is written.
    pub fn written(&self) {
        let mut state = self.session.state();
        if state.attached == self.serial && !state.in_flight.is_empty() {
            state.receipts = None;
            state.in_flight.clear();
            self.session.outbox.written();
        }
    }

    /// While writing: waits until it is of no use to go on.
    pub fn poll_parted(&self, cx: &mut Context<'_>) -> Poll<Parted> {
        if let Some(parted) = self.parted(&self.session.state()) {
            return Poll::Ready(parted);
        }
        let slow = self.session.outbox.poll_slow(cx);
        slow.map(|()| Parted::Closed(Closing::Slow))
    }

    pub fn is_newest(&self) -> bool {
        self.session.state().attached == self.serial
    }

    fn parted(&self, state: &State) -> Option<Parted> {
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
        if state.attached != self.serial {
            return;
        }
        if let Some(vehicle) = state.carried_by.take() {
            state.idle_since = (Instant::now(), vehicle);
        }
        self.session.outbox.put_back(&mut state.in_flight);
    }
}

const ID_CHARS: usize = 31;

/// 36^31 ids: a little more than 160 bits.
fn random_id() -> String {
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
    async fn a_new_carrier_takes_over_what_is_in_flight() {
        let session = session();
        push(&session, &["1"]);
        let old = session.attach(Vehicle::Socket);
        take(&old).await.unwrap();
        let new = session.attach(Vehicle::Poll);
        assert_eq!(take(&new).await.unwrap(), ["1"]);
        // Too late to say so, or to give it back.
        old.written();
        assert_eq!(take(&old).await, Err(Parted::Superseded));
        drop(old);
        assert_eq!(session.carried_by(), Some(Vehicle::Poll));
        new.written();
        push(&session, &["2"]);
        assert_eq!(take(&new).await.unwrap(), ["2"]);
    }

    #[tokio::test]
    async fn a_client_that_answers_before_we_know_what_it_has_is_not_sent_it_again() {
        let (session, receipts) = (session(), Receipts::default());
        push(&session, &["1"]);
        let old = session.attach(Vehicle::Poll);
        take(&old).await.unwrap();
        old.writes_by(&receipts);
        let came = receipts.between_writes(|| {
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
