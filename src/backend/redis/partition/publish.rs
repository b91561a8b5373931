//! What goes out: to Redis with what the application is told of it, or to the hub alone.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use super::{LOG_RECORDS_MAX, Partition};
use crate::backend::redis::link::{Broken, Up};
use crate::backend::redis::scripts::{self, with};
use crate::backend::redis::{Inner, now_us, record};
use crate::metrics::WEBHOOK_EVENTS_LOST;
use crate::model::{ChannelFact, Event, FactKind};

/// A publish looks so often for a session of its node that Redis knows.
const SESSIONS_TRIED_MAX: usize = 3;

impl Inner {
    pub async fn publish(&self, event: Event, keep: Option<Duration>, fact: Option<FactKind>) {
        let partition = self.partition(&event.channel);
        let serial = event.id.serial();
        let is_heard = self.hub.is_heard(&event.channel);
        let line = fact.and_then(|fact| self.state_with(partition, &event, fact));
        let mut was_tried = false;
        for tried in 1..=SESSIONS_TRIED_MAX {
            let (up, session, line) = {
                let mut shared = partition.shared();
                let up = shared.up.clone().filter(|up| !up.is_broken());
                if up.is_some() && is_heard {
                    shared
                        .awaited
                        .insert(serial, (event.clone(), Instant::now()));
                }
                // Else it was stated when a link began.
                let is_unstated = shared.unstated.contains(serial);
                (up, shared.session, line.clone().filter(|_| is_unstated))
            };
            let Some(up) = up else {
                break;
            };
            was_tried = true;
            let commands = self.publish_commands(partition, &up, session, &event, keep, &line);
            match up.run(&commands).await {
                Err(Broken) => break,
                Ok(answers) if matches!(answers[0], Value::ServerError(_)) => match tried {
                    // The next link will state what waits.
                    SESSIONS_TRIED_MAX => up.fail("no session lasts"),
                    _ => partition.next_session(session).await,
                },
                Ok(_) => {
                    partition.shared().unstated.remove(serial);
                    return;
                }
            }
        }
        self.status.not_shared();
        // What was tried was perhaps shared, perhaps not, and may have come back.
        let is_due = !was_tried || {
            let mut shared = partition.shared();
            shared.awaited.remove(&serial);
            shared.seen.insert(event.id)
        };
        if is_due {
            self.publish_here(event, keep).await;
        }
    }

    /// States what goes with a publish; or gives it, where it is written together with the publish.
    fn state_with(
        &self,
        partition: &Partition,
        event: &Event,
        kind: FactKind,
    ) -> Option<Arc<[u8]>> {
        let Some(lines) = &self.lines else {
            self.facts.state(&event.channel, kind);
            return None;
        };
        let fact = ChannelFact {
            channel: event.channel.clone(),
            kind,
            is_told: false,
            at_ms: now_us() / 1000,
        };
        let line: Arc<[u8]> = lines(&fact)?.into();
        let serial = event.id.serial();
        let fits = partition.shared().unstated.insert(serial, line.clone());
        if !fits {
            WEBHOOK_EVENTS_LOST.add(1);
        }
        fits.then_some(line)
    }

    fn publish_commands(
        &self,
        partition: &Partition,
        up: &Up,
        session: u64,
        event: &Event,
        keep: Option<Duration>,
        line: &Option<Arc<[u8]>>,
    ) -> Vec<Cmd> {
        let record = record::encode(event);
        let (app, name) = (event.channel.app.as_str(), event.channel.name.as_str());
        if up.is_sharded || keep.is_some() || line.is_some() {
            let keep_ms = keep.map_or(0, |keep| keep.as_millis() as u64);
            let (prefix, states) = (&partition.prefix, line.is_some());
            let call = scripts::PUBLISH.call(prefix, states, up.is_sharded, self.node, session);
            let mut call = with(call, [&app, &name, &record, &keep_ms]);
            if let Some(line) = line {
                call.arg(&line[..]);
            }
            return vec![call];
        }
        let mut log = cmd("XADD");
        log.arg(format!("{}log", partition.prefix))
            .arg("MAXLEN")
            .arg("~");
        log.arg(LOG_RECORDS_MAX).arg("*").arg("r").arg(&record);
        let mut publish = cmd("PUBLISH");
        publish.arg(self.keys.topic(&event.channel)).arg(record);
        vec![log, publish]
    }

    async fn publish_here(&self, event: Event, keep: Option<Duration>) {
        self.hub.deliver(event.clone()).await;
        if let Some(keep) = keep {
            self.last_events().insert(event, keep);
        }
    }
}
