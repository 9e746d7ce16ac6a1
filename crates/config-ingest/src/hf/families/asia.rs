//! Models of laboratories in China, Korea, Japan and elsewhere that follow Llama with a twist each.

use alloc::vec::Vec;

use plimsoll_math::spec::{Attention, AttentionBias, Dense, FeedForward, Mixer, ModelSpec, Moe, MtpLayer, OutputGate, Window};
use plimsoll_math::tensor::Counts;

use super::{Family, glm};
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["internlm2"], &["InternLM2ForCausalLM"], Some("internlm2"), r#"{"bias": true}"#, with_bias),
    Family::new(&["internlm"], &["InternLMForCausalLM"], Some("llama"), r#"{"bias": true}"#, with_bias),
    Family::new(
        &["internlm3"],
        &["InternLM3ForCausalLM", "LlamaForCausalLM"],
        Some("llama"),
        r#"{"vocab_size": 128512, "hidden_size": 4096, "intermediate_size": 10240, "num_hidden_layers": 48,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 32768}"#,
        internlm3,
    ),
    Family::new(&["baichuan"], &["BaichuanForCausalLM", "BaiChuanForCausalLM"], Some("baichuan"), "", plain),
    Family::new(&["xverse"], &["XverseForCausalLM"], Some("xverse"), "", plain),
    Family::new(&["minicpm"], &["MiniCPMForCausalLM"], Some("minicpm"), r#"{"tie_word_embeddings": true}"#, minicpm),
    Family::new(&["orion"], &["OrionForCausalLM"], Some("orion"), "", orion),
    Family::new(
        &["PanguEmbedded", "pangu_embedded"],
        &["PanguEmbeddedForCausalLM"],
        Some("pangu-embedded"),
        r#"{"bias": true}"#,
        with_bias,
    ),
    Family::new(&["exaone"], &["ExaoneForCausalLM"], Some("exaone"), "", plain),
    Family::new(
        &["exaone4"],
        &["Exaone4ForCausalLM"],
        Some("exaone4"),
        r#"{"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
            "sliding_window": 4096, "sliding_window_pattern": 4}"#,
        exaone4,
    ),
    Family::new(
        &["exaone_moe"],
        &["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
        Some("exaone-moe"),
        r#"{"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
            "sliding_window": 4096, "sliding_window_pattern": 4, "first_k_dense_replace": 1,
            "moe_intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "num_shared_experts": 1}"#,
        exaone_moe,
    ),
    Family::new(
        &["ernie4_5"],
        &["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
        Some("ernie4_5"),
        r#"{"vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
            "tie_word_embeddings": true, "use_bias": false}"#,
        ernie,
    ),
    Family::new(
        &["ernie4_5_moe"],
        &["Ernie4_5_MoeForCausalLM"],
        Some("ernie4_5-moe"),
        r#"{"vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "tie_word_embeddings": true, "use_bias": false, "moe_intermediate_size": 1536, "moe_k": 6,
            "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
            "moe_layer_interval": 1}"#,
        ernie_moe,
    ),
    Family::new(
        &["hunyuan_v1_dense"],
        &["HunYuanDenseV1ForCausalLM"],
        Some("hunyuan-dense"),
        r#"{"vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        hunyuan_dense,
    ),
    Family::new(
        &["hunyuan", "hunyuan_v1_moe"],
        &["HunYuanMoEV1ForCausalLM"],
        Some("hunyuan-moe"),
        r#"{"vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "num_experts": 1, "moe_topk": 1}"#,
        hunyuan_moe,
    ),
    Family::new(
        &["hy_v3"],
        &["HYV3ForCausalLM"],
        Some("hy_v3"),
        r#"{"vocab_size": 120832, "hidden_size": 4096, "intermediate_size": 13312, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
            "num_experts": 192, "num_experts_per_tok": 8, "num_shared_experts": 1, "moe_intermediate_size": 1536,
            "first_k_dense_replace": 1}"#,
        hy_v3,
    ),
    Family::new(
        &["mellum"],
        &["MellumForCausalLM"],
        Some("mellum"),
        r#"{"vocab_size": 98304, "hidden_size": 2304, "intermediate_size": 7168, "num_hidden_layers": 28,
            "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "sliding_window": 1024, "moe_intermediate_size": 896, "num_experts_per_tok": 8, "num_experts": 64,
            "head_dim": 128}"#,
        mellum,
    ),
    Family::new(
        &["muse_glimmer_text"],
        &["MuseGlimmerForCausalLM"],
        Some("muse-glimmer"),
        r#"{"vocab_size": 202048, "hidden_size": 6656, "intermediate_size": 19968, "num_hidden_layers": 52,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
            "sliding_window": 2048}"#,
        muse_glimmer,
    ),
];

fn uniform(r: &Reader<'_>, dims: &Dims, attention: Attention, dense: Dense) -> ModelSpec {
    let norms = recipe::pre_norms(dims.d_model, false);
    let mut spec = recipe::uniform(r, dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    spec
}

fn plain(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    Ok(uniform(r, &dims, dims.attention(), Dense::gated(dims.d_ff)))
}

/// Biases on all attention projections when `bias` is set.
fn with_bias(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["bias"], true) {
        attention.bias = AttentionBias::ALL;
    }
    Ok(uniform(r, &dims, attention, Dense::gated(dims.d_ff)))
}

fn internlm3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["qkv_bias", "attention_bias"], false) {
        attention.bias = AttentionBias::QKV;
    }
    let bias = r.flag(&["bias", "mlp_bias"], false);
    attention.bias.o = bias;
    Ok(uniform(r, &dims, attention, Dense { up_bias: bias, down_bias: bias, ..Dense::gated(dims.d_ff) }))
}

/// Dense, or with experts (`num_experts`).
fn minicpm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let mut spec = uniform(r, &dims, attention, Dense::gated(dims.d_ff));
    if r.opt(&["num_experts"]).unwrap_or(0) > 0 {
        let (n_experts, top_k) = recipe::expert_counts(r);
        for layer in &mut spec.layers {
            layer.feed_forward = FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff));
        }
    }
    Ok(spec)
}

/// Layer norms with biases.
fn orion(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let norms = recipe::pre_norms(dims.d_model, true);
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, norms);
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    Ok(spec)
}

/// `layer_types`, else `sliding_window_pattern`: a period whose last layer sees everything, or letters (`LLLG`).
fn exaone_windows(r: &Reader<'_>, n_layers: u64) -> Vec<Window> {
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let letters = match r.config.raw(&["sliding_window_pattern"]) {
        Some((serde_json::Value::String(letters), _)) if !letters.is_empty() => Some(letters),
        _ => None,
    };
    match (r.has(&["layer_types"]), letters, tokens) {
        (false, Some(letters), Some(tokens)) => letters
            .chars()
            .cycle()
            .zip(0..n_layers)
            .map(|(letter, _)| if letter == 'L' { Window::Sliding { tokens } } else { Window::Full })
            .collect(),
        (has_types, letters, tokens) => {
            let period = if has_types || letters.is_some() { 0 } else { r.opt(&["sliding_window_pattern"]).unwrap_or(4) };
            recipe::windows(r, n_layers, tokens, Alternation::FullLast { period })
        }
    }
}

/// Norms after both halves and on every head.
fn exaone4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut spec = uniform(r, &dims, attention, Dense::gated(dims.d_ff));
    for layer in &mut spec.layers {
        layer.norms = recipe::post_norms(dims.d_model);
    }
    recipe::set_windows(&mut spec, exaone_windows(r, dims.n_layers));
    Ok(spec)
}

/// The routed experts, and shared ones of the same width.
fn experts(r: &Reader<'_>, shared_keys: &[&str]) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    let d_ff = r.need(&["moe_intermediate_size"]);
    let mut moe = recipe::experts(n_experts, top_k, d_ff);
    moe.shared = recipe::shared_experts(r.opt(shared_keys).unwrap_or(0).saturating_mul(d_ff));
    moe
}

/// Layers with experts where `has_experts` says, and multi-token-prediction layers with `mtp_feed_forward`.
fn sparse(r: &Reader<'_>, dims: &Dims, attention: &Attention, moe: &Moe, has_experts: Vec<bool>) -> ModelSpec {
    let layers = has_experts.into_iter().map(|has_experts| {
        let feed_forward = if has_experts { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        recipe::layer(Mixer::Attention(attention.clone()), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, dims, layers.collect());
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    spec
}

fn mtp(r: &Reader<'_>, dims: &Dims, attention: &Attention, feed_forward: &FeedForward) -> Vec<MtpLayer> {
    let n_mtp = r.opt_below(&["num_nextn_predict_layers", "num_mtp_layers"], r.limits().layers).unwrap_or(0);
    let layer =
        || recipe::layer(Mixer::Attention(attention.clone()), feed_forward.clone(), recipe::pre_norms(dims.d_model, false));
    (0..n_mtp).map(|_| MtpLayer { layer: layer(), extra: glm::nextn(dims.d_model, None, None) }).collect()
}

fn exaone_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = Moe { correction_bias: Some(Counts::Buffer), ..experts(r, &["num_shared_experts"]) };
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut spec = sparse(r, &dims, &attention, &moe, recipe::moe_by_types(r, dims.n_layers));
    recipe::set_windows(&mut spec, exaone_windows(r, dims.n_layers));
    spec.mtp = mtp(r, &dims, &attention, &FeedForward::Dense(Dense::gated(dims.d_ff)));
    Ok(spec)
}

fn ernie(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let bias = r.flag(&["use_bias"], false);
    let mut attention = dims.attention();
    if bias {
        attention.bias = AttentionBias::ALL;
    }
    Ok(uniform(r, &dims, attention, Dense { up_bias: bias, down_bias: bias, ..Dense::gated(dims.d_ff) }))
}

/// Experts from `moe_layer_start_index` to `moe_layer_end_index`, every `moe_layer_interval`-th; the router's
/// correction is a parameter.
fn ernie_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = Moe { correction_bias: Some(Counts::Parameter), ..experts(r, &["moe_num_shared_experts"]) };
    let mut attention = dims.attention();
    if r.flag(&["use_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let first = r.opt(&["moe_layer_start_index"]).unwrap_or(1);
    let interval = r.opt(&["moe_layer_interval"]).unwrap_or(1).max(1);
    // -1 stands for the last layer.
    let last = match r.config.raw(&["moe_layer_end_index"]) {
        Some((value, _)) if value.as_i64() == Some(-1) => None,
        _ => r.opt(&["moe_layer_end_index"]),
    };
    let last = last.unwrap_or(u64::MAX);
    let has_experts = dims.layers().map(|index| (index + 1) % interval == 0 && index >= first && index <= last).collect();
    let mut spec = sparse(r, &dims, &attention, &moe, has_experts);
    if r.flag(&["use_bias"], false) {
        add_feed_forward_bias(&mut spec);
        recipe::add_head_bias(&mut spec);
    }
    Ok(spec)
}

/// Biases on dense feed-forwards and shared experts.
fn add_feed_forward_bias(spec: &mut ModelSpec) {
    for layer in &mut spec.layers {
        let dense = match &mut layer.feed_forward {
            FeedForward::Dense(dense) => Some(dense),
            FeedForward::Moe(moe) => moe.shared.as_mut(),
            _ => None,
        };
        if let Some(dense) = dense {
            dense.up_bias = true;
            dense.down_bias = true;
        }
    }
}

/// Norms on every head.
fn hunyuan_dense(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    if r.flag(&["use_qk_norm"], true) {
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    }
    let bias = r.flag(&["mlp_bias"], false);
    Ok(uniform(r, &dims, attention, Dense { up_bias: bias, down_bias: bias, ..Dense::gated(dims.d_ff) }))
}

/// A count, or the list of its values per layer, of which the first `n_layers` matter.
fn one_or_list(r: &Reader<'_>, key: &str, n_layers: u64) -> Option<Vec<u64>> {
    match r.config.raw(&[key])? {
        (serde_json::Value::Array(_), _) => Some(recipe::per_layer(r, key, r.list(&[key]), n_layers)),
        _ => r.opt(&[key]).map(|value| (0..n_layers).map(|_| value).collect()),
    }
}

/// Expert widths, counts and choices may be lists, one value a layer; `cla_share_factor` shares keys and values
/// between neighbours when `use_cla` is set.
fn hunyuan_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    use plimsoll_math::spec::KvSource;
    let dims = Dims::read(r);
    let limits = r.limits();
    let values = |key: &str| one_or_list(r, key, dims.n_layers);
    let n_experts = values("num_experts").unwrap_or_default();
    let top_k = values("moe_topk").unwrap_or_default();
    let widths = values("moe_intermediate_size");
    let n_shared = values("num_shared_expert");
    let mixed = r.flag(&["use_mixed_mlp_moe"], true);
    let dense_layers = r.opt(&["moe_layer_num_skipped"]).unwrap_or(0);
    let shares = if r.flag(&["use_cla"], false) { r.opt(&["cla_share_factor"]).unwrap_or(1).max(1) } else { 1 };
    let mut base = dims.attention();
    base.bias = recipe::bias_on_all(r, false);
    if r.flag(&["use_qk_norm"], true) {
        base.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    }
    let at = |list: &[u64], index: u64| usize::try_from(index).ok().and_then(|index| list.get(index).copied());
    let layers = dims.layers().map(|index| {
        let count = at(&n_experts, index).unwrap_or(1).min(limits.experts);
        let feed_forward = if index >= dense_layers && count > 1 {
            let width = widths.as_deref().and_then(|list| at(list, index)).unwrap_or(dims.d_ff).min(limits.width);
            let mut moe = recipe::experts(count, at(&top_k, index).unwrap_or(1).min(count), width);
            if mixed {
                let shared = n_shared.as_deref().map_or(1, |list| at(list, index).unwrap_or(0));
                moe.shared = recipe::shared_experts(shared.saturating_mul(dims.d_ff));
            }
            FeedForward::Moe(moe)
        } else {
            FeedForward::Dense(Dense::gated(dims.d_ff))
        };
        let mut attention = base.clone();
        if index % shares != 0 {
            attention.kv_source = KvSource::Layer { layer: u32::try_from(index - index % shares).unwrap_or(u32::MAX) };
            attention.layout = plimsoll_math::spec::QkvLayout::QueryOnly;
        }
        recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn hy_v3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = Moe { correction_bias: Some(Counts::Buffer), ..experts(r, &["num_shared_experts"]) };
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut spec = sparse(r, &dims, &attention, &moe, recipe::moe_by_types(r, dims.n_layers));
    if r.flag(&["mlp_bias"], false) {
        add_feed_forward_bias(&mut spec);
    }
    spec.mtp = mtp(r, &dims, &attention, &FeedForward::Moe(moe));
    Ok(spec)
}

fn mellum(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let moe = experts(r, &[]);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut spec = sparse(r, &dims, &attention, &moe, recipe::moe_by_types(r, dims.n_layers));
    let tokens = r.opt(&["sliding_window"]).filter(|_| r.flag(&["use_sliding_window"], true));
    // Without a list all layers see everything.
    let windows = match r.has(&["layer_types"]) {
        true => recipe::windows(r, dims.n_layers, tokens, Alternation::All),
        false => dims.layers().map(|_| Window::Full).collect(),
    };
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// Norms around both halves, a gate on the attention output; every fourth layer, counted from the last, sees everything.
fn muse_glimmer(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.gate = OutputGate::Own { width: dims.n_heads.saturating_mul(dims.head_dim) };
    let mut spec = uniform(r, &dims, attention, Dense::gated(dims.d_ff));
    for layer in &mut spec.layers {
        layer.norms = recipe::sandwich_norms(dims.d_model);
    }
    let tokens = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0);
    let windows = match r.has(&["layer_types"]) {
        true => recipe::windows(r, dims.n_layers, tokens, Alternation::All),
        false => dims
            .layers()
            .map(|index| {
                let full = (dims.n_layers - 1 - index).is_multiple_of(4);
                tokens.filter(|_| !full).map_or(Window::Full, |tokens| Window::Sliding { tokens })
            })
            .collect(),
    };
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}
