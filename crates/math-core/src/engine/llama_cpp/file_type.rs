//! File types: the names of llama.cpp's quantization mixes (`Q4_K_M`, `IQ3_XS`, `MXFP4_MOE`, …).
//!
//! A file type is not a format: it is a rule that gives each tensor its own format ([`super::quantize`]).

use alloc::format;
use alloc::string::{String, ToString};

use crate::error::MathError;
use crate::format::StorageFormat;

macro_rules! file_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $id:literal, $default:ident;)*) => {
        /// A file type that `llama-quantize` makes, or that the converter writes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum FileType {
            $($(#[$doc])* #[cfg_attr(feature = "serde", serde(rename = $name))] $variant,)*
        }

        impl FileType {
            /// Every file type, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name as `llama-quantize` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The number in a file's `general.file_type` (`llama.h`, `enum llama_ftype`).
            #[must_use]
            pub const fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// The format of a tensor for which no rule says otherwise
            /// (`llama-quant.cpp:llama_ftype_get_default_type`).
            #[must_use]
            pub const fn default_format(self) -> StorageFormat {
                match self { $(Self::$variant => StorageFormat::$default,)* }
            }
        }
    };
}

file_types! {
    /// Single precision.
    F32 = "F32", 0, F32;
    /// Half precision.
    F16 = "F16", 1, F16;
    /// bfloat16.
    Bf16 = "BF16", 32, Bf16;
    /// 1-bit.
    Q1_0 = "Q1_0", 40, Q1_0;
    /// 2-bit, groups of 64.
    Q2_0 = "Q2_0", 41, Q2_0;
    /// 4-bit.
    Q4_0 = "Q4_0", 2, Q4_0;
    /// 4-bit with minimum.
    Q4_1 = "Q4_1", 3, Q4_1;
    /// 5-bit.
    Q5_0 = "Q5_0", 8, Q5_0;
    /// 5-bit with minimum.
    Q5_1 = "Q5_1", 9, Q5_1;
    /// 8-bit.
    Q8_0 = "Q8_0", 7, Q8_0;
    /// 2-bit mix.
    Q2K = "Q2_K", 10, Q2K;
    /// 2-bit mix, small.
    Q2KS = "Q2_K_S", 21, Q2K;
    /// 3-bit mix, small.
    Q3KS = "Q3_K_S", 11, Q3K;
    /// 3-bit mix, medium.
    Q3KM = "Q3_K_M", 12, Q3K;
    /// 3-bit mix, large.
    Q3KL = "Q3_K_L", 13, Q3K;
    /// 4-bit mix, small.
    Q4KS = "Q4_K_S", 14, Q4K;
    /// 4-bit mix, medium.
    Q4KM = "Q4_K_M", 15, Q4K;
    /// 5-bit mix, small.
    Q5KS = "Q5_K_S", 16, Q5K;
    /// 5-bit mix, medium.
    Q5KM = "Q5_K_M", 17, Q5K;
    /// 6-bit.
    Q6K = "Q6_K", 18, Q6K;
    /// Codebook, 1.6 bits.
    Iq1S = "IQ1_S", 24, Iq1S;
    /// Codebook, 1.8 bits.
    Iq1M = "IQ1_M", 31, Iq1M;
    /// Codebook, 2.1 bits.
    Iq2Xxs = "IQ2_XXS", 19, Iq2Xxs;
    /// Codebook, 2.3 bits.
    Iq2Xs = "IQ2_XS", 20, Iq2Xs;
    /// Codebook, 2.5 bits; its default format is that of `IQ2_XS`.
    Iq2S = "IQ2_S", 28, Iq2Xs;
    /// Codebook, 2.7 bits.
    Iq2M = "IQ2_M", 29, Iq2S;
    /// Codebook, 3.1 bits.
    Iq3Xxs = "IQ3_XXS", 23, Iq3Xxs;
    /// Codebook, 3.3 bits; its default format is that of `IQ3_S`.
    Iq3Xs = "IQ3_XS", 22, Iq3S;
    /// Codebook, 3.4 bits.
    Iq3S = "IQ3_S", 26, Iq3S;
    /// Codebook, 3.7 bits.
    Iq3M = "IQ3_M", 27, Iq3S;
    /// 4-bit with a non-linear table.
    Iq4Nl = "IQ4_NL", 25, Iq4Nl;
    /// 4-bit with a non-linear table, super-blocks.
    Iq4Xs = "IQ4_XS", 30, Iq4Xs;
    /// Ternary, 1.7 bits.
    Tq1_0 = "TQ1_0", 36, Tq1_0;
    /// Ternary, 2.1 bits.
    Tq2_0 = "TQ2_0", 37, Tq2_0;
    /// Experts in MXFP4, everything else in `Q8_0`.
    Mxfp4Moe = "MXFP4_MOE", 38, Mxfp4;
}

/// Short names that `llama-quantize` takes for the medium mixes.
const ALIASES: &[(&str, FileType)] = &[("Q3_K", FileType::Q3KM), ("Q4_K", FileType::Q4KM), ("Q5_K", FileType::Q5KM)];

impl FileType {
    /// Reads a name; case does not matter, `-` stands for `_`, and the aliases of `llama-quantize` are known.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for a third party's dynamic mix (`UD-…`), for `COPY`, and for an unknown name, with the
    /// nearest one.
    ///
    /// ```
    /// use plimsoll_math::engine::llama_cpp::FileType;
    /// assert_eq!(FileType::parse("q4_k").unwrap(), FileType::Q4KM);
    /// assert!(FileType::parse("Q4_KM").unwrap_err().to_string().contains("Q4_K_M"));
    /// ```
    pub fn parse(text: &str) -> Result<Self, MathError> {
        let name: String = text.trim().chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }).collect();
        let invalid = |expected: String| MathError::Invalid { field: "file type".to_string(), found: text.to_string(), expected };
        if name.starts_with("UD_") {
            return Err(invalid(
                "a file type of llama-quantize: a UD name is a third party's mix, chosen tensor by tensor without a \
                 published rule; give the GGUF file itself, its header says what each tensor takes"
                    .to_string(),
            ));
        }
        let exact = Self::ALL.iter().copied().find(|file_type| file_type.name() == name);
        let alias = || ALIASES.iter().find(|(alias, _)| *alias == name).map(|&(_, file_type)| file_type);
        exact.or_else(alias).ok_or_else(|| {
            // Underscores are what people forget first: the letters alone count as well.
            let letters = |name: &str| name.replace('_', "");
            let far = |known: &str| distance(known, &name).saturating_add(distance(&letters(known), &letters(&name)));
            let nearest = Self::ALL.iter().copied().min_by_key(|file_type| far(file_type.name()));
            invalid(match nearest {
                Some(nearest) => format!("a file type of llama-quantize; the nearest is {nearest}"),
                None => "a file type of llama-quantize".to_string(),
            })
        })
    }

    /// The file type with this number in `general.file_type`.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|file_type| file_type.id() == id)
    }
}

impl core::fmt::Display for FileType {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Edits (insertions, deletions, replacements) that turn one name into the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: alloc::vec::Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let best = diagonal.saturating_add(usize::from(x != y)).min(left.saturating_add(1)).min(cell.saturating_add(1));
            diagonal = *cell;
            *cell = best;
            left = best;
        }
    }
    row.last().copied().unwrap_or(0)
}
