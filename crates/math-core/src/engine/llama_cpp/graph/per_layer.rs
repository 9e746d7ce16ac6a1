//! Embeddings that every layer has of its own (Gemma 3n and 4): looked up for all layers at once, joined with a projection
//! of the embedded tokens, and added layer by layer.

use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{FeedForward, Layer, ModelSpec, Weight};
use crate::units::mul;

/// A tensor of a layer that no mechanism describes.
pub(super) fn extra<'a>(layer: &'a Layer, name: &str) -> Option<&'a Weight> {
    let of_experts: &[Weight] = match &layer.feed_forward {
        FeedForward::Moe(moe) => &moe.extra,
        FeedForward::Dense(_) | FeedForward::ChannelMix { .. } | FeedForward::None => &[],
    };
    layer.extra.iter().chain(of_experts).find(|weight| weight.name == name)
}

/// Elements of one layer's embedding; `None` for models without them.
pub(super) fn width(spec: &ModelSpec) -> Option<u64> {
    let gate = extra(spec.layers.first()?, "inp_gate.weight")?;
    let [_, width, ..] = gate.shape.0;
    Some(width)
}

/// The embeddings of all layers, `[width, tokens, layers]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct PerLayer {
    pub(super) all: Node,
    pub(super) width: u64,
}

impl Parts {
    /// Looks up the embeddings of all layers, with an input of tokens of its own (`build_inp_per_layer`).
    pub(super) fn look_up_layers(&mut self, width: u64, layers: u64, vocabulary: u64) -> Result<Node, MathError> {
        let tokens = self.graph.input(StorageFormat::I32, [self.setting.tokens, 1, 1, 1])?;
        let table = self.host_weight(mul(width, layers)?, vocabulary)?;
        self.graph.get_rows(table, tokens)
    }

    /// Joins them with a projection of the embedded tokens (`project_per_layer_inputs`). `found` is `[width, layers, tokens]`.
    pub(super) fn project_layers(&mut self, embedded: Node, found: Node) -> Result<PerLayer, MathError> {
        let [width, layers, ..] = self.graph.dims(found)?;
        let projected = self.projected_layers(embedded, width, layers)?;
        let joined = self.graph.sum(projected, found)?;
        let joined = self.scale(joined)?;
        self.by_layer(joined)
    }

    /// Embeddings of all layers that are nothing but a projection of the embedded tokens.
    pub(super) fn only_projected_layers(&mut self, embedded: Node, width: u64, layers: u64) -> Result<PerLayer, MathError> {
        let projected = self.projected_layers(embedded, width, layers)?;
        self.by_layer(projected)
    }

    /// A projection of the embedded tokens, normed layer by layer: `[width, layers, tokens]`.
    fn projected_layers(&mut self, embedded: Node, width: u64, layers: u64) -> Result<Node, MathError> {
        let [_, tokens, ..] = self.graph.dims(embedded)?;
        let projected = self.linear(embedded, mul(width, layers)?)?;
        let projected = self.scale(projected)?;
        let projected = self.graph.reshape(projected, [width, layers, tokens, 1])?;
        self.norm(projected, NormKind::Rms, false, false)
    }

    /// Turned around, so that each layer's embeddings lie together.
    fn by_layer(&mut self, joined: Node) -> Result<PerLayer, MathError> {
        let [width, layers, tokens, _] = self.graph.dims(joined)?;
        let turned = self.graph.permute(joined, [0, 2, 1, 3])?;
        let all = self.graph.cont(turned, [width, tokens, layers, 1])?;
        Ok(PerLayer { all, width })
    }

    /// One matrix of several, `[rows, columns]`.
    pub(super) fn slice(&mut self, stack: Node) -> Result<Node, MathError> {
        let ([rows, columns, ..], [_, stride, ..]) = (self.graph.dims(stack)?, self.graph.strides(stack)?);
        self.graph.view_2d(stack, rows, columns, stride)
    }

    /// What a layer's embedding adds to `x`: gated by it, and projected back. `rows`: only these rows of it.
    pub(super) fn embed_layer(&mut self, x: Node, per_layer: PerLayer, rows: Option<Node>) -> Result<Node, MathError> {
        let [d_model, ..] = self.graph.dims(x)?;
        let gate = self.linear(x, per_layer.width)?;
        let gate = self.graph.apply(Op::Unary, gate, &[])?;
        let mut own = self.slice(per_layer.all)?;
        if let Some(rows) = rows {
            own = self.graph.get_rows(own, rows)?;
        }
        let gated = self.graph.product(gate, own)?;
        let back = self.linear(gated, d_model)?;
        self.norm(back, NormKind::Rms, false, true)
    }
}
