//! Delta rules in a graph (`src/models/delta-net-base.cpp`): gated DeltaNet of Qwen3-Next and Qwen3.5, and Kimi's delta
//! attention.

use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::recurrent::{State, StateInputs};
use super::scales::Matrix;
use crate::error::MathError;
use crate::spec::{GatedDeltaNet, KimiDelta};
use crate::units::{add, mul};

/// What a delta rule reads: queries, keys, values, decay, strength, each `[head, heads, tokens, sequences]`, and state.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeltaRule {
    pub(super) q: Node,
    pub(super) k: Node,
    pub(super) v: Node,
    pub(super) decay: Node,
    pub(super) beta: Node,
    pub(super) state: Node,
}

/// How a model's variant of Kimi's delta attention makes its decay and its output gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct KimiForm {
    /// The decay goes through softplus before its rates, or through a sigmoid behind them.
    pub(super) decay: KimiDecay,
    /// Both projections of the decay, or one.
    pub(super) low_rank_decay: bool,
    /// Both projections of the output gate, or one.
    pub(super) low_rank_gate: bool,
}

/// What makes a decay of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KimiDecay {
    /// Softplus, times rates (Kimi Linear).
    Softplus,
    /// Times rates, sigmoid, times a bound (Ling 3).
    Sigmoid,
    /// As [`Self::Sigmoid`], with the rates' sign turned around on the way (Kimi K3).
    NegatedSigmoid,
}

impl Parts {
    /// L2 norm as the engine writes it (`models.h:build_gdn_l2_norm`).
    pub(super) fn l2_norm(&mut self, x: Node) -> Result<Node, MathError> {
        let normed = self.bare_norm(x, NormKind::Rms)?;
        self.scale(normed)
    }

    /// The fused delta rule: its output, `[v_head, heads, tokens, sequences]`, and the new state
    /// (`build_delta_net_fused`, which every backend here runs).
    pub(super) fn delta_rule(&mut self, rule: &DeltaRule) -> Result<[Node; 2], MathError> {
        let [head, heads, tokens, sequences] = self.graph.dims(rule.v)?;
        let width = mul(head, heads)?;
        let rows = add(mul(tokens, sequences)?, mul(head, mul(sequences, self.setting.snapshots)?)?)?;
        let sources = [rule.q, rule.k, rule.v, rule.decay, rule.beta, rule.state];
        let both = self.graph.result(Op::GatedDeltaNet, Self::F32, [width, rows, 1, 1], &sources)?;
        let row = mul(4, head)?;
        let token = mul(row, heads)?;
        let out = self.graph.view(both, [head, heads, tokens, sequences], [row, token, mul(token, tokens)?])?;
        let square = mul(row, head)?;
        let state = self.graph.view(both, [head, head, heads, sequences], [row, square, mul(square, heads)?])?;
        Ok([out, state])
    }

    /// Keeps a new state of the micro-batch's sequences.
    pub(super) fn store_state(&mut self, state: State, updated: Node) -> Result<(), MathError> {
        let target = self.graph.view_2d(state.cache, state.width, self.setting.sequences, mul(4, state.width)?)?;
        self.store_in(target, updated)
    }
    fn store_in(&mut self, target: Node, updated: Node) -> Result<(), MathError> {
        let stored = self.graph.copy(updated, target)?;
        self.graph.expand(stored)
    }

    /// Keeps the new state of the micro-batch's sequences, or the states that drafted tokens may fall back to.
    fn store_states(&mut self, state: State, updated: Node) -> Result<(), MathError> {
        if self.setting.snapshots > 1 { self.store_snapshots(state, updated) } else { self.store_state(state, updated) }
    }

    /// Keeps the states after each of the last tokens, as many as the rule made (`build_recurrent_attn`).
    pub(super) fn store_snapshots(&mut self, state: State, updated: Node) -> Result<(), MathError> {
        let (sequences, row) = (self.setting.sequences, mul(4, state.width)?);
        let written = self.setting.sequence_tokens().min(self.setting.snapshots);
        let dims = [state.width, sequences, written];
        let source = self.graph.view_3d(updated, dims, row, mul(row, sequences)?)?;
        let target = self.graph.view_3d(state.cache, dims, row, mul(row, self.setting.states)?)?;
        let stored = self.graph.copy(source, target)?;
        self.graph.expand(stored)
    }

    /// Kimi's delta attention (`kimi-linear.cpp:graph`) of `x`, `[d_model, tokens]`: queries, keys and values are convolved
    /// apart, and every element of a head decays on its own.
    pub(super) fn kimi_delta(
        &mut self,
        delta: &KimiDelta,
        form: KimiForm,
        inputs: &StateInputs,
        x: Node,
    ) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let KimiDelta { n_heads: heads, head_dim: head, d_conv, .. } = *delta;
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let width = mul(heads, head)?;
        let by_token = [head, heads, tokens, sequences];
        let conv = self.state(mul(3, mul(d_conv.saturating_sub(1), width)?)?)?;
        let loaded = self.load(inputs, conv)?;
        let mut parts = [x; 3];
        for part in &mut parts {
            let projected = self.linear(x, width)?;
            let convolved = self.convolve_part(conv, loaded, d_conv, projected)?;
            let flat = self.graph.reshape(convolved, [width, all_tokens, 1, 1])?;
            let active = self.unary(flat)?;
            *part = self.graph.reshape(active, by_token)?;
        }
        let [q, k, v] = parts;

        let from = if form.low_rank_decay { self.linear(x, head)? } else { x };
        let decay = self.linear(from, width)?;
        let mut decay = self.bias(decay)?;
        if form.decay == KimiDecay::Softplus {
            decay = self.unary(decay)?;
        }
        decay = self.graph.reshape(decay, [head, heads, all_tokens, 1])?;
        let rates = self.weight(&[1, heads])?;
        let rates = self.graph.reshape(rates, [1, heads, 1, 1])?;
        decay = self.graph.product(decay, rates)?;
        if form.decay == KimiDecay::NegatedSigmoid {
            decay = self.scale(decay)?;
        }
        if form.decay != KimiDecay::Softplus {
            let squashed = self.unary(decay)?;
            decay = self.scale(squashed)?;
        }
        let decay = self.graph.reshape(decay, by_token)?;
        let beta = self.linear(x, heads)?;
        let beta = self.graph.reshape(beta, [1, heads, tokens, sequences])?;
        let beta = self.unary(beta)?;

        let input = self.graph.reshape(x, [d_model, tokens, sequences, 1])?;
        let state = self.state(mul(head, width)?)?;
        let loaded = self.load(inputs, state)?;
        let square = self.graph.reshape(loaded, [head, head, heads, sequences])?;
        let q = self.l2_norm(q)?;
        let k = self.l2_norm(k)?;
        let [out, updated] = self.delta_rule(&DeltaRule { q, k, v, decay, beta, state: square })?;
        let out = self.graph.cont(out, by_token)?;
        if form.decay == KimiDecay::Softplus {
            // Kimi Linear's target is a vector, which Metal's fused kernel does not know for several sequences.
            let target = self.graph.view_1d(state.cache, mul(state.width, sequences)?)?;
            self.store_in(target, updated)?;
        } else {
            self.store_states(state, updated)?;
        }

        let flat = self.graph.reshape(input, [d_model, all_tokens, 1, 1])?;
        let from = if form.low_rank_gate { self.linear(flat, head)? } else { flat };
        let gate = self.linear(from, width)?;
        let gate = self.graph.reshape(gate, [head, heads, all_tokens, 1])?;
        let out = self.graph.reshape(out, [head, heads, all_tokens, 1])?;
        let normed = self.norm(out, NormKind::Rms, false, true)?;
        let gate = self.unary(gate)?;
        let gated = self.graph.product(normed, gate)?;
        let flat = self.graph.cont(gated, [width, all_tokens, 1, 1])?;
        self.linear(flat, d_model)
    }

    /// Convolves one of three projections that share a row of state, and keeps its last tokens
    /// (`kimi-linear.cpp:causal_conv1d`).
    fn convolve_part(&mut self, state: State, loaded: Node, taps: u64, x: Node) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let [channels, ..] = self.graph.dims(x)?;
        let kept = taps.saturating_sub(1);
        let (channel, row) = (mul(4, kept)?, mul(4, state.width)?);
        let shape = [kept, channels, sequences];
        let before = self.graph.view_3d(loaded, shape, channel, row)?;
        let x = self.graph.reshape(x, [channels, tokens, sequences, 1])?;
        let now = self.graph.transpose(x)?;
        let joined = self.graph.concat(before, now, 0)?;
        let [_, s1, s2, _] = self.graph.strides(joined)?;
        let last = self.graph.view_3d(joined, shape, s1, s2)?;
        let target = self.graph.view_3d(state.cache, shape, channel, row)?;
        let stored = self.graph.copy(last, target)?;
        self.graph.expand(stored)?;
        let kernel = self.kernel(channels, taps)?;
        let kernel = self.graph.reshape(kernel, [taps, channels, 1, 1])?;
        self.convolve_with(joined, kernel)
    }

    /// Gated DeltaNet (`qwen35.cpp:build_layer_attn_linear`) of `x`, `[d_model, tokens]`. `repeats_keys`: queries and keys
    /// are repeated to the value heads; `one_matrix`: queries, keys, values and the gate come from one.
    pub(super) fn gated_delta_net(
        &mut self,
        delta: &GatedDeltaNet,
        inputs: &StateInputs,
        repeats_keys: bool,
        one_matrix: bool,
        x: Node,
    ) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let GatedDeltaNet { n_k_heads, n_v_heads, k_head_dim, v_head_dim, d_conv, .. } = *delta;
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let (keys, values) = (mul(n_k_heads, k_head_dim)?, mul(n_v_heads, v_head_dim)?);
        let channels = add(mul(2, keys)?, values)?;
        let [mixed, z] = if one_matrix {
            self.split_by_key_head(delta, x)?
        } else {
            let mixed = self.project(x, channels, Matrix::QueryKeyValue, false)?;
            [self.graph.reshape(mixed, [channels, tokens, sequences, 1])?, self.project(x, values, Matrix::AttentionGate, false)?]
        };
        let [beta, decay] = self.beta_and_decay(delta, x)?;

        let joined = self.window(inputs, d_conv, mixed)?;
        let state = self.state(mul(k_head_dim, values)?)?;
        let loaded = self.load(inputs, state)?;
        let square = self.graph.reshape(loaded, [v_head_dim, v_head_dim, n_v_heads, sequences])?;
        let convolved = self.convolve(joined, d_conv)?;
        let active = self.unary(convolved)?;
        let row = mul(4, channels)?;
        let all = mul(row, tokens)?;
        let key_view = ([k_head_dim, n_k_heads, tokens, sequences], [mul(4, k_head_dim)?, row, all]);
        let q = self.graph.view(active, key_view.0, key_view.1)?;
        let k = self.graph.view(active, key_view.0, key_view.1)?;
        let v = self.graph.view(active, [v_head_dim, n_v_heads, tokens, sequences], [mul(4, v_head_dim)?, row, all])?;
        let mut q = self.l2_norm(q)?;
        let mut k = self.l2_norm(k)?;
        if repeats_keys && n_k_heads != n_v_heads {
            q = self.repeat_heads(q, n_v_heads)?;
            k = self.repeat_heads(k, n_v_heads)?;
        }
        let [out, updated] = self.delta_rule(&DeltaRule { q, k, v, decay, beta, state: square })?;
        self.store_states(state, updated)?;

        let gate = self.graph.reshape(z, [v_head_dim, n_v_heads, tokens, sequences])?;
        let normed = self.norm(out, NormKind::Rms, false, true)?;
        let gate = self.unary(gate)?;
        let gated = self.graph.product(normed, gate)?;
        if self.setting.flat_projections {
            let flat = self.graph.reshape(gated, [values, all_tokens, 1, 1])?;
            return self.project(flat, d_model, Matrix::StateOutput, false);
        }
        let flat = self.graph.reshape(gated, [values, tokens, sequences, 1])?;
        let out = self.project(flat, d_model, Matrix::StateOutput, false)?;
        self.graph.reshape(out, [d_model, all_tokens, 1, 1])
    }

    /// Queries, keys and values side by side, and the output gate, of a matrix that has all four for one key head after the
    /// other (`qwen3next.cpp:build_qkvz`, the path for files with `ssm_in`).
    fn split_by_key_head(&mut self, delta: &GatedDeltaNet, x: Node) -> Result<[Node; 2], MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let GatedDeltaNet { n_k_heads, n_v_heads, k_head_dim, v_head_dim, .. } = *delta;
        let group = mul(v_head_dim, n_v_heads / n_k_heads.max(1))?;
        let all = mul(2, add(k_head_dim, group)?)?;
        let product = self.linear(x, mul(all, n_k_heads)?)?;
        let by_head = self.graph.reshape(product, [all, n_k_heads, tokens, sequences])?;
        let [_, s1, s2, s3] = self.graph.strides(by_head)?;
        let mut parts = [k_head_dim, k_head_dim, group, group].map(|width| (width, by_head));
        for (width, part) in &mut parts {
            *part = self.graph.view(by_head, [*width, n_k_heads, tokens, sequences], [s1, s2, s3])?;
        }
        let [q, k, v, (_, gate)] = parts;
        let gate = self.graph.cont(gate, [group, n_k_heads, tokens, sequences])?;
        let mut flat = [q, k, v];
        for (width, part) in &mut flat {
            *part = self.graph.cont(*part, [mul(*width, n_k_heads)?, tokens, sequences, 1])?;
        }
        let [(_, q), (_, k), (_, v)] = flat;
        let keys = self.graph.concat(q, k, 0)?;
        Ok([self.graph.concat(keys, v, 0)?, gate])
    }

    /// Strength and decay of the delta rule, each `[1, heads, tokens, sequences]`.
    fn beta_and_decay(&mut self, delta: &GatedDeltaNet, x: Node) -> Result<[Node; 2], MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let heads = delta.n_v_heads;
        let one = [1, heads, tokens, sequences];
        let (beta, alpha) = if delta.fused_beta_alpha {
            let each = heads / delta.n_k_heads.max(1);
            let both = self.linear(x, mul(2, heads)?)?;
            let both = self.graph.reshape(both, [mul(2, each)?, delta.n_k_heads, tokens, sequences])?;
            let [_, s1, s2, s3] = self.graph.strides(both)?;
            let half = [each, delta.n_k_heads, tokens, sequences];
            let beta = self.graph.view(both, half, [s1, s2, s3])?;
            let alpha = self.graph.view(both, half, [s1, s2, s3])?;
            let beta = if self.setting.flat_projections { beta } else { self.graph.cont(beta, half)? };
            let beta = self.unary(beta)?;
            let alpha = self.graph.cont(alpha, [heads, tokens, sequences, 1])?;
            (self.graph.reshape(beta, one)?, alpha)
        } else {
            let beta = self.project(x, heads, Matrix::StateBeta, false)?;
            let beta = self.graph.reshape(beta, one)?;
            let beta = self.unary(beta)?;
            let alpha = self.project(x, heads, Matrix::StateAlpha, false)?;
            (beta, self.graph.reshape(alpha, [heads, tokens, sequences, 1])?)
        };
        let biased = self.bias(alpha)?;
        let soft = self.unary(biased)?;
        let factors = self.weight(&[heads])?;
        let decay = self.graph.product(soft, factors)?;
        Ok([beta, self.graph.reshape(decay, one)?])
    }

    /// Every head several times in a row (Qwen3-Next).
    fn repeat_heads(&mut self, x: Node, heads: u64) -> Result<Node, MathError> {
        let [head, n, tokens, sequences] = self.graph.dims(x)?;
        let all = mul(tokens, sequences)?;
        let apart = self.graph.reshape(x, [head, 1, n, all])?;
        let repeated = self.graph.result(Op::Repeat, Self::F32, [head, heads / n.max(1), n, all], &[apart])?;
        self.graph.reshape(repeated, [head, heads, tokens, sequences])
    }
}
