//! Where things are in Redis.
//!
//! A channel belongs to one of [`PARTITIONS`] partitions, by a hash that is the same on every node
//! and in every version. Keys and topics of a partition carry the hash tag `{pN}`, so that they
//! share one slot of a Redis Cluster, and every script touches one slot. What concerns the nodes
//! themselves carries `{nodes}`. The number behind the prefix is the version of all this.

use crate::model::{AppId, ChannelId};

/// Fixed with the scheme: nodes of one cluster must agree on it.
pub const PARTITIONS: usize = 64;
/// The place of what concerns the nodes themselves, behind the partitions.
pub const REGISTRY: usize = PARTITIONS;
pub const PLACES: usize = PARTITIONS + 1;

const SCHEME: u32 = 1;

pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("{prefix}:{SCHEME}:"),
        }
    }

    /// What every key and topic of the place starts with.
    pub fn of(&self, place: usize) -> String {
        format!("{}{{{}}}:", self.prefix, tag(place))
    }

    pub fn topic(&self, channel: &ChannelId) -> String {
        let (place, app, name) = (partition_of(channel), &channel.app, &channel.name);
        format!("{}t:{app}:{name}", self.of(place))
    }

    /// Everything of an app in one partition, where topics are sharded.
    pub fn app_topic(&self, place: usize, app: &AppId) -> String {
        format!("{}a:{app}", self.of(place))
    }

    /// Matches the topics of all channels of the app, where topics are not sharded.
    pub fn app_pattern(&self, app: &AppId) -> String {
        let prefix = escape_glob(&self.prefix);
        format!("{prefix}{{p*}}:t:{}:*", escape_glob(app.as_str()))
    }

    /// Where a node hears itself, and from other nodes.
    pub fn inbox(&self, place: usize, node: u32) -> String {
        format!("{}inbox:{node}", self.of(place))
    }

    pub fn last_event(&self, channel: &ChannelId) -> String {
        let (place, app, name) = (partition_of(channel), &channel.app, &channel.name);
        format!("{}last:{app}:{name}", self.of(place))
    }

    /// The place of a topic, and the rest of it.
    pub fn place_of<'t>(&self, topic: &'t str) -> Option<(usize, &'t str)> {
        let (tag, rest) =
            (topic.strip_prefix(&self.prefix)?.strip_prefix('{')?).split_once("}:")?;
        let place = match tag.strip_prefix('p') {
            Some(number) => number.parse().ok().filter(|p| *p < PARTITIONS)?,
            None if tag == "nodes" => REGISTRY,
            None => return None,
        };
        Some((place, rest))
    }
}

fn tag(place: usize) -> String {
    match place {
        REGISTRY => "nodes".to_owned(),
        partition => format!("p{partition}"),
    }
}

/// The slot of the place's keys in a Redis Cluster.
pub fn slot_of(place: usize) -> u16 {
    let mut crc: u16 = 0;
    for byte in tag(place).bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = match crc & 0x8000 {
                0 => crc << 1,
                _ => (crc << 1) ^ 0x1021,
            };
        }
    }
    crc % 16_384
}

/// FNV-1a with a finishing mix. A user's internal channels are in one partition, so that a script
/// can tell the watchers.
pub fn partition_of(channel: &ChannelId) -> usize {
    let locality = channel.name.locality().bytes();
    partition_of_bytes(channel.app.as_str().bytes().chain([0]).chain(locality))
}

/// Of what is no channel.
pub fn partition_of_text(text: &str) -> usize {
    partition_of_bytes(text.bytes())
}

fn partition_of_bytes(bytes: impl Iterator<Item = u8>) -> usize {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 32) as usize % PARTITIONS
}

fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if r"*?[]\^-".contains(char) {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChannelName;

    fn channel(name: &str) -> ChannelId {
        ChannelId::new(&AppId::new("app"), &ChannelName::of_the_cluster(name))
    }

    /// Other values would part this version from those that run already.
    #[test]
    fn partitions_and_slots_are_the_same_everywhere() {
        let names = ["room", "presence-room", "a", "b", "private-x"];
        assert_eq!(
            names.map(|name| partition_of(&channel(name))),
            [22, 20, 25, 51, 57]
        );
        assert_eq!(slot_of(0), 15_882);
        assert_eq!(slot_of(REGISTRY), 9928);
    }

    #[test]
    fn partitions_are_evenly_used() {
        let mut used = [0; PARTITIONS];
        for n in 0..64_000 {
            used[partition_of(&channel(&format!("room-{n}")))] += 1;
        }
        assert!(used.iter().all(|n| (800..1200).contains(n)), "{used:?}");
    }

    #[test]
    fn what_concerns_a_user_is_in_one_partition() {
        let of = |name: ChannelName| partition_of(&ChannelId::new(&AppId::new("app"), &name));
        assert_eq!(
            of(ChannelName::signed_in("u")),
            of(ChannelName::watchers("u"))
        );
    }

    #[test]
    fn a_topic_tells_its_place() {
        let keys = Keys::new("mine");
        let topic = keys.topic(&channel("room"));
        let place = partition_of(&channel("room"));
        assert_eq!(keys.place_of(&topic), Some((place, "t:app:room")));
        assert_eq!(
            keys.place_of(&keys.inbox(REGISTRY, 7)),
            Some((REGISTRY, "inbox:7"))
        );
        for foreign in [
            "",
            "mine:1:",
            "mine:1:{p64}:t:a:b",
            "other:1:{p1}:t:a:b",
            "mine:1:{x}:y",
        ] {
            assert_eq!(keys.place_of(foreign), None, "{foreign}");
        }
    }
}
