//! TensorRT-LLM's PyTorch backend: a share of what loading leaves free, in blocks of tokens.
//!
//! Followed by its source (`tensorrt_llm/_torch/pyexecutor/resource_manager.py` at 001541b) and its documentation
//! (`KvCacheConfig`, 1.3); it installs on a GPU only, so nothing here was checked by running it.

use alloc::string::ToString;

use crate::engine::kept::rows;
use crate::error::MathError;
use crate::spec::{Mixer, ModelSpec};
use crate::units::{add, mul};

/// The version that is followed.
pub const VERSION: &str = "TensorRT-LLM 1.3";
/// The version's number.
pub const VERSION_NUMBER: &str = "1.3";
/// Tokens of a block (`KvCacheConfig.tokens_per_block`).
pub const TOKENS_PER_BLOCK: u64 = 32;
/// The default share of free memory (`KvCacheConfig.free_gpu_memory_fraction`), in millionths.
pub const FREE_SHARE: u64 = 900_000;

fn unsupported(mechanism: &str) -> MathError {
    MathError::Unsupported { engine: VERSION.to_string(), mechanism: mechanism.to_string() }
}

/// Bytes of one token on a rank, all of its layers together. Windows keep every token unless `max_attention_window` names
/// them (`KVCacheManager.__init__`).
///
/// # Errors
/// [`MathError::Unsupported`] for what is not followed, [`MathError::Overflow`].
pub fn token_bytes(spec: &ModelSpec, layers: (u64, u64), tensor: u64, element: u64) -> Result<u64, MathError> {
    if spec.encoder.is_some() || spec.layers.iter().any(|layer| layer.cross_attention.is_some()) {
        return Err(unsupported("caches of encoder-decoders and cross attention"));
    }
    let mut out = 0;
    for (index, layer) in (0_u64..).zip(&spec.layers) {
        if !(layers.0..layers.1).contains(&index) {
            continue;
        }
        let token = match &layer.mixer {
            // Latents are keys alone (`CacheType.SELFKONLY`).
            Mixer::Mla(mla) if mla.indexer.is_none() => add(mla.kv_lora_rank, mla.qk_rope_head_dim)?,
            Mixer::Mla(_) => return Err(unsupported("selectors of sparse attention")),
            Mixer::Attention(attention) if let Some(mechanism) = attention.kv_source.without_own() => {
                return Err(unsupported(mechanism));
            }
            Mixer::Attention(attention) if attention.k_head_dim != attention.v_head_dim => {
                return Err(unsupported("value heads of another size than key heads"));
            }
            mixer @ Mixer::Attention(_) => match rows(mixer) {
                // A head that does not divide is on every rank that needs it.
                Some(own) => mul(own.heads.div_ceil(tensor.max(1)), mul(2, own.k)?)?,
                None => 0,
            },
            Mixer::None => 0,
            Mixer::CompressedAttention(_) => return Err(unsupported("attention over compressed tokens")),
            _ => return Err(unsupported("recurrent states")),
        };
        out = add(out, mul(token, element)?)?;
    }
    Ok(out)
}
