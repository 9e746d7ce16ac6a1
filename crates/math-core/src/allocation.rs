//! The answer: for each device and the host, a list of terms that add up to the byte.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::MathError;
use crate::units::Bytes;

/// What a term pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum TermKind {
    /// Model weights.
    Weights,
    /// Keys and values (or latents) of past tokens.
    KvCache,
    /// Recurrent and convolution state.
    RecurrentState,
    /// Activations and graph inputs.
    Compute,
    /// Logits and embeddings handed to the caller.
    Output,
    /// A draft model.
    Draft,
    /// A multimodal projector.
    Projector,
    /// What the driver takes for itself.
    DriverContext,
    /// Anything else.
    Other,
}

impl TermKind {
    /// The stable name in JSON and on screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "kv_cache",
            Self::RecurrentState => "recurrent_state",
            Self::Compute => "compute",
            Self::Output => "output",
            Self::Draft => "draft",
            Self::Projector => "projector",
            Self::DriverContext => "driver_context",
            Self::Other => "other",
        }
    }
}

/// How sure a term is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "kind", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Certainty {
    /// The engine is deterministic and we follow its rule for that version.
    Exact,
    /// Between these two, both reachable as far as we know.
    Bounded {
        /// At least this.
        low: Bytes,
        /// At most this.
        high: Bytes,
    },
    /// Learned from measurements.
    Calibrated {
        /// The middle.
        expected: Bytes,
        /// Lower end of the interval.
        low: Bytes,
        /// Upper end of the interval.
        high: Bytes,
        /// Share of measurements inside, in percent.
        coverage_percent: u8,
        /// Number of measurements.
        samples: u64,
    },
}

/// One line of an allocation. A term with children is their sum.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Term {
    /// What it pays for.
    pub component: TermKind,
    /// Words for people ("KV cache, sliding-window layers").
    pub label: String,
    /// The figure to plan with: exact, or the upper bound.
    pub bytes: Bytes,
    /// How sure it is.
    pub certainty: Certainty,
    /// The formula with its numbers put in ("32 layers x 2 x 1024 x 2 B x 4096 cells").
    pub formula: String,
    /// Where the rule stands: engine file and function, or the measurement.
    pub source: String,
    /// The parts it is made of; empty for a leaf.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    pub children: Vec<Term>,
}

/// All terms of one place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PlaceAllocation {
    /// The terms.
    pub terms: Vec<Term>,
}

impl PlaceAllocation {
    /// Bytes of all terms, upper bounds included.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn used(&self) -> Result<Bytes, MathError> {
        Bytes::sum(self.terms.iter().map(|term| term.bytes))
    }
    /// Bytes of the terms of one kind.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of(&self, kind: TermKind) -> Result<Bytes, MathError> {
        Bytes::sum(self.terms.iter().filter(|term| term.component == kind).map(|term| term.bytes))
    }
}

/// What an engine allocates, on each device in the order of the deployment and on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Allocation {
    /// One entry per device.
    pub devices: Vec<PlaceAllocation>,
    /// The host.
    pub host: PlaceAllocation,
}

impl Allocation {
    /// Bytes of one kind over all devices and the host.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn total(&self, kind: TermKind) -> Result<Bytes, MathError> {
        self.devices.iter().try_fold(self.host.of(kind)?, |sum, device| sum.plus(device.of(kind)?))
    }
}
