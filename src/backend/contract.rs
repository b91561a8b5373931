//! The list of behaviours that every backend passes. A backend's own tests call [`check`] with a
//! way to make two nodes of one cluster (which may be the same node twice).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{join, join_all};
use futures_util::task::noop_waker;
use tokio::sync::mpsc;

use super::{Backend, FactSink, Joined, Joining, Memory, fact_queue};
use crate::hub::{Acknowledgement, Encoding, Frame, Hub, MemberLimitReached, Outbox, Subscriber};
use crate::model::ids::IdSource;
use crate::model::{AppId, Body, ChannelId, ChannelName, Event, Fact, Member, Message, SocketId};

#[tokio::test(start_paused = true)]
async fn memory_passes() {
    let make = async |facts| {
        let (hub, ids) = (Arc::new(Hub::new()), Arc::new(IdSource::new(1)));
        let backend = Arc::new(Memory::new(hub.clone(), ids.clone(), facts));
        let node = Node { hub, backend, ids };
        [node.clone(), node]
    };
    check(make).await;
}

/// One node of a cluster under test.
#[derive(Clone)]
pub struct Node {
    pub hub: Arc<Hub>,
    pub backend: Arc<dyn Backend>,
    pub ids: Arc<IdSource>,
}

struct Cluster {
    nodes: [Node; 2],
    facts: mpsc::Receiver<Fact>,
}

pub async fn check(make: impl AsyncFn(FactSink) -> [Node; 2]) {
    let cluster = async || {
        let (sink, facts) = fact_queue(10_000);
        let nodes = make(sink).await;
        Cluster { nodes, facts }
    };
    an_event_reaches_all_but_the_excepted(cluster().await).await;
    nothing_comes_before_the_acknowledgement_and_nothing_is_missed(cluster().await).await;
    a_replayed_event_is_not_repeated(cluster().await).await;
    all_subscribers_see_one_order(cluster().await).await;
    a_user_joins_and_leaves_once(cluster().await).await;
    many_users_at_once_learn_of_each_other_exactly_once(cluster().await).await;
    the_member_limit_counts_users(cluster().await).await;
    an_older_count_does_not_follow_a_newer_one(cluster().await).await;
    occupied_channels_are_listed_and_counted(cluster().await).await;
    counts_hold_though_the_channel_was_empty_meanwhile(cluster().await).await;
    a_last_event_is_kept_for_its_time(cluster().await).await;
    what_is_the_last_event_has_been_handed_over(cluster().await).await;
    watchers_learn_of_the_first_sign_in_and_the_last_sign_out(cluster().await).await;
    terminating_closes_the_outboxes(cluster().await).await;
    a_pattern_is_served_once_and_counts_nowhere(cluster().await).await;
    patterns_and_names_see_one_order(cluster().await).await;
}

async fn an_event_reaches_all_but_the_excepted(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let (one, two, three) = (Peer::new(a), Peer::new(b), Peer::new(b));
    for (node, peer) in [(a, &one), (b, &two), (b, &three)] {
        peer.subscribe(node, "room", None).await.unwrap();
    }
    a.say("room", "to all", None).await;
    a.say("room", "but two", Some(two.id)).await;
    a.say("elsewhere", "unheard", None).await;
    assert_eq!(one.heard(), ["ack", "to all", "but two"]);
    assert_eq!(two.heard(), ["ack", "to all"]);
    assert_eq!(three.heard(), ["ack", "to all", "but two"]);
    assert!(b.backend.leave(&channel("room"), three.id).await.is_some());
    assert!(b.backend.leave(&channel("room"), three.id).await.is_none());
    a.say("room", "later", None).await;
    assert_eq!(two.heard(), ["later"]);
    assert_eq!(three.heard(), [""; 0]);
}

async fn nothing_comes_before_the_acknowledgement_and_nothing_is_missed(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let peer = Peer::new(b);
    a.say("room", "too early", None).await;
    let joined = peer.join(b, "room", None, 0).await.unwrap();
    a.say("room", "one", None).await;
    a.say("room", "not for it", Some(peer.id)).await;
    assert_eq!(peer.heard(), [""; 0]);
    peer.acknowledge(b, "room", &joined);
    a.say("room", "two", None).await;
    assert_eq!(peer.heard(), ["ack", "one", "two"]);
}

async fn a_replayed_event_is_not_repeated(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    for comes_meanwhile in [true, false] {
        let peer = Peer::new(b);
        peer.join(b, "cache-x", None, 0).await.unwrap();
        let event = a.event("cache-x", Body::Message(message("last")), None);
        if comes_meanwhile {
            a.backend.publish(event.clone(), None, None).await;
        }
        let acknowledgement = Acknowledgement {
            frames: vec!["ack".to_owned().into()],
            replay: Some((event.id, "last".to_owned().into())),
        };
        (b.hub).acknowledge(&channel("cache-x"), peer.id, acknowledgement, 0);
        assert_eq!(peer.heard(), ["ack", "last"]);
    }
}

async fn all_subscribers_see_one_order(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let peers: Vec<_> = (0..50).map(|n| Peer::new(&cluster.nodes[n % 2])).collect();
    for (n, peer) in peers.iter().enumerate() {
        let node = &cluster.nodes[n % 2];
        peer.subscribe(node, "room", None).await.unwrap();
    }
    let publish = |node: &Node, from: usize| {
        let node = node.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                node.say("room", &format!("{from}-{n}"), None).await;
            }
        })
    };
    join_all([publish(a, 1), publish(b, 2), publish(a, 3)]).await;
    let first = peers[0].heard();
    assert_eq!(first.len(), 601);
    for peer in &peers[1..] {
        assert_eq!(peer.heard(), first);
    }
    for from in 1..=3 {
        let prefix = format!("{from}-");
        let sent = (0..200).map(|n| format!("{prefix}{n}"));
        assert!(
            first
                .iter()
                .filter(|e| e.starts_with(&prefix))
                .cloned()
                .eq(sent)
        );
    }
}

async fn a_user_joins_and_leaves_once(mut cluster: Cluster) {
    let [a, b] = cluster.nodes.clone();
    let room = channel("presence-room");
    let watcher = Peer::new(&a);
    watcher
        .subscribe(&a, "presence-room", Some("w"))
        .await
        .unwrap();
    let (one, two) = (Peer::new(&a), Peer::new(&b));
    let first = one.subscribe(&a, "presence-room", Some("u")).await.unwrap();
    let second = two.subscribe(&b, "presence-room", Some("u")).await.unwrap();
    assert!(first.version < second.version);
    assert_eq!(names(&second), ["u", "w"]);
    assert_eq!(second.connections, 3);
    let members = b.backend.members(&room).await;
    let user_ids: Vec<_> = members.iter().map(|member| &*member.user_id).collect();
    assert_eq!(user_ids, ["u", "w"]);
    b.backend.leave(&room, two.id).await;
    assert_eq!(watcher.heard(), ["ack", "+u"]);
    a.backend.leave(&room, one.id).await;
    assert_eq!(watcher.heard(), ["-u"]);
    assert_eq!(one.heard(), ["ack"]);
    assert_eq!(two.heard(), ["ack"]);
    a.backend.leave(&room, watcher.id).await;
    let expected = [
        "channel_occupied",
        "member_added",
        "member_added",
        "member_removed",
        "member_removed",
        "channel_vacated",
    ];
    assert_eq!(cluster.facts(), expected);
}

/// Each learns of every other in its roster or by an event, never in both, never twice.
async fn many_users_at_once_learn_of_each_other_exactly_once(cluster: Cluster) {
    const USERS: usize = 200;
    let joining = (0..USERS).map(|n| {
        let node = cluster.nodes[n % 2].clone();
        tokio::spawn(async move {
            let peer = Peer::new(&node);
            let user = format!("{n:03}");
            let joined = peer.join(&node, "presence-room", Some(&user), USERS).await;
            tokio::task::yield_now().await;
            let joined = joined.unwrap();
            peer.acknowledge(&node, "presence-room", &joined);
            (node, peer, names(&joined))
        })
    });
    let everyone: Vec<String> = (0..USERS).map(|n| format!("{n:03}")).collect();
    let joined: Vec<_> = join_all(joining)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    for (_, peer, roster) in &joined {
        let added = peer.heard().split_off(1);
        let mut known = roster.clone();
        known.extend(added.iter().map(|event| event.replace('+', "")));
        known.sort();
        assert_eq!(known, everyone);
    }
    let (leaving, staying) = joined.split_at(USERS / 2);
    let gone = leaving.iter().map(|(node, peer, _)| async {
        node.backend.leave(&channel("presence-room"), peer.id).await
    });
    assert!(join_all(gone).await.iter().all(Option::is_some));
    for (_, peer, _) in staying {
        assert_eq!(peer.heard().len(), USERS / 2);
    }
}

async fn the_member_limit_counts_users(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let peers: Vec<_> = (0..4).map(|_| Peer::new(a)).collect();
    let join = |node, n: usize, user| peers[n].join(node, "presence-x", Some(user), 2);
    assert!(join(a, 0, "1").await.is_ok());
    assert!(join(b, 1, "2").await.is_ok());
    assert_eq!(join(b, 2, "3").await.err(), Some(MemberLimitReached));
    assert!(join(b, 2, "1").await.is_ok());
    a.backend.leave(&channel("presence-x"), peers[0].id).await;
    assert_eq!(join(a, 3, "3").await.err(), Some(MemberLimitReached));
    b.backend.leave(&channel("presence-x"), peers[2].id).await;
    assert!(join(a, 3, "3").await.is_ok());
}

async fn an_older_count_does_not_follow_a_newer_one(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let peer = Peer::new(b);
    peer.subscribe(b, "room", None).await.unwrap();
    for version in [7, 8, 8, 6, 9] {
        let count = Body::SubscriptionCount {
            connections: version,
            version,
        };
        a.backend
            .publish(a.event("room", count, None), None, None)
            .await;
    }
    assert_eq!(peer.heard(), ["ack", "#7", "#8", "#8", "#9"]);
}

async fn occupied_channels_are_listed_and_counted(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let (one, two) = (Peer::new(a), Peer::new(b));
    one.subscribe(a, "presence-x", Some("u")).await.unwrap();
    two.subscribe(b, "presence-x", Some("u")).await.unwrap();
    one.subscribe(a, "room", None).await.unwrap();
    let listed = |prefix: &'static str| async move {
        let channels = b.backend.channels(&AppId::new("1"), prefix).await;
        let summary = channels
            .into_iter()
            .map(|(n, o)| format!("{n} {} {}", o.connections, o.users));
        summary.collect::<Vec<_>>()
    };
    assert_eq!(listed("").await, ["presence-x 2 1", "room 1 0"]);
    assert_eq!(listed("presence-").await, ["presence-x 2 1"]);
    assert!(b.backend.channels(&AppId::new("2"), "").await.is_empty());
    assert!(b.backend.occupancy(&channel("room")).await.is_some());
    a.backend.leave(&channel("room"), one.id).await;
    assert!(b.backend.occupancy(&channel("room")).await.is_none());
    assert_eq!(listed("r").await, [""; 0]);
}

/// The count of a leave that emptied the channel comes later than the next join.
async fn counts_hold_though_the_channel_was_empty_meanwhile(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let count = |connections, version| {
        let body = Body::SubscriptionCount {
            connections,
            version,
        };
        a.backend.publish(a.event("room", body, None), None, None)
    };
    let (early, late) = (Peer::new(a), Peer::new(b));
    early.subscribe(a, "room", None).await.unwrap();
    let left = a.backend.leave(&channel("room"), early.id).await.unwrap();
    let joined = late.join(b, "room", None, 0).await.unwrap();
    late.acknowledge(b, "room", &joined);
    count(left.connections, left.version).await;
    count(joined.connections, joined.version).await;
    assert_eq!(late.heard().last().unwrap(), "#1");
    count(left.connections, left.version).await;
    assert_eq!(late.heard(), [""; 0]);
}

async fn a_last_event_is_kept_for_its_time(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let keep = Duration::from_secs(2);
    let room = channel("cache-x");
    assert_eq!(b.backend.last_event(&room).await, None);
    let event = a.event("cache-x", Body::Message(message("kept")), None);
    a.backend.publish(event.clone(), Some(keep), None).await;
    a.say("cache-x", "not kept", None).await;
    tokio::time::sleep(keep / 4).await;
    let last = b.backend.last_event(&room).await.unwrap();
    assert_eq!(last.event, event);
    assert!(last.expires_in > Duration::ZERO && last.expires_in <= keep * 3 / 4);
    tokio::time::sleep(keep).await;
    assert_eq!(b.backend.last_event(&room).await, None);
}

/// Else a subscriber that is acknowledged in between would get it twice.
async fn what_is_the_last_event_has_been_handed_over(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let room = channel("cache-x");
    let crowd: Vec<_> = (0..2000).map(|_| Peer::new(b)).collect();
    for peer in &crowd {
        peer.subscribe(b, "cache-x", None).await.unwrap();
    }
    let late = Peer::new(b);
    let joined = late.join(b, "cache-x", None, 0).await.unwrap();
    let before = a.say("cache-x", "before", None);
    let event = a.event("cache-x", Body::Message(message("last")), None);
    let publish = (a.backend).publish(event.clone(), Some(Duration::from_secs(60)), None);
    let mut publishing = pin!(join(before, publish));
    // Handing over to many pauses now and then.
    let mut is_over = false;
    while !is_over && b.backend.last_event(&room).await.is_none() {
        is_over = poll_fn(|cx| Poll::Ready(publishing.as_mut().poll(cx).is_ready())).await;
    }
    let replay = Some((event.id, "last".to_owned().into()));
    let frames = vec!["ack".to_owned().into()];
    let acknowledgement = Acknowledgement { frames, replay };
    (b.hub).acknowledge(&room, late.id, acknowledgement, joined.version);
    if !is_over {
        publishing.await;
    }
    let heard = late.heard();
    assert_eq!(heard.iter().filter(|text| *text == "last").count(), 1);
}

async fn watchers_learn_of_the_first_sign_in_and_the_last_sign_out(mut cluster: Cluster) {
    let [a, b] = cluster.nodes.clone();
    let signed_in = |peer: &Peer, node: &Node| {
        let (peer, node) = (peer.clone(), node.clone());
        async move {
            peer.subscribe_to(&node, ChannelName::signed_in("u"), None)
                .await
                .unwrap()
        }
    };
    let watcher = Peer::new(&a);
    (watcher.subscribe_to(&a, ChannelName::watchers("u"), None))
        .await
        .unwrap();
    let (one, two) = (Peer::new(&a), Peer::new(&b));
    signed_in(&one, &a).await;
    signed_in(&two, &b).await;
    let channel = ChannelId::new(&AppId::new("1"), &ChannelName::signed_in("u"));
    a.backend.leave(&channel, one.id).await;
    assert_eq!(watcher.heard(), ["ack", "online u"]);
    b.backend.leave(&channel, two.id).await;
    assert_eq!(watcher.heard(), ["offline u"]);
    assert_eq!(cluster.facts(), [""; 0]);
}

async fn terminating_closes_the_outboxes(cluster: Cluster) {
    let [a, b] = &cluster.nodes;
    let (acknowledged, pending) = (Peer::new(b), Peer::new(b));
    acknowledged.subscribe(b, "room", None).await.unwrap();
    let joined = pending.join(b, "room", None, 0).await.unwrap();
    a.backend
        .publish(a.event("room", Body::Terminate, None), None, None)
        .await;
    pending.acknowledge(b, "room", &joined);
    for peer in [acknowledged, pending] {
        assert_eq!(peer.heard(), ["ack", "closed"]);
    }
}

async fn a_pattern_is_served_once_and_counts_nowhere(mut cluster: Cluster) {
    let [a, b] = cluster.nodes.clone();
    let (one, two) = (Peer::new(&a), Peer::new(&b));
    one.subscribe_to_pattern(&a, "a.*").await;
    two.subscribe_to_pattern(&b, "a.*").await;
    two.subscribe_to_pattern(&b, "**").await;
    two.subscribe(&b, "a.x", None).await.unwrap();
    cluster.facts();
    b.say("a.x", "1", None).await;
    a.say("a.y", "2", None).await;
    a.say("b.x", "3", None).await;
    a.say("a.y", "4", Some(two.id)).await;
    assert_eq!(one.heard(), ["1", "2", "4"]);
    assert_eq!(two.heard(), ["ack", "1", "2", "3"]);
    assert!(a.backend.occupancy(&channel("a.y")).await.is_none());
    let counted = b.backend.occupancy(&channel("a.x")).await;
    assert_eq!(counted.unwrap().connections, 1);

    // Whoever still waits for the acknowledgement gets an event that matches behind it, once.
    let joined = one.join(&a, "a.x", None, 0).await.unwrap();
    b.say("a.x", "5", None).await;
    one.acknowledge(&a, "a.x", &joined);
    assert_eq!(one.heard(), ["ack", "5"]);

    let app = AppId::new("1");
    (a.backend.leave_pattern(&app, "a.*", one.id)).await;
    (a.backend.leave(&channel("a.x"), one.id)).await;
    (b.backend.leave_pattern(&app, "a.*", two.id)).await;
    b.say("a.x", "6", None).await;
    (b.backend.leave_pattern(&app, "**", two.id)).await;
    b.say("a.x", "7", None).await;
    b.say("a.y", "8", None).await;
    assert_eq!(one.heard(), [""; 0]);
    assert_eq!(two.heard(), ["5", "6", "7"]);
    assert_eq!(cluster.facts(), [""; 0]);
}

async fn patterns_and_names_see_one_order(cluster: Cluster) {
    let peers: Vec<_> = (0..20).map(|n| Peer::new(&cluster.nodes[n % 2])).collect();
    for (n, peer) in peers.iter().enumerate() {
        let node = &cluster.nodes[n % 2];
        match n % 4 {
            0 => peer.subscribe_to_pattern(node, "a.*").await,
            1 => peer.subscribe_to_pattern(node, "**").await,
            _ => drop(peer.subscribe(node, "a.room", None).await.unwrap()),
        }
    }
    let publishers = (0..4).map(|from| {
        let node = cluster.nodes[from % 2].clone();
        tokio::spawn(async move {
            for n in 0..100 {
                node.say("a.room", &format!("{from}-{n}"), None).await;
            }
        })
    });
    join_all(publishers).await;
    let heard = |peer: &Peer| {
        let mut heard = peer.heard();
        heard.retain(|event| event != "ack");
        heard
    };
    let first = heard(&peers[0]);
    assert_eq!(first.len(), 400);
    for peer in &peers[1..] {
        assert_eq!(heard(peer), first);
    }
}

impl Node {
    pub fn event(&self, name: &str, body: Body, except: Option<SocketId>) -> Event {
        let (id, channel) = (self.ids.event_id(), channel(name));
        Event {
            id,
            channel,
            except,
            body,
        }
    }

    pub async fn say(&self, name: &str, data: &str, except: Option<SocketId>) {
        let event = self.event(name, Body::Message(message(data)), except);
        self.backend.publish(event, None, None).await;
    }
}

impl Cluster {
    /// The names of what was stated so far.
    fn facts(&mut self) -> Vec<&'static str> {
        std::iter::from_fn(|| self.facts.try_recv().ok())
            .map(|fact| fact.name())
            .collect()
    }
}

#[derive(Clone)]
pub struct Peer {
    pub id: SocketId,
    outbox: Arc<Outbox>,
}

impl Peer {
    pub fn new(node: &Node) -> Self {
        Self {
            id: node.ids.socket_id(),
            outbox: Arc::new(Outbox::new(1_000_000)),
        }
    }

    pub async fn subscribe(
        &self,
        node: &Node,
        name: &str,
        user: Option<&str>,
    ) -> Result<Joined, MemberLimitReached> {
        let joined = self.join(node, name, user, usize::MAX).await?;
        self.acknowledge(node, name, &joined);
        Ok(joined)
    }

    async fn subscribe_to(
        &self,
        node: &Node,
        name: ChannelName,
        user: Option<&str>,
    ) -> Result<Joined, MemberLimitReached> {
        let id = ChannelId::new(&AppId::new("1"), &name);
        let joined = self.join_id(node, &id, user, usize::MAX).await?;
        self.acknowledge_id(node, &id, &joined);
        Ok(joined)
    }

    /// Patterns of this test: `**` for all, `a.*` for what follows `a.`.
    async fn subscribe_to_pattern(&self, node: &Node, pattern: &str) {
        let expansion = |name: &ChannelName| {
            let (first, _) = name.as_str().split_once('.').unwrap_or_default();
            vec!["**".to_owned(), format!("{first}.*")]
        };
        (node.backend)
            .join_pattern(
                &AppId::new("1"),
                pattern,
                Arc::new(expansion),
                self.subscriber(),
            )
            .await;
    }

    fn subscriber(&self) -> Subscriber {
        Subscriber {
            id: self.id,
            outbox: self.outbox.clone(),
            encoding: &PLAIN,
        }
    }

    async fn join(
        &self,
        node: &Node,
        name: &str,
        user: Option<&str>,
        members_max: usize,
    ) -> Result<Joined, MemberLimitReached> {
        self.join_id(node, &channel(name), user, members_max).await
    }

    async fn join_id(
        &self,
        node: &Node,
        channel: &ChannelId,
        user: Option<&str>,
        members_max: usize,
    ) -> Result<Joined, MemberLimitReached> {
        let member = user.map(|user| {
            Arc::new(Member {
                user_id: user.into(),
                user_info: None,
            })
        });
        let joining = Joining {
            subscriber: self.subscriber(),
            member,
            members_max,
        };
        node.backend.join(channel, joining).await
    }

    fn acknowledge(&self, node: &Node, name: &str, joined: &Joined) {
        self.acknowledge_id(node, &channel(name), joined);
    }

    fn acknowledge_id(&self, node: &Node, channel: &ChannelId, joined: &Joined) {
        let acknowledgement = Acknowledgement {
            frames: vec!["ack".to_owned().into()],
            replay: None,
        };
        (node.hub).acknowledge(channel, self.id, acknowledgement, joined.version);
    }

    /// What came since the last look.
    pub fn heard(&self) -> Vec<String> {
        let mut heard = Vec::new();
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        loop {
            let mut batch = VecDeque::new();
            match self.outbox.poll_take(&mut cx, &mut batch) {
                Poll::Pending => return heard,
                Poll::Ready(Ok(())) => {
                    heard.extend(batch.iter().map(|frame| frame.as_str().to_owned()));
                }
                Poll::Ready(Err(_)) => {
                    heard.push("closed".to_owned());
                    return heard;
                }
            }
        }
    }
}

struct Plain;
static PLAIN: Plain = Plain;

impl Encoding for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn encode(&self, event: &Event) -> Option<Frame> {
        let text = match &event.body {
            Body::Message(message) => message.data.to_string(),
            Body::MemberAdded { member, .. } => format!("+{}", member.user_id),
            Body::MemberRemoved { user_id, .. } => format!("-{user_id}"),
            Body::SubscriptionCount { connections, .. } => format!("#{connections}"),
            Body::UserOnline { user_id } => format!("online {user_id}"),
            Body::UserOffline { user_id } => format!("offline {user_id}"),
            Body::Terminate => return None,
        };
        Some(text.into())
    }
}

pub fn channel(name: &str) -> ChannelId {
    let name = ChannelName::parse(name, 200).unwrap();
    ChannelId::new(&AppId::new("1"), &name)
}

pub fn message(data: &str) -> Message {
    Message {
        name: "e".into(),
        data: data.into(),
        user_id: None,
        ext: None,
        members: None,
    }
}

fn names(joined: &Joined) -> Vec<String> {
    let roster = joined
        .roster
        .as_ref()
        .expect("a presence channel has a roster");
    roster
        .iter()
        .map(|member| member.user_id.to_string())
        .collect()
}
