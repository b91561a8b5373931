//! How Bayeux sessions live on several nodes: which messages are for other nodes, and what of a
//! session goes with it when it moves (`crate::peers`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::{Client, ClientSession, lock};
use super::encoding::{encoding, expansion};
use super::extensions::Unacknowledged;
use super::site::{Front, Site};
use crate::backend::Done;
use crate::broker::Held;
use crate::hub::{Frame, Outbox};
use crate::model::{ChannelId, SocketId};
use crate::peers::{
    Arrival, Departure, Elsewhere, House, HouseName, LOOKS_MAX, PackedFrame, Search, WrittenHeld,
};
use crate::transport::session::{Luggage, Session, Visit};
use crate::wire::bayeux::IncomingMessage;

pub const HOUSE: HouseName = "bayeux";

impl Site {
    /// Sees to it that the sessions which the messages name stay here until the visits end. `Err` if
    /// one is elsewhere.
    pub(super) async fn visit(
        &self,
        messages: &[IncomingMessage<'_>],
    ) -> Result<Vec<Visit<Client>>, Elsewhere> {
        let mut visits: Vec<Visit<Client>> = Vec::new();
        if self.peers.is_none() {
            return Ok(visits);
        }
        for message in messages {
            let Some(id) = message.client_id().and_then(|id| id.text()) else {
                continue;
            };
            if !visits.iter().any(|visit| *visit.0.id == *id) {
                visits.extend(self.visit_one(&id).await?);
            }
        }
        Ok(visits)
    }

    /// `None` if the session is nowhere.
    pub(super) async fn visit_one(&self, id: &str) -> Result<Option<Visit<Client>>, Elsewhere> {
        match &self.peers {
            Some(peers) if may_be_ours(id) => {
                let (key, sessions) = (self.key(id), &self.sessions);
                let names = (key.as_str(), id);
                peers.visit(HOUSE, sessions, names, Search::Find).await
            }
            _ => Ok(self.sessions.find(id).and_then(|session| session.visit())),
        }
    }

    /// The same for a socket, which every session comes to. `None` if it cannot be said just now
    /// where one is: it is not lost.
    pub(super) async fn bring(
        &self,
        messages: &[IncomingMessage<'_>],
    ) -> Option<Vec<Visit<Client>>> {
        for _ in 0..LOOKS_MAX {
            match self.visit(messages).await {
                Ok(visits) => return Some(visits),
                Err(Elsewhere::Unknown) => break,
                Err(Elsewhere::Node(..)) => {}
            }
            for message in messages {
                let id = message.client_id().and_then(|id| id.text());
                if let (Some(id), Some(peers)) = (id, &self.peers)
                    && let Err(Elsewhere::Node(node, key)) = self.visit_one(&id).await
                {
                    peers.bring(HOUSE, &key, node).await;
                }
            }
        }
        None
    }

    /// Other nodes are to know of a new session.
    pub(super) async fn note(&self, session: &ClientSession) {
        if let Some(peers) = &self.peers {
            peers.note(HOUSE, &self.key(&session.id)).await;
        }
    }

    pub(super) fn forget(&self, session: &ClientSession) {
        if let Some(peers) = &self.peers {
            peers.forget(HOUSE, self.key(&session.id));
        }
    }

    /// What the session is called among those of all apps.
    fn key(&self, id: &str) -> String {
        format!("{}/{id}", self.app_id())
    }
}

/// Others need not be looked for.
fn may_be_ours(id: &str) -> bool {
    const BYTES_MAX: usize = 40;
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    id.len() <= BYTES_MAX && id.bytes().all(legal)
}

/// All of a session but its queue.
#[derive(Serialize, Deserialize)]
struct Description {
    socket_id: String,
    held: WrittenHeld,
    is_absent: bool,
    inactive_ms: u64,
    unacknowledged: Option<Sent>,
}

#[derive(Serialize, Deserialize)]
struct Sent {
    batch: u64,
    frames: Vec<(u64, PackedFrame)>,
}

impl Front {
    fn found(&self, key: &str) -> Option<(Arc<Site>, ClientSession)> {
        let (app_id, id) = key.rsplit_once('/')?;
        let site = self.site_of(app_id)?;
        let session = site.sessions.find(id)?;
        Some((site, session))
    }

    async fn arriving(&self, key: &str, description: &[u8]) -> Option<Arriving> {
        let described: Description = serde_json::from_slice(description).ok()?;
        let (app_id, id) = key.rsplit_once('/')?;
        let site = self.site_of(app_id)?;
        let app = site.app().filter(|app| app.enabled)?;
        if site.sessions.is_full() {
            return None;
        }
        let socket_id = SocketId::parse(&described.socket_id)?;
        let limits = &site.settings.limits;
        let queue = Outbox::bounded(limits.queue_bytes_max, limits.queue_messages_max);
        let queue = Arc::new(queue);
        let mut admission = site.broker.admit(&app, socket_id, queue.clone());
        admission.can_move();
        admission.count(app.limits.connections_max).ok()?;
        let encoding = encoding(site.settings.style, site.settings.event_in);
        let mut client = Client::new(
            app,
            encoding,
            socket_id,
            site.broker.clone(),
            queue.clone(),
            admission,
            false,
        );
        client.unacknowledged = described.unacknowledged.map(|sent| {
            let frames = sent.frames.into_iter();
            let frames = frames.map(|(batch, frame)| (batch, Frame::from(frame)));
            Mutex::new(Unacknowledged::of_parts(sent.batch, frames))
        });
        let inactive = Duration::from_millis(described.inactive_ms);
        client.was_active_at(Instant::now().checked_sub(inactive)?);
        {
            let mut state = client.state.lock().await;
            state.is_absent = described.is_absent;
            let expansion = || expansion(site.settings.style, site.settings.wildcards);
            (state.membership)
                .resume(Held::from(described.held), expansion, |channel| {
                    described.is_absent && channel.is_presence()
                })
                .await
                .ok()?;
        }
        let session = Session::new(id.into(), limits.session_lifetime, queue, client);
        Some(Arriving {
            session: Arc::new(session),
            site,
        })
    }
}

impl House for Front {
    fn name(&self) -> HouseName {
        HOUSE
    }

    fn ids(&self) -> Vec<String> {
        let sites = self.all_sites().into_iter();
        let ids = sites.flat_map(|site| {
            let sessions = site.sessions.all().into_iter();
            let keys = sessions.map(|session| site.key(&session.id));
            keys.collect::<Vec<_>>()
        });
        ids.collect()
    }

    fn has(&self, key: &str) -> bool {
        self.found(key).is_some()
    }

    fn shake_off<'a>(&'a self, key: &'a str) -> Done<'a, ()> {
        Box::pin(async move {
            if let Some((_, session)) = self.found(key) {
                session.shake_off().await;
            }
        })
    }

    fn depart<'a>(&'a self, key: &'a str) -> Done<'a, Option<Box<dyn Departure>>> {
        Box::pin(async move {
            let (site, session) = self.found(key)?;
            if !session.begin_to_leave().await {
                return None;
            }
            let departing = Departing {
                description: Vec::new(),
                channels: Vec::new(),
                has_gone: false,
                site,
                session,
            };
            Some(Box::new(departing.described().await) as Box<dyn Departure>)
        })
    }

    fn arrive<'a>(
        &'a self,
        key: &'a str,
        description: &'a [u8],
    ) -> Done<'a, Option<Box<dyn Arrival>>> {
        Box::pin(async move {
            let arriving = self.arriving(key, description).await?;
            Some(Box::new(arriving) as Box<dyn Arrival>)
        })
    }
}

struct Departing {
    site: Arc<Site>,
    session: ClientSession,
    description: Vec<u8>,
    channels: Vec<ChannelId>,
    has_gone: bool,
}

impl Departing {
    /// Nobody changes it from here on.
    async fn described(mut self) -> Self {
        let client = &self.session.client;
        let state = client.state.lock().await;
        let held = state.membership.held();
        let unacknowledged = client.unacknowledged.as_ref().map(|sent| {
            let sent = lock(sent);
            let (batch, frames) = sent.parts();
            let frames = frames.map(|(batch, frame)| (*batch, PackedFrame::from(frame)));
            Sent {
                batch,
                frames: frames.collect(),
            }
        });
        let description = Description {
            socket_id: client.socket_id.to_string(),
            held: WrittenHeld::from(held),
            is_absent: state.is_absent,
            inactive_ms: client.active_at().elapsed().as_millis() as u64,
            unacknowledged,
        };
        let channels = held.all_channels(&client.app.id);
        drop(state);
        self.channels = channels;
        self.description = serde_json::to_vec(&description).unwrap_or_default();
        self
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
        let is_open = self.session.outbox.closing().is_none();
        is_open.then(|| self.session.luggage())
    }

    fn has_gone(mut self: Box<Self>) -> Done<'static, ()> {
        Box::pin(async move {
            self.has_gone = true;
            self.site.sessions.end(&self.session);
            self.session.client.hand_over().await;
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

/// The membership leaves by itself if it is dropped.
struct Arriving {
    site: Arc<Site>,
    session: ClientSession,
}

impl Arrival for Arriving {
    fn settle(self: Box<Self>, luggage: Luggage) {
        self.session.unpack(luggage);
        self.session.client.settle();
        self.site.sessions.insert(self.session);
    }

    fn turn_away(self: Box<Self>) -> Done<'static, ()> {
        Box::pin(async move { self.session.client.hand_over().await })
    }
}
