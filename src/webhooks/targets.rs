//! Which endpoints there are now. A new configuration replaces them while the server runs.

use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use super::settings::Endpoint;
use crate::backend::{FactSink, Wanted};
use crate::model::{AppId, ChannelFact, ChannelId, FactKind};
use crate::transport::outbound::{Outbound, Reach};
use crate::wire;

/// An endpoint and what sends to it.
#[derive(Clone)]
pub struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) outbound: Outbound,
}

pub(super) type List = Arc<Vec<Target>>;

pub struct Targets {
    list: watch::Sender<List>,
    facts: FactSink,
}

impl Target {
    /// One for each endpoint.
    pub fn all(endpoints: &[Endpoint]) -> Result<Vec<Self>, StartError> {
        let target = |endpoint: &Endpoint| {
            let reach = match endpoint.allow_private_networks {
                true => Reach::Everywhere,
                false => Reach::Public,
            };
            let https = endpoint.url.scheme_str() == Some("https");
            let outbound = Outbound::new(reach, https).map_err(StartError::Outbound)?;
            let endpoint = endpoint.clone();
            Ok(Self { endpoint, outbound })
        };
        endpoints.iter().map(target).collect()
    }
}

impl Targets {
    /// `facts` states from now on what a target asks for.
    pub fn new(targets: Vec<Target>, facts: FactSink) -> Self {
        let (list, _) = watch::channel(List::default());
        let of = Self { list, facts };
        of.replace(targets);
        of
    }

    /// What is stated from now on goes to these. Nothing happens to those who stay as they are.
    pub fn replace(&self, targets: Vec<Target>) {
        let (_, of_sessions) = wire::webhooks::SESSION_GROUP;
        let want_any = |names: &[&str]| {
            let mut events = targets.iter().flat_map(|target| &target.endpoint.events);
            events.any(|event| names.contains(event))
        };
        self.facts.want(Wanted {
            sessions: want_any(of_sessions),
            client_events: want_any(&["client_event"]),
        });
        self.list.send_if_modified(|list| {
            let before = list.iter().map(|target| &target.endpoint);
            let is_new = !before.eq(targets.iter().map(|target| &target.endpoint));
            if is_new {
                *list = Arc::new(targets);
            }
            is_new
        });
    }

    /// What is there now is a change too.
    pub(super) fn changes(&self) -> watch::Receiver<List> {
        let mut changes = self.list.subscribe();
        changes.mark_changed();
        changes
    }

    /// Whether anybody wants to know.
    pub(super) fn concerns(&self, fact: &ChannelFact) -> bool {
        concerns(&self.list.borrow(), &fact.channel, &fact.kind)
    }
}

pub(super) fn concerns(targets: &[Target], channel: &ChannelId, kind: &FactKind) -> bool {
    of_app(targets, &channel.app).any(|endpoint| endpoint.concerns(&channel.name, kind))
}

pub(super) fn of_app<'t>(
    targets: &'t [Target],
    app: &'t AppId,
) -> impl Iterator<Item = &'t Endpoint> {
    let endpoints = targets.iter().map(|target| &target.endpoint);
    endpoints.filter(|endpoint| endpoint.app == *app)
}
