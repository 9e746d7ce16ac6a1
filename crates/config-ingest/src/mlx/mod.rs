//! MLX checkpoints: quantization groups of `config.json`, headers of `weights.npz`.

mod npz;
mod quantization;
mod weights;

pub use npz::{NpzLimits, read_npz};
pub use quantization::{Group, Mode, Quantization};
pub use weights::stored_table;
