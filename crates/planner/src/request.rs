//! The question: options as every surface spells them, and what they mean in effect.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::deployment::{ContextRequest, Deployment, FlashAttention, Share, SplitMode};
use plimsoll_math::device::Device;
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::{mlx, sglang, tensorrt_llm, transformers, vllm};
use plimsoll_math::format::StorageFormat;
use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::size::quoted;

/// Everything that can be asked. What is left out takes the engine's own default, and the answer says which.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `llama.cpp`, `llama.cpp@BUILD`, or another of [`Engine::PLAIN`] with or without its version.
    pub engine: Option<String>,
    /// Tokens per sequence.
    pub context: Option<u64>,
    /// Concurrent sequences.
    pub sequences: Option<u64>,
    /// The engine's own pool of tokens (llama.cpp's `-c`).
    pub total_context: Option<u64>,
    /// Logical batch, tokens.
    pub batch: Option<u64>,
    /// Micro-batch, tokens.
    pub ubatch: Option<u64>,
    /// File type to quantize to, for sources that are not quantized.
    pub quant: Option<String>,
    /// The type a model computes in, for engines that convert while they load.
    pub dtype: Option<String>,
    /// Which cache an engine with several of them makes (Transformers).
    pub cache: Option<String>,
    /// Format of cached keys and values.
    pub kv_type: Option<String>,
    /// Format of cached keys.
    pub kv_type_k: Option<String>,
    /// Format of cached values.
    pub kv_type_v: Option<String>,
    /// Flash attention.
    pub flash_attention: Option<FlashAttention>,
    /// One cache for all sequences.
    pub kv_unified: Option<bool>,
    /// Full-size caches for sliding-window layers.
    pub swa_full: Option<bool>,
    /// Whether processor weights are repacked.
    pub repack: Option<bool>,
    /// Whether weights are mapped from the file.
    pub mmap: Option<bool>,
    /// Whether the converted file holds the model's multi-token-prediction layers (`--mtp` and `--no-mtp` of the converter);
    /// by the converter's habit when left out.
    pub prediction_layers: Option<bool>,
    /// Drafts so many tokens with the model's own prediction layers (`--spec-type draft-mtp`).
    pub draft_mtp: Option<u64>,
    /// Tokens that a draft model drafts at most; 3 when left out.
    pub draft_tokens: Option<u64>,
    /// How many layers of a draft model go to devices; all when left out.
    pub draft_gpu_layers: Option<u64>,
    /// Format of a draft model's cached keys and values; f16 when left out, whatever the model's own are.
    pub draft_kv_type: Option<String>,
    /// File type to quantize a draft model to, where its source is not quantized.
    pub draft_quant: Option<String>,
    /// Whether a multimodal projector runs on a device (`--mmproj-offload`); it does when left out.
    pub mmproj_offload: Option<bool>,
    /// The fewest tokens of an image; the projector's own when left out.
    pub image_min_tokens: Option<u64>,
    /// The most tokens of an image; the projector's own when left out.
    pub image_max_tokens: Option<u64>,
    /// Whether the engine runs as an embedding server.
    pub embeddings: Option<bool>,
    /// The limit of the server's prompt cache in host memory, bytes; 8 GiB when left out, 0 for none.
    pub cache_ram: Option<u64>,
    /// How many checkpoints of a slot the server keeps at most; 32 when left out.
    pub context_checkpoints: Option<u64>,
    /// Threads of the processor; where they are left out, the processor's work buffer is a limit and not a figure.
    pub threads: Option<u64>,
    /// The device's name, with a count for several of one kind: `RTX 4090`, `RTX 4090x2`.
    pub device: Option<String>,
    /// More devices, after `device`, in the engine's order.
    pub devices: Option<Vec<String>>,
    /// Devices described in full: names are looked up here before the catalogue.
    pub custom_devices: Option<Vec<Device>>,
    /// How many layers go to devices, the output counted as one more; all when left out.
    pub gpu_layers: Option<u64>,
    /// How a model is divided among several devices.
    pub split_mode: Option<SplitMode>,
    /// Shares of the devices.
    pub tensor_split: Option<Vec<Share>>,
    /// The device that holds everything when nothing is split.
    pub main_gpu: Option<u8>,
    /// Routed experts stay on the host.
    pub cpu_moe: Option<bool>,
    /// Routed experts of so many first layers stay on the host.
    pub n_cpu_moe: Option<u64>,
    /// Tensors that go somewhere of their own, `PATTERN=DEVICE` each.
    pub override_tensor: Option<Vec<String>>,
    /// Whether caches lie where their layers are.
    pub kv_offload: Option<bool>,
    /// Whether products of large batches are done on a device although their weights are on the host.
    pub op_offload: Option<bool>,
    /// Whether the first device draws the desktop as well, which takes some of its memory.
    pub displays: Option<bool>,
    /// The memory of each device, bytes.
    pub memory: Option<u64>,
    /// Takes what the engine itself would choose (`llama-server --fit`) instead of the request as it is: context, layers,
    /// shares and overrides that are left open here. Sequences left out are then the server's four slots of one cache.
    pub like_engine: Option<bool>,
    /// Bytes that the engine leaves free on every device when it chooses; 1 GiB when left out.
    pub fit_margin: Option<u64>,
    /// The least context per stream that the engine may choose; 4096 when left out.
    pub fit_context: Option<u64>,
    /// Ranks that split every matrix.
    pub tensor_parallel: Option<u64>,
    /// Ranks that split the layers.
    pub pipeline_parallel: Option<u64>,
    /// Replicas that split the sequences.
    pub data_parallel: Option<u64>,
    /// Whether whole experts are spread over the ranks.
    pub expert_parallel: Option<bool>,
    /// Ranks that split a sequence's cache.
    pub context_parallel: Option<u64>,
    /// Share of every device's memory for weights, work and cache, in millionths.
    pub memory_utilization: Option<u64>,
    /// Bytes of the cache on every device.
    pub kv_memory: Option<u64>,
    /// Tokens of a step.
    pub max_batched_tokens: Option<u64>,
    /// Sequences that the engine runs at a time.
    pub max_sequences: Option<u64>,
    /// Tokens of a cache block.
    pub block_size: Option<u64>,
    /// Whether prefixes are cached.
    pub prefix_caching: Option<bool>,
    /// How tokens are drafted, and how many at a time: `mtp:2`, `ngram:5`.
    pub speculative: Option<String>,
    /// LoRA adapters of one batch.
    pub max_loras: Option<u64>,
    /// Their largest rank; 16 when left out.
    pub max_lora_rank: Option<u64>,
    /// Whether an unknown architecture may be taken for a generic decoder.
    pub assume_generic: Option<bool>,
    /// Leaves out the search for the limits reachable on the device, which takes longer than the answer itself.
    pub skip_limits: Option<bool>,
}

/// Which engine's rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// llama.cpp, a build.
    LlamaCpp(Build),
    /// vLLM, the version that is followed.
    Vllm,
    /// SGLang, the version that is followed.
    Sglang,
    /// MLX-LM, the version that is followed.
    Mlx,
    /// TensorRT-LLM, the version that is followed.
    TensorRtLlm,
    /// Transformers, the version that is followed.
    Transformers,
    /// Ollama: llama.cpp with defaults of its own.
    Ollama,
    /// The textbook: no rounding, no buffers.
    Ideal,
}

impl Engine {
    /// Every engine that is followed in one version.
    pub const PLAIN: &'static [Self] =
        &[Self::Vllm, Self::Sglang, Self::Mlx, Self::TensorRtLlm, Self::Transformers, Self::Ollama, Self::Ideal];

    /// Whether it is behind [`crate::served`]: neither llama.cpp's nor vLLM's policy, nor the textbook.
    #[must_use]
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Sglang | Self::Mlx | Self::TensorRtLlm | Self::Transformers)
    }

    /// Whether it runs on ranks that split the model.
    #[must_use]
    pub const fn has_ranks(self) -> bool {
        matches!(self, Self::Vllm | Self::Sglang | Self::TensorRtLlm)
    }

    /// Whether its cache is a pool of a size of its own, whatever is asked of it.
    #[must_use]
    pub const fn has_pool(self) -> bool {
        self.has_ranks()
    }

    /// Reads an engine's name.
    ///
    /// # Errors
    /// [`PlanError::Request`] for an engine or a build that is not followed.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
        let known = Self::PLAIN.iter().find(|engine| engine.name() == name);
        if let Some(engine) = known
            && version.is_none_or(|version| version == engine.version())
        {
            return Ok(*engine);
        }
        if text.starts_with("llama.cpp")
            && let Ok(build) = Build::parse(text)
        {
            return Ok(Self::LlamaCpp(build));
        }
        let builds: alloc::vec::Vec<String> = Build::ALL.iter().map(|build| build.engine().to_string()).collect();
        Err(PlanError::request("engine", quoted(text), {
            let others: Vec<String> =
                Self::PLAIN.iter().map(|engine| format!("{}[@{}]", engine.name(), engine.version())).collect();
            format!("llama.cpp, {}, {}", builds.join(", "), others.join(", "))
        }))
    }

    /// The engine's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp(_) => "llama.cpp",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Mlx => "mlx",
            Self::TensorRtLlm => "tensorrt-llm",
            Self::Ollama => "ollama",
            Self::Transformers => "transformers",
            Self::Ideal => "ideal",
        }
    }

    /// The engine's version.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::LlamaCpp(build) => build.tag(),
            Self::Vllm => vllm::VERSION_NUMBER,
            Self::Sglang => sglang::VERSION_NUMBER,
            Self::Mlx => mlx::VERSION_NUMBER,
            Self::TensorRtLlm => tensorrt_llm::VERSION_NUMBER,
            Self::Ollama => crate::ollama::VERSION_NUMBER,
            Self::Transformers => transformers::VERSION_NUMBER,
            Self::Ideal => "1",
        }
    }
}

/// The question with every default filled in.
#[derive(Debug, Clone)]
pub struct Effective {
    /// Whose rules.
    pub engine: Engine,
    /// What is asked of the engine.
    pub deployment: Deployment,
    /// The first device.
    pub device: Device,
    /// All devices.
    pub devices: alloc::vec::Vec<Device>,
    /// Whether the converted file holds prediction layers; by the converter's habit when left out.
    pub prediction_layers: Option<bool>,
    /// The limit of the server's prompt cache, bytes.
    pub cache_ram: u64,
    /// How many checkpoints of a slot the server keeps at most.
    pub context_checkpoints: u64,
    /// Threads of the processor, where they are given.
    pub threads: Option<u64>,
    /// What had to be assumed, one sentence each.
    pub notes: alloc::vec::Vec<String>,
}

fn one_or_more(field: &'static str, value: Option<u64>, default: u64) -> Result<u64, PlanError> {
    match value {
        None => Ok(default),
        Some(0) => Err(PlanError::request(field, "0", "1 or more")),
        Some(value) => Ok(value),
    }
}

pub(crate) fn cache_format(field: &'static str, text: Option<&String>) -> Result<StorageFormat, PlanError> {
    // llama.cpp: common/arg.cpp, kv_cache_types
    const ALLOWED: [StorageFormat; 9] = [
        StorageFormat::F32,
        StorageFormat::F16,
        StorageFormat::Bf16,
        StorageFormat::Q8_0,
        StorageFormat::Q4_0,
        StorageFormat::Q4_1,
        StorageFormat::Iq4Nl,
        StorageFormat::Q5_0,
        StorageFormat::Q5_1,
    ];
    let Some(text) = text else { return Ok(StorageFormat::F16) };
    StorageFormat::from_name(text).filter(|format| ALLOWED.contains(format)).ok_or_else(|| {
        let names: alloc::vec::Vec<&str> = ALLOWED.iter().map(|format| format.name()).collect();
        PlanError::request(field, quoted(text), format!("one of {}", names.join(", ")))
    })
}

impl Options {
    /// The names of the options about a draft model that are set.
    pub(crate) fn draft_set(&self) -> &'static [&'static str] {
        if self.draft_tokens.is_some() {
            &["draft_tokens"]
        } else if self.draft_gpu_layers.is_some() {
            &["draft_gpu_layers"]
        } else if self.draft_kv_type.is_some() {
            &["draft_kv_type"]
        } else if self.draft_quant.is_some() {
            &["draft_quant"]
        } else {
            &[]
        }
    }

    /// The names of the options about a multimodal projector that are set.
    pub(crate) fn projector_set(&self) -> Vec<&'static str> {
        let set = [
            ("mmproj_offload", self.mmproj_offload.is_some()),
            ("image_min_tokens", self.image_min_tokens.is_some()),
            ("image_max_tokens", self.image_max_tokens.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
    }

    /// The question in full.
    ///
    /// # Errors
    /// [`PlanError`] for a value that cannot be.
    pub fn effective(&self) -> Result<Effective, PlanError> {
        let engine = Engine::parse(self.engine.as_deref().unwrap_or("llama.cpp"))?;
        let (mut devices, note) = self.devices()?;
        crate::served::refuse_others(engine, self)?;
        if engine.has_ranks() {
            devices = crate::vllm::ranks(self, engine.name(), devices)?;
        } else if engine.is_served() {
            crate::served::one_device(engine, &devices)?;
        } else if let [first, ..] = crate::vllm::options_set(self).as_slice() {
            return Err(PlanError::request(first, "a value", format!("none with {}: it is an option of vllm", engine.name())));
        }
        let Some(device) = devices.first().cloned() else {
            return Err(PlanError::request("device", "nothing", "a device"));
        };
        if engine == Engine::Ideal && (devices.len() > 1 || !self.places_set().is_empty()) {
            let found = if devices.len() > 1 { "several devices".to_string() } else { self.places_set().join(", ") };
            return Err(PlanError::request("engine", found, "llama.cpp: the textbook has one place for everything"));
        }
        let context = match (self.context, self.total_context) {
            (Some(_), Some(_)) => {
                return Err(PlanError::request("total_context", "a value beside context", "one of the two"));
            }
            (Some(0), None) => return Err(PlanError::request("context", "0", "1 or more")),
            (None, Some(0)) => return Err(PlanError::request("total_context", "0", "1 or more")),
            (Some(tokens), None) => ContextRequest::PerSequence(tokens),
            (None, Some(tokens)) => ContextRequest::Total(tokens),
            (None, None) => ContextRequest::ModelMaximum,
        };
        if self.kv_type.is_some() && (self.kv_type_k.is_some() || self.kv_type_v.is_some()) {
            return Err(PlanError::request("kv_type", "a value beside kv_type_k or kv_type_v", "one or the other"));
        }
        for (field, set) in [("dtype", self.dtype.is_some()), ("cache", self.cache.is_some())] {
            if set && !engine.is_served() {
                return Err(PlanError::request(field, "a value", format!("none with {}", engine.name())));
            }
        }
        if engine == Engine::Vllm || engine.is_served() {
            let mut deployment = Deployment::new(context, device.backend);
            deployment.sequences = one_or_more("sequences", self.sequences, 1)?;
            return Ok(Effective {
                prediction_layers: None,
                cache_ram: 0,
                context_checkpoints: 0,
                threads: None,
                engine,
                deployment,
                device,
                devices,
                notes: note.into_iter().collect(),
            });
        }
        let mut deployment = self.placed(context, &devices)?;
        // The server's own default (`-np -1`) is four slots that share one cache.
        let slots = self.like_engine == Some(true) && self.sequences.is_none();
        deployment.sequences = one_or_more("sequences", self.sequences, if slots { 4 } else { 1 })?;
        deployment.batch = one_or_more("batch", self.batch, deployment.batch)?;
        deployment.ubatch = one_or_more("ubatch", self.ubatch, deployment.ubatch)?;
        deployment.kv_type_k = cache_format("kv_type_k", self.kv_type_k.as_ref().or(self.kv_type.as_ref()))?;
        deployment.kv_type_v = cache_format("kv_type_v", self.kv_type_v.as_ref().or(self.kv_type.as_ref()))?;
        deployment.flash_attention = self.flash_attention.unwrap_or_default();
        deployment.kv_unified = self.kv_unified.unwrap_or(slots);
        deployment.swa_full = self.swa_full.unwrap_or(false);
        deployment.repack = self.repack.unwrap_or(true);
        deployment.mmap = self.mmap.unwrap_or(true);
        deployment.embeddings = self.embeddings.unwrap_or(false);
        if let Some(tokens) = self.draft_mtp {
            deployment.draft_tokens = one_or_more("draft_mtp", Some(tokens), 1)?;
            deployment.load_mtp = true;
            deployment.draft_context = true;
        }
        let mut notes: Vec<String> = note.into_iter().collect();
        if engine == Engine::Ollama {
            notes.extend(crate::ollama::settle(self, &mut deployment, &devices)?);
        }
        let prediction_layers = self.prediction_layers.or(self.draft_mtp.map(|_| true));
        let cache_ram = self.cache_ram.unwrap_or(8 << 30);
        let context_checkpoints = self.context_checkpoints.unwrap_or(32);
        Ok(Effective {
            prediction_layers,
            cache_ram,
            context_checkpoints,
            threads: self.threads.map(|threads| one_or_more("threads", Some(threads), 1)).transpose()?,
            engine,
            deployment,
            device,
            devices,
            notes,
        })
    }
}
