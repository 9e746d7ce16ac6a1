//! What vLLM can be asked for, with the engine's own names of the values (`vllm/engine/arg_utils.py`).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::VERSION;
use super::drafter::Drafter;
use super::lora::Adapters;
use crate::deployment::Parallelism;
use crate::error::MathError;
use crate::format::StorageFormat;

macro_rules! cache_dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// How cached keys and values are stored (`vllm/config/cache.py:CacheDType`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum CacheDtype {
            $($(#[$doc])* #[cfg_attr(feature = "serde", serde(rename = $name))] $variant,)*
        }

        impl CacheDtype {
            /// Every one, in the engine's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The engine's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

cache_dtypes! {
    /// As the model computes, or as its checkpoint says.
    #[default]
    Auto = "auto";
    /// Half precision.
    Float16 = "float16";
    /// bfloat16.
    Bfloat16 = "bfloat16";
    /// 8-bit floats, one scale a tensor.
    Fp8 = "fp8";
    /// The same, by the name of the format.
    Fp8E4M3 = "fp8_e4m3";
    /// 8-bit floats with five exponent bits.
    Fp8E5M2 = "fp8_e5m2";
    /// DeepSeek's packed latents: 512 fp8 values, four scales, 64 rope values in bf16.
    Fp8DsMla = "fp8_ds_mla";
    /// The same with 4-bit values.
    Nvfp4DsMla = "nvfp4_ds_mla";
    /// 4-bit floats with an fp8 scale for every 16.
    Nvfp4 = "nvfp4";
    /// Whole numbers of 4 bits, a scale for every token and head.
    Int4PerTokenHead = "int4_per_token_head";
    /// Whole numbers of 8 bits, a scale for every token and head.
    Int8PerTokenHead = "int8_per_token_head";
    /// 8-bit floats, a scale for every token and head.
    Fp8PerTokenHead = "fp8_per_token_head";
    /// TurboQuant: 8-bit keys, 4-bit values.
    TurboK8V4 = "turboquant_k8v4";
    /// TurboQuant: 4-bit keys and values.
    Turbo4 = "turboquant_4bit_nc";
    /// TurboQuant: 3-bit keys, 4-bit values.
    TurboK3V4 = "turboquant_k3v4_nc";
    /// TurboQuant: 3-bit keys and values.
    Turbo3 = "turboquant_3bit_nc";
}

impl CacheDtype {
    /// Reads the engine's name.
    ///
    /// # Errors
    /// [`MathError::Invalid`] with the names there are.
    pub fn parse(text: &str) -> Result<Self, MathError> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == text).ok_or_else(|| MathError::Invalid {
            field: "kv_type".to_string(),
            found: text.to_string(),
            expected: {
                let names: Vec<&str> = Self::ALL.iter().map(|dtype| dtype.name()).collect();
                names.join(", ")
            },
        })
    }

    /// Whether values are stored with fewer bits than the model computes in (`is_quantized_kv_cache`).
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::Auto | Self::Float16 | Self::Bfloat16)
    }

    /// Whether it is one of TurboQuant's.
    #[must_use]
    pub const fn is_turbo(self) -> bool {
        matches!(self, Self::TurboK8V4 | Self::Turbo4 | Self::TurboK3V4 | Self::Turbo3)
    }

    /// 8-bit floats with one scale a tensor.
    #[must_use]
    pub const fn is_plain_fp8(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp8E4M3)
    }

    /// Bytes of an element (`STR_DTYPE_TO_TORCH_DTYPE`); packed formats count in bytes.
    #[must_use]
    pub const fn element_bytes(self, model: StorageFormat) -> u64 {
        match self {
            Self::Auto => model.block_bytes(),
            Self::Float16 | Self::Bfloat16 => 2,
            _ => 1,
        }
    }

    /// A number that differs between formats that must not share a group.
    #[must_use]
    pub const fn identity(self) -> u64 {
        match self {
            Self::Auto | Self::Float16 | Self::Bfloat16 => 0,
            Self::Fp8 | Self::Fp8E4M3 | Self::Fp8E5M2 | Self::Fp8DsMla => 1,
            Self::Nvfp4DsMla => 2,
            Self::Nvfp4 => 3,
            Self::Int4PerTokenHead => 4,
            Self::Int8PerTokenHead => 5,
            Self::Fp8PerTokenHead => 6,
            Self::TurboK8V4 => 7,
            Self::Turbo4 => 8,
            Self::TurboK3V4 => 9,
            Self::Turbo3 => 10,
        }
    }
}

/// Who starts the engine: defaults differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Usage {
    /// `vllm serve`.
    #[default]
    Server,
    /// The `LLM` class in a program.
    Library,
}

/// A GPU as far as vLLM's choices depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gpu {
    /// Compute capability times 10 (90 for Hopper).
    pub capability: u64,
    /// All of its memory, bytes.
    pub memory: u64,
    /// Whether its name says A100, which keeps small batches.
    pub a100: bool,
}

impl Gpu {
    /// The generation: 9 for Hopper.
    #[must_use]
    pub const fn major(&self) -> u64 {
        self.capability / 10
    }
}

/// How tokens are drafted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DraftMethod {
    /// The model's own prediction layers.
    Mtp,
    /// Repeats of what was seen: no weights, no cache.
    Ngram,
    /// A head that reads the model's last hidden state (EAGLE).
    Eagle,
    /// A head that reads hidden states of several of the model's layers (EAGLE 3).
    Eagle3,
    /// A smaller model of its own.
    DraftModel,
}

impl DraftMethod {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Mtp, Self::Ngram, Self::Eagle, Self::Eagle3, Self::DraftModel];

    /// The engine's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mtp => "mtp",
            Self::Ngram => "ngram",
            Self::Eagle => "eagle",
            Self::Eagle3 => "eagle3",
            Self::DraftModel => "draft_model",
        }
    }
}

/// Methods of other versions, which this one does not have (`vllm/config/speculative.py:SpeculativeMethod`).
const GONE: [&str; 2] = ["medusa", "mlp_speculator"];

impl Speculation {
    /// Reads `mtp:2`, `ngram:5` or `eagle3:3`.
    ///
    /// # Errors
    /// [`MathError::Invalid`] with what is read, [`MathError::Refused`] for methods that the engine no longer has.
    pub fn parse(text: &str) -> Result<Self, MathError> {
        let (name, tokens) = text.split_once(':').unwrap_or((text, ""));
        if GONE.contains(&name) {
            return Err(MathError::Refused {
                engine: VERSION.to_string(),
                reason: format!("method {name}: it is none of ngram, draft_model, eagle, eagle3, mtp, dflash, dspark, suffix"),
            });
        }
        let method = DraftMethod::ALL.iter().copied().find(|method| method.name() == name);
        match (method, tokens.parse::<u64>()) {
            (Some(method), Ok(tokens)) if (1..=64).contains(&tokens) => Ok(Self { method, tokens }),
            _ => Err(MathError::Invalid {
                field: "speculative".to_string(),
                found: text.to_string(),
                expected: "METHOD:N with mtp, ngram, eagle, eagle3 or draft_model, N tokens at a time from 1 to 64".to_string(),
            }),
        }
    }
}

/// Speculative decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Speculation {
    /// How.
    pub method: DraftMethod,
    /// Tokens drafted at a time.
    pub tokens: u64,
}

/// The longest request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum MaxLength {
    /// What the model was trained for.
    #[default]
    Model,
    /// So many tokens.
    Tokens(u64),
    /// The most that memory holds, up to the model's maximum (`--max-model-len -1`).
    Fit,
}

/// Everything vLLM is asked for; what is `None` takes the engine's own default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Knobs {
    /// The GPU of every rank.
    pub gpu: Gpu,
    /// Ranks.
    pub parallelism: Parallelism,
    /// Who starts it.
    pub usage: Usage,
    /// `--max-model-len`.
    pub max_length: MaxLength,
    /// `--max-num-batched-tokens`.
    pub max_batched_tokens: Option<u64>,
    /// `--max-num-seqs`.
    pub max_sequences: Option<u64>,
    /// `--block-size`.
    pub block_tokens: Option<u64>,
    /// `--kv-cache-dtype`.
    pub cache_dtype: CacheDtype,
    /// `--kv-cache-dtype-skip-layers sliding_window`: windows stay in the model's type.
    pub skip_sliding_window: bool,
    /// `--enable-prefix-caching`.
    pub prefix_caching: Option<bool>,
    /// `--async-scheduling`.
    pub async_scheduling: bool,
    /// Off with `--disable-hybrid-kv-cache-manager`.
    pub hybrid_manager: bool,
    /// `--mamba-cache-dtype`.
    pub state_dtype: Option<StorageFormat>,
    /// `--mamba-ssm-cache-dtype`.
    pub ssm_dtype: Option<StorageFormat>,
    /// `--enable-lora` with `--max-loras` and `--max-lora-rank`.
    pub adapters: Option<Adapters>,
    /// `--speculative-config`.
    pub speculation: Option<Speculation>,
    /// Whether weights are those of a rank with fewer experts than the first, where experts do not divide.
    pub fewer_experts: bool,
    /// The model that drafts, where the method has one.
    pub drafter: Option<Box<Drafter>>,
    /// `--num-gpu-blocks-override`.
    pub blocks_override: Option<u64>,
    /// `--quantization`, for weights that are quantized when they are loaded.
    pub online_quantization: Option<String>,
}

impl Knobs {
    /// Every default, on one GPU.
    #[must_use]
    pub const fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            parallelism: Parallelism::NONE,
            usage: Usage::Server,
            max_length: MaxLength::Model,
            max_batched_tokens: None,
            max_sequences: None,
            block_tokens: None,
            cache_dtype: CacheDtype::Auto,
            skip_sliding_window: false,
            prefix_caching: None,
            async_scheduling: true,
            hybrid_manager: true,
            state_dtype: None,
            ssm_dtype: None,
            adapters: None,
            speculation: None,
            fewer_experts: false,
            drafter: None,
            blocks_override: None,
            online_quantization: None,
        }
    }

    /// Tokens of a step and sequences at a time, unless they are given
    /// (`vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults`).
    #[must_use]
    pub const fn batch_defaults(&self) -> (u64, u64) {
        const GIB: u64 = 1 << 30;
        let server = matches!(self.usage, Usage::Server);
        let gpu = &self.gpu;
        if gpu.memory >= 160 * GIB {
            (16_384, 1024)
        } else if gpu.memory >= 70 * GIB && !gpu.a100 && gpu.capability != 121 {
            (if server { 8192 } else { 16_384 }, 1024)
        } else {
            (if server { 2048 } else { 8192 }, 256)
        }
    }
}
