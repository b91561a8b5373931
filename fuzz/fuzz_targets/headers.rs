//! Headers of requests that decide who somebody is: addresses behind a proxy, and origins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::apps::OriginPattern;
use raptor::transport::peer::{Network, Peer, TrustedProxies};
use warp::http::{HeaderMap, HeaderValue};

fuzz_target!(|text: &str| {
    let network = |text| Network::parse(text).expect("it is one");
    let proxies = TrustedProxies(vec![
        network("10.0.0.0/8"),
        network("fd00::/8"),
        network("::1"),
    ]);
    let of = |address: &str| Peer {
        address: address.parse().expect("it is one"),
        secure: false,
        certified: false,
    };
    if let Ok(value) = HeaderValue::from_str(text) {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", value.clone());
        headers.insert("x-forwarded-proto", value);
        let _ = proxies.peer(of("10.0.0.1"), &headers);
        // Who is no proxy of ours speaks for nobody else.
        let stranger = proxies.peer(of("192.0.2.1"), &headers);
        assert_eq!(stranger.address, of("192.0.2.1").address);
        assert!(!stranger.secure);
    }
    let _ = Network::parse(text);
    let pattern = OriginPattern::parse("https://*.a.example").expect("it is one");
    if pattern.matches(text) {
        let lower = text.to_ascii_lowercase();
        assert!(
            lower.starts_with("https://") && lower.contains(".a.example"),
            "{text}"
        );
    }
    if let Ok(pattern) = OriginPattern::parse(text) {
        let shown = pattern.to_string();
        assert_eq!(OriginPattern::parse(&shown), Ok(pattern), "{text}");
    }
});
