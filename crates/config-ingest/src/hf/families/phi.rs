//! Microsoft's Phi models.

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, LmHead, Mixer, ModelSpec, QkNorm, QkvLayout, Window};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["phi", "phi-msft"],
        &["PhiForCausalLM"],
        Some("phi2"),
        r#"{"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        phi,
    ),
    Family::new(&["mixformer-sequential"], &["MixFormerSequentialForCausalLM"], None, "", phi),
    Family::new(
        &["phi3"],
        &["Phi3ForCausalLM"],
        Some("phi3"),
        r#"{"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 4096}"#,
        phi3,
    ),
    Family::new(&["phi3small"], &["Phi3SmallForCausalLM"], None, r#"{"dense_attention_every_n_layers": 2}"#, phi3_small),
    Family::new(
        &["phimoe"],
        &["PhiMoEForCausalLM", "PhimoeForCausalLM"],
        Some("phimoe"),
        r#"{"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "num_experts_per_tok": 2, "num_local_experts": 16}"#,
        phi_moe,
    ),
];

/// Both halves read the same norm; biases everywhere, also on the output matrix.
fn phi(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read_times_four(r);
    let mut attention = dims.attention();
    attention.bias = AttentionBias::ALL;
    if r.family.llama_cpp.is_none() {
        attention.layout = QkvLayout::Fused;
    }
    if r.flag(&["qk_layernorm"], false) {
        attention.qk_norm = QkNorm { bias: true, ..recipe::qk_norm_per_head(dims.head_dim) };
    }
    let feed_forward = FeedForward::Dense(Dense::plain(dims.d_ff, true));
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, recipe::one_norm(dims.d_model, true));
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    recipe::add_head_bias(&mut spec);
    Ok(spec)
}

/// Fused projections, no biases; the window applies to all layers.
pub(super) fn phi3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    let dense = Dense { fused_gate_up: true, ..Dense::gated(dims.d_ff) };
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    recipe::set_windows(&mut spec, recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::All));
    let rotated = recipe::rotated(r, dims.head_dim, 1.0);
    spec.embedding.extra.extend(recipe::rope_factors(r, rotated));
    Ok(spec)
}

/// Gated in one matrix (`gegelu`), biases everywhere, tied; every other layer is block-sparse, whose cache is whole.
fn phi3_small(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let d_ff = match r.opt(&["ff_intermediate_size"]) {
        Some(width) => width,
        None => dims.d_model.saturating_mul(r.need(&["ff_dim_multiplier"])),
    };
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    let dense = Dense { fused_gate_up: true, up_bias: true, down_bias: true, ..Dense::gated(d_ff) };
    let norms = recipe::pre_norms(dims.d_model, true);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    spec.head.lm_head = LmHead::Tied;
    Ok(spec)
}

fn phi_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    if let Some(tokens) = r.opt(&["sliding_window"]) {
        attention.window = Window::Sliding { tokens };
    }
    let moe = FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff));
    let norms = recipe::pre_norms(dims.d_model, true);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), moe, norms);
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    if r.flag(&["lm_head_bias"], false) {
        recipe::add_head_bias(&mut spec);
    }
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}
