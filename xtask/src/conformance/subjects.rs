//! The models of a conformance run: headers of real models, one tiny header per architecture, and made-up models with
//! uneven layers.

use std::fs;
use std::path::Path;

use plimsoll::ingest::gguf::{Header, Limits, Value};
use plimsoll::math::format::StorageFormat;

use super::gguf;
use super::install::hash;
use crate::truth::{fixture, rows, text, unzipped};

/// Where a model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The header of a real model.
    Real,
    /// A tiny model of one architecture, made by the engine's own tests.
    Zoo,
    /// A made-up model with uneven layers.
    Made,
}

impl Origin {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Real => "real models",
            Self::Zoo => "architecture zoo",
            Self::Made => "made-up models",
        }
    }
}

/// A model.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) architecture: String,
    /// The header.
    pub(crate) bytes: Vec<u8>,
}

impl Subject {
    fn new(name: String, origin: Origin, bytes: Vec<u8>) -> Result<Self, String> {
        let header = Header::read(&bytes.as_slice(), &Limits::default()).map_err(|error| format!("{name}: {error}"))?;
        let architecture = header.get("general.architecture").and_then(Value::as_text).unwrap_or_default().to_owned();
        Ok(Self { name, origin, architecture, bytes })
    }

    /// A real model.
    pub(crate) fn real(name: String, bytes: Vec<u8>) -> Result<Self, String> {
        Self::new(name, Origin::Real, bytes)
    }

    /// A number that changes with the header.
    pub(crate) fn fingerprint(&self) -> u64 {
        hash(&self.bytes)
    }
}

/// All models, or a part that has every architecture once when `quick`.
pub(crate) fn all(quick: bool) -> Result<Vec<Subject>, String> {
    let mut subjects = Vec::new();
    headers("truth/llama.cpp/gguf", Origin::Real, &mut subjects)?;
    headers("truth/llama.cpp/gguf-zoo", Origin::Zoo, &mut subjects)?;
    for row in rows("truth/llama.cpp/menagerie.jsonl.gz")? {
        let name = text(&row, "file").to_owned();
        let formats = [StorageFormat::F32, StorageFormat::Bf16, StorageFormat::Q8_0, StorageFormat::Q4_0];
        let pick = usize::try_from(hash(name.as_bytes()) % 4).unwrap_or(0);
        let format = formats.get(pick).copied().unwrap_or(StorageFormat::F32);
        let bytes = gguf::header(&row, format).map_err(|problem| format!("{name}: {problem}"))?;
        subjects.push(Subject::new(format!("{name}.{format}"), Origin::Made, bytes)?);
    }
    if quick {
        let mut seen = std::collections::BTreeSet::new();
        subjects.retain(|subject| match subject.origin {
            Origin::Real => subject.name.ends_with("Q4_K_M"),
            Origin::Zoo | Origin::Made => seen.insert(subject.architecture.clone()),
        });
    }
    Ok(subjects)
}

fn headers(folder: &str, origin: Origin, subjects: &mut Vec<Subject>) -> Result<(), String> {
    let entries = fs::read_dir(fixture(folder)).map_err(|error| format!("{folder}: {error}"))?;
    let mut names: Vec<String> =
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        let Some(short) = name.strip_suffix(".gguf.header.gz") else { continue };
        let bytes = unzipped(&format!("{folder}/{name}"))?.ok_or_else(|| format!("{folder}/{name}: not there"))?;
        subjects.push(Subject::new(short.to_owned(), origin, bytes)?);
    }
    Ok(())
}

/// Writes a model's file, sparse, unless it is there.
pub(crate) fn file(folder: &Path, subject: &Subject) -> Result<std::path::PathBuf, String> {
    let path = folder.join(format!("{:016x}.gguf", subject.fingerprint()));
    if !path.exists() {
        // Another worker may be writing the same file.
        let draft = path.with_extension(format!("{:?}", std::thread::current().id()));
        gguf::write_sparse(&draft, &subject.bytes)?;
        fs::rename(&draft, &path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(path)
}
