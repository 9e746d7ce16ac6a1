//! RWKV 4 to 7, and Qwen models whose attention was replaced by RWKV's.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, Layer, Mixer, ModelSpec, Norm, Rwkv, RwkvVersion, Weight};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, D_MODEL, Dims, N_LAYERS, N_VOCAB, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["rwkv"],
        architectures: &["RwkvForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 50277, "context_length": 1024, "hidden_size": 4096, "num_hidden_layers": 32,
            "tie_word_embeddings": false}"#,
        build: rwkv4,
    },
    Family {
        model_types: &["rwkv5"],
        architectures: &["Rwkv5ForCausalLM"],
        llama_cpp: None,
        is_wrapper: false,
        defaults: r#"{"vocab_size": 65536, "hidden_size": 768, "num_hidden_layers": 24, "head_size": 64,
            "tie_word_embeddings": false}"#,
        build: rwkv5,
    },
    Family {
        model_types: &["rwkv6"],
        architectures: &["Rwkv6ForCausalLM"],
        llama_cpp: Some("rwkv6"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 65536, "hidden_size": 768, "num_hidden_layers": 24, "head_size": 64,
            "tie_word_embeddings": false}"#,
        build: rwkv6,
    },
    Family {
        model_types: &["rwkv6qwen2"],
        architectures: &["RWKV6Qwen2ForCausalLM"],
        llama_cpp: Some("rwkv6qwen2"),
        is_wrapper: false,
        defaults: r#"{"tie_word_embeddings": false}"#,
        build: rwkv6_qwen2,
    },
    Family {
        model_types: &["rwkv7"],
        architectures: &["RWKV7ForCausalLM", "Rwkv7ForCausalLM"],
        llama_cpp: Some("rwkv7"),
        is_wrapper: false,
        defaults: r#"{"vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 24, "head_dim": 64,
            "tie_word_embeddings": false}"#,
        build: rwkv7,
    },
    Family {
        model_types: &["rwkv_hybrid"],
        architectures: &["RwkvHybridForCausalLM"],
        llama_cpp: Some("arwkv7"),
        is_wrapper: false,
        defaults: r#"{"head_size": 64, "tie_word_embeddings": false}"#,
        build: arwkv7,
    },
];

/// RWKV has no bound on its context; llama.cpp's converter writes this (conversion/rwkv.py).
const UNBOUNDED: u64 = 1 << 20;

fn dims(r: &Reader<'_>) -> Dims {
    Dims {
        d_model: r.need(D_MODEL),
        n_layers: r.need_below(N_LAYERS, r.limits().layers),
        n_vocab: r.need_below(N_VOCAB, r.limits().vocab),
        n_heads: 0,
        n_kv_heads: 0,
        head_dim: 0,
        d_ff: 0,
        max_context: UNBOUNDED,
    }
}

/// A list of tensors of one component.
struct List {
    weights: Vec<Weight>,
    component: Component,
}

impl List {
    const fn new(component: Component) -> Self {
        Self { weights: Vec::new(), component }
    }
    fn matrix(&mut self, name: &str, n_in: u64, n_out: u64) {
        self.shape(name, Shape::matrix(n_in, n_out));
    }
    fn vector(&mut self, name: &str, n: u64) {
        self.shape(name, Shape::vector(n));
    }
    fn shape(&mut self, name: &str, shape: Shape) {
        self.weights.push(weight(&format!("{name}.weight"), shape, self.component));
    }
    fn norm(&mut self, name: &str, n: u64) {
        self.vector(name, n);
        self.weights.push(weight(&format!("{name}.bias"), Shape::vector(n), self.component));
    }
}

/// Two norms with biases before time mix and channel mix.
fn rwkv_norms(d_model: u64) -> Vec<Norm> {
    vec![recipe::layer_norm("attn_norm", d_model), recipe::layer_norm("attn_norm_2", d_model)]
}

/// A model with a norm with bias on the embedding and at the end. `part` is where the first norm counts to.
fn rwkv_decoder(r: &Reader<'_>, dims: &Dims, layers: Vec<Layer>, part: Component) -> ModelSpec {
    let mut spec = recipe::decoder(r, dims, layers);
    spec.head.norm = Some(recipe::layer_norm("output_norm", dims.d_model));
    for suffix in ["weight", "bias"] {
        spec.embedding.extra.push(weight(&format!("token_embd_norm.{suffix}"), Shape::vector(dims.d_model), part));
    }
    spec
}

/// RWKV's feed-forward with a receptance gate, as versions 4 to 6 have it.
fn gated_channel_mix(d_model: u64, d_ff: u64) -> FeedForward {
    let mut list = List::new(Component::Mlp);
    list.vector("channel_mix_lerp_k", d_model);
    list.vector("channel_mix_lerp_r", d_model);
    list.matrix("channel_mix_key", d_model, d_ff);
    list.matrix("channel_mix_value", d_ff, d_model);
    list.matrix("channel_mix_receptance", d_model, d_model);
    FeedForward::ChannelMix { weights: list.weights }
}

fn rwkv4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims { max_context: r.opt(&["context_length"]).unwrap_or(UNBOUNDED), ..dims(r) };
    let d_model = dims.d_model;
    let width = r.opt_below(&["attention_hidden_size"], r.limits().width).unwrap_or(d_model);
    let d_ff = r.opt_below(recipe::D_FF, r.limits().width).unwrap_or_else(|| d_model.saturating_mul(4));
    let mut list = List::new(Component::SsmLinear);
    list.vector("time_mix_decay", width);
    list.vector("time_mix_first", width);
    for which in ["k", "v", "r"] {
        list.vector(&format!("time_mix_lerp_{which}"), d_model);
    }
    for which in ["key", "value", "receptance"] {
        list.matrix(&format!("time_mix_{which}"), d_model, width);
    }
    list.matrix("time_mix_output", width, d_model);
    let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V4, head_dim: 1, token_shifts: 2, weights: list.weights });
    let layer = recipe::layer(mixer, gated_channel_mix(d_model, d_ff), rwkv_norms(d_model));
    Ok(rwkv_decoder(r, &dims, repeated(&dims, layer), Component::Other))
}

fn repeated(dims: &Dims, layer: Layer) -> Vec<Layer> {
    vec![layer; usize::try_from(dims.n_layers).unwrap_or(0)]
}

/// The channel mix's width when a config leaves it out: 3.5 times the hidden size, in whole 32s.
fn d_ff_of_5_and_6(r: &Reader<'_>, d_model: u64) -> u64 {
    r.opt_below(recipe::D_FF, r.limits().width).unwrap_or_else(|| d_model.saturating_mul(7) / 2 / 32 * 32)
}

/// The head's size: what version 6 calls `head_size`, its checkpoints also `num_attention_heads`.
fn head_size(r: &Reader<'_>) -> u64 {
    r.need(&["head_size", "head_dim"])
}

fn rwkv5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d_model = dims.d_model;
    let head_dim = head_size(r);
    let width = r.opt_below(&["attention_hidden_size"], r.limits().width).unwrap_or(d_model);
    let n_heads = r.divide("head_size", width, head_dim);
    let mut list = List::new(Component::SsmLinear);
    for which in ["k", "v", "r", "g"] {
        list.vector(&format!("time_mix_lerp_{which}"), d_model);
    }
    list.matrix("time_mix_decay", head_dim, n_heads);
    list.matrix("time_mix_first", head_dim, n_heads);
    for which in ["key", "value", "receptance", "gate"] {
        list.matrix(&format!("time_mix_{which}"), d_model, width);
    }
    list.matrix("time_mix_output", width, d_model);
    list.norm("time_mix_ln", width);
    let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V5, head_dim, token_shifts: 2, weights: list.weights });
    let layer = recipe::layer(mixer, gated_channel_mix(d_model, d_ff_of_5_and_6(r, d_model)), rwkv_norms(d_model));
    Ok(rwkv_decoder(r, &dims, repeated(&dims, layer), Component::Norms))
}

fn rwkv6(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d_model = dims.d_model;
    let head_dim = head_size(r);
    let n_heads = r.divide("head_size", d_model, head_dim);
    // The published sizes' low ranks, which configs do not hold (conversion/rwkv.py, Rwkv6Model).
    let (mix_rank, decay_rank) = if d_model == 4096 { (64, 128) } else { (32, 64) };
    let mut list = List::new(Component::SsmLinear);
    rwkv6_low_rank(&mut list, d_model, mix_rank, decay_rank);
    list.matrix("time_mix_first", head_dim, n_heads);
    for which in ["key", "value", "receptance", "gate", "output"] {
        list.matrix(&format!("time_mix_{which}"), d_model, d_model);
    }
    list.norm("time_mix_ln", d_model);
    let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V6, head_dim, token_shifts: 2, weights: list.weights });
    let layer = recipe::layer(mixer, gated_channel_mix(d_model, d_ff_of_5_and_6(r, d_model)), rwkv_norms(d_model));
    Ok(rwkv_decoder(r, &dims, repeated(&dims, layer), Component::Norms))
}

/// Token-dependent mixing and decay of version 6.
fn rwkv6_low_rank(list: &mut List, d_model: u64, mix_rank: u64, decay_rank: u64) {
    list.matrix("time_mix_w1", d_model, mix_rank.saturating_mul(5));
    list.shape("time_mix_w2", Shape::stack(mix_rank, d_model, 5));
    list.vector("time_mix_lerp_x", d_model);
    list.shape("time_mix_lerp_fused", Shape([d_model, 1, 1, 5]));
    list.vector("time_mix_decay", d_model);
    list.matrix("time_mix_decay_w1", d_model, decay_rank);
    list.matrix("time_mix_decay_w2", decay_rank, d_model);
}

fn rwkv6_qwen2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims { max_context: UNBOUNDED, ..Dims::read(r) };
    let d_model = dims.d_model;
    let head_dim = r.divide("num_attention_heads", d_model, dims.n_heads);
    let (mix_rank, decay_rank) = if d_model >= 4096 { (64, 128) } else { (32, 64) };
    let mix_rank = r.opt_below(&["lora_rank_tokenshift"], r.limits().width).unwrap_or(mix_rank);
    let decay_rank = r.opt_below(&["lora_rank_decay"], r.limits().width).unwrap_or(decay_rank);
    let mut list = List::new(Component::SsmLinear);
    rwkv6_low_rank(&mut list, d_model, mix_rank, decay_rank);
    let kv_width = dims.n_kv_heads.saturating_mul(head_dim);
    for (which, width) in [("key", kv_width), ("value", kv_width), ("receptance", d_model)] {
        list.matrix(&format!("time_mix_{which}"), d_model, width);
        list.weights.push(weight(&format!("time_mix_{which}.bias"), Shape::vector(width), Component::SsmLinear));
    }
    list.matrix("time_mix_gate", d_model, d_model);
    list.matrix("time_mix_output", d_model, d_model);
    let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V6, head_dim, token_shifts: 1, weights: list.weights });
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layer = recipe::layer(mixer, dense, recipe::pre_norms(d_model, false));
    Ok(recipe::decoder(r, &dims, repeated(&dims, layer)))
}

/// The low ranks of version 7.
struct Ranks {
    decay: u64,
    rate: u64,
    value: u64,
    gate: u64,
}

/// `max(1, round(d^exponent * factor / 32)) * 32`, with exponent 1/2 or 4/5, in whole numbers.
fn rank(d_model: u64, fifths: bool, factor_tenths: u64) -> u64 {
    // The smallest multiple m of 32 whose upper rounding limit (m/32 + 1/2) is above the exact value; compared in
    // powers that need no roots: (x/320)^p against d^q.
    let at_most = |half_steps: u64| -> bool {
        // x = factor_tenths/10 * d^e / 32 <= half_steps/2  <=>  factor * d^e <= 160 * half_steps
        let limit = u128::from(half_steps.saturating_mul(160));
        let factor = u128::from(factor_tenths);
        let d = u128::from(d_model);
        if fifths {
            match (limit.checked_pow(5), factor.checked_pow(5).zip(d.checked_pow(4)).and_then(|(a, b)| a.checked_mul(b))) {
                (Some(limit), Some(value)) => value <= limit,
                _ => true,
            }
        } else {
            match (limit.checked_pow(2), factor.checked_pow(2).and_then(|a| a.checked_mul(d))) {
                (Some(limit), Some(value)) => value <= limit,
                _ => true,
            }
        }
    };
    // The rank grows slower than the hidden size, so the search ends below it.
    (1..=d_model.max(1)).find(|m| at_most(m.saturating_mul(2).saturating_add(1))).unwrap_or(1).saturating_mul(32)
}

fn rwkv7_ranks(r: &Reader<'_>, d_model: u64) -> Ranks {
    let said = |names: &[&str], otherwise: u64| r.opt_below(names, r.limits().width).unwrap_or(otherwise);
    Ranks {
        decay: said(&["decay_low_rank_dim", "lora_rank_decay"], rank(d_model, false, 18)),
        rate: said(&["a_low_rank_dim", "lora_rank_iclr"], rank(d_model, false, 18)),
        value: said(&["v_low_rank_dim", "lora_rank_value_residual_mix"], rank(d_model, false, 13)),
        gate: said(&["gate_low_rank_dim", "lora_rank_gate"], rank(d_model, true, 6)),
    }
}

/// Time mix of version 7. `has_gate` and `has_norm` are off in some converted Qwen models.
fn rwkv7_time_mix(d_model: u64, ranks: &Ranks, is_first: bool, has_gate: bool, has_norm: bool) -> Vec<Weight> {
    let mut list = List::new(Component::SsmLinear);
    list.vector("time_mix_w0", d_model);
    list.matrix("time_mix_w1", d_model, ranks.decay);
    list.matrix("time_mix_w2", ranks.decay, d_model);
    list.vector("time_mix_a0", d_model);
    list.matrix("time_mix_a1", d_model, ranks.rate);
    list.matrix("time_mix_a2", ranks.rate, d_model);
    // The first layer has no earlier values to mix with. Converters put copies of the rate's tensors there, because
    // the loader asks for something (conversion/rwkv.py, Rwkv7Model.modify_tensors).
    let (value_rank, counts) = if is_first { (ranks.rate, Counts::Derived) } else { (ranks.value, Counts::Parameter) };
    let before = list.weights.len();
    list.vector("time_mix_v0", d_model);
    list.matrix("time_mix_v1", d_model, value_rank);
    list.matrix("time_mix_v2", value_rank, d_model);
    for tensor in list.weights.iter_mut().skip(before) {
        tensor.counts = counts;
    }
    if has_gate {
        list.matrix("time_mix_g1", d_model, ranks.gate);
        list.matrix("time_mix_g2", ranks.gate, d_model);
    }
    list.shape("time_mix_lerp_fused", Shape([d_model, 1, 1, if has_gate { 6 } else { 5 }]));
    for which in ["k_k", "k_a", "r_k"] {
        list.vector(&format!("time_mix_{which}"), d_model);
    }
    for which in ["key", "value", "receptance", "output"] {
        list.matrix(&format!("time_mix_{which}"), d_model, d_model);
    }
    if has_norm {
        list.norm("time_mix_ln", d_model);
    }
    list.weights
}

fn rwkv7(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d_model = dims.d_model;
    let head_dim = r.need(&["head_dim", "head_size"]);
    let _ = r.divide("head_dim", d_model, head_dim);
    let d_ff = r.opt_below(recipe::D_FF, r.limits().width).unwrap_or_else(|| d_model.saturating_mul(4));
    let ranks = rwkv7_ranks(r, d_model);
    let mut channel = List::new(Component::Mlp);
    channel.vector("channel_mix_lerp_k", d_model);
    channel.matrix("channel_mix_key", d_model, d_ff);
    channel.matrix("channel_mix_value", d_ff, d_model);
    let layers = dims
        .layers()
        .map(|index| {
            let weights = rwkv7_time_mix(d_model, &ranks, index == 0, true, true);
            let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V7, head_dim, token_shifts: 2, weights });
            let feed_forward = FeedForward::ChannelMix { weights: channel.weights.clone() };
            recipe::layer(mixer, feed_forward, rwkv_norms(d_model))
        })
        .collect();
    Ok(rwkv_decoder(r, &dims, layers, Component::Norms))
}

fn arwkv7(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims { d_ff: r.need(recipe::D_FF), ..dims(r) };
    let d_model = dims.d_model;
    let head_dim = head_size(r);
    let has_gate = r.flag(&["wkv_has_gate"], true);
    let has_norm = r.flag(&["wkv_has_group_norm"], true);
    // The published models' ranks, which configs do not hold (conversion/rwkv.py, ARwkv7Model).
    let ranks = Ranks { decay: 64, rate: 64, value: 32, gate: 128 };
    let dense = FeedForward::Dense(Dense::gated(dims.d_ff));
    let layers = dims
        .layers()
        .map(|index| {
            let weights = rwkv7_time_mix(d_model, &ranks, index == 0, has_gate, has_norm);
            let mixer = Mixer::Rwkv(Rwkv { version: RwkvVersion::V7, head_dim, token_shifts: 1, weights });
            recipe::layer(mixer, dense.clone(), recipe::pre_norms(d_model, false))
        })
        .collect();
    Ok(recipe::decoder(r, &dims, layers))
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn ranks_are_those_of_the_published_sizes() {
        // RWKV-7 0.1B, 0.4B, 1.5B and 2.9B: decay and rate, value, gate.
        let of = |d| (rank(d, false, 18), rank(d, false, 13), rank(d, true, 6));
        assert_eq!(of(768), (64, 32, 128));
        assert_eq!(of(1024), (64, 32, 160));
        assert_eq!(of(2048), (96, 64, 256));
        assert_eq!(of(2560), (96, 64, 320));
    }
}
