//! The distinct users of a presence channel (`pusher.md` 2.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Member, UserId};

/// The users of a channel, each once, in the order of their ids; `None` where the channel is no
/// presence channel.
pub type Roster = Option<Vec<Arc<Member>>>;

/// Users and how many connections each has. What the first of them said of the user stays while
/// the user does.
#[derive(Default)]
pub struct Presence(BTreeMap<UserId, (Arc<Member>, u32)>);

impl Presence {
    pub fn contains(&self, user_id: &str) -> bool {
        self.0.contains_key(user_id)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn roster(&self) -> Vec<Arc<Member>> {
        self.0.values().map(|(member, _)| member.clone()).collect()
    }

    pub fn connections(&self) -> Vec<(Arc<Member>, u32)> {
        self.0.values().cloned().collect()
    }

    /// Whether the user is new.
    pub fn add(&mut self, member: &Arc<Member>) -> bool {
        let entry = self.0.entry(member.user_id.clone());
        let (_, connections) = entry.or_insert_with(|| (member.clone(), 0));
        *connections += 1;
        *connections == 1
    }

    /// The member, if that was the user's last connection.
    pub fn remove(&mut self, user_id: &str) -> Option<Arc<Member>> {
        let (_, connections) = self.0.get_mut(user_id)?;
        *connections -= 1;
        if *connections > 0 {
            return None;
        }
        self.0.remove(user_id).map(|(member, _)| member)
    }
}
