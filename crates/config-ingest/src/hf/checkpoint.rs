//! What an engine that loads the checkpoint itself reads from its config beyond the architecture.

use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::engine::vllm::options::CacheDtype;
use plimsoll_math::format::StorageFormat;

use super::config::Config;
use crate::error::IngestError;

/// Models whose image tokens see each other unless the config says otherwise
/// (vLLM: `transformers_utils/model_arch_config_convertor.py:is_mm_prefix_lm`).
const PREFIX_MODELS: [&str; 5] = ["bagel", "gemma3", "molmo2", "moondream3", "paligemma"];
/// Models whose numbers leave the range of half precision (`config/model.py:_FLOAT16_NOT_SUPPORTED_MODELS`).
const NEEDS_RANGE: [&str; 4] = ["gemma2", "gemma3", "gemma3_text", "glm4"];
/// Models that `is_causal: false` turns into encoders (`models/qwen2.py`, `qwen3.py`, `llama.py`).
const SEES_AHEAD: [&str; 4] = ["qwen2", "qwen3", "llama", "mistral"];
/// The longest request where a config says nothing (`config/model.py:_get_and_verify_max_len`).
const UNSTATED_LENGTH: u64 = 2048;
/// Keys of a config that say a longest request (`model_arch_config_convertor.py:derive_max_model_len_and_key`).
const LENGTHS: [&str; 9] = [
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
];
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
    let model_type = root.str(&["model_type"])?.unwrap_or_default();
    let class = super::vllm_classes::class_of(
        root.str_list(&["architectures"]).ok().flatten().and_then(|names| names.first().copied()).unwrap_or_default(),
    );
    let dtype = match named(&["dtype", "torch_dtype"])? {
        Some(StorageFormat::F16) if !NEEDS_RANGE.contains(&model_type) => StorageFormat::F16,
        None | Some(StorageFormat::F32) if class.pooling && !NEEDS_RANGE.contains(&model_type) => StorageFormat::F16,
        // Single precision and 8-bit formats are served in bfloat16.
        _ => StorageFormat::Bf16,
    };
    let mut facts = Checkpoint { dtype, class, ..Checkpoint::default() };
    facts.sees_ahead = text.bool(&["is_causal"]).ok().flatten() == Some(false) && SEES_AHEAD.contains(&model_type);
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
    // Positions that are stretched in two ways: the shorter one unless more is asked for.
    for key in ["rope_scaling", "rope_parameters"] {
        let Ok(Some(rope)) = text.child(&[key]) else { continue };
        if matches!(rope.str(&["rope_type", "type"]).ok().flatten(), Some("longrope" | "su")) {
            facts.default_length = text.u64(&["original_max_position_embeddings"]).ok().flatten();
        }
    }
    // Models of states alone have no position that a default could stand for.
    if ["mamba", "mamba2", "falcon_mamba"].contains(&model_type) && !LENGTHS.iter().any(|key| text.has(&[key])) {
        facts.max_length = Some(UNSTATED_LENGTH);
        facts.assumed_length = true;
    }
    super::vllm_quantization::read(root, text, model_type, &mut facts)?;
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
