//! What a config says about quantized weights.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use super::config::Config;
use crate::error::IngestError;

/// How a checkpoint's weights are quantized, as its config declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantization {
    /// 8-bit floats.
    Fp8 {
        /// Rows and columns that share a scale; `None` for one scale a tensor.
        block: Option<[u64; 2]>,
        /// Whether activation scales are stored (`static`).
        static_activations: bool,
    },
    /// gpt-oss's 4-bit floats with a power-of-two scale per 32.
    Mxfp4,
    /// NVIDIA's 4-bit floats with an fp8 scale per `group_size`.
    Nvfp4 {
        /// Elements that share a scale.
        group_size: u64,
    },
    /// GPTQ.
    Gptq {
        /// Bits of a weight.
        bits: u64,
        /// Elements that share a scale; `None` for a whole row.
        group_size: Option<u64>,
    },
    /// AWQ.
    Awq {
        /// Bits of a weight.
        bits: u64,
        /// Elements that share a scale; `None` for a whole row.
        group_size: Option<u64>,
    },
    /// bitsandbytes.
    BitsAndBytes {
        /// Bits of a weight: 4 or 8.
        bits: u64,
        /// `nf4` or `fp4` for 4 bits.
        kind: Option<String>,
        /// Whether the scales are quantized as well.
        double: bool,
    },
    /// compressed-tensors.
    CompressedTensors {
        /// Its `format` (`pack-quantized`, `float-quantized`, `nvfp4-pack-quantized` …).
        format: String,
        /// Bits of a weight in the first group.
        bits: Option<u64>,
        /// Elements that share a scale in the first group.
        group_size: Option<u64>,
    },
    /// NVIDIA ModelOpt with an algorithm that has no variant of its own.
    ModelOpt {
        /// The algorithm (`MIXED_PRECISION`, `INT4_AWQ` …).
        algorithm: String,
    },
    /// AMD Quark.
    Quark,
    /// Apple MLX affine groups.
    Mlx {
        /// Bits of a weight.
        bits: u64,
        /// Elements that share scale and bias.
        group_size: u64,
        /// `affine`, `mxfp4` ….
        mode: String,
    },
    /// BitNet's ternary weights.
    BitNet,
    /// A method without a variant of its own.
    Other {
        /// Its name.
        method: String,
    },
}

impl Quantization {
    /// Reads `quantization_config` (or MLX's `quantization`), wherever the document holds it.
    ///
    /// # Errors
    /// [`IngestError::Field`] for fields that cannot be.
    pub fn read(root: &Config<'_>) -> Result<Option<Self>, IngestError> {
        let nested = root.child(super::lookup::LANGUAGE_MODEL_KEYS)?;
        for object in [Some(root), nested.as_ref()].into_iter().flatten() {
            for key in ["quantization_config", "quantization", "compression_config"] {
                if let Some(config) = object.child(&[key])? {
                    return Self::of(&config).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn of(config: &Config<'_>) -> Result<Self, IngestError> {
        let method = config.str(&["quant_method"])?.unwrap_or_default();
        let algorithm = config.str(&["quant_algo"])?.unwrap_or_default();
        let bits = config.u64(&["bits", "w_bit", "nbits"]).ok().flatten();
        // -1 means one scale per row; it is no count, so it reads as none.
        let group_size = config.u64(&["group_size", "q_group_size"]).ok().flatten();
        let block = config.u64_list(&["weight_block_size"])?.and_then(|sizes| <[u64; 2]>::try_from(sizes).ok());
        let static_activations = config.str(&["activation_scheme"])? == Some("static");
        Ok(match (method, algorithm) {
            ("fp8" | "fbgemm_fp8" | "finegrained_fp8", _) => Self::Fp8 { block, static_activations },
            ("mxfp4", _) => Self::Mxfp4,
            ("gptq" | "gptq_marlin", _) => Self::Gptq { bits: bits.unwrap_or(4), group_size },
            ("awq" | "awq_marlin", _) => Self::Awq { bits: bits.unwrap_or(4), group_size },
            ("bitsandbytes", _) => {
                let eight = config.bool(&["load_in_8bit"])?.unwrap_or(false);
                let kind = config.str(&["bnb_4bit_quant_type"])?.map(ToOwned::to_owned);
                let double = config.bool(&["bnb_4bit_use_double_quant"])?.unwrap_or(false);
                if eight {
                    Self::BitsAndBytes { bits: 8, kind: None, double: false }
                } else {
                    Self::BitsAndBytes { bits: 4, kind, double }
                }
            }
            ("compressed-tensors", _) => {
                let format = config.str(&["format"])?.unwrap_or("unknown").to_owned();
                let weights = first_group_weights(config)?;
                let number = |key| weights.as_ref().and_then(|weights| weights.u64(&[key]).ok().flatten());
                Self::CompressedTensors { format, bits: number("num_bits"), group_size: number("group_size") }
            }
            ("quark", _) => Self::Quark,
            ("bitnet", _) => Self::BitNet,
            ("modelopt" | "modelopt_fp4" | "", algorithm) if !algorithm.is_empty() => match algorithm {
                "FP8" | "FP8_PER_CHANNEL_PER_TOKEN" => Self::Fp8 { block: None, static_activations: algorithm == "FP8" },
                "NVFP4" | "W4A16_NVFP4" | "NVFP4_AWQ" => {
                    let weights = first_group_weights(config)?;
                    let nested = weights.and_then(|weights| weights.u64(&["group_size"]).ok().flatten());
                    Self::Nvfp4 { group_size: group_size.or(nested).unwrap_or(16) }
                }
                other => Self::ModelOpt { algorithm: other.to_owned() },
            },
            ("modelopt" | "modelopt_fp4", _) => Self::ModelOpt { algorithm: "unnamed".to_owned() },
            ("", _) if bits.is_some() && group_size.is_some() => Self::Mlx {
                bits: bits.unwrap_or(4),
                group_size: group_size.unwrap_or(64),
                mode: config.str(&["mode"])?.unwrap_or("affine").to_owned(),
            },
            (other, _) => Self::Other { method: if other.is_empty() { "unnamed".to_owned() } else { other.to_owned() } },
        })
    }
}

/// `config_groups`' first group's `weights`.
fn first_group_weights<'a>(config: &Config<'a>) -> Result<Option<Config<'a>>, IngestError> {
    let Some(groups) = config.child(&["config_groups"])? else { return Ok(None) };
    let Some(group) = groups.child(&["group_0", "FP8_BLOCK", "NVFP4", "W4A16"])? else { return Ok(None) };
    group.child(&["weights"])
}

impl fmt::Display for Quantization {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_group = |out: &mut fmt::Formatter<'_>, group: &Option<u64>| match group {
            Some(size) => write!(out, ", groups of {size}"),
            None => write!(out, ", one scale a row"),
        };
        match self {
            Self::Fp8 { block: Some([rows, columns]), .. } => write!(out, "fp8, blocks of {rows}x{columns}"),
            Self::Fp8 { block: None, static_activations: true } => write!(out, "fp8, one scale a tensor, static activations"),
            Self::Fp8 { block: None, static_activations: false } => write!(out, "fp8, one scale a tensor"),
            Self::Mxfp4 => write!(out, "mxfp4"),
            Self::Nvfp4 { group_size } => write!(out, "nvfp4, groups of {group_size}"),
            Self::Gptq { bits, group_size } => {
                write!(out, "gptq, {bits} bits")?;
                per_group(out, group_size)
            }
            Self::Awq { bits, group_size } => {
                write!(out, "awq, {bits} bits")?;
                per_group(out, group_size)
            }
            Self::BitsAndBytes { bits, kind, double } => {
                write!(out, "bitsandbytes, {bits} bits")?;
                if let Some(kind) = kind {
                    write!(out, " {kind}")?;
                }
                if *double { write!(out, ", quantized scales") } else { Ok(()) }
            }
            Self::CompressedTensors { format, bits, group_size } => {
                write!(out, "compressed-tensors {format}")?;
                if let Some(bits) = bits {
                    write!(out, ", {bits} bits")?;
                }
                match group_size {
                    Some(size) => write!(out, ", groups of {size}"),
                    None => Ok(()),
                }
            }
            Self::ModelOpt { algorithm } => write!(out, "modelopt {algorithm}"),
            Self::Quark => write!(out, "quark"),
            Self::Mlx { bits, group_size, mode } => write!(out, "mlx {mode}, {bits} bits, groups of {group_size}"),
            Self::BitNet => write!(out, "bitnet ternary"),
            Self::Other { method } => write!(out, "{method}"),
        }
    }
}
