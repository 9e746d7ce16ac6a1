//! Models that choose among adapters token by token (`src/models/granite-switch.cpp`): one more head of attention finds the
//! adapter of every token, and every product has its adapter's product of low rank added to it.

use super::attention::Attend;
use super::op::Op;
use super::ops::Node;
use super::parts::Parts;
use super::per_layer::extra;
use super::rows::Row;
use super::scales;
use super::trunk::{Caches, attended};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attention, Dense, FeedForward, Layer, LmHead, Mixer, ModelSpec, QkvLayout};
use crate::units::mul;

fn fits(layer: &Layer) -> bool {
    let attends =
        matches!(&layer.mixer, Mixer::Attention(attention) if attention.layout == QkvLayout::Fused && !attention.bias.o);
    let feeds = matches!(&layer.feed_forward, FeedForward::Dense(dense) if dense.gated && !dense.fused_gate_up);
    attends
        && feeds
        && layer
            .extra
            .iter()
            .all(|weight| scales::is_scale(weight) || weight.name.ends_with(".lora_a") || weight.name.ends_with(".lora_b"))
}

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(parts: &mut Parts, spec: &ModelSpec, row: &Row, caches: &Caches) -> Result<bool, MathError> {
    let Some((router, layers)) = spec.layers.split_last() else { return Ok(false) };
    let Mixer::Attention(router) = &router.mixer else { return Ok(false) };
    if !parts.places.is_single() || !layers.iter().all(fits) {
        return Ok(false);
    }
    let tokens = parts.setting.tokens;
    // Tokens that switch adapters are embedded as others.
    let substituted = parts.graph.input(StorageFormat::I32, [tokens, 1, 1, 1])?;
    let table = parts.host_weight(spec.d_model, spec.embedding.n_vocab)?;
    let embedded = parts.graph.get_rows(table, substituted)?;
    let mut current = parts.scale(embedded)?;
    let positions = if spec.operations.rotates == Some(false) { None } else { Some(parts.positions(1)?) };
    let (full, _) = attended(parts, spec, caches, &|_: &Attention| false)?;
    let [v_width, _] = caches.v_widths;
    let mut lanes = [current; 3];
    for lane in &mut lanes {
        let signal = parts.graph.input(Parts::F32, [tokens, 1, 1, 1])?;
        let lane_of = parts.graph.reshape(signal, [1, 1, tokens, 1])?;
        *lane = parts.graph.result(Op::Pad, Parts::F32, [router.k_head_dim, 1, tokens, 1], &[lane_of])?;
    }
    let [q, k, v] = lanes;
    let attend = Attend {
        q,
        k: Some(k),
        v: Some(v),
        n_kv_heads: router.n_kv_heads,
        k_head: router.k_head_dim,
        v_head: router.v_head_dim,
        v_width,
        sinks: None,
        soft_cap: false,
        bias: None,
    };
    let routed = parts.attend(&full, &attend)?;
    let [_, stride, ..] = parts.graph.strides(routed)?;
    let slots = parts.graph.view_2d(routed, 1, tokens, stride)?;
    let slots = parts.graph.cont(slots, [1, tokens, 1, 1])?;
    let slots = parts.graph.reshape(slots, [tokens, 1, 1, 1])?;
    let slots = parts.graph.apply(Op::Clamp, slots, &[])?;
    let slots = parts.unary(slots)?;
    let mut adapters = parts.graph.cast(slots, StorageFormat::I32)?;
    let rows = parts.output_rows()?;
    let last = layers.len().saturating_sub(1);
    let steps = parts.layers(layers.iter(), |_| ());
    for step in &steps {
        let Some(layer) = layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        let (Mixer::Attention(attention), FeedForward::Dense(dense)) = (&layer.mixer, &layer.feed_forward) else { continue };
        let normed = parts.norm(current, row.norm, false, true)?;
        let [q, k, v] = switched_projections(parts, layer, attention, normed, adapters)?;
        let (q, k) = match positions {
            Some(positions) => {
                let factors = parts.rope_factors().map(|width| parts.shared_vector(width)).transpose()?;
                (parts.graph.rope(q, positions, factors)?, parts.graph.rope(k, positions, factors)?)
            }
            None => (q, k),
        };
        let attend = Attend {
            q,
            k: Some(k),
            v: Some(v),
            n_kv_heads: attention.n_kv_heads,
            k_head: attention.k_head_dim,
            v_head: attention.v_head_dim,
            v_width,
            sinks: None,
            soft_cap: false,
            bias: None,
        };
        let mixed = parts.attend(&full, &attend)?;
        let mut mixed = switched(parts, layer, "attn_output", spec.d_model, mixed, adapters)?;
        let mut residual = current;
        if step.layer == last {
            mixed = parts.graph.get_rows(mixed, rows)?;
            residual = parts.graph.get_rows(residual, rows)?;
            let outputs = parts.setting.outputs;
            let numbers = parts.graph.reshape(adapters, [1, tokens, 1, 1])?;
            let numbers = parts.graph.get_rows(numbers, rows)?;
            adapters = parts.graph.reshape(numbers, [outputs, 1, 1, 1])?;
        }
        current = feed(parts, layer, dense, row, [mixed, residual, adapters])?;
    }
    parts.begin_output();
    let embedded = parts.norm(current, row.norm, false, false)?;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    let logits = parts.linear_bias(embedded, outputs, spec.head.lm_head == LmHead::Own { bias: true })?;
    let logits = parts.scale(logits)?;
    parts.finish(&spec.head, embedded, Some(logits))?;
    Ok(true)
}

/// The second half of a layer, of `[mixed, residual, adapters]`.
fn feed(
    parts: &mut Parts,
    layer: &Layer,
    dense: &Dense,
    row: &Row,
    [mixed, residual, adapters]: [Node; 3],
) -> Result<Node, MathError> {
    let [d_model, ..] = parts.graph.dims(residual)?;
    let mixed = parts.scale(mixed)?;
    let joined = parts.graph.sum(mixed, residual)?;
    let normed = parts.norm(joined, row.norm, false, true)?;
    let gate = switched(parts, layer, "ffn_gate", dense.d_ff, normed, adapters)?;
    let up = switched(parts, layer, "ffn_up", dense.d_ff, normed, adapters)?;
    let open = parts.unary(gate)?;
    let hidden = parts.graph.product(open, up)?;
    let fed = switched(parts, layer, "ffn_down", d_model, hidden, adapters)?;
    let fed = parts.scale(fed)?;
    parts.graph.sum(fed, joined)
}

/// A product with a matrix, and with the adapter of every token.
fn switched(parts: &mut Parts, layer: &Layer, name: &str, width: u64, x: Node, adapters: Node) -> Result<Node, MathError> {
    let product = parts.linear(x, width)?;
    let added = adapted(parts, layer, name, width, x, adapters)?;
    parts.graph.sum(product, added)
}

/// What adapters add to a product: two products of low rank (`build_switched_lora_delta`).
fn adapted(parts: &mut Parts, layer: &Layer, name: &str, width: u64, x: Node, adapters: Node) -> Result<Node, MathError> {
    let shape = extra(layer, &alloc::format!("{name}.lora_a")).map_or([0; 4], |weight| weight.shape.0);
    let [_, rank, count, _] = shape;
    let [n_in, tokens, ..] = parts.graph.dims(x)?;
    let x = parts.graph.reshape(x, [n_in, 1, tokens, 1])?;
    let ids = parts.graph.reshape(adapters, [1, tokens, 1, 1])?;
    let down = parts.weight(&[n_in, rank, count])?;
    let low = parts.graph.mul_mat_id(down, x, ids)?;
    let up = parts.weight(&[rank, width, count])?;
    let added = parts.graph.mul_mat_id(up, low, ids)?;
    parts.graph.reshape(added, [width, tokens, 1, 1])
}

/// Queries, keys and values, each `[head, heads, tokens]`: copied out of one product, and what adapters add to each.
fn switched_projections(
    parts: &mut Parts,
    layer: &Layer,
    attention: &Attention,
    x: Node,
    adapters: Node,
) -> Result<[Node; 3], MathError> {
    let tokens = parts.setting.tokens;
    let shapes = [
        (attention.k_head_dim, attention.n_heads, "attn_q"),
        (attention.k_head_dim, attention.n_kv_heads, "attn_k"),
        (attention.v_head_dim, attention.n_kv_heads, "attn_v"),
    ];
    let mut all = 0_u64;
    for (head, heads, _) in shapes {
        all = all.saturating_add(mul(head, heads)?);
    }
    let fused = parts.linear(x, all)?;
    let mut out = [fused; 3];
    for (slot, (head, heads, name)) in out.iter_mut().zip(shapes) {
        let width = mul(head, heads)?;
        let part = parts.graph.view_2d(fused, width, tokens, mul(4, all)?)?;
        let part = parts.graph.cont(part, [width, tokens, 1, 1])?;
        let added = adapted(parts, layer, name, width, x, adapters)?;
        let sum = parts.graph.sum(part, added)?;
        *slot = parts.graph.reshape(sum, [head, heads, tokens, 1])?;
    }
    Ok(out)
}
