//! CometD's extensions that need a server (`bayeux.md` 5.5): `ack`, by which a client says what it
//! has received, and `timesync`, by which it learns the difference of the clocks.

use std::collections::VecDeque;

use crate::hub::Frame;
use crate::wire::bayeux::{Ext, Given, Object};

/// Whether a handshake asks for acknowledged messages.
pub fn wants_acks(ext: &Ext) -> bool {
    ext.get("ack").is_some_and(|given| given.json() == "true")
}

/// The last batch that a connect acknowledges.
pub fn acknowledged(ext: &Ext) -> Option<u64> {
    ext.get("ack")?.json().parse().ok()
}

/// What was sent and is not acknowledged. Every connect reply is a batch, with or without messages.
#[derive(Default)]
pub struct Unacknowledged {
    batch: u64,
    /// With the batch that each went out with first, oldest first.
    sent: VecDeque<(u64, Frame)>,
}

impl Unacknowledged {
    /// All up to this batch has arrived; the rest has to be sent again.
    pub fn acknowledge(&mut self, batch: u64) {
        while self.sent.front().is_some_and(|(sent, _)| *sent <= batch) {
            self.sent.pop_front();
        }
    }

    /// The number of the next batch and all that goes out with it: what was lost, then what is
    /// new.
    pub fn next_batch(&mut self, new: VecDeque<Frame>) -> (u64, VecDeque<Frame>) {
        self.batch += 1;
        let batch = self.batch;
        for (sent, _) in &mut self.sent {
            *sent = batch;
        }
        self.sent
            .extend(new.into_iter().map(|frame| (batch, frame)));
        let frames = self.sent.iter().map(|(_, frame)| frame.clone());
        (batch, frames.collect())
    }

    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// The number of the last batch, and what is not acknowledged.
    pub fn parts(&self) -> (u64, impl Iterator<Item = &(u64, Frame)>) {
        (self.batch, self.sent.iter())
    }

    pub fn of_parts(batch: u64, sent: impl Iterator<Item = (u64, Frame)>) -> Self {
        let sent = sent.collect();
        Self { batch, sent }
    }
}

/// What a client wants to know of our clock.
pub struct TimeSync {
    /// The client's time, as it wrote it.
    tc: Box<str>,
    /// `tc + o + l - ts`: by how much its idea of our clock is wrong, if it has one.
    error_ms: Option<f64>,
    knows_lag: bool,
    received_ms: u64,
}

/// A client that is nearer is left alone.
const ACCURACY_MS: f64 = 25.0;

impl TimeSync {
    pub fn asked(ext: &Ext, now_ms: u64) -> Option<Self> {
        let asked = ext.get("timesync")?;
        let number = |name| {
            let given = asked.member(name).filter(|given| given.is_number())?;
            given.json().parse::<f64>().ok()
        };
        let tc = number("tc")?;
        let (lag, offset) = (number("l"), number("o").unwrap_or(0.0));
        Some(Self {
            tc: asked.member("tc").map(Given::json)?.into(),
            error_ms: lag.map(|lag| tc + offset + lag - now_ms as f64),
            knows_lag: lag.is_some_and(|lag| lag != 0.0),
            received_ms: now_ms,
        })
    }

    /// `None` if the client's idea is good enough.
    pub fn answer(&self, now_ms: u64) -> Option<String> {
        let waited_ms = now_ms.saturating_sub(self.received_ms);
        let answer = Object::default()
            .json("tc", &self.tc)
            .json("ts", &self.received_ms.to_string())
            .json("p", &waited_ms.to_string());
        match self.error_ms {
            None => Some(answer.end()),
            Some(ms) if self.knows_lag && ms.abs() < ACCURACY_MS => None,
            Some(ms) => Some(answer.json("a", &(ms.round() as i64).to_string()).end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::bayeux::{IncomingMessage, parse};

    fn frames(texts: &[&str]) -> VecDeque<Frame> {
        let frames = texts.iter().map(|text| Frame::from((*text).to_owned()));
        frames.collect()
    }

    #[test]
    fn what_was_lost_goes_out_again_before_what_is_new() {
        let mut sent = Unacknowledged::default();
        sent.acknowledge(0);
        assert_eq!(sent.next_batch(frames(&[])), (1, frames(&[])));
        sent.acknowledge(1);
        assert_eq!(sent.len(), 0);
        assert_eq!(
            sent.next_batch(frames(&["a", "b"])),
            (2, frames(&["a", "b"]))
        );
        sent.acknowledge(1);
        assert_eq!(sent.len(), 2);
        assert_eq!(
            sent.next_batch(frames(&["c"])),
            (3, frames(&["a", "b", "c"]))
        );
        sent.acknowledge(3);
        assert_eq!(sent.len(), 0);
    }

    #[test]
    fn clocks_are_compared_as_cometd_does() {
        let answer = |timesync: &str| {
            let text = format!(r#"{{"channel":"/meta/connect","ext":{{"timesync":{timesync}}}}}"#);
            match &parse(&text, 1).unwrap()[..] {
                [IncomingMessage::Connect(request)] => {
                    TimeSync::asked(&request.ext, 1000).and_then(|asked| asked.answer(1007))
                }
                _ => panic!("no connect"),
            }
        };
        for (asked, expected) in [
            (r#"{"tc":900}"#, Some(r#"{"tc":900,"ts":1000,"p":7}"#)),
            (
                r#"{"tc":900,"l":0,"o":0}"#,
                Some(r#"{"tc":900,"ts":1000,"p":7,"a":-100}"#),
            ),
            (
                r#"{"tc":990,"l":0,"o":0}"#,
                Some(r#"{"tc":990,"ts":1000,"p":7,"a":-10}"#),
            ),
            (r#"{"tc":990,"l":5,"o":0}"#, None),
            (
                r#"{"tc":900,"l":5,"o":200}"#,
                Some(r#"{"tc":900,"ts":1000,"p":7,"a":105}"#),
            ),
            (r#"{"tc":"900"}"#, None),
            ("1", None),
        ] {
            assert_eq!(answer(asked).as_deref(), expected, "{asked}");
        }
    }
}
