//! What a presence channel's subscribers here were told of its members.
//!
//! A change is told only if it changes the view. So nobody hears twice that a user came or went,
//! however often Redis, a rebuilt Redis and this node say so.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Member, UserId};

#[derive(Default)]
pub struct View {
    members: BTreeMap<UserId, Arc<Member>>,
    /// Of the newest change that went in.
    version: u64,
    /// Not before a first roster is there; until then changes are kept.
    is_ready: bool,
    early: Vec<(u64, Change)>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    Added(Arc<Member>),
    Removed(UserId),
}

impl View {
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn roster(&self) -> Vec<Arc<Member>> {
        self.members.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether subscribers are to be told. Without a roster nobody has been told of any member.
    pub fn hear(&mut self, version: u64, change: Change) -> bool {
        if !self.is_ready {
            self.early.push((version, change));
            return true;
        }
        if version <= self.version {
            return false;
        }
        self.version = version;
        self.apply(change)
    }

    /// A change of this node while Redis is away: whether it is news.
    pub fn change(&mut self, version: u64, change: Change) -> bool {
        self.is_ready = true;
        self.version = self.version.max(version);
        self.apply(change)
    }

    /// The first roster; of later ones see [`View::differences`].
    pub fn begin(&mut self, version: u64, roster: &[Arc<Member>]) {
        if self.is_ready {
            return;
        }
        self.is_ready = true;
        self.version = version;
        self.members = roster
            .iter()
            .map(|m| (m.user_id.clone(), m.clone()))
            .collect();
        for (version, change) in std::mem::take(&mut self.early) {
            self.hear(version, change);
        }
    }

    /// Takes over a roster and gives what is to be told. Some of the nodes may not have said yet
    /// whom they hold: then nobody `may_go`.
    pub fn differences(
        &mut self,
        version: u64,
        roster: &[Arc<Member>],
        may_go: bool,
    ) -> Vec<Change> {
        if !self.is_ready {
            self.begin(version, roster);
            return Vec::new();
        }
        if version < self.version {
            return Vec::new();
        }
        self.version = version;
        let mut changes = Vec::new();
        if may_go {
            let there: std::collections::HashSet<_> = roster.iter().map(|m| &m.user_id).collect();
            let gone = self
                .members
                .keys()
                .filter(|user_id| !there.contains(user_id));
            changes.extend(gone.cloned().map(Change::Removed));
        }
        changes.extend(roster.iter().cloned().map(Change::Added));
        changes.retain(|change| self.apply(change.clone()));
        changes
    }

    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Added(member) => {
                let is_new = !self.members.contains_key(&member.user_id);
                self.members.entry(member.user_id.clone()).or_insert(member);
                is_new
            }
            Change::Removed(user_id) => self.members.remove(&user_id).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(user_id: &str) -> Arc<Member> {
        Arc::new(Member {
            user_id: user_id.into(),
            user_info: None,
        })
    }

    fn added(user_id: &str) -> Change {
        Change::Added(member(user_id))
    }

    fn removed(user_id: &str) -> Change {
        Change::Removed(user_id.into())
    }

    #[test]
    fn only_news_is_told() {
        let mut view = View::default();
        assert!(view.hear(3, added("c")));
        view.begin(2, &[member("a")]);
        assert_eq!(view.len(), 2);
        assert!(!view.hear(2, removed("a")));
        assert!(!view.hear(4, added("a")));
        assert!(view.hear(5, removed("a")));
        assert!(!view.hear(6, removed("a")));
        assert!(view.change(7, added("d")));
        assert!(!view.hear(8, added("d")));
    }

    #[test]
    fn nobody_goes_before_every_node_has_spoken() {
        let mut view = View::default();
        view.begin(1, &[member("a"), member("b")]);
        assert_eq!(view.differences(5, &[member("c")], false), [added("c")]);
        assert_eq!(view.differences(4, &[], true), []);
        let changes = view.differences(6, &[member("c"), member("d")], true);
        assert_eq!(changes, [removed("a"), removed("b"), added("d")]);
    }
}
