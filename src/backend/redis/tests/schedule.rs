//! Random faults from a seed, and an oracle that looks at every client's view.
//!
//! `RAPTOR_FAULT_ROUNDS` and `RAPTOR_FAULT_SEED` choose another run; a failure names its seed.

use std::collections::{BTreeSet, HashMap};

use super::faults::Setup;
use super::server::Weather;
use super::*;

const ROUNDS: usize = 5;
const NODES: usize = 3;

/// A member of the room with everything it was told.
struct Client {
    peer: Peer,
    node: usize,
    user: String,
    known: BTreeSet<String>,
    heard: HashMap<String, usize>,
}

impl Client {
    /// Takes in what came; a transition twice is a defect.
    fn listen(&mut self) {
        for text in self.peer.heard() {
            if let Some(user) = text.strip_prefix('+') {
                assert!(
                    self.known.insert(user.to_owned()),
                    "{} came twice to {}",
                    user,
                    self.user
                );
            } else if let Some(user) = text.strip_prefix('-') {
                assert!(
                    self.known.remove(user),
                    "{} went twice for {}",
                    user,
                    self.user
                );
            } else if text != "ack" {
                let times = self.heard.entry(text).or_default();
                *times += 1;
                assert_eq!(*times, 1, "an event came twice to {}", self.user);
            }
        }
    }
}

/// xorshift: the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

#[tokio::test]
#[ignore = "not green yet: seed 1795562119675455 found events that were lost and not counted as not shared"]
async fn random_faults_leave_no_ghosts_no_doubles_and_no_gaps() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let rounds = number("RAPTOR_FAULT_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    let seed = number("RAPTOR_FAULT_SEED").unwrap_or_else(|| now_us() | 1);
    println!("RAPTOR_FAULT_SEED={seed}");
    let mut random = Random(seed);
    let mut setup = Setup::of(NODES).await;
    let mut clients: Vec<Client> = Vec::new();
    let (mut users, mut events) = (0, 0);
    for round in 0..rounds {
        for _ in 0..random.below(4) {
            users += 1;
            let (user, node) = (format!("u{users}"), random.below(NODES));
            clients.push(come(&setup, user, node).await);
        }
        let fault = random.below(6);
        let victim = random.below(NODES);
        let lasts = Duration::from_millis(300 + random.below(9000) as u64);
        println!("round {round}: fault {fault} at node {victim} for {lasts:?}");
        let not_shared = |setup: &Setup| -> u64 {
            setup
                .nodes
                .iter()
                .map(|node| node.redis.status().not_shared_count())
                .sum()
        };
        let not_shared_before = not_shared(&setup);
        match fault {
            0 => setup.proxies[victim].set(Weather::Refused),
            1 => setup.proxies[victim].set(Weather::Blackhole),
            2 => setup.proxies[victim].set(Weather::HalfDead),
            3 => setup
                .proxies
                .iter()
                .for_each(|proxy| proxy.set(Weather::Blackhole)),
            4 => setup.server.kill(),
            _ => setup.server.signal("STOP"),
        }
        let until = Instant::now() + lasts;
        let first_event = events;
        while Instant::now() < until {
            match random.below(8) {
                0 if clients.len() > 2 => {
                    let client = clients.swap_remove(random.below(clients.len()));
                    let redis = &setup.nodes[client.node].redis;
                    redis.leave(&channel("presence-room"), client.peer.id).await;
                }
                1 => {
                    users += 1;
                    let (user, node) = (format!("u{users}"), random.below(NODES));
                    clients.push(come(&setup, user, node).await);
                }
                _ => {
                    events += 1;
                    let node = &setup.nodes[random.below(NODES)];
                    node.say("presence-room", &format!("during {events}")).await;
                }
            }
            sleep(Duration::from_millis(50)).await;
            clients.iter_mut().for_each(Client::listen);
        }
        let there = clients
            .iter()
            .map(|client| client.user.clone())
            .collect::<Vec<_>>();
        setup
            .proxies
            .iter()
            .for_each(|proxy| proxy.set(Weather::Fair));
        match fault {
            4 => setup.server.start_again().await,
            5 => setup.server.signal("CONT"),
            _ => {}
        }
        let healed = Instant::now();
        let in_sync = becomes(Duration::from_secs(5), async || {
            setup
                .nodes
                .iter()
                .all(|node| !node.redis.status().is_degraded())
        });
        assert!(
            in_sync.await,
            "seed {seed} round {round}: not in sync in time"
        );
        let expected: BTreeSet<String> = clients.iter().map(|client| client.user.clone()).collect();
        let agrees = becomes(Duration::from_secs(10), async || {
            clients.iter_mut().for_each(Client::listen);
            let mut members = BTreeSet::new();
            for member in setup.nodes[0]
                .redis
                .members(&channel("presence-room"))
                .await
            {
                members.insert(member.user_id.to_string());
            }
            members == expected && clients.iter().all(|client| client.known == expected)
        });
        if !agrees.await {
            for client in &clients {
                println!(
                    "{} on {} knows {:?}",
                    client.user, client.node, client.known
                );
            }
            panic!("seed {seed} round {round}: {expected:?} are there");
        }
        println!("  agreed {:?} after it was over", healed.elapsed());
        // Whoever was there all the time got each event, or the sender's node counted it.
        let counted = not_shared(&setup) - not_shared_before;
        for client in clients.iter().filter(|client| there.contains(&client.user)) {
            if !client
                .heard
                .contains_key(&format!("during {}", first_event + 1))
            {
                continue;
            }
            let missed = (first_event + 1..=events)
                .filter(|n| !client.heard.contains_key(&format!("during {n}")))
                .count() as u64;
            assert!(
                missed <= counted,
                "seed {seed} round {round}: {} missed {missed}, {counted} were counted",
                client.user
            );
        }
        for (nth, node) in setup.nodes.iter().enumerate() {
            let data = format!("after {round} {nth}");
            node.say("presence-room", &data).await;
            let all = becomes(SOON, async || {
                clients.iter_mut().for_each(Client::listen);
                clients
                    .iter()
                    .all(|client| client.heard.contains_key(&data))
            });
            assert!(all.await, "seed {seed} round {round}: an event is missing");
        }
    }
}

async fn come(setup: &Setup, user: String, node: usize) -> Client {
    let at = &setup.nodes[node].node;
    let peer = Peer::new(at);
    let joined = peer
        .subscribe(at, "presence-room", Some(&user))
        .await
        .unwrap();
    let roster = joined.roster.unwrap_or_default();
    Client {
        peer,
        node,
        user,
        known: roster
            .iter()
            .map(|member| member.user_id.to_string())
            .collect(),
        heard: HashMap::new(),
    }
}
