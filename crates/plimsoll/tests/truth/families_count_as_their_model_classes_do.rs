//! Encoders, encoder-decoders, heads and multimodal wrappers hold as many parameters and stored buffers as the class
//! that the config names has in transformers, over small made-up configs and the library's own defaults.

use std::io::Read;
use std::path::Path;

use plimsoll_ingest::hf;
use serde_json::Value;

/// `Err` with what differs, or why the config is refused.
fn check(row: &Value) -> Result<(), String> {
    let bytes = serde_json::to_vec(&row["config"]).unwrap();
    let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| error.to_string())?;
    let total = ingested.tensors.total_params().unwrap().get();
    let buffers = ingested.tensors.params_where(|tensor| tensor.counts.is_buffer()).unwrap().get();
    let truth = (row["total"].as_u64().unwrap(), row["buffers"].as_u64().unwrap());
    if (total, buffers) == truth { Ok(()) } else { Err(format!("{total} and {buffers} buffers, truth {truth:?}")) }
}

#[test]
fn families_count_as_their_model_classes_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families/transformers.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut problems = Vec::new();
    let mut rows = 0;
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        rows += 1;
        if let Err(problem) = check(&row) {
            problems.push(format!("{}: {problem}", row["name"]));
        }
    }
    assert!(rows > 400, "{rows} rows");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
