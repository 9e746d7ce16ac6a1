//! The safetensors or MLX weights of a folder, beside its config.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use plimsoll_math::spec::{KvSource, LmHead, Mixer, ModelSpec};
use plimsoll_math::tensor::Place;
use serde_json::Value;

use super::folder::Folder;
use crate::Ingested;
use crate::error::IngestError;
use crate::mlx::Quantization;
use crate::safetensors::{Checkpoint, Context, Hints, Index, IndexLimits, Limits, shown};
use crate::source::RangeSource;

const INDEX: &str = "model.safetensors.index.json";

/// Which files hold the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// An index with its shards, beside it.
    Index { path: String, index: Index },
    /// These files, without an index.
    Files(Vec<String>),
    /// An MLX archive.
    Npz(String),
}

impl Weights {
    /// The file that was asked for by name.
    pub(super) fn named(folder: &dyn Folder, path: &str) -> Result<Self, IngestError> {
        Ok(if path.ends_with(".json") {
            Self::Index { path: path.to_string(), index: index(folder, path)? }
        } else if path.ends_with(".npz") {
            Self::Npz(path.to_string())
        } else {
            Self::Files([path.to_string()].into())
        })
    }
}

/// The weights an engine would load: the index, else the one file, else whatever lies in the root.
pub(super) fn find(folder: &dyn Folder) -> Result<Option<Weights>, IngestError> {
    let names: Vec<&str> = folder.files().iter().map(|file| file.path.as_str()).filter(|path| !path.contains('/')).collect();
    if names.contains(&INDEX) {
        return Ok(Some(Weights::Index { path: INDEX.to_string(), index: index(folder, INDEX)? }));
    }
    if names.contains(&"model.safetensors") {
        return Ok(Some(Weights::Files(["model.safetensors".to_string()].into())));
    }
    let files: Vec<String> = names.iter().filter(|name| name.ends_with(".safetensors")).map(ToString::to_string).collect();
    if let Some(part) = files.iter().find_map(|name| missing_part(name, &files)) {
        return Err(IngestError::Unavailable {
            what: format!("{} ({part})", folder.name()),
            why: "the shard is missing".to_string(),
        });
    }
    if !files.is_empty() {
        return Ok(Some(Weights::Files(files)));
    }
    Ok(names.contains(&"weights.npz").then(|| Weights::Npz("weights.npz".to_string())))
}

/// A file that a name of the kind `model-00001-of-00003.safetensors` announces and that is not there.
fn missing_part(name: &str, files: &[String]) -> Option<String> {
    let (left, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, first) = left.rsplit_once('-')?;
    first.parse::<u64>().ok()?;
    let total: u64 = count.parse().ok().filter(|total| *total < 10_000)?;
    let width = first.len();
    // Some publishers count from 0.
    let from = u64::from(!files.contains(&format!("{prefix}-{:0width$}-of-{count}.safetensors", 0)));
    (from..total.saturating_add(from))
        .map(|number| format!("{prefix}-{number:0width$}-of-{count}.safetensors"))
        .find(|part| !files.contains(part))
}

fn index(folder: &dyn Folder, path: &str) -> Result<Index, IngestError> {
    let limits = IndexLimits::default();
    Index::parse(&folder.small(path, "safetensors index", limits.bytes)?, &limits)
}

/// Reads the headers and holds them against what the config says.
pub(super) fn read(
    folder: &dyn Folder,
    weights: &Weights,
    config: &[u8],
    ingested: &mut Ingested,
) -> Result<Checkpoint, IngestError> {
    let config = crate::hf::parse(config)?;
    let hints = Hints { mlx: Quantization::from_config(&config)?, packed_bits: packed_bits(&config) };
    let spec = &ingested.spec;
    let context = Context {
        n_layers: u32::try_from(spec.layers.len()).ok(),
        tied: spec.head.lm_head == LmHead::Tied,
        has_decoder: spec.encoder.is_some(),
    };
    let limits = Limits::default();
    let mut checkpoint = match weights {
        Weights::Index { path, index } => {
            let below = path.rsplit_once('/').map_or(String::new(), |(below, _)| format!("{below}/"));
            let paths: Vec<String> = index.shards.iter().map(|shard| format!("{below}{shard}")).collect();
            let mut sources = folder.sources(&paths).into_iter();
            // Shards are asked for in the order of the list.
            let open = |_: &str| sources.next().unwrap_or_else(|| Err(missing_source()));
            Checkpoint::from_index(index, open, &limits, context, &hints)?
        }
        Weights::Files(paths) => {
            let sources = folder.sources(paths).into_iter().collect::<Result<Vec<_>, _>>()?;
            let sources: Vec<&dyn RangeSource> = sources.iter().map(AsRef::as_ref).collect();
            Checkpoint::from_files(&sources, &limits, context, &hints)?
        }
        Weights::Npz(path) => {
            crate::mlx::read_npz(folder.source(path)?.as_ref(), &crate::mlx::NpzLimits::default(), context, &hints)?
        }
    };
    checkpoint.mark_unused(|tensor| match tensor.position.place {
        Place::Layer(layer) => {
            let key_or_value = ["k_proj", "v_proj", "k_norm", "v_norm"].iter().any(|word| tensor.name.contains(word));
            key_or_value && shares_cache(spec, layer)
        }
        _ => false,
    })?;
    compare(&checkpoint, ingested)?;
    Ok(checkpoint)
}

fn missing_source() -> IngestError {
    IngestError::Unavailable { what: "a shard".to_string(), why: "it was not opened".to_string() }
}

/// Whether a layer reads the keys and values that another layer wrote, so that its own matrices are idle.
fn shares_cache(spec: &ModelSpec, layer: u32) -> bool {
    let layer = usize::try_from(layer).ok().and_then(|layer| spec.layers.get(layer));
    matches!(layer.map(|layer| &layer.mixer), Some(Mixer::Attention(attention)) if matches!(attention.kv_source, KvSource::Layer { .. }))
}

/// Bits of compressed-tensors weights, when all groups agree.
fn packed_bits(config: &Value) -> Option<u64> {
    let groups = config.get("quantization_config")?.get("config_groups")?.as_object()?;
    let mut bits = groups.values().filter_map(|group| group.get("weights")?.get("num_bits")?.as_u64());
    let first = bits.next()?;
    bits.all(|other| other == first).then_some(first)
}

/// Both counts are made, and a difference is said.
fn compare(checkpoint: &Checkpoint, ingested: &mut Ingested) -> Result<(), IngestError> {
    let by_config = ingested.tensors.total_params()?.get();
    let by_headers = checkpoint.summary.params.get();
    let mut notes = Vec::new();
    if by_config != by_headers {
        let (more, less, difference) = if by_headers > by_config {
            ("headers", "config", by_headers.saturating_sub(by_config))
        } else {
            ("config", "headers", by_config.saturating_sub(by_headers))
        };
        notes.push(format!(
            "parameters: the config makes {by_config}, the headers hold {by_headers}: {difference} more by the {more} than by the {less}"
        ));
    }
    let quantization = checkpoint.quantization();
    if quantization.is_none()
        && let Some(stored) = checkpoint.main_dtype()
        && stored.format() != Some(ingested.spec.weight_dtype)
    {
        notes.push(format!(
            "the config says {}, the headers hold mostly {}: the files take {} bytes",
            ingested.spec.weight_dtype,
            shown(stored.name()),
            checkpoint.summary.stored
        ));
    }
    if ingested.quantization.is_none() {
        ingested.quantization = quantization;
    }
    ingested.notes.extend(notes);
    ingested.notes.extend(checkpoint.notes.iter().cloned());
    Ok(())
}
