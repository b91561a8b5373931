//! One app's Bayeux server: its settings and its sessions.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use warp::http::HeaderMap;

use super::browsers::Browsers;
use super::client::{Client, ClientSession};
use super::permission::{Permission, Question, ShownHeaders};
use super::settings::Settings;
use crate::apps::{App, AppRegistry};
use crate::broker::Broker;
use crate::model::AppId;
use crate::transport::outbound::OutboundError;
use crate::transport::session::{Sessions, Vehicle};
use crate::transport::websocket;
use crate::transport::writer::Flushers;
use crate::wire::bayeux::{Advice, BayeuxError, ConnectionType, Given};

/// How often sessions are looked through for those whose time is over.
const SWEEP: Duration = Duration::from_secs(1);
/// Silence after which a socket is pinged: proxies cut idle ones after 55 s and more.
const PING_AFTER: Duration = Duration::from_secs(25);

/// Every way that we offer, in Faye's order.
pub const SUPPORTED: [ConnectionType; 5] = ConnectionType::ALL;

/// All apps' sites, found by their mounts.
pub struct Front {
    sites: Vec<Arc<Site>>,
}

pub struct Site {
    app_id: AppId,
    apps: Arc<AppRegistry>,
    pub broker: Arc<Broker>,
    pub settings: Settings,
    pub sessions: Sessions<Client>,
    pub websocket: Arc<websocket::Settings>,
    pub permission: Option<Permission>,
    pub browsers: Browsers,
}

impl Front {
    /// Mounts are distinct.
    pub fn start(
        sites: Vec<(AppId, Settings)>,
        apps: Arc<AppRegistry>,
        broker: Arc<Broker>,
        write_timeout: Duration,
        tasks: &TaskTracker,
        flushers: &Arc<Flushers>,
    ) -> Result<Self, OutboundError> {
        let site = |(app_id, settings): (AppId, Settings)| {
            let permission = settings.permission.clone().map(Permission::new);
            let site = Arc::new(Site {
                permission: permission.transpose()?,
                browsers: Browsers::default(),
                app_id,
                apps: apps.clone(),
                broker: broker.clone(),
                sessions: Sessions::new(settings.limits.sessions_max),
                websocket: Arc::new(websocket::Settings {
                    ping_after: PING_AFTER,
                    pong_within: PING_AFTER,
                    write_timeout,
                    inbound_message_bytes_max: settings.limits.request_bytes_max,
                    tasks: tasks.clone(),
                    flushers: flushers.clone(),
                }),
                settings,
            });
            tokio::spawn(sweep(Arc::downgrade(&site)));
            Ok(site)
        };
        let sites = sites.into_iter().map(site).collect::<Result<_, _>>()?;
        Ok(Self { sites })
    }

    /// The site at a path, with the path's rest: the longest mount counts.
    pub(super) fn site<'p>(&self, path: &'p str) -> Option<(Arc<Site>, &'p str)> {
        let mounts = self.sites.iter().flat_map(|site| {
            let mounts = site.settings.mounts.iter();
            mounts.filter_map(move |mount| Some((site, super::below_mount(path, mount)?)))
        });
        let (site, rest) = mounts.min_by_key(|(_, rest)| rest.len())?;
        Some((site.clone(), rest))
    }
}

impl Site {
    /// As it is configured now.
    pub fn app(&self) -> Option<Arc<App>> {
        self.apps.by_id(self.app_id.as_str())
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
                permission.check(app, question).await.map(|()| true)
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

    /// Ends a session in order: it leaves all its channels first.
    pub async fn end(&self, session: &ClientSession) {
        session.client.leave_all().await;
        self.sessions.end(session);
    }

    async fn sweep(&self) {
        let now = Instant::now();
        for session in self.sessions.all() {
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

/// Ends with its site.
async fn sweep(site: Weak<Site>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match site.upgrade() {
            Some(site) => site.sweep().await,
            None => return,
        }
    }
}

pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |duration| duration.as_millis() as u64)
}
