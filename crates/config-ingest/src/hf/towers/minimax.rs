//! MiniMax M3's vision tower with its two-stage projector.

use super::{Block, Draft, Row, patch_elements};
use crate::hf::reader::Reader;

pub(super) const ROWS: &[Row] = &[Row {
    model_types: &["minimax_m3_vl_vision"],
    defaults: r#"{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_channels": 3, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}"#,
    build: vision,
}];

fn vision(r: &Reader<'_>) -> Draft {
    let d_model = r.need(&["hidden_size"]);
    let n_heads = r.need_below(&["num_attention_heads"], r.limits().heads);
    let mut draft = Draft::vision(d_model);
    let frames = r.need(&["temporal_patch_size"]);
    draft.linear("patch_embd", patch_elements(r, &["num_channels"]).saturating_mul(frames), d_model, false);
    draft.norm("pre_ln", d_model, true);
    let block = Block::vit(d_model, n_heads, r.need(&["intermediate_size"]));
    draft.blocks(r.need_below(&["num_hidden_layers"], r.limits().layers), &block);
    let side = r.need_below(&["spatial_merge_size"], r.limits().width);
    draft.d_output = side.saturating_mul(side);
    draft
}
