//! What every part of a graph is made with: weights, projections, norms, embeddings, inputs
//! (`src/llama-graph.cpp:llm_graph_context`).

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::depth::{Depth, Step, kinds};
use super::fused::{Fused, FusedNode, Fusible};
use super::op::Op;
use super::ops::{Builder, Node};
use super::places::Places;
use super::scales::{Reads, Scales};
use super::unread::Unread;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Layer, Pooling};
use crate::units::{add, mul};

/// One graph to be reserved: its tokens and sequences, and where things are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Tokens of the micro-batch.
    pub(super) tokens: u64,
    /// Sequences of the micro-batch, equally long.
    pub(super) sequences: u64,
    /// Rows of the recurrent state: one per sequence of the context.
    pub(super) states: u64,
    /// Recurrent states that are kept for each sequence: the last, and those that drafted tokens may fall back to.
    pub(super) snapshots: u64,
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
    /// Whether gated DeltaNet hands a matrix to its last projection (`build.rs:projects_sequences_together`).
    pub(super) flat_projections: bool,
    /// Whether an initial state lies with the input instead of the layers (`build.rs:makes_with_the_input`).
    pub(super) states_lie_with_input: bool,
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
    /// What is computed as one operation.
    pub(super) fused: Fused,
    /// Whether sparse attention reads the mask of its selector (`build.rs:masks_chosen_cells_at_once`).
    pub(super) shares_selector_mask: bool,
    /// Whether experts' last matrices multiply in full precision (`build.rs:multiplies_expert_inputs_in_full`).
    pub(super) full_expert_inputs: bool,
    /// Whether the file says how experts are scored (`build.rs:asks_how_experts_are_scored`).
    pub(super) asks_scoring: bool,
    /// Whether the inputs of experts' last matrices are scaled into f16's range (`build.rs:limits_expert_activations`).
    pub(super) limits_experts: bool,
    /// How embeddings are pooled, in a context for embeddings.
    pub(super) pooling: Option<Pooling>,
    /// Whether they are before logits are made (`build.rs:pools_before_logits`).
    pub(super) pools_before_logits: bool,
    /// Whether a classifier's scores go through softmax (Qwen 3 rerankers).
    pub(super) ranks_by_softmax: bool,
    /// Which scales of matrices the graph reads.
    pub(super) scales: Reads,
    /// Which biases the graph leaves.
    pub(super) unread: Unread,
    /// The build rotates by sections where the file has them.
    pub(super) sections: bool,
}

/// A graph under construction with its setting.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) graph: Builder,
    /// The input of token numbers, once there is one.
    pub(super) tokens: Node,
    /// The table of embeddings, once there is one.
    pub(super) table: Node,
    pub(super) setting: Setting,
    /// How many layers are shown.
    pub(super) depth: Depth,
    /// Where layers, caches and weights are.
    pub(super) places: Rc<Places>,
    /// The layer under way.
    pub(super) layer: Option<usize>,
    /// How many caches have rotation matrices of their own.
    pub(super) n_rotations: usize,
    /// Rotation matrices that layers have read: whose cache, and the layer that keeps it.
    pub(super) rotations: Vec<((usize, Option<usize>), Node)>,
    /// Which of its matrices have scales.
    pub(super) scales: Scales,
    /// Which of the weights of the layer under way, and of no layer, the graph has read.
    taken: [Vec<bool>; 2],
    /// Tensors of those weights.
    made: [Vec<Option<Node>>; 2],
    /// Weights that layers have in common, one for each backend.
    shared: Vec<(u64, usize, Node)>,
    /// How many cells the next attention reads for a token at most, where it chooses; 0 where it reads all.
    pub(super) most_cells: u64,
    /// Fused operations that the engine wants on their layer's device, and the device.
    pub(super) fused: Vec<FusedNode>,
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
    /// Root mean square of each of so many groups.
    Groups(u64),
}

impl Setting {
    /// Rows of recurrent state: those of every sequence, as often as they are kept.
    pub(super) fn state_rows(&self) -> Result<u64, MathError> {
        mul(self.states, self.snapshots)
    }
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
            table: Node(0),
            setting,
            depth,
            places: Rc::clone(places),
            layer: None,
            n_rotations: 0,
            rotations: Vec::new(),
            scales: Scales::default(),
            taken: [Vec::new(), Vec::new()],
            made: [Vec::new(), Vec::new()],
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
        let (steps, stack) = self.depth.steps(&kinds);
        self.graph.graph.stacks.push(stack);
        self.graph.expect_layers(steps.len());
        steps
    }
    /// The output begins: the last norm, rows of logits. After the last layer.
    pub(super) fn begin_output(&mut self) {
        self.layer = None;
        self.setting.device = self.places.output;
        self.at_output = true;
    }
    /// A layer begins.
    pub(super) fn begin_layer(&mut self, step: &Step, layer: &Layer) {
        self.scales = Scales::of(layer, self.setting.scales);
        let place = self.places.layer(step.layer);
        (self.setting.device, self.setting.cache_device) = (place.backend, place.cache);
        self.layer = Some(step.layer);
        let ([taken, _], [made, _]) = (&mut self.taken, &mut self.made);
        taken.clear();
        made.clear();
        self.graph.begin_layer();
    }

    /// Notes an operation that the engine fuses as long as it stays with its layer.
    pub(super) fn note_fused(&mut self, what: Fusible, node: Node) {
        self.fused.push(FusedNode { what, node, device: self.setting.device });
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
        let ([taken, of_none], [made, made_of_none]) = (&mut self.taken, &mut self.made);
        let (taken, made) = if self.layer.is_some() { (taken, made) } else { (of_none, made_of_none) };
        taken.resize(list.len(), false);
        made.resize(list.len(), None);
        // Weights of one shape are read in the order in which they lie there.
        let alike = || list.iter().enumerate().filter(|(_, weight)| weight.dims == dims);
        let fresh = alike().find(|(index, weight)| !weight.looks_up && taken.get(*index) == Some(&false));
        let Some((index, stored)) = fresh.or_else(|| alike().next()) else {
            return self.graph.weight(Self::F32, dims, backend);
        };
        if let Some(slot) = taken.get_mut(index) {
            *slot = true;
        }
        let Some(made) = made.get_mut(index) else { return Err(MathError::Overflow { quantity: "weights" }) };
        if let Some(node) = *made {
            return Ok(node);
        }
        let node = self.graph.weight(stored.format, dims, stored.backend)?;
        *made = Some(node);
        if stored.repacked {
            self.graph.repack(node)?;
        }
        Ok(node)
    }
    /// How many weights of this shape the layer under way has, where places are told apart.
    pub(super) fn n_weights(&self, dims: &[u64]) -> usize {
        let same = |stored: [u64; 4]| stored.iter().zip(dims.iter().chain(core::iter::repeat(&1))).all(|(a, b)| a == b);
        self.places.weights(self.layer).iter().filter(|weight| same(weight.dims)).count()
    }
    /// A part of a layer that reads weights again which the layer has read: the first of their shapes.
    pub(super) fn again<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T, MathError>) -> Result<T, MathError> {
        let [taken, _] = &mut self.taken;
        let before = core::mem::take(taken);
        let out = part(self);
        let [taken, _] = &mut self.taken;
        *taken = before;
        out
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
        let [width, ..] = self.graph.dims(x)?;
        self.norm_by(x, kind, &[width], bias, in_layer)
    }
    /// A norm whose weights have dimensions of their own: `[head, heads]` where every head has others.
    pub(super) fn norm_by(
        &mut self,
        x: Node,
        kind: NormKind,
        weights: &[u64],
        bias: bool,
        in_layer: bool,
    ) -> Result<Node, MathError> {
        let normed = self.bare_norm(x, kind)?;
        if in_layer && !matches!(kind, NormKind::Groups(_)) {
            self.pin_in_layer(normed)?;
        }
        let weights = self.weight(weights)?;
        let scaled = self.graph.product(normed, weights)?;
        if bias { self.bias(scaled) } else { Ok(scaled) }
    }
    /// Keeps a node on its layer's device where the engine does (`llama-context.cpp:graph_get_cb`).
    pub(super) fn pin_in_layer(&mut self, node: Node) -> Result<(), MathError> {
        if self.setting.pins_norms { self.graph.pin(node, self.setting.device) } else { Ok(()) }
    }
    /// A norm without weights.
    pub(super) fn bare_norm(&mut self, x: Node, kind: NormKind) -> Result<Node, MathError> {
        match kind {
            NormKind::Rms => self.graph.apply(Op::RmsNorm, x, &[]),
            NormKind::Layer => self.graph.apply(Op::Norm, x, &[]),
            NormKind::Groups(groups) => {
                let dims @ [width, tokens, ..] = self.graph.dims(x)?;
                let grouped = self.graph.reshape(x, [width / groups.max(1), groups, tokens, 1])?;
                let normed = self.graph.apply(Op::RmsNorm, grouped, &[])?;
                self.graph.reshape(normed, dims)
            }
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
        self.table = table;
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
}
