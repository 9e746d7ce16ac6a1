//! Specs of the models of the truth, from their real headers.

use std::io::Read;

use plimsoll_ingest::gguf;
use plimsoll_math::spec::ModelSpec;
use serde_json::Value;

/// The architecture of a row's model.
pub(crate) fn of(row: &Value) -> ModelSpec {
    let name = row["model"].as_str().expect("a row names its model");
    let file: String = name.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect();
    let path = super::fixture(&format!("truth/llama.cpp/gguf/{file}.BF16.gguf.header.gz"));
    let mut bytes = Vec::new();
    let header = std::fs::File::open(path).expect(name);
    flate2::read::GzDecoder::new(header).read_to_end(&mut bytes).expect(name);
    gguf::ingest(&bytes.as_slice(), &gguf::Options::default()).expect(name).spec
}
