//! Buffers for LoRA adapters (`vllm/lora/layers`): every linear layer holds room for as many adapters as a batch may use,
//! at the largest rank, whether adapters are loaded or not.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::facts::Checkpoint;
use super::layers::stages;
use super::options::Knobs;
use super::shard::{Rules, role};
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, LmHead, Mixer, ModelSpec};
use crate::tensor::{Place, TensorTable};
use crate::units::{add, mul};

/// Ranks that the engine takes (`vllm/config/lora.py:MaxLoRARanks`).
pub const RANKS: [u64; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
/// The most rows of a vocabulary that adapters may change (`LogitsProcessorWithLoRA.create_lora_weights`).
const LARGEST_VOCABULARY: u64 = 258_048;

/// Room for adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Adapters {
    /// Adapters of one batch (`--max-loras`).
    pub count: u64,
    /// Their largest rank (`--max-lora-rank`).
    pub rank: u64,
}

/// Bytes of the buffers on a rank of every pipeline stage: for each of the checkpoint's matrices `A` with a row for every
/// input and `B` with a row for every output, divided as the matrix is on its divided side and whole on the other.
///
/// # Errors
/// [`MathError::Refused`] for ranks and vocabularies that the engine does not take, [`MathError::Unsupported`] for layers
/// whose buffers are not followed.
pub fn buffers(spec: &ModelSpec, table: &TensorTable, checkpoint: &Checkpoint, knobs: &Knobs) -> Result<Vec<u64>, MathError> {
    let ranges = stages(u64::try_from(spec.layers.len()).unwrap_or(u64::MAX), knobs.parallelism.pipeline);
    let mut bytes = vec![0; ranges.len()];
    let Some(adapters) = knobs.adapters else { return Ok(bytes) };
    if !RANKS.contains(&adapters.rank) || adapters.count == 0 {
        return Err(MathError::Refused {
            engine: VERSION.to_string(),
            reason: format!(
                "{} adapters of rank {}: ranks are {RANKS:?}, and at least one adapter",
                adapters.count, adapters.rank
            ),
        });
    }
    // Kernels that hold quantized experts in tiles have buffers in tiles too (`fused_moe/oracle/mxfp4.py`), and experts
    // beside others were not looked at.
    let tiled = checkpoint.experts_scheme.or(checkpoint.scheme).is_some();
    let feeds = |layer: &Layer| match &layer.feed_forward {
        FeedForward::Dense(_) => true,
        FeedForward::Moe(moe) => moe.shared.is_none() && moe.beside.is_none() && moe.latent.is_none() && !tiled,
        _ => false,
    };
    let followed = spec.layers.iter().all(|layer| matches!(layer.mixer, Mixer::Attention(_)) && feeds(layer));
    if !followed || checkpoint.class.library || spec.encoder.is_some() {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: "LoRA adapters for anything but attention, dense feed-forward layers and routed experts alone".to_string(),
        });
    }
    let element = mul(mul(adapters.count, adapters.rank)?, checkpoint.dtype.block_bytes())?;
    let mut hold = |stage: usize, sides: u64| -> Result<(), MathError> {
        if let Some(sum) = bytes.get_mut(stage) {
            *sum = add(*sum, mul(sides, element)?)?;
        }
        Ok(())
    };
    let rules = Rules::new(spec, checkpoint, knobs)?;
    for tensor in table.tensors.iter().filter(|tensor| rules.loads(tensor)) {
        let Place::Layer(index) = tensor.place else { continue };
        let linear = matches!(
            role(&tensor.name),
            "attn_q.weight"
                | "attn_k.weight"
                | "attn_v.weight"
                | "attn_qkv.weight"
                | "attn_output.weight"
                | "ffn_gate.weight"
                | "ffn_up.weight"
                | "ffn_down.weight"
                | "ffn_gate_inp.weight"
                | "ffn_gate_exps.weight"
                | "ffn_up_exps.weight"
                | "ffn_gate_up_exps.weight"
                | "ffn_down_exps.weight"
        );
        if linear && let Some(stage) = ranges.iter().position(|(from, to)| (*from..*to).contains(&u64::from(index))) {
            for part in rules.parts(tensor)? {
                hold(stage, mul(add(part.n_in, part.n_out)?, part.stack)?)?;
            }
        }
    }
    let class = &checkpoint.class;
    let rows = spec.embedding.n_vocab;
    if class.adapts_head && rows > LARGEST_VOCABULARY {
        return Err(MathError::Refused {
            engine: VERSION.to_string(),
            reason: format!("When using LoRA, vocab size must be <= {LARGEST_VOCABULARY}: {rows}"),
        });
    }
    // Whole on every rank, and once for each end even where both are one matrix.
    let last = ranges.len().saturating_sub(1);
    let tied = matches!(spec.head.lm_head, LmHead::Tied) && last > 0;
    for stage in 0..=last {
        let embeds = class.adapts_embedding && (stage == 0 || class.ends.embedding || (tied && stage == last));
        let heads = class.adapts_head && (stage == last || class.ends.head);
        hold(stage, mul(add(rows, spec.d_model)?, u64::from(embeds) + u64::from(heads))?)?;
    }
    Ok(bytes)
}
