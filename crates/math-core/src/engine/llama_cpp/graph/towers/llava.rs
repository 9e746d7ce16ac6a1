//! LLaVA's tower: outputs of chosen layers, without the class (`models/llava.cpp`).

use alloc::format;
use alloc::vec::Vec;

use super::layers::{Turn, Vit};
use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::graph::ops::Node;

impl Tower<'_> {
    pub(super) fn llava(&mut self) -> Made {
        let norm = NormKind::Mean;
        let mut hidden = self.patches_of_picture()?;
        let mut tokens = self.patches();
        if let Some(class) = self.weight("v.class_embd")? {
            hidden = self.graph.concat(hidden, class, 1)?;
            tokens = tokens.saturating_add(1);
        }
        let positions = self.indices(tokens)?;
        let table = self.must("v.position_embd.weight")?;
        let learned = self.graph.get_rows(table, positions)?;
        hidden = self.graph.sum(hidden, learned)?;
        if self.has("v.pre_ln.weight") {
            hidden = self.norm("v.pre_ln", hidden, norm)?;
        }
        let chosen = self.subject.tower.feature_layers.clone();
        // The layer before the last one, unless the file lists others.
        let deepest = chosen.iter().copied().max().unwrap_or_else(|| self.subject.tower.layers.saturating_sub(1));
        let mut kept: Vec<Node> = Vec::new();
        let vit = Vit { norm, positions: None, turn: Turn::None };
        for layer in 0..deepest {
            if chosen.contains(&layer) {
                kept.push(hidden);
            }
            hidden = self.layer_of(hidden, layer, tokens, &vit)?;
        }
        if self.has("v.post_ln.weight") {
            hidden = self.norm("v.post_ln", hidden, norm)?;
        }
        if chosen.contains(&deepest) {
            kept.push(hidden);
        }
        let mut kept = kept.into_iter();
        let mut out = kept.next().unwrap_or(hidden);
        for more in kept {
            out = self.graph.concat(out, more, 0)?;
        }
        let [width, columns, ..] = self.graph.dims(out)?;
        out = self.graph.reshape(out, [width, columns, 1, 1])?;
        let patches = self.indices(self.patches())?;
        out = self.graph.get_rows(out, patches)?;
        self.llava_projector(out)
    }

    fn llava_projector(&mut self, input: Node) -> Made {
        let first = self.linear("mm.0", input)?;
        // Yi's projector has norms after both matrices.
        if self.has("mm.3.weight") {
            let normed = self.norm("mm.1", first, NormKind::Mean)?;
            let active = self.activate(normed)?;
            let second = self.linear("mm.3", active)?;
            return self.norm("mm.4", second, NormKind::Mean);
        }
        let active = self.activate(first)?;
        if self.has("mm.2.weight") { self.linear("mm.2", active) } else { Ok(active) }
    }

    fn layer_of(&mut self, input: Node, layer: u64, tokens: u64, vit: &Vit) -> Made {
        let stem = format!("v.blk.{layer}");
        let normed = self.norm(&format!("{stem}.ln1"), input, vit.norm)?;
        let (head, heads) = (self.head(), self.heads());
        let mut parts = [normed; 3];
        for (part, name) in parts.iter_mut().zip(["attn_q", "attn_k", "attn_v"]) {
            *part = self.linear(&format!("{stem}.{name}"), normed)?;
        }
        for part in &mut parts {
            *part = self.graph.reshape(*part, [head, heads, tokens, 1])?;
        }
        let attended = self.attend(parts, None, &format!("{stem}.attn_out"))?;
        let middle = self.graph.sum(attended, input)?;
        let normed = self.norm(&format!("{stem}.ln2"), middle, vit.norm)?;
        let fed = self.feed_forward(normed, &stem)?;
        self.graph.sum(middle, fed)
    }
}
