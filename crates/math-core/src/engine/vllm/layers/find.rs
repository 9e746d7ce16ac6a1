//! Which parts of a model's layers keep a cache, and through which backend.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::super::VERSION;
use super::super::backend::{Backend, Needs};
use super::super::class::{DraftModule, ModelClass};
use super::super::drafter::drafter;
use super::super::facts::Checkpoint;
use super::super::options::{CacheDtype, DraftMethod, Knobs};
use super::super::states::{State, state_of};
use crate::error::MathError;
use crate::spec::{Attention, CompressedAttention, KvSource, Layer, Mixer, Mla, ModelSpec, Window};
use crate::units::add;

/// Heads whose keys and values are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) n_kv_heads: u64,
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) window: Window,
}

impl Heads {
    const fn of(attention: &Attention) -> Self {
        Self { n_kv_heads: attention.n_kv_heads, k: attention.k_head_dim, v: attention.v_head_dim, window: attention.window }
    }
}

/// A part of a layer that keeps a cache.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Keys(Heads, Needs, Backend),
    Cross(Heads, Needs, Backend),
    Latent(&'a Mla, Needs, Backend),
    Compressed(&'a CompressedAttention),
    State(State<'a>),
}

/// A part where it was found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) label: String,
    pub(super) stage: u64,
    pub(super) draft: bool,
    pub(super) part: Part<'a>,
}
/// First and last (exclusive) layer of every pipeline stage (`vllm/distributed/utils.py:get_pp_indices`): what is left
/// over goes to the last stages but one, backwards.
#[must_use]
pub fn stages(layers: u64, ranks: u64) -> Vec<(u64, u64)> {
    let ranks = ranks.max(1);
    let (each, left) = (layers / ranks, layers % ranks);
    let mut start = 0;
    (0..ranks)
        .map(|rank| {
            // `partitions[-i] += 1 for i in 2..left + 2`
            let from_end = ranks - rank;
            let more = u64::from(left > 0 && from_end >= 2 && from_end < left + 2);
            let end = start + each + more;
            let range = (start, end);
            start = end;
            range
        })
        .collect()
}
/// Query and key-value heads of the first layer that has any.
pub(super) fn head_counts(spec: &ModelSpec) -> Option<(u64, u64)> {
    spec.layers.iter().find_map(heads_of)
}

pub(super) const fn has_state(layer: &Layer) -> bool {
    matches!(layer.mixer, Mixer::Parallel(_)) || state_of(&layer.mixer).is_some()
}

/// Whether a layer's attention sees all of the text, and caches nothing.
pub(super) const fn sees_ahead(layer: &Layer) -> bool {
    matches!(&layer.mixer, Mixer::Attention(attention) if attention.bidirectional)
}

pub(super) const fn heads_of(layer: &Layer) -> Option<(u64, u64)> {
    match &layer.mixer {
        Mixer::Attention(attention) => Some((attention.n_heads, attention.n_kv_heads)),
        Mixer::Mla(mla) => Some((mla.n_heads, 1)),
        Mixer::CompressedAttention(attention) => Some((attention.n_heads, 1)),
        Mixer::Parallel(parallel) => Some((parallel.attention.n_heads, parallel.attention.n_kv_heads)),
        _ => None,
    }
}
/// Every part that keeps a cache, in the order the model builds them.
pub(super) fn find<'a>(
    spec: &'a ModelSpec,
    checkpoint: &Checkpoint,
    knobs: &'a Knobs,
    needs: Needs,
) -> Result<Vec<Found<'a>>, MathError> {
    let class = &checkpoint.class;
    let ranges = stages(u64::try_from(spec.layers.len()).unwrap_or(0), knobs.parallelism.pipeline);
    let mut found = Vec::new();
    let turbo_skips = turbo_skips(spec, needs.cache);
    for (index, layer) in (0_u64..).zip(&spec.layers) {
        let stage = (0_u64..).zip(&ranges).find(|(_, (from, to))| (*from..*to).contains(&index)).map_or(0, |(stage, _)| stage);
        let mut layer_needs = needs;
        if turbo_skips.contains(&index) || class.plain_cache {
            layer_needs.cache = CacheDtype::Auto;
        }
        layer_parts(layer, (index, stage, false), layer_needs, knobs, &mut found)?;
    }
    if let Some(speculation) = knobs.speculation
        && matches!(speculation.method, DraftMethod::Mtp)
    {
        let drafts = draft_layers(spec, class);
        let last = knobs.parallelism.pipeline.max(1) - 1;
        let n = u64::try_from(spec.layers.len()).unwrap_or(0);
        for (index, layer) in (n..).zip(drafts) {
            layer_parts(layer, (index, last, true), needs, knobs, &mut found)?;
        }
    }
    if let Some((drafter, _)) = drafter(knobs)? {
        let last = knobs.parallelism.pipeline.max(1) - 1;
        let n = u64::try_from(spec.layers.len()).unwrap_or(0);
        let heads = head_counts(&drafter.spec).map_or(0, |(heads, _)| heads / knobs.parallelism.tensor.max(1));
        for (index, layer) in (n..).zip(&drafter.spec.layers) {
            layer_parts(layer, (index, last, true), Needs { heads, ..needs }, knobs, &mut found)?;
        }
    }
    if checkpoint.sees_ahead {
        found.retain(|entry| matches!(entry.part, Part::State(_)));
    }
    if class.attention_first {
        found.sort_by_key(|entry| matches!(entry.part, Part::State(_)));
    }
    Ok(found)
}
/// The layers of a model's own draft module (`vllm/config/speculative.py:hf_config_override`).
#[must_use]
pub fn draft_layers<'a>(spec: &'a ModelSpec, class: &ModelClass) -> Vec<&'a Layer> {
    let layers = spec.mtp.iter().map(|mtp| &mtp.layer);
    match class.draft {
        DraftModule::Named => layers.collect(),
        DraftModule::FirstNamed => layers.take(1).collect(),
        DraftModule::LastAttention if spec.mtp.is_empty() => {
            spec.layers.iter().rev().find(|layer| matches!(layer.mixer, Mixer::Attention(_))).into_iter().collect()
        }
        DraftModule::LastAttention => layers.collect(),
    }
}
/// TurboQuant leaves the first and the last two attention layers as they are, unless there are states between them
/// (`TurboQuantConfig.get_boundary_skip_layers`).
pub(super) fn turbo_skips(spec: &ModelSpec, cache: CacheDtype) -> Vec<u64> {
    let hybrid = spec.layers.iter().any(has_state);
    if !cache.is_turbo() || hybrid {
        return Vec::new();
    }
    let n = u64::try_from(spec.layers.len()).unwrap_or(0);
    (0..n).filter(|index| *index < 2 || index + 2 >= n).collect()
}
fn layer_parts<'a>(
    layer: &'a Layer,
    (index, stage, draft): (u64, u64, bool),
    needs: Needs,
    knobs: &Knobs,
    found: &mut Vec<Found<'a>>,
) -> Result<(), MathError> {
    let label = |what: &str| if what.is_empty() { format!("layer {index}") } else { format!("layer {index}, {what}") };
    let mut push = |what: &str, part: Part<'a>| found.push(Found { label: label(what), stage, draft, part });
    let keys = |attention: &'a Attention| -> Result<Option<Part<'a>>, MathError> {
        if !matches!(attention.kv_source, KvSource::Own) || attention.bidirectional {
            return Ok(None);
        }
        let window = matches!(attention.window, Window::Sliding { .. });
        let mut needs =
            Needs { head_size: attention.k_head_dim, head_size_v: attention.v_head_dim, sinks: attention.sinks, window, ..needs };
        if window && knobs.skip_sliding_window {
            needs.cache = CacheDtype::Auto;
        }
        let mut backend = Backend::of_attention(&needs)?;
        if matches!(backend, Backend::FlashAttn) && attention.k_head_dim != attention.v_head_dim {
            backend = Backend::FlashAttnDiffKv;
        }
        Ok(Some(Part::Keys(Heads::of(attention), needs, backend)))
    };
    match &layer.mixer {
        Mixer::Attention(attention) => {
            if let Some(part) = keys(attention)? {
                push("", part);
            }
        }
        Mixer::Parallel(parallel) => {
            let state = state_of(&parallel.state).ok_or_else(|| MathError::Unsupported {
                engine: VERSION.to_string(),
                mechanism: "this parallel mixer".to_string(),
            })?;
            if let Some(part) = keys(&parallel.attention)? {
                push("attention", part);
            }
            push("state", Part::State(state));
        }
        Mixer::Mla(mla) if needs.expanded => {
            let head = add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?;
            let needs = Needs { head_size: head, head_size_v: head, ..needs };
            push(
                "",
                Part::Keys(
                    Heads { n_kv_heads: mla.n_heads, k: head, v: head, window: mla.window },
                    needs,
                    Backend::of_attention(&needs)?,
                ),
            );
        }
        Mixer::Mla(mla) => {
            let needs = Needs {
                head_size: add(mla.kv_lora_rank, mla.qk_rope_head_dim)?,
                head_size_v: 0,
                qk_nope: mla.qk_nope_head_dim,
                qk_rope: mla.qk_rope_head_dim,
                selected: mla.indexer.as_ref().map(|indexer| indexer.top_k),
                mm_prefix: false,
                ..needs
            };
            push("", Part::Latent(mla, needs, Backend::of_latent(&needs)?));
        }
        Mixer::CompressedAttention(attention) => {
            if needs.gpu.major() > 10 {
                // Another backend, whose pages were not looked at (`deepseek_v4/nvidia/model.py`).
                let mechanism = "attention over compressed tokens on this GPU".to_string();
                return Err(MathError::Unsupported { engine: VERSION.to_string(), mechanism });
            }
            push("", Part::Compressed(attention));
        }
        Mixer::Mamba1(_)
        | Mixer::Mamba2(_)
        | Mixer::GatedDeltaNet(_)
        | Mixer::KimiDelta(_)
        | Mixer::LightningAttention(_)
        | Mixer::ShortConv(_) => {
            if let Some(state) = state_of(&layer.mixer) {
                push("state", Part::State(state));
            }
        }
        Mixer::Rwkv(_) | Mixer::Rglru(_) => {
            let mechanism = if matches!(layer.mixer, Mixer::Rwkv(_)) { "RWKV" } else { "RG-LRU" };
            return Err(MathError::Unsupported { engine: VERSION.to_string(), mechanism: mechanism.to_string() });
        }
        Mixer::None => {}
    }
    if let Some(cross) = &layer.cross_attention {
        let needs = Needs { head_size: cross.k_head_dim, head_size_v: cross.v_head_dim, sinks: false, window: false, ..needs };
        let backend = Backend::of_attention(&needs)?;
        push("cross attention", Part::Cross(Heads::of(cross), needs, backend));
    }
    Ok(())
}

/// What sparse backends make of the format (`cache_config.cache_dtype` after the layers are built).
pub(super) fn effective_dtype(found: &[Found<'_>], cache: CacheDtype) -> CacheDtype {
    found
        .iter()
        .find_map(|entry| match &entry.part {
            Part::Latent(_, needs, backend) if needs.selected.is_some() => Some(backend.cache_dtype(cache)),
            _ => None,
        })
        .unwrap_or(cache)
}
