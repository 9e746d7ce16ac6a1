//! Llama and the many models of its shape: norms before attention and before a gated feed-forward, no biases.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Mixer, ModelSpec, Window};
use plimsoll_math::tensor::{Component, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["llama", "code_llama", "cwm_llama", "aquila", "yi", "reflection"],
        &["LlamaForCausalLM", "LLaMAForCausalLM", "AquilaForCausalLM", "YiForCausalLM", "LlamaBidirectionalModel"],
        Some("llama"),
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}"#,
        llama,
    ),
    Family::new(
        &["iquestcoder"],
        &["IQuestCoderForCausalLM", "LlamaForCausalLM"],
        Some("llama"),
        r#"{"vocab_size": 76800, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 80,
            "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072}"#,
        llama,
    ),
    Family::new(
        &["mistral"],
        &["MistralForCausalLM", "VLlama3ForCausalLM"],
        Some("llama"),
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 4096}"#,
        mistral,
    ),
    Family::new(
        &["ministral"],
        &["MinistralForCausalLM"],
        None,
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 4096}"#,
        mistral,
    ),
    Family::new(
        &["ministral3"],
        &["Ministral3ForCausalLM"],
        Some("mistral3"),
        r#"{"vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144}"#,
        mistral,
    ),
    Family::new(
        &["mixtral"],
        &["MixtralForCausalLM"],
        Some("llama"),
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "num_local_experts": 8, "num_experts_per_tok": 2}"#,
        mixtral,
    ),
    Family::new(
        &["llama4_text", "llama4_text_model"],
        &["Llama4ForCausalLM"],
        Some("llama4"),
        r#"{"vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "num_experts_per_tok": 1, "num_local_experts": 16,
            "interleave_moe_layer_step": 1, "no_rope_layer_interval": 4, "attention_chunk_size": 8192}"#,
        llama4,
    ),
    Family::new(
        &["smollm3"],
        &["SmolLM3ForCausalLM"],
        Some("smollm3"),
        r#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "tie_word_embeddings": true, "use_sliding_window": false, "no_rope_layer_interval": 4}"#,
        smollm3,
    ),
    Family::new(
        &["arcee"],
        &["ArceeForCausalLM"],
        Some("arcee"),
        r#"{"vocab_size": 32000, "hidden_size": 2560, "intermediate_size": 18432, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 4096}"#,
        arcee,
    ),
    Family::new(
        &["apertus"],
        &["ApertusForCausalLM"],
        Some("apertus"),
        r#"{"vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 65536}"#,
        apertus,
    ),
    Family::new(
        &["seed_oss"],
        &["SeedOssForCausalLM"],
        Some("seed_oss"),
        r#"{"vocab_size": 155136, "hidden_size": 4096, "intermediate_size": 27648, "num_hidden_layers": 64,
            "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524288,
            "attention_bias": true, "attention_out_bias": false, "mlp_bias": false}"#,
        seed_oss,
    ),
    Family::new(
        &["bitnet"],
        &["BitNetForCausalLM", "BitnetForCausalLM"],
        Some("bitnet"),
        r#"{"vocab_size": 128256, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30,
            "num_attention_heads": 20, "num_key_value_heads": 5, "max_position_embeddings": 2048}"#,
        bitnet,
    ),
    Family::new(
        &["cwm"],
        &["CwmForCausalLM"],
        None,
        r#"{"vocab_size": 128256, "hidden_size": 6144, "intermediate_size": 21504, "num_hidden_layers": 64,
            "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
            "sliding_window": 8192}"#,
        cwm,
    ),
    Family::new(
        &["helium"],
        &["HeliumForCausalLM"],
        None,
        r#"{"vocab_size": 48000, "hidden_size": 2560, "intermediate_size": 7040, "num_hidden_layers": 24,
            "num_attention_heads": 20, "num_key_value_heads": 20, "head_dim": 128, "max_position_embeddings": 4096}"#,
        llama_without_output_bias,
    ),
    Family::new(
        &["hyperclovax"],
        &["HyperCLOVAXForCausalLM"],
        None,
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "use_post_norm": true}"#,
        hyperclovax,
    ),
    Family::new(
        &["nanochat"],
        &["NanoChatForCausalLM"],
        None,
        r#"{"vocab_size": 50304, "hidden_size": 768, "intermediate_size": 8192, "num_hidden_layers": 12,
            "num_attention_heads": 6, "max_position_embeddings": 2048}"#,
        nanochat,
    ),
];

/// The shape that everything here varies: one layer, repeated.
fn uniform(r: &Reader<'_>, dims: &Dims, mixer: Mixer, feed_forward: Dense) -> ModelSpec {
    let layer = recipe::layer(mixer, FeedForward::Dense(feed_forward), recipe::pre_norms(dims.d_model, false));
    recipe::decoder(r, dims, dims.layers().map(|_| layer.clone()).collect())
}

/// `mlp_bias` on all three matrices.
fn dense(r: &Reader<'_>, d_ff: u64) -> Dense {
    let bias = r.flag(&["mlp_bias"], false);
    Dense { up_bias: bias, down_bias: bias, ..Dense::gated(d_ff) }
}

fn llama(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias", "bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), dense(r, dims.d_ff));
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

/// `attention_bias` on queries, keys and values only.
fn llama_without_output_bias(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::QKV;
    }
    Ok(uniform(r, &dims, Mixer::Attention(attention), dense(r, dims.d_ff)))
}

/// Norms after both halves as well when `use_post_norm` is set.
fn hyperclovax(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = llama(r)?;
    if r.flag(&["use_post_norm"], true) {
        let d_model = spec.d_model;
        for layer in &mut spec.layers {
            layer.norms = recipe::sandwich_norms(d_model);
        }
    }
    Ok(spec)
}

fn mistral(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::All);
    let layers = windows.into_iter().map(|window| {
        let mut attention = dims.attention();
        attention.window = window;
        let feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
        recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

fn mixtral(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::All);
    let layers = windows.into_iter().map(|window| {
        let mut attention = dims.attention();
        attention.window = window;
        let feed_forward = FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff));
        recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

/// Chunked attention except on every fourth layer, experts on every `interleave_moe_layer_step`-th, each beside one
/// shared expert of the same width.
fn llama4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let (n_experts, top_k) = recipe::expert_counts(r);
    let step = r.opt(&["interleave_moe_layer_step"]).unwrap_or(1);
    let d_ff_dense = r.need(&["intermediate_size_mlp"]);
    let has_experts = match r.list(&["moe_layers"]) {
        Some(indices) => recipe::listed(dims.n_layers, &indices),
        None => recipe::every(dims.n_layers, step, step.saturating_sub(1)),
    };
    let chunk = r.opt(&["attention_chunk_size"]).filter(|tokens| *tokens > 0);
    let interval = r.opt(&["no_rope_layer_interval"]).unwrap_or(4);
    let rope = r.flags(&["no_rope_layers"]).filter(|flags| !flags.is_empty());
    // A layer without rope sees everything, one with rope sees its chunk.
    let chunked: Vec<bool> = match (recipe::layer_types(r, dims.n_layers), rope) {
        (Some(types), _) => types.into_iter().map(|kind| kind == "chunked_attention").collect(),
        (None, Some(flags)) => recipe::per_layer(r, "no_rope_layers", Some(flags), dims.n_layers),
        (None, None) => dims.layers().map(|index| interval == 0 || (index + 1) % interval != 0).collect(),
    };
    let bias = if r.flag(&["attention_bias"], false) { AttentionBias::ALL } else { AttentionBias::NONE };
    let layers = has_experts.into_iter().zip(chunked).map(|(has_experts, chunked)| {
        let mut attention = dims.attention();
        attention.bias = bias;
        if let (true, Some(tokens)) = (chunked, chunk) {
            attention.window = Window::Chunked { tokens };
        }
        let feed_forward = if has_experts {
            let mut moe = recipe::experts(n_experts, top_k, dims.d_ff);
            moe.shared = recipe::shared_experts(dims.d_ff);
            FeedForward::Moe(moe)
        } else {
            FeedForward::Dense(Dense::gated(d_ff_dense))
        };
        recipe::layer(Mixer::Attention(attention), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

fn smollm3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let sliding = r.opt(&["sliding_window"]).filter(|_| r.flag(&["use_sliding_window"], false));
    let interval = r.opt(&["no_rope_layer_interval"]).unwrap_or(4);
    // Windows sit on the layers without rope.
    let has_rope = r.flags(&["no_rope_layers"]);
    let listed = recipe::windows(r, dims.n_layers, sliding, Alternation::All);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), dense(r, dims.d_ff));
    let names_types = r.has(&["layer_types"]);
    for ((index, layer), window) in (0_u64..).zip(&mut spec.layers).zip(listed) {
        let rope = match (&has_rope, usize::try_from(index)) {
            (Some(flags), Ok(index)) => flags.get(index).copied().unwrap_or(true),
            _ => interval == 0 || (index + 1) % interval != 0,
        };
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.window = if names_types || !rope { window } else { Window::Full };
        }
    }
    Ok(spec)
}

fn arcee(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), Dense::plain(dims.d_ff, r.flag(&["mlp_bias"], false)));
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

/// Up, xIELU, down. The activation has two trained scalars a layer and keeps two more as buffers; the converter
/// writes them as metadata (conversion/llama.py, `ApertusModel`).
fn apertus(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    use plimsoll_math::spec::Weight;
    use plimsoll_math::tensor::Counts;
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    let mut dense = Dense::plain(dims.d_ff, false);
    let scalar = |name: &str, counts| Weight { counts, ..recipe::weight(name, Shape::vector(1), Component::Mlp) };
    dense.extra = vec![
        scalar("ffn_act_alpha_p", Counts::Unconverted),
        scalar("ffn_act_alpha_n", Counts::Unconverted),
        scalar("ffn_act_beta", Counts::Unstored),
        scalar("ffn_act_eps", Counts::Unstored),
    ];
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), dense);
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

fn seed_oss(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    let qkv = r.flag(&["attention_bias"], true);
    attention.bias = AttentionBias { q: qkv, k: qkv, v: qkv, o: r.flag(&["attention_out_bias"], false) };
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), dense(r, dims.d_ff));
    rename_ffn_norm(&mut spec);
    Ok(spec)
}

/// Converters that call the norm before the feed-forward `post_attention_norm`.
pub(super) fn rename_ffn_norm(spec: &mut ModelSpec) {
    let norms = spec.layers.iter_mut().flat_map(|layer| &mut layer.norms);
    for norm in norms.filter(|norm| norm.name == "ffn_norm") {
        norm.name = "post_attention_norm".into();
    }
}

/// Norms inside both halves, before the output projections.
fn bitnet(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), Dense::gated(dims.d_ff));
    for layer in &mut spec.layers {
        layer.norms.push(recipe::norm("attn_sub_norm", dims.d_model));
        layer.norms.push(recipe::norm("ffn_sub_norm", dims.d_ff));
    }
    Ok(spec)
}

fn cwm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let window = r.opt(&["sliding_window"]);
    let windows = recipe::windows(r, dims.n_layers, window, Alternation::FullFirst { period: 4 });
    let mut spec = uniform(r, &dims, Mixer::Attention(dims.attention()), dense(r, dims.d_ff));
    recipe::set_windows(&mut spec, windows);
    Ok(spec)
}

/// No norm has weights.
fn nanochat(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = uniform(r, &dims, Mixer::Attention(attention), Dense::plain(dims.d_ff, false));
    spec.layers.iter_mut().for_each(|layer| layer.norms.clear());
    spec.head.norm = None;
    Ok(spec)
}
