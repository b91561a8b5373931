//! What cache channels remember on this node (`pusher.md` 2.7).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::LastEvent;
use crate::model::{Body, ChannelId, Event, EventId};

/// For all channels together; beyond it the oldest goes.
const LAST_EVENTS_MAX: usize = 100_000;
const LAST_EVENTS_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bounded in number and in time. What has run out goes with a later insertion.
#[derive(Default)]
pub struct LastEvents {
    events: HashMap<ChannelId, (Event, Instant)>,
    /// Insertions, oldest first; those that were replaced since are passed over.
    inserted: VecDeque<(ChannelId, EventId)>,
    /// Of all `events`.
    bytes: usize,
}

impl LastEvents {
    pub fn insert(&mut self, event: Event, keep: Duration) {
        let now = Instant::now();
        let channel = event.channel.clone();
        self.inserted.push_back((channel.clone(), event.id));
        self.bytes += cost_bytes(&event);
        let replaced = self.events.insert(channel, (event, now + keep));
        self.bytes -= replaced.map_or(0, |(event, _)| cost_bytes(&event));
        while let Some((channel, id)) = self.inserted.front() {
            if let Some((event, expires)) = self.events.get(channel)
                && event.id == *id
            {
                let fits =
                    self.events.len() <= LAST_EVENTS_MAX && self.bytes <= LAST_EVENTS_BYTES_MAX;
                if *expires > now && fits {
                    break;
                }
                self.bytes -= cost_bytes(event);
                self.events.remove(channel);
            }
            self.inserted.pop_front();
        }
        // A channel that is published to often must not fill the list behind a quiet one.
        if self.inserted.len() > 2 * self.events.len() + 64 {
            let events = &self.events;
            (self.inserted)
                .retain(|(channel, id)| events.get(channel).is_some_and(|(e, _)| e.id == *id));
        }
    }

    /// Takes out those of the channels that are wanted.
    pub fn take(&mut self, is_wanted: impl Fn(&ChannelId) -> bool) -> Vec<LastEvent> {
        let wanted: Vec<_> = (self.events.keys())
            .filter(|id| is_wanted(id))
            .cloned()
            .collect();
        let taken = wanted.into_iter().filter_map(|channel| {
            let last = self.get(&channel);
            if let Some((event, _)) = self.events.remove(&channel) {
                self.bytes -= cost_bytes(&event);
            }
            last
        });
        taken.collect()
    }

    pub fn get(&self, channel: &ChannelId) -> Option<LastEvent> {
        let (event, expires) = self.events.get(channel)?;
        let expires_in = expires.checked_duration_since(Instant::now())?;
        (!expires_in.is_zero()).then(|| LastEvent {
            event: event.clone(),
            expires_in,
        })
    }
}

fn cost_bytes(event: &Event) -> usize {
    let contents = match &event.body {
        Body::Message(message) => message.name.len() + message.data.len(),
        _ => 0,
    };
    size_of::<Event>() + event.channel.name.as_str().len() + contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::IdSource;
    use crate::model::{AppId, ChannelName, Message};

    fn event(ids: &IdSource, channel: &str) -> Event {
        Event {
            id: ids.event_id(),
            channel: ChannelId::new(&AppId::new("1"), &ChannelName::parse(channel, 200).unwrap()),
            except: None,
            body: Body::Message(Message {
                name: "e".into(),
                data: "{}".into(),
                user_id: None,
                ext: None,
                members: None,
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn last_events_are_bounded_in_number_and_a_busy_channel_does_not_push_out_a_quiet_one() {
        let (ids, mut kept) = (IdSource::new(1), LastEvents::default());
        let quiet = event(&ids, "cache-quiet");
        kept.insert(quiet.clone(), Duration::from_secs(60));
        for _ in 0..2 * LAST_EVENTS_MAX {
            kept.insert(event(&ids, "cache-busy"), Duration::from_secs(60));
        }
        assert!(kept.get(&quiet.channel).is_some());
        assert!(kept.inserted.len() < 100);
        for n in 0..LAST_EVENTS_MAX {
            kept.insert(event(&ids, &format!("cache-{n}")), Duration::from_secs(60));
        }
        assert!(kept.get(&quiet.channel).is_none());
        assert_eq!(kept.events.len(), LAST_EVENTS_MAX);
        tokio::time::advance(Duration::from_secs(61)).await;
        kept.insert(quiet, Duration::from_secs(60));
        assert_eq!(kept.events.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn last_events_are_bounded_in_bytes() {
        let (ids, mut kept) = (IdSource::new(1), LastEvents::default());
        let data: std::sync::Arc<str> = "x".repeat(LAST_EVENTS_BYTES_MAX / 10).into();
        for round in 0..3 {
            for n in 0..20 {
                let mut event = event(&ids, &format!("cache-{n}"));
                if let Body::Message(message) = &mut event.body {
                    message.data = data.clone();
                }
                kept.insert(event, Duration::from_secs(60));
            }
            assert_eq!(kept.events.len(), 9, "round {round}");
            assert!(kept.bytes <= LAST_EVENTS_BYTES_MAX);
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        let last = event(&ids, "cache-last");
        kept.insert(last.clone(), Duration::from_secs(60));
        assert_eq!(kept.bytes, cost_bytes(&last));
    }
}
