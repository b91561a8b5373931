//! What a run found, for people and for machines.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::tally::{Faults, Tally};
use super::target::Target;

#[derive(Serialize, Clone, Debug)]
pub struct Report {
    pub scenario: &'static str,
    pub protocol: &'static str,
    pub url: String,
    pub connections: u64,
    /// From the first event until the last delivery.
    pub secs: f64,
    /// What an event is here: a publish, a client event, a join, a connect.
    pub event: &'static str,
    pub events: u64,
    pub events_per_sec: f64,
    /// Publishes that were refused or not answered, joins and connects that failed.
    pub failed: u64,
    /// In the server's words.
    pub first_failure: Option<String>,
    pub deliveries: u64,
    pub deliveries_per_sec: f64,
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    /// Channels whose subscribers did not all see one order.
    pub channels_in_several_orders: u64,
    /// Connections that the server closed while they were needed.
    pub connections_closed: u64,
    /// From when an event was due until it arrived.
    pub latency: Option<Latency>,
    pub server: Option<ServerCost>,
    pub client_cpu_secs: f64,
}

#[derive(Serialize, Clone, Copy, Debug)]
pub struct Latency {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latency {
    pub fn of(us: &Histogram<u64>) -> Option<Self> {
        (!us.is_empty()).then(|| Self {
            p50_us: us.value_at_quantile(0.5),
            p90_us: us.value_at_quantile(0.9),
            p99_us: us.value_at_quantile(0.99),
            p999_us: us.value_at_quantile(0.999),
            max_us: us.max(),
        })
    }
}

/// What the process given as `--pid` used during the run.
#[derive(Serialize, Clone, Copy, Debug)]
pub struct ServerCost {
    pub pid: u32,
    pub cpu_secs: f64,
    pub cpu_us_per_event: Option<f64>,
    pub cpu_us_per_delivery: Option<f64>,
    pub resident_kib_before: u64,
    pub resident_kib_after: u64,
    pub resident_bytes_per_connection: Option<f64>,
}

impl Report {
    pub(super) fn new(scenario: &'static str, target: &Target) -> Self {
        Self {
            scenario,
            protocol: target.protocol_name(),
            url: target.url.clone(),
            connections: 0,
            secs: 0.0,
            event: "",
            events: 0,
            events_per_sec: 0.0,
            failed: 0,
            first_failure: None,
            deliveries: 0,
            deliveries_per_sec: 0.0,
            lost: 0,
            duplicates: 0,
            reordered: 0,
            channels_in_several_orders: 0,
            connections_closed: 0,
            latency: None,
            server: None,
            client_cpu_secs: 0.0,
        }
    }

    /// Fills in what a run of so many seconds had.
    pub(super) fn fill(
        &mut self,
        secs: f64,
        events: u64,
        tally: &Tally,
        faults: Faults,
        server: Option<ServerCost>,
    ) {
        let per = |count: u64| (count > 0).then_some(count as f64);
        self.secs = secs;
        self.events = events;
        self.events_per_sec = events as f64 / secs;
        self.deliveries = tally.received();
        self.deliveries_per_sec = self.deliveries as f64 / secs;
        self.lost = faults.lost;
        self.duplicates = faults.duplicates;
        self.reordered = faults.reordered;
        self.channels_in_several_orders = faults.channels_in_several_orders;
        self.connections_closed = tally.closed();
        self.latency = Latency::of(&tally.latencies_us());
        self.server = server.map(|server| ServerCost {
            cpu_us_per_event: per(events).map(|count| server.cpu_secs * 1e6 / count),
            cpu_us_per_delivery: per(self.deliveries).map(|count| server.cpu_secs * 1e6 / count),
            ..server
        });
    }

    /// Everything arrived once and in order, and nothing was refused.
    pub fn is_clean(&self) -> bool {
        let faults = self.failed
            + self.lost
            + self.duplicates
            + self.reordered
            + self.channels_in_several_orders
            + self.connections_closed;
        faults == 0
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts are JSON")
    }

    /// A table of name and value.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: String| {
            // A string takes whatever is written.
            let _ = writeln!(table, "  {name:<24} {value}");
        };
        row("connections", self.connections.to_string());
        row("time", format!("{:.2} s", self.secs));
        if self.events > 0 {
            let rate = format!("{}, {:.0}/s", self.events, self.events_per_sec);
            row(self.event, rate);
        }
        if self.deliveries > 0 || self.lost > 0 {
            let rate = format!("{}, {:.0}/s", self.deliveries, self.deliveries_per_sec);
            row("deliveries", rate);
            row(
                "lost, twice, late",
                format!("{}, {}, {}", self.lost, self.duplicates, self.reordered),
            );
        }
        if self.channels_in_several_orders > 0 {
            let channels = self.channels_in_several_orders.to_string();
            row("channels without one order", channels);
        }
        if self.failed > 0 {
            let first = self.first_failure.as_deref().unwrap_or_default();
            row("failed", format!("{}, the first: {first}", self.failed));
        }
        if self.connections_closed > 0 {
            row("connections closed", self.connections_closed.to_string());
        }
        if let Some(latency) = &self.latency {
            let ms = |us: u64| us as f64 / 1000.0;
            row(
                "latency p50, p90, p99",
                format!(
                    "{:.2}, {:.2}, {:.2} ms",
                    ms(latency.p50_us),
                    ms(latency.p90_us),
                    ms(latency.p99_us)
                ),
            );
            row(
                "latency p99.9, most",
                format!("{:.2}, {:.2} ms", ms(latency.p999_us), ms(latency.max_us)),
            );
        }
        if let Some(server) = &self.server {
            let share = server.cpu_secs / self.secs * 100.0;
            let cpu = format!("{:.2} s, {share:.1} % of a core", server.cpu_secs);
            row("server CPU", cpu);
            if let Some(us) = server.cpu_us_per_event {
                row("server CPU per event", format!("{us:.2} µs"));
            }
            if let Some(us) = server.cpu_us_per_delivery {
                row("server CPU per delivery", format!("{us:.2} µs"));
            }
            let (before, after) = (server.resident_kib_before, server.resident_kib_after);
            let mib = |kib: u64| kib as f64 / 1024.0;
            let memory = format!("{:.1} MiB, {:.1} before", mib(after), mib(before));
            row("server memory", memory);
            if let Some(bytes) = server.resident_bytes_per_connection {
                row(
                    "memory per connection",
                    format!("{:.2} KiB", bytes / 1024.0),
                );
            }
        }
        row("client CPU", format!("{:.2} s", self.client_cpu_secs));
        format!("{} against {}\n{table}", self.scenario, self.url)
            .trim_end()
            .to_owned()
    }
}
