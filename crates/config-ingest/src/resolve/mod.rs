//! One entry for every kind of source: MODEL as people write it, facts out.
//!
//! A MODEL is a directory, a `config.json`, a `.gguf` (the first of a split set), a `.safetensors` or index file, a
//! name on a hub, or `ollama:name`. What exists on disk is never asked for on the network.

mod folder;
mod local;
mod ollama;
mod projector;
mod weights;

use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

use plimsoll_math::projector::Projector;

use crate::Ingested;
use crate::error::IngestError;
use crate::hub::{HubId, Select};
use crate::safetensors::{Checkpoint, shown};
use crate::source::FileSource;

pub use folder::{FileInfo, Folder, open_folder};
pub use local::LocalFolder;

/// Which kind of source answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Door {
    /// A config alone.
    Config,
    /// A config with the headers of its checkpoint.
    Checkpoint,
    /// A GGUF header.
    Gguf,
}

/// How to read a model.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Read an unknown architecture as a generic decoder.
    pub assume_generic: bool,
    /// Where Ollama keeps its models; `None` asks `OLLAMA_MODELS` and then the usual places.
    pub ollama_models: Option<PathBuf>,
    /// Tokens, caches and addresses of the hub; `None` asks the environment.
    #[cfg(feature = "hub")]
    pub hub: Option<crate::hub::Environment>,
}

/// A model with where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The facts. Behind [`Door::Config`] and [`Door::Checkpoint`] the tensors are synthesized from the architecture,
    /// in GGUF names, as if converted; behind [`Door::Gguf`] they are the file's.
    pub ingested: Ingested,
    /// Which kind of source answered.
    pub door: Door,
    /// A name to show.
    pub name: Option<String>,
    /// The file, folder or repository an engine would be pointed at.
    pub reference: String,
    /// The tensors of the safetensors or MLX files as they are, behind [`Door::Checkpoint`].
    pub checkpoint: Option<Checkpoint>,
    /// A quantization that was asked for by name and that no file of the source has: to be applied to the config.
    pub quantization: Option<String>,
}

/// Reads a model.
///
/// # Errors
/// [`IngestError`]: what is missing or wrong, in one sentence.
pub fn open(model: &str, options: &Options) -> Result<Opened, IngestError> {
    if model.is_empty() {
        return Err(IngestError::Field {
            place: "model".to_string(),
            found: "nothing".to_string(),
            expected: "a file, a folder, org/name or ollama:name".to_string(),
        });
    }
    if let Some(name) = model.strip_prefix("ollama:") {
        return ollama::open(name, options);
    }
    let path = Path::new(model);
    if path.is_dir() {
        return open_folder(&LocalFolder::list(path)?, None, options);
    }
    if path.exists() {
        return open_file(path, options);
    }
    // `folder:Q4_K_M` and `folder:file.gguf`, as on the hub.
    if let Some((folder, select)) = model.rsplit_once(':').filter(|(folder, _)| Path::new(folder).is_dir()) {
        return open_folder(&LocalFolder::list(Path::new(folder))?, Some(&Select::parse(select)), options);
    }
    if looks_like_a_path(model) {
        return Err(IngestError::Unavailable { what: shown(model), why: "no such file or directory".to_string() });
    }
    let id = HubId::parse(model)?;
    if !id.repo.contains('/') && !model.starts_with("hf:") {
        return Err(IngestError::Unavailable {
            what: shown(model),
            why: "no such file or directory; a model on a hub is written org/name, one of Ollama's ollama:name".to_string(),
        });
    }
    open_hub(&id, options)
}

/// Reads a multimodal projector: a GGUF file on disk, or one of a repository (`org/name:mmproj-F16.gguf`, or `org/name` where
/// it has one). Answers with it the file that an engine would be pointed at.
///
/// # Errors
/// [`IngestError`]: what is missing or wrong, in one sentence.
pub fn open_projector(name: &str, options: &Options) -> Result<(Projector, String), IngestError> {
    let path = Path::new(name);
    if path.is_dir() {
        return projector::of_folder(&LocalFolder::list(path)?, None);
    }
    if path.exists() || looks_like_a_path(name) {
        let projector = crate::gguf::ingest_projector(&FileSource::open(path)?, &crate::gguf::Options::default())?;
        return Ok((projector, name.to_string()));
    }
    let id = HubId::parse(name)?;
    hub_projector(&id, options)
}

#[cfg(feature = "hub")]
fn hub_projector(id: &HubId, options: &Options) -> Result<(Projector, String), IngestError> {
    let environment = options.hub.clone().unwrap_or_else(crate::hub::Environment::from_process);
    crate::hub::in_folder(id, &environment, &mut |folder| projector::of_folder(folder, id.select.as_ref()))
}

#[cfg(not(feature = "hub"))]
fn hub_projector(id: &HubId, _: &Options) -> Result<(Projector, String), IngestError> {
    Err(without_hubs(id))
}

#[cfg(feature = "hub")]
fn open_hub(id: &HubId, options: &Options) -> Result<Opened, IngestError> {
    let environment = options.hub.clone().unwrap_or_else(crate::hub::Environment::from_process);
    crate::hub::open(id, &environment, options)
}

#[cfg(not(feature = "hub"))]
fn open_hub(id: &HubId, _: &Options) -> Result<Opened, IngestError> {
    Err(without_hubs(id))
}

#[cfg(not(feature = "hub"))]
fn without_hubs(id: &HubId) -> IngestError {
    IngestError::Unavailable { what: id.to_string(), why: "this build cannot reach hubs (feature \"hub\" is off)".to_string() }
}

/// One file: its folder is the context, so that shards, configs and split siblings are found beside it.
fn open_file(path: &Path, options: &Options) -> Result<Opened, IngestError> {
    // Opened first: a pipe or a device gets its sentence before anything around it is read.
    FileSource::open(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(IngestError::UnsupportedSource {
            found: path.display().to_string(),
            why: "the file's name is not valid UTF-8".to_string(),
        });
    };
    let folder = LocalFolder::around(parent, name);
    open_folder(&folder, Some(&Select::File(name.to_string())), options)
}

fn looks_like_a_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~', '\\'])
        || [".gguf", ".safetensors", ".json", ".npz"].iter().any(|ending| text.ends_with(ending) && !text.contains(':'))
        || text.split(['@', ':']).next().is_some_and(|name| name.matches('/').count() > 1) && !text.contains("://")
}

/// Names of files for a sentence: the first few.
fn some_names(names: &[&str]) -> String {
    const NAMED: usize = 8;
    let first: Vec<String> = names.iter().take(NAMED).map(|name| shown(name)).collect();
    match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => std::format!("{} and {more} more", first.join(", ")),
        _ => first.join(", "),
    }
}
