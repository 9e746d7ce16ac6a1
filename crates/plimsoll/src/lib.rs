//! Will it fit? Exact memory planning for language models, per engine, to the byte.
//!
//! This crate re-exports the three libraries it is made of: [`math`] (the formulas), [`ingest`] (configs and headers
//! into facts) and [`planner`] (the questions).
//!
//! ```
//! use plimsoll::planner::{Basis, Model, Options, fit, response::Verdict};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama-3.1-8b/config.json"))?;
//! // `config` holds the bytes of a Llama 3.1 8B config.json.
//! let model = Model::new(Some("Llama 3.1 8B"), plimsoll::ingest::hf::ingest(&config, &Default::default())?, Basis::Config);
//! let options = Options { device: Some("RTX 4090".into()), context: Some(32_768), quant: Some("Q4_K_M".into()), ..Options::default() };
//! let answer = fit(&model, &options)?;
//!
//! assert!(matches!(answer.verdict, Verdict::Fits { .. }));
//! assert_eq!(answer.totals.kv_cache.get(), 4_294_967_296);
//! # Ok(())
//! # }
//! ```

pub use plimsoll_ingest as ingest;
pub use plimsoll_math as math;
pub use plimsoll_planner as planner;
