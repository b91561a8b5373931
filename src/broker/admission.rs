//! The connections of this node, on whatever protocol: how many each app has, and a way to reach
//! them all.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::hub::{Closing, Outbox};
use crate::model::{AppId, SocketId};

#[derive(Clone, Default)]
pub(super) struct Admissions {
    open: Arc<Mutex<Open>>,
    all_gone: Arc<Notify>,
}

#[derive(Default)]
struct Open {
    connections: HashMap<AppId, usize>,
    outboxes: HashMap<SocketId, Arc<Outbox>>,
}

/// A connection's place in its app's limit. Dropping it gives the place back.
pub struct Admission {
    app: AppId,
    who: SocketId,
    admissions: Admissions,
}

/// The app has as many connections as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverQuota;

impl Admissions {
    /// `connections_max`: absent means unlimited.
    pub fn admit(
        &self,
        app: &AppId,
        connections_max: Option<NonZeroUsize>,
        who: SocketId,
        outbox: Arc<Outbox>,
    ) -> Result<Admission, OverQuota> {
        let mut open = self.lock();
        let count = open.connections.entry(app.clone()).or_default();
        if connections_max.is_some_and(|max| *count >= max.get()) {
            return Err(OverQuota);
        }
        *count += 1;
        open.outboxes.insert(who, outbox);
        Ok(Admission {
            app: app.clone(),
            who,
            admissions: self.clone(),
        })
    }

    /// Closes every outbox and returns when the last connection has gone.
    pub async fn drain(&self) {
        let gone = self.all_gone.notified();
        let outboxes: Vec<_> = self.lock().outboxes.values().cloned().collect();
        if outboxes.is_empty() {
            return;
        }
        for outbox in outboxes {
            outbox.close(Closing::Draining);
        }
        gone.await;
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.admissions.lock();
        open.outboxes.remove(&self.who);
        if open.outboxes.is_empty() {
            self.admissions.all_gone.notify_waiters();
        }
        if let Some(count) = open.connections.get_mut(&self.app) {
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

    fn outbox() -> Arc<Outbox> {
        Arc::new(Outbox::new(100))
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_gone() {
        let admissions = Admissions::default();
        let (app, other) = (AppId::new("1"), AppId::new("2"));
        let admit = |app, max, serial| {
            admissions.admit(
                app,
                NonZeroUsize::new(max),
                SocketId::new(1, serial),
                outbox(),
            )
        };
        let first = admit(&app, 2, 1).unwrap();
        let _second = admit(&app, 2, 2).unwrap();
        assert_eq!(admit(&app, 2, 3).err(), Some(OverQuota));
        assert!(admit(&other, 2, 4).is_ok());
        assert!(admit(&app, 0, 5).is_ok());
        drop(first);
        assert!(admit(&app, 2, 6).is_ok());
    }

    #[tokio::test]
    async fn draining_ends_with_the_last_connection() {
        let admissions = Admissions::default();
        admissions.drain().await;
        let (app, outbox) = (AppId::new("1"), outbox());
        let admit = |who| admissions.admit(&app, None, who, outbox.clone()).unwrap();
        let (first, second) = (admit(SocketId::new(1, 1)), admit(SocketId::new(1, 2)));
        let drained = tokio::spawn({
            let admissions = admissions.clone();
            async move { admissions.drain().await }
        });
        tokio::task::yield_now().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        drop(second);
        drained.await.unwrap();
    }
}
