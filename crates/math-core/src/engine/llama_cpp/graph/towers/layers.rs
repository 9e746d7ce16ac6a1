//! Layers of a vision transformer (`clip.cpp:build_vit`, `build_attn`, `build_ffn`).

use alloc::format;
use alloc::string::ToString;

use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::flash::Heads;
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::mul;

/// Kinds whose old files have the two matrices of a feed-forward under each other's names (`load_tensors`,
/// `is_ffn_swapped`).
const SWAPPED: &[&str] = &[
    "mlp",
    "ldp",
    "ldpv2",
    "qwen2vl_merger",
    "qwen2.5vl_merger",
    "exaone4_5",
    "adapter",
    "gemma3",
    "idefics3",
    "resampler",
    "minicpmv4_6",
    "minicpmv4_7",
    "minicpm_ocr_1_0",
];

/// Positions that queries and keys are turned by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Turn {
    /// None.
    None,
    /// Half of a head by the one, half by the other (`build_rope_2d`).
    Halves(Node, Node),
    /// By four numbers for each patch (`ggml_rope_multi`).
    Sections(Node),
}

/// What differs between kinds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vit {
    pub(super) norm: NormKind,
    pub(super) positions: Option<Node>,
    pub(super) turn: Turn,
}

impl Tower<'_> {
    /// The stack of layers over `tokens` columns, with the norms around it (`build_vit`).
    pub(super) fn vit(&mut self, input: Node, tokens: u64, vit: &Vit) -> Made {
        let mut hidden = input;
        if let Some(positions) = vit.positions {
            hidden = self.graph.sum(hidden, positions)?;
        }
        let width = self.width();
        hidden = self.graph.reshape(hidden, [width, tokens, 1, 1])?;
        let (before, mut after) = (format!("{}.pre_ln", self.letter()), format!("{}.post_ln", self.letter()));
        if self.has(&format!("{before}.weight")) {
            hidden = self.norm(&before, hidden, vit.norm)?;
        }
        for layer in 0..self.subject.tower.layers {
            hidden = self.layer(hidden, layer, tokens, vit)?;
        }
        if matches!(self.subject.kind, "qwen2a" | "voxtral" | "musicflamingo") {
            hidden = self.means_of_pairs(hidden)?;
        }
        // The norm after the layers goes by another name there (`load_tensors`, `post_trunk_norm`).
        if matches!(self.subject.kind, "dots_ocr" | "dots3note_v") {
            after = "mm.post_norm".to_string();
        }
        if self.has(&format!("{after}.weight")) {
            hidden = self.norm(&after, hidden, vit.norm)?;
        }
        let [_, left, ..] = self.graph.dims(hidden)?;
        self.graph.reshape(hidden, [width, left, 1, 1])
    }

    /// Means of two tokens that follow each other (`build_vit`, `audio_has_avgpool`).
    fn means_of_pairs(&mut self, input: Node) -> Made {
        let turned = self.graph.transpose(input)?;
        let dims = self.graph.dims(turned)?;
        let rows = self.graph.cont(turned, dims)?;
        let [tokens, width, ..] = dims;
        let pooled = self.graph.result(Op::Pool, StorageFormat::F32, [tokens / 2, width, 1, 1], &[rows])?;
        let back = self.graph.transpose(pooled)?;
        self.graph.cont(back, [width, tokens / 2, 1, 1])
    }

    fn layer(&mut self, input: Node, layer: u64, tokens: u64, vit: &Vit) -> Made {
        let stem = format!("{}.blk.{layer}", self.letter());
        let normed = self.norm(&format!("{stem}.ln1"), input, vit.norm)?;
        let [q, k, v] = self.heads_of(normed, &stem, tokens, vit.norm)?;
        let (q, k) = (self.turned(q, vit.turn)?, self.turned(k, vit.turn)?);
        let v = if self.subject.kind == "gemma4v" { self.graph.apply(Op::RmsNorm, v, &[])? } else { v };
        let mut hidden = self.attend([q, k, v], None, &format!("{stem}.attn_out"))?;
        hidden = self.scaled(&format!("{stem}.ls1.weight"), hidden)?;
        if self.has(&format!("{stem}.attn_post_norm.weight")) {
            hidden = self.scaled_norm(&format!("{stem}.attn_post_norm.weight"), hidden, vit.norm)?;
        }
        let middle = self.graph.sum(hidden, input)?;
        hidden = self.norm(&format!("{stem}.ln2"), middle, vit.norm)?;
        hidden = self.feed_forward(hidden, &stem)?;
        if self.has(&format!("{stem}.ffn_post_norm.weight")) {
            hidden = self.scaled_norm(&format!("{stem}.ffn_post_norm.weight"), hidden, vit.norm)?;
        }
        hidden = self.scaled(&format!("{stem}.ls2.weight"), hidden)?;
        hidden = self.graph.sum(middle, hidden)?;
        self.scaled(&format!("{stem}.out_scale.weight"), hidden)
    }

    /// Queries, keys and values, each `[head, heads, tokens]`.
    fn heads_of(&mut self, input: Node, stem: &str, tokens: u64, norm: NormKind) -> Result<[Node; 3], MathError> {
        let (head, heads, kv_heads) = (self.head(), self.heads(), self.kv_heads());
        if self.has(&format!("{stem}.attn_qkv.weight")) {
            let all = self.linear(&format!("{stem}.attn_qkv"), input)?;
            let mut parts = self.views_of_heads(all, tokens)?;
            for (part, name) in parts.iter_mut().zip(["attn_q_norm", "attn_k_norm"]) {
                let name = format!("{stem}.{name}.weight");
                if self.has(&name) {
                    *part = self.scaled_norm(&name, *part, norm)?;
                }
            }
            return Ok(parts);
        }
        let mut parts = [input; 3];
        for (part, name) in parts.iter_mut().zip(["attn_q", "attn_k", "attn_v"]) {
            *part = self.linear(&format!("{stem}.{name}"), input)?;
        }
        let per_head = self.dims_of(&format!("{stem}.attn_q_norm.weight")).is_some_and(|[row, ..]| row == head);
        for after in [false, true] {
            if after {
                for (part, count) in parts.iter_mut().zip([heads, kv_heads, kv_heads]) {
                    *part = self.graph.reshape(*part, [head, count, tokens, 1])?;
                }
            }
            if per_head == after {
                for (part, name) in parts.iter_mut().zip(["attn_q_norm", "attn_k_norm"]) {
                    let name = format!("{stem}.{name}.weight");
                    if self.has(&name) {
                        *part = self.scaled_norm(&name, *part, norm)?;
                    }
                }
            }
        }
        Ok(parts)
    }

    /// Queries, keys and values that lie side by side.
    pub(super) fn views_of_heads(&mut self, all: Node, tokens: u64) -> Result<[Node; 3], MathError> {
        let (head, heads) = (self.head(), self.heads());
        let [_, row, ..] = self.graph.strides(all)?;
        let outer = [mul(4, head)?, row, mul(row, tokens)?];
        let mut parts = [all; 3];
        for part in &mut parts {
            *part = self.graph.view(all, [head, heads, tokens, 1], outer)?;
        }
        Ok(parts)
    }

    pub(super) fn turned(&mut self, input: Node, turn: Turn) -> Made {
        match turn {
            Turn::None => Ok(input),
            Turn::Halves(first, second) => {
                let half = self.graph.rope(input, first, None)?;
                self.graph.rope(half, second, None)
            }
            Turn::Sections(positions) => self.graph.rope(input, positions, None),
        }
    }

    /// Attention of all tokens to each other, and the projection of what comes of it (`build_attn`).
    pub(super) fn attend(&mut self, [q, k, v]: [Node; 3], mask: Option<Node>, out: &str) -> Made {
        for part in [q, k, v] {
            self.graph.expand(part)?;
        }
        let ([head, heads, tokens, _], [_, kv_heads, ..]) = (self.graph.dims(q)?, self.graph.dims(k)?);
        let width = mul(head, heads)?;
        let q = self.graph.permute(q, [0, 2, 1, 3])?;
        let k = self.graph.permute(k, [0, 2, 1, 3])?;
        let flat = if self.flash {
            let v = self.graph.permute(v, [0, 2, 1, 3])?;
            let k = self.graph.cast(k, StorageFormat::F16)?;
            let v = self.graph.cast(v, StorageFormat::F16)?;
            let casts = mask.is_some() && self.subject.build.casts_masks_of_towers();
            let mask = match mask {
                Some(mask) if casts => Some(self.graph.cast(mask, StorageFormat::F16)?),
                mask => mask,
            };
            let shared = heads.checked_div(kv_heads).unwrap_or(1);
            self.note_kernel(Heads { k: head, v: head, shared }, mask.is_some() && tokens.is_multiple_of(256));
            let attended = self.graph.flash_attention(q, k, v, mask, None)?;
            self.graph.reshape(attended, [width, tokens, 1, 1])?
        } else {
            let v = self.graph.permute(v, [1, 2, 0, 3])?;
            let dims = self.graph.dims(v)?;
            let v = self.graph.cont(v, dims)?;
            let scores = self.graph.mul_mat(k, q)?;
            let shares = match mask {
                Some(mask) => self.graph.apply(Op::SoftMax, scores, &[mask])?,
                None => self.graph.apply(Op::SoftMax, scores, &[])?,
            };
            let attended = self.graph.mul_mat(v, shares)?;
            let turned = self.graph.permute(attended, [0, 2, 1, 3])?;
            self.graph.cont(turned, [width, tokens, 1, 1])?
        };
        if self.has(&format!("{out}.weight")) { self.linear(out, flat) } else { self.biased(out, flat) }
    }

    /// The feed-forward of a layer.
    pub(super) fn feed_forward(&mut self, input: Node, stem: &str) -> Made {
        let down = self.dims_of(&format!("{stem}.ffn_down.weight"));
        let swapped = SWAPPED.contains(&self.subject.kind) && down.is_some_and(|[row, ..]| row == self.width());
        let (up, down) = if swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") };
        self.mlp(input, &format!("{stem}.{up}"), Some(&format!("{stem}.ffn_gate")), &format!("{stem}.{down}"))
    }

    /// Two matrices with a function between them, gated where the file has a gate (`build_ffn`).
    pub(super) fn mlp(&mut self, input: Node, up: &str, gate: Option<&str>, down: &str) -> Made {
        let wide = self.linear(up, input)?;
        let gate = gate.filter(|gate| self.has(&format!("{gate}.weight")));
        let hidden = match gate {
            Some(gate) => {
                let gate = self.linear(gate, input)?;
                self.graph.glu(gate, wide)?
            }
            None => self.activate(wide)?,
        };
        self.linear(down, hidden)
    }
}
