//! Any bytes as an npz archive: tensors that lie in the file, or one sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::mlx::{NpzLimits, read_npz};
use plimsoll_ingest::safetensors::{Context, Hints};

fuzz_target!(|bytes: &[u8]| {
    match read_npz(&bytes, &NpzLimits::default(), Context::default(), &Hints::default()) {
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        Ok(checkpoint) => {
            let _ = checkpoint.table();
        }
    }
});
