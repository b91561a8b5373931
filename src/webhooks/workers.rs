//! The workers of a dispatcher: one for each endpoint that there is now.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::{Shared, Worker};
use super::settings::Endpoint;
use super::store::EndpointId;
use super::targets::Target;

/// For requests to an endpoint that is no more what it was.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// One for each endpoint.
pub(super) struct Workers {
    running: Vec<Running>,
    shared: Shared,
    ends: Ends,
    tasks: TaskTracker,
}

struct Running {
    endpoint: Endpoint,
    ends: Ends,
    task: JoinHandle<()>,
}

impl Workers {
    pub fn new(shared: Shared, ends: Ends, tasks: TaskTracker) -> Self {
        Self {
            running: Vec::new(),
            shared,
            ends,
            tasks,
        }
    }

    /// Ends all but those of `targets`.
    pub async fn keep(&mut self, targets: &[Target]) {
        let is_kept = |running: &Running| {
            let mut endpoints = targets.iter().map(|target| &target.endpoint);
            endpoints.any(|endpoint| *endpoint == running.endpoint)
        };
        let mut leaving: Vec<_> = (self.running)
            .extract_if(.., |running| !is_kept(running))
            .collect();
        leaving
            .iter()
            .for_each(|running| running.ends.stop.cancel());
        let ended_by = Instant::now() + LEAVE_TIMEOUT;
        for running in &mut leaving {
            if timeout_at(ended_by, &mut running.task).await.is_err() {
                // Whoever sends to it next repeats what is not known to have arrived.
                running.ends.give_up.cancel();
                let _ = (&mut running.task).await;
            }
        }
    }

    /// For those of `targets` that have none. `ids` are theirs.
    pub fn start(&mut self, targets: &[Target], ids: Vec<EndpointId>) {
        for (target, id) in targets.iter().zip(ids) {
            let Target { endpoint, outbound } = target.clone();
            if (self.running.iter()).any(|running| running.endpoint == endpoint) {
                continue;
            }
            let ends = self.ends.one_more();
            let shared = Shared {
                stop: ends.stop.clone(),
                ..self.shared.clone()
            };
            let worker = Worker::new(endpoint.clone(), id, outbound, shared);
            let given_up = ends.give_up.clone();
            let task = async move {
                given_up.run_until_cancelled(worker.run()).await;
            };
            self.running.push(Running {
                endpoint,
                ends,
                task: self.tasks.spawn(task),
            });
        }
    }
}

/// How a worker ends.
#[derive(Clone, Default)]
pub(super) struct Ends {
    /// No more attempts are made.
    pub stop: CancellationToken,
    /// Nor are their outcomes written down.
    pub give_up: CancellationToken,
}

impl Ends {
    /// Also of what ends with all.
    fn one_more(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            give_up: self.give_up.child_token(),
        }
    }
}
