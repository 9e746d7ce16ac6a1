//! Attention over chosen or compressed tokens: DeepSeek V4, MiniMax M3, Zaya; and Kimi K3, whose residuals attend to
//! earlier layers.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    AttentionBias, CompressedAttention, Dense, FeedForward, Indexer, KimiDelta, Layer, Mixer, ModelSpec, Moe, MtpLayer,
    OutputGate, Tower, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::latent;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims, nextn, weight};
use crate::hf::towers;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["deepseek_v4", "deepseek_ref"],
        architectures: &["DeepseekV4ForCausalLM"],
        llama_cpp: Some("deepseek4"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 129280, "hidden_size": 4096, "moe_intermediate_size": 2048, "num_hidden_layers": 43,
            "num_attention_heads": 64, "head_dim": 512, "q_lora_rank": 1024, "num_experts_per_tok": 6,
            "n_routed_experts": 256, "n_shared_experts": 1, "max_position_embeddings": 1048576, "hc_mult": 4,
            "num_hash_layers": 3, "sliding_window": 128, "o_groups": 8, "o_lora_rank": 1024, "index_n_heads": 64,
            "index_head_dim": 128, "index_topk": 512, "tie_word_embeddings": false}"#,
        build: deepseek_v4,
    },
    Family {
        model_types: &["minimax_m3_vl_text"],
        architectures: &["MiniMaxM3SparseForCausalLM"],
        llama_cpp: Some("minimax-m3"),
        is_wrapper: false,
        defaults: M3_DEFAULTS,
        build: minimax_m3,
    },
    Family {
        model_types: &["minimax_m3_vl"],
        architectures: &["MiniMaxM3SparseForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "projector_hidden_size": 6144, "tie_word_embeddings": false}"#,
        build: minimax_m3_nested,
    },
    Family {
        model_types: &["minimax_m3"],
        architectures: &["MiniMaxM3ForCausalLM"],
        llama_cpp: Some("minimax-m3"),
        is_wrapper: false,
        defaults: M3_DEFAULTS,
        build: minimax_m3_flat,
    },
    Family {
        model_types: &["zaya"],
        architectures: &["ZayaForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 262272, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 8,
            "num_key_value_heads": 2, "max_position_embeddings": 131072, "moe_intermediate_size": 2048,
            "num_experts_per_tok": 1, "num_experts": 16, "head_dim": 128, "router_hidden_size": 256, "cca_time0": 2,
            "cca_time1": 2, "tie_word_embeddings": true}"#,
        build: zaya,
    },
    Family {
        model_types: &["kimi_k3"],
        architectures: &["KimiK3ForConditionalGeneration"],
        llama_cpp: Some("kimi-k3"),
        is_wrapper: true,
        defaults: r#"{"text_config": {"tie_word_embeddings": false}}"#,
        build: kimi_k3,
    },
];

/// MiniMaxM3VLTextConfig's values.
const M3_DEFAULTS: &str = r#"{"vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 3072,
    "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 524288, "num_experts_per_tok": 4, "num_local_experts": 128,
    "dense_intermediate_size": 12288, "shared_intermediate_size": 3072, "index_n_heads": 4, "index_head_dim": 128,
    "index_block_size": 128, "index_topk_blocks": 16, "tie_word_embeddings": false}"#;

fn attention_weight(name: &str, shape: Shape) -> Weight {
    weight(name, shape, Component::Attention)
}

/// Tokens per compressed entry, layer by layer and on into the prediction layers as far as the config says.
fn ratios(r: &Reader<'_>, n_layers: u64) -> Vec<u64> {
    if let Some(kinds) = r.texts(&["layer_types"]) {
        let rates = r.child(&["compress_rates"]);
        let rate = |name: &str, otherwise: u64| {
            let said = rates.as_ref().and_then(|rates| rates.opt_below(&[name], r.limits().width));
            said.unwrap_or(otherwise)
        };
        let sparse = rate("compressed_sparse_attention", SPARSE_RATIO);
        let heavy = rate("heavily_compressed_attention", HEAVY_RATIO);
        return recipe::per_layer(r, "layer_types", Some(kinds), n_layers)
            .into_iter()
            .map(|kind| match kind {
                "compressed_sparse_attention" => sparse,
                "heavily_compressed_attention" => heavy,
                _ => 0,
            })
            .collect();
    }
    match r.list(&["compress_ratios"]) {
        Some(list) => {
            // One more entry a prediction layer follows those of the trunk.
            let rest: Vec<u64> = list.iter().skip(usize::try_from(n_layers).unwrap_or(usize::MAX)).copied().collect();
            let mut all = recipe::per_layer(r, "compress_ratios", Some(list), n_layers);
            all.extend(rest);
            all
        }
        // The layout of the released Pro model, which DeepseekV4Config assumes.
        None => (0..n_layers)
            .map(|index: u64| if index > 2 && !index.is_multiple_of(2) { SPARSE_RATIO } else { HEAVY_RATIO })
            .collect(),
    }
}

/// Tokens per entry of the sparse and of the heavily compressed layers.
const SPARSE_RATIO: u64 = 4;
const HEAVY_RATIO: u64 = 128;

/// One layer's attention with what compresses its tokens.
fn compressed(r: &Reader<'_>, dims: &Dims, ratio: u64) -> CompressedAttention {
    let Dims { d_model, n_heads, head_dim, .. } = *dims;
    let q_rank = r.need(&["q_lora_rank"]);
    let n_groups = r.need_below(&["o_groups"], r.limits().heads);
    let o_rank = r.need(&["o_lora_rank"]);
    let width = n_heads.saturating_mul(head_dim);
    let mut weights = vec![
        attention_weight("attn_sinks.weight", Shape::vector(n_heads)),
        attention_weight("attn_q_a.weight", Shape::matrix(d_model, q_rank)),
        attention_weight("attn_q_a_norm.weight", Shape::vector(q_rank)),
        attention_weight("attn_q_b.weight", Shape::matrix(q_rank, width)),
        attention_weight("attn_kv.weight", Shape::matrix(d_model, head_dim)),
        attention_weight("attn_kv_a_norm.weight", Shape::vector(head_dim)),
        attention_weight("attn_output_a.weight", Shape::stack(r.divide("o_groups", width, n_groups), o_rank, n_groups)),
        attention_weight("attn_output_b.weight", Shape::matrix(n_groups.saturating_mul(o_rank), d_model)),
    ];
    // Windows of the sparse layers overlap, so that their compressors see twice as much.
    let overlap: u64 = if ratio == SPARSE_RATIO { 2 } else { 1 };
    if ratio > 0 {
        let compressor = |name: &str, shape| weight(name, shape, Component::AttnIndexer);
        let entry = overlap.saturating_mul(head_dim);
        weights.extend([
            compressor("attn_compressor_kv.weight", Shape::matrix(d_model, entry)),
            compressor("attn_compressor_gate.weight", Shape::matrix(d_model, entry)),
            compressor("attn_compressor_ape.weight", Shape::matrix(entry, ratio)),
            compressor("attn_compressor_norm.weight", Shape::vector(head_dim)),
        ]);
    }
    let indexer = (ratio == SPARSE_RATIO).then(|| {
        let index_heads = r.need_below(&["index_n_heads"], r.limits().heads);
        let index_dim = r.need(&["index_head_dim"]);
        let entry = overlap.saturating_mul(index_dim);
        let tensor = |name: &str, shape| weight(name, shape, Component::AttnIndexer);
        Indexer {
            n_heads: index_heads,
            head_dim: index_dim,
            top_k: r.need(&["index_topk"]),
            block: 1,
            own: true,
            weights: vec![
                tensor("indexer.proj.weight", Shape::matrix(d_model, index_heads)),
                tensor("indexer.attn_q_b.weight", Shape::matrix(q_rank, index_heads.saturating_mul(index_dim))),
                tensor("indexer_compressor_kv.weight", Shape::matrix(d_model, entry)),
                tensor("indexer_compressor_gate.weight", Shape::matrix(d_model, entry)),
                tensor("indexer_compressor_ape.weight", Shape::matrix(entry, ratio)),
                tensor("indexer_compressor_norm.weight", Shape::vector(index_dim)),
            ],
        }
    });
    CompressedAttention { n_heads, head_dim, window: r.need(&["sliding_window"]), ratio, indexer, weights }
}

fn deepseek_v4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims { head_dim: r.need(&["head_dim"]), ..latent::dims(r) };
    let ratios = ratios(r, dims.n_layers);
    let streams = r.need_below(&["hc_mult"], r.limits().heads);
    let hyper = hyper_connections(dims.d_model, streams);
    let experts = latent::experts(r, &["n_shared_experts"]);
    let n_hash = r.need_below(&["num_hash_layers"], r.limits().layers);
    let hashed: Vec<bool> = match r.texts(&["mlp_layer_types"]) {
        Some(kinds) => recipe::per_layer(r, "mlp_layer_types", Some(kinds), dims.n_layers)
            .into_iter()
            .map(|kind| kind == "hash_moe")
            .collect(),
        None => dims.layers().map(|index| index < n_hash).collect(),
    };
    // The first layers route by the token itself: a table instead of a correction.
    let mut by_token = Moe { correction_bias: None, ..experts.clone() };
    by_token.extra.push(Weight {
        counts: Counts::Buffer,
        ..weight("ffn_gate_tid2eid.weight", Shape::matrix(experts.n_experts_per_token, dims.n_vocab), Component::Router)
    });
    let layer = |ratio: u64, is_hashed: bool| -> Layer {
        let mixer = Mixer::CompressedAttention(compressed(r, &dims, ratio));
        let moe = if is_hashed { &by_token } else { &experts };
        let mut layer = recipe::layer(mixer, FeedForward::Moe(moe.clone()), recipe::pre_norms(dims.d_model, false));
        layer.extra.extend(hyper.iter().cloned());
        layer
    };
    let layers = ratios.iter().zip(&hashed).map(|(ratio, is_hashed)| layer(*ratio, *is_hashed)).collect();
    let mut spec = recipe::decoder(r, &dims, layers);
    let head = |prefix: &str| hyper_head(prefix, dims.d_model, streams);
    spec.head.extra.extend(head("output_hc"));
    let n_mtp = r.opt_below(&["num_nextn_predict_layers"], r.limits().layers).unwrap_or(0);
    let trunk = usize::try_from(dims.n_layers).unwrap_or(usize::MAX);
    spec.mtp = ratios
        .iter()
        .copied()
        .skip(trunk)
        .chain(core::iter::repeat(0))
        .take(usize::try_from(n_mtp).unwrap_or(0))
        .map(|ratio| {
            let mut extra = nextn(dims.d_model);
            extra.extend(head("nextn.output_hc"));
            MtpLayer { layer: layer(ratio, false), extra }
        })
        .collect();
    Ok(spec)
}

/// Hyper-connections of both halves of a layer: `streams` residual streams, mixed by `2 * streams + streams^2` numbers.
pub(super) fn hyper_connections(d_model: u64, streams: u64) -> Vec<Weight> {
    let mixed = streams.saturating_mul(streams.saturating_add(2));
    let half = |prefix: &str, component: Component| {
        let name = |suffix: &str| alloc::format!("{prefix}_{suffix}.weight");
        [
            weight(&name("fn"), Shape::matrix(streams.saturating_mul(d_model), mixed), component),
            weight(&name("base"), Shape::vector(mixed), component),
            weight(&name("scale"), Shape::vector(3), component),
        ]
    };
    let mut all = half("hc_attn", Component::Attention).to_vec();
    all.extend(half("hc_ffn", Component::Mlp));
    all
}

/// What joins the residual streams at the end.
pub(super) fn hyper_head(prefix: &str, d_model: u64, streams: u64) -> [Weight; 3] {
    let name = |suffix: &str| alloc::format!("{prefix}_{suffix}.weight");
    [
        weight(&name("fn"), Shape::matrix(streams.saturating_mul(d_model), streams), Component::Other),
        weight(&name("base"), Shape::vector(streams), Component::Other),
        weight(&name("scale"), Shape::vector(1), Component::Other),
    ]
}

/// MiniMax M3's vision tower and its projector: each patch first, then the patches of a square together.
fn minimax_m3_eye(r: &Reader<'_>, d_model: u64) -> Result<Tower, IngestError> {
    let mut eye = towers::read_as(r, &["vision_config"], "minimax_m3_vl_vision")?;
    let hidden = r.opt_below(&["projector_hidden_size"], r.limits().width).unwrap_or(d_model);
    let (d_eye, square) = (eye.d_model(), eye.d_output.saturating_mul(hidden));
    eye.mlp("mm", [d_eye, hidden, hidden], true).mlp("mm.merge", [square, hidden, d_model], true);
    Ok(eye.tower)
}

fn minimax_m3_nested(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    // Either object may say that the output matrix is the embedding.
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"])).filter(|tied| *tied);
    let mut spec = r.language_model(&["text_config"], "minimax_m3_vl_text", tied)?;
    spec.towers.push(minimax_m3_eye(r, spec.d_model)?);
    Ok(spec)
}

/// A copy of the config with the language model's keys at the top and no word of the tower, which the model has all
/// the same.
fn minimax_m3_flat(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = minimax_m3(r)?;
    if !r.has(&["vision_config"]) {
        r.note("$.vision_config: missing; MiniMax M3 has a vision tower, counted at its published size");
    }
    spec.towers.push(minimax_m3_eye(r, spec.d_model)?);
    Ok(spec)
}

/// MiniMax M3's language model.
fn minimax_m3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let sparse = r.child(&["sparse_attention_config"]);
    let size = |inner: &str, outer: &str| {
        let nested = sparse.as_ref().and_then(|nested| nested.opt_below(&[inner], r.limits().width));
        nested.unwrap_or_else(|| r.need(&[outer]))
    };
    let n_heads = size("sparse_num_index_heads", "index_n_heads");
    let head_dim = size("sparse_index_dim", "index_head_dim");
    let blocks = size("sparse_topk_blocks", "index_topk_blocks");
    let block = size("sparse_block_size", "index_block_size");
    let tensor = |name: &str, shape| weight(name, shape, Component::AttnIndexer);
    let indexer = Indexer {
        n_heads,
        head_dim,
        top_k: blocks.saturating_mul(block),
        block,
        own: true,
        weights: vec![
            tensor("indexer.q_proj.weight", Shape::matrix(dims.d_model, n_heads.saturating_mul(head_dim))),
            tensor("indexer.k_proj.weight", Shape::matrix(dims.d_model, head_dim)),
            tensor("indexer.q_norm.weight", Shape::vector(head_dim)),
            tensor("indexer.k_norm.weight", Shape::vector(head_dim)),
        ],
    };
    let nested_list = sparse.as_ref().and_then(|nested| nested.flags(&["sparse_attention_freq"]));
    let is_sparse: Vec<bool> = match (recipe::layer_types(r, dims.n_layers), nested_list) {
        (Some(kinds), _) => kinds.into_iter().map(|kind| kind == "minimax_m3_sparse").collect(),
        (None, Some(list)) => recipe::per_layer(r, "sparse_attention_freq", Some(list), dims.n_layers),
        (None, None) => dims.layers().map(|_| false).collect(),
    };
    let is_moe: Vec<bool> = if r.has(&["mlp_layer_types", "moe_layer_freq"]) {
        latent::moe_layers(r, dims.n_layers)
    } else {
        dims.layers().map(|_| true).collect()
    };
    let (n_experts, top_k) = recipe::expert_counts(r);
    let experts = FeedForward::Moe(Moe {
        correction_bias: Some(Counts::Buffer),
        shared: recipe::shared_experts(r.need(&["shared_intermediate_size"])),
        ..recipe::experts(n_experts, top_k, dims.d_ff)
    });
    let dense = FeedForward::Dense(Dense::gated(r.need(&["dense_intermediate_size"])));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let layers = is_sparse.into_iter().zip(is_moe).map(|(is_sparse, is_moe)| {
        let mut attention = attention.clone();
        attention.indexer = is_sparse.then(|| indexer.clone());
        let feed_forward = if is_moe { &experts } else { &dense };
        recipe::layer(Mixer::Attention(attention), feed_forward.clone(), recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn zaya(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let Dims { d_model, n_heads, n_kv_heads, head_dim, .. } = dims;
    let conv_width = n_heads.saturating_add(n_kv_heads).saturating_mul(head_dim);
    let (first, second) = (r.need(&["cca_time0"]), r.need(&["cca_time1"]));
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let conv = |name: &str, shape| weight(name, shape, Component::SsmLinear);
    attention.extra = vec![
        // Queries and keys pass two short convolutions, one per channel and one within each head.
        conv("attn_conv_depthwise.weight", Shape::matrix(first, conv_width)),
        conv("attn_conv_depthwise.bias", Shape::vector(conv_width)),
        conv("attn_conv_grouped.weight", Shape::stack(second, head_dim, conv_width)),
        conv("attn_conv_grouped.bias", Shape::vector(conv_width)),
        attention_weight("attn_k_temp.weight", Shape::vector(n_kv_heads)),
    ];
    let (n_experts, top_k) = recipe::expert_counts(r);
    let hidden = r.need(&["router_hidden_size"]);
    // One more class than experts: tokens that choose it skip the layer.
    let classes = n_experts.saturating_add(1);
    let router = |is_first: bool| {
        let tensor = |name: &str, shape| weight(name, shape, Component::Router);
        let mut list = vec![
            tensor("ffn_router_down.weight", Shape::matrix(d_model, hidden)),
            tensor("ffn_router_down.bias", Shape::vector(hidden)),
            weight("ffn_router_norm.weight", Shape::vector(hidden), Component::Norms),
            tensor("ffn_router_fc1.weight", Shape::matrix(hidden, hidden)),
            tensor("ffn_router_fc1.bias", Shape::vector(hidden)),
            tensor("ffn_router_fc2.weight", Shape::matrix(hidden, hidden)),
            tensor("ffn_router_fc2.bias", Shape::vector(hidden)),
            tensor("ffn_gate_inp.weight", Shape::matrix(hidden, classes)),
            Weight { counts: Counts::Buffer, ..tensor("exp_probs_b.bias", Shape::vector(classes)) },
        ];
        if !is_first {
            list.push(tensor("ffn_router_states_scale.weight", Shape::vector(hidden)));
        }
        list
    };
    let experts = Moe { n_router_rows: Some(0), ..recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"])) };
    let kinds = recipe::layer_types(r, dims.n_layers);
    let window = r.opt_below(&["sliding_window"], r.limits().width);
    let layers = dims
        .layers()
        .zip(kinds.into_iter().flatten().map(Some).chain(core::iter::repeat(None)))
        .map(|(index, kind)| {
            let mut attention = attention.clone();
            if kind == Some("hybrid_sliding") {
                match window {
                    Some(tokens) => attention.window = Window::Sliding { tokens },
                    None => r.invalid("sliding_window", "nothing", "a window for the hybrid_sliding layers"),
                }
            }
            let moe = Moe { extra: router(index == 0), ..experts.clone() };
            let norms = recipe::pre_norms(d_model, false);
            let mut layer = recipe::layer(Mixer::Attention(attention), FeedForward::Moe(moe), norms);
            for (half, component) in [("attn", Component::Attention), ("ffn", Component::Mlp)] {
                for what in ["hidden_scale", "hidden_bias", "residual_scale", "residual_bias"] {
                    let name = alloc::format!("{half}_{what}");
                    layer.extra.push(weight(&name, Shape::vector(d_model), component));
                }
            }
            layer
        })
        .collect();
    let mut spec = recipe::decoder(r, &dims, layers);
    if r.flag(&["lm_head_bias"], false) {
        spec.head.extra.push(weight("output.bias", Shape::vector(dims.n_vocab), Component::LmHead));
    }
    for name in ["input_hidden_scale", "input_hidden_bias"] {
        spec.embedding.extra.push(weight(name, Shape::vector(d_model), Component::Other));
    }
    Ok(spec)
}

/// Kimi K3's language model: Kimi Linear with full-rank gates, latent experts, and residuals that attend to earlier
/// layers. Its nested config calls itself Kimi Linear, whose row would miss all three.
fn kimi_k3(outer: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let Some(r) = outer.child(&["text_config"]) else {
        return Err(outer.config.missing(&["text_config"], "an object"));
    };
    let r = &r;
    let dims = Dims { d_ff: r.need(recipe::D_FF), ..latent::dims(r) };
    let d_model = dims.d_model;
    let limits = r.limits();
    let Some(linear) = r.child(&["linear_attn_config"]) else {
        return Err(r.config.missing(&["linear_attn_config"], "an object"));
    };
    let n_heads = linear.need_below(&["num_heads"], limits.heads);
    let head_dim = linear.need(&["head_dim"]);
    let width = n_heads.saturating_mul(head_dim);
    let tensor = |name: &str, shape| weight(name, shape, Component::SsmLinear);
    let mut extra = vec![
        tensor("ssm_f_a.weight", Shape::matrix(d_model, head_dim)),
        tensor("ssm_f_b.weight", Shape::matrix(head_dim, width)),
        tensor("ssm_beta.weight", Shape::matrix(d_model, n_heads)),
        tensor("ssm_a", Shape::vector(n_heads)),
        tensor("ssm_dt.bias", Shape::vector(width)),
        tensor("ssm_norm.weight", Shape::vector(head_dim)),
        // The checkpoint pads the decay of 96 heads to 128; converters cut it (conversion/kimi_k3.py, modify_tensors).
        Weight {
            counts: Counts::Unconverted,
            ..tensor("ssm_a_padding", Shape::vector(n_heads.next_power_of_two().saturating_sub(n_heads)))
        },
    ];
    if linear.flag(&["use_full_rank_gate"], false) {
        extra.push(tensor("ssm_g.weight", Shape::matrix(d_model, width)));
    } else {
        extra.push(tensor("ssm_g_a.weight", Shape::matrix(d_model, head_dim)));
        extra.push(tensor("ssm_g_b.weight", Shape::matrix(head_dim, width)));
    }
    let d_conv = linear.need(&["short_conv_kernel_size"]);
    let delta = Mixer::KimiDelta(KimiDelta { n_heads, head_dim, d_conv, extra });
    let mut full = latent::mla(r, &dims);
    if r.flag(&["mla_use_output_gate"], false) {
        full.gate = OutputGate::Own { width: full.n_heads.saturating_mul(full.v_head_dim) };
    }
    let full = Mixer::Mla(full);
    // The list counts from 1.
    let listed = linear.list(&["full_attn_layers"]).unwrap_or_default();
    let mut experts = latent::experts(r, &["num_shared_experts"]);
    // A parameter in the model's own class, which transformers does not replace by one with a buffer.
    experts.correction_bias = Some(Counts::Parameter);
    experts.latent = r.opt_below(&["routed_expert_hidden_size"], limits.width);
    if let Some(latent) = experts.latent {
        let part = Component::ExpertsLatentProj;
        experts.extra.push(weight("ffn_routed_down.weight", Shape::matrix(d_model, latent), part));
        experts.extra.push(weight("ffn_routed_up.weight", Shape::matrix(latent, d_model), part));
        if r.flag(&["latent_moe_use_norm"], false) {
            experts.extra.push(weight("ffn_routed_norm.weight", Shape::vector(latent), part));
        }
    }
    let is_moe = latent::moe_layers(r, dims.n_layers);
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let attends_to_layers = r.opt(&["attn_res_block_size"]).unwrap_or(0) > 0;
    // A norm and a projection to one number, of which files keep the product.
    let residual = |prefix: &str| {
        [
            weight(&alloc::format!("{prefix}_res_score.weight"), Shape::vector(d_model), Component::Other),
            Weight {
                counts: Counts::Unconverted,
                ..weight(&alloc::format!("{prefix}_res_norm.weight"), Shape::vector(d_model), Component::Norms)
            },
        ]
    };
    let layers = (1..=dims.n_layers)
        .zip(is_moe)
        .map(|(number, is_moe)| {
            let mixer = if listed.contains(&number) { &full } else { &delta };
            let feed_forward = if is_moe { FeedForward::Moe(experts.clone()) } else { dense.clone() };
            let mut layer = recipe::layer(mixer.clone(), feed_forward, recipe::pre_norms(d_model, false));
            if attends_to_layers {
                layer.extra.extend(residual("attn"));
                layer.extra.extend(residual("ffn"));
            }
            layer
        })
        .collect();
    let mut spec = recipe::decoder(r, &dims, layers);
    spec.llama_cpp_arch = Some("kimi-k3".into());
    if attends_to_layers {
        spec.head.extra.extend(residual("output"));
    }
    if outer.has(&["vision_config"]) {
        let mut eye = towers::read_as(outer, &["vision_config"], "kimi_k3_vision")?;
        let merged = eye.d_output;
        eye.mlp("mm", [merged, merged, d_model], false).norm("mm.post_norm", d_model, false);
        spec.towers.push(eye.tower);
    }
    Ok(spec)
}
