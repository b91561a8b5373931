//! What can change while the server runs.

use std::sync::Arc;

use super::tls::{self, Certificate};
use crate::apps::AppRegistry;
use crate::config::{Config, ServerSettings};

/// Hands a new configuration to a running server.
#[derive(Clone)]
pub struct Reloader {
    pub(super) apps: Arc<AppRegistry>,
    pub(super) certificate: Option<Certificate>,
    pub(super) started_with: Arc<StartedWith>,
}

/// What stays as it was at the start.
pub(super) struct StartedWith {
    pub server: ServerSettings,
    pub bayeux: String,
    pub webhooks: String,
}

impl StartedWith {
    pub fn of(config: &Config) -> Self {
        Self {
            server: config.server.clone(),
            bayeux: format!("{:?}", config.bayeux),
            webhooks: format!("{:?}", config.webhooks),
        }
    }
}

impl Reloader {
    /// Takes over the apps with their keys, switches, origins and limits. Connections that are
    /// open go by them from their next message on. New TLS connections get the certificate that
    /// is in its file now. Returns what else is different and waits for a restart; `Err` says why
    /// nothing was taken over.
    pub fn reload(&self, config: Config) -> Result<Vec<&'static str>, String> {
        if let (Some(certificate), Some(settings)) = (&self.certificate, &config.server.tls) {
            certificate.replace(tls::load(settings)?);
        }
        let now = StartedWith::of(&config);
        let before = &*self.started_with;
        let waiting = [
            (
                now.server != before.server,
                "the settings of the whole server",
            ),
            (now.bayeux != before.bayeux, "[apps.bayeux]"),
            (now.webhooks != before.webhooks, "webhooks"),
        ];
        self.apps.replace(config.apps);
        let waiting = waiting.into_iter().filter(|(differs, _)| *differs);
        Ok(waiting.map(|(_, what)| what).collect())
    }
}
