use std::io::{self, IsTerminal};

use raptor::config::{LogFormat, LogSettings};
use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Logs to stderr from now on. To be called once.
pub fn start(settings: &LogSettings) {
    // Below `info` other crates print what passes through them, secrets and payloads included.
    let discreet = filter_fn(|metadata| {
        metadata.target().starts_with("raptor") || *metadata.level() <= Level::INFO
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match settings.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let filter = EnvFilter::new(&settings.level).and(discreet);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}
