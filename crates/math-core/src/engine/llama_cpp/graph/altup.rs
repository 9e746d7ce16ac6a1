//! Alternating updates with learned augmented residuals (`src/models/gemma3n.cpp`): several versions of the hidden state, of
//! which each layer computes one and corrects the others.

use super::decoder::{embed, has_norm};
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::per_layer::{self, PerLayer, extra};
use super::rows::Row;
use super::trunk::{Caches, HasWindow, Trunk, attended};
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, Mixer, ModelSpec};
use crate::units::mul;

/// First layers whose gates keep only outliers (`models.h:llama_model_gemma3n`, `n_layer_sparsity`).
const SPARSE_LAYERS: usize = 10;

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(
    parts: &mut Parts,
    spec: &ModelSpec,
    row: &Row,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<bool, MathError> {
    let fits = |layer: &Layer| {
        matches!(&layer.mixer, Mixer::Attention(_))
            && matches!(&layer.feed_forward, FeedForward::Dense(dense) if dense.gated && !dense.fused_gate_up)
            && ["altup_predict_coef.weight", "laurel_l.weight", "inp_gate.weight"].iter().all(|name| extra(layer, name).is_some())
    };
    let versions =
        spec.layers.first().and_then(|layer| extra(layer, "altup_predict_coef.weight")).map(|weight| weight.shape.row());
    let (true, Some(width), Some(versions)) = (spec.layers.iter().all(fits), per_layer::width(spec), versions) else {
        return Ok(false);
    };
    let tokens = parts.setting.tokens;
    let d_model = spec.d_model;
    let n_layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    let positions = parts.positions(row.positions_per_token)?;
    let embedded = embed(parts, spec, row, positions)?;
    let (full, sliding) = attended(parts, spec, caches, window)?;
    let found = parts.look_up_layers(width, n_layers, spec.embedding.n_vocab)?;
    let found = parts.graph.reshape(found, [width, n_layers, tokens, 1])?;
    let found = parts.scale(found)?;
    parts.graph.expand(found)?;
    let per_layer = parts.project_layers(embedded, found)?;
    let mut altup = AltUp { versions, d_model, per_layer };
    let mut current = altup.spread(parts, embedded)?;

    let rows = parts.output_rows()?;
    let trunk = Trunk::new(spec, row, caches, window, [positions, rows], (full, sliding));
    let steps = parts.layers(spec.layers.iter(), |index| index < SPARSE_LAYERS);
    for step in &steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        current = altup.layer(parts, &trunk, layer, step.layer, current)?;
    }
    parts.begin_output();
    current = altup.merge(parts, current)?;
    current = parts.graph.get_rows(current, rows)?;
    current = parts.norm(current, row.norm, false, false)?;
    let embedded = current;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = parts.linear(current, outputs)?;
    current = parts.soft_cap(current)?;
    parts.finish(&spec.head, embedded, Some(current))?;
    Ok(true)
}

struct AltUp {
    /// Versions of the hidden state.
    versions: u64,
    d_model: u64,
    per_layer: PerLayer,
}

impl AltUp {
    fn magnitude(parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let squares = parts.graph.apply(Op::Square, x, &[])?;
        let sums = parts.graph.sum_rows(squares)?;
        parts.graph.apply(Op::SquareRoot, sums, &[])
    }
    /// Brings rows to a given magnitude.
    fn rescale(parts: &mut Parts, x: Node, target: Node) -> Result<Node, MathError> {
        let own = Self::magnitude(parts, x)?;
        let scaled = parts.graph.product(x, target)?;
        parts.graph.apply(Op::Div, scaled, &[own])
    }
    fn others(&self) -> u64 {
        self.versions.saturating_sub(1)
    }
    /// All versions but the first, `[d_model, tokens, versions - 1]`.
    fn rest(&self, parts: &mut Parts, all: Node) -> Result<Node, MathError> {
        let ([width, tokens, ..], [_, s1, s2, _]) = (parts.graph.dims(all)?, parts.graph.strides(all)?);
        parts.graph.view_3d(all, [width, tokens, self.others()], s1, s2)
    }
    /// All versions from one.
    fn spread(&self, parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let [width, tokens, ..] = parts.graph.dims(x)?;
        let target = Self::magnitude(parts, x)?;
        let repeated = parts.graph.result(Op::Repeat, Parts::F32, [width, tokens, self.others(), 1], &[x])?;
        let matrices = parts.weight(&[width, width, self.others()])?;
        let added = parts.graph.mul_mat(matrices, repeated)?;
        let added = Self::rescale(parts, added, target)?;
        parts.graph.concat(x, added, 2)
    }
    /// One version from all.
    fn merge(&self, parts: &mut Parts, all: Node) -> Result<Node, MathError> {
        let active = parts.slice(all)?;
        let target = Self::magnitude(parts, active)?;
        let rest = self.rest(parts, all)?;
        let matrices = parts.weight(&[self.d_model, self.d_model, self.others()])?;
        let projected = parts.graph.mul_mat(matrices, rest)?;
        let projected = Self::rescale(parts, projected, target)?;
        let mut sum = parts.slice(all)?;
        for _ in 0..self.others() {
            let next = parts.slice(projected)?;
            sum = parts.graph.sum(sum, next)?;
        }
        parts.scale(sum)
    }
    /// How much each version counts, `[versions, tokens]` (`altup_compute_router_modalities`).
    fn modalities(&self, parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let normed = parts.norm(x, NormKind::Rms, false, true)?;
        let scaled = parts.scale(normed)?;
        let routed = parts.linear(scaled, self.versions)?;
        parts.unary(routed)
    }
    fn predict(&self, parts: &mut Parts, all: Node) -> Result<Node, MathError> {
        let [width, tokens, versions, _] = parts.graph.dims(all)?;
        let active = parts.slice(all)?;
        let modalities = self.modalities(parts, active)?;
        let coefficients = parts.linear(modalities, mul(versions, versions)?)?;
        let coefficients = parts.graph.reshape(coefficients, [versions, versions, tokens, 1])?;
        let turned = parts.graph.permute(all, [1, 2, 0, 3])?;
        let turned = parts.graph.cont(turned, [versions, width, tokens, 1])?;
        let predictions = parts.graph.mul_mat(turned, coefficients)?;
        let back = parts.graph.permute(predictions, [0, 2, 1, 3])?;
        let dims = parts.graph.dims(back)?;
        let predictions = parts.graph.cont(back, dims)?;
        parts.graph.sum(predictions, all)
    }
    fn correct(&self, parts: &mut Parts, predictions: Node, computed: Node) -> Result<Node, MathError> {
        let [width, tokens, versions, _] = parts.graph.dims(predictions)?;
        let modalities = parts.again(|parts| self.modalities(parts, computed))?;
        let active = parts.slice(predictions)?;
        let innovation = parts.graph.apply(Op::Sub, computed, &[active])?;
        let coefficients = parts.linear(modalities, versions)?;
        let coefficients = parts.scale(coefficients)?;
        let turned = parts.graph.transpose(coefficients)?;
        let turned = parts.graph.cont(turned, [1, tokens, versions, 1])?;
        let repeated = parts.graph.result(Op::Repeat, Parts::F32, [width, tokens, versions, 1], &[innovation])?;
        let corrected = parts.graph.product(repeated, turned)?;
        parts.graph.sum(corrected, predictions)
    }
    /// A low-rank residual beside attention.
    fn laurel(parts: &mut Parts, layer: &Layer, x: Node) -> Result<Node, MathError> {
        let [width, ..] = parts.graph.dims(x)?;
        let [_, rank, ..] = extra(layer, "laurel_l.weight").map_or([0; 4], |weight| weight.shape.0);
        let low = parts.linear(x, rank)?;
        let high = parts.linear(low, width)?;
        let normed = parts.norm(high, NormKind::Rms, false, true)?;
        parts.graph.sum(normed, x)
    }
    /// Keeps what stands out of a row by a number of standard deviations.
    fn outliers(parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let [_, b, c, d] = parts.graph.dims(x)?;
        let mean = parts.graph.result(Op::Mean, Parts::F32, [1, b, c, d], &[x])?;
        let centred = parts.graph.apply(Op::Sub, x, &[mean])?;
        let squares = parts.graph.apply(Op::Square, centred, &[])?;
        let sums = parts.graph.sum_rows(squares)?;
        let variance = parts.scale(sums)?;
        let deviation = parts.graph.apply(Op::SquareRoot, variance, &[])?;
        let scaled = parts.scale(deviation)?;
        let cutoff = parts.graph.sum(mean, scaled)?;
        let above = parts.graph.apply(Op::Sub, x, &[cutoff])?;
        parts.unary(above)
    }

    fn layer(&mut self, parts: &mut Parts, trunk: &Trunk<'_>, layer: &Layer, index: usize, all: Node) -> Result<Node, MathError> {
        let (Mixer::Attention(attention), FeedForward::Dense(dense)) = (&layer.mixer, &layer.feed_forward) else {
            return Ok(all);
        };
        let norm = trunk.row.norm;
        let bias = |name: &str| has_norm(layer, name).unwrap_or(false);
        let predictions = self.predict(parts, all)?;
        let active = parts.slice(predictions)?;
        let normed = parts.norm(active, norm, bias("attn_norm"), true)?;
        let laurel = Self::laurel(parts, layer, normed)?;
        let mixed = trunk.attention(parts, layer, attention, self.d_model, index, normed)?;
        let mixed = parts.norm(mixed, norm, bias("post_attention_norm"), true)?;
        let gated = parts.graph.sum(mixed, active)?;
        let both = parts.graph.sum(gated, laurel)?;
        let joined = parts.scale(both)?;

        let normed = parts.norm(joined, norm, bias("ffn_norm"), true)?;
        let up = parts.linear(normed, dense.d_ff)?;
        let mut gate = parts.linear(normed, dense.d_ff)?;
        if index < SPARSE_LAYERS {
            gate = Self::outliers(parts, gate)?;
        }
        let gate = parts.unary(gate)?;
        let hidden = parts.graph.product(up, gate)?;
        let fed = parts.linear(hidden, self.d_model)?;
        let fed = parts.norm(fed, norm, bias("post_ffw_norm"), false)?;
        let computed = parts.graph.sum(fed, joined)?;

        let corrected = self.correct(parts, predictions, computed)?;
        let first = parts.slice(corrected)?;
        let scales = parts.weight(&[self.d_model])?;
        let first = parts.graph.product(first, scales)?;
        let first = parts.embed_layer(first, self.per_layer, None)?;
        let unchanged = parts.slice(corrected)?;
        let rest = self.rest(parts, corrected)?;
        let rest = parts.graph.sum(rest, first)?;
        parts.graph.concat(unchanged, rest, 2)
    }
}
