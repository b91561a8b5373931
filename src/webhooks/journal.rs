//! Facts on their way into the store: written down, one a line, before anybody can see what they
//! tell. The store commits them a moment later; what the end of the process kept it from is read
//! here at the next start.
//!
//! Several nodes have streams in Redis instead, with the same lines.
//!
//! A write goes into the system's memory and no further, so that no client waits for a disk.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::model::{
    AppId, ChannelFact, ChannelId, ChannelName, Fact, FactKind, SessionFact, SessionFactKind,
    SocketId,
};

/// Then the next file begins.
const FILE_BYTES_MAX: u64 = 4 << 20;
const PREFIX: &str = "facts-";

pub(super) struct Journal {
    dir: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    path: PathBuf,
    bytes: u64,
    /// Of the next fact.
    serial: u64,
    /// Earlier files, each with the first serial number behind it.
    full: VecDeque<(PathBuf, u64)>,
    failed: u64,
}

impl Journal {
    /// With the facts from number `committed` on, and the number of the next one.
    pub fn open(dir: &Path, committed: u64) -> io::Result<(Self, Vec<ChannelFact>, u64)> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(PREFIX)) {
                paths.push(path);
            }
        }
        paths.sort();
        let (mut facts, mut serial) = (Vec::new(), committed);
        for path in &paths {
            for line in fs::read(path)?.split(|byte| *byte == b'\n') {
                // The last one may be torn.
                if let Some((number, Fact::Channel(fact))) = read(line)
                    && number >= serial
                {
                    serial = number + 1;
                    facts.push(fact);
                }
            }
        }
        let (file, path) = create(dir, serial)?;
        let full = paths.into_iter().filter(|full| *full != path);
        let open = Open {
            file,
            full: full.map(|full| (full, serial)).collect(),
            path,
            bytes: 0,
            serial,
            failed: 0,
        };
        let journal = Self {
            dir: dir.to_owned(),
            open: Mutex::new(open),
        };
        Ok((journal, facts, serial))
    }

    /// To be called in the order in which the store is told. Each fact has a number, also one that
    /// concerns nobody and is not written down.
    pub fn note(&self, fact: &ChannelFact, concerns_anybody: bool) {
        let mut open = self.lock();
        let serial = open.serial;
        open.serial += 1;
        if !concerns_anybody {
            return;
        }
        let line = write(serial, fact);
        open.bytes += line.len() as u64;
        let written = open.file.write_all(&line).and_then(|()| {
            if open.bytes < FILE_BYTES_MAX {
                return Ok(());
            }
            let (file, path) = create(&self.dir, open.serial)?;
            let end = open.serial;
            let full = std::mem::replace(&mut open.path, path);
            open.full.push_back((full, end));
            (open.file, open.bytes) = (file, 0);
            Ok(())
        });
        if let Err(error) = written {
            open.failed += 1;
            if open.failed.is_power_of_two() {
                tracing::error!(failed = open.failed, %error, "facts for webhooks cannot be written down");
            }
        }
    }

    /// The store has every fact before number `serial`.
    pub fn committed(&self, serial: u64) {
        let mut over = Vec::new();
        let mut open = self.lock();
        while let Some((_, end)) = open.full.front()
            && *end <= serial
        {
            over.extend(open.full.pop_front());
        }
        drop(open);
        for (path, _) in over {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, "cannot remove {}", path.display());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create(dir: &Path, serial: u64) -> io::Result<(File, PathBuf)> {
    let path = dir.join(format!("{PREFIX}{serial:020}.jsonl"));
    let mut options = OpenOptions::new();
    // Nothing but a torn line can be in a file of this name.
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    Ok((file, path))
}

#[derive(Serialize, Deserialize)]
struct Line<'l> {
    serial: u64,
    app: Text<'l>,
    channel: Text<'l>,
    at_ms: u64,
    #[serde(default)]
    is_told: bool,
    #[serde(flatten)]
    kind: Kind<'l>,
}

type Text<'l> = std::borrow::Cow<'l, str>;

#[derive(Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
enum Kind<'l> {
    ChannelOccupied,
    ChannelVacated,
    MemberAdded {
        user_id: Text<'l>,
    },
    MemberRemoved {
        user_id: Text<'l>,
    },
    ClientEvent {
        name: Text<'l>,
        data: Text<'l>,
        socket_id: Option<String>,
        user_id: Option<Text<'l>>,
    },
    CacheMiss,
    SubscriptionCount {
        connections: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct SessionLine<'l> {
    app: Text<'l>,
    session: Option<String>,
    at_ms: u64,
    #[serde(flatten)]
    kind: SessionKind<'l>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "session_fact", rename_all = "snake_case")]
enum SessionKind<'l> {
    Handshake,
    Subscribe { channel: Text<'l> },
    Unsubscribe { channel: Text<'l> },
    Publish { channel: Text<'l>, data: Text<'l> },
    Disconnect,
}

/// One fact of a channel as a line of JSON.
pub(super) fn write(serial: u64, fact: &ChannelFact) -> Vec<u8> {
    let line = Line {
        serial,
        app: fact.channel.app.as_str().into(),
        channel: fact.channel.name.as_str().into(),
        at_ms: fact.at_ms,
        is_told: fact.is_told,
        kind: match &fact.kind {
            FactKind::ChannelOccupied => Kind::ChannelOccupied,
            FactKind::ChannelVacated => Kind::ChannelVacated,
            FactKind::MemberAdded { user_id } => Kind::MemberAdded {
                user_id: (&**user_id).into(),
            },
            FactKind::MemberRemoved { user_id } => Kind::MemberRemoved {
                user_id: (&**user_id).into(),
            },
            FactKind::ClientEvent {
                name,
                data,
                socket_id,
                user_id,
            } => Kind::ClientEvent {
                name: (&**name).into(),
                data: (&**data).into(),
                socket_id: socket_id.map(|id| id.to_string()),
                user_id: user_id.as_deref().map(Into::into),
            },
            FactKind::CacheMiss => Kind::CacheMiss,
            FactKind::SubscriptionCount { connections } => Kind::SubscriptionCount {
                connections: *connections,
            },
        },
    };
    let mut line = serde_json::to_vec(&line).expect("strings and numbers are JSON");
    line.push(b'\n');
    line
}

/// The same for a fact of a session. It has no number: no journal has it.
pub(super) fn write_session(fact: &SessionFact) -> Vec<u8> {
    let line = SessionLine {
        app: fact.app.as_str().into(),
        session: fact.session.map(|session| session.to_string()),
        at_ms: fact.at_ms,
        kind: match &fact.kind {
            SessionFactKind::Handshake => SessionKind::Handshake,
            SessionFactKind::Subscribe { channel } => SessionKind::Subscribe {
                channel: (&**channel).into(),
            },
            SessionFactKind::Unsubscribe { channel } => SessionKind::Unsubscribe {
                channel: (&**channel).into(),
            },
            SessionFactKind::Publish { channel, data } => SessionKind::Publish {
                channel: (&**channel).into(),
                data: (&**data).into(),
            },
            SessionFactKind::Disconnect => SessionKind::Disconnect,
        },
    };
    serde_json::to_vec(&line).expect("strings and numbers are JSON")
}

/// `None` for what is no whole line.
pub(super) fn read(line: &[u8]) -> Option<(u64, Fact)> {
    let Ok(line) = serde_json::from_slice::<Line>(line) else {
        return read_session(line);
    };
    let name = ChannelName::parse(&line.channel, line.channel.len()).ok()?;
    let kind = match line.kind {
        Kind::ChannelOccupied => FactKind::ChannelOccupied,
        Kind::ChannelVacated => FactKind::ChannelVacated,
        Kind::MemberAdded { user_id } => FactKind::MemberAdded {
            user_id: user_id.into(),
        },
        Kind::MemberRemoved { user_id } => FactKind::MemberRemoved {
            user_id: user_id.into(),
        },
        Kind::ClientEvent {
            name,
            data,
            socket_id,
            user_id,
        } => FactKind::ClientEvent {
            name: name.into(),
            data: data.into(),
            socket_id: socket_id.and_then(|id| SocketId::parse(&id)),
            user_id: user_id.map(Into::into),
        },
        Kind::CacheMiss => FactKind::CacheMiss,
        Kind::SubscriptionCount { connections } => FactKind::SubscriptionCount { connections },
    };
    let fact = ChannelFact {
        channel: ChannelId::new(&AppId::new(&line.app), &name),
        kind,
        is_told: line.is_told,
        at_ms: line.at_ms,
    };
    Some((line.serial, Fact::Channel(fact)))
}

fn read_session(line: &[u8]) -> Option<(u64, Fact)> {
    let line: SessionLine = serde_json::from_slice(line).ok()?;
    let fact = SessionFact {
        app: AppId::new(&line.app),
        session: line.session.and_then(|id| SocketId::parse(&id)),
        at_ms: line.at_ms,
        kind: match line.kind {
            SessionKind::Handshake => SessionFactKind::Handshake,
            SessionKind::Subscribe { channel } => SessionFactKind::Subscribe {
                channel: channel.into(),
            },
            SessionKind::Unsubscribe { channel } => SessionFactKind::Unsubscribe {
                channel: channel.into(),
            },
            SessionKind::Publish { channel, data } => SessionFactKind::Publish {
                channel: channel.into(),
                data: data.into(),
            },
            SessionKind::Disconnect => SessionFactKind::Disconnect,
        },
    };
    Some((0, Fact::Session(fact)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Vec<ChannelFact> {
        let user_id = || "u\"\n".into();
        [
            FactKind::ChannelOccupied,
            FactKind::ChannelVacated,
            FactKind::MemberAdded { user_id: user_id() },
            FactKind::MemberRemoved { user_id: user_id() },
            FactKind::ClientEvent {
                name: "client-ë".into(),
                data: "{\"a\":\n1}".into(),
                socket_id: Some(SocketId::new(1, 2)),
                user_id: Some(user_id()),
            },
            FactKind::ClientEvent {
                name: "e".into(),
                data: "".into(),
                socket_id: None,
                user_id: None,
            },
            FactKind::CacheMiss,
            FactKind::SubscriptionCount { connections: 7 },
        ]
        .map(|kind| ChannelFact {
            channel: ChannelId::new(
                &AppId::new("3"),
                &ChannelName::parse("presence-c", 99).unwrap(),
            ),
            kind,
            is_told: false,
            at_ms: 5,
        })
        .into()
    }

    /// A directory of its own, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = format!("raptor-journal-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn open(&self, committed: u64) -> (Journal, Vec<ChannelFact>, u64) {
            Journal::open(&self.0, committed).unwrap()
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_store_does_not_have_is_there_at_the_next_start() {
        let scratch = Scratch::new("next");
        let (journal, none, serial) = scratch.open(0);
        assert_eq!((none.len(), serial), (0, 0));
        facts().iter().for_each(|fact| journal.note(fact, true));
        let (_, found, serial) = scratch.open(0);
        assert_eq!((found, serial), (facts(), 8));
        let (journal, found, serial) = scratch.open(6);
        assert_eq!((found, serial), (facts()[6..].to_vec(), 8));
        journal.note(&facts()[0], true);
        journal.committed(8);
        let (journal, found, serial) = scratch.open(8);
        assert_eq!((found, serial), (facts()[..1].to_vec(), 9));
        journal.committed(9);
        assert_eq!(scratch.files(), 1);
    }

    #[test]
    fn facts_of_sessions_are_read_as_they_were_written() {
        let channel: std::sync::Arc<str> = "/a/\"b".into();
        let kinds = [
            SessionFactKind::Handshake,
            SessionFactKind::Subscribe {
                channel: channel.clone(),
            },
            SessionFactKind::Unsubscribe {
                channel: channel.clone(),
            },
            SessionFactKind::Publish {
                channel,
                data: "{\"x\":1}".into(),
            },
            SessionFactKind::Disconnect,
        ];
        let sessions = [None, Some(SocketId::new(1, 2))];
        for (kind, session) in kinds.into_iter().zip(sessions.into_iter().cycle()) {
            let fact = SessionFact {
                app: AppId::new("3"),
                session,
                kind,
                at_ms: 5,
            };
            let read = read(&write_session(&fact));
            assert_eq!(read, Some((0, Fact::Session(fact))));
        }
    }

    #[test]
    fn what_concerns_nobody_has_a_number_and_no_line() {
        let scratch = Scratch::new("nobody");
        let (journal, ..) = scratch.open(0);
        for (nth, fact) in facts().iter().enumerate() {
            journal.note(fact, nth == 1 || nth == 4);
        }
        let (_, found, serial) = scratch.open(2);
        assert_eq!((found, serial), (facts()[4..5].to_vec(), 5));
        let (_, found, serial) = scratch.open(7);
        assert_eq!((found, serial), (Vec::new(), 7));
    }

    #[test]
    fn a_torn_line_is_passed_over() {
        let scratch = Scratch::new("torn");
        let (journal, ..) = scratch.open(0);
        journal.note(&facts()[0], true);
        let path = journal.lock().path.clone();
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        let torn = write(1, &facts()[4]);
        file.write_all(&torn[..torn.len() / 2]).unwrap();
        let (journal, found, serial) = scratch.open(0);
        assert_eq!((found.len(), serial), (1, 1));
        journal.note(&facts()[1], true);
        assert_eq!(scratch.open(0).1, facts()[..2]);
    }

    #[test]
    fn files_that_the_store_has_go() {
        let scratch = Scratch::new("files");
        let (journal, ..) = scratch.open(0);
        let mut fact = facts()[4].clone();
        if let FactKind::ClientEvent { data, .. } = &mut fact.kind {
            *data = "x".repeat(1 << 20).into();
        }
        for _ in 0..10 {
            journal.note(&fact, true);
        }
        assert_eq!(scratch.files(), 3);
        journal.committed(4);
        assert_eq!(scratch.files(), 2);
        assert_eq!(scratch.open(4).1.len(), 6);
    }
}
