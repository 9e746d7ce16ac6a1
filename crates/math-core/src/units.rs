//! Whole-number units, one newtype each, so that bytes are never added to tokens.
//!
//! Every value stays at or below [`MAX_EXACT`] = 2^53 - 1, the largest integer that JSON, JavaScript,
//! Python floats and Arrow carry without loss. Arithmetic is checked: an operation that would leave the
//! range answers [`MathError::Overflow`] instead of wrapping.

use crate::error::MathError;

/// The largest value a unit may hold: 2^53 - 1.
pub const MAX_EXACT: u64 = (1 << 53) - 1;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name(u64);

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0);

            /// Wraps a count.
            ///
            /// # Errors
            /// [`MathError::Overflow`] above [`MAX_EXACT`].
            pub const fn new(value: u64) -> Result<Self, MathError> {
                if value > MAX_EXACT { Err(MathError::Overflow { quantity: $label }) } else { Ok(Self(value)) }
            }

            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Sum, checked.
            ///
            /// # Errors
            /// [`MathError::Overflow`] above [`MAX_EXACT`].
            pub const fn plus(self, other: Self) -> Result<Self, MathError> {
                match self.0.checked_add(other.0) {
                    Some(sum) => Self::new(sum),
                    None => Err(MathError::Overflow { quantity: $label }),
                }
            }

            /// Product with a plain count, checked.
            ///
            /// # Errors
            /// [`MathError::Overflow`] above [`MAX_EXACT`].
            pub const fn times(self, count: u64) -> Result<Self, MathError> {
                match self.0.checked_mul(count) {
                    Some(product) => Self::new(product),
                    None => Err(MathError::Overflow { quantity: $label }),
                }
            }

            /// Difference, or `None` when `other` is larger.
            #[must_use]
            pub const fn minus(self, other: Self) -> Option<Self> {
                match self.0.checked_sub(other.0) {
                    Some(difference) => Some(Self(difference)),
                    None => None,
                }
            }

            /// Sum of many, checked.
            ///
            /// # Errors
            /// [`MathError::Overflow`] above [`MAX_EXACT`].
            pub fn sum(values: impl IntoIterator<Item = Self>) -> Result<Self, MathError> {
                values.into_iter().try_fold(Self::ZERO, Self::plus)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

unit!(
    /// A number of bytes. Shown to people in binary units: GiB = 2^30 bytes.
    Bytes,
    "bytes"
);
unit!(
    /// A number of model parameters (weight elements).
    Params,
    "parameters"
);
unit!(
    /// A number of tokens (or cache cells, which hold one token each).
    Tokens,
    "tokens"
);

/// `value` rounded up to a multiple of `alignment` (0 and 1 leave it as it is).
///
/// # Errors
/// [`MathError::Overflow`] when the rounded value does not fit.
pub const fn round_up(value: u64, alignment: u64) -> Result<u64, MathError> {
    if alignment <= 1 {
        return Ok(value);
    }
    match value.checked_next_multiple_of(alignment) {
        Some(rounded) => Ok(rounded),
        None => Err(MathError::Overflow { quantity: "rounded size" }),
    }
}

/// Checked product of two counts.
///
/// # Errors
/// [`MathError::Overflow`] above `u64`.
pub const fn mul(a: u64, b: u64) -> Result<u64, MathError> {
    match a.checked_mul(b) {
        Some(product) => Ok(product),
        None => Err(MathError::Overflow { quantity: "product" }),
    }
}

/// Checked sum of two counts.
///
/// # Errors
/// [`MathError::Overflow`] above `u64`.
pub const fn add(a: u64, b: u64) -> Result<u64, MathError> {
    match a.checked_add(b) {
        Some(sum) => Ok(sum),
        None => Err(MathError::Overflow { quantity: "sum" }),
    }
}
