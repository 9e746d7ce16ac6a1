//! MLX-LM 0.32.2: what `mlx_lm.generate` and `mlx_lm.server` keep on an Apple device.
//!
//! Caches grow in steps of 256 tokens ([`cache`]); windows rotate only in the model classes that say so, which is a fact
//! of the class ([`cache::ModelClass`]). Weights are the tensors as they are stored, towers left out ([`allocate`]).

pub mod allocate;
pub mod cache;

/// The version that is followed.
pub const VERSION: &str = "MLX-LM 0.32.2";
/// The version's number.
pub const VERSION_NUMBER: &str = "0.32.2";
