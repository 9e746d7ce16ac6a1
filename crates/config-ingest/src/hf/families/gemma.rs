//! Gemma 1 and 2: tied embeddings, wide heads, norms around both halves from the second generation on.

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Mixer, ModelSpec};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["gemma"],
        &["GemmaForCausalLM"],
        Some("gemma"),
        r#"{"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
            "tie_word_embeddings": true}"#,
        gemma,
    ),
    Family::new(
        &["gemma2"],
        &["Gemma2ForCausalLM"],
        Some("gemma2"),
        r#"{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
            "sliding_window": 4096, "tie_word_embeddings": true}"#,
        gemma2,
    ),
    Family::new(
        &["vaultgemma"],
        &["VaultGemmaForCausalLM"],
        None,
        r#"{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
            "sliding_window": 4096, "tie_word_embeddings": true}"#,
        vaultgemma,
    ),
];

/// Layers of the first generation, which the later ones vary.
fn body(r: &Reader<'_>) -> (Dims, ModelSpec) {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layer = recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false));
    let spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    (dims, spec)
}

fn gemma(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(body(r).1)
}

fn vaultgemma(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let (dims, mut spec) = body(r);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 2 });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

fn gemma2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = vaultgemma(r)?;
    for layer in &mut spec.layers {
        layer.norms = recipe::sandwich_norms(spec.d_model);
    }
    Ok(spec)
}
