//! How a session goes from one node to another, with its subscriptions and all that waits for its
//! client.
//!
//! ```text
//!   owner                                               taker
//!     │ stops the session: nobody takes from its queue    │
//!     │ ───────────────── Offer: what it is ────────────► │ subscribes to all of it
//!     │ ◄──────────────────── Ready ───────────────────── │
//!     │ waits until it has heard all that was published   │
//!     │ before, and puts the session on offer             │
//!     │ ─────────────── Luggage: its queue ─────────────► │ takes it, in the directory: from then
//!     │ ◄─────────────────── Settled ──────────────────── │ on it is here
//!     │ leaves its channels, without a word               │
//! ```
//!
//! From Ready on both nodes get what is published; events that are in the queue and came to the
//! taker too are left out there. The directory decides where the session is: the owner takes an
//! offer back, or the taker takes it up, whoever is first.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::exchange::Exchange;
use super::letter::What;
use super::{ARRIVES_WITHIN, House, HouseName, Peers};
use crate::backend::Redis;
use crate::hub::Frame;
use crate::model::EventId;
use crate::transport::session::Luggage;

/// How long one side waits for the other's next letter.
const LETTER_WITHIN: Duration = Duration::from_secs(3);

/// Why a session is not on the other node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stays {
    /// It is not here, or going already.
    NotHere,
    /// The other node does not take it, or does not answer.
    Refused(&'static str),
}

impl Peers {
    /// Brings a session here that another node has. Whether it is here then.
    pub async fn bring(&self, house: HouseName, id: &str, from: u32) -> bool {
        let mut exchange = self.exchanges.begin(from);
        let take = What::Take {
            house: house.to_owned(),
            id: id.to_owned(),
        };
        if self.post(from, exchange.number(), take, &[]).await {
            // It is here by then, or will not come.
            let _ = exchange.next_within(ARRIVES_WITHIN).await;
        }
        self.has(house, id)
    }

    /// Another node wants a session of this one.
    pub(super) async fn give_up(&self, exchange: Exchange, house: &str, id: &str) {
        let (to, number) = (exchange.with(), exchange.number());
        let sent = match self.house(house) {
            Some(house) => self.send_off(&house, id, to).await,
            None => Err(Stays::NotHere),
        };
        let answer = match sent {
            Ok(()) => What::Given,
            Err(_) => What::Refused,
        };
        self.post(to, number, answer, &[]).await;
    }

    pub(super) async fn send_off(
        &self,
        house: &Arc<dyn House>,
        id: &str,
        to: u32,
    ) -> Result<(), Stays> {
        let departure = house.depart(id).await.ok_or(Stays::NotHere)?;
        let name = house.name();
        let mut exchange = self.exchanges.begin(to);
        let number = exchange.number();
        let offer = What::Offer {
            house: name.to_owned(),
            id: id.to_owned(),
        };
        if !self.post(to, number, offer, &departure.description()).await {
            return Err(Stays::Refused("the node is not there"));
        }
        if !is(exchange.next_within(LETTER_WITHIN).await, &What::Ready) {
            return Err(Stays::Refused("it is not taken"));
        }
        let partitions = departure.channels();
        let mut partitions: Vec<_> = partitions.iter().map(Redis::partition_of).collect();
        partitions.sort_unstable();
        partitions.dedup();
        self.redis.caught_up(partitions.into_iter()).await;
        let luggage = departure.luggage();
        let luggage = luggage.ok_or(Stays::Refused("it has come to its end"))?;
        if !self.directory.offer(name, id, number).await {
            return Err(Stays::Refused("the directory has it elsewhere"));
        }
        let is_settled = self.post(to, number, What::Luggage, &packed(luggage)).await
            && is(exchange.next_within(LETTER_WITHIN).await, &What::Settled);
        if !is_settled && self.take_back(name, id, number).await {
            return Err(Stays::Refused("it did not arrive"));
        }
        departure.has_gone().await;
        self.counts.moved_away.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the session stays here. While Redis is away nobody can take it either.
    async fn take_back(&self, house: HouseName, id: &str, number: u64) -> bool {
        let withdrawn = decided(|| self.directory.withdraw(house, id, number)).await;
        // Whoever could have taken it has given up by now.
        withdrawn.unwrap_or(true)
    }

    /// Another node offers a session. What was offered before and did not come has left first: it has
    /// the same name in the same channels.
    pub(super) async fn take_in(
        &self,
        mut exchange: Exchange,
        house: &str,
        id: &str,
        description: &[u8],
    ) {
        let (to, number) = (exchange.with(), exchange.number());
        let (before, turn) = self.arrivals.enter(house, id, (to, number));
        if let Some((with, number)) = before {
            self.exchanges.end(with, number);
        }
        {
            let _turn = turn.lock().await;
            let is_here = self.take_in_now(&mut exchange, house, id, description);
            let answer = match is_here.await {
                true => What::Settled,
                false => What::Refused,
            };
            self.post(to, number, answer, &[]).await;
        }
        self.arrivals.leave(house, id, (to, number));
    }

    async fn take_in_now(
        &self,
        exchange: &mut Exchange,
        house: &str,
        id: &str,
        description: &[u8],
    ) -> bool {
        let house = self.house(house);
        let house = house.filter(|_| !self.is_leaving.load(Ordering::Relaxed));
        let Some(house) = house else {
            return false;
        };
        let Some(arrival) = house.arrive(id, description).await else {
            return false;
        };
        match self.bring_luggage(exchange, house.name(), id).await {
            Some(luggage) => {
                arrival.settle(luggage);
                self.counts.moved_here.fetch_add(1, Ordering::Relaxed);
                true
            }
            None => {
                arrival.turn_away().await;
                false
            }
        }
    }

    /// `None` if the session is not here then.
    async fn bring_luggage(
        &self,
        exchange: &mut Exchange,
        house: HouseName,
        id: &str,
    ) -> Option<Luggage> {
        let (to, number) = (exchange.with(), exchange.number());
        if !self.post(to, number, What::Ready, &[]).await {
            return None;
        }
        // The owner waits for what was published before it sends this.
        let letter = exchange.next_within(2 * LETTER_WITHIN).await;
        let Some((What::Luggage, body)) = letter else {
            return None;
        };
        let luggage = unpacked(&body)?;
        // It may be here although the answer was lost.
        let taken = decided(|| self.directory.take(house, id, to, number));
        (taken.await == Some(true)).then_some(luggage)
    }
}

/// Sessions that are about to come here.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<HashMap<(String, String), Coming>>);

#[derive(Default)]
struct Coming {
    /// The newest offer: of which node, in which of its exchanges.
    offer: Option<(u32, u64)>,
    /// Held by one offer at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Arrivals {
    /// With the offer that this one takes the place of.
    fn enter(
        &self,
        house: &str,
        id: &str,
        offer: (u32, u64),
    ) -> (Option<(u32, u64)>, Arc<tokio::sync::Mutex<()>>) {
        let mut arrivals = self.lock();
        let coming = arrivals.entry((house.to_owned(), id.to_owned()));
        let coming = coming.or_default();
        (coming.offer.replace(offer), coming.turn.clone())
    }

    fn leave(&self, house: &str, id: &str, offer: (u32, u64)) {
        let key = (house.to_owned(), id.to_owned());
        let mut arrivals = self.lock();
        if (arrivals.get(&key)).is_some_and(|coming| coming.offer == Some(offer)) {
            arrivals.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Coming>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the directory says, once it can be asked. `None` if that takes too long.
async fn decided<F: Future<Output = Option<bool>>>(ask: impl Fn() -> F) -> Option<bool> {
    const TRIES: usize = 20;
    const PAUSE: Duration = Duration::from_millis(250);
    for _ in 0..TRIES {
        if let Some(decided) = ask().await {
            return Some(decided);
        }
        sleep(PAUSE).await;
    }
    None
}

fn is(letter: Option<(What, Bytes)>, expected: &What) -> bool {
    letter.is_some_and(|(what, _)| what == *expected)
}

#[derive(Serialize, Deserialize)]
struct Packed {
    kept: Option<Vec<PackedFrame>>,
    waiting: Vec<PackedFrame>,
}

/// The text, and the event that it was made of: its node and serial number.
#[derive(Serialize, Deserialize)]
pub struct PackedFrame(String, Option<(u32, u64)>);

impl From<&Frame> for PackedFrame {
    fn from(frame: &Frame) -> Self {
        let event = frame.event().map(|id| (id.node(), id.serial()));
        Self(frame.as_str().to_owned(), event)
    }
}

impl From<PackedFrame> for Frame {
    fn from(PackedFrame(text, event): PackedFrame) -> Self {
        let frame = Frame::from(text);
        match event {
            Some((node, serial)) => frame.of_event(EventId::new(node, serial)),
            None => frame,
        }
    }
}

fn packed(luggage: Luggage) -> Vec<u8> {
    let pack = |frames: Vec<Frame>| frames.iter().map(PackedFrame::from).collect();
    let packed = Packed {
        kept: luggage.kept.map(pack),
        waiting: pack(luggage.waiting),
    };
    serde_json::to_vec(&packed).unwrap_or_default()
}

fn unpacked(body: &[u8]) -> Option<Luggage> {
    let packed: Packed = serde_json::from_slice(body).ok()?;
    let unpack = |frames: Vec<PackedFrame>| frames.into_iter().map(Frame::from).collect();
    Some(Luggage {
        kept: packed.kept.map(unpack),
        waiting: unpack(packed.waiting),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_arrives_as_it_was() {
        let frame = |text: &str| Frame::from(text.to_owned());
        let event = frame("b\n").of_event(EventId::new(1, 1 << 60));
        let luggage = Luggage {
            kept: Some(vec![frame("a")]),
            waiting: vec![event.clone(), frame("c")],
        };
        let arrived = unpacked(&packed(luggage)).unwrap();
        assert_eq!(arrived.kept.unwrap(), [frame("a")]);
        assert_eq!(arrived.waiting, [event, frame("c")]);
    }
}
