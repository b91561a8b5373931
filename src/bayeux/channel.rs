//! Bayeux channel names and patterns (`bayeux.md` 1).

use std::fmt;
use std::sync::Arc;

/// Faye's CHANNEL_NAME: segments of letters, digits and `-_!~()$@`, each after a slash.
pub fn is_name(text: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_!~()$@".contains(&byte))
    };
    text.strip_prefix('/')
        .is_some_and(|segments| segments.split('/').all(is_segment))
}

/// The spaces that Bayeux reserves, by the first segment (1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// `/meta` and all below it.
    Meta,
    /// `/service` and all below it.
    Service,
    /// What applications use.
    Open,
}

impl Space {
    /// Of a name or a pattern.
    pub fn of(text: &str) -> Self {
        match text.split('/').nth(1) {
            Some("meta") => Self::Meta,
            Some("service") => Self::Service,
            _ => Self::Open,
        }
    }
}

/// Faye's CHANNEL_PATTERN: what a subscription to many channels names (1.3).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Arc<str>,
    reach: Reach,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reach {
    /// `/*`: exactly one more segment.
    Children,
    /// `/**`: one or more segments.
    Descendants,
}

impl Reach {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Children => "/*",
            Self::Descendants => "/**",
        }
    }
}

impl Pattern {
    pub fn parse(text: &str) -> Option<Self> {
        [Reach::Descendants, Reach::Children]
            .into_iter()
            .find_map(|reach| {
                let prefix = text.strip_suffix(reach.as_str())?;
                (prefix.is_empty() || is_name(prefix)).then(|| Self {
                    text: text.into(),
                    reach,
                })
            })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name below which the matching channels lie; empty for `/*` and `/**`.
    pub fn prefix(&self) -> &str {
        &self.text[..self.text.len() - self.reach.as_str().len()]
    }

    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether a channel of this valid name is meant.
    pub fn matches(&self, name: &str) -> bool {
        let below = name
            .strip_prefix(self.prefix())
            .and_then(|rest| rest.strip_prefix('/'));
        match self.reach {
            Reach::Children => below.is_some_and(|rest| !rest.contains('/')),
            Reach::Descendants => below.is_some(),
        }
    }

    /// Whether every channel that the other means is meant.
    pub fn covers(&self, other: &Self) -> bool {
        let is_below = || self.prefix() == other.prefix() || self.matches(other.prefix());
        self == other || self.reach == Reach::Descendants && is_below()
    }

    /// Whether some channel is meant by both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (upper, lower) = match self.prefix().len() <= other.prefix().len() {
            true => (self, other),
            false => (other, self),
        };
        // What the lower pattern means lies at least two segments below a shorter prefix.
        upper.prefix() == lower.prefix()
            || upper.reach == Reach::Descendants && upper.matches(lower.prefix())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// A pattern that matches some name, as a key to look up: [`Pattern::prefix`] and
/// [`Pattern::reach`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Candidate<'a> {
    pub prefix: &'a str,
    pub reach: Reach,
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix)?;
        f.write_str(self.reach.as_str())
    }
}

/// All patterns that match the name, in Faye's order: one for all, one for its siblings, one for
/// each name above it. Their number depends on the name alone.
pub fn candidates(name: &str) -> impl Iterator<Item = Candidate<'_>> {
    let below = |prefix| Candidate {
        prefix,
        reach: Reach::Descendants,
    };
    let parents = name.match_indices('/').map(move |(end, _)| &name[..end]);
    let siblings = parents.clone().next_back().map(|prefix| Candidate {
        prefix,
        reach: Reach::Children,
    });
    let mut descendants = parents.map(below);
    let all = descendants.next();
    all.into_iter().chain(siblings).chain(descendants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_name_is_segments_behind_slashes() {
        for good in ["/a", "/a/b", "/A-z_0/!~()$@", "/service/x", "/meta"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "", "/", "//", "foo", "/foo/", "//a", "/a//b", "/a b", "/a.b", "/a,b", "/a=b", "/a;b",
            "/a#b", "/ä", "/a\n", "\n/a", "/a\0", "/*", "/a*", "/a?b", "/a%20b",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_ends_in_one_or_two_asterisks() {
        for (good, prefix, reach) in [
            ("/*", "", Reach::Children),
            ("/**", "", Reach::Descendants),
            ("/a/b/*", "/a/b", Reach::Children),
            ("/a/**", "/a", Reach::Descendants),
        ] {
            assert_eq!(pattern(good).prefix(), prefix);
            assert_eq!(pattern(good).reach(), reach);
            assert_eq!(pattern(good).as_str(), good);
        }
        for bad in [
            "", "*", "**", "/", "/a", "/***", "/a*", "/a/b*", "/a/*/b", "/**/b", "/*/*", "/*/**",
            "//*", "/a//*", "/a b/*", "/a/*\n", "/a/*/",
        ] {
            assert_eq!(Pattern::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_space_is_the_whole_first_segment() {
        for (text, space) in [
            ("/meta", Space::Meta),
            ("/meta/handshake/x", Space::Meta),
            ("/meta/*", Space::Meta),
            ("/service/**", Space::Service),
            ("/service", Space::Service),
            ("/metal", Space::Open),
            ("/Meta/x", Space::Open),
            ("/services/x", Space::Open),
            ("/a/meta", Space::Open),
            ("/**", Space::Open),
        ] {
            assert_eq!(Space::of(text), space, "{text}");
        }
    }

    fn check_expand(name: &str, expected: &[&str]) {
        let found: Vec<_> = candidates(name).map(|c| c.to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_expands_as_in_faye() {
        check_expand("/a", &["/**", "/*"]);
        check_expand("/a/b", &["/**", "/a/*", "/a/**"]);
        check_expand("/a/b/c", &["/**", "/a/b/*", "/a/**", "/a/b/**"]);
    }

    #[test]
    fn a_pattern_covers_those_that_mean_no_more() {
        for (one, other, covers) in [
            ("/**", "/*", true),
            ("/*", "/**", false),
            ("/a/**", "/a/**", true),
            ("/a/**", "/a/*", true),
            ("/a/**", "/a/b/**", true),
            ("/a/*", "/a/*", true),
            ("/a/*", "/a/b/*", false),
            ("/a/*", "/a/**", false),
            ("/a/**", "/**", false),
            ("/a/**", "/ab/*", false),
        ] {
            assert_eq!(
                pattern(one).covers(&pattern(other)),
                covers,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn two_patterns_overlap_if_one_channel_can_match_both() {
        for (one, other, overlap) in [
            ("/**", "/a/b/*", true),
            ("/*", "/**", true),
            ("/*", "/a/*", false),
            ("/a/**", "/a/*", true),
            ("/a/**", "/a/b/**", true),
            ("/a/*", "/a/b/*", false),
            ("/a/**", "/ab/**", false),
            ("/a/**", "/b/**", false),
        ] {
            assert_eq!(
                pattern(one).overlaps(&pattern(other)),
                overlap,
                "{one} {other}"
            );
            assert_eq!(
                pattern(other).overlaps(&pattern(one)),
                overlap,
                "{other} {one}"
            );
        }
    }

    /// Few segments, so that names meet patterns.
    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]{1,2}", 1..5)
            .prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        (prop::option::of(name()), prop::bool::ANY).prop_map(|(prefix, deep)| {
            let stars = if deep { "/**" } else { "/*" };
            pattern(&(prefix.unwrap_or_default() + stars))
        })
    }

    proptest! {
        #[test]
        fn the_candidates_are_exactly_the_patterns_that_match(name in name(), pattern in any_pattern()) {
            let is_candidate = candidates(&name)
                .any(|c| (c.prefix, c.reach) == (pattern.prefix(), pattern.reach()));
            prop_assert_eq!(is_candidate, pattern.matches(&name));
            for candidate in candidates(&name) {
                prop_assert!(Pattern::parse(&candidate.to_string()).unwrap().matches(&name));
            }
        }

        #[test]
        fn patterns_that_share_a_channel_overlap(
            name in name(), one in any_pattern(), other in any_pattern(),
        ) {
            if one.matches(&name) && other.matches(&name) {
                prop_assert!(one.overlaps(&other));
            }
        }

        #[test]
        fn what_a_covered_pattern_matches_is_matched(
            name in name(), one in any_pattern(), other in any_pattern(),
        ) {
            if one.covers(&other) && other.matches(&name) {
                prop_assert!(one.matches(&name));
            }
        }

        #[test]
        fn no_text_makes_the_grammar_panic(text: String) {
            let _ = (is_name(&text), Space::of(&text), candidates(&text).count());
            if let Some(pattern) = Pattern::parse(&text) {
                prop_assert!(!is_name(pattern.as_str()));
            }
        }
    }
}
