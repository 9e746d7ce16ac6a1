//! Engines: allocation policies. The same model and the same request cost different bytes under each.

pub mod activations;
pub mod ideal;
pub mod kept;
pub mod llama_cpp;
pub mod mlx;
pub mod ranks;
pub mod sglang;
pub mod tensorrt_llm;
pub mod terms;
pub mod transformers;
pub mod vllm;
