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
    basis: Basis,
    /// What was heard while the basis is not whole: a roster may come later than what is newer.
    kept: Vec<(u64, Change)>,
}

/// What the members are known from.
#[derive(Clone, Copy, Default, PartialEq)]
enum Basis {
    #[default]
    Nothing,
    /// A roster, and changes of which some were not heard.
    Outdated,
    Whole,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    Added(Arc<Member>),
    Removed(UserId),
}

impl View {
    pub fn is_ready(&self) -> bool {
        self.basis != Basis::Nothing
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
        if self.basis != Basis::Whole {
            self.kept.push((version, change.clone()));
        }
        if self.basis == Basis::Nothing {
            return true;
        }
        if version <= self.version {
            return false;
        }
        self.version = version;
        self.apply(change)
    }

    /// Changes were missed: a roster is to come that has them.
    pub fn falls_behind(&mut self) {
        if self.is_ready() {
            self.basis = Basis::Outdated;
            self.kept.clear();
        }
    }

    /// A change of this node while Redis is away: whether it is news.
    pub fn change(&mut self, version: u64, change: Change) -> bool {
        if !self.is_ready() {
            self.basis = Basis::Whole;
        }
        self.version = self.version.max(version);
        self.apply(change)
    }

    /// The first roster; of later ones see [`View::differences`].
    pub fn begin(&mut self, version: u64, roster: &[Arc<Member>]) {
        if self.is_ready() {
            return;
        }
        self.basis = Basis::Whole;
        self.version = version;
        self.members = by_user(roster);
        for (version, change) in std::mem::take(&mut self.kept) {
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
        if !self.is_ready() {
            self.begin(version, roster);
            return Vec::new();
        }
        if self.basis == Basis::Whole && version < self.version {
            return Vec::new();
        }
        self.version = self.version.max(version);
        let mut there: BTreeMap<_, _> = by_user(roster);
        for (at, change) in &self.kept {
            match change {
                _ if *at <= version => {}
                Change::Added(member) => {
                    (there.entry(member.user_id.clone())).or_insert_with(|| member.clone());
                }
                Change::Removed(user_id) => drop(there.remove(user_id)),
            }
        }
        let mut changes = Vec::new();
        if may_go {
            self.basis = Basis::Whole;
            self.kept.clear();
            let gone = self.members.keys();
            let gone = gone.filter(|user_id| !there.contains_key(*user_id));
            changes.extend(gone.cloned().map(Change::Removed));
        }
        changes.extend(there.into_values().map(Change::Added));
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

fn by_user(roster: &[Arc<Member>]) -> BTreeMap<UserId, Arc<Member>> {
    let members = roster.iter().map(|m| (m.user_id.clone(), m.clone()));
    members.collect()
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

    /// Seed 1795567711828917 of the schedule of random faults.
    #[test]
    fn a_roster_that_comes_later_than_what_is_newer_counts() {
        let mut view = View::default();
        view.begin(1, &[member("a"), member("b"), member("c")]);
        view.falls_behind();
        assert!(view.hear(6, removed("b")));
        assert!(view.hear(7, added("e")));
        // "a" went and "d" came unheard.
        let roster = [member("b"), member("c"), member("d")];
        assert_eq!(view.differences(5, &roster, false), [added("d")]);
        assert_eq!(view.differences(5, &roster, true), [removed("a")]);
        assert_eq!(view.differences(5, &roster, true), []);
        let there: Vec<_> = view.roster();
        let there: Vec<&str> = there.iter().map(|member| &*member.user_id).collect();
        assert_eq!(there, ["c", "d", "e"]);
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
