//! Queries and signatures of the HTTP API. Nothing unsigned may pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::auth::{Secret, SignedRequest, percent_decode, split_auth};

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (path, query, body) = input;
    let secret = Secret::new("a secret that no fuzzer finds");
    let request = SignedRequest {
        method: "POST",
        path,
        query,
        body,
    };
    let verified = request.verify(1_353_088_179, |_| Some(&secret));
    assert!(verified.is_err(), "{path}?{query}");
    let _ = percent_decode(query);
    let (key, signature) = split_auth(query);
    assert!(key.len() + signature.len() <= query.len());
    assert!(!secret.verify(body, signature));
});
