//! Any bytes as a safetensors file: a header whose tensors cover the data exactly, or one sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::safetensors::{Checkpoint, Context, Hints, Limits, read_header};

fuzz_target!(|bytes: &[u8]| {
    match read_header(&bytes, &Limits::default()) {
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        Ok(header) => {
            assert_eq!(header.file_bytes(), bytes.len() as u64);
            let mut end = 0;
            for entry in &header.tensors {
                assert_eq!(entry.start, end);
                end = entry.end;
            }
            assert_eq!(end, header.data_bytes);
            let hints = Hints { packed_bits: Some(4), ..Hints::default() };
            if let Ok(checkpoint) = Checkpoint::from_file(&bytes, &Limits::default(), Context::default(), &hints) {
                assert_eq!(checkpoint.summary.stored.get(), header.data_bytes);
                let table = checkpoint.table().unwrap();
                assert_eq!(table.bytes_where(|_| true).unwrap().get(), header.data_bytes);
            }
        }
    }
});
