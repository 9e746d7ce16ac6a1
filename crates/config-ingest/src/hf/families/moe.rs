//! Mixtures of experts that are no variant of a dense family.

use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, Dense, FeedForward, Mixer, ModelSpec, Moe, MtpLayer, OutputGate, QkvLayout, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::{Family, glm};
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["gpt_oss"],
        &["GptOssForCausalLM"],
        Some("gpt-oss"),
        r#"{"num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201088, "hidden_size": 2880,
            "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
            "sliding_window": 128, "max_position_embeddings": 131072, "num_experts_per_tok": 4,
            "attention_bias": true}"#,
        gpt_oss,
    ),
    Family::new(
        &["dbrx"],
        &["DbrxForCausalLM"],
        Some("dbrx"),
        r#"{"d_model": 2048, "n_heads": 16, "n_layers": 24,
            "max_seq_len": 2048, "vocab_size": 32000,
            "attn_config": {"kv_n_heads": 1}, "ffn_config": {"ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1}}"#,
        dbrx,
    ),
    Family::new(
        &["jetmoe"],
        &["JetMoeForCausalLM"],
        None,
        r#"{"vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 12, "num_key_value_heads": 16,
            "kv_channels": 128, "intermediate_size": 5632, "max_position_embeddings": 4096, "num_local_experts": 8,
            "num_experts_per_tok": 2, "tie_word_embeddings": true}"#,
        jetmoe,
    ),
    Family::new(&["deepseek"], &["DeepseekForCausalLM"], Some("deepseek"), "", deepseek),
    Family::new(
        &["dots1"],
        &["Dots1ForCausalLM"],
        Some("dots1"),
        r#"{"vocab_size": 152064, "hidden_size": 4608, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 32,
            "first_k_dense_replace": 0, "max_position_embeddings": 2048, "sliding_window": 4096,
            "max_window_layers": 62}"#,
        dots1,
    ),
    Family::new(&["bailing_moe", "bailing_moe_v2"], &["BailingMoeV2ForCausalLM"], Some("bailingmoe2"), "", bailing_v2),
    Family::new(&["bailing_moe_v1"], &["BailingMoeForCausalLM"], Some("bailingmoe"), "", bailing_v1),
    Family::new(
        &["afmoe"],
        &["AfmoeForCausalLM"],
        Some("afmoe"),
        r#"{"vocab_size": 200192, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 1408,
            "num_hidden_layers": 32, "num_dense_layers": 1, "num_attention_heads": 16, "head_dim": 128,
            "max_position_embeddings": 16384, "num_experts": 64, "num_experts_per_tok": 6, "num_shared_experts": 2,
            "global_attn_every_n_layers": 4, "sliding_window": 1024}"#,
        afmoe,
    ),
    Family::new(
        &["minimax_m2"],
        &["MiniMaxM2ForCausalLM"],
        Some("minimax-m2"),
        r#"{"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
            "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196608,
            "num_experts_per_tok": 8, "num_local_experts": 256}"#,
        minimax_m2,
    ),
    Family::new(
        &["mimo_v2_flash"],
        &["MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"],
        Some("mimo2"),
        r#"{"vocab_size": 152576, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 48,
            "num_attention_heads": 64, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "n_routed_experts": 256, "head_dim": 192,
            "v_head_dim": 128, "sliding_window": 128, "num_nextn_predict_layers": 3}"#,
        mimo_v2,
    ),
    Family::new(
        &["step3p5", "step3p7_text"],
        &["Step3p5ForCausalLM"],
        Some("step35"),
        r#"{"vocab_size": 128815, "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 128000,
            "num_experts_per_tok": 8, "moe_intermediate_size": 1280, "n_routed_experts": 288,
            "share_expert_dim": 1280}"#,
        step3p5,
    ),
    Family::new(
        &["laguna"],
        &["LagunaForCausalLM"],
        Some("laguna"),
        r#"{"vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40,
            "num_attention_heads": 48, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 512, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8, "num_experts": 256, "head_dim": 128, "gating": true}"#,
        laguna,
    ),
    Family::new(
        &["kolibri1"],
        &["Kolibri1ForCausalLM"],
        None,
        r#"{"vocab_size": 128000, "hidden_size": 2560, "num_hidden_layers": 50, "num_attention_heads": 48,
            "num_key_value_heads": 4, "max_position_embeddings": 262144, "sliding_window": 513,
            "moe_intermediate_size": 512, "num_experts_per_tok": 6, "num_experts": 384, "head_dim": 128,
            "shared_expert_intermediate_size": 512}"#,
        kolibri,
    ),
    Family::new(
        &["flint"],
        &["FlintForCausalLM"],
        None,
        r#"{"vocab_size": 150144, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 49,
            "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 262144,
            "sliding_window": 513, "decoder_sparse_step": 1, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 1024, "num_experts_per_tok": 6, "num_experts": 256,
            "mlp_only_layers": [0, 1], "head_dim": 128}"#,
        flint,
    ),
    Family::new(
        &["beam"],
        &["BeamForCausalLM"],
        None,
        r#"{"vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 20480, "num_hidden_layers": 52,
            "num_attention_heads": 48, "num_key_value_heads": 8, "max_position_embeddings": 8192,
            "sliding_window": 512, "moe_intermediate_size": 2560, "num_experts_per_tok": 8, "num_experts": 256,
            "head_dim": 128, "first_k_dense_replace": 3}"#,
        beam,
    ),
];

/// A layer per item of `moe`: experts or a dense feed-forward, and an attention of its own.
fn stack(
    r: &Reader<'_>,
    dims: &Dims,
    has_experts: Vec<bool>,
    moe: &Moe,
    attention: impl Fn(usize) -> Attention,
    norms: &[plimsoll_math::spec::Norm],
) -> ModelSpec {
    let layers = has_experts.into_iter().enumerate().map(|(index, has_experts)| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        recipe::layer(Mixer::Attention(attention(index)), feed_forward, norms.to_vec())
    });
    recipe::decoder(r, dims, layers.collect())
}

/// Multi-token-prediction layers like `layer`, joined by their projections and norms.
fn add_mtp(r: &Reader<'_>, spec: &mut ModelSpec, layer: &plimsoll_math::spec::Layer, extra: &[Weight]) {
    let n_mtp = r.opt_below(&["num_nextn_predict_layers", "num_mtp_layers"], r.limits().layers).unwrap_or(0);
    spec.mtp = (0..n_mtp).map(|_| MtpLayer { layer: layer.clone(), extra: extra.to_vec() }).collect();
}

/// Sinks, biases in attention, experts and router; every other layer has the window, from the first on.
fn gpt_oss(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = Moe { expert_bias: true, router_bias: true, ..recipe::experts(n_experts, top_k, dims.d_ff) };
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, true);
    attention.sinks = true;
    let norms = ["attn_norm", "post_attention_norm"].map(|name| recipe::norm(name, dims.d_model)).to_vec();
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 2 });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

fn dbrx(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::without_ff(r);
    let (Some(attn), Some(ffn)) = (r.child(&["attn_config"]), r.child(&["ffn_config"])) else {
        return Err(r.config.missing(&["attn_config and ffn_config"], "two objects"));
    };
    dims.n_kv_heads = attn.need_below(&["kv_n_heads"], r.limits().heads);
    let (n_experts, top_k) = recipe::expert_counts(&ffn);
    let moe = recipe::experts(n_experts, top_k, ffn.need(&["ffn_hidden_size"]));
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    let norms = ["attn_norm", "attn_output_norm"].map(|name| recipe::norm(name, dims.d_model)).to_vec();
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms))
}

/// Queries and outputs are experts too: a token's heads are those of the `top_k` experts it passes, over one set of
/// keys and values.
fn jetmoe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let (n_experts, top_k) = recipe::expert_counts(r);
    let n_kv_heads = r.need_below(&["num_key_value_heads"], limits.heads);
    let dims = Dims {
        d_model: r.need(recipe::D_MODEL),
        n_layers: r.need_below(recipe::N_LAYERS, limits.layers),
        n_vocab: r.need_below(recipe::N_VOCAB, limits.vocab),
        n_heads: n_kv_heads.saturating_mul(top_k),
        n_kv_heads,
        head_dim: r.need(&["kv_channels", "head_dim"]),
        d_ff: r.need(recipe::D_FF),
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(0),
    };
    let width = n_kv_heads.saturating_mul(dims.head_dim);
    let mut attention = dims.attention();
    // Its matrices are listed one by one.
    attention.layout = QkvLayout::Listed;
    let stack = |name, n_in, n_out| recipe::weight(name, Shape::stack(n_in, n_out, n_experts), Component::Attention);
    attention.extra = Vec::from([
        stack("attn_q_exps.weight", dims.d_model, width),
        stack("attn_output_exps.weight", width, dims.d_model),
        recipe::weight("attn_kv.weight", Shape::matrix(dims.d_model, width.saturating_mul(2)), Component::Attention),
        recipe::weight("attn_gate_inp.weight", Shape::matrix(dims.d_model, n_experts), Component::Router),
        recipe::weight("attn_exps.bias", Shape::vector(dims.d_model), Component::Attention),
    ]);
    let mut moe = recipe::experts(n_experts, top_k, dims.d_ff);
    moe.extra.push(recipe::weight("ffn_exps.bias", Shape::vector(dims.d_model), Component::Mlp));
    let norms = recipe::pre_norms(dims.d_model, false);
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms))
}

/// Routed experts and `n_shared` shared ones of the same width.
fn experts_and_shared(r: &Reader<'_>, shared_keys: &[&str]) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    let d_ff = r.need(&["moe_intermediate_size"]);
    let mut moe = recipe::experts(n_experts, top_k, d_ff);
    moe.shared = recipe::shared_experts(r.opt(shared_keys).unwrap_or(0).saturating_mul(d_ff));
    moe
}

fn deepseek(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = experts_and_shared(r, &["n_shared_experts"]);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let has_experts = recipe::moe_after_dense(r, dims.n_layers);
    Ok(stack(r, &dims, has_experts, &moe, |_| attention.clone(), &recipe::pre_norms(dims.d_model, false)))
}

fn dots1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = Moe { correction_bias: Some(Counts::Buffer), ..experts_and_shared(r, &["n_shared_experts"]) };
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let has_experts = recipe::moe_after_dense(r, dims.n_layers);
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = stack(r, &dims, has_experts, &moe, |_| attention.clone(), &norms);
    // Windows start at `max_window_layers`, where layers are not typed.
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let first = r.opt(&["max_window_layers"]).unwrap_or(dims.n_layers);
    let typed = recipe::layer_types(r, dims.n_layers);
    let windows = dims.layers().zip(0_usize..).map(|(index, position)| {
        let sliding = match &typed {
            Some(types) => types.get(position).is_some_and(|kind| *kind == "sliding_attention"),
            None => index >= first,
        };
        tokens.filter(|_| sliding).map_or(Window::Full, |tokens| Window::Sliding { tokens })
    });
    recipe::set_windows(&mut spec, windows.collect());
    Ok(spec)
}

/// Ling and Ring of the second generation.
fn bailing_v2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut moe = Moe { correction_bias: Some(Counts::Buffer), ..experts_and_shared(r, &["num_shared_experts"]) };
    if let Some(width) = r.opt(&["moe_shared_expert_intermediate_size"]) {
        moe.shared = recipe::shared_experts(width.saturating_mul(r.opt(&["num_shared_experts"]).unwrap_or(0)));
    }
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias.o = r.flag(&["use_bias"], false);
    let qkv = r.flag(&["use_qkv_bias"], false);
    (attention.bias.q, attention.bias.k, attention.bias.v) = (qkv, qkv, qkv);
    if r.flag(&["use_qk_norm"], false) {
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    }
    let has_experts = recipe::moe_after_dense(r, dims.n_layers);
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = stack(r, &dims, has_experts, &moe, |_| attention.clone(), &norms);
    let layer = recipe::layer(Mixer::Attention(attention), FeedForward::Moe(moe), norms);
    let mut extra = glm::nextn(dims.d_model, None, None);
    extra.retain(|weight| weight.name != "nextn.shared_head_norm.weight");
    extra.push(recipe::weight("layer_output_norm.weight", Shape::vector(dims.d_model), Component::Norms));
    add_mtp(r, &mut spec, &layer, &extra);
    Ok(spec)
}

/// Ling-lite and Ling-plus.
fn bailing_v1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = experts_and_shared(r, &["num_shared_experts"]);
    let mut attention = dims.attention();
    attention.bias.o = r.flag(&["use_bias"], false);
    let qkv = r.flag(&["use_qkv_bias"], false);
    (attention.bias.q, attention.bias.k, attention.bias.v) = (qkv, qkv, qkv);
    let has_experts = recipe::moe_after_dense(r, dims.n_layers);
    Ok(stack(r, &dims, has_experts, &moe, |_| attention.clone(), &recipe::pre_norms(dims.d_model, false)))
}

/// A gate on the attention output, norms around both halves; the experts' correction is a parameter of the
/// feed-forward, not of the router.
fn afmoe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut moe = experts_and_shared(r, &["num_shared_experts"]);
    moe.extra.push(recipe::weight("exp_probs_b.bias", Shape::vector(moe.n_experts), Component::Mlp));
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    attention.gate = OutputGate::Own { width: dims.n_heads.saturating_mul(dims.head_dim) };
    let has_experts = recipe::from_layer(dims.n_layers, r.opt(&["num_dense_layers"]).unwrap_or(0));
    let norms = recipe::sandwich_norms(dims.d_model);
    let mut spec = stack(r, &dims, has_experts, &moe, |_| attention.clone(), &norms);
    let period = r.opt(&["global_attn_every_n_layers"]).unwrap_or(4);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// Norms over whole queries and keys; all layers have experts.
fn minimax_m2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = Moe { correction_bias: Some(Counts::Buffer), ..recipe::experts(n_experts, top_k, dims.d_ff) };
    let mut attention = dims.attention();
    if r.flag(&["use_qk_norm"], true) {
        attention.qk_norm = recipe::qk_norm_whole(&dims);
    }
    let norms = recipe::pre_norms(dims.d_model, false);
    Ok(recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms))
}

/// Two kinds of attention: full layers, and window layers with head counts of their own and sinks. Every published
/// checkpoint has three multi-token-prediction layers, which no config mentions (conversion/mimo.py).
fn mimo_v2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = Moe { correction_bias: Some(Counts::Buffer), ..experts_and_shared(r, &["n_shared_experts"]) };
    let has_experts = match (r.has(&["mlp_layer_types"]), r.has(&["moe_layer_freq"])) {
        (false, false) => recipe::from_layer(dims.n_layers, 1),
        _ => recipe::moe_by_types(r, dims.n_layers),
    };
    let is_sliding: Vec<bool> = match (recipe::layer_types(r, dims.n_layers), r.flags(&["hybrid_layer_pattern"])) {
        (Some(types), _) => types.into_iter().map(|kind| kind == "sliding_attention").collect(),
        (None, Some(flags)) => recipe::per_layer(r, "hybrid_layer_pattern", Some(flags), dims.n_layers),
        (None, None) => dims.layers().map(|index| index != 0 && (index + 1) % 6 != 0).collect(),
    };
    let bias = recipe::bias_on_qkv(r, false);
    let v_head_dim = r.opt(&["v_head_dim"]).unwrap_or(dims.head_dim);
    let tokens = r.opt(&["sliding_window_size", "sliding_window"]).unwrap_or(0);
    let full = Attention { v_head_dim, bias, sinks: r.flag(&["add_full_attention_sink_bias"], false), ..dims.attention() };
    let head_limit = r.limits().heads;
    let sliding = Attention {
        n_heads: r.opt_below(&["swa_num_attention_heads"], head_limit).unwrap_or(dims.n_heads),
        // The class gives window layers twice the key-value heads when the config does not say.
        n_kv_heads: r.opt_below(&["swa_num_key_value_heads"], head_limit).unwrap_or(dims.n_kv_heads.saturating_mul(2)),
        k_head_dim: r.opt(&["swa_head_dim"]).unwrap_or(dims.head_dim),
        v_head_dim: r.opt(&["swa_v_head_dim"]).unwrap_or(v_head_dim),
        sinks: r.flag(&["add_swa_attention_sink_bias"], true),
        window: if tokens > 0 { Window::Sliding { tokens } } else { Window::Full },
        ..full.clone()
    };
    let norms = recipe::pre_norms(dims.d_model, false);
    let attention = |index: usize| if is_sliding.get(index) == Some(&true) { sliding.clone() } else { full.clone() };
    let mut spec = stack(r, &dims, has_experts, &moe, attention, &norms);
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layer = recipe::layer(Mixer::Attention(Attention { sinks: true, ..sliding.clone() }), feed_forward, norms.clone());
    let mut extra = glm::nextn(dims.d_model, None, None);
    extra.push(recipe::weight("layer_output_norm.weight", Shape::vector(dims.d_model), Component::Norms));
    add_mtp(r, &mut spec, &layer, &extra);
    Ok(spec)
}

/// A gate per head, window layers with more heads, a shared expert beside the routed ones.
fn step3p5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read(r);
    let limits = r.limits();
    dims.n_kv_heads = r.opt_below(&["num_attention_groups", "num_key_value_heads"], limits.heads).unwrap_or(dims.n_kv_heads);
    let n_experts = r.need_below(&["moe_num_experts", "n_routed_experts"], limits.experts);
    let top_k = r.need_below(&["moe_top_k", "num_experts_per_tok"], limits.experts);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.correction_bias = Some(Counts::Buffer);
    moe.shared = recipe::shared_experts(r.opt(&["share_expert_dim", "share_expert_dims"]).unwrap_or(0));
    let sliding = r.child(&["attention_other_setting"]);
    let n_heads_sliding = sliding
        .as_ref()
        .and_then(|other| other.opt_below(&["num_attention_heads"], limits.heads))
        .or(r.opt_below(&["num_sliding_attention_heads"], limits.heads))
        .unwrap_or(dims.n_heads);
    let n_kv_sliding =
        sliding.as_ref().and_then(|other| other.opt_below(&["num_attention_groups"], limits.heads)).unwrap_or(dims.n_kv_heads);
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let types = r.texts(&["layer_types"]).unwrap_or_default();
    let gated = r.flag(&["use_head_wise_attn_gate"], true);
    let attention = |index: usize| {
        let is_sliding = types.get(index) == Some(&"sliding_attention");
        let n_heads = if is_sliding { n_heads_sliding } else { dims.n_heads };
        let n_kv_heads = if is_sliding { n_kv_sliding } else { dims.n_kv_heads };
        let mut attention = Attention::new(n_heads, n_kv_heads, dims.head_dim);
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
        if gated {
            attention.gate = OutputGate::Own { width: n_heads };
        }
        if let (true, Some(tokens)) = (is_sliding, tokens) {
            attention.window = Window::Sliding { tokens };
        }
        attention
    };
    let listed = listed_moe_layers(r);
    let has_experts = match (r.has(&["mlp_layer_types"]), listed) {
        (true, _) => recipe::moe_by_types(r, dims.n_layers),
        (false, Some(indices)) => recipe::listed(dims.n_layers, &indices),
        (false, None) => recipe::from_layer(dims.n_layers, 3),
    };
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = stack(r, &dims, has_experts, &moe, attention, &norms);
    let n_mtp = r.opt_below(&["num_nextn_predict_layers", "num_mtp_layers"], limits.layers).unwrap_or(0);
    let first = usize::try_from(dims.n_layers).unwrap_or(usize::MAX);
    spec.mtp = (0..usize::try_from(n_mtp).unwrap_or(0))
        .map(|index| {
            let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
            let mixer = Mixer::Attention(attention(first.saturating_add(index)));
            let extra = glm::nextn(dims.d_model, None, Some(dims.n_vocab));
            MtpLayer { layer: recipe::layer(mixer, feed_forward, norms.clone()), extra }
        })
        .collect();
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

/// `moe_layers_enum`: a list of indices, or such a list as text (`"3,4,5"`).
fn listed_moe_layers(r: &Reader<'_>) -> Option<Vec<u64>> {
    match r.config.raw(&["moe_layers_enum"])? {
        (serde_json::Value::String(text), _) => {
            let numbers = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::parse);
            let parsed: Result<Vec<u64>, _> = numbers.collect();
            if parsed.is_err() {
                r.invalid("moe_layers_enum", text, "layer indices with commas between");
            }
            parsed.ok()
        }
        _ => r.list(&["moe_layers_enum"]),
    }
}

/// Head counts per layer, a gate per head or per element.
fn laguna(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.correction_bias = Some(Counts::Parameter);
    moe.shared = recipe::shared_experts(r.need(&["shared_expert_intermediate_size"]));
    let heads = r.list(&["num_attention_heads_per_layer"]);
    let heads = heads.map(|heads| recipe::per_layer(r, "num_attention_heads_per_layer", Some(heads), dims.n_layers));
    let per_element_all =
        matches!(r.config.raw(&["gating"]), Some((serde_json::Value::String(kind), _)) if kind == "per-element");
    let kinds = r.texts(&["gating_types"]);
    let gated =
        per_element_all || kinds.is_some() || !matches!(r.config.raw(&["gating"]), Some((serde_json::Value::Bool(false), _)));
    let windows = match r.has(&["layer_types"]) {
        true => recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::All),
        false => dims.layers().map(|_| Window::Full).collect(),
    };
    let limit = r.limits().heads;
    let attention = |index: usize| {
        let n_heads = heads.as_ref().and_then(|heads| heads.get(index).copied()).unwrap_or(dims.n_heads).min(limit);
        let mut attention = Attention::new(n_heads, dims.n_kv_heads, dims.head_dim);
        attention.bias = recipe::bias_on_all(r, false);
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
        let kind = kinds.as_ref().and_then(|kinds| kinds.get(index).copied());
        let per_element = kind.map_or(per_element_all, |kind| kind.contains("element"));
        if gated {
            attention.gate = OutputGate::Own { width: if per_element { n_heads.saturating_mul(dims.head_dim) } else { n_heads } };
        }
        attention.window = windows.get(index).copied().unwrap_or_default();
        attention
    };
    let has_experts = match r.has(&["mlp_layer_types"]) {
        true => recipe::moe_by_types(r, dims.n_layers),
        false => recipe::from_layer(dims.n_layers, 1),
    };
    Ok(stack(r, &dims, has_experts, &moe, attention, &recipe::pre_norms(dims.d_model, false)))
}

/// Norms around both halves; every fifth layer sees everything.
fn kolibri(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.correction_bias = Some(Counts::Buffer);
    moe.shared = recipe::shared_experts(r.need(&["shared_expert_intermediate_size"]));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let norms = recipe::sandwich_norms(dims.d_model);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), FeedForward::Moe(moe), norms);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 5 });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// Sinks on all layers; the first two, every fourth and the last see everything.
fn flint(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.shared = recipe::shared_experts(r.need(&["shared_expert_intermediate_size"]));
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    attention.sinks = true;
    let has_experts = recipe::moe_by_sparse_step(r, dims.n_layers);
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = stack(r, &dims, has_experts, &moe, |_| attention.clone(), &norms);
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let windows = match r.has(&["layer_types"]) {
        true => recipe::windows(r, dims.n_layers, tokens, Alternation::All),
        false => dims
            .layers()
            .map(|index| {
                let full = index < 2 || index % 4 == 1 || index + 1 == dims.n_layers;
                tokens.filter(|_| !full).map_or(Window::Full, |tokens| Window::Sliding { tokens })
            })
            .collect(),
    };
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// Norms around both halves, a gate on the attention output with one bias a head.
fn beam(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    moe.correction_bias = Some(Counts::Buffer);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    attention.gate = OutputGate::Own { width: dims.n_heads.saturating_mul(dims.head_dim) };
    attention.extra.push(recipe::weight("attn_gate.bias", Shape::vector(dims.n_heads), Component::Attention));
    let has_experts = recipe::moe_by_types(r, dims.n_layers);
    let norms = recipe::sandwich_norms(dims.d_model);
    let mut spec = stack(r, &dims, has_experts, &moe, |_| attention.clone(), &norms);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 4 });
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}
