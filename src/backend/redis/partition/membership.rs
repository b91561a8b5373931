//! The task that takes what is asked of a partition, one after the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Request;
use super::session::{Data, Session};
use crate::backend::redis::Inner;
use crate::backend::redis::link::{Up, subscribe_verb};
use crate::backend::redis::scripts;
use crate::model::{AppId, ChannelId, Event, UserId};

const BATCH_MAX: usize = 256;
/// A channel stays subscribed for so long after its last subscriber: flapping is cheap.
const LINGER: Duration = Duration::from_secs(1);

pub(super) struct Membership {
    pub(super) inner: Arc<Inner>,
    pub(super) index: usize,
    /// The channels with subscribers here, or which had some a moment ago.
    pub(super) topics: HashMap<ChannelId, Topic>,
    /// The apps of which everything is wanted here.
    pub(super) apps: HashSet<AppId>,
    /// Users who came while Redis was away: the application has not been told of them.
    pub(super) untold: HashSet<(ChannelId, UserId)>,
    pub(super) link: Option<Session>,
    pub(super) settles_at: Option<Instant>,
    /// In which this node began its last session.
    pub(super) data: Option<Data>,
}

#[derive(Default)]
pub(super) struct Topic {
    pub(super) is_subscribed: bool,
    /// Redis knew of it, so that the application was told that it is occupied.
    pub(super) is_told: bool,
    pub(super) idle_since: Option<Instant>,
}

impl Membership {
    pub fn new(inner: Arc<Inner>, index: usize) -> Self {
        Self {
            inner,
            index,
            topics: HashMap::new(),
            apps: HashSet::new(),
            untold: HashSet::new(),
            link: None,
            settles_at: None,
            data: None,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = interval(LINGER / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settles_at = self.settles_at;
            let first = tokio::select! {
                request = requests.recv() => request,
                () = self.inner.stop.cancelled() => return,
                _ = tick.tick() => {
                    self.tidy().await;
                    continue;
                }
                () = sleep_until(settles_at.unwrap_or_else(Instant::now)), if settles_at.is_some() => {
                    self.settle().await;
                    continue;
                }
            };
            let Some(first) = first else {
                return;
            };
            let mut changes = Vec::new();
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Join(..) | Request::Leave(..) => changes.push(request),
                    other => {
                        self.change(std::mem::take(&mut changes)).await;
                        self.control(other).await;
                    }
                }
                if changes.len() == BATCH_MAX {
                    break;
                }
                next = requests.try_recv().ok();
            }
            self.change(changes).await;
        }
    }

    async fn control(&mut self, request: Request) {
        match request {
            Request::Up(up) => {
                if self.begin(up.clone()).await.is_err() {
                    self.lose(&up).await;
                }
            }
            Request::Down(up) => self.lose(&up).await,
            Request::Register(number) => {
                // Of many who found it out, the first is heard.
                if let Some(session) = self.link.take_if(|link| link.number == number) {
                    self.register_or_lose(session.up).await;
                }
            }
            Request::Watch(app, is_wanted, reply) => {
                self.watch(app, is_wanted).await;
                let _ = reply.send(());
            }
            Request::Join(..) | Request::Leave(..) => unreachable!("changes go in batches"),
        }
    }

    pub(super) async fn lose(&mut self, up: &Arc<Up>) {
        let partition = &self.inner.partitions[self.index];
        partition.lose(up, &self.inner.status);
        if self
            .link
            .as_ref()
            .is_none_or(|link| Arc::ptr_eq(&link.up, up))
        {
            self.link = None;
            self.settles_at = None;
            for topic in self.topics.values_mut() {
                topic.is_subscribed = false;
            }
        }
        // What was heard before it broke is delivered; then what of ours did not come back.
        partition.delivered().await;
        let awaited = {
            let mut shared = partition.shared();
            if shared.up.is_some() {
                return;
            }
            let awaited = std::mem::take(&mut shared.awaited);
            let is_due = |(event, _): (Event, Instant)| {
                let is_new = shared.seen.insert(event.id);
                is_new.then_some(event)
            };
            awaited.into_values().filter_map(is_due).collect::<Vec<_>>()
        };
        for event in awaited {
            self.inner.hub.deliver(event).await;
        }
    }

    pub(super) async fn register_or_lose(&mut self, up: Arc<Up>) {
        tracing::debug!(partition = self.index, "this node registers again");
        if self.register(up.clone()).await.is_err() {
            self.lose(&up).await;
        }
    }

    async fn watch(&mut self, app: AppId, is_wanted: bool) {
        match is_wanted {
            true => self.apps.insert(app.clone()),
            false => self.apps.remove(&app),
        };
        if let Some(Session { up, .. }) = self.link.clone()
            && (up.is_sharded || self.index == 0)
        {
            let (verb, topic) = self.app_subscription(&up, &app);
            let verb = match is_wanted {
                true => verb.to_owned(),
                false => verb.replace("SUB", "UNSUB"),
            };
            let _ = up.subscribe(&verb, &[topic]).await;
        }
    }

    pub(super) fn app_subscription(&self, up: &Up, app: &AppId) -> (&'static str, String) {
        let keys = &self.inner.keys;
        match up.is_sharded {
            true => ("SSUBSCRIBE", keys.app_topic(self.index, app)),
            false => ("PSUBSCRIBE", keys.app_pattern(app)),
        }
    }

    pub(super) fn call(&self, script: &scripts::Script, session: &Session) -> Cmd {
        let prefix = &self.inner.partitions[self.index].prefix;
        script.call(
            prefix,
            self.inner.states_there(),
            session.up.is_sharded,
            self.inner.node,
            session.number,
        )
    }

    /// Every node has spoken: who is in no roster has gone.
    async fn settle(&mut self) {
        self.settles_at = None;
        if self.fetch_rosters(true).await.is_err()
            && let Some(session) = self.link.clone()
        {
            self.lose(&session.up).await;
        }
    }

    /// Gives up channels without subscribers.
    async fn tidy(&mut self) {
        let inner = self.inner.clone();
        if let Some(session) = self.link.clone()
            && session.up.is_broken()
        {
            self.lose(&session.up).await;
        }
        let idle: Vec<ChannelId> = (self.topics.iter())
            .filter(|(_, topic)| {
                topic
                    .idle_since
                    .is_some_and(|since| since.elapsed() >= LINGER)
            })
            .map(|(channel, _)| channel.clone())
            .collect();
        if idle.is_empty() {
            return;
        }
        for channel in &idle {
            self.topics.remove(channel);
            inner.partitions[self.index].shared().views.remove(channel);
        }
        if let Some(Session { up, .. }) = &self.link {
            let topics: Vec<_> = idle
                .iter()
                .map(|channel| inner.keys.topic(channel))
                .collect();
            let verb = subscribe_verb(up.is_sharded).replace("SUB", "UNSUB");
            let _ = up.subscribe(&verb, &topics).await;
        }
    }
}
