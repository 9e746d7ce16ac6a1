//! Any bytes as a GGUF file: a model or an error, the same from large and small reads, and sums that hold together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::gguf::{Header, Limits, Options, from_header, ingest};
use plimsoll_math::synth::tensor_table;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { assume_generic: true, ..Options::default() };
    let Ok(header) = Header::read(&bytes, &options.limits) else {
        let _ = ingest(&bytes, &options).unwrap_err().to_string();
        return;
    };
    let limits = Limits { first_read: 1, largest_read: 3, ..Limits::default() };
    assert_eq!(Header::read(&bytes, &limits).as_ref().map(|again| &again.tensors), Ok(&header.tensors));
    match from_header(header, &options) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(ingested) => {
            // Every tensor of the file is in the table, and the architecture describes no fewer.
            let _ = ingested.tensors.total_params();
            let _ = ingested.tensors.bytes_where(|_| true);
            let _ = tensor_table(&ingested.spec);
        }
    }
});
