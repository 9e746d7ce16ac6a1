//! The caches that vLLM's layers register for a model (`get_kv_cache_spec` of its layer classes), and the block they
//! agree on (`vllm/platforms/interface.py:update_block_size_for_backend`).

mod blocks;
mod find;
mod refuse;
mod specs;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::VERSION;
use super::backend::{Backend, Needs};
use super::cache_spec::{CacheKind, RequestShape};
use super::class::CacheRule;
use super::facts::{Checkpoint, NameMatching};
use super::groups::{LayerCache, PoolLayout};
use super::options::{CacheDtype, DraftMethod, Knobs, MaxLength};
use super::plan::CachePlan;
use super::states::StateContext;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Mixer, ModelSpec, Window};
use crate::units::mul;
use blocks::{heterogeneous_block, hybrid_block, preferred_block};
use find::{Part, effective_dtype, find, has_state, head_counts, heads_of, sees_ahead, turbo_skips};
pub use find::{draft_layers, stages};
use refuse::{check_layers, check_model, check_parallelism};
use specs::{Blocks, caches_of};

/// vLLM's own default (`vllm/config/cache.py:CacheConfig.DEFAULT_BLOCK_SIZE`).
const DEFAULT_BLOCK: u64 = 16;

/// What the engine settles on before it weighs memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Settled {
    /// Tokens of a block of the primary attention.
    pub block_tokens: u64,
    /// Tokens of a block of recurrent states.
    pub state_block_tokens: Option<u64>,
    /// Bytes that a page of a recurrent state is padded to.
    pub state_page: Option<u64>,
    /// The cache format in effect.
    pub cache_dtype: CacheDtype,
    /// The type the model computes in.
    pub dtype: StorageFormat,
    /// Tokens of a step.
    pub max_batched_tokens: u64,
    /// Sequences at a time.
    pub max_sequences: u64,
    /// Whether prefixes are cached.
    pub prefix_caching: bool,
    /// Names of the attention backends.
    pub backends: Vec<String>,
}

fn refused(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason }
}

/// The caches of a model, and what the engine settles on.
///
/// # Errors
/// [`MathError::Refused`] for what the engine refuses, with its reason; [`MathError::Unsupported`] for a mechanism that
/// this policy does not know.
pub fn cache_plan(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<(CachePlan, Settled), MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    let heads = head_counts(spec);
    check_model(spec, checkpoint, knobs)?;
    check_parallelism(spec, checkpoint, knobs, heads)?;
    check_layers(spec, checkpoint)?;
    let cache = cache_dtype(spec, checkpoint, knobs)?;
    let dtype = checkpoint.dtype;
    let encoder_decoder = spec.encoder.is_some();
    let has_states = spec.layers.iter().any(has_state);
    let has_attention = spec.layers.iter().any(|layer| heads_of(layer).is_some());
    let attention_free = has_states && !has_attention;
    let encoder_only = spec.layers.iter().all(sees_ahead);
    let prefix_caching = knobs.prefix_caching.unwrap_or(!attention_free && !encoder_decoder && !encoder_only);
    let aligned = has_states && prefix_caching;
    let (batch_default, sequences_default) = knobs.batch_defaults();
    let trained = checkpoint.max_length.unwrap_or(spec.max_context);
    let max_length = match knobs.max_length {
        MaxLength::Tokens(tokens) => {
            if trained > 0 && tokens > trained && !checkpoint.assumed_length {
                return Err(refused(format!(
                    "User-specified max_model_len ({tokens}) is greater than the derived max_model_len \
                     (max_position_embeddings={} or model_max_length=None in model's config.json).",
                    trained
                )));
            }
            tokens
        }
        MaxLength::Fit if checkpoint.assumed_length => {
            return Err(refused(
                "max_model_len must be a positive integer, got int: -1. Example: max_model_len=2048".to_string(),
            ));
        }
        MaxLength::Model | MaxLength::Fit => checkpoint.default_length.unwrap_or(trained),
    };
    let mut max_batched_tokens = knobs.max_batched_tokens.unwrap_or(batch_default);
    if let (None, true, Some(tokens)) = (knobs.max_batched_tokens, checkpoint.mm_prefix, checkpoint.media_tokens) {
        // An image is seen as a whole, so a step has to hold one.
        max_batched_tokens = max_batched_tokens.max(tokens);
    }
    let drafted = knobs.speculation.map_or(0, |speculation| speculation.tokens);
    let batches = if knobs.async_scheduling && !checkpoint.class.pooling {
        knobs.parallelism.pipeline.max(1) + 1
    } else {
        knobs.parallelism.pipeline.max(1)
    };
    let mut request = RequestShape {
        max_tokens: max_length,
        in_flight_tokens: mul(batches, max_batched_tokens)?,
        encoder_tokens: max_batched_tokens,
        context_parallel: knobs.parallelism.decode_context.max(1),
        states_aligned: aligned,
    };
    if attention_free {
        request.states_aligned = false;
    }
    let needs = Needs {
        gpu: knobs.gpu,
        head_size: 0,
        head_size_v: 0,
        heads: heads.map_or(0, |(heads, _)| heads / tensor),
        cache,
        block_tokens: knobs.block_tokens,
        sinks: false,
        mm_prefix: checkpoint.mm_prefix,
        window: false,
        alibi: checkpoint.class.linear_biases,
        qk_nope: 0,
        qk_rope: 0,
        selected: None,
        expanded: checkpoint.class.expands_latents,
        context_parallel: knobs.parallelism.decode_context.max(1),
    };
    let found = find(spec, checkpoint, knobs, needs)?;
    let scaled = checkpoint.scheme.is_some_and(|scheme| scheme.cache_scales(checkpoint.matching) != (0, 0));
    // compressed-tensors' checkpoints have scales for a cache only where they say so (`attention/attention.py`).
    let declared = checkpoint.matching != NameMatching::Patterns || checkpoint.cache_dtype.is_some();
    if matches!(cache, CacheDtype::Fp8E5M2) && scaled && declared && !checkpoint.class.without_cache_scales {
        return Err(refused("fp8_e5m2 kv-cache is not supported with fp8 checkpoints.".to_string()));
    }
    let context = StateContext { knobs, checkpoint, d_model: spec.d_model };

    // One block size for all attention backends, then one that a recurrent state fits in. The choice looks at the model's
    // largest head, not at each layer's.
    let widest = found
        .iter()
        .map(|entry| match &entry.part {
            Part::Keys(_, needs, _) => needs.head_size,
            _ => 0,
        })
        .max()
        .unwrap_or(0);
    let mut backends: Vec<(Backend, Needs)> = Vec::new();
    for entry in &found {
        let more: &[(Backend, Needs)] = match &entry.part {
            Part::Keys(_, needs, backend) => &[(*backend, Needs { head_size: widest, ..*needs })],
            Part::Cross(_, needs, backend) => &[(*backend, *needs)],
            Part::Latent(mla, needs, backend) => {
                if mla.indexer.as_ref().is_some_and(|indexer| indexer.own) {
                    &[(Backend::SparseIndexer, *needs), (*backend, *needs)]
                } else {
                    &[(*backend, *needs)]
                }
            }
            Part::Compressed(_) => &[(Backend::DeepSeekV4, needs)],
            Part::State(_) => &[],
        };
        for (backend, needs) in more {
            if !backends.iter().any(|(known, _)| known == backend) {
                backends.push((*backend, *needs));
            }
        }
    }
    let mut block = match (knobs.block_tokens, backends.as_slice()) {
        (Some(tokens), _) => tokens,
        (None, []) => DEFAULT_BLOCK,
        (None, _) => preferred_block(&backends)?,
    };
    let mut state_page = None;
    let mut state_block = has_states.then_some(if aligned { block } else { max_length });
    if has_states && let Some((first_backend, first_needs)) = backends.first().copied() {
        let (aligned_block, page) = hybrid_block(&found, &context, block, aligned, &backends, (first_backend, first_needs))?;
        block = aligned_block;
        state_page = page;
        if aligned {
            state_block = Some(block);
        }
    }
    let mut skipped_page = None;
    let skips = knobs.skip_sliding_window || !turbo_skips(spec, cache).is_empty();
    if skips
        && cache.is_quantized()
        && let Some((backend, needs)) = backends.first().copied()
    {
        (block, skipped_page) = heterogeneous_block(&found, knobs, backend, &needs, block, dtype)?;
    }

    let blocks = Blocks { block, aligned, state_block, state_page, skipped_page };
    let mut caches = Vec::new();
    for entry in &found {
        for (label, cache_spec) in caches_of(entry, &context, &blocks, drafted)? {
            caches.push(LayerCache { label, stage: entry.stage, draft: entry.draft, spec: cache_spec });
        }
    }
    let block_outer = spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::CompressedAttention(_)));
    let layout = if block_outer { PoolLayout::BlockOuter } else { PoolLayout::LayerOuter };
    let modules = draft_layers(spec, &checkpoint.class).len();
    if let Some(speculation) = knobs.speculation
        && matches!(speculation.method, DraftMethod::Mtp)
        && modules > 1
    {
        let retained = speculation.tokens.saturating_sub(1);
        for cache in &mut caches {
            if matches!(cache.spec.kind, CacheKind::SlidingWindow { .. } | CacheKind::SlidingWindowLatent { .. }) {
                cache.spec.extra_retained = retained;
            }
        }
    }
    let plan = CachePlan::new(caches, layout, request, knobs.parallelism.pipeline.max(1), knobs.hybrid_manager)?;
    let settled = Settled {
        block_tokens: block,
        state_block_tokens: state_block,
        state_page,
        cache_dtype: effective_dtype(&found, cache),
        dtype,
        max_batched_tokens,
        max_sequences: knobs.max_sequences.unwrap_or_else(|| sequences_default.min(max_batched_tokens)),
        prefix_caching,
        backends: backends.iter().map(|(backend, _)| backend.name().to_string()).collect(),
    };
    Ok((plan, settled))
}
/// The cache format that the engine resolves `auto` and hooks to.
fn cache_dtype(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<CacheDtype, MathError> {
    let mut cache = knobs.cache_dtype;
    if matches!(cache, CacheDtype::Auto)
        && let Some(asked) = checkpoint.cache_dtype
    {
        cache = asked;
    }
    cache = match checkpoint.class.cache_rule {
        CacheRule::Bfloat16IsAuto if matches!(cache, CacheDtype::Bfloat16) => CacheDtype::Auto,
        CacheRule::Fp8OnBlackwell if matches!(cache, CacheDtype::Auto) && knobs.gpu.major() == 10 => CacheDtype::Fp8E4M3,
        CacheRule::PackedLatents if !matches!(cache, CacheDtype::Bfloat16) => CacheDtype::Fp8DsMla,
        _ => cache,
    };
    if cache.is_turbo()
        && spec.layers.iter().any(
            |layer| matches!(&layer.mixer, Mixer::Attention(attention) if matches!(attention.window, Window::Chunked { .. })),
        )
    {
        return Err(refused(
            "Unknown TurboQuant cache dtype: 'auto'. Valid presets: turboquant_k8v4, turboquant_4bit_nc, \
             turboquant_k3v4_nc, turboquant_3bit_nc"
                .to_string(),
        ));
    }
    Ok(cache)
}
