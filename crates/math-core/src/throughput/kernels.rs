//! How many kernels one token's graph starts: on fast devices a small model waits for them more than for its weights.
//!
//! Counted in the graphs that llama.cpp reserves for one token (build 0c1e57098, CUDA, flash attention on; views are free), with what
//! its backends run as one kernel taken together (`ggml_cuda_can_fuse` in ggml-cuda.cu and its like): a norm with its scale and the sum
//! after it, a rotation with the store into the cache, gate, up and activation, the choice of experts, chains of sums.

use super::float;
use crate::spec::{FeedForward, Layer, Mixer, ModelSpec, OutputGate};

/// The input's row, the last norm, and the head.
const ENDS: u64 = 3;

fn mixer(mixer: &Mixer) -> u64 {
    match mixer {
        // Norm, three products, two rotations (one stores), the other store, attention, product, sum.
        Mixer::Attention(attention) => {
            let norms = u64::from(attention.qk_norm.q != [0, 0]) + u64::from(attention.qk_norm.k != [0, 0]);
            let gate = match attention.gate {
                OutputGate::None => 0,
                OutputGate::InQuery => 3,
                OutputGate::Own { .. } => 2,
            };
            10 + norms + gate
        }
        // DeepSeek V3: 1,692 kernels in 61 layers.
        Mixer::Mla(_) => 17,
        // DeepSeek V4: 4,345 kernels in 43 layers, with compressors, the indexer and four residual streams.
        Mixer::CompressedAttention(_) => 90,
        // Jamba: 1,012 in 32 layers, Codestral Mamba: 1,605 in 64, Nemotron-H: 1,768 in 118.
        Mixer::Mamba1(_) | Mixer::Mamba2(_) | Mixer::Rglru(_) => 25,
        // Qwen3.5 27B: 1,876 in 64 layers, 35B: 1,494 in 40; Kimi Linear: 1,180 in 27.
        Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_) => 29,
        // MiniMax M1: 3,705 in 80 layers.
        Mixer::LightningAttention(_) => 38,
        // RWKV 7: 2,341 in 32 layers, channel mix included.
        Mixer::Rwkv(_) => 65,
        // LFM2: 271 in 16 layers.
        Mixer::ShortConv(_) => 13,
        Mixer::Parallel(parallel) => self::mixer(&Mixer::Attention(parallel.attention.clone())) + self::mixer(&parallel.state),
        Mixer::None => 0,
    }
}

fn feed_forward(layer: &Layer) -> u64 {
    match &layer.feed_forward {
        FeedForward::Dense(dense) => {
            if dense.gated {
                4
            } else {
                5
            }
        }
        // Norm, router, choice, gate with up, down, weights, sum. Biases keep kernels apart (gpt-oss: 556 in 24 layers).
        FeedForward::Moe(moe) => {
            7 + if moe.expert_bias { 6 } else { 0 }
                + moe.shared.as_ref().map_or(0, |_| 3)
                + if moe.shared_gate { 2 } else { 0 }
                + moe.beside.as_ref().map_or(0, |_| 6)
        }
        FeedForward::ChannelMix { .. } => 8,
        FeedForward::None => 0,
    }
}

/// Kernels of one token.
pub(super) fn of(spec: &ModelSpec) -> f64 {
    let own = |layer: &Layer| {
        // A norm more than before the mixer and before the feed-forward is a kernel more.
        let blocks = u64::from(!matches!(layer.mixer, Mixer::None)) + u64::from(!matches!(layer.feed_forward, FeedForward::None));
        let norms = u64::try_from(layer.norms.len()).unwrap_or(0);
        mixer(&layer.mixer) + feed_forward(layer) + norms.saturating_sub(blocks)
    };
    float(spec.layers.iter().map(own).sum::<u64>() + ENDS)
}
