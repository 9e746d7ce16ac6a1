//! Schemes that store one logical matrix as several tensors: packed weights, scales, zero points.
//!
//! A [`StorageFormat`] says how elements lie in a row; a [`Scheme`] says which tensors a checkpoint holds instead of one
//! matrix of `n_out` rows of `n_in` elements, each with its shape and format, so that bytes are exact down to the last
//! scale. The rules are those of the libraries that write the checkpoints and are named beside each variant.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::tensor::Shape;
use crate::units::{Bytes, mul};

/// How many elements share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Sharing {
    /// All of the matrix.
    Tensor,
    /// An output row.
    Channel,
    /// `size` neighbours of an output row.
    Group {
        /// Elements in a group.
        size: u64,
    },
    /// A rectangle.
    Block {
        /// Output rows.
        rows: u64,
        /// Elements of each row.
        columns: u64,
    },
}

/// How a checkpoint stores a quantized matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "scheme", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Scheme {
    /// GPTQ (`gptqmodel/nn_modules/qlinear`): words packed along the input, zero points along the output, f16 scales and
    /// a group number for every input element.
    Gptq {
        /// Bits of a weight: 2, 3, 4 or 8.
        bits: u64,
        /// Input elements that share a scale; `None` for all of them.
        group_size: Option<u64>,
    },
    /// AWQ (`awq/modules/linear/gemm.py`): words and zero points packed along the output, f16 scales.
    Awq {
        /// Bits of a weight: 4.
        bits: u64,
        /// Input elements that share a scale; `None` for all of them.
        group_size: Option<u64>,
    },
    /// bitsandbytes in 4 bits (`bitsandbytes/functional.py:quantize_4bit`): nibbles of the whole matrix, a maximum for
    /// every 64 of them, and the 16 values of the code. Not counted: the description of the matrix, a JSON text of
    /// around a hundred bytes.
    BitsAndBytes4 {
        /// Whether the maxima are stored in 8 bits with a maximum of their own for every 256.
        double_quantized: bool,
    },
    /// bitsandbytes in 8 bits (`LLM.int8`): one byte an element, a maximum for every output row, and one byte that names
    /// the layout.
    BitsAndBytes8,
    /// compressed-tensors with packed whole numbers (`pack-quantized`): words along the input, scales in `scale`, the
    /// matrix's shape as two numbers.
    PackedInts {
        /// Bits of a weight.
        bits: u64,
        /// Elements that share a scale.
        sharing: Sharing,
        /// Format of scales.
        scale: StorageFormat,
        /// Whether there are no zero points.
        symmetric: bool,
        /// Whether input elements are assigned to groups one by one (`actorder: group`).
        reordered: bool,
    },
    /// One byte an element, whole numbers, with scales (`int-quantized`).
    Int8 {
        /// Elements that share a scale.
        sharing: Sharing,
        /// Format of scales.
        scale: StorageFormat,
    },
    /// 8-bit floats with scales: DeepSeek's blocks of 128 x 128, one scale a row or one a matrix.
    Fp8 {
        /// Elements that share a scale.
        sharing: Sharing,
        /// Format of scales.
        scale: StorageFormat,
        /// Whether a scale for the layer's input is stored too.
        input_scale: bool,
    },
    /// NVIDIA's 4-bit floats: nibbles, an fp8 scale for every `group_size`, and one f32 scale for the matrix.
    Nvfp4 {
        /// Elements that share a scale: 16.
        group_size: u64,
        /// Whether a scale for the layer's input is stored too.
        input_scale: bool,
    },
    /// 4-bit floats with one power-of-two scale byte per 32 (gpt-oss, compressed-tensors).
    Mxfp4,
    /// MLX (`mlx/nn/layers/quantized.py`): words along the input, a scale for every group and, in affine mode, a bias.
    Mlx {
        /// Bits of a weight: 2, 3, 4, 5, 6 or 8.
        bits: u64,
        /// Elements that share scale and bias.
        group_size: u64,
        /// Format of scales and biases; a one-byte format stands for the microscaling modes, which have no biases.
        scale: StorageFormat,
    },
}

/// One tensor of a scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Part {
    /// What is appended to the layer's name.
    pub suffix: &'static str,
    /// Dimensions, fastest first.
    pub shape: Shape,
    /// Format of its elements.
    pub format: StorageFormat,
}

impl Part {
    const fn new(suffix: &'static str, row: u64, rows: u64, format: StorageFormat) -> Self {
        Self { suffix, shape: Shape::matrix(row, rows), format }
    }

    /// Bytes of the tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] or [`MathError::PartialBlock`].
    pub fn bytes(&self) -> Result<Bytes, MathError> {
        self.format.row_bytes(self.shape.row())?.times(self.shape.rows()?)
    }
}

/// Bits of the words that GPTQ, AWQ, compressed-tensors and MLX pack weights into.
const WORD: u64 = 32;
/// Elements that share a maximum in bitsandbytes' 4-bit code, and maxima that share one in turn.
const BNB_BLOCK: u64 = 64;
const BNB_NESTED: u64 = 256;

impl Scheme {
    /// The tensors that stand for a matrix from `n_in` to `n_out`.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for sizes that the scheme cannot pack, [`MathError::Overflow`].
    ///
    /// ```
    /// use plimsoll_math::quantization::Scheme;
    /// let gptq = Scheme::Gptq { bits: 4, group_size: Some(128) };
    /// let parts = gptq.parts(4096, 4096).unwrap();
    /// assert_eq!(parts.iter().map(|part| part.suffix).collect::<Vec<_>>(), ["qweight", "qzeros", "scales", "g_idx"]);
    /// assert_eq!(gptq.bytes(4096, 4096).unwrap().get(), 8_388_608 + 65_536 + 262_144 + 16_384);
    /// ```
    pub fn parts(&self, n_in: u64, n_out: u64) -> Result<Vec<Part>, MathError> {
        use StorageFormat as F;
        match *self {
            Self::Gptq { bits, group_size } => {
                let groups = groups(n_in, group_size)?;
                Ok(vec![
                    Part::new("qweight", n_out, self.words(n_in, bits)?, F::I32),
                    Part::new("qzeros", self.words(n_out, bits)?, groups, F::I32),
                    Part::new("scales", n_out, groups, F::F16),
                    Part::new("g_idx", n_in, 1, F::I32),
                ])
            }
            Self::Awq { bits, group_size } => {
                let groups = self.whole_groups(n_in, group_size.unwrap_or(n_in))?;
                let words = self.words(n_out, bits)?;
                Ok(vec![
                    Part::new("qweight", words, n_in, F::I32),
                    Part::new("qzeros", words, groups, F::I32),
                    Part::new("scales", n_out, groups, F::F16),
                ])
            }
            Self::BitsAndBytes4 { double_quantized } => {
                let elements = mul(n_in, n_out)?;
                let maxima = elements.div_ceil(BNB_BLOCK);
                let mut parts = vec![
                    Part::new("weight", 1, elements.div_ceil(2), F::U8),
                    Part::new("weight.absmax", maxima, 1, if double_quantized { F::U8 } else { F::F32 }),
                    Part::new("weight.quant_map", 16, 1, F::F32),
                ];
                if double_quantized {
                    parts.push(Part::new("weight.nested_absmax", maxima.div_ceil(BNB_NESTED), 1, F::F32));
                    parts.push(Part::new("weight.nested_quant_map", 256, 1, F::F32));
                }
                Ok(parts)
            }
            Self::BitsAndBytes8 => Ok(vec![
                Part::new("weight", n_in, n_out, F::I8),
                Part::new("SCB", n_out, 1, F::F32),
                Part::new("weight_format", 1, 1, F::U8),
            ]),
            Self::PackedInts { bits, sharing, scale, symmetric, reordered } => {
                let (row, rows) = self.scales(n_in, n_out, sharing)?;
                let mut parts = vec![
                    Part::new("weight_packed", packed_words(n_in, bits)?, n_out, F::I32),
                    Part::new("weight_scale", row, rows, scale),
                    Part::new("weight_shape", 2, 1, F::I64),
                ];
                if !symmetric {
                    parts.push(Part::new("weight_zero_point", row, packed_words(rows, bits)?, F::I32));
                }
                if reordered {
                    parts.push(Part::new("weight_g_idx", n_in, 1, F::I32));
                }
                Ok(parts)
            }
            Self::Int8 { sharing, scale } => {
                let (row, rows) = self.scales(n_in, n_out, sharing)?;
                Ok(vec![Part::new("weight", n_in, n_out, F::I8), Part::new("weight_scale", row, rows, scale)])
            }
            Self::Fp8 { sharing, scale, input_scale } => {
                let (row, rows) = self.scales(n_in, n_out, sharing)?;
                let mut parts = vec![Part::new("weight", n_in, n_out, F::F8E4M3), Part::new("weight_scale", row, rows, scale)];
                parts.extend(input_scale.then(|| Part::new("input_scale", 1, 1, scale)));
                Ok(parts)
            }
            Self::Nvfp4 { group_size, input_scale } => {
                let groups = self.whole_groups(n_in, group_size)?;
                let mut parts = vec![
                    Part::new("weight", self.nibbles(n_in)?, n_out, F::U8),
                    Part::new("weight_scale", groups, n_out, F::F8E4M3),
                    Part::new("weight_scale_2", 1, 1, F::F32),
                ];
                parts.extend(input_scale.then(|| Part::new("input_scale", 1, 1, F::F32)));
                Ok(parts)
            }
            Self::Mxfp4 => Ok(vec![
                Part::new("blocks", self.nibbles(n_in)?, n_out, F::U8),
                Part::new("scales", self.whole_groups(n_in, 32)?, n_out, F::F8E8M0),
            ]),
            Self::Mlx { bits, group_size, scale } => {
                let groups = self.whole_groups(n_in, group_size)?;
                let mut parts =
                    vec![Part::new("weight", self.words(n_in, bits)?, n_out, F::U32), Part::new("scales", groups, n_out, scale)];
                parts.extend((scale.block_bytes() > 1).then(|| Part::new("biases", groups, n_out, scale)));
                Ok(parts)
            }
        }
    }

    /// Bytes of all tensors that stand for a matrix from `n_in` to `n_out`.
    ///
    /// # Errors
    /// As [`Scheme::parts`].
    pub fn bytes(&self, n_in: u64, n_out: u64) -> Result<Bytes, MathError> {
        self.parts(n_in, n_out)?.iter().try_fold(Bytes::ZERO, |sum, part| sum.plus(part.bytes()?))
    }

    /// Row length and number of rows of the scales.
    fn scales(&self, n_in: u64, n_out: u64, sharing: Sharing) -> Result<(u64, u64), MathError> {
        match sharing {
            Sharing::Tensor => Ok((1, 1)),
            Sharing::Channel => Ok((1, n_out)),
            Sharing::Group { size } => Ok((self.whole_groups(n_in, size)?, n_out)),
            Sharing::Block { rows, columns } if rows > 0 && columns > 0 => Ok((n_in.div_ceil(columns), n_out.div_ceil(rows))),
            Sharing::Block { .. } => Err(self.invalid("scale block", 0, "at least 1 x 1")),
        }
    }

    /// Words that `elements` of `bits` bits fill, whole ones only.
    fn words(&self, elements: u64, bits: u64) -> Result<u64, MathError> {
        let total = mul(elements, bits)?;
        if bits == 0 || bits > 8 || !total.is_multiple_of(WORD) {
            return Err(self.invalid("elements to pack", elements, &format!("whole words of {WORD} bits at {bits} bits each")));
        }
        Ok(total / WORD)
    }

    fn nibbles(&self, elements: u64) -> Result<u64, MathError> {
        if elements.is_multiple_of(2) {
            Ok(elements / 2)
        } else {
            Err(self.invalid("row of 4-bit values", elements, "an even number"))
        }
    }

    fn whole_groups(&self, elements: u64, size: u64) -> Result<u64, MathError> {
        if size > 0 && elements.is_multiple_of(size) {
            Ok(elements / size)
        } else {
            Err(self.invalid("row", elements, &format!("a multiple of the group size {size}")))
        }
    }

    fn invalid(&self, field: &str, found: u64, expected: &str) -> MathError {
        MathError::Invalid { field: format!("{field} ({self:?})"), found: found.to_string(), expected: expected.to_string() }
    }
}

/// Groups of a row, the last one possibly shorter.
fn groups(elements: u64, size: Option<u64>) -> Result<u64, MathError> {
    match size {
        None => Ok(1),
        Some(0) => Err(MathError::Invalid {
            field: "group size".to_string(),
            found: "0".to_string(),
            expected: "at least 1".to_string(),
        }),
        Some(size) => Ok(elements.div_ceil(size)),
    }
}

/// Words of a row that is filled up to a whole word (`compressed_tensors:pack_to_int32`): `32 / bits` values a word.
fn packed_words(elements: u64, bits: u64) -> Result<u64, MathError> {
    match WORD.checked_div(bits) {
        Some(in_word) if in_word > 0 => Ok(elements.div_ceil(in_word)),
        _ => Err(MathError::Invalid {
            field: "bits of a packed weight".to_string(),
            found: bits.to_string(),
            expected: "1 to 32".to_string(),
        }),
    }
}
