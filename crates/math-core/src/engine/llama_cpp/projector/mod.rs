//! Multimodal projectors (`llama-server --mmproj`): towers for images and sound beside the language model. Each has a buffer
//! of its own for weights and a scheduler of its own, which reserves for a picture of a size that the engine chooses
//! (`tools/mtmd/clip.cpp:clip_init`, `warmup`).

mod kinds;
mod terms;
mod warmup;

pub use terms::{ProjectorTerms, terms};

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::build::Build;
use super::cache::BufferRules;
use super::graph::towers::buffers;
use crate::deployment::{Backend, FlashAttention};
use crate::error::MathError;
use crate::projector::{Modality, Projector, ProjectorTower};
use crate::tensor::Tensor;
use crate::units::add;
use kinds::Kind;

/// What is asked of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectorSetting {
    /// The device that it runs on; the processor without `--mmproj-offload`.
    pub backend: Backend,
    /// Flash attention, as asked for the language model.
    pub flash_attention: FlashAttention,
    /// The fewest tokens of an image (`--image-min-tokens`).
    pub min_tokens: Option<u64>,
    /// The most tokens of an image (`--image-max-tokens`).
    pub max_tokens: Option<u64>,
}

/// What a tower takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TowerMemory {
    /// What it reads.
    pub modality: Modality,
    /// Its kind.
    pub kind: &'static str,
    /// Bytes of the buffer of its weights.
    pub weights: u64,
    /// Tensors in it.
    pub n_tensors: usize,
    /// Bytes of these tensors alone, as the engine counts them when it leaves room for the projector.
    pub tensor_bytes: u64,
    /// The compute buffer where it runs.
    pub compute: u64,
    /// The compute buffer of the processor beside a device: what the caller fills.
    pub host_compute: u64,
    /// Pixels of a side of the picture, or frames of the sound, that the engine reserves for.
    pub reserved_for: u64,
    /// Whether it attends without storing scores.
    pub flash_attention: bool,
}

fn loaded<'a>(projector: &'a Projector, tower: &'a ProjectorTower, kind: Kind, build: Build) -> impl Iterator<Item = &'a Tensor> {
    projector.tensors.tensors.iter().filter(move |tensor| kind.loads(tower, &tensor.name, build))
}

/// What the towers of a projector take, in the order in which they are loaded.
///
/// # Errors
/// [`MathError::Refused`] for a kind that the build does not know, [`MathError::Unsupported`] for one that is not followed,
/// [`MathError::Overflow`].
pub fn memory(projector: &Projector, setting: &ProjectorSetting, build: Build) -> Result<Vec<TowerMemory>, MathError> {
    let mut out = Vec::new();
    let mut without_sound = false;
    for tower in &projector.towers {
        // Gemma 3n's tower for sound is not loaded (`clip_init`, `skip_audio`).
        if without_sound && tower.modality == Modality::Audio {
            continue;
        }
        let kind = Kind::of(tower, build).ok_or_else(|| unknown(tower, build))?;
        without_sound |= kind.name == "gemma3nv";
        let rules = BufferRules::of(setting.backend);
        let (mut weights, mut tensor_bytes, mut n_tensors) = (0, 0, 0_usize);
        for tensor in loaded(projector, tower, kind, build) {
            let bytes = tensor.bytes()?.get();
            let stored = match tensor.opaque_bytes {
                Some(_) => {
                    return Err(MathError::Unsupported {
                        engine: build.to_string(),
                        mechanism: format!("the storage format of {}", tensor.name),
                    });
                }
                None => rules.tensor_bytes(tensor.format, tensor.shape.row(), tensor.shape.rows()?)?,
            };
            weights = add(weights, stored)?;
            tensor_bytes = add(tensor_bytes, bytes)?;
            n_tensors = n_tensors.saturating_add(1);
        }
        let warmup = warmup::side(tower, kind, setting, build)?;
        let reserved = buffers(
            warmup::subject(tower, kind, setting, warmup, build)?,
            loaded(projector, tower, kind, build),
            flash(setting),
        )?;
        let Some(reserved) = reserved else { return Err(unbuilt(kind, weights, build)) };
        out.push(TowerMemory {
            modality: tower.modality,
            kind: kind.name,
            weights,
            n_tensors,
            tensor_bytes,
            compute: reserved.own,
            host_compute: reserved.host,
            reserved_for: warmup,
            flash_attention: reserved.flash,
        });
    }
    Ok(out)
}

/// A kind of which the weights are known and the graph is not.
fn unbuilt(kind: Kind, weights: u64, build: Build) -> MathError {
    MathError::Unsupported {
        engine: format!("llama.cpp {build}"),
        mechanism: format!(
            "the compute buffer of projectors of the kind {} yet, whose weights are {weights} B; plan without it and leave room for both",
            kind.name
        ),
    }
}

fn unknown(tower: &ProjectorTower, build: Build) -> MathError {
    let known: Vec<&str> = Kind::all(build).collect();
    let known: String = known.join(", ");
    MathError::Unsupported {
        engine: format!("llama.cpp {build}"),
        mechanism: format!("projectors of the kind {}; known are {known}", tower.kind),
    }
}

/// A picture larger than the one that is reserved for, and what the compute buffer of its tower grows to as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Pixels of a side.
    pub side: u64,
    /// Bytes of the compute buffer then.
    pub compute: u64,
}

/// What square pictures of the most tokens make the compute buffers grow to.
///
/// # Errors
/// As [`memory`].
pub fn growth(projector: &Projector, setting: &ProjectorSetting, build: Build) -> Result<Vec<Growth>, MathError> {
    let mut out = Vec::new();
    for tower in projector.towers.iter().filter(|tower| tower.modality == Modality::Vision) {
        let kind = Kind::of(tower, build).ok_or_else(|| unknown(tower, build))?;
        let Some(side) = warmup::largest_side(tower, kind, setting, build)? else { continue };
        let reserved = warmup::side(tower, kind, setting, build)?;
        if side <= reserved {
            continue;
        }
        let subject = warmup::subject(tower, kind, setting, side, build)?;
        if let Some(grown) = buffers(subject, loaded(projector, tower, kind, build), flash(setting))? {
            out.push(Growth { side, compute: grown.own });
        }
    }
    Ok(out)
}

const fn flash(setting: &ProjectorSetting) -> Option<bool> {
    match setting.flash_attention {
        FlashAttention::Auto => None,
        FlashAttention::On => Some(true),
        FlashAttention::Off => Some(false),
    }
}

/// Bytes that the engine leaves room for beside a model: tensors without padding, and compute buffers where the projector
/// runs (`mtmd.cpp:mtmd_get_memory_usage`, which leaves speech out).
///
/// # Errors
/// [`MathError::Overflow`].
pub fn projected_bytes(towers: &[TowerMemory]) -> Result<u64, MathError> {
    let heard_and_seen = towers.iter().filter(|tower| tower.modality != Modality::Speech);
    heard_and_seen.map(|tower| add(tower.tensor_bytes, tower.compute)).try_fold(0, |sum, bytes| add(sum, bytes?))
}

/// How wide the embeddings are that the towers for images make, where the shape of a matrix says so
/// (`clip.cpp:clip_n_mmproj_embd`): the engine refuses a language model of another width.
pub fn output_widths(projector: &Projector) -> impl Iterator<Item = u64> {
    projector.towers.iter().filter(|tower| tower.modality == Modality::Vision).filter_map(|tower| {
        let (name, by_row) = match tower.kind.as_str() {
            "mlp" | "phi4" | "pixtral" | "lightonocr" | "dots_ocr" | "dots3note_v" | "lfm2" | "lfm3vl" | "kimivl"
            | "paddleocr" | "kimik25" | "yasa2" | "deepseek4v" | "deepseek41v" | "cohere2v" | "qwen2vl_merger"
            | "qwen2.5vl_merger" | "qwen2.5o" | "qwen3vl_merger" | "exaone4_5" | "youtuvl" | "ling3vl" | "mimovl" => {
                ("mm.2.weight", false)
            }
            "janus_pro" => ("mm.1.weight", false),
            "gemma3" | "gemma3nv" => ("mm.input_projection.weight", true),
            "gemma4v" | "gemma4uv" => ("mm.input_projection.weight", false),
            "idefics3" | "llama4" | "hunyuanvl" | "step3vl" | "deepseekocr" | "deepseekocr2" => ("mm.model.fc.weight", false),
            "internvl" | "nemotron_v2_vl" | "nemotron_omni" => ("mm.model.mlp.3.weight", false),
            "glm4v" | "glm5v" | "minicpmv4_6" | "minicpmv4_7" | "minicpm_ocr_1_0" | "cogvlm" => ("mm.down.weight", false),
            "resampler" => ("resampler.proj.weight", true),
            _ => return None,
        };
        let [row, rows, ..] = projector.tensors.get(name)?.shape.0;
        Some(if by_row { row } else { rows })
    })
}
