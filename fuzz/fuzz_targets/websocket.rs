//! Frames of WebSocket clients. However the bytes are cut into pieces, they mean the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::wire::websocket::{Decoder, Incoming};

const MESSAGE_BYTES_MAX: usize = 1000;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = read(bytes.chunks(bytes.len().max(1)));
    assert_eq!(whole, read(bytes.chunks(1 + usize::from(piece % 16))));
});

fn read<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> Vec<String> {
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    let mut seen = Vec::new();
    for piece in pieces {
        decoder.receive(piece);
        loop {
            match decoder.decode() {
                Ok(Some(incoming)) => {
                    if let Incoming::Text(text) = &incoming {
                        assert!(text.len() <= MESSAGE_BYTES_MAX);
                    }
                    seen.push(format!("{incoming:?}"));
                }
                Ok(None) => break,
                Err(error) => {
                    seen.push(format!("{error:?}"));
                    return seen;
                }
            }
        }
    }
    seen
}
