//! What can be wrong with a question.

use alloc::string::{String, ToString};

use plimsoll_ingest::error::IngestError;
use plimsoll_math::error::MathError;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An option or request field holds something it cannot hold.
    #[error("{field}: found {found}, expected {expected}")]
    Request {
        /// The option, as the request spells it.
        field: String,
        /// What was given.
        found: String,
        /// What may be given.
        expected: String,
    },
    /// The model's source is wrong or out of reach.
    #[error(transparent)]
    Source(#[from] IngestError),
    /// A formula has no answer, or the engine refuses the combination.
    #[error(transparent)]
    Math(#[from] MathError),
}

/// What kind of failure it is; the command line has one exit code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The question is wrong.
    Usage,
    /// The data is wrong.
    Data,
    /// The source cannot be reached.
    Unavailable,
}

impl PlanError {
    /// A request error.
    pub fn request(field: &str, found: impl ToString, expected: impl ToString) -> Self {
        Self::Request { field: field.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// A stable snake_case code for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Request { .. } => "request",
            Self::Source(error) => error.code(),
            Self::Math(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Request { .. } | Self::Math(MathError::Refused { .. } | MathError::Unsupported { .. }) => Failure::Usage,
            Self::Source(IngestError::Unavailable { .. }) => Failure::Unavailable,
            Self::Source(_) | Self::Math(_) => Failure::Data,
        }
    }

    /// What to try instead, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Request { field, .. } => match field.as_str() {
                "device" => Some("`plimsoll devices` lists what is known; `--memory 24GiB` describes any other device"),
                "engine" => Some("`--engine llama.cpp` is the newest build that is followed"),
                "quant" => Some("names are llama-quantize's, for example Q4_K_M, Q8_0, IQ4_XS, BF16"),
                _ => None,
            },
            Self::Math(MathError::Refused { .. }) => Some("the engine itself would stop here; change the option it names"),
            Self::Math(MathError::Unsupported { .. }) => Some("`--engine ideal` gives the textbook figure for every model"),
            Self::Source(IngestError::UnknownArchitecture { .. }) => {
                Some("`--assume-generic` gives bounds for an architecture that is not known")
            }
            Self::Source(IngestError::Unavailable { .. }) => {
                Some("check the path or name, the network and, for private repositories, HF_TOKEN")
            }
            _ => None,
        }
    }
}
