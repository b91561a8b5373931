use std::collections::HashMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    channels: Vec<Row>,
    refused: Vec<RefusedRow>,
    without_bayeux_name: Vec<UnspellableRow>,
    patterns: Vec<PatternRow>,
}

#[derive(Deserialize)]
struct Row {
    pusher: String,
    typed: String,
    flat: String,
    kind: String,
}

#[derive(Deserialize)]
struct RefusedRow {
    style: String,
    bayeux: String,
    error: String,
    because: String,
}

#[derive(Deserialize)]
struct UnspellableRow {
    style: String,
    pusher: String,
}

#[derive(Deserialize)]
struct PatternRow {
    style: String,
    pattern: String,
    /// `public`, or what is signed.
    scope: Option<String>,
    error: Option<String>,
}

fn vectors() -> Vectors {
    let text = include_str!("../../../fixtures/bayeux/channel-mapping.json");
    serde_json::from_str(text).unwrap()
}

fn style(name: &str) -> Style {
    match name {
        "typed" => Style::Typed,
        "flat" => Style::Flat,
        _ => panic!("no style {name}"),
    }
}

fn key(text: &str) -> ChannelName {
    ChannelName::parse(text, KEY_BYTES_MAX).unwrap()
}

#[test]
fn every_row_of_the_tables_holds_both_ways() {
    let vectors = vectors();
    for row in &vectors.channels {
        for (name_of_style, name) in [("typed", &row.typed), ("flat", &row.flat)] {
            let style = style(name_of_style);
            let channel = key(&row.pusher);
            assert_eq!(
                to_bayeux(&channel, style).as_ref(),
                Some(name),
                "{}",
                row.pusher
            );
            let is_refused = vectors
                .refused
                .iter()
                .any(|refused| refused.style == name_of_style && refused.bayeux == *name);
            if !is_refused {
                assert_eq!(to_pusher(name, style), Ok(channel), "{name}");
            }
        }
    }
}

#[test]
fn the_key_of_every_row_has_the_rows_kind() {
    for row in vectors().channels {
        let channel = key(&row.pusher);
        let kind = match channel.kind() {
            ChannelKind::Public => "public",
            ChannelKind::Private => "private",
            ChannelKind::PrivateEncrypted => "encrypted",
            ChannelKind::Presence => "presence",
            ChannelKind::ServerToUser => "user",
            ChannelKind::Internal => "internal",
        };
        let cache = if channel.is_cached() { " cache" } else { "" };
        assert_eq!(format!("{kind}{cache}"), row.kind, "{}", row.pusher);
    }
}

#[test]
fn a_refused_name_gets_fayes_error() {
    for row in vectors().refused {
        let refusal = to_pusher(&row.bayeux, style(&row.style)).unwrap_err();
        let because = match refusal {
            Refusal::Malformed => "malformed",
            Refusal::Misspelt => "misspelt",
            Refusal::TooLong => "too long",
            Refusal::Reserved => "reserved",
            Refusal::LooksTyped => "looks typed",
            Refusal::NotForPatterns => "not for patterns",
        };
        assert_eq!(because, row.because, "{}", row.bayeux);
        assert_eq!(refusal.reason().of(row.bayeux).to_string(), row.error);
    }
}

#[test]
fn a_key_with_a_needless_escape_has_no_bayeux_name() {
    for row in vectors().without_bayeux_name {
        assert_eq!(
            to_bayeux(&key(&row.pusher), style(&row.style)),
            None,
            "{}",
            row.pusher
        );
    }
}

#[test]
fn what_the_server_keeps_for_itself_has_no_bayeux_name() {
    for internal in [ChannelName::signed_in("1"), ChannelName::watchers("1")] {
        assert_eq!(to_bayeux(&internal, Style::Typed), None);
        assert_eq!(to_bayeux(&internal, Style::Flat), None);
    }
    // The ids of users are no channel names and may hold anything.
    assert_eq!(
        to_bayeux(&ChannelName::server_to_user("a b"), Style::Typed),
        None
    );
}

#[test]
fn a_pattern_reaches_public_or_proven_private_channels() {
    for row in vectors().patterns {
        let pattern = Pattern::parse(&row.pattern).unwrap();
        let scope = Scope::of(&pattern, style(&row.style));
        let error = scope
            .clone()
            .err()
            .map(|r| r.reason().of(&row.pattern).to_string());
        assert_eq!(error, row.error, "{}", row.pattern);
        let signed_as = scope.ok().map(|scope| match scope {
            Scope::Public => "public".to_owned(),
            Scope::Private { signed_as } => signed_as,
        });
        assert_eq!(signed_as, row.scope, "{}", row.pattern);
    }
}

#[test]
fn an_app_may_have_no_types_at_all() {
    for (name, pusher) in [
        ("/room", "room"),
        ("/private/x", "private.x"),
        ("/private-x", "=;70rivate-x"),
        ("/presence-", "=;70resence-"),
        ("/private-encrypted-x/y", "=;70rivate-encrypted-x.y"),
        ("/public-x", "public-x"),
        ("/!~6Deta/x", "meta.x"),
    ] {
        assert_eq!(to_pusher(name, Style::Untyped), Ok(key(pusher)));
        assert_eq!(
            to_bayeux(&key(pusher), Style::Untyped).as_deref(),
            Some(name)
        );
        assert_eq!(key(pusher).kind(), ChannelKind::Public);
    }
}

#[test]
fn a_scope_covers_one_kind_alone() {
    let private = Scope::Private {
        signed_as: String::new(),
    };
    for (channel, public_covers, private_covers) in [
        ("room", true, false),
        ("cache-news", true, false),
        ("private-x", false, true),
        ("private-cache-x", false, true),
        ("private-encrypted-x", false, false),
        ("presence-x", false, false),
        ("#server-to-user-1", false, false),
    ] {
        let kind = key(channel).kind();
        assert_eq!(Scope::Public.covers(kind), public_covers, "{channel}");
        assert_eq!(private.covers(kind), private_covers, "{channel}");
    }
}

fn joined(fragments: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(fragments), 1..7).prop_map(|parts| parts.concat())
}

fn bayeux_name() -> impl Strategy<Value = String> {
    const FRAGMENTS: &[&str] = &[
        "/",
        "/",
        "/a",
        "b",
        "-",
        "_",
        "@",
        "!",
        "$",
        "(",
        ")",
        "~",
        "!~",
        "!~2C",
        "!~2E",
        "!~3B",
        "!~3D",
        "!~2c",
        "!~6D",
        "!~70",
        "!~73",
        "!~23",
        "2E",
        "70",
        "/private/",
        "/presence/",
        "/public/",
        "private",
        "presence",
        "public",
        "rivate-",
        "meta",
        "service",
        "p",
        "m",
        "s",
        "server-to-user-",
        "cache-",
        "encrypted-",
    ];
    joined(FRAGMENTS).prop_map(|rest| format!("/{}", rest.trim_start_matches('/')))
}

fn pusher_name() -> impl Strategy<Value = ChannelName> {
    const FRAGMENTS: &[&str] = &[
        ".",
        ".",
        "a",
        "b",
        "-",
        "_",
        "@",
        ",",
        ";",
        "=",
        "=;",
        "=;21",
        "=;24",
        "=;28",
        "=;29",
        "=;7E",
        "=;7e",
        "=;70",
        "21",
        "2C",
        "2E",
        "70",
        "private-",
        "presence-",
        "public-",
        "private",
        "presence",
        "public",
        "rivate-",
        "meta",
        "service",
        "p",
        "m",
        "s",
        "#server-to-user-",
        "cache-",
        "encrypted-",
    ];
    joined(FRAGMENTS).prop_filter_map("not a name", |text| {
        ChannelName::parse(&text, KEY_BYTES_MAX).ok()
    })
}

fn any_style() -> impl Strategy<Value = Style> {
    prop::sample::select(&Style::ALL[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_bayeux_name_comes_back_exactly(name in bayeux_name(), style in any_style()) {
        if let Ok(channel) = to_pusher(&name, style) {
            prop_assert_eq!(to_bayeux(&channel, style), Some(name));
        }
    }

    #[test]
    fn a_pusher_name_comes_back_exactly(channel in pusher_name(), style in any_style()) {
        let Some(name) = to_bayeux(&channel, style) else { return Ok(()) };
        prop_assert!(is_name(&name));
        prop_assert_eq!(Space::of(&name), Space::Open);
        match to_pusher(&name, style) {
            Ok(back) => prop_assert_eq!(back, channel),
            Err(refusal) => {
                prop_assert_eq!(refusal, Refusal::LooksTyped);
                prop_assert!(split_type(&name[1..], '-').is_some());
            }
        }
    }

    #[test]
    fn only_escapes_can_spoil_a_name(name in bayeux_name(), channel in pusher_name(), style in any_style()) {
        let may_be_typed = style != Style::Untyped || channel.kind() == ChannelKind::Public;
        if may_be_typed && !channel.as_str().contains("=;") {
            prop_assert!(to_bayeux(&channel, style).is_some());
        }
        if is_name(&name) && !name.contains("!~") {
            let mapped = to_pusher(&name, style);
            prop_assert!(!matches!(mapped, Err(Refusal::Misspelt | Refusal::Malformed)));
        }
    }

    #[test]
    fn in_typed_style_only_the_type_segment_makes_a_channel_private(name in bayeux_name()) {
        let Ok(channel) = to_pusher(&name, Style::Typed) else { return Ok(()) };
        let is_typed = |word: &str| {
            name.starts_with(&format!("/{word}/")) || name == format!("/{word}-")
        };
        let expected = if is_typed("private") {
            &[ChannelKind::Private, ChannelKind::PrivateEncrypted][..]
        } else if is_typed("presence") {
            &[ChannelKind::Presence]
        } else if name.starts_with("/!~23") {
            &[ChannelKind::ServerToUser]
        } else {
            &[ChannelKind::Public]
        };
        prop_assert!(expected.contains(&channel.kind()));
    }

    #[test]
    fn in_untyped_style_every_name_is_of_a_public_channel(name in bayeux_name(), channel in pusher_name()) {
        if let Ok(channel) = to_pusher(&name, Style::Untyped) {
            prop_assert!(matches!(channel.kind(), ChannelKind::Public | ChannelKind::ServerToUser));
        }
        // What is private for Pusher clients cannot be spelled, so it does not leak.
        if !matches!(channel.kind(), ChannelKind::Public | ChannelKind::ServerToUser) {
            prop_assert_eq!(to_bayeux(&channel, Style::Untyped), None);
        }
        if let Some(pattern) = Pattern::parse(&format!("{name}/**")) && let Ok(scope) = Scope::of(&pattern, Style::Untyped) {
            prop_assert_eq!(scope, Scope::Public);
        }
    }

    #[test]
    fn a_private_pattern_reaches_only_what_its_proof_names(
        prefix in bayeux_name(), rest in "[a-c!~2E.]{1,4}(/[a-c]{1,2})?", style in any_style(), deep: bool,
    ) {
        let stars = if deep { "/**" } else { "/*" };
        let Some(pattern) = Pattern::parse(&format!("{prefix}{stars}")) else { return Ok(()) };
        let Ok(Scope::Private { signed_as }) = Scope::of(&pattern, style) else { return Ok(()) };
        let name = format!("{prefix}/{rest}");
        if let Ok(channel) = to_pusher(&name, style) && pattern.matches(&name) {
            prop_assert!(channel.as_str().starts_with(signed_as.trim_end_matches('*')));
            prop_assert!(matches!(channel.kind(), ChannelKind::Private | ChannelKind::PrivateEncrypted));
        }
    }

    #[test]
    fn no_text_makes_the_mapping_panic(text: String, style in any_style()) {
        let _ = to_pusher(&text, style);
        let _ = to_bayeux(&ChannelName::server_to_user(&text), style);
        if let Some(pattern) = Pattern::parse(&text) {
            let _ = Scope::of(&pattern, style);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_two_names_share_a_channel(
        names in prop::collection::vec(bayeux_name(), 2..40),
        channels in prop::collection::vec(pusher_name(), 2..40),
        style in any_style(),
    ) {
        let mut name_of = HashMap::new();
        for name in names {
            if let Ok(channel) = to_pusher(&name, style) {
                let earlier = name_of.insert(channel, name.clone());
                prop_assert!(earlier.is_none_or(|earlier| earlier == name));
            }
        }
        let mut channel_of = HashMap::new();
        for channel in channels {
            if let Some(name) = to_bayeux(&channel, style) {
                let earlier = channel_of.insert(name, channel.clone());
                prop_assert!(earlier.is_none_or(|earlier| earlier == channel));
            }
        }
    }
}
