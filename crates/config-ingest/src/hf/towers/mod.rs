//! Vision and audio towers: what a multimodal config puts beside its language model.
//!
//! A tower is chosen by the `model_type` of its nested object (`ROWS`), or by the wrapper where that is silent.
//! Only sizes matter here: converters put towers into a file of their own (`mmproj`), so names are ours.

mod conformer;
mod deepseek;
mod draft;
mod kimi;
mod minimax;
mod mobilenet;
mod muse;
mod qwen;
mod vit;

use alloc::string::{String, ToString};

use serde_json::{Map, Value};

pub use draft::{Block, Draft, added};

use super::reader::Reader;
use crate::error::IngestError;

/// One tower.
#[derive(Debug)]
pub struct Row {
    /// Values of the nested `model_type`.
    pub model_types: &'static [&'static str],
    /// A JSON object with the values of keys that a config leaves out: those of the tower's configuration class in
    /// transformers 5.23.0.
    pub defaults: &'static str,
    /// The recipe. The reader's object is the nested one, its root the document.
    pub build: fn(&Reader<'_>) -> Draft,
}

const ROWS: &[&[Row]] =
    &[vit::ROWS, qwen::ROWS, conformer::ROWS, mobilenet::ROWS, muse::ROWS, minimax::ROWS, deepseek::ROWS, kimi::ROWS];

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().flat_map(|rows| rows.iter())
}

/// The tower under one of `keys`, by its own `model_type` or else by `otherwise`. Where the whole object is missing,
/// `instead` (a JSON object, empty for none: what the wrapper then says) precedes the row's defaults.
///
/// # Errors
/// [`IngestError`] when the type is none we know, or the object is none.
pub fn read(r: &Reader<'_>, keys: &[&str], otherwise: &str, instead: &str) -> Result<Draft, IngestError> {
    let found = match r.config.child(keys)? {
        Some(nested) => nested.str(&["model_type"])?,
        None => None,
    };
    build(r, keys, found.unwrap_or(otherwise), instead)
}

/// The tower under one of `keys` of a wrapper that builds only one kind.
///
/// # Errors
/// [`IngestError`] when the object is none.
pub fn read_as(r: &Reader<'_>, keys: &[&str], model_type: &str) -> Result<Draft, IngestError> {
    build(r, keys, model_type, "")
}

fn build(r: &Reader<'_>, keys: &[&str], model_type: &str, instead: &str) -> Result<Draft, IngestError> {
    let nothing = Map::new();
    let config = r.config.child_or(keys, &nothing)?;
    let Some(row) = all().find(|row| row.model_types.contains(&model_type)) else {
        return Err(config.invalid("model_type", model_type, "a vision or audio tower that is known"));
    };
    let mut defaults: Map<String, Value> = serde_json::from_str(row.defaults).unwrap_or_default();
    if let (false, Ok(Value::Object(own))) = (r.config.has(keys), serde_json::from_str(instead)) {
        defaults.extend(own);
    }
    let _ = config.str(&["model_type"]);
    let config = config.with_defaults(&defaults);
    Ok((row.build)(&Reader { config, ..r.clone() }))
}

/// The side of a square image or patch: a count, or a list of two.
#[must_use]
pub fn sides(r: &Reader<'_>, name: &str) -> [u64; 2] {
    match r.config.raw(&[name]) {
        Some((Value::Array(_), _)) => match r.list(&[name]).as_deref() {
            Some([height, width]) => [*height, *width],
            other => {
                r.invalid(name, other.map_or(0, <[u64]>::len).to_string(), "a side, or a list of height and width");
                [0, 0]
            }
        },
        _ => [r.need(&[name]); 2],
    }
}

/// Number of patches in an image.
#[must_use]
pub fn patches(r: &Reader<'_>) -> u64 {
    let ([height, width], [patch_height, patch_width]) = (sides(r, "image_size"), sides(r, "patch_size"));
    let along = |side: u64, patch: u64| side.checked_div(patch).unwrap_or(0);
    along(height, patch_height).saturating_mul(along(width, patch_width))
}

/// Elements of a patch: its area times the channels.
#[must_use]
pub fn patch_elements(r: &Reader<'_>, channels: &[&str]) -> u64 {
    let [height, width] = sides(r, "patch_size");
    height.saturating_mul(width).saturating_mul(r.opt(channels).unwrap_or(3))
}
