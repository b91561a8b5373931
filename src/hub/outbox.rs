//! Everything that one peer is to receive, in order, bounded in bytes and perhaps in number.
//!
//! Pushing never waits. The owner, one task that writes to the peer, takes all that is there at
//! once, so a burst costs one wake-up. An outbox whose owner does not keep up closes itself. It
//! may have one owner after another: what the first could not write, it puts back.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::lock;
use crate::metrics::{CUT_OFFS, CutOff, DELIVERY_SECONDS};
use crate::model::EventId;

/// An empty queue with room for more frames gives it back.
const KEPT_FRAMES_MAX: usize = 64;

/// One message to a peer, encoded. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame(Arc<Content>);

#[derive(PartialEq, Eq, Debug)]
struct Content {
    text: Box<str>,
    event: Option<EventId>,
}

impl Frame {
    /// For whoever has just made it: what it was made of.
    pub fn of_event(mut self, event: EventId) -> Self {
        if let Some(content) = Arc::get_mut(&mut self.0) {
            content.event = Some(event);
        }
        self
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The event that it was made of. Absent for what is said to one peer alone.
    pub fn event(&self) -> Option<EventId> {
        self.0.event
    }

    /// Only of one channel are ids unlike each other; the text has its name.
    fn of_which_event(&self) -> Option<(EventId, &str)> {
        self.event().map(|id| (id, self.as_str()))
    }

    /// The bytes it is charged with: a flood of empty frames costs memory too.
    fn cost_bytes(&self) -> usize {
        self.0.text.len() + mem::size_of::<Content>()
    }
}

impl From<String> for Frame {
    fn from(text: String) -> Self {
        Self(Arc::new(Content {
            text: text.into_boxed_str(),
            event: None,
        }))
    }
}

/// Why an outbox takes nothing more. The front end says it in its protocol's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// More than its limit was waiting: what was waiting is dropped.
    Slow,
    /// The application ended the user's connections.
    Terminated,
    /// The server is about to stop, and others take over.
    Draining,
    /// The server is about to stop, and will be there again.
    Restarting,
}

pub struct Outbox {
    bytes_max: usize,
    frames_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Frame>,
    /// Waiting and handed to the owner, but not yet known to be written.
    bytes: usize,
    /// The part of `bytes` that the owner took last.
    taken_bytes: usize,
    closing: Option<Closing>,
    owner: Option<Waker>,
    /// Since when a frame is on its way whose time is taken: while it waits, and once it is taken.
    /// Few outboxes have one: boxed, an outbox is two cache lines.
    timed: Option<Box<Instant>>,
    taken_timed: Option<Box<Instant>>,
}

impl Outbox {
    pub fn new(bytes_max: usize) -> Self {
        Self::bounded(bytes_max, usize::MAX)
    }

    /// `frames_max` is how many may wait.
    pub fn bounded(bytes_max: usize, frames_max: usize) -> Self {
        Self {
            bytes_max,
            frames_max,
            state: Mutex::default(),
        }
    }

    pub fn push(&self, frame: Frame) {
        if let Some(owner) = self.put(frame) {
            owner.wake();
        }
    }

    /// The same, but leaves waking the owner, where it waits, to the caller.
    pub fn put(&self, frame: Frame) -> Option<Waker> {
        let mut state = self.state();
        if state.closing.is_some() {
            return None;
        }
        let was_empty = state.frames.is_empty();
        state.bytes += frame.cost_bytes();
        if state.bytes > self.bytes_max || state.frames.len() >= self.frames_max {
            state.forget_waiting();
            state.closing = Some(Closing::Slow);
            CUT_OFFS.count(CutOff::SlowConsumer);
        } else {
            state.frames.push_back(frame);
            if !was_empty {
                return None;
            }
        }
        state.owner.take()
    }

    /// Takes the time from `since` until what is pushed next is written, if somebody is there to
    /// write it.
    pub fn time(&self, since: Instant) {
        let mut state = self.state();
        if state.owner.is_some() || state.taken_bytes > 0 {
            state.timed.get_or_insert_with(|| Box::new(since));
        }
    }

    /// Takes nothing more from now on. What waits is still the owner's to take, unless it is
    /// closed as slow. Whether it was open until now.
    pub fn close(&self, why: Closing) -> bool {
        let mut state = self.state();
        let was_open = state.closing.is_none();
        if was_open {
            state.closing = Some(why);
            if why == Closing::Slow {
                state.forget_waiting();
            }
            wake_owner(state);
        }
        was_open
    }

    /// Closes it as slow, and counts why if it was open until now.
    pub fn cut_off(&self, cause: CutOff) {
        if self.close(Closing::Slow) {
            CUT_OFFS.count(cause);
        }
    }

    /// For the owner, when all that it took before is written: waits for frames and moves them
    /// to the empty `batch`. `Err` once it is closed and nothing is left.
    pub fn poll_take(
        &self,
        cx: &mut Context<'_>,
        batch: &mut VecDeque<Frame>,
    ) -> Poll<Result<(), Closing>> {
        debug_assert!(batch.is_empty());
        let mut state = self.state();
        state.taken_is_written();
        if !state.frames.is_empty() {
            // Both queues are used again and again, but not for ever as long as a burst was.
            if batch.capacity() > KEPT_FRAMES_MAX {
                *batch = VecDeque::new();
            }
            mem::swap(batch, &mut state.frames);
            state.taken_bytes = state.bytes;
            state.taken_timed = state.timed.take();
            return Poll::Ready(Ok(()));
        }
        state.poll_empty(cx)
    }

    /// As [`Outbox::poll_take`], but gives one frame after the other to `take`, which says whether it
    /// has enough. Whoever pushes waits meanwhile: it may copy some kilobytes, not more.
    pub fn poll_next(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&Frame) -> bool,
    ) -> Poll<Result<(), Closing>> {
        let mut state = self.state();
        state.taken_is_written();
        if state.frames.is_empty() {
            return state.poll_empty(cx);
        }
        while let Some(frame) = state.frames.pop_front() {
            state.taken_bytes += frame.cost_bytes();
            if take(&frame) {
                break;
            }
        }
        if state.frames.is_empty() {
            state.taken_timed = state.timed.take();
            if state.frames.capacity() > KEPT_FRAMES_MAX {
                state.frames = VecDeque::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// For the owner: all that it took is written. Taking more says so too.
    pub fn written(&self) {
        self.state().taken_is_written();
    }

    /// Bytes waiting and being written.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// For the owner: returns to the front what was not written of what it took. The rest is.
    pub fn put_back(&self, frames: &mut VecDeque<Frame>) {
        let mut state = self.state();
        state.bytes -= mem::take(&mut state.taken_bytes);
        if state.closing == Some(Closing::Slow) {
            frames.clear();
            return;
        }
        state.bytes += frames.iter().map(Frame::cost_bytes).sum::<usize>();
        state.taken_timed = None;
        frames.append(&mut state.frames);
        mem::swap(frames, &mut state.frames);
        if !state.frames.is_empty() {
            wake_owner(state);
        }
    }

    /// All that waits now. What comes later waits still.
    pub fn waiting(&self) -> Vec<Frame> {
        self.state().frames.iter().cloned().collect()
    }

    /// Puts frames that come from elsewhere in front of those that came here, except for events
    /// that are among both.
    pub fn put_in_front(&self, earlier: Vec<Frame>) {
        let mut state = self.state();
        let later = mem::take(&mut state.frames);
        let mut frames = VecDeque::with_capacity(earlier.len() + later.len());
        {
            let events = earlier.iter();
            let are_there: HashSet<_> = events.filter_map(Frame::of_which_event).collect();
            let is_new = |frame: &Frame| {
                let event = frame.of_which_event();
                event.is_none_or(|event| !are_there.contains(&event))
            };
            frames.extend(earlier.iter().cloned());
            frames.extend(later.into_iter().filter(is_new));
        }
        state.bytes = state.taken_bytes + frames.iter().map(Frame::cost_bytes).sum::<usize>();
        state.frames = frames;
        wake_owner(state);
    }

    /// Lets the owner, or whoever was it, look again.
    pub fn wake(&self) {
        wake_owner(self.state());
    }

    pub fn closing(&self) -> Option<Closing> {
        self.state().closing
    }

    /// For the owner while it writes: waits until the outbox is closed as slow. Closed for another
    /// reason it still has something to say, for as long as a write may take.
    pub fn poll_slow(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.closing == Some(Closing::Slow) {
            return Poll::Ready(());
        }
        state.owner = Some(cx.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// When nothing waits: the end, or the owner will be told of what comes.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closing>> {
        if let Some(why) = self.closing {
            return Poll::Ready(Err(why));
        }
        self.owner = Some(cx.waker().clone());
        Poll::Pending
    }

    fn forget_waiting(&mut self) {
        self.frames = VecDeque::new();
        self.bytes = self.taken_bytes;
        self.timed = None;
    }

    fn taken_is_written(&mut self) {
        self.bytes -= mem::take(&mut self.taken_bytes);
        if let Some(since) = self.taken_timed.take() {
            DELIVERY_SECONDS.observe(since.elapsed());
        }
    }
}

thread_local! {
    static AT_ONCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Wakes the owners of outboxes, who may do their work at once, in this call: a `Waker` takes no
/// argument that could say so, hence [`may_at_once`].
pub fn wake_at_once(owners: impl IntoIterator<Item = Waker>) {
    let before = AT_ONCE.get();
    let now = Instant::now();
    for owner in owners {
        AT_ONCE.set(Some(now));
        owner.wake();
    }
    AT_ONCE.set(before);
}

/// For whoever is woken, to be asked once: whether nobody waits for long if it does its work at once.
/// Those that it wakes in turn may not, as it may hold what they need. If so, what time it was for
/// the first of those that are woken together, so that not each of them reads the clock.
pub fn may_at_once() -> Option<Instant> {
    AT_ONCE.take()
}

/// Wakes after the lock is free, so that the woken task does not run into it.
fn wake_owner(mut state: MutexGuard<'_, State>) {
    let owner = state.owner.take();
    drop(state);
    if let Some(owner) = owner {
        owner.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    fn frame(text: &str) -> Frame {
        text.to_owned().into()
    }

    async fn take(outbox: &Outbox) -> Result<Vec<String>, Closing> {
        let mut batch = VecDeque::new();
        poll_fn(|cx| outbox.poll_take(cx, &mut batch)).await?;
        Ok(batch.iter().map(|f| f.as_str().to_owned()).collect())
    }

    #[tokio::test]
    async fn frames_come_out_in_order_all_at_once() {
        let outbox = Outbox::new(1000);
        outbox.push(frame("a"));
        outbox.push(frame("b"));
        assert_eq!(take(&outbox).await.unwrap(), ["a", "b"]);
    }

    #[tokio::test]
    async fn past_its_limit_it_closes_as_slow_and_frees_what_it_held() {
        let outbox = Outbox::new(3 * frame("12345678").cost_bytes());
        for _ in 0..3 {
            outbox.push(frame("12345678"));
        }
        outbox.push(frame("x"));
        assert_eq!((outbox.bytes(), outbox.state().frames.capacity()), (0, 0));
        assert_eq!(take(&outbox).await, Err(Closing::Slow));
    }

    #[tokio::test]
    async fn what_is_dropped_is_charged_no_longer_and_what_is_being_written_still_is() {
        let outbox = Outbox::new(1000);
        let mut batch = VecDeque::new();
        outbox.push(frame("taken"));
        poll_fn(|cx| outbox.poll_take(cx, &mut batch))
            .await
            .unwrap();
        outbox.push(frame("waits"));
        assert!(outbox.close(Closing::Slow));
        assert!(!outbox.close(Closing::Terminated));
        assert_eq!(outbox.bytes(), frame("taken").cost_bytes());
        outbox.put_back(&mut batch);
        assert_eq!((outbox.bytes(), batch.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_the_owner_is_still_writing_counts() {
        let outbox = Outbox::new(2 * frame("12345678").cost_bytes());
        outbox.push(frame("12345678"));
        take(&outbox).await.unwrap();
        outbox.push(frame("12345678"));
        take(&outbox).await.unwrap();
        outbox.push(frame("12345678"));
        outbox.push(frame("x"));
        assert_eq!(take(&outbox).await, Err(Closing::Slow));
    }

    #[tokio::test]
    async fn a_closed_outbox_gives_what_it_has_and_takes_nothing_more() {
        let outbox = Outbox::new(1000);
        outbox.push(frame("a"));
        outbox.close(Closing::Terminated);
        outbox.close(Closing::Draining);
        outbox.push(frame("b"));
        assert_eq!(take(&outbox).await.unwrap(), ["a"]);
        assert_eq!(take(&outbox).await, Err(Closing::Terminated));
    }

    #[tokio::test]
    async fn what_was_put_back_comes_out_first_and_still_counts() {
        let outbox = Outbox::new(4 * frame("12345678").cost_bytes());
        let mut batch = VecDeque::new();
        outbox.push(frame("1"));
        outbox.push(frame("2"));
        poll_fn(|cx| outbox.poll_take(cx, &mut batch))
            .await
            .unwrap();
        outbox.push(frame("3"));
        outbox.put_back(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(take(&outbox).await.unwrap(), ["1", "2", "3"]);
        outbox.written();
        assert_eq!(outbox.state().bytes, 0);

        outbox.push(frame("12345678"));
        outbox.push(frame("12345678"));
        poll_fn(|cx| outbox.poll_take(cx, &mut batch))
            .await
            .unwrap();
        outbox.put_back(&mut batch);
        outbox.push(frame("12345678"));
        outbox.push(frame("12345678"));
        assert_eq!(outbox.closing(), None);
        outbox.push(frame("x"));
        assert_eq!(outbox.closing(), Some(Closing::Slow));
    }

    #[tokio::test]
    async fn the_number_of_waiting_frames_may_have_a_limit() {
        let outbox = Outbox::bounded(1000, 2);
        outbox.push(frame("1"));
        outbox.push(frame("2"));
        assert_eq!(take(&outbox).await.unwrap(), ["1", "2"]);
        for _ in 0..3 {
            outbox.push(frame("x"));
        }
        assert_eq!(take(&outbox).await, Err(Closing::Slow));
    }

    #[tokio::test]
    async fn as_many_are_taken_as_are_enough_and_only_those_are_written() {
        let outbox = Outbox::new(1000);
        let cost = frame("a").cost_bytes();
        for text in ["a", "b", "c"] {
            outbox.push(frame(text));
        }
        let take = async |enough: usize| {
            let mut texts = String::new();
            let taken = poll_fn(|cx| {
                outbox.poll_next(cx, |frame| {
                    texts.push_str(frame.as_str());
                    texts.len() == enough
                })
            });
            taken.await.map(|()| texts)
        };
        assert_eq!(take(2).await.unwrap(), "ab");
        assert_eq!(outbox.bytes(), 3 * cost);
        outbox.push(frame("d"));
        assert_eq!(take(3).await.unwrap(), "cd");
        assert_eq!(outbox.bytes(), 2 * cost);
        outbox.written();
        assert_eq!(outbox.bytes(), 0);
        outbox.push(frame("e"));
        outbox.close(Closing::Draining);
        assert_eq!(take(3).await.unwrap(), "e");
        assert_eq!(take(3).await, Err(Closing::Draining));
    }

    #[test]
    fn an_outbox_and_what_counts_who_has_it_are_two_cache_lines() {
        assert!(size_of::<Outbox>() + 2 * size_of::<usize>() <= 128);
    }

    #[tokio::test]
    async fn what_comes_from_elsewhere_goes_first_and_each_event_once() {
        let event = |serial: u64| frame(&serial.to_string()).of_event(EventId::new(1, serial));
        let outbox = Outbox::new(1000);
        for serial in [2, 3, 4] {
            outbox.push(event(serial));
        }
        outbox.push(frame("2"));
        outbox.put_in_front(vec![frame("reply"), event(1), event(2), event(3)]);
        let taken = take(&outbox).await.unwrap();
        assert_eq!(taken, ["reply", "1", "2", "3", "4", "2"]);
        outbox.written();
        assert_eq!(outbox.bytes(), 0);
    }

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes the next and tells whether it may work at once, the first one first.
    struct Chain(Option<Waker>, Arc<Mutex<Vec<bool>>>);
    impl Wake for Chain {
        fn wake(self: Arc<Self>) {
            lock(&self.1).push(may_at_once().is_some());
            if let Some(next) = &self.0 {
                next.wake_by_ref();
            }
        }
    }

    #[test]
    fn those_that_are_woken_may_work_at_once_and_those_that_they_wake_may_not() {
        let told = Arc::default();
        let chain = |next| Waker::from(Arc::new(Chain(next, Arc::clone(&told))));
        let (first, second) = (chain(Some(chain(None))), chain(None));
        wake_at_once([first.clone(), second]);
        first.wake();
        assert_eq!(*lock(&told), [true, false, true, false, false]);
    }

    #[test]
    fn a_burst_wakes_the_owner_once() {
        let outbox = Outbox::new(1000);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = count.clone().into();
        let mut batch = VecDeque::new();
        let pending = outbox.poll_take(&mut Context::from_waker(&waker), &mut batch);
        assert!(pending.is_pending());
        for _ in 0..10 {
            outbox.push(frame("x"));
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
