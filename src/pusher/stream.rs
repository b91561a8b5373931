//! Answers that bring a session's frames: one that ends with the first of them, and one that goes
//! on (`pusher.md` 7.3, 7.6).
//!
//! No answer is longer than the client reads of it. pusher-js gives up an answer when it has read
//! a whole line and more than 256 KiB; what would follow that line would be lost. So we end it
//! there ourselves, and pusher-js asks for the next, which says that all of it has arrived.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Interval, interval, timeout};
use warp::reply::{Reply, Response};

use super::sessions::{Client, Fallback, HOLD, Taken};
use crate::hub::Frame;
use crate::transport::receipt::{self, Receipts, Wanted};
use crate::transport::session::Carrier;
use crate::transport::websocket::Close;
use crate::wire::sockjs::{self, Framing, HEARTBEAT, NOTHING, OPEN};

/// What SockJS says to a request in whose place another has come (7.6).
pub const ANOTHER_CONNECTION: (u16, &str) = (2010, "Another connection still open");

/// An answer to be written.
pub struct Answer {
    pub carrier: Carrier<Client>,
    /// Begins with the opening frame.
    pub opens: bool,
    /// In units of UTF-16: it ends with the frame that takes it past so many.
    pub units_max: usize,
    pub receipts: Receipts,
    pub framing: Framing,
}

impl Answer {
    /// Waits for something to say, but not for ever; what opens the session waits for nothing.
    pub async fn poll(self) -> Response {
        let framing = self.framing.clone();
        let opening = match self.opens {
            true => framing.frame(OPEN),
            false => String::new(),
        };
        if self.opens && framing.is_single() {
            return self.answered(opening, false);
        }
        let hold = match self.opens {
            true => Duration::ZERO,
            false => HOLD,
        };
        let measure = Measure {
            used: sockjs::units(&opening),
            units_max: self.units_max,
        };
        let mut batch = VecDeque::new();
        let taken = poll_fn(|cx| {
            let is_enough = measure.is_enough();
            Fallback::poll_take(&self.carrier, cx, &mut batch, is_enough, &self.receipts)
        });
        let taken = timeout(hold, taken).await;
        let brings_messages = matches!(taken, Ok(Taken::Messages));
        let frames = match taken {
            Ok(Taken::Messages) => framing.frame(&array(&batch)),
            Ok(Taken::Close(close)) => farewell(&framing, &close),
            Ok(Taken::Superseded) => superseded(&framing),
            Ok(Taken::Moved) => framing.frame(HEARTBEAT),
            Err(_) if self.opens => String::new(),
            Err(_) => framing.frame(HEARTBEAT),
        };
        self.answered(opening + &frames, brings_messages)
    }

    fn answered(self, body: String, brings_messages: bool) -> Response {
        let carrier = Arc::new(self.carrier);
        receipt::answer(body.into(), &self.receipts, move |receipts| {
            let wanted = wanted(carrier.clone(), brings_messages);
            receipts.when_written_if(wanted, move || carrier.answered());
        })
    }

    /// Begins with the prelude and then says whatever there is to say.
    pub fn stream(self, fallback: Arc<Fallback>) -> Response {
        let mut head = self.framing.prelude();
        if self.opens {
            head.push_str(&self.framing.frame(OPEN));
        }
        let mut beats = interval(fallback.beat());
        beats.reset();
        let body = Body {
            measure: Measure {
                used: sockjs::units(&head),
                units_max: self.units_max,
            },
            head: Some(head.into()),
            carrier: Arc::new(self.carrier),
            receipts: self.receipts,
            framing: self.framing,
            fallback,
            beats,
            is_quiet: true,
            batch: VecDeque::new(),
            has_ended: false,
        };
        warp::reply::stream(body).into_response()
    }
}

/// Messages are not written any more when they are the carrier's no more.
fn wanted(carrier: Arc<Carrier<Client>>, brings_messages: bool) -> impl Fn() -> Wanted {
    move || match brings_messages {
        true => carrier.wanted(),
        false => Wanted::Yes,
    }
}

struct Body {
    head: Option<Bytes>,
    carrier: Arc<Carrier<Client>>,
    receipts: Receipts,
    framing: Framing,
    fallback: Arc<Fallback>,
    beats: Interval,
    /// Nothing was written since the last beat.
    is_quiet: bool,
    measure: Measure,
    /// Empty between two polls.
    batch: VecDeque<Frame>,
    has_ended: bool,
}

impl Stream for Body {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Some(head) = this.head.take() {
            return Poll::Ready(Some(Ok(head)));
        }
        let is_enough = this.measure.is_enough();
        let (carrier, receipts) = (&this.carrier, &this.receipts);
        let taken = Fallback::poll_take(carrier, cx, &mut this.batch, is_enough, receipts);
        let brings_messages = matches!(taken, Poll::Ready(Taken::Messages));
        let text = match taken {
            Poll::Ready(Taken::Messages) => {
                let text = this.framing.frame(&array(&this.batch));
                this.batch.clear();
                text
            }
            Poll::Ready(Taken::Close(close)) => {
                this.has_ended = true;
                farewell(&this.framing, &close)
            }
            Poll::Ready(Taken::Superseded) => {
                this.has_ended = true;
                superseded(&this.framing)
            }
            Poll::Ready(Taken::Moved) => {
                this.has_ended = true;
                this.framing.frame(&this.measure.filling())
            }
            Poll::Pending => loop {
                if this.beats.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                if let Some(sign) = this.sign_of_life() {
                    break this.framing.frame(sign);
                }
                this.is_quiet = true;
            },
        };
        this.is_quiet = false;
        this.measure.used += sockjs::units(&text);
        this.has_ended |= this.measure.is_full();
        let (carrier, has_ended) = (this.carrier.clone(), this.has_ended);
        let wanted = wanted(carrier.clone(), brings_messages);
        this.receipts.when_written_if(wanted, move || {
            if has_ended {
                return carrier.answered();
            }
            carrier.written();
            carrier.session.outbox.wake();
        });
        Poll::Ready(Some(Ok(text.into())))
    }
}

impl Body {
    /// Asks for an answer only when the client was not heard for long.
    fn sign_of_life(&self) -> Option<&'static str> {
        if self.fallback.is_to_be_asked(&self.carrier.session) {
            return Some(HEARTBEAT);
        }
        self.is_quiet.then_some(NOTHING)
    }
}

/// How much of an answer is used, in units of UTF-16.
struct Measure {
    used: usize,
    units_max: usize,
}

impl Measure {
    /// Tells with which message of an array the answer will be full.
    fn is_enough(&self) -> impl FnMut(&Frame) -> bool + use<> {
        /// `a[`, `]` and the end of the line, less the comma that the first message lacks.
        const AROUND: usize = 3;
        let (mut used, units_max) = (self.used + AROUND, self.units_max);
        move |message| {
            used += sockjs::units(message.as_str()) + 1;
            used > units_max
        }
    }

    /// An array without messages with which the answer is full: of an answer that ends before it
    /// is, pusher-js takes the end for the session's.
    fn filling(&self) -> String {
        let units = (self.units_max + 1).saturating_sub(self.used);
        format!("a[{}]", " ".repeat(units))
    }

    fn is_full(&self) -> bool {
        self.used > self.units_max
    }
}

fn array(batch: &VecDeque<Frame>) -> String {
    sockjs::array(batch.iter().map(Frame::as_str))
}

/// The error event, for whoever reads only events, then the close (7.6).
pub fn farewell(framing: &Framing, close: &Close) -> String {
    let last_words = (close.last_words.as_ref()).filter(|_| !framing.is_single());
    let last_words = last_words.map(|frame| {
        let message = sockjs::quoted(frame.as_str());
        framing.frame(&sockjs::array(std::iter::once(message.as_str())))
    });
    let frame = sockjs::close(close.code, &close.reason);
    last_words.unwrap_or_default() + &framing.frame(&frame)
}

pub fn superseded(framing: &Framing) -> String {
    let (code, reason) = ANOTHER_CONNECTION;
    framing.frame(&sockjs::close(code, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_full_with_the_message_that_takes_it_past_its_limit() {
        for (units_max, messages) in [
            (9, 1),
            (10, 1),
            (11, 2),
            (14, 2),
            (15, 3),
            (18, 3),
            (19, 4),
            (100, 4),
        ] {
            let measure = Measure { used: 4, units_max };
            let mut is_enough = measure.is_enough();
            let quoted = ["\"a\"", "\"é\"", "\"b\"", "\"c\""];
            let frames = quoted.map(|text| Frame::from(text.to_owned()));
            let taken: Vec<_> = match frames.iter().position(&mut is_enough) {
                Some(last) => frames[..=last].to_vec(),
                None => frames.to_vec(),
            };
            assert_eq!(taken.len(), messages, "{units_max}");
            let text = Framing::Lines.frame(&array(&taken.clone().into()));
            let units = 4 + sockjs::units(&text);
            assert_eq!(units > units_max, units_max < 23, "{units_max}");
        }
    }
}
