//! What Bayeux clients may do, and what they share with Pusher clients (`bayeux.md` 2, 5, 8),
//! against a real server.

mod support;

use std::time::Duration;

use raptor::bayeux::authorise::{ExtToken, PublishTokens, Token};
use raptor::bayeux::settings::{ClientPublish, Wildcards};
use serde_json::{Value, json};
use support::*;

fn sign(text: &str) -> String {
    let signature = raptor::auth::Secret::new("app-secret").sign(text.as_bytes());
    format!("app-key:{signature}")
}

fn token(key: &str, token: &str) -> ExtToken {
    ExtToken {
        key: key.to_owned(),
        token: Token::new(token),
    }
}

async fn pusher_subscribe(pusher: &mut Socket, channel: &str) {
    let data = json!({ "channel": channel });
    pusher
        .send(json!({"event": "pusher:subscribe", "data": data}))
        .await;
    let answer = pusher.next().await;
    assert_eq!(
        answer["event"], "pusher_internal:subscription_succeeded",
        "{answer}"
    );
    let counted = pusher.next().await;
    assert_eq!(counted["event"], "pusher_internal:subscription_count");
}

#[tokio::test]
async fn both_protocols_share_a_channel() {
    let server = serve().await;
    let session = server.session().await;
    let mut pusher = server.pusher().await;
    pusher_subscribe(&mut pusher, "chat.1").await;
    session.subscribe("/chat/1").await;
    let count = pusher.next().await;
    assert_eq!(count["data"], r#"{"subscription_count":2}"#);

    let reply = session.publish("/chat/1", json!({"a": "x"})).await;
    assert_eq!(
        reply,
        json!({"clientId": session.id, "channel": "/chat/1", "successful": true})
    );
    let seen = pusher.next().await;
    assert_eq!(seen["event"], "client-message");
    assert_eq!(seen["data"], r#"{"a":"x"}"#);
    assert_eq!(
        session.poll(0).await,
        [json!({"channel": "/chat/1", "data": {"a": "x"}})]
    );
}

#[tokio::test]
async fn nothing_of_a_publisher_but_its_data_and_harmless_ext_is_delivered() {
    let server = serve_with(|bayeux, _| {
        bayeux.publish_tokens = PublishTokens(vec![token("password", "p")]);
    })
    .await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    let forged = json!({"channel": "/foo", "data": 1, "id": "1", "clientId": "stranger",
        "advice": {"reconnect": "none"}, "successful": false, "error": "e", "subscription": "/x",
        "connectionType": "x", "other": 1,
        "ext": {"password": "p", "mine": [1], "user_id": "ann", "event": "e", "ack": 3}});
    assert_eq!(server.ask(forged).await["successful"], true);
    let expected = json!({"channel": "/foo", "data": 1, "ext": {"event": "e", "mine": [1]}});
    assert_eq!(session.poll(0).await, [expected]);
}

#[tokio::test]
async fn who_may_publish_is_the_apps_policy() {
    for (policy, without, with) in [
        (ClientPublish::Open, Value::Null, Value::Null),
        (
            ClientPublish::Token,
            json!("403:/foo:Password required"),
            Value::Null,
        ),
        (
            ClientPublish::Nobody,
            json!("403:/foo:Forbidden channel"),
            Value::Null,
        ),
    ] {
        let server = serve_with(|bayeux, _| {
            bayeux.client_publish = policy;
            bayeux.publish_tokens = PublishTokens(vec![token("password", "p")]);
        })
        .await;
        let publish = async |ext: Value| {
            let message = json!({"channel": "/foo", "data": 1, "ext": ext});
            server.ask(message).await["error"].clone()
        };
        assert_eq!(publish(json!({})).await, without, "{policy:?}");
        assert_eq!(
            publish(json!({"password": "q"})).await,
            without,
            "{policy:?}"
        );
        assert_eq!(publish(json!({"password": "p"})).await, with, "{policy:?}");
    }
}

#[tokio::test]
async fn trusted_publishers_are_told_from_clients() {
    let server = serve_with(|bayeux, _| {
        bayeux.publish_tokens = PublishTokens(vec![token("password", "p")]);
    })
    .await;
    let mut pusher = server.pusher().await;
    pusher_subscribe(&mut pusher, "foo").await;
    for (ext, event) in [
        (json!({}), "client-message"),
        (json!({"event": "typing"}), "client-typing"),
        (json!({"password": "p"}), "message"),
        (json!({"password": "p", "event": "order"}), "order"),
    ] {
        server
            .ask(json!({"channel": "/foo", "data": 1, "ext": ext}))
            .await;
        assert_eq!(pusher.next().await["event"], event);
    }
    let reserved = json!({"channel": "/foo", "data": 1,
        "ext": {"password": "p", "event": "pusher:error"}});
    assert_eq!(
        server.ask(reserved).await["error"],
        "400:/foo:Invalid event name"
    );
}

#[tokio::test]
async fn a_private_channel_needs_the_applications_signature() {
    let server = serve().await;
    let session = server.session().await;
    let other = server.session().await;
    let reply = session.subscribe("/private/room").await;
    assert_eq!(reply["error"], "403:/private/room:Authentication required");
    let others = other.signed("private-room", None);
    let reply = session.subscribe_with("/private/room", others).await;
    assert_eq!(reply["error"], "403:/private/room:Invalid signature");
    let proof = session.signed("private-room", None);
    let reply = session.subscribe_with("/private/room", proof).await;
    assert_eq!(reply["successful"], true, "{reply}");

    // Client events go by Pusher's rules: from subscribers alone.
    let reply = other.publish("/private/room", json!(1)).await;
    assert_eq!(reply["error"], "403:/private/room:Authentication required");
    assert_eq!(
        session.publish("/private/room", json!(2)).await["successful"],
        true
    );
    assert_eq!(
        session.poll(0).await,
        [json!({"channel": "/private/room", "data": 2})]
    );

    // Each element of an array by its own name.
    let both = json!(["/private/a", "/private/b"]);
    let auth = json!({"/private/a": session.signed("private-a", None),
        "/private/b": session.signed("private-b", None)});
    let reply = session.subscribe_with(both, json!({ "auth": auth })).await;
    assert_eq!(reply["successful"], true, "{reply}");
}

#[tokio::test]
async fn an_array_is_subscribed_to_as_a_whole_or_not_at_all() {
    let server = serve().await;
    let session = server.session().await;
    let reply = session.subscribe(json!(["/a", "/meta/x", "/b"])).await;
    assert_eq!(reply["error"], "403:/meta/x:Forbidden channel");
    assert_eq!(reply["subscription"], json!(["/a", "/meta/x", "/b"]));
    session.publish("/a", json!(1)).await;
    assert_eq!(session.poll(0).await, [0; 0]);
    let reply = session.subscribe(json!(["/a", "/b", "/a"])).await;
    assert_eq!(reply["successful"], true);
    session.publish("/a", json!(2)).await;
    let unsubscribe = json!({"channel": "/meta/unsubscribe", "clientId": session.id,
        "subscription": "/a"});
    assert_eq!(server.ask(unsubscribe).await["successful"], true);
    session.publish("/a", json!(3)).await;
    assert_eq!(session.poll(0).await, [json!({"channel": "/a", "data": 2})]);
}

#[tokio::test]
async fn a_pattern_never_shows_what_is_not_public() {
    let server = serve().await;
    let (watcher, member) = (server.session().await, server.session().await);
    for pattern in ["/**", "/*", "/a/**", "/a/*"] {
        assert_eq!(watcher.subscribe(pattern).await["successful"], true);
    }
    for refused in [
        "/presence/*",
        "/private/encrypted-x/*",
        "/service/**",
        "/meta/*",
    ] {
        let reply = watcher.subscribe(refused).await;
        assert_eq!(reply["error"], format!("403:{refused}:Forbidden channel"));
    }
    let reply = watcher.subscribe("/private/**").await;
    assert_eq!(reply["error"], "403:/private/**:Authentication required");

    let proof = member.signed("private-a.b", None);
    member.subscribe_with("/private/a/b", proof).await;
    member.publish("/private/a/b", json!("secret")).await;
    member.publish("/service/x", json!("unheard")).await;
    member.publish("/a/b", json!("once")).await;
    member.publish("/c", json!("top")).await;
    let seen = watcher.poll(0).await;
    let expected = [
        json!({"channel": "/a/b", "data": "once"}),
        json!({"channel": "/c", "data": "top"}),
    ];
    assert_eq!(seen, expected);

    // With a signature for the pattern itself.
    let proof = watcher.signed("private-a.*", None);
    let reply = watcher.subscribe_with("/private/a/*", proof).await;
    assert_eq!(reply["successful"], true, "{reply}");
    member.publish("/private/a/b", json!("now")).await;
    assert_eq!(
        watcher.poll(0).await,
        [json!({"channel": "/private/a/b", "data": "now"})]
    );
}

#[tokio::test]
async fn an_app_may_switch_patterns_off() {
    let server = serve_with(|bayeux, _| bayeux.wildcards = Wildcards::Off).await;
    let reply = server.session().await.subscribe("/a/*").await;
    assert_eq!(reply["error"], "403:/a/*:Forbidden channel");
}

#[tokio::test]
async fn presence_is_one_roster_for_both_protocols() {
    let server = serve().await;
    let session = server.session().await;
    let mut pusher = server.websocket("/app/app-key?protocol=7").await;
    let greeting: Value =
        serde_json::from_str(pusher.next().await["data"].as_str().unwrap()).unwrap();
    let socket_id = greeting["socket_id"].as_str().unwrap();
    let data = r#"{"user_id":"10","user_info":{"name":"Ann"}}"#;
    let auth = sign(&format!("{socket_id}:presence-room:{data}"));
    let subscribe = json!({"channel": "presence-room", "auth": auth, "channel_data": data});
    pusher
        .send(json!({"event": "pusher:subscribe", "data": subscribe}))
        .await;
    pusher.next().await;

    let reply = session.subscribe("/service/presence/room").await;
    assert_eq!(
        reply["error"],
        "403:/service/presence/room:Authentication required"
    );
    let bo = r#"{"user_id":"11"}"#;
    let proof = session.signed("presence-room", Some(bo));
    let reply = session.subscribe_with("/presence/room", proof).await;
    let roster = json!({"count": 2, "ids": ["10", "11"],
        "hash": {"10": {"name": "Ann"}, "11": null}});
    assert_eq!(reply["ext"]["presence"], roster, "{reply}");
    assert_eq!(pusher.next().await["event"], "pusher_internal:member_added");
    session.subscribe("/service/presence/room").await;
    let mut listed = roster.clone();
    listed["event"] = json!("list");
    let list = json!({"channel": "/service/presence/room", "data": listed});
    for _ in 0..2 {
        assert_eq!(session.poll(0).await, std::slice::from_ref(&list));
        session.publish("/service/presence/room", json!({})).await;
    }
    session.poll(0).await;

    // The same user's second session makes no event; a third user makes one of each.
    let again = server.session().await;
    let proof = again.signed("presence-room", Some(bo));
    again.subscribe_with("/presence/room", proof).await;
    let third = server.session().await;
    let proof = third.signed(
        "presence-room",
        Some(r#"{"user_id":"12","user_info":{"n":1}}"#),
    );
    third.subscribe_with("/presence/room", proof).await;
    for session in [&again, &third] {
        let goodbye = json!({"channel": "/meta/disconnect", "clientId": session.id});
        assert_eq!(server.ask(goodbye).await["successful"], true);
    }
    let change = |data: Value| json!({"channel": "/service/presence/room", "data": data});
    let join = json!({"event": "join", "user_id": "12", "user_info": {"n": 1}, "count": 3});
    let leave = json!({"event": "leave", "user_id": "12", "count": 2});
    assert_eq!(session.poll(0).await, [change(join), change(leave)]);
    drop(pusher);
    let leave = json!({"event": "leave", "user_id": "10", "count": 1});
    assert_eq!(session.poll(4000).await, [change(leave)]);
}

#[tokio::test]
async fn a_user_whose_client_vanished_leaves_in_time_and_may_come_back() {
    let server = serve_with(|bayeux, _| {
        bayeux.limits.hold = Duration::from_millis(200);
        bayeux.limits.presence_grace = Duration::from_millis(100);
    })
    .await;
    let join = async |user: &str| {
        let session = server.session().await;
        let data = format!(r#"{{"user_id":"{user}"}}"#);
        let proof = session.signed("presence-room", Some(&data));
        let reply = session.subscribe_with("/presence/room", proof).await;
        assert_eq!(reply["successful"], true, "{reply}");
        session
    };
    let (watcher, vanishing) = (join("w").await, join("v").await);
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.extend(watcher.poll(200).await);
    }
    let events = |seen: &[Value]| {
        let events = seen.iter().map(|message| message["data"]["event"].clone());
        events.collect::<Vec<_>>()
    };
    assert_eq!(events(&seen), ["join", "leave"]);
    let list = vanishing.poll(0).await;
    assert_eq!(list[0]["data"]["ids"], json!(["v", "w"]));
    assert_eq!(events(&watcher.poll(200).await), ["join"]);
}

#[tokio::test]
async fn a_user_who_subscribes_after_a_silence_is_there_once() {
    let server = serve_with(|bayeux, _| {
        bayeux.limits.hold = Duration::from_millis(300);
        bayeux.limits.presence_grace = Duration::from_millis(500);
    })
    .await;
    let (watcher, silent) = (server.session().await, server.session().await);
    let proof = watcher.signed("presence-room", Some(r#"{"user_id":"w"}"#));
    watcher.subscribe_with("/presence/room", proof).await;
    for _ in 0..8 {
        assert_eq!(watcher.poll(300).await, [] as [Value; 0]);
    }
    let proof = silent.signed("presence-room", Some(r#"{"user_id":"s"}"#));
    let reply = silent.subscribe_with("/presence/room", proof).await;
    assert_eq!(reply["ext"]["presence"]["count"], 2, "{reply}");
    silent.poll(0).await;
    let goodbye = json!({"channel": "/meta/disconnect", "clientId": silent.id});
    server.ask(goodbye).await;
    let mut seen = watcher.poll(300).await;
    seen.extend(watcher.poll(300).await);
    let count = &seen.last().unwrap()["data"];
    assert_eq!(
        *count,
        json!({"event": "leave", "user_id": "s", "count": 1})
    );
    assert_eq!(seen.len() % 2, 0, "as many leaves as joins: {seen:?}");
}

#[tokio::test]
async fn a_user_signs_in_and_receives_what_is_sent_to_it() {
    let server = serve().await;
    let session = server.session().await;
    let reply = session.subscribe("/service/user").await;
    assert_eq!(reply["error"], "403:/service/user:Authentication required");
    let user_data = r#"{"id":"12345","watchlist":["77"]}"#;
    let auth = sign(&format!("{}::user::{user_data}", session.socket_id));
    let reply = session
        .publish(
            "/service/user",
            json!({"auth": "app-key:bad", "user_data": user_data}),
        )
        .await;
    assert_eq!(reply["error"], "403:/service/user:Invalid signature");
    let reply = session
        .publish(
            "/service/user",
            json!({"auth": auth, "user_data": user_data}),
        )
        .await;
    assert_eq!(reply["successful"], true);
    assert_eq!(session.subscribe("/service/user").await["successful"], true);
    let offline = session.poll(0).await;
    assert_eq!(
        offline[0]["data"]["events"][0],
        json!({"name": "offline", "user_ids": ["77"]})
    );

    let friend = server.session().await;
    let friend_data = r#"{"id":"77"}"#;
    let auth = sign(&format!("{}::user::{friend_data}", friend.socket_id));
    (friend.publish(
        "/service/user",
        json!({"auth": auth, "user_data": friend_data}),
    ))
    .await;
    let online = session.poll(0).await;
    assert_eq!(
        online[0]["data"]["events"][0],
        json!({"name": "online", "user_ids": ["77"]})
    );

    let body = r##"{"name":"greeting","channels":["#server-to-user-12345"],"data":"hi"}"##;
    let answer = trigger(&server, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let expected = json!({"channel": "/service/user", "data": "hi", "ext": {"event": "greeting"}});
    assert_eq!(session.poll(0).await, [expected]);
    let reply = friend.publish("/!~23server-to-user-12345", json!(1)).await;
    assert_eq!(
        reply["error"],
        "403:/!~23server-to-user-12345:Forbidden channel"
    );
}

#[tokio::test]
async fn a_cache_channel_gives_its_last_event_or_says_that_there_is_none() {
    let server = serve().await;
    let session = server.session().await;
    let reply = session.subscribe("/cache-news").await;
    assert_eq!(reply["ext"], json!({"cache": "miss"}));
    trigger(
        &server,
        r#"{"name":"message","channels":["cache-news"],"data":"{\"a\":1}"}"#,
    )
    .await;
    let late = server.session().await;
    assert_eq!(late.subscribe("/cache-news").await["ext"], Value::Null);
    let cached = json!({"channel": "/cache-news", "data": {"a": 1}, "ext": {"cached": true}});
    assert_eq!(late.poll(0).await, [cached]);
    assert_eq!(
        session.poll(0).await,
        [json!({"channel": "/cache-news", "data": {"a": 1}})]
    );
}

#[tokio::test]
async fn a_trigger_leaves_out_the_session_whose_socket_id_it_names() {
    let server = serve().await;
    let (one, two) = (server.session().await, server.session().await);
    for session in [&one, &two] {
        session.subscribe("/foo").await;
    }
    let body = json!({"name": "new-msg", "channels": ["foo"], "data": "x",
        "socket_id": one.socket_id});
    assert_eq!(trigger(&server, &body.to_string()).await.status, 200);
    assert_eq!(one.poll(0).await, [0; 0]);
    let expected = json!({"channel": "/foo", "data": "x", "ext": {"event": "new-msg"}});
    assert_eq!(two.poll(0).await, [expected]);
}

#[tokio::test]
async fn a_session_has_its_limits() {
    let server = serve_with(|bayeux, app| {
        bayeux.limits.subscriptions_per_session_max = 3;
        bayeux.limits.data_bytes_max = 10;
        bayeux.limits.sessions_max = 2;
        app.limits.client_events_per_sec_max = 2;
        bayeux.handshake_tokens = Vec::new();
    })
    .await;
    let session = server.session().await;
    let reply = session.subscribe(json!(["/a", "/b", "/c/*", "/d"])).await;
    assert_eq!(reply["error"], "429::Too many requests");
    assert_eq!(
        session.subscribe(json!(["/a", "/b"])).await["successful"],
        true
    );
    let reply = session.publish("/a", json!("0123456789")).await;
    assert_eq!(reply["error"], "413:/a:Message too large");
    let proof = session.signed("private-a", None);
    session.subscribe_with("/private/a", proof).await;
    for error in [
        Value::Null,
        Value::Null,
        json!("429:/private/a:Too many requests"),
    ] {
        assert_eq!(
            session.publish("/private/a", json!(1)).await["error"],
            error
        );
    }
    server.session().await;
    let handshake = json!({"channel": "/meta/handshake", "version": "1.0",
        "supportedConnectionTypes": ["long-polling"]});
    let reply = server.ask(handshake).await;
    assert_eq!(reply["error"], "429::Too many requests");
    assert_eq!(
        reply["advice"],
        json!({"reconnect": "handshake", "interval": 10000})
    );
}

#[tokio::test]
async fn a_denied_handshake_does_not_come_back() {
    let server = serve_with(|bayeux, _| bayeux.handshake_tokens = vec![token("key", "k")]).await;
    let handshake = |ext: Value| {
        json!({"channel": "/meta/handshake", "version": "1.0", "ext": ext,
            "supportedConnectionTypes": ["long-polling"]})
    };
    let reply = server.ask(handshake(json!({"key": "x"}))).await;
    assert_eq!(reply["error"], "403::Handshake denied");
    assert_eq!(reply["advice"], json!({"reconnect": "none"}));
    let reply = server.ask(handshake(json!({"key": "k"}))).await;
    assert_eq!(reply["successful"], true);
}

/// The application's own publish, by the HTTP API.
async fn trigger(server: &Running, body: &str) -> Answer {
    use std::time::{SystemTime, UNIX_EPOCH};
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let md5 = {
        use md5::{Digest, Md5};
        format!("{:x}", Md5::digest(body))
    };
    let path = "/apps/app-id/events";
    let query = format!("auth_key=app-key&auth_timestamp={now}&auth_version=1.0&body_md5={md5}");
    let signed = format!("POST\n{path}\n{query}");
    let signature = raptor::auth::Secret::new("app-secret").sign(signed.as_bytes());
    let head = format!(
        "POST {path}?{query}&auth_signature={signature} HTTP/1.1\r\nContent-Type: application/json"
    );
    server.request(&head, body).await
}
