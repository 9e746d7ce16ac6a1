//! Llama and the many models of its shape.

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Mixer, ModelSpec};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[Family {
    model_types: &["llama", "code_llama", "iquestcoder"],
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "IQuestCoderForCausalLM"],
    llama_cpp: Some("llama"),
    is_wrapper: false,
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": false}"#,
    build: llama,
}];

fn llama(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut dense = Dense::gated(dims.d_ff);
    dense.up_bias = r.flag(&["mlp_bias"], false);
    dense.down_bias = dense.up_bias;
    let layer = recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), recipe::pre_norms(dims.d_model, false));
    let mut spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}
