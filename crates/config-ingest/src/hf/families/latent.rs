//! Latent attention: DeepSeek V2 and V3 and what was built on them (Kimi K2, Moonlight, GLM-4.7-Flash, GLM-5, Mistral 4,
//! Youtu, A.X K1, MiniCPM3, PLM, LongCat), with and without the sparse-attention indexer.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, Indexer, Layer, Mixer, Mla, ModelSpec, Moe, MtpLayer, OutputGate, Weight, Window};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, D_MODEL, Dims, N_HEADS, N_LAYERS, N_VOCAB, nextn, weight};

/// DeepseekV3Config's values.
const V3_DEFAULTS: &str = r#"{"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "max_position_embeddings": 4096,
    "tie_word_embeddings": false}"#;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["deepseek_v2"],
        architectures: &["DeepseekV2ForCausalLM"],
        llama_cpp: Some("deepseek2"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "first_k_dense_replace": 0, "kv_lora_rank": 512,
            "q_lora_rank": 1536, "n_routed_experts": 64, "n_shared_experts": 2, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 1407, "num_experts_per_tok": 8, "tie_word_embeddings": false}"#,
        build: deepseek_v2,
    },
    Family {
        model_types: &["deepseek_v3", "kimi_k2"],
        architectures: &["DeepseekV3ForCausalLM"],
        llama_cpp: Some("deepseek2"),
        is_wrapper: false,
        defaults: V3_DEFAULTS,
        build: deepseek_v3,
    },
    Family {
        model_types: &["axk1"],
        architectures: &["AXK1ForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 64, "n_shared_experts": 1,
            "n_routed_experts": 192, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
            "max_position_embeddings": 32768, "tie_word_embeddings": false}"#,
        build: axk1,
    },
    Family {
        model_types: &["deepseek_v32"],
        architectures: &["DeepseekV32ForCausalLM"],
        llama_cpp: Some("deepseek32"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1,
            "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "max_position_embeddings": 163840, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64,
            "tie_word_embeddings": false}"#,
        build: deepseek_v32,
    },
    Family {
        model_types: &["glm_moe_dsa"],
        architectures: &["GlmMoeDsaForCausalLM"],
        llama_cpp: Some("glm-dsa"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288,
            "moe_intermediate_size": 2048, "num_hidden_layers": 78, "num_attention_heads": 64, "n_shared_experts": 1,
            "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 2048, "qk_rope_head_dim": 64,
            "v_head_dim": 256, "qk_nope_head_dim": 192, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "max_position_embeddings": 202752, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32,
            "tie_word_embeddings": false}"#,
        build: glm_moe_dsa,
    },
    Family {
        model_types: &["glm4_moe_lite"],
        architectures: &["Glm4MoeLiteForCausalLM"],
        llama_cpp: Some("deepseek2"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240,
            "moe_intermediate_size": 1536, "num_hidden_layers": 47, "num_attention_heads": 20, "n_shared_experts": 1,
            "n_routed_experts": 64, "kv_lora_rank": 512, "q_lora_rank": 768, "qk_rope_head_dim": 64, "v_head_dim": 256,
            "qk_nope_head_dim": 192, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
            "max_position_embeddings": 202752, "tie_word_embeddings": false}"#,
        build: glm4_moe_lite,
    },
    Family {
        model_types: &["mistral4"],
        architectures: &["Mistral4ForCausalLM"],
        llama_cpp: Some("mistral4"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 12288,
            "moe_intermediate_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 32, "n_shared_experts": 1,
            "n_routed_experts": 128, "kv_lora_rank": 256, "q_lora_rank": 1024, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "qk_nope_head_dim": 64, "num_experts_per_tok": 4, "first_k_dense_replace": 0,
            "max_position_embeddings": 1048576, "tie_word_embeddings": false}"#,
        build: mistral4,
    },
    Family {
        model_types: &["youtu", "youtu_llm"],
        architectures: &["YoutuForCausalLM"],
        llama_cpp: Some("deepseek2"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 32,
            "num_attention_heads": 16, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "qk_nope_head_dim": 128, "max_position_embeddings": 131072,
            "tie_word_embeddings": true}"#,
        build: dense,
    },
    Family {
        model_types: &["minicpm3"],
        architectures: &["MiniCPM3ForCausalLM"],
        llama_cpp: Some("minicpm3"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 73448, "hidden_size": 2560, "intermediate_size": 6400, "num_hidden_layers": 62,
            "num_attention_heads": 40, "kv_lora_rank": 256, "q_lora_rank": 768, "qk_rope_head_dim": 32,
            "v_head_dim": 64, "qk_nope_head_dim": 64, "max_position_embeddings": 32768, "tie_word_embeddings": true}"#,
        build: minicpm3,
    },
    Family {
        model_types: &["plm"],
        architectures: &["PLMForCausalLM"],
        llama_cpp: Some("plm"),
        is_wrapper: false,
        defaults: r#"{"max_position_embeddings": 4096, "tie_word_embeddings": true}"#,
        build: plm,
    },
    Family {
        model_types: &["longcat_flash", "longcat"],
        architectures: &["LongcatFlashForCausalLM", "LongcatCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 131072, "hidden_size": 6144, "num_layers": 28, "num_attention_heads": 64,
            "max_position_embeddings": 131072, "ffn_hidden_size": 12288, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_topk": 12, "n_routed_experts": 512,
            "zero_expert_num": 256, "expert_ffn_hidden_size": 2048, "tie_word_embeddings": false}"#,
        build: longcat,
    },
];

/// Dimensions without a head dimension: what configs with latent attention hold under that name is no size of any
/// tensor.
pub(super) fn dims(r: &Reader<'_>) -> Dims {
    let limits = r.limits();
    let n_heads = r.need_below(N_HEADS, limits.heads);
    // Said, and without effect: every head expands the one latent.
    let _ = r.opt(recipe::N_KV_HEADS);
    let _ = r.opt(recipe::HEAD_DIM);
    Dims {
        d_model: r.need(D_MODEL),
        n_layers: r.need_below(N_LAYERS, limits.layers),
        n_vocab: r.need_below(N_VOCAB, limits.vocab),
        n_heads,
        n_kv_heads: n_heads,
        head_dim: 0,
        d_ff: 0,
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(0),
    }
}

/// The latent attention that a config describes.
pub(super) fn mla(r: &Reader<'_>, dims: &Dims) -> Mla {
    Mla {
        n_heads: dims.n_heads,
        q_lora_rank: r.opt_below(&["q_lora_rank"], r.limits().width).filter(|rank| *rank > 0),
        kv_lora_rank: r.need(&["kv_lora_rank"]),
        qk_nope_head_dim: part(r, "qk_nope_head_dim"),
        // Models without positions have no such part (GLM 5.3).
        qk_rope_head_dim: part(r, "qk_rope_head_dim"),
        v_head_dim: r.need(&["v_head_dim"]),
        window: Window::Full,
        bias: r.flag(&["attention_bias"], false),
        expanded: false,
        gate: OutputGate::None,
        indexer: None,
        extra: Vec::new(),
    }
}

/// One of the two parts of a query or key, which may be empty.
fn part(r: &Reader<'_>, name: &str) -> u64 {
    match r.opt(&[name]) {
        Some(0) => 0,
        _ => r.need(&[name]),
    }
}

/// Which layers have experts: `mlp_layer_types` (`dense`, `sparse`), else `first_k_dense_replace` and its frequency.
pub(super) fn moe_layers(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    match r.texts(&["mlp_layer_types"]) {
        Some(kinds) => {
            let kinds = recipe::per_layer(r, "mlp_layer_types", Some(kinds), n_layers);
            kinds.into_iter().map(|kind| kind != "dense").collect()
        }
        None => recipe::moe_after_dense(r, n_layers),
    }
}

/// Experts of `moe_intermediate_size` with shared ones of the same width and a correction bias in the router.
pub(super) fn experts(r: &Reader<'_>, shared: &[&str]) -> Moe {
    let (n_experts, top_k) = recipe::expert_counts(r);
    let width = r.need(&["moe_intermediate_size"]);
    let n_shared = r.opt_below(shared, r.limits().experts).unwrap_or(0);
    Moe {
        correction_bias: Some(Counts::Buffer),
        shared: recipe::shared_experts(n_shared.saturating_mul(width)),
        ..recipe::experts(n_experts, top_k, width)
    }
}

/// The lightning indexer: keys from the hidden state, queries from the compressed ones.
pub(super) fn indexer(r: &Reader<'_>, dims: &Dims, q_lora_rank: u64, own: bool) -> Indexer {
    let n_heads = r.need_below(&["index_n_heads"], r.limits().heads);
    let head_dim = r.need(&["index_head_dim"]);
    let tensor = |name: &str, shape| weight(name, shape, Component::AttnIndexer);
    let weights = vec![
        tensor("indexer.attn_k.weight", Shape::matrix(dims.d_model, head_dim)),
        tensor("indexer.attn_q_b.weight", Shape::matrix(q_lora_rank, n_heads.saturating_mul(head_dim))),
        tensor("indexer.k_norm.weight", Shape::vector(head_dim)),
        tensor("indexer.k_norm.bias", Shape::vector(head_dim)),
        tensor("indexer.proj.weight", Shape::matrix(dims.d_model, n_heads)),
    ];
    Indexer { n_heads, head_dim, top_k: r.need(&["index_topk"]), block: 1, own, weights: if own { weights } else { Vec::new() } }
}

/// A stack of latent attention with dense and expert layers, and its prediction layers.
pub(super) fn stack(r: &Reader<'_>, dims: &Dims, mixers: &[Mixer], moe: Option<&Moe>, is_moe: &[bool]) -> ModelSpec {
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let experts = moe.map_or_else(|| dense.clone(), |moe| FeedForward::Moe(moe.clone()));
    let layer = |mixer: &Mixer, feed_forward: &FeedForward| -> Layer {
        recipe::layer(mixer.clone(), feed_forward.clone(), recipe::pre_norms(dims.d_model, false))
    };
    let layers = mixers.iter().zip(is_moe).map(|(mixer, is_moe)| layer(mixer, if *is_moe { &experts } else { &dense }));
    let mut spec = recipe::decoder(r, dims, layers.collect());
    let n_mtp = r.opt_below(&["num_nextn_predict_layers"], r.limits().layers).unwrap_or(0);
    if let Some(mixer) = mixers.first().filter(|_| n_mtp > 0) {
        let mut mtp = MtpLayer { layer: layer(mixer, &experts), extra: nextn(dims.d_model) };
        // These checkpoints repeat embedding and head in the prediction layer.
        for (name, component) in
            [("nextn.embed_tokens.weight", Component::Embeddings), ("nextn.shared_head_head.weight", Component::LmHead)]
        {
            mtp.extra.push(weight(name, Shape::matrix(dims.d_model, dims.n_vocab), component));
        }
        spec.mtp = vec![mtp; usize::try_from(n_mtp).unwrap_or(0)];
    }
    spec
}

/// The same mixer in every layer.
fn uniform(dims: &Dims, mixer: Mixer) -> Vec<Mixer> {
    vec![mixer; usize::try_from(dims.n_layers).unwrap_or(0)]
}

pub(super) fn with_ff(r: &Reader<'_>) -> Dims {
    Dims { d_ff: r.need(recipe::D_FF), ..dims(r) }
}

const SHARED: &[&str] = &["n_shared_experts", "num_shared_experts"];

fn deepseek_v2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    // The language models of DeepSeek-VL2-Tiny and OCR switch the latent off.
    let has_latent = r.flag(&["use_mla"], true);
    let dims = if has_latent { with_ff(r) } else { plain_dims(r) };
    let mixer = if has_latent { Mixer::Mla(mla(r, &dims)) } else { Mixer::Attention(dims.attention()) };
    let mut moe = experts(r, SHARED);
    if r.text(&["topk_method"]) != Some("noaux_tc") {
        moe.correction_bias = None;
    }
    let is_moe = moe_layers(r, dims.n_layers);
    let mut spec = stack(r, &dims, &uniform(&dims, mixer), Some(&moe), &is_moe);
    if !has_latent {
        spec.llama_cpp_arch = Some("deepseek2-ocr".into());
    }
    Ok(spec)
}

fn plain_dims(r: &Reader<'_>) -> Dims {
    let dims = with_ff(r);
    Dims {
        n_kv_heads: r.opt_below(recipe::N_KV_HEADS, r.limits().heads).unwrap_or(dims.n_heads),
        head_dim: r.divide("num_attention_heads", dims.d_model, dims.n_heads),
        ..dims
    }
}

fn deepseek_v3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let mixers = uniform(&dims, Mixer::Mla(mla(r, &dims)));
    let is_moe = moe_layers(r, dims.n_layers);
    Ok(stack(r, &dims, &mixers, Some(&experts(r, SHARED)), &is_moe))
}

fn axk1(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = deepseek_v3(r)?;
    // A norm behind the experts; checkpoints hold one behind dense feed-forwards too, where it is not used.
    let d_model = spec.d_model;
    for layer in &mut spec.layers {
        let counts = match layer.feed_forward {
            FeedForward::Moe(_) => Counts::Parameter,
            _ => Counts::Unused,
        };
        layer.extra.push(Weight { counts, ..weight("post_ffw_norm.weight", Shape::vector(d_model), Component::Norms) });
    }
    Ok(spec)
}

fn deepseek_v32(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let full = vec![true; usize::try_from(dims.n_layers).unwrap_or(0)];
    Ok(sparse_stack(r, &dims, &full))
}

pub(super) fn sparse_stack(r: &Reader<'_>, dims: &Dims, own: &[bool]) -> ModelSpec {
    let attention = mla(r, dims);
    if attention.q_lora_rank.is_none() {
        r.invalid("q_lora_rank", "nothing", "the rank that the indexer's queries are made from");
    }
    let rank = attention.q_lora_rank.unwrap_or(0);
    let mixers: Vec<Mixer> =
        own.iter().map(|own| Mixer::Mla(Mla { indexer: Some(indexer(r, dims, rank, *own)), ..attention.clone() })).collect();
    let is_moe = moe_layers(r, dims.n_layers);
    stack(r, dims, &mixers, Some(&experts(r, SHARED)), &is_moe)
}

/// Which layers have an indexer of their own; the others reuse what an earlier one chose.
pub(super) fn own_indexers(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    let kinds = match (r.texts(&["indexer_types"]), r.config.raw(&["index_topk_pattern"])) {
        (Some(kinds), _) => Some(kinds.into_iter().map(|kind| kind == "full").collect()),
        (None, Some((serde_json::Value::String(pattern), _))) => Some(pattern.chars().map(|letter| letter == 'F').collect()),
        (None, Some(_)) => r.texts(&["index_topk_pattern"]).map(|kinds| kinds.into_iter().map(|kind| kind == "full").collect()),
        (None, None) => None,
    };
    match kinds {
        Some(kinds) => recipe::per_layer(r, "indexer_types", Some(kinds), n_layers),
        None => {
            // The schedule of GlmMoeDsaConfig: every `freq`-th layer from `offset` on, and those before.
            let freq = r.opt_below(&["index_topk_freq"], r.limits().layers).unwrap_or(1).max(1);
            let offset = r.opt_below(&["index_skip_topk_offset"], r.limits().layers).unwrap_or(2);
            (0..n_layers).map(|index| (index + 1).saturating_sub(offset).is_multiple_of(freq)).collect()
        }
    }
}

fn glm_moe_dsa(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let own = own_indexers(r, dims.n_layers);
    Ok(sparse_stack(r, &dims, &own))
}

fn glm4_moe_lite(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    deepseek_v3(r)
}

fn mistral4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let mixers = uniform(&dims, Mixer::Mla(mla(r, &dims)));
    let moe = Moe { correction_bias: None, ..experts(r, SHARED) };
    let is_moe = moe_layers(r, dims.n_layers);
    Ok(stack(r, &dims, &mixers, Some(&moe), &is_moe))
}

fn dense(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let mixers = uniform(&dims, Mixer::Mla(mla(r, &dims)));
    let is_moe = vec![false; mixers.len()];
    Ok(stack(r, &dims, &mixers, None, &is_moe))
}

fn minicpm3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let attention = Mla { expanded: true, ..mla(r, &dims) };
    let rope_dims = attention.qk_rope_head_dim;
    let mixers = uniform(&dims, Mixer::Mla(attention));
    let mut spec = stack(r, &dims, &mixers, None, &vec![false; mixers.len()]);
    spec.embedding.extra.extend(recipe::rope_factors(r, rope_dims));
    Ok(spec)
}

fn plm(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = with_ff(r);
    let mixer = Mixer::Mla(Mla { expanded: true, q_lora_rank: None, ..mla(r, &dims) });
    let feed_forward = FeedForward::Dense(Dense::plain(dims.d_ff, false));
    let layer = recipe::layer(mixer, feed_forward, recipe::pre_norms(dims.d_model, false));
    Ok(recipe::decoder(r, &dims, vec![layer; usize::try_from(dims.n_layers).unwrap_or(0)]))
}

/// Two attention blocks with a dense feed-forward each; the experts run beside both and join at the end. We see each
/// half as a layer of its own, the experts in the first.
fn longcat(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let dims = Dims {
        d_ff: r.need(&["ffn_hidden_size", "intermediate_size"]),
        n_layers: r.need_below(&["num_layers", "num_hidden_layers"], limits.layers),
        ..dims_without_layers(r)
    };
    let mixer = Mixer::Mla(mla(r, &dims));
    let (n_experts, top_k) = recipe::expert_counts(r);
    let beside = Dense::gated(dims.d_ff);
    // Experts that pass their input through have a row in the router and no weights.
    let rows = n_experts.saturating_add(r.opt_below(&["zero_expert_num"], limits.experts).unwrap_or(0));
    let moe = Moe {
        correction_bias: Some(Counts::Buffer),
        router_bias: r.flag(&["router_bias"], false),
        n_router_rows: Some(rows),
        beside: Some(beside.clone()),
        ..recipe::experts(n_experts, top_k, r.need(&["expert_ffn_hidden_size", "moe_intermediate_size"]))
    };
    let layer = |feed_forward| recipe::layer(mixer.clone(), feed_forward, recipe::pre_norms(dims.d_model, false));
    let layers =
        dims.layers().flat_map(|_| [layer(FeedForward::Moe(moe.clone())), layer(FeedForward::Dense(beside.clone()))]).collect();
    Ok(recipe::decoder(r, &dims, layers))
}

fn dims_without_layers(r: &Reader<'_>) -> Dims {
    let n_heads = r.need_below(N_HEADS, r.limits().heads);
    let _ = r.opt(recipe::N_KV_HEADS);
    let _ = r.opt(recipe::HEAD_DIM);
    Dims {
        d_model: r.need(D_MODEL),
        n_layers: 0,
        n_vocab: r.need_below(N_VOCAB, r.limits().vocab),
        n_heads,
        n_kv_heads: n_heads,
        head_dim: 0,
        d_ff: 0,
        max_context: r.opt(recipe::MAX_CONTEXT).unwrap_or(0),
    }
}
