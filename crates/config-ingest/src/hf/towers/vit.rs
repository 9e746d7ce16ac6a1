//! Vision transformers with plain blocks.

use plimsoll_math::spec::{AttentionBias, Mixer, QkNorm};
use plimsoll_math::tensor::{Component, Shape};

use super::{Block, Draft, Row, added, patch_elements, patches, sides};
use crate::hf::reader::Reader;

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        model_types: &["siglip_vision_model"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 16, "vision_use_head": true}"#,
        build: siglip,
    },
    Row {
        model_types: &["siglip2_vision_model"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "patch_size": 16, "num_patches": 256, "vision_use_head": true}"#,
        build: siglip,
    },
    Row {
        model_types: &["idefics3_vision", "smolvlm_vision"],
        defaults: r#"{"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 32, "vision_use_head": false}"#,
        build: siglip,
    },
    Row {
        model_types: &["idefics2_vision"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 32, "vision_use_head": false}"#,
        build: siglip,
    },
    Row {
        model_types: &["phi4_multimodal_vision"],
        defaults: r#"{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 448, "patch_size": 14, "vision_use_head": true}"#,
        build: siglip,
    },
    Row {
        model_types: &["clip_vision_model"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 32}"#,
        build: clip,
    },
    Row {
        model_types: &["pixtral"],
        defaults: r#"{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 1024, "patch_size": 16}"#,
        build: pixtral,
    },
    Row {
        model_types: &["internvl_vision"],
        defaults: r#"{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 448, "patch_size": 14}"#,
        build: internvl,
    },
    Row {
        model_types: &["llama4_vision_model"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34, "num_attention_heads": 16,
            "image_size": 448, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096,
            "projector_output_dim": 4096, "vision_output_dim": 7680}"#,
        build: llama4,
    },
    Row {
        model_types: &["mllama_vision_model"],
        defaults: r#"{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
            "attention_heads": 16, "image_size": 448, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 7680}"#,
        build: mllama,
    },
    Row {
        model_types: &["kimi_k25_vision", "moonvit"],
        defaults: r#"{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "patch_size": 14, "pos_emb_height": 64, "pos_emb_width": 64, "merge_kernel_size": [2, 2]}"#,
        build: moon,
    },
    Row {
        model_types: &["step3p5_vision", "step3p7_vision"],
        defaults: r#"{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 47, "num_attention_heads": 16,
            "image_size": 728, "patch_size": 14}"#,
        build: step,
    },
    Row {
        model_types: &["minimax_m3_vl_vision"],
        defaults: r#"{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}"#,
        build: minimax,
    },
    Row {
        model_types: &["muse_glimmer_vision", "muse_spark_vision"],
        defaults: r#"{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 50, "num_attention_heads": 16,
            "patch_size": 14, "patch_temporal": 2, "pos_emb_height": 32, "pos_emb_width": 32}"#,
        build: muse,
    },
    Row {
        model_types: &["granite_docling_vision"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16, "out_hidden_size": 1024, "scale_factor": 4,
            "deepstack_visual_indexes": [3, 7, 10], "use_fine_route": true}"#,
        build: docling,
    },
    Row {
        model_types: &["lfm3_vl_vision"],
        defaults: r#"{"hidden_size": 1024, "intermediate_size": 2560, "num_hidden_layers": 14, "num_attention_heads": 16,
            "num_key_value_heads": 8, "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2,
            "conv_kernel_size": 3}"#,
        build: lfm3,
    },
    Row {
        model_types: &["gemma4_vision"],
        defaults: r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
            "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16, "position_embedding_size": 10240,
            "use_clipped_linears": false, "standardize": false}"#,
        build: gemma4,
    },
];

/// Elements of a patch in all its frames.
const CHANNELS: &[&str] = &["num_channels", "in_channels", "in_chans"];

fn layers(r: &Reader<'_>) -> u64 {
    r.need_below(&["num_hidden_layers", "depth", "vt_num_hidden_layers"], r.limits().layers)
}
fn block(r: &Reader<'_>, d_model: u64) -> Block {
    let n_heads =
        r.need_below(&["num_attention_heads", "num_heads", "attention_heads", "vt_num_attention_heads"], r.limits().heads);
    Block::vit(d_model, n_heads, r.need(&["intermediate_size", "vt_intermediate_size"]))
}

fn siglip(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let mut draft = Draft::vision(d);
    let block = block(r, d);
    let positions = r.opt(&["num_patches"]).unwrap_or_else(|| patches(r));
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, true).vector("position_embd", d.saturating_mul(positions));
    draft.blocks(layers(r), &block).norm("post_ln", d, true);
    if r.flag(&["vision_use_head"], true) {
        draft.vector("head.probe", d).attention("head", d).norm("head.ln", d, true);
        draft.linear("head.ffn_up", d, block.d_ff, true).linear("head.ffn_down", block.d_ff, d, true);
    }
    draft
}

fn clip(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let mut draft = Draft::vision(d);
    draft.vector("class_embd", d).linear("patch_embd", patch_elements(r, CHANNELS), d, false);
    draft.tensor("position_embd.weight", Shape::matrix(d, added(patches(r), 1)));
    draft.norm("pre_ln", d, true).blocks(layers(r), &block(r, d)).norm("post_ln", d, true);
    draft
}

fn pixtral(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let block = block(r, d);
    // A head's size follows from their number; the key of that name is not read (PixtralAttention).
    let _ = r.opt(&["head_dim"]);
    let block = Block { bias: AttentionBias::NONE, gated: true, ff_bias: false, norm_bias: false, ..block };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, false).norm("pre_ln", d, false).blocks(layers(r), &block);
    draft
}

fn internvl(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let qkv = r.flag(&["attention_bias"], false);
    let norm_bias = r.text(&["norm_type"]).unwrap_or("layer_norm") == "layer_norm";
    let qk_norm = if r.flag(&["use_qk_norm"], false) { QkNorm { q: [d, 1], k: [d, 1], bias: false } } else { QkNorm::default() };
    let bias = AttentionBias { q: qkv, k: qkv, v: qkv, o: true };
    let block = Block { bias, norm_bias, qk_norm, scales: &["ls1", "ls2"], ..block(r, d) };
    let mut draft = Draft::vision(d);
    draft.vector("class_embd", d).linear("patch_embd", patch_elements(r, CHANNELS), d, true);
    if r.flag(&["use_mask_token"], false) {
        draft.vector("mask_token", d);
    }
    if r.flag(&["use_absolute_position_embeddings"], true) {
        draft.tensor("position_embd.weight", Shape::matrix(d, added(patches(r), 1)));
    }
    draft.blocks(layers(r), &block);
    if !r.flag(&["use_mean_pooling"], true) {
        draft.norm("post_ln", d, true);
    }
    draft
}

fn llama4(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let block = block(r, d);
    let mut draft = Draft::vision(d);
    draft.vector("class_embd", d).linear("patch_embd", patch_elements(r, CHANNELS), d, false);
    draft.tensor("position_embd.weight", Shape::matrix(d, added(patches(r), 1)));
    let (n_in, n_out) = (r.need(&["projector_input_dim"]), r.need(&["projector_output_dim"]));
    draft.norm("pre_ln", d, true).norm("post_ln", d, true);
    // Pixel shuffle gathers as many pixels as the feed-forward is wide (Llama4VisionMLP2).
    draft.blocks(layers(r), &block).linear("adapter.0", block.d_ff, n_in, false).linear("adapter.2", n_out, n_out, false);
    draft.d_output = r.need(&["vision_output_dim"]);
    draft
}

fn mllama(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let block = Block { bias: AttentionBias::NONE, ..block(r, d) };
    let positions = added(patches(r), 1);
    let tiles = r.need(&["max_num_tiles"]);
    // One more than the aspect ratios: 0 stands for padding.
    let ratios = match r.config.raw(&["supported_aspect_ratios"]) {
        Some((serde_json::Value::Array(list), _)) => added(u64::try_from(list.len()).unwrap_or(u64::MAX), 1),
        _ => 9,
    };
    let mut draft = Draft::vision(d);
    draft.vector("class_embd", d).linear("patch_embd", patch_elements(r, CHANNELS), d, false);
    draft.tensor("position_embd.weight", Shape::matrix(d, positions)).vector("position_embd.gate", 1);
    draft.tensor("tile_position_embd.weight", Shape([d, positions, tiles, ratios]));
    for name in ["pre_tile_embd", "post_tile_embd"] {
        draft.vector(&alloc::format!("{name}.gate"), 1);
        draft.tensor(&alloc::format!("{name}.weight"), Shape::stack(d, tiles, ratios));
    }
    draft.norm("pre_ln", d, true).norm("post_ln", d, true).blocks(layers(r), &block);
    let global = r.need_below(&["num_global_layers"], r.limits().layers);
    draft.blocks(global, &block).tensor("global.gates", Shape::matrix(2, global));
    draft.d_output = r.need(&["vision_output_dim"]);
    draft
}

fn moon(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size", "vt_hidden_size"]);
    let mut draft = Draft::vision(d);
    let height = r.need(&["pos_emb_height", "init_pos_emb_height"]);
    let width = r.need(&["pos_emb_width", "init_pos_emb_width"]);
    draft
        .linear("patch_embd", patch_elements(r, CHANNELS), d, true)
        .tensor("position_embd.weight", Shape::stack(d, width, height));
    draft.blocks(layers(r), &block(r, d)).norm("post_ln", d, true);
    let [down, right] = sides(r, "merge_kernel_size");
    draft.d_output = d.saturating_mul(down).saturating_mul(right);
    draft
}

fn muse(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let positions = r.need(&["pos_emb_height"]).saturating_mul(r.need(&["pos_emb_width"]));
    let patch = patch_elements(r, CHANNELS).saturating_mul(r.need(&["patch_temporal"]));
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch, d, false).tensor("position_embd.weight", Shape::matrix(d, positions));
    draft.norm("pre_ln", d, true).blocks(layers(r), &block(r, d)).norm("post_ln", d, true);
    draft
}

/// SigLIP with a connector of two routes, coarse and fine; each takes features of intermediate layers too.
fn docling(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let d_out = r.need(&["out_hidden_size"]);
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, true);
    draft.tensor("position_embd.weight", Shape::matrix(d, patches(r))).blocks(layers(r), &block(r, d));
    draft.norm("post_ln", d, true).norm("mm.ln_in", d, true);
    let deep = r.list(&["deepstack_visual_indexes"]).unwrap_or_default();
    let side = r.need(&["scale_factor"]);
    let fine = r.flag(&["use_fine_route"], true);
    for (route, side) in [("coarse", side), ("fine", side / 2)].into_iter().take(if fine { 2 } else { 1 }) {
        let wide = d.saturating_mul(side).saturating_mul(side);
        draft.linear(&alloc::format!("mm.{route}"), wide, d_out, false);
        for index in &deep {
            let name = alloc::format!("mm.{route}.deepstack.{index}");
            draft.norm(&alloc::format!("{name}.norm"), wide, true).mlp(&name, [wide, d_out, d_out], true);
        }
    }
    draft.norm("mm.ln_mid", d_out, true).linear("mm.fc2", d_out, d_out, false).norm("mm.ln_out", d_out, true);
    draft
}

/// Short convolutions over the image between grouped-query attention.
fn lfm3(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let n_layers = layers(r);
    let own = block(r, d);
    let block = Block {
        n_kv_heads: r.need_below(&["num_key_value_heads"], r.limits().heads),
        bias: AttentionBias::NONE,
        gated: true,
        ff_bias: false,
        norm_bias: false,
        qk_norm: QkNorm { q: [own.head_dim, 1], k: [own.head_dim, 1], bias: false },
        ..own
    };
    let attends: alloc::vec::Vec<bool> = match crate::hf::recipe::layer_types(r, n_layers) {
        Some(types) => types.into_iter().map(|kind| kind != "conv").collect(),
        None => (0..n_layers).map(|index| index >= 2 && index.is_multiple_of(2)).collect(),
    };
    let kernel = r.need(&["conv_kernel_size"]);
    let patch = patch_elements(r, CHANNELS).saturating_mul(r.need(&["temporal_patch_size"]));
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch, d, false).norm("pre_ln", d, false).blocks(n_layers, &block);
    for (index, (layer, attends)) in draft.tower.layers.iter_mut().zip(&attends).enumerate() {
        if !attends {
            layer.mixer = Mixer::None;
            let part = |name: &str, shape| {
                crate::hf::recipe::weight(&alloc::format!("{name}.{index}.weight"), shape, Component::VisionAudio)
            };
            layer.extra.extend([
                part("conv.in_proj", Shape::matrix(d, d.saturating_mul(3))),
                part("conv.spatial", Shape::stack(kernel, kernel, d)),
                part("conv.out_proj", Shape::matrix(d, d)),
            ]);
        }
    }
    let side = r.need(&["spatial_merge_size"]);
    draft.d_output = d.saturating_mul(side).saturating_mul(side);
    draft
}

fn step(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size", "width"]);
    let block = Block { scales: &["ls1", "ls2"], ..block(r, d) };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, false);
    draft.tensor("position_embd.weight", Shape::matrix(d, patches(r))).norm("pre_ln", d, true).blocks(layers(r), &block);
    // Two convolutions of three by three, each halving the sides and doubling the channels.
    let (twice, four) = (d.saturating_mul(2), d.saturating_mul(4));
    draft.linear("downsample.0", d.saturating_mul(9), twice, true).linear("downsample.1", twice.saturating_mul(9), four, true);
    draft.d_output = four;
    draft
}

fn minimax(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let mut draft = Draft::vision(d);
    let patch = patch_elements(r, CHANNELS).saturating_mul(r.need(&["temporal_patch_size"]));
    draft.linear("patch_embd", patch, d, false).norm("pre_ln", d, true).blocks(layers(r), &block(r, d));
    let side = r.need(&["spatial_merge_size"]);
    // Patches that the projector merges after its first two matrices.
    draft.d_output = side.saturating_mul(side);
    draft
}

fn gemma4(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let n_layers = layers(r);
    let own = block(r, d);
    let head_dim = r.need(&["head_dim"]);
    let n_kv_heads = r.need_below(&["num_key_value_heads"], r.limits().heads);
    let bias = if r.flag(&["attention_bias"], false) { AttentionBias::ALL } else { AttentionBias::NONE };
    let block = Block {
        head_dim,
        n_kv_heads,
        bias,
        gated: true,
        ff_bias: false,
        norms: &["ln1", "attn_post_norm", "ln2", "ffn_post_norm"],
        norm_bias: false,
        qk_norm: QkNorm { q: [head_dim, 1], k: [head_dim, 1], bias: false },
        ..own
    };
    let mut draft = Draft::vision(d);
    draft.linear("patch_embd", patch_elements(r, CHANNELS), d, false);
    draft.tensor("position_embd.weight", Shape::stack(d, r.need(&["position_embedding_size"]), 2));
    draft.blocks(n_layers, &block);
    if r.flag(&["standardize"], false) {
        draft.buffer("std_bias", d).buffer("std_scale", d);
    }
    if r.flag(&["use_clipped_linears"], false) {
        // Smallest and largest input and output of the seven matrices of each layer.
        draft.buffer("clip_ranges", n_layers.saturating_mul(7 * 4));
    }
    draft
}
