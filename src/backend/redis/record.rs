//! An event as it travels between nodes: compact, with all that any front end needs, so that no
//! node parses a payload.
//!
//! ```text
//! record   := format:u8 kind:u8 node:u32 serial:u64 except app name body
//! except   := 0:u8 | 1:u8 node:u32 serial:u32
//! text     := bytes:u32 UTF-8        (app, name and every text of a body)
//! optional := '0' | '1' and the text, together in one text
//! body     := 1 Message            name data user_id:optional ext:optional members:optional
//!           | 2 MemberAdded        users:u64 version:u64 user_id info:optional
//!           | 3 MemberRemoved      users:u64 version:u64 user_id
//!           | 4 SubscriptionCount  connections:u64 version:u64
//!           | 5 UserOnline         user_id
//!           | 6 UserOffline        user_id
//!           | 7 Terminate
//! ```
//!
//! Numbers are little-endian. `scripts/prelude.lua` writes records too. A later version may add
//! something behind a body, or kinds; an earlier one passes over both.

use std::sync::Arc;

use crate::model::{
    AppId, Body, ChannelId, ChannelName, Event, EventId, Member, Message, SocketId,
};

const FORMAT: u8 = 1;

pub fn encode(event: &Event) -> Vec<u8> {
    let channel = &event.channel;
    let kind = match &event.body {
        Body::Message(_) => 1,
        Body::MemberAdded { .. } => 2,
        Body::MemberRemoved { .. } => 3,
        Body::SubscriptionCount { .. } => 4,
        Body::UserOnline { .. } => 5,
        Body::UserOffline { .. } => 6,
        Body::Terminate => 7,
    };
    let mut record = vec![FORMAT, kind];
    record.extend(event.id.node().to_le_bytes());
    record.extend(event.id.serial().to_le_bytes());
    record.extend(except_part(event.except));
    push_text(&mut record, channel.app.as_str());
    push_text(&mut record, channel.name.as_str());
    match &event.body {
        Body::Message(message) => {
            push_text(&mut record, &message.name);
            push_text(&mut record, &message.data);
            push_text(&mut record, &optional(&message.user_id));
            push_text(&mut record, &optional(&message.ext));
            push_text(&mut record, &optional(&message.members));
        }
        Body::MemberAdded {
            member,
            users,
            version,
        } => {
            record.extend(users.to_le_bytes());
            record.extend(version.to_le_bytes());
            push_text(&mut record, &member.user_id);
            push_text(&mut record, &optional(&member.user_info));
        }
        Body::MemberRemoved {
            user_id,
            users,
            version,
        } => {
            record.extend(users.to_le_bytes());
            record.extend(version.to_le_bytes());
            push_text(&mut record, user_id);
        }
        Body::SubscriptionCount {
            connections,
            version,
        } => {
            record.extend(connections.to_le_bytes());
            record.extend(version.to_le_bytes());
        }
        Body::UserOnline { user_id } | Body::UserOffline { user_id } => {
            push_text(&mut record, user_id);
        }
        Body::Terminate => {}
    }
    record
}

/// The id alone of what [`encode`] or a script has written.
pub fn id_of(record: &[u8]) -> Option<EventId> {
    let mut rest = Rest(record.get(2..)?);
    Some(EventId::new(rest.u32()?, rest.u64()?))
}

/// `None` for what no version of ours has written, or a later one.
pub fn decode(record: &[u8]) -> Option<Event> {
    let mut rest = Rest(record);
    if rest.u8()? != FORMAT {
        return None;
    }
    let kind = rest.u8()?;
    let id = EventId::new(rest.u32()?, rest.u64()?);
    let except = match rest.u8()? {
        0 => None,
        _ => Some(SocketId::new(rest.u32()?, rest.u32()?)),
    };
    let (app, name) = (
        AppId::new(rest.text()?),
        ChannelName::of_the_cluster(rest.text()?),
    );
    let body = match kind {
        1 => Body::Message(Message {
            name: rest.text()?.into(),
            data: rest.text()?.into(),
            user_id: present(rest.text()?),
            ext: present(rest.text()?),
            members: present(rest.text()?),
        }),
        2 => {
            let (users, version) = (rest.u64()?, rest.u64()?);
            let member = Arc::new(Member {
                user_id: rest.text()?.into(),
                user_info: present(rest.text()?),
            });
            Body::MemberAdded {
                member,
                users,
                version,
            }
        }
        3 => Body::MemberRemoved {
            users: rest.u64()?,
            version: rest.u64()?,
            user_id: rest.text()?.into(),
        },
        4 => Body::SubscriptionCount {
            connections: rest.u64()?,
            version: rest.u64()?,
        },
        5 => Body::UserOnline {
            user_id: rest.text()?.into(),
        },
        6 => Body::UserOffline {
            user_id: rest.text()?.into(),
        },
        7 => Body::Terminate,
        _ => return None,
    };
    Some(Event {
        id,
        channel: ChannelId::new(&app, &name),
        except,
        body,
    })
}

pub fn except_part(except: Option<SocketId>) -> Vec<u8> {
    let Some(who) = except else {
        return vec![0];
    };
    let mut part = vec![1];
    part.extend(who.node().to_le_bytes());
    part.extend(who.serial().to_le_bytes());
    part
}

pub fn optional(text: &Option<Arc<str>>) -> String {
    text.as_ref()
        .map_or("0".to_owned(), |text| format!("1{text}"))
}

pub fn present(text: &str) -> Option<Arc<str>> {
    text.strip_prefix('1').map(Arc::from)
}

fn push_text(record: &mut Vec<u8>, text: &str) {
    record.extend((text.len() as u32).to_le_bytes());
    record.extend(text.as_bytes());
}

struct Rest<'r>(&'r [u8]);

impl<'r> Rest<'r> {
    fn take(&mut self, bytes: usize) -> Option<&'r [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'r str> {
        let bytes = self.u32()?;
        std::str::from_utf8(self.take(bytes as usize)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let text = |text: &str| Some(Arc::from(text));
        let member = |user_info| Member {
            user_id: "ü".into(),
            user_info,
        };
        let message = |user_id, ext, members| Message {
            name: "e\0".into(),
            data: "{\"ä\":1}".into(),
            user_id,
            ext,
            members,
        };
        let bodies = [
            Body::Message(message(None, None, None)),
            Body::Message(message(text(""), text("{}"), text("{\"x\":1}"))),
            Body::MemberAdded {
                member: member(None).into(),
                users: 3,
                version: 1 << 52,
            },
            Body::MemberAdded {
                member: member(text("{}")).into(),
                users: 0,
                version: 0,
            },
            Body::MemberRemoved {
                user_id: "".into(),
                users: 1,
                version: 2,
            },
            Body::SubscriptionCount {
                connections: 1,
                version: u64::MAX,
            },
            Body::UserOnline {
                user_id: "u".into(),
            },
            Body::UserOffline {
                user_id: "u".into(),
            },
            Body::Terminate,
        ];
        let event = |body| Event {
            id: EventId::new(u32::MAX, 7),
            channel: ChannelId::new(&AppId::new("a:b"), &ChannelName::signed_in("u")),
            except: None,
            body,
        };
        let mut events: Vec<_> = bodies.map(event).into();
        events[0].except = Some(SocketId::new(1, 2));
        events
    }

    #[test]
    fn every_event_arrives_as_it_was_sent() {
        for event in events() {
            let record = encode(&event);
            assert_eq!(id_of(&record), Some(event.id));
            assert_eq!(decode(&record), Some(event));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over_and_what_is_cut_off_is_refused() {
        for event in events() {
            let record = encode(&event);
            let longer = [&record[..], b"more"].concat();
            assert_eq!(decode(&longer), Some(event));
            for bytes in 0..record.len() {
                assert_eq!(decode(&record[..bytes]), None);
            }
        }
        assert_eq!(decode(&[2, 7]), None);
        assert_eq!(decode(b"1"), None);
    }
}
