//! Attention over compressed tokens (`src/models/deepseek4.cpp`): a window of raw tokens beside entries that stand for
//! several tokens each, some of which a selector chooses.

use alloc::vec::Vec;

use super::attention::Rotation;
use super::experts::{Activation, Asks, Routing};
use super::ops::Node;
use super::parts::{NormKind, Parts, Setting};
use super::rows::{PLAIN, Row, SOFTMAX, routing};
use super::selector::Scored;
use crate::engine::llama_cpp::cache::{CSA_RATIO, HCA_RATIO};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{CompressedAttention, FeedForward, Layer, LmHead, Mixer, ModelSpec, Weight};
use crate::units::{Bytes, add, mul};

/// Cells of a cache, and the side of the matrix that rotates what is in it, 0 for none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CompressedCache {
    pub(super) cells: u64,
    pub(super) rotation: u64,
}

/// The caches of a model whose layers compress what they have seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CompressedCaches {
    pub(super) raw: CompressedCache,
    /// Entries of a few tokens, of many tokens, and the selector's keys for the former.
    pub(super) few: CompressedCache,
    pub(super) many: CompressedCache,
    pub(super) selector: CompressedCache,
}

impl CompressedCaches {
    /// Notes a cache by the engine's name for it.
    pub(super) fn add(&mut self, tag: &str, cache: CompressedCache) {
        match tag {
            "raw.swa" => self.raw = cache,
            "csa" => self.few = cache,
            "hca" => self.many = cache,
            "lid" => self.selector = cache,
            _ => {}
        }
    }
}

const ROW: Row = Row { routing: Routing { scaled: true, two_steps: true, asks: Asks::NormAndScale, ..SOFTMAX }, ..PLAIN };

/// What a compressor and the cache it writes are told for a micro-batch (`llama-graph.cpp:dsv4_build_comp_inputs`).
#[derive(Debug, Clone, Copy)]
struct Compressor {
    cache: CompressedCache,
    ratio: u64,
    /// Whether an entry also sees the tokens of the one before.
    overlaps: bool,
    positions: Node,
    kept_from: Node,
    kept_to: Node,
    read: Node,
    write: Node,
    entry_positions: Node,
    mask: Node,
    rotation: Option<Rotation>,
}

impl Compressor {
    /// Rows of state per sequence (`llama-kv-cache-dsv4.cpp:llama_kv_cache_dsv4`).
    const fn state_rows(ratio: u64, overlaps: bool) -> u64 {
        if overlaps { ratio.saturating_mul(2) } else { ratio }
    }

    /// The inputs that a reserved graph has (`llama-kv-cache-dsv4.cpp:dsv4_build_reserve_comp_plan`).
    fn new(
        parts: &mut Parts,
        cache: CompressedCache,
        ratio: u64,
        overlaps: bool,
        mask: StorageFormat,
    ) -> Result<Self, MathError> {
        let Setting { tokens, sequences, streams, .. } = parts.setting;
        let entries = add(tokens / ratio.max(1), sequences)?;
        let rows = mul(Self::state_rows(ratio, overlaps), streams)?;
        let mut numbers = |count| parts.graph.input(StorageFormat::I32, [count, 1, 1, 1]);
        let positions = numbers(tokens)?;
        let kept_from = numbers(tokens.min(rows))?;
        let kept_to = numbers(tokens.min(rows))?;
        let read = numbers(mul(Self::state_rows(ratio, overlaps), entries)?)?;
        let entry_positions = numbers(entries)?;
        let write = parts.row_numbers(entries)?;
        let mask = parts.graph.input(mask, [cache.cells, tokens / streams.max(1), 1, streams])?;
        let rotation = parts.rotation_matrix(cache.rotation)?;
        Ok(Self { cache, ratio, overlaps, positions, kept_from, kept_to, read, write, entry_positions, mask, rotation })
    }
}

/// What all layers read.
struct Trunk {
    positions: Node,
    raw_rows: Node,
    raw_mask: Node,
    raw_rotation: Option<Rotation>,
    caches: CompressedCaches,
    few: Compressor,
    many: Compressor,
    selector: Compressor,
}

/// Sizes that only the layer's own weights tell.
struct Sizes {
    q_rank: u64,
    out_rank: u64,
    out_groups: u64,
}

/// The shape of a layer's weight by its name.
fn shape(layer: &Layer, name: &str) -> Option<[u64; 4]> {
    let of_mixer: &[Weight] = match &layer.mixer {
        Mixer::CompressedAttention(attention) => &attention.weights,
        _ => &[],
    };
    let of_experts: &[Weight] = match &layer.feed_forward {
        FeedForward::Moe(moe) => &moe.extra,
        _ => &[],
    };
    let mut all = layer.extra.iter().chain(of_mixer).chain(of_experts);
    all.find(|weight| weight.name == name).map(|weight| weight.shape.0)
}

impl Sizes {
    fn of(layer: &Layer) -> Option<Self> {
        let [_, q_rank, ..] = shape(layer, "attn_q_a.weight")?;
        let [_, out_rank, out_groups, _] = shape(layer, "attn_output_a.weight")?;
        Some(Self { q_rank, out_rank, out_groups })
    }
}

/// Versions of the hidden state (`hyper.rs`), where a layer says how many there are.
fn versions(spec: &ModelSpec) -> Option<u64> {
    let layer = spec.layers.first()?;
    let [width, ..] = shape(layer, "hc_attn_fn.weight")?;
    width.checked_div(spec.d_model)
}

/// Builds the whole graph; `false` when the layers are none of this file's.
pub(super) fn build(parts: &mut Parts, spec: &ModelSpec, caches: &CompressedCaches) -> Result<bool, MathError> {
    let Some(versions) = versions(spec) else { return Ok(false) };
    // Simple operations come in rounds then, and how many is a number of the file that a spec does not hold.
    if !parts.setting.fused.combine {
        return Ok(false);
    }
    // Compressed tokens and the selector's keys lie in caches of their own, of keys alone.
    parts.graph.graph.streams_of_caches = Some(parts.setting.streams);
    let mut layers: Vec<(&Layer, &CompressedAttention, Sizes)> = Vec::new();
    for layer in &spec.layers {
        let (Mixer::CompressedAttention(attention), Some(sizes)) = (&layer.mixer, Sizes::of(layer)) else { return Ok(false) };
        layers.push((layer, attention, sizes));
    }
    let flash = if parts.setting.flash { StorageFormat::F16 } else { Parts::F32 };
    let Setting { tokens, streams, .. } = parts.setting;
    let embedded = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
    let positions = parts.positions(1)?;
    let rows = parts.output_rows()?;
    let trunk = Trunk {
        positions,
        raw_rows: parts.row_numbers(tokens)?,
        raw_mask: parts.graph.input(flash, [caches.raw.cells, tokens / streams.max(1), 1, streams])?,
        raw_rotation: parts.rotation_matrix(caches.raw.rotation)?,
        caches: *caches,
        few: Compressor::new(parts, caches.few, CSA_RATIO, true, flash)?,
        many: Compressor::new(parts, caches.many, HCA_RATIO, false, flash)?,
        selector: Compressor::new(parts, caches.selector, CSA_RATIO, true, StorageFormat::F16)?,
    };
    parts.graph.expand(trunk.raw_mask)?;
    let mut current = parts.versions(embedded, versions)?;
    let steps = parts.layers(spec.layers.iter(), |_| ());
    for step in &steps {
        let Some((layer, attention, sizes)) = layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        let before = current;
        let mixed = parts.mix_versions(before)?;
        let normed = parts.norm(mixed.x, NormKind::Rms, false, true)?;
        let attended = trunk.attention(parts, attention, sizes, spec.d_model, normed)?;
        current = parts.spread_versions(attended, before, &mixed)?;

        let before = current;
        let mixed = parts.mix_versions(before)?;
        parts.graph.expand(before)?;
        parts.graph.expand(mixed.post)?;
        parts.graph.expand(mixed.comb)?;
        let normed = parts.norm(mixed.x, NormKind::Rms, false, true)?;
        let fed = feed_forward(parts, layer, spec, normed)?;
        current = parts.spread_versions(fed, before, &mixed)?;
        parts.pin_in_layer(current)?;
    }
    parts.begin_output();
    if parts.setting.hands_out_hidden_state {
        parts.graph.output(current)?;
    }
    let [d_model, _, tokens, _] = parts.graph.dims(current)?;
    let flat = parts.graph.reshape(current, [mul(d_model, versions)?, tokens, 1, 1])?;
    let chosen = parts.graph.get_rows(flat, rows)?;
    let outputs = parts.setting.outputs;
    let chosen = parts.graph.reshape(chosen, [d_model, versions, outputs, 1])?;
    let joined = parts.join_versions(chosen)?;
    let normed = parts.norm(joined, NormKind::Rms, false, false)?;
    let vocabulary = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    let logits = parts.linear_bias(normed, vocabulary, spec.head.lm_head == LmHead::Own { bias: true })?;
    parts.finish(&spec.head, normed, Some(logits))?;
    Ok(true)
}

/// The experts of a layer; the first layers look them up by token.
fn feed_forward(parts: &mut Parts, layer: &Layer, spec: &ModelSpec, x: Node) -> Result<Node, MathError> {
    let moe = match &layer.feed_forward {
        FeedForward::Dense(dense) => return parts.feed_forward(x, dense, spec.d_model, Activation::Single),
        FeedForward::Moe(moe) => moe,
        FeedForward::ChannelMix { .. } | FeedForward::None => return Ok(x),
    };
    let mut routing = routing(&ROW, moe, spec.operations);
    if let Some(table) = shape(layer, "ffn_gate_tid2eid.weight") {
        let table = parts.table(table)?;
        routing.looked_up = Some(parts.graph.get_rows(table, parts.tokens)?);
    }
    let routed = parts.experts(x, moe, routing, Activation::Single)?;
    match &moe.shared {
        Some(shared) => {
            let shared = parts.shared_experts(x, shared, spec.d_model, Activation::Single)?;
            parts.graph.sum(routed, shared)
        }
        None => Ok(routed),
    }
}

impl Trunk {
    fn attention(
        &self,
        parts: &mut Parts,
        attention: &CompressedAttention,
        sizes: &Sizes,
        d_model: u64,
        x: Node,
    ) -> Result<Node, MathError> {
        let tokens = parts.setting.tokens;
        let (head, heads) = (attention.head_dim, attention.n_heads);
        let compressed = parts.linear(x, sizes.q_rank)?;
        let compressed = parts.norm(compressed, NormKind::Rms, false, true)?;
        let q = parts.linear(compressed, mul(head, heads)?)?;
        let q = parts.graph.reshape(q, [head, heads, tokens, 1])?;
        let q = parts.bare_norm(q, NormKind::Rms)?;
        let q = parts.graph.rope(q, self.positions, None)?;
        let kv = parts.linear(x, head)?;
        let kv = parts.norm(kv, NormKind::Rms, false, true)?;
        let kv = parts.graph.reshape(kv, [head, 1, tokens, 1])?;
        let kv = parts.graph.rope(kv, self.positions, None)?;

        let out = match (attention.ratio, &attention.indexer) {
            (CSA_RATIO, Some(indexer)) => {
                let entries = self.compress(parts, &self.few, head, x)?;
                let keys = self.compress(parts, &self.selector, indexer.head_dim, x)?;
                let mut query = parts.linear(compressed, mul(indexer.head_dim, indexer.n_heads)?)?;
                query = parts.graph.reshape(query, [indexer.head_dim, indexer.n_heads, tokens, 1])?;
                query = parts.graph.rope(query, self.positions, None)?;
                if let Some(rotation) = self.selector.rotation {
                    query = parts.rotate(query, rotation)?;
                }
                let weights = parts.linear(x, indexer.n_heads)?;
                let weights = parts.scale(weights)?;
                let keys = view_of_entries(parts, keys, indexer.head_dim, self.selector.cache.cells)?;
                let scored = Scored { query, keys, weights, mask: self.selector.mask };
                let chosen = parts.choose(&scored, indexer.top_k)?;
                self.attend(parts, attention, q, kv, Some((entries, &self.few, Some(chosen))))?
            }
            (HCA_RATIO, _) => {
                let entries = self.compress(parts, &self.many, head, x)?;
                self.attend(parts, attention, q, kv, Some((entries, &self.many, None)))?
            }
            _ => self.attend(parts, attention, q, kv, None)?,
        };
        let out = parts.graph.reshape(out, [head, heads, tokens, 1])?;
        let out = parts.graph.rope_back(out, self.positions)?;
        let group = mul(head, heads)? / sizes.out_groups.max(1);
        let out = parts.graph.reshape(out, [group, sizes.out_groups, tokens, 1])?;
        let out = parts.graph.permute(out, [0, 2, 1, 3])?;
        let matrices = parts.weight(&[group, sizes.out_rank, sizes.out_groups])?;
        let out = parts.graph.mul_mat(matrices, out)?;
        let out = parts.graph.permute(out, [0, 2, 1, 3])?;
        let out = parts.graph.cont(out, [mul(sizes.out_rank, sizes.out_groups)?, tokens, 1, 1])?;
        parts.linear(out, d_model)
    }

    /// Compresses the tokens of a micro-batch with what came before, writes the entries, and keeps the last tokens. Returns
    /// the cache of entries.
    fn compress(&self, parts: &mut Parts, inputs: &Compressor, head: u64, x: Node) -> Result<Node, MathError> {
        let Setting { streams, cache_device, k_format, .. } = parts.setting;
        let width = if inputs.overlaps { mul(2, head)? } else { head };
        let values = parts.linear(x, width)?;
        let scores = parts.linear(x, width)?;
        let places = parts.weight(&[width, inputs.ratio])?;
        let places = parts.graph.get_rows(places, inputs.positions)?;
        let scores = parts.graph.sum(scores, places)?;
        let rows = mul(Compressor::state_rows(inputs.ratio, inputs.overlaps), streams)?;
        let row = mul(4, width)?;
        let mut sources = Vec::new();
        let mut states = Vec::new();
        for now in [values, scores] {
            let state = parts.graph.cache(Parts::F32, [width, rows, 1, 1], cache_device)?;
            let all = parts.graph.view_2d(state, width, rows, row)?;
            let before = parts.graph.view_2d(all, width, rows, row)?;
            sources.push((before, now));
            states.push((state, now));
        }
        let mut joined = Vec::new();
        for (before, now) in sources {
            joined.push(parts.graph.concat(before, now, 1)?);
        }
        let [values, scores] = joined.as_slice() else { return Ok(x) };
        let mut entry = if inputs.overlaps {
            self.overlapping(parts, inputs, head, [*values, *scores])?
        } else {
            self.separate(parts, inputs, head, [*values, *scores])?
        };
        entry = parts.norm(entry, NormKind::Rms, false, true)?;
        entry = parts.graph.rope(entry, inputs.entry_positions, None)?;
        if let Some(rotation) = inputs.rotation {
            entry = parts.rotate(entry, rotation)?;
        }
        let cache = parts.graph.cache(k_format, [head, inputs.cache.cells, streams, 1], cache_device)?;
        let stored = parts.store_rows(entry, cache, inputs.write)?;
        parts.graph.expand(stored)?;
        let mut kept = Vec::new();
        for (state, now) in states {
            let rows_kept = parts.graph.get_rows(now, inputs.kept_from)?;
            kept.push((state, rows_kept));
        }
        let mut written = Vec::new();
        for (state, kept) in kept {
            let all = parts.graph.view_2d(state, width, rows, row)?;
            written.push(parts.graph.set_rows(all, kept, inputs.kept_to)?);
        }
        for written in written {
            parts.graph.expand(written)?;
        }
        Ok(cache)
    }

    /// Entries of tokens that no other entry sees (`build_hca_compressed_kv_from_state`).
    fn separate(&self, parts: &mut Parts, inputs: &Compressor, head: u64, both: [Node; 2]) -> Result<Node, MathError> {
        let [entries, ..] = parts.graph.dims(inputs.entry_positions)?;
        let mut turned = both;
        for rows in &mut turned {
            let read = parts.graph.get_rows(*rows, inputs.read)?;
            *rows = parts.graph.reshape(read, [head, inputs.ratio, entries, 1])?;
        }
        self.weighted_sum(parts, turned)
    }

    /// Entries that share tokens with their neighbours (`build_overlap_compressed_kv_from_state`).
    fn overlapping(&self, parts: &mut Parts, inputs: &Compressor, head: u64, both: [Node; 2]) -> Result<Node, MathError> {
        let [entries, ..] = parts.graph.dims(inputs.entry_positions)?;
        let read = mul(inputs.ratio, entries)?;
        let mut rows = both;
        for rows in &mut rows {
            let [width, ..] = parts.graph.dims(*rows)?;
            let first = parts.graph.view_1d(*rows, width)?;
            let blank = parts.scale(first)?;
            let blank = parts.graph.reshape(blank, [width, 1, 1, 1])?;
            *rows = parts.graph.concat(*rows, blank, 1)?;
        }
        for rows in &mut rows {
            *rows = parts.graph.get_rows(*rows, inputs.read)?;
        }
        let [values, scores] = rows;
        let mut halves = Vec::new();
        for rows in [values, scores, values, scores] {
            let [_, stride, ..] = parts.graph.strides(rows)?;
            let half = parts.graph.view_2d(rows, head, read, stride)?;
            let half = parts.graph.cont(half, [head, read, 1, 1])?;
            halves.push(parts.graph.reshape(half, [head, inputs.ratio, entries, 1])?);
        }
        let [values_before, scores_before, values_now, scores_now] = halves.as_slice() else { return Ok(values) };
        let values = parts.graph.concat(*values_before, *values_now, 1)?;
        let scores = parts.graph.concat(*scores_before, *scores_now, 1)?;
        self.weighted_sum(parts, [values, scores])
    }

    /// Sums of tokens, weighted by the softmax of their scores: `[head, 1, entries]`.
    fn weighted_sum(&self, parts: &mut Parts, both: [Node; 2]) -> Result<Node, MathError> {
        let mut turned = both;
        for x in &mut turned {
            *x = parts.contiguous_permuted(*x, [1, 0, 2, 3])?;
        }
        let [values, scores] = turned;
        let weights = parts.soft_max(scores)?;
        let weighted = parts.graph.product(values, weights)?;
        let sums = parts.graph.sum_rows(weighted)?;
        parts.contiguous_permuted(sums, [1, 0, 2, 3])
    }

    /// Attention over raw tokens and, where there are any, entries.
    fn attend(
        &self,
        parts: &mut Parts,
        attention: &CompressedAttention,
        mut q: Node,
        mut kv: Node,
        entries: Option<(Node, &Compressor, Option<Node>)>,
    ) -> Result<Node, MathError> {
        let Setting { streams, k_format, cache_device, .. } = parts.setting;
        let head = attention.head_dim;
        if let Some(rotation) = self.raw_rotation {
            q = parts.rotate(q, rotation)?;
            kv = parts.rotate(kv, rotation)?;
        }
        parts.graph.expand(q)?;
        parts.graph.expand(kv)?;
        let cells = self.caches.raw.cells;
        let cache = parts.graph.cache(k_format, [head, cells, streams, 1], cache_device)?;
        let stored = parts.store_rows(kv, cache, self.raw_rows)?;
        parts.graph.expand(stored)?;
        let mut keys = view_of_keys(parts, cache, head, cells)?;
        let mut mask = self.raw_mask;
        if let Some((cache, inputs, chosen)) = entries {
            let more = view_of_entries(parts, cache, head, inputs.cache.cells)?;
            keys = parts.graph.concat(keys, more, 2)?;
            let own = match chosen {
                Some(chosen) => {
                    let [top, ..] = parts.graph.dims(chosen)?;
                    parts.most_cells = cells.min(attention.window).saturating_add(top);
                    let zeros = parts.graph.format(inputs.mask)?;
                    parts.mask_with_chosen(inputs.mask, chosen, zeros)?
                }
                None => inputs.mask,
            };
            mask = parts.graph.concat(mask, own, 0)?;
        }
        let sinks = parts.weight(&[attention.n_heads])?;
        let out = parts.attend_views(q, keys, keys, mask, Some(sinks), false, None)?;
        match self.raw_rotation {
            Some(rotation) => parts.rotate(out, rotation),
            None => Ok(out),
        }
    }
}

/// A cache of keys as attention reads it.
fn view_of_keys(parts: &mut Parts, cache: Node, head: u64, cells: u64) -> Result<Node, MathError> {
    let Setting { streams, k_format, .. } = parts.setting;
    let row = k_format.row_bytes(head).map(Bytes::get)?;
    parts.graph.view(cache, [head, 1, cells, streams], [row, row, mul(row, cells)?])
}

/// Compressed tokens as attention reads them: of all that the cache shows, as many as the mask covers, which are all of them
/// when graphs are reserved. The view of a view moves nothing, but Metal counts it when it looks for operations to fuse.
fn view_of_entries(parts: &mut Parts, cache: Node, head: u64, cells: u64) -> Result<Node, MathError> {
    let shown = view_of_keys(parts, cache, head, cells)?;
    view_of_keys(parts, shown, head, cells)
}
