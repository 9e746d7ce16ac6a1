//! Towers that share the usual stack of layers and differ in what goes in and what comes out.

use super::layers::{Turn, Vit};
use super::{Made, NormKind, Tower};
use crate::engine::llama_cpp::graph::op::Op;
use crate::engine::llama_cpp::graph::ops::Node;
use crate::format::StorageFormat;
use crate::units::mul;

impl Tower<'_> {
    /// `models/kimivl.cpp`, `models/kimik25.cpp`: the norm before the projector looks at patches before they are merged.
    pub(super) fn kimi(&mut self) -> Made {
        let patches = self.patches();
        let (down, across) = (self.indices(patches)?, self.indices(patches)?);
        let later = self.subject.kind == "kimik25";
        let positions = if later { self.grid_of_positions()? } else { self.scaled_positions()? };
        let mut input = self.patches_of_picture()?;
        let mut vit = Vit { norm: NormKind::Mean, positions: Some(positions), turn: Turn::Halves(across, down) };
        if later {
            input = self.graph.sum(input, positions)?;
            vit.positions = None;
        }
        let hidden = self.vit(input, patches, &vit)?;
        let squares = self.merged(hidden, self.subject.merge)?;
        let ([wide, columns, ..], width) = (self.graph.dims(squares)?, self.width());
        let single = mul(columns, mul(self.subject.merge, self.subject.merge)?)?;
        let apart = self.graph.view_2d(squares, width, single, mul(4, width)?)?;
        let normed = self.norm("mm.input_norm", apart, NormKind::Mean)?;
        let joined = self.graph.view_2d(normed, wide, columns, mul(4, wide)?)?;
        self.mlp(joined, "mm.1", None, "mm.2")
    }

    /// Learned positions that the file keeps as a grid (`resize_position_embeddings_3d`).
    fn grid_of_positions(&mut self) -> Made {
        let positions = self.must("v.position_embd.weight")?;
        let ([_, wide, high, _], side, width) = (self.graph.dims(positions)?, self.across(), self.width());
        let flat = [width, mul(side, side)?, 1, 1];
        if (wide, high) == (side, side) {
            return self.graph.cont(positions, flat);
        }
        let turned = self.graph.permute(positions, [2, 1, 0, 3])?;
        let scaled = self.graph.result(Op::Upscale, StorageFormat::F32, [side, side, width, 1], &[turned])?;
        let back = self.graph.permute(scaled, [2, 1, 0, 3])?;
        self.graph.cont(back, flat)
    }

    /// `models/paddleocr.cpp`, `models/dotsocr.cpp`: a norm, then merged patches.
    pub(super) fn normed_then_merged(&mut self) -> Made {
        let positions = self.indices(mul(self.patches(), 4)?)?;
        let paddle = self.subject.kind == "paddleocr";
        let learned = if paddle { Some(self.scaled_positions()?) } else { None };
        let norm = if paddle { NormKind::Mean } else { NormKind::RootMeanSquare };
        let input = self.patches_of_picture()?;
        let vit = Vit { norm, positions: learned, turn: Turn::Sections(positions) };
        let hidden = self.vit(input, self.patches(), &vit)?;
        let normed = self.norm("mm.input_norm", hidden, NormKind::Mean)?;
        let squares = self.merged(normed, self.subject.merge)?;
        if paddle { self.mlp(squares, "mm.1", None, "mm.2") } else { self.mlp(squares, "mm.0", None, "mm.2") }
    }

    /// `models/ling3vl.cpp`.
    pub(super) fn ling3(&mut self) -> Made {
        let frames = self.two_frames()?;
        let fours = self.by_fours(frames)?;
        let input = self.biased("v.patch_embd", fours)?;
        let scaled = self.scaled_positions()?;
        let learned = self.gather_fours(scaled)?;
        let positions = self.indices(mul(self.patches(), 4)?)?;
        let vit = Vit { norm: NormKind::Mean, positions: Some(learned), turn: Turn::Sections(positions) };
        let hidden = self.vit(input, self.patches(), &vit)?;
        let normed = self.norm("mm.input_norm", hidden, NormKind::Mean)?;
        let fours = self.graph.reshape(normed, [mul(self.width(), 4)?, self.patches() / 4, 1, 1])?;
        self.mlp(fours, "mm.0", None, "mm.2")
    }

    /// `models/glm4v.cpp`: patches are merged by a convolution.
    pub(super) fn glm4(&mut self) -> Made {
        let norm = NormKind::RootMeanSquare;
        let picture = self.picture()?;
        let first = self.convolve("v.patch_embd.weight", picture, self.subject.patch)?;
        let positions = self.indices(mul(self.patches(), 4)?)?;
        let second = self.convolve("v.patch_embd.weight.1", picture, self.subject.patch)?;
        let frames = self.graph.sum(first, second)?;
        let fours = self.by_fours(frames)?;
        let mut input = self.biased("v.patch_embd", fours)?;
        if self.has("v.norm_embd.weight") || self.subject.build.norms_patches_always() {
            input = self.norm("v.norm_embd", input, norm)?;
        }
        let learned = if self.has("v.position_embd.weight") {
            let scaled = self.scaled_positions()?;
            Some(self.gather_fours(scaled)?)
        } else {
            None
        };
        let vit = Vit { norm, positions: learned, turn: Turn::Sections(positions) };
        let hidden = self.vit(input, self.patches(), &vit)?;
        let (merge, width) = (self.subject.merge, self.width());
        let tokens = self.patches().checked_div(mul(merge, merge)?).unwrap_or(0);
        let squares = self.graph.reshape(hidden, [width, merge, merge, tokens])?;
        let turned = self.graph.permute(squares, [2, 0, 1, 3])?;
        let dims = self.graph.dims(turned)?;
        let squares = self.graph.cont(turned, dims)?;
        let convolved = self.convolve("mm.patch_merger.weight", squares, merge)?;
        let [_, _, out, _] = self.graph.dims(convolved)?;
        let flat = self.graph.reshape(convolved, [out, tokens, 1, 1])?;
        let flat = self.biased("mm.patch_merger", flat)?;
        let matrix = self.must("mm.model.fc.weight")?;
        let product = self.graph.mul_mat(matrix, flat)?;
        let normed = self.norm("mm.post_norm", product, NormKind::Mean)?;
        let active = self.activate(normed)?;
        self.mlp(active, "mm.up", Some("mm.gate"), "mm.down")
    }

    /// `models/gemma4v.cpp`: positions by column and row, means of squares, every product between limits.
    pub(super) fn gemma4(&mut self) -> Made {
        self.clamps = true;
        let picture = self.picture()?;
        let picture = self.graph.apply(Op::Scale, picture, &[])?;
        let convolved = self.convolve("v.patch_embd.weight", picture, self.subject.patch)?;
        let (width, patches) = (self.width(), self.patches());
        let flat = self.graph.reshape(convolved, [patches, width, 1, 1])?;
        let turned = self.graph.transpose(flat)?;
        let rows = self.graph.cont(turned, [width, patches, 1, 1])?;
        let (input, turn) = self.by_column_and_row(rows)?;
        let hidden = self.vit(input, patches, &Vit { norm: NormKind::RootMeanSquare, positions: None, turn })?;
        let pooled = self.means_of_squares(hidden, self.subject.merge)?;
        let mut out = self.graph.apply(Op::Scale, pooled, &[])?;
        if let (Some(bias), Some(scale)) = (self.weight("v.std_bias")?, self.weight("v.std_scale")?) {
            out = self.graph.apply(Op::Sub, out, &[bias])?;
            out = self.graph.product(out, scale)?;
        }
        let normed = self.graph.apply(Op::RmsNorm, out, &[])?;
        self.product_of("mm.input_projection.weight", normed)
    }

    fn by_column_and_row(&mut self, input: Node) -> Result<(Node, Turn), crate::error::MathError> {
        let patches = self.patches();
        let (across, down) = (self.indices(patches)?, self.indices(patches)?);
        let table = self.must("v.position_embd.weight")?;
        let ([_, rows, ..], [_, row, ..]) = (self.graph.dims(table)?, self.graph.strides(table)?);
        let mut out = input;
        let width = self.width();
        let tables = [self.graph.view_2d(table, width, rows, row)?, self.graph.view_2d(table, width, rows, row)?];
        let mut chosen = [input; 2];
        for ((one, table), order) in chosen.iter_mut().zip(tables).zip([across, down]) {
            *one = self.graph.get_rows(table, order)?;
        }
        for one in chosen {
            out = self.graph.sum(out, one)?;
        }
        Ok((out, Turn::Halves(across, down)))
    }

    /// `models/gemma4uv.cpp`: no layers at all.
    pub(super) fn gemma4_unified(&mut self) -> Made {
        let picture = self.picture()?;
        let patch = self.subject.patch;
        let kernel = self.graph.blank(StorageFormat::F32, [patch, patch, 3, 1])?;
        let rows = self.unfold_as(kernel, picture, patch, StorageFormat::F32)?;
        let [row, wide, high, batch] = self.graph.dims(rows)?;
        let flat = self.graph.reshape(rows, [row, mul(mul(wide, high)?, batch)?, 1, 1])?;
        let normed = self.norm("v.patch_norm.1", flat, NormKind::Mean)?;
        let embedded = self.linear("v.patch_embd", normed)?;
        let normed = self.norm("v.patch_norm.2", embedded, NormKind::Mean)?;
        let (placed, _) = self.by_column_and_row(normed)?;
        let normed = self.norm("v.patch_norm.3", placed, NormKind::Mean)?;
        let normed = self.graph.apply(Op::RmsNorm, normed, &[])?;
        self.product_of("mm.input_projection.weight", normed)
    }

    /// `models/nemotron-v2-vl.cpp`: several registers before the patches.
    pub(super) fn nemotron(&mut self) -> Made {
        let input = self.patches_of_picture()?;
        let (class, learned) = (self.must("v.class_embd")?, self.must("v.position_embd.weight")?);
        let [_, registers, ..] = self.graph.dims(class)?;
        let placed = self.graph.sum(input, learned)?;
        let joined = self.graph.concat(class, placed, 1)?;
        let (patches, width) = (self.patches(), self.width());
        let vit = Vit { norm: NormKind::Mean, positions: None, turn: Turn::None };
        let hidden = self.vit(joined, patches.saturating_add(registers), &vit)?;
        let without = self.graph.view_2d(hidden, width, patches, mul(4, width)?)?;
        let squares = self.merged(without, self.subject.merge)?;
        let normed = self.scaled_norm("mm.model.mlp.0.weight", squares, NormKind::RootMeanSquare)?;
        let wide = self.product_of("mm.model.mlp.1.weight", normed)?;
        let active = self.activate(wide)?;
        let squared = self.graph.apply(Op::Square, active, &[])?;
        self.product_of("mm.model.mlp.3.weight", squared)
    }

    /// `models/hunyuanvl.cpp`: two convolutions, a sign after every row, one before and one after all.
    pub(super) fn hunyuan(&mut self) -> Made {
        let (patches, width, side, merge) = (self.patches(), self.width(), self.across(), self.subject.merge);
        let learned = self.graph.input(StorageFormat::F32, [width, patches, 1, 1])?;
        let input = self.patches_of_picture()?;
        let hidden = self.vit(input, patches, &Vit { norm: NormKind::Mean, positions: Some(learned), turn: Turn::None })?;
        let normed = self.scaled_norm("mm.pre_norm.weight", hidden, NormKind::RootMeanSquare)?;
        let grid = self.graph.reshape(normed, [width, side, side, 1])?;
        let turned = self.graph.permute(grid, [2, 0, 1, 3])?;
        let dims = self.graph.dims(turned)?;
        let mut grid = self.graph.cont(turned, dims)?;
        for (name, stride) in [("mm.0", merge), ("mm.2", 1)] {
            grid = self.convolve(&alloc::format!("{name}.weight"), grid, stride)?;
            let bias = self.must(&alloc::format!("{name}.bias"))?;
            let [channels, ..] = self.graph.dims(bias)?;
            let bias = self.graph.reshape(bias, [1, 1, channels, 1])?;
            grid = self.graph.sum(grid, bias)?;
            if name == "mm.0" {
                grid = self.activate(grid)?;
            }
        }
        let [_, _, channels, _] = self.graph.dims(grid)?;
        let part = side.checked_div(merge).unwrap_or(0);
        let line = self.must("v.image_newline")?;
        let line = self.graph.reshape(line, [1, 1, channels, 1])?;
        let line = self.graph.result(Op::Repeat, StorageFormat::F32, [1, part, channels, 1], &[line])?;
        let rows = self.graph.concat(grid, line, 0)?;
        let turned = self.graph.permute(rows, [1, 2, 0, 3])?;
        let flat = self.graph.cont(turned, [channels, mul(part.saturating_add(1), part)?, 1, 1])?;
        let mut out = self.linear("mm.model.fc", flat)?;
        for (name, before) in [("mm.image_begin", true), ("mm.image_end", false)] {
            let sign = self.must(name)?;
            let [wide, ..] = self.graph.dims(sign)?;
            let sign = self.graph.reshape(sign, [wide, 1, 1, 1])?;
            let [one, other] = if before { [sign, out] } else { [out, sign] };
            out = self.graph.concat(one, other, 1)?;
        }
        self.scaled_norm("mm.post_norm.weight", out, NormKind::RootMeanSquare)
    }

    /// `models/minicpmv.cpp:clip_graph_minicpmv`: learned queries gather the picture.
    pub(super) fn resampler(&mut self) -> Made {
        let patches = self.patches();
        let projection = self.must("resampler.proj.weight")?;
        let [out, ..] = self.graph.dims(projection)?;
        let omega = self.graph.input(StorageFormat::F32, [out / 4, 1, 1, 1])?;
        let down = self.graph.input(StorageFormat::F32, [1, patches, 1, 1])?;
        let across = self.graph.input(StorageFormat::F32, [1, patches, 1, 1])?;
        let order = self.indices(patches)?;
        let table = self.must("v.position_embd.weight")?;
        let learned = self.graph.get_rows(table, order)?;
        let input = self.patches_of_picture()?;
        let vit = Vit { norm: NormKind::Mean, positions: Some(learned), turn: Turn::None };
        let hidden = self.vit(input, patches, &vit)?;
        let query = self.must("resampler.query")?;
        let values = self.product_of("resampler.kv.weight", hidden)?;
        let query = self.norm("resampler.ln_q", query, NormKind::Mean)?;
        let values = self.norm("resampler.ln_kv", values, NormKind::Mean)?;
        let spread = self.graph.result(Op::Repeat, StorageFormat::F32, [out / 4, patches, 1, 1], &[omega])?;
        let mut waves = [spread; 2];
        let angles = [self.graph.product(spread, across)?, self.graph.product(spread, down)?];
        for (wave, angle) in waves.iter_mut().zip(angles) {
            let (sine, cosine) = (self.graph.apply(Op::Sine, angle, &[])?, self.graph.apply(Op::Sine, angle, &[])?);
            *wave = self.graph.concat(sine, cosine, 0)?;
        }
        let [one, other] = waves;
        let positions = self.graph.concat(one, other, 0)?;
        let keys = self.graph.sum(values, positions)?;
        let (head, queries) = (128, self.queries());
        let q = self.linear("resampler.attn.q", query)?;
        let k = self.linear("resampler.attn.k", keys)?;
        let v = self.linear("resampler.attn.v", values)?;
        let heads = out / head;
        let q = self.graph.reshape(q, [head, heads, queries, 1])?;
        let k = self.graph.reshape(k, [head, heads, patches, 1])?;
        let v = self.graph.reshape(v, [head, heads, patches, 1])?;
        let attended = self.attend([q, k, v], None, "resampler.attn.out")?;
        let normed = self.norm("resampler.ln_post", attended, NormKind::Mean)?;
        self.product_of("resampler.proj.weight", normed)
    }

    /// Queries of a resampler: as the file says, or by its version (`load_hparams`, `minicpmv_query_num`).
    fn queries(&self) -> u64 {
        let tower = self.subject.tower;
        let by_version = if matches!(tower.version, Some(3..=6 | 100_045)) { 64 } else { 96 };
        tower.queries.filter(|queries| *queries > 0).unwrap_or(by_version)
    }
}
