//! Qwen's attention models, from the first to the third generation.

use alloc::vec::Vec;

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Mixer, ModelSpec, QkvLayout, Window};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["qwen"], &["QWenLMHeadModel"], Some("qwen"), r#"{"max_position_embeddings": 8192}"#, qwen1),
    Family::new(
        &["qwen2"],
        &["Qwen2ForCausalLM", "Qwen2Model", "KORMoForCausalLM"],
        Some("qwen2"),
        r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
            "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28}"#,
        qwen2,
    ),
    Family::new(
        &["qwen2_moe"],
        &["Qwen2MoeForCausalLM"],
        Some("qwen2moe"),
        r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 32768,
            "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
            "num_experts": 60, "qkv_bias": true}"#,
        qwen2_moe,
    ),
    Family::new(
        &["qwen3"],
        &["Qwen3ForCausalLM", "Qwen3Model"],
        Some("qwen3"),
        r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
            "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28}"#,
        qwen3,
    ),
    Family::new(
        &["qwen3_moe"],
        &["Qwen3MoeForCausalLM"],
        Some("qwen3moe"),
        r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "use_sliding_window": false, "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
            "num_experts_per_tok": 8, "num_experts": 128}"#,
        qwen3_moe,
    ),
];

/// One matrix for queries, keys and values, the only one with a bias; `intermediate_size` is twice the width of the
/// two feed-forward inputs.
fn qwen1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::QKV;
    if let Some(width) = r.opt(&["kv_channels"]) {
        attention.k_head_dim = width;
        attention.v_head_dim = width;
    }
    let mut dense = Dense::gated(dims.d_ff / 2);
    if !r.flag(&["no_bias"], true) {
        attention.bias.o = true;
        dense.up_bias = true;
        dense.down_bias = true;
    }
    let layer = recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), recipe::pre_norms(dims.d_model, false));
    Ok(recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect()))
}

/// The window of each layer: `layer_types`, else the layers from `max_window_layers` on, and only when switched on.
pub(in crate::hf) fn windows(r: &Reader<'_>, n_layers: u64) -> Vec<Window> {
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0 && r.flag(&["use_sliding_window"], false));
    let first = r.opt(&["max_window_layers"]).unwrap_or(0);
    let Some(tokens) = tokens else { return (0..n_layers).map(|_| Window::Full).collect() };
    let sliding = |has_window| if has_window { Window::Sliding { tokens } } else { Window::Full };
    match recipe::layer_types(r, n_layers) {
        Some(types) => types.into_iter().map(|kind| sliding(kind == "sliding_attention")).collect(),
        None => (0..n_layers).map(|index| sliding(index >= first)).collect(),
    }
}

pub(super) fn qwen2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = AttentionBias::QKV;
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layer = recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false));
    let mut spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    recipe::set_windows(&mut spec, windows(r, dims.n_layers));
    Ok(spec)
}

fn qwen2_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.shared = recipe::shared_experts(r.need(&["shared_expert_intermediate_size"]));
    moe.shared_gate = true;
    let mut attention = dims.attention();
    if r.flag(&["qkv_bias"], true) {
        attention.bias = AttentionBias::QKV;
    }
    let layers = recipe::moe_by_sparse_step(r, dims.n_layers).into_iter().map(|has_experts| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        recipe::layer(Mixer::Attention(attention.clone()), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    recipe::set_windows(&mut spec, windows(r, dims.n_layers));
    Ok(spec)
}

pub(super) fn qwen3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layer = recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false));
    let mut spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    recipe::set_windows(&mut spec, windows(r, dims.n_layers));
    Ok(spec)
}

pub(super) fn qwen3_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let layers = recipe::moe_by_sparse_step(r, dims.n_layers).into_iter().map(|has_experts| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        recipe::layer(Mixer::Attention(attention.clone()), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    // All layers have the window when it is switched on.
    let window = r.opt(&["sliding_window"]).filter(|_| r.flag(&["use_sliding_window"], false));
    recipe::set_windows(&mut spec, recipe::windows(r, dims.n_layers, window, recipe::Alternation::All));
    Ok(spec)
}
