//! On which node each session is.
//!
//! ```text
//! {pN}:session:HOUSE:ID   string, gone after a minute unless it is said again:
//!                         NODE, or "NODE EXCHANGE" while the session is offered to another
//! ```

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::{HouseName, Place};
use crate::backend::Redis;

pub const REFRESH_EVERY: Duration = Duration::from_secs(20);
/// How long the directory remembers what nobody says again.
const FORGOTTEN_AFTER_SECS: u64 = 60;
/// Entries that are said again in one step.
const SAID_AT_ONCE: usize = 256;

/// KEYS[1] the entry, ARGV[1] what it has to be, ARGV[2] what it becomes, ARGV[3] for how many
/// seconds. May be repeated where the answer was lost.
const EXCHANGE: &str = "local is = redis.call('GET', KEYS[1]) \
    if is ~= ARGV[1] and is ~= ARGV[2] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) return 1";
/// KEYS[1] the entry, ARGV[1] the node, ARGV[2] for how many seconds. Another node's is left alone.
const SAY_AGAIN: &str = "local is = redis.call('GET', KEYS[1]) \
    if not is then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) \
    elseif string.match(is, '^%d+') == ARGV[1] then redis.call('EXPIRE', KEYS[1], ARGV[2]) end \
    return 1";

/// KEYS[1] the entry, ARGV[1] whose it has to be.
const FORGET: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1";

pub struct Directory {
    redis: Arc<Redis>,
}

impl Directory {
    pub fn new(redis: Arc<Redis>) -> Self {
        Self { redis }
    }

    pub async fn find(&self, house: HouseName, id: &str) -> Place {
        let (place, key) = self.entry(house, id);
        let mut get = cmd("GET");
        get.arg(key);
        match self.redis.run(place, &[get]).await {
            Some(answers) => self.read(answers.last()),
            None => Place::Unknown,
        }
    }

    /// Where it is. If it was nowhere, it is this node's from now on.
    pub async fn claim(&self, house: HouseName, id: &str) -> Place {
        let (place, key) = self.entry(house, id);
        let mut set = self.set(&key);
        set.arg("NX");
        let mut get = cmd("GET");
        get.arg(key);
        match self.redis.run(place, &[set, get]).await.as_deref() {
            Some([Value::Okay, _]) => Place::Nowhere,
            Some(answers) => self.read(answers.last()),
            None => Place::Unknown,
        }
    }

    pub async fn note(&self, house: HouseName, id: &str) {
        let (place, key) = self.entry(house, id);
        // While Redis is away, it is said again later.
        let _ = self.redis.run(place, &[self.set(&key)]).await;
    }

    /// A session has ended here.
    pub async fn forget(&self, house: HouseName, id: &str) {
        let (place, key) = self.entry(house, id);
        let mut forget = cmd("EVAL");
        forget.arg(FORGET).arg(1).arg(key).arg(self.redis.node());
        let _ = self.redis.run(place, &[forget]).await;
    }

    pub async fn refresh(&self, house: HouseName, ids: &[String]) {
        let mut by_place: Vec<Vec<Cmd>> = (0..Redis::PARTITIONS).map(|_| Vec::new()).collect();
        for id in ids {
            let (place, key) = self.entry(house, id);
            by_place[place].push(self.say_again(&key));
        }
        for (place, commands) in by_place.into_iter().enumerate() {
            for commands in commands.chunks(SAID_AT_ONCE) {
                let _ = self.redis.run(place, commands).await;
            }
        }
    }

    /// From now on it is on offer, by this exchange.
    pub async fn offer(&self, house: HouseName, id: &str, exchange: u64) -> bool {
        let this = self.redis.node();
        let (own, offered) = (this.to_string(), offered(this, exchange));
        let (place, key) = self.entry(house, id);
        // Redis may have forgotten it.
        let commands = [self.say_again(&key), change(&key, &own, &offered)];
        let answers = self.redis.run(place, &commands).await;
        answers.is_some_and(|answers| is_done(&answers))
    }

    /// It is not on offer any more. `Some(false)` if it was taken. `None` while Redis is away.
    pub async fn withdraw(&self, house: HouseName, id: &str, exchange: u64) -> Option<bool> {
        let this = self.redis.node();
        let (own, offered) = (this.to_string(), offered(this, exchange));
        self.change(house, id, &offered, &own).await
    }

    /// Takes what another node offers. Whether it is here now. `None` while Redis is away.
    pub async fn take(&self, house: &str, id: &str, from: u32, exchange: u64) -> Option<bool> {
        let own = self.redis.node().to_string();
        let offered = offered(from, exchange);
        self.change(house, id, &offered, &own).await
    }

    async fn change(&self, house: &str, id: &str, from: &str, to: &str) -> Option<bool> {
        let (place, key) = self.entry(house, id);
        let answers = self.redis.run(place, &[change(&key, from, to)]).await?;
        Some(is_done(&answers))
    }

    fn say_again(&self, key: &str) -> Cmd {
        let mut say = cmd("EVAL");
        say.arg(SAY_AGAIN).arg(1).arg(key).arg(self.redis.node());
        say.arg(FORGOTTEN_AFTER_SECS).to_owned()
    }

    fn set(&self, key: &str) -> Cmd {
        let mut set = cmd("SET");
        set.arg(key).arg(self.redis.node());
        set.arg("EX").arg(FORGOTTEN_AFTER_SECS).to_owned()
    }

    fn entry(&self, house: &str, id: &str) -> (usize, String) {
        let place = Redis::place_of(id);
        (
            place,
            format!("{}session:{house}:{id}", self.redis.prefix(place)),
        )
    }

    fn read(&self, answer: Option<&Value>) -> Place {
        let Some(Value::BulkString(text)) = answer else {
            return Place::Nowhere;
        };
        let text = String::from_utf8_lossy(text);
        match text.split(' ').next().and_then(|node| node.parse().ok()) {
            Some(node) if node == self.redis.node() => Place::Here,
            Some(node) => Place::There(node),
            None => Place::Nowhere,
        }
    }
}

/// From one value to another, if it has the one.
fn change(key: &str, from: &str, to: &str) -> Cmd {
    let mut change = cmd("EVAL");
    change.arg(EXCHANGE).arg(1).arg(key).arg(from).arg(to);
    change.arg(FORGOTTEN_AFTER_SECS).to_owned()
}

fn is_done(answers: &[Value]) -> bool {
    matches!(answers, [.., Value::Int(1)])
}

fn offered(node: u32, exchange: u64) -> String {
    format!("{node} {exchange}")
}
