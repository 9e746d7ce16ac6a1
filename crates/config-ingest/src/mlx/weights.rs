//! What a model weighs in MLX's format, before any file of it exists.
//!
//! The converter quantizes every linear layer, expert stack and embedding whose rows are whole groups
//! (mlx-lm `utils.py:quantize_model`); norms, convolutions, vectors and towers stay as they are.

use alloc::format;
use alloc::string::String;

use plimsoll_math::tensor::{Component, Counts, Place, Tensor, TensorTable};
use plimsoll_math::units::Bytes;

use super::quantization::{Group, Quantization};
use crate::error::IngestError;

/// The table of a model (names as in GGUF, stored as numbers) as MLX stores it: quantized matrices have the bytes of
/// their words, scales and biases as `opaque_bytes`. Multi-token prediction is left out, as MLX leaves it out.
///
/// # Errors
/// [`IngestError::Math`] when a size leaves the exact range.
pub fn stored_table(table: &TensorTable, quantization: &Quantization) -> Result<TensorTable, IngestError> {
    let corrected = |layer: u32| {
        let bias = format!("blk.{layer}.exp_probs_b.bias");
        table.get(&bias).is_some()
    };
    let mut stored = TensorTable::default();
    for tensor in &table.tensors {
        if matches!(tensor.counts, Counts::MultiTokenPrediction | Counts::Derived) {
            continue;
        }
        let mut tensor = tensor.clone();
        if let Some(group) = group_of(&tensor, quantization, &corrected)
            && let Some(row) = group.row_bytes(tensor.shape.row(), tensor.format.row_bytes(1)?.get())?
        {
            tensor.opaque_bytes = Some(Bytes::new(row)?.times(tensor.shape.rows()?)?);
        }
        stored.tensors.push(tensor);
    }
    Ok(stored)
}

fn group_of(tensor: &Tensor, quantization: &Quantization, corrected: &dyn Fn(u32) -> bool) -> Option<Group> {
    let role =
        tensor.name.rsplit_once("blk.").and_then(|(_, rest)| rest.split_once('.')).map_or(tensor.name.as_str(), |(_, role)| role);
    let base = role.strip_suffix(".weight")?;
    // A gate of one row is a linear layer like any other.
    let matrix = tensor.shape.n_dims() > 1 || base == "ffn_gate_inp_shexp";
    // Left as they are: what lies inside a tower (mlx-vlm `utils.py:skip_multimodal_module`). Gemma's projector is a
    // module beside its tower.
    let in_tower = tensor.place == Place::Tower && !base.ends_with("input_projection");
    let kept = in_tower || tensor.component == Component::Norms || base.contains("conv") || base.contains("norm");
    if !matrix || kept {
        return None;
    }
    let layer = match tensor.place {
        Place::Layer(layer) => Some(layer),
        _ => None,
    };
    if let Some(own) = own_entry(base, layer, quantization) {
        return own;
    }
    // A router with a correction bias is a module with a bare parameter, which the converter passes by, unless the
    // config names it.
    if tensor.component == Component::Router && layer.is_some_and(corrected) {
        return None;
    }
    Some(quantization.default)
}

/// The config's entry for a module. Modules go by Hugging Face's names there, so ours are translated: the layer's number
/// and how the path ends.
fn own_entry(base: &str, layer: Option<u32>, quantization: &Quantization) -> Option<Option<Group>> {
    let ends: &[&str] = match base {
        "token_embd" => &["embed_tokens", "embeddings", "wte"],
        "output" => &["lm_head"],
        "attn_q" => &["self_attn.q_proj", "mixer.q_proj"],
        "attn_k" => &["self_attn.k_proj", "mixer.k_proj"],
        "attn_v" => &["self_attn.v_proj", "mixer.v_proj"],
        "attn_output" => &["self_attn.o_proj", "mixer.o_proj"],
        "attn_q_a" => &["self_attn.q_a_proj"],
        "attn_q_b" => &["self_attn.q_b_proj"],
        "attn_kv_a_mqa" => &["self_attn.kv_a_proj_with_mqa"],
        "attn_k_b" => &["self_attn.embed_q", "self_attn.kv_b_proj"],
        "attn_v_b" => &["self_attn.unembed_out", "self_attn.kv_b_proj"],
        "ffn_gate" => &["mlp.gate_proj"],
        "ffn_up" => &["mlp.up_proj", "mixer.up_proj"],
        "ffn_down" => &["mlp.down_proj", "mixer.down_proj"],
        "ffn_gate_exps" => &["switch_mlp.gate_proj", "experts.gate_proj", "switch_glu.gate_proj"],
        "ffn_up_exps" => &["switch_mlp.up_proj", "experts.up_proj", "switch_mlp.fc1", "switch_glu.up_proj"],
        "ffn_down_exps" => &["switch_mlp.down_proj", "experts.down_proj", "switch_mlp.fc2", "switch_glu.down_proj"],
        "ffn_gate_inp" => &["mlp.gate", "mlp.router", "block_sparse_moe.gate", "mixer.gate", "feed_forward.gate", "router.proj"],
        "ffn_gate_inp_shexp" => &["mlp.shared_expert_gate"],
        "ffn_gate_shexp" => &["shared_experts.gate_proj", "shared_expert.gate_proj"],
        "ffn_up_shexp" => &["shared_experts.up_proj", "shared_expert.up_proj"],
        "ffn_down_shexp" => &["shared_experts.down_proj", "shared_expert.down_proj"],
        _ => return None,
    };
    let number: Option<String> = layer.map(|layer| format!("layers.{layer}."));
    quantization.modules.iter().find_map(|(path, group)| {
        let in_layer = number.as_ref().is_none_or(|number| {
            path.find(number.as_str()).is_some_and(|at| at == 0 || path.get(..at).is_some_and(|before| before.ends_with('.')))
        });
        let ends = ends.iter().any(|end| path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
        (in_layer && ends).then_some(*group)
    })
}
