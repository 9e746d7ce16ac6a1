//! The towers of DeepSeek-VL2 and DeepSeek-OCR. Their configs name published encoders and repeat only part of their
//! sizes; the rest stands in the released modeling code.

use alloc::format;

use plimsoll_math::spec::AttentionBias;
use plimsoll_math::tensor::Shape;

use super::{Block, Draft, Row, added};
use crate::hf::reader::Reader;
use crate::hf::recipe::truncated;

pub(super) const ROWS: &[Row] = &[
    Row {
        model_types: &["deepseek_vl2_siglip"],
        defaults: r#"{"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "image_size": 384, "mlp_ratio": 3.7362}"#,
        build: siglip,
    },
    Row { model_types: &["deepseek_ocr_sam"], defaults: r#"{"width": {"sam_vit_b": {}}}"#, build: sam },
    Row { model_types: &["deepseek_ocr_clip"], defaults: r#"{"width": {"clip-l-14-224": {}}}"#, build: clip },
    Row { model_types: &["deepseek_ocr_qwen2"], defaults: r#"{"width": {"qwen2-0-5b": {}}}"#, build: qwen2 },
];

/// SigLIP with its pooling head, which the checkpoint keeps though the model reads patches.
fn siglip(r: &Reader<'_>) -> Draft {
    let d = r.need(&["width"]);
    let n_heads = r.need_below(&["heads"], r.limits().heads);
    let patch = r.need_below(&["patch_size"], r.limits().width);
    let side = r.need_below(&["image_size"], r.limits().width).checked_div(patch).unwrap_or(0);
    let ratio = r.keep(r.config.f64(&["mlp_ratio"])).unwrap_or(4.0);
    let d_ff = truncated(d, ratio).unwrap_or_else(|| {
        r.invalid("mlp_ratio", ratio, "a factor that leads to a width");
        0
    });
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch.saturating_mul(patch).saturating_mul(3), d, true);
    draft.tensor("position_embd.weight", Shape::matrix(d, side.saturating_mul(side)));
    draft.blocks(r.need_below(&["layers"], r.limits().layers), &Block::vit(d, n_heads, d_ff)).norm("post_ln", d, true);
    draft.tensor("pool.latent", Shape::vector(d)).linear("pool.q", d, d, true);
    draft.linear("pool.kv", d, d.saturating_mul(2), true).linear("pool.out", d, d, true);
    draft.norm("pool.norm", d, true).linear("pool.up", d, d_ff, true).linear("pool.down", d_ff, d, true);
    draft
}

/// The object under `width` that describes one encoder.
fn part<'a>(r: &Reader<'a>, name: &str) -> Reader<'a> {
    r.child(&["width"]).and_then(|width| width.child(&[name])).unwrap_or_else(|| r.clone())
}

/// SAM's ViT-B with the convolutions that DeepSeek put behind it.
fn sam(r: &Reader<'_>) -> Draft {
    let own = part(r, "sam_vit_b");
    let limits = r.limits();
    let d = own.opt_below(&["width"], limits.width).unwrap_or(768);
    let n_heads = own.opt_below(&["heads"], limits.heads).unwrap_or(12).max(1);
    let n_layers = own.opt_below(&["layers"], limits.layers).unwrap_or(12);
    let global = own.list(&["global_attn_indexes"]).unwrap_or_else(|| [2, 5, 8, 11].to_vec());
    let mut channels = own.list(&["downsample_channels"]).unwrap_or_else(|| [512, 1024].to_vec());
    // OCR 2 writes SAM's own channels down; its code leads to the width of the encoder that follows.
    if let (Some(last), Some(follower)) = (channels.last_mut(), r.child(&["width"]).and_then(|w| w.child(&["qwen2-0-5b"]))) {
        *last = follower.opt_below(&["dim"], limits.width).unwrap_or(896);
    }
    let (image, patch, window, neck) = (1024_u64, 16_u64, 14_u64, 256_u64);
    let side = image / patch;
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch * patch * 3, d, true);
    draft.tensor("position_embd.weight", Shape::stack(d, side, side));
    draft.blocks(n_layers, &Block::vit(d, n_heads, d.saturating_mul(4)));
    for index in 0..n_layers {
        // Relative positions within the window, or in the whole image.
        let span = if global.contains(&index) { side } else { window };
        for axis in ["h", "w"] {
            let shape = Shape::matrix(d / n_heads, 2 * span - 1);
            draft.tensor(&format!("blk.{index}.attn_rel_{axis}.weight"), shape);
        }
    }
    draft.linear("neck.0", d, neck, false).norm("neck.1", neck, true);
    draft.linear("neck.2", neck * 9, neck, false).norm("neck.3", neck, true);
    let mut before = neck;
    for (index, channels) in channels.into_iter().enumerate() {
        draft.linear(&format!("down.{index}"), before.saturating_mul(9), channels.min(limits.width), false);
        before = channels.min(limits.width);
    }
    draft.d_output = before;
    draft
}

/// CLIP's ViT-L/14 behind SAM.
fn clip(r: &Reader<'_>) -> Draft {
    let own = part(r, "clip-l-14-224");
    let limits = r.limits();
    let d = own.opt_below(&["width"], limits.width).unwrap_or(1024);
    let n_heads = own.opt_below(&["heads"], limits.heads).unwrap_or(16);
    let patch = own.opt_below(&["patch_size"], limits.width).unwrap_or(14);
    let side = own.opt_below(&["image_size"], limits.width).unwrap_or(224).checked_div(patch).unwrap_or(0);
    let mut draft = Draft::vision(d);
    draft.tensor("clip.class_embd", Shape::vector(d));
    draft.linear("clip.patch_embd", patch.saturating_mul(patch).saturating_mul(3), d, false);
    draft.tensor("clip.position_embd.weight", Shape::matrix(d, added(side.saturating_mul(side), 1)));
    draft.norm("clip.pre_ln", d, true);
    draft.blocks(own.opt_below(&["layers"], limits.layers).unwrap_or(24), &Block::vit(d, n_heads, d.saturating_mul(4)));
    draft
}

/// A Qwen2 0.5B as encoder behind SAM, with learned queries for both resolutions.
fn qwen2(r: &Reader<'_>) -> Draft {
    let own = part(r, "qwen2-0-5b");
    let d = own.opt_below(&["dim"], r.limits().width).unwrap_or(896);
    let block = Block {
        n_kv_heads: 2,
        bias: AttentionBias::QKV,
        gated: true,
        ff_bias: false,
        norm_bias: false,
        ..Block::vit(d, 14, 4864)
    };
    let mut draft = Draft::vision(d);
    draft.blocks(24, &block).norm("qwen2.post_ln", d, false);
    draft.tensor("query_768.weight", Shape::matrix(d, 144)).tensor("query_1024.weight", Shape::matrix(d, 256));
    draft
}
