//! What nodes write to each other: a head in JSON, the end of a line, and whatever bytes it is
//! about.

use std::net::IpAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub struct Letter {
    /// The node that wrote it.
    pub from: u32,
    /// Numbered by the node that began it.
    pub exchange: u64,
    pub what: What,
    pub body: Bytes,
}

/// In both directions: `begins` are by whoever began the exchange, the others answer.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Begins: answer this request. The body is the request's.
    Request(RequestHead),
    /// The part of the answer that came last is with the client.
    Written,
    /// Nobody waits for the answer any more.
    GivenUp,
    /// The head of the answer, with the first part of its body.
    Answer(AnswerHead),
    /// The next part of the body.
    Part {
        wants_receipt: bool,
    },
    /// There is no further part.
    End,
    /// There will be no end: something else took the answer's place.
    BrokenOff,
    /// Instead of an answer: look again where the session is.
    NotHere,

    /// Begins: its client is to come anew. Not answered.
    ShakeOff {
        house: String,
        id: String,
    },
    /// Begins: I want this session. Answered when it is there, or will not come.
    Take {
        house: String,
        id: String,
    },
    /// Begins: do you want this session? The body describes it.
    Offer {
        house: String,
        id: String,
    },
    /// It is subscribed here as there. Its queue may come.
    Ready,
    Refused,
    /// What you wanted is with you.
    Given,
    /// What waits for its client.
    Luggage,
    /// It is here.
    Settled,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct RequestHead {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub address: IpAddr,
    pub is_secure: bool,
    pub is_certified: bool,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct AnswerHead {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// There is no further part.
    pub is_whole: bool,
    pub wants_receipt: bool,
}

#[derive(Serialize, Deserialize)]
struct Head {
    from: u32,
    exchange: u64,
    what: What,
}

impl What {
    /// It begins an exchange.
    pub fn is_first(&self) -> bool {
        matches!(
            self,
            Self::Request(_) | Self::ShakeOff { .. } | Self::Take { .. } | Self::Offer { .. }
        )
    }

    /// It is by whoever began the exchange.
    pub fn is_by_its_beginner(&self) -> bool {
        self.is_first() || matches!(self, Self::Written | Self::GivenUp | Self::Luggage)
    }
}

impl Letter {
    pub fn written(&self) -> Vec<u8> {
        let head = Head {
            from: self.from,
            exchange: self.exchange,
            what: self.what.clone(),
        };
        let mut written = serde_json::to_vec(&head).unwrap_or_default();
        written.push(b'\n');
        written.extend_from_slice(&self.body);
        written
    }

    /// `None` for what no version of ours has written, or a later one.
    pub fn read(written: &[u8]) -> Option<Self> {
        let end = written.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&written[..end]).ok()?;
        Some(Self {
            from: head.from,
            exchange: head.exchange,
            what: head.what,
            body: Bytes::copy_from_slice(&written[end + 1..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_arrives_as_it_was_written() {
        let head = AnswerHead {
            status: 200,
            headers: vec![("x-y".to_owned(), "line\"".to_owned())],
            is_whole: true,
            wants_receipt: false,
        };
        for (what, body) in [
            (What::Answer(head), &b"one\ntwo\n"[..]),
            (What::GivenUp, b""),
        ] {
            let letter = Letter {
                from: 7,
                exchange: 9,
                what: what.clone(),
                body: Bytes::from_static(body),
            };
            let read = Letter::read(&letter.written()).unwrap();
            assert_eq!((read.from, read.exchange), (7, 9));
            assert_eq!((read.what, &read.body[..]), (what, body));
        }
    }

    #[test]
    fn what_is_no_letter_is_passed_over() {
        for text in [
            "",
            "\n",
            "{}\n",
            "{\"from\":1}",
            "{\"from\":1,\"exchange\":2,\"what\":\"later\"}\n",
        ] {
            assert!(Letter::read(text.as_bytes()).is_none(), "{text}");
        }
    }
}
