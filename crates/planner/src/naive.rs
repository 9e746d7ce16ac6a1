//! What a textbook calculator says, to stand beside the true figure.

use alloc::format;

use plimsoll_math::spec::{Attention, Mixer};
use plimsoll_math::units::{Bytes, mul};

use crate::error::PlanError;
use crate::model::{Basis, Model};
use crate::response::Naive;

/// Nominal bits of a file type's name: the digit in it, as calculators read it.
fn nominal_bits(quant: &str) -> Option<u64> {
    let upper = quant.to_ascii_uppercase();
    match upper.as_str() {
        "F32" => return Some(32),
        "F16" | "BF16" => return Some(16),
        _ => {}
    }
    upper.chars().find(char::is_ascii_digit).and_then(|digit| digit.to_digit(10)).map(u64::from)
}

fn softmax(mixer: &Mixer) -> Option<&Attention> {
    match mixer {
        Mixer::Attention(attention) => Some(attention),
        Mixer::Parallel(parallel) => Some(&parallel.attention),
        _ => None,
    }
}

/// Parameters times nominal bits, and `2 x layers x heads x head elements x 2 bytes` per token with every layer a full
/// attention layer: no windows, no latents, no recurrent layers, no rounding.
///
/// # Errors
/// [`PlanError::Math`] on overflow.
pub fn naive(model: &Model, sequences: u64, context: u64, quant: Option<&str>) -> Result<Naive, PlanError> {
    let params = model.tensors.total_params()?.get();
    let stored = match model.basis {
        Basis::Config => quant.map(alloc::string::ToString::to_string),
        Basis::Gguf | Basis::Checkpoint => model.quantization.clone(),
    };
    let bits = stored.as_deref().and_then(nominal_bits).unwrap_or(16);
    let weights = Bytes::new(mul(params, bits)? / 8)?;
    let n_layers = u64::try_from(model.spec.layers.len()).unwrap_or(u64::MAX);
    // Calculators read head counts from the config's single field: the first attention layer stands for all.
    let (heads, width) = model
        .spec
        .layers
        .iter()
        .find_map(|layer| softmax(&layer.mixer).map(|attention| (attention.n_kv_heads, attention.k_head_dim)))
        .or_else(|| {
            model.spec.layers.iter().find_map(|layer| match &layer.mixer {
                Mixer::Mla(mla) => Some((mla.n_heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim)),
                Mixer::CompressedAttention(compressed) => Some((compressed.n_heads, compressed.head_dim)),
                _ => None,
            })
        })
        .unwrap_or((0, 0));
    let per_token = mul(mul(mul(4, n_layers)?, heads)?, width)?;
    let kv_cache = Bytes::new(mul(mul(per_token, context)?, sequences)?)?;
    Ok(Naive {
        weights,
        kv_cache,
        formula: format!(
            "parameters x {bits} bits + 2 x {n_layers} layers x {heads} heads x {width} x 2 B x {context} tokens x {sequences}"
        ),
    })
}
