//! What the linear layers of a model are called in its checkpoint, and which of them a quantization leaves out.

use alloc::format;
use alloc::string::{String, ToString};

use super::class::ExpertsModule;
use super::facts::Checkpoint;
use super::shard::{Rules, role};
use crate::spec::{FeedForward, Mixer};
use crate::tensor::{Place, Tensor};

impl Rules<'_> {
    /// Whether a checkpoint's quantization covers a tensor: matrices of linears that the class hands the scheme to, and
    /// that the checkpoint does not leave out.
    #[must_use]
    pub fn quantized(&self, tensor: &Tensor, checkpoint: &Checkpoint) -> bool {
        let Some(scheme) = checkpoint.scheme else { return false };
        let Some(module) = self.module(tensor) else { return false };
        if scheme.experts_only() && !module.contains("experts") {
            return false;
        }
        !checkpoint.unquantized.iter().any(|pattern| leaves_out(pattern, &module))
    }

    /// The linear layer's name in the checkpoint, for tensors that are linears to a quantization.
    fn module(&self, tensor: &Tensor) -> Option<String> {
        let Place::Layer(index) = tensor.place else { return None };
        let name = role(&tensor.name).strip_suffix(".weight")?;
        let mixer = self.layer(tensor).map(|layer| &layer.mixer);
        let recurrent =
            matches!(mixer, Some(Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_) | Mixer::Mamba1(_) | Mixer::Mamba2(_)));
        let moe = matches!(self.layer(tensor).map(|layer| &layer.feed_forward), Some(FeedForward::Moe(_)));
        let short = match name {
            "attn_qkv" | "attn_gate" | "ssm_ba" | "ssm_in" | "ssm_out" if recurrent => "linear_attn.in_proj",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_qkv" => "self_attn.qkv_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_a" => "self_attn.q_a_proj",
            "attn_q_b" => "self_attn.q_b_proj",
            "attn_kv_a_mqa" => "self_attn.kv_a_proj_with_mqa",
            "attn_k_b" | "attn_v_b" | "attn_kv_b" => "self_attn.kv_b_proj",
            "indexer.attn_q_b" => "self_attn.indexer.wq_b",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "ffn_gate_shexp" => "mlp.shared_experts.gate_proj",
            "ffn_up_shexp" => "mlp.shared_experts.up_proj",
            "ffn_down_shexp" => "mlp.shared_experts.down_proj",
            "ffn_gate_exps" => "mlp.experts.0.gate_proj",
            "ffn_up_exps" => "mlp.experts.0.up_proj",
            "ffn_gate_up_exps" => "mlp.experts.0.gate_up_proj",
            "ffn_down_exps" => "mlp.experts.0.down_proj",
            "ffn_gate_inp" if moe && self.class.router.through_scheme => "mlp.gate",
            _ => return None,
        };
        let short = match self.class.experts {
            ExpertsModule::Mlp => short.to_string(),
            ExpertsModule::BlockSparseMoe => short.replace("mlp.", "block_sparse_moe."),
        };
        Some(format!("model.layers.{index}.{short}"))
    }
}

/// Whether a pattern of a checkpoint's list of unquantized layers covers a layer: a name, the beginning of one, or with
/// `*` and `re:` for what varies.
fn leaves_out(pattern: &str, module: &str) -> bool {
    let glob = match pattern.strip_prefix("re:") {
        Some(regex) => regex.replace(".*", "*").replace("\\.", ".").replace(['^', '$'], ""),
        None => pattern.to_string(),
    };
    if let Some((before, rest)) = glob.split_once('(')
        && let Some((choices, after)) = rest.split_once(')')
    {
        return choices.split('|').any(|choice| leaves_out(&format!("{before}{choice}{after}"), module));
    }
    let glob = glob.replace("language_model.", "");
    let glob = glob.strip_prefix("model.").map_or_else(|| glob.clone(), ToString::to_string);
    let module = module.strip_prefix("model.").unwrap_or(module);
    let mut rest = module;
    let mut pieces = glob.split('*');
    let Some(first) = pieces.next() else { return false };
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    let mut open = false;
    for piece in pieces {
        open = true;
        match rest.find(piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.is_empty() || (open && glob.ends_with('*')) || rest.starts_with('.')
}
