//! Sessions may live on any node: clients that come over HTTP, or reconnect, are sent to whichever
//! node the load balancer chose.
//!
//! Each session has one owner. Which node that is stands in Redis ([`directory`]). A request for
//! somebody else's session is passed on to its owner and the answer comes back ([`relay`]); a socket
//! and a node that stops make the session itself move ([`moving`]). Nodes write letters to each
//! other through Redis ([`letter`]); letters that belong together are an [`Exchange`].
//!
//! Letters may be lost with a connection to Redis, and nodes may die. Then the exchange ends: what
//! was on its way is given back to the session, and the client comes again.

mod directory;
mod exchange;
mod held;
pub mod letter;
mod moving;
mod relay;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::backend::{Done, Redis};
use crate::metrics::Page;
use crate::model::ChannelId;
use crate::transport::session::{Luggage, Sessions, Visit};
use directory::Directory;
use exchange::Exchanges;
pub use held::WrittenHeld;
use letter::{Letter, What};
pub use moving::PackedFrame;
use moving::{Arrivals, Stays};
pub use relay::{PassedOn, Relayed, Serve, Tries, misdirected, unavailable};

/// How often exchanges are looked through for those whose other side has gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long whoever knows that a session comes here waits for it.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// A session may move while it is looked for.
pub const LOOKS_MAX: usize = 4;
/// Sessions that leave at the same time.
const LEAVING_MAX: usize = 32;

/// What a front end is called, in the directory and in letters.
pub type HouseName = &'static str;

/// A front end whose sessions may live on any node.
pub trait House: Send + Sync {
    fn name(&self) -> HouseName;

    /// The sessions that are here.
    fn ids(&self) -> Vec<String>;

    fn has(&self, id: &str) -> bool;

    /// Has a session's client come anew, because it comes through a node that stops.
    fn shake_off<'a>(&'a self, id: &'a str) -> Done<'a, ()>;

    /// Stops a session, so that it can go to another node. `None` if it is not here, cannot go, or is
    /// on its way already.
    fn depart<'a>(&'a self, id: &'a str) -> Done<'a, Option<Box<dyn Departure>>>;

    /// Makes what a [`Departure`] described; nobody finds it yet. `None` if there is no room.
    fn arrive<'a>(
        &'a self,
        id: &'a str,
        description: &'a [u8],
    ) -> Done<'a, Option<Box<dyn Arrival>>>;
}

/// A session that is about to go. Dropped, it stays.
pub trait Departure: Send + Sync {
    /// All of it but its queue.
    fn description(&self) -> Vec<u8>;

    /// What it is subscribed to.
    fn channels(&self) -> Vec<ChannelId>;

    /// Its queue. `None` if it has come to its end meanwhile.
    fn luggage(&self) -> Option<Luggage>;

    /// It is elsewhere now: here it leaves without a word.
    fn has_gone(self: Box<Self>) -> Done<'static, ()>;
}

/// A session that has come and is not found yet.
pub trait Arrival: Send + Sync {
    fn settle(self: Box<Self>, luggage: Luggage);

    /// It does not come after all: it leaves without a word.
    fn turn_away(self: Box<Self>) -> Done<'static, ()>;
}

/// Where the directory says that a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Here,
    /// On the node of this number.
    There(u32),
    Nowhere,
    /// Redis is away.
    Unknown,
}

/// Where the answer is to a request that is not answered here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elsewhere {
    /// On this node, where the session of this key is.
    Node(u32, String),
    /// It cannot be said just now.
    Unknown,
}

/// How a session is looked for that is not here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    Find,
    /// Whoever asks may be opening it: where it is nowhere, it is this node's.
    Claim,
}

/// The other nodes, as sessions see them.
pub struct Peers {
    redis: Arc<Redis>,
    directory: Directory,
    exchanges: Exchanges,
    arrivals: Arrivals,
    houses: OnceLock<Vec<Arc<dyn House>>>,
    serve: OnceLock<Serve>,
    /// The other nodes, as of a second ago.
    alive: Mutex<Vec<u32>>,
    /// This node takes nobody in any more.
    is_leaving: AtomicBool,
    last_letter_is_read: Notify,
    counts: Counts,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Counts {
    passed_on: AtomicU64,
    moved_here: AtomicU64,
    moved_away: AtomicU64,
}

impl Peers {
    pub fn new(redis: Arc<Redis>) -> Arc<Self> {
        Arc::new(Self {
            directory: Directory::new(redis.clone()),
            exchanges: Exchanges::default(),
            arrivals: Arrivals::default(),
            houses: OnceLock::new(),
            serve: OnceLock::new(),
            alive: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            last_letter_is_read: Notify::new(),
            counts: Counts::default(),
            tasks: TaskTracker::new(),
            redis,
        })
    }

    /// Reads letters from now on. `serve` answers requests that were passed on.
    pub fn start(self: &Arc<Self>, houses: Vec<Arc<dyn House>>, serve: Serve) {
        let _ = self.houses.set(houses);
        let _ = self.serve.set(serve);
        if let Some(mut letters) = self.redis.letters() {
            let peers = Arc::downgrade(self);
            tokio::spawn(async move {
                while let Some(letter) = letters.recv().await {
                    let Some(peers) = peers.upgrade() else { return };
                    if let Some(letter) = Letter::read(&letter) {
                        peers.receive(letter);
                    } else if letter.is_empty() {
                        peers.last_letter_is_read.notify_one();
                    }
                }
            });
        }
        tokio::spawn(watch(Arc::downgrade(self)));
        tokio::spawn(keep_directory(Arc::downgrade(self)));
    }

    /// Sees to it that a session stays here until the visit ends. `None` if it is not there yet, or
    /// nowhere. `key` is what `id` is called among all sessions of the house.
    pub async fn visit<T>(
        &self,
        house: HouseName,
        sessions: &Sessions<T>,
        (key, id): (&str, &str),
        search: Search,
    ) -> Result<Option<Visit<T>>, Elsewhere> {
        for _ in 0..LOOKS_MAX {
            if let Some(session) = sessions.find(id) {
                match session.visit() {
                    Some(visit) => return Ok(Some(visit)),
                    None => session.settled().await,
                }
                continue;
            }
            let place = match search {
                Search::Find => self.directory.find(house, key).await,
                Search::Claim => self.directory.claim(house, key).await,
            };
            match (place, search) {
                (Place::There(node), _) if self.lives(node).await => {
                    return Err(Elsewhere::Node(node, key.to_owned()));
                }
                // Lost with its node.
                (Place::There(_), Search::Find) => return Ok(None),
                (Place::There(_), Search::Claim) => {
                    self.directory.note(house, key).await;
                    return Ok(None);
                }
                (Place::Nowhere, _) => return Ok(None),
                (Place::Here, _) if self.arrives(house, key).await => {}
                (Place::Here, _) => return Ok(None),
                (Place::Unknown, Search::Find) => return Err(Elsewhere::Unknown),
                // Better served by this node alone than not at all.
                (Place::Unknown, Search::Claim) => return Ok(None),
            }
        }
        Err(Elsewhere::Unknown)
    }

    /// A session of this id has just been made here.
    pub async fn note(&self, house: HouseName, id: &str) {
        self.directory.note(house, id).await;
    }

    /// A session of this id has ended here.
    pub fn forget(self: &Arc<Self>, house: HouseName, id: String) {
        let peers = self.clone();
        // Nobody waits for it.
        tokio::spawn(async move { peers.directory.forget(house, &id).await });
    }

    /// What can be told when somebody asks.
    pub fn show(&self, page: &mut Page) {
        let counts = &self.counts;
        page.counter(
            "raptor_requests_passed_on_total",
            "Requests that another node answered, which has their session.",
            counts.passed_on.load(Ordering::Relaxed),
        );
        let name = "raptor_sessions_moved_total";
        page.family(
            name,
            "counter",
            "Sessions that moved from or to another node.",
        );
        for (to, count) in [("here", &counts.moved_here), ("away", &counts.moved_away)] {
            let count = count.load(Ordering::Relaxed);
            page.sample(name, &[("to", to)], count as f64);
        }
    }

    /// The directory may have it here before we have.
    async fn arrives(&self, house: HouseName, key: &str) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(2);
        let by = Instant::now() + ARRIVES_WITHIN;
        while Instant::now() < by {
            if self.has(house, key) {
                return true;
            }
            if !self.exchanges.are_any() {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        false
    }

    /// Whether a node is there, or was a few seconds ago.
    async fn lives(&self, node: u32) -> bool {
        if self.alive().contains(&node) {
            return true;
        }
        // It may just have come.
        let others = self.redis.others().await;
        others.is_none_or(|others| others.contains(&node))
    }

    /// Says where all sessions of the house are. Those that ended just then were forgotten and came
    /// back by that: they are forgotten again.
    async fn say_again(&self, house: &dyn House) {
        let ids = house.ids();
        self.directory.refresh(house.name(), &ids).await;
        for ended in ids.iter().filter(|id| !house.has(id)) {
            self.directory.forget(house.name(), ended).await;
        }
    }

    fn alive(&self) -> MutexGuard<'_, Vec<u32>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn house(&self, name: &str) -> Option<Arc<dyn House>> {
        let houses = self.houses.get()?;
        houses.iter().find(|house| house.name() == name).cloned()
    }

    fn has(&self, house: &str, id: &str) -> bool {
        self.house(house).is_some_and(|house| house.has(id))
    }

    /// Sends all sessions to other nodes, and clients whose sessions are there already, evenly over
    /// the time. Those for whom there is no other node stay.
    pub async fn leave(self: &Arc<Self>, over: Duration) {
        self.is_leaving.store(true, Ordering::Relaxed);
        tokio::join!(self.send_sessions(over), self.send_clients(over));
    }

    /// Clients that come through this node to sessions of others: their requests end, and the next
    /// ones come through another node.
    async fn send_clients(self: &Arc<Self>, over: Duration) {
        const AGAIN_AFTER: Duration = Duration::from_millis(100);
        const ROUNDS_MAX: usize = 20;
        let mut over = over;
        for _ in 0..ROUNDS_MAX {
            let asked = self.exchanges.asked();
            let (begun, count) = (Instant::now(), asked.len());
            for (nth, asked) in asked.into_iter().enumerate() {
                let share = nth as f64 / count as f64;
                tokio::time::sleep_until(begun + over.mul_f64(share)).await;
                let exchange = self.exchanges.begin(asked.node);
                let shake = What::ShakeOff {
                    house: asked.house.to_owned(),
                    id: asked.id,
                };
                let _ = self.post(asked.node, exchange.number(), shake, &[]).await;
            }
            if count == 0 && Instant::now() >= begun + over {
                return;
            }
            // Some came meanwhile, on connections that were still open.
            over = Duration::ZERO;
            sleep(AGAIN_AFTER).await;
        }
    }

    async fn send_sessions(self: &Arc<Self>, over: Duration) {
        const AGAIN_AFTER: Duration = Duration::from_millis(250);
        const ROUNDS_MAX: usize = 20;
        let mut moved = self.send_those_here(over).await;
        // Some came meanwhile, and others were not taken by a node that had too much to do.
        for _ in 0..ROUNDS_MAX {
            if self.count_here() == 0 || self.redis.others().await.is_none_or(|o| o.is_empty()) {
                break;
            }
            sleep(AGAIN_AFTER).await;
            moved += self.send_those_here(Duration::ZERO).await;
        }
        let stayed = self.count_here();
        tracing::info!(moved, stayed, "sessions went to other nodes");
    }

    fn count_here(&self) -> usize {
        let houses = self.houses.get().into_iter().flatten();
        houses.map(|house| house.ids().len()).sum()
    }

    /// How many went.
    async fn send_those_here(self: &Arc<Self>, over: Duration) -> usize {
        let houses = self.houses.get().into_iter().flatten();
        let sessions: Vec<_> = houses
            .flat_map(|house| {
                let ids = house.ids().into_iter();
                ids.map(|id| (house.clone(), id))
            })
            .collect();
        let others = self.redis.others().await.unwrap_or_default();
        let begun = Instant::now();
        let places = Arc::new(Semaphore::new(LEAVING_MAX));
        let count = sessions.len();
        let mut leaving = Vec::with_capacity(count);
        for (nth, (house, id)) in sessions.into_iter().enumerate() {
            let share = nth as f64 / count as f64;
            tokio::time::sleep_until(begun + over.mul_f64(share)).await;
            let Ok(place) = places.clone().acquire_owned().await else {
                break;
            };
            let (peers, others) = (self.clone(), others.clone());
            leaving.push(tokio::spawn(async move {
                let _place = place;
                for attempt in 0..others.len() {
                    let to = others[(nth + attempt) % others.len()];
                    match peers.send_off(&house, &id, to).await {
                        Ok(()) => return true,
                        Err(Stays::NotHere) => return false,
                        Err(Stays::Refused(why)) => tracing::debug!(to, why, "a session stays"),
                    }
                }
                false
            }));
        }
        let left = join_all(leaving).await;
        left.iter().filter(|left| matches!(left, Ok(true))).count()
    }

    /// Waits until what was begun for other nodes is done. They do not begin anything more.
    pub async fn finish(&self, within: Duration) {
        self.tasks.close();
        let finish = async {
            self.tasks.wait().await;
            self.redis.hear_no_letters().await;
            self.last_letter_is_read.notified().await;
            self.tasks.wait().await;
        };
        let _ = timeout(within, finish).await;
    }

    fn receive(self: &Arc<Self>, letter: Letter) {
        let Letter {
            from,
            exchange,
            what,
            body,
        } = letter;
        if what.is_first() {
            let exchange = self.exchanges.join(from, exchange);
            let peers = self.clone();
            self.tasks.spawn(async move {
                match what {
                    What::Request(head) => peers.serve_passed_on(exchange, head, body).await,
                    What::ShakeOff { house, id } => {
                        if let Some(house) = peers.house(&house) {
                            house.shake_off(&id).await;
                        }
                    }
                    What::Take { house, id } => peers.give_up(exchange, &house, &id).await,
                    What::Offer { house, id } => peers.take_in(exchange, &house, &id, &body).await,
                    _ => {}
                }
            });
        } else {
            self.exchanges.hand_in(from, exchange, what, body);
        }
    }

    async fn post(&self, to: u32, exchange: u64, what: What, body: &[u8]) -> bool {
        let letter = Letter {
            from: self.redis.node(),
            exchange,
            what,
            body: body.to_vec().into(),
        };
        self.redis.post(to, &letter.written()).await
    }
}

/// Ends exchanges whose other side will not answer. Ends with the peers.
async fn watch(peers: Weak<Peers>) {
    let mut turns = 0;
    let mut ticks = interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let Some(peers) = peers.upgrade() else { return };
        let turns_before = std::mem::replace(&mut turns, peers.redis.turns());
        let others = peers.redis.others().await;
        if turns != turns_before || others.is_none() {
            peers.exchanges.end_all();
        }
        if let Some(others) = others {
            peers.exchanges.end_without(|node| others.contains(&node));
            *peers.alive() = others;
        }
    }
}

/// Says again and again where this node's sessions are. Ends with the peers.
async fn keep_directory(peers: Weak<Peers>) {
    let mut turns = 0;
    let mut next = Instant::now();
    loop {
        sleep(LOOK_EVERY).await;
        let Some(peers) = peers.upgrade() else { return };
        let turns_before = std::mem::replace(&mut turns, peers.redis.turns());
        if turns == turns_before && Instant::now() < next {
            continue;
        }
        next = Instant::now() + directory::REFRESH_EVERY;
        for house in peers.houses.get().into_iter().flatten() {
            peers.say_again(house.as_ref()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::redis::tests::with_one_node;

    /// A house of which a session ends while it is asked for its sessions.
    struct Ending;

    impl House for Ending {
        fn name(&self) -> HouseName {
            "ending"
        }

        fn ids(&self) -> Vec<String> {
            vec!["stays".to_owned(), "ends".to_owned()]
        }

        fn has(&self, id: &str) -> bool {
            id == "stays"
        }

        fn shake_off<'a>(&'a self, _: &'a str) -> Done<'a, ()> {
            Box::pin(async {})
        }

        fn depart<'a>(&'a self, _: &'a str) -> Done<'a, Option<Box<dyn Departure>>> {
            Box::pin(async { None })
        }

        fn arrive<'a>(&'a self, _: &'a str, _: &'a [u8]) -> Done<'a, Option<Box<dyn Arrival>>> {
            Box::pin(async { None })
        }
    }

    #[tokio::test]
    async fn the_directory_does_not_keep_what_ends_while_it_is_said_again() {
        let (_server, redis) = with_one_node().await;
        let peers = Peers::new(redis);
        peers.note("ending", "ends").await;
        peers.say_again(&Ending).await;
        assert_eq!(peers.directory.find("ending", "stays").await, Place::Here);
        assert_eq!(peers.directory.find("ending", "ends").await, Place::Nowhere);
    }
}
