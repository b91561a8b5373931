//! What Bayeux clients show to be let in. With a secret that nobody knows nothing may pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::bayeux::authorise::{
    Channels, ExtToken, PublishTokens, SignedChannels, SubscribeTokens, Token,
};
use raptor::bayeux::jwt;
use raptor::wire::bayeux::{IncomingMessage, parse};

const NOW_SECS: u64 = 1_353_088_179;

fuzz_target!(|text: &str| {
    let secret = Token::new("a secret that no fuzzer finds");
    let signed = SignedChannels {
        prefix: "private_pub".to_owned(),
        secret: secret.clone(),
        expiration_secs: Some(3600),
    };
    let token = ExtToken {
        key: "token".to_owned(),
        token: secret.clone(),
    };
    let publish_tokens = PublishTokens(vec![token.clone()]);
    let subscribe_tokens = SubscribeTokens(vec![(Channels::Named("/a".to_owned()), token)]);
    for message in parse(text, 100).into_iter().flatten() {
        match message {
            IncomingMessage::Subscribe(request) => {
                assert!(jwt::check_subscribe(&secret, &request, NOW_SECS).is_err());
                assert!(signed.check_subscribe(&request, NOW_SECS * 1000).is_err());
                if let Some(subscription) = &request.subscription {
                    let let_in = subscribe_tokens.check(subscription, &request.ext).is_ok();
                    assert!(!(let_in && subscription.single().is_some_and(|name| name == "/a")));
                }
            }
            IncomingMessage::Publish(request) => {
                assert!(jwt::check_publish(&secret, &request, NOW_SECS).is_err());
                assert!(signed.check_publish(&request.ext).is_err());
                assert!(publish_tokens.check(&request.ext).is_err());
            }
            _ => {}
        }
    }
});
