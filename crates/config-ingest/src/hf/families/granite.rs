//! IBM's Granite attention models.

use plimsoll_math::spec::{Dense, FeedForward, Mixer, ModelSpec};
use plimsoll_math::tensor::Component;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

const MOE_DEFAULTS: &str = r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "num_local_experts": 8,
    "num_experts_per_tok": 2, "shared_intermediate_size": 0}"#;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["granite_docling_text"],
        &[],
        Some("granite"),
        r#"{"vocab_size": 133800, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "tie_word_embeddings": true}"#,
        granite,
    ),
    Family::new(
        &["granite"],
        &["GraniteForCausalLM"],
        Some("granite"),
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        granite,
    ),
    Family::new(&["granitemoe"], &["GraniteMoeForCausalLM"], Some("granitemoe"), MOE_DEFAULTS, granite_moe),
    Family::new(&["granitemoeshared"], &["GraniteMoeSharedForCausalLM"], Some("granitemoe"), MOE_DEFAULTS, granite_moe),
    Family::new(
        &["granite_swa"],
        &["GraniteSWAForCausalLM"],
        Some("granite_swa"),
        r#"{"vocab_size": 100352, "hidden_size": 2560, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 8192,
            "sliding_window": 128, "tie_word_embeddings": true}"#,
        granite_swa,
    ),
    Family::new(
        &["granitemoe_swa"],
        &["GraniteMoeSWAForCausalLM"],
        Some("granite_moe_swa"),
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "num_local_experts": 8,
            "num_experts_per_tok": 2, "shared_intermediate_size": 0, "sliding_window": 128}"#,
        granite_moe_swa,
    ),
];

fn granite(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let bias = r.flag(&["mlp_bias"], false);
    let dense = Dense { up_bias: bias, down_bias: bias, ..Dense::gated(dims.d_ff) };
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

/// The feed-forward beside the experts, where there is one, counts as a feed-forward.
fn granite_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let mut moe = recipe::experts(n_experts, top_k, dims.d_ff);
    moe.shared = recipe::shared_experts(r.opt(&["shared_intermediate_size"]).unwrap_or(0));
    moe.shared_component = Component::Mlp;
    let norms = recipe::pre_norms(dims.d_model, false);
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms))
}

/// Sinks on all layers, windows on all but every fourth.
fn with_windows(r: &Reader<'_>, mut spec: ModelSpec) -> ModelSpec {
    let n_layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    let windows = recipe::windows(r, n_layers, r.opt(&["sliding_window"]), Alternation::FullFirst { period: 4 });
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.sinks = true;
        }
    }
    recipe::set_windows(&mut spec, windows);
    spec
}

fn granite_swa(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with_windows(r, granite(r)?))
}

fn granite_moe_swa(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with_windows(r, granite_moe(r)?))
}
