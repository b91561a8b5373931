use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;
use crate::bayeux::jwt;
use crate::bayeux::mapping::{Style, to_pusher};
use crate::wire::bayeux::{IncomingMessage, Publish, parse};

#[derive(Deserialize)]
struct Vectors {
    signed_subscribe: Vec<SignedCase>,
    signed_publish: Vec<SignedCase>,
    publish_tokens: Vec<TokenCase>,
    subscribe_tokens: Vec<TokenCase>,
    jwt: Vec<JwtCase>,
}

#[derive(Deserialize)]
struct SignedCase {
    name: String,
    prefix: String,
    secret: String,
    expiration_secs: Option<u64>,
    now_ms: u64,
    message: Box<RawValue>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct TokenCase {
    name: String,
    message: Box<RawValue>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct JwtCase {
    name: String,
    secret: String,
    now_secs: u64,
    message: Box<RawValue>,
    error: Option<String>,
}

fn vectors() -> Vectors {
    let text = include_str!("../../../fixtures/bayeux/authorisation.json");
    serde_json::from_str(text).unwrap()
}

fn incoming(message: &RawValue) -> IncomingMessage<'_> {
    parse(message.get(), 1).unwrap().remove(0)
}

fn subscribe(message: &RawValue) -> Subscribe<'_> {
    match incoming(message) {
        IncomingMessage::Subscribe(request) => request,
        _ => panic!("no subscribe: {message}"),
    }
}

fn publish(message: &RawValue) -> Publish<'_> {
    match incoming(message) {
        IncomingMessage::Publish(request) => request,
        _ => panic!("no publish: {message}"),
    }
}

fn error(checked: Result<(), BayeuxError>) -> Option<String> {
    checked.err().map(|error| error.to_string())
}

impl SignedCase {
    fn policy(&self) -> SignedChannels {
        SignedChannels {
            prefix: self.prefix.clone(),
            secret: Token::new(&self.secret),
            expiration_secs: self.expiration_secs,
        }
    }
}

fn ext_token(key: &str, token: &str) -> ExtToken {
    ExtToken {
        key: key.to_owned(),
        token: Token::new(token),
    }
}

#[test]
fn a_signed_subscription_is_for_one_name_and_time() {
    for case in vectors().signed_subscribe {
        let checked = case
            .policy()
            .check_subscribe(&subscribe(&case.message), case.now_ms);
        assert_eq!(error(checked), case.error, "{}", case.name);
    }
}

#[test]
fn a_publish_under_private_pub_carries_the_secret() {
    for case in vectors().signed_publish {
        let checked = case.policy().check_publish(&publish(&case.message).ext);
        assert_eq!(error(checked), case.error, "{}", case.name);
    }
}

#[test]
fn one_publish_token_is_enough() {
    let policy = PublishTokens(vec![
        ext_token("password", "s3cret"),
        ext_token("auth_token", "t0ken"),
    ]);
    for case in vectors().publish_tokens {
        let checked = policy.check(&publish(&case.message).ext);
        assert_eq!(error(checked), case.error, "{}", case.name);
    }
    let nobody = PublishTokens(Vec::new());
    assert_eq!(
        error(nobody.check(&Ext::default())),
        Some("403::Password required".to_owned())
    );
}

#[test]
fn a_subscribe_token_guards_all_that_a_subscription_exposes() {
    let rooms = Channels::Matching(Pattern::parse("/rooms/**").unwrap());
    let policy = SubscribeTokens(vec![
        (rooms, ext_token("authToken", "rt")),
        (Channels::Named("/news".to_owned()), ext_token("t", "nt")),
    ]);
    for case in vectors().subscribe_tokens {
        let request = subscribe(&case.message);
        let checked = policy.check(request.subscription.as_ref().unwrap(), &request.ext);
        assert_eq!(error(checked), case.error, "{}", case.name);
    }
}

#[test]
fn a_jwt_is_for_one_channel_and_client() {
    for case in vectors().jwt {
        let secret = Token::new(&case.secret);
        let checked = match incoming(&case.message) {
            IncomingMessage::Subscribe(request) => {
                jwt::check_subscribe(&secret, &request, case.now_secs)
            }
            IncomingMessage::Publish(request) => {
                jwt::check_publish(&secret, &request, case.now_secs)
            }
            _ => panic!("{}", case.name),
        };
        assert_eq!(error(checked), case.error, "{}", case.name);
    }
}

#[test]
fn what_a_policy_looks_at_is_kept_from_subscribers() {
    let signed = SignedChannels {
        prefix: "danthes".to_owned(),
        secret: Token::new("s"),
        expiration_secs: None,
    };
    let tokens = PublishTokens(vec![ext_token("password", "s")]);
    let text = r#"{"channel":"/a","data":1,"ext":{"danthes_token":"s","danthes_x":1,
        "danthes_signature":"","danthes_timestamp":0,"password":"s","binary":{}}}"#;
    let raw: &RawValue = serde_json::from_str(text).unwrap();
    let withheld = |key: &str| signed.is_mine(key) || tokens.is_mine(key);
    assert_eq!(
        publish(raw).ext.forwardable(withheld).as_deref(),
        Some(r#"{"danthes_x":1,"binary":{}}"#)
    );
}

#[test]
fn a_token_never_shows_itself() {
    let policy = PublishTokens(vec![ext_token("password", "hush")]);
    assert!(!format!("{policy:?}").contains("hush"));
}

#[derive(Deserialize)]
struct PusherAuth {
    secret: String,
    socket_id: String,
    subscriptions: Vec<SubscriptionSignature>,
}

#[derive(Deserialize)]
struct SubscriptionSignature {
    typed: String,
    flat: String,
    channel_data: Option<String>,
    string: String,
    signature: String,
}

#[test]
fn an_unchanged_pusher_endpoint_signs_the_channel_that_a_bayeux_name_means() {
    use hmac::{Hmac, Mac};
    let vectors: PusherAuth =
        serde_json::from_str(include_str!("../../../fixtures/bayeux/pusher-auth.json")).unwrap();
    for case in vectors.subscriptions {
        for (name, style) in [(&case.typed, Style::Typed), (&case.flat, Style::Flat)] {
            let mut string = format!("{}:{}", vectors.socket_id, to_pusher(name, style).unwrap());
            if let Some(channel_data) = &case.channel_data {
                string += &format!(":{channel_data}");
            }
            assert_eq!(string, case.string);
            let mac = Hmac::<Sha256>::new_from_slice(vectors.secret.as_bytes()).unwrap();
            let digest = mac.chain_update(&string).finalize().into_bytes();
            assert_eq!(format!("{digest:x}"), case.signature);
        }
    }
}
