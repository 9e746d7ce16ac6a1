//! Number types of safetensors files.

use plimsoll_math::format::StorageFormat;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal, $format:expr;)*) => {
        /// A number type, as the header spells it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])* $variant,)*
        }

        impl Dtype {
            /// Every type.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The spelling in the header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bits of one element.
            #[must_use]
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }

            /// The storage format with the same bytes; `None` where the vocabulary has none.
            #[must_use]
            pub const fn format(self) -> Option<StorageFormat> {
                match self { $(Self::$variant => $format,)* }
            }
        }
    };
}

dtypes! {
    /// One byte per truth value.
    Bool = "BOOL", 8, Some(StorageFormat::Bool);
    /// 4-bit float, two to a byte.
    F4 = "F4", 4, Some(StorageFormat::F4E2M1);
    /// 6-bit float, 2 exponent bits; four to three bytes.
    F6E2M3 = "F6_E2M3", 6, None;
    /// 6-bit float, 3 exponent bits; four to three bytes.
    F6E3M2 = "F6_E3M2", 6, None;
    /// Unsigned byte.
    U8 = "U8", 8, Some(StorageFormat::U8);
    /// Signed byte.
    I8 = "I8", 8, Some(StorageFormat::I8);
    /// 8-bit float, 5 exponent bits.
    F8E5M2 = "F8_E5M2", 8, Some(StorageFormat::F8E5M2);
    /// 8-bit float, 4 exponent bits.
    F8E4M3 = "F8_E4M3", 8, Some(StorageFormat::F8E4M3);
    /// 8-bit power-of-two scale.
    F8E8M0 = "F8_E8M0", 8, Some(StorageFormat::F8E8M0);
    /// 8-bit float without a negative zero, 4 exponent bits: the same bytes as [`Dtype::F8E4M3`].
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8, Some(StorageFormat::F8E4M3);
    /// 8-bit float without a negative zero, 5 exponent bits: the same bytes as [`Dtype::F8E5M2`].
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8, Some(StorageFormat::F8E5M2);
    /// Signed 16-bit integer.
    I16 = "I16", 16, Some(StorageFormat::I16);
    /// Unsigned 16-bit integer.
    U16 = "U16", 16, Some(StorageFormat::U16);
    /// Half precision.
    F16 = "F16", 16, Some(StorageFormat::F16);
    /// bfloat16.
    Bf16 = "BF16", 16, Some(StorageFormat::Bf16);
    /// Signed 32-bit integer.
    I32 = "I32", 32, Some(StorageFormat::I32);
    /// Unsigned 32-bit integer.
    U32 = "U32", 32, Some(StorageFormat::U32);
    /// Single precision.
    F32 = "F32", 32, Some(StorageFormat::F32);
    /// A complex number of two single-precision parts: the bytes of one [`Dtype::U64`].
    C64 = "C64", 64, Some(StorageFormat::U64);
    /// Double precision.
    F64 = "F64", 64, Some(StorageFormat::F64);
    /// Signed 64-bit integer.
    I64 = "I64", 64, Some(StorageFormat::I64);
    /// Unsigned 64-bit integer.
    U64 = "U64", 64, Some(StorageFormat::U64);
}

impl Dtype {
    /// The type with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// Bytes of `elements`; `None` when they end inside a byte or leave `u64`.
    #[must_use]
    pub const fn bytes(self, elements: u64) -> Option<u64> {
        match elements.checked_mul(self.bits()) {
            Some(bits) if bits.is_multiple_of(8) => Some(bits / 8),
            // A count of bits may leave u64 where the count of bytes does not.
            None if self.bits() >= 8 => elements.checked_mul(self.bits() / 8),
            Some(_) | None => None,
        }
    }

    /// Whether it is a number that a model computes with, rather than a container of packed bits.
    #[must_use]
    pub const fn is_float(self) -> bool {
        match self {
            Self::F4
            | Self::F6E2M3
            | Self::F6E3M2
            | Self::F8E5M2
            | Self::F8E4M3
            | Self::F8E4M3Fnuz
            | Self::F8E5M2Fnuz
            | Self::F16
            | Self::Bf16
            | Self::F32
            | Self::F64
            | Self::C64 => true,
            Self::Bool
            | Self::U8
            | Self::I8
            | Self::F8E8M0
            | Self::I16
            | Self::U16
            | Self::I32
            | Self::U32
            | Self::I64
            | Self::U64 => false,
        }
    }

    /// Whether it is one of the 8-bit floats that checkpoints hold quantized weights in.
    #[must_use]
    pub const fn is_fp8(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2 | Self::F8E4M3Fnuz | Self::F8E5M2Fnuz)
    }
}
