//! What vLLM reads from a checkpoint's config beyond the architecture.

use alloc::string::String;
use alloc::vec::Vec;

use super::class::ModelClass;
use super::options::CacheDtype;
use super::quantization::WeightScheme;
use crate::format::StorageFormat;

/// Facts of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Checkpoint {
    /// What the model's class decides.
    pub class: ModelClass,
    /// The type it computes in (`dtype`; single precision is served in bfloat16).
    pub dtype: StorageFormat,
    /// How its weights are quantized.
    pub scheme: Option<WeightScheme>,
    /// Parts of layer names that stay unquantized.
    pub unquantized: Vec<String>,
    /// The cache format its quantization asks for.
    pub cache_dtype: Option<CacheDtype>,
    /// The type of recurrent states its config names (`mamba_ssm_cache_dtype`, `mamba_ssm_dtype`).
    pub ssm_dtype: Option<StorageFormat>,
    /// Whether image tokens see each other in both directions (`is_mm_prefix_lm`).
    pub mm_prefix: bool,
    /// The longest request the engine derives, where it is not the one the model was trained for.
    pub max_length: Option<u64>,
    /// Tokens of the largest image or clip, where the model says so ahead of time.
    pub media_tokens: Option<u64>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            class: ModelClass::default(),
            dtype: StorageFormat::Bf16,
            scheme: None,
            unquantized: Vec::new(),
            cache_dtype: None,
            ssm_dtype: None,
            mm_prefix: false,
            max_length: None,
            media_tokens: None,
        }
    }
}
