//! Whisper's tower with its projectors (`models/whisper-enc.cpp`).

use super::layers::{Turn, Vit};
use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

impl Tower<'_> {
    pub(super) fn whisper(&mut self) -> Made {
        let frames = self.subject.side;
        let bands = self.subject.tower.bands.unwrap_or(0);
        let mut sound = self.graph.input(StorageFormat::F32, [frames, bands, 1, 1])?;
        for (name, stride) in [("a.conv1d.1", 1), ("a.conv1d.2", 2)] {
            sound = self.convolve_frames(name, sound, stride)?;
            sound = self.activate(sound)?;
        }
        let turned = self.graph.transpose(sound)?;
        let dims = self.graph.dims(turned)?;
        let input = self.graph.cont(turned, dims)?;
        let tokens = frames / 2;
        let table = self.must("a.position_embd.weight")?;
        let ([width, ..], [_, row, ..]) = (self.graph.dims(table)?, self.graph.strides(table)?);
        let positions = self.graph.view_2d(table, width, tokens, row)?;
        let vit = Vit { norm: NormKind::Mean, positions: Some(positions), turn: Turn::None };
        let hidden = self.vit(input, tokens, &vit)?;
        self.heard(hidden)
    }

    /// A convolution over time, half of the kernel beyond both ends, with its bias (`ggml.c:ggml_conv_1d_ph`).
    fn convolve_frames(&mut self, name: &str, input: Node, stride: u64) -> Made {
        let kernel = self.must(&alloc::format!("{name}.weight"))?;
        let ([size, channels, out, _], [length, _, planes, _]) = (self.graph.dims(kernel)?, self.graph.dims(input)?);
        let gone = || MathError::Overflow { quantity: "graph" };
        let span = add(length, mul(size / 2, 2)?)?.checked_sub(size).ok_or_else(gone)?;
        let places = add(span.checked_div(stride).ok_or_else(gone)?, 1)?;
        let format = if self.graph.format(kernel)? == StorageFormat::Bf16 { StorageFormat::F32 } else { StorageFormat::F16 };
        let row = mul(size, channels)?;
        let rows = self.graph.result(Op::Im2Col, format, [row, places, planes, 1], &[kernel, input])?;
        let flat = self.graph.reshape(rows, [row, mul(planes, places)?, 1, 1])?;
        let kernel = self.graph.reshape(kernel, [row, out, 1, 1])?;
        let product = self.graph.mul_mat(flat, kernel)?;
        let product = self.graph.reshape(product, [places, planes, out, 1])?;
        let turned = self.graph.permute(product, [0, 2, 1, 3])?;
        let dims = self.graph.dims(turned)?;
        let result = self.graph.cont(turned, dims)?;
        self.biased(name, result)
    }

    /// Frames side by side, the last ones filled up (`build_stack`).
    fn stacked(&mut self, input: Node) -> Made {
        let factor = self.subject.tower.stacked_frames.unwrap_or(0);
        if factor <= 1 {
            return Ok(input);
        }
        let [width, tokens, ..] = self.graph.dims(input)?;
        let (elements, stride) = (mul(width, tokens)?, mul(self.width(), factor)?);
        let full = elements.div_ceil(stride.max(1)).saturating_mul(stride);
        let mut flat = input;
        if full > elements {
            flat = self.graph.view_1d(flat, elements)?;
            flat = self.graph.result(Op::Pad, StorageFormat::F32, [full, 1, 1, 1], &[flat])?;
        }
        self.graph.view_2d(flat, stride, full.checked_div(stride).unwrap_or(0), mul(4, stride)?)
    }

    fn heard(&mut self, input: Node) -> Made {
        let mut hidden = input;
        if matches!(self.subject.kind, "ultravox" | "voxtral" | "meralion") {
            hidden = self.stacked(hidden)?;
        }
        match self.subject.kind {
            "ultravox" => {
                hidden = self.scaled_norm("mm.a.norm_pre.weight", hidden, NormKind::RootMeanSquare)?;
                let wide = self.product_of("mm.a.mlp.1.weight", hidden)?;
                let gated = self.graph.glu_halves(wide)?;
                let normed = self.scaled_norm("mm.a.norm_mid.weight", gated, NormKind::RootMeanSquare)?;
                self.product_of("mm.a.mlp.2.weight", normed)
            }
            "qwen2a" => self.linear("mm.a.fc", hidden),
            "meralion" => {
                hidden = self.norm("mm.a.norm_pre", hidden, NormKind::Mean)?;
                let compressed = self.linear("mm.a.mlp.0", hidden)?;
                let compressed = self.activate(compressed)?;
                let gate = self.linear("mm.a.mlp.1", compressed)?;
                let gate = self.activate(gate)?;
                let pool = self.linear("mm.a.mlp.2", compressed)?;
                let gated = self.graph.product(gate, pool)?;
                self.linear("mm.a.mlp.3", gated)
            }
            "glma" => {
                hidden = self.norm("mm.a.norm_pre", hidden, NormKind::Mean)?;
                hidden = self.stacked(hidden)?;
                hidden = self.mlp(hidden, "mm.a.mlp.1", None, "mm.a.mlp.2")?;
                let (begin, end) = (self.must("v.boi")?, self.must("v.eoi")?);
                hidden = self.graph.concat(begin, hidden, 1)?;
                self.graph.concat(hidden, end, 1)
            }
            _ => self.mlp(hidden, "mm.a.mlp.1", None, "mm.a.mlp.2"),
        }
    }
}
