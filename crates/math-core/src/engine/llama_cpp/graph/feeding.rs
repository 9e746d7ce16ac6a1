//! The second half of a decoder's layer: a feed-forward, experts, or both.

use super::decoder::{has_norm, has_weight};
use super::op::Op;
use super::ops::Node;
use super::parts::Parts;
use super::per_layer;
use super::rows::routing;
use super::scales::Matrix;
use super::trunk::Trunk;
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, Moe};

/// The experts of groups of experts, where a layer has them (`models/grovemoe.cpp`).
fn chunk_experts(layer: &Layer, moe: &Moe) -> Option<Moe> {
    let [d_ff_expert, _, n_experts, _] = per_layer::extra(layer, "ffn_down_chexps.weight")?.shape.0;
    let n_experts_per_token = moe.n_experts_per_token.min(n_experts);
    Some(Moe { d_ff_expert, n_experts, n_experts_per_token, shared: None, ..moe.clone() })
}

impl Trunk<'_> {
    pub(super) fn feed_forward(&self, parts: &mut Parts, layer: &Layer, d_model: u64, x: Node) -> Result<Node, MathError> {
        match &layer.feed_forward {
            FeedForward::Dense(dense) => {
                let activation = self.row.activation(layer.told.limits_dense);
                let mut hidden = parts.hidden(x, dense, activation, [Matrix::Gate, Matrix::Up])?;
                if has_weight(layer, "ffn_sub_norm.weight") {
                    // A norm between the gate and the last projection (BitNet).
                    hidden = parts.norm(hidden, self.row.norm, false, true)?;
                }
                if has_weight(layer, "ffn.act.scales") {
                    let scales = parts.weight(&[dense.d_ff])?;
                    hidden = parts.graph.apply(Op::Div, hidden, &[scales])?;
                }
                let bias = parts.reads_bias(dense.down_bias);
                parts.project_biased(hidden, d_model, Matrix::Down, bias)
            }
            FeedForward::Moe(moe) => {
                let routing = routing(self.row, moe, self.operations);
                let activation = self.row.activation(layer.told.limits_experts);
                let routed = match moe.latent {
                    None => match chunk_experts(layer, moe) {
                        Some(chunks) => return parts.experts_of_experts(x, moe, &chunks, routing, activation),
                        None => parts.experts(x, moe, routing, activation)?,
                    },
                    Some(width) => {
                        // Experts read and write a narrower state; the router reads the whole one (`nemotron-h.cpp`).
                        let latent = parts.linear(x, width)?;
                        let logits = parts.linear(x, moe.n_experts)?;
                        let mut routed = parts.experts_by(latent, logits, moe, routing, activation)?;
                        if let Some(bias) = has_norm(layer, "ffn_routed_norm") {
                            routed = parts.norm(routed, self.row.norm, bias, true)?;
                        }
                        parts.linear(routed, d_model)?
                    }
                };
                match &moe.shared {
                    Some(shared) => {
                        let activation = self.row.activation(layer.told.limits_dense);
                        let mut shared = parts.shared_experts(x, shared, d_model, activation)?;
                        if moe.shared_gate {
                            let logit = parts.linear(x, 1)?;
                            let mut gate = parts.unary(logit)?;
                            if self.row.divides_gate {
                                // A sigmoid, written as SiLU over its own input (`src/models/qwen2moe.cpp`).
                                gate = parts.graph.apply(Op::Div, gate, &[logit])?;
                            }
                            shared = parts.graph.product(shared, gate)?;
                        }
                        let both = parts.graph.sum(routed, shared)?;
                        if self.row.averages_shared { parts.scale(both) } else { Ok(both) }
                    }
                    None => Ok(routed),
                }
            }
            FeedForward::ChannelMix { .. } | FeedForward::None => Ok(x),
        }
    }
}
