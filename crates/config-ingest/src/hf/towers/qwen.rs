//! Towers of the Qwen line and their kin: patches over frames, a merger as the last part of the tower.

use plimsoll_math::spec::{AttentionBias, QkNorm};
use plimsoll_math::tensor::Shape;

use super::{Block, Draft, Row, patch_elements};
use crate::hf::reader::Reader;

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        model_types: &["qwen2_vl_vision", "qwen2_vl"],
        defaults: r#"{"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2}"#,
        build: qwen2,
    },
    Row {
        model_types: &["qwen2_5_vl_vision", "qwen2_5_vl", "qwen2_5_omni_vision_encoder"],
        defaults: r#"{"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584}"#,
        build: qwen2_5,
    },
    Row {
        model_types: &["exaone4_5_vision"],
        defaults: r#"{"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "num_key_value_heads": 8,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584}"#,
        build: qwen2_5,
    },
    Row {
        model_types: &["qwen3_vl_vision", "qwen3_vl", "qwen3_vl_moe_vision", "qwen3_vl_moe", "qwen3_omni_moe_vision_encoder"],
        defaults: r#"{"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24]}"#,
        build: qwen3,
    },
    Row {
        model_types: &["qwen3_5_vision", "qwen3_5", "qwen3_5_moe_vision", "qwen3_5_moe"],
        defaults: r#"{"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": []}"#,
        build: qwen3,
    },
    Row {
        model_types: &["glm4v_vision", "glm4v_moe_vision", "glm4v", "glm4v_moe", "glm46v"],
        defaults: r#"{"depth": 24, "hidden_size": 1536, "intermediate_size": 13696, "num_heads": 12, "image_size": 336,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 4096}"#,
        build: glm,
    },
    Row {
        model_types: &["glm_ocr_vision", "glm_ocr"],
        defaults: r#"{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 1536, "attention_bias": true}"#,
        build: glm_ocr,
    },
    Row {
        model_types: &["glm5_next_vision"],
        defaults: r#"{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 1536, "attention_bias": true,
            "projection_intermediate_size": 10240}"#,
        build: glm_ocr,
    },
    Row {
        model_types: &["ernie4_5_vl_moe_vision", "DFNRope_vision_transformer"],
        defaults: r#"{"depth": 32, "hidden_size": 1280, "intermediate_size": 5120, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_merge_size": 2}"#,
        build: ernie,
    },
];

const CHANNELS: &[&str] = &["in_channels", "in_chans", "num_channels"];

fn depth(r: &Reader<'_>) -> u64 {
    r.need_below(&["depth"], r.limits().layers)
}
fn heads(r: &Reader<'_>) -> u64 {
    r.need_below(&["num_heads"], r.limits().heads)
}
/// Elements of a patch over all frames that it covers.
fn patch(r: &Reader<'_>) -> u64 {
    patch_elements(r, CHANNELS).saturating_mul(r.need(&["temporal_patch_size"]))
}
/// Elements of the patches that the merger joins.
fn merged(r: &Reader<'_>, d: u64) -> u64 {
    let side = r.need(&["spatial_merge_size"]);
    d.saturating_mul(side).saturating_mul(side)
}

fn qwen2(r: &Reader<'_>) -> Draft {
    let d = r.need(&["embed_dim"]);
    let merged = merged(r, d);
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch(r), d, false);
    draft.blocks(depth(r), &Block::vit(d, heads(r), d.saturating_mul(r.need(&["mlp_ratio"]))));
    draft.norm("merger.ln_q", d, true).mlp("merger", [merged, merged, r.need(&["hidden_size"])], true);
    draft
}

fn qwen2_5(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let merged = merged(r, d);
    let own = Block::vit(d, heads(r), r.need(&["intermediate_size"]));
    let n_kv_heads = r.opt_below(&["num_key_value_heads"], r.limits().heads).unwrap_or(own.n_heads);
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch(r), d, false);
    draft.blocks(depth(r), &Block { n_kv_heads, gated: true, norm_bias: false, ..own });
    draft.norm("merger.ln_q", d, false).mlp("merger", [merged, merged, r.need(&["out_hidden_size"])], true);
    draft
}

fn qwen3(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let (merged, d_out) = (merged(r, d), r.need(&["out_hidden_size"]));
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch(r), d, true);
    draft.tensor("position_embd.weight", Shape::matrix(d, r.need(&["num_position_embeddings"])));
    draft.blocks(depth(r), &Block::vit(d, heads(r), r.need(&["intermediate_size"])));
    draft.norm("merger.norm", d, true).mlp("merger", [merged, merged, d_out], true);
    // Features of intermediate layers enter the first text layers, each through a merger of its own.
    for index in r.list(&["deepstack_visual_indexes"]).unwrap_or_default() {
        let name = alloc::format!("deepstack.{index}");
        draft.norm(&alloc::format!("{name}.norm"), merged, true).mlp(&name, [merged, merged, d_out], true);
    }
    draft
}

fn glm(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let (d_out, wide) = (r.need(&["out_hidden_size"]), r.need(&["intermediate_size"]));
    let bias = if r.flag(&["attention_bias"], false) { AttentionBias::QKV } else { AttentionBias::NONE };
    // The blocks' feed-forward is as wide as the output, the merger's as `intermediate_size` (Glm4vVisionMLP).
    let block = Block { bias, gated: true, ff_bias: false, norm_bias: false, ..Block::vit(d, heads(r), d_out) };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch(r), d, true);
    draft.tensor("position_embd.weight", Shape::matrix(d, super::patches(r))).norm("post_conv_ln", d, false);
    draft.blocks(depth(r), &block).norm("post_ln", d, false).linear("downsample", merged(r, d), d_out, true);
    draft.linear("merger.proj", d_out, d_out, false).norm("merger.norm", d_out, true);
    draft.linear("merger.gate", d_out, wide, false).linear("merger.up", d_out, wide, false);
    draft.linear("merger.down", wide, d_out, false);
    draft
}

/// GLM's tower without positions and with norms on queries and keys.
fn glm_ocr(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let d_out = r.need(&["out_hidden_size"]);
    // The merger widens by the number of channels (GlmOcrVisionModel) unless the config has a width for it.
    let wide = r
        .opt_below(&["projection_intermediate_size"], r.limits().width)
        .unwrap_or_else(|| d_out.saturating_mul(r.opt(CHANNELS).unwrap_or(3)));
    let bias = r.flag(&["attention_bias"], true);
    let own = Block::vit(d, heads(r), r.need(&["intermediate_size"]));
    let block = Block {
        bias: if bias { AttentionBias::ALL } else { AttentionBias::NONE },
        gated: true,
        ff_bias: bias,
        norm_bias: false,
        qk_norm: QkNorm { q: [own.head_dim, 1], k: [own.head_dim, 1], bias: false },
        ..own
    };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch(r), d, true).blocks(depth(r), &block).norm("post_ln", d, false);
    draft.linear("downsample", merged(r, d), d_out, true);
    draft.linear("merger.proj", d_out, d_out, false).norm("merger.norm", d_out, true);
    draft.linear("merger.gate", d_out, wide, false).linear("merger.up", d_out, wide, false);
    draft.linear("merger.down", wide, d_out, false);
    draft
}

fn ernie(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size", "embed_dim"]);
    let mut draft = Draft::vision(d);
    let wide = r.opt(&["intermediate_size"]).unwrap_or_else(|| d.saturating_mul(r.need(&["mlp_ratio"])));
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, false).blocks(depth(r), &Block::vit(d, heads(r), wide));
    draft.norm("post_ln", d, true);
    // The resampler joins patches of a square, then those of frames.
    let spatial = merged(r, d);
    let temporal = spatial.saturating_mul(r.opt(&["temporal_merge_size"]).unwrap_or(2));
    draft.mlp("spatial", [spatial, spatial, spatial], true).norm("spatial.ln", spatial, true);
    draft.mlp("temporal", [temporal, spatial, spatial], true).norm("temporal.ln", spatial, true);
    draft.d_output = spatial;
    draft
}
