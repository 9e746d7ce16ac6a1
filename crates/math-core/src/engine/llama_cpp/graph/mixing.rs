//! Attention of a decoder's layer: projections, norms and rotary embedding of queries and keys, the gate on what comes out.

use alloc::vec::Vec;

use super::attention::Attend;
use super::decoder::has_weight;
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::rows::{Gate, QkNorming, Scaled};
use super::scales::Matrix;
use super::trunk::Trunk;
use crate::error::MathError;
use crate::spec::{Attention, AttentionBias, FeedForward, KvSource, Layer, OutputGate, QkNorm, QkvLayout};
use crate::units::mul;

/// Whether queries and keys are normed over all heads together, before they are split.
const fn normed_flat(attention: &Attention) -> bool {
    let [width, rows] = attention.qk_norm.q;
    attention.n_heads > 1 && rows <= 1 && width > attention.k_head_dim
}

impl Trunk<'_> {
    pub(super) fn attention(
        &self,
        parts: &mut Parts,
        layer: &Layer,
        attention: &Attention,
        d_model: u64,
        index: usize,
        x: Node,
    ) -> Result<Node, MathError> {
        let row = self.row;
        let tokens = parts.setting.tokens;
        let (full, k, v) = self.queries_keys_values(parts, attention, x, tokens)?;
        let (mut k, mut v) = (k, v);
        let (mut q, gate) = match attention.gate {
            OutputGate::InQuery => {
                let [width, heads, ..] = parts.graph.dims(full)?;
                let [_, s1, s2, _] = parts.graph.strides(full)?;
                let half = [width / 2, heads, tokens];
                (parts.graph.view_3d(full, half, s1, s2)?, Some(parts.graph.view_3d(full, half, s1, s2)?))
            }
            OutputGate::None | OutputGate::Own { .. } => (full, None),
        };
        let QkNorm { q: q_norms @ [q_norm, _], k: k_norms, .. } = attention.qk_norm;
        let norm_bias = attention.qk_norm.bias && !parts.setting.unread.query_key_norms;
        // Heads are normed each as a whole.
        let kind = if matches!(row.norm, NormKind::Groups(_)) { NormKind::Rms } else { row.norm };
        if row.qk_norm == QkNorming::Halves {
            q = self.rotate_halves(parts, q)?;
            k = k.map(|k| self.rotate_halves(parts, k)).transpose()?;
        } else if q_norm > 0 && !normed_flat(attention) && !matches!(row.qk_norm, QkNorming::QueryLast | QkNorming::Last) {
            q = parts.norm_by(q, kind, &q_norms, norm_bias, true)?;
            k = k.map(|k| parts.norm_by(k, kind, &k_norms, norm_bias, true)).transpose()?;
        }
        if row.norms_values {
            v = v.map(|v| parts.bare_norm(v, row.norm)).transpose()?;
        }
        let windowed = (self.window)(attention);
        let factors = if row.factors_on_full_layers && windowed { None } else { self.factors };
        let deep_enough = row.rotates_at_depth == 0 || row.rotates_at_depth == self.n_layers;
        let number = u64::try_from(index).unwrap_or(u64::MAX);
        let first = row.unrotated_first_of > 0 && self.sliding.is_some() && number.is_multiple_of(row.unrotated_first_of);
        let by_row =
            !first && row.rotates(index) && deep_enough && (windowed || self.sliding.is_none() || !row.rotates_windows_only);
        let dense = row.rotates_dense && !matches!(layer.feed_forward, FeedForward::Moe(_));
        let rotates =
            self.operations.rotates.or(attention.rotates).unwrap_or(by_row || dense) && row.qk_norm != QkNorming::Halves;
        if rotates {
            let factors = factors.map(|width| parts.shared_vector(width)).transpose()?;
            q = parts.graph.rope(q, self.positions, factors)?;
            k = k.map(|k| parts.graph.rope(k, self.positions, factors)).transpose()?;
            if row.qk_norm == QkNorming::Last && q_norm > 0 {
                q = parts.norm_by(q, kind, &q_norms, norm_bias, true)?;
                k = k.map(|k| parts.norm_by(k, kind, &k_norms, norm_bias, true)).transpose()?;
            }
            if row.qk_norm == QkNorming::BareLast {
                q = parts.bare_norm(q, NormKind::Rms)?;
                k = k.map(|k| parts.bare_norm(k, NormKind::Rms)).transpose()?;
            }
            if row.qk_norm == QkNorming::QueryLast {
                q = parts.norm_by(q, NormKind::Rms, &q_norms, false, true)?;
                k = k.map(|k| parts.bare_norm(k, NormKind::Rms)).transpose()?;
            }
        }
        if let Some(scale) = self.attention_scale
            && !(rotates && row.scales_by_position == Scaled::UnrotatedLayers)
        {
            q = parts.graph.product(q, scale)?;
        }
        if row.scales_queries {
            q = parts.scale(q)?;
        }
        let sinks = if attention.sinks { Some(parts.weight(&[attention.n_heads])?) } else { None };
        let (inputs, v_width) = match (&self.sliding, windowed) {
            (Some(sliding), true) => (sliding, self.caches.v_widths[1]),
            _ => (&self.full, self.caches.v_widths[0]),
        };
        let attend = Attend {
            q,
            k,
            v,
            n_kv_heads: attention.n_kv_heads,
            k_head: attention.k_head_dim,
            v_head: attention.v_head_dim,
            v_width,
            sinks,
            soft_cap: row.caps_scores,
            bias: None,
        };
        let mut attended = match (&self.blocks, &attention.indexer) {
            (Some(blocks), Some(indexer)) => parts.attend_blocks(blocks, inputs, indexer, self.positions, x, &attend)?,
            _ => parts.attend(inputs, &attend)?,
        };
        if let Some(gate) = gate {
            let dims = parts.graph.dims(attended)?;
            let flat = parts.graph.cont(gate, dims)?;
            let gate = parts.unary(flat)?;
            attended = parts.graph.product(attended, gate)?;
        }
        if let OutputGate::Own { width } = attention.gate {
            let mut gate = parts.project(x, width, Matrix::AttentionGate, false)?;
            match row.gate {
                Gate::Sigmoid => gate = parts.unary(gate)?,
                Gate::Softplus => {
                    let scaled = parts.scale(gate)?;
                    let soft = parts.unary(scaled)?;
                    gate = parts.scale(soft)?;
                }
                Gate::Biased => {
                    let by_head = parts.graph.reshape(gate, [attention.v_head_dim, attention.n_heads, tokens, 1])?;
                    let biases = parts.weight(&[attention.n_heads])?;
                    let biases = parts.graph.reshape(biases, [1, attention.n_heads, 1, 1])?;
                    let sum = parts.graph.sum(by_head, biases)?;
                    let open = parts.unary(sum)?;
                    gate = parts.graph.reshape(open, [width, tokens, 1, 1])?;
                }
            }
            attended = if width == attention.n_heads {
                let by_head = parts.graph.reshape(attended, [attention.v_head_dim, width, tokens, 1])?;
                let gate = parts.graph.reshape(gate, [1, width, tokens, 1])?;
                let gated = parts.graph.product(by_head, gate)?;
                parts.graph.reshape(gated, [mul(attention.v_head_dim, width)?, tokens, 1, 1])?
            } else {
                parts.graph.product(attended, gate)?
            };
        }
        if has_weight(layer, "attn_sub_norm.weight") {
            attended = parts.norm(attended, row.norm, false, true)?;
        }
        let bias = attention.bias.o && !parts.setting.unread.output_projection;
        let projected = parts.project(attended, d_model, Matrix::AttentionOutput, bias)?;
        if self.operations.scales_attention { parts.scale(projected) } else { Ok(projected) }
    }

    /// Both halves of every head normed, and rotated by time, height and width (`models/sensenova-u1.cpp`).
    fn rotate_halves(&self, parts: &mut Parts, x: Node) -> Result<Node, MathError> {
        let dims @ [head, heads, tokens, _] = parts.graph.dims(x)?;
        let halves = parts.graph.reshape(x, [head / 2, 2, heads, tokens])?;
        let normed = parts.bare_norm(halves, NormKind::Rms)?;
        let weights = parts.weight(&[head])?;
        let weights = parts.graph.reshape(weights, [head / 2, 2, 1, 1])?;
        let scaled = parts.graph.product(normed, weights)?;
        let mut x = parts.graph.reshape(scaled, dims)?;
        for axis in self.axes.into_iter().flatten() {
            x = parts.graph.rope(x, axis, None)?;
        }
        Ok(x)
    }

    /// Projections (`build_qkv`), each `[head, heads, tokens]`; queries only where another layer has written keys and values.
    fn queries_keys_values(
        &self,
        parts: &mut Parts,
        attention: &Attention,
        x: Node,
        tokens: u64,
    ) -> Result<(Node, Option<Node>, Option<Node>), MathError> {
        let q_head = if attention.gate == OutputGate::InQuery { mul(2, attention.k_head_dim)? } else { attention.k_head_dim };
        let bias = if parts.setting.unread.queries_keys_values { AttentionBias::NONE } else { attention.bias };
        let shapes = [
            (q_head, attention.n_heads, bias.q, Matrix::Query),
            (attention.k_head_dim, attention.n_kv_heads, bias.k, Matrix::Key),
            (attention.v_head_dim, attention.n_kv_heads, bias.v, Matrix::Value),
        ];
        let own = !matches!(attention.kv_source, KvSource::Layer { .. });
        let mut out: Vec<Node> = Vec::new();
        if attention.layout == QkvLayout::Fused {
            let mut width = 0_u64;
            for (head, heads, ..) in shapes {
                width = width.saturating_add(mul(head, heads)?);
            }
            if self.row.keeps_rows {
                // CogVLM's matrix has keys and values of as many heads as queries, whatever the file says.
                width = mul(3, mul(attention.k_head_dim, attention.n_heads)?)?;
            }
            let mut fused = parts.project(x, width, Matrix::QueryKeyValue, bias.q)?;
            if self.operations.limits_projections {
                fused = parts.graph.apply(Op::Clamp, fused, &[])?;
            }
            let row = mul(4, width)?;
            for (head, heads, ..) in shapes {
                out.push(parts.graph.view_3d(fused, [head, heads, tokens], mul(4, head)?, row)?);
            }
        } else {
            let mut before = None;
            for (head, heads, bias, matrix) in shapes {
                if !own && !out.is_empty() {
                    break;
                }
                let mut flat = match before {
                    // Values are the keys before their norm.
                    Some(keys) if out.len() == 2 && attention.layout == QkvLayout::ValueIsKey => keys,
                    _ => parts.project(x, mul(head, heads)?, matrix, bias)?,
                };
                if self.operations.limits_projections {
                    flat = parts.graph.apply(Op::Clamp, flat, &[])?;
                }
                before = Some(flat);
                if normed_flat(attention) && out.len() < 2 {
                    flat = parts.norm(flat, self.row.norm, attention.qk_norm.bias, true)?;
                }
                out.push(parts.graph.reshape(flat, [head, heads, tokens, 1])?);
            }
        }
        match out.as_slice() {
            [q] => Ok((*q, None, None)),
            [q, k, v] => Ok((*q, Some(*k), Some(*v))),
            _ => Err(MathError::Overflow { quantity: "projections" }),
        }
    }
}
