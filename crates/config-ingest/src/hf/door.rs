//! The door: bytes of a config in, facts out.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::synth::tensor_table;
use serde_json::Value;

use super::config::Config;
use super::lookup;
use super::quantization::Quantization;
use super::reader::Shared;
use crate::Ingested;
use crate::error::IngestError;

/// What a config may ask for at most, so that a hostile one cannot make us allocate without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the document. Real configs are below 200 KiB.
    pub bytes: usize,
    /// Layers of one stack.
    pub layers: u64,
    /// Rows of a vocabulary.
    pub vocab: u64,
    /// Heads of one layer.
    pub heads: u64,
    /// Experts of one layer.
    pub experts: u64,
    /// Any other width: hidden sizes, head dimensions, ranks.
    pub width: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 20, layers: 10_000, vocab: 1 << 26, heads: 1 << 16, experts: 1 << 16, width: 1 << 31 }
    }
}

/// How to read a config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Read an unknown architecture as a generic decoder; the result is marked ([`Ingested::generic`]).
    pub assume_generic: bool,
    /// Upper bounds.
    pub limits: Limits,
}

/// Reads a `config.json`.
///
/// # Errors
/// [`IngestError`]: the bytes are no config, the architecture is unknown, or fields are missing or impossible; all
/// wrong fields are listed at once.
pub fn ingest(bytes: &[u8], options: &Options) -> Result<Ingested, IngestError> {
    let limit = options.limits.bytes;
    if bytes.len() > limit {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        return Err(IngestError::Limit {
            format: "config.json",
            what: "the document's size in bytes".to_string(),
            found: count(bytes.len()),
            limit: count(limit),
        });
    }
    let value = parse(bytes)?;
    let root = Config::root(&value)?;
    let shared = Shared::new(options);
    let built = lookup::build(root.clone(), &shared);
    let quantization = shared.keep(Quantization::read(&root)).flatten();
    let mut checkpoint = shared.keep(super::checkpoint::read(&root)).unwrap_or_default();
    checkpoint.eagle = shared.keep(super::eagle::read(&root)).unwrap_or_default();
    checkpoint.mlx = shared.keep(super::mlx_classes::class_of(&root)).flatten();
    let (mut errors, mut notes, generic) = shared.finish();
    let spec = match built {
        Ok(spec) if errors.is_empty() => spec,
        Ok(_) => return Err(one_or_several(errors)),
        Err(error) => {
            errors.push(error);
            return Err(one_or_several(errors));
        }
    };
    notes.extend(
        root.unasked()
            .into_iter()
            .filter(|path| !super::keys::is_known(path))
            .map(|path| format!("{path}: not used (no effect on sizes is known)")),
    );
    checkpoint.transformers = super::transformers_classes::class_of(&spec.architecture);
    checkpoint.sglang = super::sglang_classes::class_of(&spec.architecture);
    checkpoint.class = super::vllm_classes::class_of_config(&spec.architecture, &root);
    let tensors = tensor_table(&spec)?;
    Ok(Ingested { spec, tensors, quantization: quantization.map(|scheme| scheme.to_string()), checkpoint, generic, notes })
}

/// The JSON of a config as Python writes it: with a byte order mark or not, and with `NaN` and infinities, which are
/// read as null.
///
/// # Errors
/// [`IngestError::Malformed`] for anything else than JSON.
pub fn parse(bytes: &[u8]) -> Result<Value, IngestError> {
    // Some editors put a byte order mark in front.
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let text = super::python_json::plain(bytes);
    let bytes = text.as_ref();
    serde_json::from_slice(bytes).map_err(|error| IngestError::Malformed {
        format: "config.json",
        offset: offset_of(bytes, error.line(), error.column()),
        problem: error.to_string(),
    })
}

fn one_or_several(mut errors: Vec<IngestError>) -> IngestError {
    errors.dedup();
    match errors.pop() {
        Some(only) if errors.is_empty() => only,
        Some(last) => {
            errors.push(last);
            IngestError::Several(errors)
        }
        None => IngestError::Several(errors),
    }
}

fn offset_of(bytes: &[u8], line: usize, column: usize) -> u64 {
    let before: usize = bytes.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    u64::try_from(before.saturating_add(column.saturating_sub(1))).unwrap_or(u64::MAX)
}
