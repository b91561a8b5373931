//! How sessions over HTTP live on several nodes: what of one goes with it when it moves
//! (`crate::peers`).

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use warp::http::header::HeaderValue;

use super::Front;
use super::connection::{Connection, Described};
use super::encoding::HTTP;
use super::numbers::{Numbers, WrittenRun};
use super::sessions::{Client, ClientSession, Kept, NEXT_REQUEST_WITHIN, Talk};
use super::sockjs::Visitor;
use crate::backend::Done;
use crate::broker::Held;
use crate::hub::Outbox;
use crate::model::{ChannelId, SocketId};
use crate::peers::{Arrival, Departure, House, HouseName, WrittenHeld};
use crate::transport::peer::Peer;
use crate::transport::session::{Luggage, Session, Sessions};

pub const HOUSE: HouseName = "pusher";
/// Before a session goes, all that it was sent is taken: what overtook something else waits for it.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// All of a session but its queue.
#[derive(Serialize, Deserialize)]
struct Description {
    talk: WrittenTalk,
    visitor: Option<WrittenVisitor>,
    wants_pongs: bool,
    receiving: Option<u64>,
    is_open: bool,
    runs: Vec<WrittenRun>,
}

#[derive(Serialize, Deserialize)]
enum WrittenTalk {
    Unopened {
        within_ms: u64,
    },
    Open {
        app: String,
        socket_id: String,
        held: WrittenHeld,
        authorize_within_ms: Option<u64>,
    },
}

#[derive(Serialize, Deserialize)]
struct WrittenVisitor {
    origin: Option<String>,
    address: IpAddr,
    secure: bool,
    certified: bool,
}

impl Kept {
    fn newest_front(&self) -> Option<Arc<Front>> {
        let front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        front.upgrade()
    }

    async fn departing(&self, id: &str) -> Option<Departing> {
        let session = self.sessions.find(id)?;
        if !session.begin_to_leave().await {
            return None;
        }
        let mut departing = Departing {
            sessions: self.sessions.clone(),
            session,
            description: Vec::new(),
            channels: Vec::new(),
            has_gone: false,
        };
        let (description, channels) = departing.described().await?;
        departing.description = serde_json::to_vec(&description).ok()?;
        departing.channels = channels;
        Some(departing)
    }

    async fn arriving(&self, id: &str, description: &[u8]) -> Option<Arriving> {
        let described: Description = serde_json::from_slice(description).ok()?;
        let front = self.newest_front()?;
        if self.sessions.is_full() || self.sessions.find(id).is_some() {
            return None;
        }
        let outbox = Arc::new(Outbox::new(front.outbox_bytes_max));
        let talk = described.talk.resume(&front, &outbox).await?;
        let mut client = Client::new(talk, Numbers::of_runs(described.runs));
        client.wants_pongs = described.wants_pongs;
        if let Some(visitor) = described.visitor {
            client.introduce(visitor.into());
        }
        {
            let mut requests = client.requests();
            requests.receiving = described.receiving;
            requests.is_open = described.is_open;
        }
        let session = Session::new(id.into(), NEXT_REQUEST_WITHIN, outbox, client);
        Some(Arriving {
            sessions: self.sessions.clone(),
            session: Arc::new(session),
        })
    }
}

impl House for Kept {
    fn name(&self) -> HouseName {
        HOUSE
    }

    fn ids(&self) -> Vec<String> {
        let sessions = self.sessions.all().into_iter();
        sessions.map(|session| session.id.to_string()).collect()
    }

    fn has(&self, id: &str) -> bool {
        self.sessions.find(id).is_some()
    }

    fn shake_off<'a>(&'a self, id: &'a str) -> Done<'a, ()> {
        Box::pin(async move {
            if let Some(session) = self.sessions.find(id) {
                session.shake_off().await;
            }
        })
    }

    fn depart<'a>(&'a self, id: &'a str) -> Done<'a, Option<Box<dyn Departure>>> {
        Box::pin(async move {
            let departing = self.departing(id).await?;
            Some(Box::new(departing) as Box<dyn Departure>)
        })
    }

    fn arrive<'a>(
        &'a self,
        id: &'a str,
        description: &'a [u8],
    ) -> Done<'a, Option<Box<dyn Arrival>>> {
        Box::pin(async move {
            let arriving = self.arriving(id, description).await?;
            Some(Box::new(arriving) as Box<dyn Arrival>)
        })
    }
}

struct Departing {
    sessions: Arc<Sessions<Client>>,
    session: ClientSession,
    description: Vec<u8>,
    channels: Vec<ChannelId>,
    has_gone: bool,
}

impl Departing {
    /// Nobody changes it from here on. `None` if it is over.
    async fn described(&self) -> Option<(Description, Vec<ChannelId>)> {
        const LOOK_EVERY: Duration = Duration::from_millis(5);
        let client = &self.session.client;
        let begun = Instant::now();
        let talk = loop {
            // Who is held up as it asks for too much holds nobody else up.
            let talk = timeout(TAKEN_WITHIN, client.talk.lock()).await.ok()?;
            if client.requests().inbox.waiting() == 0 {
                break talk;
            }
            drop(talk);
            if begun.elapsed() > TAKEN_WITHIN {
                return None;
            }
            sleep(LOOK_EVERY).await;
        };
        let (talk, channels) = WrittenTalk::of(&talk)?;
        let visitor = client.visitor.get().map(WrittenVisitor::from);
        let requests = client.requests();
        let description = Description {
            talk,
            visitor,
            wants_pongs: client.wants_pongs,
            receiving: requests.receiving,
            is_open: requests.is_open,
            runs: requests.inbox.numbers().runs(),
        };
        Some((description, channels))
    }
}

impl Departure for Departing {
    fn description(&self) -> Vec<u8> {
        self.description.clone()
    }

    fn channels(&self) -> Vec<ChannelId> {
        self.channels.clone()
    }

    fn luggage(&self) -> Option<Luggage> {
        let is_over = self.session.client.over().is_some();
        let is_open = !is_over && self.session.outbox.closing().is_none();
        is_open.then(|| self.session.luggage())
    }

    fn has_gone(mut self: Box<Self>) -> Done<'static, ()> {
        Box::pin(async move {
            self.has_gone = true;
            self.sessions.end(&self.session);
            hand_over(&self.session).await;
        })
    }
}

impl Drop for Departing {
    fn drop(&mut self) {
        if !self.has_gone {
            self.session.stay();
        }
    }
}

/// The connection leaves by itself if it is dropped.
struct Arriving {
    sessions: Arc<Sessions<Client>>,
    session: ClientSession,
}

impl Arrival for Arriving {
    fn settle(self: Box<Self>, luggage: Luggage) {
        self.session.unpack(luggage);
        self.sessions.insert(self.session);
    }

    fn turn_away(self: Box<Self>) -> Done<'static, ()> {
        Box::pin(async move { hand_over(&self.session).await })
    }
}

/// It goes on on another node: here it leaves without a word.
async fn hand_over(session: &ClientSession) {
    let mut talk = session.client.talk.lock().await;
    if let Talk::Open(connection) = &mut *talk {
        connection.hand_over().await;
    }
    *talk = Talk::Over;
}

impl WrittenTalk {
    fn of(talk: &Talk) -> Option<(Self, Vec<ChannelId>)> {
        match talk {
            Talk::Unopened { by } => {
                let within = by.saturating_duration_since(Instant::now());
                let within_ms = within.as_millis() as u64;
                Some((Self::Unopened { within_ms }, Vec::new()))
            }
            Talk::Open(connection) => {
                let (app, socket_id) = connection.id();
                let within = connection.authorize_within();
                let written = Self::Open {
                    app: app.as_str().to_owned(),
                    socket_id: socket_id.to_string(),
                    held: WrittenHeld::from(connection.held()),
                    authorize_within_ms: within.map(|within| within.as_millis() as u64),
                };
                Some((written, connection.held().all_channels(app)))
            }
            Talk::Over => None,
        }
    }

    async fn resume(self, front: &Arc<Front>, outbox: &Arc<Outbox>) -> Option<Talk> {
        match self {
            Self::Unopened { within_ms } => Some(Talk::Unopened {
                by: Instant::now() + Duration::from_millis(within_ms),
            }),
            Self::Open {
                app,
                socket_id,
                held,
                authorize_within_ms,
            } => {
                let app = front.apps.by_id(&app).filter(|app| app.enabled)?;
                let described = Described {
                    socket_id: SocketId::parse(&socket_id)?,
                    held: Held::from(held),
                    authorize_within: authorize_within_ms.map(Duration::from_millis),
                };
                let (front, outbox) = (front.clone(), outbox.clone());
                let resumed = Connection::resume(front, app, outbox, &HTTP, described).await?;
                Some(Talk::Open(Box::new(resumed)))
            }
        }
    }
}

impl From<&Visitor> for WrittenVisitor {
    fn from(visitor: &Visitor) -> Self {
        let origin = visitor.origin.as_ref();
        let origin = origin.and_then(|origin| origin.to_str().ok());
        let peer = visitor.peer;
        Self {
            origin: origin.map(str::to_owned),
            address: peer.address,
            secure: peer.secure,
            certified: peer.certified,
        }
    }
}

impl From<WrittenVisitor> for Visitor {
    fn from(written: WrittenVisitor) -> Self {
        let origin = written.origin;
        Self {
            origin: origin.and_then(|origin| HeaderValue::try_from(origin).ok()),
            peer: Peer {
                address: written.address,
                secure: written.secure,
                certified: written.certified,
            },
        }
    }
}
