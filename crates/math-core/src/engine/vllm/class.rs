//! What a model's class in the engine decides that its config does not say.
//!
//! The engine builds every model from a class of its own, and classes differ in more than their sizes: which of a
//! model's ends every pipeline stage builds, what type a router computes in, which projections are given to the
//! quantization. These are facts about a class; who reads the config knows its name and fills them in.

/// Facts of a model class (`vllm/model_executor/models`). The default is what most classes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct ModelClass {
    /// Attention takes linear biases instead of positions.
    pub linear_biases: bool,
    /// Latents are expanded before they are cached, with values padded to the width of keys.
    pub expands_latents: bool,
    /// Attention layers are given no cache format: they cache in the model's type whatever is asked.
    pub plain_cache: bool,
    /// Attention layers hold no scales for a quantized cache.
    pub without_cache_scales: bool,
    /// Attention is built before the layers that use it, so that its caches come before all states.
    pub attention_first: bool,
    /// The model's own draft module.
    pub draft: DraftModule,
    /// What becomes of the cache format that was asked for.
    pub cache_rule: CacheRule,
    /// Which ends of the model every pipeline stage builds.
    pub ends: EveryStage,
    /// Routers of experts.
    pub router: Router,
    /// What checkpoints call the module that experts are in.
    pub experts: ExpertsModule,
    /// The norm that files put beside the embedding is used after the last layer.
    pub embedding_norm_last: bool,
    /// The vocabulary is neither filled up nor split.
    pub plain_vocabulary: bool,
    /// A fused projection has biases for all of its parts, also for keys that have none in files.
    pub fused_biases: bool,
    /// Decay rates are kept in the model's type instead of single precision.
    pub model_type_decay: bool,
    /// Prefills of its delta nets cannot hand out states in their middle.
    pub keeps_states: bool,
    /// Its delta attention has gates with a lower bound, which FlashKDA's prefill needs.
    pub bounded_gates: bool,
    /// Outputs of the delta net's update rates on a rank are filled up to a multiple of this; 0 for one.
    pub rate_tile: u64,
    /// The least part of an expert's hidden layer that a rank of several is given; 0 for any.
    pub least_expert_share: u64,
    /// Norms of queries and keys that are divided with the heads.
    pub split_norms: SplitNorms,
    /// It is built from the Transformers library's own modules, in a division over ranks that is not followed.
    pub library: bool,
    /// It answers with vectors or scores instead of text: steps are not overlapped, and nothing is drafted.
    pub pooling: bool,
    /// Adapters may change its embedding (`embedding_modules`).
    pub adapts_embedding: bool,
    /// Adapters may change its output matrix.
    pub adapts_head: bool,
    /// Positions and kinds of tokens are embedded like a vocabulary: filled up and divided.
    pub divided_embeddings: bool,
    /// Every layer has two norms with biases, and none of queries and keys, whatever the config says.
    pub two_norms: bool,
    /// The delta net's rates are whole on every rank under GPTQ and AWQ, whose kernels take no narrow outputs.
    pub whole_rates: bool,
    /// Its layers cannot be divided into pipeline stages (no `SupportsPP`).
    pub without_pipeline: bool,
    /// Its config names the experts in a place where the engine does not look for their number.
    pub hides_experts: bool,
    /// Whether its experts' kernel on data-centre Blackwell takes hidden layers in whole tiles only, where they are not
    /// quantized: its activation and its router are ones that this kernel knows
    /// (`fused_moe/experts/trtllm_bf16_moe.py`, `fused_moe/oracle/unquantized.py`).
    pub tiled_experts: bool,
    /// Whether the last pipeline stage has the embedding too where a head drafts
    /// (`models/utils.py:spec_decode_needs_target_embed`).
    pub lends_embedding: bool,
    /// Whether the engine builds it.
    pub built: Built,
    /// Vision and audio towers.
    pub tower: TowerClass,
}

/// Whether the engine builds a class (`models/registry.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Built {
    /// It does.
    #[default]
    Yes,
    /// It did until this version.
    Until(u64, u64, u64),
    /// Neither it nor the Transformers library has one that it could build.
    Never,
}

/// The model's own draft module (`vllm/config/speculative.py:hf_config_override`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DraftModule {
    /// The layers that the config names.
    #[default]
    Named,
    /// Only the first of them, which is run again for every further token.
    FirstNamed,
    /// One layer like the last one with attention, where the config names none.
    LastAttention,
}

/// What becomes of the cache format that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum CacheRule {
    /// It is taken.
    #[default]
    AsAsked,
    /// `bfloat16` counts as `auto`.
    Bfloat16IsAuto,
    /// `auto` is fp8 on data-centre Blackwell.
    Fp8OnBlackwell,
    /// Latents are packed unless `bfloat16` is asked for.
    PackedLatents,
}

/// Which ends of the model every pipeline stage builds, instead of the first or the last one (no `is_first_rank` or
/// `is_last_rank` around them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EveryStage {
    /// The embedding.
    pub embedding: bool,
    /// The last norm.
    pub norm: bool,
    /// The output matrix.
    pub head: bool,
}

impl EveryStage {
    /// All of them.
    pub const ALL: Self = Self { embedding: true, norm: true, head: true };
    /// Embedding and output matrix.
    pub const VOCABULARY: Self = Self { embedding: true, norm: false, head: true };
    /// The embedding alone.
    pub const EMBEDDING: Self = Self { embedding: true, norm: false, head: false };
    /// Embedding and last norm.
    pub const WITHOUT_HEAD: Self = Self { embedding: true, norm: true, head: false };
}

/// Routers of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Router {
    /// Their matrix is in single precision.
    pub single_precision: bool,
    /// Their matrix is given to the checkpoint's quantization.
    pub through_scheme: bool,
    /// Their correction is no parameter: it is a buffer, or the class makes none.
    pub buffered_correction: bool,
    /// Their matrix is in single precision on GPUs whose kernels do not compute in it from the model's type.
    pub single_without_kernels: bool,
}

impl Router {
    /// In single precision.
    pub const SINGLE: Self = Self { single_precision: true, ..Self::PLAIN };
    /// Quantized with the rest.
    pub const QUANTIZED: Self = Self { through_scheme: true, ..Self::PLAIN };
    /// In single precision where no kernel does without.
    pub const SINGLE_WITHOUT_KERNELS: Self = Self { single_without_kernels: true, ..Self::PLAIN };
    /// In the model's type.
    pub const PLAIN: Self =
        Self { single_precision: false, through_scheme: false, buffered_correction: false, single_without_kernels: false };
}

/// What checkpoints call the module that experts are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ExpertsModule {
    /// `mlp`.
    #[default]
    Mlp,
    /// `block_sparse_moe`.
    BlockSparseMoe,
}

/// Norms of queries and keys that are divided with the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum SplitNorms {
    /// None.
    #[default]
    None,
    /// Those over all heads at once.
    Vectors,
    /// Those with a row for every head.
    Matrices,
}

/// Vision and audio towers of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct TowerClass {
    /// They are on every rank as a whole.
    pub whole: bool,
    /// Their layers are on every rank as a whole where the ranks do not divide their heads.
    pub whole_if_uneven: bool,
    /// The projector is on every rank as a whole.
    pub whole_projector: bool,
    /// Their linear layers are not given to the checkpoint's quantization.
    pub unquantized: bool,
    /// The projector is, whatever the tower's layers are.
    pub quantized_projector: bool,
    /// Their feed-forward layers are only quantized where their sizes are whole tiles.
    pub whole_tiles: bool,
    /// Patch embeddings and projector are divided by their outputs.
    pub split_patches: bool,
    /// The features of the last layer but one are read, and nothing is built above it.
    pub without_last_layer: bool,
    /// Their module is called `visual`, not `vision_tower` or `vision_model`.
    pub visual: bool,
}
