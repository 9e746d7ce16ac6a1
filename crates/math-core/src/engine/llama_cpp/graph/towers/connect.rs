//! From the last layer to the language model: grids of patches made smaller.

use super::{Made, Tower};
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::format::StorageFormat;
use crate::units::mul;

impl Tower<'_> {
    /// Squares of `factor` by `factor` patches side by side, the grid filled up with zeros (`build_patch_merge_permute`).
    pub(super) fn merged(&mut self, input: Node, factor: u64) -> Made {
        let [width, ..] = self.graph.dims(input)?;
        let across = self.across();
        let mut grid = self.graph.reshape(input, [width, across, across, 1])?;
        let full = across.next_multiple_of(factor.max(1));
        if full > across {
            let format = self.graph.format(grid)?;
            grid = self.graph.result(Op::Pad, format, [width, full, full, 1], &[grid])?;
        }
        let (part, wide) = (full.checked_div(factor).unwrap_or(0), mul(width, factor)?);
        let rows = self.graph.reshape(grid, [wide, part, full, 1])?;
        let turned = self.graph.permute(rows, [0, 2, 1, 3])?;
        let squares = self.graph.cont(turned, [mul(wide, factor)?, part, part, 1])?;
        let back = self.graph.permute(squares, [0, 2, 1, 3])?;
        self.graph.cont(back, [mul(wide, factor)?, mul(part, part)?, 1, 1])
    }

    /// Means of squares of `factor` by `factor` patches.
    pub(super) fn means_of_squares(&mut self, input: Node, factor: u64) -> Made {
        let (width, across) = (self.width(), self.across());
        let turned = self.graph.transpose(input)?;
        let grid = self.graph.cont(turned, [across, across, width, 1])?;
        let part = across.checked_div(factor).unwrap_or(0);
        let pooled = self.graph.result(Op::Pool, StorageFormat::F32, [part, part, width, 1], &[grid])?;
        let flat = self.graph.reshape(pooled, [mul(part, part)?, width, 1, 1])?;
        let turned = self.graph.transpose(flat)?;
        self.graph.cont(turned, [width, mul(part, part)?, 1, 1])
    }

    /// The same as InternVL and Llama 4 spell it; `back` turns the grid back.
    pub(super) fn shuffled(&mut self, input: Node, factor: u64, back: bool) -> Made {
        let (width, across) = (self.width(), self.across());
        let (part, wide) = (across.checked_div(factor).unwrap_or(0), mul(width, factor)?);
        let rows = self.graph.reshape(input, [wide, part, across, 1])?;
        let turned = self.graph.permute(rows, [0, 2, 1, 3])?;
        let squares = self.graph.cont(turned, [mul(wide, factor)?, part, part, 1])?;
        let squares = if back { self.graph.permute(squares, [0, 2, 1, 3])? } else { squares };
        self.graph.cont(squares, [mul(wide, factor)?, mul(part, part)?, 1, 1])
    }
}
