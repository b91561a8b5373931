//! What the command line says: flags and environment variables, read but not judged.

mod bench;
pub mod log;
pub mod nodes;
mod trigger;
mod webhooks;
pub mod welcome;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use raptor::config::{Problem, Site, Sited, Written, WrittenFile};
use raptor::webhooks::State;

pub use bench::Bench;
pub use trigger::Trigger;
pub use webhooks::Wish;

/// What `raptor` is asked to do.
pub enum Command {
    Serve(Result<Written, Problem>),
    Check(Result<Written, Problem>),
    Trigger(Trigger),
    Nodes(Result<Written, Problem>),
    Bench(Bench),
    /// The directory as given, or else the configuration that names it.
    Webhooks(Result<PathBuf, Result<Written, Problem>>, Wish),
}

impl Command {
    /// Reads this process's arguments and environment. Ends the process with help, version or a
    /// usage error where the arguments ask for that.
    pub fn given() -> Self {
        Self::from_cli(Cli::parse(), variable)
    }

    fn from_cli(cli: Cli, variable: impl Fn(&str) -> Option<String>) -> Self {
        match cli.command.unwrap_or(CliCommand::Serve(cli.settings)) {
            CliCommand::Serve(settings) => Self::Serve(settings.written(variable)),
            CliCommand::Nodes(settings) => Self::Nodes(settings.written(variable)),
            CliCommand::Check(settings) => Self::Check(settings.written(variable)),
            CliCommand::Trigger(args) => Self::Trigger(Trigger {
                url: args
                    .url
                    .or_else(|| variable("RAPTOR_URL"))
                    .unwrap_or_else(|| trigger::DEVELOPMENT_URL.to_owned()),
                channels: [vec![args.channel], args.more_channels].concat(),
                event: args.event,
                data: args.data,
                socket_id: args.socket_id,
            }),
            CliCommand::Bench(args) => Self::Bench(args.bench(variable)),
            CliCommand::Webhooks(args) => {
                let store = match args.dir {
                    Some(dir) => Ok(PathBuf::from(dir)),
                    None => Err(Settings {
                        config: args.config,
                        redis: args.redis,
                        ..Settings::default()
                    }
                    .written(variable)),
                };
                Self::Webhooks(store, args.command.into_wish())
            }
        }
    }
}

/// An environment variable; an empty one counts as none.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

const EXAMPLES: &str = "\
Examples:
  raptor
      Serves the development app app-id / app-key / app-secret on 127.0.0.1:6001
      and prints what to paste into a page and into an application.

  raptor trigger my-channel my-event '{\"message\":\"hello\"}'
      Sends an event to everyone in my-channel.

  raptor check --config raptor.toml
      Says whether the file is valid, or what to change in which line.

  raptor --config raptor.toml --listen 0.0.0.0:6001
      Serves the apps of the file on every address of the machine.

  raptor --config raptor.toml --redis redis://127.0.0.1
      Is one of the nodes that share this Redis: clients of all see one room.

  RAPTOR_APP_SECRET=… raptor --listen 0.0.0.0:6001 --app-id 3 --app-key 278d425b
      Serves one app without a file. Other users of the machine can read the
      arguments of a process, but not its environment: put secrets there.

A flag beats its environment variable, which beats the file.";

/// Realtime messaging for your own machines: serves the clients and server libraries of Pusher
/// Channels, and the clients of Faye and CometD, unchanged and on the same channels.
///
/// Point a client at it with its host and port options, and an application with
/// PUSHER_URL=http://KEY:SECRET@HOST:PORT/apps/ID.
#[derive(Parser)]
#[command(name = "raptor", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Run the server (what `raptor` does without a command)
    ///
    /// Runs until SIGTERM or SIGINT, then asks every client to reconnect and ends. Logs go to
    /// stderr. The first line on stdout, "Raptor is listening on http://HOST:PORT", says that
    /// clients can connect.
    Serve(Settings),
    /// Say whether the configuration is valid, or everything that is wrong with it
    ///
    /// Takes the same flags and environment variables as `raptor serve`. The exit code is 0 for a
    /// valid configuration and 1 for any other.
    Check(Settings),
    /// List the nodes that share one Redis, as Redis knows them
    ///
    /// Takes the same flags and environment variables as `raptor serve`. The exit code is 1 if
    /// Redis cannot be reached, or if none is configured.
    Nodes(Settings),
    /// Send an event through the HTTP API of a running server
    ///
    /// Works against Raptor and against hosted Pusher. Prints the server's answer; the exit code
    /// is 1 if the server refuses the event or cannot be reached within 10 seconds.
    Trigger(TriggerArgs),
    /// Load a Pusher or Bayeux server, and tell its speed, latency, CPU time and memory
    ///
    /// Runs for `--secs` seconds with clients of its own and then prints a table; every event is
    /// numbered, so that lost, repeated and reordered ones are counted, and the exit code is 1 if
    /// there are any. Other machines than this one are loaded only with --remote: a load test
    /// disturbs everybody who uses the server.
    Bench(bench::BenchArgs),
    /// List, show and replay webhook deliveries and dead letters
    ///
    /// Reads the directory that the configuration names as `dir` in [webhooks], or the Redis of
    /// several nodes, beside the running servers or after them. A running server sends what is to
    /// be replayed within about a second, any other when it starts.
    Webhooks(WebhooksArgs),
}

#[derive(Args, Default)]
struct Settings {
    /// TOML file with apps, limits and everything else [env: RAPTOR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Where to listen; port 0 takes a free one [env: RAPTOR_LISTEN] [default: 127.0.0.1:6001]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Serve this app too, or give the app of this id in the file another key and secret
    /// [env: RAPTOR_APP_ID]
    #[arg(long, value_name = "ID")]
    app_id: Option<String>,
    /// The app's public key [env: RAPTOR_APP_KEY]
    #[arg(long, value_name = "KEY")]
    app_key: Option<String>,
    /// The app's secret; better given in the environment [env: RAPTOR_APP_SECRET]
    #[arg(long, value_name = "SECRET")]
    app_secret: Option<String>,
    /// Be one node of several that share this Redis; with a password better given in the
    /// environment [env: RAPTOR_REDIS]
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// What to log: off, error, warn, info, debug, trace, or a filter such as warn,raptor=debug
    /// [env: RAPTOR_LOG] [default: info]
    #[arg(long, value_name = "LEVEL-FILTER")]
    log: Option<String>,
    /// How to log: text, or json with one object a line [env: RAPTOR_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Args)]
struct WebhooksArgs {
    #[command(subcommand)]
    command: WebhooksCommand,
    /// TOML file of the server [env: RAPTOR_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<String>,
    /// The directory itself, in place of a configuration that names it
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<String>,
    /// The Redis of several nodes, in place of a configuration that names it [env: RAPTOR_REDIS]
    #[arg(long, value_name = "URL", global = true)]
    redis: Option<String>,
}

#[derive(Subcommand)]
enum WebhooksCommand {
    /// Print the newest deliveries, one a line
    List {
        /// Only those in this state
        #[arg(long)]
        state: Option<StateName>,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Print a delivery with its attempts, and its body if that was kept
    Show { id: String },
    /// Send deliveries again: with the same id and events, but a new time and signature
    Replay {
        #[arg(required_unless_present = "dead")]
        ids: Vec<String>,
        /// Every dead letter
        #[arg(long, conflicts_with = "ids")]
        dead: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum StateName {
    Pending,
    Delivered,
    Dead,
}

impl WebhooksCommand {
    fn into_wish(self) -> Wish {
        match self {
            Self::List { state, limit } => Wish::List {
                state: state.map(|state| match state {
                    StateName::Pending => State::Pending,
                    StateName::Delivered => State::Delivered,
                    StateName::Dead => State::Dead,
                }),
                deliveries_max: limit,
            },
            Self::Show { id } => Wish::Show(id),
            Self::Replay { dead: true, .. } => Wish::ReplayDead,
            Self::Replay { ids, .. } => Wish::Replay(ids),
        }
    }
}

#[derive(Args)]
struct TriggerArgs {
    /// The app to send to: http://KEY:SECRET@HOST:PORT/apps/ID [env: RAPTOR_URL] [default: the
    /// development app on 127.0.0.1:6001]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// One more channel to send the event to; may be repeated
    #[arg(long = "channel", value_name = "CHANNEL")]
    more_channels: Vec<String>,
    /// The connection that shall not receive the event
    #[arg(long, value_name = "ID")]
    socket_id: Option<String>,
    /// The channel to send the event to
    channel: String,
    /// The name of the event
    event: String,
    /// The event's data, usually JSON; "-" reads it from stdin up to its last newline
    #[arg(default_value = "{}")]
    data: String,
}

impl Settings {
    fn written(self, variable: impl Fn(&str) -> Option<String>) -> Result<Written, Problem> {
        let given = |flag: Option<String>, flag_name, variable_name| {
            let from = |site| move |value| Sited { value, site };
            let flag = flag.map(from(Site::Flag(flag_name)));
            flag.or_else(|| variable(variable_name).map(from(Site::Variable(variable_name))))
        };
        let path = given(self.config, "--config", "RAPTOR_CONFIG");
        Ok(Written {
            file: path.as_ref().map(WrittenFile::read).transpose()?,
            listen: given(self.listen, "--listen", "RAPTOR_LISTEN"),
            app_id: given(self.app_id, "--app-id", "RAPTOR_APP_ID"),
            app_key: given(self.app_key, "--app-key", "RAPTOR_APP_KEY"),
            app_secret: given(self.app_secret, "--app-secret", "RAPTOR_APP_SECRET"),
            redis: given(self.redis, "--redis", "RAPTOR_REDIS"),
            log_level: given(self.log, "--log", "RAPTOR_LOG"),
            log_format: given(self.log_format, "--log-format", "RAPTOR_LOG_FORMAT"),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let cli = Cli::try_parse_from([&["raptor"], arguments].concat());
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        };
        Command::from_cli(cli.unwrap_or_else(|error| panic!("{error}")), variable)
    }

    #[track_caller]
    fn served(arguments: &[&str], variables: &[(&str, &str)]) -> Written {
        match command(arguments, variables) {
            Command::Serve(written) => written.unwrap_or_else(|problem| panic!("{problem}")),
            _ => panic!("{arguments:?} is not to serve"),
        }
    }

    #[test]
    fn the_declaration_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        for arguments in [
            &["--listen", "[::1]:1"][..],
            &["serve", "--listen", "[::1]:1"],
        ] {
            let listen = served(arguments, &[]).listen.unwrap();
            assert_eq!(listen.value, "[::1]:1");
            assert_eq!(listen.site, Site::Flag("--listen"));
        }
        assert!(matches!(command(&["check"], &[]), Command::Check(Ok(_))));
    }

    #[test]
    fn a_flag_beats_its_variable() {
        let variables = [
            ("RAPTOR_LISTEN", "1"),
            ("RAPTOR_APP_ID", "2"),
            ("RAPTOR_APP_KEY", "3"),
            ("RAPTOR_APP_SECRET", "4"),
            ("RAPTOR_LOG", "5"),
            ("RAPTOR_LOG_FORMAT", "6"),
            ("RAPTOR_REDIS", "7"),
        ];
        let flags = [
            "--listen=a",
            "--app-id=b",
            "--app-key=c",
            "--app-secret=d",
            "--log=e",
            "--log-format=f",
            "--redis=g",
        ];
        let all = |written: Written| {
            [
                written.listen,
                written.app_id,
                written.app_key,
                written.app_secret,
                written.log_level,
                written.log_format,
                written.redis,
            ]
            .map(|sited| sited.map(|sited| format!("{} {}", sited.site, sited.value)))
        };
        let variables_only = all(served(&[], &variables));
        let both = all(served(&flags, &variables));
        for (nth, ((name, value), flag)) in variables.iter().zip(flags).enumerate() {
            assert_eq!(variables_only[nth], Some(format!("{name} {value}")));
            assert_eq!(both[nth], Some(flag.replace('=', " ")));
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem_of_its_flag_or_variable() {
        for (arguments, variables, site) in [
            (&["--config", "no/file"][..], &[][..], "--config"),
            (&[], &[("RAPTOR_CONFIG", "no/file")], "RAPTOR_CONFIG"),
        ] {
            let Command::Serve(Err(problem)) = command(arguments, variables) else {
                panic!("a file was read");
            };
            assert_eq!(problem.site.to_string(), site);
        }
    }

    #[test]
    fn trigger_takes_a_channel_an_event_and_perhaps_data() {
        let trigger = |arguments: &[&str], variables: &[(&str, &str)]| match command(
            &[&["trigger"], arguments].concat(),
            variables,
        ) {
            Command::Trigger(trigger) => trigger,
            _ => panic!("{arguments:?} is not to trigger"),
        };
        let short = trigger(&["room", "hello"], &[]);
        assert_eq!(short.url, trigger::DEVELOPMENT_URL);
        assert_eq!(short.channels, ["room"]);
        assert_eq!(short.event, "hello");
        assert_eq!(short.data, "{}");
        assert_eq!(short.socket_id, None);

        let long = trigger(
            &[
                "--channel=a",
                "room",
                "hello",
                "-",
                "--channel=b",
                "--socket-id=1.2",
                "--url=u",
            ],
            &[("RAPTOR_URL", "v")],
        );
        assert_eq!(long.url, "u");
        assert_eq!(long.channels, ["room", "a", "b"]);
        assert_eq!(long.data, "-");
        assert_eq!(long.socket_id.as_deref(), Some("1.2"));
        assert_eq!(trigger(&["a", "b"], &[("RAPTOR_URL", "v")]).url, "v");
    }
}
