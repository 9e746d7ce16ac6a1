//! Graphs of models whose layers are attention and a feed-forward (`src/models/*.cpp`).

use super::latent::{self, Sparse};
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::per_layer;
use super::rows::{Beside, QkNorming, Row, Scaled, Together, routing};
use super::scales;
use super::stacks;
use super::trunk::{Caches, HasWindow, Trunk, attended};
use crate::error::MathError;
use crate::spec::{Dense, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, Moe, Operations, OutputGate, QkvLayout};
use crate::tensor::Component;

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(
    parts: &mut Parts,
    spec: &ModelSpec,
    row: &Row,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<bool, MathError> {
    let mixes = |layer: &Layer| match &layer.mixer {
        Mixer::Attention(attention) => {
            (attention.gate == OutputGate::None || row.gates_attention && matches!(attention.gate, OutputGate::Own { .. }))
                && attention.indexer.as_ref().is_none_or(|indexer| row.attends_blocks && indexer.block > 1)
                && (row.norms_values || matches!(attention.kv_source, KvSource::Own | KvSource::NotCached))
                && (row.norms_values || !matches!(attention.layout, QkvLayout::QueryOnly | QkvLayout::ValueIsKey))
                && !(row.norms_values && attention.layout == QkvLayout::Fused)
                && attention.layout != QkvLayout::Listed
        }
        Mixer::Mla(mla) if row.expands_latents => mla.expanded && mla.gate == OutputGate::None && mla.indexer.is_none(),
        Mixer::Mla(mla) => {
            let windowed = mla.window.tokens().is_some() && caches.window_cells.is_some();
            latent::fits(mla) && (windowed || mla.indexer.is_some() == caches.selector.is_some())
        }
        _ => false,
    };
    let feeds = |layer: &Layer| match &layer.feed_forward {
        FeedForward::Dense(_) | FeedForward::Moe(_) => true,
        FeedForward::ChannelMix { .. } | FeedForward::None => false,
    };
    let fits = |layer: &Layer| {
        mixes(layer)
            && feeds(layer)
            && (row.parallel.is_some()
                || row.norms_after
                || row.norms_sums
                || row.bare_norms
                || has_norm(layer, "ffn_norm").is_some()
                || has_norm(layer, "attn_output_norm").is_some()
                || has_norm(layer, "post_attention_norm").is_some())
            && layer.cross_attention.is_none()
            // What lies under a repeated layer's number belongs to the layer it repeats.
            && (row.two_stacks && layer.weights_of.is_some() || extras_are_known(layer, row.extras))
    };
    if !spec.layers.iter().all(fits) || spec.encoder.is_some() {
        return Ok(false);
    }
    let norm = match (spec.operations.n_norm_groups, spec.operations.norms_by_root_mean_square) {
        (groups, _) if groups > 0 => NormKind::Groups(groups),
        (_, Some(false)) if row.rotates_dense => NormKind::Layer,
        _ => row.norm,
    };
    let row = &Row { norm, ..row.told(spec.operations) };
    if row.qk_norm == QkNorming::Halves {
        // All of its norms are the model's own operations, none the engine's (`models/sensenova-u1.cpp`, `normalize`).
        parts.setting.pins_norms = false;
    }
    // What layers that run again fetch between devices is not known.
    let again = |layer: &Layer| layer.told.norms_state || layer.weights_of.is_some();
    if !parts.places.is_single() && spec.layers.iter().any(again) {
        return Ok(false);
    }
    let sectioned = row.sections_allowed && spec.operations.sectioned_positions == Some(true);
    let positions = parts.positions(if sectioned { 4 } else { row.positions_per_token })?;
    // Layers' own embeddings may be looked up before tokens are.
    let own_width = per_layer::width(spec);
    let n_layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    let mut found = None;
    let looks_up = spec.embedding.extra.iter().any(|weight| weight.name == "per_layer_token_embd.weight");
    if let (Some(width), true) = (own_width.filter(|_| looks_up), parts.setting.tables_first) {
        let rows = parts.look_up_layers(width, n_layers, spec.embedding.n_vocab)?;
        parts.graph.expand(rows)?;
        found = Some(rows);
    }
    let axes = if row.qk_norm == QkNorming::Halves {
        let tokens = parts.setting.tokens;
        let mut axis = || parts.graph.view_1d(positions, tokens);
        Some([axis()?, axis()?, axis()?])
    } else {
        None
    };
    let mut embedded = embed(parts, spec, row, positions)?;
    if row.norms_embedding {
        embedded = parts.bare_norm(embedded, row.norm)?;
    }
    let mut current = embedded;
    let (full, sliding) = attended(parts, spec, caches, window)?;
    let factors = rope_factors(parts, spec);
    let blocks = if row.attends_blocks { parts.block_inputs(spec, &full)? } else { None };
    let sparse = match caches.selector {
        Some(cache) => Some(Sparse { inputs: parts.selector_inputs(cache)?, chosen: None }),
        None => None,
    };
    let by_position = spec.operations.scales_by_position.unwrap_or(false);
    let attention_scale = match row.scales_by_position {
        Scaled::UnrotatedLayers => Some(parts.attention_scale()?),
        Scaled::WhereTold if by_position => Some(parts.attention_scale()?),
        Scaled::Never | Scaled::WhereTold => None,
    };
    let rows = if row.keeps_rows { positions } else { parts.output_rows()? };
    let mut own_embeddings = None;
    if let Some(width) = own_width.filter(|_| !looks_up) {
        own_embeddings = Some(parts.only_projected_layers(current, width, n_layers)?);
    } else if let Some(width) = own_width {
        let dims = [width, n_layers, parts.setting.tokens, 1];
        let found = match found {
            Some(rows) => {
                let scaled = parts.scale(rows)?;
                parts.graph.reshape(scaled, dims)?
            }
            None => {
                let rows = parts.look_up_layers(width, n_layers, spec.embedding.n_vocab)?;
                let shaped = parts.graph.reshape(rows, dims)?;
                let scaled = parts.scale(shaped)?;
                parts.graph.expand(scaled)?;
                scaled
            }
        };
        own_embeddings = Some(parts.project_layers(current, found)?);
    }
    let late = row.chooses_late && parts.setting.rows_after_layers;
    let last = spec.layers.len().saturating_sub(1);
    let n_deep = usize::try_from(spec.operations.n_deepstack_layers).unwrap_or(usize::MAX);
    let steps = parts.layers(spec.layers.iter(), |index| {
        // Every layer of two stacks has a cache of its own and reads another state.
        let apart = row.two_stacks.then_some(index);
        (!row.rotates(index), index < n_deep, row.unrotated_first_of > 0 && index.is_multiple_of(4), apart)
    });
    let mut trunk = Trunk {
        factors,
        attention_scale,
        sparse,
        blocks,
        operations: Operations {
            scores_experts_by_sigmoid: spec.operations.scores_experts_by_sigmoid.filter(|_| parts.setting.asks_scoring),
            ..spec.operations
        },
        per_layer: own_embeddings,
        axes,
        skip: row.adds_embedding.then_some(embedded),
        deepstack: (spec.operations.n_deepstack_layers > 0).then_some(embedded),
        ..Trunk::new(spec, row, caches, window, [positions, rows], (full, sliding))
    };
    if row.two_stacks {
        let Some(state) = stacks::states(parts, spec, &steps, &mut trunk, current)? else { return Ok(false) };
        current = parts.graph.get_rows(state, rows)?;
    }
    for step in steps.iter().filter(|_| !row.two_stacks) {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        let chooses = step.layer == last && !late && !row.keeps_rows;
        current = trunk.layer(parts, layer, spec.d_model, step.layer, current, chooses)?;
        if layer.told.norms_state {
            current = parts.norm(current, row.norm, false, true)?;
        }
    }
    parts.begin_output();
    if row.chooses_late && !row.norms_before_choosing {
        // The hidden state of all tokens is handed out as well (`t_h_nextn`).
        parts.graph.output(current)?;
        if late {
            current = parts.graph.get_rows(current, rows)?;
        }
    }
    let norm_bias = spec.head.norm.as_ref().is_some_and(|norm| norm.bias);
    // Encoders may name their last norm so (NeoBERT).
    let has_norm = spec.head.norm.is_some() || spec.head.extra.iter().any(|weight| weight.name == "enc.output_norm.weight");
    if row.bare_norms && !row.two_stacks {
        current = parts.bare_norm(current, row.norm)?;
    } else if has_norm {
        current = parts.norm(current, row.norm, norm_bias, false)?;
    }
    if row.projects_embedding {
        let width = spec.head.n_outputs.unwrap_or(spec.d_model);
        current = parts.linear(current, width)?;
    }
    if late && row.norms_before_choosing {
        // The normed hidden state of all tokens is handed out as well.
        parts.graph.output(current)?;
        current = parts.graph.get_rows(current, rows)?;
    }
    let embedded = current;
    if spec.head.lm_head == LmHead::None || row.embeds_batches || row.projects_embedding || row.leaves_logits {
        parts.finish(&spec.head, embedded, None)?;
        return Ok(true);
    }
    if row.scales_before_logits {
        current = parts.scale(current)?;
    }
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = if row.reads_table {
        parts.graph.mul_mat(parts.table, current)?
    } else {
        let bias = spec.head.lm_head == LmHead::Own { bias: true } && !parts.setting.unread.output;
        parts.linear_bias(current, outputs, bias)?
    };
    if row.scales_logits {
        current = parts.scale(current)?;
    }
    if row.caps_logits.caps(spec.operations.caps_logits) {
        current = parts.soft_cap(current)?;
    }
    parts.finish(&spec.head, embedded, Some(current))?;
    Ok(true)
}

/// Embedded tokens with everything that is added to them before the first layer.
pub(super) fn embed(parts: &mut Parts, spec: &ModelSpec, row: &Row, positions: Node) -> Result<Node, MathError> {
    // A source that knows no such tables lists them among the embedding's other tensors.
    let listed = |name: &str| spec.embedding.extra.iter().find(|weight| weight.name == name);
    let rows = |known: u64, name: &str| {
        let [_, rows, ..] = listed(name).map_or([0; 4], |weight| weight.shape.0);
        if known > 0 { known } else { rows }
    };
    let learned = rows(spec.embedding.n_positions, "position_embd.weight");
    let types = rows(spec.embedding.n_token_types, "token_types.weight");
    let mut added = None;
    if learned > 0 && row.adds_to_positions && parts.setting.tables_first {
        added = Some(look_up(parts, spec.d_model, learned, positions)?);
    }
    let mut current = parts.embed_deep(spec.d_model, spec.embedding.n_vocab, spec.operations.n_deepstack_layers)?;
    if row.scales_embedding && spec.operations.scales_embedding != Some(false) {
        current = parts.scale_embedded(current)?;
    }
    if types > 0 {
        // Every token is of the first type.
        let types = parts.host_weight(spec.d_model, types)?;
        let first = parts.graph.view_1d(types, spec.d_model)?;
        current = parts.graph.sum(current, first)?;
    }
    if learned > 0 {
        let looked_up = match added {
            Some(looked_up) => looked_up,
            None => look_up(parts, spec.d_model, learned, positions)?,
        };
        let (first, second) = if row.adds_to_positions { (looked_up, current) } else { (current, looked_up) };
        current = parts.graph.sum(first, second)?;
    }
    let norm = match &spec.embedding.norm {
        Some(norm) => Some(norm.bias),
        None => listed("token_embd_norm.weight").map(|_| listed("token_embd_norm.bias").is_some()),
    };
    if let Some(bias) = norm {
        current = parts.norm(current, row.norm, bias, true)?;
    }
    Ok(current)
}

/// How many factors the rotary embedding has, where the graph reads them (`llama-model.cpp:get_rope_factors`).
pub(super) fn rope_factors(parts: &Parts, spec: &ModelSpec) -> Option<u64> {
    let listed = spec.embedding.extra.iter().find(|weight| weight.name.starts_with("rope_f"));
    listed.map(|weight| weight.shape.row()).or(parts.rope_factors()).filter(|_| parts.places.reads_rope_factors)
}

fn look_up(parts: &mut Parts, width: u64, learned: u64, positions: Node) -> Result<Node, MathError> {
    let table = parts.host_weight(width, learned)?;
    let rows = parts.graph.get_rows(table, positions)?;
    if parts.setting.tables_first {
        parts.graph.expand(rows)?;
    }
    Ok(rows)
}

/// Whether a layer has no weights but those of its mechanisms; a header lists a selector's as the layer's own.
pub(super) fn extras_are_known(layer: &Layer, read: &[&str]) -> bool {
    layer.extra.iter().all(|weight| match &layer.mixer {
        _ if scales::is_scale(weight) || read.contains(&weight.name.as_str()) => true,
        Mixer::KimiDelta(_) | Mixer::LightningAttention(_) if weight.component == Component::SsmLinear => true,
        // Queries, keys, values and the output gate in one matrix, as first files of Qwen3-Next have them.
        Mixer::GatedDeltaNet(_) if weight.name == "ssm_in.weight" => true,
        // Biases that loaders of delta attention accept and no graph reads.
        Mixer::KimiDelta(_) if weight.name.ends_with(".bias") => true,
        Mixer::Mamba2(_) if weight.component == Component::SsmLinear => ssm_shape(layer, "ssm_dt_norm").is_some(),
        _ => {
            let norms = ["ffn_norm", "post_attention_norm", "post_ffw_norm"];
            let latent = [
                "ffn_latent_down.weight",
                "ffn_latent_up.weight",
                "ffn_routed_down.weight",
                "ffn_routed_up.weight",
                "attn_res_score.weight",
                "ffn_res_score.weight",
            ];
            // The last of all: the same correction of choices as ever, named without its suffix.
            weight.component == Component::AttnIndexer
                || weight.name == "exp_probs_b"
                || norms.contains(&weight.name.as_str())
                || latent.contains(&weight.name.as_str())
        }
    })
}

/// Whether a layer has a weight besides those of its mechanisms.
pub(super) fn has_weight(layer: &Layer, name: &str) -> bool {
    let of_mixer = match &layer.mixer {
        Mixer::KimiDelta(delta) => delta.extra.as_slice(),
        _ => &[],
    };
    let of_feed_forward = match &layer.feed_forward {
        FeedForward::Dense(dense) => dense.extra.as_slice(),
        FeedForward::Moe(_) | FeedForward::ChannelMix { .. } | FeedForward::None => &[],
    };
    layer.extra.iter().chain(of_mixer).chain(of_feed_forward).any(|weight| weight.name == name)
}

/// The row of a state space's weight that a header lists as the layer's own.
pub(super) fn ssm_shape(layer: &Layer, name: &str) -> Option<u64> {
    layer.extra.iter().find(|weight| weight.name == name).map(|weight| weight.shape.row())
}

pub(super) fn has_norm(layer: &Layer, name: &str) -> Option<bool> {
    let listed = layer.norms.iter().find(|norm| norm.name == name).map(|norm| norm.bias);
    // Some architectures name norms without saying that they are weights.
    listed.or_else(|| layer.extra.iter().any(|weight| weight.name == name).then_some(false))
}

impl Trunk<'_> {
    pub(super) fn layer(
        &mut self,
        parts: &mut Parts,
        layer: &Layer,
        d_model: u64,
        index: usize,
        input: Node,
        chooses: bool,
    ) -> Result<Node, MathError> {
        let row = self.row;
        let mut normed = input;
        if let Some(bias) = has_norm(layer, "attn_norm") {
            normed = parts.norm(input, row.norm, bias, true)?;
        } else if row.bare_norms {
            normed = parts.bare_norm(input, row.norm)?;
        }
        let together = row.parallel.filter(|_| !row.parallel_where_told || self.operations.parallel_residual != Some(false));
        let mut attended = normed;
        if together.is_some()
            && let Some(bias) = has_norm(layer, "attn_norm_2")
        {
            attended = parts.norm(input, row.norm, bias, true)?;
        }
        let mut mixed = match &layer.mixer {
            Mixer::Attention(attention) => self.attention(parts, layer, attention, d_model, index, attended)?,
            Mixer::Mla(mla) => {
                let windowed = self.sliding.filter(|_| mla.window.tokens().is_some());
                let inputs = windowed.unwrap_or(self.full);
                if row.expands_latents {
                    let factors = self.factors.map(|width| parts.shared_vector(width)).transpose()?;
                    let [v_width, _] = self.caches.v_widths;
                    parts.expanded_attention(mla, &inputs, self.positions, factors, v_width, attended)?
                } else {
                    let told = latent::Told {
                        positions: Some(self.positions),
                        scale: self.attention_scale,
                        norms_rope_key: row.norms_rope_key,
                        sinks: false,
                    };
                    let sparse = self.sparse.as_mut().filter(|_| windowed.is_none());
                    latent::attention(parts, mla, &inputs, sparse, told, d_model, attended)?
                }
            }
            _ => return Ok(input),
        };
        let mut logits = match &layer.feed_forward {
            FeedForward::Moe(moe) if row.routes_input => Some(parts.linear(input, moe.n_experts)?),
            _ => None,
        };
        let mut residual = input;
        let mut sandwiched = false;
        if row.norms_before_rows
            && let Some(bias) = has_norm(layer, "post_attention_norm")
        {
            mixed = parts.norm(mixed, row.norm, bias, row.pins_last_norm)?;
            sandwiched = true;
        }
        if chooses {
            mixed = parts.graph.get_rows(mixed, self.rows)?;
            residual = parts.graph.get_rows(residual, self.rows)?;
            logits = logits.map(|logits| parts.graph.get_rows(logits, self.rows)).transpose()?;
        }
        if row.norms_sums {
            return self.norm_sums(parts, layer, d_model, mixed, residual);
        }
        if let Some(together) = together {
            if let Some(bias) = has_norm(layer, "ffn_norm") {
                normed = parts.norm(residual, row.norm, bias, true)?;
            } else if chooses {
                normed = parts.graph.get_rows(normed, self.rows)?;
            }
            let fed = self.feed_forward(parts, layer, d_model, normed)?;
            let (first, second, last) = match together {
                Together::ResidualFirst => (fed, residual, mixed),
                Together::ResidualLast => (fed, mixed, residual),
                Together::AttentionFirst => (mixed, fed, residual),
            };
            let two = parts.graph.sum(first, second)?;
            return parts.graph.sum(two, last);
        }
        let sandwich = row.norms_after || has_norm(layer, "ffn_norm").is_some();
        let own_ffn_norm = has_norm(layer, "ffn_norm").is_some();
        let after = has_norm(layer, "post_attention_norm")
            .or_else(|| if own_ffn_norm { has_norm(layer, "attn_output_norm") } else { None });
        if sandwich
            && !sandwiched
            && let Some(bias) = after
        {
            mixed = parts.norm(mixed, row.norm, bias, true)?;
        }
        if row.scales_residual || row.scales_sums {
            mixed = parts.scale(mixed)?;
        }
        if row.scales_sums {
            residual = parts.scale(residual)?;
        }
        let joined = if row.residual_leads { parts.graph.sum(residual, mixed)? } else { parts.graph.sum(mixed, residual)? };
        // A layer without `ffn_norm` names the norm before its feed-forward `post_attention_norm`.
        let before =
            has_norm(layer, "ffn_norm").or_else(|| if row.norms_after { None } else { has_norm(layer, "post_attention_norm") });
        let before = before.or_else(|| has_norm(layer, "attn_output_norm"));
        let normed = match before {
            Some(bias) => parts.norm(joined, row.norm, bias, true)?,
            None if row.bare_norms => parts.bare_norm(joined, row.norm)?,
            None => joined,
        };
        let mut fed = match &layer.feed_forward {
            FeedForward::Moe(Moe { beside: Some(dense), .. }) if row.beside == Beside::Normed => {
                self.beside_experts(parts, layer, dense, [joined, normed])?
            }
            FeedForward::Moe(Moe { beside: Some(dense), .. }) if row.beside == Beside::Averaged => {
                let routed = self.feed_forward(parts, layer, d_model, normed)?;
                let side = parts.feed_forward(normed, dense, d_model, row.activation)?;
                let both = parts.graph.sum(side, routed)?;
                parts.scale(both)?
            }
            FeedForward::Moe(Moe { beside: Some(dense), .. }) if row.beside == Beside::PastAttention => {
                let side = parts.feed_forward(normed, dense, d_model, row.activation)?;
                let side = parts.graph.sum(side, joined)?;
                let past = parts.norm(residual, row.norm, false, true)?;
                let routed = self.feed_forward(parts, layer, d_model, past)?;
                return parts.graph.sum(routed, side);
            }
            FeedForward::Moe(_) if layer.told.skips_experts => parts.unary(normed)?,
            FeedForward::Moe(moe) if let Some(logits) = logits => {
                parts.experts_by(normed, logits, moe, routing(row, moe, self.operations), row.activation)?
            }
            _ => self.feed_forward(parts, layer, d_model, normed)?,
        };
        if let Some(bias) = has_norm(layer, "post_ffw_norm").or_else(|| has_norm(layer, "layer_output_norm")) {
            fed = parts.norm(fed, row.norm, bias, row.pins_last_norm)?;
        }
        if row.scales_residual || row.scales_sums {
            fed = parts.scale(fed)?;
        }
        let joined = if row.scales_sums { parts.scale(joined)? } else { joined };
        let (first, second) = if row.residual_first { (joined, fed) } else { (fed, joined) };
        let mut out = parts.graph.sum(first, second)?;
        if let Some(mut skip) = self.skip {
            if chooses {
                skip = parts.graph.get_rows(skip, self.rows)?;
            }
            let factor = parts.weight(&[1])?;
            let skip = parts.graph.product(skip, factor)?;
            return parts.graph.sum(out, skip);
        }
        let n_deep = usize::try_from(self.operations.n_deepstack_layers).unwrap_or(usize::MAX);
        if let Some(embedded) = self.deepstack.filter(|_| index < n_deep) {
            let ([width, tokens, ..], [_, stride, ..]) = (parts.graph.dims(embedded)?, parts.graph.strides(embedded)?);
            let features = parts.graph.view_2d(embedded, width, tokens, stride)?;
            out = parts.graph.sum(out, features)?;
        }
        if let Some(per_layer) = self.per_layer {
            let added = parts.embed_layer(out, per_layer, chooses.then_some(self.rows))?;
            out = parts.graph.sum(out, added)?;
        }
        if per_layer::extra(layer, "layer_output_scale.weight").is_some() {
            let factor = parts.weight(&[1])?;
            out = parts.graph.product(out, factor)?;
        }
        Ok(out)
    }

    /// A dense feed-forward beside experts, each with norms of its own (`models/gemma4.cpp`): of `joined`, which the router
    /// reads too, and of its norm.
    fn beside_experts(&self, parts: &mut Parts, layer: &Layer, dense: &Dense, joined: [Node; 2]) -> Result<Node, MathError> {
        let FeedForward::Moe(moe) = &layer.feed_forward else { return Err(MathError::Overflow { quantity: "experts" }) };
        let [joined, normed] = joined;
        let [d_model, ..] = parts.graph.dims(joined)?;
        let (norm, activation) = (self.row.norm, self.row.activation);
        let side = parts.feed_forward(normed, dense, d_model, activation)?;
        let side = parts.norm(side, norm, false, true)?;
        let input = parts.norm(joined, norm, false, true)?;
        let bare = parts.bare_norm(joined, norm)?;
        let scaled = parts.scale(bare)?;
        let factors = parts.weight(&[d_model])?;
        let routed = parts.graph.product(scaled, factors)?;
        let logits = parts.linear(routed, moe.n_experts)?;
        let experts = parts.experts_by(input, logits, moe, routing(self.row, moe, self.operations), activation)?;
        let experts = parts.norm(experts, norm, false, true)?;
        parts.graph.sum(side, experts)
    }

    /// Norms of the sums of each half with what it was computed from (`models/bert.cpp`).
    fn norm_sums(&self, parts: &mut Parts, layer: &Layer, d_model: u64, mixed: Node, residual: Node) -> Result<Node, MathError> {
        let norm = self.row.norm;
        let mut joined = parts.graph.sum(mixed, residual)?;
        joined = parts.norm(joined, norm, has_norm(layer, "attn_output_norm").unwrap_or(false), true)?;
        if let Some(bias) = has_norm(layer, "attn_norm_2") {
            joined = parts.graph.sum(joined, residual)?;
            joined = parts.norm(joined, norm, bias, true)?;
        }
        let fed = self.feed_forward(parts, layer, d_model, joined)?;
        let sum = parts.graph.sum(fed, joined)?;
        parts.norm(sum, norm, has_norm(layer, "layer_output_norm").unwrap_or(false), true)
    }
}
