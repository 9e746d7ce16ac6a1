//! What vLLM refuses before it builds anything (`config/model.py:verify_with_parallel_config`, `models/registry.py`, and the
//! divisions in its layers).

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::super::class::Built;
use super::super::drafter::drafter;
use super::super::facts::Checkpoint;
use super::super::options::{DraftMethod, Knobs};
use super::find::{draft_layers, has_state, heads_of, stages};
use super::refused;
use crate::error::MathError;
use crate::spec::{FeedForward, KvSource, Layer, Mixer, ModelSpec};

/// A model that the engine does not build at all.
pub(super) fn check_model(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<(), MathError> {
    let class = &checkpoint.class;
    match class.built {
        Built::Yes => {}
        Built::Until(major, minor, patch) => {
            return Err(refused(format!(
                "Model architecture {} was supported in vLLM until v{major}.{minor}.{patch}, and is not supported anymore. Please \
                 use an older version of vLLM if you want to use this model architecture.",
                spec.architecture
            )));
        }
        Built::Never => {
            return Err(refused(format!("Model architectures ['{}'] are not supported for now.", spec.architecture)));
        }
    }
    if experts(spec) && knobs.online_quantization.as_deref() == Some("nvfp4_per_token") && knobs.gpu.major() < 10 {
        return Err(refused("nvfp4_per_token online quantization requires a Blackwell (SM100) GPU.".to_string()));
    }
    Ok(())
}

fn experts(spec: &ModelSpec) -> bool {
    spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)))
}

/// Layers that the Transformers library's modules leave to the engine, and that it has no way to handle.
pub(super) fn check_layers(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<(), MathError> {
    // The Transformers library's states do not go through an interface that the engine could answer.
    let unanswered = |layer: &Layer| has_state(layer) || matches!(layer.mixer, Mixer::Rglru(_));
    if checkpoint.class.library
        && let Some((index, layer)) = (0_u64..).zip(&spec.layers).find(|(_, layer)| unanswered(layer))
    {
        // Configs without a list of layers have no names for them.
        let kind = if has_state(layer) { " (linear_attention)" } else { "" };
        return Err(refused(format!(
            "Layer {index}{kind} does not dispatch through the Transformers attention interface and vLLM has no other way to \
             handle it."
        )));
    }
    Ok(())
}

/// Ranks that a model cannot be divided over.
pub(super) fn check_parallelism(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    heads: Option<(u64, u64)>,
) -> Result<(), MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    // The ranks among themselves are looked at before the model is (`config/parallel.py`).
    let context = knobs.parallelism.decode_context.max(1);
    if !tensor.is_multiple_of(context) {
        return Err(refused(format!("tp_size={tensor} must be divisible by dcp_size={context}.")));
    }
    let asks = knobs.speculation.is_some_and(|speculation| matches!(speculation.method, DraftMethod::Mtp));
    if asks && draft_layers(spec, &checkpoint.class).is_empty() {
        return Err(refused("Unsupported speculative method: 'mtp'".to_string()));
    }
    if let Some((heads, _)) = heads
        && !heads.is_multiple_of(tensor)
    {
        return Err(refused(format!(
            "Total number of attention heads ({heads}) must be divisible by tensor parallel size ({tensor})."
        )));
    }
    if knobs.parallelism.expert && (!experts(spec) || checkpoint.class.hides_experts) {
        return Err(refused(
            "Number of experts in the model must be greater than 0 when expert parallelism is enabled.".to_string(),
        ));
    }
    if knobs.parallelism.pipeline > 1 && checkpoint.class.without_pipeline {
        return Err(refused(
            "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` interface."
                .to_string(),
        ));
    }
    if context > 1 && heads.is_none() {
        // It asks how often key-value heads repeat before it looks whether there are any.
        return Err(refused("integer division or modulo by zero".to_string()));
    }
    let latent = spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Mla(_) | Mixer::CompressedAttention(_)));
    if context > 1
        && !latent
        && let Some((heads, kv_heads)) = heads
    {
        check_context(context, tensor, heads, kv_heads.max(1))?;
    }
    for layer in &spec.layers {
        let Some((_, kv_heads)) = heads_of(layer) else { continue };
        if kv_heads >= tensor {
            if !kv_heads.is_multiple_of(tensor) {
                return Err(refused(format!(
                    "{kv_heads} is not divisible by {tensor} (key-value heads by tensor parallel size)"
                )));
            }
        } else if !tensor.is_multiple_of(kv_heads.max(1)) {
            return Err(refused(format!(
                "{tensor} is not divisible by {kv_heads} (tensor parallel size by key-value heads, which are replicated)"
            )));
        }
    }
    let layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    if knobs.parallelism.pipeline > layers {
        return Err(refused(format!(
            "pipeline parallel size ({}) is more than the number of layers ({layers})",
            knobs.parallelism.pipeline
        )));
    }
    check_drafter(spec, knobs)?;
    shared_caches(spec, knobs)
}

/// What the engine says about a model that drafts (`config/speculative.py`, `llama_eagle.py`).
fn check_drafter(spec: &ModelSpec, knobs: &Knobs) -> Result<(), MathError> {
    let Some((drafter, method)) = drafter(knobs)? else { return Ok(()) };
    let (own, target) = (drafter.spec.embedding.n_vocab, spec.embedding.n_vocab);
    if matches!(method, DraftMethod::DraftModel) && own != target {
        return Err(refused(format!(
            "Target and draft model should have the same vocabulary size. Target model vocab_size={target}. Draft model \
             vocab_size={own}. Using models with different tokenizers can cause out-of-bounds errors during speculative decoding."
        )));
    }
    // A head of the first version counts its layers on from those of the last stage alone, whose names may be taken.
    let ranges = stages(u64::try_from(spec.layers.len()).unwrap_or(0), knobs.parallelism.pipeline);
    if let (DraftMethod::Eagle, Some((from, to))) = (method, ranges.last().copied())
        && (from..to).contains(&(to - from))
    {
        return Err(refused(format!("Duplicate layer name: model.layers.{}.self_attn.attn", to - from)));
    }
    Ok(())
}

/// Positions are divided over the ranks that would repeat a head.
fn check_context(context: u64, tensor: u64, heads: u64, kv_heads: u64) -> Result<(), MathError> {
    if tensor <= kv_heads {
        return Err(refused(format!(
            "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tensor}) to be greater than the model's \
             total number of KV heads ({kv_heads}). Increase `--tensor-parallel-size` or set `--decode-context-parallel-size 1`."
        )));
    }
    let most = tensor / kv_heads;
    if context > most {
        return Err(refused(format!(
            "`--decode-context-parallel-size` ({context}) exceeds the maximum supported value ({most}) for \
             `--tensor-parallel-size` ({tensor}) and {kv_heads} model KV heads."
        )));
    }
    let shared = heads / kv_heads;
    if !shared.is_multiple_of(context) {
        return Err(refused(format!(
            "The model's number of query heads per KV head ({shared}) must be divisible by `--decode-context-parallel-size` \
             ({context}) for GQA/MQA."
        )));
    }
    Ok(())
}

/// A cache is shared within a stage only.
fn shared_caches(spec: &ModelSpec, knobs: &Knobs) -> Result<(), MathError> {
    let ranges = stages(u64::try_from(spec.layers.len()).unwrap_or(0), knobs.parallelism.pipeline);
    let stage = |index: u64| ranges.iter().position(|(from, to)| (*from..*to).contains(&index));
    let sharing: Vec<(u64, u64)> = (0..).zip(&spec.layers).filter_map(|(index, layer)| Some((index, source(layer)?))).collect();
    match sharing.into_iter().find(|(index, source)| stage(*index) != stage(*source)) {
        None => Ok(()),
        Some((index, source)) => Err(refused(format!(
            "Specified KV sharing target layer for layers.{index}.self_attn.attn is not valid: target layer \
             layers.{source}.self_attn.attn is not a valid Attention layer in the model."
        ))),
    }
}

fn source(layer: &Layer) -> Option<u64> {
    let attention = match &layer.mixer {
        Mixer::Attention(attention) => attention,
        Mixer::Parallel(parallel) => &parallel.attention,
        _ => return None,
    };
    match attention.kv_source {
        KvSource::Layer { layer } => Some(u64::from(layer)),
        KvSource::Own | KvSource::NotCached => None,
    }
}
