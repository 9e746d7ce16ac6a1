//! Models of the fixtures.

use std::sync::LazyLock;

use plimsoll_ingest::hf;
use plimsoll_planner::{Basis, Model};

/// Dense, experts, windows, a parallel hybrid, a state space: every kind of growth with context and sequences.
pub const MODELS: &[&str] = &["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-27b", "falcon-h1-7b", "mamba-codestral-7b"];

pub static LOADED: LazyLock<Vec<Model>> = LazyLock::new(|| MODELS.iter().map(|name| model(name)).collect());

/// A model by the name of its folder.
pub fn model(name: &str) -> Model {
    let path = format!("{}/../../fixtures/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read(&path).expect(&path);
    Model::new(Some(name), hf::ingest(&config, &hf::Options::default()).unwrap(), Basis::Config)
}
