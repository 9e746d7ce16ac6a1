//! Which row reads a config.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use plimsoll_math::spec::ModelSpec;
use serde_json::{Map, Value};

use super::config::Config;
use super::families::{self, Family};
use super::generic;
use super::reader::{HeadKind, Reader, Shared};
use crate::error::IngestError;
use crate::nearest::distance;

/// Keys under which a multimodal config holds its language model.
pub(super) const LANGUAGE_MODEL_KEYS: &[&str] = &["text_config", "language_config", "llm_config", "thinker_config"];

fn by_class(class: &str) -> Option<&'static Family> {
    // A class that several rows list belongs to the row that lists it first.
    let own = families::all().find(|family| family.architectures.first() == Some(&class));
    let exact = own.or_else(|| families::all().find(|family| family.architectures.contains(&class)));
    // The body, a classifier or an answer head of a known model.
    exact.or_else(|| {
        let body = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
            .iter()
            .find_map(|suffix| class.strip_suffix(suffix))?;
        let lm = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"];
        families::all().find(|family| {
            family.architectures.iter().any(|known| lm.iter().any(|suffix| known.strip_suffix(suffix) == Some(body)))
        })
    })
}

fn by_type(model_type: &str) -> Option<&'static Family> {
    families::all().find(|family| family.model_types.contains(&model_type))
}

/// The class and the type that an object names; either may be missing.
fn names<'a>(config: &Config<'a>, shared: &Shared) -> (Option<&'a str>, Option<&'a str>) {
    let class = shared.keep(config.str_list(&["architectures"])).flatten().and_then(|classes| classes.first().copied());
    let model_type = shared.keep(config.str(&["model_type"])).flatten();
    (class, model_type)
}

/// The model that a whole document describes.
pub(super) fn build(root: Config<'_>, shared: &Shared) -> Result<ModelSpec, IngestError> {
    let (class, model_type) = names(&root, shared);
    let class_row = class.and_then(by_class);
    let type_row = model_type.and_then(by_type);
    let is_nested = root.has(LANGUAGE_MODEL_KEYS);
    // Weights follow the class; the type only chooses defaults. But a wrapper's class over a config without a nested
    // language model is a flattened one, which only the type can tell, and the other way round.
    let row = match (class_row, type_row) {
        // Several types share one class (`LlamaForCausalLM`) and differ in their defaults.
        (Some(_), Some(by_type)) if class.is_some_and(|class| by_type.architectures.contains(&class)) => Some(by_type),
        (Some(by_class), Some(by_type)) if by_class.is_wrapper && !by_type.is_wrapper && !is_nested => Some(by_type),
        (Some(by_class), Some(by_type)) if !by_class.is_wrapper && by_type.is_wrapper && is_nested => Some(by_type),
        (Some(by_class), _) => Some(by_class),
        (None, by_type) => by_type,
    };
    if let (Some(by_class), Some(by_type)) = (class_row, type_row)
        && !core::ptr::eq(by_class, by_type)
        && !row.is_some_and(|row| core::ptr::eq(row, by_type) && class.is_some_and(|class| row.architectures.contains(&class)))
    {
        let chosen = row.map_or("", Family::name);
        shared.note(format!(
            "$.architectures says {}, $.model_type says {}: read as {chosen}",
            class.unwrap_or_default(),
            model_type.unwrap_or_default()
        ));
    }
    if let (Some(class), None, Some(row)) = (class, class_row, row) {
        shared.note(format!("$.architectures[0]: {class} is not known; read by $.model_type as {}", row.name()));
    }
    let Some(row) = row else {
        return if shared.options.assume_generic {
            shared.mark_generic();
            generic::build(root, shared, class.or(model_type).unwrap_or("unnamed"))
        } else {
            Err(unknown(class, model_type))
        };
    };
    let head = class.map_or(HeadKind::LanguageModel, HeadKind::of_class);
    let mut spec = run(row, root.clone(), root, shared, class.unwrap_or_default(), head, None)?;
    // A language model's class over the config of a multimodal one builds the language model alone.
    if let (Some(class), Some(by_class)) = (class, class_row)
        && row.is_wrapper
        && !by_class.is_wrapper
        && !spec.towers.is_empty()
    {
        shared.note(format!("$.architectures[0]: {class} is the language model alone; towers are left out"));
        spec.towers.clear();
    }
    Ok(spec)
}

/// The language model inside a wrapper.
pub(super) fn build_nested(
    config: Config<'_>,
    outer: &Reader<'_>,
    otherwise: &str,
    tied: Option<bool>,
) -> Result<ModelSpec, IngestError> {
    let (class, model_type) = names(&config, outer.shared);
    // A nested object's `architectures` is often left over from another model; its type is what the wrapper builds.
    let row = model_type.and_then(by_type).or_else(|| class.and_then(by_class)).or_else(|| by_type(otherwise));
    let row = row.ok_or_else(|| unknown(class, model_type))?;
    run(row, config, outer.root.clone(), outer.shared, &outer.class, outer.head, tied)
}

/// The language model that a wrapper's own object describes.
pub(super) fn build_here(outer: &Reader<'_>, model_type: &str, tied: Option<bool>) -> Result<ModelSpec, IngestError> {
    let row = by_type(model_type).ok_or_else(|| unknown(None, Some(model_type)))?;
    run(row, outer.config.clone(), outer.root.clone(), outer.shared, &outer.class, outer.head, tied)
}

fn run(
    row: &'static Family,
    config: Config<'_>,
    root: Config<'_>,
    shared: &Shared,
    class: &str,
    head: HeadKind,
    tied: Option<bool>,
) -> Result<ModelSpec, IngestError> {
    let defaults: Map<String, Value> = match row.defaults {
        "" => Map::new(),
        // The rows are checked by a test; a broken one has no defaults, so that missing fields are reported.
        text => serde_json::from_str(text).unwrap_or_default(),
    };
    let config = config.with_defaults(&defaults);
    let reader = Reader { config, root, family: row, class: class.to_owned(), head, tied, shared };
    let mut spec = (row.build)(&reader)?;
    super::operations::read(&reader, &mut spec);
    spec.mtp_is_left_out = super::converter::leaves_out_prediction_layers(&spec);
    Ok(spec)
}

fn unknown(class: Option<&str>, model_type: Option<&str>) -> IngestError {
    let (place, found) = match (class, model_type) {
        (Some(class), _) => ("$.architectures[0]", class),
        (None, Some(model_type)) => ("$.model_type", model_type),
        (None, None) => ("$.architectures[0] and $.model_type", "nothing"),
    };
    let wanted = class.or(model_type).unwrap_or_default();
    let of_class = families::all().flat_map(|family| if class.is_some() { family.architectures } else { family.model_types });
    let mut ranked: Vec<(usize, &str)> =
        of_class.map(|name| (distance(wanted, name), *name)).collect::<BTreeSet<_>>().into_iter().collect();
    ranked.truncate(3);
    let nearest: Vec<&str> = ranked.into_iter().map(|(_, name)| name).collect();
    IngestError::UnknownArchitecture { place: place.to_owned(), found: found.to_owned(), nearest: nearest.join(", ") }
}
