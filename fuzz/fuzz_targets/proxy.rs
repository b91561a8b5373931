//! The header that a proxy sends in front of everything else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::wire::proxy::{Malformed, REST_BYTES_MAX, parse, rest_bytes};

fuzz_target!(|bytes: &[u8]| {
    let Some((start, rest)) = bytes.split_first_chunk() else {
        return;
    };
    match rest_bytes(start) {
        Ok(length) => {
            assert!(length <= REST_BYTES_MAX);
            // The server reads so many and no other number.
            match rest.get(..length) {
                Some(rest) => drop(parse(start, rest)),
                None => assert_eq!(parse(start, rest), Err(Malformed::TooShort)),
            }
        }
        Err(why) => assert_eq!(parse(start, rest), Err(why)),
    }
});
