//! What a session is subscribed to, as it is written in a letter.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::broker::{Held, SignedIn};
use crate::model::{ChannelName, Member};

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct WrittenHeld {
    channels: Vec<(String, Option<WrittenMember>)>,
    patterns: Vec<String>,
    user: Option<WrittenUser>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct WrittenMember {
    user_id: String,
    /// The text of a JSON object.
    user_info: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct WrittenUser {
    user: WrittenMember,
    watchlist: Vec<String>,
}

impl From<&Held> for WrittenHeld {
    fn from(held: &Held) -> Self {
        let channels = held.channels.iter().map(|(name, member)| {
            let member = member.as_deref().map(WrittenMember::from);
            (name.as_str().to_owned(), member)
        });
        let user = held.user.as_ref().map(|signed_in| WrittenUser {
            user: WrittenMember::from(&*signed_in.user),
            watchlist: signed_in
                .watchlist
                .iter()
                .map(|id| id.to_string())
                .collect(),
        });
        Self {
            channels: channels.collect(),
            patterns: held.patterns.iter().map(|p| p.to_string()).collect(),
            user,
        }
    }
}

impl From<WrittenHeld> for Held {
    fn from(written: WrittenHeld) -> Self {
        let channels = written.channels.into_iter().map(|(name, member)| {
            let member = member.map(|member| Arc::new(Member::from(member)));
            (ChannelName::of_the_cluster(&name), member)
        });
        let user = written.user.map(|written| {
            Box::new(SignedIn {
                user: Arc::new(Member::from(written.user)),
                watchlist: written.watchlist.into_iter().map(Arc::from).collect(),
            })
        });
        Self {
            channels: channels.collect(),
            patterns: written.patterns.into_iter().map(Arc::from).collect(),
            user,
        }
    }
}

impl From<&Member> for WrittenMember {
    fn from(member: &Member) -> Self {
        Self {
            user_id: member.user_id.to_string(),
            user_info: member.user_info.as_ref().map(|info| info.to_string()),
        }
    }
}

impl From<WrittenMember> for Member {
    fn from(written: WrittenMember) -> Self {
        Self {
            user_id: written.user_id.into(),
            user_info: written.user_info.map(Arc::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_arrives_as_it_was() {
        let member = Arc::new(Member {
            user_id: "u".into(),
            user_info: Some("{\"a\":1}".into()),
        });
        let channels = [("room", None), ("presence-x", Some(member.clone()))];
        let channels = channels.map(|(name, member)| (ChannelName::of_the_cluster(name), member));
        let held = Held {
            channels: channels.into(),
            patterns: ["/a/*".into()].into(),
            user: Some(Box::new(SignedIn {
                user: member,
                watchlist: vec!["v".into()],
            })),
        };
        let written = serde_json::to_string(&WrittenHeld::from(&held)).unwrap();
        let read: WrittenHeld = serde_json::from_str(&written).unwrap();
        let read = Held::from(read);
        assert_eq!(
            (&read.channels, &read.patterns),
            (&held.channels, &held.patterns)
        );
        let (read, held) = (read.user.unwrap(), held.user.unwrap());
        assert_eq!((read.user, read.watchlist), (held.user, held.watchlist));
    }
}
