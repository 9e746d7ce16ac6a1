//! How vLLM reads a checkpoint's quantization (`vllm/model_executor/layers/quantization`).

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::engine::vllm::facts::{Checkpoint, LayerScheme, NameMatching};
use plimsoll_math::engine::vllm::quantization::{InputScale, WeightScheme};

use super::config::Config;
use crate::error::IngestError;

/// Reads the scheme, and which layers it leaves out or treats differently.
///
/// # Errors
/// [`IngestError::Field`] for fields that cannot be.
pub(super) fn read(root: &Config<'_>, text: &Config<'_>, model_type: &str, facts: &mut Checkpoint) -> Result<(), IngestError> {
    let mut found = None;
    for object in [root, text] {
        for key in ["quantization_config", "compression_config"] {
            if found.is_none() {
                found = object.child(&[key])?;
            }
        }
    }
    let Some(config) = found else { return Ok(()) };
    let inner = config.child(&["quantization"])?;
    let inner = inner.as_ref().unwrap_or(&config);
    for level in [&config, inner] {
        for key in ["ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers"] {
            if let Ok(Some(names)) = level.str_list(&[key]) {
                facts.unquantized.extend(names.into_iter().map(ToOwned::to_owned));
            }
        }
    }
    let method = config.str(&["quant_method"])?.unwrap_or_default();
    let algorithm = inner.str(&["quant_algo"])?.unwrap_or_default();
    let scheme = match method {
        "fp8" if model_type.starts_with("deepseek_v4") => deepseek_v4(root, &config, facts)?,
        "fp8" => match block(&config)? {
            Some([rows, columns]) => {
                WeightScheme::Fp8Block { rows, columns, partial: false, compressed: false, exponents: false }
            }
            None => WeightScheme::Fp8Tensor { static_activations: config.str(&["activation_scheme"])? == Some("static") },
        },
        "gptq" | "awq" => {
            facts.matching = NameMatching::Substring;
            WeightScheme::Grouped {
                bits: number(&config, "bits").or_else(|| number(&config, "w_bit")).unwrap_or(4),
                group: number(&config, "group_size").or_else(|| number(&config, "q_group_size")).unwrap_or(0),
                awq: method == "awq",
                reordered: config.bool(&["desc_act"]).ok().flatten() == Some(true),
            }
        }
        "mxfp4" => WeightScheme::ExpertsMxfp4,
        "compressed-tensors" => {
            facts.matching = NameMatching::Patterns;
            compressed(&config, model_type, facts)?
        }
        "modelopt" | "modelopt_fp4" | "modelopt_mixed" | "" => {
            facts.matching = NameMatching::Wildcards;
            if algorithm.eq_ignore_ascii_case("MIXED_PRECISION") {
                named(inner, facts)?;
                WeightScheme::Named
            } else {
                modelopt(algorithm)
            }
        }
        _ => WeightScheme::Unknown,
    };
    if scheme == WeightScheme::Unknown {
        facts.unfollowed = Some(match (method, algorithm) {
            ("", algorithm) => algorithm.to_owned(),
            (method, _) => method.to_owned(),
        });
    }
    facts.scheme = Some(scheme);
    Ok(())
}

fn number(config: &Config<'_>, key: &str) -> Option<u64> {
    config.u64(&[key]).ok().flatten()
}

fn block(config: &Config<'_>) -> Result<Option<[u64; 2]>, IngestError> {
    Ok(config.u64_list(&["weight_block_size"])?.and_then(|sizes| <[u64; 2]>::try_from(sizes).ok()))
}

/// DeepSeek V4: rectangles of fp8, and experts by their own type (`vllm/models/deepseek_v4/quant_config.py`).
fn deepseek_v4(root: &Config<'_>, config: &Config<'_>, facts: &mut Checkpoint) -> Result<WeightScheme, IngestError> {
    let [rows, columns] = block(config)?.unwrap_or([128, 128]);
    let experts = root.str(&["expert_dtype"])?.unwrap_or("fp4");
    let algorithm = config.str(&["moe_quant_algo"])?.unwrap_or_default();
    let exponents = experts == "fp4";
    facts.experts_scheme = match (experts, algorithm) {
        ("fp4", "") => Some(WeightScheme::ExpertsMxfp4),
        ("fp4", algorithm) => Some(modelopt(algorithm)),
        _ => None,
    };
    Ok(WeightScheme::Fp8Block { rows, columns, partial: false, compressed: false, exponents })
}

/// ModelOpt's algorithms (`modelopt.py:resolve`).
fn modelopt(algorithm: &str) -> WeightScheme {
    match algorithm.to_ascii_uppercase().as_str() {
        "FP8" => WeightScheme::Fp8Tensor { static_activations: true },
        "FP8_PER_CHANNEL_PER_TOKEN" => WeightScheme::Channel8 { integer: false, compressed: false },
        "FP8_PB_WO" | "FP8_BLOCK_SCALES" => {
            WeightScheme::Fp8Block { rows: 128, columns: 128, partial: true, compressed: false, exponents: false }
        }
        "NVFP4" => WeightScheme::Nvfp4 { input_scale: InputScale::Single, compressed: false },
        "W4A16_NVFP4" => WeightScheme::Nvfp4 { input_scale: InputScale::Ignored, compressed: false },
        "MXFP8" => WeightScheme::Mxfp8,
        _ => WeightScheme::Unknown,
    }
}

/// Layers with an algorithm of their own (`ModelOptMixedPrecisionConfig.quantized_layers`).
fn named(config: &Config<'_>, facts: &mut Checkpoint) -> Result<(), IngestError> {
    let Some(layers) = config.child(&["quantized_layers"])? else { return Ok(()) };
    for name in layers.keys() {
        let Some(layer) = layers.child(&[name.as_str()])? else { continue };
        let scheme = modelopt(layer.str(&["quant_algo"])?.unwrap_or_default());
        facts.layer_schemes.push(LayerScheme { name: name.to_string(), scheme });
    }
    Ok(())
}

/// compressed-tensors: groups of targets, which are `Linear` for all layers that are not named elsewhere.
fn compressed(config: &Config<'_>, model_type: &str, facts: &mut Checkpoint) -> Result<WeightScheme, IngestError> {
    let format = config.str(&["format"])?.unwrap_or_default();
    if format == "mxfp4-pack-quantized" && model_type.starts_with("kimi_k3") {
        return Ok(WeightScheme::ExpertsMxfp4);
    }
    let Some(groups) = config.child(&["config_groups"])? else { return Ok(WeightScheme::Unknown) };
    let mut all = None;
    for name in groups.keys() {
        let Some(group) = groups.child(&[name.as_str()])? else { continue };
        let scheme = compressed_group(&group)?;
        let targets = group.str_list(&["targets"]).ok().flatten();
        let targets: Vec<String> = targets.into_iter().flatten().map(ToOwned::to_owned).collect();
        for target in targets {
            if target == "Linear" {
                all = all.or(Some(scheme));
            } else {
                facts.layer_schemes.push(LayerScheme { name: target, scheme });
            }
        }
    }
    Ok(all.unwrap_or(if facts.layer_schemes.is_empty() { WeightScheme::Unknown } else { WeightScheme::Named }))
}

fn compressed_group(group: &Config<'_>) -> Result<WeightScheme, IngestError> {
    let Some(weights) = group.child(&["weights"])? else { return Ok(WeightScheme::Unknown) };
    let activations = group.child(&["input_activations"])?;
    let bits = weights.u64(&["num_bits"])?.unwrap_or(0);
    let float = weights.str(&["type"])? == Some("float");
    let size = weights.u64(&["group_size"]).ok().flatten().unwrap_or(0);
    let strategy = weights.str(&["strategy"])?.unwrap_or_default();
    let fixed = match &activations {
        Some(activations) => activations.bool(&["dynamic"]).ok().flatten() == Some(false),
        None => false,
    };
    Ok(match (bits, float, strategy) {
        (8, true, "block") => {
            let block = weights.u64_list(&["block_structure"])?.and_then(|sizes| <[u64; 2]>::try_from(sizes).ok());
            let [rows, columns] = block.unwrap_or([128, 128]);
            WeightScheme::Fp8Block { rows, columns, partial: false, compressed: true, exponents: false }
        }
        (8, _, "channel") if activations.is_some() => WeightScheme::Channel8 { integer: !float, compressed: true },
        (8, true, "tensor") if activations.is_some() => WeightScheme::Fp8Tensor { static_activations: fixed },
        (4, true, _) if size == 32 => WeightScheme::Mxfp4,
        (4, true, _) => WeightScheme::Nvfp4 {
            input_scale: if activations.is_some() { InputScale::Single } else { InputScale::None },
            compressed: true,
        },
        (4 | 8, false, _) => WeightScheme::Packed { bits, group: if strategy == "channel" { 0 } else { size } },
        _ => WeightScheme::Unknown,
    })
}
