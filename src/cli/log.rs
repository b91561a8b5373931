use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use raptor::audit;
use raptor::config::{AuditLog, LogFormat, LogSettings};
use tracing::{Dispatch, Level};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// What can be changed about the logs of a running program.
pub struct Logs {
    filter: reload::Handle<Targets, Registry>,
    audit: Option<AuditFile>,
}

/// Logs to stderr from now on, and audits to where the settings say. To be called once.
pub fn start(settings: &LogSettings) -> Result<Logs, String> {
    let (dispatch, logs) = prepare(settings)?;
    dispatch.init();
    Ok(logs)
}

fn prepare(settings: &LogSettings) -> Result<(Dispatch, Logs), String> {
    // Below `info` other crates print what passes through them, secrets and payloads included.
    let discreet = filter_fn(|metadata| {
        let is_ours = metadata.target().starts_with("raptor");
        metadata.target() != audit::TARGET && (is_ours || *metadata.level() <= Level::INFO)
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match settings.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let (level, filter) = reload::Layer::new(filter(settings));
    let file = match &settings.audit {
        Some(AuditLog::File(path)) => Some(AuditFile::open(path)?),
        Some(AuditLog::Stdout) | None => None,
    };
    let audits = settings.audit.as_ref().map(|_| {
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let lines = lines.with_level(false).with_target(false);
        let lines = match file.clone() {
            Some(file) => lines.with_writer(move || file.clone()).boxed(),
            None => lines.with_writer(io::stdout).boxed(),
        };
        lines.with_filter(filter_fn(|metadata| metadata.target() == audit::TARGET))
    });
    let registry = tracing_subscriber::registry().with(lines.with_filter(level.and(discreet)));
    // A layer that is `None` would want everything, so that each line that nobody reads was made.
    let dispatch = match audits {
        Some(audits) => registry.with(audits).into(),
        None => registry.into(),
    };
    let logs = Logs {
        filter,
        audit: file,
    };
    Ok((dispatch, logs))
}

/// The level is one, or the configuration would have been refused.
fn filter(settings: &LogSettings) -> Targets {
    (settings.targets()).unwrap_or_else(|_| Targets::new().with_default(Level::INFO))
}

impl Logs {
    /// A new level, and the audit log opened anew: somebody may have moved it away.
    pub fn prepare(&self, settings: &LogSettings) -> Result<Prepared, String> {
        Ok(Prepared {
            filter: filter(settings),
            audit: (self.audit.as_ref().map(|audit| open(&audit.path))).transpose()?,
        })
    }

    pub fn take_over(&self, prepared: Prepared) {
        // It fails only where nobody logs any more.
        let _ = self.filter.reload(prepared.filter);
        if let (Some(audit), Some(file)) = (&self.audit, prepared.audit) {
            audit.replace(file);
        }
    }
}

/// What [`Logs`] can take over.
pub struct Prepared {
    filter: Targets,
    audit: Option<File>,
}

/// Whether the audit log can be written, without leaving a new one behind.
pub fn check(settings: &LogSettings) -> Result<(), String> {
    let Some(AuditLog::File(path)) = &settings.audit else {
        return Ok(());
    };
    let is_new = !path.exists();
    open(path)?;
    if is_new {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Written line by line, each as a whole.
#[derive(Clone)]
struct AuditFile {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl AuditFile {
    fn open(path: &Path) -> Result<Self, String> {
        let file = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(Mutex::new(file)),
        })
    }

    fn replace(&self, file: File) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| format!("cannot write the audit log {}: {error}", path.display()))
}

impl Write for AuditFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::dispatcher::with_default;
    use tracing::enabled;

    #[test]
    fn what_nobody_reads_is_not_made() {
        for (audit_log, is_audited) in [(None, false), (Some(AuditLog::Stdout), true)] {
            let settings = LogSettings {
                audit: audit_log,
                ..LogSettings::default()
            };
            let (dispatch, _logs) = prepare(&settings).unwrap();
            with_default(&dispatch, || {
                assert!(enabled!(target: "raptor::server", Level::INFO));
                assert!(!enabled!(target: "raptor::facts", Level::DEBUG));
                assert_eq!(enabled!(target: audit::TARGET, Level::INFO), is_audited);
            });
        }
    }
}
