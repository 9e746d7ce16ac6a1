//! What an engine that loads the checkpoint itself reads from its config beyond the architecture.

use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::engine::vllm::options::CacheDtype;
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
