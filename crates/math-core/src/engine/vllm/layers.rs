//! The caches that vLLM's layers register for a model (`get_kv_cache_spec` of its layer classes), and the block they
//! agree on (`vllm/platforms/interface.py:update_block_size_for_backend`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::VERSION;
use super::backend::{Backend, Needs};
use super::cache_spec::{CacheKind, CacheSpec, Identity, RequestShape, StrideAlignment, lcm};
use super::facts::Checkpoint;
use super::groups::{LayerCache, PoolLayout};
use super::options::{CacheDtype, DraftMethod, Knobs, MaxLength};
use super::plan::CachePlan;
use super::states::{State, StateContext, state_of};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attention, CompressedAttention, KvSource, Layer, Mixer, Mla, ModelSpec, Window};
use crate::units::{add, mul};

/// vLLM's own default (`vllm/config/cache.py:CacheConfig.DEFAULT_BLOCK_SIZE`).
const DEFAULT_BLOCK: u64 = 16;
/// Hybrids with latents keep blocks of whole TRT-LLM tiles (`_align_hybrid_block_size`).
const LATENT_HYBRID_BLOCK: u64 = 128;

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

/// A part of a layer that keeps a cache.
/// Heads whose keys and values are kept.
#[derive(Debug, Clone, Copy)]
struct Heads {
    n_kv_heads: u64,
    k: u64,
    v: u64,
    window: Window,
}

impl Heads {
    const fn of(attention: &Attention) -> Self {
        Self { n_kv_heads: attention.n_kv_heads, k: attention.k_head_dim, v: attention.v_head_dim, window: attention.window }
    }
}

#[derive(Debug)]
enum Part<'a> {
    Keys(Heads, Needs, Backend),
    Cross(Heads, Needs, Backend),
    Latent(&'a Mla, Needs, Backend),
    Compressed(&'a CompressedAttention),
    State(State<'a>),
}

#[derive(Debug)]
struct Found<'a> {
    label: String,
    stage: u64,
    draft: bool,
    part: Part<'a>,
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

/// The caches of a model, and what the engine settles on.
///
/// # Errors
/// [`MathError::Refused`] for what the engine refuses, with its reason; [`MathError::Unsupported`] for a mechanism that
/// this policy does not know.
pub fn cache_plan(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<(CachePlan, Settled), MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    let heads = head_counts(spec);
    check_parallelism(spec, knobs, heads)?;
    let cache = cache_dtype(spec, checkpoint, knobs)?;
    let dtype = checkpoint.dtype;
    let encoder_decoder = spec.encoder.is_some();
    let has_states = spec.layers.iter().any(has_state);
    let has_attention = spec.layers.iter().any(|layer| heads_of(layer).is_some());
    let attention_free = has_states && !has_attention;
    let prefix_caching = knobs.prefix_caching.unwrap_or(!attention_free && !encoder_decoder);
    let aligned = has_states && prefix_caching;
    let (batch_default, sequences_default) = knobs.batch_defaults();
    let trained = checkpoint.max_length.unwrap_or(spec.max_context);
    let max_length = match knobs.max_length {
        MaxLength::Tokens(tokens) => {
            if trained > 0 && tokens > trained {
                return Err(refused(format!(
                    "User-specified max_model_len ({tokens}) is greater than the derived max_model_len \
                     (max_position_embeddings={} or model_max_length=None in model's config.json).",
                    trained
                )));
            }
            tokens
        }
        MaxLength::Model | MaxLength::Fit => trained,
    };
    let mut max_batched_tokens = knobs.max_batched_tokens.unwrap_or(batch_default);
    if let (None, true, Some(tokens)) = (knobs.max_batched_tokens, checkpoint.mm_prefix, checkpoint.media_tokens) {
        // An image is seen as a whole, so a step has to hold one.
        max_batched_tokens = max_batched_tokens.max(tokens);
    }
    let drafted = knobs.speculation.map_or(0, |speculation| speculation.tokens);
    let batches = if knobs.async_scheduling { knobs.parallelism.pipeline.max(1) + 1 } else { knobs.parallelism.pipeline.max(1) };
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
        alibi: uses_alibi(&spec.architecture),
        qk_nope: 0,
        qk_rope: 0,
        selected: None,
        expanded: expands_latents(&spec.architecture),
        context_parallel: knobs.parallelism.decode_context.max(1),
    };
    let found = find(spec, knobs, needs)?;
    let context = StateContext { knobs, checkpoint, d_model: spec.d_model, architecture: &spec.architecture };

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
    let modules = draft_layers(spec).len();
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
        max_sequences: knobs.max_sequences.unwrap_or(sequences_default),
        prefix_caching,
        backends: backends.iter().map(|(backend, _)| backend.name().to_string()).collect(),
    };
    Ok((plan, settled))
}

/// Query and key-value heads of the first layer that has any.
fn head_counts(spec: &ModelSpec) -> Option<(u64, u64)> {
    spec.layers.iter().find_map(heads_of)
}

const fn has_state(layer: &Layer) -> bool {
    matches!(layer.mixer, Mixer::Parallel(_)) || state_of(&layer.mixer).is_some()
}

const fn heads_of(layer: &Layer) -> Option<(u64, u64)> {
    match &layer.mixer {
        Mixer::Attention(attention) => Some((attention.n_heads, attention.n_kv_heads)),
        Mixer::Mla(mla) => Some((mla.n_heads, 1)),
        Mixer::CompressedAttention(attention) => Some((attention.n_heads, 1)),
        Mixer::Parallel(parallel) => Some((parallel.attention.n_heads, parallel.attention.n_kv_heads)),
        _ => None,
    }
}

/// What vLLM refuses before it builds anything (`vllm/config/model.py:verify_with_parallel_config` and the divisions in
/// its layers).
fn check_parallelism(spec: &ModelSpec, knobs: &Knobs, heads: Option<(u64, u64)>) -> Result<(), MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    if let Some((heads, _)) = heads
        && !heads.is_multiple_of(tensor)
    {
        return Err(refused(format!(
            "Total number of attention heads ({heads}) must be divisible by tensor parallel size ({tensor})."
        )));
    }
    for layer in &spec.layers {
        let Some((heads, kv_heads)) = heads_of(layer) else { continue };
        let _ = heads;
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
    let context = knobs.parallelism.decode_context.max(1);
    if !tensor.is_multiple_of(context) {
        return Err(refused(format!("tp_size={tensor} must be divisible by dcp_size={context}.")));
    }
    if context > 1
        && let Some((_, kv_heads)) = heads
        && kv_heads > 1
        && (tensor <= kv_heads || context > tensor / kv_heads)
    {
        return Err(refused(format!(
            "tensor parallel size {tensor} must be greater than total num kv heads {kv_heads} and decode context parallel \
             size {context} at most {} when enable decode context parallel for GQA/MQA",
            tensor / kv_heads.max(1)
        )));
    }
    Ok(())
}

/// The cache format that the engine resolves `auto` and hooks to.
fn cache_dtype(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<CacheDtype, MathError> {
    let arch = spec.architecture.as_str();
    let mut cache = knobs.cache_dtype;
    if matches!(cache, CacheDtype::Auto)
        && let Some(asked) = checkpoint.cache_dtype
    {
        cache = asked;
    }
    if arch.starts_with("DeepseekV32") && matches!(cache, CacheDtype::Bfloat16) {
        cache = CacheDtype::Auto;
    }
    if arch.starts_with("GlmMoeDsa") && matches!(cache, CacheDtype::Auto) && knobs.gpu.major() == 10 {
        cache = CacheDtype::Fp8E4M3;
    }
    if arch.starts_with("DeepseekV4") && !matches!(cache, CacheDtype::Bfloat16) {
        cache = CacheDtype::Fp8DsMla;
    }
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

/// What sparse backends make of the format (`cache_config.cache_dtype` after the layers are built).
fn effective_dtype(found: &[Found<'_>], cache: CacheDtype) -> CacheDtype {
    found
        .iter()
        .find_map(|entry| match &entry.part {
            Part::Latent(_, needs, backend) if needs.selected.is_some() => Some(backend.cache_dtype(cache)),
            _ => None,
        })
        .unwrap_or(cache)
}

/// Classes that pass linear biases instead of positions.
fn uses_alibi(architecture: &str) -> bool {
    matches!(architecture, "BloomForCausalLM" | "MPTForCausalLM" | "MptForCausalLM" | "JAISLMHeadModel" | "BaiChuanForCausalLM")
}

/// Classes that expand latents before they cache them, with values padded to the width of keys.
fn expands_latents(architecture: &str) -> bool {
    architecture.starts_with("MiniCPM3")
}

/// Every part that keeps a cache, in the order the model builds them.
fn find<'a>(spec: &'a ModelSpec, knobs: &Knobs, needs: Needs) -> Result<Vec<Found<'a>>, MathError> {
    let ranges = stages(u64::try_from(spec.layers.len()).unwrap_or(0), knobs.parallelism.pipeline);
    let mut found = Vec::new();
    let turbo_skips = turbo_skips(spec, needs.cache);
    for (index, layer) in (0_u64..).zip(&spec.layers) {
        let stage = (0_u64..).zip(&ranges).find(|(_, (from, to))| (*from..*to).contains(&index)).map_or(0, |(stage, _)| stage);
        let mut layer_needs = needs;
        // Falcon's class gives its layers no cache format.
        if turbo_skips.contains(&index) || spec.architecture == "FalconForCausalLM" {
            layer_needs.cache = CacheDtype::Auto;
        }
        layer_parts(layer, (index, stage, false), layer_needs, knobs, &mut found)?;
    }
    if let Some(speculation) = knobs.speculation
        && matches!(speculation.method, DraftMethod::Mtp)
    {
        let drafts = draft_layers(spec);
        if drafts.is_empty() {
            return Err(refused("method mtp: the model has no multi-token-prediction layers".to_string()));
        }
        let last = knobs.parallelism.pipeline.max(1) - 1;
        let n = u64::try_from(spec.layers.len()).unwrap_or(0);
        for (index, layer) in (n..).zip(drafts) {
            layer_parts(layer, (index, last, true), needs, knobs, &mut found)?;
        }
    }
    if spec.architecture == "Zamba2ForCausalLM" {
        // Its shared transformer blocks are built before the layers that use them.
        found.sort_by_key(|entry| matches!(entry.part, Part::State(_)));
    }
    Ok(found)
}

/// The layers of a model's own draft module (`vllm/config/speculative.py:hf_config_override`).
#[must_use]
pub fn draft_layers(spec: &ModelSpec) -> Vec<&Layer> {
    let layers = spec.mtp.iter().map(|mtp| &mtp.layer);
    match spec.architecture.as_str() {
        // One module is loaded and run again for every further token.
        "MiMoV2FlashForCausalLM" => layers.take(1).collect(),
        // Its config does not mention the module, which is one layer of full attention.
        "Qwen3NextForCausalLM" if spec.mtp.is_empty() => {
            spec.layers.iter().rev().find(|layer| matches!(layer.mixer, Mixer::Attention(_))).into_iter().collect()
        }
        _ => layers.collect(),
    }
}

/// TurboQuant leaves the first and the last two attention layers as they are, unless there are states between them
/// (`TurboQuantConfig.get_boundary_skip_layers`).
fn turbo_skips(spec: &ModelSpec, cache: CacheDtype) -> Vec<u64> {
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
            if needs.gpu.major() != 9 && needs.gpu.major() != 10 {
                return Err(refused("No valid attention backend found for DeepSeek-V4 on this GPU".to_string()));
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

/// `_preferred_block_size_for_backends`.
fn preferred_block(backends: &[(Backend, Needs)]) -> Result<u64, MathError> {
    if let [(only, needs)] = backends {
        return Ok(only.preferred(DEFAULT_BLOCK, needs));
    }
    let all = |tokens: u64| backends.iter().all(|(backend, needs)| backend.accepts(tokens, needs));
    if all(DEFAULT_BLOCK) {
        return Ok(DEFAULT_BLOCK);
    }
    let mut candidates: Vec<u64> = Vec::from([1]);
    for (backend, needs) in backends {
        let mut next = Vec::new();
        for known in &candidates {
            for (tokens, _) in backend.kernel_blocks(needs) {
                next.push(lcm(*known, *tokens)?);
            }
        }
        next.sort_unstable();
        next.dedup();
        candidates = next;
    }
    candidates.into_iter().find(|tokens| all(*tokens)).ok_or_else(|| {
        let names: Vec<&str> = backends.iter().map(|(backend, _)| backend.name()).collect();
        refused(format!("The attention backends share no supported KV cache block size ({}).", names.join("; ")))
    })
}

/// Blocks large enough for a recurrent state, and the page that states are padded to (`_align_hybrid_block_size`).
fn hybrid_block(
    found: &[Found<'_>],
    context: &StateContext<'_>,
    block: u64,
    aligned: bool,
    backends: &[(Backend, Needs)],
    first: (Backend, Needs),
) -> Result<(u64, Option<u64>), MathError> {
    let token = token_page(found, context.knobs, context.checkpoint.dtype, first)?;
    let mut largest = 0;
    for entry in found {
        if let Part::State(state) = &entry.part {
            largest = largest.max(state.bytes(context)?);
        }
    }
    if largest == 0 || token == 0 {
        return Ok((block, None));
    }
    let mut kernel = first.0.smallest_block(&first.1).max(block);
    let mut common = 1;
    for (backend, needs) in backends {
        common = lcm(common, backend.smallest_block(needs))?;
    }
    if found.iter().any(|entry| matches!(entry.part, Part::Latent(..))) {
        kernel = kernel.max(LATENT_HYBRID_BLOCK);
    }
    if aligned {
        let exported = found.iter().find_map(|entry| match &entry.part {
            Part::State(state) => Some(state.checkpoint_alignment(context)),
            _ => None,
        });
        kernel = lcm(kernel, exported.flatten().unwrap_or(1))?;
    }
    let mut tokens = mul(kernel, largest.div_ceil(mul(kernel, token)?))?;
    tokens = mul(common, tokens.div_ceil(common))?;
    let block = block.max(tokens);
    let page = mul(block, token)?;
    Ok((block, (page != largest).then_some(page)))
}

/// Bytes of one token in the first attention layer, as it is packed.
fn token_page(found: &[Found<'_>], knobs: &Knobs, dtype: StorageFormat, first: (Backend, Needs)) -> Result<u64, MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    for entry in found {
        match &entry.part {
            Part::Keys(attention, needs, _) => {
                let spec = key_spec(attention, needs, 1, tensor, dtype)?;
                return first.0.pack(spec, needs)?.bare_page();
            }
            Part::Latent(mla, needs, _) => {
                let packed = matches!(needs.cache, CacheDtype::Fp8DsMla);
                let bytes = if packed { 1 } else { needs.cache.element_bytes(dtype) };
                return mul(add(mla.kv_lora_rank, mla.qk_rope_head_dim)?, bytes);
            }
            Part::Cross(..) | Part::Compressed(_) | Part::State(_) => {}
        }
    }
    Ok(0)
}

/// Blocks whose quantized pages are as large as the unquantized ones beside them
/// (`_align_heterogeneous_kv_block_size`).
fn heterogeneous_block(
    found: &[Found<'_>],
    knobs: &Knobs,
    backend: Backend,
    needs: &Needs,
    block: u64,
    dtype: StorageFormat,
) -> Result<(u64, Option<u64>), MathError> {
    let tensor = knobs.parallelism.tensor.max(1);
    let Some(heads) = found.iter().find_map(|entry| match &entry.part {
        Part::Keys(heads, ..) => Some(*heads),
        _ => None,
    }) else {
        return Ok((block, None));
    };
    let quantized = Needs { cache: knobs.cache_dtype, ..*needs };
    let plain = Needs { cache: CacheDtype::Auto, ..*needs };
    let primary = backend.pack(key_spec(&heads, &quantized, 1, tensor, dtype)?, &quantized)?.bare_page()?;
    let padded = backend.pack(key_spec(&heads, &plain, 1, tensor, dtype)?, &plain)?.bare_page()?;
    if padded == primary || primary == 0 {
        return Ok((block, None));
    }
    let smallest = backend.smallest_block(&quantized);
    let step = smallest.max(block);
    let required = mul(padded, smallest)?;
    let block = block.max(mul(step, required.div_ceil(mul(step, primary)?))?);
    Ok((block, Some(mul(block, primary)?)))
}

/// Keys and values of a layer on one rank, unpacked (`FullAttentionSpec`).
fn key_spec(heads: &Heads, needs: &Needs, block: u64, tensor: u64, dtype: StorageFormat) -> Result<CacheSpec, MathError> {
    let element = needs.cache.element_bytes(dtype);
    Ok(CacheSpec {
        kind: CacheKind::Full,
        block_tokens: block,
        head_slots: (heads.n_kv_heads / tensor).max(1),
        state_bytes: mul(add(heads.k, heads.v)?, element)?,
        tokens_per_state: 1,
        padded_page: None,
        page_alignment: 1,
        stride_alignment: StrideAlignment::Any,
        context_sharded: true,
        tensor_shards: None,
        extra_retained: 0,
        identity: Identity {
            head_size: heads.k,
            head_size_v: heads.v,
            element_bytes: element,
            quantization: needs.cache.identity(),
            ..Identity::default()
        },
    })
}

fn latent_spec(kind: CacheKind, block: u64, state_bytes: u64, identity: Identity) -> CacheSpec {
    CacheSpec {
        kind,
        block_tokens: block,
        head_slots: 1,
        state_bytes,
        tokens_per_state: 1,
        padded_page: None,
        page_alignment: 1,
        stride_alignment: StrideAlignment::Any,
        context_sharded: true,
        tensor_shards: Some(1),
        extra_retained: 0,
        identity,
    }
}

/// Blocks that were settled on.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    block: u64,
    aligned: bool,
    state_block: Option<u64>,
    state_page: Option<u64>,
    skipped_page: Option<u64>,
}

fn caches_of(
    entry: &Found<'_>,
    context: &StateContext<'_>,
    blocks: &Blocks,
    drafted: u64,
) -> Result<Vec<(String, CacheSpec)>, MathError> {
    let Blocks { block, skipped_page, .. } = *blocks;
    let dtype = context.checkpoint.dtype;
    let tensor = context.knobs.parallelism.tensor.max(1);
    let mut caches = Vec::new();
    match &entry.part {
        Part::Keys(attention, needs, backend) => {
            let mut spec = backend.pack(key_spec(attention, needs, block, tensor, dtype)?, needs)?;
            match attention.window {
                Window::Full | Window::Symmetric { .. } => {}
                Window::Chunked { tokens } => spec.kind = CacheKind::ChunkedLocal { tokens },
                Window::Sliding { tokens } => {
                    // A window takes the largest kernel block whose page fits the primary one's.
                    let token = backend.pack(key_spec(attention, needs, 1, tensor, dtype)?, needs)?.bare_page()?;
                    let budget = match skipped_page {
                        Some(page) => page,
                        None => mul(token, block)?,
                    };
                    let fitting = largest_kernel_block(*backend, needs, token, budget);
                    spec = CacheSpec {
                        kind: CacheKind::SlidingWindow { tokens },
                        padded_page: skipped_page,
                        ..spec.with_block(fitting)
                    };
                }
            }
            caches.push((entry.label.clone(), spec));
        }
        Part::Cross(attention, needs, backend) => {
            let spec = backend.pack(key_spec(attention, needs, block, tensor, dtype)?, needs)?;
            caches.push((entry.label.clone(), CacheSpec { kind: CacheKind::Cross, ..spec }));
        }
        Part::Latent(mla, needs, backend) => {
            let format = backend.cache_dtype(needs.cache);
            let latent = add(mla.kv_lora_rank, mla.qk_rope_head_dim)?;
            let bytes = match format {
                CacheDtype::Fp8DsMla => 656,
                CacheDtype::Nvfp4DsMla => 352,
                other => mul(latent, other.element_bytes(dtype))?,
            };
            if let Some(indexer) = &mla.indexer
                && indexer.own
            {
                // One key vector in fp8 with a scale for every 128 elements.
                let bytes = add(indexer.head_dim, mul(indexer.head_dim.div_ceil(128), 4)?)?;
                let identity = Identity { head_size: bytes, element_bytes: 1, role: 2, ..Identity::default() };
                let spec = latent_spec(CacheKind::Latent, block, bytes, identity);
                let label = format!("{}, indexer", entry.label);
                caches.push((label, CacheSpec { stride_alignment: StrideAlignment::KernelBlock(64), ..spec }));
            }
            let identity = Identity {
                head_size: latent,
                element_bytes: format.element_bytes(dtype),
                quantization: format.identity(),
                role: u64::from(mla.indexer.as_ref().is_some_and(|indexer| indexer.own)),
                selected: needs.selected.unwrap_or(0),
                ..Identity::default()
            };
            let kind = match mla.window {
                Window::Sliding { tokens } => CacheKind::SlidingWindowLatent { tokens },
                _ => CacheKind::Latent,
            };
            let packed = Needs { cache: format, ..*needs };
            caches.push((entry.label.clone(), backend.pack(latent_spec(kind, block, bytes, identity), &packed)?));
        }
        Part::Compressed(attention) => compressed(attention, &entry.label, block, &mut caches)?,
        Part::State(state) => {
            let bytes = state.bytes(context)?;
            let kind = CacheKind::State {
                speculative_blocks: drafted,
                checkpoint_blocks: state.checkpoint_blocks(context, blocks.aligned),
            };
            let spec = CacheSpec {
                kind,
                block_tokens: blocks.state_block.unwrap_or(block),
                head_slots: 1,
                state_bytes: bytes,
                tokens_per_state: 0,
                padded_page: blocks.state_page,
                page_alignment: 1,
                stride_alignment: StrideAlignment::Any,
                context_sharded: false,
                tensor_shards: None,
                extra_retained: 0,
                identity: Identity { shape: bytes, ..Identity::default() },
            };
            caches.push((entry.label.clone(), spec));
        }
    }
    Ok(caches)
}

/// `_largest_kernel_block_within`.
fn largest_kernel_block(backend: Backend, needs: &Needs, token: u64, budget: u64) -> u64 {
    let most = budget.checked_div(token).unwrap_or(0);
    let candidates = || {
        backend
            .kernel_blocks(needs)
            .iter()
            .map(move |(tokens, multiples)| if *multiples { (*tokens).max(most / (*tokens).max(1) * *tokens) } else { *tokens })
    };
    candidates().filter(|tokens| *tokens <= most).max().or_else(|| candidates().min()).unwrap_or(most)
}

/// DeepSeek V4 keeps up to five caches a layer (`vllm/models/deepseek_v4/attention.py`, `compressor.py`): raw latents of
/// a window, compressed latents, the selector's keys, and the compressors' unfinished states in single precision.
fn compressed(
    attention: &CompressedAttention,
    label: &str,
    block: u64,
    caches: &mut Vec<(String, CacheSpec)>,
) -> Result<(), MathError> {
    /// Bytes of a stored latent: 448 fp8 values, 64 in bf16 and eight scales.
    const LATENT: u64 = 584;
    /// Alignment of a page.
    const PAGE: u64 = 576;
    let aligned = |spec: CacheSpec| CacheSpec { page_alignment: PAGE, ..spec };
    let named = |what: &str| format!("{label}, {what}");
    let of_model = Identity { head_size: attention.head_dim, element_bytes: 1, quantization: 1, role: 4, ..Identity::default() };
    let raw = latent_spec(CacheKind::SlidingWindowLatent { tokens: attention.window }, 64, LATENT, of_model);
    caches.push((named("window"), aligned(raw)));
    if attention.ratio <= 1 {
        return Ok(());
    }
    let ratio = attention.ratio;
    // Overlapping groups of four are compressed from twice as many tokens.
    let overlap = if ratio == 4 { 2 } else { 1 };
    let unfinished = |head: u64| -> Result<CacheSpec, MathError> {
        let state = mul(mul(2, overlap)?, head)?;
        let identity = Identity { head_size: state, element_bytes: 4, ..Identity::default() };
        let kind = CacheKind::SlidingWindowLatent { tokens: mul(overlap, ratio)? };
        Ok(aligned(latent_spec(kind, if ratio == 4 { 4 } else { 8 }, mul(state, 4)?, identity)))
    };
    let over_states = |spec: CacheSpec| {
        aligned(CacheSpec { tokens_per_state: ratio, stride_alignment: StrideAlignment::KernelBlock(256), ..spec })
    };
    if let Some(indexer) = &attention.indexer
        && indexer.own
    {
        let bytes = add(indexer.head_dim, mul(indexer.head_dim.div_ceil(128), 4)?)?;
        let identity = Identity { head_size: bytes, element_bytes: 1, ..Identity::default() };
        caches.push((named("indexer"), over_states(latent_spec(CacheKind::Latent, block, bytes, identity))));
        caches.push((named("indexer's compressor"), unfinished(indexer.head_dim)?));
    }
    caches.push((named("compressed"), over_states(latent_spec(CacheKind::Latent, block, LATENT, of_model))));
    caches.push((named("compressor"), unfinished(attention.head_dim)?));
    Ok(())
}
