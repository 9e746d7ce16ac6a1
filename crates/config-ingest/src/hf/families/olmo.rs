//! The OLMo models of Ai2.

use plimsoll_math::spec::{Dense, FeedForward, Mixer, ModelSpec};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["olmo"],
        &["OlmoForCausalLM", "OLMoForCausalLM"],
        Some("olmo"),
        r#"{"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        olmo,
    ),
    Family::new(
        &["olmo2"],
        &["Olmo2ForCausalLM"],
        Some("olmo2"),
        r#"{"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        olmo2,
    ),
    Family::new(
        &["olmo3"],
        &["Olmo3ForCausalLM"],
        Some("olmo2"),
        r#"{"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "sliding_window": 4096}"#,
        olmo2,
    ),
    Family::new(
        &["olmoe"],
        &["OlmoeForCausalLM"],
        Some("olmoe"),
        r#"{"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 16, "max_position_embeddings": 4096, "num_experts_per_tok": 8, "num_experts": 64}"#,
        olmoe,
    ),
    Family::new(
        &["flex_olmo"],
        &["FlexOlmoForCausalLM"],
        None,
        r#"{"vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 4096, "num_experts_per_tok": 5, "num_experts": 7}"#,
        flex_olmo,
    ),
];

/// Norms without weights.
fn olmo(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, Default::default());
    spec.head.norm = None;
    Ok(spec)
}

/// Norms after both halves and over whole queries and keys; in the third generation every fourth layer sees everything.
fn olmo2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_whole(&dims);
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, recipe::post_norms(dims.d_model));
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 4 });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

fn olmoe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_whole(&dims);
    let moe = FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff));
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), moe, recipe::pre_norms(dims.d_model, false)))
}

fn flex_olmo(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = olmoe(r)?;
    for layer in &mut spec.layers {
        layer.norms = recipe::post_norms(spec.d_model);
    }
    Ok(spec)
}
