//! Specs made from the metadata of a model file alone: only what the memory of a context depends on.

use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::{
    Attention, CompressedAttention, Dense, Embedding, Encoder, FeedForward, GatedDeltaNet, Head, Indexer, KimiDelta, KvSource,
    Layer, LightningAttention, LmHead, Mamba1, Mamba2, Mixer, Mla, ModelSpec, Moe, MtpLayer, Norm, OutputGate, Parallel, Rwkv,
    RwkvVersion, ShortConv, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};
use serde_json::Value;

struct Metadata<'a> {
    arch: &'a str,
    values: &'a Value,
}

impl Metadata<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(format!("{}.{key}", self.arch))
    }
    fn number(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(Value::as_u64)
    }
    /// A number that may be given per layer.
    fn at(&self, key: &str, layer: usize) -> Option<u64> {
        match self.value(key)? {
            Value::Array(list) => list.get(layer).and_then(Value::as_u64),
            single => single.as_u64(),
        }
    }
    fn flag_at(&self, key: &str, layer: usize) -> Option<bool> {
        self.value(key)?.as_array()?.get(layer)?.as_bool()
    }
}

/// The windowed layers of architectures whose loader knows the pattern (`models/*.cpp:load_arch_hparams`).
fn is_windowed(meta: &Metadata<'_>, layer: usize) -> bool {
    if let Some(flag) = meta.flag_at("attention.sliding_window_pattern", layer) {
        return flag;
    }
    let period = match meta.arch {
        "gemma2" | "gpt-oss" => 2,
        "gemma3" => 6,
        "llama4" | "cohere2" | "exaone4" | "olmo2" => 4,
        _ => return false,
    };
    layer % period < period - 1
}

fn attention(meta: &Metadata<'_>, layer: usize) -> Attention {
    let n_heads = meta.at("attention.head_count", layer).unwrap();
    let n_kv_heads = meta.at("attention.head_count_kv", layer).unwrap_or(n_heads);
    let plain = meta.number("embedding_length").unwrap() / n_heads.max(1);
    let windowed = is_windowed(meta, layer);
    let head = |which: &str| {
        let swa = windowed.then(|| meta.number(&format!("attention.{which}_length_swa"))).flatten();
        swa.or(meta.number(&format!("attention.{which}_length"))).unwrap_or(plain)
    };
    let window = match (meta.arch, windowed) {
        (_, false) => Window::Full,
        ("llama4", true) => Window::Chunked { tokens: 8192 },
        (_, true) => Window::Sliding { tokens: meta.number("attention.sliding_window").unwrap() },
    };
    let shared = meta.number("attention.shared_kv_layers").unwrap_or(0);
    let own = meta.number("block_count").unwrap() - shared;
    let kv_source = if layer as u64 >= own {
        KvSource::Layer { layer: u32::try_from(own).unwrap() - if windowed { 2 } else { 1 } }
    } else {
        KvSource::Own
    };
    Attention { v_head_dim: head("value"), window, kv_source, ..Attention::new(n_heads, n_kv_heads, head("key")) }
}

fn indexer(meta: &Metadata<'_>) -> Option<Indexer> {
    Some(Indexer {
        n_heads: meta.number("attention.indexer.head_count")?,
        head_dim: meta.number("attention.indexer.key_length")?,
        top_k: meta.number("attention.indexer.top_k")?,
        own: true,
        weights: Vec::new(),
    })
}

fn latent(meta: &Metadata<'_>, layer: usize) -> Mixer {
    let rope = meta.number("rope.dimension_count").unwrap();
    Mixer::Mla(Mla {
        n_heads: meta.at("attention.head_count", layer).unwrap(),
        q_lora_rank: meta.number("attention.q_lora_rank"),
        kv_lora_rank: meta.number("attention.kv_lora_rank").unwrap(),
        qk_nope_head_dim: meta.number("attention.key_length_mla").unwrap() - rope,
        qk_rope_head_dim: rope,
        v_head_dim: meta.number("attention.value_length_mla").unwrap(),
        window: Window::Full,
        bias: false,
        expanded: false,
        gate: OutputGate::None,
        indexer: indexer(meta),
        extra: Vec::new(),
    })
}

fn state_space(meta: &Metadata<'_>) -> Mixer {
    let d_inner = meta.number("ssm.inner_size").unwrap();
    let d_state = meta.number("ssm.state_size").unwrap();
    let d_conv = meta.number("ssm.conv_kernel").unwrap();
    let rank = meta.number("ssm.time_step_rank").unwrap();
    match (meta.arch, meta.number("ssm.group_count")) {
        ("qwen3next" | "qwen35" | "qwen35moe", Some(groups)) => Mixer::GatedDeltaNet(GatedDeltaNet {
            n_k_heads: groups,
            n_v_heads: rank,
            k_head_dim: d_state,
            v_head_dim: d_inner / rank,
            d_conv,
            fused_beta_alpha: meta.arch == "qwen3next",
            extra: Vec::new(),
        }),
        (_, Some(n_groups)) => Mixer::Mamba2(Mamba2 {
            d_inner,
            d_state,
            d_conv,
            n_heads: rank,
            n_groups,
            conv_bias: true,
            proj_bias: false,
            norm: true,
            extra: Vec::new(),
        }),
        (_, None) => Mixer::Mamba1(Mamba1 {
            d_inner,
            d_state,
            d_conv,
            dt_rank: rank,
            conv_bias: true,
            proj_bias: false,
            dt_b_c_norm: false,
            extra: Vec::new(),
        }),
    }
}

fn mixer(meta: &Metadata<'_>, layer: usize) -> Mixer {
    let no_cache_heads = meta.at("attention.head_count_kv", layer) == Some(0);
    match meta.arch {
        "mamba" | "mamba2" => state_space(meta),
        "rwkv7" => Mixer::Rwkv(Rwkv {
            version: RwkvVersion::V7,
            head_dim: meta.number("wkv.head_size").unwrap(),
            token_shifts: 2,
            weights: Vec::new(),
        }),
        "lfm2" if no_cache_heads => {
            Mixer::ShortConv(ShortConv { d_conv: meta.number("shortconv.l_cache").unwrap(), bias: false })
        }
        "kimi-linear" if no_cache_heads => Mixer::KimiDelta(KimiDelta {
            n_heads: meta.number("attention.head_count").unwrap(),
            head_dim: meta.number("kda.head_dim").unwrap(),
            d_conv: meta.number("ssm.conv_kernel").unwrap(),
            extra: Vec::new(),
        }),
        "nemotron_h" if meta.at("feed_forward_length", layer) != Some(0) => Mixer::None,
        "jamba" | "granitehybrid" | "nemotron_h" if no_cache_heads => state_space(meta),
        "falcon-h1" => Mixer::Parallel(Parallel { attention: attention(meta, layer), state: Box::new(state_space(meta)) }),
        "minimax-01" if layer % 8 != 7 => Mixer::LightningAttention(LightningAttention {
            n_heads: meta.number("attention.head_count").unwrap(),
            head_dim: meta.number("attention.key_length").unwrap(),
            weights: Vec::new(),
        }),
        "qwen3next" | "qwen35" | "qwen35moe"
            if !(layer + 1).is_multiple_of(meta.number("full_attention_interval").unwrap() as usize) =>
        {
            state_space(meta)
        }
        "deepseek4" => Mixer::CompressedAttention(CompressedAttention {
            n_heads: meta.number("attention.head_count").unwrap(),
            head_dim: meta.number("attention.key_length").unwrap(),
            window: meta.number("attention.sliding_window").unwrap(),
            ratio: meta.at("attention.compress_ratios", layer).unwrap(),
            indexer: indexer(meta),
            weights: Vec::new(),
        }),
        _ if meta.number("attention.key_length_mla").is_some() => latent(meta, layer),
        "bert" => Mixer::Attention(Attention { kv_source: KvSource::NotCached, bidirectional: true, ..attention(meta, layer) }),
        _ => Mixer::Attention(attention(meta, layer)),
    }
}

fn feed_forward(meta: &Metadata<'_>, layer: usize) -> FeedForward {
    let lead = meta.number("leading_dense_block_count").unwrap_or(0);
    let Some(n_experts) = meta.number("expert_count").filter(|_| layer as u64 >= lead) else {
        return match meta.at("feed_forward_length", layer) {
            Some(d_ff) if d_ff > 0 && matches!(meta.arch, "bert" | "nemotron_h") => FeedForward::Dense(Dense::plain(d_ff, true)),
            Some(d_ff) if d_ff > 0 => FeedForward::Dense(Dense::gated(d_ff)),
            _ => FeedForward::None,
        };
    };
    let d_ff_expert = meta.number("expert_feed_forward_length").or(meta.at("feed_forward_length", layer)).unwrap();
    let shared = meta
        .number("expert_shared_feed_forward_length")
        .or(meta.number("expert_shared_count").map(|count| count * d_ff_expert))
        .filter(|width| *width > 0);
    FeedForward::Moe(Moe {
        n_experts,
        n_experts_per_token: meta.number("expert_used_count").unwrap(),
        d_ff_expert,
        gated: true,
        fused_gate_up: false,
        expert_bias: false,
        router_bias: false,
        correction_bias: None,
        n_router_rows: None,
        latent: None,
        shared: shared.map(Dense::gated),
        shared_component: Component::SharedExperts,
        shared_gate: false,
        beside: None,
        extra: Vec::new(),
    })
}

fn norm(meta: &Metadata<'_>, name: &str) -> Norm {
    Norm { name: name.to_string(), width: meta.number("embedding_length").unwrap(), bias: false }
}

fn layer(meta: &Metadata<'_>, index: usize) -> Layer {
    Layer {
        mixer: mixer(meta, index),
        cross_attention: None,
        feed_forward: feed_forward(meta, index),
        norms: vec![norm(meta, "attn_norm"), norm(meta, "ffn_norm")],
        extra: Vec::new(),
        weights_of: None,
    }
}

/// The spec of a row of `layers.jsonl.gz`.
pub(crate) fn from_metadata(row: &Value) -> ModelSpec {
    let arch = row["arch"].as_str().unwrap();
    let meta = Metadata { arch, values: &row["gguf_kv"] };
    let blocks = usize::try_from(meta.number("block_count").unwrap()).unwrap();
    let mtp = usize::try_from(meta.number("nextn_predict_layers").unwrap_or(0)).unwrap();
    let layers: Vec<Layer> = (0..blocks - mtp).map(|index| layer(&meta, index)).collect();
    let d_model = meta.number("embedding_length").unwrap();
    let encoder = (arch == "t5").then(|| Encoder { d_model, layers: layers.clone(), norm: None, extra: Vec::new() });
    let n_vocab = row["n_vocab"].as_u64().unwrap();
    let per_layer = meta.number("embedding_length_per_layer_input").filter(|width| *width > 0).map(|width| Weight {
        name: "per_layer_token_embd.weight".to_string(),
        shape: Shape::matrix(width * blocks as u64, n_vocab),
        component: Component::PerLayerEmbeddings,
        counts: Counts::Parameter,
    });
    let per_layer = per_layer.into_iter().collect();
    ModelSpec {
        name: row["model"].as_str().map(str::to_string),
        architecture: row["hf_architecture"].as_str().unwrap().to_string(),
        llama_cpp_arch: Some(arch.to_string()),
        d_model,
        max_context: meta.number("context_length").unwrap(),
        weight_dtype: StorageFormat::Bf16,
        embedding: Embedding { n_vocab, extra: per_layer, ..Embedding::default() },
        layers,
        head: Head {
            norm: Some(norm(&meta, "output_norm")),
            lm_head: if arch == "bert" { LmHead::None } else { LmHead::Tied },
            ..Head::default()
        },
        encoder,
        towers: Vec::new(),
        mtp: (blocks - mtp..blocks).map(|index| MtpLayer { layer: layer(&meta, index), extra: Vec::new() }).collect(),
        causal: arch != "bert",
    }
}
