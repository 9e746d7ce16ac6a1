//! Linear attention and its hybrids: Qwen3-Next, Qwen 3.5, OLMo hybrid, Kimi Linear, Ling 3, MiniMax-01, LFM2,
//! RecurrentGemma.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, FeedForward, GatedDeltaNet, KimiDelta, Layer, LightningAttention, Mixer, ModelSpec, Moe,
    MtpLayer, Norm, OutputGate, Rglru, ShortConv, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::latent::{self, mla};
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims, nextn, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["qwen3_next"],
        architectures: &["Qwen3NextForCausalLM"],
        llama_cpp: Some("qwen3next"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
            "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 256,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 32, "decoder_sparse_step": 1,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10,
            "num_experts": 512, "tie_word_embeddings": false}"#,
        build: qwen3_next,
    },
    Family {
        model_types: &["qwen3_5_text"],
        architectures: &["Qwen3_5ForCausalLM"],
        llama_cpp: Some("qwen35"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
            "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768, "head_dim": 256,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 32, "tie_word_embeddings": false}"#,
        build: qwen3_5,
    },
    Family {
        model_types: &["qwen3_5_moe_text"],
        architectures: &["Qwen3_5MoeForCausalLM"],
        llama_cpp: Some("qwen35moe"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 256, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8, "num_experts": 256, "tie_word_embeddings": false}"#,
        build: qwen3_5_moe,
    },
    Family {
        model_types: &["olmo_hybrid", "olmo3_2_hybrid"],
        architectures: &["OlmoHybridForCausalLM", "Olmo3_2HybridForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 100352, "hidden_size": 3840, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 30, "max_position_embeddings": 65536, "linear_conv_kernel_dim": 4,
            "tie_word_embeddings": false}"#,
        build: olmo_hybrid,
    },
    Family {
        model_types: &["kimi_linear"],
        architectures: &["KimiLinearForCausalLM", "KimiLinearModel"],
        llama_cpp: Some("kimi-linear"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216, "moe_intermediate_size": 1024,
            "num_hidden_layers": 27, "num_attention_heads": 32, "num_shared_experts": 1, "kv_lora_rank": 512,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_token": 8,
            "model_max_length": 1048576, "num_experts": 256, "first_k_dense_replace": 1,
            "linear_head_dim": 128, "linear_num_heads": 32, "linear_conv_kernel_dim": 4, "tie_word_embeddings": false}"#,
        build: kimi_linear,
    },
    Family {
        model_types: &["bailing_hybrid", "bailing_moe_v3"],
        architectures: &["BailingHybridForCausalLM", "BailingMoeV3ForCausalLM"],
        llama_cpp: Some("bailingmoe3"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 157184, "hidden_size": 2560, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 42, "num_attention_heads": 32, "num_shared_experts": 1, "kv_lora_rank": 512,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_token": 8,
            "first_k_dense_replace": 2, "model_max_length": 262144, "num_nextn_predict_layers": 1, "num_experts": 512,
            "head_dim": 128, "short_conv_kernel_size": 4, "layer_group_size": 6, "tie_word_embeddings": false}"#,
        build: bailing_hybrid,
    },
    Family {
        model_types: &["minimax", "minimax_text_01", "minimax_m1"],
        architectures: &["MiniMaxForCausalLM", "MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"],
        llama_cpp: Some("minimax-01"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "num_experts_per_tok": 2, "num_local_experts": 8, "block_size": 256, "tie_word_embeddings": false}"#,
        build: minimax,
    },
    Family {
        model_types: &["lfm2"],
        architectures: &["Lfm2ForCausalLM", "LFM2ForCausalLM", "Lfm2Model", "Lfm2BidirectionalModel"],
        llama_cpp: Some("lfm2"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 128000, "conv_L_cache": 3,
            "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": true}"#,
        build: lfm2,
    },
    Family {
        model_types: &["lfm2_moe"],
        architectures: &["Lfm2MoeForCausalLM"],
        llama_cpp: Some("lfm2moe"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
            "num_hidden_layers": 32, "max_position_embeddings": 128000, "num_attention_heads": 32,
            "num_key_value_heads": 8, "conv_L_cache": 3, "num_dense_layers": 2, "num_experts_per_tok": 4,
            "num_experts": 32}"#,
        build: lfm2_moe,
    },
    Family {
        model_types: &["recurrent_gemma"],
        architectures: &["RecurrentGemmaForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"num_hidden_layers": 26, "vocab_size": 256000, "hidden_size": 2560, "intermediate_size": 7680,
            "num_attention_heads": 10, "attention_window_size": 2048, "conv1d_width": 4}"#,
        build: recurrent_gemma,
    },
];

/// Norms before the mixer and, under the name llama.cpp gives it in Qwen's hybrids, before the feed-forward.
fn qwen_norms(d_model: u64) -> Vec<Norm> {
    vec![recipe::norm("attn_norm", d_model), recipe::norm("post_attention_norm", d_model)]
}

/// Which layers are linear: by `layer_types`, else all but every `full_attention_interval`-th.
fn linear_layers(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    match recipe::layer_types(r, n_layers) {
        Some(types) => types.into_iter().map(|kind| kind == "linear_attention").collect(),
        None => {
            let interval = r.opt_below(&["full_attention_interval"], r.limits().layers).unwrap_or(4).max(1);
            (1..=n_layers).map(|count| !count.is_multiple_of(interval)).collect()
        }
    }
}

/// The two mixers of Qwen's hybrids: gated DeltaNet and gated attention.
fn qwen_mixers(r: &Reader<'_>, dims: &Dims, fused_beta_alpha: bool) -> (Mixer, Mixer) {
    let limits = r.limits();
    let linear = Mixer::GatedDeltaNet(GatedDeltaNet {
        n_k_heads: r.need_below(&["linear_num_key_heads"], limits.heads),
        n_v_heads: r.need_below(&["linear_num_value_heads"], limits.heads),
        k_head_dim: r.need(&["linear_key_head_dim"]),
        v_head_dim: r.need(&["linear_value_head_dim"]),
        d_conv: r.need(&["linear_conv_kernel_dim"]),
        fused_beta_alpha,
        extra: Vec::new(),
    });
    let mut attention = dims.attention();
    attention.gate = OutputGate::InQuery;
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    (linear, Mixer::Attention(attention))
}

/// Experts with one gated shared expert.
fn qwen_experts(r: &Reader<'_>) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    Moe {
        shared: recipe::shared_experts(r.need(&["shared_expert_intermediate_size"])),
        shared_gate: true,
        ..recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]))
    }
}

fn qwen3_next(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (linear, full) = qwen_mixers(r, &dims, true);
    let experts = FeedForward::Moe(qwen_experts(r));
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let is_moe = recipe::moe_by_sparse_step(r, dims.n_layers);
    let layers = linear_layers(r, dims.n_layers).into_iter().zip(is_moe).map(|(is_linear, is_moe)| {
        let mixer = if is_linear { &linear } else { &full };
        let feed_forward = if is_moe { &experts } else { &dense };
        recipe::layer(mixer.clone(), feed_forward.clone(), qwen_norms(dims.d_model))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn qwen3_5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    Ok(qwen3_5_stack(r, &dims, &FeedForward::Dense(Dense::gated(dims.d_ff))))
}

fn qwen3_5_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    Ok(qwen3_5_stack(r, &dims, &FeedForward::Moe(qwen_experts(r))))
}

fn qwen3_5_stack(r: &Reader<'_>, dims: &Dims, feed_forward: &FeedForward) -> ModelSpec {
    let (linear, full) = qwen_mixers(r, dims, false);
    let layer = |mixer: &Mixer| recipe::layer(mixer.clone(), feed_forward.clone(), qwen_norms(dims.d_model));
    let layers = linear_layers(r, dims.n_layers).into_iter().map(|is_linear| layer(if is_linear { &linear } else { &full }));
    let mut spec = recipe::decoder(r, dims, layers.collect());
    let n_mtp = r.opt_below(&["mtp_num_hidden_layers"], r.limits().layers).unwrap_or(0);
    let mut extra = nextn(dims.d_model);
    if n_mtp > 0 && r.flag(&["mtp_use_dedicated_embeddings"], false) {
        extra.push(weight("nextn.embed_tokens.weight", Shape::matrix(dims.d_model, dims.n_vocab), Component::Embeddings));
    }
    spec.mtp = (0..n_mtp).map(|_| MtpLayer { layer: layer(&full), extra: extra.clone() }).collect();
    spec
}

fn olmo_hybrid(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let limits = r.limits();
    let is_linear: Vec<bool> = match recipe::layer_types(r, dims.n_layers) {
        Some(types) => types.into_iter().map(|kind| kind == "linear_attention").collect(),
        None => {
            // Every fourth layer sees everything, and the last one in any case when the stack is short.
            let mut all: Vec<bool> = (1..=dims.n_layers).map(|count: u64| !count.is_multiple_of(4)).collect();
            if let Some(last) = all.last_mut().filter(|_| dims.n_layers < 4) {
                *last = false;
            }
            all
        }
    };
    let n_k_heads = r.opt_below(&["linear_num_key_heads"], limits.heads).unwrap_or(dims.n_heads);
    // `int(0.75 * hidden_size / heads)` in OlmoHybridConfig.
    let k_head_dim = r
        .opt_below(&["linear_key_head_dim"], limits.width)
        .unwrap_or_else(|| dims.d_model.saturating_mul(3).checked_div(n_k_heads.saturating_mul(4)).unwrap_or(0));
    let linear = Mixer::GatedDeltaNet(GatedDeltaNet {
        n_k_heads,
        n_v_heads: r.opt_below(&["linear_num_value_heads"], limits.heads).unwrap_or(dims.n_heads),
        k_head_dim,
        v_head_dim: r.opt_below(&["linear_value_head_dim"], limits.width).unwrap_or_else(|| k_head_dim.saturating_mul(2)),
        d_conv: r.need(&["linear_conv_kernel_dim"]),
        fused_beta_alpha: false,
        extra: Vec::new(),
    });
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_whole(&dims);
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let full = Mixer::Attention(attention);
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    // Attention layers are normed after both halves, as in OLMo 2; linear ones before.
    let layers = is_linear.into_iter().map(|is_linear| {
        if is_linear {
            recipe::layer(linear.clone(), dense.clone(), recipe::pre_norms(dims.d_model, false))
        } else {
            recipe::layer(full.clone(), dense.clone(), recipe::post_norms(dims.d_model))
        }
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

/// Kimi's delta attention with the low-rank gates that the published models have.
pub(super) fn kimi_delta(n_heads: u64, head_dim: u64, d_conv: u64, d_model: u64) -> KimiDelta {
    let width = n_heads.saturating_mul(head_dim);
    let linear = |name: &str, shape| weight(name, shape, Component::SsmLinear);
    KimiDelta {
        n_heads,
        head_dim,
        d_conv,
        extra: vec![
            linear("ssm_f_a.weight", Shape::matrix(d_model, head_dim)),
            linear("ssm_f_b.weight", Shape::matrix(head_dim, width)),
            linear("ssm_beta.weight", Shape::matrix(d_model, n_heads)),
            linear("ssm_a", Shape::matrix(1, n_heads)),
            linear("ssm_dt.bias", Shape::vector(width)),
            linear("ssm_g_a.weight", Shape::matrix(d_model, head_dim)),
            linear("ssm_g_b.weight", Shape::matrix(head_dim, width)),
            linear("ssm_norm.weight", Shape::vector(head_dim)),
        ],
    }
}

fn kimi_linear(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    // The class never ties, whatever the config says (`_tied_weights_keys` is empty).
    let r = &Reader { tied: Some(false), ..r.clone() };
    // Its own `head_dim` is no size of any tensor: the latent's dimensions are.
    let dims = Dims { d_ff: r.need(recipe::D_FF), ..latent::dims(r) };
    let limits = r.limits();
    let nested = r.child(&["linear_attn_config"]);
    let linear_size = |inner: &str, outer: &str, limit: u64| {
        nested.as_ref().and_then(|nested| nested.opt_below(&[inner], limit)).unwrap_or_else(|| r.need_below(&[outer], limit))
    };
    let n_heads = linear_size("num_heads", "linear_num_heads", limits.heads);
    let head_dim = linear_size("head_dim", "linear_head_dim", limits.width);
    let d_conv = linear_size("short_conv_kernel_size", "linear_conv_kernel_dim", limits.width);
    let linear = Mixer::KimiDelta(kimi_delta(n_heads, head_dim, d_conv, dims.d_model));
    let full = Mixer::Mla(mla(r, &dims));
    let listed = nested.as_ref().and_then(|nested| nested.list(&["full_attn_layers"]));
    let is_full: Vec<bool> = match (recipe::layer_types(r, dims.n_layers), listed) {
        (Some(types), _) => types.into_iter().map(|kind| kind == "full_attention").collect(),
        // The list counts from 1.
        (None, Some(list)) => (1..=dims.n_layers).map(|number| list.contains(&number)).collect(),
        (None, None) => (0..dims.n_layers).map(|index| index > 0 && index.is_multiple_of(4)).collect(),
    };
    let is_moe = latent::moe_layers(r, dims.n_layers);
    let experts = FeedForward::Moe(latent::experts(r, &["num_shared_experts", "n_shared_experts"]));
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layers = is_full.into_iter().zip(is_moe).map(|(is_full, is_moe)| {
        let mixer = if is_full { &full } else { &linear };
        let feed_forward = if is_moe { &experts } else { &dense };
        recipe::layer(mixer.clone(), feed_forward.clone(), recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn bailing_hybrid(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    // The class never ties, whatever the config says (`_tied_weights_keys` is empty).
    let r = &Reader { tied: Some(false), ..r.clone() };
    let dims = Dims { d_ff: r.need(recipe::D_FF), ..latent::dims(r) };
    // Once saved by transformers, the linear layers' head dimension has a name of its own.
    let head_dim = r.opt_below(&["linear_head_dim"], r.limits().width).unwrap_or_else(|| r.need(&["head_dim"]));
    let width = dims.n_heads.saturating_mul(head_dim);
    let linear_weight = |name: &str, shape| weight(name, shape, Component::SsmLinear);
    let linear = Mixer::KimiDelta(KimiDelta {
        n_heads: dims.n_heads,
        head_dim,
        d_conv: r.need(&["short_conv_kernel_size"]),
        extra: vec![
            linear_weight("ssm_f_a.weight", Shape::matrix(dims.d_model, width)),
            linear_weight("ssm_beta.weight", Shape::matrix(dims.d_model, dims.n_heads)),
            linear_weight("ssm_a", Shape::matrix(1, dims.n_heads)),
            linear_weight("ssm_dt.bias", Shape::vector(width)),
            linear_weight("ssm_g_a.weight", Shape::matrix(dims.d_model, width)),
            linear_weight("ssm_norm.weight", Shape::vector(head_dim)),
        ],
    });
    let mut full = mla(r, &dims);
    full.gate = OutputGate::Own { width: dims.n_heads };
    let full = Mixer::Mla(full);
    let group = r.need_below(&["layer_group_size"], r.limits().layers).max(1);
    let is_full: Vec<bool> = match recipe::layer_types(r, dims.n_layers) {
        Some(types) => types.into_iter().map(|kind| kind == "full_attention").collect(),
        // Layers of an unfinished last group see everything (conversion/bailingmoe3.py, is_full_attention).
        None => {
            (0..dims.n_layers).map(|index| (index + 1).is_multiple_of(group) || index >= dims.n_layers / group * group).collect()
        }
    };
    let is_moe = latent::moe_layers(r, dims.n_layers);
    let mut experts = latent::experts(r, &["num_shared_experts", "n_shared_experts"]);
    if let Some(width) = r.opt_below(&["moe_shared_expert_intermediate_size"], r.limits().width) {
        experts.shared = recipe::shared_experts(width);
    }
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layers = is_full.into_iter().zip(is_moe).map(|(is_full, is_moe)| {
        let mixer = if is_full { &full } else { &linear };
        let feed_forward = if is_moe { FeedForward::Moe(experts.clone()) } else { dense.clone() };
        recipe::layer(mixer.clone(), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    let n_mtp = r.opt_below(&["num_nextn_predict_layers"], r.limits().layers).unwrap_or(0);
    let mut extra = nextn(dims.d_model);
    extra.retain(|tensor| tensor.name != "nextn.shared_head_norm.weight");
    extra.push(weight("layer_output_norm.weight", Shape::vector(dims.d_model), Component::Norms));
    let layer = recipe::layer(full, FeedForward::Moe(experts), recipe::pre_norms(dims.d_model, false));
    spec.mtp = (0..n_mtp).map(|_| MtpLayer { layer: layer.clone(), extra: extra.clone() }).collect();
    Ok(spec)
}

fn minimax(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let width = dims.n_heads.saturating_mul(dims.head_dim);
    let tensor = |name: &str, shape| weight(name, shape, Component::SsmLinear);
    // Decay tables, one value a head and position of a block; the class keeps them, no checkpoint does.
    let block = r.need(&["block_size"]);
    let table = |name: &str, n: u64| Weight {
        counts: Counts::Unstored,
        ..weight(name, Shape::vector(n.saturating_mul(dims.n_heads)), Component::SsmLinear)
    };
    let linear = Mixer::LightningAttention(LightningAttention {
        n_heads: dims.n_heads,
        head_dim: dims.head_dim,
        weights: vec![
            tensor("attn_qkv.weight", Shape::matrix(dims.d_model, width.saturating_mul(3))),
            tensor("attn_gate.weight", Shape::matrix(dims.d_model, width)),
            tensor("attn_norm_2.weight", Shape::vector(width)),
            tensor("attn_output.weight", Shape::matrix(width, dims.d_model)),
            table("slope_rate", 1),
            table("query_decay", block),
            table("key_decay", block),
            table("diagonal_decay", block.saturating_mul(block)),
        ],
    });
    let full = Mixer::Attention(dims.attention());
    let is_full: Vec<bool> = match recipe::layer_types(r, dims.n_layers) {
        Some(types) => types.into_iter().map(|kind| kind == "full_attention").collect(),
        None => match r.flags(&["attn_type_list"]) {
            Some(list) => recipe::per_layer(r, "attn_type_list", Some(list), dims.n_layers),
            None => (0..dims.n_layers).map(|index: u64| index.is_multiple_of(2)).collect(),
        },
    };
    let (n_experts, top_k) = recipe::expert_counts(r);
    let experts = FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff));
    let layers = is_full.into_iter().map(|is_full| {
        let mixer = if is_full { &full } else { &linear };
        recipe::layer(mixer.clone(), experts.clone(), recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

/// LFM2's mixers, layer by layer: a short convolution, or attention with normed heads.
fn lfm2_mixers(r: &Reader<'_>, dims: &Dims) -> Vec<Mixer> {
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let conv = Mixer::ShortConv(ShortConv { d_conv: r.need(&["conv_L_cache"]), bias: r.flag(&["conv_bias"], false) });
    let is_full: Vec<bool> = match recipe::layer_types(r, dims.n_layers) {
        Some(types) => types.into_iter().map(|kind| kind == "full_attention").collect(),
        None => match r.list(&["full_attn_idxs"]) {
            Some(list) => recipe::listed(dims.n_layers, &list),
            None => dims.layers().map(|_| true).collect(),
        },
    };
    is_full.into_iter().map(|is_full| if is_full { Mixer::Attention(attention.clone()) } else { conv.clone() }).collect()
}

/// LFM2's decoder: its last norm is called a norm of the embedding, in the model and in llama.cpp.
pub(super) fn lfm2_decoder(r: &Reader<'_>, dims: &Dims, layers: Vec<Layer>) -> ModelSpec {
    let tied = r.flag(&["tie_embedding", "tie_word_embeddings"], true);
    let r = Reader { tied: r.tied.or(Some(tied)), ..r.clone() };
    let mut spec = recipe::decoder(&r, dims, layers);
    spec.head.norm = Some(recipe::norm("token_embd_norm", dims.d_model));
    spec
}

fn lfm2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::without_ff(r);
    dims.d_ff = lfm2_d_ff(r);
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layers = lfm2_mixers(r, &dims)
        .into_iter()
        .map(|mixer| recipe::layer(mixer, dense.clone(), recipe::pre_norms(dims.d_model, false)))
        .collect();
    Ok(lfm2_decoder(r, &dims, layers))
}

/// The width that `block_auto_adjust_ff_dim` makes of the one in the config: two thirds, times a factor, rounded up
/// to a multiple (modeling_lfm2.py, Lfm2MLP).
fn lfm2_d_ff(r: &Reader<'_>) -> u64 {
    let said = r.need(&["block_ff_dim", "intermediate_size"]);
    if !r.flag(&["block_auto_adjust_ff_dim"], true) {
        return said;
    }
    let thirds = said.saturating_mul(2) / 3;
    // An explicit null leaves the two thirds as they are.
    let Some(factor) = r.keep(r.config.f64(&["block_ffn_dim_multiplier"])) else { return thirds };
    let scaled = recipe::truncated(thirds, factor).filter(|scaled| *scaled <= r.limits().width).unwrap_or_else(|| {
        r.invalid("block_ffn_dim_multiplier", factor, "a factor that leads to a width");
        0
    });
    let multiple = r.need(&["block_multiple_of"]).max(1);
    scaled.checked_next_multiple_of(multiple).unwrap_or(scaled)
}

fn lfm2_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let experts = FeedForward::Moe(Moe {
        correction_bias: r.flag(&["use_expert_bias"], true).then_some(Counts::Buffer),
        ..recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]))
    });
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let is_moe = recipe::from_layer(dims.n_layers, r.need_below(&["num_dense_layers"], r.limits().layers));
    let layers = lfm2_mixers(r, &dims)
        .into_iter()
        .zip(is_moe)
        .map(|(mixer, is_moe)| {
            let feed_forward = if is_moe { &experts } else { &dense };
            recipe::layer(mixer, feed_forward.clone(), recipe::pre_norms(dims.d_model, false))
        })
        .collect();
    Ok(lfm2_decoder(r, &dims, layers))
}

fn recurrent_gemma(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read(r);
    dims.head_dim = r.divide("num_attention_heads", dims.d_model, dims.n_heads);
    // The feed-forward's two input projections are half as wide as the config says (RecurrentGemmaMlp).
    dims.d_ff /= 2;
    let width = r.opt_below(&["lru_width"], r.limits().width).unwrap_or(dims.d_model);
    let d_conv = r.need(&["conv1d_width"]);
    let block = r.divide("num_attention_heads", width, dims.n_heads);
    let mut weights = Vec::new();
    let mut push = |name: &str, shape| weights.push(weight(name, shape, Component::SsmLinear));
    for (name, n_in, n_out) in
        [("ssm_gate", dims.d_model, width), ("ssm_in", dims.d_model, width), ("ssm_out", width, dims.d_model)]
    {
        push(&format!("{name}.weight"), Shape::matrix(n_in, n_out));
        push(&format!("{name}.bias"), Shape::vector(n_out));
    }
    push("ssm_conv1d.weight", Shape::matrix(d_conv, width));
    push("ssm_conv1d.bias", Shape::vector(width));
    push("ssm_a", Shape::vector(width));
    for name in ["ssm_input_gate", "ssm_recurrent_gate"] {
        push(&format!("{name}.weight"), Shape::stack(block, block, dims.n_heads));
        push(&format!("{name}.bias"), Shape::matrix(block, dims.n_heads));
    }
    let recurrent = Mixer::Rglru(Rglru { d_inner: width, d_conv, weights });
    let bias = r.flag(&["attention_bias"], false);
    let attention = Mixer::Attention(Attention {
        window: Window::Sliding { tokens: r.need(&["attention_window_size"]) },
        bias: AttentionBias { q: bias, k: bias, v: bias, o: true },
        ..dims.attention()
    });
    let dense = FeedForward::Dense(Dense { up_bias: true, down_bias: true, ..Dense::gated(dims.d_ff) });
    let kinds = r.texts(&["block_types", "_block_types"]).unwrap_or_else(|| vec!["recurrent", "recurrent", "attention"]);
    let layers = kinds.iter().cycle().take(usize::try_from(dims.n_layers).unwrap_or(0)).map(|kind| {
        let mixer = if *kind == "recurrent" { &recurrent } else { &attention };
        recipe::layer(mixer.clone(), dense.clone(), recipe::pre_norms(dims.d_model, false))
    });
    let tied = r.flag(&["tie_word_embeddings"], true);
    let outer = Reader { tied: r.tied.or(Some(tied)), ..r.clone() };
    Ok(recipe::decoder(&outer, &dims, layers.collect()))
}
