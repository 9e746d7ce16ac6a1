//! Encoders with norms after both halves: BERT and the models that kept its shape.
//!
//! All of them are embeddings, layers, and a head that the class name tells. Converters to GGUF keep the layers (and
//! for rerankers the classifier) and drop poolers and masked-language heads.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, Embedding, FeedForward, Head, KvSource, Layer, LmHead, Mixer, ModelSpec, Moe, QkvLayout,
    Weight,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims, layer_norm, weight};

const BERT: &str = r#"{"vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2}"#;
const ROBERTA: &str = r#"{"vocab_size": 50265, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 1}"#;

/// The classes of a family by their prefix.
macro_rules! classes {
    ($prefix:literal) => {
        &[
            concat!($prefix, "Model"),
            concat!($prefix, "ForMaskedLM"),
            concat!($prefix, "ForCausalLM"),
            concat!($prefix, "LMHeadModel"),
            concat!($prefix, "ForPreTraining"),
            concat!($prefix, "ForSequenceClassification"),
            concat!($prefix, "ForTokenClassification"),
            concat!($prefix, "ForQuestionAnswering"),
            concat!($prefix, "ForMultipleChoice"),
        ]
    };
}
pub(super) use classes;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(&["bert"], classes!("Bert"), Some("bert"), BERT, bert),
    Family::new(&["camembert"], classes!("Camembert"), Some("bert"), ROBERTA, camembert),
    Family::new(&["roberta"], classes!("Roberta"), Some("bert"), ROBERTA, roberta),
    Family::new(&["xlm-roberta"], classes!("XLMRoberta"), Some("bert"), ROBERTA, roberta),
    Family::new(
        &["xlm-roberta-xl"],
        classes!("XLMRobertaXL"),
        None,
        r#"{"vocab_size": 250880, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 36,
            "num_attention_heads": 32, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}"#,
        roberta_xl,
    ),
    Family::new(&["ernie"], classes!("Ernie"), None, BERT, bert),
    Family::new(
        &["distilbert"],
        classes!("DistilBert"),
        Some("bert"),
        r#"{"vocab_size": 30522, "dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12,
            "max_position_embeddings": 512}"#,
        distilbert,
    ),
    Family::new(
        &["electra"],
        classes!("Electra"),
        None,
        r#"{"vocab_size": 30522, "embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024,
            "num_hidden_layers": 12, "num_attention_heads": 4, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
        electra,
    ),
    Family::new(
        &["albert"],
        classes!("Albert"),
        None,
        r#"{"vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "intermediate_size": 16384,
            "num_hidden_layers": 12, "num_attention_heads": 64, "max_position_embeddings": 512, "type_vocab_size": 2,
            "num_hidden_groups": 1, "inner_group_num": 1}"#,
        albert,
    ),
    Family::new(
        &["mpnet"],
        classes!("MPNet"),
        None,
        r#"{"vocab_size": 30527, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 512, "relative_attention_num_buckets": 32}"#,
        mpnet,
    ),
    Family::new(
        &["deberta"],
        classes!("Deberta"),
        None,
        r#"{"vocab_size": 50265, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 0}"#,
        deberta,
    ),
    Family::new(
        &["deberta-v2"],
        classes!("DebertaV2"),
        None,
        r#"{"vocab_size": 128100, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 24,
            "num_attention_heads": 24, "max_position_embeddings": 512, "type_vocab_size": 0}"#,
        deberta_v2,
    ),
    Family::new(
        &["nomic_bert"],
        classes!("NomicBert"),
        Some("nomic-bert"),
        r#"{"vocab_size": 30528, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 2048, "type_vocab_size": 2}"#,
        nomic,
    ),
    Family::new(
        &["jina_embeddings_v3"],
        classes!("JinaEmbeddingsV3"),
        Some("jina-bert-v3"),
        r#"{"vocab_size": 250002, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 8194, "type_vocab_size": 1, "pad_token_id": 1}"#,
        jina3,
    ),
    Family::new(&["new"], classes!("New"), None, BERT, gte),
    Family::new(
        &["gte"],
        classes!("Gte"),
        None,
        r#"{"vocab_size": 250048, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 8192, "type_vocab_size": 1}"#,
        gte,
    ),
];

/// How a family varies BERT.
pub(super) struct Style {
    /// Whether positions are embedded.
    pub(super) positions: bool,
    /// Position rows in front of the first token's, which the converter cuts off.
    pub(super) offset: u64,
    /// Whether the bare model ends in a pooler.
    pub(super) pooler: bool,
    /// Whether classifiers have a matrix of their own where others use the pooler.
    pub(super) own_classifier: bool,
    /// Whether the norm after attention sits inside the attention module, and counts to it.
    pub(super) norm_in_attention: bool,
    /// Width of embeddings where it is not the hidden state's.
    pub(super) d_embedding: Option<u64>,
}

impl Style {
    pub(super) const BERT: Self =
        Self { positions: true, offset: 0, pooler: true, own_classifier: false, norm_in_attention: true, d_embedding: None };
    pub(super) const ROBERTA: Self = Self { own_classifier: true, ..Self::BERT };
}

/// A matrix with a bias.
pub(super) fn linear(name: &str, n_in: u64, n_out: u64, component: Component, counts: Counts) -> [Weight; 2] {
    [("weight", Shape::matrix(n_in, n_out)), ("bias", Shape::vector(n_out))].map(|(part, shape)| Weight {
        name: format!("{name}.{part}"),
        shape,
        component,
        counts,
    })
}
/// A norm with a bias.
pub(super) fn norm_weights(name: &str, width: u64, component: Component, counts: Counts) -> [Weight; 2] {
    ["weight", "bias"].map(|part| Weight { name: format!("{name}.{part}"), shape: Shape::vector(width), component, counts })
}

/// Attention over the whole text, without a cache.
pub(super) fn both_ways(mut attention: Attention) -> Attention {
    attention.bidirectional = true;
    attention.kv_source = KvSource::NotCached;
    attention
}

pub(super) fn dims(r: &Reader<'_>) -> Dims {
    // DistilBERT's and the vendors' spellings.
    let limits = r.limits();
    let d_model = r.need(&["hidden_size", "dim", "n_embd"]);
    let n_heads = r.need_below(&["num_attention_heads", "n_heads", "n_head"], limits.heads);
    Dims {
        d_model,
        n_layers: r.need_below(&["num_hidden_layers", "n_layers", "n_layer"], limits.layers),
        n_vocab: r.need_below(&["vocab_size"], limits.vocab),
        n_heads,
        n_kv_heads: n_heads,
        head_dim: if n_heads == 0 { 0 } else { r.divide("num_attention_heads", d_model, n_heads) },
        d_ff: r.need(&["intermediate_size", "hidden_dim", "n_inner"]),
        max_context: r.opt(&["max_position_embeddings", "n_positions"]).unwrap_or(0),
    }
}

/// One layer: attention, norm, feed-forward, norm, with biases everywhere.
pub(super) fn layer(dims: &Dims, style: &Style) -> Layer {
    let mut attention = both_ways(dims.attention());
    attention.bias = AttentionBias::ALL;
    let mut norms = Vec::from([layer_norm("layer_output_norm", dims.d_model)]);
    if style.norm_in_attention {
        attention.extra.extend(norm_weights("attn_output_norm", dims.d_model, Component::Attention, Counts::Parameter));
    } else {
        norms.push(layer_norm("attn_output_norm", dims.d_model));
    }
    recipe::layer(Mixer::Attention(attention), FeedForward::Dense(Dense::plain(dims.d_ff, true)), norms)
}

/// Embeddings, layers and head.
pub(super) fn encoder(r: &Reader<'_>, dims: &Dims, style: &Style, mut layers: Vec<Layer>) -> ModelSpec {
    let d = dims.d_model;
    if r.flag(&["add_cross_attention"], false) && r.flag(&["is_decoder"], false) {
        // A decoder half: every layer also attends to an encoder's output.
        let mut cross = both_ways(dims.attention());
        cross.bias = AttentionBias::ALL;
        cross.extra.extend(norm_weights("cross_attn_norm", d, Component::Attention, Counts::Parameter));
        for layer in &mut layers {
            layer.cross_attention = Some(cross.clone());
        }
    }
    let d_embedding = style.d_embedding.unwrap_or(d);
    let embeddings = Component::Embeddings;
    let mut embedding = Embedding { n_vocab: dims.n_vocab, d_embedding: style.d_embedding, ..Embedding::default() };
    let rows = dims.max_context;
    if style.positions {
        let kept = rows.saturating_sub(style.offset);
        embedding.extra.push(weight("position_embd.weight", Shape::matrix(d_embedding, kept), embeddings));
        if rows > kept {
            embedding.extra.push(Weight {
                name: "position_embd.unused.weight".to_owned(),
                shape: Shape::matrix(d_embedding, rows.saturating_sub(kept)),
                component: embeddings,
                counts: Counts::Unconverted,
            });
        }
    }
    let types = r.opt_below(&["type_vocab_size"], r.limits().vocab).unwrap_or(0);
    if types > 0 {
        embedding.extra.push(weight("token_types.weight", Shape::matrix(d_embedding, types), embeddings));
    }
    embedding.extra.extend(norm_weights("token_embd_norm", d_embedding, embeddings, Counts::Parameter));
    ModelSpec {
        name: r.name(),
        architecture: if r.class.is_empty() { r.family.name().to_owned() } else { r.class.clone() },
        llama_cpp_arch: r.family.llama_cpp.map(ToString::to_string),
        d_model: d,
        max_context: rows.saturating_sub(style.offset),
        weight_dtype: recipe::weight_dtype(r),
        embedding,
        layers,
        head: head(r, dims, style),
        encoder: None,
        towers: Vec::new(),
        mtp: Vec::new(),
        mtp_is_left_out: false,
        causal: false,
        operations: plimsoll_math::spec::Operations::default(),
    }
}

/// What follows the last layer, by the class.
pub(super) fn head_of(class: &str) -> &str {
    let known = [
        "ForMaskedLM",
        "ForCausalLM",
        "LMHeadModel",
        "ForPreTraining",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "ForMultipleChoice",
        "ForNextSentencePrediction",
    ];
    known.into_iter().find(|suffix| class.ends_with(suffix)).unwrap_or("Model")
}

fn head(r: &Reader<'_>, dims: &Dims, style: &Style) -> Head {
    let d = dims.d_model;
    let d_embedding = style.d_embedding.unwrap_or(d);
    let (other, dropped, kept) = (Component::Other, Counts::Unconverted, Counts::Parameter);
    let pooler = |name: &str, counts| linear(name, d, d, other, counts);
    let masked = || {
        let mut parts = Vec::from(linear("mlm.dense", d, d_embedding, other, dropped));
        parts.extend(norm_weights("mlm.norm", d_embedding, other, dropped));
        let bias = Shape::vector(dims.n_vocab);
        parts.push(Weight { name: "mlm.output.bias".to_owned(), shape: bias, component: Component::LmHead, counts: dropped });
        parts
    };
    let mut head = Head { lm_head: LmHead::None, ..Head::default() };
    let classes = recipe::n_labels(r);
    let kind = head_of(&r.class);
    match kind {
        "ForMaskedLM" | "ForCausalLM" | "LMHeadModel" => {
            head.extra = masked();
            head.lm_head = LmHead::Tied;
            head.extra.extend(untied(r, d_embedding, dims.n_vocab));
        }
        "ForPreTraining" => {
            head.extra = masked();
            head.extra.extend(pooler("pooler", dropped));
            head.extra.extend(linear("seq_relationship", d, 2, other, dropped));
            head.extra.extend(untied(r, d_embedding, dims.n_vocab));
            head.lm_head = LmHead::Tied;
        }
        "ForNextSentencePrediction" => {
            head.extra.extend(pooler("pooler", dropped));
            head.extra.extend(linear("seq_relationship", d, 2, other, dropped));
        }
        "ForSequenceClassification" | "ForMultipleChoice" => {
            if style.own_classifier {
                head.extra.extend(pooler("cls", kept));
            } else {
                head.extra.extend(pooler("pooler", dropped));
            }
            let rows = if kind == "ForMultipleChoice" { 1 } else { classes };
            head.extra.extend(linear("cls.output", d, rows, other, kept));
        }
        "ForTokenClassification" => head.extra.extend(linear("cls.output", d, classes, other, dropped)),
        "ForQuestionAnswering" => head.extra.extend(linear("qa_outputs", d, 2, other, dropped)),
        _ if style.pooler => head.extra.extend(pooler("pooler", dropped)),
        _ => {}
    }
    head
}

/// The output matrix of a masked-language head that is not the embedding, with the second bias that the head then has.
fn untied(r: &Reader<'_>, d_embedding: u64, n_vocab: u64) -> Vec<Weight> {
    if recipe::tied(r, true) {
        return Vec::new();
    }
    let mut all = linear("mlm.decoder", d_embedding, n_vocab, Component::LmHead, Counts::Unconverted).to_vec();
    // Heads that are one matrix with its bias keep that bias.
    if matches!(r.family.name(), "distilbert" | "electra" | "gte" | "new") {
        all.truncate(1);
    }
    all
}

pub(super) fn repeated(dims: &Dims, layer: &Layer) -> Vec<Layer> {
    dims.layers().map(|_| layer.clone()).collect()
}

pub(super) fn plain(r: &Reader<'_>, style: &Style) -> ModelSpec {
    let dims = dims(r);
    encoder(r, &dims, style, repeated(&dims, &layer(&dims, style)))
}

fn bert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(plain(r, &Style::BERT))
}

/// RoBERTa's positions start after the padding token's number; the converter cuts the rows before off.
pub(super) fn roberta(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let offset = r.opt(&["pad_token_id"]).map_or(0, |token| token.saturating_add(1));
    Ok(plain(r, &Style { offset, ..Style::ROBERTA }))
}

/// RoBERTa, which the converter treats as BERT.
fn camembert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(plain(r, &Style::ROBERTA))
}

/// Norms before both halves and one at the end instead of one on the embeddings.
fn roberta_xl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let style = Style::ROBERTA;
    let dims = dims(r);
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer(&dims, &style)));
    spec.embedding.extra.retain(|weight| !weight.name.starts_with("token_embd_norm"));
    spec.head.norm = Some(layer_norm("output_norm", dims.d_model));
    Ok(spec)
}

fn distilbert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let style = Style { pooler: false, own_classifier: true, norm_in_attention: false, ..Style::BERT };
    Ok(plain(r, &style))
}

/// A projection from narrow embeddings; a discriminator, or a generator with a narrow head.
fn electra(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d_embedding = r.need(&["embedding_size"]);
    let narrow = d_embedding != dims.d_model;
    let style = Style { pooler: false, own_classifier: true, d_embedding: narrow.then_some(d_embedding), ..Style::BERT };
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer(&dims, &style)));
    if narrow {
        spec.embedding.extra.extend(linear("embd_proj", d_embedding, dims.d_model, Component::Embeddings, Counts::Parameter));
    }
    if head_of(&r.class) == "ForPreTraining" {
        let d = dims.d_model;
        spec.head.lm_head = LmHead::None;
        spec.head.extra = linear("discriminator.dense", d, d, Component::Other, Counts::Parameter).to_vec();
        spec.head.extra.extend(linear("discriminator.output", d, 1, Component::Other, Counts::Parameter));
    }
    Ok(spec)
}

/// Layers in groups that share their weights.
fn albert(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d_embedding = r.need(&["embedding_size"]);
    let style = Style { d_embedding: Some(d_embedding), ..Style::BERT };
    let groups = r.need_below(&["num_hidden_groups"], r.limits().layers).max(1);
    let one = layer(&dims, &style);
    let mut firsts: Vec<Option<u32>> = (0..groups).map(|_| None).collect();
    let layers = (0_u32..).zip(dims.layers()).map(|(number, index)| {
        // The same share of layers for each group, in order (AlbertTransformer.forward).
        let group = index.saturating_mul(groups).checked_div(dims.n_layers).unwrap_or(0);
        let first = usize::try_from(group).ok().and_then(|group| firsts.get_mut(group));
        let shared = first.and_then(|first| first.replace(first.unwrap_or(number)));
        Layer { weights_of: shared, ..one.clone() }
    });
    let layers: Vec<Layer> = layers.collect();
    let mut spec = encoder(r, &dims, &style, layers);
    spec.embedding.extra.extend(linear("embd_proj", d_embedding, dims.d_model, Component::Embeddings, Counts::Parameter));
    Ok(spec)
}

/// BERT without token types, with one relative position bias for all layers.
fn mpnet(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = plain(r, &Style::ROBERTA);
    let buckets = r.need(&["relative_attention_num_buckets"]);
    let heads = r.need_below(&["num_attention_heads"], r.limits().heads);
    spec.embedding.extra.retain(|weight| weight.name != "token_types.weight");
    spec.embedding.extra.push(weight("attn_rel_b.weight", Shape::matrix(heads, buckets), Component::Attention));
    Ok(spec)
}

/// Rows of the relative position embedding of DeBERTa.
fn relative_rows(r: &Reader<'_>, max_context: u64) -> u64 {
    let given = r.keep(r.config.f64(&["max_relative_positions"])).unwrap_or(-1.0);
    if given < 1.0 { max_context } else { r.opt(&["max_relative_positions"]).unwrap_or(max_context) }
}
/// Which of the two relative terms attention has: content to position, position to content.
fn relative_terms(r: &Reader<'_>) -> [bool; 2] {
    let named: Vec<&str> = match r.config.raw(&["pos_att_type"]) {
        // Old files join the names with bars.
        Some((serde_json::Value::String(text), _)) => text.split('|').map(str::trim).collect(),
        _ => r.texts(&["pos_att_type"]).unwrap_or_default(),
    };
    [named.contains(&"c2p"), named.contains(&"p2c")]
}

fn deberta(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d = dims.d_model;
    let relative = r.flag(&["relative_attention"], false);
    let positions = r.flag(&["position_biased_input"], true);
    let style = Style { positions, pooler: false, ..Style::BERT };
    let mut layer = layer(&dims, &style);
    if let Mixer::Attention(attention) = &mut layer.mixer {
        // One matrix without bias, with biases on queries and values only.
        attention.layout = QkvLayout::Fused;
        attention.bias = AttentionBias { q: false, k: false, v: false, o: true };
        let part = |name, shape| weight(name, shape, Component::Attention);
        attention.extra.extend([part("attn_q.bias", Shape::vector(d)), part("attn_v.bias", Shape::vector(d))]);
        let [to_position, to_content] = relative_terms(r).map(|term| term && relative);
        if to_position {
            attention.extra.push(part("attn_pos_k.weight", Shape::matrix(d, d)));
        }
        if to_content {
            attention.extra.extend(linear("attn_pos_q", d, d, Component::Attention, Counts::Parameter));
        }
    }
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer));
    if relative {
        let rows = relative_rows(r, dims.max_context).saturating_mul(2);
        spec.embedding.extra.push(weight("rel_embd.weight", Shape::matrix(d, rows), Component::Embeddings));
    }
    Ok(spec)
}

fn deberta_v2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let d = dims.d_model;
    let relative = r.flag(&["relative_attention"], false);
    let d_embedding = r.opt(&["embedding_size"]).filter(|width| *width != d);
    let positions = r.flag(&["position_biased_input"], true);
    let style = Style { positions, pooler: false, d_embedding, ..Style::BERT };
    let mut layer = layer(&dims, &style);
    if let Mixer::Attention(attention) = &mut layer.mixer
        && relative
        && !r.flag(&["share_att_key"], false)
    {
        for (name, present) in ["attn_pos_k", "attn_pos_q"].into_iter().zip(relative_terms(r)) {
            if present {
                attention.extra.extend(linear(name, d, d, Component::Attention, Counts::Parameter));
            }
        }
    }
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer));
    if let Some(width) = d_embedding {
        spec.embedding.extra.push(weight("embd_proj.weight", Shape::matrix(width, d), Component::Embeddings));
    }
    if relative {
        let buckets = r.keep(r.config.f64(&["position_buckets"])).filter(|buckets| *buckets > 0.0);
        let rows = match buckets.and_then(|_| r.opt(&["position_buckets"])) {
            Some(buckets) => buckets,
            None => relative_rows(r, dims.max_context),
        };
        let rows = rows.saturating_mul(2);
        spec.embedding.extra.push(weight("rel_embd.weight", Shape::matrix(d, rows), Component::Embeddings));
        if r.text(&["norm_rel_ebd"]).is_some_and(|norms| norms.contains("layer_norm")) {
            spec.embedding.extra.extend(norm_weights("rel_embd_norm", d, Component::Norms, Counts::Parameter));
        }
    }
    if let Some(kernel) = r.opt(&["conv_kernel_size"]).filter(|kernel| *kernel > 0) {
        let n_in = d.saturating_mul(kernel).checked_div(r.opt(&["conv_groups"]).unwrap_or(1).max(1)).unwrap_or(0);
        spec.embedding.extra.extend(linear("conv", n_in, d, Component::SsmLinear, Counts::Parameter));
        spec.embedding.extra.extend(norm_weights("conv_norm", d, Component::Norms, Counts::Parameter));
    }
    Ok(spec)
}

/// Rotary positions, a gated feed-forward, no biases; every second layer has experts in the second version.
fn nomic(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let style = Style { positions: false, pooler: false, norm_in_attention: false, ..Style::BERT };
    let every = r.opt(&["moe_every_n_layers"]).unwrap_or(0);
    let bias = r.flag(&["qkv_proj_bias"], false);
    let mut dense = layer(&dims, &style);
    if let Mixer::Attention(attention) = &mut dense.mixer {
        attention.layout = QkvLayout::Fused;
        attention.bias = if bias { AttentionBias::ALL } else { AttentionBias::NONE };
    }
    if every == 0 {
        dense.feed_forward = FeedForward::Dense(Dense::gated(dims.d_ff));
    }
    let layers = dims.layers().map(|index| {
        if every == 0 || index % every == 0 {
            return dense.clone();
        }
        let (n_experts, top_k) = recipe::expert_counts(r);
        let experts = Moe { gated: false, ..recipe::experts(n_experts, top_k, dims.d_ff) };
        // One bias for all experts, which the converter drops.
        let shape = Shape::vector(dims.d_model);
        let bias = Weight { name: "ffn_exps.bias".to_owned(), shape, component: Component::Experts, counts: Counts::Unconverted };
        Layer { feed_forward: FeedForward::Moe(Moe { extra: Vec::from([bias]), ..experts }), ..dense.clone() }
    });
    let mut spec = encoder(r, &dims, &style, layers.collect());
    if every > 0 {
        spec.llama_cpp_arch = Some("nomic-bert-moe".to_owned());
    }
    Ok(spec)
}

/// Rotary positions; the converter joins queries, keys and values.
fn jina3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let style = Style { positions: false, norm_in_attention: false, ..Style::ROBERTA };
    let mut layer = layer(&dims, &style);
    if let Mixer::Attention(attention) = &mut layer.mixer {
        attention.layout = QkvLayout::Fused;
    }
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer));
    let offset = r.opt(&["pad_token_id"]).map_or(0, |token| token.saturating_add(1));
    spec.max_context = dims.max_context.saturating_sub(offset);
    Ok(spec)
}

/// Alibaba's own BERT: rotary positions, a gated feed-forward with one bias.
fn gte(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let rotary = r.text(&["position_embedding_type"]).unwrap_or("rope") == "rope";
    let style = Style { positions: !rotary, pooler: false, norm_in_attention: false, ..Style::BERT };
    let mut layer = layer(&dims, &style);
    if let Mixer::Attention(attention) = &mut layer.mixer {
        attention.layout = QkvLayout::Fused;
    }
    layer.feed_forward = FeedForward::Dense(Dense { fused_gate_up: true, down_bias: true, ..Dense::gated(dims.d_ff) });
    Ok(encoder(r, &dims, &style, repeated(&dims, &layer)))
}
