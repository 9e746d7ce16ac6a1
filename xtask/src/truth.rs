//! The fixtures that hold the engines' and the model classes' own numbers.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::run::root;

/// A file among the fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    root().join("fixtures").join(path)
}

/// The rows of a JSON lines file, gzip'd when its name says so.
pub(crate) fn rows(path: &str) -> Result<Vec<Value>, String> {
    let open = File::open(fixture(path)).map_err(|error| format!("{path}: {error}"))?;
    let reader: Box<dyn Read> = if path.ends_with(".gz") { Box::new(GzDecoder::new(open)) } else { Box::new(open) };
    BufReader::new(reader)
        .lines()
        .map(|line| {
            let line = line.map_err(|error| format!("{path}: {error}"))?;
            serde_json::from_str(&line).map_err(|error| format!("{path}: {error}"))
        })
        .collect()
}

/// A gzip'd file's bytes, `None` when it is not there.
pub(crate) fn unzipped(path: &str) -> Result<Option<Vec<u8>>, String> {
    let Ok(file) = File::open(fixture(path)) else { return Ok(None) };
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
    Ok(Some(bytes))
}

/// A text field, empty when it is missing.
pub(crate) fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}
