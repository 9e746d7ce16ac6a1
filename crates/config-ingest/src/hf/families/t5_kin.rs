//! Encoder-decoders around T5 and Gemma: T5Gemma, Switch Transformers.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{Attention, Dense, Encoder, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, Moe};
use plimsoll_math::tensor::{Component, Shape};

use super::Family;
use super::bert::both_ways;
use super::seq2seq::Stack;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Alternation, Dims, norm, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["t5gemma"],
        architectures: &["T5GemmaForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"encoder": {}, "decoder": {}, "vocab_size": 256000, "tie_word_embeddings": true}"#,
        build: t5gemma,
    },
    Family::new(
        &["switch_transformers"],
        &["SwitchTransformersForConditionalGeneration"],
        None,
        r#"{"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "expert_capacity": 64, "num_layers": 12,
            "num_sparse_encoder_layers": 3, "num_decoder_layers": 12, "num_sparse_decoder_layers": 3, "num_heads": 12,
            "num_experts": 8, "relative_attention_num_buckets": 32, "n_positions": 512, "tie_word_embeddings": true}"#,
        switch,
    ),
];

/// Gemma 2's sizes, which either side of T5Gemma takes for keys that it leaves out.
const SIDE: &str = r#"{"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "sliding_window": 4096, "vocab_size": 256000}"#;

/// Two stacks of Gemma 2's layers; those of the decoder attend to the encoder's output between two norms more.
fn t5gemma(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let defaults: serde_json::Map<_, _> = serde_json::from_str(SIDE).unwrap_or_default();
    let side = |name: &str| -> Result<_, IngestError> {
        let config = r.config.child(&[name])?.ok_or_else(|| r.config.missing(&[name], "an object"))?;
        let r = Reader { config: config.with_defaults(&defaults), ..r.clone() };
        let dims = Dims::read(&r);
        let windows = recipe::windows(&r, dims.n_layers, r.opt(&["sliding_window"]), Alternation::FullLast { period: 2 });
        let bias = recipe::bias_on_all(&r, false);
        let layers: Vec<Layer> = windows
            .into_iter()
            .map(|window| {
                let mut attention = dims.attention();
                attention.bias = bias;
                attention.window = window;
                let norms = recipe::sandwich_norms(dims.d_model);
                recipe::layer(Mixer::Attention(attention), FeedForward::Dense(Dense::gated(dims.d_ff)), norms)
            })
            .collect();
        Ok((dims, layers))
    };
    let (read, mut first) = side("encoder")?;
    for layer in &mut first {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            *attention = both_ways(attention.clone());
        }
    }
    let (mut write, mut second) = side("decoder")?;
    for layer in &mut second {
        if let Mixer::Attention(attention) = &layer.mixer {
            layer.cross_attention =
                Some(Attention { kv_source: KvSource::NotCached, d_kv_input: Some(read.d_model), ..attention.clone() });
        }
        layer.norms.extend(["cross_attn_norm", "post_cross_attn_norm"].map(|name| norm(name, write.d_model)));
    }
    write.n_vocab = r.opt_below(&["vocab_size"], r.limits().vocab).unwrap_or(write.n_vocab);
    let mut spec = recipe::decoder(r, &write, second);
    let extra = Vec::from([weight("enc.token_embd.weight", Shape::matrix(read.d_model, read.n_vocab), Component::Embeddings)]);
    spec.encoder = Some(Encoder { d_model: read.d_model, layers: first, norm: Some(norm("output_norm", read.d_model)), extra });
    Ok(spec)
}

/// T5 with experts on every few layers, one for each token.
fn switch(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let d = r.need(&["d_model"]);
    let heads = r.need_below(&["num_heads"], limits.heads);
    let d_ff = r.need(&["d_ff"]);
    let experts = Moe {
        gated: false,
        router_bias: r.flag(&["router_bias"], false),
        ..recipe::experts(r.need_below(&["num_experts"], limits.experts), 1, d_ff)
    };
    let buckets = r.need(&["relative_attention_num_buckets"]);
    let stack = |n_layers| Stack {
        n_layers,
        attention: Attention::new(heads, heads, r.need(&["d_kv"])),
        feed_forward: Dense::plain(d_ff, false),
        norm_bias: false,
    };
    let finish = |layers: &mut Vec<Layer>, side: &str| {
        let n = u64::try_from(layers.len()).unwrap_or(0);
        // One sparse layer to each step, said or made from their number (SwitchTransformersConfig.__post_init__).
        let sparse = r.opt(&[format!("num_sparse_{side}_layers").as_str()]).unwrap_or(0);
        let said = r.opt(&[format!("{side}_sparse_step").as_str()]);
        let step = said.unwrap_or_else(|| n.checked_div(sparse).unwrap_or(n));
        for (index, layer) in (0_u64..).zip(layers.iter_mut()) {
            if step > 0 && (index % step == 1 || step == 1) {
                layer.feed_forward = FeedForward::Moe(experts.clone());
            }
            if let (0, Mixer::Attention(attention)) = (index, &mut layer.mixer) {
                attention.relative_buckets = buckets;
            }
        }
    };
    let n_layers = r.need_below(&["num_layers"], limits.layers);
    let mut first = stack(n_layers).encoder(d);
    finish(&mut first, "encoder");
    let n_decoder = r.opt_below(&["num_decoder_layers"], limits.layers).unwrap_or(n_layers);
    let mut second = stack(n_decoder).decoder(d);
    finish(&mut second, "decoder");
    let dims = Dims {
        d_model: d,
        n_layers: n_decoder,
        n_vocab: r.need_below(&["vocab_size"], limits.vocab),
        n_heads: heads,
        n_kv_heads: heads,
        head_dim: 0,
        d_ff,
        max_context: r.opt(&["n_positions"]).unwrap_or(512),
    };
    let mut spec = recipe::decoder(r, &dims, second);
    if r.flag(&["tie_word_embeddings"], true) {
        spec.head.lm_head = LmHead::Tied;
    }
    spec.encoder = Some(Encoder { d_model: d, layers: first, norm: Some(norm("output_norm", d)), extra: Vec::new() });
    Ok(spec)
}
