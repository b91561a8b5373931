//! What Pusher clients and applications send as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::model::ChannelName;
use raptor::wire::{pusher, rest};

fuzz_target!(|text: &str| {
    let _ = pusher::parse(text);
    let _ = pusher::parse_member(text);
    let _ = pusher::parse_user_data(text);
    let _ = pusher::error(Some(4301), text);
    assert!(pusher::abridged(text).len() <= text.len() + 3);
    if let Ok(name) = ChannelName::parse(text, 200) {
        assert_eq!(name.as_str(), text);
    }
    let _ = rest::Trigger::parse(text.as_bytes());
    if let Ok(batch) = rest::Batch::parse(text.as_bytes()) {
        assert_eq!(batch.events().count(), batch.len());
    }
    let _ = rest::Info::parse(text);
});
