//! vLLM 0.33.0: what its memory planner gives every rank.
//!
//! Everything but what is left of the GPU's memory is a pure function of the model, the ranks and the options, and is
//! followed exactly: which cache each layer registers ([`layers`]), how a page of it is packed ([`backend`]), which layers
//! share a table of blocks and what a block weighs ([`groups`]), how many blocks fit and how many requests they serve
//! ([`plan`]), and the bytes of the weights on every rank ([`weights`]).

pub mod allocate;
pub mod backend;
pub mod cache_spec;
pub mod class;
pub mod drafter;
pub mod facts;
pub mod groups;
pub mod layers;
pub mod lora;
mod modules;
pub mod options;
mod pattern;
pub mod plan;
pub mod quantization;
pub mod shard;
pub mod states;
pub mod weights;

/// The version that is followed.
pub const VERSION: &str = "vLLM 0.33.0";
/// The version's number.
pub const VERSION_NUMBER: &str = "0.33.0";
