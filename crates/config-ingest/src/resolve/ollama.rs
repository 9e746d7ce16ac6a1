//! Models in Ollama's local store: manifests that name GGUF files by their hash.

use std::format;
use std::fs;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

use serde::Deserialize;

use super::{Door, Opened, Options, some_names};
use crate::error::IngestError;
use crate::gguf;
use crate::safetensors::shown;
use crate::source::{FileSource, read_small_file};

const REGISTRY: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const MODEL: &str = "application/vnd.ollama.image.model";
/// Manifests are a few hundred bytes.
const LONGEST_MANIFEST: u64 = 1 << 20;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    #[serde(default)]
    digest: String,
}

/// `[host/][namespace/]model[:tag]`, as `ollama run` takes it (`types/model/name.go`).
fn manifest_path(name: &str) -> Result<String, IngestError> {
    let wrong = || IngestError::Field {
        place: "model".to_string(),
        found: format!("ollama:{}", shown(name)),
        expected: "ollama:[host/][namespace/]model[:tag]".to_string(),
    };
    let (path, tag) = match name.rsplit_once(':') {
        // A port is not a tag.
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, "latest"),
    };
    let words: Vec<&str> = path.split('/').collect();
    let (host, namespace, model) = match words.as_slice() {
        [model] => (REGISTRY, NAMESPACE, *model),
        [namespace, model] => (REGISTRY, *namespace, *model),
        [host, namespace, model] => (*host, *namespace, *model),
        _ => return Err(wrong()),
    };
    let safe = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    if ![host, namespace, model, tag].into_iter().all(safe) {
        return Err(wrong());
    }
    Ok(format!("manifests/{host}/{namespace}/{model}/{tag}"))
}

/// Where the store may be: `OLLAMA_MODELS`, the user's, the one of the system's service.
fn stores(options: &Options) -> Vec<PathBuf> {
    if let Some(store) = &options.ollama_models {
        return [store.clone()].into();
    }
    if let Some(store) = std::env::var_os("OLLAMA_MODELS").filter(|store| !store.is_empty()) {
        return [PathBuf::from(store)].into();
    }
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    let own = home.map(|home| PathBuf::from(home).join(".ollama/models"));
    own.into_iter().chain(["/usr/share/ollama/.ollama/models".into(), "/var/lib/ollama/.ollama/models".into()]).collect()
}

/// Reads the model of that name.
pub(super) fn open(name: &str, options: &Options) -> Result<Opened, IngestError> {
    let path = manifest_path(name)?;
    let stores = stores(options);
    let Some(store) = stores.iter().find(|store| store.join(&path).is_file()) else {
        let here: Vec<String> = stores.iter().filter(|store| store.is_dir()).flat_map(|store| known(store)).collect();
        let here: Vec<&str> = here.iter().map(String::as_str).collect();
        let places: Vec<String> = stores.iter().map(|store| store.display().to_string()).collect();
        let why = if here.is_empty() {
            format!("not in Ollama's store ({}); `ollama pull` it, or set OLLAMA_MODELS", places.join(", "))
        } else {
            format!("not in Ollama's store, which has {}", some_names(&here))
        };
        return Err(IngestError::Unavailable { what: format!("ollama:{}", shown(name)), why });
    };
    let file = store.join(&path);
    let bytes = read_small_file(&file, "Ollama manifest", LONGEST_MANIFEST)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| IngestError::Malformed {
        format: "Ollama manifest",
        offset: u64::try_from(error.column()).unwrap_or(0),
        problem: format!("broken JSON: {error} ({})", file.display()),
    })?;
    let Some(layer) = manifest.layers.iter().find(|layer| layer.media_type == MODEL) else {
        let why = "its manifest has no GGUF layer: the model runs elsewhere or is stored in another format".to_string();
        return Err(IngestError::UnsupportedSource { found: format!("ollama:{}", shown(name)), why });
    };
    let blob = store.join("blobs").join(blob_name(&layer.digest)?);
    let source = FileSource::open(&blob)?;
    let settings = gguf::Options { assume_generic: options.assume_generic, ..gguf::Options::default() };
    let mut ingested = gguf::ingest(&source, &settings)?;
    for (kind, what) in [("projector", "a projector for images or sound"), ("adapter", "an adapter")] {
        if manifest.layers.iter().any(|layer| layer.media_type.ends_with(kind)) {
            ingested.notes.push(format!("ollama:{} also has {what}, a file of its own that is not counted here", shown(name)));
        }
    }
    Ok(Opened {
        ingested,
        door: Door::Gguf,
        name: Some(name.to_string()),
        reference: blob.display().to_string(),
        checkpoint: None,
        quantization: None,
    })
}

/// `sha256:…` as a file name; anything else would lead out of the store.
fn blob_name(digest: &str) -> Result<String, IngestError> {
    match digest.split_once(':') {
        Some(("sha256", hash)) if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(format!("sha256-{hash}"))
        }
        _ => Err(IngestError::Field {
            place: "$.layers[].digest".to_string(),
            found: shown(digest),
            expected: "sha256: and 64 hexadecimal digits".to_string(),
        }),
    }
}

/// The models of a store, as `ollama list` names them.
fn known(store: &Path) -> Vec<String> {
    let below = |path: &Path| -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<(String, PathBuf)> =
            entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
        names.sort();
        names
    };
    let mut models = Vec::new();
    for (host, path) in below(&store.join("manifests")) {
        for (namespace, path) in below(&path) {
            for (model, path) in below(&path) {
                for (tag, _) in below(&path) {
                    let prefix = match (host.as_str(), namespace.as_str()) {
                        (REGISTRY, NAMESPACE) => String::new(),
                        (REGISTRY, _) => format!("{namespace}/"),
                        _ => format!("{host}/{namespace}/"),
                    };
                    models.push(format!("{prefix}{model}:{tag}"));
                }
            }
        }
    }
    models
}
