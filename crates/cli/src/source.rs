//! From MODEL on the command line to facts.

use std::fs;
use std::path::Path;

use plimsoll::ingest::error::IngestError;
use plimsoll::ingest::source::FileSource;
use plimsoll::ingest::{gguf, hf};
use plimsoll::planner::{Basis, Model, PlanError};

fn unavailable(path: &Path, error: &std::io::Error) -> PlanError {
    let why = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    PlanError::Source(IngestError::Unavailable { what: path.display().to_string(), why })
}

/// Reads the model.
pub(crate) fn open(text: &str, assume_generic: bool) -> Result<Model, PlanError> {
    let path = Path::new(text);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
        let options = gguf::Options { assume_generic, ..gguf::Options::default() };
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let ingested = gguf::ingest_set(&FileSource::open(&path)?, &options, |sibling| {
            Ok(Box::new(FileSource::open(folder.join(sibling))?))
        })?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut model = Model::new(stem.as_deref(), ingested, Basis::Gguf);
        model.reference = Some(text.to_owned());
        return Ok(model);
    }
    let bytes = fs::read(&path).map_err(|error| unavailable(&path, &error))?;
    let options = hf::Options { assume_generic, ..hf::Options::default() };
    let ingested = hf::ingest(&bytes, &options)?;
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match file.strip_suffix(".config.json") {
        Some(stem) => Some(stem.to_owned()),
        None => path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()),
    };
    Ok(Model::new(name.as_deref(), ingested, Basis::Config))
}
