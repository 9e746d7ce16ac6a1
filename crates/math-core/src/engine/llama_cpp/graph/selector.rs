//! Sparse attention by a lightning indexer (`src/models/deepseek32.cpp`): every token scores the cached tokens with a few
//! small heads, and attention sees the best of them through its mask.

use super::attention::{CacheInputs, Rotation};
use super::fused::Fusible;
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts, Setting};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::Indexer;
use crate::units::{Bytes, mul};

/// The cache of selectors' keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct SelectorCache {
    /// Cells of a stream.
    pub(super) cells: u64,
    /// Side of the matrix that rotates queries and keys, 0 for none.
    pub(super) rotation: u64,
}

/// What selectors read besides their cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct SelectorInputs {
    cells: u64,
    k_rows: Node,
    mask: Node,
    rotation: Option<Rotation>,
}

/// What a selector compares: queries `[head, heads, tokens]`, cached keys, a weight for every head, and the mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scored {
    pub(super) query: Node,
    pub(super) keys: Node,
    pub(super) weights: Node,
    pub(super) mask: Node,
}

impl Parts {
    /// Inputs of selectors (`llama-graph.cpp:build_attn_inp_k_dsa_impl`). The fused kernel reads a mask in f16.
    pub(super) fn selector_inputs(&mut self, cache: SelectorCache) -> Result<SelectorInputs, MathError> {
        let Setting { tokens, mask_streams: streams, .. } = self.setting;
        let k_rows = self.row_numbers(tokens)?;
        let mask = self.graph.input(StorageFormat::F16, [cache.cells, tokens / streams.max(1), 1, streams])?;
        let rotation = self.rotation_matrix(cache.rotation)?;
        Ok(SelectorInputs { cells: cache.cells, k_rows, mask, rotation })
    }

    /// The numbers of the cells that each token attends to, `[chosen, tokens, 1, streams]`: `queries` are compressed
    /// queries, `x` the layer's input.
    pub(super) fn select(
        &mut self,
        indexer: &Indexer,
        inputs: &SelectorInputs,
        positions: Option<Node>,
        queries: Node,
        x: Node,
    ) -> Result<Node, MathError> {
        let Setting { tokens, streams, k_format, cache_device, .. } = self.setting;
        let (head, heads) = (indexer.head_dim, indexer.n_heads);
        let mut q = self.linear(queries, mul(head, heads)?)?;
        q = self.graph.reshape(q, [head, heads, tokens, 1])?;
        let mut k = self.linear(x, head)?;
        k = self.norm(k, NormKind::Layer, true, true)?;
        k = self.graph.reshape(k, [head, 1, tokens, 1])?;
        if let Some(positions) = positions {
            q = self.graph.rope(q, positions, None)?;
            k = self.graph.rope(k, positions, None)?;
        }
        if let Some(rotation) = inputs.rotation {
            let rotation = self.rotation(rotation)?;
            q = self.graph.mul_mat(rotation, q)?;
            k = self.graph.mul_mat(rotation, k)?;
        }
        let cache = self.graph.cache(k_format, [head, inputs.cells, streams, 1], cache_device)?;
        let stored = self.store_rows(k, cache, inputs.k_rows)?;
        self.graph.expand(stored)?;
        let weights = self.linear(x, heads)?;
        let row = k_format.row_bytes(head).map(Bytes::get)?;
        let k = self.graph.view(cache, [head, 1, inputs.cells, streams], [row, row, mul(row, inputs.cells)?])?;

        let weights = self.by_stream(weights)?;
        let weights = self.scale(weights)?;
        self.choose(&Scored { query: q, keys: k, weights, mask: inputs.mask }, indexer.top_k)
    }

    /// Weights of a selector's heads, `[heads, tokens]`, split into streams.
    fn by_stream(&mut self, weights: Node) -> Result<Node, MathError> {
        let Setting { tokens, streams, .. } = self.setting;
        let ([heads, ..], [_, row, ..]) = (self.graph.dims(weights)?, self.graph.strides(weights)?);
        let each = tokens / streams.max(1);
        let plane = mul(row, each)?;
        self.graph.view(weights, [heads, each, 1, streams], [row, plane, plane])
    }

    /// The best `top_k` cells of each token.
    pub(super) fn choose(&mut self, scored: &Scored, top_k: u64) -> Result<Node, MathError> {
        let Setting { tokens, streams, .. } = self.setting;
        let Scored { query, keys, mut weights, mask } = *scored;
        let each = tokens / streams.max(1);
        let ([head, heads, ..], [_, q1, q2, _]) = (self.graph.dims(query)?, self.graph.strides(query)?);
        let [_, _, cells, _] = self.graph.dims(keys)?;
        let q = self.graph.view(query, [head, heads, each, streams], [q1, q2, mul(q2, each)?])?;
        let [_, _, _, split] = self.graph.dims(weights)?;
        if split != streams {
            weights = self.by_stream(weights)?;
        }
        let scored = [q, keys, weights, mask];
        let scores = self.graph.result(Op::LightningIndexer, Self::F32, [cells, each, 1, streams], &scored)?;
        let best = self.graph.result(Op::TopK, StorageFormat::I32, [cells.min(top_k), each, 1, streams], &[scores])?;
        let dims = self.graph.dims(best)?;
        self.graph.cont(best, dims)
    }

    pub(super) fn contiguous_permuted(&mut self, x: Node, order: [usize; 4]) -> Result<Node, MathError> {
        let turned = self.graph.permute(x, order)?;
        let dims = self.graph.dims(turned)?;
        self.graph.cont(turned, dims)
    }

    /// The mask of attention over `inputs` with all but the `chosen` cells hidden (`llama-graph.cpp:build_attn` for
    /// sparse attention, `build_fused_top_k_mask`).
    pub(super) fn mask_of_chosen(
        &mut self,
        inputs: &CacheInputs,
        selector: &SelectorInputs,
        chosen: Node,
    ) -> Result<Node, MathError> {
        let mut mask = inputs.mask;
        // Where both masks have one format, b12032 reads the selector's, and the other is never allocated.
        if self.setting.shares_selector_mask && self.graph.format(selector.mask)? == self.graph.format(mask)? {
            mask = selector.mask;
        }
        self.mask_with_chosen(mask, chosen, Self::F32)
    }

    /// A mask with all but the `chosen` cells hidden; `zeros` is the format of what shows them again.
    pub(super) fn mask_with_chosen(&mut self, mask: Node, chosen: Node, zeros: StorageFormat) -> Result<Node, MathError> {
        let ([top, each, _, streams], [cells, tokens, m2, m3]) = (self.graph.dims(chosen)?, self.graph.dims(mask)?);
        if self.setting.fused.top_k_mask {
            let chosen = self.graph.reshape(chosen, [top, tokens, m2, m3])?;
            let format = self.graph.format(mask)?;
            let masked = self.graph.result(Op::TopKMask, format, [cells, tokens, m2, m3], &[mask, chosen])?;
            self.note_fused(Fusible::TopKMask, masked);
            return Ok(masked);
        }
        let hidden = self.graph.apply(Op::Fill, mask, &[])?;
        let [element, row, plane, _] = self.graph.strides(hidden)?;
        let columns = self.graph.view(hidden, [1, cells, tokens, m3], [element, row, plane])?;
        let [_, c1, c2, c3] = self.graph.strides(chosen)?;
        let flat = self.graph.view(chosen, [top, each, streams, 1], [c1, c2, mul(c3, streams)?])?;
        let blank = self.graph.blank(zeros, [1, top, each, streams])?;
        let zeros = self.graph.apply(Op::Fill, blank, &[])?;
        let shown = self.graph.set_rows(columns, zeros, flat)?;
        let [_, _, s2, s3] = self.graph.strides(shown)?;
        let shown = self.graph.view(shown, [cells, tokens, 1, m3], [s2, s3, s3])?;
        self.graph.sum(shown, mask)
    }
}
