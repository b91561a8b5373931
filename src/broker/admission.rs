//! The connections of this node, on whatever protocol: how many each app has, and a way to reach
//! them all.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::hub::{Closing, Outbox};
use crate::metrics::{CUT_OFFS, CutOff};
use crate::model::{AppId, SocketId};

#[derive(Clone, Default)]
pub(super) struct Admissions(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    connections: HashMap<AppId, usize>,
    outboxes: HashMap<SocketId, Place>,
    /// What whoever still comes is told at once.
    draining: Option<Closing>,
}

struct Place {
    outbox: Arc<Outbox>,
    can_move: bool,
}

/// A connection of the app. Dropping it is leaving.
pub struct Admission {
    app: AppId,
    who: SocketId,
    is_counted: bool,
    admissions: Admissions,
}

/// The app has as many connections as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverQuota;

impl Admissions {
    pub fn admit(&self, app: &AppId, who: SocketId, outbox: Arc<Outbox>) -> Admission {
        let mut open = self.lock();
        if let Some(why) = open.draining {
            outbox.close(why);
        }
        let can_move = false;
        open.outboxes.insert(who, Place { outbox, can_move });
        drop(open);
        Admission {
            app: app.clone(),
            who,
            is_counted: false,
            admissions: self.clone(),
        }
    }

    /// How many each app has, of those that count.
    pub fn connections(&self) -> HashMap<AppId, usize> {
        self.lock().connections.clone()
    }

    /// What waits for all of them together.
    pub fn outbox_bytes(&self) -> usize {
        let open = self.lock();
        let places = open.outboxes.values();
        places.map(|place| place.outbox.bytes()).sum()
    }

    /// Closes the fullest outboxes as slow, until no more than the limit waits for all together.
    pub fn relieve(&self, bytes_max: usize) -> usize {
        let bytes = self.outbox_bytes();
        if bytes <= bytes_max {
            return bytes;
        }
        let outboxes = self.outboxes(|_| true);
        let sized = outboxes.into_iter().map(|outbox| (outbox.bytes(), outbox));
        let mut sized: Vec<_> = sized.collect();
        sized.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut left: usize = sized.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, outbox) in sized {
            if left <= bytes_max {
                break;
            }
            outbox.cut_off(CutOff::OutboxMemory);
            left -= bytes;
        }
        left
    }

    /// Closes every outbox, of those who are here and of those who still come. Those who are here
    /// go one after another, in no order and evenly over the time, so that whoever takes them does
    /// not get them all at once; without time they hear that this server comes back itself.
    ///
    /// Those that can move are `others`' first; what is left of them then is closed too.
    pub async fn drain(&self, over: Duration, others: Option<impl Future<Output = ()>>) {
        let why = match over.is_zero() {
            true => Closing::Restarting,
            false => Closing::Draining,
        };
        self.lock().draining = Some(why);
        match others {
            Some(others) => {
                let stay = self.outboxes(|place| !place.can_move);
                tokio::join!(close(stay, why, over), others);
                close(self.outboxes(|_| true), why, Duration::ZERO).await;
            }
            None => close(self.outboxes(|_| true), why, over).await,
        }
    }

    fn outboxes(&self, which: impl Fn(&Place) -> bool) -> Vec<Arc<Outbox>> {
        let open = self.lock();
        let places = open.outboxes.values().filter(|place| which(place));
        places.map(|place| place.outbox.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One after another, evenly over the time.
async fn close(outboxes: Vec<Arc<Outbox>>, why: Closing, over: Duration) {
    let begun = Instant::now();
    for (nth, outbox) in outboxes.iter().enumerate() {
        if outbox.closing().is_some() {
            continue;
        }
        let share = nth as f64 / outboxes.len() as f64;
        tokio::time::sleep_until(begun + over.mul_f64(share)).await;
        CUT_OFFS.count(CutOff::Draining);
        outbox.close(why);
    }
}

impl Admission {
    /// It may go on on another node: see [`super::Broker::drain`].
    pub fn can_move(&self) {
        if let Some(place) = self.admissions.lock().outboxes.get_mut(&self.who) {
            place.can_move = true;
        }
    }

    /// Takes a place in the app's limit, if there is one left. Given back on dropping.
    /// `connections_max`: absent means unlimited.
    pub fn count(&mut self, connections_max: Option<NonZeroUsize>) -> Result<(), OverQuota> {
        if self.is_counted {
            return Ok(());
        }
        let mut open = self.admissions.lock();
        let count = open.connections.entry(self.app.clone()).or_default();
        if connections_max.is_some_and(|max| *count >= max.get()) {
            CUT_OFFS.count(CutOff::AppConnections);
            return Err(OverQuota);
        }
        *count += 1;
        self.is_counted = true;
        Ok(())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.admissions.lock();
        open.outboxes.remove(&self.who);
        if self.is_counted
            && let Some(count) = open.connections.get_mut(&self.app)
        {
            *count -= 1;
            if *count == 0 {
                open.connections.remove(&self.app);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use tokio::time::timeout;

    const NOBODY: Option<std::future::Ready<()>> = None;

    fn outbox() -> Arc<Outbox> {
        Arc::new(Outbox::new(100))
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_gone() {
        let admissions = Admissions::default();
        let (app, other) = (AppId::new("1"), AppId::new("2"));
        let counted = |app, max, serial| {
            let mut admission = admissions.admit(app, SocketId::new(1, serial), outbox());
            admission.count(NonZeroUsize::new(max)).map(|()| admission)
        };
        let first = counted(&app, 2, 1).unwrap();
        let mut second = counted(&app, 2, 2).unwrap();
        assert_eq!(second.count(NonZeroUsize::new(2)), Ok(()));
        let _uncounted = admissions.admit(&app, SocketId::new(1, 3), outbox());
        assert_eq!(counted(&app, 2, 4).err(), Some(OverQuota));
        assert!(counted(&other, 2, 5).is_ok());
        assert!(counted(&app, 0, 6).is_ok());
        drop(first);
        assert!(counted(&app, 2, 7).is_ok());
    }

    #[test]
    fn the_fullest_queues_go_when_all_together_are_too_large() {
        let admissions = Admissions::default();
        let app = AppId::new("1");
        let admitted: Vec<_> = (1..=4)
            .map(|serial| {
                let outbox = Arc::new(Outbox::new(10_000));
                outbox.push("x".repeat(1000 * serial).into());
                let who = SocketId::new(1, serial as u32);
                (admissions.admit(&app, who, outbox.clone()), outbox)
            })
            .collect();
        let before = admissions.outbox_bytes();
        assert_eq!(admissions.relieve(before), before);
        let left = admissions.relieve(before - 4_500);
        assert!(left <= before - 4_500, "{left}");
        let closed: Vec<_> = admitted.iter().map(|(_, o)| o.closing()).collect();
        assert_eq!(
            closed,
            [None, None, Some(Closing::Slow), Some(Closing::Slow)]
        );
    }

    #[tokio::test]
    async fn who_comes_while_the_others_are_told_to_go_is_told_too() {
        let admissions = Admissions::default();
        let app = AppId::new("1");
        let (early, late) = (outbox(), outbox());
        let first = admissions.admit(&app, SocketId::new(1, 1), early.clone());
        admissions.drain(Duration::ZERO, NOBODY).await;
        let second = admissions.admit(&app, SocketId::new(1, 2), late.clone());
        for outbox in [early, late] {
            let told = poll_fn(|cx| outbox.poll_take(cx, &mut VecDeque::new()));
            let told = timeout(Duration::from_secs(1), told).await;
            assert_eq!(told, Ok(Err(Closing::Restarting)));
        }
        drop((first, second));
    }
    #[tokio::test(start_paused = true)]
    async fn those_who_are_here_go_evenly_over_the_time() {
        let admissions = Admissions::default();
        let app = AppId::new("1");
        let admitted: Vec<_> = (0..100)
            .map(|serial| {
                let outbox = outbox();
                let who = SocketId::new(1, serial);
                (admissions.admit(&app, who, outbox.clone()), outbox)
            })
            .collect();
        let gone = || {
            admitted
                .iter()
                .filter(|(_, o)| o.closing() == Some(Closing::Draining))
                .count()
        };
        let mut draining = std::pin::pin!(admissions.drain(Duration::from_secs(10), NOBODY));
        for secs in 1..10 {
            assert!(
                timeout(Duration::from_secs(1), draining.as_mut())
                    .await
                    .is_err()
            );
            let expected = secs * 10;
            assert!(gone().abs_diff(expected) <= 2, "{} after {secs} s", gone());
        }
        draining.await;
        assert_eq!(gone(), 100);
    }
}
