//! From away to in sync: a session is begun, what was missed read, what waits stated, and what is
//! held here said.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use super::membership::Membership;
use super::{Delivery, LOG_RECORDS_MAX};
use crate::backend::redis::link::{Broken, Up, subscribe_verb};
use crate::backend::redis::scripts::{self, with};
use crate::backend::redis::view::View;
use crate::backend::redis::{Inner, keys, record};
use crate::model::{AppId, ChannelId, ChannelName, FactKind, Member, UserId};

/// After so long every node that lives has said again what it holds.
const SETTLING: Duration = Duration::from_millis(2500);
/// Facts that are written at once when Redis is back.
const STATED_AT_ONCE: usize = 256;

#[derive(Clone)]
pub(super) struct Session {
    pub(super) up: Arc<Up>,
    pub(super) number: u64,
}

/// Tells whether Redis has all that it had.
#[derive(PartialEq)]
pub(super) struct Data {
    /// A server that was started again, or another one, may have lost the newest.
    run_id: String,
    /// Another one if everything was lost.
    epoch: u64,
}

/// What Redis said when a session began.
struct Begun {
    session: Session,
    was_known: bool,
    epoch: u64,
    held: Vec<ChannelId>,
    members: Vec<(ChannelId, UserId)>,
}

impl Membership {
    /// From away to in sync.
    pub(super) async fn begin(&mut self, up: Arc<Up>) -> Result<(), Broken> {
        let inner = self.inner.clone();
        self.topics
            .retain(|channel, _| inner.hub.occupancy(channel).is_some());
        let topics: Vec<_> = self
            .topics
            .keys()
            .map(|channel| inner.keys.topic(channel))
            .collect();
        (inner.partitions[self.index].shared().views.values_mut()).for_each(View::falls_behind);
        up.subscribe(subscribe_verb(up.is_sharded), &topics).await?;
        // Without sharding one pattern serves all partitions.
        if up.is_sharded || self.index == 0 {
            for app in &self.apps {
                let (verb, topic) = self.app_subscription(&up, app);
                up.subscribe(verb, &[topic]).await?;
            }
        }
        for topic in self.topics.values_mut() {
            topic.is_subscribed = true;
        }
        // First of all, so that nothing comes late that is not in the log now.
        let begun = self.begin_session(&up).await?;
        self.read_log(&up).await?;
        self.share(&up).await?;
        self.say_held(up, begun).await
    }

    pub(super) async fn register(&mut self, up: Arc<Up>) -> Result<(), Broken> {
        let begun = self.begin_session(&up).await?;
        self.say_held(up, begun).await
    }

    /// From now on Redis refuses what was sent in older sessions.
    async fn begin_session(&mut self, up: &Arc<Up>) -> Result<Begun, Broken> {
        let partition = &self.inner.partitions[self.index];
        let session = Session {
            up: up.clone(),
            number: self.inner.next_session(),
        };
        let seen = partition.shared().next_version();
        let call = self.call(&scripts::BEGIN, &session);
        let answers = up.run(&[with(call, [&seen])]).await?;
        let Some(begun) = Begun::read(session, &answers[0]) else {
            // Somebody has a newer session of ours: ids are not unique, or time went back.
            up.fail("a newer session of this node is there");
            return Err(Broken);
        };
        partition.shared().session = begun.session.number;
        partition.session_began.notify_waiters();
        Ok(begun)
    }

    /// Takes in what the subscription missed.
    async fn read_log(&self, up: &Up) -> Result<(), Broken> {
        let partition = &self.inner.partitions[self.index];
        let from = partition.horizon_ms.load(Ordering::Acquire);
        if from == 0 {
            partition.horizon_ms.store(up.began_ms, Ordering::Release);
            return Ok(());
        }
        let mut read = cmd("XRANGE");
        read.arg(format!("{}log", partition.prefix))
            .arg(from)
            .arg("+");
        let answers = up.run(&[read]).await?;
        // Each entry is its id and its one field: name, record.
        let entries = redis::from_redis_value::<Vec<(String, Vec<Vec<u8>>)>>(answers[0].clone());
        let Ok(entries) = entries else {
            up.fail("the log cannot be read");
            return Err(Broken);
        };
        if entries.len() >= LOG_RECORDS_MAX {
            self.inner.status.log_overran();
        }
        for (_, fields) in entries {
            if let Some(record) = fields.into_iter().nth(1) {
                if let Some(id) = record::id_of(&record)
                    && id.node() == self.inner.node
                {
                    partition.shared().unstated.remove(id.serial());
                }
                let bytes = record.len();
                partition.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
                let _ = partition.deliveries.send(Delivery::Record(record)).await;
            }
        }
        Ok(())
    }

    /// States what waits, and lets publishes go through the link then.
    async fn share(&self, up: &Arc<Up>) -> Result<(), Broken> {
        let partition = &self.inner.partitions[self.index];
        loop {
            let waiting = {
                let mut shared = partition.shared();
                let waiting = shared.unstated.first(STATED_AT_ONCE);
                if waiting.is_empty() {
                    if shared.up.replace(up.clone()).is_none() {
                        self.inner.status.partition_is_up();
                    }
                    return Ok(());
                }
                waiting
            };
            let add = |(_, line): &(_, Arc<[u8]>)| scripts::add_fact(&partition.prefix, line);
            let commands: Vec<Cmd> = waiting.iter().map(add).collect();
            up.run(&commands).await?;
            let mut shared = partition.shared();
            for (serial, _) in waiting {
                shared.unstated.remove(serial);
            }
        }
    }

    /// Says everything that is held here.
    async fn say_held(&mut self, up: Arc<Up>, begun: Begun) -> Result<(), Broken> {
        let inner = self.inner.clone();
        let session = begun.session;
        // Declared dead: the application was told that everything here has gone.
        let is_known_data = self
            .data
            .as_ref()
            .is_some_and(|data| data.epoch == begun.epoch);
        let was_dead = !begun.was_known && is_known_data;
        let data = Data {
            run_id: up.run_id.clone(),
            epoch: begun.epoch,
        };
        let is_same_data = self.data.as_ref() == Some(&data);
        self.data = Some(data);
        let mut channels: HashSet<ChannelId> = self.topics.keys().cloned().collect();
        channels.extend(begun.held);
        let mut members: HashMap<ChannelId, Vec<UserId>> = HashMap::new();
        for (channel, user_id) in begun.members {
            members.entry(channel).or_default().push(user_id);
        }
        let mut commands = Vec::with_capacity(channels.len());
        let channels: Vec<_> = channels.into_iter().collect();
        for channel in &channels {
            let holding = inner.hub.holding(channel);
            let is_told = !was_dead && self.topics.get(channel).is_some_and(|topic| topic.is_told);
            let (app, name) = (channel.app.as_str(), channel.name.as_str());
            let call = self.call(&scripts::SET, &session);
            let told = u8::from(is_told);
            let mut call = with(call, [&app, &name, &holding.connections, &told]);
            for (member, _) in &holding.members {
                let key = (channel.clone(), member.user_id.clone());
                let told = u8::from(is_told && !self.untold.contains(&key));
                call.arg(&*member.user_id)
                    .arg(record::optional(&member.user_info));
                call.arg(1).arg(told);
            }
            for user_id in members.remove(channel).unwrap_or_default() {
                if !holding
                    .members
                    .iter()
                    .any(|(member, _)| member.user_id == user_id)
                {
                    call.arg(&*user_id).arg("0").arg(0).arg(0);
                }
            }
            commands.push(call);
        }
        let answers = up.run(&commands).await?;
        for (channel, answer) in channels.iter().zip(answers) {
            let facts: Vec<String> = match answer {
                Value::ServerError(_) => {
                    up.fail("the session ended while it began");
                    return Err(Broken);
                }
                answer => redis::from_redis_value(answer).unwrap_or_default(),
            };
            for fact in facts.chunks_exact(2) {
                inner.state(channel, &fact[0], &fact[1]);
            }
        }
        for topic in self.topics.values_mut() {
            topic.is_told = true;
        }
        self.untold.clear();
        self.keep_last_events(&up).await?;
        self.link = Some(session);
        // Otherwise other nodes may have yet to say again whom they hold.
        self.settles_at = (!is_same_data).then(|| Instant::now() + SETTLING);
        self.fetch_rosters(is_same_data).await
    }

    /// What cache channels got while Redis was away.
    async fn keep_last_events(&self, up: &Up) -> Result<(), Broken> {
        let index = self.index;
        let kept = self
            .inner
            .last_events()
            .take(|id| keys::partition_of(id) == index);
        let commands: Vec<Cmd> = kept
            .into_iter()
            .map(|last| {
                let mut set = cmd("SET");
                set.arg(self.inner.keys.last_event(&last.event.channel));
                set.arg(record::encode(&last.event)).arg("PX");
                set.arg(last.expires_in.as_millis() as u64 + 1);
                set
            })
            .collect();
        up.run(&commands).await.map(drop)
    }

    pub(super) async fn fetch_rosters(&mut self, may_go: bool) -> Result<(), Broken> {
        let Some(session) = self.link.clone() else {
            return Ok(());
        };
        let channels: Vec<_> = self
            .topics
            .keys()
            .filter(|channel| channel.name.is_presence())
            .cloned()
            .collect();
        let commands: Vec<Cmd> = channels
            .iter()
            .map(|channel| {
                let (app, name) = (channel.app.as_str(), channel.name.as_str());
                with(self.call(&scripts::ROSTER, &session), [&app, &name])
            })
            .collect();
        let answers = session.up.run(&commands).await?;
        let partition = &self.inner.partitions[self.index];
        for (channel, answer) in channels.into_iter().zip(answers) {
            let Ok((version, infos)) = redis::from_redis_value::<(u64, Vec<String>)>(answer) else {
                continue;
            };
            let roster = roster_of(infos);
            let delivery = Delivery::Roster {
                channel,
                version,
                roster,
                may_go,
                told: None,
            };
            let _ = partition.deliveries.send(delivery).await;
        }
        Ok(())
    }
}

impl Begun {
    fn read(session: Session, answer: &Value) -> Option<Self> {
        type Answer = (u8, u64, Vec<String>, Vec<String>);
        let (was_known, epoch, held, members): Answer =
            redis::from_redis_value(answer.clone()).ok()?;
        let held = held.chunks_exact(2);
        let members = members.chunks_exact(2).filter_map(|pair| {
            let (channel, user_id) = pair[0].split_once('\0')?;
            Some((channel_of(channel)?, user_id.into()))
        });
        Some(Self {
            session,
            was_known: was_known == 1,
            epoch,
            held: held.filter_map(|pair| channel_of(&pair[0])).collect(),
            members: members.collect(),
        })
    }
}

fn channel_of(text: &str) -> Option<ChannelId> {
    let (app, name) = text.rsplit_once(':')?;
    Some(ChannelId::new(
        &AppId::new(app),
        &ChannelName::of_the_cluster(name),
    ))
}

/// From user, info, …: in the order of the ids.
pub fn roster_of(infos: Vec<String>) -> Vec<Arc<Member>> {
    let mut roster: Vec<_> = (infos.chunks_exact(2))
        .map(|pair| {
            Arc::new(Member {
                user_id: pair[0].as_str().into(),
                user_info: record::present(&pair[1]),
            })
        })
        .collect();
    roster.sort_unstable_by(|a, b| a.user_id.cmp(&b.user_id));
    roster
}

impl Inner {
    /// States a fact as the scripts name it.
    pub fn state(&self, channel: &ChannelId, kind: &str, user: &str) {
        let user_id = user.into();
        let kind = match kind {
            "occupied" => FactKind::ChannelOccupied,
            "vacated" => FactKind::ChannelVacated,
            "added" => FactKind::MemberAdded { user_id },
            "removed" => FactKind::MemberRemoved { user_id },
            _ => return,
        };
        self.facts.state(channel, kind);
    }
}
