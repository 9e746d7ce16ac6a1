//! Quantized layouts: which tensors together hold one matrix, and how many parameters it has.
//!
//! Each quantizer spreads a matrix over several tensors with suffixes of its own: packed words, scales, zero points,
//! index lists. The suffixes tell the layout apart, and shapes and number types tell how many values are packed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::error::MathError;
use plimsoll_math::tensor::Counts;
use plimsoll_math::units::{Bytes, Params, mul};

use super::checkpoint::StoredTensor;
use super::dtype::Dtype;
use crate::mlx::{Mode, Quantization};

/// How a matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// Numbers as they are.
    Plain,
    /// 8-bit floats, with scales per tensor, row or block beside them.
    Fp8,
    /// 8-bit integers with scales (bitsandbytes LLM.int8, compressed-tensors).
    Int8,
    /// GPTQ: words packed along the input, group scales and zero points, an index list.
    Gptq,
    /// AWQ: words packed along the output, group scales and zero points.
    Awq,
    /// bitsandbytes NF4 or FP4: two values a byte, block maxima.
    BitsAndBytes4,
    /// compressed-tensors `pack-quantized`: words packed along the input, scales, the original shape.
    Packed,
    /// NVFP4: two values a byte, an fp8 scale per 16, a scale per tensor.
    Nvfp4,
    /// MXFP4: two values a byte, a power-of-two scale byte per 32.
    Mxfp4,
    /// MLX: words, scales, biases.
    Mlx,
}

impl Layout {
    /// A name to show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::BitsAndBytes4 => "bitsandbytes 4-bit",
            Self::Packed => "compressed-tensors packed",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Mlx => "mlx",
        }
    }
}

/// What a config adds where shapes alone are ambiguous.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// MLX groups.
    pub mlx: Option<Quantization>,
    /// `num_bits` of compressed-tensors weights.
    pub packed_bits: Option<u64>,
}

/// What one stored tensor is to its matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The layout of the matrix.
    pub layout: Layout,
    /// Parameters it stands for; 0 for scales, zero points and index lists.
    pub params: u64,
    /// Whether it is a scale, zero point, index list or other companion of a matrix.
    pub companion: bool,
}

/// Sums over one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutSummary {
    /// The layout.
    pub layout: Layout,
    /// Tensors that hold values (companions not counted).
    pub tensors: u64,
    /// Parameters they stand for, whatever they count as.
    pub params: Params,
    /// Bytes of the values.
    pub value_bytes: Bytes,
    /// Bytes of scales, zero points and other companions.
    pub companion_bytes: Bytes,
}

/// Sums over a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// By layout.
    pub layouts: Vec<LayoutSummary>,
    /// Parameters of the model: packed values counted one by one, without companions, buffers, unused copies and
    /// multi-token prediction.
    pub params: Params,
    /// Parameters of multi-token prediction.
    pub multi_token_prediction: Params,
    /// Elements of buffers.
    pub buffers: Params,
    /// Bytes of everything.
    pub stored: Bytes,
    /// Elements as hubs count them: stored elements, packed words counted as one each.
    pub stored_elements: Params,
}

/// Suffixes that hold values, and those of their companions. Longer suffixes stand before their endings.
const COMPANIONS: &[&str] = &[
    ".weight.nested_quant_map",
    ".weight.nested_absmax",
    ".weight.quant_map",
    ".weight.absmax",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_scale",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".weight_format",
    ".input_global_scale",
    ".input_zero_point",
    ".input_scale",
    ".output_scale",
    ".activation_scale",
    ".qzeros",
    ".g_idx",
    ".scales",
    ".biases",
    ".SCB",
    ".scale_inv",
    ".scale",
    "_weight_scale_inv",
    "_weight_scale_2",
    "_weight_scale",
    "_input_scale",
    "_scale_inv",
    "_scales",
    "_scale",
];
/// Scales of a quantized cache, which sit on attention modules.
const CACHE_SCALES: &[&str] = &[".k_scale", ".v_scale", ".kv_scale", ".q_scale", ".prob_scale", ".prob_output_scale"];

/// Decides for every tensor what it is. The answer is as long as `tensors`.
pub(super) fn parts(tensors: &[StoredTensor], hints: &Hints, notes: &mut Vec<String>) -> Vec<Part> {
    let by_name: BTreeMap<&str, &StoredTensor> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut guessed = BTreeSet::new();
    let mut matrices: BTreeMap<&str, Layout> = BTreeMap::new();
    let mut parts: Vec<Part> = tensors
        .iter()
        .map(|tensor| {
            let found = quantized(tensor, &by_name, hints, &mut guessed);
            let (layout, params) = found.unwrap_or((Layout::Plain, tensor.elements()));
            if layout != Layout::Plain {
                matrices.insert(stem(&tensor.name), layout);
            }
            Part { layout, params, companion: false }
        })
        .collect();
    for (tensor, part) in tensors.iter().zip(&mut parts).filter(|(_, part)| part.layout == Layout::Plain) {
        if let Some(layout) = companion(&tensor.name, &matrices) {
            *part = Part { layout, params: 0, companion: true };
        }
    }
    let odd = tensors.iter().zip(&parts).filter(|(tensor, part)| {
        part.layout == Layout::Plain
            && tensor.position.counts == Counts::Parameter
            && tensor.dtype.is_some_and(|dtype| !dtype.is_float())
            && tensor.elements() > 1
    });
    let (mut count, mut example) = (0_u64, None);
    for (tensor, _) in odd {
        count = count.saturating_add(1);
        example = example.or(Some(tensor));
    }
    if let Some(tensor) = example {
        notes.push(format!(
            "{count} integer tensors belong to no known quantized layout, their elements are counted as parameters ({} is the first)",
            super::shown(&tensor.name)
        ));
    }
    notes.extend(guessed.into_iter().map(ToString::to_string));
    parts
}

/// The name of the matrix a tensor with values belongs to.
fn stem(name: &str) -> &str {
    [".weight_packed", ".qweight", ".weight", "_blocks"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn companion(name: &str, matrices: &BTreeMap<&str, Layout>) -> Option<Layout> {
    if CACHE_SCALES.iter().any(|suffix| name.ends_with(suffix)) {
        return Some(Layout::Fp8);
    }
    if let Some((stem, _)) = name.split_once(".weight.quant_state.") {
        return matrices.get(stem).copied();
    }
    COMPANIONS.iter().filter_map(|suffix| name.strip_suffix(suffix)).find_map(|stem| matrices.get(stem)).copied()
}

/// The layout of a tensor that holds packed or scaled values, with the parameters it stands for.
fn quantized(
    tensor: &StoredTensor,
    by_name: &BTreeMap<&str, &StoredTensor>,
    hints: &Hints,
    guessed: &mut BTreeSet<&'static str>,
) -> Option<(Layout, u64)> {
    let name = tensor.name.as_str();
    let stem = stem(name);
    let sibling = |suffix: &str| by_name.get(format!("{stem}{suffix}").as_str()).copied();
    let elements = tensor.elements();
    let twice = elements.saturating_mul(2);
    if name.ends_with(".qweight") {
        return words(tensor, sibling(".scales"), sibling(".qzeros"), sibling(".g_idx"), guessed);
    }
    if name.ends_with(".weight_packed") {
        return Some(match tensor.dtype {
            Some(Dtype::U8 | Dtype::I8 | Dtype::F4) => {
                let values = if tensor.dtype == Some(Dtype::F4) { elements } else { twice };
                (float4(sibling(".weight_scale")), values)
            }
            _ => {
                let bits = hints.packed_bits.filter(|bits| (1..=32).contains(bits)).unwrap_or_else(|| {
                    guessed.insert("packed words without a config that states num_bits: counted as 4-bit values");
                    4
                });
                (Layout::Packed, row_values(tensor, bits))
            }
        });
    }
    if name.ends_with("_blocks") {
        return sibling("_scales").is_some().then_some((Layout::Mxfp4, twice));
    }
    let scale = || {
        [".weight_scale_inv", ".weight_scale", ".scale", "_weight_scale", "_weight_scale_inv", "_scale_inv", "_scale"]
            .iter()
            .find_map(|suffix| sibling(suffix))
    };
    match tensor.dtype? {
        Dtype::U8 | Dtype::I8 if has_quant_state(name, by_name) => Some((Layout::BitsAndBytes4, twice)),
        Dtype::I8 if sibling(".SCB").is_some() => Some((Layout::Int8, elements)),
        Dtype::U32 => {
            let scales = sibling(".scales")?;
            Some((Layout::Mlx, mlx_values(tensor, scales, sibling(".biases").is_some(), stem, hints, guessed)))
        }
        Dtype::F4 => Some((float4(scale()), elements)),
        Dtype::U8 | Dtype::I8 => {
            let scale = scale()?;
            let per_scale = row(tensor).checked_div(row(scale)).unwrap_or(0);
            // 16 values in 8 bytes, or 32 values in 16: two values a byte.
            if scale.dtype == Some(Dtype::F8E4M3) && per_scale == 8 {
                Some((Layout::Nvfp4, twice))
            } else if matches!(scale.dtype, Some(Dtype::U8 | Dtype::F8E8M0)) && per_scale == 16 {
                Some((Layout::Mxfp4, twice))
            } else {
                Some((Layout::Int8, elements))
            }
        }
        dtype if dtype.is_fp8() => {
            let is_scale = COMPANIONS.iter().any(|suffix| {
                name.strip_suffix(suffix).is_some_and(|stem| {
                    [".weight", ".weight_packed", ""].iter().any(|main| by_name.contains_key(format!("{stem}{main}").as_str()))
                })
            });
            (!is_scale).then_some((Layout::Fp8, elements))
        }
        _ => None,
    }
}

fn has_quant_state(name: &str, by_name: &BTreeMap<&str, &StoredTensor>) -> bool {
    let prefix = format!("{name}.quant_state.");
    by_name.range(prefix.as_str()..).next().is_some_and(|(next, _)| next.starts_with(&prefix))
}

/// Which 4-bit float it is, by its scales: fp8 ones are NVFP4's, power-of-two bytes MXFP4's.
fn float4(scale: Option<&StoredTensor>) -> Layout {
    match scale.and_then(|scale| scale.dtype) {
        Some(Dtype::U8 | Dtype::F8E8M0) => Layout::Mxfp4,
        _ => Layout::Nvfp4,
    }
}

/// Length of a row in the file's order.
fn row(tensor: &StoredTensor) -> u64 {
    tensor.shape.last().copied().unwrap_or(1)
}

/// Values in rows of 32-bit words that are packed along the row.
fn row_values(tensor: &StoredTensor, bits: u64) -> u64 {
    let word_bits = tensor.dtype.map_or(32, Dtype::bits);
    // Each row is packed by itself; the last word of a row may be part empty, which only the config's shapes know.
    let per_row = row(tensor).saturating_mul(word_bits).checked_div(bits).unwrap_or(0);
    let rows = tensor.elements().checked_div(row(tensor)).unwrap_or(0);
    per_row.saturating_mul(rows)
}

/// GPTQ and AWQ share their suffixes; GPTQ packs the input side (rows), AWQ the output side (columns).
fn words(
    weight: &StoredTensor,
    scales: Option<&StoredTensor>,
    zeros: Option<&StoredTensor>,
    index: Option<&StoredTensor>,
    guessed: &mut BTreeSet<&'static str>,
) -> Option<(Layout, u64)> {
    let scales = scales?;
    let (&[.., rows, columns], Some(&outputs)) = (weight.shape.as_slice(), scales.shape.last()) else { return None };
    if columns == outputs {
        let bits_by_index = index.map(StoredTensor::elements).and_then(|inputs| rows.saturating_mul(32).checked_div(inputs));
        let bits_by_zeros = zeros.and_then(|zeros| row(zeros).saturating_mul(32).checked_div(outputs));
        let bits = bits_by_zeros.or(bits_by_index).filter(|bits| (1..=32).contains(bits)).unwrap_or_else(|| {
            guessed.insert("GPTQ words without zero points or an index list: counted as 4-bit values");
            4
        });
        let inputs = index.map_or_else(|| rows.saturating_mul(32).checked_div(bits).unwrap_or(0), StoredTensor::elements);
        Some((Layout::Gptq, inputs.saturating_mul(outputs)))
    } else {
        Some((Layout::Awq, rows.saturating_mul(outputs)))
    }
}

/// Values of an MLX matrix. Words and scales fix the product of bits and group size, the config fixes the bits.
fn mlx_values(
    weight: &StoredTensor,
    scales: &StoredTensor,
    biases: bool,
    stem: &str,
    hints: &Hints,
    guessed: &mut BTreeSet<&'static str>,
) -> u64 {
    // Bits of one group.
    let group_bits = row(weight).saturating_mul(32).checked_div(row(scales)).unwrap_or(0);
    let by_config = hints
        .mlx
        .as_ref()
        .and_then(|mlx| mlx.of_module(stem))
        .filter(|group| group.group_size.saturating_mul(group.bits) == group_bits && (group.mode == Mode::Affine) == biases);
    let group_size = match by_config {
        Some(group) => group.group_size,
        None if !biases => match group_bits {
            // The modes without biases have one group size each.
            64 => 16,
            _ => 32,
        },
        None => {
            let fits = |size: u64| {
                matches!(group_bits.checked_div(size), Some(2 | 3 | 4 | 5 | 6 | 8)) && group_bits.is_multiple_of(size)
            };
            let sizes: Vec<u64> = [64, 32, 128].into_iter().filter(|size| fits(*size)).collect();
            if sizes.len() > 1 {
                guessed.insert("MLX words whose group size the config does not state: counted with groups of 64, MLX's default");
            }
            sizes.first().copied().unwrap_or(64)
        }
    };
    group_size.saturating_mul(scales.elements())
}

/// Adds everything up.
pub(super) fn summary(tensors: &[StoredTensor], parts: &[Part]) -> Result<Summary, MathError> {
    let mut layouts: BTreeMap<Layout, LayoutSummary> = BTreeMap::new();
    let mut sum = Summary::default();
    for (tensor, part) in tensors.iter().zip(parts) {
        let bytes = Bytes::new(tensor.bytes)?;
        let params = Params::new(part.params)?;
        sum.stored = sum.stored.plus(bytes)?;
        sum.stored_elements = sum.stored_elements.plus(Params::new(tensor.elements())?)?;
        let entry = layouts.entry(part.layout).or_insert(LayoutSummary {
            layout: part.layout,
            tensors: 0,
            params: Params::ZERO,
            value_bytes: Bytes::ZERO,
            companion_bytes: Bytes::ZERO,
        });
        if part.companion {
            entry.companion_bytes = entry.companion_bytes.plus(bytes)?;
            continue;
        }
        entry.tensors = mul(1, entry.tensors)?.saturating_add(1);
        entry.params = entry.params.plus(params)?;
        entry.value_bytes = entry.value_bytes.plus(bytes)?;
        match tensor.position.counts {
            Counts::Parameter => sum.params = sum.params.plus(params)?,
            Counts::MultiTokenPrediction => sum.multi_token_prediction = sum.multi_token_prediction.plus(params)?,
            Counts::Buffer => sum.buffers = sum.buffers.plus(params)?,
            _ => {}
        }
    }
    sum.layouts = layouts.into_values().collect();
    Ok(sum)
}
