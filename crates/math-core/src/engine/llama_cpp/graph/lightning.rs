//! Lightning attention in a graph (`src/models/minimax-01.cpp`): a linear attention whose decay within a micro-batch is a
//! matrix over its tokens.

use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::recurrent::StateInputs;
use crate::error::MathError;
use crate::spec::LightningAttention;
use crate::units::mul;

/// What all layers' decays are made from; every layer scales them by its own slope.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecayInputs {
    slopes: Node,
    queries: Node,
    keys: Node,
    within: Node,
}

impl Parts {
    /// Inputs of the decay for `heads` heads (`llm_graph_input_la`).
    pub(super) fn decay_inputs(&mut self, heads: u64) -> Result<DecayInputs, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let by_token = [1, heads, tokens, sequences];
        Ok(DecayInputs {
            slopes: self.graph.input(Self::F32, [heads, 1, 1, 1])?,
            queries: self.graph.input(Self::F32, by_token)?,
            keys: self.graph.input(Self::F32, by_token)?,
            within: self.graph.input(Self::F32, [tokens, tokens, heads, sequences])?,
        })
    }

    /// A decay of this layer: scaled, and its exponential.
    fn decay(&mut self, input: Node) -> Result<Node, MathError> {
        let scaled = self.scale(input)?;
        self.unary(scaled)
    }

    /// Lightning attention of `x`, `[d_model, tokens]`.
    pub(super) fn lightning_attention(
        &mut self,
        lightning: &LightningAttention,
        inputs: &StateInputs,
        decays: &DecayInputs,
        x: Node,
    ) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let LightningAttention { n_heads: heads, head_dim: head, .. } = *lightning;
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let width = mul(heads, head)?;
        // The recurrent module keeps a convolution state of no width, which is read all the same.
        let nothing = self.state(0)?;
        let loaded = self.load(inputs, nothing)?;
        self.graph.expand(loaded)?;
        let slope = self.scale(decays.slopes)?;
        let input = self.graph.reshape(x, [d_model, tokens, 1, sequences])?;
        let joined = self.linear(input, mul(3, width)?)?;
        let joined = self.unary(joined)?;
        let joined = self.graph.reshape(joined, [mul(3, head)?, heads, tokens, sequences])?;
        let [_, s1, s2, s3] = self.graph.strides(joined)?;
        let part = [head, heads, tokens, sequences];
        let q = self.graph.view(joined, part, [s1, s2, s3])?;
        let k = self.graph.view(joined, part, [s1, s2, s3])?;
        let v = self.graph.view(joined, part, [s1, s2, s3])?;
        let state = self.state(mul(head, width)?)?;
        let loaded = self.load(inputs, state)?;
        let before = self.graph.reshape(loaded, [head, head, heads, sequences])?;

        let q_decay = self.decay(decays.queries)?;
        let k_decay = self.decay(decays.keys)?;
        let within = self.decay(decays.within)?;
        let decayed = self.graph.product(q, q_decay)?;
        let decayed = self.graph.permute(decayed, [0, 2, 1, 3])?;
        let from_before = self.graph.mul_mat(before, decayed)?;
        let q_by_head = self.graph.permute(q, [0, 2, 1, 3])?;
        let k_by_head = self.graph.permute(k, [0, 2, 1, 3])?;
        let scores = self.graph.mul_mat(k_by_head, q_by_head)?;
        let scores = self.graph.product(scores, within)?;
        let by_element = [tokens, head, heads, sequences];
        let turned = self.graph.permute(v, [1, 2, 0, 3])?;
        let values = self.graph.cont(turned, by_element)?;
        let from_now = self.graph.mul_mat(values, scores)?;
        let out = self.graph.sum(from_before, from_now)?;
        self.graph.expand(out)?;

        let faded = self.decay(slope)?;
        let faded = self.graph.reshape(faded, [1, 1, heads, 1])?;
        let kept = self.graph.product(before, faded)?;
        let keys = self.graph.product(k, k_decay)?;
        let turned = self.graph.permute(keys, [1, 2, 0, 3])?;
        let keys = self.graph.cont(turned, by_element)?;
        let added = self.graph.mul_mat(keys, values)?;
        let updated = self.graph.sum(kept, added)?;
        let target = self.graph.view_1d(state.cache, mul(state.width, sequences)?)?;
        let stored = self.graph.copy(updated, target)?;
        self.graph.expand(stored)?;

        let by_token = self.graph.permute(out, [0, 2, 1, 3])?;
        let by_token = self.graph.cont(by_token, [head, heads, tokens, sequences])?;
        let flat = self.graph.reshape(by_token, [width, tokens, 1, sequences])?;
        let normed = self.norm(flat, NormKind::Rms, false, true)?;
        let gate = self.linear(input, width)?;
        let gate = self.unary(gate)?;
        let gated = self.graph.product(gate, normed)?;
        let out = self.linear(gated, d_model)?;
        self.graph.reshape(out, [d_model, all_tokens, 1, 1])
    }
}
