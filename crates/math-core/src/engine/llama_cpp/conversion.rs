//! What the converter writes: which tensors of a plain 16-bit file stay in single precision.

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::tensor::{Tensor, TensorTable};

use super::loader_facts::LoaderFacts;

/// Names, without layer and suffix, of matrices that the converter keeps in single precision
/// (`conversion/base.py:prepare_tensors`): routers, small convolutions, RWKV's small matrices, AltUp coefficients.
const SINGLE_PRECISION: &[&str] = &[
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "shortconv.conv",
    "time_mix_first",
    "time_mix_w1",
    "time_mix_w2",
    "time_mix_decay_w1",
    "time_mix_decay_w2",
    "time_mix_lerp_fused",
    "altup_correct_coef",
    "altup_predict_coef",
    "indexer.proj",
];

/// `table` as the converter writes it with `--outtype bf16`, `f16` or `f32`, without what converters leave out.
///
/// # Errors
/// [`MathError::Invalid`] when `base` is none of the three.
pub fn converted(facts: &LoaderFacts, table: &TensorTable, base: StorageFormat) -> Result<TensorTable, MathError> {
    if !matches!(base, StorageFormat::F32 | StorageFormat::F16 | StorageFormat::Bf16) {
        return Err(MathError::Invalid {
            field: alloc::string::String::from("converted format"),
            found: alloc::string::String::from(base.name()),
            expected: alloc::string::String::from("bf16, f16 or f32"),
        });
    }
    let tensors =
        table.tensors.iter().map(|tensor| Tensor { format: converted_format(facts, tensor, base), ..tensor.clone() }).collect();
    Ok(TensorTable { tensors })
}

/// The format of one tensor after conversion.
#[must_use]
pub fn converted_format(facts: &LoaderFacts, tensor: &Tensor, base: StorageFormat) -> StorageFormat {
    let name = tensor.name.as_str();
    let Some(stem) = name.strip_suffix(".weight") else {
        return StorageFormat::F32;
    };
    let base_name = base_name(stem);
    // DeepSeek V4's first layers route by token id: whole numbers.
    if base_name == "ffn_gate_tid2eid" {
        return StorageFormat::I32;
    }
    if let Some(packed) = facts.packed_experts
        && base_name.ends_with("_exps")
        && tensor.shape.n_dims() == 3
    {
        return packed;
    }
    let single = tensor.shape.n_dims() < 2
        || stem.ends_with("_norm")
        || (SINGLE_PRECISION.contains(&base_name) && !keeps_checkpoint_type(facts, base_name))
        || keeps_single_precision(facts, base_name);
    if single { StorageFormat::F32 } else { base }
}

/// DeepSeek V4's converter keeps the checkpoint's own type of every matrix; the selector's projections are bf16 there
/// (`conversion/deepseek.py:tensor_force_quant`).
fn keeps_checkpoint_type(facts: &LoaderFacts, base_name: &str) -> bool {
    facts.arch == "deepseek4" && base_name == "indexer.proj"
}

/// What single families keep beyond the common rule (`conversion/*.py:tensor_force_quant`).
fn keeps_single_precision(facts: &LoaderFacts, base_name: &str) -> bool {
    match facts.arch.as_str() {
        "minimax-m3" => base_name.starts_with("indexer."),
        "hy-v4" => matches!(base_name, "hc_attn_fn" | "hc_ffn_fn" | "output_hc_fn"),
        "glm5-next" => ["hc_attn_", "hc_ffn_", "indexer_compressor_", "ssm_a", "ssm_dt", "exp_probs_b"]
            .iter()
            .any(|key| base_name.contains(key)),
        _ => false,
    }
}

/// A tensor's name without its layer: `blk.3.attn_q` is `attn_q`, `dec.blk.0.ffn_up` is `ffn_up`.
pub(super) fn base_name(stem: &str) -> &str {
    let inner = stem.strip_prefix("enc.").or_else(|| stem.strip_prefix("dec.")).unwrap_or(stem);
    match inner.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, base)) if layer.bytes().all(|byte| byte.is_ascii_digit()) => base,
        _ => stem,
    }
}
