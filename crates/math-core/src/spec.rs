//! `ModelSpec`: a model's architecture, free of any vendor's spelling.
//!
//! A model is a sequence of layers, each one **mixer** (how tokens talk to each other) and one **feed-forward** with
//! their norms. Multi-head, grouped-query and multi-query attention are parameter values of one [`Attention`];
//! a hybrid is a model whose layers differ. What belongs to no mechanism (an odd scalar, an adapter of one model
//! family) is a [`Weight`] in an `extra` list, so that parameter counts stay exact.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::format::StorageFormat;
use crate::tensor::{Component, Counts, Shape};

/// A tensor that a mechanism's own fields do not describe.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Weight {
    /// Name inside its layer (`laurel_l.weight`), or the whole name outside layers.
    pub name: String,
    /// Dimensions, fastest first.
    pub shape: Shape,
    /// The part of the model it counts to.
    pub component: Component,
    /// How it counts.
    pub counts: Counts,
}

/// A norm: a vector of weights, often without a bias.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Norm {
    /// Name inside its layer without `.weight` (`attn_norm`, `ffn_norm`, `post_attention_norm`).
    pub name: String,
    /// Elements.
    pub width: u64,
    /// Whether it has a bias as well.
    pub bias: bool,
}

/// Which earlier tokens a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Window {
    /// All of them.
    #[default]
    Full,
    /// The last `tokens`, sliding with every token.
    Sliding {
        /// Window length in tokens.
        tokens: u64,
    },
    /// Those in the same chunk of `tokens`.
    Chunked {
        /// Chunk length in tokens.
        tokens: u64,
    },
    /// A sliding window centred on the token (bidirectional encoders), `tokens` wide.
    Symmetric {
        /// Window length in tokens.
        tokens: u64,
    },
}

impl Window {
    /// The window's length, `None` for full attention.
    #[must_use]
    pub const fn tokens(self) -> Option<u64> {
        match self {
            Self::Full => None,
            Self::Sliding { tokens } | Self::Chunked { tokens } | Self::Symmetric { tokens } => Some(tokens),
        }
    }
}

/// Whose keys and values a layer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum KvSource {
    /// Its own: the layer writes a cache.
    #[default]
    Own,
    /// Those that layer `layer` wrote; this layer has no cache of its own.
    Layer {
        /// The writing layer.
        layer: u32,
    },
    /// None is kept (bidirectional encoders, which see the whole sequence at once).
    NotCached,
}

/// How the query, key and value projections are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum QkvLayout {
    /// Three matrices.
    #[default]
    Split,
    /// One matrix that yields all three.
    Fused,
    /// No value matrix: values are the keys before their norm (Gemma 4's full-attention layers).
    ValueIsKey,
    /// Only a query matrix: keys and values are read from another layer and have no weights anywhere.
    QueryOnly,
    /// None of these: every matrix, the output's too, is in [`Attention::extra`] (experts as queries).
    Listed,
}

/// Which attention projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AttentionBias {
    /// Queries.
    pub q: bool,
    /// Keys.
    pub k: bool,
    /// Values.
    pub v: bool,
    /// Output.
    pub o: bool,
}

impl AttentionBias {
    /// None.
    pub const NONE: Self = Self { q: false, k: false, v: false, o: false };
    /// Queries, keys and values.
    pub const QKV: Self = Self { q: true, k: true, v: true, o: false };
    /// All four.
    pub const ALL: Self = Self { q: true, k: true, v: true, o: true };
}

/// A gate on the attention output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OutputGate {
    /// No gate.
    #[default]
    None,
    /// The query projection is twice as wide, its second half is the gate (Qwen3-Next, Qwen3.5).
    InQuery,
    /// A projection of its own, `width` wide (one per head, or one per element).
    Own {
        /// Output elements of the gate projection.
        width: u64,
    },
}

/// Sizes of norms on queries and keys; 0 means there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QkNorm {
    /// Elements of the query norm, dimensions fastest first: per head `[head_dim, 1]`, whole `[n_heads * head_dim, 1]`,
    /// one per head each `[head_dim, n_heads]`.
    pub q: [u64; 2],
    /// Elements of the key norm, likewise.
    pub k: [u64; 2],
    /// Whether they have biases.
    pub bias: bool,
}

/// Softmax attention with any number of key-value heads: MHA (`n_kv_heads = n_heads`), GQA, MQA (`n_kv_heads = 1`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Attention {
    /// Query heads.
    pub n_heads: u64,
    /// Key-value heads.
    pub n_kv_heads: u64,
    /// Elements of a query or key head.
    pub k_head_dim: u64,
    /// Elements of a value head.
    pub v_head_dim: u64,
    /// Elements of the layer input that the projections read; `None` for `d_model`.
    pub d_input: Option<u64>,
    /// Elements of the layer input that key and value projections read (cross attention); `None` as for queries.
    pub d_kv_input: Option<u64>,
    /// Elements of the output; `None` for `d_model`.
    pub d_output: Option<u64>,
    /// Which tokens it sees.
    pub window: Window,
    /// Whether each head has a learned sink (one weight a head; it adds no cache).
    pub sinks: bool,
    /// Whose keys and values it reads.
    pub kv_source: KvSource,
    /// Projection layout.
    pub layout: QkvLayout,
    /// Biases.
    pub bias: AttentionBias,
    /// Norms on queries and keys.
    pub qk_norm: QkNorm,
    /// Output gate.
    pub gate: OutputGate,
    /// Buckets of a relative position bias held by this layer (T5), 0 for none.
    pub relative_buckets: u64,
    /// A sparse-attention selector.
    pub indexer: Option<Indexer>,
    /// Whether later tokens are visible too.
    pub bidirectional: bool,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

impl Attention {
    /// Plain causal attention with one head dimension, no biases and no norms.
    #[must_use]
    pub const fn new(n_heads: u64, n_kv_heads: u64, head_dim: u64) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            k_head_dim: head_dim,
            v_head_dim: head_dim,
            d_input: None,
            d_kv_input: None,
            d_output: None,
            window: Window::Full,
            sinks: false,
            kv_source: KvSource::Own,
            layout: QkvLayout::Split,
            bias: AttentionBias::NONE,
            qk_norm: QkNorm { q: [0, 0], k: [0, 0], bias: false },
            gate: OutputGate::None,
            relative_buckets: 0,
            indexer: None,
            bidirectional: false,
            extra: Vec::new(),
        }
    }
}

/// The selector of sparse attention (DeepSeek's lightning indexer and kin): it keeps one key vector a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Indexer {
    /// Heads of the indexer's queries.
    pub n_heads: u64,
    /// Elements of its key.
    pub head_dim: u64,
    /// Tokens it selects.
    pub top_k: u64,
    /// Whether this layer has an indexer of its own (and so a cache), or reuses an earlier layer's choice.
    pub own: bool,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

/// Multi-head latent attention (DeepSeek V2/V3, Kimi, GLM-5): one compressed latent and one rope key a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mla {
    /// Heads.
    pub n_heads: u64,
    /// Rank of the query compression; `None` for a plain query matrix.
    pub q_lora_rank: Option<u64>,
    /// Rank of the latent that is cached.
    pub kv_lora_rank: u64,
    /// Elements of a head's position-free query and key part.
    pub qk_nope_head_dim: u64,
    /// Elements of the rope part, shared by all heads.
    pub qk_rope_head_dim: u64,
    /// Elements of a value head.
    pub v_head_dim: u64,
    /// Which tokens it sees.
    pub window: Window,
    /// Whether the compressing projections have biases.
    pub bias: bool,
    /// Whether files hold the expansion of the latent as one matrix (MiniCPM3, PLM, DeepSeek files converted before
    /// llama.cpp cached latents). llama.cpp then caches expanded keys and values of every head.
    pub expanded: bool,
    /// Output gate.
    pub gate: OutputGate,
    /// A sparse-attention selector.
    pub indexer: Option<Indexer>,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

/// DeepSeek V4's attention over compressed tokens: a sliding window of raw tokens plus, on most layers, a cache with
/// one entry per `ratio` tokens. Keys and values are one vector of `head_dim`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CompressedAttention {
    /// Heads.
    pub n_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Window of raw tokens.
    pub window: u64,
    /// Tokens per compressed entry; 0 when the layer keeps raw tokens only.
    pub ratio: u64,
    /// A sparse-attention selector over the compressed entries.
    pub indexer: Option<Indexer>,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

/// Mamba's first selective state space.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mamba1 {
    /// Channels.
    pub d_inner: u64,
    /// State elements a channel.
    pub d_state: u64,
    /// Convolution length.
    pub d_conv: u64,
    /// Rank of the time step projection.
    pub dt_rank: u64,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// Biases of the input and output projections.
    pub proj_bias: bool,
    /// Norms on time step, B and C (Jamba).
    pub dt_b_c_norm: bool,
    /// Norms without weights on time step, B and C (Falcon-Mamba).
    pub bare_dt_b_c_norm: bool,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

/// Mamba 2 (state space duality).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mamba2 {
    /// Channels.
    pub d_inner: u64,
    /// State elements a channel.
    pub d_state: u64,
    /// Convolution length.
    pub d_conv: u64,
    /// Heads (`dt_rank` in GGUF files).
    pub n_heads: u64,
    /// Groups that share B and C.
    pub n_groups: u64,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// Biases of the input and output projections.
    pub proj_bias: bool,
    /// Whether the output is normed (`d_inner` weights).
    pub norm: bool,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

/// Gated DeltaNet (Qwen3-Next, Qwen3.5, OLMo hybrid).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GatedDeltaNet {
    /// Key (and query) heads.
    pub n_k_heads: u64,
    /// Value heads.
    pub n_v_heads: u64,
    /// Elements of a key head.
    pub k_head_dim: u64,
    /// Elements of a value head.
    pub v_head_dim: u64,
    /// Convolution length.
    pub d_conv: u64,
    /// Whether beta and alpha come from one matrix (Qwen3-Next) or two (Qwen3.5).
    pub fused_beta_alpha: bool,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

/// Kimi delta attention (KDA).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KimiDelta {
    /// Heads.
    pub n_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Convolution length.
    pub d_conv: u64,
    /// Its tensors beyond query, key, value, output and convolutions.
    pub extra: Vec<Weight>,
}

/// Lightning attention (MiniMax-Text-01, M1; Ling linear layers): a linear attention with per-head decay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LightningAttention {
    /// Heads.
    pub n_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

/// Which RWKV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RwkvVersion {
    /// RWKV-4.
    V4,
    /// RWKV-5 (Eagle).
    V5,
    /// RWKV-6 (Finch).
    V6,
    /// RWKV-7 (Goose).
    V7,
}

/// RWKV time mixing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rwkv {
    /// Version.
    pub version: RwkvVersion,
    /// Elements of a head.
    pub head_dim: u64,
    /// Shifted tokens that are kept per layer: 2 with a channel mix, 1 when the feed-forward is a plain one.
    pub token_shifts: u64,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

/// A gated short convolution (LFM2).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShortConv {
    /// Convolution length.
    pub d_conv: u64,
    /// Whether projections have biases.
    pub bias: bool,
}

/// Real-gated linear recurrent unit (RecurrentGemma).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rglru {
    /// Channels.
    pub d_inner: u64,
    /// Convolution length.
    pub d_conv: u64,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

/// How tokens talk to each other in one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "kind", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mixer {
    /// Softmax attention.
    Attention(Attention),
    /// Latent attention.
    Mla(Mla),
    /// Attention over compressed tokens.
    CompressedAttention(CompressedAttention),
    /// Mamba 1.
    Mamba1(Mamba1),
    /// Mamba 2.
    Mamba2(Mamba2),
    /// Gated DeltaNet.
    GatedDeltaNet(GatedDeltaNet),
    /// Kimi delta attention.
    KimiDelta(KimiDelta),
    /// Lightning attention.
    LightningAttention(LightningAttention),
    /// RWKV.
    Rwkv(Rwkv),
    /// Short convolution.
    ShortConv(ShortConv),
    /// RG-LRU.
    Rglru(Rglru),
    /// Attention beside a state space in the same layer (Falcon-H1, Zamba's hybrid layers).
    Parallel(Parallel),
    /// None: the layer is a feed-forward only (Nemotron-H), or skips attention.
    None,
}

/// Attention and a state space that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Parallel {
    /// The attention.
    pub attention: Attention,
    /// The state space.
    pub state: Box<Mixer>,
}

/// A dense feed-forward.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dense {
    /// Hidden elements.
    pub d_ff: u64,
    /// Whether a gate multiplies the up projection (SwiGLU and kin).
    pub gated: bool,
    /// Whether gate and up are one matrix in files.
    pub fused_gate_up: bool,
    /// Bias of up (and gate).
    pub up_bias: bool,
    /// Bias of down.
    pub down_bias: bool,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

impl Dense {
    /// Gated, no biases.
    #[must_use]
    pub const fn gated(d_ff: u64) -> Self {
        Self { d_ff, gated: true, fused_gate_up: false, up_bias: false, down_bias: false, extra: Vec::new() }
    }
    /// Up, activation, down.
    #[must_use]
    pub const fn plain(d_ff: u64, bias: bool) -> Self {
        Self { d_ff, gated: false, fused_gate_up: false, up_bias: bias, down_bias: bias, extra: Vec::new() }
    }
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Moe {
    /// Routed experts that have weights.
    pub n_experts: u64,
    /// Routed experts a token passes.
    pub n_experts_per_token: u64,
    /// Hidden elements of a routed expert.
    pub d_ff_expert: u64,
    /// Whether experts are gated.
    pub gated: bool,
    /// Whether gate and up are one stack in GGUF files.
    pub fused_gate_up: bool,
    /// Biases inside the experts (gpt-oss).
    pub expert_bias: bool,
    /// Bias of the router (a parameter).
    pub router_bias: bool,
    /// Correction bias of the router (a buffer in most families): `None`, or how it counts.
    pub correction_bias: Option<Counts>,
    /// Rows of the router where they are more than the experts (experts without weights), 0 when it is no plain matrix
    /// (its tensors are in `extra`); `None` for `n_experts`.
    pub n_router_rows: Option<u64>,
    /// Elements of the latent that experts read and write, when it is not `d_model` (Nemotron 3).
    pub latent: Option<u64>,
    /// Experts that every token passes, as one feed-forward (`d_ff` is the sum of their widths); `None` for none.
    pub shared: Option<Dense>,
    /// The part of the model that the shared experts count to: [`Component::SharedExperts`], or [`Component::Mlp`] where
    /// the model calls them a feed-forward (Granite).
    pub shared_component: Component,
    /// A gate on the shared experts (one row).
    pub shared_gate: bool,
    /// A dense feed-forward beside the experts (Gemma 4).
    pub beside: Option<Dense>,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
}

/// The second half of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "kind", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FeedForward {
    /// One feed-forward for all tokens.
    Dense(Dense),
    /// Experts.
    Moe(Moe),
    /// RWKV's channel mix.
    ChannelMix {
        /// Its tensors.
        weights: Vec<Weight>,
    },
    /// None.
    None,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Layer {
    /// How tokens talk to each other.
    pub mixer: Mixer,
    /// Attention to an encoder's output or to image features, after or instead of the mixer.
    pub cross_attention: Option<Attention>,
    /// The feed-forward.
    pub feed_forward: FeedForward,
    /// Norms.
    pub norms: Vec<Norm>,
    /// Tensors of one family only.
    pub extra: Vec<Weight>,
    /// Elements per sequence of a convolution over hash embeddings (Qwen 4), kept beside the mixer's own state.
    #[cfg_attr(feature = "serde", serde(default))]
    pub hash_history: u64,
    /// Set when the layer's weights are those of an earlier layer (Zamba's shared blocks): they count once. A state
    /// space beside a shared attention is the layer's own, and so are the tensors in `extra`.
    pub weights_of: Option<u32>,
}

/// Everything before the first layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Embedding {
    /// Rows of the token embedding.
    pub n_vocab: u64,
    /// Elements of an embedding; `None` for `d_model`.
    pub d_embedding: Option<u64>,
    /// Rows of a learned position embedding, 0 for none.
    pub n_positions: u64,
    /// Rows of a token type embedding, 0 for none.
    pub n_token_types: u64,
    /// A norm on the embeddings.
    pub norm: Option<Norm>,
    /// Tensors of one family only (per-layer embeddings, projections, hash tables).
    pub extra: Vec<Weight>,
}

/// The output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum LmHead {
    /// The embedding matrix is used again.
    #[default]
    Tied,
    /// A matrix of its own.
    Own {
        /// Whether it has a bias.
        bias: bool,
    },
    /// None: the model yields embeddings or classes.
    None,
}

/// Everything after the last layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Head {
    /// The last norm.
    pub norm: Option<Norm>,
    /// The output matrix.
    pub lm_head: LmHead,
    /// Rows of the output matrix where they differ from the vocabulary.
    pub n_outputs: Option<u64>,
    /// Tensors of one family only (classifiers, poolers).
    pub extra: Vec<Weight>,
}

/// The encoder of an encoder-decoder model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Encoder {
    /// Elements of its hidden state.
    pub d_model: u64,
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Its last norm.
    pub norm: Option<Norm>,
    /// Embeddings of its own and other tensors, full names.
    pub extra: Vec<Weight>,
}

/// What a tower looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum TowerKind {
    /// Images.
    Vision,
    /// Sound.
    Audio,
}

/// A vision or audio tower with its projector.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tower {
    /// What it looks at.
    pub kind: TowerKind,
    /// Elements of its hidden state.
    pub d_model: u64,
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Patch embeddings, position embeddings, norms, projector: full names.
    pub extra: Vec<Weight>,
}

/// A multi-token-prediction layer: a layer and what joins it to the trunk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MtpLayer {
    /// The layer.
    pub layer: Layer,
    /// Joining projection, norms and copies of embedding and head, named inside the layer.
    pub extra: Vec<Weight>,
}

/// What a model computes beyond the products with its weights, where that decides which operations its graph has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Operations {
    /// Whether a position has parts for time, height and width; `None` where the architecture decides.
    pub sectioned_positions: Option<bool>,
    /// Whether queries are scaled by how far into the text they are; `None` where the architecture decides.
    pub scales_by_position: Option<bool>,
    /// Whether logits go through a soft cap; `None` where the architecture decides.
    pub caps_logits: Option<bool>,
    /// Whether attention and feed-forward read the same input; `None` where the architecture decides.
    pub parallel_residual: Option<bool>,
    /// Whether the weights of chosen experts are divided by their sum; `None` where the architecture decides.
    pub norms_expert_weights: Option<bool>,
    /// Whether those weights are multiplied by a number; `None` where the architecture decides.
    pub scales_expert_weights: Option<bool>,
    /// Groups of experts of which some are chosen first; 0 where the architecture decides.
    pub n_expert_groups: u64,
    /// Groups that a token's experts are chosen from.
    pub n_expert_groups_per_token: u64,
    /// Every so many layers the hidden state is banked and starts anew; `None` where it never is.
    pub banked_layers: Option<u64>,
    /// Whether queries and keys are rotated; `None` where the architecture decides.
    pub rotates: Option<bool>,
    /// First layers that add features of an image encoder's deeper layers to their output.
    pub n_deepstack_layers: u64,
}

/// A normalized architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ModelSpec {
    /// A name to show, if the source has one.
    pub name: Option<String>,
    /// The architecture as the source names it (`LlamaForCausalLM`, `qwen3moe`).
    pub architecture: String,
    /// The architecture as llama.cpp names it, where it knows it: which of its loaders and memory modules apply.
    pub llama_cpp_arch: Option<String>,
    /// Elements of the hidden state.
    pub d_model: u64,
    /// Tokens the model was trained for.
    pub max_context: u64,
    /// How the source stores weights unless it says otherwise per tensor.
    pub weight_dtype: StorageFormat,
    /// Before the first layer.
    pub embedding: Embedding,
    /// The trunk.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub head: Head,
    /// The encoder, for encoder-decoder models.
    pub encoder: Option<Encoder>,
    /// Vision and audio towers.
    pub towers: Vec<Tower>,
    /// Multi-token-prediction layers.
    pub mtp: Vec<MtpLayer>,
    /// Whether llama.cpp's converter leaves them out of its files unless told otherwise.
    #[cfg_attr(feature = "serde", serde(default))]
    pub mtp_is_left_out: bool,
    /// Whether the model generates token by token.
    pub causal: bool,
    /// What it computes beyond the products with its weights.
    #[cfg_attr(feature = "serde", serde(default))]
    pub operations: Operations,
}
