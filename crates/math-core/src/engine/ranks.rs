//! Ranks of servers that load the checkpoint themselves and shard it as vLLM's layers do: weights, work and what is left
//! for the cache, each between two bounds.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::allocation::{Term, TermKind};
use crate::deployment::Parallelism;
use crate::engine::activations::{Widths, widths};
use crate::engine::terms::between;
use crate::engine::vllm::facts::Checkpoint;
use crate::engine::vllm::options::Knobs;
use crate::engine::vllm::quantization::WeightScheme;
use crate::engine::vllm::weights::weights_over;
use crate::error::MathError;
use crate::spec::{Mixer, ModelSpec};
use crate::tensor::TensorTable;
use crate::units::{add, mul};

const MIB: u64 = 1 << 20;
/// What the driver and its libraries hold before anything is loaded.
pub const DRIVER: (u64, u64) = (300 * MIB, 768 * MIB);
/// The same with communication among ranks.
pub const DRIVER_OF_RANKS: (u64, u64) = (300 * MIB, 1536 * MIB);

/// Bytes on every rank of a pipeline stage, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Weights.
    pub weights: (u64, u64),
    /// What a step needs beside weights and cache.
    pub work: (u64, u64),
    /// The driver.
    pub driver: (u64, u64),
}

/// Caches that several ranks hold, in words; nothing where none is held twice.
#[must_use]
pub fn replicated_caches(spec: &ModelSpec, parallelism: &Parallelism) -> String {
    let (tensor, context) = (parallelism.tensor.max(1), parallelism.decode_context.max(1));
    let split = if context > 1 { format!(", tokens divided over {context} of them") } else { String::new() };
    let times = |copies: u64| copies / context;
    let latent = spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Mla(_) | Mixer::CompressedAttention(_)));
    if latent && tensor > 1 {
        return format!("; latents replicated {}x: one latent on {tensor} ranks{split}", times(tensor));
    }
    match kv_heads(spec) {
        Some(heads) if heads > 0 && heads < tensor => {
            format!("; kv replicated {}x: {heads} KV heads on {tensor} ranks{split}", times(tensor / heads))
        }
        _ => String::new(),
    }
}

/// Key and value projections that several ranks hold, in words.
#[must_use]
pub fn replicated_projections(spec: &ModelSpec, parallelism: &Parallelism) -> String {
    let tensor = parallelism.tensor.max(1);
    match kv_heads(spec) {
        Some(heads) if heads > 0 && heads < tensor => {
            format!("; key and value projections replicated {}x: {heads} KV heads on {tensor} ranks", tensor / heads)
        }
        _ => String::new(),
    }
}

/// The fewest key-value heads of any layer: layers may differ.
fn kv_heads(spec: &ModelSpec) -> Option<u64> {
    let heads = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(attention.n_kv_heads),
        Mixer::Parallel(parallel) => Some(parallel.attention.n_kv_heads),
        _ => None,
    });
    heads.min()
}

/// The stages of a model, each of these layers (first and last, exclusive). A rank holds at least its equal share of a stage and at most what vLLM's layers replicate and pad,
/// with the copies that absorbed latent projections make.
///
/// # Errors
/// [`MathError::Refused`] where a matrix cannot be split and [`MathError::Unsupported`], both in the name of `engine`;
/// [`MathError::Overflow`].
pub fn stages(
    engine: &str,
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    ranges: &[(u64, u64)],
    (step_tokens, requests): (u64, u64),
) -> Result<Vec<Stage>, MathError> {
    if checkpoint.scheme == Some(WeightScheme::Unknown) {
        let method = checkpoint.unfollowed.as_deref().unwrap_or_default();
        return Err(MathError::Unsupported { engine: engine.to_string(), mechanism: format!("{method:?} quantization") });
    }
    let tensor = knobs.parallelism.tensor.max(1);
    let sharded = weights_over(spec, table, checkpoint, knobs, ranges).map_err(|error| error.of_engine(engine))?;
    let mut whole = knobs.clone();
    whole.parallelism.tensor = 1;
    whole.parallelism.expert = false;
    let whole = weights_over(spec, table, checkpoint, &whole, ranges).map_err(|error| error.of_engine(engine))?;
    let mut latent: u64 = 0;
    for layer in &spec.layers {
        if let Mixer::Mla(mla) = &layer.mixer {
            let expanded = mul(mul(mla.n_heads / tensor, mla.kv_lora_rank)?, add(mla.qk_nope_head_dim, mla.v_head_dim)?)?;
            latent = add(latent, mul(expanded, checkpoint.dtype.block_bytes())?)?;
        }
    }
    let element = checkpoint.dtype.block_bytes();
    let Widths { widest, layer, rotary } = widths(spec, tensor)?;
    let vocabulary = mul(requests, spec.embedding.n_vocab)?;
    let low = mul(mul(step_tokens, widest)?, element)?.max(mul(vocabulary / tensor, element)?);
    let tables = mul(mul(spec.max_context, rotary)?, 8)?;
    let mut high = add(mul(mul(step_tokens, layer)?, mul(2, element)?)?, mul(vocabulary, 12)?)?;
    // Captured graphs, persistent inputs, workspaces; an encoder's work where there are towers.
    high = add(add(high, tables)?, mul(if spec.towers.is_empty() { 4096 } else { 12_288 }, MIB)?)?;
    let driver = if tensor > 1 || knobs.parallelism.pipeline > 1 { DRIVER_OF_RANKS } else { DRIVER };
    let mut out = Vec::new();
    for (rank, all) in sharded.iter().zip(&whole) {
        let most = rank.bytes();
        // Alone and unquantized, a rank holds every parameter once; else no less than its equal part.
        let least = if tensor == 1 && checkpoint.scheme.is_none() { most } else { (all.bytes() / tensor).min(most) };
        out.push(Stage { weights: (least, add(most, latent)?), work: (low, high), driver });
    }
    Ok(out)
}

impl Stage {
    /// The terms beside the cache.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn terms(&self, engine: &str) -> Result<Vec<Term>, MathError> {
        Ok(Vec::from([
            between(
                TermKind::Weights,
                "weights",
                self.weights,
                "at least an equal part of the stage, at most with what is replicated, padded or kept twice".to_string(),
                &format!("{engine}: its layers shard as vLLM's; not checked by running it"),
            )?,
            between(
                TermKind::Compute,
                "activations, graphs and tables",
                self.work,
                "at least one layer's widest buffer or the logits, at most two layers' buffers, captured graphs and rotary tables"
                    .to_string(),
                "derived from the widths of the layers",
            )?,
            between(
                TermKind::DriverContext,
                "CUDA context, cuBLAS and NCCL",
                self.driver,
                "taken before the engine looks at free memory".to_string(),
                "range seen in public logs; depends on driver and architecture",
            )?,
        ]))
    }
}
