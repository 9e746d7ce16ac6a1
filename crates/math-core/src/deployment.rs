//! What the user asks for: context, sequences, cache formats, batch sizes and the kind of device.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::mul;

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

/// How many ranks share the work, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Parallelism {
    /// Ranks that split every matrix.
    pub tensor: u64,
    /// Ranks that split the layers.
    pub pipeline: u64,
    /// Replicas that split the sequences.
    pub data: u64,
    /// Whether whole experts are spread over the ranks instead of parts of every expert.
    pub expert: bool,
    /// Ranks, among those of tensor parallelism, that split the tokens of a sequence's cache.
    pub decode_context: u64,
}

impl Parallelism {
    /// One rank.
    pub const NONE: Self = Self { tensor: 1, pipeline: 1, data: 1, expert: false, decode_context: 1 };

    /// Devices that this takes.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn devices(&self) -> Result<u64, MathError> {
        mul(mul(self.tensor.max(1), self.pipeline.max(1))?, self.data.max(1))
    }
}

impl Default for Parallelism {
    fn default() -> Self {
        Self::NONE
    }
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

/// A device that layers may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Accelerator {
    /// What drives it; never the processor.
    pub backend: Backend,
    /// Bytes that the driver calls free when the engine starts: layers are divided by them unless shares are given. Where
    /// none of the devices says, they count as equal.
    pub free: u64,
}

/// How a model is divided among several devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SplitMode {
    /// Whole layers, one device after the other.
    #[default]
    Layer,
    /// Rows of matrices.
    Row,
    /// Everything on one device.
    None,
    /// Tensors in parallel, heads on all devices.
    Tensor,
}

/// One device's share of the layers, relative to the others': finite and not negative, in the engine's single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "f32", into = "f32"))]
pub struct Share(u32);

impl Share {
    /// The share as a number.
    #[must_use]
    pub const fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

impl TryFrom<f32> for Share {
    type Error = MathError;

    fn try_from(share: f32) -> Result<Self, MathError> {
        if share.is_finite() && share >= 0.0 {
            // A negative zero is a zero.
            Ok(Self((share + 0.0).to_bits()))
        } else {
            Err(MathError::Invalid {
                field: String::from("tensor split"),
                found: alloc::format!("{share}"),
                expected: String::from("shares of 0 or more"),
            })
        }
    }
}

impl From<Share> for f32 {
    fn from(share: Share) -> Self {
        share.get()
    }
}

/// Where something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Location {
    /// A device, counted as in [`Deployment::devices`].
    Device(u8),
    /// The host.
    Host,
}

/// Tensors that go somewhere of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TensorOverride {
    /// A regular expression that is searched for in the tensor's name.
    pub pattern: String,
    /// Where they go.
    pub place: Location,
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
    /// Whether these layers draft tokens in a context of their own.
    pub draft_context: bool,
    /// Rows of logits per sequence beyond the last token's (drafted tokens).
    pub draft_tokens: u64,
    /// Whether the engine runs as an embedding server.
    pub embeddings: bool,
    /// Whether every token of a batch may ask for logits (llama.cpp's bare library, its perplexity tool), instead of
    /// the server's one row per sequence and drafted token.
    pub logits_for_all: bool,
    /// The devices that layers may go to, in the engine's order; none leaves everything to the processor.
    pub devices: Vec<Accelerator>,
    /// How many layers go to devices, the last ones first; the output counts as one more. `None` for all.
    pub gpu_layers: Option<u64>,
    /// How a model is divided among several devices.
    pub split_mode: SplitMode,
    /// Shares of the devices; empty, or all zero, to divide by free memory.
    pub tensor_split: Vec<Share>,
    /// The device that holds everything when nothing is split.
    pub main_gpu: u8,
    /// Tensors that go somewhere of their own; the first pattern that is found decides.
    pub tensor_overrides: Vec<TensorOverride>,
    /// Whether all routed experts stay on the host (after [`Self::tensor_overrides`]).
    pub cpu_moe: bool,
    /// The number of first layers whose routed experts stay on the host (after [`Self::tensor_overrides`]).
    pub n_cpu_moe: u64,
    /// Whether caches lie where their layers are, or on the host.
    pub kv_offload: bool,
    /// Whether products of large batches are done on a device although the weights are on the host.
    pub op_offload: bool,
}

impl Deployment {
    /// `context` tokens for one sequence with every other value at llama.cpp's default, all layers on one device
    /// of a backend or on the processor.
    #[must_use]
    pub fn new(context: ContextRequest, backend: Backend) -> Self {
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
            draft_context: false,
            draft_tokens: 0,
            embeddings: false,
            logits_for_all: false,
            devices: match backend {
                Backend::Cpu => Vec::new(),
                backend => alloc::vec![Accelerator { backend, free: 0 }],
            },
            gpu_layers: None,
            split_mode: SplitMode::Layer,
            tensor_split: Vec::new(),
            main_gpu: 0,
            tensor_overrides: Vec::new(),
            cpu_moe: false,
            n_cpu_moe: 0,
            kv_offload: true,
            op_offload: true,
        }
    }

    /// What drives the first device; the processor where there is none.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.devices.first().map_or(Backend::Cpu, |device| device.backend)
    }
}
