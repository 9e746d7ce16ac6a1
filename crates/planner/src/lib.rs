//! Questions over the formulas: does a model fit, with what to spare, how much context, how many sequences, and what
//! does every byte pay for.
//!
//! Pure functions: a [`Model`] and [`Options`] in, an answer of [`response`] out.
//! [`wire`] is the same as JSON.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod axis;
pub mod capacity;
pub mod change;
pub mod closest;
pub mod command;
pub mod compare;
pub mod custom;
mod draft;
pub mod driver;
pub mod engine;
pub mod error;
pub mod export;
pub mod fit;
pub mod fleet;
mod generic;
pub mod inspect;
pub mod like;
pub mod limits;
pub mod mixed;
pub mod mlx;
pub mod model;
pub mod naive;
pub mod offload;
pub mod ollama;
pub mod pace;
pub mod place;
pub mod point;
mod pooled;
pub mod prices;
mod projector;
mod random;
pub mod request;
pub mod response;
mod runtime;
pub mod served;
pub mod sglang;
pub mod size;
pub mod speed;
pub mod sweep;
pub mod tensorrt_llm;
pub mod transformers;
pub mod vllm;
pub mod which_device;
pub mod which_quant;
pub mod wire;

pub use compare::compare;
pub use error::PlanError;
pub use fit::{explain, explain_term, export, fit};
pub use fleet::fleet;
pub use inspect::inspect;
pub use limits::{reach_context as max_context, reach_sequences as max_sequences};
pub use model::{Basis, Model, ProjectorFile};
pub use offload::offload;
pub use request::Options;
pub use which_device::which_device;
pub use which_quant::which_quant;
