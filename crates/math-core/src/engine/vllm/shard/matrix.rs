//! What a tensor's part is to a scheme of quantization, and its number type without one.

use super::super::facts::Checkpoint;
use super::super::quantization::Matrix;
use super::{Part, Rules, role};
use crate::format::StorageFormat;
use crate::spec::{FeedForward, Mixer};
use crate::tensor::{Place, Tensor};

impl Rules<'_> {
    /// The matrix that stands for a tensor's part under a scheme.
    #[must_use]
    pub fn matrix(&self, tensor: &Tensor, part: &Part, checkpoint: &Checkpoint) -> Option<Matrix> {
        let name = role(&tensor.name).strip_suffix(".weight").unwrap_or_default();
        let (mut n_in, mut n_out, mut stack) = (part.n_in, part.n_out, part.stack);
        let name = if matches!(tensor.place, Place::Tower) { name.rsplit('.').next().unwrap_or(name) } else { name };
        let expert = name.ends_with("_exps");
        match name {
            // One matrix from the latent to keys and values, which files hold in two.
            "attn_k_b" => return None,
            "attn_v_b" => {
                let mla = match self.layer(tensor).map(|layer| &layer.mixer) {
                    Some(Mixer::Mla(mla)) => mla,
                    _ => return None,
                };
                n_in = mla.kv_lora_rank;
                n_out = mla.n_heads / self.ranks * (mla.qk_nope_head_dim + mla.v_head_dim);
                stack = 1;
            }
            _ => {}
        }
        let leads = !matches!(
            name,
            "attn_k" | "attn_v" | "ffn_up_shexp" | "ffn_up_exps" | "ffn_down_exps" | "attn_kv_a_mqa" | "attn_gate"
        );
        // An up projection is fused into the gate's where there is one of its own.
        let behind_gate = name == "ffn_up"
            && match self.layer(tensor).or_else(|| self.tower_layer(tensor)).map(|layer| &layer.feed_forward) {
                Some(FeedForward::Dense(dense)) => dense.gated && !dense.fused_gate_up,
                _ => true,
            };
        let leads = leads && !behind_gate;
        let hidden = match self.layer(tensor).map(|layer| &layer.feed_forward) {
            Some(FeedForward::Moe(moe)) if self.experts_whole => moe.d_ff_expert,
            Some(FeedForward::Moe(moe)) => moe.d_ff_expert / self.hidden_ranks,
            _ => 0,
        };
        let shards = self.shards(tensor, name);
        Some(Matrix {
            n_in,
            n_out,
            experts: expert.then_some(stack),
            leads,
            shards,
            dtype: checkpoint.dtype,
            reads_hidden: name == "ffn_down_exps",
            expert_hidden: hidden,
            rounding: self.rounding,
            inputs_split: part.inputs_split,
            outputs_split: part.outputs_split,
            fused: shards > 1
                || matches!(
                    name,
                    "attn_q"
                        | "attn_k"
                        | "attn_v"
                        | "attn_gate"
                        | "ffn_gate"
                        | "ffn_up"
                        | "ffn_gate_shexp"
                        | "ffn_up_shexp"
                        | "ssm_alpha"
                        | "ssm_beta"
                ),
        })
    }

    /// Matrices of the checkpoint that a tensor's matrix is made of.
    fn shards(&self, tensor: &Tensor, name: &str) -> u64 {
        let layer = self.layer(tensor);
        let delta = matches!(layer.map(|layer| &layer.mixer), Some(Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_)));
        let fused_gate =
            || matches!(layer.map(|layer| &layer.feed_forward), Some(FeedForward::Dense(dense)) if dense.fused_gate_up);
        match name {
            "ssm_in" if delta => 4,
            "ssm_in" => match self.mamba2(tensor) {
                Some(mamba) if mamba.n_groups.is_multiple_of(self.ranks) => 5,
                Some(_) => 1,
                None => 2,
            },
            "attn_qkv" | "shortconv.in_proj" => 3,
            "ssm_ba" | "ffn_gate_up_exps" => 2,
            "ffn_up" if fused_gate() => 2,
            _ => 1,
        }
    }

    pub(super) fn compresses(&self, tensor: &Tensor) -> bool {
        matches!(self.layer(tensor).map(|layer| &layer.mixer), Some(Mixer::CompressedAttention(_)))
    }

    /// The number type of an unquantized tensor.
    #[must_use]
    pub fn format(&self, tensor: &Tensor, checkpoint: &Checkpoint) -> StorageFormat {
        let name = role(&tensor.name);
        match name {
            "ffn_gate_tid2eid.weight" => return StorageFormat::I32,
            "draft_to_target" => return StorageFormat::I64,
            _ => {}
        }
        let single = match name {
            // Decay rates.
            "ssm_a" => !self.class.model_type_decay,
            "exp_probs_b.bias" | "altup_correct_scale.weight" => true,
            "ffn_gate_inp.weight" => self.single_routers,
            "indexer.k_norm.weight" | "indexer.k_norm.bias" => true,
            // Hyper-connections, and positions inside the groups that are compressed.
            "attn_compressor_ape.weight" | "indexer_compressor_ape.weight" => true,
            name if name.starts_with("hc_") || name.starts_with("output_hc_") => true,
            "attn_sinks.weight" => self.compresses(tensor),
            "ssm_conv1d_q.weight" | "ssm_conv1d_k.weight" | "ssm_conv1d_v.weight" | "ssm_dt.bias" => {
                matches!(self.layer(tensor).map(|layer| &layer.mixer), Some(Mixer::KimiDelta(_)))
            }
            _ => false,
        };
        if single { StorageFormat::F32 } else { checkpoint.dtype }
    }
}
