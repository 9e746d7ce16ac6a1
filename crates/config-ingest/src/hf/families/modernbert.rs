//! Encoders with today's layers: norms before both halves, rotary positions, gated feed-forwards.

use alloc::vec::Vec;

use plimsoll_math::spec::{
    AttentionBias, Dense, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, Norm, QkvLayout, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::bert::{both_ways, classes, head_of};
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims, norm, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["modernbert"], classes!("ModernBert"), Some("modern-bert"), MODERN_BERT, modernbert),
    Family::new(&["modernbert-decoder"], &["ModernBertDecoderForCausalLM"], None, MODERN_BERT, modernbert_decoder),
    Family::new(
        &["eurobert"],
        classes!("EuroBert"),
        Some("eurobert"),
        r#"{"vocab_size": 128256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 8192, "tie_word_embeddings": false}"#,
        eurobert,
    ),
    Family::new(
        &["neobert"],
        &["NeoBERT", "NeoBERTLMHead", "NeoBERTForSequenceClassification"],
        Some("neo-bert"),
        r#"{"vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 12, "max_length": 1024}"#,
        neobert,
    ),
];

const MODERN_BERT: &str = r#"{"vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "local_attention": 128, "global_attn_every_n_layers": 3}"#;

fn modern(r: &Reader<'_>) -> (Dims, ModelSpec) {
    let dims = Dims::read(r);
    let d = dims.d_model;
    let norm_bias = r.flag(&["norm_bias"], false);
    let a_norm = |name: &str| Norm { bias: norm_bias, ..norm(name, d) };
    let bias = if r.flag(&["attention_bias"], false) { AttentionBias::ALL } else { AttentionBias::NONE };
    let ff_bias = r.flag(&["mlp_bias"], false);
    let period = r.opt(&["global_attn_every_n_layers"]).unwrap_or(3);
    let tokens = r.opt(&["local_attention", "sliding_window"]);
    let windows = recipe::windows(r, dims.n_layers, tokens, Alternation::FullFirst { period });
    let layers = windows.into_iter().enumerate().map(|(index, window)| {
        let mut attention = both_ways(dims.attention());
        attention.layout = QkvLayout::Fused;
        attention.bias = bias;
        attention.window = match window {
            Window::Sliding { tokens } => Window::Symmetric { tokens },
            other => other,
        };
        let dense = Dense { fused_gate_up: true, up_bias: ff_bias, down_bias: ff_bias, ..Dense::gated(dims.d_ff) };
        // The first layer reads the embeddings' norm as it is.
        let mut norms = Vec::from([a_norm("ffn_norm")]);
        if index > 0 {
            norms.push(a_norm("attn_norm"));
        }
        recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), norms)
    });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    spec.causal = false;
    spec.head.norm = Some(a_norm("output_norm"));
    spec.embedding.extra.push(weight("token_embd_norm.weight", Shape::vector(d), Component::Embeddings));
    if norm_bias {
        spec.embedding.extra.push(weight("token_embd_norm.bias", Shape::vector(d), Component::Embeddings));
    }
    (dims, spec)
}

fn part(name: &str, shape: Shape, counts: Counts) -> Weight {
    Weight { counts, ..weight(name, shape, Component::Other) }
}
/// The matrix and norm in front of every prediction.
fn prediction_head(r: &Reader<'_>, d: u64, counts: Counts) -> Vec<Weight> {
    let mut parts = Vec::from([part("cls.weight", Shape::matrix(d, d), counts)]);
    if r.flag(&["classifier_bias"], false) {
        parts.push(part("cls.bias", Shape::vector(d), counts));
    }
    parts.push(part("cls.norm.weight", Shape::vector(d), counts));
    if r.flag(&["norm_bias"], false) {
        parts.push(part("cls.norm.bias", Shape::vector(d), counts));
    }
    parts
}

fn modernbert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let (dims, mut spec) = modern(r);
    let d = dims.d_model;
    spec.head.lm_head = LmHead::None;
    let kind = head_of(&r.class);
    let rows = match kind {
        "ForMaskedLM" => dims.n_vocab,
        "ForSequenceClassification" | "ForTokenClassification" => recipe::n_labels(r),
        "ForQuestionAnswering" => 2,
        "ForMultipleChoice" => 1,
        _ => 0,
    };
    spec.head.extra.clear();
    if rows > 0 {
        let counts = if kind == "ForSequenceClassification" { Counts::Parameter } else { Counts::Unconverted };
        spec.head.extra = prediction_head(r, d, counts);
        if kind == "ForMaskedLM" {
            spec.head.lm_head = LmHead::Tied;
            if !recipe::tied(r, true) {
                spec.head.extra.push(part("mlm.decoder.weight", Shape::matrix(d, spec.embedding.n_vocab), Counts::Unconverted));
            }
        } else {
            spec.head.extra.push(part("cls.output.weight", Shape::matrix(d, rows), counts));
        }
        if kind != "ForMaskedLM" || r.flag(&["decoder_bias"], true) {
            spec.head.extra.push(part("cls.output.bias", Shape::vector(rows), counts));
        }
    }
    Ok(spec)
}

/// The same layers with a causal mask, a cache, and three matrices for queries, keys and values.
fn modernbert_decoder(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let (dims, mut spec) = modern(r);
    spec.causal = true;
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.layout = QkvLayout::Split;
            attention.bidirectional = false;
            attention.kv_source = KvSource::Own;
            if let Window::Symmetric { tokens } = attention.window {
                attention.window = Window::Sliding { tokens };
            }
        }
    }
    spec.head.lm_head = if recipe::tied(r, true) { LmHead::Tied } else { LmHead::Own { bias: false } };
    spec.head.extra = prediction_head(r, dims.d_model, Counts::Parameter);
    if r.flag(&["decoder_bias"], true) {
        spec.head.extra.push(weight("output.bias", Shape::vector(dims.n_vocab), Component::LmHead));
    }
    Ok(spec)
}

/// Llama's layers looking both ways.
fn eurobert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let d = dims.d_model;
    let mut attention = both_ways(dims.attention());
    if r.flag(&["attention_bias"], false) {
        attention.bias = AttentionBias::ALL;
    }
    let ff_bias = r.flag(&["mlp_bias"], false);
    let dense = Dense { up_bias: ff_bias, down_bias: ff_bias, ..Dense::gated(dims.d_ff) };
    let layer: Layer = recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), recipe::pre_norms(d, false));
    let mut spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    spec.causal = false;
    spec.head.lm_head = LmHead::None;
    spec.head.extra.clear();
    match head_of(&r.class) {
        "ForMaskedLM" => {
            spec.head.lm_head = if recipe::tied(r, false) { LmHead::Tied } else { LmHead::Own { bias: ff_bias } };
        }
        "ForSequenceClassification" => {
            let out = recipe::n_labels(r);
            spec.head.extra.extend([
                part("cls.weight", Shape::matrix(d, d), Counts::Parameter),
                part("cls.bias", Shape::vector(d), Counts::Parameter),
                part("cls.output.weight", Shape::matrix(d, out), Counts::Parameter),
                part("cls.output.bias", Shape::vector(out), Counts::Parameter),
            ]);
        }
        "ForTokenClassification" => {
            let out = recipe::n_labels(r);
            spec.head.extra.extend([
                part("cls.output.weight", Shape::matrix(d, out), Counts::Unconverted),
                part("cls.output.bias", Shape::vector(out), Counts::Unconverted),
            ]);
        }
        _ => {}
    }
    Ok(spec)
}

/// Queries, keys and values in one matrix, gate and up in one, two thirds as wide as the config says, in eights.
fn neobert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut dims = Dims::read(r);
    dims.max_context = r.opt(&["max_length", "max_position_embeddings"]).unwrap_or(0);
    let d = dims.d_model;
    let mut attention = both_ways(dims.attention());
    attention.layout = QkvLayout::Fused;
    let width = (dims.d_ff.saturating_mul(2) / 3).next_multiple_of(8);
    let dense = Dense { fused_gate_up: true, ..Dense::gated(width) };
    let layer = recipe::layer(Mixer::Attention(attention), FeedForward::Dense(dense), recipe::pre_norms(d, false));
    let mut spec = recipe::decoder(r, &dims, dims.layers().map(|_| layer.clone()).collect());
    spec.causal = false;
    spec.head.lm_head = LmHead::None;
    spec.head.norm = Some(norm("enc.output_norm", d));
    if r.class == "NeoBERTLMHead" {
        spec.head.lm_head = LmHead::Own { bias: true };
    }
    Ok(spec)
}
