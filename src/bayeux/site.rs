//! One app's Bayeux server: its settings and its sessions.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use warp::http::HeaderMap;

use super::browsers::Browsers;
use super::client::{Client, ClientSession};
use super::exchange::Sender;
use super::http::Mounted;
use super::permission::{Permission, Question, ShownHeaders};
use super::settings::Settings;
use crate::apps::{App, AppRegistry, Limits};
use crate::audit;
use crate::broker::Broker;
use crate::metrics::{Limit, REFUSALS};
use crate::model::AppId;
use crate::peers::Peers;
use crate::transport::outbound::OutboundError;
use crate::transport::session::{Sessions, Vehicle};
use crate::transport::websocket;
use crate::transport::writer::Flushers;
use crate::wire::bayeux::{Advice, BayeuxError, ConnectionType, Given, INVALID_SIGNATURE};

/// How often sessions are looked through for those whose time is over.
const SWEEP: Duration = Duration::from_secs(1);
/// Silence after which a socket is pinged: proxies cut idle ones after 55 s and more.
const PING_AFTER: Duration = Duration::from_secs(25);

/// Every way that we offer, in Faye's order.
pub const SUPPORTED: [ConnectionType; 5] = ConnectionType::ALL;

/// All apps' sites, found by their mounts.
pub struct Front {
    sites: Arc<RwLock<Sites>>,
    apps: Arc<AppRegistry>,
    broker: Arc<Broker>,
    peers: Option<Arc<Peers>>,
    tasks: TaskTracker,
    flushers: Arc<Flushers>,
}

type Sites = Vec<Arc<Site>>;

/// As it was configured last; a new configuration makes another one with the same sessions.
pub struct Site {
    app_id: AppId,
    apps: Arc<AppRegistry>,
    pub broker: Arc<Broker>,
    pub settings: Settings,
    pub sessions: Arc<Sessions<Client>>,
    pub websocket: Arc<websocket::Settings>,
    /// With the one that is newer than this, if there is one.
    all: Weak<RwLock<Sites>>,
    pub permission: Option<Permission>,
    pub browsers: Arc<Browsers>,
    /// Where there are other nodes.
    pub peers: Option<Arc<Peers>>,
}

impl Front {
    /// Mounts are distinct.
    pub fn start(
        sites: Vec<(AppId, Settings)>,
        apps: Arc<AppRegistry>,
        broker: Arc<Broker>,
        peers: Option<Arc<Peers>>,
        write_timeout: Duration,
        tasks: &TaskTracker,
        flushers: &Arc<Flushers>,
    ) -> Result<Self, OutboundError> {
        let front = Self {
            sites: Arc::default(),
            apps,
            broker,
            peers,
            tasks: tasks.clone(),
            flushers: flushers.clone(),
        };
        front.reload(sites, write_timeout)?;
        tokio::spawn(sweep(Arc::downgrade(&front.sites)));
        Ok(front)
    }

    /// Takes other settings, which count from the next message on; sessions stay. An app that is
    /// not there any more has no mount, and what is left of its sessions runs out.
    pub fn reload(
        &self,
        mut settings: Vec<(AppId, Settings)>,
        write_timeout: Duration,
    ) -> Result<(), OutboundError> {
        let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
        for before in &*sites {
            if !settings.iter().any(|(app_id, _)| *app_id == before.app_id) {
                let gone = Settings {
                    mounts: Vec::new(),
                    ..before.settings.clone()
                };
                settings.push((before.app_id.clone(), gone));
            }
        }
        let renewed = settings.into_iter().map(|(app_id, settings)| {
            let before = sites.iter().find(|site| site.app_id == app_id);
            let sessions_max = settings.limits.sessions_max;
            let (sessions, browsers) = match before {
                Some(before) => (before.sessions.clone(), before.browsers.clone()),
                None => (Arc::new(Sessions::new(sessions_max)), Arc::default()),
            };
            let permission = settings.permission.clone().map(Permission::new);
            Ok(Arc::new(Site {
                permission: permission.transpose()?,
                browsers,
                app_id,
                apps: self.apps.clone(),
                broker: self.broker.clone(),
                sessions,
                websocket: Arc::new(websocket::Settings {
                    ping_after: PING_AFTER,
                    pong_within: PING_AFTER,
                    write_timeout,
                    inbound_message_bytes_max: settings.limits.request_bytes_max,
                    tasks: self.tasks.clone(),
                    flushers: self.flushers.clone(),
                }),
                peers: self.peers.clone(),
                settings,
                all: Arc::downgrade(&self.sites),
            }))
        });
        let renewed = renewed.collect::<Result<Sites, _>>()?;
        for site in &renewed {
            site.sessions.limit(site.settings.limits.sessions_max);
        }
        *sites = renewed;
        Ok(())
    }

    pub(super) fn all_sites(&self) -> Vec<Arc<Site>> {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        sites.clone()
    }

    pub(super) fn site_of(&self, app_id: &str) -> Option<Arc<Site>> {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        let mut sites = sites.iter();
        sites.find(|site| site.app_id.as_str() == app_id).cloned()
    }

    /// The mount that a path begins with: the longest counts.
    pub fn mounted(&self, path: &str) -> Option<Mounted> {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        let mounts = sites.iter().flat_map(|site| {
            let mounts = site.settings.mounts.iter();
            mounts.filter_map(move |mount| Some((site, super::below_mount(path, mount)?)))
        });
        let (site, rest) = mounts.min_by_key(|(_, rest)| rest.len())?;
        Some(Mounted {
            site: site.clone(),
            mount_bytes: path.len() - rest.len(),
        })
    }
}

impl Site {
    /// For whoever keeps a site for long.
    pub fn newest(self: &Arc<Self>) -> Arc<Self> {
        let all = self.all.upgrade();
        let newest = all.and_then(|all| {
            let all = all.read().unwrap_or_else(PoisonError::into_inner);
            all.iter().find(|site| site.app_id == self.app_id).cloned()
        });
        newest.unwrap_or_else(|| self.clone())
    }

    pub fn app_id(&self) -> &AppId {
        &self.app_id
    }

    /// As it is configured now.
    pub fn app(&self) -> Option<Arc<App>> {
        self.apps.by_id(self.app_id.as_str())
    }

    /// Beyond it a connection is read no faster.
    pub fn control_messages_per_sec_max(&self) -> usize {
        let app = self.app();
        match &app {
            Some(app) => app.limits.control_messages_per_sec_max,
            None => Limits::default().control_messages_per_sec_max,
        }
    }

    /// The session that a message names. The client has shown itself by it.
    pub fn session(&self, client_id: Option<Given>) -> Option<ClientSession> {
        let session = self.sessions.find(&client_id?.text()?)?;
        session.touch();
        Some(session)
    }

    /// The same for a message that is more than a sign of life.
    pub fn active_session(&self, client_id: Option<Given>) -> Option<ClientSession> {
        let session = self.session(client_id)?;
        session.client.be_active();
        Some(session)
    }

    /// What of a request's headers the application wants to see.
    pub fn shown(&self, headers: &HeaderMap) -> ShownHeaders {
        let permission = self.permission.as_ref();
        permission.map_or_else(ShownHeaders::default, |asked| asked.shown(headers))
    }

    /// Whether the application was asked; `Err` if it refused.
    pub async fn ask(&self, app: &App, question: Question<'_>) -> Result<bool, BayeuxError> {
        match &self.permission {
            Some(permission) if permission.is_about(question.matter) => {
                // Boxed, because few messages need the room.
                let decision = Box::pin(permission.check(app, question)).await;
                decision.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// What a client is told to do next as long as all is well.
    pub fn advice(&self) -> Advice {
        let limits = &self.settings.limits;
        Advice {
            session_ms: Some(limits.session_lifetime.as_millis() as u64),
            ..Advice::retry(0, limits.hold.as_millis() as u64)
        }
    }

    /// Counts and writes down that somebody was refused what it may not do.
    pub fn note_refused(
        &self,
        client_id: Option<Given>,
        sender: &Sender,
        asked: &str,
        error: &BayeuxError,
    ) {
        if error.reason.is_denial() {
            REFUSALS.count(match error.reason {
                INVALID_SIGNATURE => Limit::Signature,
                _ => Limit::Permission,
            });
            self.audit_refused(client_id, sender, asked, error);
        }
    }

    /// Only writes it down: what is counted elsewhere, or is no denial.
    pub(super) fn audit_refused(
        &self,
        client_id: Option<Given>,
        sender: &Sender,
        asked: &str,
        error: &BayeuxError,
    ) {
        let id = client_id.and_then(Given::text);
        let session = id.and_then(|id| self.sessions.find(&id));
        let client = audit::Client {
            app: &self.app_id,
            socket_id: session.map(|session| session.client.socket_id),
            address: Some(sender.address),
        };
        client.refused(None, Some(asked), error.reason.text());
    }

    /// Ends a session in order: it leaves all its channels first.
    pub async fn end(&self, session: &ClientSession) {
        session.client.leave_all().await;
        if self.sessions.end(session) {
            self.forget(session);
        }
    }

    async fn sweep(&self) {
        let now = Instant::now();
        for session in self.sessions.all() {
            // One that is going to another node is looked at there.
            let Some(_visit) = session.visit() else {
                continue;
            };
            if session.is_over(now) || self.is_inactive(&session, now) {
                self.end(&session).await;
            } else if self.is_silent(&session, now) {
                session.client.step_out().await;
            }
        }
    }

    /// Whether its client does nothing but wait. It is told where it waits: between two connects
    /// it would only learn that its session is gone, and begin anew.
    fn is_inactive(&self, session: &ClientSession, now: Instant) -> bool {
        let allowed = self.settings.limits.inactivity;
        allowed.is_some_and(|allowed| {
            session.carried_by().is_some() && now >= session.client.active_at() + allowed
        })
    }

    /// Whether a user should no longer be seen as present. A poll that ended is followed by the
    /// next one within its hold time; a socket that closed left for good.
    fn is_silent(&self, session: &ClientSession, now: Instant) -> bool {
        let limits = &self.settings.limits;
        session.idle().is_some_and(|idle| {
            let grace = match idle.vehicle {
                Vehicle::Poll => limits.presence_grace + limits.hold,
                Vehicle::Socket | Vehicle::Stream => limits.presence_grace,
            };
            now >= idle.since + grace
        })
    }
}

/// Ends with the front.
async fn sweep(sites: Weak<RwLock<Sites>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(sites) = sites.upgrade() else { return };
        let sites = sites.read().unwrap_or_else(PoisonError::into_inner).clone();
        for site in sites {
            site.sweep().await;
        }
    }
}
