//! Decoders with a spelling or a twist of their own: searched architectures, diffusion models, residual experts.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{Attention, AttentionBias, Dense, FeedForward, KvSource, Layer, Mixer, ModelSpec, QkvLayout, Window};
use plimsoll_math::tensor::{Component, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::config::Config;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["nemotron-nas", "deci"], &["DeciLMForCausalLM"], Some("deci"), "", deci),
    Family::new(
        &["openelm"],
        &["OpenELMForCausalLM"],
        Some("openelm"),
        r#"{"ffn_dim_divisor": 256, "ffn_with_glu": true, "normalize_qk_projections": true,
            "share_input_output_layers": true}"#,
        openelm,
    ),
    Family::new(&["grok", "grok-1"], &["GrokForCausalLM", "Grok1ForCausalLM"], Some("grok"), "", grok),
    Family::new(&["arctic"], &["ArcticForCausalLM"], Some("arctic"), r#"{"use_residual": true}"#, arctic),
    Family::new(&["smallthinker"], &["SmallThinkerForCausalLM"], Some("smallthinker"), "", smallthinker),
    Family::new(&["grove_moe"], &["GroveMoeForCausalLM"], Some("grovemoe"), "", grove_moe),
    Family::new(&["maincoder"], &["MaincoderForCausalLM"], Some("maincoder"), "", maincoder),
    Family::new(&["Dream", "dream"], &["DreamModel"], Some("dream"), "", dream),
    Family::new(&["llada"], &["LLaDAModelLM"], Some("llada"), "", llada),
    Family::new(&["llada_moe", "llada2_moe"], &["LLaDAMoEModelLM", "LLaDAMoEModel"], Some("llada-moe"), "", llada_moe),
    Family::new(&["rnd1"], &["RND1"], Some("rnd1"), "", rnd1),
    Family::new(&["gpt_refact"], &["GPTRefactForCausalLM"], Some("refact"), r#"{"multi_query": true}"#, refact),
    Family::new(&["plamo"], &["PlamoForCausalLM"], Some("plamo"), "", plamo),
    Family::new(&["nanbeige"], &["NanbeigeForCausalLM"], Some("nanbeige"), "", nanbeige),
    Family::new(&["maple"], &["MapleForCausalLM"], Some("maple"), "", maple),
    Family::new(&["yuan"], &["YuanForCausalLM"], None, "", yuan),
];

/// The whole part of a number that is not negative.
fn whole(value: f64) -> u64 {
    // Plain notation always, so the digits before the point are the whole part.
    format!("{value}").split('.').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn uniform(r: &Reader<'_>, dims: &Dims, attention: Attention, feed_forward: FeedForward) -> ModelSpec {
    recipe::uniform(r, dims, Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false))
}

/// NVIDIA's searched models: `block_configs` says for each block how many heads share keys and values, how wide the
/// feed-forward is, and whether either half is a plain matrix or left out.
fn deci(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let Some((serde_json::Value::Array(blocks), place)) = r.config.raw(&["block_configs"]) else { return deci_1(r, &dims) };
    let limit = usize::try_from(r.limits().layers).unwrap_or(usize::MAX);
    if u64::try_from(blocks.len()).ok() != Some(dims.n_layers) {
        r.invalid("block_configs", format!("{} blocks", blocks.len()), format!("{} of them", dims.n_layers));
    }
    let mut layers = Vec::new();
    for (index, block) in blocks.iter().take(limit).enumerate() {
        let block = Config::root_at(block, format!("{place}[{index}]"))?;
        let block = Reader { config: block, ..r.clone() };
        layers.push(deci_block(&block, &dims));
    }
    let mut spec = recipe::decoder(r, &dims, layers);
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

fn deci_block(block: &Reader<'_>, dims: &Dims) -> Layer {
    let mut layer = recipe::layer(Mixer::None, FeedForward::None, Vec::new());
    let linear = |name, component| recipe::weight(name, Shape::matrix(dims.d_model, dims.d_model), component);
    if let Some(half) = block.child(&["attention"]) {
        if half.flag(&["replace_with_linear"], false) {
            layer.norms.push(recipe::norm("attn_norm", dims.d_model));
            layer.extra.push(linear("attn_output.weight", Component::Attention));
        } else if !half.flag(&["no_op"], false) {
            let group = half.need_below(&["n_heads_in_group"], block.limits().heads);
            let n_kv_heads = block.divide("attention.n_heads_in_group", dims.n_heads, group);
            layer.norms.push(recipe::norm("attn_norm", dims.d_model));
            layer.mixer = Mixer::Attention(Attention::new(dims.n_heads, n_kv_heads, dims.head_dim));
        }
    }
    if let Some(half) = block.child(&["ffn"]) {
        if half.flag(&["replace_with_linear"], false) {
            layer.norms.push(recipe::norm("ffn_norm", dims.d_model));
            layer.extra.push(linear("ffn_linear.weight", Component::Mlp));
        } else if !half.flag(&["no_op"], false) {
            let explicit = half.opt(&["intermediate_size"]);
            let multiple = half.keep(half.config.f64(&["ffn_mult"]));
            let d_ff = match (explicit, multiple) {
                (Some(width), _) => width,
                (None, Some(multiple)) => whole(2.0 * multiple * float(dims.d_model) / 3.0).next_multiple_of(256),
                (None, None) => 0,
            };
            if d_ff == 0 || d_ff > block.limits().width {
                half.invalid("ffn_mult", d_ff, "a width above zero");
            }
            layer.norms.push(recipe::norm("ffn_norm", dims.d_model));
            layer.feed_forward = FeedForward::Dense(Dense::gated(d_ff));
        }
    }
    layer
}

/// DeciLM 6B and 7B: key-value heads per layer.
fn deci_1(r: &Reader<'_>, dims: &Dims) -> Result<ModelSpec, IngestError> {
    let heads = r.list(&["num_key_value_heads_per_layer"]);
    let heads = recipe::per_layer(r, "num_key_value_heads_per_layer", heads, dims.n_layers);
    let d_ff = r.need(recipe::D_FF);
    let limit = r.limits().heads;
    let layers = heads.into_iter().map(|n_kv_heads| {
        if n_kv_heads == 0 || n_kv_heads > limit {
            r.invalid("num_key_value_heads_per_layer", n_kv_heads, format!("from 1 to {limit}"));
        }
        let attention = Attention::new(dims.n_heads, n_kv_heads.min(limit), dims.head_dim);
        let norms = recipe::pre_norms(dims.d_model, false);
        recipe::layer(Mixer::Attention(attention), FeedForward::Dense(Dense::gated(d_ff)), norms)
    });
    Ok(recipe::decoder(r, dims, layers.collect()))
}

/// Apple's models: heads and widths differ from layer to layer.
fn openelm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let d_model = r.need(recipe::D_MODEL);
    let n_layers = r.need_below(&["num_transformer_layers", "num_hidden_layers"], limits.layers);
    let head_dim = r.need(recipe::HEAD_DIM);
    let divisor = r.need(&["ffn_dim_divisor"]).max(1);
    let heads = recipe::per_layer(r, "num_query_heads", r.list(&["num_query_heads"]), n_layers);
    let kv_heads = recipe::per_layer(r, "num_kv_heads", r.list(&["num_kv_heads"]), n_layers);
    let multipliers = match r.config.raw(&["ffn_multipliers"]) {
        Some((serde_json::Value::Array(items), _)) => Some(items.iter().map(|item| item.as_f64().unwrap_or(0.0)).collect()),
        _ => None,
    };
    let multipliers: Vec<f64> = recipe::per_layer(r, "ffn_multipliers", multipliers, n_layers);
    let dims = Dims {
        d_model,
        n_layers,
        n_vocab: r.need_below(recipe::N_VOCAB, limits.vocab),
        n_heads: heads.first().copied().unwrap_or(0),
        n_kv_heads: kv_heads.first().copied().unwrap_or(0),
        head_dim,
        d_ff: 0,
        max_context: r.opt(&["max_context_length"]).unwrap_or(0),
    };
    let gated = r.flag(&["ffn_with_glu"], true);
    let layers = heads.into_iter().zip(kv_heads).zip(multipliers).map(|((n_heads, n_kv_heads), multiplier)| {
        let mut attention = Attention::new(n_heads.min(limits.heads), n_kv_heads.min(limits.heads), head_dim);
        attention.layout = QkvLayout::Fused;
        if r.flag(&["normalize_qk_projections"], true) {
            attention.qk_norm = recipe::qk_norm_per_head(head_dim);
        }
        // Rounded to the nearest multiple, but never down by more than a tenth.
        let wanted = multiplier * float(d_model);
        let rounded = (whole(wanted + float(divisor) / 2.0) / divisor).saturating_mul(divisor).max(divisor);
        let d_ff = if float(rounded) < 0.9 * wanted { rounded.saturating_add(divisor) } else { rounded };
        let dense = if gated { Dense::gated(d_ff.min(limits.width)) } else { Dense::plain(d_ff.min(limits.width), false) };
        recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), recipe::pre_norms(d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    if r.flag(&["share_input_output_layers"], true) {
        spec.head.lm_head = plimsoll_math::spec::LmHead::Tied;
    }
    Ok(spec)
}

/// Norms around both halves; the second generation has a dense feed-forward beside the experts (`residual_moe`).
fn grok(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let width = r.opt(&["moe_intermediate_size"]).unwrap_or(dims.d_ff);
    let mut moe = recipe::experts(n_experts, top_k, width);
    if r.flag(&["residual_moe"], false) {
        moe.beside = Some(Dense::gated(dims.d_ff));
    }
    let norms = ["attn_norm", "attn_output_norm", "ffn_norm", "post_ffw_norm"].map(|name| recipe::norm(name, dims.d_model));
    Ok(recipe::uniform(r, &dims, Mixer::Attention(dims.attention()), FeedForward::Moe(moe), norms.to_vec()))
}

/// A dense feed-forward as wide as the hidden state beside the experts, with a norm of its own.
fn arctic(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let period = r.opt(&["moe_layer_frequency"]).unwrap_or(2).max(1);
    let residual = r.flag(&["use_residual"], true);
    let layers = dims.layers().map(|index| {
        let mut norms = recipe::pre_norms(dims.d_model, false);
        let feed_forward = if (index + 1) % period == 0 {
            let mut moe = recipe::experts(n_experts, top_k, dims.d_ff);
            if residual {
                moe.beside = Some(Dense::gated(dims.d_model));
                norms.push(recipe::norm("ffn_norm_exps", dims.d_model));
            }
            FeedForward::Moe(moe)
        } else {
            FeedForward::Dense(Dense::gated(dims.d_ff))
        };
        recipe::layer(Mixer::Attention(dims.attention()), feed_forward, norms)
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn smallthinker(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let limit = r.limits().experts;
    let n_experts = r.need_below(&["moe_num_primary_experts"], limit);
    let top_k = r.need_below(&["moe_num_active_primary_experts"], limit);
    let moe = recipe::experts(n_experts, top_k, r.need(&["moe_ffn_hidden_size"]));
    let mut spec = uniform(r, &dims, dims.attention(), FeedForward::Moe(moe));
    let tokens = r.opt(&["sliding_window_size"]).filter(|tokens| *tokens > 0);
    if let (Some(layout), Some(tokens)) = (r.flags(&["sliding_window_layout"]), tokens) {
        let layout = recipe::per_layer(r, "sliding_window_layout", Some(layout), dims.n_layers);
        let window = |sliding| if sliding { Window::Sliding { tokens } } else { Window::Full };
        recipe::set_windows(&mut spec, layout.into_iter().map(window).collect());
    }
    Ok(spec)
}

/// Every two experts share a small one, as wide as a head (conversion/grovemoe.py).
fn grove_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let mut moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    let width = r.opt(recipe::HEAD_DIM).unwrap_or(128);
    let stack = |name, n_in, n_out| recipe::weight(name, Shape::stack(n_in, n_out, n_experts / 2), Component::Experts);
    moe.extra.extend([
        stack("ffn_gate_chexps.weight", dims.d_model, width),
        stack("ffn_up_chexps.weight", dims.d_model, width),
        stack("ffn_down_chexps.weight", width, dims.d_model),
    ]);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    Ok(uniform(r, &dims, attention, FeedForward::Moe(moe)))
}

fn maincoder(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    Ok(uniform(r, &dims, attention, FeedForward::Dense(Dense::gated(dims.d_ff))))
}

/// Diffusion models see the whole text at once and keep no cache.
fn bidirectional(mut spec: ModelSpec) -> ModelSpec {
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.bidirectional = true;
            attention.kv_source = KvSource::NotCached;
        }
    }
    spec.causal = false;
    spec
}

/// The head is the model's own, although the class is called a model.
fn with_head<'a>(r: &Reader<'a>) -> Reader<'a> {
    Reader { head: crate::hf::reader::HeadKind::LanguageModel, ..r.clone() }
}

fn dream(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let r = &with_head(r);
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = AttentionBias::QKV;
    Ok(bidirectional(uniform(r, &dims, attention, FeedForward::Dense(Dense::gated(dims.d_ff)))))
}

fn llada(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let r = &with_head(r);
    let dims = Dims::without_ff(r);
    let d_ff = r.need(&["mlp_hidden_size", "intermediate_size"]);
    let mut attention = dims.attention();
    if r.flag(&["include_bias"], false) || r.flag(&["include_qkv_bias"], false) {
        attention.bias = AttentionBias::QKV;
    }
    let mut spec = uniform(r, &dims, attention, FeedForward::Dense(Dense::gated(d_ff)));
    spec.head.lm_head = if r.flag(&["weight_tying"], false) {
        plimsoll_math::spec::LmHead::Tied
    } else {
        plimsoll_math::spec::LmHead::Own { bias: false }
    };
    Ok(bidirectional(spec))
}

fn llada_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let r = &with_head(r);
    let dims = Dims::without_ff(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = recipe::experts(n_experts, top_k, r.need(&["expert_intermediate_size", "moe_intermediate_size"]));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    Ok(bidirectional(uniform(r, &dims, attention, FeedForward::Moe(moe))))
}

fn rnd1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let r = &with_head(r);
    let dims = Dims::without_ff(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    Ok(bidirectional(uniform(r, &dims, attention, FeedForward::Moe(moe))))
}

/// Slopes for positions, one key-value head, a gated feed-forward of 8/3 the width, in multiples of 256.
fn refact(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::without_ff(r);
    if r.flag(&["multi_query"], true) {
        dims.n_kv_heads = 1;
    }
    let d_ff = (dims.d_model.saturating_mul(8) / 3).next_multiple_of(256);
    Ok(uniform(r, &dims, dims.attention(), FeedForward::Dense(Dense::gated(d_ff))))
}

/// Both halves read one norm; `n_shared_head` query heads share keys and values.
fn plamo(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read(r);
    if let Some(shared) = r.opt(&["n_shared_head"]) {
        dims.n_kv_heads = r.divide("n_shared_head", dims.n_heads, shared);
    }
    let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    let norms = recipe::one_norm(dims.d_model, false);
    Ok(recipe::uniform(r, &dims, Mixer::Attention(dims.attention()), feed_forward, norms))
}

/// Llama's shape; `num_loops` passes over the same weights, each with a cache of its own.
fn nanbeige(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut spec = uniform(r, &dims, dims.attention(), FeedForward::Dense(Dense::gated(dims.d_ff)));
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    let loops = r.opt_below(&["num_loops"], 64).unwrap_or(1).max(1);
    let once = spec.layers.clone();
    for _ in 1..loops {
        spec.layers.extend((0_u32..).zip(&once).map(|(index, layer)| Layer { weights_of: Some(index), ..layer.clone() }));
    }
    Ok(spec)
}

fn maple(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let moe = recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]));
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut spec = uniform(r, &dims, attention, FeedForward::Moe(moe));
    recipe::set_windows(&mut spec, recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::All));
    Ok(spec)
}

/// Queries and keys read a filter over neighbouring tokens: two convolutions over two tokens each, and a norm.
fn yuan(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    let half = dims.d_model / 2;
    let own = |name, shape| recipe::weight(name, shape, Component::Attention);
    attention.extra = Vec::from([
        own("lf_conv1.weight", Shape::stack(2, dims.d_model, half)),
        own("lf_conv1.bias", Shape::vector(half)),
        own("lf_conv2.weight", Shape::stack(2, half, dims.d_model)),
        own("lf_conv2.bias", Shape::vector(dims.d_model)),
        own("lf_norm.weight", Shape::vector(dims.d_model)),
    ]);
    Ok(uniform(r, &dims, attention, FeedForward::Dense(Dense::gated(dims.d_ff))))
}
