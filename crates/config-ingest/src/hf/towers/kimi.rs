//! Kimi K3's vision tower: a MoonViT without biases whose heads are wider than its hidden state.

use plimsoll_math::spec::AttentionBias;
use plimsoll_math::tensor::Shape;

use super::{Block, Draft, Row, patch_elements};
use crate::hf::reader::Reader;

pub(super) const ROWS: &[Row] =
    &[Row { model_types: &["kimi_k3_vision"], defaults: r#"{"merge_kernel_size": [2, 2]}"#, build: vision }];

fn vision(r: &Reader<'_>) -> Draft {
    let limits = r.limits();
    let d = r.need(&["vt_hidden_size", "hidden_size"]);
    let n_heads = r.need_below(&["vt_num_attention_heads", "num_attention_heads"], limits.heads);
    let width = r.opt_below(&["qkv_hidden_size"], limits.width).unwrap_or(d);
    let (attn_bias, bias) = (r.flag(&["attn_bias"], false), r.flag(&["linear_bias"], false));
    let block = Block {
        head_dim: r.divide("vt_num_attention_heads", width, n_heads),
        bias: if attn_bias { AttentionBias::ALL } else { AttentionBias::NONE },
        ff_bias: bias,
        norm_bias: r.text(&["norm_type"]) == Some("layernorm"),
        ..Block::vit(d, n_heads, r.need(&["vt_intermediate_size", "intermediate_size"]))
    };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch_elements(r, &["num_channels"]), d, r.flag(&["patch_embed_proj_bias"], false));
    let grid = ["init_pos_emb_height", "init_pos_emb_width"].map(|key| r.need_below(&[key], limits.width));
    let [height, wide] = grid;
    draft.tensor("position_embd.weight", Shape::stack(d, wide, height));
    draft.blocks(r.need_below(&["vt_num_hidden_layers", "num_hidden_layers"], limits.layers), &block);
    draft.norm("post_ln", d, block.norm_bias);
    let merged = r.list(&["merge_kernel_size"]).unwrap_or_default();
    let patches: u64 = merged.iter().fold(1, |all, side| all.saturating_mul(*side));
    draft.d_output = d.saturating_mul(patches);
    draft
}
