//! What clients without WebSockets send, and the frames that they get.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::wire::sockjs::{array, messages, quoted, units};

fuzz_target!(|text: &str| {
    if let Ok(read) = messages(text) {
        let frames: Vec<_> = read.iter().map(|message| quoted(message)).collect();
        let written = array(frames.iter().map(String::as_str));
        assert_eq!(messages(&written[1..]).as_ref(), Ok(&read));
    }
    assert_eq!(units(text), text.encode_utf16().count());
    assert_eq!(messages(&quoted(text)), Ok(vec![text.to_owned()]));
});
