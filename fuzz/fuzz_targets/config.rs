//! Any bytes as a config.json: a model whose sums hold together, or errors without control characters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::hf::{Options, ingest};

fuzz_target!(|bytes: &[u8]| {
    for assume_generic in [false, true] {
        let options = Options { assume_generic, ..Options::default() };
        match ingest(bytes, &options) {
            Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
            Ok(ingested) => {
                let _ = ingested.tensors.total_params();
                let _ = ingested.tensors.bytes_where(|_| true);
            }
        }
    }
});
