//! What can be wrong with a source, said in one sentence each.

use alloc::string::String;
use alloc::vec::Vec;

/// Why a source yields no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// A field holds something it cannot hold.
    #[error("{place}: found {found}, expected {expected}")]
    Field {
        /// Path of the field (`$.text_config.num_hidden_layers`), metadata key or tensor name.
        place: String,
        /// What is there.
        found: String,
        /// What may be there.
        expected: String,
    },
    /// Several fields are wrong; all of them are listed.
    #[error("{} problems: {}", .0.len(), join(.0))]
    Several(
        /// The problems.
        Vec<IngestError>,
    ),
    /// The architecture is not known.
    #[error("unknown architecture {found} ({place}); the nearest known: {nearest}")]
    UnknownArchitecture {
        /// Where the name stands.
        place: String,
        /// The name.
        found: String,
        /// Known names that resemble it, comma separated.
        nearest: String,
    },
    /// The bytes are not what the format demands.
    #[error("{format}: at byte {offset}: {problem}")]
    Malformed {
        /// The file format.
        format: &'static str,
        /// Byte offset.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// A documented size limit is exceeded.
    #[error("{format}: {what} is {found}, above the limit of {limit}")]
    Limit {
        /// The file format.
        format: &'static str,
        /// Which quantity.
        what: String,
        /// Its value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A kind of file that carries no shapes we can read.
    #[error("{found}: {why}")]
    UnsupportedSource {
        /// The file or repository.
        found: String,
        /// Why not, and what to use instead.
        why: String,
    },
    /// Something could not be reached or read: a file, a host, a shard.
    #[error("{what}: {why}")]
    Unavailable {
        /// What was wanted.
        what: String,
        /// Why it is not there.
        why: String,
    },
    /// A formula refused the numbers.
    #[error(transparent)]
    Math(#[from] plimsoll_math::error::MathError),
}

fn join(problems: &[IngestError]) -> String {
    let texts: Vec<String> = problems.iter().map(alloc::string::ToString::to_string).collect();
    texts.join("; ")
}

impl IngestError {
    /// A stable snake_case code for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Field { .. } => "field",
            Self::Several(_) => "several",
            Self::UnknownArchitecture { .. } => "unknown_architecture",
            Self::Malformed { .. } => "malformed",
            Self::Limit { .. } => "limit",
            Self::UnsupportedSource { .. } => "unsupported_source",
            Self::Unavailable { .. } => "unavailable",
            Self::Math(error) => error.code(),
        }
    }
}
