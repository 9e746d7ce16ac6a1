//! Attention: its inputs, the cache it writes and reads, and the ways it is computed
//! (`src/llama-graph.cpp:build_attn_mha`, `src/llama-kv-cache.cpp`).

use super::fused::Fusible;
use super::op::Op;
use super::ops::Node;
use super::parts::{Parts, Setting};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{mul, round_up};

/// A Hadamard matrix that rotates what goes into a cache and what is compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// One input for all layers.
    Input(Node),
    /// One beside the cache of each layer (`llama-kv-cache.cpp:init_rotation`).
    Cached {
        /// Rows and columns.
        side: u64,
        /// Tells the matrices of one cache from those of another.
        of: usize,
    },
}

/// What attention over one cache reads besides the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheInputs {
    pub(super) cells: u64,
    /// `None` where nothing is cached: the batch attends to itself.
    pub(super) k_rows: Option<Node>,
    pub(super) v_rows: Option<Node>,
    pub(super) mask: Node,
    pub(super) k_rotation: Option<Rotation>,
    pub(super) v_rotation: Option<Rotation>,
    /// Keys are computed before values: everywhere but with one cache for all layers (`build_attn`).
    pub(super) keys_first: bool,
    /// Keys and values are padded to whole blocks before they are read.
    pub(super) padded: bool,
}

/// What an attention layer brings to [`Parts::attend`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Attend {
    pub(super) q: Node,
    /// Keys of this micro-batch; they are written to the cache first. `None` where another layer has written them.
    pub(super) k: Option<Node>,
    /// Values, likewise.
    pub(super) v: Option<Node>,
    pub(super) n_kv_heads: u64,
    pub(super) k_head: u64,
    pub(super) v_head: u64,
    /// Widest row of values over all layers of the cache.
    pub(super) v_width: u64,
    pub(super) sinks: Option<Node>,
    pub(super) soft_cap: bool,
    /// Added to the scores (relative positions).
    pub(super) bias: Option<Node>,
}

impl Parts {
    /// Inputs of attention over a cache of `cells` (`build_attn_inp_kv`): `v_width` is the widest row of values, which
    /// are stored element by element without flash attention; `None` when the cache keeps no values.
    pub(super) fn cache_inputs(
        &mut self,
        cells: u64,
        v_width: Option<u64>,
        rotations: [u64; 2],
    ) -> Result<CacheInputs, MathError> {
        let Setting { tokens, mask_streams: streams, flash, transposed, .. } = self.setting;
        let k_rows = self.row_numbers(tokens)?;
        let v_rows = match v_width {
            None => None,
            Some(_) if !transposed => Some(self.row_numbers(tokens)?),
            Some(width) => Some(self.row_numbers(mul(tokens, width)?)?),
        };
        let format = if flash { StorageFormat::F16 } else { Self::F32 };
        let mask = self.graph.input(format, [cells, tokens / streams.max(1), 1, streams])?;
        let [k_side, v_side] = rotations;
        let (k_rotation, v_rotation) = (self.rotation_matrix(k_side)?, self.rotation_matrix(v_side)?);
        Ok(CacheInputs { cells, k_rows: Some(k_rows), v_rows, mask, k_rotation, v_rotation, keys_first: false, padded: false })
    }
    /// Inputs of attention of a batch to itself (`build_attn_inp_no_cache`).
    pub(super) fn batch_inputs(&mut self) -> Result<CacheInputs, MathError> {
        let Setting { tokens, pads_batches, .. } = self.setting;
        let cells = if pads_batches { round_up(tokens, 256)? } else { tokens };
        Ok(CacheInputs { padded: pads_batches, ..self.attended_inputs(cells)? })
    }
    /// Inputs of attention to `cells` rows that no cache holds.
    pub(super) fn attended_inputs(&mut self, cells: u64) -> Result<CacheInputs, MathError> {
        let format = if self.setting.flash { StorageFormat::F16 } else { Self::F32 };
        let mask = self.graph.input(format, [cells, self.setting.tokens, 1, 1])?;
        Ok(CacheInputs {
            cells,
            k_rows: None,
            v_rows: None,
            mask,
            k_rotation: None,
            v_rotation: None,
            keys_first: true,
            padded: false,
        })
    }
    /// A Hadamard matrix that rotates keys or values; `None` for no side.
    pub(super) fn rotation_matrix(&mut self, side: u64) -> Result<Option<Rotation>, MathError> {
        Ok(match (side, self.setting.cached_rotations) {
            (0, _) => None,
            (_, true) => {
                self.n_rotations = self.n_rotations.saturating_add(1);
                Some(Rotation::Cached { side, of: self.n_rotations })
            }
            (_, false) => Some(Rotation::Input(self.graph.input(Self::F32, [side, side, 1, 1])?)),
        })
    }
    /// The matrix for the layer under way.
    pub(super) fn rotation(&mut self, rotation: Rotation) -> Result<Node, MathError> {
        let (side, of) = match rotation {
            Rotation::Input(node) => return Ok(node),
            Rotation::Cached { side, of } => (side, of),
        };
        let key = (of, self.layer.map(|layer| self.places.keeper(layer)));
        if let Some((_, node)) = self.rotations.iter().find(|(known, _)| *known == key) {
            return Ok(*node);
        }
        let node = self.graph.weight(Self::F32, [side, side, 1, 1], self.setting.cache_device)?;
        self.rotations.push((key, node));
        Ok(node)
    }
    /// Product with a Hadamard matrix (`llama-impl.h:llama_mul_mat_hadamard`).
    pub(super) fn rotate(&mut self, x: Node, rotation: Rotation) -> Result<Node, MathError> {
        let dims = self.graph.dims(x)?;
        let rotation = self.rotation(rotation)?;
        let [side, ..] = self.graph.dims(rotation)?;
        let elements = dims.iter().try_fold(1, |product, n| mul(product, *n))?;
        let flat = [side, elements / side.max(1), 1, 1];
        let rows = if self.is_contiguous(x)? { self.graph.reshape(x, flat)? } else { self.graph.cont(x, flat)? };
        let rotated = self.graph.mul_mat(rotation, rows)?;
        self.graph.reshape(rotated, dims)
    }
    pub(super) fn is_contiguous(&self, x: Node) -> Result<bool, MathError> {
        let (dims, strides) = (self.graph.dims(x)?, self.graph.strides(x)?);
        let mut expected = self.graph.format(x)?.block_bytes();
        for (n, stride) in dims.iter().zip(strides) {
            if *n != 1 && stride != expected {
                return Ok(false);
            }
            expected = mul(expected, *n)?;
        }
        Ok(true)
    }

    /// Attention over a cache, or of a batch to itself (`build_attn`, `build_attn_mha`): `q`, `k`, `v` are
    /// `[head, heads, tokens]`. Returns `[heads * v_head, tokens]`.
    pub(super) fn attend(&mut self, inputs: &CacheInputs, attention: &Attend) -> Result<Node, MathError> {
        let Attend { sinks, soft_cap, bias, .. } = *attention;
        if inputs.k_rows.is_none() {
            let [q, keys, values] = self.computed(inputs, attention)?;
            let (Some(k), Some(v)) = (keys, values) else { return Err(MathError::Overflow { quantity: "keys of a batch" }) };
            let Some(q) = q else { return Err(MathError::Overflow { quantity: "queries of a batch" }) };
            return self.attend_batch(inputs, q, [k, v], sinks, soft_cap, bias);
        }
        let [q, k, v] = self.written(inputs, attention)?;
        let out = self.attend_biased(q, k, v, inputs.mask, bias, sinks, soft_cap, None)?;
        match inputs.v_rotation {
            Some(rotation) => self.rotate(out, rotation),
            None => Ok(out),
        }
    }

    /// Queries, and keys and values where they are computed here, rotated and put in order.
    fn computed(&mut self, inputs: &CacheInputs, attention: &Attend) -> Result<[Option<Node>; 3], MathError> {
        let Attend { mut q, k: mut keys, v: mut values, .. } = *attention;
        if let Some(rotation) = inputs.k_rotation {
            q = self.rotate(q, rotation)?;
            keys = keys.map(|keys| self.rotate(keys, rotation)).transpose()?;
        }
        if let Some(rotation) = inputs.v_rotation {
            values = values.map(|values| self.rotate(values, rotation)).transpose()?;
        }
        self.graph.expand(q)?;
        let computed = if inputs.keys_first { [keys, values] } else { [values, keys] };
        for node in computed.into_iter().flatten() {
            self.graph.expand(node)?;
        }
        Ok([Some(q), keys, values])
    }

    /// Queries, and the cached keys and values after this micro-batch's were written.
    pub(super) fn written(&mut self, inputs: &CacheInputs, attention: &Attend) -> Result<[Node; 3], MathError> {
        let Setting { streams, k_format, v_format, transposed, cache_device, .. } = self.setting;
        let Attend { n_kv_heads, k_head, v_head, v_width, .. } = *attention;
        let [Some(q), keys, values] = self.computed(inputs, attention)? else {
            return Err(MathError::Overflow { quantity: "queries" });
        };
        let Some(k_rows) = inputs.k_rows else { return Err(MathError::Overflow { quantity: "rows of a cache" }) };
        let k_dim = mul(n_kv_heads, k_head)?;
        let v_dim = mul(n_kv_heads, v_head)?;
        let cells = inputs.cells;
        let k_cache = self.graph.cache(k_format, [k_dim, cells, streams, 1], cache_device)?;
        let v_cache = self.graph.cache(v_format, [if transposed { v_width } else { v_dim }, cells, streams, 1], cache_device)?;
        if let Some(keys) = keys {
            let stored = self.store_rows(keys, k_cache, k_rows)?;
            self.graph.expand(stored)?;
        }
        if let (Some(rows), Some(values)) = (inputs.v_rows, values) {
            let stored = if transposed {
                self.store_elements(values, v_cache, rows, v_width)?
            } else {
                self.store_rows(values, v_cache, rows)?
            };
            self.graph.expand(stored)?;
        }
        // Heads need not be whole blocks: the engine's releases only round down (`ggml.c:ggml_row_size`).
        let row = |format: StorageFormat, n: u64| Ok::<u64, MathError>(mul(format.block_bytes(), n)? / format.block_len());
        let k_row = row(k_format, k_dim)?;
        let k = self.graph.view(
            k_cache,
            [k_head, n_kv_heads, cells, streams],
            [row(k_format, k_head)?, k_row, mul(k_row, cells)?],
        )?;
        let v = if transposed {
            let column = row(v_format, cells)?;
            self.graph.view(
                v_cache,
                [cells, n_kv_heads, v_head, streams],
                [mul(column, v_head)?, column, mul(column, v_width)?],
            )?
        } else {
            let v_row = row(v_format, v_dim)?;
            self.graph.view(v_cache, [v_head, n_kv_heads, cells, streams], [row(v_format, v_head)?, v_row, mul(v_row, cells)?])?
        };
        Ok([q, k, v])
    }

    /// Attention to rows that no cache holds.
    fn attend_batch(
        &mut self,
        inputs: &CacheInputs,
        q: Node,
        rows: [Node; 2],
        sinks: Option<Node>,
        soft_cap: bool,
        mut bias: Option<Node>,
    ) -> Result<Node, MathError> {
        let [mut k, mut v] = rows;
        let streams = core::mem::replace(&mut self.setting.streams, 1);
        if inputs.padded {
            for side in [&mut k, &mut v] {
                let [head, heads, _, _] = self.graph.dims(*side)?;
                *side = self.graph.result(Op::Pad, Self::F32, [head, heads, inputs.cells, 1], &[*side])?;
            }
            if let Some(bias) = &mut bias {
                let [_, b, c, d] = self.graph.dims(*bias)?;
                *bias = self.graph.result(Op::Pad, Self::F32, [inputs.cells, b, c, d], &[*bias])?;
            }
        }
        let out = self.attend_biased(q, k, v, inputs.mask, bias, sinks, soft_cap, None);
        self.setting.streams = streams;
        out
    }

    /// The products of attention over views of a cache (`build_attn_mha`). With `expand_values` the result is still
    /// latent and is multiplied by a stack of matrices, one per head, to heads of that width.
    #[expect(clippy::too_many_arguments, reason = "the engine's function has as many, and none is optional in practice")]
    pub(super) fn attend_views(
        &mut self,
        q: Node,
        k: Node,
        v: Node,
        mask: Node,
        sinks: Option<Node>,
        soft_cap: bool,
        expand_values: Option<Node>,
    ) -> Result<Node, MathError> {
        self.attend_biased(q, k, v, mask, None, sinks, soft_cap, expand_values)
    }

    /// [`Self::attend_views`] with a bias on the scores, which no flash attention has.
    #[expect(clippy::too_many_arguments, reason = "the engine's function has as many, and none is optional in practice")]
    fn attend_biased(
        &mut self,
        q: Node,
        k: Node,
        v: Node,
        mask: Node,
        bias: Option<Node>,
        sinks: Option<Node>,
        soft_cap: bool,
        expand_values: Option<Node>,
    ) -> Result<Node, MathError> {
        let Setting { streams, flash, .. } = self.setting;
        let flash = flash && bias.is_none();
        let ([q0, q1, q2, _], [_, s1, s2, _]) = (self.graph.dims(q)?, self.graph.strides(q)?);
        let per_stream = q2 / streams.max(1);
        let q = self.graph.view(q, [q0, q1, per_stream, streams], [s1, s2, mul(s2, per_stream)?])?;
        let stored = self.graph.strides(v)?;
        let q = self.graph.permute(q, [0, 2, 1, 3])?;
        let k = self.graph.permute(k, [0, 2, 1, 3])?;
        let v = self.graph.permute(v, [0, 2, 1, 3])?;
        let out = if flash {
            let k = self.as_f16(k)?;
            let v = self.as_f16(v)?;
            let attended = self.graph.flash_attention(q, k, v, Some(mask), sinks)?;
            self.graph.limit_cells(attended, core::mem::take(&mut self.most_cells))?;
            self.note_fused(Fusible::Attention, attended);
            let mut current = attended;
            if let Some(matrices) = expand_values {
                let flipped = self.graph.permute(attended, [0, 2, 1, 3])?;
                let expanded = self.graph.mul_mat(matrices, flipped)?;
                let back = self.graph.permute(expanded, [0, 2, 1, 3])?;
                let dims = self.graph.dims(back)?;
                current = self.graph.cont(back, dims)?;
            }
            let [a, b, c, d] = self.graph.dims(current)?;
            self.graph.reshape(current, [mul(a, b)?, mul(c, d)?, 1, 1])?
        } else {
            let mut scores = self.graph.mul_mat(k, q)?;
            if soft_cap {
                scores = self.soft_cap(scores)?;
            }
            if let Some(bias) = bias {
                scores = self.graph.sum(scores, bias)?;
            }
            let mut sources = alloc::vec![mask];
            sources.extend(sinks);
            let weights = self.graph.apply(Op::SoftMax, scores, &sources)?;
            // Values that are not stored transposed (latents, and a batch without a cache) are turned around first.
            let [_, by_cell, by_head, _] = stored;
            let v = if by_cell > by_head {
                v
            } else {
                let turned = self.graph.transpose(v)?;
                let dims = self.graph.dims(turned)?;
                self.graph.cont(turned, dims)?
            };
            let mut attended = self.graph.mul_mat(v, weights)?;
            if let Some(matrices) = expand_values {
                attended = self.graph.mul_mat(matrices, attended)?;
            }
            let merged = self.graph.permute(attended, [0, 2, 1, 3])?;
            let [a, b, c, d] = self.graph.dims(merged)?;
            let merged = self.graph.cont(merged, [mul(a, b)?, mul(c, d)?, 1, 1])?;
            if self.places.attention_follows_cache {
                self.graph.pin(merged, self.setting.host)?;
            }
            merged
        };
        self.graph.expand(out)?;
        Ok(out)
    }

    /// Flash attention reads no f32: the graph itself casts keys and values of that format (`build_attn_mha`).
    fn as_f16(&mut self, x: Node) -> Result<Node, MathError> {
        if self.graph.format(x)? == Self::F32 { self.graph.cast(x, StorageFormat::F16) } else { Ok(x) }
    }

    /// Writes rows into a cache (`llama-kv-cache.cpp:cpy_k`, and `cpy_v` with flash attention).
    pub(super) fn store_rows(&mut self, x: Node, cache: Node, rows: Node) -> Result<Node, MathError> {
        let ([n0, n1, tokens, _], [_, _, s2, _]) = (self.graph.dims(x)?, self.graph.strides(x)?);
        let merged = self.graph.view_2d(x, mul(n0, n1)?, tokens, s2)?;
        let [width, cells, streams, _] = self.graph.dims(cache)?;
        let cache = if streams > 1 { self.graph.reshape(cache, [width, mul(cells, streams)?, 1, 1])? } else { cache };
        self.graph.set_rows(cache, merged, rows)
    }

    /// Writes values element by element into a transposed cache (`cpy_v` without flash attention).
    fn store_elements(&mut self, v: Node, cache: Node, rows: Node, v_width: u64) -> Result<Node, MathError> {
        let ([n0, n1, tokens, _], [_, _, s2, _]) = (self.graph.dims(v)?, self.graph.strides(v)?);
        let width = mul(n0, n1)?;
        let flat = [width, tokens, 1, 1];
        let mut merged = if mul(4, width)? == s2 { self.graph.reshape(v, flat)? } else { self.graph.cont(v, flat)? };
        if width < v_width {
            merged = self.graph.result(Op::Pad, Self::F32, [v_width, tokens, 1, 1], &[merged])?;
        }
        let count = |dims: [u64; 4]| dims.iter().try_fold(1, |product, n| mul(product, *n));
        let cells = count(self.graph.dims(cache)?)?;
        let column = self.graph.reshape(cache, [1, cells, 1, 1])?;
        let elements = count(self.graph.dims(merged)?)?;
        let single = self.graph.reshape(merged, [1, elements, 1, 1])?;
        self.graph.set_rows(column, single, rows)
    }
}
