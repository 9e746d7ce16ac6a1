//! Mixers: how tokens talk to each other in one layer.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Weight;

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

impl KvSource {
    /// What a layer that does not write a cache of its own does, in the words of a refusal.
    #[must_use]
    pub const fn without_own(self) -> Option<&'static str> {
        match self {
            Self::Own => None,
            Self::Layer { .. } => Some("layers that read another layer's keys and values"),
            Self::NotCached => Some("encoders, whose layers keep no keys and values"),
        }
    }
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
    /// Whether queries and keys are rotated; `None` where the architecture decides.
    #[cfg_attr(feature = "serde", serde(default))]
    pub rotates: Option<bool>,
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
            rotates: None,
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
    /// Tokens that it selects together, one after the other; 1 where it selects each.
    #[cfg_attr(feature = "serde", serde(default = "one"))]
    pub block: u64,
    /// Whether this layer has an indexer of its own (and so a cache), or reuses an earlier layer's choice.
    pub own: bool,
    /// Its tensors.
    pub weights: Vec<Weight>,
}

#[cfg(feature = "serde")]
const fn one() -> u64 {
    1
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

/// How a layer attends to other tokens.
#[derive(Debug, Clone, Copy)]
pub enum Attends<'a> {
    /// By keys and values of heads; also beside a state space.
    Heads(&'a Attention),
    /// By latents.
    Latent(&'a Mla),
    /// By compressed tokens.
    Compressed(&'a CompressedAttention),
    /// Not at all: what it knows of other tokens is a state of fixed size, or nothing.
    Never,
}

impl Mixer {
    /// How the layer attends. This is the one place that says it of every mixer: a new one is classed here.
    #[must_use]
    pub const fn attends(&self) -> Attends<'_> {
        match self {
            Self::Attention(attention) => Attends::Heads(attention),
            Self::Parallel(parallel) => Attends::Heads(&parallel.attention),
            Self::Mla(mla) => Attends::Latent(mla),
            Self::CompressedAttention(attention) => Attends::Compressed(attention),
            Self::Mamba1(_)
            | Self::Mamba2(_)
            | Self::GatedDeltaNet(_)
            | Self::KimiDelta(_)
            | Self::LightningAttention(_)
            | Self::Rwkv(_)
            | Self::ShortConv(_)
            | Self::Rglru(_)
            | Self::None => Attends::Never,
        }
    }

    /// The attention by heads, where there is one.
    #[must_use]
    pub const fn attention(&self) -> Option<&Attention> {
        match self.attends() {
            Attends::Heads(attention) => Some(attention),
            Attends::Latent(_) | Attends::Compressed(_) | Attends::Never => None,
        }
    }

    /// The selector of sparse attention, where there is one.
    #[must_use]
    pub const fn selector(&self) -> Option<&Indexer> {
        match self.attends() {
            Attends::Heads(attention) => attention.indexer.as_ref(),
            Attends::Latent(mla) => mla.indexer.as_ref(),
            Attends::Compressed(attention) => attention.indexer.as_ref(),
            Attends::Never => None,
        }
    }
}
