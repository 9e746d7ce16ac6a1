//! Hugging Face `config.json`: one row of data per model family, translated into a `ModelSpec`.
//!
//! [`ingest`] is the door. It parses, finds the family's row ([`families`]), lets the row build the architecture
//! from the config through a [`reader::Reader`] (which collects every error and note) with the shared combinators of
//! [`recipe`], and synthesizes the tensor table.

mod checkpoint;
pub mod config;
mod converter;
mod door;
mod eagle;
pub mod families;
mod generic;
mod keys;
mod lookup;
mod mlx_classes;
mod operations;
mod python_json;
pub mod quantization;
pub mod reader;
pub mod recipe;
mod sglang_classes;
pub mod towers;
mod transformers_classes;
mod vllm_classes;
mod vllm_quantization;
mod vllm_registry;

pub use door::{Limits, Options, ingest, parse};
