//! How wide the buffers of a step are: the sizes from which engines' bounds on working memory follow.

use crate::error::MathError;
use crate::spec::{FeedForward, Layer, Mixer, ModelSpec};
use crate::units::{add, mul};

/// Elements per token of the buffers of a model's layers on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Widths {
    /// The widest single buffer.
    pub widest: u64,
    /// All buffers of the layer that has most, hidden states included.
    pub layer: u64,
    /// The widest rotated head.
    pub rotary: u64,
}

fn feed_forward(layer: &Layer, d_model: u64, tensor: u64) -> Result<u64, MathError> {
    Ok(match &layer.feed_forward {
        FeedForward::Dense(dense) => mul(3, dense.d_ff)? / tensor,
        FeedForward::Moe(moe) => {
            let per_expert = add(mul(3, moe.d_ff_expert)? / tensor, d_model)?;
            let shared = moe.shared.as_ref().map_or(0, |dense| dense.d_ff.saturating_mul(3));
            add(mul(moe.n_experts_per_token, per_expert)?, shared)?
        }
        FeedForward::ChannelMix { .. } | FeedForward::None => 0,
    })
}

/// The widths of a model's layers, divided among `tensor` ranks.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn widths(spec: &ModelSpec, tensor: u64) -> Result<Widths, MathError> {
    let tensor = tensor.max(1);
    let mut out = Widths::default();
    for layer in &spec.layers {
        let hidden = feed_forward(layer, spec.d_model, tensor)?;
        let mixer = match &layer.mixer {
            Mixer::Attention(attention) => {
                out.rotary = out.rotary.max(attention.k_head_dim);
                mul(add(attention.n_heads, mul(2, attention.n_kv_heads)?)?, attention.k_head_dim)? / tensor
            }
            Mixer::Mla(mla) => {
                out.rotary = out.rotary.max(mla.qk_rope_head_dim);
                mul(mul(2, mla.n_heads)?, add(add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?, mla.v_head_dim)?)? / tensor
            }
            Mixer::Mamba1(mamba) => mul(4, mamba.d_inner)? / tensor,
            Mixer::Mamba2(mamba) => mul(4, mamba.d_inner)? / tensor,
            Mixer::GatedDeltaNet(net) => mul(6, mul(net.n_v_heads, net.v_head_dim)?)? / tensor,
            _ => mul(6, spec.d_model)? / tensor,
        };
        out.widest = out.widest.max(hidden.max(mixer));
        out.layer = out.layer.max(add(add(hidden, mixer)?, mul(6, spec.d_model)?)?);
    }
    Ok(out)
}
