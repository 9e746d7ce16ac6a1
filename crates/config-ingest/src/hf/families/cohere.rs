//! Cohere's Command and Aya: one norm for both halves, tied embeddings.

use plimsoll_math::spec::{Dense, FeedForward, Mixer, ModelSpec, QkNorm};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["cohere"],
        &["CohereForCausalLM"],
        Some("command-r"),
        r#"{"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
            "num_attention_heads": 64, "max_position_embeddings": 8192, "tie_word_embeddings": true,
            "use_qk_norm": false}"#,
        cohere,
    ),
    Family::new(
        &["cohere2"],
        &["Cohere2ForCausalLM"],
        Some("cohere2"),
        r#"{"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
            "num_attention_heads": 64, "max_position_embeddings": 8192, "sliding_window": 4096,
            "sliding_window_pattern": 4, "tie_word_embeddings": true}"#,
        cohere2,
    ),
    Family::new(
        &["cohere2_moe"],
        &["Cohere2MoeForCausalLM"],
        Some("cohere2moe"),
        r#"{"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
            "num_attention_heads": 64, "head_dim": 128, "max_position_embeddings": 8192, "sliding_window": 4096,
            "sliding_window_pattern": 4, "prefix_dense_sliding_window_pattern": 1, "num_experts_per_tok": 2,
            "num_experts": 8, "num_shared_experts": 0, "tie_word_embeddings": true}"#,
        cohere2_moe,
    ),
];

fn cohere(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    if r.flag(&["use_qk_norm"], false) {
        // Every head has a norm of its own.
        attention.qk_norm = QkNorm { q: [dims.head_dim, dims.n_heads], k: [dims.head_dim, dims.n_kv_heads], bias: false };
    }
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, recipe::one_norm(dims.d_model, false)))
}

fn cohere2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let norms = recipe::one_norm(dims.d_model, false);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, norms);
    let period = r.opt(&["sliding_window_pattern", "layer_switch"]).unwrap_or(4);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// Leading dense layers follow a window pattern of their own.
fn cohere2_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, dims.d_ff);
    let n_shared = r.opt(&["num_shared_experts"]).unwrap_or(0);
    moe.shared = recipe::shared_experts(n_shared.saturating_mul(dims.d_ff));
    let d_ff_dense = r.opt(&["prefix_dense_intermediate_size"]).unwrap_or(dims.d_ff);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let layers = recipe::moe_by_types(r, dims.n_layers).into_iter().map(|has_experts| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(d_ff_dense)) };
        recipe::layer(Mixer::Attention(attention.clone()), feed_forward, recipe::one_norm(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    let window = r.opt(&["sliding_window"]);
    let n_dense = r.opt(&["first_k_dense_replace"]).unwrap_or(0).min(dims.n_layers);
    let period = |key| r.opt(&[key]).unwrap_or(1);
    let windows = if r.has(&["layer_types"]) {
        recipe::windows(r, dims.n_layers, window, Alternation::All)
    } else {
        let mut leading =
            recipe::windows(r, n_dense, window, Alternation::FullLast { period: period("prefix_dense_sliding_window_pattern") });
        let rest = Alternation::FullLast { period: period("sliding_window_pattern") };
        leading.extend(recipe::windows(r, dims.n_layers.saturating_sub(n_dense), window, rest));
        leading
    };
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}
