//! How vLLM holds quantized weights (`vllm/model_executor/layers/quantization`): what `create_weights` of each method
//! allocates for a matrix, by number type.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::cache_spec::gcd;
use super::facts::NameMatching;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// A matrix, or a stack of experts, on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Inputs.
    pub n_in: u64,
    /// Outputs.
    pub n_out: u64,
    /// Experts, where it is a stack of them.
    pub experts: Option<u64>,
    /// Whether it is the first matrix of the one that vLLM fuses it into (queries of `qkv_proj`, gate of
    /// `gate_up_proj`), which carries what the fused one has once.
    pub leads: bool,
    /// Matrices of the checkpoint that it is made of.
    pub shards: u64,
    /// The type the model computes in.
    pub dtype: StorageFormat,
    /// Whether its inputs are an expert's hidden layer.
    pub reads_hidden: bool,
    /// Elements of an expert's hidden layer on this rank.
    pub expert_hidden: u64,
    /// What hidden elements of experts and elements of the model's state are rounded up to.
    pub rounding: (u64, u64),
    /// Whether ranks share its inputs.
    pub inputs_split: bool,
    /// Whether ranks share its outputs.
    pub outputs_split: bool,
    /// Whether it is a part of a matrix that vLLM fuses, or such a matrix.
    pub fused: bool,
}

/// The scale of a matrix's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum InputScale {
    /// There is none.
    None,
    /// In single precision.
    Single,
    /// Made in the model's type, for checkpoints that bring one all the same.
    Ignored,
}

/// A scheme of quantized linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "scheme", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WeightScheme {
    /// 8-bit floats, one scale for every logical matrix (`fp8`, ModelOpt's `FP8`).
    Fp8Tensor {
        /// Whether activations have scales of their own.
        static_activations: bool,
    },
    /// 8-bit floats with a scale for every rectangle (`fp8` with `weight_block_size`).
    Fp8Block {
        /// Outputs of a rectangle.
        rows: u64,
        /// Inputs of a rectangle.
        columns: u64,
        /// Whether the last rectangle of the outputs may be a part of one, also on a rank (ModelOpt).
        partial: bool,
        /// Whether compressed-tensors wrote it.
        compressed: bool,
        /// Whether scales are powers of two, stored as exponents.
        exponents: bool,
    },
    /// 8 bits with a scale for every output (compressed-tensors).
    Channel8 {
        /// Whole numbers instead of floats.
        integer: bool,
        /// Whether compressed-tensors wrote it.
        compressed: bool,
    },
    /// GPTQ and AWQ: whole numbers with scales and zero points for every group of inputs.
    Grouped {
        /// Bits of a weight.
        bits: u64,
        /// Inputs that share a scale.
        group: u64,
        /// AWQ, which packs along the outputs.
        awq: bool,
        /// GPTQ with inputs assigned to groups by their activations, which the engine no longer loads.
        reordered: bool,
    },
    /// compressed-tensors' packed whole numbers, symmetric.
    Packed {
        /// Bits of a weight.
        bits: u64,
        /// Inputs that share a scale; 0 for all of them.
        group: u64,
    },
    /// NVIDIA's 4-bit floats with an fp8 scale for every 16.
    Nvfp4 {
        /// The scale of inputs.
        input_scale: InputScale,
        /// Whether compressed-tensors wrote it.
        compressed: bool,
    },
    /// 4-bit floats with a power-of-two scale for every 32, all linears (compressed-tensors).
    Mxfp4,
    /// The same for experts only (gpt-oss, Kimi K3).
    ExpertsMxfp4,
    /// 8-bit floats with a power-of-two scale for every 32 (ModelOpt's `MXFP8`).
    Mxfp8,
    /// Only layers that are named, each in its own way (ModelOpt's `MIXED_PRECISION`).
    Named,
    /// One that is not followed.
    Unknown,
}

fn refused(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason }
}

impl WeightScheme {
    /// Whether only experts are quantized.
    #[must_use]
    pub const fn experts_only(self) -> bool {
        matches!(self, Self::ExpertsMxfp4)
    }

    /// Bits of the narrowest element of a matrix, scales not counted; `None` where the scheme is not followed.
    #[must_use]
    pub const fn least_bits(self) -> Option<u64> {
        match self {
            Self::Fp8Tensor { .. } | Self::Fp8Block { .. } | Self::Channel8 { .. } | Self::Mxfp8 => Some(8),
            Self::Grouped { bits, .. } | Self::Packed { bits, .. } => Some(bits),
            // ModelOpt's narrowest algorithm has 4 bits.
            Self::Nvfp4 { .. } | Self::Mxfp4 | Self::ExpertsMxfp4 | Self::Named => Some(4),
            Self::Unknown => None,
        }
    }

    /// What attention layers hold for a quantized cache, whether it is or not (`BaseKVCacheMethod.create_weights`):
    /// scalars of the model's type, and in single precision, which compressed-tensors' method makes of three of them.
    #[must_use]
    pub const fn cache_scales(self, matching: NameMatching) -> (u64, u64) {
        match (self, matching) {
            (Self::Grouped { .. } | Self::ExpertsMxfp4 | Self::Unknown, _) => (0, 0),
            (_, NameMatching::Patterns) => (3, 3),
            _ => (4, 0),
        }
    }

    /// The tensors that stand for a matrix: number types and elements.
    ///
    /// # Errors
    /// [`MathError::Refused`] for shapes that the scheme cannot hold, [`MathError::Overflow`].
    pub fn tensors(&self, matrix: &Matrix) -> Result<Vec<(StorageFormat, u64)>, MathError> {
        use StorageFormat as F;
        let stack = matrix.experts.unwrap_or(1);
        let (k, o) = (matrix.n_in, matrix.n_out);
        let n = mul(mul(k, o)?, stack)?;
        let dtype = matrix.dtype;
        let expert = matrix.experts.is_some();
        Ok(match *self {
            Self::Fp8Tensor { static_activations } => {
                let of_weights = mul(stack, matrix.shards)?;
                // One scale for an expert's inputs, however many matrices read them.
                let of_inputs = match (static_activations, expert) {
                    (false, _) => 0,
                    (true, false) => of_weights,
                    (true, true) if matrix.leads || matrix.reads_hidden => stack,
                    (true, true) => 0,
                };
                let scales = add(of_weights, of_inputs)?;
                vec![(F::F8E4M3, n), (F::F32, scales)]
            }
            Self::Fp8Block { rows, columns, partial, compressed, exponents } => {
                if partial && !expert && !k.is_multiple_of(columns) {
                    return Err(refused(format!("FP8_PB_WO requires in divisible by {columns}, got {k}")));
                }
                // The engine's own method takes parts of a fused matrix that are not whole rectangles
                // (`layers/linear.py:_maybe_allow_fp8_block_shape_mismatch`).
                let checked = !expert && !partial && (compressed || !matrix.fused);
                if checked && matrix.outputs_split && !o.is_multiple_of(rows) {
                    return Err(refused(format!(
                        "Weight output_partition_size = {o} is not divisible by weight quantization block_n = {rows}."
                    )));
                }
                if !expert && matrix.inputs_split && !k.is_multiple_of(columns) {
                    return Err(refused(format!(
                        "Weight input_size_per_partition = {k} is not divisible by weight quantization block_k = {columns}."
                    )));
                }
                if expert && compressed && !matrix.expert_hidden.is_multiple_of(rows) {
                    return Err(refused(format!(
                        "The output_size of gate's and up's weight = {} is not divisible by weight quantization block_n = {rows}.",
                        matrix.expert_hidden
                    )));
                }
                let (rows, columns) = if expert {
                    // Rectangles shrink until they divide an expert's part of its hidden layer.
                    (gcd(rows, matrix.expert_hidden), gcd(columns, matrix.expert_hidden))
                } else {
                    (rows, columns)
                };
                let scales = mul(o.div_ceil(rows.max(1)), k.div_ceil(columns.max(1)))?;
                vec![(F::F8E4M3, n), (if exponents { F::F8E8M0 } else { F::F32 }, mul(scales, stack)?)]
            }
            // ModelOpt's experts have one scale a matrix whatever its linears have (`ModelOptFp8MoEMethod`).
            Self::Channel8 { compressed: false, .. } if expert => {
                return Self::Fp8Tensor { static_activations: true }.tensors(matrix);
            }
            Self::Channel8 { integer, .. } => {
                vec![(if integer { F::I8 } else { F::F8E4M3 }, n), (F::F32, mul(o, stack)?)]
            }
            Self::Grouped { reordered: true, .. } => {
                return Err(refused(
                    "GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static \
                     activation ordering or desc_act=False."
                        .to_string(),
                ));
            }
            Self::Grouped { bits, group, awq, .. } => {
                let mut group = if group == 0 { k } else { group };
                let hidden = matrix.expert_hidden;
                if expert && !hidden.is_multiple_of(group) {
                    // The kernel that takes any split halves the groups until they fit (`moe_wna16`).
                    while group > 32 && !hidden.is_multiple_of(group) {
                        group /= 2;
                    }
                    if !hidden.is_multiple_of(group) {
                        return Err(refused(format!(
                            "{hidden} hidden elements of an expert are not whole groups of at least {group} (moe_wna16)"
                        )));
                    }
                    let mut parts = vec![(F::U8, mul(n, bits)? / 8), (dtype, n / group)];
                    if awq {
                        parts.push((F::U8, mul(n / group, bits)? / 8));
                    }
                    return Ok(parts);
                }
                // GPTQ's scales are those of the whole groups (`auto_gptq.py:create_weights`).
                if awq && !k.is_multiple_of(group) {
                    return Err(refused(
                        "The input size is not aligned with the quantized weight shape. This can be caused by too large \
                         tensor parallel size."
                            .to_string(),
                    ));
                }
                // Whole numbers hold several weights: along the outputs for AWQ and all zero points, else the inputs.
                let pack = (32 / bits.max(1)).max(1);
                let packed_outputs = if expert { mul(mul(o, bits)?, stack)? / 32 } else { o / pack };
                let weights = match (awq, expert) {
                    (_, true) => mul(n, bits)? / 32,
                    (true, false) => mul(k, packed_outputs)?,
                    (false, false) => mul(k / pack, o)?,
                };
                let groups = k / group;
                let scales = mul(mul(groups, o)?, stack)?;
                let mut parts = vec![(F::I32, weights), (dtype, scales), (F::I32, mul(groups, packed_outputs)?)];
                if expert && !awq {
                    // Biases are made for every expert, used or not.
                    parts.push((dtype, mul(o, stack)?));
                }
                parts
            }
            Self::Packed { bits, group } => {
                let groups = if group == 0 { 1 } else { k.div_ceil(group) };
                if group > 0 && !k.is_multiple_of(group) {
                    return Err(refused(format!(
                        "Weight input_size_per_partition={k} is not divisible by group_size={group}. This happens when \
                         tensor_parallel_size splits the layer input into shards that are not a whole number of quant groups. Consider reducing tensor_parallel_size."
                    )));
                }
                let mut parts = vec![(F::I32, mul(n, bits)? / 32), (dtype, mul(mul(groups, o)?, stack)?)];
                if expert && group == 0 {
                    return Err(refused(
                        "experts with one scale for all inputs: weight_quant.strategy has to be \"group\"".to_string(),
                    ));
                }
                if expert {
                    // Two numbers for the fused first matrices and two for the last, in the model's type.
                    if matrix.leads {
                        parts.push((dtype, mul(4, stack)?));
                    }
                } else if matrix.leads {
                    parts.push((F::I64, 2));
                }
                parts
            }
            Self::Nvfp4 { input_scale, compressed } => {
                if !compressed && !k.is_multiple_of(16) {
                    return Err(refused("Unsupported model when in features size is not multiple of 16".to_string()));
                }
                let scales = mul(stack, matrix.shards)?;
                let mut parts = vec![(F::U8, n / 2), (F::F8E4M3, mul(mul(o, k / 16)?, stack)?), (F::F32, scales)];
                match input_scale {
                    // Experts have them whether they are used or not.
                    InputScale::None if expert => parts.push((F::F32, scales)),
                    InputScale::None => {}
                    InputScale::Single => parts.push((F::F32, scales)),
                    InputScale::Ignored => parts.push((dtype, scales)),
                }
                parts
            }
            Self::Mxfp4 => vec![(F::U8, add(n / 2, n / 32)?)],
            Self::ExpertsMxfp4 => {
                let (hidden_multiple, model_multiple) = matrix.rounding;
                let up = |value: u64, multiple: u64| value.div_ceil(multiple.max(1)).saturating_mul(multiple.max(1));
                // One side is the expert's hidden layer, the other the model's state.
                let (k, o) = if matrix.reads_hidden {
                    (up(k, hidden_multiple), up(o, model_multiple))
                } else {
                    (up(k, model_multiple), up(o, hidden_multiple))
                };
                let n = mul(mul(k, o)?, stack)?;
                vec![(F::U8, add(n / 2, n / 32)?)]
            }
            Self::Mxfp8 => vec![(F::F8E4M3, n), (F::U8, n / 32)],
            Self::Named | Self::Unknown => vec![(dtype, n)],
        })
    }
}
