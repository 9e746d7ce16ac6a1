//! Encoder-decoders: T5, BART and their kin, and the speech models that decode text.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, Embedding, Encoder, FeedForward, Head, KvSource, Layer, LmHead, Mixer, ModelSpec, Norm,
    Weight,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::bert::both_ways;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, weight};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["t5"], &["T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model", "T5EncoderModel"], Some("t5"), T5, t5),
    Family::new(&["mt5"], &["MT5ForConditionalGeneration", "MT5Model", "MT5EncoderModel"], Some("t5"), MT5, t5),
    Family::new(&["umt5"], &["UMT5ForConditionalGeneration", "UMT5Model", "UMT5EncoderModel"], Some("t5"), MT5, t5),
    Family::new(&["longt5"], &["LongT5ForConditionalGeneration", "LongT5Model", "LongT5EncoderModel"], None, T5, t5),
    Family::new(&["bart"], &["BartForConditionalGeneration", "BartForCausalLM", "BartModel"], None, BART, bart),
    Family::new(&["plbart"], &["PLBartForConditionalGeneration", "PLBartForCausalLM", "PLBartModel"], None, BART, bart),
    Family::new(&["mbart"], &["MBartForConditionalGeneration", "MBartForCausalLM", "MBartModel"], None, BART, mbart),
    Family::new(&["m2m_100"], &["M2M100ForConditionalGeneration", "M2M100Model"], None, M2M, m2m),
    Family::new(&["pegasus"], &["PegasusForConditionalGeneration", "PegasusForCausalLM", "PegasusModel"], None, BART, pegasus),
    Family::new(
        &["blenderbot"],
        &["BlenderbotForConditionalGeneration", "BlenderbotForCausalLM", "BlenderbotModel"],
        None,
        BLENDERBOT,
        pegasus,
    ),
    Family::new(
        &["blenderbot-small"],
        &["BlenderbotSmallForConditionalGeneration", "BlenderbotSmallForCausalLM", "BlenderbotSmallModel"],
        None,
        r#"{"vocab_size": 50265, "d_model": 512, "encoder_layers": 8, "decoder_layers": 8, "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
            "max_position_embeddings": 512}"#,
        blenderbot_small,
    ),
    Family::new(&["marian"], &["MarianMTModel", "MarianModel", "MarianForCausalLM"], None, MARIAN, marian),
    Family::new(
        &["whisper"],
        &["WhisperForConditionalGeneration", "WhisperModel", "WhisperForCausalLM", "WhisperForAudioClassification"],
        None,
        r#"{"vocab_size": 51865, "num_mel_bins": 80, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
            "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
            "max_source_positions": 1500, "max_target_positions": 448}"#,
        whisper,
    ),
    Family::new(
        &["moonshine"],
        &["MoonshineForConditionalGeneration", "MoonshineModel"],
        None,
        r#"{"vocab_size": 32768, "hidden_size": 288, "intermediate_size": 1152, "encoder_num_hidden_layers": 6,
            "decoder_num_hidden_layers": 6, "encoder_num_attention_heads": 8, "decoder_num_attention_heads": 8,
            "max_position_embeddings": 512}"#,
        moonshine,
    ),
];

const T5: &str = r#"{"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    "relative_attention_num_buckets": 32, "feed_forward_proj": "relu", "n_positions": 512}"#;
const MT5: &str = r#"{"vocab_size": 250112, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
    "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu", "n_positions": 512}"#;
const BART: &str = r#"{"vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
    "max_position_embeddings": 1024}"#;
const M2M: &str = r#"{"vocab_size": 128112, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
    "max_position_embeddings": 1024}"#;
const MARIAN: &str = r#"{"vocab_size": 58101, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
    "max_position_embeddings": 1024}"#;
const BLENDERBOT: &str = r#"{"vocab_size": 8008, "d_model": 2560, "encoder_layers": 2, "decoder_layers": 24,
    "encoder_ffn_dim": 10240, "decoder_ffn_dim": 10240, "encoder_attention_heads": 32, "decoder_attention_heads": 32,
    "max_position_embeddings": 128}"#;

/// One side of an encoder-decoder.
pub(super) struct Stack {
    pub(super) n_layers: u64,
    pub(super) attention: Attention,
    pub(super) feed_forward: Dense,
    pub(super) norm_bias: bool,
}

impl Stack {
    /// An encoder's layers: they see the whole text.
    pub(super) fn encoder(&self, d_model: u64) -> Vec<Layer> {
        let norms = ["attn_norm", "ffn_norm"].map(|name| self.norm(name, d_model)).to_vec();
        let mixer = Mixer::Attention(both_ways(self.attention.clone()));
        let layer = recipe::layer(mixer, FeedForward::Dense(self.feed_forward.clone()), norms);
        (0..self.n_layers).map(|_| layer.clone()).collect()
    }
    /// A decoder's layers: they also attend to the encoder's output, whose keys and values no token adds to.
    pub(super) fn decoder(&self, d_model: u64) -> Vec<Layer> {
        let norms = ["attn_norm", "cross_attn_norm", "ffn_norm"].map(|name| self.norm(name, d_model)).to_vec();
        let feed_forward = FeedForward::Dense(self.feed_forward.clone());
        let mut layer = recipe::layer(Mixer::Attention(self.attention.clone()), feed_forward, norms);
        layer.cross_attention = Some(Attention { kv_source: KvSource::NotCached, ..self.attention.clone() });
        (0..self.n_layers).map(|_| layer.clone()).collect()
    }
    fn norm(&self, name: &str, width: u64) -> Norm {
        Norm { name: name.to_owned(), width, bias: self.norm_bias }
    }
}

/// Endings of the classes whose parts these recipes know; any other class may hold half of the model, or more.
const KNOWN: &[&str] = &[
    "ForConditionalGeneration",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "LMHeadModel",
    "MTModel",
    "Model",
];

fn model(r: &Reader<'_>, d_model: u64, max_context: u64, encoder: Encoder, layers: Vec<Layer>) -> ModelSpec {
    if !r.class.is_empty()
        && !KNOWN.iter().any(|end| r.class.ends_with(end))
        && !r.family.architectures.contains(&r.class.as_str())
    {
        r.error(IngestError::Field {
            place: "$.architectures[0]".to_owned(),
            found: r.class.clone(),
            expected: format!(
                "a class of {} whose parts are known, such as {}",
                r.family.name(),
                r.family.architectures.join(", ")
            ),
        });
    }
    ModelSpec {
        name: r.name(),
        architecture: if r.class.is_empty() { r.family.name().to_owned() } else { r.class.clone() },
        llama_cpp_arch: r.family.llama_cpp.map(ToString::to_string),
        d_model,
        max_context,
        weight_dtype: recipe::weight_dtype(r),
        embedding: Embedding { n_vocab: r.need_below(&["vocab_size"], r.limits().vocab), ..Embedding::default() },
        layers,
        head: Head { lm_head: LmHead::Tied, ..Head::default() },
        encoder: Some(encoder),
        towers: Vec::new(),
        mtp: Vec::new(),
        mtp_is_left_out: false,
        causal: true,
        operations: plimsoll_math::spec::Operations::default(),
    }
}

fn classifier(name: &str, n_in: u64, n_out: u64) -> [Weight; 2] {
    [("weight", Shape::matrix(n_in, n_out)), ("bias", Shape::vector(n_out))].map(|(part, shape)| Weight {
        name: format!("{name}.{part}"),
        shape,
        component: Component::Other,
        counts: Counts::Unconverted,
    })
}

/// Leaves the decoder alone, as the classes for causal language models of these families do. It keeps its attention to
/// an encoder's output, for which it has weights all the same.
fn decoder_only(spec: &mut ModelSpec) {
    spec.encoder = None;
    // Where nothing is tied, the decoder's copy of the embedding is the only one.
    spec.embedding.extra.retain(|weight| !weight.name.starts_with("enc.") && weight.name != "dec.token_embd.weight");
    spec.head.extra.clear();
}

/// Leaves the encoder alone.
fn encoder_only(spec: &mut ModelSpec) {
    spec.layers.clear();
    spec.embedding.extra.retain(|weight| weight.name.starts_with("enc."));
    spec.embedding.n_vocab = 0;
    spec.head = Head { lm_head: LmHead::None, ..Head::default() };
    spec.causal = false;
}

/// Families whose configuration class sets three labels.
const THREE_CLASSES: &[&str] = &["bart"];

/// The heads that sequence models of these families have beside generation.
fn classes(r: &Reader<'_>, spec: &mut ModelSpec) {
    let d = spec.d_model;
    // BartConfig and its kin count three classes where the config says nothing.
    let silent = !r.root.has(&["id2label", "num_labels"]);
    let rows = if silent && THREE_CLASSES.contains(&r.family.name()) { 3 } else { recipe::n_labels(r) };
    if r.class.ends_with("ForSequenceClassification") {
        spec.head.extra.extend(classifier("cls.dense", d, d));
        spec.head.extra.extend(classifier("cls.output", d, rows));
    } else if r.class.ends_with("ForQuestionAnswering") {
        spec.head.extra.extend(classifier("qa_outputs", d, 2));
    } else if r.class.ends_with("ForTokenClassification") {
        spec.head.extra.extend(classifier("cls.output", d, rows));
    }
}

fn t5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let d = r.need(&["d_model"]);
    let heads = r.need_below(&["num_heads"], limits.heads);
    let gated = r.text(&["feed_forward_proj"]).is_some_and(|kind| kind.starts_with("gated"));
    let d_ff = r.need(&["d_ff"]);
    let n_layers = r.need_below(&["num_layers"], limits.layers);
    let mut stack = Stack {
        n_layers,
        attention: Attention::new(heads, heads, r.need(&["d_kv"])),
        feed_forward: if gated { Dense::gated(d_ff) } else { Dense::plain(d_ff, false) },
        norm_bias: false,
    };
    let mut encoder =
        Encoder { d_model: d, layers: stack.encoder(d), norm: Some(recipe::norm("output_norm", d)), extra: Vec::new() };
    stack.n_layers = r.opt_below(&["num_decoder_layers"], limits.layers).unwrap_or(n_layers);
    let mut layers = stack.decoder(d);
    // The first layer's relative positions serve all layers, except in UMT5, whose layers have their own.
    let buckets = r.need(&["relative_attention_num_buckets"]);
    let own = if r.family.name() == "umt5" { usize::MAX } else { 1 };
    for layer in encoder.layers.iter_mut().take(own).chain(layers.iter_mut().take(own)) {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.relative_buckets = buckets;
        }
    }
    let mut spec = model(r, d, r.opt(&["n_positions"]).unwrap_or(512), encoder, layers);
    spec.head.norm = Some(recipe::norm("output_norm", d));
    if r.class.ends_with("EncoderModel") || r.class.ends_with("ForTokenClassification") {
        spec.layers.clear();
        spec.head = Head { lm_head: LmHead::None, ..Head::default() };
        spec.causal = false;
        spec.llama_cpp_arch = spec.llama_cpp_arch.map(|_| "t5encoder".to_owned());
    } else if !r.flag(&["tie_word_embeddings"], true) {
        // Files from T5 1.1 on hold an output matrix of their own, and engines that read them use it. transformers 5
        // ties it all the same (T5Config.__post_init__), so that it is no parameter of that class.
        spec.head.extra.push(Weight {
            name: "output.weight".to_owned(),
            shape: Shape::matrix(d, spec.embedding.n_vocab),
            component: Component::LmHead,
            counts: Counts::Unused,
        });
    }
    classes(r, &mut spec);
    Ok(spec)
}

/// How a family varies BART.
struct Style {
    /// Position rows beyond the context on each side; `None` when positions are computed.
    positions: Option<u64>,
    /// A norm on the embeddings of each side.
    embedding_norm: bool,
    /// A norm after the last layer of each side.
    last_norm: bool,
    /// A bias of the logits, kept as a buffer.
    logits_bias: bool,
}

fn stack(r: &Reader<'_>, d: u64, side: &str) -> Stack {
    let limits = r.limits();
    let key = |what: &str| format!("{side}_{what}");
    let heads = r.need_below(&[key("attention_heads").as_str()], limits.heads);
    let head_dim = if heads == 0 { 0 } else { r.divide(&key("attention_heads"), d, heads) };
    let mut attention = Attention::new(heads, heads, head_dim);
    attention.bias = AttentionBias::ALL;
    Stack {
        n_layers: r.need_below(&[key("layers").as_str()], limits.layers),
        attention,
        feed_forward: Dense::plain(r.need(&[key("ffn_dim").as_str()]), true),
        norm_bias: true,
    }
}

fn bart_like(r: &Reader<'_>, style: &Style) -> ModelSpec {
    let d = r.need(&["d_model"]);
    let context = r.need(&["max_position_embeddings"]);
    let mut encoder = Encoder { d_model: d, layers: stack(r, d, "encoder").encoder(d), norm: None, extra: Vec::new() };
    if style.last_norm {
        encoder.norm = Some(recipe::layer_norm("output_norm", d));
    }
    let mut spec = model(r, d, context, encoder, stack(r, d, "decoder").decoder(d));
    let n_vocab = spec.embedding.n_vocab;
    if style.last_norm {
        spec.head.norm = Some(recipe::layer_norm("output_norm", d));
    }
    let embeddings = Component::Embeddings;
    let mut of_side = |side: &str, name: &str, shape: Shape, component: Component| {
        spec.embedding.extra.push(weight(&format!("{side}.{name}"), shape, component));
    };
    for side in ["enc", "dec"] {
        if let Some(more) = style.positions {
            of_side(side, "position_embd.weight", Shape::matrix(d, context.saturating_add(more)), embeddings);
        }
        if style.embedding_norm {
            of_side(side, "token_embd_norm.weight", Shape::vector(d), embeddings);
            of_side(side, "token_embd_norm.bias", Shape::vector(d), Component::Norms);
        }
        if !recipe::tied(r, true) && r.family.name() != "marian" {
            of_side(side, "token_embd.weight", Shape::matrix(d, n_vocab), embeddings);
        }
    }
    if !recipe::tied(r, true) {
        spec.head.lm_head = LmHead::Own { bias: false };
    }
    let generates = !["Model", "ForSequenceClassification", "ForQuestionAnswering"].iter().any(|end| r.class.ends_with(end))
        || r.class == "MarianMTModel";
    if !generates {
        spec.head.lm_head = LmHead::None;
    }
    if style.logits_bias && generates {
        spec.head.extra.push(Weight {
            name: "output.bias".to_owned(),
            shape: Shape::vector(n_vocab),
            component: Component::LmHead,
            counts: Counts::Buffer,
        });
    }
    classes(r, &mut spec);
    if r.class.ends_with("ForCausalLM") {
        decoder_only(&mut spec);
    }
    spec
}

fn bart(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(bart_like(r, &Style { positions: Some(2), embedding_norm: true, last_norm: false, logits_bias: true }))
}
fn mbart(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(bart_like(r, &Style { positions: Some(2), embedding_norm: true, last_norm: true, logits_bias: true }))
}
fn m2m(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(bart_like(r, &Style { positions: None, embedding_norm: false, last_norm: true, logits_bias: false }))
}
fn pegasus(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(bart_like(r, &Style { positions: Some(0), embedding_norm: false, last_norm: true, logits_bias: true }))
}
fn blenderbot_small(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(bart_like(r, &Style { positions: Some(0), embedding_norm: true, last_norm: false, logits_bias: true }))
}

/// BART without norms around; both sides may have vocabularies of their own.
fn marian(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let style = Style { positions: Some(0), embedding_norm: false, last_norm: false, logits_bias: true };
    let mut spec = bart_like(r, &style);
    if !r.flag(&["share_encoder_decoder_embeddings"], true) {
        let source = spec.embedding.n_vocab;
        let target = r.opt_below(&["decoder_vocab_size"], r.limits().vocab).unwrap_or(source);
        spec.embedding.n_vocab = target;
        let shape = Shape::matrix(spec.d_model, source);
        if spec.encoder.is_none() {
            return Ok(spec);
        }
        spec.embedding.extra.push(weight("enc.token_embd.weight", shape, Component::Embeddings));
        for weight in &mut spec.head.extra {
            if weight.name == "output.bias" {
                weight.shape = Shape::vector(target);
            }
        }
    }
    Ok(spec)
}

fn whisper(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let d = r.need(&["d_model"]);
    let mut sides = ["encoder", "decoder"].map(|side| stack(r, d, side));
    for stack in &mut sides {
        stack.attention.bias.k = false;
    }
    let [encoder, decoder] = sides;
    let last = Some(recipe::layer_norm("output_norm", d));
    let encoder = Encoder { d_model: d, layers: encoder.encoder(d), norm: last.clone(), extra: Vec::new() };
    let targets = r.need(&["max_target_positions"]);
    let mut spec = model(r, d, targets, encoder, decoder.decoder(d));
    spec.head.norm = last;
    if !recipe::tied(r, true) {
        spec.head.lm_head = LmHead::Own { bias: false };
    }
    let mel = r.need(&["num_mel_bins"]);
    let conv = Component::SsmLinear;
    spec.embedding.extra.extend([
        weight("enc.conv1.weight", Shape::stack(3, mel, d), conv),
        weight("enc.conv1.bias", Shape::vector(d), conv),
        weight("enc.conv2.weight", Shape::stack(3, d, d), conv),
        weight("enc.conv2.bias", Shape::vector(d), conv),
        weight("enc.position_embd.weight", Shape::matrix(d, r.need(&["max_source_positions"])), Component::Embeddings),
        weight("dec.position_embd.weight", Shape::matrix(d, targets), Component::Embeddings),
    ]);
    if r.class.ends_with("ForCausalLM") {
        decoder_only(&mut spec);
    } else if r.class.ends_with("ForAudioClassification") {
        let n_layers = spec.encoder.as_ref().map_or(0, |encoder| encoder.layers.len());
        encoder_only(&mut spec);
        let hidden = r.opt_below(&["classifier_proj_size"], r.limits().width).unwrap_or(256);
        spec.head.extra.extend(classifier("projector", d, hidden));
        spec.head.extra.extend(classifier("classifier", hidden, recipe::n_labels(r)));
        if r.flag(&["use_weighted_layer_sum"], false) {
            let states = Shape::vector(u64::try_from(n_layers).unwrap_or(0).saturating_add(1));
            spec.head.extra.push(Weight { counts: Counts::Unconverted, ..weight("layer_weights", states, Component::Other) });
        }
    }
    Ok(spec)
}

fn moonshine(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let limits = r.limits();
    let d = r.need(&["hidden_size"]);
    let d_ff = r.need(&["intermediate_size"]);
    let bias = r.flag(&["attention_bias"], false);
    let side = |name: &str, gated: bool| {
        let key = |what: &str| format!("{name}_num_{what}");
        let heads = r.need_below(&[key("attention_heads").as_str()], limits.heads);
        let kv_heads = r.opt_below(&[key("key_value_heads").as_str()], limits.heads).unwrap_or(heads);
        let head_dim = if heads == 0 { 0 } else { r.divide(&key("attention_heads"), d, heads) };
        let mut attention = Attention::new(heads, kv_heads, head_dim);
        attention.bias = AttentionBias { o: false, ..if bias { AttentionBias::QKV } else { AttentionBias::NONE } };
        Stack {
            n_layers: r.need_below(&[key("hidden_layers").as_str()], limits.layers),
            attention,
            feed_forward: Dense { gated, fused_gate_up: gated, ..Dense::plain(d_ff, true) },
            norm_bias: false,
        }
    };
    let last = Some(recipe::norm("output_norm", d));
    let gated = r.text(&["decoder_hidden_act"]).is_none_or(|act| act == "silu");
    let encoder = Encoder { d_model: d, layers: side("encoder", false).encoder(d), norm: last.clone(), extra: Vec::new() };
    let mut spec = model(r, d, r.need(&["max_position_embeddings"]), encoder, side("decoder", gated).decoder(d));
    spec.head.norm = last;
    if !recipe::tied(r, true) {
        spec.head.lm_head = LmHead::Own { bias: false };
    }
    let conv = Component::SsmLinear;
    let twice = d.saturating_mul(2);
    spec.embedding.extra.extend([
        weight("enc.conv1.weight", Shape::stack(127, 1, d), conv),
        weight("enc.conv2.weight", Shape::stack(7, d, twice), conv),
        weight("enc.conv2.bias", Shape::vector(twice), conv),
        weight("enc.conv3.weight", Shape::stack(3, twice, d), conv),
        weight("enc.conv3.bias", Shape::vector(d), conv),
        weight("enc.groupnorm.weight", Shape::vector(d), Component::Norms),
        weight("enc.groupnorm.bias", Shape::vector(d), Component::Norms),
    ]);
    Ok(spec)
}
