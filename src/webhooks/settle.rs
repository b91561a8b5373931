//! From facts to events: who vanishes and returns within a moment was never away (`pusher.md` 6.4).
//!
//! For each channel, and each user in one, it is known what the application was told:
//!
//! ```text
//!              occupied / added                     vacated / removed
//!   (nothing) ────────────────▶ present ──────────────────────────▶ leaving
//!       ▲      told at once        ▲        occupied / added           │
//!       │                          └───────────────────────────────────┤ nothing is told
//!       └──────────────────────────────────────────────────────────────┘
//!                          told when HOLD is over
//! ```
//!
//! So an application never hears twice of the same, whatever becomes of single facts.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{ChannelFact, ChannelId, FactKind, UserId};

/// How long somebody may be away unnoticed.
pub(super) const HOLD: Duration = Duration::from_secs(3);
/// The same after a start: clients take longer to find a server that was away.
pub(super) const HOLD_AT_START: Duration = Duration::from_secs(10);

/// A channel, or a user in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Subject {
    pub channel: ChannelId,
    pub user_id: Option<UserId>,
}

/// What came of a fact.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Settled {
    pub channel: ChannelId,
    pub kind: FactKind,
    /// Whether the application is to be told. Else there is only something to remember.
    pub is_news: bool,
    /// What is then known of whom the fact is about.
    pub told: Option<(Subject, Told)>,
}

/// What the application believes of a channel, or of a user in one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Present,
    /// It believes the subject present, which has left.
    Leaving,
    Gone,
}

#[derive(Default)]
pub(super) struct Settler {
    subjects: HashMap<Subject, State>,
    /// Of those who leave, and of some who returned meanwhile.
    due: BTreeMap<(Instant, u64), Subject>,
    serial: u64,
    /// Channels whose miss was told within the last [`HOLD`], with the same in order of time.
    missed: HashSet<ChannelId>,
    misses: VecDeque<(Instant, ChannelId)>,
}

enum State {
    Present,
    /// With the serial number of its entry in `due`.
    Leaving(u64),
}

impl Settled {
    fn gone(subject: Subject) -> Self {
        Self {
            channel: subject.channel.clone(),
            kind: match subject.user_id.clone() {
                Some(user_id) => FactKind::MemberRemoved { user_id },
                None => FactKind::ChannelVacated,
            },
            is_news: true,
            told: Some((subject, Told::Gone)),
        }
    }
}

impl Settler {
    /// `told` are those whom the application believes present; some have been away for a time.
    pub fn knowing(told: Vec<(Subject, Option<Duration>)>, now: Instant) -> Self {
        let mut settler = Self::default();
        for (subject, away) in told {
            match away {
                None => {
                    settler.subjects.insert(subject, State::Present);
                }
                Some(away) => settler.hold(subject, now + HOLD.saturating_sub(away)),
            }
        }
        settler
    }

    /// The server has just started: nobody is there yet, whatever was so before.
    pub fn nobody_is_there(&mut self, now: Instant) {
        self.due.clear();
        let subjects: Vec<_> = self.subjects.keys().cloned().collect();
        for subject in subjects {
            self.hold(subject, now + HOLD_AT_START);
        }
    }

    /// What the fact gives at once.
    pub fn fact(&mut self, fact: ChannelFact, now: Instant) -> Option<Settled> {
        let ChannelFact {
            channel,
            kind,
            is_told,
            ..
        } = fact;
        let subject = |user_id: Option<&UserId>| Subject {
            channel: channel.clone(),
            user_id: user_id.cloned(),
        };
        let (is_news, told) = match &kind {
            FactKind::ChannelOccupied => self.arrives(subject(None), is_told)?,
            FactKind::MemberAdded { user_id } => self.arrives(subject(Some(user_id)), is_told)?,
            FactKind::ChannelVacated => self.leaves(subject(None), now)?,
            FactKind::MemberRemoved { user_id } => self.leaves(subject(Some(user_id)), now)?,
            FactKind::CacheMiss => {
                self.is_new_miss(&channel, now).then_some(())?;
                (true, None)
            }
            _ => (true, None),
        };
        Some(Settled {
            channel,
            kind,
            is_news,
            told,
        })
    }

    /// Those who have been away for too long by now.
    pub fn gone(&mut self, now: Instant) -> Vec<Settled> {
        let mut gone = Vec::new();
        while self.next_due().is_some_and(|due| due <= now) {
            gone.extend(self.next_gone());
        }
        gone
    }

    /// Everybody who is away, however short.
    pub fn all_gone(&mut self) -> Vec<Settled> {
        let mut gone = Vec::new();
        while !self.due.is_empty() {
            gone.extend(self.next_gone());
        }
        gone
    }

    /// Of whom nobody asks any more, by the fact that would tell of their arrival.
    pub fn forget(&mut self, nobody_asks: impl Fn(&ChannelId, &FactKind) -> bool) -> Vec<Settled> {
        let forgotten = (self.subjects).extract_if(|subject, _| {
            let arrival = match subject.user_id.clone() {
                Some(user_id) => FactKind::MemberAdded { user_id },
                None => FactKind::ChannelOccupied,
            };
            nobody_asks(&subject.channel, &arrival)
        });
        let gone = |subject: Subject| Settled {
            is_news: false,
            ..Settled::gone(subject)
        };
        forgotten.map(|(subject, _)| gone(subject)).collect()
    }

    /// When to ask for [`Settler::gone`] next.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.keys().next().map(|(due, _)| *due)
    }

    /// Whether the application is told, and what is to be remembered.
    fn arrives(
        &mut self,
        subject: Subject,
        is_told: bool,
    ) -> Option<(bool, Option<(Subject, Told)>)> {
        let before = self.subjects.insert(subject.clone(), State::Present);
        let is_news = match before {
            None => !is_told,
            Some(State::Leaving(_)) => false,
            Some(State::Present) => return None,
        };
        Some((is_news, Some((subject, Told::Present))))
    }

    fn leaves(
        &mut self,
        subject: Subject,
        now: Instant,
    ) -> Option<(bool, Option<(Subject, Told)>)> {
        let Some(State::Present) = self.subjects.get(&subject) else {
            return None;
        };
        self.hold(subject.clone(), now + HOLD);
        Some((false, Some((subject, Told::Leaving))))
    }

    fn hold(&mut self, subject: Subject, due: Instant) {
        self.serial += 1;
        let state = State::Leaving(self.serial);
        self.subjects.insert(subject.clone(), state);
        self.due.insert((due, self.serial), subject);
    }

    fn next_gone(&mut self) -> Option<Settled> {
        let ((_, entry), subject) = self.due.pop_first()?;
        let has_returned = !matches!(
            self.subjects.get(&subject),
            Some(State::Leaving(serial)) if *serial == entry
        );
        if has_returned {
            return None;
        }
        self.subjects.remove(&subject);
        Some(Settled::gone(subject))
    }

    fn is_new_miss(&mut self, channel: &ChannelId, now: Instant) -> bool {
        while let Some((at, channel)) = self.misses.front()
            && *at + HOLD <= now
        {
            self.missed.remove(channel);
            self.misses.pop_front();
        }
        let is_new = self.missed.insert(channel.clone());
        if is_new {
            self.misses.push_back((now, channel.clone()));
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AppId, ChannelName};
    use FactKind::*;

    struct Setup {
        settler: Settler,
        now: Instant,
        room: ChannelId,
        is_told: bool,
    }

    fn setup() -> Setup {
        Setup {
            settler: Settler::default(),
            is_told: false,
            now: Instant::now(),
            room: ChannelId::new(
                &AppId::new("1"),
                &ChannelName::parse("presence-r", 164).unwrap(),
            ),
        }
    }

    impl Setup {
        fn state(&mut self, kind: FactKind) -> Option<&'static str> {
            let fact = ChannelFact {
                channel: self.room.clone(),
                kind,
                is_told: self.is_told,
                at_ms: 0,
            };
            let settled = self.settler.fact(fact, self.now);
            let news = settled.filter(|settled| settled.is_news);
            news.map(|settled| settled.kind.name())
        }

        /// What is told because `ms` have passed.
        fn pass(&mut self, ms: u64) -> Vec<&'static str> {
            self.now += Duration::from_millis(ms);
            let gone = self.settler.gone(self.now);
            gone.iter().map(|settled| settled.kind.name()).collect()
        }
    }

    fn joins(user_id: &str) -> FactKind {
        MemberAdded {
            user_id: user_id.into(),
        }
    }

    fn leaves(user_id: &str) -> FactKind {
        MemberRemoved {
            user_id: user_id.into(),
        }
    }

    #[test]
    fn who_returns_in_time_was_never_away() {
        let mut setup = setup();
        assert_eq!(setup.state(ChannelOccupied), Some("channel_occupied"));
        assert_eq!(setup.state(joins("a")), Some("member_added"));
        for _ in 0..10 {
            assert_eq!(setup.state(leaves("a")), None);
            assert_eq!(setup.state(ChannelVacated), None);
            assert!(setup.pass(2_999).is_empty());
            assert_eq!(setup.state(ChannelOccupied), None);
            assert_eq!(setup.state(joins("a")), None);
        }
        assert!(setup.pass(60_000).is_empty());
        assert!(setup.settler.due.is_empty());
    }

    #[test]
    fn who_stays_away_is_gone_once_and_after_the_hold() {
        let mut setup = setup();
        setup.state(ChannelOccupied);
        setup.state(joins("a"));
        setup.state(leaves("a"));
        setup.state(ChannelVacated);
        assert!(setup.pass(2_999).is_empty());
        assert_eq!(setup.pass(1), ["member_removed", "channel_vacated"]);
        assert!(setup.pass(60_000).is_empty());
        assert_eq!(setup.state(ChannelOccupied), Some("channel_occupied"));
        assert_eq!(setup.state(joins("a")), Some("member_added"));
    }

    #[test]
    fn each_absence_has_the_whole_hold() {
        let mut setup = setup();
        setup.state(ChannelOccupied);
        setup.state(ChannelVacated);
        assert!(setup.pass(2_000).is_empty());
        setup.state(ChannelOccupied);
        setup.state(ChannelVacated);
        assert!(setup.pass(2_000).is_empty());
        assert_eq!(setup.pass(1_000), ["channel_vacated"]);
    }

    #[test]
    fn another_user_keeps_a_channel_occupied() {
        let mut setup = setup();
        setup.state(ChannelOccupied);
        setup.state(joins("a"));
        setup.state(leaves("a"));
        setup.state(ChannelVacated);
        assert_eq!(setup.state(ChannelOccupied), None);
        assert_eq!(setup.state(joins("b")), Some("member_added"));
        assert_eq!(setup.pass(3_000), ["member_removed"]);
    }

    #[test]
    fn nothing_is_told_twice_though_facts_were_lost() {
        let mut setup = setup();
        assert_eq!(setup.state(ChannelVacated), None);
        assert!(setup.pass(3_000).is_empty());
        assert_eq!(setup.state(ChannelOccupied), Some("channel_occupied"));
        assert_eq!(setup.state(ChannelOccupied), None);
        setup.state(ChannelVacated);
        setup.state(ChannelVacated);
        assert_eq!(setup.pass(3_000), ["channel_vacated"]);
    }

    #[test]
    fn after_a_start_those_who_do_not_return_are_gone() {
        let mut setup = setup();
        let subject = |user_id: Option<&str>| Subject {
            channel: setup.room.clone(),
            user_id: user_id.map(Into::into),
        };
        let told = vec![subject(None), subject(Some("a")), subject(Some("b"))];
        let told = told.into_iter().map(|subject| (subject, None)).collect();
        setup.settler = Settler::knowing(told, setup.now);
        setup.state(leaves("b"));
        setup.settler.nobody_is_there(setup.now);
        assert_eq!(setup.state(ChannelOccupied), None);
        assert_eq!(setup.state(joins("a")), None);
        assert!(setup.pass(9_999).is_empty());
        assert_eq!(setup.pass(1), ["member_removed"]);
    }

    #[test]
    fn who_takes_over_knows_how_long_somebody_has_been_away() {
        let mut setup = setup();
        let subject = |user_id: &str| Subject {
            channel: setup.room.clone(),
            user_id: Some(user_id.into()),
        };
        let told = vec![
            (subject("here"), None),
            (subject("away"), Some(Duration::from_secs(1))),
            (subject("gone"), Some(Duration::from_secs(60))),
        ];
        setup.settler = Settler::knowing(told, setup.now);
        assert_eq!(setup.pass(0), ["member_removed"]);
        assert!(setup.pass(1_999).is_empty());
        assert_eq!(setup.pass(1), ["member_removed"]);
        assert_eq!(setup.state(joins("here")), None);
        assert!(setup.pass(60_000).is_empty());
    }

    #[test]
    fn what_was_told_before_and_forgotten_is_not_told_again_and_its_end_is() {
        let mut setup = setup();
        setup.is_told = true;
        assert_eq!(setup.state(ChannelOccupied), None);
        assert_eq!(setup.state(joins("a")), None);
        assert_eq!(setup.state(leaves("a")), None);
        assert_eq!(setup.state(ChannelVacated), None);
        assert_eq!(setup.pass(3_000), ["member_removed", "channel_vacated"]);
    }

    #[test]
    fn who_is_forgotten_is_not_told_gone_and_arrives_anew() {
        let mut setup = setup();
        setup.state(ChannelOccupied);
        setup.state(joins("here"));
        setup.state(joins("away"));
        setup.state(leaves("away"));
        let is_member = |_: &ChannelId, kind: &FactKind| matches!(kind, MemberAdded { .. });
        let mut forgotten = setup.settler.forget(is_member);
        forgotten.sort_by_key(|settled| format!("{:?}", settled.kind));
        let forgotten: Vec<_> = (forgotten.into_iter())
            .map(|settled| (settled.kind, settled.is_news, settled.told.unwrap().1))
            .collect();
        let gone = |user_id| (leaves(user_id), false, Told::Gone);
        assert_eq!(forgotten, [gone("away"), gone("here")]);
        assert!(setup.pass(3_000).is_empty());
        assert_eq!(setup.state(leaves("here")), None);
        assert_eq!(setup.state(joins("here")), Some("member_added"));
        setup.state(ChannelVacated);
        assert_eq!(setup.pass(3_000), ["channel_vacated"]);
    }

    #[test]
    fn many_misses_at_once_are_one() {
        let mut setup = setup();
        assert_eq!(setup.state(CacheMiss), Some("cache_miss"));
        assert_eq!(setup.state(CacheMiss), None);
        setup.pass(2_999);
        assert_eq!(setup.state(CacheMiss), None);
        setup.pass(1);
        assert_eq!(setup.state(CacheMiss), Some("cache_miss"));
        assert_eq!(setup.settler.misses.len(), 1);
    }

    #[test]
    fn other_facts_pass_as_they_are() {
        let mut setup = setup();
        for _ in 0..2 {
            let count = SubscriptionCount { connections: 1 };
            assert_eq!(setup.state(count), Some("subscription_count"));
        }
    }
}
