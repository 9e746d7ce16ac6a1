//! Nemotron-H: layers that are a state space, attention, a dense feed-forward or experts, by a pattern.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, Mamba2, Mixer, ModelSpec, Moe, MtpLayer};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::mamba::UNBOUNDED;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, D_MODEL, Dims, N_LAYERS, N_VOCAB, nextn, weight};

/// The row.
pub const FAMILIES: &[Family] = &[Family {
    model_types: &["nemotron_h"],
    architectures: &["NemotronHForCausalLM"],
    llama_cpp: Some("nemotron_h"),
    is_wrapper: false,
    defaults: r#"{"vocab_size": 131072, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 4096, "intermediate_size": 21504, "ssm_state_size": 128,
            "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "n_routed_experts": 8,
            "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2,
            "tie_word_embeddings": false}"#,
    build: nemotron_h,
}];

/// What a Nemotron-H layer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Mamba,
    Attention,
    Dense,
    Experts,
}

impl Block {
    fn of_letter(letter: char) -> Option<Self> {
        match letter {
            'M' => Some(Self::Mamba),
            '*' => Some(Self::Attention),
            '-' => Some(Self::Dense),
            'E' => Some(Self::Experts),
            _ => None,
        }
    }
    fn of_name(name: &str) -> Option<Self> {
        match name {
            "mamba" | "linear_attention" => Some(Self::Mamba),
            "attention" | "full_attention" => Some(Self::Attention),
            "mlp" => Some(Self::Dense),
            "moe" => Some(Self::Experts),
            _ => None,
        }
    }
}

/// The layers by a pattern string or a list of names, whichever the config holds.
fn blocks(r: &Reader<'_>, pattern_key: &str, list_keys: &[&str]) -> Option<Vec<Block>> {
    let list = list_keys.iter().find_map(|key| r.texts(&[key]).map(|names| ((*key).to_string(), names)));
    let (key, found): (_, Option<Vec<Block>>) = match (r.text(&[pattern_key]), list) {
        (Some(pattern), _) => (pattern_key.to_string(), pattern.chars().map(Block::of_letter).collect()),
        (None, Some((key, names))) => (key, names.into_iter().map(Block::of_name).collect()),
        (None, None) => return None,
    };
    if found.is_none() {
        r.invalid(&key, "an unknown layer", "M, *, - and E, or mamba, attention, mlp and moe");
    }
    let blocks = found.unwrap_or_default();
    let count = u64::try_from(blocks.len()).unwrap_or(u64::MAX);
    if count > r.limits().layers {
        r.invalid(&key, count, format!("at most {} layers", r.limits().layers));
        return None;
    }
    Some(blocks)
}

fn nemotron_h(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let Some(blocks) = blocks(r, "hybrid_override_pattern", &["layer_types", "layers_block_type"]) else {
        return Err(r.config.missing(&["hybrid_override_pattern"], "a pattern of M, *, - and E"));
    };
    let limits = r.limits();
    let n_heads = r.need_below(recipe::N_HEADS, limits.heads);
    let dims = Dims {
        n_heads,
        n_kv_heads: r.opt_below(recipe::N_KV_HEADS, limits.heads).unwrap_or(n_heads),
        head_dim: r.need(recipe::HEAD_DIM),
        n_layers: u64::try_from(blocks.len()).unwrap_or(0),
        ..bare_dims_of_pattern(r)
    };
    let n_mamba_heads = r.need_below(&["mamba_num_heads"], limits.heads);
    let mamba = Mixer::Mamba2(Mamba2 {
        d_inner: n_mamba_heads.saturating_mul(r.need(&["mamba_head_dim"])),
        d_state: r.need(&["ssm_state_size"]),
        d_conv: r.need(&["conv_kernel", "mamba_d_conv"]),
        n_heads: n_mamba_heads,
        n_groups: r.need_below(&["n_groups", "mamba_n_groups"], limits.heads),
        conv_bias: r.flag(&["use_conv_bias", "mamba_conv_bias"], true),
        proj_bias: r.flag(&["use_bias"], false),
        norm: true,
        extra: Vec::new(),
    });
    let bias = r.flag(&["mlp_bias"], false);
    let has_experts = blocks.contains(&Block::Experts);
    let experts = has_experts.then(|| nemotron_experts(r, &dims, bias));
    let attention = Mixer::Attention(dims.attention());
    let stack = blocks.iter().map(|block| {
        let norms = recipe::one_norm(dims.d_model, false);
        match block {
            Block::Mamba => recipe::layer(mamba.clone(), FeedForward::None, norms),
            Block::Attention => recipe::layer(attention.clone(), FeedForward::None, norms),
            Block::Dense => recipe::layer(Mixer::None, FeedForward::Dense(Dense::plain(r.need(recipe::D_FF), bias)), norms),
            Block::Experts => recipe::layer(Mixer::None, experts.clone().map_or(FeedForward::None, FeedForward::Moe), norms),
        }
    });
    let mut spec = recipe::decoder(r, &dims, stack.collect());
    if has_experts {
        spec.llama_cpp_arch = Some("nemotron_h_moe".to_string());
    }
    let n_mtp = r.opt_below(&["num_nextn_predict_layers"], limits.layers).unwrap_or(0);
    if let (Some(experts), 1..) = (experts, n_mtp) {
        // The head is one attention and one expert layer, which the converter folds into one block.
        let norms = vec![recipe::norm("attn_norm", dims.d_model), recipe::norm("post_attention_norm", dims.d_model)];
        let layer = recipe::layer(attention, FeedForward::Moe(experts), norms);
        let mtp = MtpLayer { layer, extra: nextn(dims.d_model) };
        spec.mtp = vec![mtp; usize::try_from(n_mtp).unwrap_or(0)];
    }
    Ok(spec)
}

/// Width, vocabulary and context; the layers come from the pattern.
fn bare_dims_of_pattern(r: &Reader<'_>) -> Dims {
    // Read so that a stray count is known; the pattern's length decides (NemotronHConfig).
    let _ = r.opt(N_LAYERS);
    Dims {
        d_model: r.need(D_MODEL),
        n_layers: 0,
        n_vocab: r.need_below(N_VOCAB, r.limits().vocab),
        n_heads: 0,
        n_kv_heads: 0,
        head_dim: 0,
        d_ff: 0,
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(UNBOUNDED),
    }
}

fn nemotron_experts(r: &Reader<'_>, dims: &Dims, bias: bool) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    let latent = r.opt_below(&["moe_latent_size"], r.limits().width).filter(|latent| *latent > 0);
    let mut extra = Vec::new();
    if let Some(latent) = latent {
        for (name, n_in, n_out) in [("ffn_latent_down", dims.d_model, latent), ("ffn_latent_up", latent, dims.d_model)] {
            extra.push(weight(&format!("{name}.weight"), Shape::matrix(n_in, n_out), Component::ExpertsLatentProj));
            if bias {
                extra.push(weight(&format!("{name}.bias"), Shape::vector(n_out), Component::ExpertsLatentProj));
            }
        }
    }
    Moe {
        gated: false,
        correction_bias: Some(Counts::Buffer),
        latent,
        shared: Some(Dense::plain(r.need(&["moe_shared_expert_intermediate_size"]), bias)),
        extra,
        ..recipe::experts(n_experts, top_k, r.need(&["moe_intermediate_size"]))
    }
}
