//! Hugging Face `config.json`: one row of data per model family, translated into a `ModelSpec`.

pub mod config;
pub mod families;
