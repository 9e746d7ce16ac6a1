//! What can go wrong in the formulas.

use alloc::string::String;

/// Why a formula has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MathError {
    /// A count left the exact range (see [`crate::units::MAX_EXACT`]).
    #[error("{quantity}: the result is too large to be exact (above 2^53 - 1)")]
    Overflow {
        /// Which quantity overflowed.
        quantity: &'static str,
    },
    /// A row length is not a whole number of blocks of its storage format.
    #[error("{format}: row of {elements} elements is not a multiple of the block length {block}")]
    PartialBlock {
        /// The storage format's name.
        format: &'static str,
        /// Elements in the row.
        elements: u64,
        /// The format's block length.
        block: u64,
    },
    /// A model or deployment field has a value for which no answer exists.
    #[error("{field}: found {found}, expected {expected}")]
    Invalid {
        /// The field, in this library's vocabulary.
        field: String,
        /// What the field holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// The engine itself refuses this combination; the text says where and why.
    #[error("{engine} refuses this: {reason}")]
    Refused {
        /// Engine and build.
        engine: String,
        /// The engine's own reason.
        reason: String,
    },
    /// A mechanism this engine policy does not cover.
    #[error("{engine} does not support {mechanism}")]
    Unsupported {
        /// Engine and build.
        engine: String,
        /// The missing mechanism.
        mechanism: String,
    },
}

impl MathError {
    /// The same refusal in the name of `engine`, where its rules are those of the engine that was asked.
    #[must_use]
    pub fn of_engine(self, engine: &str) -> Self {
        match self {
            Self::Refused { reason, .. } => Self::Refused { engine: engine.into(), reason },
            Self::Unsupported { mechanism, .. } => Self::Unsupported { engine: engine.into(), mechanism },
            other => other,
        }
    }

    /// A stable snake_case code for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Overflow { .. } => "overflow",
            Self::PartialBlock { .. } => "partial_block",
            Self::Invalid { .. } => "invalid",
            Self::Refused { .. } => "refused",
            Self::Unsupported { .. } => "unsupported",
        }
    }
}
