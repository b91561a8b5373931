//! Joins and leaves: in the hub, then in Redis; or, while Redis is away, as the hub alone knows.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::membership::Membership;
use super::session::{Session, roster_of};
use super::{Delivery, Request};
use crate::backend::redis::link::{Broken, subscribe_verb};
use crate::backend::redis::record;
use crate::backend::redis::scripts::{self, with};
use crate::backend::redis::view::Change;
use crate::backend::{Joined, Joining, Left};
use crate::hub::{MemberLimitReached, Roster};
use crate::model::{ChannelId, FactKind, Member, SocketId};

/// What the hub has done already and Redis has yet to hear of.
enum Done {
    Joined(JoinedHere),
    Left(LeftHere),
}

struct JoinedHere {
    channel: ChannelId,
    who: SocketId,
    member: Option<Arc<Member>>,
    members_max: usize,
    connections: u64,
    roster: Roster,
    reply: oneshot::Sender<Result<Joined, MemberLimitReached>>,
}

struct LeftHere {
    channel: ChannelId,
    who: SocketId,
    /// It was the last connection of its user on this node.
    gone: Option<Arc<Member>>,
    connections: u64,
    reply: oneshot::Sender<Option<Left>>,
}

/// What the script of a join or a leave says.
struct Answer {
    connections: u64,
    version: u64,
    /// The channel came into being, or ceased to be.
    is_turn: bool,
    /// The same for the user.
    is_member_turn: bool,
    roster: Vec<Arc<Member>>,
}

impl Membership {
    /// Joins and leaves: in the hub, then in Redis, all in one round trip.
    pub(super) async fn change(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let done: Vec<Done> = requests
            .into_iter()
            .filter_map(|request| self.change_here(request))
            .collect();
        let answers = match self.link.clone() {
            Some(session) => match self.change_there(&session, &done).await {
                Ok(answers) => Some(answers),
                Err(Broken) => {
                    self.lose(&session.up).await;
                    None
                }
            },
            None => None,
        };
        let Some(answers) = answers else {
            for done in done {
                self.finish_alone(done).await;
            }
            return;
        };
        let mut is_stale = false;
        for (done, answer) in done.into_iter().zip(answers) {
            match &answer {
                Value::ServerError(error) if error.code() == "FULL" => self.refuse(done),
                Value::ServerError(_) => {
                    is_stale = true;
                    self.finish_alone(done).await;
                }
                _ => self.finish(done, answer).await,
            }
        }
        if is_stale && let Some(session) = self.link.take() {
            self.register_or_lose(session.up).await;
        }
    }

    fn change_here(&mut self, request: Request) -> Option<Done> {
        let inner = self.inner.clone();
        match request {
            Request::Join(channel, joining, reply) => {
                let Joining {
                    subscriber,
                    member,
                    members_max,
                } = joining;
                let who = subscriber.id;
                let max_here = match self.link {
                    Some(_) => usize::MAX,
                    None => members_max,
                };
                let arrival = match inner
                    .hub
                    .join(&channel, subscriber, member.clone(), max_here)
                {
                    Ok(arrival) => arrival,
                    Err(full) => {
                        let _ = reply.send(Err(full));
                        return None;
                    }
                };
                self.topics.entry(channel.clone()).or_default().idle_since = None;
                if member.is_some() {
                    let mut shared = inner.partitions[self.index].shared();
                    shared.views.entry(channel.clone()).or_default();
                }
                Some(Done::Joined(JoinedHere {
                    channel,
                    who,
                    member,
                    members_max,
                    connections: arrival.connections,
                    roster: arrival.roster,
                    reply,
                }))
            }
            Request::Leave(channel, who, reply) => {
                let Some(departure) = inner.hub.leave(&channel, who) else {
                    let _ = reply.send(None);
                    return None;
                };
                if departure.last
                    && let Some(topic) = self.topics.get_mut(&channel)
                {
                    topic.idle_since = Some(Instant::now());
                }
                Some(Done::Left(LeftHere {
                    channel,
                    who,
                    gone: departure.member_gone,
                    connections: departure.connections,
                    reply,
                }))
            }
            _ => None,
        }
    }

    async fn change_there(
        &mut self,
        session: &Session,
        done: &[Done],
    ) -> Result<Vec<Value>, Broken> {
        // Before the join, so that nothing is missed behind it.
        let mut wanted = Vec::new();
        for done in done {
            if let Done::Joined(JoinedHere { channel, .. }) = done
                && let Some(topic) = self.topics.get_mut(channel)
                && !topic.is_subscribed
            {
                topic.is_subscribed = true;
                topic.is_told = true;
                wanted.push(self.inner.keys.topic(channel));
            }
        }
        if !wanted.is_empty() {
            session
                .up
                .subscribe(subscribe_verb(session.up.is_sharded), &wanted)
                .await?;
        }
        let commands: Vec<Cmd> = done
            .iter()
            .map(|done| match done {
                Done::Joined(joined) => self.join_command(session, joined),
                Done::Left(left) => self.leave_command(session, left),
            })
            .collect();
        session.up.run(&commands).await
    }

    fn join_command(&self, session: &Session, done: &JoinedHere) -> Cmd {
        let (app, name) = (done.channel.app.as_str(), done.channel.name.as_str());
        let (is_presence, user_id, info) = match &done.member {
            Some(member) => (1, &*member.user_id, record::optional(&member.user_info)),
            None => (0, "", String::new()),
        };
        let except = record::except_part(Some(done.who));
        let members_max = done.members_max as u64;
        let mut call = with(
            self.call(&scripts::JOIN, session),
            [&app, &name, &except, &members_max],
        );
        call.arg(is_presence).arg(user_id).arg(info);
        call
    }

    fn leave_command(&self, session: &Session, done: &LeftHere) -> Cmd {
        let (app, name) = (done.channel.app.as_str(), done.channel.name.as_str());
        let (is_gone, user_id) = match &done.gone {
            Some(member) => (1, &*member.user_id),
            None => (0, ""),
        };
        let except = record::except_part(Some(done.who));
        let call = self.call(&scripts::LEAVE, session);
        with(call, [&app, &name, &except, &is_gone, &user_id])
    }

    /// As Redis says.
    async fn finish(&mut self, done: Done, answer: Value) {
        let answer = Answer::read(answer);
        let partition = &self.inner.partitions[self.index];
        {
            let mut shared = partition.shared();
            shared.version = shared.version.max(answer.version);
        }
        match done {
            Done::Joined(joined) => self.joined(joined, answer).await,
            Done::Left(left) => self.left(left, answer),
        }
    }

    async fn joined(&mut self, done: JoinedHere, answer: Answer) {
        let inner = self.inner.clone();
        let (channel, member) = (&done.channel, &done.member);
        if answer.is_turn {
            inner.facts.state(channel, FactKind::ChannelOccupied);
        }
        if answer.is_member_turn
            && let Some(member) = member
        {
            let user_id = member.user_id.clone();
            (inner.facts).state(channel, FactKind::MemberAdded { user_id });
        }
        let (mut roster, mut version) = (None, answer.version);
        if member.is_some() {
            // The answer may be faster than what was published before: the others are told
            // first, and the new one gets what they have been told.
            let (told, is_told) = oneshot::channel();
            let delivery = Delivery::Roster {
                channel: channel.clone(),
                version,
                roster: answer.roster.clone(),
                may_go: self.settles_at.is_none(),
                told: Some(told),
            };
            let partition = &inner.partitions[self.index];
            let _ = partition.deliveries.send(delivery).await;
            let told = is_told.await.unwrap_or((answer.roster, version));
            roster = Some(told.0);
            version = version.max(told.1);
        }
        let joined = Joined {
            connections: answer.connections,
            roster,
            version,
        };
        self.answer(done, joined);
    }

    fn left(&self, done: LeftHere, answer: Answer) {
        let facts = &self.inner.facts;
        if answer.is_member_turn
            && let Some(member) = done.gone
        {
            let user_id = member.user_id.clone();
            facts.state(&done.channel, FactKind::MemberRemoved { user_id });
        }
        if answer.is_turn {
            facts.state(&done.channel, FactKind::ChannelVacated);
        }
        let _ = done.reply.send(Some(Left {
            connections: answer.connections,
            version: answer.version,
        }));
    }

    /// As this node alone knows.
    async fn finish_alone(&mut self, done: Done) {
        match done {
            Done::Joined(joined) => self.joined_alone(joined).await,
            Done::Left(left) => self.left_alone(left).await,
        }
    }

    async fn joined_alone(&mut self, done: JoinedHere) {
        let inner = self.inner.clone();
        let channel = &done.channel;
        let mut news = None;
        let (roster, version) = {
            let mut shared = inner.partitions[self.index].shared();
            let version = shared.next_version();
            let roster = done.member.as_ref().map(|member| {
                let view = shared.views.entry(channel.clone()).or_default();
                if !view.is_ready() {
                    view.begin(version - 1, &[]);
                }
                // Those who joined in the same batch.
                for other in done.roster.iter().flatten() {
                    if other.user_id != member.user_id {
                        view.change(version, Change::Added(other.clone()));
                    }
                }
                let change = Change::Added(member.clone());
                if view.change(version, change.clone()) {
                    self.untold
                        .insert((channel.clone(), member.user_id.clone()));
                    news = Some((change, view.len()));
                }
                view.roster()
            });
            (roster, version)
        };
        if let Some((change, users)) = news {
            let event = inner.event_of(channel, change, version, users, Some(done.who));
            inner.hub.deliver(event).await;
        }
        let joined = Joined {
            connections: done.connections,
            roster,
            version,
        };
        self.answer(done, joined);
    }

    async fn left_alone(&mut self, done: LeftHere) {
        let inner = self.inner.clone();
        let channel = &done.channel;
        let (version, news) = {
            let mut shared = inner.partitions[self.index].shared();
            let version = shared.next_version();
            let news = done.gone.and_then(|member| {
                self.untold
                    .remove(&(channel.clone(), member.user_id.clone()));
                let change = Change::Removed(member.user_id.clone());
                let view = shared.views.get_mut(channel)?;
                view.change(version, change.clone())
                    .then(|| (change, view.len()))
            });
            (version, news)
        };
        if let Some((change, users)) = news {
            let event = inner.event_of(channel, change, version, users, Some(done.who));
            inner.hub.deliver(event).await;
        }
        let _ = done.reply.send(Some(Left {
            connections: done.connections,
            version,
        }));
    }

    fn refuse(&mut self, done: Done) {
        if let Done::Joined(joined) = done {
            self.undo(&joined.channel, joined.who);
            let _ = joined.reply.send(Err(MemberLimitReached));
        }
    }

    fn answer(&self, done: JoinedHere, joined: Joined) {
        if done.reply.send(Ok(joined)).is_err() {
            // Whoever asked has gone, and does not know that it is to be taken out again.
            let (inner, index) = (self.inner.clone(), self.index);
            let (channel, who) = (done.channel, done.who);
            tokio::spawn(async move {
                let (reply, _) = oneshot::channel();
                inner.partitions[index]
                    .request(Request::Leave(channel, who, reply))
                    .await;
            });
        }
    }

    fn undo(&mut self, channel: &ChannelId, who: SocketId) {
        let departure = self.inner.hub.leave(channel, who);
        if departure.is_some_and(|departure| departure.last)
            && let Some(topic) = self.topics.get_mut(channel)
        {
            topic.idle_since = Some(Instant::now());
        }
    }
}

impl Answer {
    fn read(answer: Value) -> Self {
        let parts: Vec<Value> = redis::from_redis_value(answer).unwrap_or_default();
        let number = |at: usize| -> u64 {
            let part = parts.get(at).cloned().map(redis::from_redis_value::<u64>);
            part.and_then(Result::ok).unwrap_or_default()
        };
        let infos = parts.get(4).cloned();
        let infos = infos.map(redis::from_redis_value::<Vec<String>>);
        Self {
            connections: number(0),
            version: number(1),
            is_turn: number(2) == 1,
            is_member_turn: number(3) == 1,
            roster: roster_of(infos.and_then(Result::ok).unwrap_or_default()),
        }
    }
}
