//! GPT-2 and its descendants: layer norms with biases, up and down projections, often one matrix for queries, keys and
//! values, often learned positions.

use alloc::vec::Vec;

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, LmHead, Mixer, ModelSpec, QkNorm, QkvLayout, Weight, Window};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["gpt2", "gpt-sw3"],
        &["GPT2LMHeadModel", "GPT2Model"],
        Some("gpt2"),
        r#"{"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "tie_word_embeddings": true}"#,
        gpt2,
    ),
    Family::new(
        &["gptj"],
        &["GPTJForCausalLM"],
        None,
        r#"{"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16}"#,
        gptj,
    ),
    Family::new(
        &["codegen"],
        &["CodeGenForCausalLM"],
        None,
        r#"{"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16}"#,
        codegen,
    ),
    Family::new(
        &["gpt_neo"],
        &["GPTNeoForCausalLM"],
        None,
        r#"{"vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24,
            "num_heads": 16, "window_size": 256, "tie_word_embeddings": true}"#,
        gpt_neo,
    ),
    Family::new(
        &["gpt_neox"],
        &["GPTNeoXForCausalLM"],
        Some("gptneox"),
        r#"{"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
            "intermediate_size": 24576, "max_position_embeddings": 2048, "attention_bias": true}"#,
        gpt_neox,
    ),
    Family::new(
        &["gpt_bigcode"],
        &["GPTBigCodeForCausalLM"],
        Some("starcoder"),
        r#"{"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "multi_query": true, "tie_word_embeddings": true}"#,
        gpt_bigcode,
    ),
    Family::new(
        &["starcoder2"],
        &["Starcoder2ForCausalLM"],
        Some("starcoder2"),
        r#"{"vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
            "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096, "use_bias": true,
            "tie_word_embeddings": true}"#,
        starcoder2,
    ),
    Family::new(
        &["bloom"],
        &["BloomForCausalLM", "BloomModel"],
        Some("bloom"),
        r#"{"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "tie_word_embeddings": true}"#,
        bloom,
    ),
    Family::new(
        &["mpt"],
        &["MPTForCausalLM", "MptForCausalLM"],
        Some("mpt"),
        r#"{"d_model": 2048, "n_heads": 16, "n_layers": 24, "expansion_ratio": 4, "max_seq_len": 2048,
            "vocab_size": 50368, "tie_word_embeddings": true}"#,
        mpt,
    ),
    Family::new(
        &["opt"],
        &["OPTForCausalLM", "OPTModel"],
        None,
        r#"{"vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
            "max_position_embeddings": 2048, "do_layer_norm_before": true, "num_attention_heads": 12,
            "enable_bias": true, "layer_norm_elementwise_affine": true, "tie_word_embeddings": true}"#,
        opt,
    ),
    Family::new(
        &["xglm"],
        &["XGLMForCausalLM"],
        None,
        r#"{"vocab_size": 256008, "max_position_embeddings": 2048, "d_model": 1024, "ffn_dim": 4096,
            "num_layers": 24, "attention_heads": 16, "tie_word_embeddings": true}"#,
        xglm,
    ),
    Family::new(
        &["biogpt"],
        &["BioGptForCausalLM"],
        None,
        r#"{"vocab_size": 42384, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "max_position_embeddings": 1024, "tie_word_embeddings": true}"#,
        biogpt,
    ),
    Family::new(
        &["openai-gpt"],
        &["OpenAIGPTLMHeadModel"],
        None,
        r#"{"vocab_size": 40478, "n_positions": 512, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "tie_word_embeddings": true}"#,
        openai_gpt,
    ),
    Family::new(
        &["falcon", "RefinedWeb", "RefinedWebModel"],
        &["FalconForCausalLM", "RWForCausalLM"],
        Some("falcon"),
        r#"{"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
            "max_position_embeddings": 2048, "new_decoder_architecture": false, "multi_query": true,
            "parallel_attn": true, "alibi": false, "bias": false, "tie_word_embeddings": true}"#,
        falcon,
    ),
    Family::new(
        &["stablelm", "stablelm_epoch"],
        &["StableLmForCausalLM", "StableLMEpochForCausalLM"],
        Some("stablelm"),
        r#"{"vocab_size": 50304, "intermediate_size": 6912, "hidden_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
            "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false}"#,
        stablelm,
    ),
    Family::new(
        &["persimmon"],
        &["PersimmonForCausalLM"],
        None,
        r#"{"vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36,
            "num_attention_heads": 64, "max_position_embeddings": 16384, "qk_layernorm": true}"#,
        persimmon,
    ),
    Family::new(
        &["nemotron"],
        &["NemotronForCausalLM"],
        Some("nemotron"),
        r#"{"vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32,
            "num_attention_heads": 48, "max_position_embeddings": 4096}"#,
        nemotron,
    ),
    Family::new(
        &["jais2"],
        &["Jais2ForCausalLM"],
        Some("jais2"),
        r#"{"vocab_size": 150272, "hidden_size": 3328, "intermediate_size": 26624, "num_hidden_layers": 32,
            "num_attention_heads": 26, "max_position_embeddings": 8192, "attention_bias": true, "mlp_bias": true}"#,
        nemotron,
    ),
    Family::new(&["jais"], &["JAISLMHeadModel"], Some("jais"), r#"{"tie_word_embeddings": true}"#, jais),
    Family::new(&["codeshell"], &["CodeShellForCausalLM"], Some("codeshell"), r#"{"n_positions": 8192}"#, codeshell),
    Family::new(
        &["gpt_neox_japanese"],
        &["GPTNeoXJapaneseForCausalLM"],
        None,
        r#"{"vocab_size": 32000, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
            "intermediate_multiple_size": 4, "max_position_embeddings": 2048, "tie_word_embeddings": true}"#,
        gpt_neox_japanese,
    ),
];

/// Layer norms with biases around everything, and the last one.
fn body(r: &Reader<'_>, dims: &Dims, attention: plimsoll_math::spec::Attention, dense: Dense) -> ModelSpec {
    let norms = recipe::pre_norms(dims.d_model, true);
    let mut spec = recipe::uniform(r, dims, Mixer::Attention(attention), FeedForward::Dense(dense), norms);
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    spec
}

fn gpt2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read_times_four(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, true));
    spec.embedding.n_positions = positions(r, &dims);
    Ok(spec)
}

/// Rows of the learned positions.
fn positions(r: &Reader<'_>, dims: &Dims) -> u64 {
    r.opt_below(&["n_positions", "max_position_embeddings"], r.limits().width).unwrap_or(dims.max_context)
}

/// Both halves read one norm; only the feed-forward and the head have biases.
fn gptj(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read_times_four(r);
    let mut spec = body(r, &dims, dims.attention(), Dense::plain(dims.d_ff, true));
    for layer in &mut spec.layers {
        layer.norms = recipe::one_norm(dims.d_model, true);
    }
    recipe::add_head_bias(&mut spec);
    Ok(spec)
}

fn codegen(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = gptj(r)?;
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.layout = QkvLayout::Fused;
        }
    }
    Ok(spec)
}

/// Learned positions; `attention_types` (`[[["global", "local"], 16]]`) says which layers have the window.
fn gpt_neo(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read_times_four(r);
    let mut attention = dims.attention();
    attention.bias = AttentionBias { o: true, ..AttentionBias::NONE };
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, true));
    spec.embedding.n_positions = positions(r, &dims);
    let tokens = r.opt(&["window_size"]).unwrap_or(256);
    let is_local = local_layers(r, dims.n_layers);
    let window = |local| if local { Window::Sliding { tokens } } else { Window::Full };
    recipe::set_windows(&mut spec, is_local.into_iter().map(window).collect());
    Ok(spec)
}

/// The expansion of `attention_types`; `attention_layers` where it is spelled out; alternating by default.
fn local_layers(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    if let Some(names) = r.texts(&["attention_layers"]) {
        let names = recipe::per_layer(r, "attention_layers", Some(names), n_layers);
        return names.into_iter().map(|name| name == "local").collect();
    }
    let mut all = Vec::new();
    if let Some((serde_json::Value::Array(groups), _)) = r.config.raw(&["attention_types"]) {
        for group in groups {
            let names = group.get(0).and_then(|names| names.as_array());
            let times = group.get(1).and_then(serde_json::Value::as_u64).unwrap_or(0).min(n_layers);
            for _ in 0..times {
                let names = names.into_iter().flatten();
                all.extend(names.map(|name| name.as_str() == Some("local")).take(usize::from(u16::MAX)));
                if u64::try_from(all.len()).is_ok_and(|length| length >= n_layers) {
                    break;
                }
            }
        }
    }
    if all.is_empty() {
        return (0..n_layers).map(|index| index % 2 == 1).collect();
    }
    recipe::per_layer(r, "attention_types", Some(all), n_layers)
}

fn gpt_neox(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = recipe::bias_on_all(r, true);
    Ok(body(r, &dims, attention, Dense::plain(dims.d_ff, true)))
}

/// The output bias is that of attention, the same one in every layer's place.
fn gpt_neox_japanese(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let d_ff = dims.d_model.saturating_mul(r.need(&["intermediate_multiple_size"]));
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    let mut spec = body(r, &dims, attention, Dense::plain(d_ff, false));
    // Only the last layer's attention output has a bias.
    if let Some(layer) = spec.layers.last_mut()
        && let Mixer::Attention(attention) = &mut layer.mixer
    {
        attention.bias.o = true;
    }
    Ok(spec)
}

/// One key-value head when `multi_query` is set.
fn gpt_bigcode(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read_times_four(r);
    if r.flag(&["multi_query"], true) {
        dims.n_kv_heads = 1;
    }
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, true));
    spec.embedding.n_positions = positions(r, &dims);
    Ok(spec)
}

fn starcoder2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let bias = r.flag(&["use_bias"], true);
    let mut attention = dims.attention();
    if bias {
        attention.bias = AttentionBias::ALL;
    }
    if let Some(tokens) = r.opt(&["sliding_window"]).filter(|tokens| *tokens > 0) {
        attention.window = Window::Sliding { tokens };
    }
    Ok(body(r, &dims, attention, Dense::plain(dims.d_ff, bias)))
}

/// A norm on the embeddings; positions are slopes.
fn bloom(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims { d_ff: 0, ..Dims::without_ff(r) };
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_model.saturating_mul(4), true));
    spec.embedding.norm = Some(recipe::layer_norm("token_embd_norm", dims.d_model));
    Ok(spec)
}

/// Without biases unless `no_bias` is false; learned positions unless slopes replace them.
fn mpt(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::without_ff(r);
    let nested = r.child(&["attn_config"]);
    dims.n_kv_heads = match &nested {
        Some(attention) if attention.text(&["attn_type"]) == Some("multiquery_attention") => 1,
        Some(attention) => attention.opt(&["kv_n_heads"]).unwrap_or(dims.n_heads),
        None => dims.n_heads,
    };
    let d_ff = dims.d_model.saturating_mul(r.opt(&["expansion_ratio"]).unwrap_or(4));
    let bias = !r.flag(&["no_bias"], true);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    if bias {
        attention.bias = AttentionBias::ALL;
    }
    let norms = recipe::pre_norms(dims.d_model, bias);
    let feed_forward = FeedForward::Dense(Dense::plain(d_ff, bias));
    let mut spec = recipe::uniform(r, &dims, Mixer::Attention(attention), feed_forward, norms);
    if bias && let Some(norm) = &mut spec.head.norm {
        norm.bias = true;
    }
    if nested.is_some_and(|attention| !attention.flag(&["alibi"], true)) && r.flag(&["learned_pos_emb"], true) {
        spec.embedding.n_positions = positions(r, &dims);
    }
    Ok(spec)
}

/// Two more positions than the context; projections around the layers when embeddings are narrower.
fn opt(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let bias = r.flag(&["enable_bias"], true);
    let mut attention = dims.attention();
    if bias {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, bias));
    spec.embedding.n_positions = dims.max_context.saturating_add(2);
    if !r.flag(&["do_layer_norm_before"], true) || r.flag(&["_remove_final_layer_norm"], false) {
        spec.head.norm = None;
    }
    if !r.flag(&["layer_norm_elementwise_affine"], true) {
        spec.layers.iter_mut().for_each(|layer| layer.norms.clear());
        spec.head.norm = None;
    }
    let width = r.opt(&["word_embed_proj_dim"]).unwrap_or(dims.d_model);
    if width != dims.d_model {
        spec.embedding.d_embedding = Some(width);
        let project = |name, n_in, n_out| recipe::weight(name, Shape::matrix(n_in, n_out), Component::Other);
        spec.embedding.extra.push(project("project_in.weight", width, dims.d_model));
        spec.head.extra.push(project("project_out.weight", dims.d_model, width));
    }
    Ok(spec)
}

/// Positions are computed.
fn xglm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let n_heads = r.need_below(&["attention_heads", "num_attention_heads"], r.limits().heads);
    let d_model = r.need(recipe::D_MODEL);
    let dims = Dims {
        d_model,
        n_layers: r.need_below(recipe::N_LAYERS, r.limits().layers),
        n_vocab: r.need_below(recipe::N_VOCAB, r.limits().vocab),
        n_heads,
        n_kv_heads: n_heads,
        head_dim: r.divide("attention_heads", d_model, n_heads),
        d_ff: r.need(recipe::D_FF),
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(0),
    };
    let mut attention = dims.attention();
    attention.bias = AttentionBias::ALL;
    Ok(body(r, &dims, attention, Dense::plain(dims.d_ff, true)))
}

fn biogpt(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = AttentionBias::ALL;
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, true));
    spec.embedding.n_positions = dims.max_context.saturating_add(2);
    Ok(spec)
}

/// The first GPT: norms after both halves, none at the end.
fn openai_gpt(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = gpt2(r)?;
    spec.head.norm = None;
    Ok(spec)
}

/// Attention and feed-forward beside each other: one norm in the first models, one for each half in the larger ones.
/// Converted files hold the head again, as the checkpoints do, although it is the embedding.
fn falcon(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read_times_four(r);
    // The first releases have no such key: there, key-value heads of their own say the same.
    let has_key = !r.config.is_default(&["new_decoder_architecture"]);
    let new = r.flag(&["new_decoder_architecture"], false) || (!has_key && r.has(&["n_head_kv"]));
    if !new {
        dims.n_kv_heads = if r.flag(&["multi_query"], true) { 1 } else { dims.n_heads };
    }
    let bias = r.flag(&["bias"], false);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    if bias {
        attention.bias = AttentionBias::ALL;
    }
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, bias));
    let parallel = new || r.flag(&["parallel_attn"], true);
    let two_norms = new && r.opt(&["num_ln_in_parallel_attn"]).unwrap_or(2) == 2;
    for layer in &mut spec.layers {
        layer.norms = if parallel { recipe::one_norm(dims.d_model, true) } else { recipe::pre_norms(dims.d_model, true) };
        // The second norm is read by attention alone and counts to it.
        if two_norms && let Mixer::Attention(attention) = &mut layer.mixer {
            let own = |name| recipe::weight(name, Shape::vector(dims.d_model), Component::Attention);
            attention.extra.extend([own("attn_norm_2.weight"), own("attn_norm_2.bias")]);
        }
    }
    if spec.head.lm_head == LmHead::Tied {
        let shape = Shape::matrix(dims.d_model, dims.n_vocab);
        let copy = recipe::weight("output.weight", shape, Component::LmHead);
        spec.head.extra.push(Weight { counts: Counts::Unused, ..copy });
    }
    Ok(spec)
}

/// Gated, with layer norms; the larger model norms every head and runs both halves beside each other.
fn stablelm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    if r.flag(&["use_qkv_bias"], false) {
        attention.bias = AttentionBias::QKV;
    }
    if r.flag(&["qk_layernorm"], false) {
        attention.qk_norm = QkNorm { q: [dims.head_dim, dims.n_heads], k: [dims.head_dim, dims.n_kv_heads], bias: false };
    }
    let mut spec = body(r, &dims, attention, Dense::gated(dims.d_ff));
    if r.flag(&["use_parallel_residual"], false) {
        for layer in &mut spec.layers {
            layer.norms = recipe::one_norm(dims.d_model, true);
        }
    }
    Ok(spec)
}

fn persimmon(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    if r.flag(&["qk_layernorm"], true) {
        attention.qk_norm = QkNorm { bias: true, ..recipe::qk_norm_per_head(dims.head_dim) };
    }
    Ok(body(r, &dims, attention, Dense::plain(dims.d_ff, true)))
}

/// Squared ReLU between two matrices.
fn nemotron(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mut attention = dims.attention();
    attention.bias = recipe::bias_on_all(r, false);
    let mut spec = body(r, &dims, attention, Dense::plain(dims.d_ff, r.flag(&["mlp_bias"], false)));
    spec.embedding.extra.extend(recipe::rope_factors(r, dims.head_dim));
    Ok(spec)
}

/// GPT-2 with slopes for positions and a gate (`swiglu`) in the feed-forward.
fn jais(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read_times_four(r);
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    let dense = match r.text(&["activation_function"]) {
        Some("swiglu") => Dense { up_bias: true, down_bias: true, ..Dense::gated(dims.d_ff) },
        _ => Dense::plain(dims.d_ff, true),
    };
    let mut spec = body(r, &dims, attention, dense);
    if r.text(&["position_embedding_type"]).is_none_or(|kind| kind == "learned") {
        spec.embedding.n_positions = positions(r, &dims);
    }
    Ok(spec)
}

fn codeshell(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read_times_four(r);
    dims.n_kv_heads = match r.flag(&["group_query_attention"], true) {
        true => r.opt(&["num_query_groups"]).unwrap_or(dims.n_kv_heads),
        false => dims.n_heads,
    };
    let mut attention = dims.attention();
    attention.layout = QkvLayout::Fused;
    attention.bias = AttentionBias::ALL;
    Ok(body(r, &dims, attention, Dense::plain(dims.d_ff, true)))
}
