//! MLX checkpoints: quantization groups of `config.json`, headers of `weights.npz`.

mod quantization;

pub use quantization::{Group, Mode, Quantization};
