//! Tokens of a block: one size that all backends accept and that a recurrent state fits in
//! (`vllm/platforms/interface.py:update_block_size_for_backend`).

use alloc::format;
use alloc::vec::Vec;

use super::super::backend::{Backend, Needs};
use super::super::cache_spec::lcm;
use super::super::options::{CacheDtype, Knobs};
use super::super::states::StateContext;
use super::find::{Found, Part};
use super::specs::key_spec;
use super::{DEFAULT_BLOCK, refused};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// Hybrids with latents keep blocks of whole TRT-LLM tiles (`_align_hybrid_block_size`).
const LATENT_HYBRID_BLOCK: u64 = 128;

/// `_preferred_block_size_for_backends`.
pub(super) fn preferred_block(backends: &[(Backend, Needs)]) -> Result<u64, MathError> {
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
pub(super) fn hybrid_block(
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
pub(super) fn heterogeneous_block(
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
