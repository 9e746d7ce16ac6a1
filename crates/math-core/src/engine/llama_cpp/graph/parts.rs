//! The parts that graphs are made of: norms, attention over a cache, feed-forwards, experts
//! (`src/llama-graph.cpp:llm_graph_context`).

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::depth::{Depth, Step, kinds};
use super::op::Op;
use super::ops::{Builder, Node};
use super::places::Places;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Dense, Layer, Moe};
use crate::units::{add, mul, round_up};

/// One graph to be reserved: its tokens and sequences, and where things are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Tokens of the micro-batch.
    pub(super) tokens: u64,
    /// Sequences of the micro-batch, equally long.
    pub(super) sequences: u64,
    /// Rows of the recurrent state: one per sequence of the context.
    pub(super) states: u64,
    /// Recurrent state of all sequences is gathered at once.
    pub(super) gathers_states: bool,
    /// Rows that the output matrix is applied to.
    pub(super) outputs: u64,
    /// Streams of the caches that this graph reads.
    pub(super) streams: u64,
    /// Streams of its masks: fewer where a graph for one sequence reads the caches of all.
    pub(super) mask_streams: u64,
    /// Cells of a stream of the full-length cache.
    pub(super) cells: u64,
    /// Format of cached keys.
    pub(super) k_format: StorageFormat,
    /// Format of cached values.
    pub(super) v_format: StorageFormat,
    /// Flash attention.
    pub(super) flash: bool,
    /// Whether values are cached transposed. A cache made for flash attention is not, also where the device turns out not
    /// to have it.
    pub(super) transposed: bool,
    /// The backend of the layer under way, or of the output after the last one: 0, the device, if there is one only.
    pub(super) device: usize,
    /// The backend that the layer's cache or state is kept by.
    pub(super) cache_device: usize,
    /// Whether norms are kept on their layers' devices.
    pub(super) pins_norms: bool,
    /// The backend of the input layer: the processor.
    pub(super) host: usize,
    /// Whether GPT-OSS chooses rows of logits after the last layer (`build.rs:chooses_rows_after_layers`).
    pub(super) rows_after_layers: bool,
    /// Whether gated DeltaNet hands a matrix to its last projection (`build.rs:delta_output_is_flat`).
    pub(super) flat_delta: bool,
    /// Whether tokens and embeddings may come in one micro-batch (`build.rs:mixes_tokens_and_embeddings`).
    pub(super) mixed_inputs: bool,
    /// Whether a factor per row scales embedded tokens (`build.rs:scales_embedded_rows`).
    pub(super) scales_rows: bool,
    /// Whether rotation matrices lie in the cache (`build.rs:rotation_matrices_are_cached`).
    pub(super) cached_rotations: bool,
    /// Whether keys and values of a batch without a cache are padded like a cache (`build.rs:pads_uncached_batches`).
    pub(super) pads_batches: bool,
    /// Whether tables besides the tokens' are looked up before tokens (`build.rs:looks_tables_up_first`).
    pub(super) tables_first: bool,
    /// Whether DeepSeek V4 hands out its last hidden state (`build.rs:hands_out_hidden_state`).
    pub(super) hands_out_hidden_state: bool,
    /// Whether the device scores a selector's heads in one operation.
    pub(super) fused_indexer: bool,
    /// Whether the chosen cells are put into the mask in one operation (`build.rs:masks_chosen_cells_at_once`).
    pub(super) fused_top_k_mask: bool,
    /// Whether sparse attention reads the mask of its selector (`build.rs:masks_chosen_cells_at_once`).
    pub(super) shares_selector_mask: bool,
    /// Whether the inputs of experts' last matrices are scaled into f16's range (`build.rs:limits_expert_activations`).
    pub(super) limits_experts: bool,
    /// The build rotates by sections where the file has them.
    pub(super) sections: bool,
}

/// What attention over one cache reads besides the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheInputs {
    pub(super) cells: u64,
    /// `None` where nothing is cached: the batch attends to itself.
    pub(super) k_rows: Option<Node>,
    pub(super) v_rows: Option<Node>,
    pub(super) mask: Node,
    pub(super) k_rotation: Option<Node>,
    pub(super) v_rotation: Option<Node>,
    /// Keys are computed before values: everywhere but with one cache for all layers (`build_attn`).
    pub(super) keys_first: bool,
    /// Keys and values are padded to whole blocks before they are read.
    pub(super) padded: bool,
}

/// A graph under construction with its setting.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) graph: Builder,
    /// The input of token numbers, once there is one.
    pub(super) tokens: Node,
    pub(super) setting: Setting,
    /// How many layers are shown.
    pub(super) depth: Depth,
    /// The first tensor of the rounds of layers that are under way.
    loop_start: Option<u32>,
    /// Where layers, caches and weights are.
    places: Rc<Places>,
    /// The layer under way.
    layer: Option<usize>,
    /// Which of the weights of the layer under way, and of no layer, the graph has read.
    taken: [Vec<bool>; 2],
    /// Weights that layers have in common, one for each backend.
    shared: Vec<(u64, usize, Node)>,
    /// How many cells the next attention reads for a token at most, where it chooses; 0 where it reads all.
    pub(super) most_cells: u64,
    /// Fused operations that the engine wants on their layer's device, and the device.
    pub(super) fused: Vec<(Node, usize)>,
    /// Whether the end of the layers was announced.
    pub(super) at_output: bool,
}

/// How a norm is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormKind {
    /// Root mean square: elementwise to the allocator.
    Rms,
    /// Mean and variance: never in place.
    Layer,
}

/// What a feed-forward does between its projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// One operation: of gate and up together (SwiGLU, GeGLU, ReGLU), or elementwise where there is no gate.
    Single,
    /// Two of them (squared ReLU).
    Squared,
    /// Gate and up each through a soft cap, the gate times its sigmoid (Kimi K3).
    Capped,
}

/// What a model may say about the weights of its chosen experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing: the architecture decides.
    Nothing,
    /// Whether they are scaled.
    Scale,
    /// Whether they are divided by their sum, and whether they are scaled.
    NormAndScale,
}

/// How router logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Routing {
    /// Softmax over the chosen logits only, after choosing.
    pub(super) softmax_after: bool,
    /// Chosen weights are divided by their sum.
    pub(super) normed: bool,
    /// Weights are scaled by a constant.
    pub(super) scaled: bool,
    /// The choice is made on raw logits (Llama 4).
    pub(super) choose_on_logits: bool,
    /// Weights are applied before the experts (Llama 4).
    pub(super) weighted_first: bool,
    /// Two operations make weights of logits (the square root of softplus).
    pub(super) two_steps: bool,
    /// Experts that a table gives for each token instead of a choice.
    pub(super) looked_up: Option<Node>,
    /// What the architecture asks the model about.
    pub(super) asks: Asks,
    /// Groups of experts of which some are chosen first.
    pub(super) groups: u64,
    /// How many of them are.
    pub(super) groups_kept: u64,
}

impl Setting {
    /// Tokens of each sequence.
    pub(super) fn sequence_tokens(&self) -> u64 {
        self.tokens / self.sequences.max(1)
    }
}

impl Parts {
    /// An empty graph.
    pub(super) fn new(mut setting: Setting, depth: Depth, places: &Rc<Places>) -> Self {
        setting.host = places.host();
        setting.device = places.layer(0).backend;
        setting.cache_device = places.layer(0).cache;
        Self {
            graph: Builder::new(),
            tokens: Node(0),
            setting,
            depth,
            loop_start: None,
            places: Rc::clone(places),
            layer: None,
            taken: [Vec::new(), Vec::new()],
            shared: Vec::new(),
            most_cells: 0,
            fused: Vec::new(),
            at_output: false,
        }
    }
    /// The layers to build, in order: all that differ, and of those that repeat as many as it takes. `numbered` says what
    /// a layer's graph depends on besides the layer itself: whatever follows from its number.
    ///
    /// Each has to be announced with [`Self::begin_layer`].
    pub(super) fn layers<'a, T: PartialEq>(
        &mut self,
        layers: impl Iterator<Item = &'a Layer>,
        numbered: impl Fn(usize) -> T,
    ) -> Vec<Step> {
        let places = &self.places;
        let kinds = kinds(layers.enumerate().map(|(index, layer)| (places.kind(index), numbered(index), layer)));
        self.depth.steps(&kinds)
    }
    /// The output begins: the last norm, rows of logits. After the last layer.
    pub(super) fn begin_output(&mut self) {
        self.layer = None;
        self.setting.device = self.places.output;
        self.at_output = true;
    }
    /// A layer begins.
    pub(super) fn begin_layer(&mut self, step: &Step) {
        let place = self.places.layer(step.layer);
        (self.setting.device, self.setting.cache_device) = (place.backend, place.cache);
        self.layer = Some(step.layer);
        let [in_layer, _] = &mut self.taken;
        in_layer.clear();
        if step.ends_round && step.begins_round != Some(false) {
            self.end_round();
        }
        if let Some(first) = step.begins_round {
            let start = if first { None } else { self.loop_start };
            self.loop_start = Some(self.graph.mark(start));
        }
    }
    fn end_round(&mut self) {
        let start = self.loop_start;
        self.graph.mark(start);
        self.loop_start = None;
    }

    pub(super) const F32: StorageFormat = StorageFormat::F32;

    pub(super) fn weight(&mut self, dims: &[u64]) -> Result<Node, MathError> {
        let mut all = [1; 4];
        for (slot, n) in all.iter_mut().zip(dims) {
            *slot = *n;
        }
        self.stored_weight(all, self.setting.device)
    }
    /// A weight of the layer under way, or of none: as the loader stored it where that matters, else on `backend`.
    pub(super) fn stored_weight(&mut self, dims: [u64; 4], backend: usize) -> Result<Node, MathError> {
        if self.places.is_single() {
            return self.graph.weight(Self::F32, dims, backend);
        }
        let list = self.places.weights(self.layer);
        let [in_layer, in_none] = &mut self.taken;
        let taken = if self.layer.is_some() { in_layer } else { in_none };
        taken.resize(list.len(), false);
        // Weights of one shape are read in the order in which they lie in the file.
        let alike = || list.iter().enumerate().filter(|(_, weight)| weight.dims == dims);
        let fresh = alike().find(|(index, weight)| !weight.looks_up && taken.get(*index) == Some(&false));
        let Some((index, stored)) = fresh.or_else(|| alike().next()) else {
            return self.graph.weight(Self::F32, dims, backend);
        };
        if let Some(slot) = taken.get_mut(index) {
            *slot = true;
        }
        let node = self.graph.weight(stored.format, dims, stored.backend)?;
        if stored.repacked {
            self.graph.repack(node)?;
        }
        Ok(node)
    }
    /// How many factors the rotary embedding has, where the file has them.
    pub(super) fn rope_factors(&self) -> Option<u64> {
        self.places.rope_factors
    }
    /// A table of numbers in the file.
    pub(super) fn table(&mut self, dims: [u64; 4]) -> Result<Node, MathError> {
        if self.places.is_single() {
            return self.graph.weight(StorageFormat::I32, dims, self.setting.device);
        }
        self.stored_weight(dims, self.setting.device)
    }
    /// A vector that all layers read, a copy of which is with each device's layers (factors of the rotary embedding).
    pub(super) fn shared_vector(&mut self, width: u64) -> Result<Node, MathError> {
        let device = self.setting.device;
        if let Some((.., node)) = self.shared.iter().find(|(known, on, _)| *known == width && *on == device) {
            return Ok(*node);
        }
        let node = self.graph.weight(Self::F32, [width, 1, 1, 1], device)?;
        self.shared.push((width, device, node));
        Ok(node)
    }
    pub(super) fn host_weight(&mut self, n0: u64, n1: u64) -> Result<Node, MathError> {
        let dims = [n0, n1, 1, 1];
        self.graph.weight(Self::F32, dims, self.setting.host)
    }
    pub(super) fn linear(&mut self, x: Node, width: u64) -> Result<Node, MathError> {
        let [n_in, ..] = self.graph.dims(x)?;
        let matrix = self.weight(&[n_in, width])?;
        self.graph.mul_mat(matrix, x)
    }
    pub(super) fn bias(&mut self, x: Node) -> Result<Node, MathError> {
        let [width, ..] = self.graph.dims(x)?;
        let vector = self.weight(&[width])?;
        self.graph.sum(x, vector)
    }
    /// A projection, with its bias if it has one.
    pub(super) fn linear_bias(&mut self, x: Node, width: u64, bias: bool) -> Result<Node, MathError> {
        let y = self.linear(x, width)?;
        if bias { self.bias(y) } else { Ok(y) }
    }
    /// A norm with weights (`build_norm`). Inside a layer the engine pins it to the layer's device.
    pub(super) fn norm(&mut self, x: Node, kind: NormKind, bias: bool, in_layer: bool) -> Result<Node, MathError> {
        let normed = self.bare_norm(x, kind)?;
        if in_layer && self.setting.pins_norms {
            self.graph.pin(normed, self.setting.device)?;
        }
        let [width, ..] = self.graph.dims(x)?;
        let weights = self.weight(&[width])?;
        let scaled = self.graph.product(normed, weights)?;
        if bias { self.bias(scaled) } else { Ok(scaled) }
    }
    /// A norm without weights.
    pub(super) fn bare_norm(&mut self, x: Node, kind: NormKind) -> Result<Node, MathError> {
        match kind {
            NormKind::Rms => self.graph.apply(Op::RmsNorm, x, &[]),
            NormKind::Layer => self.graph.apply(Op::Norm, x, &[]),
        }
    }
    /// Times a number.
    pub(super) fn scale(&mut self, x: Node) -> Result<Node, MathError> {
        self.graph.apply(Op::Scale, x, &[])
    }
    /// A function of each element: SiLU, sigmoid, softplus, tanh, ReLU, negation …
    pub(super) fn unary(&mut self, x: Node) -> Result<Node, MathError> {
        self.graph.apply(Op::Unary, x, &[])
    }
    /// Softmax of rows, without a mask.
    pub(super) fn soft_max(&mut self, x: Node) -> Result<Node, MathError> {
        self.graph.apply(Op::SoftMax, x, &[])
    }
    /// A soft cap: scaled, through tanh, and scaled back.
    pub(super) fn soft_cap(&mut self, x: Node) -> Result<Node, MathError> {
        let scaled = self.scale(x)?;
        let capped = self.unary(scaled)?;
        self.scale(capped)
    }

    /// Token embeddings (`build_inp_embd`); the input for embeddings is there whether it is used or not.
    pub(super) fn embed(&mut self, width: u64, vocabulary: u64) -> Result<Node, MathError> {
        self.embed_deep(width, vocabulary, 0)
    }
    /// Token embeddings with room behind them for what an image encoder's `n_deep` deeper layers add.
    pub(super) fn embed_deep(&mut self, width: u64, vocabulary: u64, n_deep: u64) -> Result<Node, MathError> {
        let all_tokens = self.setting.tokens;
        let tokens = self.graph.input(StorageFormat::I32, [all_tokens, 1, 1, 1])?;
        self.tokens = tokens;
        let whole = [add(width, mul(width, n_deep)?)?, all_tokens, 1, 1];
        let direct = self.graph.input(Self::F32, whole)?;
        let table = self.host_weight(width, vocabulary)?;
        let rows = self.graph.get_rows(table, tokens)?;
        self.graph.expand(rows)?;
        let pad = |parts: &mut Self, rows: Node| -> Result<Node, MathError> {
            if n_deep == 0 { Ok(rows) } else { parts.graph.result(Op::Pad, Self::F32, whole, &[rows]) }
        };
        let first = |parts: &mut Self, padded: Node| -> Result<Node, MathError> {
            if n_deep == 0 {
                return Ok(padded);
            }
            let [_, stride, ..] = parts.graph.strides(padded)?;
            let view = parts.graph.view_2d(padded, width, all_tokens, stride)?;
            parts.graph.expand(view)?;
            Ok(view)
        };
        let padded = pad(self, rows)?;
        if !self.setting.mixed_inputs {
            self.graph.expand(padded)?;
            self.graph.expand(direct)?;
            return first(self, padded);
        }
        // The branch for mixed batches is reserved too, with inputs of its own: embedded tokens are written over a copy of
        // the embeddings, and nothing reads the result.
        let mixed_tokens = self.graph.input(StorageFormat::I32, [self.setting.tokens, 1, 1, 1])?;
        let mixed_rows = self.graph.get_rows(table, mixed_tokens)?;
        self.graph.expand(mixed_rows)?;
        self.graph.expand(padded)?;
        self.graph.expand(direct)?;
        let slots = self.row_numbers(all_tokens)?;
        let mixed_direct = self.graph.input(Self::F32, whole)?;
        let copy = self.graph.apply(Op::Cont, mixed_direct, &[])?;
        let mixed_padded = pad(self, mixed_rows)?;
        let mixed = self.graph.set_rows(copy, mixed_padded, slots)?;
        self.graph.expand(mixed)?;
        first(self, padded)
    }
    /// Scales embedded tokens and leaves embeddings that come from outside as they are.
    pub(super) fn scale_embedded(&mut self, x: Node) -> Result<Node, MathError> {
        if !self.setting.scales_rows {
            return self.scale(x);
        }
        let factors = self.graph.input(Self::F32, [1, self.setting.tokens, 1, 1])?;
        let scaled = self.graph.product(x, factors)?;
        self.graph.expand(scaled)?;
        Ok(scaled)
    }
    pub(super) fn positions(&mut self, per_token: u64) -> Result<Node, MathError> {
        self.graph.input(StorageFormat::I32, [mul(self.setting.tokens, per_token)?, 1, 1, 1])
    }
    /// A factor for every token's queries (`build_inp_attn_scale`).
    pub(super) fn attention_scale(&mut self) -> Result<Node, MathError> {
        self.graph.input(Self::F32, [1, 1, self.setting.tokens, 1])
    }
    pub(super) fn output_rows(&mut self) -> Result<Node, MathError> {
        self.graph.input(StorageFormat::I32, [self.setting.outputs, 1, 1, 1])
    }
    pub(super) fn row_numbers(&mut self, rows: u64) -> Result<Node, MathError> {
        self.graph.input(StorageFormat::I64, [rows, 1, 1, 1])
    }
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
    pub(super) fn rotation_matrix(&mut self, side: u64) -> Result<Option<Node>, MathError> {
        Ok(match (side, self.setting.cached_rotations) {
            (0, _) => None,
            (_, true) => Some(self.weight(&[side, side])?),
            (_, false) => Some(self.graph.input(Self::F32, [side, side, 1, 1])?),
        })
    }
    /// Product with a Hadamard matrix (`llama-impl.h:llama_mul_mat_hadamard`).
    pub(super) fn rotate(&mut self, x: Node, rotation: Node) -> Result<Node, MathError> {
        let dims = self.graph.dims(x)?;
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
        let Setting { streams, k_format, v_format, transposed, cache_device, .. } = self.setting;
        let Attend { mut q, k: mut keys, v: mut values, n_kv_heads, k_head, v_head, v_width, sinks, soft_cap, bias } = *attention;
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
        let Some(k_rows) = inputs.k_rows else {
            let (Some(k), Some(v)) = (keys, values) else { return Err(MathError::Overflow { quantity: "keys of a batch" }) };
            return self.attend_batch(inputs, q, [k, v], sinks, soft_cap, bias);
        };
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
        let row = |format: StorageFormat, n: u64| format.row_bytes(n).map(crate::units::Bytes::get);
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
        let out = self.attend_biased(q, k, v, inputs.mask, bias, sinks, soft_cap, None)?;
        match inputs.v_rotation {
            Some(rotation) => self.rotate(out, rotation),
            None => Ok(out),
        }
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
            self.fused.push((attended, self.setting.device));
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

    /// A feed-forward (`build_ffn`).
    pub(super) fn feed_forward(
        &mut self,
        x: Node,
        dense: &Dense,
        d_model: u64,
        activation: Activation,
    ) -> Result<Node, MathError> {
        let hidden = if dense.gated && dense.fused_gate_up {
            let both = self.linear_bias(x, mul(2, dense.d_ff)?, dense.up_bias)?;
            self.graph.glu_halves(both)?
        } else {
            let up = self.linear_bias(x, dense.d_ff, dense.up_bias)?;
            if dense.gated {
                let gate = self.linear_bias(x, dense.d_ff, dense.up_bias)?;
                self.gate(gate, up, activation)?
            } else {
                self.activate(up, activation)?
            }
        };
        self.linear_bias(hidden, d_model, dense.down_bias)
    }

    /// A gate times an up projection.
    fn gate(&mut self, gate: Node, up: Node, activation: Activation) -> Result<Node, MathError> {
        if activation != Activation::Capped {
            return self.graph.glu(gate, up);
        }
        let capped = self.soft_cap(gate)?;
        let open = self.unary(gate)?;
        let gated = self.graph.product(capped, open)?;
        let up = self.soft_cap(up)?;
        self.graph.product(gated, up)
    }

    fn activate(&mut self, x: Node, activation: Activation) -> Result<Node, MathError> {
        let once = self.unary(x)?;
        if activation == Activation::Squared { self.graph.apply(Op::Square, once, &[]) } else { Ok(once) }
    }

    /// Routed experts (`build_moe_ffn`); shared ones are added by the caller.
    pub(super) fn experts(&mut self, x: Node, moe: &Moe, routing: Routing, activation: Activation) -> Result<Node, MathError> {
        let logits = self.linear_bias(x, moe.n_experts, moe.router_bias)?;
        self.experts_by(x, logits, moe, routing, activation, false)
    }

    /// Routed experts, chosen by logits that are there already. `scales_down`: what they yield is scaled, expert by expert.
    pub(super) fn experts_by(
        &mut self,
        x: Node,
        logits: Node,
        moe: &Moe,
        routing: Routing,
        activation: Activation,
        scales_down: bool,
    ) -> Result<Node, MathError> {
        let [width, tokens, ..] = self.graph.dims(x)?;
        let (n_experts, chosen) = (moe.n_experts, moe.n_experts_per_token);
        let probabilities = match (routing.softmax_after, moe.correction_bias.is_some()) {
            (true, _) => logits,
            (false, _) if routing.two_steps => {
                let soft = self.unary(logits)?;
                self.graph.apply(Op::SquareRoot, soft, &[])?
            }
            // Corrected choices are made on sigmoids.
            (false, true) => self.unary(logits)?,
            (false, false) if routing.choose_on_logits => self.unary(logits)?,
            (false, false) => self.soft_max(logits)?,
        };
        let mut selection = probabilities;
        if moe.correction_bias.is_some() {
            selection = self.bias(probabilities)?;
        }
        if routing.choose_on_logits {
            selection = logits;
        }
        if routing.groups > 1 {
            selection = self.choose_groups(selection, n_experts, tokens, routing)?;
        }
        let ids = match routing.looked_up {
            Some(ids) => ids,
            None => self.graph.argsort_top_k(selection, chosen)?,
        };
        let rows = self.graph.reshape(probabilities, [1, n_experts, tokens, 1])?;
        let mut weights = self.graph.get_rows(rows, ids)?;
        if routing.softmax_after {
            let flat = self.graph.reshape(weights, [chosen, tokens, 1, 1])?;
            let soft = self.soft_max(flat)?;
            weights = self.graph.reshape(soft, [1, chosen, tokens, 1])?;
        }
        if routing.normed {
            let flat = self.graph.reshape(weights, [chosen, tokens, 1, 1])?;
            let sum = self.graph.sum_rows(flat)?;
            let limited = self.graph.apply(Op::Clamp, sum, &[])?;
            let divided = self.graph.apply(Op::Div, flat, &[limited])?;
            weights = self.graph.reshape(divided, [1, chosen, tokens, 1])?;
        }
        if routing.scaled {
            weights = self.scale(weights)?;
        }
        self.graph.expand(weights)?;
        let mut input = self.graph.reshape(x, [width, 1, tokens, 1])?;
        if routing.weighted_first {
            let repeated = self.graph.result(Op::Repeat, Self::F32, [width, chosen, tokens, 1], &[input])?;
            input = self.graph.product(repeated, weights)?;
        }
        let d_ff = moe.d_ff_expert;
        let hidden = if moe.gated && moe.fused_gate_up {
            let both = self.expert_matrix(input, ids, mul(2, d_ff)?, moe)?;
            let [_, s1, s2, _] = self.graph.strides(both)?;
            let gate = self.graph.view_3d(both, [d_ff, chosen, tokens], s1, s2)?;
            let up = self.graph.view_3d(both, [d_ff, chosen, tokens], s1, s2)?;
            self.graph.glu(gate, up)?
        } else {
            let up = self.expert_matrix(input, ids, d_ff, moe)?;
            if moe.gated {
                let gate = self.expert_matrix(input, ids, d_ff, moe)?;
                self.gate(gate, up, activation)?
            } else {
                self.activate(up, activation)?
            }
        };
        let mut out = if self.setting.limits_experts {
            let (limited, factor) = self.limit_rows(hidden)?;
            let out = self.expert_product(limited, ids, width, moe)?;
            let restored = self.graph.product(out, factor)?;
            self.expert_biases(restored, ids, width, moe)?
        } else {
            self.expert_matrix(hidden, ids, width, moe)?
        };
        if scales_down {
            let factors = self.weight(&[n_experts])?;
            let factors = self.graph.reshape(factors, [1, n_experts, 1, 1])?;
            let factors = self.graph.result(Op::Repeat, Self::F32, [1, n_experts, tokens, 1], &[factors])?;
            let factors = self.graph.get_rows(factors, ids)?;
            out = self.graph.product(out, factors)?;
        }
        if !routing.weighted_first {
            out = self.graph.product(out, weights)?;
        }
        self.graph.expand(out)?;
        let [_, _, s2, _] = self.graph.strides(out)?;
        let mut views = Vec::new();
        for _ in 0..chosen {
            let view = self.graph.view_2d(out, width, tokens, s2)?;
            self.graph.expand(view)?;
            views.push(view);
        }
        let mut views = views.into_iter();
        let Some(mut total) = views.next() else { return Ok(out) };
        if chosen == 1 {
            return self.graph.cont(total, [width, tokens, 1, 1]);
        }
        for view in views {
            total = self.graph.sum(total, view)?;
            self.graph.expand(total)?;
        }
        Ok(total)
    }

    /// Limits the choice to the best groups of experts (DeepSeek V3).
    fn choose_groups(&mut self, selection: Node, n_experts: u64, tokens: u64, routing: Routing) -> Result<Node, MathError> {
        let groups = routing.groups;
        let each = n_experts / groups;
        let grouped = self.graph.reshape(selection, [each, groups, tokens, 1])?;
        let best = self.graph.argsort_top_k(grouped, 2)?;
        let single = self.graph.reshape(grouped, [1, each, groups, tokens])?;
        let scores = self.graph.get_rows(single, best)?;
        let pairs = self.graph.reshape(scores, [2, groups, tokens, 1])?;
        let sums = self.graph.sum_rows(pairs)?;
        let flat = self.graph.reshape(sums, [groups, tokens, 1, 1])?;
        let kept = self.graph.argsort_top_k(flat, routing.groups_kept.max(1))?;
        let rows = self.graph.get_rows(grouped, kept)?;
        let filled = self.graph.apply(Op::Fill, grouped, &[])?;
        let masked = self.graph.set_rows(filled, rows, kept)?;
        self.graph.reshape(masked, [n_experts, tokens, 1, 1])
    }

    /// Divides rows by a power of two that brings their largest element into f16's range, and returns the divisor
    /// (`build_amax_src1_f16`).
    fn limit_rows(&mut self, x: Node) -> Result<(Node, Node), MathError> {
        let [_, b, c, d] = self.graph.dims(x)?;
        let magnitudes = self.scale(x)?;
        let mut divisor = self.graph.other(Self::F32, [1, b, c, d], &[magnitudes])?;
        // To the logarithm, scaled and rounded up.
        for _ in 0..4 {
            divisor = self.scale(divisor)?;
        }
        divisor = self.graph.apply(Op::Clamp, divisor, &[])?;
        // And back.
        for _ in 0..2 {
            divisor = self.scale(divisor)?;
        }
        let limited = self.graph.apply(Op::Div, x, &[divisor])?;
        Ok((limited, divisor))
    }

    fn expert_matrix(&mut self, x: Node, ids: Node, width: u64, moe: &Moe) -> Result<Node, MathError> {
        let y = self.expert_product(x, ids, width, moe)?;
        self.expert_biases(y, ids, width, moe)
    }
    fn expert_product(&mut self, x: Node, ids: Node, width: u64, moe: &Moe) -> Result<Node, MathError> {
        let [n_in, ..] = self.graph.dims(x)?;
        let stack = self.weight(&[n_in, width, moe.n_experts])?;
        self.graph.mul_mat_id(stack, x, ids)
    }
    fn expert_biases(&mut self, y: Node, ids: Node, width: u64, moe: &Moe) -> Result<Node, MathError> {
        if moe.expert_bias {
            let biases = self.weight(&[width, moe.n_experts])?;
            return self.graph.apply(Op::AddId, y, &[biases, ids]);
        }
        Ok(y)
    }
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
