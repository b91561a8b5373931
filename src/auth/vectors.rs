//! The published vectors (`pusher.md` 11), read from `fixtures/pusher/`.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{AuthError, Secret, SignedRequest, subscription_text, user_text};

#[derive(Deserialize)]
struct Credentials {
    key: String,
    secret: String,
    socket_id: String,
}

#[derive(Deserialize)]
struct Subscriptions {
    credentials: Credentials,
    subscriptions: Vec<Subscription>,
}

#[derive(Deserialize)]
struct Subscription {
    name: String,
    channel: Option<String>,
    channel_data: Option<String>,
    user_data: Option<String>,
    string: String,
    signature: String,
}

#[derive(Deserialize)]
struct Requests {
    credentials: Credentials,
    requests: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    name: String,
    method: String,
    path: String,
    query: String,
    body: String,
    string_to_sign: String,
    body_md5: Option<String>,
    signature: String,
}

#[derive(Deserialize)]
struct Webhooks {
    credentials: Credentials,
    webhooks: Vec<Webhook>,
}

#[derive(Deserialize)]
struct Webhook {
    name: String,
    body: String,
    signature: String,
}

const NOW_SECS: u64 = 1_353_088_179;

#[track_caller]
fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("a fixture of the expected shape")
}

fn requests() -> Requests {
    read(include_str!("../../fixtures/pusher/requests.json"))
}

/// `text` with one bit of the byte at `at` flipped.
fn flipped(text: &str, at: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes[at] ^= 1;
    bytes
}

/// A signature that differs in its last digit.
fn spoiled(signature: &str) -> String {
    let last = if signature.ends_with('0') { '1' } else { '0' };
    format!("{}{last}", &signature[..63])
}

#[track_caller]
fn check_signature(name: &str, secret: &Secret, text: &str, signature: &str) {
    assert_eq!(secret.sign(text.as_bytes()), signature, "{name}");
    assert!(secret.verify(text.as_bytes(), signature), "{name}");
    assert!(
        !secret.verify(text.as_bytes(), &spoiled(signature)),
        "{name}"
    );
    for at in [0, text.len() / 2, text.len() - 1] {
        assert!(
            !secret.verify(&flipped(text, at), signature),
            "{name}: byte {at}"
        );
    }
}

#[test]
fn subscription_and_user_signatures_match_the_vectors() {
    let Subscriptions {
        credentials,
        subscriptions,
    } = read(include_str!("../../fixtures/pusher/subscriptions.json"));
    assert_eq!(subscriptions.len(), 10);
    let secret = Secret::new(&credentials.secret);
    for vector in subscriptions {
        let text = match (&vector.channel, &vector.user_data) {
            (Some(channel), None) => subscription_text(
                &credentials.socket_id,
                channel,
                vector.channel_data.as_deref(),
            ),
            (None, Some(user_data)) => user_text(&credentials.socket_id, user_data),
            _ => panic!("{} has neither channel nor user_data", vector.name),
        };
        assert_eq!(text, vector.string, "{}", vector.name);
        check_signature(&vector.name, &secret, &text, &vector.signature);
    }
}

#[test]
fn webhook_signatures_match_the_vectors() {
    let Webhooks {
        credentials,
        webhooks,
    } = read(include_str!("../../fixtures/pusher/webhooks.json"));
    assert_eq!(webhooks.len(), 2);
    let secret = Secret::new(&credentials.secret);
    for vector in webhooks {
        check_signature(&vector.name, &secret, &vector.body, &vector.signature);
    }
}

#[test]
fn signed_requests_match_the_vectors() {
    let Requests {
        credentials,
        requests,
    } = requests();
    assert_eq!(requests.len(), 12);
    let secret = Secret::new(&credentials.secret);
    let secret_of = |key: &str| (key == credentials.key).then_some(&secret);
    for vector in requests {
        let name = &vector.name;
        check_signature(name, &secret, &vector.string_to_sign, &vector.signature);

        let query = format!("{}&auth_signature={}", vector.query, vector.signature);
        let request = SignedRequest {
            method: &vector.method,
            path: &vector.path,
            query: &query,
            body: vector.body.as_bytes(),
        };
        let parameters = request.verify(NOW_SECS, secret_of).expect(name);
        assert_eq!(parameters.get("body_md5"), vector.body_md5.as_deref());

        let spoiled = format!(
            "{}&auth_signature={}",
            vector.query,
            spoiled(&vector.signature)
        );
        let refused = SignedRequest {
            query: &spoiled,
            ..request
        }
        .verify(NOW_SECS, secret_of);
        let Err(AuthError::InvalidSignature { string_to_sign, .. }) = refused else {
            panic!("{name} was accepted with another signature");
        };
        assert_eq!(string_to_sign, vector.string_to_sign, "{name}");

        // Another body under the same, valid signature.
        let body = match vector.body.as_str() {
            "" => b"x".to_vec(),
            body => flipped(body, 0),
        };
        let refused = SignedRequest {
            body: &body,
            ..request
        }
        .verify(NOW_SECS, secret_of);
        assert_eq!(refused.err(), Some(AuthError::InvalidBodyMd5), "{name}");
    }
}

#[test]
fn a_body_needs_its_digest() {
    let Requests {
        credentials,
        requests,
    } = requests();
    let secret = Secret::new(&credentials.secret);
    let query = "auth_key=k&auth_timestamp=1353088179&auth_version=1.0";
    let vector = &requests[0];
    let text = format!("{}\n{}\n{query}", vector.method, vector.path);
    let query = format!("{query}&auth_signature={}", secret.sign(text.as_bytes()));
    let with_body = |body| {
        let request = SignedRequest {
            method: &vector.method,
            path: &vector.path,
            query: &query,
            body,
        };
        request.verify(NOW_SECS, |_| Some(&secret)).err()
    };
    assert_eq!(
        with_body(vector.body.as_bytes()),
        Some(AuthError::InvalidBodyMd5)
    );
    assert_eq!(with_body(b""), None);
}
