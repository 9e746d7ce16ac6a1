//! A whole checkpoint: one file, or an index with its shards.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::{Counts, Shape, Tensor, TensorTable};
use plimsoll_math::units::Bytes;

use super::dtype::Dtype;
use super::header::{Header, Limits, read_header};
use super::index::{Index, TotalSize};
use super::layout::{self, Hints, Layout, Part, Summary};
pub use super::names::Context;
use super::names::{Position, classify};
use super::shown;
use crate::error::IngestError;
use crate::source::RangeSource;

/// Most tensors of all shards together. One tensor per expert makes 100,000 of the largest models.
const MOST_TENSORS: usize = 4_000_000;

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its number type; `None` when it is not known.
    pub dtype: Option<Dtype>,
    /// Dimensions as the file has them: slowest first.
    pub shape: Vec<u64>,
    /// Bytes of its data.
    pub bytes: u64,
    /// Position in [`Checkpoint::shards`].
    pub shard: usize,
    /// Where it sits and what it is.
    pub position: Position,
}

impl StoredTensor {
    /// Elements by its shape; of a number type nobody knows, none.
    #[must_use]
    pub fn elements(&self) -> u64 {
        if self.dtype.is_none() {
            return 0;
        }
        self.shape.iter().fold(1, |product: u64, dimension| product.saturating_mul(*dimension))
    }

    /// Our order, fastest first. Dimensions beyond the fourth are folded into it; sizes stay the same.
    fn shape(&self) -> Shape {
        let mut shape = [1_u64; 4];
        for (position, dimension) in self.shape.iter().rev().enumerate() {
            if let Some(slot) = shape.get_mut(position.min(3)) {
                *slot = slot.saturating_mul(*dimension);
            }
        }
        Shape(shape)
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// Length of the file.
    pub file_bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
}

/// All tensors of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its files.
    pub shards: Vec<Shard>,
    /// Its tensors: shard by shard, in the order of their data.
    pub tensors: Vec<StoredTensor>,
    /// For each tensor what it is to its matrix.
    pub parts: Vec<Part>,
    /// Sums.
    pub summary: Summary,
    /// What was unusual.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Reads one file.
    ///
    /// # Errors
    /// As [`read_header`].
    pub fn from_file(source: &dyn RangeSource, limits: &Limits, context: Context, hints: &Hints) -> Result<Self, IngestError> {
        Self::from_files(&[source], limits, context, hints)
    }

    /// Reads several files that make one checkpoint without an index.
    ///
    /// # Errors
    /// As [`read_header`], and [`IngestError::Field`] for a tensor that stands in two of them.
    pub fn from_files(
        sources: &[&dyn RangeSource],
        limits: &Limits,
        context: Context,
        hints: &Hints,
    ) -> Result<Self, IngestError> {
        let mut headers = Vec::new();
        for source in sources {
            let header = read_header(*source, limits).map_err(|error| in_file(&source.name(), error))?;
            headers.push((source.name(), header));
        }
        by_shard(&headers)?;
        Self::assemble(headers, Vec::new(), context, hints)
    }

    /// Reads the headers of all shards of an index. All shards that cannot be opened are named in one error.
    ///
    /// # Errors
    /// As [`read_header`]; [`IngestError::UnsupportedSource`] for an index of PyTorch files; [`IngestError::Field`] when
    /// index and headers disagree about which tensors there are.
    pub fn from_index(
        index: &Index,
        mut open: impl FnMut(&str) -> Result<Box<dyn RangeSource>, IngestError>,
        limits: &Limits,
        context: Context,
        hints: &Hints,
    ) -> Result<Self, IngestError> {
        if let Some(shard) = index.pickle() {
            return Err(pickles(&shown(shard)));
        }
        let mut headers = Vec::new();
        let mut missing: Vec<(&str, String)> = Vec::new();
        for shard in &index.shards {
            match open(shard) {
                Ok(source) => {
                    let header = read_header(source.as_ref(), limits).map_err(|error| in_file(shard, error))?;
                    headers.push((shard.clone(), header));
                }
                Err(IngestError::Unavailable { why, .. }) => missing.push((shard, why)),
                Err(other) => return Err(other),
            }
        }
        if let Some((_, why)) = missing.first() {
            const NAMED: usize = 5;
            let names: Vec<String> = missing.iter().take(NAMED).map(|(name, _)| shown(name)).collect();
            let more = missing.len().saturating_sub(NAMED);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(IngestError::Unavailable {
                what: format!("{} of {} shards ({}{rest})", missing.len(), index.shards.len(), names.join(", ")),
                why: why.clone(),
            });
        }
        let mut notes = index.notes.clone();
        compare(index, &headers)?;
        let stored: u64 = headers.iter().map(|(_, header)| header.data_bytes).fold(0, u64::saturating_add);
        if let TotalSize::Bytes(stated) = index.total_size
            && stated != stored
        {
            notes.push(format!("the index states total_size {stated}, the headers hold {stored} bytes; the headers count"));
        }
        Self::assemble(headers, notes, context, hints)
    }

    /// From headers that are read already.
    pub(crate) fn assemble(
        headers: Vec<(String, Header)>,
        mut notes: Vec<String>,
        mut context: Context,
        hints: &Hints,
    ) -> Result<Self, IngestError> {
        let names = || headers.iter().flat_map(|(_, header)| &header.tensors).map(|entry| entry.name.as_str());
        if names().count() > MOST_TENSORS {
            let found = u64::try_from(names().count()).unwrap_or(u64::MAX);
            let limit = u64::try_from(MOST_TENSORS).unwrap_or(u64::MAX);
            return Err(IngestError::Limit { format: "safetensors", what: "the number of tensors".to_string(), found, limit });
        }
        context.has_decoder = context.has_decoder || names().any(|name| name.split('.').any(|word| word == "decoder"));
        let mut shards = Vec::new();
        let mut tensors = Vec::new();
        for (shard, (name, header)) in headers.into_iter().enumerate() {
            shards.push(Shard { file_bytes: header.file_bytes(), tensors: header.tensors.len(), name });
            notes.extend(header.notes);
            for entry in header.tensors {
                let position = classify(&entry.name, entry.shape.len(), &context);
                let bytes = entry.bytes();
                tensors.push(StoredTensor { name: entry.name, dtype: entry.dtype, shape: entry.shape, bytes, shard, position });
            }
        }
        let parts = layout::parts(&tensors, hints, &mut notes);
        let summary = layout::summary(&tensors, &parts)?;
        Ok(Self { shards, tensors, parts, summary, notes })
    }

    /// The tensors in the library's vocabulary: names as the file spells them, bytes exact. A matrix in packed words has
    /// the shape of its values, so that its parameters add up, and `opaque_bytes` say what the words take; companions of
    /// quantized matrices count as buffers.
    ///
    /// # Errors
    /// [`IngestError::Math`] when a size leaves the exact range.
    pub fn table(&self) -> Result<TensorTable, IngestError> {
        let tensors = self.tensors.iter().zip(&self.parts).map(|(tensor, part)| {
            let stored = tensor.shape();
            let packed = part.params != tensor.elements() && !part.companion;
            let format = tensor.dtype.and_then(Dtype::format);
            let fits = format.is_some_and(|format| stored.row().is_multiple_of(format.block_len()));
            let Position { component, place, counts } = tensor.position;
            Ok(Tensor {
                name: tensor.name.clone(),
                shape: if packed { values_shape(stored, part) } else { stored },
                format: format.unwrap_or(StorageFormat::U8),
                component,
                place,
                counts: if part.companion && counts == Counts::Parameter { Counts::Buffer } else { counts },
                opaque_bytes: if packed || !fits { Some(Bytes::new(tensor.bytes)?) } else { None },
            })
        });
        Ok(TensorTable { tensors: tensors.collect::<Result<_, IngestError>>()? })
    }

    /// Marks tensors that the model does not use, for reasons their names do not tell.
    ///
    /// # Errors
    /// [`IngestError::Math`] when a sum leaves the exact range.
    pub fn mark_unused(&mut self, unused: impl Fn(&StoredTensor) -> bool) -> Result<(), IngestError> {
        for tensor in &mut self.tensors {
            if tensor.position.counts == Counts::Parameter && unused(tensor) {
                tensor.position.counts = Counts::Unused;
            }
        }
        self.summary = layout::summary(&self.tensors, &self.parts)?;
        Ok(())
    }

    /// The number type that most plain parameters have, which a config may state wrongly.
    #[must_use]
    pub fn main_dtype(&self) -> Option<Dtype> {
        let mut elements: BTreeMap<Dtype, u64> = BTreeMap::new();
        for (tensor, part) in self.tensors.iter().zip(&self.parts) {
            if let Some(dtype) = tensor.dtype.filter(|dtype| dtype.is_float() && part.layout == Layout::Plain) {
                let sum = elements.entry(dtype).or_default();
                *sum = sum.saturating_add(tensor.elements());
            }
        }
        elements.into_iter().max_by_key(|(_, elements)| *elements).map(|(dtype, _)| dtype)
    }

    /// A description of the quantized layouts, `None` when every tensor is plain.
    #[must_use]
    pub fn quantization(&self) -> Option<String> {
        let names: Vec<&str> = self
            .summary
            .layouts
            .iter()
            .filter(|row| row.layout != Layout::Plain && row.tensors > 0)
            .map(|row| row.layout.name())
            .collect();
        (!names.is_empty()).then(|| names.join(" + "))
    }
}

/// The shape of a packed matrix's values, fastest first.
fn values_shape(stored: Shape, part: &Part) -> Shape {
    let Shape([row, second, third, fourth]) = stored;
    let rows = second.saturating_mul(third).saturating_mul(fourth);
    let exact = |count: u64, by: u64| if by > 0 && count.is_multiple_of(by) { count / by } else { 0 };
    let shape = match part.layout {
        // Stored [inputs packed, outputs], so outputs are the row.
        Layout::Gptq => Shape::matrix(exact(part.params, row), row),
        // Stored [inputs, outputs packed].
        Layout::Awq => Shape::matrix(second, exact(part.params, second)),
        _ => Shape([exact(part.params, rows), second, third, fourth]),
    };
    if shape.elements() == Ok(part.params) { shape } else { Shape::vector(part.params) }
}

/// Index and headers must name the same tensors in the same files.
fn compare(index: &Index, headers: &[(String, Header)]) -> Result<(), IngestError> {
    let stored = by_shard(headers)?;
    for (tensor, shard) in &index.weight_map {
        if stored.get(tensor.as_str()) != Some(shard) {
            let name = index.shards.get(*shard).map(|name| shown(name)).unwrap_or_default();
            return Err(IngestError::Field {
                place: format!("$.weight_map[{}]", shown(tensor)),
                found: format!("a shard whose header does not have it ({name})"),
                expected: "the shard that holds it".to_string(),
            });
        }
    }
    let mapped: BTreeSet<&str> = index.weight_map.iter().map(|(tensor, _)| tensor.as_str()).collect();
    match stored.keys().find(|name| !mapped.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(IngestError::Field {
            place: format!("tensor {}", shown(name)),
            found: "nothing about it in the index".to_string(),
            expected: "every tensor of the shards in $.weight_map".to_string(),
        }),
    }
}

/// In which shard each tensor lies; no tensor may lie in two.
fn by_shard(headers: &[(String, Header)]) -> Result<BTreeMap<&str, usize>, IngestError> {
    let mut stored: BTreeMap<&str, usize> = BTreeMap::new();
    for (shard, (_, header)) in headers.iter().enumerate() {
        for entry in &header.tensors {
            if let Some(first) = stored.insert(&entry.name, shard) {
                let name = |position: usize| headers.get(position).map(|(name, _)| shown(name)).unwrap_or_default();
                return Err(IngestError::Field {
                    place: format!("tensor {}", shown(&entry.name)),
                    found: format!("the tensor in {} and in {}", name(first), name(shard)),
                    expected: "each tensor in one shard".to_string(),
                });
            }
        }
    }
    Ok(stored)
}

/// Puts the file's name before what is wrong with it.
fn in_file(file: &str, error: IngestError) -> IngestError {
    match error {
        IngestError::Malformed { format, offset, problem } => {
            IngestError::Malformed { format, offset, problem: format!("{} ({})", problem, shown(file)) }
        }
        IngestError::Field { place, found, expected } => {
            IngestError::Field { place: format!("{}: {place}", shown(file)), found, expected }
        }
        other => other,
    }
}

/// The answer to a checkpoint that only exists as PyTorch pickles.
pub(crate) fn pickles(found: &str) -> IngestError {
    IngestError::UnsupportedSource {
        found: found.to_string(),
        why: "a PyTorch checkpoint is a program that builds its tensors when run, so its shapes cannot be read safely; \
              name the model's config.json alone, or convert the checkpoint to safetensors or GGUF"
            .to_string(),
    }
}
