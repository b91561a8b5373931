//! The changes that Redis makes in one step.

use std::fmt::Write;
use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs, cmd};
use sha1::{Digest, Sha1};

/// The name of a partition's stream of facts.
pub const FACTS: &str = "facts";
/// Facts that a stream keeps for whoever tells the application; beyond it the oldest go. The scripts
/// say the same.
const FACTS_MAX: usize = 100_000;

/// Adds a line to the stream of facts of the partition with this prefix.
pub fn add_fact(prefix: &str, line: &[u8]) -> Cmd {
    let mut add = cmd("XADD");
    add.arg(format!("{prefix}{FACTS}"));
    add.arg("MAXLEN").arg("~").arg(FACTS_MAX);
    add.arg("*").arg("f").arg(line);
    add
}

pub struct Script {
    text: String,
    sha: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub static $name: LazyLock<Script> = LazyLock::new(|| Script::of(include_str!($file)));)*
        pub fn all() -> Vec<&'static Script> {
            vec![$(&$name),*]
        }
    };
}

scripts! {
    BEGIN = "scripts/begin.lua";
    JOIN = "scripts/join.lua";
    LEAVE = "scripts/leave.lua";
    LIST = "scripts/list.lua";
    PUBLISH = "scripts/publish.lua";
    REAP = "scripts/reap.lua";
    ROSTER = "scripts/roster.lua";
    SET = "scripts/set.lua";
}

impl Script {
    fn of(body: &str) -> Self {
        let text = format!("{}\n{body}", include_str!("scripts/prelude.lua"));
        let mut sha = String::new();
        for byte in Sha1::digest(&text) {
            let _ = write!(sha, "{byte:02x}");
        }
        Self { text, sha }
    }

    pub fn load(&self) -> Cmd {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(&self.text);
        load
    }

    /// `prefix` is that of the partition's keys, `states` whether changes are written into its
    /// stream of facts; see `scripts/prelude.lua`.
    pub fn call(
        &self,
        prefix: &str,
        states: bool,
        is_sharded: bool,
        node: u32,
        session: u64,
    ) -> Cmd {
        let publish = match is_sharded {
            true => "SPUBLISH",
            false => "PUBLISH",
        };
        let mut call = cmd("EVALSHA");
        call.arg(&self.sha).arg(1 + u8::from(states));
        call.arg(format!("{prefix}nodes"));
        if states {
            call.arg(format!("{prefix}{FACTS}"));
        }
        call.arg(prefix).arg(publish).arg(node).arg(session);
        call
    }
}

/// Arguments one after the other, as the script's own comment numbers them.
pub fn with<const N: usize>(mut call: Cmd, arguments: [&dyn Argument; N]) -> Cmd {
    for argument in arguments {
        argument.add_to(&mut call);
    }
    call
}

pub trait Argument {
    fn add_to(&self, call: &mut Cmd);
}

impl<T: ToRedisArgs> Argument for T {
    fn add_to(&self, call: &mut Cmd) {
        call.arg(self);
    }
}
