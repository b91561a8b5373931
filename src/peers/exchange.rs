//! Letters that belong together, and who waits for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::HouseName;
use super::letter::What;

/// Letters of an exchange that may wait. Each side waits for the other before it writes much more.
const LETTERS_MAX: usize = 64;

#[derive(Default)]
pub struct Exchanges {
    open: Arc<Mutex<HashMap<Key, Open>>>,
    begun: AtomicU64,
}

/// A request to a session of another node that has yet to be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub node: u32,
    pub house: HouseName,
    pub id: String,
}

/// An exchange as one of its sides knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// The other side.
    with: u32,
    /// In the count of whoever began it.
    number: u64,
    is_begun_here: bool,
}

struct Open {
    letters: mpsc::Sender<(What, Bytes)>,
    asked: Option<Asked>,
}

/// One side of an exchange. It ends when it is dropped.
pub struct Exchange {
    key: Key,
    letters: mpsc::Receiver<(What, Bytes)>,
    open: Arc<Mutex<HashMap<Key, Open>>>,
}

impl Exchanges {
    pub fn begin(&self, with: u32) -> Exchange {
        self.begin_as(with, None)
    }

    /// Begins one about a request.
    pub fn ask(&self, asked: Asked) -> Exchange {
        self.begin_as(asked.node, Some(asked))
    }

    fn begin_as(&self, with: u32, asked: Option<Asked>) -> Exchange {
        let key = Key {
            with,
            number: self.begun.fetch_add(1, Ordering::Relaxed),
            is_begun_here: true,
        };
        self.add(key, asked)
    }

    /// All requests that other nodes answer just now.
    pub fn asked(&self) -> Vec<Asked> {
        let open = lock(&self.open);
        open.values()
            .filter_map(|open| open.asked.clone())
            .collect()
    }

    /// The other side has begun it.
    pub fn join(&self, with: u32, number: u64) -> Exchange {
        let key = Key {
            with,
            number,
            is_begun_here: false,
        };
        self.add(key, None)
    }

    fn add(&self, key: Key, asked: Option<Asked>) -> Exchange {
        let (sender, letters) = mpsc::channel(LETTERS_MAX);
        let open = Open {
            letters: sender,
            asked,
        };
        lock(&self.open).insert(key, open);
        Exchange {
            key,
            letters,
            open: self.open.clone(),
        }
    }

    /// A letter that is not the first. Those of an exchange that has ended come in vain.
    pub fn hand_in(&self, from: u32, number: u64, what: What, body: Bytes) {
        let key = Key {
            with: from,
            number,
            is_begun_here: !what.is_by_its_beginner(),
        };
        let mut open = lock(&self.open);
        let is_taken = (open.get(&key)).is_none_or(|to| to.letters.try_send((what, body)).is_ok());
        if !is_taken {
            open.remove(&key);
        }
    }

    /// Ends one that the other side has begun, for its side has begun another in its place.
    pub fn end(&self, with: u32, number: u64) {
        let key = Key {
            with,
            number,
            is_begun_here: false,
        };
        lock(&self.open).remove(&key);
    }

    pub fn are_any(&self) -> bool {
        !lock(&self.open).is_empty()
    }

    pub fn end_all(&self) {
        lock(&self.open).clear();
    }

    /// Ends those with nodes that are not there.
    pub fn end_without(&self, is_there: impl Fn(u32) -> bool) {
        lock(&self.open).retain(|key, _| is_there(key.with));
    }
}

impl Exchange {
    pub fn with(&self) -> u32 {
        self.key.with
    }

    pub fn number(&self) -> u64 {
        self.key.number
    }

    /// The other side's next letter. `None` if there will be none.
    pub async fn next(&mut self) -> Option<(What, Bytes)> {
        self.letters.recv().await
    }

    pub async fn next_within(&mut self, patience: Duration) -> Option<(What, Bytes)> {
        timeout(patience, self.letters.recv()).await.ok().flatten()
    }

    pub fn poll_next(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<(What, Bytes)>> {
        self.letters.poll_recv(cx)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_side_gets_what_is_meant_for_it() {
        let exchanges = Exchanges::default();
        let mut begun = exchanges.begin(1);
        let mut joined = exchanges.join(1, begun.number());
        let hand_in = |what| exchanges.hand_in(1, 0, what, Bytes::new());
        hand_in(What::End);
        hand_in(What::Written);
        assert_eq!(begun.next().await.unwrap().0, What::End);
        assert_eq!(joined.next().await.unwrap().0, What::Written);
        drop(joined);
        hand_in(What::GivenUp);
        exchanges.end_without(|node| node == 1);
        assert!(exchanges.are_any());
        exchanges.end_without(|node| node == 2);
        assert!(!exchanges.are_any());
        assert_eq!(begun.next().await, None);
    }

    #[tokio::test]
    async fn whoever_does_not_read_hears_no_more() {
        let exchanges = Exchanges::default();
        let mut begun = exchanges.begin(1);
        for _ in 0..=LETTERS_MAX {
            exchanges.hand_in(1, 0, What::End, Bytes::new());
        }
        for _ in 0..LETTERS_MAX {
            assert!(begun.next().await.is_some());
        }
        assert_eq!(begun.next().await, None);
    }
}
