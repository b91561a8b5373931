//! The command `raptor`.

#![forbid(unsafe_code)]

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

use raptor::audit;
use raptor::config::{AuditLog, Config, Problem, Problems, Written};
use raptor::server::{self, Reloader, Server, StartError};
use raptor::webhooks::Archive;

use cli::{Command, Wish};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Command::given() {
        Command::Serve(settings) => serve(settings).await,
        Command::Check(settings) => check(settings),
        Command::Nodes(settings) => nodes(settings).await,
        Command::Trigger(event) => event.send().await.map(print),
        // It has a runtime of its own, on one thread.
        Command::Bench(bench) => tokio::task::block_in_place(|| bench.run()).map(print),
        Command::Webhooks(Ok(dir), wish) => wish.run(Archive::in_directory(&dir)).await.map(print),
        Command::Webhooks(Err(settings), wish) => webhooks(settings, wish).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // There is nobody left to tell if even this fails.
            let _ = writeln!(io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Result<Written, Problem>) -> Result<(), String> {
    let config = read(settings)?;
    let logs = cli::log::start(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{}: {}; {}", warning.site, warning.what, warning.mend);
    }
    let cannot_listen = |error| format!("cannot listen on {error}");
    let cannot_start = |error| match error {
        StartError::Listen(error) => cannot_listen(error),
        StartError::Tls(problem) => problem.to_string(),
        StartError::Webhooks(error) => error.to_string(),
        StartError::Bayeux(error) => error.to_string(),
    };
    // Asked for before anybody can know of the server, so that no signal ends it unprepared.
    let shutdown = shutdown_signal().map_err(|error| format!("cannot await signals: {error}"))?;
    let server = Server::start(config.clone()).await.map_err(cannot_start)?;
    // Before it is said that the server is there: a SIGHUP that nobody awaits ends the process.
    reload_on_hangup(server.reloader(), logs)
        .map_err(|error| format!("cannot await signals: {error}"))?;
    let address = server.address().map_err(cannot_listen)?;
    // With the audit log on standard output nothing else is there.
    let say = match config.log.audit {
        Some(AuditLog::Stdout) => |text| drop(writeln!(io::stderr(), "{text}")),
        _ => print,
    };
    say(cli::welcome::text(address, &config));
    if let Some(address) = server.tls_address().map_err(cannot_listen)? {
        say(format!("\nTLS is on https://{address}"));
    }
    if let Some(unix) = &config.server.unix {
        say(format!("\nListening on {}", unix.listen.value.display()));
    }
    if let Some(address) = server.metrics_address().map_err(cannot_listen)? {
        say(format!("\nMetrics are at http://{address}/metrics"));
    }
    audit::server("start");
    // Not on this thread: connections are accepted where they are served, which spares waking
    // another thread for each.
    let served = tokio::spawn(server.run_until(shutdown)).await;
    served.map_err(|error| format!("the server failed: {error}"))?;
    audit::server("stop");
    Ok(())
}

fn check(settings: Result<Written, Problem>) -> Result<(), String> {
    let config = read(settings)?;
    server::check_files(&config).map_err(|problems| problems.to_string())?;
    cli::log::check(&config.log)?;
    print(cli::welcome::summary(&config));
    Ok(())
}

async fn nodes(settings: Result<Written, Problem>) -> Result<(), String> {
    let config = read(settings)?;
    let redis = config
        .redis
        .ok_or("no Redis is configured: give --redis URL")?;
    print(cli::nodes::table(&redis).await?);
    Ok(())
}

async fn webhooks(settings: Result<Written, Problem>, wish: Wish) -> Result<(), String> {
    let config = read(settings)?;
    let archive = match (&config.redis, &config.webhooks.dir) {
        (Some(redis), _) => Archive::in_redis(redis).await,
        (None, Some(dir)) => Archive::in_directory(dir),
        (None, None) => {
            return Err("webhooks are kept in memory only: name a `dir` in [webhooks]".to_owned());
        }
    };
    wish.run(archive).await.map(print)
}

fn read(settings: Result<Written, Problem>) -> Result<Config, String> {
    let config = match settings {
        Ok(written) => Config::from_written(&written),
        Err(problem) => Err(Problems(vec![problem])),
    };
    config.map_err(|problems| problems.to_string())
}

/// A reader that has gone away is no reason to stop serving.
fn print(text: String) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Reads the configuration anew at each SIGHUP from now on.
#[cfg(unix)]
fn reload_on_hangup(reloader: Reloader, logs: cli::log::Logs) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // The same arguments and environment; only the file can say something else.
            let config = match Command::given() {
                Command::Serve(settings) => read(settings),
                _ => continue,
            };
            let reloaded = config.and_then(|config| {
                let new_logs = logs.prepare(&config.log)?;
                let waiting = reloader.reload(config)?;
                logs.take_over(new_logs);
                Ok(waiting)
            });
            match reloaded {
                Ok(waiting) => {
                    for what in waiting {
                        tracing::warn!("{what} changed too: that takes a restart");
                    }
                    tracing::info!("the configuration is reloaded");
                    audit::server("reload");
                }
                Err(problems) => {
                    tracing::error!(
                        "the new configuration is refused, the old one stays: {problems}"
                    );
                    audit::server("reload_refused");
                }
            }
        }
    });
    Ok(())
}

#[cfg(not(unix))]
fn reload_on_hangup(_: Reloader, _: cli::log::Logs) -> io::Result<()> {
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT from now on; a second one ends the process at once.
#[cfg(unix)]
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
            _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("a second signal: ending at once");
            std::process::exit(1);
        });
    })
}

/// Ends with the first Ctrl-C.
#[cfg(not(unix))]
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}
