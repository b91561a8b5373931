use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config")
}

fn file(name: &str) -> WrittenFile {
    let text = fs::read_to_string(fixtures().join(name)).unwrap();
    let name = name.to_owned();
    WrittenFile { name, text }
}

fn inline(text: &str) -> Option<WrittenFile> {
    Some(WrittenFile {
        name: "raptor.toml".to_owned(),
        text: text.to_owned(),
    })
}

fn flag(name: &'static str, value: &str) -> Option<Sited<String>> {
    Some(Sited {
        value: value.to_owned(),
        site: Site::Flag(name),
    })
}

/// Flags that describe an app.
fn app_flags(id: &str, key: &str, secret: &str) -> Written {
    Written {
        app_id: flag("--app-id", id),
        app_key: flag("--app-key", key),
        app_secret: flag("--app-secret", secret),
        ..Written::default()
    }
}

#[track_caller]
fn valid(written: &Written) -> Config {
    Config::from_written(written).unwrap_or_else(|problems| panic!("{problems}"))
}

#[track_caller]
fn check_refused(written: &Written, expected: &[&str]) {
    let problems = Config::from_written(written)
        .err()
        .map(|problems| problems.0);
    let found = problems.unwrap_or_default();
    let found = found.iter().map(|p| format!("{}: {}", p.site, p.what));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

/// Each broken file stands beside the text that explains it.
#[test]
fn every_problem_of_a_file_is_named_with_its_line() {
    let mut checked = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.extension().is_none_or(|extension| extension != "toml") || name == "complete.toml" {
            continue;
        }
        let written = Written {
            file: Some(file(name)),
            ..Written::default()
        };
        let problems = Config::from_written(&written).expect_err(name);
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap_or_default();
        assert_eq!(format!("{problems}\n"), expected, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 17);
}

#[test]
fn without_configuration_there_is_the_development_app() {
    for written in [
        Written::default(),
        Written {
            file: inline(""),
            ..Written::default()
        },
    ] {
        let config = valid(&written);
        let development = Config::development();
        assert_eq!(config.server, development.server);
        assert_eq!(config.log, development.log);
        assert_eq!(
            format!("{:?}", config.apps),
            format!("{:?}", development.apps)
        );
        assert!(config.warnings.is_empty());
    }
}

#[test]
fn every_key_reaches_its_place() {
    let config = valid(&Written {
        file: Some(file("complete.toml")),
        ..Written::default()
    });
    let secs = Duration::from_secs;
    let path = |path: &str| Sited {
        value: path.into(),
        site: Site::Flag("anywhere"),
    };
    assert_eq!(
        config.server,
        ServerSettings {
            listen: "[::1]:7001".parse().unwrap(),
            proxy_protocol: true,
            tls: Some(TlsSettings {
                listen: path("").map(|_: PathBuf| "[::1]:7443".parse().unwrap()),
                proxy_protocol: true,
                certificate: path("/etc/raptor/chain.pem"),
                key: path("/etc/raptor/key.pem"),
                api_client_ca: Some(path("/etc/raptor/applications.pem")),
            }),
            unix: Some(UnixSettings {
                listen: path("/run/raptor/raptor.sock"),
                mode: 0o600,
                proxy_protocol: true,
            }),
            metrics_listen: Some("127.0.0.1:9601".parse().unwrap()),
            path_prefix: "/realtime/v1".to_owned(),
            activity_timeout: secs(60),
            pong_timeout: secs(20),
            handshake_timeout: secs(5),
            write_timeout: secs(15),
            shutdown_grace: secs(0),
            shutdown_spread: secs(40),
            assume_protocol: Some(7),
            request_body_bytes_max: 2_097_152,
            inbound_message_bytes_max: 32_768,
            address_limits: AddressLimits {
                connections_max: NonZeroUsize::new(50),
                refusals_per_sec_max: 300,
            },
            trusted_proxies: TrustedProxies(
                ["10.0.0.0/8", "::1"]
                    .map(|n| Network::parse(n).unwrap())
                    .to_vec()
            ),
            outbox_bytes_total_max: 100_000_000,
            outbox_bytes_max: 524_288,
            http_sessions_max: 5_000,
        }
    );
    assert_eq!(config.log.level, "warn,raptor=debug");
    assert_eq!(config.log.format, LogFormat::Json);
    let audit = AuditLog::File("/var/log/raptor/audit.jsonl".into());
    assert_eq!(config.log.audit, Some(audit));

    let [app, second] = &config.apps[..] else {
        panic!("{:?}", config.apps);
    };
    assert_eq!(app.id.as_str(), "3");
    assert_eq!(app.name.as_deref(), Some("demo"));
    assert!(!app.enabled);
    let keys: Vec<_> = app.keys.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(keys, ["old", "new"]);
    for key in &app.keys {
        let secret = Secret::new(&format!("{}-secret", key.key));
        assert_eq!(key.secret.sign(b""), secret.sign(b""));
    }
    assert_eq!(
        app.features,
        Features {
            client_events: true,
            subscription_count_events: true,
            watchlist_events: true,
            authorized_connections: Some(secs(10)),
            force_tls: true,
        }
    );
    assert_eq!(
        app.limits,
        Limits {
            connections_max: NonZeroUsize::new(1000),
            subscriptions_per_connection_max: NonZeroUsize::new(70),
            channel_name_chars_max: 200,
            event_name_chars_max: 100,
            event_data_bytes_max: 102_400,
            channels_per_event_max: 10,
            events_per_batch_max: 20,
            presence_members_max: 50,
            user_info_bytes_max: 2048,
            user_id_chars_max: 64,
            client_events_per_sec_max: 5,
            control_messages_per_sec_max: 200,
            backend_events_per_sec_max: NonZeroUsize::new(500),
            watchlist_ids_max: 30,
            cache_ttl: secs(600),
        }
    );
    let origins: Vec<_> = app.allowed_origins.iter().map(|o| o.to_string()).collect();
    assert_eq!(origins, ["https://a.example", "https://*.b.example"]);

    let redis = config.redis.as_ref().expect("a [redis] section");
    assert_eq!(redis.key_prefix, "mine");
    assert_eq!(redis.command_timeout, Duration::from_millis(500));
    assert_eq!(
        format!("{redis:?}"),
        r#"Single("redis.example", 7000) tls=false database=3"#
    );

    let webhooks = &config.webhooks;
    assert_eq!(
        webhooks.dir.as_deref(),
        Some(Path::new("/var/lib/raptor/webhooks"))
    );
    assert!(webhooks.fsync && webhooks.keep_bodies);
    assert_eq!(webhooks.store_bytes_max, 10_485_760);
    let [billing, local] = &webhooks.endpoints[..] else {
        panic!("{webhooks:?}");
    };
    assert_eq!(billing.name, "billing");
    assert_eq!(billing.url, "https://billing.example/pusher");
    assert_eq!(
        billing.events,
        ["channel_occupied", "channel_vacated", "client_event"]
    );
    assert_eq!(billing.channel_prefixes, ["private-", "presence-"]);
    assert_eq!(billing.headers["authorization"], "Bearer hush");
    assert_eq!(billing.batch_events_max, 500);
    assert_eq!(billing.timeout, secs(5));
    assert_eq!(billing.retry_window, secs(600));
    assert!(billing.allow_private_networks);
    assert_eq!(local.batch_events_max, 1);
    assert_eq!(local.name, "http://127.0.0.1:8000/hook");

    assert!(second.enabled);
    assert_eq!(second.features, Features::default());
    assert_eq!(second.limits, Limits::default());
    let text = file("complete.toml").text;
    let above = text
        .lines()
        .take_while(|line| *line != "id = \"second\"")
        .count();
    let warnings: Vec<_> = config.warnings.iter().map(|w| w.to_string()).collect();
    let expected = format!(
        "complete.toml:{}: the app id \"second\" is not a number\n    the server libraries for \
         Python and Go accept ids of digits only, such as 3",
        above + 1
    );
    assert_eq!(warnings, [expected]);
}

#[test]
fn flags_beat_the_file() {
    let config = valid(&Written {
        file: inline("listen = '127.0.0.1:1'\n[log]\nlevel = 'warn'\nformat = 'text'\n"),
        listen: flag("--listen", "127.0.0.1:2"),
        log_level: flag("--log", "debug"),
        log_format: flag("--log-format", "json"),
        ..Written::default()
    });
    assert_eq!(config.server.listen.port(), 2);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn the_app_of_the_flags_beats_the_credentials_of_the_same_id_or_is_one_more() {
    let in_file = "[[apps]]\nid = '3'\nkey = 'a'\nsecret = 'x'\nforce_tls = true\n";
    let config = valid(&Written {
        file: inline(in_file),
        ..app_flags("3", "b", "y")
    });
    assert_eq!(config.apps.len(), 1);
    assert_eq!(config.apps[0].keys[0].key, "b");
    assert_eq!(config.apps[0].keys.len(), 1);
    assert!(config.apps[0].features.force_tls);

    let config = valid(&Written {
        file: inline(in_file),
        ..app_flags("4", "b", "y")
    });
    let ids: Vec<_> = config.apps.iter().map(|app| app.id.as_str()).collect();
    assert_eq!(ids, ["3", "4"]);

    let alone = valid(&app_flags("4", "b", "y"));
    assert_eq!(alone.apps.len(), 1);
    assert_eq!(alone.apps[0].features, Features::default());
}

#[test]
fn problems_of_flags_and_variables_carry_their_names() {
    check_refused(
        &Written {
            listen: flag("--listen", "6001"),
            log_level: flag("RAPTOR_LOG", "debgu"),
            log_format: flag("--log-format", "yaml"),
            app_id: flag("--app-id", "3"),
            app_key: flag("RAPTOR_APP_KEY", "k"),
            ..Written::default()
        },
        &[
            "--app-id: an app's id, key and secret must be given together",
            "--listen: \"6001\" is not an IP address with a port",
            "--log-format: \"yaml\" is not a log format",
            "RAPTOR_APP_KEY: an app's id, key and secret must be given together",
            "RAPTOR_LOG: \"debgu\" is not a log level",
        ],
    );
    check_refused(
        &app_flags("a b", "", " "),
        &[
            "--app-id: this app id is empty or has a forbidden character",
            "--app-key: this key is empty or has a forbidden character",
            "--app-secret: this secret is empty or has white space at an end",
        ],
    );
}

#[test]
fn the_well_known_secret_is_for_loopback_only() {
    for (address, allowed) in [
        ("127.0.0.1:0", true),
        ("127.8.9.1:0", true),
        ("[::1]:0", true),
        ("[::ffff:127.0.0.1]:0", true),
        ("0.0.0.0:0", false),
        ("[::]:0", false),
        ("192.168.1.1:0", false),
        ("[::ffff:10.0.0.1]:0", false),
    ] {
        let listen = || flag("--listen", address);
        let default = Written {
            listen: listen(),
            ..Written::default()
        };
        let borrowed = Written {
            listen: listen(),
            ..app_flags("3", "my-key", "app-secret")
        };
        let own = Written {
            listen: listen(),
            ..app_flags("3", "my-key", "my-secret")
        };
        assert_eq!(Config::from_written(&default).is_ok(), allowed, "{address}");
        assert_eq!(
            Config::from_written(&borrowed).is_ok(),
            allowed,
            "{address}"
        );
        assert!(Config::from_written(&own).is_ok(), "{address}");
    }
}

#[test]
fn a_path_prefix_is_empty_or_starts_with_a_slash() {
    for (prefix, valid) in [
        ("", true),
        ("/a", true),
        ("/a/b-c_d.e~f", true),
        ("/", false),
        ("a", false),
        ("/a/", false),
        ("//a", false),
        ("/a/../b", false),
        ("/ä", false),
        ("/a%20", false),
        ("/a?b", false),
    ] {
        let file = inline(&format!("path_prefix = '{prefix}'"));
        let written = Written {
            file,
            ..Written::default()
        };
        assert_eq!(Config::from_written(&written).is_ok(), valid, "{prefix:?}");
    }
}

#[test]
fn a_log_filter_may_name_modules() {
    for level in [
        "off",
        "INFO",
        "warn,raptor=debug",
        "raptor::pusher=trace, info",
    ] {
        let config = valid(&Written {
            log_level: flag("--log", level),
            ..Written::default()
        });
        assert_eq!(config.log.level, level);
    }
}

/// Found by fuzzing: `tracing` makes a regular expression of what a field is to be.
#[test]
fn a_log_filter_names_no_spans_and_fields() {
    let dots = ".".repeat(70);
    for level in [
        "raptor[span]=debug".to_owned(),
        "[{user=ada}]=trace".to_owned(),
        format!("w[}}}}}}%}}{{bho.okt =uu_uuu{dots}uuu0uuuu;_ = {{ ub}}}}%}}{{iholasps"),
    ] {
        let written = Written {
            log_level: flag("--log", &level),
            ..Written::default()
        };
        assert!(Config::from_written(&written).is_err(), "{level}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_whoever_named_it() {
    let path = flag("--config", "no/such/file.toml").unwrap();
    let problem = WrittenFile::read(&path).err().unwrap();
    assert_eq!(problem.site, Site::Flag("--config"));
    assert!(problem.what.contains("no/such/file.toml"), "{problem}");
}

#[test]
fn no_problem_and_no_debug_output_shows_a_key_or_a_secret() {
    let config = valid(&app_flags("3", "key", "hush-hush"));
    assert!(!format!("{config:?}").contains("hush-hush"));

    let problems = Config::from_written(&Written {
        file: inline(
            "[[apps]]\nid = '1'\nkey = 'hush:hush'\nsecret = 'hush-hush '\nkeys = ['hush-hush']\n\
             [[apps]]\nid = '2'\nkey = 'hush-hush'\nsecret = [\"hush-hush\"]\n\
             [[apps]]\nid = '4'\nkey = 'hush-hush'\nsecret = 'hush-hush'\n",
        ),
        ..app_flags("5", "hush-hush", "\nhush-hush")
    });
    let shown = problems.unwrap_err().to_string();
    assert!(!shown.contains("hush"), "{shown}");

    let written = Written {
        file: inline(
            "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 's'\n[[apps.webhooks]]\n\
             url = 'http://a.example/?hush'\nheaders = { A = 'hush' }\n",
        ),
        ..Written::default()
    };
    let shown = format!("{:?}", valid(&written));
    assert!(!shown.contains("hush"), "{shown}");

    let unclosed = Config::from_written(&Written {
        file: inline("[[apps]]\nsecret = \"hush-hush\nkey = hush-hush\n"),
        ..Written::default()
    });
    let shown = unclosed.unwrap_err().to_string();
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn an_apps_bayeux_table_says_where_and_for_whom() {
    use crate::bayeux::mapping::Style;
    use crate::bayeux::permission::Matter;
    use crate::bayeux::settings::{ClientPublish, EventIn, Limits, Wildcards};

    let written = Written {
        file: inline(
            r#"
            [[apps]]
            id = "1"
            key = "k"
            secret = "s"
            [apps.bayeux]
            mounts = ["/faye/", "/", "/a/b"]
            style = "untyped"
            event_in = "data"
            jwt_secret = "j"
            jwt_exempt = ["/open/**", "/lobby"]
            inactivity_secs = 600
            client_publish = "none"
            wildcards = "all"
            forward_ext = false
            forward_unknown_members = true
            browser_polls_max = 4
            webhook = { url = "http://h/?hush", about = ["publish"], cache_secs = 7 }
            publish_tokens = [{ key = "password", token = "p" }]
            danthes = { secret = "d", expiration_secs = 3600 }
            hold_secs = 60
            queue_messages_max = 7
            [[apps]]
            id = "2"
            key = "l"
            secret = "s"
            "#,
        ),
        ..Written::default()
    };
    let config = valid(&written);
    let (app_id, settings) = &config.bayeux[0];
    assert_eq!(app_id.as_str(), "1");
    assert_eq!(settings.mounts, ["/faye", "", "/a/b"]);
    assert_eq!(settings.style, Style::Untyped);
    assert_eq!(settings.event_in, EventIn::Data);
    assert_eq!(settings.jwt_exempt.len(), 2);
    assert_eq!(settings.client_publish, ClientPublish::Nobody);
    assert_eq!(settings.wildcards, Wildcards::All);
    assert!(!settings.forward_ext && settings.forward_unknown_members);
    assert_eq!(settings.browser_polls_max, Some(4));
    let permission = settings.permission.as_ref().unwrap();
    assert_eq!(permission.about, [Matter::Publish]);
    assert_eq!(permission.headers, ["authorization", "cookie", "origin"]);
    assert_eq!(permission.cache, Duration::from_secs(7));
    assert!(settings.is_proof("password") && settings.is_proof("danthes_token"));
    let signed = settings.signed_channels.as_ref().unwrap();
    assert_eq!(signed.expiration_secs, Some(3600));
    let expected = Limits {
        hold: Duration::from_secs(60),
        session_lifetime: Duration::from_secs(120),
        queue_messages_max: 7,
        inactivity: Some(Duration::from_secs(600)),
        ..Limits::default()
    };
    assert_eq!(settings.limits, expected);

    let (_, unmentioned) = &config.bayeux[1];
    assert!(unmentioned.mounts.is_empty());
    assert_eq!(unmentioned.client_publish, ClientPublish::Token);
    let shown = format!("{settings:?}");
    assert!(
        !shown.contains("\"p\"") && !shown.contains("\"d\"") && !shown.contains("hush"),
        "{shown}"
    );
}
