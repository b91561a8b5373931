//! What comes in, in its order: repeats are dropped, and members who are news told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{Delivery, Partition};
use crate::backend::redis::view::Change;
use crate::backend::redis::{Inner, record};
use crate::model::{Body, ChannelId, Event, SocketId};

pub(super) async fn deliver(
    inner: Arc<Inner>,
    index: usize,
    mut deliveries: mpsc::Receiver<Delivery>,
) {
    let partition = &inner.partitions[index];
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.recv() => delivery,
            () = inner.stop.cancelled() => return,
        };
        let Some(delivery) = delivery else {
            return;
        };
        match delivery {
            Delivery::Record(bytes) => {
                partition
                    .waiting_bytes
                    .fetch_sub(bytes.len(), Ordering::Relaxed);
                if let Some(event) = record::decode(&bytes)
                    && is_news(partition, inner.node, &event)
                {
                    inner.hub.deliver(event).await;
                }
            }
            Delivery::Roster {
                channel,
                version,
                roster,
                may_go,
                told,
            } => {
                let changes = {
                    let mut shared = partition.shared();
                    shared.version = shared.version.max(version);
                    match shared.views.get_mut(&channel) {
                        Some(view) => view.differences(version, &roster, may_go),
                        None => Vec::new(),
                    }
                };
                for change in changes {
                    let event = inner.event_of(&channel, change, version, roster.len(), None);
                    inner.hub.deliver(event).await;
                }
                if let Some(told) = told {
                    let shared = partition.shared();
                    if let Some(view) = shared.views.get(&channel) {
                        let _ = told.send((view.roster(), view.version()));
                    }
                }
            }
            Delivery::CaughtUp(done) => drop(done.send(())),
        }
    }
}

/// Whether the event is neither a repeat nor known already.
fn is_news(partition: &Partition, node: u32, event: &Event) -> bool {
    let mut shared = partition.shared();
    if !shared.seen.insert(event.id) {
        return false;
    }
    if event.id.node() == node {
        shared.awaited.remove(&event.id.serial());
    }
    let (version, change) = match &event.body {
        Body::MemberAdded {
            member, version, ..
        } => (*version, Change::Added(member.clone())),
        Body::MemberRemoved {
            user_id, version, ..
        } => (*version, Change::Removed(user_id.clone())),
        _ => return true,
    };
    shared.version = shared.version.max(version);
    match shared.views.get_mut(&event.channel) {
        Some(view) => view.hear(version, change),
        None => true,
    }
}

impl Inner {
    pub(super) fn event_of(
        &self,
        channel: &ChannelId,
        change: Change,
        version: u64,
        users: usize,
        except: Option<SocketId>,
    ) -> Event {
        let users = users as u64;
        let body = match change {
            Change::Added(member) => Body::MemberAdded {
                member,
                users,
                version,
            },
            Change::Removed(user_id) => Body::MemberRemoved {
                user_id,
                users,
                version,
            },
        };
        Event {
            id: self.ids.event_id(),
            channel: channel.clone(),
            except,
            body,
        }
    }
}
