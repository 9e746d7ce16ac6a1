//! Hyper-connections: a layer's input is several versions of the hidden state, mixed before each half and after it
//! (`src/models/deepseek4.cpp:build_hc_pre`, `build_hc_post`).

use super::fused::Fusible;
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use crate::error::MathError;
use crate::units::{add, mul};

/// What a half reads, and how its result goes back into the versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixed {
    pub(super) x: Node,
    pub(super) post: Node,
    pub(super) comb: Node,
}

impl Parts {
    /// Every token's hidden state `versions` times: `[d_model, versions, tokens]`.
    pub(super) fn versions(&mut self, x: Node, versions: u64) -> Result<Node, MathError> {
        let [d_model, tokens, ..] = self.graph.dims(x)?;
        let one = self.graph.reshape(x, [d_model, 1, tokens, 1])?;
        self.graph.result(Op::Repeat, Self::F32, [d_model, versions, tokens, 1], &[one])
    }

    /// Weights of all versions of a token: the normed state times a matrix.
    fn version_mixes(&mut self, x: Node, rows: u64) -> Result<Node, MathError> {
        let [d_model, versions, tokens, _] = self.graph.dims(x)?;
        let flat = self.graph.reshape(x, [mul(d_model, versions)?, tokens, 1, 1])?;
        let normed = self.bare_norm(flat, NormKind::Rms)?;
        self.linear(normed, rows)
    }

    /// Scales, shifts and squashes part of the mixes.
    fn squashed(&mut self, mixes: Node, rates: Node, shifts: Node) -> Result<Node, MathError> {
        let scaled = self.graph.product(mixes, rates)?;
        let shifted = self.graph.sum(scaled, shifts)?;
        let squashed = self.unary(shifted)?;
        self.scale(squashed)
    }

    /// Mixes the versions into what a half reads.
    pub(super) fn mix_versions(&mut self, x: Node) -> Result<Mixed, MathError> {
        let [d_model, versions, tokens, _] = self.graph.dims(x)?;
        let rows = mul(add(versions, 2)?, versions)?;
        let mixes = self.version_mixes(x, rows)?;
        let (rates, shifts) = (self.weight(&[3])?, self.weight(&[rows])?);
        let mut parts = [mixes; 2];
        for part in &mut parts {
            let rate = self.graph.view_1d(rates, 1)?;
            let shift = self.graph.view_1d(shifts, versions)?;
            let own = self.graph.view_2d(mixes, versions, tokens, mul(4, rows)?)?;
            *part = self.squashed(own, rate, shift)?;
        }
        let [pre, post] = parts;
        let comb = self.graph.result(Op::HyperConnection, Self::F32, [versions, versions, tokens, 1], &[mixes, rates, shifts])?;
        self.note_fused(Fusible::CombineVersions, comb);
        let x = if self.setting.fused.mix {
            let mixed = self.graph.result(Op::HyperConnection, Self::F32, [d_model, tokens, 1, 1], &[x, pre])?;
            self.note_fused(Fusible::MixVersions, mixed);
            mixed
        } else {
            self.weighted_versions(x, pre)?
        };
        Ok(Mixed { x, post, comb })
    }

    /// The versions after a half.
    pub(super) fn spread_versions(&mut self, half: Node, before: Node, mixed: &Mixed) -> Result<Node, MathError> {
        let dims = self.graph.dims(before)?;
        if self.setting.fused.spread {
            let spread = self.graph.result(Op::HyperConnection, Self::F32, dims, &[half, before, mixed.post, mixed.comb])?;
            self.note_fused(Fusible::SpreadVersions, spread);
            return Ok(spread);
        }
        let ([d_model, versions, tokens, _], [_, _, stride, _]) = (dims, self.graph.strides(before)?);
        let ([_, of_post, ..], [_, _, of_comb, _]) = (self.graph.strides(mixed.post)?, self.graph.strides(mixed.comb)?);
        let mut out = None;
        for _ in 0..versions {
            let weight = self.graph.view_2d(mixed.post, 1, tokens, of_post)?;
            let mut version = self.graph.product(half, weight)?;
            for _ in 0..versions {
                let old = self.graph.view_2d(before, d_model, tokens, stride)?;
                let weight = self.graph.view_2d(mixed.comb, 1, tokens, of_comb)?;
                let weighted = self.graph.product(old, weight)?;
                version = self.graph.sum(version, weighted)?;
            }
            let version = self.graph.reshape(version, [d_model, 1, tokens, 1])?;
            out = Some(match out {
                Some(out) => self.graph.concat(out, version, 1)?,
                None => version,
            });
        }
        Ok(out.unwrap_or(half))
    }

    /// One hidden state of all versions, for the output (`build_hc_head`).
    pub(super) fn join_versions(&mut self, x: Node) -> Result<Node, MathError> {
        let weights = self.version_weights(x)?;
        self.weighted_versions(x, weights)
    }

    /// A weight for every version, for the output.
    fn version_weights(&mut self, x: Node) -> Result<Node, MathError> {
        let [_, versions, ..] = self.graph.dims(x)?;
        let mixes = self.version_mixes(x, versions)?;
        let (rate, shift) = (self.weight(&[1])?, self.weight(&[versions])?);
        self.squashed(mixes, rate, shift)
    }

    /// The weighted sum of all versions, one by one.
    fn weighted_versions(&mut self, x: Node, weights: Node) -> Result<Node, MathError> {
        let ([d_model, versions, tokens, _], [_, _, stride, _]) = (self.graph.dims(x)?, self.graph.strides(x)?);
        let mut sum = None;
        for _ in 0..versions {
            let version = self.graph.view_2d(x, d_model, tokens, stride)?;
            let weight = self.graph.view_2d(weights, 1, tokens, mul(4, versions)?)?;
            let weighted = self.graph.product(version, weight)?;
            sum = Some(match sum {
                Some(sum) => self.graph.sum(sum, weighted)?,
                None => weighted,
            });
        }
        Ok(sum.unwrap_or(x))
    }

    /// The weighted sum of all versions in full precision (`hy-v4.cpp:hy_v4_hc_reduce`).
    fn sum_versions(&mut self, x: Node, weights: Node) -> Result<Node, MathError> {
        let full = self.graph.cast(x, Self::F32)?;
        let sum = self.weighted_versions(full, weights)?;
        self.graph.cast(sum, Self::F32)
    }

    /// What a half reads of the versions, and the weights by which its result is added to each (`hy-v4.cpp:build_hc_pre`).
    pub(super) fn gate_versions(&mut self, x: Node) -> Result<[Node; 2], MathError> {
        let [_, versions, tokens, _] = self.graph.dims(x)?;
        let rows = mul(2, versions)?;
        let mixes = self.version_mixes(x, rows)?;
        let (rates, shifts) = (self.weight(&[2])?, self.weight(&[rows])?);
        let mut parts = [mixes; 2];
        for part in &mut parts {
            let rate = self.graph.view_1d(rates, 1)?;
            let shift = self.graph.view_1d(shifts, versions)?;
            let own = self.graph.view_2d(mixes, versions, tokens, mul(4, rows)?)?;
            *part = self.squashed(own, rate, shift)?;
        }
        let [before, after] = parts;
        let after = self.scale(after)?;
        Ok([self.sum_versions(x, before)?, after])
    }

    /// The versions with a half's result added to each by its weight (`hy-v4.cpp:build_hc_post`).
    pub(super) fn add_to_versions(&mut self, half: Node, before: Node, weights: Node) -> Result<Node, MathError> {
        let [d_model, versions, tokens, _] = self.graph.dims(before)?;
        let half = self.graph.cast(half, Self::F32)?;
        let weights = self.graph.cast(weights, Self::F32)?;
        let before = self.graph.cast(before, Self::F32)?;
        let ([_, of_weights, ..], [_, _, stride, _]) = (self.graph.strides(weights)?, self.graph.strides(before)?);
        let mut out = None;
        for _ in 0..versions {
            let old = self.graph.view_2d(before, d_model, tokens, stride)?;
            let weight = self.graph.view_2d(weights, 1, tokens, of_weights)?;
            let weighted = self.graph.product(half, weight)?;
            let version = self.graph.sum(old, weighted)?;
            let version = self.graph.reshape(version, [d_model, 1, tokens, 1])?;
            out = Some(match out {
                Some(out) => self.graph.concat(out, version, 1)?,
                None => version,
            });
        }
        self.graph.cast(out.unwrap_or(before), Self::F32)
    }

    /// The versions of the tokens whose logits are asked for.
    pub(super) fn choose_versions(&mut self, x: Node, rows: Node) -> Result<Node, MathError> {
        let [d_model, versions, tokens, _] = self.graph.dims(x)?;
        let flat = self.graph.reshape(x, [mul(d_model, versions)?, tokens, 1, 1])?;
        let chosen = self.graph.get_rows(flat, rows)?;
        let [_, outputs, ..] = self.graph.dims(chosen)?;
        self.graph.reshape(chosen, [d_model, versions, outputs, 1])
    }

    /// One hidden state of all versions, for the output, in full precision (`hy-v4.cpp:build_hc_head`).
    pub(super) fn reduce_versions(&mut self, x: Node) -> Result<Node, MathError> {
        let weights = self.version_weights(x)?;
        self.sum_versions(x, weights)
    }

    /// Puts a state behind those that have been banked: `[d_model, banked, tokens]`.
    pub(super) fn bank(&mut self, banked: Option<Node>, x: Node) -> Result<Node, MathError> {
        let [d_model, tokens, ..] = self.graph.dims(x)?;
        let one = self.graph.reshape(x, [d_model, 1, tokens, 1])?;
        match banked {
            Some(banked) => self.graph.concat(banked, one, 1),
            None => Ok(one),
        }
    }

    /// A mix of the banked states and the present one, each weighted by its score (`kimi-k3.cpp:res_mix`).
    pub(super) fn mix_banked(&mut self, banked: Option<Node>, x: Node) -> Result<Node, MathError> {
        let Some(banked) = banked else { return Ok(x) };
        let [d_model, count, tokens, _] = self.graph.dims(banked)?;
        let score = self.weight(&[d_model])?;
        let mut scores = [banked, x];
        for state in &mut scores {
            let normed = self.bare_norm(*state, NormKind::Rms)?;
            let weighted = self.graph.product(normed, score)?;
            *state = self.graph.sum_rows(weighted)?;
        }
        let [of_banked, of_present] = scores;
        let of_banked = self.graph.reshape(of_banked, [count, tokens, 1, 1])?;
        let all = self.graph.concat(of_banked, of_present, 0)?;
        let weights = self.soft_max(all)?;
        let [_, row, ..] = self.graph.strides(weights)?;
        let mut shares = [count, 1].map(|n| (n, weights));
        for (n, share) in &mut shares {
            let own = self.graph.view_2d(weights, *n, tokens, row)?;
            *share = self.graph.cont(own, [*n, tokens, 1, 1])?;
        }
        let [(_, to_banked), (_, to_present)] = shares;
        let mixed = self.graph.result(Op::HyperConnection, Self::F32, [d_model, tokens, 1, 1], &[banked, to_banked])?;
        let present = self.graph.product(x, to_present)?;
        self.graph.sum(mixed, present)
    }
}
