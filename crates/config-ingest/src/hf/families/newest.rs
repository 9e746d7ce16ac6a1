//! Recent decoders that combine what older families have: Hy 4, Mistral Large 4, LFM3.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, Indexer, Mixer, Mla, ModelSpec, Moe, OutputGate, ShortConv, Weight, Window};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::latent;
use super::linear::{kimi_delta, lfm2_decoder};
use super::sparse::{hyper_connections, hyper_head};
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
    Family::new(
        &["axk2"],
        &["AXK2ForCausalLM"],
        None,
        r#"{"vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
            "num_hidden_layers": 48, "num_attention_heads": 32, "n_shared_experts": 1, "n_routed_experts": 128,
            "kv_lora_rank": 128, "q_lora_rank": 384, "qk_rope_head_dim": 32, "v_head_dim": 64, "qk_nope_head_dim": 64,
            "num_experts_per_tok": 8, "first_k_dense_replace": 1, "max_position_embeddings": 131072,
            "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 16, "gated_norm_rank": 16,
            "tie_word_embeddings": false}"#,
        axk2,
    ),
    Family {
        model_types: &["glm5_next"],
        architectures: &["Glm5NextForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "tie_word_embeddings": false}"#,
        build: glm5_next,
    },
    Family::new(
        &["glm5_next_text"],
        &["Glm5NextForCausalLM"],
        None,
        r#"{"vocab_size": 154880, "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 2048,
            "num_hidden_layers": 45, "num_attention_heads": 64, "n_shared_experts": 1, "n_routed_experts": 288,
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 0, "v_head_dim": 256, "qk_nope_head_dim": 256,
            "num_experts_per_tok": 8, "first_k_dense_replace": 3, "max_position_embeddings": 1048576,
            "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32, "index_kpool": 16, "linear_head_dim": 128,
            "linear_num_heads": 64, "linear_conv_kernel_dim": 4, "hc_mult": 4, "tie_word_embeddings": false}"#,
        glm5_next_text,
    ),
    Family::new(
        &["dots3_note_text"],
        &["Dots3NoteForCausalLM"],
        None,
        r#"{"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "moe_intermediate_size": 1536,
            "num_hidden_layers": 46, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "kv_lora_rank": 512, "q_lora_rank": 1024, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
            "num_experts_per_tok": 8, "first_k_dense_replace": 1, "max_position_embeddings": 524288,
            "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64, "sliding_window": 512,
            "tie_word_embeddings": false}"#,
        dots3_note,
    ),
    Family {
        model_types: &["muse_spark"],
        architectures: &["MuseSparkForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "tie_word_embeddings": false, "out_hidden_size": 6144,
            "projector_hidden_size": 4096}"#,
        build: muse_spark,
    },
    Family::new(
        &["muse_spark_text"],
        &["MuseSparkForCausalLM"],
        None,
        r#"{"vocab_size": 202048, "hidden_size": 8192, "intermediate_size": 16384, "num_hidden_layers": 62,
            "num_attention_heads": 128, "num_key_value_heads": 16, "head_dim": 64, "max_position_embeddings": 1048576,
            "sliding_window": 2048, "moe_intermediate_size": 4096, "num_local_experts": 256, "num_experts_per_tok": 8,
            "moe_hidden_size": 4096, "tie_word_embeddings": false}"#,
        muse_spark_text,
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

/// A.X K2: an output gate made from the compressed query, and norms that a small feed-forward gates.
fn axk2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = latent::with_ff(r);
    let full = alloc::vec![true; usize::try_from(dims.n_layers).unwrap_or(0)];
    let mut spec = latent::sparse_stack(r, &dims, &full);
    let rank = r.need(&["gated_norm_rank"]);
    let d = dims.d_model;
    for layer in &mut spec.layers {
        if let Mixer::Mla(attention) = &mut layer.mixer {
            // One matrix reads the compressed query before and after its norm, and yields queries and, beside them, the
            // gate of every element that attention yields: the other parts of it than `attn_q_b`.
            let ranks = attention.q_lora_rank.unwrap_or(0);
            let per_head = |dim: u64| attention.n_heads.saturating_mul(dim);
            let queries = per_head(attention.qk_nope_head_dim.saturating_add(attention.qk_rope_head_dim));
            let gates = per_head(attention.v_head_dim);
            attention.extra.push(weight("attn_q_b_raw.weight", Shape::matrix(ranks, queries), Component::Attention));
            attention.extra.push(weight(
                "attn_gate_b.weight",
                Shape::matrix(ranks.saturating_mul(2), gates),
                Component::Attention,
            ));
        }
        let gated =
            if matches!(layer.feed_forward, FeedForward::Moe(_)) { &["attn_norm", "ffn_norm"][..] } else { &["attn_norm"] };
        for name in gated {
            layer.extra.push(weight(&format!("{name}.gate_a.weight"), Shape::matrix(d, rank), Component::Norms));
            layer.extra.push(weight(&format!("{name}.gate_b.weight"), Shape::matrix(rank, d), Component::Norms));
        }
    }
    Ok(spec)
}

fn glm5_next(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let mut spec = if r.config.is_default(&["text_config"]) && r.has(recipe::D_MODEL) {
        r.language_model_here("glm5_next_text", tied)?
    } else {
        r.language_model(&["text_config"], "glm5_next_text", tied)?
    };
    spec.towers.push(towers::read_as(r, &["vision_config"], "glm5_next_vision")?.tower);
    Ok(spec)
}

/// Kimi's delta attention between sparse latent attention without positions; residual streams that are mixed.
fn glm5_next_text(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = latent::with_ff(r);
    let limits = r.limits();
    let nested = r.child(&["linear_attn_config"]);
    let linear_size = |inner: &str, outer: &str, limit: u64| {
        nested.as_ref().and_then(|nested| nested.opt_below(&[inner], limit)).unwrap_or_else(|| r.need_below(&[outer], limit))
    };
    let linear = Mixer::KimiDelta(kimi_delta(
        linear_size("num_heads", "linear_num_heads", limits.heads),
        linear_size("head_dim", "linear_head_dim", limits.width),
        linear_size("short_conv_kernel_size", "linear_conv_kernel_dim", limits.width),
        dims.d_model,
    ));
    let attention = latent::mla(r, &dims);
    let own = latent::own_indexers(r, dims.n_layers);
    let is_full: Vec<bool> = match recipe::layer_types(r, dims.n_layers) {
        Some(types) => types.into_iter().map(|kind| kind != "linear_attention").collect(),
        None => dims.layers().map(|index| index % 4 == 3).collect(),
    };
    let pool = r.need(&["index_kpool"]);
    let mixers: Vec<Mixer> = is_full
        .into_iter()
        .zip(own)
        .map(|(is_full, own)| {
            if !is_full {
                return linear.clone();
            }
            let mut indexer = latent::indexer(r, &dims, attention.q_lora_rank.unwrap_or(0), own);
            if own {
                // Keys of `index_kpool` tokens are pooled by a learned weighting.
                let part = |name: &str, shape| weight(name, shape, Component::AttnIndexer);
                indexer.weights.push(part("indexer.pool_ape.weight", Shape::matrix(indexer.head_dim, pool)));
                indexer.weights.push(part("indexer.pool_gate.weight", Shape::matrix(dims.d_model, indexer.head_dim)));
            }
            Mixer::Mla(Mla { indexer: Some(indexer), ..attention.clone() })
        })
        .collect();
    let is_moe = latent::moe_layers(r, dims.n_layers);
    let mut spec = latent::stack(r, &dims, &mixers, Some(&latent::experts(r, &["n_shared_experts"])), &is_moe);
    let streams = r.need_below(&["hc_mult"], limits.heads);
    for layer in &mut spec.layers {
        layer.extra.extend(hyper_connections(dims.d_model, streams));
    }
    Ok(spec)
}

/// Latent attention of two sizes: sparse over the whole text, and plain within a window.
fn dots3_note(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = latent::with_ff(r);
    let limits = r.limits();
    let wide = latent::mla(r, &dims);
    // One object per layer that differs, keyed by its number with leading zeros, else keys of their own.
    let layer_config = |index: u64| {
        r.child(&["per_layer_config"]).and_then(|all| {
            [format!("{index}"), format!("{index:02}"), format!("{index:03}")].iter().find_map(|key| all.child(&[key.as_str()]))
        })
    };
    let size = |index: u64, name: &str, otherwise: u64| {
        let own = layer_config(index).and_then(|own| own.opt_below(&[name], limits.width));
        own.or_else(|| r.opt_below(&[format!("swa_{name}").as_str()], limits.width)).unwrap_or(otherwise)
    };
    let narrow = |index: u64| {
        let nope = size(index, "qk_nope_head_dim", 192);
        let rope = size(index, "head_dim", 256).checked_sub(nope).unwrap_or(wide.qk_rope_head_dim);
        Mla {
            n_heads: size(index, "num_attention_heads", 64),
            q_lora_rank: Some(size(index, "q_lora_rank", 1024)),
            kv_lora_rank: size(index, "kv_lora_rank", 1024),
            qk_nope_head_dim: nope,
            qk_rope_head_dim: size(index, "qk_rope_head_dim", rope),
            v_head_dim: size(index, "v_head_dim", 128),
            ..wide.clone()
        }
    };
    let kinds: Vec<&str> = recipe::layer_types(r, dims.n_layers).unwrap_or_else(|| {
        dims.layers().map(|index| if index < 2 || index % 4 == 1 { "indexed_attention" } else { "sliding_attention" }).collect()
    });
    let tokens = r.opt(&["sliding_window", "sliding_window_size"]).unwrap_or(512);
    let mixers: Vec<Mixer> = (0_u64..)
        .zip(kinds)
        .map(|(index, kind)| {
            let sliding = kind == "sliding_attention";
            let mut attention = if sliding { narrow(index) } else { wide.clone() };
            if sliding {
                attention.window = Window::Sliding { tokens };
            } else if r.flag(&["use_dsa"], kind == "indexed_attention") || kind == "indexed_attention" {
                attention.indexer = Some(latent::indexer(r, &dims, attention.q_lora_rank.unwrap_or(0), true));
            }
            attention.gate = OutputGate::Own { width: attention.n_heads };
            let rope_norm = Shape::vector(attention.qk_rope_head_dim);
            attention.extra.push(weight("attn_k_rope_norm.weight", rope_norm, Component::Attention));
            Mixer::Mla(attention)
        })
        .collect();
    let mut moe = latent::experts(r, &["n_shared_experts"]);
    if let (Some(width), Some(shared)) =
        (r.opt_below(&["shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"], limits.width), &mut moe.shared)
    {
        shared.d_ff = width.saturating_mul(r.opt_below(&["n_shared_experts"], limits.experts).unwrap_or(1));
    }
    let is_moe = latent::moe_layers(r, dims.n_layers);
    Ok(latent::stack(r, &dims, &mixers, Some(&moe), &is_moe))
}

fn muse_spark(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let mut spec = r.language_model(&["text_config"], "muse_spark_text", tied)?;
    let mut eye = towers::read_as(r, &["vision_config"], "muse_spark_vision")?;
    let (wide, hidden) = (r.need(&["out_hidden_size"]), r.need(&["projector_hidden_size"]));
    eye.mlp("adapter", [wide, hidden, hidden], false).linear("mm", hidden, spec.d_model, false);
    let ear = towers::read_as(r, &["audio_config"], "muse_spark_audio")?;
    spec.towers.extend([eye.tower, ear.tower]);
    Ok(spec)
}

/// Experts that work in a narrower space of their own, gates on attention and on both residuals.
fn muse_spark_text(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let d = dims.d_model;
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let windows: Vec<Window> = if r.has(&["layer_types"]) {
        recipe::windows(r, dims.n_layers, tokens, recipe::Alternation::All)
    } else {
        // Counted backwards from the last layer, every fourth sees everything.
        let full = |index: u64| dims.n_layers.saturating_sub(1).saturating_sub(index).is_multiple_of(4);
        let window = |index| tokens.filter(|_| !full(index)).map_or(Window::Full, |tokens| Window::Sliding { tokens });
        dims.layers().map(window).collect()
    };
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.gate = OutputGate::Own { width: dims.n_heads.saturating_mul(dims.head_dim) };
    let (n_experts, top_k) = recipe::expert_counts(r);
    let latent = r.need(&["moe_hidden_size"]);
    let moe = Moe {
        correction_bias: Some(Counts::Buffer),
        latent: Some(latent),
        extra: Vec::from([
            weight("ffn_latent_down.weight", Shape::matrix(d, latent), Component::Mlp),
            weight("ffn_latent_down_norm.weight", Shape::vector(latent), Component::Mlp),
            weight("ffn_latent_up_norm.weight", Shape::vector(latent), Component::Mlp),
            weight("ffn_latent_up.weight", Shape::matrix(latent, d), Component::Mlp),
        ]),
        ..recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]))
    };
    let is_moe: Vec<bool> = match r.texts(&["mlp_layer_types"]) {
        Some(kinds) => {
            recipe::per_layer(r, "mlp_layer_types", Some(kinds), dims.n_layers).into_iter().map(|kind| kind != "dense").collect()
        }
        None => recipe::from_layer(dims.n_layers, 0),
    };
    let layers = windows.into_iter().zip(is_moe).map(|(window, is_moe)| {
        let mut attention = attention.clone();
        attention.window = window;
        let feed_forward = if is_moe { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        let norms = ["attn_norm", "ffn_norm", "post_ffw_norm"].map(|name| recipe::norm(name, d)).to_vec();
        let mut layer = recipe::layer(Mixer::Attention(attention), feed_forward, norms);
        layer.extra.extend(
            ["attn_residual_gate.weight", "ffn_residual_gate.weight"]
                .map(|name| weight(name, Shape::vector(d), Component::Other)),
        );
        layer
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}
