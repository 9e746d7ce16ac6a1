//! MLX-LM's model classes: which there are, and what one decides about caches (`mlx_lm/models/*.py`, 0.32.2).

use plimsoll_math::engine::mlx::cache::ModelClass;

use super::config::Config;
use crate::error::IngestError;

/// Modules of `mlx_lm/models` that hold a model, by name; sorted.
const MODULES: &[&str] = &[
    "Klear",
    "afm7",
    "afmoe",
    "apertus",
    "baichuan_m1",
    "bailing_hybrid",
    "bailing_moe",
    "bailing_moe_linear",
    "bailing_moe_v3",
    "bitnet",
    "cohere",
    "cohere2",
    "dbrx",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v41",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone",
    "exaone4",
    "exaone_moe",
    "falcon_h1",
    "gear",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma4",
    "gemma4_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "helium",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "iquestloopcoder",
    "jamba",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "kimi_vl",
    "laguna",
    "lfm2",
    "lfm2-vl",
    "lfm2_moe",
    "lille-130m",
    "llama",
    "llama4",
    "llama4_text",
    "longcat_flash",
    "longcat_flash_ngram",
    "mamba",
    "mamba2",
    "mellum",
    "mimo",
    "mimo_v2_flash",
    "minicpm",
    "minicpm3",
    "minimax",
    "minimax_m3_vl",
    "ministral3",
    "mistral3",
    "mistral4",
    "mixtral",
    "muse_glimmer",
    "muse_spark",
    "nanbeige",
    "nanochat",
    "nemotron",
    "nemotron-nas",
    "nemotron_h",
    "olmo",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "openelm",
    "phi",
    "phi3",
    "phi3small",
    "phimoe",
    "phixtral",
    "pixtral",
    "plamo",
    "plamo2",
    "plamo3",
    "prism_hadamard_qwen35",
    "qwen",
    "qwen2",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "qwen3_vl_moe",
    "recurrent_gemma",
    "rwkv7",
    "seed_oss",
    "smollm3",
    "solar_open",
    "spark2_5",
    "stablelm",
    "starcoder2",
    "step3p5",
    "talkie",
    "telechat3",
    "youtu_llm",
];

/// Model types that take another's module (`utils.py:MODEL_REMAPPING`).
const REMAPPED: &[(&str, &str)] = &[
    ("falcon_mamba", "mamba"),
    ("gemma4_unified", "gemma4"),
    ("iquestcoder", "llama"),
    ("joyai_llm_flash", "deepseek_v3"),
    ("kimi_k2", "deepseek_v3"),
    ("llava", "mistral3"),
    ("minimax_m2", "minimax"),
    ("mistral", "llama"),
    ("phi-msft", "phixtral"),
    ("qwen2_5_vl", "qwen2_vl"),
    ("xverse", "llama"),
];

/// Modules whose layers with a window get a `RotatingKVCache`.
const ROTATES: &[&str] = &[
    "afmoe",
    "baichuan_m1",
    "cohere2",
    "exaone4",
    "exaone_moe",
    "gear",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma4",
    "gemma4_text",
    "gpt_oss",
    "laguna",
    "mellum",
    "mimo_v2_flash",
    "muse_glimmer",
    "muse_spark",
    "olmo3",
    "plamo3",
    "recurrent_gemma",
    "spark2_5",
    "step3p5",
];

/// Modules that do so where the config names the kinds of layers (`layer_types`).
const ROTATES_BY_NAME: &[&str] = &["llama", "ministral3", "mistral3"];

/// Modules that cache latents instead of expanded keys and values.
const LATENTS: &[&str] = &[
    "bailing_hybrid",
    "bailing_moe_v3",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "longcat_flash",
    "longcat_flash_ngram",
    "mistral4",
];

/// What the class of a config decides; `None` where there is none.
///
/// # Errors
/// [`IngestError::Field`] for fields that cannot be.
pub(super) fn class_of(root: &Config<'_>) -> Result<Option<ModelClass>, IngestError> {
    let model_type = root.str(&["model_type"])?.unwrap_or_default();
    let module = REMAPPED.iter().find(|(from, _)| *from == model_type).map_or(model_type, |(_, to)| *to);
    if MODULES.binary_search(&module).is_err() {
        return Ok(None);
    }
    let text = root.child(super::lookup::LANGUAGE_MODEL_KEYS)?;
    let text = text.as_ref().unwrap_or(root);
    let named = matches!(text.raw(&["layer_types"]), Some((serde_json::Value::Array(_), _)));
    Ok(Some(ModelClass {
        rotates: ROTATES.contains(&module) || (ROTATES_BY_NAME.contains(&module) && named),
        chunks: module == "llama4" || module == "llama4_text",
        latents: LATENTS.contains(&module),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_that_is_named_exists() {
        assert!(MODULES.is_sorted());
        let named = ROTATES.iter().chain(ROTATES_BY_NAME).chain(LATENTS).chain(REMAPPED.iter().map(|(_, to)| to));
        for module in named {
            assert!(MODULES.contains(module), "{module}");
        }
    }
}
