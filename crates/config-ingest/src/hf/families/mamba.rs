//! State-space models and their hybrids with attention: Mamba 1 and 2, Falcon-Mamba, Jamba, Bamba, Zamba, Falcon-H1,
//! Granite 4.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{AttentionBias, Dense, FeedForward, Layer, Mamba1, Mamba2, Mixer, ModelSpec, Moe, Parallel, Weight};
use plimsoll_math::tensor::{Component, Shape};
use serde_json::Value;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, D_MODEL, Dims, N_LAYERS, N_VOCAB, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["mamba"],
        architectures: &["MambaForCausalLM", "MambaLMHeadModel"],
        llama_cpp: Some("mamba"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32, "expand": 2,
            "conv_kernel": 4, "time_step_rank": "auto", "tie_word_embeddings": true}"#,
        build: mamba1,
    },
    Family {
        model_types: &["falcon_mamba"],
        architectures: &["FalconMambaForCausalLM"],
        llama_cpp: Some("mamba"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32, "expand": 2,
            "conv_kernel": 4, "time_step_rank": "auto", "tie_word_embeddings": true}"#,
        build: falcon_mamba,
    },
    Family {
        model_types: &["mamba2"],
        architectures: &["Mamba2ForCausalLM"],
        llama_cpp: Some("mamba2"),
        is_wrapper: false,
        defaults: r#"{"num_heads": 128, "head_dim": 64, "vocab_size": 32768, "hidden_size": 4096, "state_size": 128,
            "num_hidden_layers": 64, "expand": 2, "conv_kernel": 4, "n_groups": 8, "tie_word_embeddings": false}"#,
        build: mamba2,
    },
    Family {
        model_types: &["jamba"],
        architectures: &["JambaForCausalLM"],
        llama_cpp: Some("jamba"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 262144,
            "num_experts_per_tok": 2, "num_experts": 16, "expert_layer_period": 2, "expert_layer_offset": 1,
            "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
            "mamba_dt_rank": "auto", "tie_word_embeddings": false}"#,
        build: jamba,
    },
    Family {
        model_types: &["bamba"],
        architectures: &["BambaForCausalLM"],
        llama_cpp: Some("granitehybrid"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 128000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 262144,
            "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
            "mamba_expand": 2, "tie_word_embeddings": false}"#,
        build: bamba,
    },
    Family {
        model_types: &["zamba"],
        architectures: &["ZambaForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 32000, "hidden_size": 3712, "intermediate_size": 14848, "num_hidden_layers": 76,
            "num_attention_heads": 16, "n_mamba_heads": 2, "max_position_embeddings": 4096, "attn_layer_period": 6,
            "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto",
            "tie_word_embeddings": true}"#,
        build: zamba,
    },
    Family {
        model_types: &["zamba2"],
        architectures: &["Zamba2ForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 32000, "max_position_embeddings": 4096, "hidden_size": 2560, "num_hidden_layers": 54,
            "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 8,
            "num_attention_heads": 32, "num_mem_blocks": 1, "adapter_rank": 128, "tie_word_embeddings": true}"#,
        build: zamba2,
    },
    Family {
        model_types: &["falcon_h1"],
        architectures: &["FalconH1ForCausalLM"],
        llama_cpp: Some("falcon-h1"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 128000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "mamba_d_ssm": 1024,
            "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
            "mamba_expand": 2, "tie_word_embeddings": false}"#,
        build: falcon_h1,
    },
    Family {
        model_types: &["granitemoehybrid"],
        architectures: &["GraniteMoeHybridForCausalLM"],
        llama_cpp: Some("granitehybrid"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "num_local_experts": 8,
            "num_experts_per_tok": 2, "shared_intermediate_size": 1024, "mamba_n_heads": 128, "mamba_n_groups": 1,
            "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2,
            "tie_word_embeddings": false}"#,
        build: granite_hybrid,
    },
];

/// What llama.cpp's converter writes for models without a bound on the context (`conversion/mamba.py`).
pub(super) const UNBOUNDED: u64 = 1 << 20;

/// A count, or `otherwise` where the config says `"auto"` or nothing.
fn auto_or(r: &Reader<'_>, aliases: &[&str], otherwise: u64) -> u64 {
    match r.config.raw(aliases) {
        Some((Value::String(text), _)) if text == "auto" => otherwise,
        _ => r.opt_below(aliases, r.limits().width).unwrap_or(otherwise),
    }
}

/// Dimensions of a model without attention.
fn bare_dims(r: &Reader<'_>) -> Dims {
    Dims {
        d_model: r.need(D_MODEL),
        n_layers: r.need_below(N_LAYERS, r.limits().layers),
        n_vocab: r.need_below(N_VOCAB, r.limits().vocab),
        n_heads: 0,
        n_kv_heads: 0,
        head_dim: 0,
        d_ff: 0,
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(UNBOUNDED),
    }
}

fn dt_rank(r: &Reader<'_>, d_model: u64) -> u64 {
    auto_or(r, &["time_step_rank", "mamba_dt_rank"], d_model.div_ceil(16))
}

fn mamba1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    mamba1_model(r, false)
}

/// Mamba with norms that have no weights on time step, B and C.
fn falcon_mamba(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    mamba1_model(r, true)
}

fn mamba1_model(r: &Reader<'_>, bare_dt_b_c_norm: bool) -> Result<ModelSpec, IngestError> {
    let dims = bare_dims(r);
    let expanded = dims.d_model.saturating_mul(r.opt_below(&["expand"], r.limits().width).unwrap_or(2));
    let mixer = Mamba1 {
        // The released configs hold the width beside an `expand` that does not lead to it (Falcon-Mamba: 16).
        d_inner: r.opt_below(&["intermediate_size", "d_inner"], r.limits().width).unwrap_or(expanded),
        d_state: r.need(&["state_size", "d_state"]),
        d_conv: r.need(&["conv_kernel", "d_conv"]),
        dt_rank: dt_rank(r, dims.d_model),
        conv_bias: r.flag(&["use_conv_bias"], true),
        proj_bias: r.flag(&["use_bias"], false),
        dt_b_c_norm: false,
        bare_dt_b_c_norm,
        extra: Vec::new(),
    };
    let layer = recipe::layer(Mixer::Mamba1(mixer), FeedForward::None, recipe::one_norm(dims.d_model, false));
    Ok(recipe::decoder(r, &dims, vec![layer; layers(&dims)]))
}

/// The number of layers, bounded by the reader's limits before.
fn layers(dims: &Dims) -> usize {
    usize::try_from(dims.n_layers).unwrap_or(0)
}

fn mamba2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = bare_dims(r);
    let mixer = Mamba2 {
        d_inner: dims.d_model.saturating_mul(r.opt_below(&["expand"], r.limits().width).unwrap_or(2)),
        d_state: r.need(&["state_size", "d_state"]),
        d_conv: r.need(&["conv_kernel", "d_conv"]),
        n_heads: r.need_below(&["num_heads"], r.limits().heads),
        n_groups: r.need_below(&["n_groups", "ngroups"], r.limits().heads),
        conv_bias: r.flag(&["use_conv_bias"], true),
        proj_bias: r.flag(&["use_bias"], false),
        norm: true,
        extra: Vec::new(),
    };
    let layer = recipe::layer(Mixer::Mamba2(mixer), FeedForward::None, recipe::one_norm(dims.d_model, false));
    Ok(recipe::decoder(r, &dims, vec![layer; layers(&dims)]))
}

/// The Mamba 2 of the hybrids whose keys start with `mamba_`.
fn prefixed_mamba2(r: &Reader<'_>, d_inner: u64) -> Mamba2 {
    let limits = r.limits();
    Mamba2 {
        d_inner,
        d_state: r.need(&["mamba_d_state"]),
        d_conv: r.need(&["mamba_d_conv"]),
        n_heads: r.need_below(&["mamba_n_heads"], limits.heads),
        n_groups: r.need_below(&["mamba_n_groups"], limits.heads),
        conv_bias: r.flag(&["mamba_conv_bias"], true),
        proj_bias: r.flag(&["mamba_proj_bias"], false),
        norm: true,
        extra: Vec::new(),
    }
}

fn expanded(r: &Reader<'_>, dims: &Dims) -> u64 {
    dims.d_model.saturating_mul(r.need(&["mamba_expand"]))
}

fn attention_mixer(r: &Reader<'_>, dims: &Dims) -> Mixer {
    let mut attention = dims.attention();
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    Mixer::Attention(attention)
}

fn gated_dense(r: &Reader<'_>, d_ff: u64) -> Dense {
    let bias = r.flag(&["mlp_bias"], false);
    Dense { up_bias: bias, down_bias: bias, ..Dense::gated(d_ff) }
}

fn jamba(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mamba = Mixer::Mamba1(Mamba1 {
        d_inner: expanded(r, &dims),
        d_state: r.need(&["mamba_d_state"]),
        d_conv: r.need(&["mamba_d_conv"]),
        dt_rank: dt_rank(r, dims.d_model),
        conv_bias: r.flag(&["mamba_conv_bias"], true),
        proj_bias: r.flag(&["mamba_proj_bias"], false),
        dt_b_c_norm: true,
        bare_dt_b_c_norm: false,
        extra: Vec::new(),
    });
    let attention = Mixer::Attention(dims.attention());
    let period = |name: &str| r.need_below(&[name], r.limits().layers);
    let is_attention = recipe::every(dims.n_layers, period("attn_layer_period"), period("attn_layer_offset"));
    let is_moe = recipe::every(dims.n_layers, period("expert_layer_period"), period("expert_layer_offset"));
    let (n_experts, top_k) = recipe::expert_counts(r);
    let layers = is_attention.into_iter().zip(is_moe).map(|(is_attention, is_moe)| {
        // A single expert is a plain feed-forward without a router (Jamba 3B).
        let feed_forward = if is_moe && n_experts > 1 {
            FeedForward::Moe(recipe::experts(n_experts, top_k, dims.d_ff))
        } else {
            FeedForward::Dense(Dense::gated(dims.d_ff))
        };
        let mixer = if is_attention { &attention } else { &mamba };
        recipe::layer(mixer.clone(), feed_forward, recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

fn bamba(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let mamba = Mixer::Mamba2(prefixed_mamba2(r, expanded(r, &dims)));
    let attention = attention_mixer(r, &dims);
    let is_attention = recipe::listed(dims.n_layers, &r.list(&["attn_layer_indices"]).unwrap_or_default());
    let dense = gated_dense(r, dims.d_ff);
    let layers = is_attention.into_iter().map(|is_attention| {
        let mixer = if is_attention { &attention } else { &mamba };
        recipe::layer(mixer.clone(), FeedForward::Dense(dense.clone()), recipe::pre_norms(dims.d_model, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}

/// Which layers hold the shared transformer, by names in `layers_block_type`, if the list is there.
fn listed_hybrids(r: &Reader<'_>, n_layers: u64) -> Option<Vec<bool>> {
    let names = r.texts(&["layers_block_type"])?;
    let names = recipe::per_layer(r, "layers_block_type", Some(names), n_layers);
    Some(names.into_iter().map(|name| name == "hybrid").collect())
}

/// One shared transformer and what turns it into a layer.
struct SharedBlock {
    /// The layer that holds the weights of a block: norms, attention, feed-forward, and its own state space.
    full: Layer,
    /// Tensors of every layer that runs a shared block.
    own: Vec<Weight>,
    /// A layer without one.
    plain: Layer,
}

/// Zamba's stack: plain state-space layers, and hybrid ones that take turns with `n_blocks` shared transformers.
fn zamba_layers(is_hybrid: &[bool], n_blocks: usize, block: &SharedBlock) -> Vec<Layer> {
    let mut owners: Vec<u32> = Vec::new();
    let mut hybrids: usize = 0;
    (0_u32..)
        .zip(is_hybrid)
        .map(|(index, is_hybrid)| {
            if !is_hybrid {
                return block.plain.clone();
            }
            let turn = hybrids.checked_rem(n_blocks).unwrap_or(0);
            hybrids = hybrids.saturating_add(1);
            let owner = owners.get(turn).copied();
            if owner.is_none() {
                owners.push(index);
            }
            let mut layer = Layer { weights_of: owner, ..block.full.clone() };
            layer.extra.extend(block.own.iter().cloned());
            layer
        })
        .collect()
}

fn zamba(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims { head_dim: 0, ..Dims::read(r) };
    let twice = dims.d_model.saturating_mul(2);
    let width = r.opt_below(&["attention_hidden_size"], r.limits().width).unwrap_or(twice);
    dims.head_dim = r
        .opt_below(&["attention_head_dim"], r.limits().width)
        .unwrap_or_else(|| r.divide("num_attention_heads", twice, dims.n_heads));
    let state = Mixer::Mamba1(Mamba1 {
        d_inner: expanded(r, &dims),
        d_state: r.need(&["mamba_d_state"]),
        d_conv: r.need(&["mamba_d_conv"]),
        dt_rank: dt_rank(r, dims.d_model),
        conv_bias: r.flag(&["mamba_conv_bias"], true),
        proj_bias: r.flag(&["mamba_proj_bias"], false),
        dt_b_c_norm: false,
        bare_dt_b_c_norm: false,
        extra: Vec::new(),
    });
    let period = r.need_below(&["attn_layer_period"], r.limits().layers);
    let offset = r.need_below(&["attn_layer_offset"], r.limits().layers);
    // Without a list: the third layer, then every `period`-th of the rest (ZambaConfig).
    let is_hybrid = listed_hybrids(r, dims.n_layers).unwrap_or_else(|| {
        let rest = recipe::every(dims.n_layers.saturating_sub(3), period, offset);
        let mut all = vec![false, false, true];
        all.extend(rest);
        all
    });
    let mut spec = shared_stack(r, &dims, width, state, Dense::gated(dims.d_ff), &is_hybrid, 1);
    spec.head.norm = Some(recipe::norm("output_norm", dims.d_model));
    Ok(spec)
}

fn zamba2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::without_ff(r);
    let width = dims.d_model.saturating_mul(2);
    dims.head_dim = r.divide("num_attention_heads", width, dims.n_heads);
    dims.d_ff = r.opt_below(recipe::D_FF, r.limits().width).unwrap_or_else(|| dims.d_model.saturating_mul(4));
    let bias = r.flag(&["add_bias_linear"], false);
    let state = Mixer::Mamba2(Mamba2 {
        d_inner: expanded(r, &dims),
        d_state: r.need(&["mamba_d_state"]),
        d_conv: r.need(&["mamba_d_conv"]),
        n_heads: r.need_below(&["n_mamba_heads"], r.limits().heads),
        n_groups: r.need_below(&["mamba_ngroups"], r.limits().heads),
        conv_bias: true,
        proj_bias: bias,
        norm: true,
        extra: Vec::new(),
    });
    let is_hybrid = listed_hybrids(r, dims.n_layers)
        .or_else(|| r.list(&["hybrid_layer_ids"]).map(|ids| recipe::listed(dims.n_layers, &ids)))
        // The layout of the released 2.7B, which Zamba2Config assumes.
        .unwrap_or_else(|| {
            let mut ids: Vec<u64> = (1..=7).map(|group| group * 6).collect();
            ids.extend([47, 51]);
            recipe::listed(dims.n_layers, &ids)
        });
    let n_blocks = r.need_below(&["num_mem_blocks"], r.limits().layers);
    let rank = r.need(&["adapter_rank"]);
    let dense = Dense { fused_gate_up: true, up_bias: bias, down_bias: bias, ..Dense::gated(dims.d_ff) };
    let n_blocks = usize::try_from(n_blocks).unwrap_or(1);
    let mut spec = shared_stack(r, &dims, width, state, dense, &is_hybrid, n_blocks);
    let uses_attention_adapters = r.flag(&["use_shared_attention_adapter"], false);
    // Each use of a shared block is tuned by low-rank adapters of its own.
    let pair = |name: &str, n_in: u64, n_out: u64, component| {
        [
            weight(&format!("{name}_adapter_a.weight"), Shape::matrix(n_in, rank), component),
            weight(&format!("{name}_adapter_b.weight"), Shape::matrix(rank, n_out), component),
        ]
    };
    let mut adapters: Vec<Weight> = Vec::new();
    if uses_attention_adapters {
        for name in ["attn_q", "attn_k", "attn_v"] {
            adapters.extend(pair(name, width, width, Component::Attention));
        }
    }
    adapters.extend(pair("ffn_up", dims.d_model, dims.d_ff.saturating_mul(2), Component::Mlp));
    for (layer, _) in spec.layers.iter_mut().zip(&is_hybrid).filter(|(_, is_hybrid)| **is_hybrid) {
        layer.extra.extend(adapters.iter().cloned());
    }
    Ok(spec)
}

/// A stack of state-space layers, some of which first run a transformer that they share.
fn shared_stack(
    r: &Reader<'_>,
    dims: &Dims,
    attention_width: u64,
    state: Mixer,
    dense: Dense,
    is_hybrid: &[bool],
    n_blocks: usize,
) -> ModelSpec {
    let mut attention = dims.attention();
    // The block reads the hidden state beside the original embedding.
    attention.d_input = Some(attention_width);
    let block = SharedBlock {
        full: recipe::layer(
            Mixer::Parallel(Parallel { attention, state: Box::new(state.clone()) }),
            FeedForward::Dense(dense),
            vec![recipe::norm("attn_norm", attention_width), recipe::norm("ffn_norm", dims.d_model)],
        ),
        own: vec![
            weight("ssm_in_norm.weight", Shape::vector(dims.d_model), Component::Norms),
            weight("shared_out.weight", Shape::matrix(dims.d_model, dims.d_model), Component::Other),
        ],
        plain: recipe::layer(state, FeedForward::None, recipe::one_norm(dims.d_model, false)),
    };
    recipe::decoder(r, dims, zamba_layers(is_hybrid, n_blocks.max(1), &block))
}

fn falcon_h1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let d_inner = r.opt_below(&["mamba_d_ssm"], r.limits().width).unwrap_or_else(|| expanded(r, &dims));
    let mut state = prefixed_mamba2(r, d_inner);
    let in_bias = core::mem::take(&mut state.proj_bias);
    let d_in = d_inner
        .saturating_mul(2)
        .saturating_add(state.n_groups.saturating_mul(state.d_state).saturating_mul(2))
        .saturating_add(state.n_heads);
    let biases = [("ssm_in.bias", in_bias, d_in), ("ssm_out.bias", r.flag(&["projectors_bias"], false), dims.d_model)];
    for (name, _, width) in biases.iter().filter(|(_, is_there, _)| *is_there) {
        state.extra.push(weight(name, Shape::vector(*width), Component::SsmLinear));
    }
    state.norm = r.flag(&["mamba_rms_norm"], false);
    let Mixer::Attention(attention) = attention_mixer(r, &dims) else {
        return Err(r.config.invalid("num_attention_heads", "none", "attention heads"));
    };
    let mixer = Mixer::Parallel(Parallel { attention, state: Box::new(Mixer::Mamba2(state)) });
    let dense = gated_dense(r, dims.d_ff);
    let mut layer = recipe::layer(mixer, FeedForward::Dense(dense), recipe::one_norm(dims.d_model, false));
    // llama.cpp names this one without `.weight` (src/models/falcon-h1.cpp, load_arch_tensors).
    layer.extra.push(weight("ffn_norm", Shape::vector(dims.d_model), Component::Norms));
    Ok(recipe::decoder(r, &dims, vec![layer; layers(&dims)]))
}

fn granite_hybrid(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let kinds = match r.texts(&["layer_types", "layers_block_type"]) {
        Some(kinds) => recipe::per_layer(r, "layer_types", Some(kinds), dims.n_layers),
        None => vec!["mamba"; layers(&dims)],
    };
    let is_attention = |kind: &str| matches!(kind, "attention" | "full_attention");
    let attention = attention_mixer(r, &dims);
    let has_states = kinds.iter().any(|kind| !is_attention(kind));
    let mamba = has_states.then(|| Mixer::Mamba2(prefixed_mamba2(r, expanded(r, &dims))));
    let shared = Dense::gated(r.need(&["shared_intermediate_size"]));
    let n_experts = r.opt_below(recipe::N_EXPERTS, r.limits().experts).unwrap_or(0);
    let feed_forward = if n_experts == 0 {
        FeedForward::Dense(shared)
    } else {
        let (n_experts, top_k) = recipe::expert_counts(r);
        FeedForward::Moe(Moe {
            shared: Some(shared),
            shared_component: Component::Mlp,
            ..recipe::experts(n_experts, top_k, dims.d_ff)
        })
    };
    let stack = kinds.iter().map(|kind| {
        let mixer = mamba.as_ref().filter(|_| !is_attention(kind)).unwrap_or(&attention);
        recipe::layer(mixer.clone(), feed_forward.clone(), recipe::pre_norms(dims.d_model, false))
    });
    let mut spec = recipe::decoder(r, &dims, stack.collect());
    if !has_states {
        // The converter turns models without states into plain Granite (conversion/granite.py, GraniteHybridModel).
        let name = if r.opt(recipe::TOP_K).unwrap_or(0) > 0 { "granitemoe" } else { "granite" };
        spec.llama_cpp_arch = Some(name.to_string());
    }
    Ok(spec)
}
