//! Writing to sockets without their tasks.
//!
//! What a socket is to send waits in its [`Source`], usually an outbox. The first frame wakes the
//! socket's [`Writer`], which does not run by itself: it queues up at a [`Flushers`] task, and that
//! task writes to one socket after the other. A round over many sockets takes a while; whatever is
//! published meanwhile gathers and goes out in the next round, many frames in one write. So the
//! busier the server, the less a delivery costs; and a lone event still goes out at once.
//!
//! A round has its price: a task to be woken, perhaps on another thread. Where only few sockets are
//! to be written to, or the node is quiet ([`crate::hub::may_at_once`]), whoever wakes them writes.
//! What a socket's own task causes, it writes itself ([`Writer::attend`]).
//!
//! ```text
//!          woken by its source             all taken is written
//!  idle ──────────────────────► queued ─────────────────────────► idle
//!                                  │ the socket takes no more
//!                                  ▼
//!                               blocked ─── its own task waits, and writes the rest ───► idle
//! ```

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::task::{ArcWake, waker_ref};

use super::stream::Stream;
use super::websocket::Close;
use crate::hub::{Frame, may_at_once};
use crate::wire::websocket::push_text;

/// Frames are gathered for one write up to this size, or to one frame: with TLS, one record.
const WRITE_BYTES: usize = 16 * 1024;
/// Frames that come in such a short time after each other gather.
const BURST: Duration = Duration::from_micros(200);
/// After so many sockets a flusher lets other tasks run: while publishers have their turn events gather.
const FLUSHES_BEFORE_YIELD: usize = 16;

/// Sockets that came after each other and have the same flusher: they lie together in memory.
const NEIGHBOURS: usize = 64;

/// What a socket is to send.
pub trait Source: Send + 'static {
    /// Waits for frames and encodes the first of them, until they are enough; all that was encoded
    /// before is written. `Err` once nothing more is to come. What the socket's own task adds need
    /// wake nobody: it flushes the writer behind each of its turns.
    fn poll_encode(
        &mut self,
        cx: &mut Context<'_>,
        encoded: &mut Encoded,
    ) -> Poll<Result<(), Close>>;

    /// The peer does not take what was encoded last.
    fn on_blocked(&self) {}

    /// While the peer takes nothing: waits until it is of no use to go on.
    fn poll_abandon(&self, cx: &mut Context<'_>) -> Poll<Close>;
}

/// Frames as they go over the wire.
pub struct Encoded {
    bytes: Vec<u8>,
}

impl Encoded {
    const NOTHING: Self = Self { bytes: Vec::new() };

    /// Whether they are enough: another frame like this would not fit.
    pub fn push(&mut self, frame: &Frame) -> bool {
        let before = self.bytes.len();
        push_text(&mut self.bytes, frame.as_str());
        let frame_bytes = self.bytes.len() - before;
        self.bytes.len() + frame_bytes > WRITE_BYTES
    }

    /// The first of the frames, or all.
    pub fn push_some(&mut self, frames: &mut VecDeque<Frame>) {
        while let Some(frame) = frames.pop_front() {
            if self.push(&frame) {
                break;
            }
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(4 * WRITE_BYTES);
    }
}

/// Why nothing more can be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    Broken,
    Close(Close),
}

/// What the task of a socket has to see to.
#[derive(PartialEq, Eq, Debug)]
pub enum Attention {
    /// The peer takes no more for now: somebody has to wait until it does.
    Blocked,
    Stopped(Stopped),
}

/// One socket's way out.
pub struct Writer<S> {
    flusher: Arc<Flusher>,
    /// Somebody is about to flush it: its flusher, where it stands in the queue, or the socket's task.
    is_due: AtomicBool,
    state: Mutex<State<S>>,
}

struct State<S> {
    /// Absent once its task has ended: whoever may wake the writer later must keep no socket open.
    ways: Option<Ways<S>>,
    /// What the socket did not take yet of bytes that end where a frame ends.
    rest: Vec<u8>,
    is_blocked: bool,
    /// Boxed, a writer is two cache lines.
    stopped: Option<Box<Stopped>>,
    task: Option<Waker>,
    /// When it was last written to by whoever woke it.
    written_at: Option<Instant>,
}

struct Ways<S> {
    stream: Arc<Stream>,
    source: S,
}

impl<S: Source> Writer<S> {
    pub fn new(stream: Arc<Stream>, source: S, flushers: &Flushers) -> Arc<Self> {
        Arc::new(Self {
            flusher: flushers.next(),
            is_due: AtomicBool::new(false),
            state: Mutex::new(State {
                ways: Some(Ways { stream, source }),
                rest: Vec::new(),
                is_blocked: false,
                stopped: None,
                task: None,
                written_at: None,
            }),
        })
    }

    /// Writes what there is, as far as the socket takes it, and listens for more.
    pub fn flush(self: &Arc<Self>) {
        // Before the source is asked: what comes after that queues up again.
        self.is_due.store(false, Ordering::Release);
        let mut state = self.state();
        if !state.is_blocked {
            state.write(self);
        }
    }

    /// Runs what the socket's own task does. What is to be sent because of it is written at the end of
    /// each of its turns, unless the writer stands in its flusher's queue and is soon to be written to
    /// with others.
    pub async fn attend<F: Future + Unpin>(self: &Arc<Self>, mut work: F) -> F::Output {
        poll_fn(|cx| {
            let was_due = self.is_due.swap(true, Ordering::AcqRel);
            let done = Pin::new(&mut work).poll(cx);
            // Whoever had it in its queue may have asked the source already.
            if !was_due || !self.is_due.load(Ordering::Acquire) {
                self.flush();
            }
            done
        })
        .await
    }

    /// Writes a control frame behind what was taken so far.
    pub fn control(self: &Arc<Self>, push: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        push(&mut state.rest);
        if !state.is_blocked {
            state.write(self);
        }
    }

    /// For the socket's task.
    pub fn poll_attention(&self, cx: &mut Context<'_>) -> Poll<Attention> {
        let mut state = self.state();
        if let Some(stopped) = state.stopped.take() {
            return Poll::Ready(Attention::Stopped(*stopped));
        }
        if state.is_blocked {
            return Poll::Ready(Attention::Blocked);
        }
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// For the task of a blocked socket that may take bytes again. Whether it took any.
    pub fn resume(self: &Arc<Self>) -> bool {
        let mut state = self.state();
        state.is_blocked = false;
        let waiting = state.rest.len();
        state.write(self);
        !state.is_blocked || state.rest.len() != waiting
    }

    pub fn is_blocked(&self) -> bool {
        self.state().is_blocked
    }

    pub fn poll_abandon(&self, cx: &mut Context<'_>) -> Poll<Close> {
        match &self.state().ways {
            Some(ways) => ways.source.poll_abandon(cx),
            None => Poll::Pending,
        }
    }

    /// Takes nothing more from the source; returns the bytes that were begun.
    pub fn retire(&self) -> Vec<u8> {
        let mut state = self.state();
        let ways = state.ways.take();
        let rest = mem::take(&mut state.rest);
        state.task = None;
        drop(state);
        // Outside the lock: others are told when the source goes.
        drop(ways);
        rest
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> State<S> {
    /// Whether this is no burst, whose frames had better gather for one write.
    fn is_calm(&mut self, now: Instant) -> bool {
        let before = self.written_at.replace(now);
        before.is_none_or(|before| now.duration_since(before) > BURST)
    }

    /// Writes what there is. Whoever does has other sockets to see to, whatever this one does.
    fn write(&mut self, writer: &Arc<Writer<S>>) {
        let written = catch_unwind(AssertUnwindSafe(|| self.write_all(writer)));
        if written.is_err() {
            self.stop(Stopped::Broken);
        }
    }

    fn write_all(&mut self, writer: &Arc<Writer<S>>) {
        let Some(ways) = &mut self.ways else { return };
        let waker = waker_ref(writer);
        let mut cx = Context::from_waker(&waker);
        while self.stopped.is_none() {
            if !self.rest.is_empty() {
                match ways.stream.try_write(&self.rest) {
                    Ok(written) => drop(self.rest.drain(..written)),
                    Err(error) => return self.on_error(&error),
                }
                if self.rest.is_empty() {
                    self.rest = Vec::new();
                }
            } else {
                match ways.write_next(&mut cx, &mut self.rest) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(close)) => return self.stop(Stopped::Close(close)),
                }
            }
        }
    }

    fn on_error(&mut self, error: &io::Error) {
        if let Some(ways) = &self.ways {
            ways.source.on_blocked();
        }
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                self.is_blocked = true;
                self.call_task();
            }
            _ => self.stop(Stopped::Broken),
        }
    }

    fn stop(&mut self, why: Stopped) {
        self.stopped = Some(Box::new(why));
        self.call_task();
    }

    fn call_task(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl<S: Source> Ways<S> {
    /// Writes the next frames in one go. What was not taken of them is the `rest`, and meets the
    /// socket's error again.
    fn write_next(&mut self, cx: &mut Context<'_>, rest: &mut Vec<u8>) -> Poll<Result<(), Close>> {
        thread_local! {
            static ENCODED: Cell<Encoded> = const { Cell::new(Encoded::NOTHING) };
        }
        // Taken, since asking the source may wake another writer, which writes in this call.
        let mut encoded = ENCODED.replace(Encoded::NOTHING);
        let outcome = self.source.poll_encode(cx, &mut encoded);
        if !encoded.bytes.is_empty() {
            let written = self.stream.try_write(&encoded.bytes).unwrap_or(0);
            rest.extend_from_slice(&encoded.bytes[written..]);
        }
        encoded.clear();
        ENCODED.replace(encoded);
        outcome
    }
}

/// By its source.
impl<S: Source> ArcWake for Writer<S> {
    fn wake_by_ref(writer: &Arc<Self>) {
        writer.clone().wake();
    }

    fn wake(self: Arc<Self>) {
        if self.is_due.swap(true, Ordering::AcqRel) {
            return;
        }
        // Whoever is writing just now may have asked the source before it had this.
        if let Some(now) = may_at_once()
            && let Ok(mut state) = self.state.try_lock()
            && state.is_calm(now)
        {
            self.is_due.store(false, Ordering::Release);
            if !state.is_blocked {
                state.write(&self);
            }
            return;
        }
        let flusher = self.flusher.clone();
        flusher.queue(self);
    }
}

/// What a flusher does for every kind of writer.
trait Flush: Send + Sync {
    fn flush(self: Arc<Self>);
}

impl<S: Source> Flush for Writer<S> {
    fn flush(self: Arc<Self>) {
        Writer::flush(&self);
    }
}

/// The tasks that write to sockets. They end when this is dropped.
pub struct Flushers {
    flushers: Vec<Arc<Flusher>>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Flusher {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    due: Vec<Arc<dyn Flush>>,
    is_over: bool,
    task: Option<Waker>,
}

impl Flushers {
    /// One for each processor.
    pub fn start() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let flushers: Vec<Arc<Flusher>> = (0..processors).map(|_| Arc::default()).collect();
        for flusher in &flushers {
            tokio::spawn(run(flusher.clone()));
        }
        Self {
            flushers,
            next: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> Arc<Flusher> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed) / NEIGHBOURS;
        self.flushers[nth % self.flushers.len()].clone()
    }
}

impl Drop for Flushers {
    fn drop(&mut self) {
        for flusher in &self.flushers {
            let mut queue = flusher.lock();
            queue.is_over = true;
            let task = queue.task.take();
            drop(queue);
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

impl Flusher {
    fn queue(&self, writer: Arc<dyn Flush>) {
        let mut queue = self.lock();
        queue.due.push(writer);
        let task = queue.task.take();
        drop(queue);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// `false` once it is over.
    fn poll_due(&self, cx: &mut Context<'_>, due: &mut Vec<Arc<dyn Flush>>) -> Poll<bool> {
        let mut queue = self.lock();
        if !queue.due.is_empty() {
            mem::swap(&mut queue.due, due);
            return Poll::Ready(true);
        }
        if queue.is_over {
            return Poll::Ready(false);
        }
        queue.task = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(flusher: Arc<Flusher>) {
    let mut due = Vec::new();
    while poll_fn(|cx| flusher.poll_due(cx, &mut due)).await {
        for (nth, writer) in due.drain(..).enumerate() {
            writer.flush();
            if (nth + 1).is_multiple_of(FLUSHES_BEFORE_YIELD) {
                tokio::task::yield_now().await;
            }
        }
        tokio::task::yield_now().await;
    }
}
