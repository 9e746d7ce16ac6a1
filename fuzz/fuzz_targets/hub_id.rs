//! Any text as a model's name: what is accepted reads the same when written again, and leads into no other folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::hub::{HubId, Select};

fuzz_target!(|text: &str| {
    match HubId::parse(text) {
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        Ok(id) => {
            assert!(!id.repo.contains(".."));
            let parts = [id.revision.as_deref(), match &id.select {
                Some(Select::File(file)) => Some(file.as_str()),
                _ => None,
            }];
            assert!(parts.into_iter().flatten().all(|path| !path.starts_with('/') && !path.split('/').any(|part| part == "..")));
            assert_eq!(HubId::parse(&id.to_string()), Ok(id));
        }
    }
});
