//! What follows the last layer: embeddings that are handed out, pooled where a context is made for them, and logits
//! (`src/llama-graph.cpp:build_pooling`, `build_logits`, `build_dense_out`).

use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Head, Pooling};

/// The rows of a matrix of the output by its name, 0 for none.
fn rows_of(head: &Head, name: &str) -> u64 {
    let weight = head.extra.iter().find(|weight| weight.name == name);
    weight.map_or(0, |weight| {
        let [_, rows, ..] = weight.shape.0;
        rows
    })
}

fn has(head: &Head, name: &str) -> bool {
    head.extra.iter().any(|weight| weight.name == name)
}

impl Parts {
    /// Ends a graph: `embedded` is the last hidden state, `logits` what the output matrix makes of it.
    pub(super) fn finish(&mut self, head: &Head, embedded: Node, logits: Option<Node>) -> Result<(), MathError> {
        self.graph.output(embedded)?;
        let Some(pooling) = self.setting.pooling else {
            return match logits {
                Some(logits) => self.hand_out(logits),
                None => self.graph.expand(embedded),
            };
        };
        if !self.setting.pools_before_logits {
            // Each architecture's own graph ends with its logits.
            match logits {
                Some(logits) => self.hand_out(logits)?,
                None => self.graph.expand(embedded)?,
            }
        }
        let pooled = self.pool(head, embedded, pooling)?;
        self.hand_out(pooled)?;
        if let (Some(logits), true, Pooling::None) = (logits, self.setting.pools_before_logits, pooling) {
            self.hand_out(logits)?;
        }
        self.project_pooled(head, pooled)
    }

    fn hand_out(&mut self, x: Node) -> Result<(), MathError> {
        self.graph.output(x)?;
        self.graph.expand(x)
    }

    /// One vector for each sequence.
    fn pool(&mut self, head: &Head, embedded: Node, pooling: Pooling) -> Result<Node, MathError> {
        match pooling {
            Pooling::None => Ok(embedded),
            Pooling::Mean => self.mean(embedded),
            Pooling::First | Pooling::Last => self.chosen_tokens(embedded),
            Pooling::Rank { mean } => {
                let mut x = if mean { self.mean(embedded)? } else { self.chosen_tokens(embedded)? };
                if has(head, "cls.weight") {
                    x = self.linear_bias(x, rows_of(head, "cls.weight"), has(head, "cls.bias"))?;
                    x = self.unary(x)?;
                    if has(head, "cls.norm.weight") {
                        x = self.norm(x, NormKind::Layer, false, false)?;
                    }
                }
                if has(head, "cls.output.weight") {
                    x = self.linear_bias(x, rows_of(head, "cls.output.weight"), has(head, "cls.output.bias"))?;
                }
                if self.setting.ranks_by_softmax { self.soft_max(x) } else { Ok(x) }
            }
        }
    }

    fn mean(&mut self, embedded: Node) -> Result<Node, MathError> {
        let (tokens, sequences) = (self.setting.tokens, self.setting.sequences);
        let weights = self.graph.input(Self::F32, [tokens, sequences, 1, 1])?;
        let turned = self.graph.transpose(embedded)?;
        let dims = self.graph.dims(turned)?;
        let turned = self.graph.cont(turned, dims)?;
        self.graph.mul_mat(turned, weights)
    }

    /// The first or the last token of each sequence.
    fn chosen_tokens(&mut self, embedded: Node) -> Result<Node, MathError> {
        let chosen = self.graph.input(StorageFormat::I32, [self.setting.sequences, 1, 1, 1])?;
        self.graph.get_rows(embedded, chosen)
    }

    /// Projections that follow pooling (EmbeddingGemma).
    fn project_pooled(&mut self, head: &Head, pooled: Node) -> Result<(), MathError> {
        let mut x = pooled;
        for name in ["dense_2", "dense_3"] {
            let rows = rows_of(head, &alloc::format!("{name}.weight"));
            if rows > 0 {
                x = self.linear(x, rows)?;
            }
            let bias = head.extra.iter().find(|weight| weight.name == "dense_2.bias").filter(|_| name == "dense_2");
            if let Some(bias) = bias {
                let vector = self.weight(&[bias.shape.row()])?;
                x = self.graph.apply(Op::Add, x, &[vector])?;
            }
        }
        if x == pooled { Ok(()) } else { self.hand_out(x) }
    }
}
