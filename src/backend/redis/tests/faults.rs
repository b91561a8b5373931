//! What Redis, nodes and networks do to a cluster, one at a time.

use super::server::{Proxy, RedisServer, Weather};
use super::*;
use crate::model::Body;

/// Nodes that reach one server each on its own way.
pub struct Setup {
    pub server: RedisServer,
    pub nodes: Vec<TestNode>,
    pub proxies: Vec<Proxy>,
}

impl Setup {
    pub async fn of(count: usize) -> Self {
        let server = RedisServer::start(&[]).await;
        let (mut nodes, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let proxy = Proxy::to(server.port).await;
            let node = start(&proxy.url(), "faults");
            timeout(SOON, node.redis.connected())
                .await
                .expect("no connection");
            nodes.push(node);
            proxies.push(proxy);
        }
        Self {
            server,
            nodes,
            proxies,
        }
    }

    /// What was stated on all nodes since the last look.
    pub fn facts(&mut self) -> Vec<&'static str> {
        let mut facts = Vec::new();
        for node in &mut self.nodes {
            while let Ok(Fact::Channel(fact)) = node.facts.try_recv() {
                facts.push(fact.kind.name());
            }
        }
        facts.sort_unstable();
        facts
    }
}

impl TestNode {
    pub async fn say(&self, name: &str, data: &str) {
        let event = self.event(name, data);
        self.redis.publish(event, None, None).await;
    }

    pub fn event(&self, name: &str, data: &str) -> Event {
        self.node
            .event(name, Body::Message(contract::message(data)), None)
    }
}

/// Collects until it is there, and then what still comes within a moment.
async fn hears(peer: &Peer, within: Duration, wanted: &[&str]) {
    let mut heard = Vec::new();
    let all = becomes(within, async || {
        heard.extend(peer.heard());
        heard.len() >= wanted.len()
    });
    all.await;
    sleep(Duration::from_millis(200)).await;
    heard.extend(peer.heard());
    assert_eq!(heard, wanted);
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_taken_out_once_and_registers_again_when_it_is_back() {
    let mut setup = Setup::of(3).await;
    let [a, b, c] = &setup.nodes[..] else {
        unreachable!()
    };
    let (watcher, other, lost) = (Peer::new(&a.node), Peer::new(&c.node), Peer::new(&b.node));
    watcher
        .subscribe(&a.node, "presence-room", Some("w"))
        .await
        .unwrap();
    other
        .subscribe(&c.node, "presence-room", Some("o"))
        .await
        .unwrap();
    lost.subscribe(&b.node, "presence-room", Some("u"))
        .await
        .unwrap();
    lost.subscribe(&b.node, "only-there", None).await.unwrap();
    hears(&watcher, SOON, &["ack", "+o", "+u"]).await;
    hears(&other, SOON, &["ack", "+u"]).await;
    setup.facts();

    setup.proxies[1].set(Weather::Blackhole);
    let [a, b, c] = &setup.nodes[..] else {
        unreachable!()
    };
    hears(&watcher, Duration::from_secs(10), &["-u"]).await;
    hears(&other, SOON, &["-u"]).await;
    assert_eq!(lost.heard(), ["ack", "ack"]);
    b.say("only-there", "to its own").await;
    assert_eq!(lost.heard(), ["to its own"]);
    assert!(b.redis.status().is_degraded());
    assert_eq!(b.redis.status().not_shared_count(), 1);
    assert!(!a.redis.status().is_degraded());
    let gone = becomes(SOON, async || {
        let occupancy = c.redis.occupancy(&channel("only-there")).await;
        occupancy.is_none()
    });
    assert!(gone.await);
    assert_eq!(setup.facts(), ["channel_vacated", "member_removed"]);

    setup.proxies[1].set(Weather::Fair);
    let [a, b, _] = &setup.nodes[..] else {
        unreachable!()
    };
    hears(&watcher, Duration::from_secs(5), &["+u"]).await;
    hears(&other, SOON, &["+u"]).await;
    a.say("only-there", "from elsewhere").await;
    b.say("presence-room", "back").await;
    hears(&lost, SOON, &["from elsewhere", "back"]).await;
    hears(&watcher, SOON, &["back"]).await;
    assert_eq!(a.redis.members(&channel("presence-room")).await.len(), 3);
    assert_eq!(setup.facts(), ["channel_occupied", "member_added"]);
}

#[tokio::test]
async fn while_redis_is_away_a_node_goes_on_alone_and_afterwards_all_agree() {
    for weather in [Weather::Refused, Weather::Blackhole] {
        let mut setup = Setup::of(2).await;
        let [a, b] = &setup.nodes[..] else {
            unreachable!()
        };
        let (one, two, three) = (Peer::new(&a.node), Peer::new(&b.node), Peer::new(&b.node));
        one.subscribe(&a.node, "presence-room", Some("1"))
            .await
            .unwrap();
        two.subscribe(&b.node, "presence-room", Some("2"))
            .await
            .unwrap();
        three
            .subscribe(&b.node, "presence-room", Some("3"))
            .await
            .unwrap();
        hears(&one, SOON, &["ack", "+2", "+3"]).await;
        hears(&two, SOON, &["ack", "+3"]).await;
        three.heard();
        setup.facts();
        setup.proxies.iter().for_each(|proxy| proxy.set(weather));
        let [a, b] = &setup.nodes[..] else {
            unreachable!()
        };
        let away = becomes(Duration::from_secs(5), async || {
            a.redis.status().is_degraded() && b.redis.status().is_degraded()
        });
        assert!(away.await);

        let began = Instant::now();
        a.say("presence-room", "here").await;
        assert!(began.elapsed() < Duration::from_millis(500));
        let four = Peer::new(&a.node);
        let joined = four
            .subscribe(&a.node, "presence-room", Some("4"))
            .await
            .unwrap();
        assert_eq!(
            joined.roster.unwrap().len(),
            4,
            "who was there is there still"
        );
        b.redis.leave(&channel("presence-room"), three.id).await;
        hears(&one, SOON, &["here", "+4"]).await;
        hears(&two, SOON, &["-3"]).await;

        setup
            .proxies
            .iter()
            .for_each(|proxy| proxy.set(Weather::Fair));
        let [a, b] = &setup.nodes[..] else {
            unreachable!()
        };
        hears(&one, Duration::from_secs(5), &["-3"]).await;
        hears(&two, Duration::from_secs(5), &["+4"]).await;
        b.say("presence-room", "all").await;
        hears(&one, SOON, &["all"]).await;
        hears(&four, SOON, &["ack", "-3", "all"]).await;
        sleep(Duration::from_secs(4)).await;
        assert_eq!(one.heard(), [""; 0]);
        assert_eq!(two.heard(), ["all"]);
        assert_eq!(a.redis.members(&channel("presence-room")).await.len(), 3);
        assert_eq!(setup.facts(), ["member_added", "member_removed"]);
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_filled_again_and_nobody_notices() {
    let mut setup = Setup::of(2).await;
    let [a, b] = &setup.nodes[..] else {
        unreachable!()
    };
    let (one, two) = (Peer::new(&a.node), Peer::new(&b.node));
    one.subscribe(&a.node, "presence-room", Some("1"))
        .await
        .unwrap();
    two.subscribe(&b.node, "presence-room", Some("2"))
        .await
        .unwrap();
    two.subscribe(&b.node, "room", None).await.unwrap();
    hears(&one, SOON, &["ack", "+2"]).await;
    hears(&two, SOON, &["ack", "ack"]).await;
    setup.facts();
    setup.server.kill();
    sleep(Duration::from_millis(500)).await;
    setup.server.start_again().await;
    let back = Instant::now();
    let [a, b] = &setup.nodes[..] else {
        unreachable!()
    };
    let in_sync = becomes(Duration::from_secs(5), async || {
        !a.redis.status().is_degraded()
            && !b.redis.status().is_degraded()
            && a.redis.members(&channel("presence-room")).await.len() == 2
            && a.redis.occupancy(&channel("room")).await.is_some()
    });
    assert!(in_sync.await);
    println!("in sync {:?} after Redis was back", back.elapsed());
    a.say("room", "shared").await;
    hears(&two, SOON, &["shared"]).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(one.heard(), [""; 0]);
    assert_eq!(two.heard(), [""; 0]);
    assert_eq!(setup.facts(), [""; 0]);

    let _: () = setup.server.ask(&["FLUSHALL"]).await;
    let [a, b] = &setup.nodes[..] else {
        unreachable!()
    };
    // Whatever is done next finds it out.
    let three = Peer::new(&a.node);
    three
        .subscribe(&a.node, "presence-room", Some("3"))
        .await
        .unwrap();
    let four = Peer::new(&b.node);
    four.subscribe(&b.node, "presence-room", Some("4"))
        .await
        .unwrap();
    for peer in [one, two] {
        let mut heard = Vec::new();
        let both = becomes(Duration::from_secs(5), async || {
            heard.extend(peer.heard());
            heard.sort();
            heard == ["+3", "+4"]
        });
        assert!(both.await);
    }
    let complete = becomes(SOON, async || {
        a.redis.members(&channel("presence-room")).await.len() == 4
    });
    assert!(complete.await);
}

#[tokio::test]
async fn what_a_half_dead_subscription_missed_is_delivered_once_it_is_noticed() {
    let setup = Setup::of(2).await;
    let [a, b] = &setup.nodes[..] else {
        unreachable!()
    };
    let peer = Peer::new(&b.node);
    peer.subscribe(&b.node, "room", None).await.unwrap();
    a.say("room", "before").await;
    hears(&peer, SOON, &["ack", "before"]).await;
    setup.proxies[1].set(Weather::HalfDead);
    let began = Instant::now();
    let mut sent = Vec::new();
    while !b.redis.status().is_degraded() {
        assert!(began.elapsed() < Duration::from_secs(5), "not noticed");
        let data = format!("{}", sent.len());
        a.say("room", &data).await;
        sent.push(data);
        sleep(Duration::from_millis(20)).await;
    }
    println!("noticed after {:?}", began.elapsed());
    setup.proxies[1].set(Weather::Fair);
    let wanted: Vec<&str> = sent.iter().map(String::as_str).collect();
    hears(&peer, SOON, &wanted).await;
    assert_eq!(a.redis.status().not_shared_count(), 0);
}

#[tokio::test]
async fn a_replica_is_no_place_to_write_to_and_a_slow_redis_is_only_slow() {
    let setup = Setup::of(2).await;
    let [a, b] = &setup.nodes[..] else {
        unreachable!()
    };
    let peer = Peer::new(&b.node);
    peer.subscribe(&b.node, "room", None).await.unwrap();
    let slow = Weather::Slow(Duration::from_millis(150));
    setup.proxies.iter().for_each(|proxy| proxy.set(slow));
    sleep(Duration::from_secs(3)).await;
    a.say("room", "slowly").await;
    hears(&peer, SOON, &["ack", "slowly"]).await;
    assert!(!a.redis.status().is_degraded() && !b.redis.status().is_degraded());
    setup
        .proxies
        .iter()
        .for_each(|proxy| proxy.set(Weather::Fair));

    let other = RedisServer::start(&[]).await;
    let port = other.port.to_string();
    let _: () = setup.server.ask(&["REPLICAOF", "127.0.0.1", &port]).await;
    let away = becomes(Duration::from_secs(5), async || {
        a.redis.status().is_degraded() && b.redis.status().is_degraded()
    });
    assert!(away.await);
    b.say("room", "alone").await;
    hears(&peer, SOON, &["alone"]).await;
    let _: () = setup.server.ask(&["REPLICAOF", "NO", "ONE"]).await;
    let back = becomes(Duration::from_secs(5), async || {
        !a.redis.status().is_degraded() && !b.redis.status().is_degraded()
    });
    assert!(back.await);
    a.say("room", "together").await;
    hears(&peer, SOON, &["together"]).await;
}

#[tokio::test]
async fn a_publish_costs_two_commands_and_what_comes_and_goes_leaves_nothing() {
    let setup = Setup::of(3).await;
    let nodes: Vec<Node> = setup.nodes.iter().map(|node| node.node.clone()).collect();
    let peers: Vec<Peer> = (0..60).map(|n| Peer::new(&nodes[n % 3])).collect();
    for (n, peer) in peers.iter().enumerate() {
        peer.subscribe(&nodes[n % 3], "room", None).await.unwrap();
    }
    let _: () = setup.server.ask(&["CONFIG", "RESETSTAT"]).await;
    for n in 0..500 {
        setup.nodes[n % 3].say("room", "x").await;
    }
    let stats: String = setup.server.ask(&["INFO", "commandstats"]).await;
    let calls = |name: &str| -> u64 {
        let prefix = format!("cmdstat_{name}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next()?.parse().ok())
            .unwrap_or_default()
    };
    assert_eq!(calls("xadd"), 500);
    // And the probes of three links.
    assert!((500..560).contains(&calls("publish")), "{stats}");
    assert_eq!(calls("evalsha"), 0);

    let rounds: usize = match std::env::var("RAPTOR_JOIN_ROUNDS") {
        Ok(rounds) => rounds.parse().unwrap(),
        Err(_) => 300,
    };
    let size = async || -> u64 {
        let keys: Vec<String> = setup.server.ask(&["KEYS", "*"]).await;
        keys.iter().filter(|key| !key.ends_with(":log")).count() as u64
    };
    let memory = async || -> u64 {
        let info: String = setup.server.ask(&["INFO", "memory"]).await;
        let used = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        used.unwrap().parse().unwrap()
    };
    assert!(becomes(SOON, async || size().await > 3 * 64).await);
    let (before, memory_before) = (size().await, memory().await);
    for round in 0..rounds {
        let node = &nodes[round % 3];
        let names = [format!("presence-{}", round % 100), format!("r-{round}")];
        let peer = Peer::new(node);
        let user = round.to_string();
        peer.subscribe(node, &names[0], Some(&user)).await.unwrap();
        peer.subscribe(node, &names[1], None).await.unwrap();
        for name in &names {
            node.backend.leave(&channel(name), peer.id).await;
        }
    }
    let keys: Vec<String> = setup.server.ask(&["KEYS", "*"]).await;
    assert_eq!(size().await, before, "{keys:?}");
    println!(
        "memory in bytes: {memory_before} before, {} after",
        memory().await
    );
}
