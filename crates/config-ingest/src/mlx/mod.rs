//! MLX checkpoints: quantization groups of `config.json`, headers of `weights.npz`.
