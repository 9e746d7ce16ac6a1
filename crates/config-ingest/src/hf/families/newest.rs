//! Recent decoders that combine what older families have: Hy 4, Mistral Large 4, LFM3.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, Indexer, Mixer, Mla, ModelSpec, Moe, OutputGate, ShortConv, Weight, Window};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::latent;
use super::linear::lfm2_decoder;
use super::sparse::hyper_head;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims, weight};
use crate::hf::towers;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["hy_v4"],
        &["HYV4ForCausalLM"],
        None,
        r#"{"vocab_size": 120832, "hidden_size": 2816, "intermediate_size": 6912, "moe_intermediate_size": 768,
            "num_hidden_layers": 34, "num_attention_heads": 32, "max_position_embeddings": 262144,
            "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
            "first_k_dense_replace": 1, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 16,
            "index_topk_freq": 4, "index_skip_topk_offset": 2, "hc_mult": 4, "tie_word_embeddings": false}"#,
        hy4,
    ),
    Family {
        model_types: &["mistral_large4"],
        architectures: &["MistralLarge4ForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "tie_word_embeddings": false, "spatial_merge_size": 2}"#,
        build: mistral_large4,
    },
    Family::new(
        &["mistral_large4_text"],
        &["MistralLarge4ForCausalLM"],
        None,
        r#"{"vocab_size": 204800, "hidden_size": 6144, "intermediate_size": 24576, "moe_intermediate_size": 6144,
            "num_hidden_layers": 72, "num_attention_heads": 64, "n_shared_experts": 1, "n_routed_experts": 128,
            "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 64,
            "num_experts_per_tok": 4, "max_position_embeddings": 1048576, "index_topk": 2048, "index_head_dim": 128,
            "index_n_heads": 32, "first_k_dense_replace": 1, "no_rope_layer_interval": 4, "tie_word_embeddings": false}"#,
        mistral_large4_text,
    ),
    Family::new(
        &["lfm3"],
        &["Lfm3ForCausalLM"],
        None,
        r#"{"vocab_size": 128000, "hidden_size": 2048, "intermediate_size": 7680, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 128000,
            "conv_L_cache": 7, "sliding_window": 256, "tie_word_embeddings": true}"#,
        lfm3,
    ),
];

/// Sparse latent attention with sinks and an output gate; residual streams that are gated, not mixed.
fn hy4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = latent::with_ff(r);
    let own = latent::own_indexers(r, dims.n_layers);
    let mut spec = latent::sparse_stack(r, &dims, &own);
    let streams = r.need_below(&["hc_mult"], r.limits().heads);
    let gates = streams.saturating_mul(2);
    let wide = streams.saturating_mul(dims.d_model);
    for layer in &mut spec.layers {
        if let Mixer::Mla(attention) = &mut layer.mixer {
            attention.gate = OutputGate::Own { width: attention.n_heads.saturating_mul(attention.v_head_dim) };
            attention.extra.push(weight("attn_sinks.weight", Shape::vector(dims.n_heads), Component::Attention));
        }
        for (half, component) in [("attn", Component::Attention), ("ffn", Component::Mlp)] {
            let name = |suffix: &str| format!("hc_{half}_{suffix}.weight");
            layer.extra.push(weight(&name("fn"), Shape::matrix(wide, gates), component));
            layer.extra.push(weight(&name("base"), Shape::vector(gates), component));
            layer.extra.push(weight(&name("scale"), Shape::vector(2), component));
        }
    }
    spec.head.extra.extend(hyper_head("output_hc", dims.d_model, streams));
    Ok(spec)
}

fn mistral_large4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let mut spec = r.language_model(&["text_config"], "mistral_large4_text", tied)?;
    let instead = r#"{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 30, "patch_size": 14}"#;
    let mut eye = towers::read(r, &["vision_config"], "pixtral", instead)?;
    let d = eye.d_model();
    let side = r.need(&["spatial_merge_size"]);
    let merged = d.saturating_mul(side).saturating_mul(side);
    eye.vector("mm.norm", d).linear("mm.patch_merger", merged, d, false);
    eye.mlp("mm", [d, spec.d_model, spec.d_model], r.flag(&["multimodal_projector_bias"], false));
    spec.towers.push(eye.tower);
    Ok(spec)
}

/// Latent attention without compressed queries; every fourth layer has no positions, so that its latent comes alone.
fn mistral_large4_text(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = latent::with_ff(r);
    let d = dims.d_model;
    let plain = Mla { q_lora_rank: None, ..latent::mla(r, &dims) };
    let head_scales = |name: &str, n: u64, component: Component| {
        ["scale", "bias"].map(|part| weight(&format!("{name}.{part}"), Shape::vector(n), component))
    };
    let own = latent::own_indexers(r, dims.n_layers);
    if let Some(sources) = r.list(&["kv_source_layers"])
        && !sources.iter().copied().eq(dims.layers())
    {
        r.invalid("kv_source_layers", format!("{sources:?}"), "each layer's own index: shared latents are not known yet");
    }
    let with_positions: Vec<bool> = match r.flags(&["no_rope_layers"]) {
        Some(list) => recipe::per_layer(r, "no_rope_layers", Some(list), dims.n_layers),
        None => {
            let interval = r.need_below(&["no_rope_layer_interval"], r.limits().layers).max(1);
            dims.layers().map(|index| !(index + 1).is_multiple_of(interval)).collect()
        }
    };
    let mixers: Vec<Mixer> = own
        .iter()
        .zip(with_positions)
        .map(|(own, with_positions)| {
            let mut attention = plain.clone();
            if !with_positions {
                attention.qk_nope_head_dim = plain.qk_nope_head_dim.saturating_add(plain.qk_rope_head_dim);
                attention.qk_rope_head_dim = 0;
            }
            attention.extra.extend(head_scales("attn_softmax", dims.n_heads, Component::Attention));
            let mut indexer: Indexer = latent::indexer(r, &dims, d, *own);
            if *own {
                let part = Component::AttnIndexer;
                indexer.weights.push(weight("indexer.q_norm.weight", Shape::vector(d), part));
                indexer.weights.push(weight("indexer.q_norm.bias", Shape::vector(d), part));
                indexer.weights.extend(head_scales("indexer.softmax", indexer.n_heads, part));
            }
            attention.indexer = Some(indexer);
            Mixer::Mla(attention)
        })
        .collect();
    let is_moe = latent::moe_layers(r, dims.n_layers);
    let moe = Moe { correction_bias: None, ..latent::experts(r, &["n_shared_experts"]) };
    let mut spec = latent::stack(r, &dims, &mixers, Some(&moe), &is_moe);
    // Learned rotation frequencies: stored, and no parameter of the class.
    spec.embedding.extra.push(Weight {
        counts: Counts::Buffer,
        ..weight("rope_alpha", Shape::vector(plain.qk_rope_head_dim / 2), Component::Other)
    });
    Ok(spec)
}

/// LFM2 with windows, norms on both sides of both halves, and a gate on every attention head.
fn lfm3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let conv = Mixer::ShortConv(ShortConv { d_conv: r.need(&["conv_L_cache"]), bias: r.flag(&["conv_bias"], false) });
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    if r.flag(&["use_attention_gate"], true) {
        attention.gate = OutputGate::Own { width: dims.n_heads };
    }
    let norms = if r.flag(&["use_sandwich_norm"], true) {
        recipe::sandwich_norms(dims.d_model)
    } else {
        recipe::pre_norms(dims.d_model, false)
    };
    let tokens = r.opt(&["sliding_window"]);
    let kinds: Vec<&str> = recipe::layer_types(r, dims.n_layers).unwrap_or_else(|| {
        let kind = |index: u64| match index % 4 {
            2 => "full_attention",
            0 if index > 0 => "sliding_attention",
            _ => "conv",
        };
        dims.layers().map(kind).collect()
    });
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layers = kinds
        .into_iter()
        .map(|kind| {
            let mixer = match (kind, tokens) {
                ("conv", _) => conv.clone(),
                ("sliding_attention", Some(tokens)) => {
                    let mut attention = attention.clone();
                    attention.window = Window::Sliding { tokens };
                    Mixer::Attention(attention)
                }
                _ => Mixer::Attention(attention.clone()),
            };
            recipe::layer(mixer, dense.clone(), norms.clone())
        })
        .collect();
    Ok(lfm2_decoder(r, &dims, layers))
}
