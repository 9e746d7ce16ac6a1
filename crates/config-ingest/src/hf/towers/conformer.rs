//! Audio towers: Whisper's encoder and conformers.

use alloc::format;

use plimsoll_math::spec::AttentionBias;
use plimsoll_math::tensor::Shape;

use super::{Block, Draft, Row, added};
use crate::hf::reader::Reader;

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        model_types: &["qwen2_audio_encoder", "whisper", "voxtral_encoder"],
        defaults: r#"{"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "num_mel_bins": 128, "max_source_positions": 1500}"#,
        build: whisper,
    },
    Row {
        model_types: &["qwen2_5_omni_audio_encoder"],
        defaults: r#"{"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "num_mel_bins": 128, "output_dim": 3584}"#,
        build: qwen2_5_omni,
    },
    Row {
        model_types: &["qwen3_omni_moe_audio_encoder"],
        defaults: r#"{"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "num_mel_bins": 128, "output_dim": 3584, "downsample_hidden_size": 480}"#,
        build: qwen3_omni,
    },
    Row {
        model_types: &["gemma3n_audio"],
        defaults: r#"{"hidden_size": 1536, "input_feat_size": 128, "conf_num_attention_heads": 8,
            "conf_num_hidden_layers": 12, "conf_conv_kernel_size": 5, "sscp_conv_channel_size": [128, 32]}"#,
        build: gemma3n,
    },
    Row {
        model_types: &["gemma4_audio"],
        defaults: r#"{"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "conv_kernel_size": 5,
            "subsampling_conv_channels": [128, 32], "use_clipped_linears": true, "output_proj_dims": 1536}"#,
        build: gemma4,
    },
    Row {
        model_types: &["phi4_multimodal_audio"],
        defaults: r#"{"hidden_size": 1024, "intermediate_size": 1536, "num_blocks": 24, "num_attention_heads": 16,
            "ext_pw_out_channel": 1024, "depthwise_separable_out_channel": 1024, "depthwise_multiplier": 1, "kernel_size": 3,
            "input_size": 80, "time_reduction": 8, "bias_max_distance": 1000, "bias_symmetric": false,
            "nemo_conv_channels": 1024, "nemo_final_size": 10}"#,
        build: phi4,
    },
    Row {
        model_types: &["granite_speech_encoder"],
        defaults: r#"{"input_dim": 160, "num_layers": 10, "hidden_dim": 1024, "feedforward_mult": 4, "num_heads": 8,
            "dim_head": 128, "output_dim": 42, "max_pos_emb": 512, "conv_kernel_size": 15, "conv_expansion_factor": 2}"#,
        build: granite,
    },
    Row {
        model_types: &["blip_2_qformer"],
        defaults: r#"{"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "encoder_hidden_size": 1408,
            "cross_attention_frequency": 2}"#,
        build: qformer,
    },
];

/// Whisper's blocks: keys have no bias.
fn whisper_blocks(r: &Reader<'_>, draft: &mut Draft) {
    let d = draft.d_model();
    let heads = r.need_below(&["num_attention_heads", "encoder_attention_heads"], r.limits().heads);
    let block = Block::vit(d, heads, r.need(&["intermediate_size", "encoder_ffn_dim"]));
    let bias = AttentionBias { k: false, ..AttentionBias::ALL };
    let layers = r.need_below(&["num_hidden_layers", "encoder_layers"], r.limits().layers);
    draft.blocks(layers, &Block { bias, ..block }).norm("post_ln", d, true);
}
fn whisper_convolutions(r: &Reader<'_>, draft: &mut Draft) {
    let d = draft.d_model();
    let mel = r.need(&["num_mel_bins"]);
    draft.linear("conv.0", mel.saturating_mul(3), d, true).linear("conv.1", d.saturating_mul(3), d, true);
}

fn whisper(r: &Reader<'_>) -> Draft {
    let mut draft = Draft::audio(r.need(&["hidden_size", "d_model"]));
    whisper_convolutions(r, &mut draft);
    draft.tensor("position_embd.weight", Shape::matrix(draft.d_model(), r.need(&["max_source_positions"])));
    whisper_blocks(r, &mut draft);
    // Four frames become one where the projector is as wide as the feed-forward (Voxtral).
    draft.d_output = r.need(&["intermediate_size", "encoder_ffn_dim"]);
    draft
}

fn qwen2_5_omni(r: &Reader<'_>) -> Draft {
    let mut draft = Draft::audio(r.need(&["d_model"]));
    let (d, d_out) = (draft.d_model(), r.need(&["output_dim"]));
    whisper_convolutions(r, &mut draft);
    whisper_blocks(r, &mut draft);
    // Marks of beginning and end, and the projection.
    draft.tensor("bos_eos.weight", Shape::matrix(d_out, 2)).linear("proj", d, d_out, true);
    draft
}

fn qwen3_omni(r: &Reader<'_>) -> Draft {
    let d = r.need(&["d_model"]);
    let (hidden, d_out) = (r.need(&["downsample_hidden_size"]), r.need(&["output_dim"]));
    let heads = r.need_below(&["encoder_attention_heads"], r.limits().heads);
    let mut draft = Draft::audio(d);
    let square = hidden.saturating_mul(9);
    draft.linear("conv.0", 9, hidden, true).linear("conv.1", square, hidden, true).linear("conv.2", square, hidden, true);
    // Three convolutions of stride two over the mel bins.
    let bins = (0..3).fold(r.need(&["num_mel_bins"]), |bins, _| bins.saturating_add(1) / 2);
    draft.linear("conv_out", hidden.saturating_mul(bins), d, false);
    draft.blocks(r.need_below(&["encoder_layers"], r.limits().layers), &Block::vit(d, heads, r.need(&["encoder_ffn_dim"])));
    draft.norm("post_ln", d, true).mlp("proj", [d, d, d_out], true);
    draft
}

/// Channels of two convolutions of three by three.
fn subsampling(r: &Reader<'_>, draft: &mut Draft, name: &str) -> [u64; 2] {
    let channels = r.list(&[name]).unwrap_or_default();
    let [first, second] = channels.as_slice() else {
        r.invalid(name, format!("{} items", channels.len()), "two");
        return [0, 0];
    };
    draft.linear("conv.0", 9, *first, false).vector("conv_norm.0", *first);
    draft.linear("conv.1", first.saturating_mul(9), *second, false).vector("conv_norm.1", *second);
    [*first, *second]
}

/// One layer of Gemma's conformer: half feed-forwards around attention and a convolution.
fn gemma_layer(draft: &mut Draft, index: u64, kernel: u64, head_dim: u64) {
    let d = draft.d_model();
    let (twice, four) = (d.saturating_mul(2), d.saturating_mul(4));
    let name = |part: &str| format!("blk.{index}.{part}");
    for half in ["ffn", "ffn_1"] {
        draft.linear(&name(&format!("{half}_up")), d, four, false).linear(&name(&format!("{half}_down")), four, d, false);
        draft.vector(&name(&format!("{half}_norm")), d).vector(&name(&format!("{half}_post_norm")), d);
    }
    for which in ["q", "k", "v", "out", "k_rel"] {
        draft.linear(&name(&format!("attn_{which}")), d, d, false);
    }
    draft.vector(&name("per_dim_scale"), head_dim);
    draft.linear(&name("conv_pw1"), d, twice, false).linear(&name("conv_dw"), kernel, d, false);
    draft.linear(&name("conv_pw2"), d, d, false);
    for norm in ["attn_pre_norm", "attn_post_norm", "norm_conv", "conv_norm", "ln2"] {
        draft.vector(&name(norm), d);
    }
}

fn gemma3n(r: &Reader<'_>) -> Draft {
    let mut draft = Draft::audio(r.need(&["hidden_size"]));
    let d = draft.d_model();
    let [_, channels] = subsampling(r, &mut draft, "sscp_conv_channel_size");
    let bins = (0..2).fold(r.need(&["input_feat_size"]), |bins, _| bins.saturating_add(1) / 2);
    draft.linear("input_proj", channels.saturating_mul(bins), d, false);
    let head_dim = r.divide("conf_num_attention_heads", d, r.need_below(&["conf_num_attention_heads"], r.limits().heads));
    let kernel = r.need(&["conf_conv_kernel_size"]);
    for index in 0..r.need_below(&["conf_num_hidden_layers"], r.limits().layers) {
        gemma_layer(&mut draft, index, kernel, head_dim);
    }
    draft
}

fn gemma4(r: &Reader<'_>) -> Draft {
    let mut draft = Draft::audio(r.need(&["hidden_size"]));
    let d = draft.d_model();
    let [first, second] = subsampling(r, &mut draft, "subsampling_conv_channels");
    draft.linear("input_proj", (first / 4).saturating_mul(second), d, false);
    let head_dim = r.divide("num_attention_heads", d, r.need_below(&["num_attention_heads"], r.limits().heads));
    let kernel = r.need(&["conv_kernel_size"]);
    let layers = r.need_below(&["num_hidden_layers"], r.limits().layers);
    for index in 0..layers {
        gemma_layer(&mut draft, index, kernel, head_dim);
    }
    if r.flag(&["use_clipped_linears"], true) {
        // Smallest and largest input and output of the ten clipped matrices of each layer.
        draft.buffer("clip_ranges", layers.saturating_mul(10 * 4));
    }
    draft.d_output = r.need(&["output_proj_dims"]);
    draft.linear("output_proj", d, draft.d_output, true);
    draft
}

fn phi4(r: &Reader<'_>) -> Draft {
    let mut draft = Draft::audio(r.need(&["hidden_size"]));
    let d = draft.d_model();
    let wide = r.need(&["intermediate_size"]);
    let channels = r.need(&["nemo_conv_channels"]);
    let input = r.need(&["input_size"]);
    draft.buffer("global_mean", input).buffer("global_invstd", input);
    // A convolution, then pairs of a depthwise and a pointwise one, each halving time until it is reduced enough.
    let halvings = u64::from(r.need(&["time_reduction"]).max(1).ilog2());
    draft.linear("conv.0", 9, channels, true);
    for index in 1..halvings {
        draft.linear(&format!("conv.{index}.dw"), 9, channels, true);
        draft.linear(&format!("conv.{index}.pw"), channels, channels, true);
    }
    draft.linear("embed.out", channels.saturating_mul(r.need(&["nemo_final_size"])), d, true);
    let distance = r.need(&["bias_max_distance"]);
    let buckets = if r.flag(&["bias_symmetric"], false) { distance } else { distance.saturating_mul(2) };
    draft.tensor("relative_bias.weight", Shape::matrix(r.need_below(&["num_attention_heads"], r.limits().heads), buckets));
    let (pointwise, depthwise) = (r.need(&["ext_pw_out_channel"]), r.need(&["depthwise_separable_out_channel"]));
    let kernel = r.need(&["kernel_size"]);
    let expanded = d.saturating_mul(r.need(&["depthwise_multiplier"]));
    for index in 0..r.need_below(&["num_blocks"], r.limits().layers) {
        let name = |part: &str| format!("blk.{index}.{part}");
        for half in ["ffn", "ffn_1"] {
            draft.norm(&name(&format!("{half}_norm")), d, true);
            draft.linear(&name(&format!("{half}_gate_up")), d, wide.saturating_mul(2), true);
            draft.linear(&name(&format!("{half}_down")), wide, d, true);
        }
        draft.attention(&format!("blk.{index}"), d).norm(&name("conv_ln"), d, true);
        draft
            .linear(&name("conv_glu"), d, pointwise.saturating_mul(2), true)
            .vector(&name("glu_bias"), pointwise.saturating_mul(2));
        draft.linear(&name("conv_dw"), kernel, expanded, true).linear(&name("conv_pw"), expanded, depthwise, true);
        draft.linear(&name("conv_out"), depthwise, pointwise, true).norm(&name("ln1"), d, true).norm(&name("ln2"), d, true);
    }
    draft
}

fn granite(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_dim"]);
    let mut draft = Draft::audio(d);
    let width = r.need_below(&["num_heads"], r.limits().heads).saturating_mul(r.need(&["dim_head"]));
    let wide = d.saturating_mul(r.need(&["feedforward_mult"]));
    let inner = d.saturating_mul(r.need(&["conv_expansion_factor"]));
    // Distances in both directions, and none.
    let distances = added(r.need(&["max_pos_emb"]).saturating_mul(2), 1);
    draft.linear("input", r.need(&["input_dim"]), d, true);
    for index in 0..r.need_below(&["num_layers"], r.limits().layers) {
        let name = |part: &str| format!("blk.{index}.{part}");
        for half in ["ffn", "ffn_1"] {
            draft.norm(&name(&format!("{half}_norm")), d, true);
            draft.linear(&name(&format!("{half}_up")), d, wide, true).linear(&name(&format!("{half}_down")), wide, d, true);
        }
        draft.norm(&name("ln1"), d, true).linear(&name("attn_q"), d, width, false);
        draft.linear(&name("attn_kv"), d, width.saturating_mul(2), false).linear(&name("attn_out"), width, d, true);
        draft.tensor(&name("attn_rel_pos.weight"), Shape::matrix(r.need(&["dim_head"]), distances));
        draft.norm(&name("conv_ln"), d, true).linear(&name("conv_pw1"), d, inner.saturating_mul(2), true);
        draft.linear(&name("conv_dw"), r.need(&["conv_kernel_size"]), inner, false).norm(&name("conv_norm"), inner, true);
        draft.buffer(&name("conv_norm.mean"), inner).buffer(&name("conv_norm.var"), inner).buffer(&name("conv_norm.count"), 1);
        draft.linear(&name("conv_pw2"), inner, d, true).norm(&name("ln2"), d, true);
    }
    let classes = r.need(&["output_dim"]);
    draft.linear("out", d, classes, true).linear("out_mid", classes, d, true);
    draft
}

/// BLIP-2's querying transformer: queries attend to each other in every layer, and to the encoder in some.
fn qformer(r: &Reader<'_>) -> Draft {
    let (d, wide) = (r.need(&["hidden_size"]), r.need(&["intermediate_size"]));
    let mut draft = Draft::audio(d);
    let d_encoder = r.need(&["encoder_hidden_size"]);
    let every = r.need_below(&["cross_attention_frequency"], r.limits().layers).max(1);
    draft.norm("qf.ln", d, true);
    for index in 0..r.need_below(&["num_hidden_layers"], r.limits().layers) {
        let name = |part: &str| format!("qf.blk.{index}.{part}");
        draft.attention(&format!("qf.blk.{index}"), d).norm(&name("ln1"), d, true);
        if index.is_multiple_of(every) {
            draft.linear(&name("cross_q"), d, d, true).linear(&name("cross_k"), d_encoder, d, true);
            draft.linear(&name("cross_v"), d_encoder, d, true).linear(&name("cross_out"), d, d, true);
            draft.norm(&name("cross_ln"), d, true);
        }
        draft.linear(&name("ffn_up"), d, wide, true).linear(&name("ffn_down"), wide, d, true).norm(&name("ln2"), d, true);
    }
    draft
}
