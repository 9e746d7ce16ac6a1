//! Engines: allocation policies. The same model and the same request cost different bytes under each.

pub mod ideal;
pub mod llama_cpp;
pub mod vllm;
