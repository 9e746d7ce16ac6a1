//! Any bytes as an index: shards beside it, every tensor in one of them, or one sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::safetensors::{Index, IndexLimits};

fuzz_target!(|bytes: &[u8]| {
    match Index::parse(bytes, &IndexLimits::default()) {
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        Ok(index) => {
            assert!(index.weight_map.iter().all(|(_, shard)| *shard < index.shards.len()));
            assert!(index.shards.iter().all(|shard| !shard.split('/').any(|part| part == "..") && !shard.starts_with('/')));
        }
    }
});
