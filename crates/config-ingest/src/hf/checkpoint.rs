//! What an engine that loads the checkpoint itself reads from its config beyond the architecture.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::engine::vllm::options::CacheDtype;
use plimsoll_math::engine::vllm::quantization::WeightScheme;
use plimsoll_math::format::StorageFormat;

use super::config::Config;
use crate::error::IngestError;

/// Models whose image tokens see each other unless the config says otherwise
/// (vLLM: `transformers_utils/model_arch_config_convertor.py:is_mm_prefix_lm`).
const PREFIX_MODELS: [&str; 5] = ["bagel", "gemma3", "molmo2", "moondream3", "paligemma"];
/// Frames of a clip that Gemma 4's processor takes at most, and tokens of a frame with its marks
/// (vLLM: `model_executor/models/gemma4_mm.py:get_mm_max_tokens_per_item`).
const GEMMA4_CLIP: u64 = 32 * (70 + 2 + 6);

/// Reads the facts.
///
/// # Errors
/// [`IngestError::Field`] for fields that cannot be.
pub(super) fn read(root: &Config<'_>) -> Result<Checkpoint, IngestError> {
    let text = root.child(super::lookup::LANGUAGE_MODEL_KEYS)?;
    let text = text.as_ref().unwrap_or(root);
    let named = |keys: &[&str]| -> Result<Option<StorageFormat>, IngestError> {
        for config in [root, text] {
            if let Ok(Some(name)) = config.str(keys) {
                return Ok(number_type(name));
            }
        }
        Ok(None)
    };
    let dtype = match named(&["dtype", "torch_dtype"])? {
        Some(StorageFormat::F16) => StorageFormat::F16,
        // Single precision and 8-bit formats are served in bfloat16.
        _ => StorageFormat::Bf16,
    };
    let model_type = root.str(&["model_type"])?.unwrap_or_default();
    let mut facts = Checkpoint { dtype, ..Checkpoint::default() };
    facts.cache_dtype = cache_dtype(root, text)?;
    facts.ssm_dtype = state_dtype(root, text, model_type)?;
    let sees_both_ways = text.str(&["use_bidirectional_attention"]).ok().flatten();
    facts.mm_prefix = match root.bool(&["is_mm_prefix_lm"]).ok().flatten() {
        Some(says) => says,
        None if model_type.starts_with("gemma4") => sees_both_ways == Some("vision"),
        None => PREFIX_MODELS.contains(&model_type),
    };
    if model_type.starts_with("gemma4") {
        facts.media_tokens = Some(GEMMA4_CLIP);
    }
    facts.max_length = max_length(text, model_type)?;
    (facts.scheme, facts.unquantized) = scheme(root, text, model_type)?;
    Ok(facts)
}

fn number_type(name: &str) -> Option<StorageFormat> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" | "float" => Some(StorageFormat::F32),
        "float16" | "half" => Some(StorageFormat::F16),
        "bfloat16" => Some(StorageFormat::Bf16),
        _ => None,
    }
}

/// The cache format that a quantization asks for: ModelOpt's `kv_cache_quant_algo`, compressed-tensors'
/// `kv_cache_scheme` (vLLM: `utils/torch_utils.py:resolve_kv_cache_dtype_string`).
fn cache_dtype(root: &Config<'_>, text: &Config<'_>) -> Result<Option<CacheDtype>, IngestError> {
    for object in [root, text] {
        for key in ["quantization_config", "compression_config"] {
            let Some(config) = object.child(&[key])? else { continue };
            let inner = config.child(&["quantization"])?;
            for level in [Some(&config), inner.as_ref()].into_iter().flatten() {
                match level.str(&["kv_cache_quant_algo"]).ok().flatten() {
                    Some("FP8") => return Ok(Some(CacheDtype::Fp8E4M3)),
                    Some("NVFP4") => return Ok(Some(CacheDtype::Nvfp4)),
                    _ => {}
                }
            }
            // Files of ModelOpt's first versions name the format here.
            if let Some((serde_json::Value::String(name), _)) = config.raw(&["kv_cache_scheme"]) {
                match name.as_str() {
                    "FP8" => return Ok(Some(CacheDtype::Fp8E4M3)),
                    "NVFP4" => return Ok(Some(CacheDtype::Nvfp4)),
                    _ => continue,
                }
            }
            let Some(scheme) = config.child(&["kv_cache_scheme"])? else { continue };
            if scheme.u64(&["num_bits"])? == Some(8) && scheme.str(&["type"])? == Some("float") {
                return Ok(Some(CacheDtype::Fp8E4M3));
            }
        }
    }
    Ok(None)
}

/// Types of recurrent states that model classes take from their config: Nemotron-H (single precision unless it says
/// otherwise) and Qwen3.5 (vLLM: `model_executor/models/config.py`).
fn state_dtype(root: &Config<'_>, text: &Config<'_>, model_type: &str) -> Result<Option<StorageFormat>, IngestError> {
    for config in [root, text] {
        if let Some(name) = config.str(&["mamba_ssm_dtype"]).ok().flatten() {
            return Ok(number_type(name));
        }
    }
    if model_type.starts_with("nemotron_h") || model_type.starts_with("NemotronH") {
        let named = text.str(&["mamba_ssm_cache_dtype"])?.and_then(number_type);
        return Ok(Some(named.unwrap_or(StorageFormat::F32)));
    }
    Ok(None)
}

/// How the weights are quantized, as the engine reads it, and what stays unquantized.
fn scheme(root: &Config<'_>, text: &Config<'_>, model_type: &str) -> Result<(Option<WeightScheme>, Vec<String>), IngestError> {
    let mut found = None;
    for object in [root, text] {
        for key in ["quantization_config", "compression_config"] {
            if found.is_none() {
                found = object.child(&[key])?;
            }
        }
    }
    let Some(config) = found else { return Ok((None, Vec::new())) };
    let inner = config.child(&["quantization"])?;
    let inner = inner.as_ref().unwrap_or(&config);
    let mut left_out = Vec::new();
    for level in [&config, inner] {
        for key in ["ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers"] {
            if let Ok(Some(names)) = level.str_list(&[key]) {
                left_out.extend(names.into_iter().map(ToOwned::to_owned));
            }
        }
    }
    let number = |config: &Config<'_>, key: &str| config.u64(&[key]).ok().flatten();
    let method = config.str(&["quant_method"])?.unwrap_or_default();
    let algorithm = inner.str(&["quant_algo"])?.unwrap_or_default();
    let block = config.u64_list(&["weight_block_size"])?.and_then(|sizes| <[u64; 2]>::try_from(sizes).ok());
    let scheme = match (method, algorithm) {
        ("fp8", _) if model_type.starts_with("deepseek_v4") => WeightScheme::Unknown,
        ("fp8", _) => match block {
            Some([rows, columns]) => WeightScheme::Fp8Block { rows, columns, compressed: false },
            None => WeightScheme::Fp8Tensor { static_activations: config.str(&["activation_scheme"])? == Some("static") },
        },
        ("gptq" | "awq", _) => WeightScheme::Grouped {
            bits: number(&config, "bits").or_else(|| number(&config, "w_bit")).unwrap_or(4),
            group: number(&config, "group_size").unwrap_or(0),
            awq: method == "awq",
            reordered: config.bool(&["desc_act"]).ok().flatten() == Some(true),
        },
        ("mxfp4", _) => WeightScheme::ExpertsMxfp4,
        ("compressed-tensors", _) => compressed(&config, model_type)?,
        ("modelopt" | "modelopt_fp4" | "", "FP8") => WeightScheme::Fp8Tensor { static_activations: true },
        ("modelopt" | "modelopt_fp4" | "", "NVFP4") => WeightScheme::Nvfp4 { input_scale: true, compressed: false },
        _ => WeightScheme::Unknown,
    };
    Ok((Some(scheme), left_out))
}

/// compressed-tensors, by the first group of its config.
fn compressed(config: &Config<'_>, model_type: &str) -> Result<WeightScheme, IngestError> {
    let format = config.str(&["format"])?.unwrap_or_default();
    if format == "mxfp4-pack-quantized" && model_type.starts_with("kimi_k3") {
        return Ok(WeightScheme::ExpertsMxfp4);
    }
    let Some(groups) = config.child(&["config_groups"])? else { return Ok(WeightScheme::Unknown) };
    let Some(group) = groups.child(&["group_0"])? else { return Ok(WeightScheme::Unknown) };
    let Some(weights) = group.child(&["weights"])? else { return Ok(WeightScheme::Unknown) };
    let activations = group.child(&["input_activations"])?;
    let bits = weights.u64(&["num_bits"])?.unwrap_or(0);
    let float = weights.str(&["type"])? == Some("float");
    let size = weights.u64(&["group_size"]).ok().flatten().unwrap_or(0);
    let strategy = weights.str(&["strategy"])?.unwrap_or_default();
    Ok(match (bits, float, strategy) {
        (8, true, "block") => {
            let block = weights.u64_list(&["block_structure"])?.and_then(|sizes| <[u64; 2]>::try_from(sizes).ok());
            let [rows, columns] = block.unwrap_or([128, 128]);
            WeightScheme::Fp8Block { rows, columns, compressed: true }
        }
        (8, _, "channel") if activations.is_some() => WeightScheme::Channel8 { integer: !float },
        (4, true, _) if size == 32 => WeightScheme::Mxfp4,
        (4, true, _) => WeightScheme::Nvfp4 { input_scale: activations.is_some(), compressed: true },
        (4 | 8, false, _) => WeightScheme::Packed { bits, group: if strategy == "channel" { 0 } else { size } },
        _ => WeightScheme::Unknown,
    })
}

/// The length that vLLM derives where it is not `max_position_embeddings` (`config/model.py:_get_and_verify_max_len`):
/// Cohere's `model_max_length`, and positions that are stretched by a plain factor.
fn max_length(text: &Config<'_>, model_type: &str) -> Result<Option<u64>, IngestError> {
    if let Some(tokens) = text.u64(&["model_max_length"]).ok().flatten() {
        return Ok(Some(tokens));
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let Ok(Some(rope)) = text.child(&[key]) else { continue };
        let kind = rope.str(&["rope_type", "type"]).ok().flatten().unwrap_or_default();
        if matches!(kind, "linear" | "dynamic") && !model_type.contains("gemma3") {
            let factor = rope.f64(&["factor"]).ok().flatten().unwrap_or(1.0);
            let trained = text.u64(&["max_position_embeddings"]).ok().flatten();
            // Whole factors only: what else there is has no exact length.
            let whole = (1..=1024_u32).find(|whole| (f64::from(*whole) - factor).abs() < f64::EPSILON);
            return Ok(whole
                .filter(|whole| *whole > 1)
                .zip(trained)
                .map(|(whole, trained)| trained.saturating_mul(u64::from(whole))));
        }
    }
    Ok(None)
}
