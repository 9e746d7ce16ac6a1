//! GLM's attention models, and Solar Open, which has their shape.

use alloc::vec::Vec;

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Layer, Mixer, ModelSpec, Moe, MtpLayer, QkvLayout, Weight};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["chatglm"],
        &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
        Some("chatglm"),
        r#"{"add_qkv_bias": true, "add_bias_linear": false, "rmsnorm": true, "post_layer_norm": true}"#,
        chatglm,
    ),
    Family::new(
        &["glm"],
        &["GlmForCausalLM"],
        Some("chatglm"),
        r#"{"vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
            "attention_bias": true}"#,
        glm,
    ),
    Family::new(
        &["glm4"],
        &["Glm4ForCausalLM"],
        Some("glm4"),
        r#"{"vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
            "attention_bias": true}"#,
        glm4,
    ),
    Family::new(
        &["glm4_moe"],
        &["Glm4MoeForCausalLM"],
        Some("glm4moe"),
        r#"{"vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
            "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "attention_bias": false, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1,
            "n_routed_experts": 128, "first_k_dense_replace": 1, "use_qk_norm": false,
            "num_nextn_predict_layers": 1}"#,
        glm4_moe,
    ),
    Family::new(
        &["solar_open"],
        &["SolarOpenForCausalLM"],
        Some("glm4moe"),
        r#"{"vocab_size": 196608, "hidden_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072, "attention_bias": false,
            "moe_intermediate_size": 1280, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128}"#,
        solar_open,
    ),
];

/// ChatGLM 2 and 3: multi-query groups, one matrix for gate and up. Checkpoints store the rope frequencies.
fn chatglm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read(r);
    let multi_query = r.flag(&["multi_query_attention"], false);
    dims.n_kv_heads = if multi_query { r.need_below(&["multi_query_group_num"], r.limits().heads) } else { dims.n_heads };
    dims.head_dim = r.opt(&["kv_channels"]).unwrap_or(dims.head_dim);
    let all = r.flag(&["add_bias_linear"], false);
    let qkv = all || r.flag(&["add_qkv_bias"], true);
    let mut attention = dims.attention();
    attention.bias = AttentionBias { q: qkv, k: qkv, v: qkv, o: all };
    let dense = Dense { fused_gate_up: true, up_bias: all, down_bias: all, ..Dense::gated(dims.d_ff) };
    let norms = recipe::pre_norms(dims.d_model, !r.flag(&["rmsnorm"], true));
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    // Its body class carries the output matrix as well.
    spec.head.lm_head = plimsoll_math::spec::LmHead::Own { bias: false };
    if !r.flag(&["post_layer_norm"], true) {
        spec.head.norm = None;
    }
    spec.embedding.extra.push(Weight {
        counts: Counts::Unstored,
        ..recipe::weight("rope_inv_freq", Shape::vector(dims.head_dim / 4), Component::Other)
    });
    Ok(spec)
}

/// ChatGLM's successor in the library's own spelling; queries, keys and values are three matrices.
fn glm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Split;
    attention.bias = recipe::bias_on_qkv(r, true);
    let dense = Dense { fused_gate_up: true, ..Dense::gated(dims.d_ff) };
    let norms = recipe::pre_norms(dims.d_model, false);
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms))
}

/// Norms on both sides of both halves.
pub(super) fn glm4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = glm(r)?;
    for layer in &mut spec.layers {
        layer.norms = recipe::sandwich_norms(spec.d_model);
    }
    Ok(spec)
}

/// Experts with a correction bias and a shared one beside them.
fn experts(r: &Reader<'_>) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    let d_ff = r.need(&["moe_intermediate_size"]);
    let mut moe = recipe::experts(n_experts, top_k, d_ff);
    moe.correction_bias = Some(Counts::Buffer);
    moe.shared = recipe::shared_experts(d_ff.saturating_mul(r.opt(&["n_shared_experts"]).unwrap_or(0)));
    moe
}

pub(super) fn glm4_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = experts(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_qkv(r, false);
    if r.flag(&["use_qk_norm"], false) {
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    }
    let layer = |has_experts| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        let norms = ["attn_norm", "post_attention_norm"].map(|name| recipe::norm(name, dims.d_model)).to_vec();
        recipe::layer(Mixer::Attention(attention.clone()), feed_forward, norms)
    };
    let layers = recipe::moe_after_dense(r, dims.n_layers).into_iter().map(layer).collect();
    let mut spec = recipe::decoder(r, &dims, layers);
    let n_mtp = r.opt_below(&["num_nextn_predict_layers", "num_mtp_layers"], r.limits().layers).unwrap_or(0);
    let extra = || nextn(dims.d_model, Some(dims.n_vocab), Some(dims.n_vocab));
    spec.mtp = (0..n_mtp).map(|_| MtpLayer { layer: layer(true), extra: extra() }).collect();
    Ok(spec)
}

/// What joins a multi-token-prediction layer to the trunk: the projection of both inputs, their norms, the norm
/// before the head, and where they are stored again, the embedding and the head.
#[must_use]
pub(in crate::hf) fn nextn(d_model: u64, own_embedding: Option<u64>, own_head: Option<u64>) -> Vec<Weight> {
    let matrix = |name: &str, rows| recipe::weight(name, Shape::matrix(d_model, rows), Component::Other);
    let norm = |name: &str| recipe::weight(name, Shape::vector(d_model), Component::Norms);
    let mut all = Vec::from([
        recipe::weight("nextn.eh_proj.weight", Shape::matrix(d_model.saturating_mul(2), d_model), Component::Other),
        norm("nextn.enorm.weight"),
        norm("nextn.hnorm.weight"),
        norm("nextn.shared_head_norm.weight"),
    ]);
    all.extend(own_embedding.map(|rows| matrix("nextn.embed_tokens.weight", rows)));
    all.extend(own_head.map(|rows| matrix("nextn.shared_head_head.weight", rows)));
    all
}

fn solar_open(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let moe = experts(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_qkv(r, false);
    let dense_layers = r.opt(&["first_k_dense_replace"]).unwrap_or(0);
    let d_ff = if dense_layers > 0 { r.need(recipe::D_FF) } else { 0 };
    let layers: Vec<Layer> = recipe::from_layer(dims.n_layers, dense_layers)
        .into_iter()
        .map(|has_experts| {
            let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(d_ff)) };
            let norms = ["attn_norm", "post_attention_norm"].map(|name| recipe::norm(name, dims.d_model)).to_vec();
            recipe::layer(Mixer::Attention(attention.clone()), feed_forward, norms)
        })
        .collect();
    Ok(recipe::decoder(r, &dims, layers))
}
