//! The caches that layers register, once the block is settled (`get_kv_cache_spec` of the layer classes).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::super::backend::{Backend, Needs};
use super::super::cache_spec::{CacheKind, CacheSpec, Identity, StrideAlignment};
use super::super::options::CacheDtype;
use super::super::states::StateContext;
use super::find::{Found, Heads, Part};
use super::refused;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{CompressedAttention, Window};
use crate::units::{add, mul};

/// Keys and values of a layer on one rank, unpacked (`FullAttentionSpec`).
pub(super) fn key_spec(
    heads: &Heads,
    needs: &Needs,
    block: u64,
    tensor: u64,
    dtype: StorageFormat,
) -> Result<CacheSpec, MathError> {
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
pub(super) struct Blocks {
    pub(super) block: u64,
    pub(super) aligned: bool,
    pub(super) state_block: Option<u64>,
    pub(super) state_page: Option<u64>,
    pub(super) skipped_page: Option<u64>,
}

/// The caches of one part.
pub(super) fn caches_of(
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
    if block < ratio {
        // A block that holds no whole group of tokens has no states to divide by.
        return Err(refused("integer division or modulo by zero".into()));
    }
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
