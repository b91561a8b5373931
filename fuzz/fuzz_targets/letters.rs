//! What other nodes write through Redis. What can be read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::peers::letter::Letter;

fuzz_target!(|bytes: &[u8]| {
    if let Some(letter) = Letter::read(bytes) {
        let again = Letter::read(&letter.written()).expect("what is written can be read");
        assert_eq!((again.from, again.exchange), (letter.from, letter.exchange));
        assert_eq!((again.what, again.body), (letter.what, letter.body));
    }
});
