//! Encoders that change one thing of BERT or RoBERTa: where norms sit, how positions are known, how far attention sees.

use plimsoll_math::spec::{Mixer, ModelSpec};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use super::bert::{Style, classes, dims, encoder, head_of, layer, linear, norm_weights, plain, repeated, roberta};
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, layer_norm};

const ROBERTA: &str = r#"{"vocab_size": 50265, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 1}"#;
const BERT: &str = r#"{"vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2}"#;

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family::new(
        &["big_bird"],
        classes!("BigBird"),
        None,
        r#"{"vocab_size": 50358, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 4096, "type_vocab_size": 2}"#,
        big_bird,
    ),
    Family::new(&["longformer"], classes!("Longformer"), None, BERT, longformer),
    Family::new(&["data2vec-text"], classes!("Data2VecText"), None, BERT, roberta),
    Family::new(&["roberta-prelayernorm"], classes!("RobertaPreLayerNorm"), None, ROBERTA, roberta_norms_first),
    Family::new(
        &["megatron-bert"],
        classes!("MegatronBert"),
        None,
        r#"{"vocab_size": 29056, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
        megatron,
    ),
    Family::new(
        &["roformer"],
        classes!("RoFormer"),
        None,
        r#"{"vocab_size": 50000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 1536, "type_vocab_size": 2}"#,
        roformer,
    ),
];

/// BERT over blocks; the pooler stays whatever head follows.
fn big_bird(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = plain(r, &Style { own_classifier: true, ..Style::BERT });
    let d = spec.d_model;
    match head_of(&r.class) {
        "ForMaskedLM" | "ForCausalLM" | "ForSequenceClassification" | "ForTokenClassification" => {
            spec.head.extra.extend(linear("pooler", d, d, Component::Other, Counts::Unconverted));
        }
        "ForQuestionAnswering" => {
            // A feed-forward with its norm in front of the answer (BigBirdForQuestionAnsweringHead).
            let wide = r.need(&["intermediate_size"]);
            let (other, dropped) = (Component::Other, Counts::Unconverted);
            spec.head.extra.extend(linear("qa.up", d, wide, other, dropped));
            spec.head.extra.extend(linear("qa.down", wide, d, other, dropped));
            spec.head.extra.extend(norm_weights("qa.norm", d, other, dropped));
        }
        _ => {}
    }
    Ok(spec)
}

/// RoBERTa with a window, and a second set of matrices for tokens that see everything.
fn longformer(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = roberta(r)?;
    let d = spec.d_model;
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            for name in ["attn_q_global", "attn_k_global", "attn_v_global"] {
                attention.extra.extend(linear(name, d, d, Component::Attention, Counts::Parameter));
            }
        }
    }
    Ok(spec)
}

/// RoBERTa with norms before both halves and one at the end.
fn roberta_norms_first(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = roberta(r)?;
    spec.head.norm = Some(layer_norm("output_norm", spec.d_model));
    Ok(spec)
}

/// BERT with norms before both halves and one at the end instead of one on the embeddings.
fn megatron(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let style = Style::BERT;
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer(&dims, &style)));
    spec.embedding.extra.retain(|weight| !weight.name.starts_with("token_embd_norm"));
    spec.head.norm = Some(layer_norm("output_norm", dims.d_model));
    Ok(spec)
}

/// BERT with rotary positions, whose table of sines is kept as a parameter; narrow embeddings are projected.
fn roformer(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = dims(r);
    let narrow = r.opt_below(&["embedding_size"], r.limits().width).filter(|width| *width != dims.d_model);
    // Choices are scored by one row alone.
    let own_classifier = head_of(&r.class) != "ForMultipleChoice";
    let style = Style { positions: false, pooler: false, own_classifier, d_embedding: narrow, ..Style::BERT };
    let mut spec = encoder(r, &dims, &style, repeated(&dims, &layer(&dims, &style)));
    if let Some(width) = narrow {
        spec.embedding.extra.extend(linear("embd_proj", width, dims.d_model, Component::Embeddings, Counts::Parameter));
    }
    let sines = recipe::weight("rope_sines.weight", Shape::matrix(dims.head_dim, dims.max_context), Component::Embeddings);
    spec.embedding.extra.push(plimsoll_math::spec::Weight { counts: Counts::Unconverted, ..sines });
    Ok(spec)
}
