//! The tensor table: every weight tensor of a model, with its shape, its place and how it is stored.
//!
//! Parameter counts, weight bytes, resident and active experts, offload and sharding are sums over this one
//! table. It is read from a file header where there is one, and synthesized from a
//! [`ModelSpec`](crate::spec::ModelSpec) ([`crate::synth`]) where only a config is known.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{Bytes, Params, mul};

/// Sizes of a tensor's dimensions, fastest first: a matrix that maps `n_in` to `n_out` is `[n_in, n_out]`, a stack
/// of experts `[n_in, n_out, n_experts]`. Unused dimensions are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Shape(pub [u64; 4]);

impl Shape {
    /// A vector.
    #[must_use]
    pub const fn vector(n: u64) -> Self {
        Self([n, 1, 1, 1])
    }
    /// A matrix from `n_in` to `n_out`.
    #[must_use]
    pub const fn matrix(n_in: u64, n_out: u64) -> Self {
        Self([n_in, n_out, 1, 1])
    }
    /// A stack of `n` matrices.
    #[must_use]
    pub const fn stack(n_in: u64, n_out: u64, n: u64) -> Self {
        Self([n_in, n_out, n, 1])
    }
    /// Length of a row (the fastest dimension).
    #[must_use]
    pub const fn row(self) -> u64 {
        let [row, _, _, _] = self.0;
        row
    }
    /// Number of rows.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn rows(self) -> Result<u64, MathError> {
        let [_, a, b, c] = self.0;
        mul(mul(a, b)?, c)
    }
    /// Number of elements.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn elements(self) -> Result<u64, MathError> {
        mul(self.row(), self.rows()?)
    }
    /// How many dimensions the tensor has: the last one that is not 1, at least 1 (ggml's `ggml_n_dims`).
    #[must_use]
    pub const fn n_dims(self) -> u32 {
        let [_, b, c, d] = self.0;
        if d > 1 {
            4
        } else if c > 1 {
            3
        } else if b > 1 {
            2
        } else {
            1
        }
    }
}

/// Which part of the model a tensor belongs to; the parts of `plimsoll inspect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Component {
    /// Token, position and token-type embeddings.
    Embeddings,
    /// Attention projections (also cross attention), their biases, norms of queries and keys, sinks.
    Attention,
    /// The selector of sparse attention (lightning indexer).
    AttnIndexer,
    /// Dense feed-forwards.
    Mlp,
    /// Routed experts.
    Experts,
    /// Experts that every token passes.
    SharedExperts,
    /// The router and its correction bias.
    Router,
    /// Projections to and from the latent that experts work in (Nemotron 3).
    ExpertsLatentProj,
    /// Layer norms.
    Norms,
    /// State-space, linear attention, recurrent and convolution mixers.
    SsmLinear,
    /// The output matrix, when it is not the embedding.
    LmHead,
    /// Vision and audio towers with their projectors.
    VisionAudio,
    /// Embeddings that every layer reads (Gemma 3n, 4).
    PerLayerEmbeddings,
    /// The layer-side projections of per-layer embeddings.
    PerLayerOther,
    /// Anything that is none of the above (adapters, AltUp, scalars).
    Other,
}

/// How a tensor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Counts {
    /// A parameter of the model: counts towards the total.
    #[default]
    Parameter,
    /// Part of a multi-token-prediction module: listed apart.
    MultiTokenPrediction,
    /// A stored buffer that is no parameter (router correction bias): listed apart.
    Buffer,
    /// In the checkpoint and in converted files, though the model never uses it (keys and values of layers that
    /// reuse another layer's cache).
    Unused,
    /// Made by a file converter; no checkpoint has it (rope factors).
    Derived,
    /// A parameter that converters to GGUF leave out (a norm that the model builds and never applies).
    Unconverted,
    /// A buffer that the model class keeps and neither checkpoints nor converted files hold (decay tables).
    Unstored,
}

impl Counts {
    /// Whether it counts towards the model's parameters.
    #[must_use]
    pub const fn is_parameter(self) -> bool {
        matches!(self, Self::Parameter | Self::Unconverted)
    }
    /// Whether it counts towards the model's buffers.
    #[must_use]
    pub const fn is_buffer(self) -> bool {
        matches!(self, Self::Buffer | Self::Unstored)
    }
    /// Whether files converted to GGUF hold it.
    #[must_use]
    pub const fn is_in_gguf(self) -> bool {
        !matches!(self, Self::Unconverted | Self::Unstored)
    }
}

/// Where a tensor sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Place {
    /// Before the first layer.
    Input,
    /// In a (decoder) layer, counted from 0; multi-token-prediction layers go on after the last one.
    Layer(u32),
    /// In an encoder layer of an encoder-decoder model.
    EncoderLayer(u32),
    /// After the last layer.
    Output,
    /// In a vision or audio tower or its projector.
    Tower,
}

/// One weight tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tensor {
    /// The name in GGUF spelling (`blk.3.attn_q.weight`), or as the file spells it.
    pub name: String,
    /// Dimensions, fastest first.
    pub shape: Shape,
    /// How the elements are stored.
    pub format: StorageFormat,
    /// The part of the model.
    pub component: Component,
    /// Where it sits.
    pub place: Place,
    /// How it counts.
    pub counts: Counts,
    /// Bytes as the file lays them out, for a tensor whose format is not known (`format` is then a stand-in).
    pub opaque_bytes: Option<Bytes>,
}

impl Tensor {
    /// Number of elements.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn params(&self) -> Result<Params, MathError> {
        Params::new(self.shape.elements()?)
    }
    /// Bytes without any padding.
    ///
    /// # Errors
    /// [`MathError::Overflow`], or [`MathError::PartialBlock`] when a row is no whole number of blocks.
    pub fn bytes(&self) -> Result<Bytes, MathError> {
        if let Some(bytes) = self.opaque_bytes {
            return Ok(bytes);
        }
        self.format.row_bytes(self.shape.row())?.times(self.shape.rows()?)
    }
}

/// Every weight tensor of a model, in file order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct TensorTable {
    /// The tensors.
    pub tensors: Vec<Tensor>,
}

impl TensorTable {
    /// Elements of all tensors that satisfy `keep`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn params_where(&self, mut keep: impl FnMut(&Tensor) -> bool) -> Result<Params, MathError> {
        self.tensors.iter().filter(|tensor| keep(tensor)).try_fold(Params::ZERO, |sum, tensor| sum.plus(tensor.params()?))
    }
    /// Bytes of all tensors that satisfy `keep`, without padding.
    ///
    /// # Errors
    /// [`MathError::Overflow`] or [`MathError::PartialBlock`].
    pub fn bytes_where(&self, mut keep: impl FnMut(&Tensor) -> bool) -> Result<Bytes, MathError> {
        self.tensors.iter().filter(|tensor| keep(tensor)).try_fold(Bytes::ZERO, |sum, tensor| sum.plus(tensor.bytes()?))
    }
    /// The model's parameters: each unique one once, without multi-token prediction and buffers.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn total_params(&self) -> Result<Params, MathError> {
        self.params_where(|tensor| tensor.counts.is_parameter())
    }
    /// The tensor with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
