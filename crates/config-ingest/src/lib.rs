//! From files to facts: bytes of a config or a header in, a
//! [`ModelSpec`](plimsoll_math::spec::ModelSpec) and a [`TensorTable`](plimsoll_math::tensor::TensorTable) out.
//!
//! The parsers are pure functions over bytes; reaching files and the network sits behind features.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod error;
pub mod gguf;
pub mod hf;
#[cfg(feature = "http")]
pub mod http;
pub mod hub;
pub mod mlx;
mod nearest;
#[cfg(feature = "std")]
pub mod resolve;
pub mod safetensors;
pub mod source;

/// What a source yielded: the architecture, the tensors, and everything noteworthy on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingested {
    /// The architecture.
    pub spec: plimsoll_math::spec::ModelSpec,
    /// The tensors: read from a header, or synthesized.
    pub tensors: plimsoll_math::tensor::TensorTable,
    /// How the weights are stored when the source says so beyond plain number types (`Q4_K_M`, `fp8 block 128x128`).
    pub quantization: Option<alloc::string::String>,
    /// What an engine that loads the checkpoint itself reads beyond the architecture.
    pub checkpoint: plimsoll_math::engine::vllm::facts::Checkpoint,
    /// Whether the architecture is a structural guess, made on request for an unknown one.
    pub generic: bool,
    /// What was unusual, unknown or ignored, one sentence each.
    pub notes: alloc::vec::Vec<alloc::string::String>,
}
