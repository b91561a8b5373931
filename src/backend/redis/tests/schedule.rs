//! Random faults from a seed, and an oracle that looks at every client's view:
//!
//! - Nobody hears of a coming, a going or an event twice.
//! - Soon after a fault is over every client knows exactly who is there.
//! - A client hears each event that was accepted after it had joined, unless the event's node counted
//!   it as not shared; then those on that node hear it.
//!
//! `RAPTOR_FAULT_ROUNDS` and `RAPTOR_FAULT_SEED` choose another run; a failure names its seed. The
//! seed decides what is done, not when exactly it happens.

use std::collections::{BTreeSet, HashMap};

use super::faults::Setup;
use super::server::Weather;
use super::thread::Paused;
use super::*;

const ROUNDS: usize = 3;
const NODES: usize = 3;
const STEP: Duration = Duration::from_millis(50);
/// From the end of a fault until all is as it should be.
const SYNC_MAX: Duration = Duration::from_secs(5);
/// A node that is lost is found lost within this.
const LOSS_MAX: Duration = Duration::from_secs(10);

/// A member of the room with everything it was told.
struct Client {
    peer: Peer,
    node: usize,
    user: String,
    /// Events that were accepted before it had joined.
    since: usize,
    known: BTreeSet<String>,
    heard: HashMap<String, usize>,
}

/// An event that was accepted.
struct Said {
    node: usize,
    is_shared: bool,
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

/// What a round does to the cluster.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Weather(Weather),
    /// For all nodes at once.
    Everywhere(Weather),
    /// Redis dies, and comes back empty.
    Death,
    /// Redis dies, and its replica becomes the primary after a while.
    Failover,
    /// Redis stands still.
    Pause,
    /// A node dies with its clients, and another takes its place.
    NodeDeath,
    /// A node stands still.
    NodePause,
}

const FAULTS: [Fault; 9] = [
    Fault::Weather(Weather::Refused),
    Fault::Weather(Weather::Blackhole),
    Fault::Weather(Weather::HalfDead),
    Fault::Everywhere(Weather::Blackhole),
    Fault::Death,
    Fault::Failover,
    Fault::Pause,
    Fault::NodeDeath,
    Fault::NodePause,
];

/// A cluster with its clients.
struct World {
    setup: Setup,
    clients: Vec<Client>,
    users: usize,
    said: Vec<Said>,
    /// A node that is dead or stands still now.
    out: Option<(usize, Option<Paused>)>,
}

#[tokio::test]
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
    let mut world = World {
        setup: Setup::of(NODES).await,
        clients: Vec::new(),
        users: 0,
        said: Vec::new(),
        out: None,
    };
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        for _ in 0..random.below(4) {
            world.come(&mut random).await;
        }
        let fault = FAULTS[random.below(FAULTS.len())];
        let victim = random.below(NODES);
        let steps = 6 + random.below(180);
        println!("round {round}: {fault:?} at node {victim} for {steps} steps");
        let began = Instant::now();
        world.begin(fault, victim).await;
        let first = world.said.len();
        for _ in 0..steps {
            match random.below(8) {
                0 if world.clients.len() > 2 => world.go(&mut random).await,
                1 => world.come(&mut random).await,
                _ => world.say(&mut random).await,
            }
            sleep(STEP).await;
            world.clients.iter_mut().for_each(Client::listen);
        }
        world.end(fault).await;
        let healed = Instant::now();
        let within = match fault {
            Fault::NodeDeath => SYNC_MAX.max(LOSS_MAX.saturating_sub(began.elapsed())),
            _ => SYNC_MAX,
        };
        world
            .agrees(within, first)
            .await
            .unwrap_or_else(|why| panic!("seed {seed} round {round}: {why}"));
        slowest = slowest.max(healed.elapsed());
        println!("  in sync {:?} after it was over", healed.elapsed());
        let first = world.said.len();
        for node in 0..NODES {
            world.say_at(node).await;
            assert!(
                world.said[first + node].is_shared,
                "seed {seed} round {round}"
            );
        }
        world
            .agrees(SOON, first)
            .await
            .unwrap_or_else(|why| panic!("seed {seed} round {round}: {why}"));
    }
    println!(
        "{rounds} rounds, {} events, in sync within {slowest:?}",
        world.said.len()
    );
}

impl World {
    async fn begin(&mut self, fault: Fault, victim: usize) {
        match fault {
            Fault::Weather(weather) => self.setup.proxies[victim].set(weather),
            Fault::Everywhere(weather) => {
                (self.setup.proxies.iter()).for_each(|proxy| proxy.set(weather));
            }
            Fault::Death => self.setup.server.kill(),
            Fault::Failover => {
                let replica = self.setup.server.start_replica().await;
                (self.setup.proxies.iter()).for_each(|proxy| proxy.lead_to(replica.port));
                self.setup.server = replica;
            }
            Fault::Pause => self.setup.server.signal("STOP"),
            Fault::NodeDeath => {
                self.setup.nodes[victim].thread.die();
                self.clients.retain(|client| client.node != victim);
                self.out = Some((victim, None));
            }
            Fault::NodePause => {
                let paused = self.setup.nodes[victim].thread.pause();
                self.out = Some((victim, Some(paused)));
            }
        }
    }

    async fn end(&mut self, fault: Fault) {
        (self.setup.proxies.iter()).for_each(|proxy| proxy.set(Weather::Fair));
        match fault {
            Fault::Death => self.setup.server.start_again().await,
            Fault::Failover => self.setup.server.promote().await,
            Fault::Pause => self.setup.server.signal("CONT"),
            _ => {}
        }
        if let Some((dead, None)) = self.out.take() {
            self.setup.nodes[dead] = start(&self.setup.proxies[dead].url(), "faults");
        }
    }

    /// One that lives.
    fn node(&self, random: &mut Random) -> usize {
        let node = random.below(NODES);
        match self.is_out(node) {
            true => (node + 1) % NODES,
            false => node,
        }
    }

    fn is_out(&self, node: usize) -> bool {
        self.out.as_ref().is_some_and(|(out, _)| *out == node)
    }

    async fn come(&mut self, random: &mut Random) {
        let node = self.node(random);
        self.users += 1;
        let user = format!("u{}", self.users);
        let at = &self.setup.nodes[node].node;
        let peer = Peer::new(at);
        let joined = peer
            .subscribe(at, "presence-room", Some(&user))
            .await
            .unwrap();
        let roster = joined.roster.unwrap_or_default();
        self.clients.push(Client {
            peer,
            node,
            user,
            since: self.said.len(),
            known: roster
                .iter()
                .map(|member| member.user_id.to_string())
                .collect(),
            heard: HashMap::new(),
        });
    }

    async fn go(&mut self, random: &mut Random) {
        let at = random.below(self.clients.len());
        if self.is_out(self.clients[at].node) {
            return;
        }
        let client = self.clients.swap_remove(at);
        let redis = &self.setup.nodes[client.node].redis;
        redis.leave(&channel("presence-room"), client.peer.id).await;
    }

    async fn say(&mut self, random: &mut Random) {
        let node = self.node(random);
        self.say_at(node).await;
    }

    async fn say_at(&mut self, node: usize) {
        let at = &self.setup.nodes[node];
        let not_shared = || at.redis.status().not_shared_count();
        let before = not_shared();
        at.say("presence-room", &said(self.said.len())).await;
        let is_shared = not_shared() == before;
        self.said.push(Said { node, is_shared });
    }

    /// Waits until all is as it should be; of what was said, from the event `first` on.
    async fn agrees(&mut self, within: Duration, first: usize) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            self.clients.iter_mut().for_each(Client::listen);
            let Some(why) = self.disagreement(first).await else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(why);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn disagreement(&self, first: usize) -> Option<String> {
        let there: BTreeSet<String> = (self.clients.iter())
            .map(|client| client.user.clone())
            .collect();
        for (nth, node) in self.setup.nodes.iter().enumerate() {
            if node.redis.status().is_degraded() {
                return Some(format!("node {nth} is degraded"));
            }
            let members = node.redis.members(&channel("presence-room")).await;
            let members = members.iter().map(|member| member.user_id.to_string());
            let members: BTreeSet<String> = members.collect();
            if members != there {
                return Some(format!("{there:?} are there, node {nth} says {members:?}"));
            }
        }
        for client in &self.clients {
            let Client {
                user, node, known, ..
            } = client;
            if *known != there {
                return Some(format!(
                    "{there:?} are there, {user} on {node} knows {known:?}"
                ));
            }
            let is_owed = |at: &usize| {
                let said = &self.said[*at];
                *at >= client.since && (said.is_shared || said.node == *node)
            };
            let owed = (first..self.said.len()).filter(is_owed);
            let missed: Vec<usize> = owed
                .filter(|at| !client.heard.contains_key(&said(*at)))
                .collect();
            if !missed.is_empty() {
                return Some(format!("{user} on {node} misses the events {missed:?}"));
            }
        }
        None
    }
}

fn said(nth: usize) -> String {
    format!("event {nth}")
}
