//! Storage formats: how the elements of a tensor lie in memory.
//!
//! Bytes come from whole blocks, never from "bits per weight": a row of `n` elements in a format with
//! blocks of `block_len` elements and `block_bytes` bytes takes `n / block_len * block_bytes` bytes, and a
//! row that is no whole number of blocks is an error.

use crate::error::MathError;
use crate::units::{Bytes, mul};

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $ggml_id:expr, $block_len:literal, $block_bytes:literal;)*) => {
        /// How elements are stored. One variant per format of ggml (`ggml/src/ggml.c`, `type_traits`), which
        /// include the plain number types of every other container.
        ///
        /// Formats that split a matrix into several tensors (GPTQ, AWQ, bitsandbytes, compressed-tensors, MLX) are
        /// a [`crate::quantization::Scheme`]: packed integers here, scales and zero points beside them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum StorageFormat {
            $($(#[$doc])* #[cfg_attr(feature = "serde", serde(rename = $name))] $variant,)*
        }

        impl StorageFormat {
            /// Every format, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The usual name, as the engine spells it (`q4_K`, `bf16`).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The type number in a GGUF file, where the format has one.
            #[must_use]
            pub const fn ggml_id(self) -> Option<u32> {
                match self { $(Self::$variant => $ggml_id,)* }
            }

            /// Elements in one block.
            #[must_use]
            pub const fn block_len(self) -> u64 {
                match self { $(Self::$variant => $block_len,)* }
            }

            /// Bytes of one block.
            #[must_use]
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $block_bytes,)* }
            }
        }
    };
}

formats! {
    /// IEEE single precision.
    F32 = "f32", Some(0), 1, 4;
    /// IEEE half precision.
    F16 = "f16", Some(1), 1, 2;
    /// bfloat16.
    Bf16 = "bf16", Some(30), 1, 2;
    /// IEEE double precision.
    F64 = "f64", Some(28), 1, 8;
    /// 8-bit float, 4 exponent and 3 mantissa bits.
    F8E4M3 = "f8_e4m3", Some(43), 1, 1;
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5M2 = "f8_e5m2", None, 1, 1;
    /// 8-bit power-of-two scale.
    F8E8M0 = "f8_e8m0", None, 1, 1;
    /// Two 4-bit floats (2 exponent bits, 1 mantissa bit) per byte.
    F4E2M1 = "f4_e2m1", None, 2, 1;
    /// 8-bit integer.
    I8 = "i8", Some(24), 1, 1;
    /// Unsigned 8-bit integer; also the container of packed 4-bit values.
    U8 = "u8", None, 1, 1;
    /// 16-bit integer.
    I16 = "i16", Some(25), 1, 2;
    /// Unsigned 16-bit integer.
    U16 = "u16", None, 1, 2;
    /// 32-bit integer.
    I32 = "i32", Some(26), 1, 4;
    /// Unsigned 32-bit integer.
    U32 = "u32", None, 1, 4;
    /// 64-bit integer.
    I64 = "i64", Some(27), 1, 8;
    /// Unsigned 64-bit integer.
    U64 = "u64", None, 1, 8;
    /// One byte per truth value.
    Bool = "bool", None, 1, 1;
    /// 4-bit, one f16 scale per 32.
    Q4_0 = "q4_0", Some(2), 32, 18;
    /// 4-bit, f16 scale and minimum per 32.
    Q4_1 = "q4_1", Some(3), 32, 20;
    /// 5-bit, one f16 scale per 32.
    Q5_0 = "q5_0", Some(6), 32, 22;
    /// 5-bit, f16 scale and minimum per 32.
    Q5_1 = "q5_1", Some(7), 32, 24;
    /// 8-bit, one f16 scale per 32.
    Q8_0 = "q8_0", Some(8), 32, 34;
    /// 8-bit with the block's sum, used for activations.
    Q8_1 = "q8_1", Some(9), 32, 36;
    /// 2-bit super-blocks of 256.
    Q2K = "q2_K", Some(10), 256, 84;
    /// 3-bit super-blocks of 256.
    Q3K = "q3_K", Some(11), 256, 110;
    /// 4-bit super-blocks of 256.
    Q4K = "q4_K", Some(12), 256, 144;
    /// 5-bit super-blocks of 256.
    Q5K = "q5_K", Some(13), 256, 176;
    /// 6-bit super-blocks of 256.
    Q6K = "q6_K", Some(14), 256, 210;
    /// 8-bit super-blocks of 256, used for activations.
    Q8K = "q8_K", Some(15), 256, 292;
    /// 2.06-bit codebook.
    Iq2Xxs = "iq2_xxs", Some(16), 256, 66;
    /// 2.31-bit codebook.
    Iq2Xs = "iq2_xs", Some(17), 256, 74;
    /// 2.5-bit codebook.
    Iq2S = "iq2_s", Some(22), 256, 82;
    /// 3.06-bit codebook.
    Iq3Xxs = "iq3_xxs", Some(18), 256, 98;
    /// 3.44-bit codebook.
    Iq3S = "iq3_s", Some(21), 256, 110;
    /// 1.56-bit codebook.
    Iq1S = "iq1_s", Some(19), 256, 50;
    /// 1.75-bit codebook.
    Iq1M = "iq1_m", Some(29), 256, 56;
    /// 4-bit with a non-linear table, blocks of 32.
    Iq4Nl = "iq4_nl", Some(20), 32, 18;
    /// 4.25-bit with a non-linear table, super-blocks of 256.
    Iq4Xs = "iq4_xs", Some(23), 256, 136;
    /// Ternary, 1.69 bits.
    Tq1_0 = "tq1_0", Some(34), 256, 54;
    /// Ternary, 2.06 bits.
    Tq2_0 = "tq2_0", Some(35), 256, 66;
    /// 4-bit floats with one 8-bit power-of-two scale per 32.
    Mxfp4 = "mxfp4", Some(39), 32, 17;
    /// 4-bit floats with one fp8 scale per 16, four such groups to a block.
    Nvfp4 = "nvfp4", Some(40), 64, 36;
    /// 1-bit, one f16 scale per 128.
    Q1_0 = "q1_0", Some(41), 128, 18;
    /// 2-bit, one f16 scale per 64.
    Q2_0 = "q2_0", Some(42), 64, 18;
}

impl StorageFormat {
    /// The format with this GGUF type number.
    #[must_use]
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.ggml_id() == Some(id))
    }

    /// The format with this name; case does not matter.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// Whether values are stored in scaled blocks.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 2
    }

    /// Bytes of a row of `elements`.
    ///
    /// # Errors
    /// [`MathError::PartialBlock`] when the row is no whole number of blocks.
    ///
    /// ```
    /// use plimsoll_math::format::StorageFormat;
    /// assert_eq!(StorageFormat::Q4K.row_bytes(4096).unwrap().get(), 2304);
    /// assert!(StorageFormat::Q4K.row_bytes(100).is_err());
    /// ```
    pub fn row_bytes(self, elements: u64) -> Result<Bytes, MathError> {
        let block = self.block_len();
        if !elements.is_multiple_of(block) {
            return Err(MathError::PartialBlock { format: self.name(), elements, block });
        }
        Bytes::new(mul(elements / block, self.block_bytes())?)
    }
}

impl core::fmt::Display for StorageFormat {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(self.name())
    }
}
