//! From pixels to patches.

use super::{Made, Tower};
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::mul;

impl Tower<'_> {
    /// The picture (`build_inp_raw`).
    pub(super) fn picture(&mut self) -> Made {
        self.graph.input(StorageFormat::F32, [self.subject.side, self.subject.side, 3, 1])
    }

    /// A convolution that does not overlap: patches laid out in rows, multiplied by the kernel (`ggml.c:ggml_conv_2d`).
    pub(super) fn convolve(&mut self, kernel: &str, input: Node, stride: u64) -> Made {
        let kernel = self.must(kernel)?;
        let rows = self.unfold(kernel, input, stride)?;
        let ([row, wide, high, batch], [k0, k1, channels, out]) = (self.graph.dims(rows)?, self.graph.dims(kernel)?);
        let flat = self.graph.reshape(rows, [row, mul(mul(batch, high)?, wide)?, 1, 1])?;
        let kernel = self.graph.reshape(kernel, [mul(mul(k0, k1)?, channels)?, out, 1, 1])?;
        let product = self.graph.mul_mat(flat, kernel)?;
        let product = self.graph.reshape(product, [wide, high, batch, out])?;
        let turned = self.graph.permute(product, [0, 1, 3, 2])?;
        let dims = self.graph.dims(turned)?;
        self.graph.cont(turned, dims)
    }

    /// What lies under the kernel at each of its places, in a row (`ggml.c:ggml_im2col`).
    fn unfold(&mut self, kernel: Node, input: Node, stride: u64) -> Made {
        let format = if self.graph.format(kernel)? == StorageFormat::Bf16 { StorageFormat::F32 } else { StorageFormat::F16 };
        self.unfold_as(kernel, input, stride, format)
    }
    pub(super) fn unfold_as(&mut self, kernel: Node, input: Node, stride: u64, format: StorageFormat) -> Made {
        let ([k0, k1, channels, _], [wide, high, _, batch]) = (self.graph.dims(kernel)?, self.graph.dims(input)?);
        let places = |length: u64, kernel: u64| -> Result<u64, MathError> {
            let steps = length.checked_sub(kernel).and_then(|rest| rest.checked_div(stride));
            steps.map(|steps| steps.saturating_add(1)).ok_or(MathError::Overflow { quantity: "graph" })
        };
        let dims = [mul(mul(k0, k1)?, channels)?, places(wide, k0)?, places(high, k1)?, batch];
        self.graph.result(Op::Im2Col, format, dims, &[kernel, input])
    }

    /// Patches as columns (`build_inp`).
    pub(super) fn patches_of_picture(&mut self) -> Made {
        let picture = self.picture()?;
        let convolved = self.convolve("v.patch_embd.weight", picture, self.subject.patch)?;
        let (patches, width) = (self.patches(), self.width());
        let flat = self.graph.reshape(convolved, [patches, width, 1, 1])?;
        let turned = self.graph.transpose(flat)?;
        let rows = self.graph.cont(turned, [width, patches, 1, 1])?;
        self.biased("v.patch_embd", rows)
    }

    /// Two kernels over the same picture, for frames that follow each other (`build_inp_with_temporal_merge`).
    pub(super) fn two_frames(&mut self) -> Made {
        let picture = self.picture()?;
        let first = self.convolve("v.patch_embd.weight", picture, self.subject.patch)?;
        let second = self.convolve("v.patch_embd.weight.1", picture, self.subject.patch)?;
        self.graph.sum(first, second)
    }

    /// Columns of channels, four that are merged later side by side (`qwen2vl.cpp:build`).
    pub(super) fn by_fours(&mut self, input: Node) -> Made {
        let turned = self.graph.permute(input, [1, 2, 0, 3])?;
        self.gather_fours(turned)
    }
    pub(super) fn gather_fours(&mut self, input: Node) -> Made {
        let (width, across) = (self.width(), self.across());
        let pairs = [mul(width, 2)?, across / 2, across, 1];
        let rows = self.graph.cont(input, pairs)?;
        let split = self.graph.reshape(rows, [mul(width, 2)?, across / 2, 2, across / 2])?;
        let split = self.graph.permute(split, [0, 2, 1, 3])?;
        self.graph.cont(split, [width, mul(across, across)?, 1, 1])
    }

    /// Learned positions, scaled to the picture where it is not of the size that they were learned for
    /// (`resize_position_embeddings`).
    pub(super) fn scaled_positions(&mut self) -> Made {
        let positions = self.must("v.position_embd.weight")?;
        let [width, rows, ..] = self.graph.dims(positions)?;
        let (side, across) = (rows.isqrt(), self.across());
        if side == across {
            return Ok(positions);
        }
        let grid = self.graph.reshape(positions, [width, side, side, 1])?;
        let turned = self.graph.permute(grid, [2, 0, 1, 3])?;
        let scaled = self.graph.result(Op::Upscale, StorageFormat::F32, [across, across, width, 1], &[turned])?;
        let back = self.graph.permute(scaled, [1, 2, 0, 3])?;
        self.graph.cont(back, [width, mul(across, across)?, 1, 1])
    }
}
