//! What Bayeux clients send: messages, forms, channels and patterns.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::bayeux::channel::{Pattern, is_name};
use raptor::wire::bayeux::http::{is_callback, is_json_type, parse_form};
use raptor::wire::bayeux::parse;

fuzz_target!(|text: &str| {
    if let Ok(messages) = parse(text, 100) {
        assert!(messages.len() <= 100);
    }
    if let Ok(form) = parse_form(text.as_bytes()) {
        for message in &form.messages {
            let _ = parse(message, 100);
        }
    }
    let _ = (is_callback(text), is_json_type(Some(text)), is_name(text));
    let _ = Pattern::parse(text);
});
