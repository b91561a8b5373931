//! How Bayeux messages travel (`bayeux.md` 3), against a real server.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::*;
use tokio::io::AsyncReadExt;

fn data(messages: &[Value]) -> Vec<&Value> {
    messages.iter().map(|message| &message["data"]).collect()
}

async fn publish(server: &Running, channel: &str, data: Value) {
    let reply = server.ask(json!({"channel": channel, "data": data})).await;
    assert_eq!(reply["successful"], true, "{reply}");
}

#[tokio::test]
async fn messages_wait_for_the_next_poll_and_follow_its_reply() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    publish(&server, "/foo", json!({"n": 1})).await;
    publish(&server, "/foo", json!("hello")).await;
    let stream = server.send_messages(&session.connect(0)).await;
    let expected = format!(
        concat!(
            r#"[{{"id":"c","clientId":"{}","channel":"/meta/connect","successful":true,"#,
            r#""advice":{{"reconnect":"retry","interval":0,"timeout":45000,"maxInterval":90000}}}},"#,
            r#"{{"channel":"/foo","data":{{"n":1}}}},{{"channel":"/foo","data":"hello"}}]"#
        ),
        session.id
    );
    let answer = read_answer(stream).await;
    assert_eq!(answer.body, expected);
    assert_eq!(
        answer.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(answer.header("cache-control"), Some("no-cache, no-store"));
    let length = expected.len().to_string();
    assert_eq!(answer.header("content-length"), Some(&*length));
    assert_eq!(session.poll(0).await, [0; 0]);
}

#[tokio::test]
async fn a_held_poll_ends_with_a_message_or_with_its_time() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    let started = Instant::now();
    let held = server.send_messages(&session.connect(4000)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    publish(&server, "/foo", json!(1)).await;
    let answer = read_answer(held).await.json();
    assert_eq!(data(&answer[1..]), [&json!(1)]);
    assert!(started.elapsed() < Duration::from_secs(3));

    let started = Instant::now();
    assert_eq!(session.poll(300).await, [0; 0]);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn what_is_sent_to_an_aborted_poll_comes_with_the_next_once_and_in_order() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    let mut received = Vec::new();
    for n in 0..100 {
        received.extend(session.poll(0).await);
        let held = server.send_messages(&session.connect(2000)).await;
        // Dropped before the server has read the request, while it holds it, or not at all.
        match n % 4 {
            0 => drop(held),
            1 => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(held);
            }
            2 => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(held);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            _ => {
                publish(&server, "/foo", json!(n)).await;
                received.extend(read_answer(held).await.json().split_off(1));
                continue;
            }
        }
        publish(&server, "/foo", json!(n)).await;
    }
    received.extend(session.poll(0).await);
    let expected: Vec<Value> = (0..100).map(Value::from).collect();
    assert_eq!(data(&received), expected.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_superseded_poll_is_answered_so_that_it_does_not_come_back_at_once() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    let old = server.send_messages(&session.connect(4000)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let new = server.send_messages(&session.connect(4000)).await;
    let answer = read_answer(old).await.json();
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0]["successful"], true);
    assert_eq!(answer[0]["advice"]["interval"], 45000);
    publish(&server, "/foo", json!(1)).await;
    assert_eq!(data(&read_answer(new).await.json()[1..]), [&json!(1)]);
}

#[tokio::test]
async fn a_session_goes_on_over_a_websocket_and_back() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    publish(&server, "/foo", json!(1)).await;
    let mut socket = server.websocket("/faye").await;
    socket
        .send(json!([{"channel": "/meta/connect", "clientId": session.id,
            "connectionType": "websocket", "id": "w"}]))
        .await;
    assert_eq!(socket.next().await, json!([{"channel": "/foo", "data": 1}]));
    publish(&server, "/foo", json!(2)).await;
    assert_eq!(socket.next().await, json!([{"channel": "/foo", "data": 2}]));

    // A poll takes over; the connect that the socket held is answered.
    let held = server.send_messages(&session.connect(4000)).await;
    let reply = socket.next().await;
    assert_eq!(
        (&reply[0]["id"], &reply[0]["successful"]),
        (&json!("w"), &json!(true))
    );
    publish(&server, "/foo", json!(3)).await;
    assert_eq!(data(&read_answer(held).await.json()[1..]), [&json!(3)]);

    // A socket that closes leaves what is not sent to whoever comes next.
    drop(socket);
    publish(&server, "/foo", json!(4)).await;
    assert_eq!(data(&session.poll(0).await), [&json!(4)]);
}

#[tokio::test]
async fn on_a_socket_only_time_answers_a_connect() {
    let server = serve_with(|bayeux, _| bayeux.limits.hold = Duration::from_millis(400)).await;
    let mut socket = server.websocket("/bayeux").await;
    socket
        .send(json!({"channel": "/meta/handshake", "version": "1.0",
            "supportedConnectionTypes": ["websocket"], "id": 1}))
        .await;
    let id = socket.next().await[0]["clientId"].clone();
    let connect = |id: &Value, n: u32| json!([{"channel": "/meta/connect", "clientId": id, "connectionType": "websocket", "id": n}]);
    let started = Instant::now();
    socket.send(connect(&id, 2)).await;
    socket
        .send_binary(
            &json!([
                {"channel": "/meta/subscribe", "clientId": id, "subscription": "/a/*", "id": 3},
                {"channel": "/a/b", "clientId": id, "data": "own", "id": 4},
            ])
            .to_string(),
        )
        .await;
    let replies = socket.next().await;
    assert_eq!(
        (&replies[0]["id"], &replies[1]["id"]),
        (&json!(3), &json!(4))
    );
    assert_eq!(
        socket.next().await,
        json!([{"channel": "/a/b", "data": "own"}])
    );
    assert_eq!(socket.next().await[0]["id"], 2);
    assert!(started.elapsed() >= Duration::from_millis(400));

    socket.send_text("[]").await;
    assert_eq!(socket.next().await, json!([]));
    for unreadable in ["42", "null", "{", "\u{0}"] {
        socket.send_text(unreadable).await;
    }
    // The second takes the place of the first, which is answered; saying goodbye answers it too.
    socket.send(connect(&id, 5)).await;
    socket.send(connect(&id, 6)).await;
    assert_eq!(socket.next().await[0]["id"], 5);
    socket
        .send(json!([{"channel": "/meta/disconnect", "clientId": id, "id": 7}]))
        .await;
    assert_eq!(socket.next().await[0]["id"], 7);
    let last = socket.next().await;
    assert_eq!(
        (&last[0]["id"], &last[0]["advice"]["reconnect"]),
        (&json!(6), &json!("none"))
    );
    assert_eq!(socket.close_code().await, 1000);
}

#[tokio::test]
async fn an_event_stream_carries_a_session_and_gives_back_what_it_could_not() {
    let server = serve().await;
    let session = server.session().await;
    session.subscribe("/foo").await;
    let open = format!(
        "GET /faye/{}?x=1 HTTP/1.1\r\nAccept: text/event-stream",
        session.id
    );
    let mut stream = server.send(&open, "").await;
    let mut seen = String::new();
    let mut read_until = async |stream: &mut tokio::net::TcpStream, wanted: &str| {
        while !seen.contains(wanted) {
            let mut bytes = [0; 4096];
            let n = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes));
            let n = n.await.unwrap().unwrap();
            assert!(n > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
    };
    read_until(&mut stream, "retry: 5000\r\n\r\n").await;
    // While the stream is attached events go to it, whatever poll is still held.
    let mut connect = session.connect(300);
    let held = server.send_messages(&connect).await;
    publish(&server, "/foo", json!(1)).await;
    read_until(
        &mut stream,
        "data: [{\"channel\":\"/foo\",\"data\":1}]\r\n\r\n",
    )
    .await;
    assert_eq!(read_answer(held).await.json().len(), 1);
    publish(&server, "/foo", json!(2)).await;
    read_until(&mut stream, "\"data\":2").await;
    connect["connectionType"] = json!("eventsource");
    let heartbeat = server.ask(connect).await;
    assert_eq!(heartbeat["advice"]["interval"], 45000);
    assert_eq!(heartbeat["advice"]["timeout"], 0);
    assert!(
        seen.to_ascii_lowercase()
            .contains("content-type: text/event-stream")
    );

    drop(stream);
    tokio::time::sleep(Duration::from_millis(50)).await;
    publish(&server, "/foo", json!(3)).await;
    assert_eq!(data(&session.poll(0).await), [&json!(3)]);
    let unknown = "GET /faye/nobody HTTP/1.1\r\nAccept: text/event-stream";
    assert_eq!(server.request(unknown, "").await.status, 204);
}

#[tokio::test]
async fn callback_polling_answers_with_a_script() {
    let server = serve().await;
    let message = "%7B%22channel%22%3A%22%2Ffoo%22%2C%22data%22%3A1%2C%22id%22%3A%22p%22%7D";
    let get = |callback: &str| format!("GET /faye?message={message}{callback} HTTP/1.1");
    let answer = server.request(&get("&jsonp=__jsonp1__"), "").await;
    let reply = r#"[{"id":"p","channel":"/foo","successful":true}]"#;
    assert_eq!(answer.body, format!("/**/__jsonp1__({reply});"));
    assert_eq!(
        answer.header("content-type"),
        Some("text/javascript; charset=utf-8")
    );
    assert_eq!(
        answer.header("content-disposition"),
        Some("attachment; filename=f.txt")
    );
    let answer = server.request(&get(""), "").await;
    assert_eq!(answer.body, format!("/**/jsonpcallback({reply});"));
    for bad in [get("&jsonp=a%20b"), "GET /faye HTTP/1.1".to_owned()] {
        assert_eq!(server.request(&bad, "").await.status, 400);
    }
}

#[tokio::test]
async fn other_origins_may_ask_and_read_the_answer() {
    let server = serve().await;
    let preflight = "OPTIONS /faye/connect HTTP/1.1\r\nOrigin: http://a.example\r\n\
        Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-csrf-token";
    let answer = server.request(preflight, "").await;
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("access-control-allow-origin", "http://a.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "POST, GET"),
        ("access-control-max-age", "86400"),
        ("vary", "Origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    let headers = answer.header("access-control-allow-headers").unwrap();
    assert!(headers.contains("Pragma") && headers.contains("x-csrf-token"));

    let form = "message=%7B%22channel%22%3A%22%2Ffoo%22%2C%22data%22%3A1%7D";
    let post = "POST /faye/ HTTP/1.1\r\nOrigin: http://a.example\r\n\
        Content-Type: text/plain;charset=UTF-8";
    let answer = server.request(post, form).await;
    assert_eq!(answer.body, r#"[{"channel":"/foo","successful":true}]"#);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://a.example")
    );
}

#[tokio::test]
async fn only_the_origins_of_the_app_are_served() {
    let server = serve_with(|_, app| {
        let origin = raptor::apps::OriginPattern::parse("https://a.example").unwrap();
        app.allowed_origins = vec![origin];
    })
    .await;
    let status = async |origin: &str| {
        let head = format!("POST /faye HTTP/1.1{origin}\r\nContent-Type: application/json");
        let body = r#"{"channel":"/foo","data":1}"#;
        server.request(&head, body).await.status
    };
    assert_eq!(status("\r\nOrigin: https://a.example").await, 200);
    assert_eq!(status("\r\nOrigin: https://evil.example").await, 403);
    assert_eq!(status("").await, 200);
}

#[tokio::test]
async fn unreadable_requests_are_bad_ones() {
    let server = serve_with(|bayeux, _| bayeux.limits.request_bytes_max = 2000).await;
    let json = "POST /faye HTTP/1.1\r\nContent-Type: application/json";
    for (head, body, status) in [
        (json, "nope", 400),
        (json, "42", 400),
        (json, "null", 400),
        (json, "", 400),
        (json, "[]", 200),
        (json, "[1]", 200),
        (json, r#"{"channel":5,"data":1}"#, 200),
        ("POST /faye HTTP/1.1", "x=1", 400),
        ("POST /faye HTTP/1.1", "message=%ff", 400),
        ("HEAD /faye HTTP/1.1", "", 400),
        ("DELETE /faye HTTP/1.1", "", 400),
        ("POST /fayex HTTP/1.1", "[]", 404),
        ("GET /faye/x.js HTTP/1.1", "", 404),
    ] {
        assert_eq!(
            server.request(head, body).await.status,
            status,
            "{head} {body}"
        );
    }
    assert_eq!(server.request(json, &"x".repeat(2001)).await.status, 413);
    let script = server.request("GET /faye.js HTTP/1.1", "").await;
    assert!(script.body.contains("Faye"));
}

#[tokio::test]
async fn a_session_ends_when_its_client_is_silent_or_its_queue_is_full() {
    let server = serve_with(|bayeux, _| {
        bayeux.limits.hold = Duration::from_millis(100);
        bayeux.limits.session_lifetime = Duration::from_millis(300);
        bayeux.limits.queue_messages_max = 3;
    })
    .await;
    let refused = async |session: &Session<'_>| {
        let reply = server.ask(session.connect(0)).await;
        assert_eq!(reply["error"], format!("401:{}:Unknown client", session.id));
        assert_eq!(
            reply["advice"],
            json!({"reconnect": "handshake", "interval": 0})
        );
    };
    let silent = server.session().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    refused(&silent).await;

    let full = server.session().await;
    full.subscribe("/foo").await;
    for n in 0..4 {
        publish(&server, "/foo", json!(n)).await;
    }
    let reply = server.ask(full.connect(0)).await;
    assert_eq!(reply["successful"], false);
    assert_eq!(reply["advice"]["reconnect"], "handshake");
}

#[tokio::test]
async fn a_server_that_stops_answers_everybody_first() {
    let server = serve().await;
    let session = server.session().await;
    let held = server.send_messages(&session.connect(4000)).await;
    let mut socket = server.websocket("/faye").await;
    let other = server.session().await;
    socket
        .send(json!([{"channel": "/meta/connect", "clientId": other.id,
            "connectionType": "websocket", "id": "w"}]))
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let clients = async move {
        let answer = read_answer(held).await.json();
        assert_eq!(answer[0]["advice"]["reconnect"], "retry");
        assert!(answer[0]["advice"]["interval"].as_u64().unwrap() < 5000);
        assert_eq!(socket.next().await[0]["id"], "w");
        assert_eq!(socket.close_code().await, 1001);
    };
    // It ends when the last has taken its leave.
    tokio::join!(server.stop(), clients);
}

/// A session whose client acknowledges what it receives, as CometD's does.
async fn acknowledging(server: &Running) -> Value {
    let handshake = json!({"channel": "/meta/handshake", "version": "1.0", "ext": {"ack": true},
        "supportedConnectionTypes": ["long-polling", "websocket"]});
    let reply = server.ask(handshake).await;
    assert_eq!(reply["ext"]["ack"], true);
    reply["clientId"].clone()
}

fn acknowledging_connect(id: &Value, way: &str, ack: u64) -> Value {
    json!([{"channel": "/meta/connect", "clientId": id, "connectionType": way, "id": ack,
        "ext": {"ack": ack}}])
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again() {
    let server = serve().await;
    let id = acknowledging(&server).await;
    server
        .ask(json!({"channel": "/meta/subscribe", "clientId": id, "subscription": "/foo"}))
        .await;
    let mut first = acknowledging_connect(&id, "long-polling", 0);
    first[0]["advice"] = json!({"timeout": 0});
    let reply = server.post(first).await;
    assert_eq!(reply[0]["ext"], json!({"ack": 1}));
    publish(&server, "/foo", json!(1)).await;
    let connect = async |ack| {
        server
            .post(acknowledging_connect(&id, "long-polling", ack))
            .await
    };
    let lost = connect(1).await;
    assert_eq!(
        (&lost[0]["ext"], data(&lost[1..])),
        (&json!({"ack": 2}), vec![&json!(1)])
    );
    publish(&server, "/foo", json!(2)).await;
    let again = connect(1).await;
    let (one, two) = (json!(1), json!(2));
    assert_eq!(
        (&again[0]["ext"], data(&again[1..])),
        (&json!({"ack": 3}), vec![&one, &two])
    );
    publish(&server, "/foo", json!(3)).await;
    let next = connect(3).await;
    assert_eq!(
        (&next[0]["ext"], data(&next[1..])),
        (&json!({"ack": 4}), vec![&json!(3)])
    );
}

#[tokio::test]
async fn acknowledged_messages_follow_connect_replies_on_sockets_too() {
    let server = serve().await;
    let id = acknowledging(&server).await;
    let mut socket = server.websocket("/faye").await;
    socket
        .send(json!([{"channel": "/meta/subscribe", "clientId": id, "subscription": "/foo"}]))
        .await;
    socket.next().await;
    socket
        .send(acknowledging_connect(&id, "websocket", 0))
        .await;
    publish(&server, "/foo", json!(1)).await;
    let batch = socket.next().await;
    assert_eq!(
        (&batch[0]["ext"], &batch[1]["data"]),
        (&json!({"ack": 1}), &json!(1))
    );
    publish(&server, "/foo", json!(2)).await;
    socket
        .send(acknowledging_connect(&id, "websocket", 1))
        .await;
    let batch = socket.next().await;
    assert_eq!(
        (&batch[0]["ext"], &batch[1]["data"]),
        (&json!({"ack": 2}), &json!(2))
    );
    // The socket breaks before the client has it: the next one brings it again.
    drop(socket);
    let mut socket = server.websocket("/faye").await;
    socket
        .send(acknowledging_connect(&id, "websocket", 1))
        .await;
    let batch = socket.next().await;
    assert_eq!(
        (&batch[0]["ext"], &batch[1]["data"]),
        (&json!({"ack": 3}), &json!(2))
    );
}
