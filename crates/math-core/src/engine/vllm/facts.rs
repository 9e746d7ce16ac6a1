//! What vLLM reads from a checkpoint's config beyond the architecture.

use alloc::string::String;
use alloc::vec::Vec;

use super::class::ModelClass;
use super::drafter::EagleHead;
use super::options::CacheDtype;
use super::quantization::WeightScheme;
use crate::format::StorageFormat;

/// How lists of layers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum NameMatching {
    /// Whole names (`fp8`, `mxfp4`: `utils/quant_utils.py:is_layer_skipped`).
    #[default]
    Exact,
    /// Parts of names (`awq`, `gptq`).
    Substring,
    /// Whole names, or expressions after `re:` (`compressed-tensors`).
    Patterns,
    /// Parts of names and shell wildcards (`modelopt`).
    Wildcards,
}

/// Layers that are quantized in a way of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerScheme {
    /// Their name, or a pattern of it.
    pub name: String,
    /// How.
    pub scheme: WeightScheme,
}

/// Facts of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Checkpoint {
    /// What the model's class decides.
    pub class: ModelClass,
    /// What MLX-LM's class of the model decides; `None` where it has none.
    #[cfg_attr(feature = "serde", serde(default))]
    pub mlx: Option<crate::engine::mlx::cache::ModelClass>,
    /// What the model's class in Transformers decides.
    #[cfg_attr(feature = "serde", serde(default))]
    pub transformers: crate::engine::transformers::cache::ModelClass,
    /// What SGLang's class of the model decides.
    #[cfg_attr(feature = "serde", serde(default))]
    pub sglang: crate::engine::sglang::pool::ModelClass,
    /// The type it computes in (`dtype`; single precision is served in bfloat16).
    pub dtype: StorageFormat,
    /// How its weights are quantized.
    pub scheme: Option<WeightScheme>,
    /// What the checkpoint calls a quantization that is not followed ([`WeightScheme::Unknown`]).
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub unfollowed: Option<String>,
    /// How experts are, where it differs.
    pub experts_scheme: Option<WeightScheme>,
    /// Layers that the checkpoint quantizes in a way of their own.
    pub layer_schemes: Vec<LayerScheme>,
    /// Names of layers that stay unquantized.
    pub unquantized: Vec<String>,
    /// How those names are read.
    pub matching: NameMatching,
    /// The cache format its quantization asks for.
    pub cache_dtype: Option<CacheDtype>,
    /// The type of recurrent states its config names (`mamba_ssm_cache_dtype`, `mamba_ssm_dtype`).
    pub ssm_dtype: Option<StorageFormat>,
    /// Whether text tokens see each other in both directions, so that nothing is cached (`is_causal: false`).
    pub sees_ahead: bool,
    /// Whether image tokens see each other in both directions (`is_mm_prefix_lm`).
    pub mm_prefix: bool,
    /// The longest request the engine derives, where it is not the one the model was trained for.
    pub max_length: Option<u64>,
    /// Whether that is only what the engine assumes where nothing is said, so that longer ones may be asked for.
    pub assumed_length: bool,
    /// The longest request unless one is asked for, where that is less than the longest there is.
    pub default_length: Option<u64>,
    /// Tokens of the largest image or clip, where the model says so ahead of time.
    pub media_tokens: Option<u64>,
    /// What it says as a head that drafts for another model.
    #[cfg_attr(feature = "serde", serde(default))]
    pub eagle: EagleHead,
}

impl Checkpoint {
    /// Bits of the narrowest element of any matrix, scales not counted; `None` where nothing is quantized.
    #[must_use]
    pub fn least_bits(&self) -> Option<u64> {
        let layers = self.layer_schemes.iter().map(|layer| layer.scheme);
        let unfollowed = || if self.unfollowed.as_deref() == Some("bitsandbytes") { 4 } else { 1 };
        let all = self.scheme.into_iter().chain(self.experts_scheme).chain(layers);
        all.map(|scheme| scheme.least_bits().unwrap_or_else(unfollowed)).min()
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            class: ModelClass::default(),
            mlx: None,
            transformers: crate::engine::transformers::cache::ModelClass::default(),
            sglang: crate::engine::sglang::pool::ModelClass::default(),
            dtype: StorageFormat::Bf16,
            scheme: None,
            unfollowed: None,
            experts_scheme: None,
            layer_schemes: Vec::new(),
            unquantized: Vec::new(),
            matching: NameMatching::Exact,
            cache_dtype: None,
            ssm_dtype: None,
            sees_ahead: false,
            mm_prefix: false,
            max_length: None,
            assumed_length: false,
            default_length: None,
            media_tokens: None,
            eagle: EagleHead::default(),
        }
    }
}
