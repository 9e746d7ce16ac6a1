//! What a model asks of a device: bytes to read and operations to do, from its architecture and tensors.

use alloc::vec::Vec;

use super::float;
use crate::engine::ideal::layer_caches;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{FeedForward, Mixer, ModelSpec};
use crate::tensor::{Component, Counts, Place, TensorTable};

/// How a model's tokens talk to each other, as far as speed depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// Attention to everything before.
    Full,
    /// Some layers see a window only.
    Sliding,
    /// Latent attention.
    Latent,
    /// Attention over compressed tokens.
    Compressed,
    /// Recurrent layers among attention.
    Hybrid,
}

impl Mechanism {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Sliding => "sliding",
            Self::Latent => "latent",
            Self::Compressed => "compressed",
            Self::Hybrid => "hybrid",
        }
    }
}

/// How weights are stored, as far as speed depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 16 bits or more.
    Half,
    /// 8-bit blocks.
    Eight,
    /// 4- and 5-bit blocks with one scale.
    Plain,
    /// K-quants and other blocks with nested scales.
    Nested,
    /// Grids of codes (IQ types).
    Codebook,
    /// 4-bit floating point.
    Float4,
    /// 8-bit floating point.
    Float8,
    /// Groups of integers (MLX, GPTQ, AWQ).
    Groups,
}

impl Family {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Half => "half",
            Self::Eight => "q8",
            Self::Plain => "plain",
            Self::Nested => "nested",
            Self::Codebook => "codebook",
            Self::Float4 => "fp4",
            Self::Float8 => "fp8",
            Self::Groups => "groups",
        }
    }

    /// The family of a format.
    #[must_use]
    pub fn of(format: StorageFormat) -> Self {
        let name = format.name();
        if name.starts_with("iq4_nl") || matches!(name, "q4_0" | "q4_1" | "q5_0" | "q5_1") {
            Self::Plain
        } else if name.starts_with("iq") || name.starts_with("tq") {
            Self::Codebook
        } else if name.contains("fp4") {
            Self::Float4
        } else if name.contains("fp8") || name.contains("f8_") {
            Self::Float8
        } else if name.starts_with("q8") || name.contains("int8") {
            Self::Eight
        } else if matches!(name, "f16" | "bf16" | "f32" | "f64") {
            Self::Half
        } else if name.ends_with("_k") {
            Self::Nested
        } else {
            Self::Groups
        }
    }
}

/// A kind of cache that some layers keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheWork {
    /// Bytes per kept token over all layers of the kind.
    pub bytes: f64,
    /// Operations per token and token it sees, over all layers of the kind.
    pub operations: f64,
    /// At most so many tokens are seen.
    pub window: Option<f64>,
}

impl CacheWork {
    /// Tokens seen at a depth.
    #[must_use]
    pub fn seen(&self, depth: f64) -> f64 {
        self.window.map_or(depth, |window| depth.min(window))
    }
}

/// Rows that a product with an expert's matrix handles at once, at least: the narrower tiles of the kernels for chosen matrices
/// (ggml-cuda/mmq.cuh `mul_mat_q`, the small tiles of ggml-vulkan's `mul_mat_id`, kernel_mul_mm_id in ggml-metal.metal).
const TILE: f64 = 32.0;

/// What a model asks of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Bytes of weights that every token reads.
    pub dense_bytes: f64,
    /// Bytes of all routed experts.
    pub expert_bytes: f64,
    /// Bytes of the input embedding, of which a row is read.
    pub embedding_bytes: f64,
    /// Weights that every token passes.
    pub dense_params: f64,
    /// Weights of all routed experts.
    pub expert_params: f64,
    /// Routed experts of a layer, 0 without.
    pub experts: f64,
    /// Experts that a token passes.
    pub experts_per_token: f64,
    /// Layers.
    pub layers: f64,
    /// Kernels that one token's graph starts.
    pub kernels: f64,
    /// Attention heads.
    pub heads: f64,
    /// Heads of keys and values: how far a cache can be divided.
    pub kv_heads: f64,
    /// Elements of the hidden state.
    pub width: f64,
    /// Elements of a head where attention sees everything before: kernels keep a head's accumulators in registers.
    pub head_dim: f64,
    /// Caches.
    pub caches: Vec<CacheWork>,
    /// How tokens talk to each other.
    pub mechanism: Mechanism,
    /// How weights are stored.
    pub family: Family,
}

/// Facts of a model whose config is not at hand, as `fixtures/bench/models.csv` lists them.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the columns of the table")]
pub struct Facts {
    pub params: f64,
    pub active_params: f64,
    pub input_embedding: f64,
    pub layers: f64,
    pub kernels: f64,
    pub full_layers: f64,
    pub window_layers: f64,
    pub window: f64,
    pub kv_heads: f64,
    pub head_dim: f64,
    pub window_kv_heads: f64,
    pub window_head_dim: f64,
    pub latent: f64,
    pub experts: f64,
    pub experts_per_token: f64,
    pub heads: f64,
    pub expert_params: f64,
}

impl Facts {
    /// The work, with `bytes_per_param` of weights and `kv_bytes` per cached element.
    #[must_use]
    pub fn work(&self, bytes_per_param: f64, kv_bytes: f64, family: Family) -> Work {
        let active_experts = if self.experts > 0.0 { self.expert_params * self.experts_per_token / self.experts } else { 0.0 };
        let dense = (self.active_params - active_experts - self.input_embedding).max(0.0);
        let mechanism = match (self.latent > 0.0, self.window_layers > 0.0, self.full_layers < self.layers) {
            (true, true, _) => Mechanism::Compressed,
            (true, false, _) => Mechanism::Latent,
            (false, true, _) => Mechanism::Sliding,
            (false, false, true) => Mechanism::Hybrid,
            (false, false, false) => Mechanism::Full,
        };
        let kind = |layers: f64, kv_heads: f64, head_dim: f64, window: Option<f64>| {
            let (elements, operations) = if self.latent > 0.0 {
                // Absorbed: scores over the whole latent, values over all of it but the 64 rotary elements.
                (self.latent, 2.0 * self.heads * (2.0 * self.latent - 64.0))
            } else {
                (2.0 * kv_heads * head_dim, 4.0 * self.heads * head_dim)
            };
            CacheWork { bytes: layers * elements * kv_bytes, operations: layers * operations, window }
        };
        let mut caches = Vec::new();
        if self.full_layers > 0.0 {
            caches.push(kind(self.full_layers, self.kv_heads, self.head_dim, None));
        }
        if self.window_layers > 0.0 {
            caches.push(kind(self.window_layers, self.window_kv_heads, self.window_head_dim, Some(self.window)));
        }
        Work {
            dense_bytes: dense * bytes_per_param,
            expert_bytes: self.expert_params * bytes_per_param,
            embedding_bytes: self.input_embedding * bytes_per_param,
            dense_params: dense,
            expert_params: self.expert_params,
            experts: self.experts,
            experts_per_token: self.experts_per_token,
            layers: self.layers,
            kernels: self.kernels,
            heads: self.heads,
            kv_heads: self.kv_heads.max(1.0),
            width: self.heads * self.head_dim,
            head_dim: if self.latent > 0.0 { self.latent } else { self.head_dim },
            caches,
            mechanism,
            family,
        }
    }
}

/// Operations per token and token it sees, heads, heads of keys and values, and elements of a head.
fn attention_operations(mixer: &Mixer) -> (f64, f64, f64, f64) {
    match mixer {
        Mixer::Attention(attention) => {
            let heads = float(attention.n_heads);
            let elements = float(attention.k_head_dim + attention.v_head_dim);
            (2.0 * heads * elements, heads, float(attention.n_kv_heads), elements / 2.0)
        }
        Mixer::Parallel(parallel) => attention_operations(&Mixer::Attention(parallel.attention.clone())),
        Mixer::Mla(mla) => {
            let heads = float(mla.n_heads);
            let latent = float(mla.kv_lora_rank);
            let rotary = float(mla.qk_rope_head_dim);
            (2.0 * heads * (2.0 * latent + rotary), heads, 1.0, latent + rotary)
        }
        Mixer::CompressedAttention(attention) => {
            let heads = float(attention.n_heads);
            (4.0 * heads * float(attention.head_dim), heads, 1.0, float(attention.head_dim))
        }
        _ => (0.0, 0.0, 0.0, 0.0),
    }
}

impl Work {
    /// The work of a model as `table` stores it, with caches in the given formats.
    ///
    /// # Errors
    /// [`MathError`] where a size leaves the exact range.
    pub fn new(spec: &ModelSpec, table: &TensorTable, k: StorageFormat, v: StorageFormat) -> Result<Self, MathError> {
        let read = |tensor: &crate::tensor::Tensor| tensor.place != Place::Tower && tensor.counts != Counts::MultiTokenPrediction;
        let is_expert = |tensor: &crate::tensor::Tensor| tensor.component == Component::Experts;
        // One row of the input embedding is read; where it is the head as well, all of it is.
        let has_head = table.tensors.iter().any(|tensor| tensor.component == Component::LmHead);
        let is_looked_up = |tensor: &crate::tensor::Tensor| match tensor.component {
            Component::Embeddings => has_head || !tensor.name.starts_with("token_embd"),
            Component::PerLayerEmbeddings => true,
            _ => false,
        };
        let dense = |tensor: &crate::tensor::Tensor| read(tensor) && !is_expert(tensor) && !is_looked_up(tensor);
        let expert = |tensor: &crate::tensor::Tensor| read(tensor) && is_expert(tensor);
        let (mut experts, mut chosen) = (0, 0);
        let (mut heads, mut kv_heads, mut head_dim) = (0.0_f64, 0.0_f64, 0.0_f64);
        let mut caches: Vec<CacheWork> = Vec::new();
        let (mut latent, mut compressed, mut windowed, mut recurrent) = (false, false, false, false);
        let size = |format: StorageFormat| float(format.block_bytes()) / float(format.block_len());
        for layer in &spec.layers {
            if let FeedForward::Moe(moe) = &layer.feed_forward {
                experts = moe.n_experts.max(experts);
                chosen = moe.n_experts_per_token.max(chosen);
            }
            let (operations, layer_heads, layer_kv_heads, layer_head_dim) = attention_operations(&layer.mixer);
            heads = heads.max(layer_heads);
            kv_heads = kv_heads.max(layer_kv_heads);
            head_dim = head_dim.max(layer_head_dim);
            match &layer.mixer {
                Mixer::Mla(_) => latent = true,
                Mixer::CompressedAttention(_) => compressed = true,
                Mixer::Attention(attention) => windowed |= attention.window.tokens().is_some(),
                Mixer::None => {}
                _ => recurrent = true,
            }
            let own = layer_caches(&layer.mixer)?;
            if own.is_empty() && operations > 0.0 {
                // The layer reads another one's cache.
                push(&mut caches, CacheWork { bytes: 0.0, operations, window: None });
            }
            for (index, cache) in own.iter().enumerate() {
                let window = cache.window.map(float);
                let kept = 1.0 / float(cache.ratio.max(1));
                push(
                    &mut caches,
                    CacheWork {
                        bytes: (float(cache.k) * size(k) + float(cache.v) * size(v)) * kept,
                        operations: if index == 0 { operations * kept } else { 0.0 },
                        window,
                    },
                );
            }
        }
        let mechanism = match (compressed, latent, recurrent, windowed) {
            (true, ..) => Mechanism::Compressed,
            (_, true, ..) => Mechanism::Latent,
            (_, _, true, _) => Mechanism::Hybrid,
            (.., true) => Mechanism::Sliding,
            _ => Mechanism::Full,
        };
        Ok(Self {
            dense_bytes: float(table.bytes_where(dense)?.get()),
            expert_bytes: float(table.bytes_where(expert)?.get()),
            embedding_bytes: float(table.bytes_where(|tensor| read(tensor) && is_looked_up(tensor))?.get()),
            dense_params: float(table.params_where(dense)?.get()),
            expert_params: float(table.params_where(expert)?.get()),
            experts: float(experts),
            experts_per_token: float(chosen),
            layers: float(u64::try_from(spec.layers.len()).unwrap_or(0)),
            kernels: super::kernels::of(spec),
            heads,
            kv_heads: kv_heads.max(1.0),
            width: float(spec.d_model),
            head_dim,
            caches,
            mechanism,
            family: prevailing(table)?,
        })
    }

    /// The share of the experts that `tokens` tokens reach: `1 - (1 - k/E)^tokens`.
    #[must_use]
    pub fn coverage(&self, tokens: f64) -> f64 {
        if self.experts <= 0.0 {
            return 0.0;
        }
        1.0 - libm::pow((1.0 - self.experts_per_token / self.experts).max(0.0), tokens)
    }

    /// Weights that one token passes.
    #[must_use]
    pub fn active_params(&self) -> f64 {
        self.dense_params + self.active_expert_params()
    }

    pub(super) fn active_expert_params(&self) -> f64 {
        if self.experts > 0.0 { self.expert_params * self.experts_per_token / self.experts } else { 0.0 }
    }

    /// Weights times rows that matrices multiply for `tokens` tokens at once, of experts apart: each expert that is reached multiplies the
    /// rows of its own tokens, in tiles of `TILE` that are half empty on average. With many small experts that is most of the work.
    #[must_use]
    pub fn multiplied(&self, tokens: f64) -> (f64, f64) {
        let padding = self.expert_params * self.coverage(tokens) * TILE / 2.0;
        (self.dense_params * tokens, self.active_expert_params() * tokens + padding)
    }

    /// Operations of attention for one new token after `depth`.
    #[must_use]
    pub fn token_attention_operations(&self, depth: f64) -> f64 {
        self.caches.iter().map(|cache| cache.operations * cache.seen(depth)).sum()
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn all_bytes(&self) -> f64 {
        self.dense_bytes + self.expert_bytes + self.embedding_bytes
    }

    /// Bytes of keys and values read for one new token at a depth.
    #[must_use]
    pub fn cache_bytes(&self, depth: f64) -> f64 {
        self.caches.iter().map(|cache| cache.bytes * cache.seen(depth)).sum()
    }

    /// Operations of attention for `tokens` new tokens after `depth`.
    #[must_use]
    pub fn attention_operations(&self, tokens: f64, depth: f64) -> f64 {
        self.caches.iter().map(|cache| cache.operations * tokens * cache.seen(depth + tokens / 2.0)).sum()
    }

    /// The width of head that attention's kernels are built for: they exist for few widths, and wider ones keep fewer rows in registers.
    pub(super) fn head_kind(&self) -> &'static str {
        match self.head_dim {
            dim if dim <= 64.0 => "64",
            dim if dim <= 128.0 => "128",
            dim if dim <= 256.0 => "256",
            _ => "512",
        }
    }

    pub(super) const fn is_moe(&self) -> bool {
        self.experts > 0.0
    }
}

fn push(caches: &mut Vec<CacheWork>, cache: CacheWork) {
    match caches.iter_mut().find(|there| there.window == cache.window) {
        Some(there) => {
            there.bytes += cache.bytes;
            there.operations += cache.operations;
        }
        None => caches.push(cache),
    }
}

/// The family that most weights are stored in.
fn prevailing(table: &TensorTable) -> Result<Family, MathError> {
    let mut sums: Vec<(StorageFormat, u64)> = Vec::new();
    for tensor in table.tensors.iter().filter(|tensor| tensor.shape.n_dims() > 1) {
        let params = tensor.params()?.get();
        match sums.iter_mut().find(|(format, _)| *format == tensor.format) {
            Some((_, sum)) => *sum = sum.saturating_add(params),
            None => sums.push((tensor.format, params)),
        }
    }
    Ok(sums.iter().max_by_key(|(_, sum)| *sum).map_or(Family::Half, |(format, _)| Family::of(*format)))
}
