//! Rows of recorded truth.

use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;

/// A file of `fixtures/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// The rows of a gzip'd file of JSON lines.
pub(crate) fn rows(path: &str) -> Vec<Value> {
    let file = std::fs::File::open(fixture(path)).expect(path);
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect(path);
    text.lines().map(|line| serde_json::from_str(line).expect(path)).collect()
}
