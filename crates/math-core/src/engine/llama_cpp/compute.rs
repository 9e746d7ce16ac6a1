//! Compute buffers: bounds from the tensors that must be alive at once, and from all those that may be.
//!
//! The engine's graph allocator (`ggml-alloc.c`) reuses memory as soon as a tensor has no reader left, so the size is
//! the high-water mark of one layer, not a sum over layers. The lower bound holds what one node reads and writes; the
//! upper one also what may still wait for a reader. Bounds, not a simulation: see the notes of each mechanism.

mod shape;

use alloc::vec::Vec;

use crate::deployment::{Backend, Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{CachePlan, CellRule};
use crate::engine::llama_cpp::graph::ComputeBytes;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// A lower and an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Bounds {
    /// At least.
    pub low: u64,
    /// At most.
    pub high: u64,
}

impl Bounds {
    pub(crate) const fn exactly(value: u64) -> Self {
        Self { low: value, high: value }
    }
    fn plus(self, other: Self) -> Result<Self, MathError> {
        Ok(Self { low: add(self.low, other.low)?, high: add(self.high, other.high)? })
    }
    fn times(self, count: u64) -> Result<Self, MathError> {
        Ok(Self { low: mul(self.low, count)?, high: mul(self.high, count)? })
    }
    /// The largest of two, bound by bound.
    const fn max(self, other: Self) -> Self {
        Self {
            low: if self.low > other.low { self.low } else { other.low },
            high: if self.high > other.high { self.high } else { other.high },
        }
    }
}

/// Compute buffers of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ComputeBounds {
    /// On the device; nothing when the processor does all the work.
    pub device: Bounds,
    /// On the host.
    pub host: Bounds,
}

impl ComputeBounds {
    /// Buffers that a replay gave to the byte.
    pub(crate) const fn exactly(bytes: ComputeBytes) -> Self {
        Self { device: Bounds::exactly(bytes.device), host: Bounds::exactly(bytes.host) }
    }
}

/// Compute buffers of a context in every place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ComputeBuffers {
    /// On every device of the deployment.
    pub devices: Vec<Bounds>,
    /// On the host.
    pub host: Bounds,
}

impl ComputeBuffers {
    /// The buffers where one place does all the work.
    pub(crate) fn of_one(bounds: ComputeBounds, place: Location, devices: usize) -> Self {
        let mut out = Self { devices: alloc::vec![Bounds::default(); devices], host: bounds.host };
        if let Location::Device(device) = place
            && let Some(slot) = out.devices.get_mut(usize::from(device))
        {
            *slot = bounds.device;
        }
        out
    }
}

/// What the bounds depend on, folded from the layers: elements per token unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ComputeShape {
    build: Build,
    d_model: u64,
    /// Elements of a row of logits with the hidden state it is made from.
    output: u64,
    /// Feed-forwards and recurrent mixers.
    linear: Bounds,
    /// The lower bound of those after which every kind of mask is still needed, so that all masks are alive beside them.
    linear_with_masks: u64,
    /// Tokens of the encoder's output that a graph is reserved for, 0 without an encoder.
    encoded: u64,
    /// Whether a layer has latent attention over latents.
    absorbs_queries: bool,
    /// Whether the graph looks its embeddings up itself (`models/granite-switch.cpp`).
    embeds_itself: bool,
    /// Whether the selector scores pooled blocks of the whole cache (`models/qwen4exp.cpp:build_qsa_top_k`).
    scores_blocks: bool,
    /// Elements of a selector's key where those of all cells are pooled into blocks in every graph, 0 elsewhere.
    pooled_key: u64,
    /// Whether the device has no kernel for a layer's scan, which then runs on the host.
    scan_falls: bool,
    /// Around flash attention.
    attention: Bounds,
    /// Queries of all heads, widest layer.
    queries: u64,
    n_heads: u64,
    v_head: u64,
    /// State elements per sequence, largest layer.
    state: u64,
    /// Heads whose decay is a matrix over the tokens of a micro-batch.
    decay_heads: u64,
    /// Heads of a sparse-attention selector and the tokens it keeps.
    selector: (u64, u64),
    /// Embeddings of all layers that a token brings along.
    per_layer_embeddings: u64,
    /// How much wider than a hidden state embedded tokens are, in hidden states: features of an image encoder's layers.
    deep: u64,
    /// Whether positions have learned embeddings.
    learned_positions: bool,
    /// Whether scores carry a learned bias per head (T5).
    biased_scores: bool,
    /// Whether the model sees all tokens of a batch at once.
    whole_batch: bool,
    /// Whether the device runs attention fused; if not, flash attention falls to the host.
    runs_fused: bool,
    compressed: bool,
    has_logits: bool,
    /// Whether attention runs beside a state space in one layer.
    parallel: bool,
}

impl ComputeShape {
    /// The bounds under the effective parameters.
    pub(crate) fn bounds(
        &self,
        caches: &[CachePlan],
        resolved: &Resolved,
        deployment: &Deployment,
    ) -> Result<ComputeBounds, MathError> {
        let tokens = resolved.graph_tokens;
        let outputs = tokens.min(resolved.n_outputs_max.max(resolved.n_seq_max));
        let element = mul(4, tokens)?;
        let mut masks = 0;
        let mut cells: u64 = 0;
        let mut indexes = 0;
        let mut copies = Bounds::default();
        let mut layer_elements = 0;
        let mut pooled_cells = 0;
        for cache in caches {
            let own = cache.cells(resolved, deployment.swa_full)?;
            let selector = matches!(cache.tag, "lid" | "idx" | "dsa.lid");
            if !selector && cache.cells != CellRule::None {
                let share = if self.compressed { add(cells, own)? } else { cells.max(own) };
                cells = share;
                masks = add(masks, mul(own, mul(tokens, if resolved.flash_attention { 2 } else { 4 })?)?)?;
                if !resolved.flash_attention {
                    let v_dim = cache.groups.iter().filter_map(|group| group.v_dim).max().unwrap_or(0);
                    indexes = add(indexes, mul(8, mul(v_dim, tokens)?)?)?;
                }
            }
            let rows = mul(own, cache.streams(resolved))?;
            if selector && self.pooled_key > 0 {
                pooled_cells = mul(own, resolved.n_seq_max)?;
                // Numbers of cells, of blocks and of their members, at most 64 bytes a cell, and a mask of blocks for each layer.
                let layers: u64 = cache.groups.iter().map(|group| group.layers).sum();
                indexes = add(indexes, mul(pooled_cells, add(64, mul(2, layers)?)?)?)?;
            }
            let widest = cache.groups.iter().map(|group| group.k_dim.saturating_add(group.v_dim.unwrap_or(0))).max().unwrap_or(0);
            layer_elements = add(layer_elements, mul(widest, rows)?)?;
            let each = self.f16_copies(cache, rows, resolved, deployment)?;
            copies = copies.max(each);
        }
        if self.whole_batch {
            // Keys and values are the batch's own, whatever the cache beside them holds.
            copies = Bounds { low: 0, high: copies.high };
            cells = tokens;
            masks = mul(tokens, mul(tokens, if resolved.flash_attention { 2 } else { 4 })?)?;
        }
        // Positions, cache slots, output rows, and room for what is rounded up.
        let inputs = Bounds { low: mul(4, tokens)?, high: add(mul(64, tokens)?, add(mul(4, outputs)?, 1 << 16)?)? };
        let inputs = inputs.plus(Bounds { low: masks, high: add(masks, indexes)? })?;
        let rotation: u64 = if self.build.rotation_matrices_are_cached() { 0 } else { 1 << 21 };
        let mut work = self.linear.times(element)?;
        let beside_masks = mul(self.linear_with_masks, element)?;
        let mut without_masks = work.low;
        work.low = beside_masks;
        let kept = mul(resolved.n_seq_max, add(1, resolved.n_rs_seq)?)?;
        let states = mul(4, mul(self.state, kept)?)?;
        work.high = add(work.high, mul(2, states)?)?;
        if self.n_heads > 0 {
            work = work.max(self.attention_bounds(cells, element, resolved, deployment)?);
            // In layers whose attention and feed-forward read the same input, one waits for the other.
            // Metal reorders nodes to run side by side (`ggml-metal-common.cpp:ggml_graph_optimize`), which keeps about
            // two steps' tensors alive.
            let steps = if deployment.backend() == Backend::Metal { 2 } else { 1 };
            work = Bounds { low: work.low.max(copies.low), high: add(mul(steps, work.high)?, copies.high)? };
        }
        let (pooling, choice) = if pooled_cells > 0 {
            (self.pooling(cells, pooled_cells, element)?, self.choice(cells, pooled_cells, element)?)
        } else {
            (0, 0)
        };
        work.high = add(work.high, add(pooling, choice)?)?;
        if self.decay_heads > 0 {
            let matrix = mul(4, mul(self.decay_heads, mul(tokens, tokens)?)?)?;
            without_masks = without_masks.max(matrix);
            work.high = add(mul(5, matrix)?, work.high)?;
        }
        // Nothing of the layers is left when logits are made, masks included.
        let logits = if self.has_logits { mul(4, mul(outputs, self.output)?)? } else { 0 };
        work.high = work.high.max(add(logits, mul(element, mul(2, self.d_model)?)?)?);
        if self.per_layer_embeddings > 0 {
            // AltUp keeps four versions of the hidden state, predicted and corrected.
            // The embeddings of all layers are projected, scaled, added and turned around.
            let extra = add(mul(4, self.per_layer_embeddings)?, mul(24, self.d_model)?)?;
            work.high = add(work.high, mul(element, extra)?)?;
        }
        let embedding = mul(element, self.d_model)?;
        work.high = add(work.high, mul(6, mul(embedding, self.deep)?)?)?;
        // What falls to the host takes its inputs and a layer's keys and values with it.
        let falls = resolved.flash_attention && self.n_heads > 0 && !self.runs_fused;
        if falls || self.scan_falls {
            work.low = 0;
            without_masks = 0;
        }
        if self.embeds_itself {
            // A router attends first, padded to whole heads, and every product has its adapter's delta beside it.
            work.high = add(mul(2, work.high)?, mul(element, mul(4, self.queries)?)?)?;
        }
        if self.whole_batch {
            work.high = add(work.high, mul(element, add(mul(4, self.d_model)?, mul(cells, self.n_heads)?)?)?)?;
        }
        let mut whole = inputs.plus(work)?;
        if falls || self.scan_falls {
            whole.low = logits;
        }
        whole.high = add(whole.high, rotation)?;
        whole.low = whole.low.max(logits).max(without_masks);
        Ok(match deployment.backend() {
            Backend::Cpu => {
                whole.high = add(whole.high, mul(2, embedding)?)?;
                ComputeBounds { device: Bounds::default(), host: whole }
            }
            Backend::Cuda { .. } | Backend::Metal => {
                if self.build == Build::B12032 {
                    whole.high = add(whole.high, mul(2, embedding)?)?;
                }
                let mut host = self.host_bounds(masks, indexes, inputs, resolved, deployment)?;
                host.high = add(host.high, choice)?;
                if falls {
                    host.high = add(host.high, pooling)?;
                    let layer = mul(8, layer_elements)?;
                    host.high = add(host.high, add(layer, mul(element, mul(2, self.attention.high)?)?)?)?;
                }
                if self.scan_falls {
                    // The scan takes its inputs, the states it starts from and those it leaves with it.
                    host.high = add(host.high, add(mul(element, mul(2, self.linear.high)?)?, mul(4, states)?)?)?;
                }
                ComputeBounds { device: whole, host }
            }
        })
    }

    /// Flash attention on CUDA works on F16: other formats are copied, one layer at a time; Metal copies always
    /// (`ggml-cuda/fattn.cu`, `ggml-metal-ops.cpp`: the node's extra allocation).
    fn f16_copies(
        &self,
        cache: &CachePlan,
        rows: u64,
        resolved: &Resolved,
        deployment: &Deployment,
    ) -> Result<Bounds, MathError> {
        if !resolved.flash_attention || self.n_heads == 0 {
            return Ok(Bounds::default());
        }
        let (k, v) = (deployment.kv_type_k, deployment.kv_type_v);
        let mut widest = Bounds::default();
        for group in &cache.groups {
            let width = match deployment.backend() {
                // The graph casts F32 keys and values (`llama-graph.cpp:build_attn_mha`).
                Backend::Cpu => {
                    let k = if k == StorageFormat::F32 { group.k_dim } else { 0 };
                    let v = if v == StorageFormat::F32 { group.v_dim.unwrap_or(0) } else { 0 };
                    Bounds { low: 0, high: mul(2, add(k, v)?)? }
                }
                Backend::Cuda { .. } => {
                    let k = if k == StorageFormat::F16 { 0 } else { group.k_dim };
                    let v = if v == StorageFormat::F16 { 0 } else { group.v_dim.unwrap_or(0) };
                    let both = add(k, v)?;
                    // One or two tokens a stream may read the cache as it is stored (`ggml-cuda/fattn.cu`, the vector kernel).
                    let few = resolved.graph_tokens <= mul(2, cache.streams(resolved))?;
                    Bounds { low: if few { 0 } else { both }, high: both }
                }
                // A latent is keys and values in one: it may be copied as both.
                Backend::Metal => Bounds {
                    low: add(group.k_dim, group.v_dim.unwrap_or(0))?,
                    high: add(group.k_dim, group.v_dim.unwrap_or(group.k_dim))?,
                },
            };
            widest = widest.max(width);
        }
        widest.times(mul(2, rows)?)
    }

    /// What a selector over blocks makes of all cells of its cache, which every sequence may have to itself
    /// (`llama-memory-hybrid-idx.cpp:llama_memory_hybrid_idx_context`, `n_pool_max`): keys and gates as they are gathered, the
    /// gates with their positions, turned around and as shares, the keys turned around and weighed, and what is then made of
    /// blocks, together at most eight keys a cell; three times the scores of blocks. Up to sixteen tokens read the chosen
    /// latents by themselves, as they are and turned around (`models/glm5-next.cpp:build_inp_kpool`, `gather`).
    fn pooling(&self, cells: u64, pooled_cells: u64, element: u64) -> Result<u64, MathError> {
        let keys = mul(mul(4 * 8, self.pooled_key)?, pooled_cells)?;
        let scores = mul(3, mul(self.selector.0, most_blocks(pooled_cells)?)?)?;
        let latents = mul(cells.min(mul(2, self.selector.1)?), mul(2, add(self.v_head, self.n_heads)?)?)?;
        add(keys, add(mul(element, scores)?, mul(element.min(4 * 16), latents)?)?)
    }

    /// What is made of the cells that a selector over blocks chose, for every token: their numbers whole and as fractions, the
    /// mask of what is there and what it hides, where hidden ones are put instead, and masks of all cells and the chosen ones
    /// (`models/glm5-next.cpp:build_kpool_select`): no more than sixteen of them wait at once, with the copies between
    /// backends. Masks of blocks are given, copied, cast and added.
    fn choice(&self, cells: u64, pooled_cells: u64, element: u64) -> Result<u64, MathError> {
        // A block that is not full yet comes on top of those chosen, and is no longer than they are.
        let chosen = add(cells, mul(2, self.selector.1)?)?;
        mul(element, add(mul(16, chosen)?, mul(4, most_blocks(pooled_cells)?)?)?)
    }

    fn attention_bounds(
        &self,
        cells: u64,
        element: u64,
        resolved: &Resolved,
        deployment: &Deployment,
    ) -> Result<Bounds, MathError> {
        let mut work = self.attention.times(element)?;
        let tokens = resolved.graph_tokens;
        if self.encoded > 0 {
            // Attention to the encoder's output, as the decoder reserves it, and what is read for it.
            let wide = cells.max(self.encoded).max(tokens);
            let scores = mul(4, mul(wide, mul(tokens, self.n_heads)?)?)?;
            let read = mul(4, mul(wide, add(mul(3, self.d_model)?, mul(2, self.queries)?)?)?)?;
            work.high = add(work.high, add(mul(4, scores)?, read)?)?;
        }
        if !resolved.flash_attention {
            let scores = mul(4, mul(cells, mul(tokens, self.n_heads)?)?)?;
            let (low, high) = match (self.biased_scores, self.compressed) {
                (true, _) => (1, 4),
                (false, true) => (1, 3),
                (false, false) => (1, 1),
            };
            let more = mul(element, add(mul(2, self.d_model)?, mul(2, self.queries)?)?)?;
            work = work.max(Bounds { low: mul(low, scores)?, high: add(mul(high, scores)?, more)? });
            work.high = work.high.max(add(mul(high, scores)?, work.high)?);
        } else if self.biased_scores {
            let scores = mul(4, mul(cells, mul(tokens, self.n_heads)?)?)?;
            work.high = add(work.high, mul(4, scores)?)?;
        }
        if deployment.backend() == Backend::Metal && resolved.flash_attention {
            // Partial results of 32 workgroups of 32 queries.
            let partial = mul(mul(32 * 32, self.n_heads)?, mul(4, add(self.v_head, 2)?)?)?;
            work.high = add(work.high, add(partial, mul(element, mul(4, self.d_model)?)?)?)?;
        }
        let (heads, top) = self.selector;
        if heads > 0 {
            // Scores of the selector's heads over the tokens it may choose from, and its sorted choice.
            let scored = if resolved.flash_attention && !self.scores_blocks { cells.min(mul(4, top)?) } else { cells };
            let extra = add(mul(heads, scored)?, add(mul(6, cells)?, mul(8, self.d_model)?)?)?;
            work.high = add(work.high, mul(element, extra)?)?;
        }
        Ok(work)
    }

    /// The host's side of a device: inputs and their copies in the scheduler (`ggml-backend.cpp`).
    fn host_bounds(
        &self,
        masks: u64,
        indexes: u64,
        inputs: Bounds,
        resolved: &Resolved,
        deployment: &Deployment,
    ) -> Result<Bounds, MathError> {
        let tokens = resolved.graph_tokens;
        let embedding = mul(4, mul(tokens, self.d_model)?)?;
        // The streams of hyper-connections are expanded on the device, not copied.
        let copies = if self.compressed { 2 } else { self.build.host_embedding_copies() };
        let low = add(masks, mul(copies, embedding)?)?;
        let mut high = add(add(low, indexes)?, inputs.high.saturating_sub(add(masks, indexes)?))?;
        high = add(high, mul(copies, mul(embedding, self.deep)?)?)?;
        high = add(high, mul(2, indexes)?)?;
        if !self.build.rotation_matrices_are_cached()
            && (deployment.kv_type_k.is_quantized() || deployment.kv_type_v.is_quantized())
        {
            high = add(high, 1 << 22)?;
        }
        if self.per_layer_embeddings > 0 {
            high = add(high, mul(mul(4, tokens)?, mul(2, self.per_layer_embeddings)?)?)?;
        }
        if self.learned_positions {
            high = add(high, mul(2, embedding)?)?;
        }
        if self.decay_heads > 0 {
            high = add(high, mul(8, mul(self.decay_heads, mul(tokens, tokens)?)?)?)?;
        }
        if self.whole_batch || self.biased_scores {
            high = add(high, add(mul(6, embedding)?, mul(5, masks)?)?)?;
        }
        if !resolved.flash_attention && self.absorbs_queries {
            // Measured: where latent attention is not fused, one hidden state more may wait on the host.
            high = add(high, embedding)?;
        }
        if self.encoded > 0 {
            let read = self.encoded.max(tokens);
            high = add(high, mul(4, mul(read, add(mul(3, self.d_model)?, mul(2, tokens)?)?)?)?)?;
        }
        if self.compressed || self.selector.0 > 0 {
            high = add(high, add(mul(12, embedding)?, mul(8, masks)?)?)?;
        }
        // The masks of whole batches and of selectors may be made where they are read; a graph that prepares its own
        // inputs takes half of the copies of the embeddings, and none where it embeds other tokens than the batch's.
        let least = if self.embeds_itself { 0 } else { mul(copies / 2, embedding)? };
        let low = if self.whole_batch || self.compressed || self.selector.0 > 0 { least } else { add(masks, least)? };
        Ok(Bounds { low, high })
    }
}

/// Blocks that cells make, each of at least two, padded to whole 64 with one beside them
/// (`llama-memory-hybrid-idx.cpp:kpool_pad`).
fn most_blocks(cells: u64) -> Result<u64, MathError> {
    add(cells / 2, 2 * 64)
}

/// Bounds as one figure and its certainty: exact figures have equal bounds.
impl From<u64> for Bounds {
    fn from(value: u64) -> Self {
        Self::exactly(value)
    }
}
