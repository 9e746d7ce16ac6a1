//! `ModelSpec`: a model's architecture, free of any vendor's spelling.
//!
//! A model is a sequence of layers, each one **mixer** (how tokens talk to each other) and one **feed-forward** with
//! their norms. Multi-head, grouped-query and multi-query attention are parameter values of one [`Attention`];
//! a hybrid is a model whose layers differ. What belongs to no mechanism (an odd scalar, an adapter of one model
//! family) is a [`Weight`] in an `extra` list, so that parameter counts stay exact.

use alloc::string::String;
use alloc::vec::Vec;

use crate::format::StorageFormat;
use crate::tensor::{Component, Counts, Shape};

mod mixer;

pub use mixer::{
    Attends, Attention, AttentionBias, CompressedAttention, GatedDeltaNet, Indexer, KimiDelta, KvSource, LightningAttention,
    Mamba1, Mamba2, Mixer, Mla, OutputGate, Parallel, QkNorm, QkvLayout, Rglru, Rwkv, RwkvVersion, ShortConv, Window,
};

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
    /// What it computes beyond the products with its weights, where its source says so.
    #[cfg_attr(feature = "serde", serde(default))]
    pub told: LayerOperations,
    /// Set when the layer's weights are those of an earlier layer (Zamba's shared blocks): they count once. A state
    /// space beside a shared attention is the layer's own, and so are the tensors in `extra`.
    pub weights_of: Option<u32>,
}

/// What a layer computes beyond the products with its weights, where its source says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct LayerOperations {
    /// What gates and up projections of routed experts yield is limited.
    pub limits_experts: bool,
    /// What gates and up projections of dense feed-forwards and shared experts yield is limited.
    pub limits_dense: bool,
    /// Experts that the file holds are passed over.
    pub skips_experts: bool,
    /// The hidden state is halved after the layer.
    pub halves_state: bool,
    /// The model's last norm follows the layer too.
    pub norms_state: bool,
    /// Queries, keys, values and the output gate of a delta rule come from one matrix.
    pub one_matrix: bool,
}

impl LayerOperations {
    /// Nothing beyond them.
    pub const NONE: Self = Self {
        limits_experts: false,
        limits_dense: false,
        skips_experts: false,
        halves_state: false,
        norms_state: false,
        one_matrix: false,
    };
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

/// How the hidden states of a sequence's tokens become its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Pooling {
    /// They do not: every token has its own.
    None,
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
    /// A classifier makes a score of one of them, or of their mean.
    Rank {
        /// Of their mean.
        mean: bool,
    },
}

/// What a model computes beyond the products with its weights, where that decides which operations its graph has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Operations {
    /// Prediction layers that a file's metadata count and that have no tensors: llama.cpp divides them among devices like any
    /// other.
    pub n_missing_layers: u32,
    /// Whether a position has parts for time, height and width; `None` where the architecture decides.
    pub sectioned_positions: Option<bool>,
    /// Whether queries are scaled by how far into the text they are; `None` where the architecture decides.
    pub scales_by_position: Option<bool>,
    /// Whether embedded tokens are multiplied by a number; `None` where the architecture decides.
    pub scales_embedding: Option<bool>,
    /// Whether logits go through a soft cap; `None` where the architecture decides.
    pub caps_logits: Option<bool>,
    /// Whether attention and feed-forward read the same input; `None` where the architecture decides.
    pub parallel_residual: Option<bool>,
    /// Whether the weights of chosen experts are divided by their sum; `None` where the architecture decides.
    pub norms_expert_weights: Option<bool>,
    /// Whether those weights are multiplied by a number; `None` where the architecture decides.
    pub scales_expert_weights: Option<bool>,
    /// Whether experts are chosen by a sigmoid of each logit, not by a softmax over all; `None` where the architecture decides.
    pub scores_experts_by_sigmoid: Option<bool>,
    /// The source lacks a key that llama.cpp's loader insists on.
    pub lacks_a_key: bool,
    /// The source leaves open how experts are scored, of an architecture that asks.
    pub unscored_experts: bool,
    /// Elements of an embedding that the model hands out; `None` for those of the hidden state.
    pub d_embedding: Option<u64>,
    /// Groups of experts of which some are chosen first; 0 where the architecture decides.
    pub n_expert_groups: u64,
    /// Groups that a token's experts are chosen from.
    pub n_expert_groups_per_token: u64,
    /// Every so many layers the hidden state is banked and starts anew; `None` where it never is.
    pub banked_layers: Option<u64>,
    /// Whether queries and keys are rotated; `None` where the architecture decides.
    pub rotates: Option<bool>,
    /// Groups that norms of the hidden state work on; 0 for norms of the whole.
    pub n_norm_groups: u64,
    /// Whether norms are by root mean square, or by mean and variance; `None` where the architecture decides.
    pub norms_by_root_mean_square: Option<bool>,
    /// How hidden states become embeddings where they are asked for; `None` where the source does not say.
    pub pooling: Option<Pooling>,
    /// First layers that add features of an image encoder's deeper layers to their output.
    pub n_deepstack_layers: u64,
    /// Whether what queries, keys and values are is limited.
    pub limits_projections: bool,
    /// Whether what attention yields is multiplied by a number.
    pub scales_attention: bool,
    /// Whether both halves of a layer are multiplied by a number; `None` where the architecture decides.
    pub scales_residual: Option<bool>,
    /// Whether logits are multiplied by a number; `None` where the architecture decides.
    pub scales_logits: Option<bool>,
    /// The source asks for operations that nothing here stands for.
    pub others: bool,
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
