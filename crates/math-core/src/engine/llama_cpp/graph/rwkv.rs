//! RWKV 6 and 7 (`src/models/rwkv6-base.cpp`, `rwkv7-base.cpp`): time mixing over shifted tokens with a state per head, and a
//! channel mix or a plain feed-forward.

use super::decoder::{embed, has_norm};
use super::experts::Activation;
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::recurrent::StateInputs;
use super::rows::Row;
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, LmHead, Mixer, ModelSpec, Rwkv, RwkvVersion};
use crate::units::{add, mul};

/// A tensor of a layer, wherever the source of the model put it.
fn find(layer: &Layer, name: &str) -> Option<[u64; 4]> {
    let mixer = match &layer.mixer {
        Mixer::Rwkv(rwkv) => rwkv.weights.as_slice(),
        _ => &[],
    };
    let fed = match &layer.feed_forward {
        FeedForward::ChannelMix { weights } => weights.as_slice(),
        _ => &[],
    };
    let named = |stem: &str| stem.strip_suffix(".weight").unwrap_or(stem) == name;
    layer.extra.iter().chain(mixer).chain(fed).find(|weight| named(&weight.name)).map(|weight| weight.shape.0)
}

fn n_out(layer: &Layer, name: &str) -> u64 {
    let [_, n_out, ..] = find(layer, name).unwrap_or_default();
    n_out
}

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(parts: &mut Parts, spec: &ModelSpec, row: &Row) -> Result<bool, MathError> {
    let fits = |layer: &Layer| {
        matches!(&layer.mixer, Mixer::Rwkv(rwkv) if matches!(rwkv.version, RwkvVersion::V6 | RwkvVersion::V7))
            && find(layer, "time_mix_w1").is_some()
            && matches!(&layer.feed_forward, FeedForward::ChannelMix { .. } | FeedForward::Dense(_))
    };
    if !spec.layers.iter().all(fits) || spec.head.lm_head == LmHead::None {
        return Ok(false);
    }
    // Not read: positions have no part in it.
    let positions = parts.positions(1)?;
    let mut current = embed(parts, spec, row, positions)?;
    let states = parts.state_inputs()?;
    let rows = parts.output_rows()?;
    let last = spec.layers.len().saturating_sub(1);
    let mut mix = Mix { row, states, rows, first_values: None };
    let steps = parts.layers(spec.layers.iter(), |index| index == 0);
    for step in &steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        current = mix.layer(parts, layer, current, step.layer == last)?;
        if layer.told.halves_state {
            current = parts.scale(current)?;
        }
    }
    parts.begin_output();
    let bias = spec.head.norm.as_ref().is_some_and(|norm| norm.bias);
    current = parts.norm(current, row.norm, bias, false)?;
    let embedded = current;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = parts.linear(current, outputs)?;
    parts.finish(&spec.head, embedded, Some(current))?;
    Ok(true)
}

struct Mix<'a> {
    row: &'a Row,
    states: StateInputs,
    rows: Node,
    /// Values of the first layer, which later ones blend in (RWKV 7).
    first_values: Option<Node>,
}

/// What one layer mixes.
#[derive(Clone, Copy)]
struct Now<'a> {
    layer: &'a Layer,
    rwkv: &'a Rwkv,
    /// The tokens, `[d_model, tokens, sequences]`.
    x: Node,
    /// Each token's predecessor.
    before: Node,
}

impl Mix<'_> {
    fn layer(&mut self, parts: &mut Parts, layer: &Layer, input: Node, last: bool) -> Result<Node, MathError> {
        let Mixer::Rwkv(rwkv) = &layer.mixer else { return Ok(input) };
        let (sequences, tokens) = (parts.setting.sequences, parts.setting.sequence_tokens());
        let [d_model, ..] = parts.graph.dims(input)?;
        let flat = [d_model, parts.setting.tokens, 1, 1];
        let norm = self.row.norm;
        let bias = |name: &str| has_norm(layer, name).unwrap_or(false);
        let input = parts.graph.reshape(input, [d_model, tokens, sequences, 1])?;

        let shifts = rwkv.token_shifts;
        let state = parts.state(mul(shifts, d_model)?)?;
        let loaded = parts.load(&self.states, state)?;
        let shifted = parts.graph.reshape(loaded, [d_model, shifts, sequences, 1])?;
        let [_, s1, s2, _] = parts.graph.strides(shifted)?;
        let one = [d_model, 1, sequences];
        let two_shifts = shifts == 2;
        let mixed_shift = if two_shifts { parts.graph.view_3d(shifted, one, s1, s2)? } else { shifted };
        let fed_shift = if two_shifts { Some(parts.graph.view_3d(shifted, one, s1, s2)?) } else { None };

        let normed = parts.norm(input, norm, bias("attn_norm"), true)?;
        let before = Self::shift(parts, mixed_shift, normed)?;
        let now = Now { layer, rwkv, x: normed, before };
        let mixed = match rwkv.version {
            RwkvVersion::V7 => self.mix_7(parts, now)?,
            RwkvVersion::V4 | RwkvVersion::V5 | RwkvVersion::V6 => self.mix_6(parts, now)?,
        };
        let width = mul(state.width, sequences)?;
        let Some(fed_shift) = fed_shift else {
            let kept = Self::last_tokens(parts, normed)?;
            Self::keep(parts, kept, state.cache, width)?;
            let joined = parts.graph.sum(mixed, input)?;
            let mut joined = parts.graph.reshape(joined, flat)?;
            if last {
                joined = parts.graph.get_rows(joined, self.rows)?;
            }
            let FeedForward::Dense(dense) = &layer.feed_forward else { return Ok(joined) };
            let normed = parts.norm(joined, norm, bias("ffn_norm"), true)?;
            let fed = parts.feed_forward(normed, dense, d_model, Activation::Single)?;
            return parts.graph.sum(fed, joined);
        };
        let joined = parts.graph.sum(mixed, input)?;
        let again = parts.norm(joined, norm, bias("attn_norm_2"), true)?;
        let before = Self::shift(parts, fed_shift, again)?;
        let kept = [Self::last_tokens(parts, normed)?, Self::last_tokens(parts, again)?];
        let [first, second] = kept;
        let kept = parts.graph.concat(first, second, 1)?;
        Self::keep(parts, kept, state.cache, width)?;
        let mut read = [joined, again, before];
        for node in &mut read {
            *node = parts.graph.reshape(*node, flat)?;
        }
        if last {
            for node in &mut read {
                *node = parts.graph.get_rows(*node, self.rows)?;
            }
        }
        let [joined, again, before] = read;
        let fed = Self::channel_mix(parts, layer, again, before)?;
        parts.graph.sum(fed, joined)
    }

    /// Tokens one further on: the last one of before, and all but the last of now.
    fn shift(parts: &mut Parts, last_before: Node, x: Node) -> Result<Node, MathError> {
        let ([width, tokens, sequences, _], [_, s1, s2, _]) = (parts.graph.dims(x)?, parts.graph.strides(x)?);
        let all_but_last = parts.graph.view_3d(x, [width, tokens.saturating_sub(1), sequences], s1, s2)?;
        parts.graph.concat(last_before, all_but_last, 1)
    }
    fn last_tokens(parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let ([width, _, sequences, _], [_, s1, s2, _]) = (parts.graph.dims(x)?, parts.graph.strides(x)?);
        parts.graph.view_3d(x, [width, 1, sequences], s1, s2)
    }
    fn keep(parts: &mut Parts, x: Node, cache: Node, width: u64) -> Result<(), MathError> {
        let from = parts.graph.view_1d(x, width)?;
        let to = parts.graph.view_1d(cache, width)?;
        let stored = parts.graph.copy(from, to)?;
        parts.graph.expand(stored)
    }
    /// `x` moved towards its predecessor, by a learned share.
    fn blend(parts: &mut Parts, difference: Node, x: Node) -> Result<Node, MathError> {
        let [width, ..] = parts.graph.dims(x)?;
        let share = parts.weight(&[width])?;
        let moved = parts.graph.product(difference, share)?;
        parts.graph.sum(moved, x)
    }

    fn channel_mix(parts: &mut Parts, layer: &Layer, x: Node, before: Node) -> Result<Node, MathError> {
        let [width, ..] = parts.graph.dims(x)?;
        let difference = parts.graph.apply(Op::Sub, before, &[x])?;
        let keys_of = Self::blend(parts, difference, x)?;
        let receptance = match find(layer, "channel_mix_receptance") {
            Some(_) => {
                let read = Self::blend(parts, difference, x)?;
                let read = parts.linear(read, width)?;
                Some(parts.unary(read)?)
            }
            None => None,
        };
        let keys = parts.linear(keys_of, n_out(layer, "channel_mix_key"))?;
        let keys = parts.unary(keys)?;
        let keys = parts.graph.apply(Op::Square, keys, &[])?;
        let values = parts.linear(keys, width)?;
        match receptance {
            Some(receptance) => parts.graph.product(receptance, values),
            None => Ok(values),
        }
    }

    /// Several blends at once lie one behind the other: the next of them.
    fn part(parts: &mut Parts, blends: Node) -> Result<Node, MathError> {
        let ([width, ..], [_, stride, ..]) = (parts.graph.dims(blends)?, parts.graph.strides(blends)?);
        parts.graph.view_2d(blends, width, parts.setting.tokens, stride)
    }

    /// A projection through a narrow layer, with a function in between.
    fn low_rank(parts: &mut Parts, x: Node, rank: u64, bends: bool) -> Result<Node, MathError> {
        let [width, ..] = parts.graph.dims(x)?;
        let mut low = parts.linear(x, rank)?;
        if bends {
            low = parts.unary(low)?;
        }
        parts.linear(low, width)
    }

    /// Output and state of a recurrence; the state is kept.
    fn recur(&self, parts: &mut Parts, op: Op, rwkv: &Rwkv, d_model: u64, sources: &[Node]) -> Result<Node, MathError> {
        let (tokens, sequences) = (parts.setting.tokens, parts.setting.sequences);
        let state = parts.state(mul(d_model, rwkv.head_dim)?)?;
        let loaded = parts.load(&self.states, state)?;
        let mut all = alloc::vec::Vec::from(sources);
        all.push(loaded);
        let rows = add(tokens, mul(rwkv.head_dim, sequences)?)?;
        let both = parts.graph.result(op, Parts::F32, [d_model, rows, 1, 1], &all)?;
        let out = parts.graph.view_1d(both, mul(d_model, tokens)?)?;
        Self::keep(parts, both, state.cache, mul(state.width, sequences)?)?;
        Ok(out)
    }

    /// The norm of each head's output, or none.
    fn norm_heads(parts: &mut Parts, layer: &Layer, out: Node, head: u64, d_model: u64) -> Result<Node, MathError> {
        let flat = [d_model, parts.setting.tokens, 1, 1];
        if has_norm(layer, "time_mix_ln").is_none() && find(layer, "time_mix_ln").is_none() {
            return parts.graph.reshape(out, flat);
        }
        let heads = parts.graph.reshape(out, [head, d_model / head.max(1), parts.setting.tokens, 1])?;
        let normed = parts.bare_norm(heads, NormKind::Layer)?;
        let normed = parts.graph.reshape(normed, flat)?;
        let weights = parts.weight(&[d_model])?;
        let scaled = parts.graph.product(normed, weights)?;
        parts.bias(scaled)
    }

    fn mix_7(&mut self, parts: &mut Parts, now: Now<'_>) -> Result<Node, MathError> {
        let Now { layer, rwkv, x, before } = now;
        let tokens = parts.setting.tokens;
        let [d_model, sequence_tokens, sequences, _] = parts.graph.dims(x)?;
        let head = rwkv.head_dim;
        let by_head = [head, d_model / head.max(1), tokens, 1];
        let gates = find(layer, "time_mix_g1").is_some();
        let n_blends = if gates { 6 } else { 5 };

        let difference = parts.graph.apply(Op::Sub, before, &[x])?;
        let dims = [d_model, sequence_tokens, sequences, n_blends];
        let repeated = parts.graph.result(Op::Repeat, Parts::F32, dims, &[difference])?;
        let shares = parts.weight(&[d_model, 1, 1, n_blends])?;
        let moved = parts.graph.product(repeated, shares)?;
        let blends = parts.graph.sum(moved, x)?;
        let xr = Self::part(parts, blends)?;
        let xw = Self::part(parts, blends)?;
        let xk = Self::part(parts, blends)?;
        let xv = Self::part(parts, blends)?;
        let xa = Self::part(parts, blends)?;

        let r = parts.linear(xr, d_model)?;
        let decay = Self::low_rank(parts, xw, n_out(layer, "time_mix_w1"), true)?;
        let mut decay = parts.bias(decay)?;
        for op in [Op::Unary, Op::Scale, Op::Unary] {
            decay = parts.graph.apply(op, decay, &[])?;
        }
        let mut k = parts.linear(xk, d_model)?;
        let mut v = parts.linear(xv, d_model)?;
        match self.first_values {
            None => self.first_values = Some(v),
            Some(first) => {
                let share = Self::low_rank(parts, xv, n_out(layer, "time_mix_v1"), false)?;
                let share = parts.bias(share)?;
                let share = parts.unary(share)?;
                let apart = parts.graph.apply(Op::Sub, first, &[v])?;
                let moved = parts.graph.product(apart, share)?;
                v = parts.graph.sum(v, moved)?;
            }
        }
        let gate = if gates {
            let xg = Self::part(parts, blends)?;
            Some(Self::low_rank(parts, xg, n_out(layer, "time_mix_g1"), true)?)
        } else {
            None
        };
        let rate = Self::low_rank(parts, xa, n_out(layer, "time_mix_a1"), false)?;
        let rate = parts.bias(rate)?;
        let rate = parts.unary(rate)?;
        let weights = parts.weight(&[d_model])?;
        let removed = parts.graph.product(k, weights)?;
        let removed = parts.graph.reshape(removed, by_head)?;
        let removed = parts.graph.apply(Op::L2Norm, removed, &[])?;
        let weights = parts.weight(&[d_model])?;
        let added = parts.graph.product(k, weights)?;
        let kept = parts.graph.product(rate, added)?;
        let change = parts.graph.apply(Op::Sub, kept, &[added])?;
        k = parts.graph.sum(k, change)?;

        let r = parts.graph.reshape(r, by_head)?;
        let decay = parts.graph.reshape(decay, by_head)?;
        let k = parts.graph.reshape(k, by_head)?;
        let v = parts.graph.reshape(v, by_head)?;
        let rate = parts.graph.reshape(rate, by_head)?;
        let negative = parts.unary(removed)?;
        let replaced = parts.graph.product(removed, rate)?;
        let out = self.recur(parts, Op::Wkv7, rwkv, d_model, &[r, decay, k, v, negative, replaced])?;
        let out = Self::norm_heads(parts, layer, out, head, d_model)?;
        let bonus = parts.weight(&[d_model])?;
        let [head, heads, ..] = by_head;
        let bonus = parts.graph.reshape(bonus, [head, heads, 1, 1])?;
        let both = parts.graph.product(k, r)?;
        let both = parts.graph.product(both, bonus)?;
        let sums = parts.graph.sum_rows(both)?;
        let own = parts.graph.product(v, sums)?;
        let own = parts.graph.reshape(own, [d_model, tokens, 1, 1])?;
        let mut out = parts.graph.sum(out, own)?;
        if let Some(gate) = gate {
            out = parts.graph.product(out, gate)?;
        }
        let out = parts.linear(out, d_model)?;
        parts.graph.reshape(out, [d_model, sequence_tokens, sequences, 1])
    }

    fn mix_6(&self, parts: &mut Parts, now: Now<'_>) -> Result<Node, MathError> {
        let Now { layer, rwkv, x, before } = now;
        let tokens = parts.setting.tokens;
        let [d_model, sequence_tokens, sequences, _] = parts.graph.dims(x)?;
        let head = rwkv.head_dim;
        let by_head = [head, d_model / head.max(1), tokens, 1];
        // Converted attention models (QRWKV) have no bonus for the present token.
        let converted = find(layer, "time_mix_first").is_none();
        let rank = n_out(layer, "time_mix_w1") / 5;

        let flat = [d_model, tokens, 1, 1];
        let difference = parts.graph.apply(Op::Sub, before, &[x])?;
        let difference = parts.graph.reshape(difference, flat)?;
        let x = parts.graph.reshape(x, flat)?;
        let blend = Self::blend(parts, difference, x)?;
        let low = parts.linear(blend, mul(5, rank)?)?;
        let low = parts.unary(low)?;
        let low = parts.graph.reshape(low, [rank, 1, 5, tokens])?;
        let turned = parts.graph.permute(low, [0, 1, 3, 2])?;
        let turned = parts.graph.cont(turned, [rank, 1, tokens, 5])?;
        let matrices = parts.weight(&[rank, d_model, 5])?;
        let matrices = parts.graph.reshape(matrices, [rank, d_model, 1, 5])?;
        let shares = parts.graph.mul_mat(matrices, turned)?;
        let [xw, xk, xv, xr, xg] = if find(layer, "time_mix_lerp_fused").is_some() {
            let difference = parts.graph.reshape(difference, [d_model, 1, tokens, 1])?;
            let x = parts.graph.reshape(x, [d_model, 1, tokens, 1])?;
            let fixed = parts.weight(&[d_model, 1, 1, 5])?;
            let shares = parts.graph.sum(shares, fixed)?;
            let moved = parts.graph.product(shares, difference)?;
            let blends = parts.graph.sum(moved, x)?;
            let mut out = [blends; 5];
            for slot in &mut out {
                *slot = Self::part(parts, blends)?;
            }
            out
        } else {
            let mut out = [shares; 5];
            for slot in &mut out {
                let share = Self::part(parts, shares)?;
                let share = parts.bias(share)?;
                let moved = parts.graph.product(share, difference)?;
                *slot = parts.graph.sum(moved, x)?;
            }
            out
        };
        let bias = |name: &str| find(layer, name).is_some();
        let r = parts.linear_bias(xr, d_model, bias("time_mix_receptance.bias"))?;
        let mut k = parts.linear_bias(xk, n_out(layer, "time_mix_key"), bias("time_mix_key.bias"))?;
        let mut v = parts.linear_bias(xv, n_out(layer, "time_mix_value"), bias("time_mix_value.bias"))?;
        let gate = parts.linear(xg, d_model)?;
        let gate = parts.unary(gate)?;
        for side in [&mut k, &mut v] {
            let [width, ..] = parts.graph.dims(*side)?;
            if width != d_model {
                let kv_heads = width / head.max(1);
                let apart = parts.graph.reshape(*side, [head, 1, kv_heads, tokens])?;
                let dims = [head, d_model / width.max(1), kv_heads, tokens];
                *side = parts.graph.result(Op::Repeat, Parts::F32, dims, &[apart])?;
            }
            *side = parts.graph.reshape(*side, by_head)?;
        }
        let r = parts.graph.reshape(r, by_head)?;
        let decay = Self::low_rank(parts, xw, n_out(layer, "time_mix_decay_w1"), true)?;
        let mut decay = parts.bias(decay)?;
        for _ in 0..3 {
            decay = parts.unary(decay)?;
        }
        let decay = parts.graph.reshape(decay, by_head)?;
        let out = if converted {
            let forgotten = parts.graph.product(k, decay)?;
            let k = parts.graph.apply(Op::Sub, k, &[forgotten])?;
            let out = self.recur(parts, Op::GatedLinearAttention, rwkv, d_model, &[k, v, r, decay])?;
            parts.graph.reshape(out, flat)?
        } else {
            let bonus = parts.weight(&[head, d_model / head.max(1)])?;
            let out = self.recur(parts, Op::Wkv6, rwkv, d_model, &[k, v, r, bonus, decay])?;
            Self::norm_heads(parts, layer, out, head, d_model)?
        };
        let out = parts.graph.product(out, gate)?;
        let out = parts.linear(out, d_model)?;
        parts.graph.reshape(out, [d_model, sequence_tokens, sequences, 1])
    }
}
