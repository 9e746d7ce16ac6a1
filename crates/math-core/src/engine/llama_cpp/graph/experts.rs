//! Feed-forwards, and routed experts (`src/llama-graph.cpp:build_ffn`, `build_moe_ffn`).

use alloc::vec::Vec;

use super::op::Op;
use super::ops::Node;
use super::parts::Parts;
use super::scales::Matrix;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Dense, Moe};
use crate::units::mul;

/// What a feed-forward does between its projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// One operation: of gate and up together (SwiGLU, GeGLU, ReGLU), or elementwise where there is no gate.
    Single,
    /// Two of them (squared ReLU).
    Squared,
    /// Gate and up each through a soft cap, the gate times its sigmoid (Kimi K3).
    Capped,
    /// What the gate makes and what comes up is limited, each by an operation of its own.
    Limited,
}

/// What a model may say about the weights of its chosen experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing: the architecture decides.
    Nothing,
    /// Nothing, and they are not scaled either: the graph names a factor that no loader reads.
    NeverScales,
    /// Whether they are scaled.
    Scale,
    /// Whether they are divided by their sum; they never are scaled.
    NormOnly,
    /// Whether they are divided by their sum, and whether they are scaled.
    NormAndScale,
}

/// What experts are chosen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// What becomes their weights.
    Weights,
    /// Raw logits, corrected if there is a correction (Llama 4, Kolibri).
    Logits,
    /// Sigmoids of the logits, beside weights that are none (GroveMoE).
    Sigmoids,
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
    /// What the choice is made on.
    pub(super) choice: Choice,
    /// Whether sigmoids are weights, or a softmax; `None` for sigmoids where the choice is corrected or made on raw logits.
    pub(super) sigmoid: Option<bool>,
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

impl Parts {
    /// A feed-forward (`build_ffn`).
    pub(super) fn feed_forward(
        &mut self,
        x: Node,
        dense: &Dense,
        d_model: u64,
        activation: Activation,
    ) -> Result<Node, MathError> {
        self.feed_forward_by(x, dense, d_model, activation, [Matrix::Gate, Matrix::Up, Matrix::Down])
    }
    /// The feed-forward that every token passes beside its experts.
    pub(super) fn shared_experts(
        &mut self,
        x: Node,
        dense: &Dense,
        d_model: u64,
        activation: Activation,
    ) -> Result<Node, MathError> {
        self.feed_forward_by(x, dense, d_model, activation, [Matrix::SharedGate, Matrix::SharedUp, Matrix::SharedDown])
    }
    fn feed_forward_by(
        &mut self,
        x: Node,
        dense: &Dense,
        d_model: u64,
        activation: Activation,
        [gate_matrix, up_matrix, down_matrix]: [Matrix; 3],
    ) -> Result<Node, MathError> {
        let hidden = self.hidden(x, dense, activation, [gate_matrix, up_matrix])?;
        self.project_biased(hidden, d_model, down_matrix, self.reads_bias(dense.down_bias))
    }
    /// Whether the graph reads a bias that a feed-forward has.
    pub(super) const fn reads_bias(&self, has: bool) -> bool {
        has && !self.setting.unread.feed_forward
    }
    /// What a feed-forward hands to its last projection.
    pub(super) fn hidden(
        &mut self,
        x: Node,
        dense: &Dense,
        activation: Activation,
        [gate_matrix, up_matrix]: [Matrix; 2],
    ) -> Result<Node, MathError> {
        let bias = self.reads_bias(dense.up_bias);
        if dense.gated && dense.fused_gate_up {
            let both = self.project_biased(x, mul(2, dense.d_ff)?, up_matrix, bias)?;
            self.graph.glu_halves(both)
        } else {
            let up = self.project_biased(x, dense.d_ff, up_matrix, bias)?;
            if dense.gated {
                // Files may have a bias of the up projection alone (Jina's second BERT).
                let bias = bias && (self.places.is_single() || self.n_weights(&[dense.d_ff]) > 1);
                let gate = self.project_biased(x, dense.d_ff, gate_matrix, bias)?;
                self.gate(gate, up, activation)
            } else {
                self.activate(up, activation)
            }
        }
    }

    /// A gate times an up projection.
    fn gate(&mut self, gate: Node, up: Node, activation: Activation) -> Result<Node, MathError> {
        if activation == Activation::Limited {
            let up = self.graph.apply(Op::Clamp, up, &[])?;
            let open = self.unary(gate)?;
            let limited = self.graph.apply(Op::Clamp, open, &[])?;
            return self.graph.product(limited, up);
        }
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
        self.experts_by(x, logits, moe, routing, activation)
    }

    /// Routed experts, and on what they yield the experts of their groups, by the same logits (`models/grovemoe.cpp`).
    pub(super) fn experts_of_experts(
        &mut self,
        x: Node,
        moe: &Moe,
        chunks: &Moe,
        routing: Routing,
        activation: Activation,
    ) -> Result<Node, MathError> {
        let logits = self.linear(x, moe.n_experts)?;
        let routed = self.experts_by(x, logits, moe, routing, activation)?;
        let added = self.experts_by(routed, logits, chunks, routing, activation)?;
        let added = self.scale(added)?;
        self.graph.sum(routed, added)
    }

    /// Routed experts, chosen by logits that are there already.
    pub(super) fn experts_by(
        &mut self,
        x: Node,
        logits: Node,
        moe: &Moe,
        routing: Routing,
        activation: Activation,
    ) -> Result<Node, MathError> {
        let [width, tokens, ..] = self.graph.dims(x)?;
        let (n_experts, chosen) = (moe.n_experts, moe.n_experts_per_token);
        let probabilities = match (routing.softmax_after, moe.correction_bias.is_some()) {
            (true, _) => logits,
            (false, _) if routing.two_steps => {
                let soft = self.unary(logits)?;
                self.graph.apply(Op::SquareRoot, soft, &[])?
            }
            (false, corrected) if routing.sigmoid.unwrap_or(corrected || routing.choice == Choice::Logits) => {
                self.unary(logits)?
            }
            (false, _) => self.soft_max(logits)?,
        };
        let mut selection = match routing.choice {
            Choice::Weights => probabilities,
            Choice::Logits => logits,
            Choice::Sigmoids => self.unary(logits)?,
        };
        if moe.correction_bias.is_some() {
            selection = self.bias(selection)?;
        }
        if routing.groups > 1 {
            selection = self.choose_groups(selection, n_experts, tokens, routing)?;
        }
        let mut ids = match routing.looked_up {
            Some(ids) => ids,
            None => self.graph.argsort_top_k(selection, chosen)?,
        };
        let [n_weights, ..] = self.graph.dims(probabilities)?;
        if n_weights != n_experts {
            // Numbers of experts become those of groups of experts, by way of floating point.
            let numbers = self.graph.cast(ids, Self::F32)?;
            let scaled = self.scale(numbers)?;
            ids = self.graph.cast(scaled, StorageFormat::I32)?;
        }
        let rows = self.graph.reshape(probabilities, [1, n_weights, tokens, 1])?;
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
            let both = self.expert_matrix(input, ids, mul(2, d_ff)?, moe, Matrix::ExpertUp)?;
            let [_, s1, s2, _] = self.graph.strides(both)?;
            let gate = self.graph.view_3d(both, [d_ff, chosen, tokens], s1, s2)?;
            let up = self.graph.view_3d(both, [d_ff, chosen, tokens], s1, s2)?;
            self.graph.glu(gate, up)?
        } else {
            let up = self.expert_matrix(input, ids, d_ff, moe, Matrix::ExpertUp)?;
            if moe.gated {
                let gate = self.expert_matrix(input, ids, d_ff, moe, Matrix::ExpertGate)?;
                self.gate(gate, up, activation)?
            } else {
                self.activate(up, activation)?
            }
        };
        let mut out = if self.setting.limits_experts {
            let (limited, factor) = self.limit_rows(hidden)?;
            let out = self.expert_product(limited, ids, width, moe, Matrix::ExpertDown)?;
            let restored = self.graph.product(out, factor)?;
            self.expert_biases(restored, ids, width, moe)?
        } else {
            self.expert_matrix(hidden, ids, width, moe, Matrix::ExpertDown)?
        };
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

    fn expert_matrix(&mut self, x: Node, ids: Node, width: u64, moe: &Moe, matrix: Matrix) -> Result<Node, MathError> {
        let y = self.expert_product(x, ids, width, moe, matrix)?;
        self.expert_biases(y, ids, width, moe)
    }
    fn expert_product(&mut self, x: Node, ids: Node, width: u64, moe: &Moe, matrix: Matrix) -> Result<Node, MathError> {
        let [n_in, ..] = self.graph.dims(x)?;
        let stack = self.weight(&[n_in, width, moe.n_experts])?;
        let product = self.graph.mul_mat_id(stack, x, ids)?;
        // The engine asks it of whatever it has last: of a scale's product, where it changes nothing.
        if matrix == Matrix::ExpertDown && self.setting.full_expert_inputs && !self.scales.has(matrix) {
            self.graph.keep_on_processor(product)?;
        }
        self.scaled_by_expert(product, ids, moe.n_experts, matrix)
    }
    fn expert_biases(&mut self, y: Node, ids: Node, width: u64, moe: &Moe) -> Result<Node, MathError> {
        if moe.expert_bias {
            let biases = self.weight(&[width, moe.n_experts])?;
            return self.graph.apply(Op::AddId, y, &[biases, ids]);
        }
        Ok(y)
    }
}
