//! The graph of each kind of tower for images (`tools/mtmd/models`).

use super::layers::{Turn, Vit};
use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::mul;

/// Builds the graph of the tower's kind; `false` where it is not known.
pub(super) fn build(tower: &mut Tower<'_>) -> Result<bool, MathError> {
    let last = match tower.subject.kind {
        "gemma3" | "idefics3" | "lfm2" | "d1omni_v" | "janus_pro" | "phi4" => tower.siglip()?,
        "pixtral" | "lightonocr" => tower.pixtral()?,
        "internvl" => tower.internvl()?,
        "llama4" => tower.llama4()?,
        "qwen2vl_merger" | "qwen2.5vl_merger" => tower.qwen2()?,
        "qwen3vl_merger" => tower.qwen3()?,
        "mlp" => tower.llava()?,
        "kimivl" | "kimik25" => tower.kimi()?,
        "paddleocr" | "dots_ocr" => tower.normed_then_merged()?,
        "ling3vl" => tower.ling3()?,
        "glm4v" | "glm5v" => tower.glm4()?,
        "gemma4v" => tower.gemma4()?,
        "gemma4uv" => tower.gemma4_unified()?,
        "nemotron_v2_vl" => tower.nemotron()?,
        "hunyuanvl" => tower.hunyuan()?,
        "resampler" => tower.resampler()?,
        "ultravox" | "voxtral" | "qwen2a" | "musicflamingo" | "meralion" | "glma" => tower.whisper()?,
        _ => return Ok(false),
    };
    tower.graph.expand(last)?;
    Ok(true)
}

impl Tower<'_> {
    /// `models/siglip.cpp`.
    fn siglip(&mut self) -> Made {
        let input = self.patches_of_picture()?;
        let scaled = matches!(self.subject.kind, "lfm2" | "d1omni_v" | "phi4");
        let positions = if scaled { Some(self.scaled_positions()?) } else { self.weight("v.position_embd.weight")? };
        let vit = Vit { norm: NormKind::Mean, positions, turn: Turn::None };
        let hidden = self.vit(input, self.patches(), &vit)?;
        let merge = self.subject.merge;
        match self.subject.kind {
            "gemma3" => self.pooled(hidden, merge),
            "idefics3" => {
                let squares = self.merged(hidden, merge)?;
                let matrix = self.must("mm.model.fc.weight")?;
                self.graph.mul_mat(matrix, squares)
            }
            "lfm2" | "d1omni_v" => {
                let mut squares = self.merged(hidden, merge)?;
                if self.has("mm.input_norm.weight") {
                    squares = self.scaled_norm("mm.input_norm.weight", squares, NormKind::Mean)?;
                }
                squares = self.biased("mm.input_norm", squares)?;
                self.mlp(squares, "mm.1", None, "mm.2")
            }
            "janus_pro" => self.mlp(hidden, "mm.0", None, "mm.1"),
            _ => self.mlp(hidden, "mm.0", None, "mm.2"),
        }
    }

    /// Means of squares of patches, a norm and a matrix that is stored the other way round (`PROJECTOR_TYPE_GEMMA3`).
    fn pooled(&mut self, input: Node, merge: u64) -> Made {
        let rows = self.means_of_squares(input, merge)?;
        let normed = self.scaled_norm("mm.soft_emb_norm.weight", rows, NormKind::RootMeanSquare)?;
        let matrix = self.must("mm.input_projection.weight")?;
        let turned = self.graph.transpose(matrix)?;
        let dims = self.graph.dims(turned)?;
        let matrix = self.graph.cont(turned, dims)?;
        self.graph.mul_mat(matrix, normed)
    }

    /// `models/pixtral.cpp`.
    fn pixtral(&mut self) -> Made {
        let patches = self.patches();
        let (down, across) = (self.indices(patches)?, self.indices(patches)?);
        let input = self.patches_of_picture()?;
        let vit = Vit { norm: NormKind::RootMeanSquare, positions: None, turn: Turn::Halves(down, across) };
        let mut hidden = self.vit(input, patches, &vit)?;
        let merge = self.subject.merge;
        if self.has("mm.patch_merger.weight") {
            hidden = self.scaled_norm("mm.input_norm.weight", hidden, NormKind::RootMeanSquare)?;
            let side = self.across();
            let grid = self.graph.reshape(hidden, [self.width(), side, side, 1])?;
            let turned = self.graph.permute(grid, [2, 0, 1, 3])?;
            let dims = self.graph.dims(turned)?;
            let grid = self.graph.cont(turned, dims)?;
            // A view of the grid stands for the kernel, of which only the shape counts.
            let kernel = self.graph.view(grid, [merge, merge, self.width(), 1], [0, 0, 0])?;
            let rows = self.unfold_as(kernel, grid, merge, StorageFormat::F32)?;
            let [row, wide, high, _] = self.graph.dims(rows)?;
            let flat = self.graph.reshape(rows, [row, mul(wide, high)?, 1, 1])?;
            let matrix = self.must("mm.patch_merger.weight")?;
            hidden = self.graph.mul_mat(matrix, flat)?;
        }
        hidden = self.mlp(hidden, "mm.1", None, "mm.2")?;
        match self.weight("v.token_embd.img_break")? {
            Some(sign) => self.with_breaks(hidden, sign, merge),
            None => Ok(hidden),
        }
    }

    /// A sign after every row but the last.
    fn with_breaks(&mut self, input: Node, sign: Node, merge: u64) -> Made {
        let [width, ..] = self.graph.dims(input)?;
        let side = self.across().checked_div(merge).unwrap_or(0);
        let rows = self.graph.reshape(input, [width, side, side, 1])?;
        let blank = self.graph.blank(StorageFormat::F32, [width, 1, side, 1])?;
        let signs = self.graph.apply(Op::Scale, blank, &[])?;
        let signs = self.graph.sum(signs, sign)?;
        let joined = self.graph.concat(rows, signs, 1)?;
        let tokens = mul(side, side.saturating_add(1))?.saturating_sub(1);
        self.graph.view_2d(joined, width, tokens, mul(4, width)?)
    }

    /// `models/internvl.cpp`.
    fn internvl(&mut self) -> Made {
        let input = self.patches_of_picture()?;
        let class = self.must("v.class_embd")?;
        let [width, ..] = self.graph.dims(class)?;
        let class = self.graph.result(Op::Repeat, StorageFormat::F32, [width, 1, 1, 1], &[class])?;
        let first = self.subject.build.puts_class_before_patches();
        let [one, other] = if first { [class, input] } else { [input, class] };
        let input = self.graph.concat(one, other, 1)?;
        // The 6 B tower of the larger models divides by the root of the mean square.
        let large = (self.width(), self.subject.tower.layers) == (3200, 45);
        let norm = if large { NormKind::RootMeanSquare } else { NormKind::Mean };
        let positions = Some(self.must("v.position_embd.weight")?);
        let patches = self.patches();
        let hidden = self.vit(input, patches.saturating_add(1), &Vit { norm, positions, turn: Turn::None })?;
        let [_, s1, s2, _] = self.graph.strides(hidden)?;
        let without = self.graph.view_3d(hidden, [self.width(), patches, 1], s1, s2)?;
        let without = self.graph.cont(without, [self.width(), patches, 1, 1])?;
        let squares = self.shuffled(without, self.subject.merge, true)?;
        let normed = self.norm("mm.model.mlp.0", squares, NormKind::Mean)?;
        self.mlp(normed, "mm.model.mlp.1", None, "mm.model.mlp.3")
    }

    /// `models/llama4.cpp`.
    fn llama4(&mut self) -> Made {
        let (width, patches, patch) = (self.width(), self.patches(), self.subject.patch);
        let tokens = patches.saturating_add(1);
        let (down, across) = (self.indices(tokens)?, self.indices(tokens)?);
        let picture = self.picture()?;
        let matrix = self.must("v.patch_embd.weight")?;
        let kernel = self.graph.reshape(matrix, [patch, patch, 3, width])?;
        let rows = self.unfold_as(kernel, picture, patch, StorageFormat::F32)?;
        let product = self.graph.mul_mat(matrix, rows)?;
        let flat = self.graph.reshape(product, [width, patches, 1, 1])?;
        let class = self.must("v.class_embd")?;
        let input = self.graph.concat(flat, class, 1)?;
        let positions = Some(self.must("v.position_embd.weight")?);
        let vit = Vit { norm: NormKind::Mean, positions, turn: Turn::Halves(across, down) };
        let hidden = self.vit(input, tokens, &vit)?;
        let without = self.graph.view_2d(hidden, width, patches, mul(4, width)?)?;
        let mut squares = self.shuffled(without, self.subject.merge, false)?;
        for name in ["mm.model.mlp.1.weight", "mm.model.mlp.2.weight"] {
            let matrix = self.must(name)?;
            let product = self.graph.mul_mat(matrix, squares)?;
            squares = self.activate(product)?;
        }
        let matrix = self.must("mm.model.fc.weight")?;
        self.graph.mul_mat(matrix, squares)
    }
}
