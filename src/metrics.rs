//! What is counted while the process runs, and how it is printed for Prometheus.
//!
//! The numbers are the process's, so they stand in statics: whoever has something to count counts
//! it in one line. On the hot path that is once for each delivery, never for each recipient. What
//! can be looked up when somebody asks is not counted at all; its owner hands the server a
//! reading (see [`crate::server`]).

mod backlog;
mod histogram;
pub(crate) mod process;
mod text;

pub use backlog::{Backlog, Backlogs};
pub use histogram::Histogram;
pub use process::process;
pub use text::Page;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use crate::model::now_ms;

pub static ACCEPTED: Counter = Counter::new();
/// Peers that were sent away before or while they were served, by cause.
pub static CUT_OFFS: Causes<CutOff, { CutOff::ALL.len() }> = Causes::new();
/// What was refused because of a limit, to peers that stay.
pub static REFUSALS: Causes<Limit, { Limit::ALL.len() }> = Causes::new();
pub static WEBHOOKS: Causes<Webhook, { Webhook::ALL.len() }> = Causes::new();
/// Events that endpoints have yet to take.
pub static WEBHOOK_BACKLOG: Backlogs = Backlogs::new();
/// Thrown away because there was no room for them.
pub static WEBHOOK_EVENTS_LOST: Counter = Counter::new();
pub static HTTP_ANSWERS: Statuses = Statuses::new();
pub static EVENTS: PerApp = PerApp::new();
pub static DELIVERIES: PerApp = PerApp::new();
/// From the moment an event reaches the channels of this node until it is written to the socket of
/// the last of its subscribers that was waiting.
pub static DELIVERY_SECONDS: Histogram = Histogram::new();

pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! causes {
    ($(#[$doc:meta])* $name:ident { $($(#[$cause_doc:meta])* $cause:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$cause_doc])* $cause,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$cause,)*];
        }

        impl Cause for $name {
            fn label(self) -> &'static str {
                match self { $(Self::$cause => $label,)* }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// One of a few known values of a label.
pub trait Cause: Copy + 'static {
    fn label(self) -> &'static str;
    fn index(self) -> usize;
}

causes! {
    /// Why a peer was sent away.
    CutOff {
        /// More than its own limit was waiting for it.
        SlowConsumer = "slow_consumer",
        /// The queues of all together were too large, and its was among the largest.
        OutboxMemory = "outbox_memory",
        /// It accepted no byte for too long.
        WriteTimeout = "write_timeout",
        /// It did not answer a ping.
        NoPong = "no_pong",
        /// No complete request in time.
        HeadTimeout = "head_timeout",
        /// Nor a complete body.
        BodyTimeout = "body_timeout",
        BodyTooLarge = "body_too_large",
        MessageTooLarge = "message_too_large",
        /// Its bytes are no frames of a WebSocket.
        ProtocolError = "protocol_error",
        NotAuthorized = "not_authorized",
        /// Its app does not exist, or is disabled.
        UnknownApp = "unknown_app",
        AppDisabled = "app_disabled",
        /// It is a page of somebody who is not allowed.
        Origin = "origin",
        /// It named no version of Pusher's protocol, or one that is not served.
        ProtocolVersion = "protocol_version",
        /// Its app wants TLS.
        NotOverTls = "not_over_tls",
        /// There are as many sessions, of Bayeux or of Pusher over HTTP, as there may be.
        HttpSessions = "http_sessions",
        /// The app has as many connections as it may have.
        AppConnections = "app_connections",
        /// So has the address.
        AddressConnections = "address_connections",
        Draining = "draining",
        /// It did not begin as a trusted proxy has to.
        ProxyHeader = "proxy_header",
        /// It spoke no TLS, or not ours.
        TlsHandshake = "tls_handshake",
    }
}

causes! {
    /// What was refused.
    Limit {
        ClientEvents = "client_events_per_sec_max",
        /// These are not refused, but held up.
        ControlMessages = "control_messages_per_sec_max",
        /// So are those who are refused too much.
        AddressRefusals = "refusals_per_address_per_sec_max",
        BackendEvents = "backend_events_per_sec_max",
        Subscriptions = "subscriptions_per_connection_max",
        PresenceMembers = "presence_members_max",
        Signature = "signature",
        /// Somebody else may do it, or the application said no.
        Permission = "permission",
        /// A caller of the HTTP API showed none.
        ClientCertificate = "client_certificate",
    }
}

causes! {
    /// What became of a webhook, or of one attempt.
    Webhook {
        Delivered = "delivered",
        /// It will be sent again.
        Failed = "failed",
        DeadLetter = "dead_letter",
    }
}

/// A counter for each cause.
pub struct Causes<C, const N: usize>([Counter; N], std::marker::PhantomData<fn() -> C>);

impl<C: Cause, const N: usize> Causes<C, N> {
    const fn new() -> Self {
        Self([const { Counter::new() }; N], std::marker::PhantomData)
    }

    pub fn count(&self, cause: C) {
        self.0[cause.index()].add(1);
    }

    fn print(&self, page: &mut Page, name: &str, label: &str, causes: &[C]) {
        for cause in causes {
            let value = self.0[cause.index()].get();
            page.sample(name, &[(label, cause.label())], value as f64);
        }
    }
}

/// HTTP answers by status.
pub struct Statuses([Counter; 500]);

impl Statuses {
    const fn new() -> Self {
        Self([const { Counter::new() }; 500])
    }

    pub fn count(&self, status: u16) {
        if let Some(counter) = self.0.get(usize::from(status).wrapping_sub(100)) {
            counter.add(1);
        }
    }
}

/// Apps beyond so many share one value of the label: a thousand of them shall not make a thousand
/// time series of everything.
pub const APP_LABELS_MAX: usize = 100;
pub const OTHER_APPS: &str = "other";

/// A counter for each of the first apps that counted something, and one for all others.
pub struct PerApp {
    of: RwLock<Option<HashMap<Box<str>, Arc<Counter>>>>,
    others: Counter,
}

impl PerApp {
    const fn new() -> Self {
        Self {
            of: RwLock::new(None),
            others: Counter::new(),
        }
    }

    pub fn add(&self, app: &str, count: u64) {
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = of.as_ref() {
            match of.get(app) {
                Some(counter) => return counter.add(count),
                None if of.len() >= APP_LABELS_MAX => return self.others.add(count),
                None => {}
            }
        }
        drop(of);
        let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
        let counter = of.get_or_insert_default().entry(app.into()).or_default();
        counter.add(count);
    }

    fn print(&self, page: &mut Page, name: &str) {
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = of.iter().flatten().collect();
        all.sort_unstable_by_key(|(app, _)| *app);
        for (app, counter) in all {
            page.sample(name, &[("app", app)], counter.get() as f64);
        }
        if self.others.get() > 0 {
            page.sample(name, &[("app", OTHER_APPS)], self.others.get() as f64);
        }
    }
}

/// Everything that is counted here.
pub fn counted(page: &mut Page) {
    page.counter(
        "raptor_accepted_connections_total",
        "Connections accepted on any listener.",
        ACCEPTED.get(),
    );
    let name = "raptor_http_responses_total";
    page.family(name, "counter", "HTTP responses by status.");
    for (nth, counter) in HTTP_ANSWERS.0.iter().enumerate() {
        if counter.get() > 0 {
            let status = (nth + 100).to_string();
            page.sample(name, &[("status", &status)], counter.get() as f64);
        }
    }
    let name = "raptor_cut_offs_total";
    page.family(name, "counter", "Peers that were sent away, by cause.");
    CUT_OFFS.print(page, name, "cause", CutOff::ALL);
    let name = "raptor_refusals_total";
    page.family(
        name,
        "counter",
        "What was refused to peers that stay, by limit.",
    );
    REFUSALS.print(page, name, "limit", Limit::ALL);
    let name = "raptor_events_total";
    page.family(
        name,
        "counter",
        "Events handed to the channels of this node.",
    );
    EVENTS.print(page, name);
    let name = "raptor_deliveries_total";
    page.family(
        name,
        "counter",
        "Events put into the queue of a subscriber.",
    );
    DELIVERIES.print(page, name);
    let name = "raptor_webhooks_total";
    page.family(name, "counter", "Attempts to send a webhook, by outcome.");
    WEBHOOKS.print(page, name, "outcome", Webhook::ALL);
    let (waiting, oldest_ms) = WEBHOOK_BACKLOG.total();
    page.gauge(
        "raptor_webhook_queue_events",
        "Events that endpoints have yet to take; for each endpoint as far as its log is read.",
        waiting as f64,
    );
    let age_ms = oldest_ms.map_or(0, |oldest_ms| now_ms().saturating_sub(oldest_ms));
    page.gauge(
        "raptor_webhook_queue_age_seconds",
        "How long the oldest of them has waited.",
        age_ms as f64 / 1000.0,
    );
    page.counter(
        "raptor_webhook_events_lost_total",
        "Events that no endpoint was told of, because the store was full.",
        WEBHOOK_EVENTS_LOST.get(),
    );
    DELIVERY_SECONDS.print(
        page,
        "raptor_delivery_seconds",
        "From an event's arrival on this node until it is written to a subscriber's socket; one \
         subscriber of each event is timed.",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_beyond_the_limit_share_a_label() {
        static EVENTS: PerApp = PerApp::new();
        for n in 0..APP_LABELS_MAX + 50 {
            EVENTS.add(&format!("app-{n:03}"), 2);
        }
        EVENTS.add("app-000", 1);
        let mut page = Page::default();
        EVENTS.print(&mut page, "events_total");
        let text = page.into_text();
        assert_eq!(text.lines().count(), APP_LABELS_MAX + 1);
        assert!(text.starts_with("events_total{app=\"app-000\"} 3\n"));
        assert!(text.ends_with("events_total{app=\"other\"} 100\n"));
    }

    #[test]
    fn every_cause_has_a_counter_of_its_own() {
        static COUNTS: Causes<CutOff, { CutOff::ALL.len() }> = Causes::new();
        for (nth, cause) in CutOff::ALL.iter().enumerate() {
            (0..=nth).for_each(|_| COUNTS.count(*cause));
        }
        let mut page = Page::default();
        COUNTS.print(&mut page, "n", "cause", CutOff::ALL);
        let text = page.into_text();
        let values = text
            .lines()
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok());
        let expected: Vec<usize> = (1..=CutOff::ALL.len()).collect();
        assert_eq!(values.collect::<Vec<usize>>(), expected);
    }
}
