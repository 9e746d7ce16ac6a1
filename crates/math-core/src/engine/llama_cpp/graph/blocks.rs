//! Attention to chosen blocks of tokens (`src/models/minimax-m3.cpp`): a small head for each group of heads scores the keys of
//! the cache by position, the best blocks of positions are chosen, and each group attends to its own.

use super::attention::{Attend, CacheInputs};
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts, Setting};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attention, Indexer, Mixer, ModelSpec};
use crate::units::{Bytes, mul, round_up};

/// Positions that an empty cache counts, which is what graphs are reserved with
/// (`llama-kv-cache-msa.cpp:get_n_pos`).
const POSITIONS: u64 = 256;

/// What layers with chosen blocks read besides their caches.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockInputs {
    /// Rows of the selectors' cache that are written.
    k_rows: Node,
    /// Tokens of a block.
    block: u64,
    /// Blocks that are forced, for each token.
    bias: Node,
    /// Positions that a token sees.
    seen: Node,
    /// The cell of each position.
    cells_of: Node,
    scheme: Scheme,
}

/// How blocks become what attention reads.
#[derive(Debug, Clone, Copy)]
enum Scheme {
    /// One token of each stream: the chosen rows are gathered. Cells as numbers that can be gathered too.
    Gather { cells_of: Node },
    /// More: all that is not chosen is masked, stream by stream. The block of each cell, and the mask in full precision.
    Mask { block_of: Node, mask: Node },
}

/// Tokens of a block, where layers choose blocks.
fn block(spec: &ModelSpec) -> Option<u64> {
    spec.layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::Attention(Attention { indexer: Some(indexer), .. }) if indexer.block > 1 => Some(indexer.block),
        _ => None,
    })
}

/// What one stream's scores are made of.
#[derive(Clone, Copy)]
struct Chooser {
    scores: Node,
    bias: Node,
}

impl Parts {
    /// Inputs of layers with chosen blocks; `None` where every layer attends to everything: without flash attention, and where
    /// sequences share one stream.
    pub(super) fn block_inputs(&mut self, spec: &ModelSpec, full: &CacheInputs) -> Result<Option<BlockInputs>, MathError> {
        let Setting { tokens, streams, states, flash, .. } = self.setting;
        let Some(block) = block(spec).filter(|_| flash && streams == states) else { return Ok(None) };
        let k_rows = self.row_numbers(tokens)?;
        let positions = round_up(POSITIONS, block)?;
        let bias = self.graph.input(Self::F32, [positions / block, tokens, 1, 1])?;
        let seen = self.graph.input(Self::F32, [positions, tokens, 1, 1])?;
        let cells_of = self.graph.input(StorageFormat::I32, [positions, streams, 1, 1])?;
        let scheme = if tokens == streams {
            Scheme::Gather { cells_of: self.graph.input(Self::F32, [positions, streams, 1, 1])? }
        } else {
            let block_of = self.graph.input(StorageFormat::I32, [full.cells, streams, 1, 1])?;
            Scheme::Mask { block_of, mask: self.graph.cast(full.mask, Self::F32)? }
        };
        Ok(Some(BlockInputs { k_rows, block, bias, seen, cells_of, scheme }))
    }

    /// Attention of `attention` to the blocks that `indexer` chooses by `x`, the layer's normed input.
    pub(super) fn attend_blocks(
        &mut self,
        blocks: &BlockInputs,
        inputs: &CacheInputs,
        indexer: &Indexer,
        positions: Node,
        x: Node,
        attention: &Attend,
    ) -> Result<Node, MathError> {
        let Setting { tokens, streams, k_format, cache_device, .. } = self.setting;
        let (head, heads) = (indexer.head_dim, indexer.n_heads);
        let mut queries = self.linear(x, mul(head, heads)?)?;
        let mut keys = self.linear(x, head)?;
        for (node, heads) in [(&mut queries, heads), (&mut keys, 1)] {
            *node = self.graph.reshape(*node, [head, heads, tokens, 1])?;
        }
        for node in [&mut queries, &mut keys] {
            *node = self.norm(*node, NormKind::Rms, false, true)?;
        }
        for node in [&mut queries, &mut keys] {
            *node = self.graph.rope(*node, positions, None)?;
        }
        let cache = self.graph.cache(k_format, [head, inputs.cells, streams, 1], cache_device)?;
        let stored = self.store_rows(keys, cache, blocks.k_rows)?;
        self.graph.expand(stored)?;
        let row = k_format.row_bytes(head).map(Bytes::get)?;
        let keys = self.graph.view(cache, [head, 1, inputs.cells, streams], [row, row, mul(row, inputs.cells)?])?;

        let inputs = CacheInputs { keys_first: true, ..*inputs };
        let [q, k, v] = self.written(&inputs, attention)?;
        let out = match blocks.scheme {
            Scheme::Gather { cells_of } => self.gather_blocks(blocks, indexer, cells_of, [queries, keys], [q, k, v])?,
            Scheme::Mask { block_of, mask } => {
                let mut joined = None;
                for _ in 0..streams {
                    let one = self.mask_blocks(blocks, indexer, [block_of, mask], [queries, keys], [q, k, v])?;
                    joined = Some(match joined {
                        Some(joined) => self.graph.concat(joined, one, 1)?,
                        None => one,
                    });
                }
                joined.unwrap_or(q)
            }
        };
        match inputs.v_rotation {
            Some(rotation) => self.rotate(out, rotation),
            None => Ok(out),
        }
    }

    /// The best blocks of scores by position: their numbers.
    fn best_blocks(&mut self, chooser: Chooser, indexer: &Indexer, seen: Node) -> Result<Node, MathError> {
        let seen = self.graph.sum_in_place(chooser.scores, seen)?;
        let [positions, heads, tokens, streams] = self.graph.dims(seen)?;
        let n_blocks = positions / indexer.block.max(1);
        let best = self.graph.other(Self::F32, [n_blocks, heads, tokens, streams], &[seen])?;
        let forced = self.graph.sum(best, chooser.bias)?;
        let chosen = (indexer.top_k / indexer.block.max(1)).min(n_blocks);
        self.graph.result(Op::TopK, StorageFormat::I32, [chosen, heads, tokens, streams], &[forced])
    }

    /// One stream's tokens: all but the chosen blocks are masked.
    fn mask_blocks(
        &mut self,
        blocks: &BlockInputs,
        indexer: &Indexer,
        [block_of, mask]: [Node; 2],
        [queries, keys]: [Node; 2],
        [q, k, v]: [Node; 3],
    ) -> Result<Node, MathError> {
        let Setting { tokens, streams, .. } = self.setting;
        let each = tokens / streams.max(1);
        let ([head, heads, ..], [_, q1, q2, _]) = (self.graph.dims(queries)?, self.graph.strides(queries)?);
        let ([_, _, cells, _], [_, _, key_row, _]) = (self.graph.dims(keys)?, self.graph.strides(keys)?);
        let ([positions, ..], [_, seen_row, ..]) = (self.graph.dims(blocks.seen)?, self.graph.strides(blocks.seen)?);
        let ([n_blocks, ..], [_, bias_row, ..]) = (self.graph.dims(blocks.bias)?, self.graph.strides(blocks.bias)?);
        let queries = self.graph.view_3d(queries, [head, heads, each], q1, q2)?;
        let keys = self.graph.view_2d(keys, head, cells, key_row)?;
        let cells_of = self.graph.view_1d(blocks.cells_of, positions)?;
        let seen = self.graph.view_3d(blocks.seen, [positions, 1, each], seen_row, seen_row)?;
        let block_of = self.graph.view_1d(block_of, cells)?;
        let [_, mask_row, _, mask_stream] = self.graph.strides(mask)?;
        let mask = self.graph.view_3d(mask, [cells, each, 1], mask_row, mask_stream)?;
        let bias = self.graph.view_3d(blocks.bias, [n_blocks, 1, each], bias_row, bias_row)?;
        let ([width, n_heads, ..], [_, s1, s2, _]) = (self.graph.dims(q)?, self.graph.strides(q)?);
        let q = self.graph.view_3d(q, [width, n_heads, each], s1, s2)?;
        let mut stream = [k, v];
        for side in &mut stream {
            let ([width, kv_heads, cells, _], [_, s1, s2, s3]) = (self.graph.dims(*side)?, self.graph.strides(*side)?);
            *side = self.graph.view(*side, [width, kv_heads, cells, 1], [s1, s2, s3])?;
        }

        let found = self.graph.get_rows(keys, cells_of)?;
        let flat = self.graph.reshape(queries, [head, mul(heads, each)?, 1, 1])?;
        let scores = self.graph.mul_mat(found, flat)?;
        let scores = self.graph.reshape(scores, [positions, heads, each, 1])?;
        let chosen = self.best_blocks(Chooser { scores, bias }, indexer, seen)?;
        let [top, ..] = self.graph.dims(chosen)?;

        // A mask of blocks: minus infinity but for the chosen.
        let rows = mul(heads, each)?;
        let hidden = self.scale(bias)?;
        let hidden = self.graph.cast(hidden, StorageFormat::F16)?;
        let hidden = self.graph.result(Op::Repeat, StorageFormat::F16, [n_blocks, heads, each, 1], &[hidden])?;
        let numbers = self.graph.cast(chosen, Self::F32)?;
        let zeros = self.scale(numbers)?;
        let hidden = self.graph.reshape(hidden, [1, n_blocks, rows, 1])?;
        let zeros = self.graph.reshape(zeros, [1, top, rows, 1])?;
        let flat = self.graph.reshape(chosen, [top, rows, 1, 1])?;
        let shown = self.graph.set_rows(hidden, zeros, flat)?;
        let shown = self.graph.reshape(shown, [n_blocks, heads, each, 1])?;
        let shown = self.contiguous_permuted(shown, [0, 2, 1, 3])?;

        // The same by cell, with the mask that there is anyway.
        let flat = self.graph.reshape(shown, [n_blocks, rows, 1, 1])?;
        let by_block = self.contiguous_permuted(flat, [1, 0, 2, 3])?;
        let by_cell = self.graph.get_rows(by_block, block_of)?;
        let by_cell = self.contiguous_permuted(by_cell, [1, 0, 2, 3])?;
        let by_cell = self.graph.reshape(by_cell, [cells, each, heads, 1])?;
        let masked = self.graph.sum_in_place(by_cell, mask)?;
        let masked = self.graph.reshape(masked, [cells, each, 1, heads])?;
        let masked = self.graph.cast(masked, StorageFormat::F16)?;
        let [k, v] = stream;
        let k = self.graph.permute(k, [0, 3, 1, 2])?;
        let v = self.graph.permute(v, [0, 3, 1, 2])?;
        self.attend_groups(q, n_heads / heads.max(1), [k, v], masked)
    }

    /// One token of every stream: the rows of the chosen blocks are gathered.
    fn gather_blocks(
        &mut self,
        blocks: &BlockInputs,
        indexer: &Indexer,
        cells_of: Node,
        [queries, keys]: [Node; 2],
        [q, k, v]: [Node; 3],
    ) -> Result<Node, MathError> {
        let ([head, heads, ..], [_, _, key_row, key_stream]) = (self.graph.dims(queries)?, self.graph.strides(keys)?);
        let [_, _, cells, streams] = self.graph.dims(keys)?;
        let ([positions, ..], [n_blocks, ..]) = (self.graph.dims(blocks.seen)?, self.graph.dims(blocks.bias)?);
        let keys = self.graph.view_3d(keys, [head, cells, streams], key_row, key_stream)?;
        let found = self.graph.get_rows(keys, blocks.cells_of)?;
        let queries = self.graph.reshape(queries, [head, heads, 1, streams])?;
        let found = self.graph.reshape(found, [head, positions, 1, streams])?;
        let scores = self.graph.mul_mat(found, queries)?;
        let seen = self.graph.reshape(blocks.seen, [positions, 1, 1, streams])?;
        let bias = self.graph.reshape(blocks.bias, [n_blocks, 1, 1, streams])?;
        let chosen = self.best_blocks(Chooser { scores, bias }, indexer, seen)?;
        let [top, ..] = self.graph.dims(chosen)?;

        // From blocks to positions, to cells, to rows of the cache.
        let each = [blocks.block, top, heads, streams];
        let all = mul(mul(blocks.block, top)?, heads)?;
        let numbers = self.graph.cast(chosen, Self::F32)?;
        let first = self.scale(numbers)?;
        let first = self.graph.reshape(first, [1, top, heads, streams])?;
        let repeated = self.graph.result(Op::Repeat, Self::F32, each, &[first])?;
        let counted = self.graph.other(Self::F32, [blocks.block, 1, 1, 1], &[])?;
        let counted = self.graph.reshape(counted, [blocks.block, 1, 1, 1])?;
        let by_position = self.graph.sum(repeated, counted)?;
        let flat = self.graph.reshape(by_position, [all, streams, 1, 1])?;
        let by_position = self.graph.cast(flat, StorageFormat::I32)?;
        let table = self.graph.reshape(cells_of, [1, positions, streams, 1])?;
        let by_cell = self.graph.get_rows(table, by_position)?;
        let by_cell = self.graph.reshape(by_cell, each)?;
        let scaled = self.scale(by_cell)?;
        let counted = self.graph.other(Self::F32, [heads, 1, 1, 1], &[])?;
        let counted = self.graph.reshape(counted, [1, 1, heads, 1])?;
        let by_row = self.graph.sum(scaled, counted)?;
        let flat = self.graph.reshape(by_row, [all, streams, 1, 1])?;
        let by_row = self.graph.cast(flat, StorageFormat::I32)?;

        let groups = mul(heads, streams)?;
        let tokens = mul(blocks.block, top)?;
        let mut sides = [k, v];
        for side in &mut sides {
            let ([width, kv_heads, cells, _], [_, s1, _, s3]) = (self.graph.dims(*side)?, self.graph.strides(*side)?);
            let format = self.graph.format(*side)?;
            let rows = self.graph.view_3d(*side, [width, mul(kv_heads, cells)?, streams], s1, s3)?;
            let gathered = self.graph.get_rows(rows, by_row)?;
            let gathered = self.graph.reshape(gathered, [width, tokens, 1, groups])?;
            let format = if format.is_quantized() { StorageFormat::F16 } else { format };
            *side = if format == Self::F32 { gathered } else { self.graph.cast(gathered, format)? };
        }
        let seen = self.graph.reshape(blocks.seen, [1, positions, streams, 1])?;
        let seen = self.graph.get_rows(seen, by_position)?;
        let seen = self.graph.reshape(seen, [tokens, 1, 1, groups])?;
        let mask = self.graph.cast(seen, StorageFormat::F16)?;
        let [_, n_heads, ..] = self.graph.dims(q)?;
        self.attend_groups(q, n_heads / heads.max(1), sides, mask)
    }

    /// Flash attention of every group of heads to its own keys and values, `shared` heads a group (`build_attn_msa_fa`).
    fn attend_groups(&mut self, q: Node, shared: u64, [k, v]: [Node; 2], mask: Node) -> Result<Node, MathError> {
        let ([width, heads, tokens, _], [.., groups]) = (self.graph.dims(q)?, self.graph.dims(k)?);
        let rows = mul(heads, tokens)?.checked_div(mul(shared, groups)?).unwrap_or(0);
        let q = self.graph.reshape(q, [width, shared, groups, rows])?;
        let q = self.graph.permute(q, [0, 2, 3, 1])?;
        let out = self.graph.flash_attention(q, k, v, Some(mask), None)?;
        let out = self.graph.permute(out, [0, 1, 3, 2])?;
        let dims = self.graph.dims(out)?;
        let out = if self.is_contiguous(out)? { out } else { self.graph.cont(out, dims)? };
        self.graph.reshape(out, [mul(width, heads)?, tokens, 1, 1])
    }
}
