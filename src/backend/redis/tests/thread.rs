//! Where a node runs: alone on a thread, so that it can die or stand still with all that it does.

use std::sync::mpsc;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Its tasks end with it, and their sockets close.
pub struct Thread {
    handle: Handle,
    end: CancellationToken,
}

/// What stood still goes on when this is dropped.
pub struct Paused(#[expect(dead_code, reason = "its end is what counts")] mpsc::Sender<()>);

impl Thread {
    pub fn start() -> Self {
        let (give, given) = mpsc::channel();
        let end = CancellationToken::new();
        let ended = end.clone();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            give.send(runtime.handle().clone()).unwrap();
            runtime.block_on(ended.cancelled());
        });
        let handle = given.recv().unwrap();
        Self { handle, end }
    }

    /// What `make` spawns runs here.
    pub fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _here = self.handle.enter();
        make()
    }

    /// As by SIGSTOP.
    pub fn pause(&self) -> Paused {
        let (go_on, is_over) = mpsc::channel();
        self.handle.spawn(async move { is_over.recv() });
        Paused(go_on)
    }

    /// As by SIGKILL: nobody is told.
    pub fn die(&self) {
        self.end.cancel();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.die();
    }
}
