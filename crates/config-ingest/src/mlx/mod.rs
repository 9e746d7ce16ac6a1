//! MLX checkpoints: quantization groups of `config.json`, headers of `weights.npz`.

mod npz;
mod quantization;

pub use npz::{NpzLimits, read_npz};
pub use quantization::{Group, Mode, Quantization};
