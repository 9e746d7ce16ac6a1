//! What the user asks for: context, sequences, cache formats, batch sizes and the kind of device.

use crate::format::StorageFormat;

/// A processor as far as memory rules depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Backend {
    /// The host's processor.
    Cpu,
    /// An NVIDIA GPU; compute capability times 100 (890 for 8.9), as llama.cpp counts.
    Cuda {
        /// Compute capability times 100.
        compute_capability: u32,
    },
    /// An Apple GPU.
    Metal,
}

/// Flash attention: whether scores are computed without storing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum FlashAttention {
    /// Wherever the device can.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How much context is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ContextRequest {
    /// Tokens for every sequence.
    PerSequence(u64),
    /// The engine's own pool, shared or divided among sequences as the engine does it.
    Total(u64),
    /// As many as the model was trained for, per sequence.
    ModelMaximum,
}

/// What is asked of the engine. Engine-specific knobs that are unset take the engine's own default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Deployment {
    /// Context.
    pub context: ContextRequest,
    /// Concurrent sequences.
    pub sequences: u64,
    /// Logical batch, tokens.
    pub batch: u64,
    /// Micro-batch, tokens.
    pub ubatch: u64,
    /// Format of cached keys.
    pub kv_type_k: StorageFormat,
    /// Format of cached values.
    pub kv_type_v: StorageFormat,
    /// Flash attention.
    pub flash_attention: FlashAttention,
    /// One cache for all sequences instead of one each.
    pub kv_unified: bool,
    /// Full-size caches for sliding-window layers.
    pub swa_full: bool,
    /// Whether CPU weights are repacked into a faster layout when the engine can.
    pub repack: bool,
    /// Whether weights are mapped from the file.
    pub mmap: bool,
    /// Whether multi-token-prediction layers are loaded.
    pub load_mtp: bool,
    /// Rows of logits per sequence beyond the last token's (drafted tokens).
    pub draft_tokens: u64,
    /// Whether the engine runs as an embedding server.
    pub embeddings: bool,
    /// Whether every token of a batch may ask for logits (llama.cpp's bare library, its perplexity tool), instead of
    /// the server's one row per sequence and drafted token.
    pub logits_for_all: bool,
    /// Where layers go: the one device, or the host's processor.
    pub backend: Backend,
}

impl Deployment {
    /// `context` tokens for one sequence with every other value at llama.cpp's default.
    #[must_use]
    pub const fn new(context: ContextRequest, backend: Backend) -> Self {
        Self {
            context,
            sequences: 1,
            batch: 2048,
            ubatch: 512,
            kv_type_k: StorageFormat::F16,
            kv_type_v: StorageFormat::F16,
            flash_attention: FlashAttention::Auto,
            kv_unified: false,
            swa_full: false,
            repack: true,
            mmap: false,
            load_mtp: false,
            draft_tokens: 0,
            embeddings: false,
            logits_for_all: false,
            backend,
        }
    }
}
