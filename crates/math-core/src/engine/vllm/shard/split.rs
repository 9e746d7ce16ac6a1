//! Which side of a tensor ranks divide.

use super::super::class::SplitNorms;
use super::Rules;
use crate::spec::Mixer;
use crate::tensor::{Component, Place, Tensor};

/// How a tensor is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::vllm) enum Split {
    /// On every rank.
    Whole,
    /// Outputs are divided.
    Outputs,
    /// Inputs are divided.
    Inputs,
    /// Outputs are key-value heads.
    KvHeads,
    /// A stack of experts, divided by their hidden outputs.
    ExpertOutputs,
    /// A stack of experts, divided by their hidden inputs.
    ExpertInputs,
    /// Biases of experts, on the hidden side or on the model's.
    ExpertBias {
        /// Whether they belong to hidden outputs.
        outputs: bool,
    },
    /// Queries, keys and values in one matrix.
    Fused,
    /// Mamba 2's input projection.
    Mamba2In,
    /// Mamba 2's convolution.
    Mamba2Conv,
}

impl Rules<'_> {
    pub(in crate::engine::vllm) fn split(&self, tensor: &Tensor) -> Split {
        if matches!(tensor.place, Place::Tower) {
            return self.split_tower(tensor);
        }
        let name = role(&tensor.name);
        let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
        let is_bias = name.ends_with(".bias");
        let mixer = self.layer(tensor).map(|layer| &layer.mixer);
        let delta = matches!(mixer, Some(Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_)));
        let mamba2 = self.mamba2(tensor).is_some();
        match stem {
            _ if self.whole_shared && stem.ends_with("_shexp") => Split::Whole,
            "attn_q"
            | "attn_q_b"
            | "attn_gate"
            | "attn_k_b"
            | "attn_v_b"
            | "attn_kv_b"
            | "attn_output_a"
            | "ffn_up"
            | "ffn_gate"
            | "ffn_up_shexp"
            | "ffn_gate_shexp"
            | "cross_attn_q"
            | "attn_sinks"
            | "ffn_up_adapter_a"
            | "ffn_up_adapter_b"
            | "laurel_l"
            | "per_layer_model_proj"
            | "altup_proj"
            | "altup_unembd_proj"
            | "per_layer_token_embd"
            | "token_embd.placeholders" => Split::Outputs,
            "laurel_r" => Split::Inputs,
            "attn_k" | "attn_v" if delta => Split::Outputs,
            "attn_k" | "attn_v" | "cross_attn_k" | "cross_attn_v" => Split::KvHeads,
            "attn_qkv" if delta => Split::Outputs,
            "attn_qkv" => Split::Fused,
            "attn_output" | "attn_o" | "cross_attn_o" | "ffn_down" | "ffn_down_shexp" if is_bias => Split::Whole,
            "attn_output" | "attn_output_b" | "attn_o" | "cross_attn_o" | "ffn_down" | "ffn_down_shexp" => Split::Inputs,
            "ffn_up_exps" | "ffn_gate_exps" | "ffn_gate_up_exps" if is_bias => Split::ExpertBias { outputs: true },
            "ffn_down_exps" if is_bias => Split::ExpertBias { outputs: false },
            "ffn_up_exps" | "ffn_gate_exps" | "ffn_gate_up_exps" => Split::ExpertOutputs,
            "ffn_down_exps" if name.ends_with(".scale") => Split::Whole,
            "ffn_down_exps" => Split::ExpertInputs,
            // States.
            "ssm_in" if mamba2 => Split::Mamba2In,
            "ssm_conv1d" if mamba2 => Split::Mamba2Conv,
            "ssm_in" | "ssm_conv1d" | "ssm_conv1d_q" | "ssm_conv1d_k" | "ssm_conv1d_v" | "ssm_dt" | "ssm_a" | "ssm_d"
            | "ssm_alpha" | "ssm_beta" | "ssm_ba" | "ssm_f_b" | "ssm_g" | "ssm_g_b" | "shortconv.in_proj" | "shortconv.conv" => {
                Split::Outputs
            }
            "ssm_norm" if mamba2 => Split::Outputs,
            "ssm_out" | "ssm_x" | "shortconv.out_proj" if is_bias => Split::Whole,
            "ssm_out" | "ssm_x" | "shortconv.out_proj" => Split::Inputs,
            "attn_q_norm" | "attn_k_norm" if self.norms_split(tensor) => {
                if stem == "attn_q_norm" {
                    Split::Outputs
                } else {
                    Split::KvHeads
                }
            }
            _ => Split::Whole,
        }
    }

    /// Whether norms over all heads are divided with them.
    fn norms_split(&self, tensor: &Tensor) -> bool {
        match self.class.split_norms {
            SplitNorms::None => false,
            SplitNorms::Vectors => tensor.shape.n_dims() == 1,
            SplitNorms::Matrices => tensor.shape.n_dims() == 2,
        }
    }

    fn split_tower(&self, tensor: &Tensor) -> Split {
        let class = self.class.tower;
        let name = tensor.name.as_str();
        let uneven = || {
            let layer = self.spec.towers.first().and_then(|tower| tower.layers.first());
            matches!(layer.map(|layer| &layer.mixer), Some(Mixer::Attention(attention)) if !attention.n_heads.is_multiple_of(self.ranks))
        };
        let whole = class.whole || (class.whole_projector && name.starts_with("v.mm.")) || (class.whole_if_uneven && uneven());
        if tensor.component != Component::VisionAudio || whole {
            return Split::Whole;
        }
        let is_bias = name.ends_with(".bias");
        let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
        let last = stem.rsplit('.').next().unwrap_or(stem);
        match last {
            "attn_q" | "attn_k" | "attn_v" | "attn_qkv" | "ffn_up" | "ffn_gate" => Split::Outputs,
            "attn_output" | "attn_out" | "ffn_down" if is_bias => Split::Whole,
            "attn_output" | "attn_out" | "ffn_down" => Split::Inputs,
            "patch_embd" | "mm" if class.split_patches => Split::Outputs,
            "patch_merger" => Split::Whole,
            _ if stem.contains("merger.0")
                || stem.contains("adapter.0")
                || stem == "v.mm.0"
                || (stem.contains("deepstack") && stem.ends_with(".0")) =>
            {
                Split::Outputs
            }
            _ if ["merger.", "adapter.", "deepstack.", "v.mm."].iter().any(|part| stem.contains(part))
                && !stem.contains("norm")
                && !stem.contains(".ln") =>
            {
                if is_bias {
                    Split::Whole
                } else {
                    Split::Inputs
                }
            }
            _ => Split::Whole,
        }
    }
}

/// A tensor's name without its layer.
pub(in crate::engine::vllm) fn role(name: &str) -> &str {
    let rest = name.strip_prefix("blk.").or_else(|| name.strip_prefix("dec.blk.")).or_else(|| name.strip_prefix("enc.blk."));
    match rest.and_then(|rest| rest.split_once('.')) {
        Some((_, role)) => role,
        None => name,
    }
}
