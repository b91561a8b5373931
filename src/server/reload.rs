//! What can change while the server runs.

use std::sync::Arc;

use super::http::Serving;
use super::live::Live;
use super::tls::{self, Certificate};
use super::{Rooms, ServerSettings};
use crate::config::{Config, LogSettings};
use crate::webhooks::{self, Target, Targets};

/// Hands a new configuration to a running server.
#[derive(Clone)]
pub struct Reloader {
    pub(super) rooms: Arc<Rooms>,
    pub(super) serving: Arc<Live<Serving>>,
    pub(super) certificate: Option<Certificate>,
    pub(super) targets: Arc<Targets>,
    pub(super) started_with: Arc<StartedWith>,
}

/// What stays as it was at the start.
pub(super) struct StartedWith {
    server: ServerSettings,
    log: LogSettings,
    webhooks: webhooks::Settings,
    redis: Option<crate::backend::redis::Settings>,
}

impl StartedWith {
    pub fn of(config: &Config) -> Self {
        Self {
            server: config.server.clone(),
            log: config.log.clone(),
            webhooks: config.webhooks.clone(),
            redis: config.redis.clone(),
        }
    }

    /// Without any endpoint nothing of webhooks is in Redis.
    fn can_dispatch(&self) -> bool {
        self.redis.is_none() || !self.webhooks.endpoints.is_empty()
    }

    /// It listens where it did, whatever the new configuration says.
    fn admits(&self, config: &Config) -> Result<(), String> {
        match self.server.is_exposed() && config.has_well_known_secret() {
            true => Err(
                "the development app's well-known secret may not be used on the \
                         addresses this server listens on: give an app of your own"
                    .to_owned(),
            ),
            false => Ok(()),
        }
    }

    /// What a new configuration says in vain.
    fn differs_in(&self, config: &Config) -> Vec<&'static str> {
        let (before, now) = (&self.server, &config.server);
        let listener = |settings: &ServerSettings| {
            let tls = settings.tls.as_ref();
            (
                (settings.listen, settings.proxy_protocol),
                tls.map(|tls| (tls.listen.value, tls.proxy_protocol)),
                settings.unix.clone(),
                settings.metrics_listen,
            )
        };
        let (log, log_now) = (&self.log, &config.log);
        let kept = |settings: &webhooks::Settings| webhooks::Settings {
            endpoints: Vec::new(),
            ..settings.clone()
        };
        [
            (
                listener(before) != listener(now),
                "where and how the server listens",
            ),
            (
                (log.format, &log.audit) != (log_now.format, &log_now.audit),
                "the format of the log or where the audit log goes",
            ),
            (kept(&self.webhooks) != kept(&config.webhooks), "[webhooks]"),
            (
                !self.can_dispatch() && !config.webhooks.endpoints.is_empty(),
                "[[apps.webhooks]], as there were none and nodes share a Redis",
            ),
            (self.redis != config.redis, "[redis]"),
        ]
        .into_iter()
        .filter_map(|(differs, what)| differs.then_some(what))
        .collect()
    }
}

impl Reloader {
    /// Takes over apps and all settings but those of listeners. Connections that are open go by
    /// them from their next message or request on; but the time-outs and sizes of a WebSocket stay
    /// what they were when it was opened. New TLS connections get the certificate that is in its
    /// file now. What happens from now on is told to the webhooks that are configured now. Returns
    /// what else is different and waits for a restart; `Err` says why nothing was taken over.
    pub fn reload(&self, config: Config) -> Result<Vec<&'static str>, String> {
        let certificate = match (&self.certificate, &config.server.tls) {
            (Some(certificate), Some(settings)) => {
                let prepared = tls::prepare(settings).map_err(|problem| problem.to_string())?;
                Some((certificate, prepared))
            }
            _ => None,
        };
        self.started_with.admits(&config)?;
        let targets = Target::all(&config.webhooks.endpoints).map_err(|error| error.to_string())?;
        (self.rooms.bayeux)
            .reload(config.bayeux.clone(), config.server.write_timeout)
            .map_err(|error| error.to_string())?;
        // From here on nothing can fail.
        if let Some((certificate, prepared)) = certificate {
            certificate.replace(prepared);
        }
        let waiting = self.started_with.differs_in(&config);
        if self.started_with.can_dispatch() {
            self.targets.replace(targets);
        }
        let mut settings = config.server;
        // Without its listener it stays as it was, and so does what the API asks for.
        settings.tls = match &self.certificate {
            Some(_) => settings.tls.or(self.started_with.server.tls.clone()),
            None => None,
        };
        self.rooms.apps.replace(config.apps);
        let addresses = self.serving.get().addresses.clone();
        let addresses = addresses.limited(settings.address_limits);
        (self.serving).replace(self.rooms.serve(settings, addresses));
        Ok(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Written;

    #[test]
    fn the_well_known_secret_does_not_come_to_an_open_address_later() {
        let development = Config::from_written(&Written::default()).ok().unwrap();
        let mut own = development.clone();
        own.apps[0].keys[0].secret = crate::auth::Secret::new("my-secret");
        for (address, is_open) in [("0.0.0.0:6001", true), ("127.0.0.1:6001", false)] {
            let mut started_with = StartedWith::of(&own);
            started_with.server.listen = address.parse().unwrap();
            assert_eq!(started_with.admits(&development).is_err(), is_open);
            assert!(started_with.admits(&own).is_ok());
        }
    }
}
