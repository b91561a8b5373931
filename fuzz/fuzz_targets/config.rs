//! Configuration files. One that is refused says where and how to mend it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raptor::config::{Config, Written, WrittenFile};

fuzz_target!(|text: &str| {
    let written = Written {
        file: Some(WrittenFile {
            name: "raptor.toml".to_owned(),
            text: text.to_owned(),
        }),
        ..Written::default()
    };
    match Config::from_written(&written) {
        Ok(config) => assert!(!config.apps.is_empty()),
        Err(problems) => {
            assert!(!problems.0.is_empty());
            assert!(problems.0.iter().all(|problem| !problem.mend.is_empty()));
        }
    }
});
