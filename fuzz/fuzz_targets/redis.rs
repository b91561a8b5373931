//! Records of events that come from Redis. What can be read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::backend::redis::record::{decode, encode, id_of};

fuzz_target!(|record: &[u8]| {
    let id = id_of(record);
    if let Some(event) = decode(record) {
        assert_eq!(id, Some(event.id));
        let written = encode(&event);
        let again = decode(&written).expect("what is written can be read");
        assert_eq!(encode(&again), written);
    }
});
