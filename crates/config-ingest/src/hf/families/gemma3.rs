//! Gemma 3, 3n and 4: windows between full layers, and in the small ones embeddings that every layer reads.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, QkvLayout, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};
use serde_json::Value;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims, norm, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["gemma3_text"], &["Gemma3ForCausalLM"], Some("gemma3"), GEMMA3, gemma3),
    // The bare body of Gemma 3 is EmbeddingGemma: it looks both ways.
    Family::new(&[], &["Gemma3TextModel"], Some("gemma-embedding"), GEMMA3, gemma3),
    Family::new(
        &["gemma3n_text"],
        &["Gemma3nForCausalLM"],
        Some("gemma3n"),
        r#"{"vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768,
            "sliding_window": 512, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
            "altup_num_inputs": 4, "num_kv_shared_layers": 15, "laurel_rank": 64, "tie_word_embeddings": true}"#,
        gemma3n,
    ),
    Family::new(
        &["gemma4_text"],
        &["Gemma4ForCausalLM"],
        Some("gemma4"),
        r#"{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
            "max_position_embeddings": 131072, "sliding_window": 512, "vocab_size_per_layer_input": 262144,
            "hidden_size_per_layer_input": 256, "attention_k_eq_v": false, "num_kv_shared_layers": 0,
            "enable_moe_block": false, "use_double_wide_mlp": false, "tie_word_embeddings": true}"#,
        gemma4,
    ),
    Family::new(
        &["gemma4_unified_text"],
        &["Gemma4UnifiedForCausalLM"],
        Some("gemma4"),
        r#"{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
            "max_position_embeddings": 262144, "sliding_window": 1024, "attention_k_eq_v": false,
            "num_kv_shared_layers": 0, "enable_moe_block": false, "use_double_wide_mlp": false,
            "tie_word_embeddings": true}"#,
        gemma4,
    ),
];

const GEMMA3: &str = r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    "sliding_window": 4096, "sliding_window_pattern": 6, "tie_word_embeddings": true}"#;

/// Tokens of the vocabulary that Gemma 3 and later share. Multimodal models have embeddings for placeholders above
/// them, which the converter cuts off (`Gemma3Model.modify_tensors`, `Gemma3NModel.modify_tensors`).
const N_TOKENS: u64 = 262_144;

/// Splits the embedding into the rows of tokens and those of placeholders.
fn cut_placeholders(spec: &mut ModelSpec) {
    let rows = spec.embedding.n_vocab;
    if rows > N_TOKENS {
        spec.embedding.n_vocab = N_TOKENS;
        if matches!(spec.head.lm_head, LmHead::Own { .. }) {
            spec.head.n_outputs = Some(rows);
        }
        spec.embedding.extra.push(Weight {
            name: "token_embd.placeholders.weight".to_owned(),
            shape: Shape::matrix(spec.d_model, rows.saturating_sub(N_TOKENS)),
            component: Component::Embeddings,
            counts: Counts::Unconverted,
        });
    }
}

fn bias(r: &Reader<'_>) -> AttentionBias {
    if r.flag(&["attention_bias"], false) { AttentionBias::ALL } else { AttentionBias::NONE }
}

fn gemma3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let embeds = r.class == "Gemma3TextModel" || r.flag(&["use_bidirectional_attention"], false);
    let period = r.opt(&["sliding_window_pattern", "_sliding_window_pattern"]).unwrap_or(6);
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period });
    let layers = windows.into_iter().map(|window| {
        let mut attention = dims.attention();
        attention.bias = bias(r);
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
        attention.window = window;
        if embeds {
            attention.bidirectional = true;
            attention.kv_source = KvSource::NotCached;
            if let Window::Sliding { tokens } = window {
                attention.window = Window::Symmetric { tokens };
            }
        }
        let norms = recipe::sandwich_norms(dims.d_model);
        recipe::layer(Mixer::Attention(attention), FeedForward::Dense(Dense::gated(dims.d_ff)), norms)
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    spec.causal = !embeds;
    cut_placeholders(&mut spec);
    Ok(spec)
}

/// Whose keys and values each layer reads: the last `shared` layers read those of the last layer before them that has
/// the same window (`llama_model_base::layer_reuse`, `kv_sharing_modes` in transformers).
fn kv_sources(r: &Reader<'_>, windows: &[Window], shared: u64) -> Vec<KvSource> {
    let n_layers = windows.len();
    let own = n_layers.saturating_sub(usize::try_from(shared).unwrap_or(usize::MAX));
    let of = |index: usize, window: &Window| {
        if index < own {
            return KvSource::Own;
        }
        let before = windows.iter().take(own).rposition(|earlier| earlier == window);
        match before.and_then(|layer| u32::try_from(layer).ok()) {
            Some(layer) => KvSource::Layer { layer },
            None => {
                r.invalid("num_kv_shared_layers", shared, "fewer: each kind of layer must keep keys and values once");
                KvSource::Own
            }
        }
    };
    windows.iter().enumerate().map(|(index, window)| of(index, window)).collect()
}

/// What the model reads per layer and token: a second embedding, projected, gated into every layer.
fn per_layer_embeddings(r: &Reader<'_>, spec: &mut ModelSpec, width: u64) {
    let d = spec.d_model;
    let all = width.saturating_mul(u64::try_from(spec.layers.len()).unwrap_or(u64::MAX));
    let rows = r.need_below(&["vocab_size_per_layer_input"], r.limits().vocab);
    let other = Component::PerLayerOther;
    spec.embedding.extra.extend([
        weight("per_layer_token_embd.weight", Shape::matrix(all, rows), Component::PerLayerEmbeddings),
        weight("per_layer_model_proj.weight", Shape::matrix(d, all), other),
        weight("per_layer_proj_norm.weight", Shape::vector(width), other),
    ]);
    for layer in &mut spec.layers {
        layer.extra.extend([
            weight("inp_gate.weight", Shape::matrix(d, width), other),
            weight("proj.weight", Shape::matrix(width, d), other),
            weight("post_norm.weight", Shape::vector(d), other),
        ]);
    }
}

/// The feed-forward's width of each layer: one number, or a list.
fn widths(r: &Reader<'_>, n_layers: u64) -> Vec<u64> {
    match r.config.raw(recipe::D_FF) {
        Some((Value::Array(_), _)) => recipe::per_layer(r, "intermediate_size", r.list(recipe::D_FF), n_layers),
        _ => {
            let width = r.need(recipe::D_FF);
            (0..n_layers).map(|_| width).collect()
        }
    }
}

fn gemma3n(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::without_ff(r);
    let d = dims.d_model;
    let windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 5 });
    let sources = kv_sources(r, &windows, r.opt(&["num_kv_shared_layers"]).unwrap_or(0));
    let inputs = r.need(&["altup_num_inputs"]);
    let (rank, squared) = (r.need(&["laurel_rank"]), inputs.saturating_mul(inputs));
    let layers = windows.iter().zip(sources).zip(widths(r, dims.n_layers)).map(|((window, kv_source), d_ff)| {
        let mut attention = dims.attention();
        attention.bias = bias(r);
        attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
        attention.window = *window;
        attention.kv_source = kv_source;
        let mut norms = recipe::sandwich_norms(d);
        norms.extend([norm("laurel_post_norm", d), norm("altup_router_norm", d)]);
        let mut layer = recipe::layer(Mixer::Attention(attention), FeedForward::Dense(Dense::gated(d_ff)), norms);
        layer.extra = [
            weight("altup_correct_coef.weight", Shape::matrix(inputs, inputs), Component::Other),
            weight("altup_correct_scale.weight", Shape::vector(d), Component::Other),
            weight("altup_predict_coef.weight", Shape::matrix(inputs, squared), Component::Other),
            weight("altup_router.weight", Shape::matrix(d, inputs), Component::Router),
            weight("laurel_l.weight", Shape::matrix(d, rank), Component::Other),
            weight("laurel_r.weight", Shape::matrix(rank, d), Component::Other),
        ]
        .to_vec();
        layer
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    let rest = inputs.saturating_sub(1);
    spec.embedding.extra.push(weight("altup_proj.weight", Shape::stack(d, d, rest), Component::Other));
    spec.head.extra.push(weight("altup_unembd_proj.weight", Shape::stack(d, d, rest), Component::Other));
    per_layer_embeddings(r, &mut spec, r.need(&["hidden_size_per_layer_input"]));
    cut_placeholders(&mut spec);
    Ok(spec)
}

/// Heads of a full-attention layer of Gemma 4, which differ from those of window layers.
fn gemma4_full_layer(r: &Reader<'_>, dims: &Dims, index: usize, k_eq_v: bool) -> (u64, u64) {
    // The newest spelling holds one object per layer that differs, keyed by its number with leading zeros.
    let own = r.child(&["per_layer_config"]).and_then(|all| {
        [format!("{index}"), format!("{index:02}"), format!("{index:03}")].iter().find_map(|key| all.child(&[key.as_str()]))
    });
    if let Some(own) = own {
        let heads = own.opt_below(&["num_key_value_heads"], r.limits().heads).unwrap_or(dims.n_kv_heads);
        return (heads, own.opt(&["head_dim"]).unwrap_or(dims.head_dim));
    }
    let global = r.opt_below(&["num_global_key_value_heads"], r.limits().heads).filter(|_| k_eq_v);
    (global.unwrap_or(dims.n_kv_heads), r.opt(&["global_head_dim"]).unwrap_or(dims.head_dim))
}

fn gemma4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let d = dims.d_model;
    let mut windows = recipe::windows(r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 6 });
    if let Some(last) = windows.last_mut() {
        // The last layer sees everything whatever the list says (Gemma4TextConfig.__post_init__).
        *last = Window::Full;
    }
    let shared = r.opt(&["num_kv_shared_layers"]).unwrap_or(0);
    let sources = kv_sources(r, &windows, shared);
    let k_eq_v = r.flag(&["attention_k_eq_v"], false);
    let double = r.flag(&["use_double_wide_mlp"], false);
    let moe = r.flag(&["enable_moe_block"], false);
    let mut full_head_dim = 0;
    let mut layers: Vec<Layer> = Vec::with_capacity(windows.len());
    for (index, (window, kv_source)) in windows.iter().zip(sources).enumerate() {
        let full = *window == Window::Full;
        let (n_kv_heads, head_dim) =
            if full { gemma4_full_layer(r, &dims, index, k_eq_v) } else { (dims.n_kv_heads, dims.head_dim) };
        let mut attention = Attention::new(dims.n_heads, n_kv_heads, head_dim);
        if full {
            full_head_dim = head_dim;
            if k_eq_v {
                attention.layout = QkvLayout::ValueIsKey;
            }
        }
        attention.bias = bias(r);
        attention.qk_norm = recipe::qk_norm_per_head(head_dim);
        attention.window = *window;
        attention.kv_source = kv_source;
        let reuses = matches!(kv_source, KvSource::Layer { .. });
        let dense = Dense::gated(if double && reuses { dims.d_ff.saturating_mul(2) } else { dims.d_ff });
        let mut norms = recipe::sandwich_norms(d);
        let feed_forward = if moe {
            norms.extend(["post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"].map(|name| norm(name, d)));
            let (n_experts, top_k) = recipe::expert_counts(r);
            let width = r.need(&["moe_intermediate_size", "expert_intermediate_size"]);
            let mut experts = recipe::experts(n_experts, top_k, width);
            experts.fused_gate_up = true;
            experts.beside = Some(dense);
            experts.extra = [
                weight("ffn_gate_inp.scale", Shape::vector(d), Component::Router),
                weight("ffn_down_exps.scale", Shape::vector(n_experts), Component::Router),
            ]
            .to_vec();
            FeedForward::Moe(experts)
        } else {
            FeedForward::Dense(dense)
        };
        let mut layer = recipe::layer(Mixer::Attention(attention), feed_forward, norms);
        layer.extra.push(Weight {
            name: "layer_output_scale.weight".to_owned(),
            shape: Shape::vector(1),
            component: Component::Other,
            counts: Counts::Buffer,
        });
        layers.push(layer);
    }
    let mut spec = recipe::decoder(r, &dims, layers);
    // Full layers rotate a part of each head; the converter writes factors that leave the rest alone.
    spec.embedding.extra.push(Weight {
        name: "rope_freqs.weight".to_owned(),
        shape: Shape::vector(full_head_dim / 2),
        component: Component::Other,
        counts: Counts::Derived,
    });
    match r.opt(&["hidden_size_per_layer_input"]) {
        Some(width) if width > 0 => per_layer_embeddings(r, &mut spec, width),
        _ => {}
    }
    cut_placeholders(&mut spec);
    Ok(spec)
}
