//! Wrappers: a language model with vision or audio towers beside it.

use alloc::vec::Vec;

use plimsoll_math::spec::{ModelSpec, Tower};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::towers::{self, Draft};

const TEXT: &[&str] = &["text_config", "language_config", "llm_config"];
const VISION: &[&str] = &["vision_config", "vit_config"];
const AUDIO: &[&str] = &["audio_config", "audio_encoder_config"];

/// A wrapper whose language model and towers sit in nested objects. Missing objects take the class's defaults.
macro_rules! wrapper {
    ($types:expr, $classes:expr, $defaults:expr, $build:expr) => {
        Family {
            model_types: $types,
            architectures: $classes,
            llama_cpp: None,
            is_wrapper: true,
            defaults: $defaults,
            build: $build,
        }
    };
}

/// The rows.
pub const FAMILIES: &[Family] = &[
    wrapper!(&["gemma3"], &["Gemma3ForConditionalGeneration"], r#"{"text_config": {}, "tie_word_embeddings": true}"#, gemma3),
    wrapper!(&["gemma3n"], &["Gemma3nForConditionalGeneration"], r#"{"text_config": {}, "tie_word_embeddings": true}"#, gemma3n),
    wrapper!(&["gemma4"], &["Gemma4ForConditionalGeneration"], r#"{"text_config": {}, "tie_word_embeddings": true}"#, gemma4),
];

/// The language model, with the wrapper's word on tied embeddings where it has one.
fn text(r: &Reader<'_>, otherwise: &str) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    r.language_model(TEXT, otherwise, tied)
}

/// The tower of a wrapper that builds only one kind, whatever the nested `model_type` says.
fn vision(r: &Reader<'_>, model_type: &str) -> Result<Draft, IngestError> {
    towers::read_as(r, VISION, model_type)
}

fn with(mut spec: ModelSpec, drafts: impl IntoIterator<Item = Draft>) -> ModelSpec {
    let towers: Vec<Tower> = drafts.into_iter().map(|draft| draft.tower).collect();
    spec.towers.extend(towers);
    spec
}

fn gemma3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma3_text")?;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", "")?;
    let d = tower.d_model();
    tower.vector("soft_emb_norm", d).linear("input_projection", d, spec.d_model, false);
    Ok(with(spec, [tower]))
}

fn gemma3n(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma3n_text")?;
    let mut eye = vision(r, "gemma3n_vision")?;
    let mut ear = towers::read_as(r, AUDIO, "gemma3n_audio")?;
    for (tower, keys) in [(&mut eye, VISION), (&mut ear, AUDIO)] {
        let d = tower.d_model();
        let rows = r.child(keys).and_then(|nested| nested.opt(&["vocab_size"])).unwrap_or(128);
        tower.linear("embedding", d, rows, false).vector("hard_emb_norm", d).vector("soft_emb_norm", d);
        tower.linear("input_projection", d, spec.d_model, false);
    }
    Ok(with(spec, [eye, ear]))
}

fn gemma4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma4_text")?;
    let mut found = Vec::new();
    if r.has(VISION) {
        found.push(vision(r, "gemma4_vision")?);
    }
    if r.has(AUDIO) {
        found.push(towers::read_as(r, AUDIO, "gemma4_audio")?);
    }
    for tower in &mut found {
        let d_in = tower.d_output;
        tower.linear("input_projection", d_in, spec.d_model, false);
    }
    Ok(with(spec, found))
}
