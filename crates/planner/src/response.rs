//! The answers, as every surface carries them. Changes here are additive only: the JSON is a contract.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use plimsoll_math::allocation::Term;
use plimsoll_math::deployment::{FlashAttention, Share, SplitMode};
use plimsoll_math::device::DeviceKind;
use plimsoll_math::tensor::Component;
use plimsoll_math::units::{Bytes, Params};
use serde::{Deserialize, Serialize};

use crate::like::LikeEngine;
use crate::model::ParameterCounts;

/// Schema name of [`Fit`].
pub const FIT_SCHEMA: &str = "plimsoll.fit/1";
/// Schema name of [`Inspect`].
pub const INSPECT_SCHEMA: &str = "plimsoll.inspect/1";
/// Schema name of [`Explain`].
pub const EXPLAIN_SCHEMA: &str = "plimsoll.explain/1";
/// Schema name of [`Reach`].
pub const REACH_SCHEMA: &str = "plimsoll.reach/1";
/// Schema name of [`Export`].
pub const EXPORT_SCHEMA: &str = "plimsoll.export/1";
/// Schema name of [`Devices`].
pub const DEVICES_SCHEMA: &str = "plimsoll.devices/1";

/// The model, in a few words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelBrief {
    /// Name.
    pub name: String,
    /// Architecture as the source names it.
    pub architecture: String,
    /// Parameter counts.
    pub parameters: ParameterCounts,
    /// Tokens it was trained for.
    pub max_context: u64,
    /// How its weights are stored in this answer.
    pub quantization: Option<String>,
}

/// The engine, a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineBrief {
    /// Name.
    pub name: String,
    /// Build.
    pub version: String,
}

/// Every effective value of the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentBrief {
    /// Tokens per sequence that were asked for (or that the pool yields, or the model's maximum).
    pub context: u64,
    /// Concurrent sequences.
    pub sequences: u64,
    /// Tokens per sequence that the engine provides after its own rounding.
    pub context_per_sequence: u64,
    /// The engine's pool after its own rounding.
    pub total_context: u64,
    /// Logical batch.
    pub batch: u64,
    /// Micro-batch.
    pub ubatch: u64,
    /// File type the weights are quantized to.
    pub quant: Option<String>,
    /// Format of cached keys.
    pub kv_type_k: String,
    /// Format of cached values.
    pub kv_type_v: String,
    /// Flash attention as it will be: `on` or `off`.
    pub flash_attention: FlashAttention,
    /// One cache for all sequences.
    pub kv_unified: bool,
    /// Full-size caches for sliding-window layers.
    pub swa_full: bool,
    /// Whether processor weights are repacked.
    pub repack: bool,
    /// Whether weights are mapped from the file.
    pub mmap: bool,
    /// Whether the engine runs as an embedding server.
    pub embeddings: bool,
    /// The device.
    pub device: String,
    /// Its backend (`cuda-cc890`, `metal`, `cpu`).
    pub backend: String,
    /// Memory that may be used there.
    pub memory: Bytes,
    /// Whether the file holds multi-token-prediction layers.
    pub prediction_layers: bool,
    /// Tokens that these draft, `null` where they do not.
    pub draft_mtp: Option<u64>,
    /// The multimodal projector beside the model, and how it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmproj: Option<MmprojBrief>,
    /// Threads of the processor; `null` where they were not given.
    pub threads: Option<u64>,
    /// All devices, in the engine's order.
    pub devices: Vec<String>,
    /// How many layers go to devices, the output counted as one more; `null` for all.
    pub gpu_layers: Option<u64>,
    /// How a model is divided among several devices.
    pub split_mode: SplitMode,
    /// Shares of the devices; empty to divide by free memory.
    pub tensor_split: Vec<Share>,
    /// The device that holds everything when nothing is split.
    pub main_gpu: u8,
    /// Whether routed experts stay on the host.
    pub cpu_moe: bool,
    /// The number of first layers whose routed experts stay on the host.
    pub n_cpu_moe: u64,
    /// Tensors that go somewhere of their own, `PATTERN=DEVICE` each.
    pub override_tensor: Vec<String>,
    /// Whether caches lie where their layers are.
    pub kv_offload: bool,
    /// Whether products of large batches are done on a device although their weights are on the host.
    pub op_offload: bool,
    /// What vLLM is asked for, where it is the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vllm: Option<VllmBrief>,
    /// What another engine than llama.cpp and vLLM is asked for, in its own words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// A multimodal projector as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmprojBrief {
    /// Its file.
    pub file: String,
    /// The kinds of its towers, in the file format's own words.
    pub kinds: Vec<String>,
    /// Whether it runs on a device.
    pub offload: bool,
    /// The fewest tokens of an image, where that was asked for.
    pub image_min_tokens: Option<u64>,
    /// The most tokens of an image, where that was asked for.
    pub image_max_tokens: Option<u64>,
}

/// vLLM's own values, defaults included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VllmBrief {
    /// Ranks that split every matrix.
    pub tensor_parallel: u64,
    /// Ranks that split the layers.
    pub pipeline_parallel: u64,
    /// Replicas that split the sequences.
    pub data_parallel: u64,
    /// Whether whole experts are spread over the ranks.
    pub expert_parallel: bool,
    /// Ranks that split a sequence's cache.
    pub context_parallel: u64,
    /// Share of every device's memory in millionths; null where the cache's bytes are given.
    pub memory_utilization: Option<u64>,
    /// The same share of what is free once the driver has set itself up, in millionths.
    pub memory_utilization_of_free: Option<u64>,
    /// Bytes of the cache on every device, where they are given.
    pub kv_memory: Option<Bytes>,
    /// Tokens of a step.
    pub max_batched_tokens: u64,
    /// Sequences that the engine runs at a time.
    pub max_sequences: u64,
    /// Tokens of a cache block.
    pub block_size: u64,
    /// How cached keys and values are stored.
    pub kv_cache_dtype: String,
    /// Whether prefixes are cached.
    pub prefix_caching: bool,
    /// How tokens are drafted, and how many at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculative: Option<String>,
    /// LoRA adapters of one batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loras: Option<u64>,
    /// Their largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lora_rank: Option<u64>,
    /// Attention backends.
    pub attention_backends: Vec<String>,
}

/// One device and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceUse {
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// All of its memory.
    pub total: Bytes,
    /// What one program can get.
    pub usable: Bytes,
    /// Where that figure comes from.
    pub usable_origin: String,
    /// Sum of the terms, upper bounds included.
    pub used: Bytes,
    /// Sum of the terms, lower bounds taken.
    pub used_low: Bytes,
    /// Bytes left, where it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headroom: Option<Bytes>,
    /// Bytes missing, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_by: Option<Bytes>,
    /// The terms.
    pub terms: Vec<Term>,
}

/// The host and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUse {
    /// Sum of the terms, upper bounds included.
    pub used: Bytes,
    /// The terms.
    pub terms: Vec<Term>,
    /// What the server may keep beside that as it runs, up to these limits; not in `used`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Term>,
}

/// Sums over devices and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Model weights.
    pub weights: Bytes,
    /// Keys and values.
    pub kv_cache: Bytes,
    /// Recurrent state.
    pub recurrent_state: Bytes,
    /// Activations.
    pub compute: Bytes,
    /// Logits and embeddings.
    pub output: Bytes,
}

/// What the cache costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheBrief {
    /// Bytes that one more token of context costs once every window is full.
    pub bytes_per_token: Bytes,
    /// Blocks, for engines that page their cache.
    pub blocks: Option<u64>,
    /// Tokens in a block.
    pub block_tokens: Option<u64>,
    /// Sequences of full length that fit at once.
    pub max_concurrency: Option<Concurrency>,
    /// Tokens that the engine reports as the cache's size: the longest sequence times how many fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Bytes of a block on the fullest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<Bytes>,
    /// Layers that share a table of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<CacheGroup>>,
}

/// How many sequences of full length fit at once: a finite number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Concurrency(f64);

impl Eq for Concurrency {}

impl Concurrency {
    /// `blocks` over `per_request`, as the engine divides; `None` where a request takes no blocks.
    #[must_use]
    pub fn of(blocks: u64, per_request: u64) -> Option<Self> {
        let blocks = f64::from(u32::try_from(blocks).ok()?);
        let per_request = f64::from(u32::try_from(per_request).ok()?);
        (per_request > 0.0).then_some(Self(blocks / per_request))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// Layers that share a table of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheGroup {
    /// The engine's kind of cache.
    pub kind: String,
    /// Layers.
    pub layers: u64,
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Bytes of a page of one layer, or of all its layers where they differ.
    pub page_bytes: Bytes,
    /// Blocks of one sequence of full length.
    pub blocks_per_sequence: u64,
}

/// A change that would make it fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// In words.
    pub change: String,
    /// As options.
    pub options: Vec<String>,
    /// What would be used then.
    pub used: Bytes,
}

/// Whether it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// On the devices, with this much to spare.
    Fits {
        /// Bytes left on the fullest device.
        headroom: Bytes,
    },
    /// On the devices and the host, with a part of the layers, experts or caches left to the host as asked.
    FitsWithOffload {
        /// Bytes left on the fullest device.
        headroom: Bytes,
        /// The engine's arguments for what goes where.
        plan: Vec<String>,
    },
    /// It does not.
    DoesNotFit {
        /// Bytes missing, on the device that misses most.
        short_by: Bytes,
        /// Present when it would fit if every bounded term stayed at its lower bound: bytes left then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fits_at_best_with: Option<Bytes>,
        /// The smallest changes that would fit.
        closest: Vec<Change>,
    },
}

/// What a textbook calculator would say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naive {
    /// Parameters times nominal bits.
    pub weights: Bytes,
    /// 2 x layers x key-value heads x head elements x 2 bytes x tokens.
    pub kv_cache: Bytes,
    /// The formula in words.
    pub formula: String,
}

/// What stops a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LimitedBy {
    /// The device's memory.
    Memory,
    /// What the model was trained for.
    Model,
    /// What the engine supports.
    Engine,
}

/// The largest value that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The value; 0 when not even the smallest fits.
    pub value: u64,
    /// What stops it there.
    pub limited_by: LimitedBy,
}

/// Limits reachable on this device with everything else as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Tokens per sequence.
    pub max_context: Option<Limit>,
    /// Sequences.
    pub max_sequences: Option<Limit>,
}

/// Answer of `fit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// [`FIT_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// The deployment.
    pub deployment: DeploymentBrief,
    /// The devices.
    pub devices: Vec<DeviceUse>,
    /// The host.
    pub host: HostUse,
    /// Sums.
    pub totals: Totals,
    /// The cache.
    pub cache: CacheBrief,
    /// The verdict.
    pub verdict: Verdict,
    /// What the engine itself would choose, where that was asked; everything else here is for that choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like_engine: Option<LikeEngine>,
    /// How fast; null where it is not modelled, and for what does not fit, which does not run.
    pub throughput: Option<crate::speed::Throughput>,
    /// How to run it.
    pub command: Vec<String>,
    /// Limits reachable here.
    pub limits: Limits,
    /// The textbook figure.
    pub naive: Naive,
    /// What was assumed or unusual.
    pub notes: Vec<String>,
}

/// Answer of `explain`: every byte as a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// [`EXPLAIN_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// The deployment.
    pub deployment: DeploymentBrief,
    /// The devices; terms have children.
    pub devices: Vec<DeviceUse>,
    /// The host; terms have children.
    pub host: HostUse,
    /// The component that was asked for alone; its devices show nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// The textbook figure.
    pub naive: Naive,
    /// What was assumed or unusual.
    pub notes: Vec<String>,
}

/// Answer of `export`: the engine's own command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// [`EXPORT_SCHEMA`].
    pub schema: String,
    /// The engine.
    pub engine: EngineBrief,
    /// The program and its arguments, each as one.
    pub command: Vec<String>,
    /// Another form than the command line, where one was asked for, and its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<Document>,
}

/// A text to put into a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// `kubernetes`, `compose`, `ollama` or `sglang`.
    pub form: String,
    /// The text.
    pub text: String,
}

/// Answer of `max-context` and `max-sequences`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// [`REACH_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// The deployment at the limit (at the smallest value when nothing fits).
    pub deployment: DeploymentBrief,
    /// `context` or `sequences`.
    pub of: String,
    /// The limit.
    pub limit: Limit,
    /// Used on the device at the limit.
    pub used: Bytes,
    /// Usable on the device.
    pub usable: Bytes,
    /// How to run it at the limit.
    pub command: Vec<String>,
    /// What was assumed or unusual.
    pub notes: Vec<String>,
}

/// One layer in `inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerBrief {
    /// Index from 0.
    pub index: u32,
    /// The mixer's kind.
    pub mixer: String,
    /// The feed-forward's kind.
    pub feed_forward: String,
    /// Parameters.
    pub parameters: Params,
    /// Elements of a token's cached key, 0 when the layer keeps none.
    pub kv_dim_k: u64,
    /// Elements of a token's cached value.
    pub kv_dim_v: u64,
    /// Window in tokens; null for full attention and layers without attention.
    pub window: Option<u64>,
    /// Recurrent state of one sequence, single precision.
    pub state_bytes: Bytes,
}

/// The model in `inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectModel {
    /// Name.
    pub name: String,
    /// Architecture.
    pub architecture: String,
    /// Tokens it was trained for.
    pub max_context: u64,
    /// llama.cpp's name of the architecture, where it knows it.
    pub llama_cpp_arch: Option<String>,
    /// How the source stores weights.
    pub quantization: Option<String>,
    /// Elements of the hidden state.
    pub d_model: u64,
    /// Vocabulary rows.
    pub n_vocab: u64,
}

/// Parameters in `inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectParameters {
    /// Each unique parameter once.
    pub total: Params,
    /// What one token passes.
    pub active: Params,
    /// By part of the model; they sum to `total`.
    pub by_component: BTreeMap<Component, Params>,
    /// In multi-token-prediction layers, beyond `total`.
    pub multi_token_prediction: Params,
    /// Stored buffers that are no parameters, beyond `total`.
    pub buffers: Params,
}

/// Answer of `inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// [`INSPECT_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: InspectModel,
    /// Parameters.
    pub parameters: InspectParameters,
    /// Layers.
    pub layers: Vec<LayerBrief>,
    /// Number of weight tensors.
    pub tensors: u64,
    /// Bytes of the tensors as the source stores them, without padding.
    pub weight_bytes: Option<Bytes>,
    /// What was unusual.
    pub notes: Vec<String>,
}

/// One device of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBrief {
    /// The device.
    #[serde(flatten)]
    pub device: plimsoll_math::device::Device,
    /// Names it also answers to.
    pub aliases: Vec<String>,
}

/// Answer of `devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// [`DEVICES_SCHEMA`].
    pub schema: String,
    /// The list.
    pub devices: Vec<DeviceBrief>,
}
