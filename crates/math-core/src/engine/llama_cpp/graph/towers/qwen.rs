//! Qwen's towers: patches by fours, positions in four parts, attention to windows, features of inner layers.

use alloc::format;

use super::layers::Turn;
use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::graph::ops::Node;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::mul;

/// A window's mask with the order of its patches, where layers attend to windows.
#[derive(Debug, Clone, Copy)]
struct Windows {
    mask: Node,
    every: u64,
}

impl Tower<'_> {
    /// `models/qwen2vl.cpp`.
    pub(super) fn qwen2(&mut self) -> Made {
        let norm = if self.subject.kind == "qwen2.5vl_merger" { NormKind::RootMeanSquare } else { NormKind::Mean };
        let frames = self.two_frames()?;
        let mut hidden = self.by_fours(frames)?;
        let tokens = self.patches();
        let positions = self.indices(mul(tokens, 4)?)?;
        if self.has("v.pre_ln.weight") {
            hidden = self.norm("v.pre_ln", hidden, norm)?;
        }
        let every = self.subject.tower.window_pattern.unwrap_or(0);
        let windows = if every > 0 { Some(self.windows(&mut hidden, tokens, every)?) } else { None };
        for layer in 0..self.subject.tower.layers {
            hidden = self.qwen2_layer(hidden, layer, norm, positions, windows)?;
        }
        if self.has("v.post_ln.weight") {
            hidden = self.norm("v.post_ln", hidden, norm)?;
        }
        let (wide, quarter) = (mul(self.width(), 4)?, tokens / 4);
        let fours = self.graph.reshape(hidden, [wide, quarter, 1, 1])?;
        let out = self.mlp(fours, "mm.0", None, "mm.2")?;
        if windows.is_none() {
            return Ok(out);
        }
        let order = self.indices(quarter)?;
        let width = self.subject.tower.output;
        let flat = self.graph.reshape(out, [width, quarter, 1, 1])?;
        let rows = self.graph.get_rows(flat, order)?;
        self.graph.reshape(rows, [width, quarter, 1, 1])
    }

    /// Patches put in the order of windows, and the mask that keeps windows apart.
    fn windows(&mut self, hidden: &mut Node, tokens: u64, every: u64) -> Result<Windows, MathError> {
        let order = self.indices(tokens / 4)?;
        let made = self.flash && !self.subject.build.casts_masks_of_towers();
        let format = if made { StorageFormat::F16 } else { StorageFormat::F32 };
        let mut mask = self.graph.input(format, [tokens, tokens, 1, 1])?;
        if self.flash && !made {
            mask = self.graph.cast(mask, StorageFormat::F16)?;
        }
        let fours = self.graph.reshape(*hidden, [mul(self.width(), 4)?, tokens / 4, 1, 1])?;
        let rows = self.graph.get_rows(fours, order)?;
        *hidden = self.graph.reshape(rows, [self.width(), tokens, 1, 1])?;
        Ok(Windows { mask, every })
    }

    fn qwen2_layer(&mut self, input: Node, layer: u64, norm: NormKind, positions: Node, windows: Option<Windows>) -> Made {
        let stem = format!("v.blk.{layer}");
        let normed = self.norm(&format!("{stem}.ln1"), input, norm)?;
        let (head, heads, tokens) = (self.head(), self.heads(), self.patches());
        let mut parts = [normed; 3];
        for (part, name) in parts.iter_mut().zip(["attn_q", "attn_k", "attn_v"]) {
            *part = self.linear(&format!("{stem}.{name}"), normed)?;
        }
        for part in &mut parts {
            *part = self.graph.reshape(*part, [head, heads, tokens, 1])?;
        }
        let mask = windows.filter(|windows| !layer.saturating_add(1).is_multiple_of(windows.every)).map(|windows| windows.mask);
        self.rest_of_layer(input, &stem, parts, positions, mask, norm)
    }

    fn rest_of_layer(
        &mut self,
        input: Node,
        stem: &str,
        [q, k, v]: [Node; 3],
        positions: Node,
        mask: Option<Node>,
        norm: NormKind,
    ) -> Made {
        let turn = Turn::Sections(positions);
        let (q, k) = (self.turned(q, turn)?, self.turned(k, turn)?);
        let attended = self.attend([q, k, v], mask, &format!("{stem}.attn_out"))?;
        let middle = self.graph.sum(attended, input)?;
        let normed = self.norm(&format!("{stem}.ln2"), middle, norm)?;
        let fed = self.feed_forward(normed, stem)?;
        self.graph.sum(middle, fed)
    }

    /// `models/qwen3vl.cpp`.
    pub(super) fn qwen3(&mut self) -> Made {
        let norm = NormKind::Mean;
        let frames = self.two_frames()?;
        let fours = self.by_fours(frames)?;
        let input = self.biased("v.patch_embd", fours)?;
        let scaled = self.scaled_positions()?;
        let learned = self.gather_fours(scaled)?;
        let mut hidden = self.graph.sum(input, learned)?;
        let tokens = self.patches();
        let positions = self.indices(mul(tokens, 4)?)?;
        if self.has("v.pre_ln.weight") {
            hidden = self.norm("v.pre_ln", hidden, norm)?;
        }
        let mut features: Option<Node> = None;
        let merged = if self.subject.merge > 0 { mul(self.subject.merge, self.subject.merge)? } else { 4 };
        for layer in 0..self.subject.tower.layers {
            let stem = format!("v.blk.{layer}");
            let normed = self.norm(&format!("{stem}.ln1"), hidden, norm)?;
            let all = self.linear(&format!("{stem}.attn_qkv"), normed)?;
            let parts = self.views_of_heads(all, tokens)?;
            hidden = self.rest_of_layer(hidden, &stem, parts, positions, None, norm)?;
            let deep = format!("v.deepstack.{layer}");
            if self.has(&format!("{deep}.fc1.weight")) {
                let wide = self.graph.reshape(hidden, [mul(self.width(), merged)?, tokens / merged, 1, 1])?;
                let normed = self.norm(&format!("{deep}.norm"), wide, norm)?;
                let feature = self.mlp(normed, &format!("{deep}.fc1"), None, &format!("{deep}.fc2"))?;
                features = Some(match features {
                    Some(earlier) => self.graph.concat(earlier, feature, 0)?,
                    None => feature,
                });
            }
        }
        if self.has("v.post_ln.weight") {
            hidden = self.norm("v.post_ln", hidden, norm)?;
        }
        let fours = self.graph.reshape(hidden, [mul(self.width(), 4)?, tokens / 4, 1, 1])?;
        let out = self.mlp(fours, "mm.0", None, "mm.2")?;
        match features {
            Some(features) => self.graph.concat(out, features, 0),
            None => Ok(out),
        }
    }
}
