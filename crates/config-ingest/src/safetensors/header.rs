//! The header of one file.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::dtype::Dtype;
use super::shown;
use crate::error::IngestError;
use crate::source::RangeSource;

const FORMAT: &str = "safetensors";
/// Where the JSON begins.
const JSON_START: u64 = 8;
/// The first read: enough for the whole header of most files, so that a remote file costs one request.
const FIRST_READ: usize = 64 << 10;

/// What a header may hold before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest JSON header in bytes. The format's own readers stop at 100,000,000.
    pub header_bytes: u64,
    /// Most tensors in one file. The largest published shards hold some ten thousand.
    pub tensors: usize,
    /// Most dimensions of a tensor.
    pub dimensions: usize,
    /// Longest tensor name in bytes.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 100_000_000, tensors: 1_000_000, dimensions: 16, name_bytes: 4096 }
    }
}

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its number type; `None` when the spelling is not known, see `dtype_name`.
    pub dtype: Option<Dtype>,
    /// The spelling of its number type.
    pub dtype_name: String,
    /// Dimensions as the file has them: slowest first.
    pub shape: Vec<u64>,
    /// First byte, counted from the end of the header.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Entry {
    /// Bytes of its data.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
    /// Elements by its shape. [`read_header`] has checked that they fit.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, dimension| product.saturating_mul(*dimension))
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The tensors, in the order of their data.
    pub tensors: Vec<Entry>,
    /// Free texts (`__metadata__`).
    pub metadata: Vec<(String, String)>,
    /// Where the data begins in the file: 8 plus the length of the JSON.
    pub data_start: u64,
    /// Bytes of data: where the last tensor ends.
    pub data_bytes: u64,
    /// What was unusual.
    pub notes: Vec<String>,
}

impl Header {
    /// Length of the file.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.data_start.saturating_add(self.data_bytes)
    }
}

/// Reads the header of a file, and checks that its tensors cover the data without holes or overlaps.
///
/// # Errors
/// [`IngestError::Malformed`] or [`IngestError::Limit`] for a file that is not what the format demands,
/// [`IngestError::Unavailable`] from the source.
pub fn read_header(source: &dyn RangeSource, limits: &Limits) -> Result<Header, IngestError> {
    let known_length = source.len()?;
    let mut bytes = source.read(0, FIRST_READ)?;
    let length = match bytes.first_chunk::<8>() {
        Some(length) => u64::from_le_bytes(*length),
        None => return Err(malformed(0, format!("the file has {} bytes, too few for the 8-byte header length", bytes.len()))),
    };
    if length > limits.header_bytes {
        return Err(IngestError::Limit {
            format: FORMAT,
            what: "the length of the JSON header".to_string(),
            found: length,
            limit: limits.header_bytes,
        });
    }
    let data_start = length.saturating_add(JSON_START);
    if let Some(file) = known_length.filter(|file| *file < data_start) {
        return Err(malformed(0, format!("the header is {length} bytes long, and the file ends after {file}")));
    }
    fill(source, &mut bytes, data_start)?;
    let end = usize::try_from(data_start).unwrap_or(usize::MAX);
    let json = bytes.get(8..end).unwrap_or_default();
    if json.first() != Some(&b'{') {
        return Err(malformed(JSON_START, format!("the header does not begin with '{{' but with {}", first_shown(json))));
    }

    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut raw = RawHeader { limits: *limits, entries: Vec::new(), metadata: None };
    RawSeed(&mut raw)
        .deserialize(&mut parser)
        .and_then(|()| parser.end())
        .map_err(|error| malformed(json_offset(json, &error), format!("the JSON header is broken: {error}")))?;

    let (tensors, notes) = check_tensors(raw.entries)?;
    let data_bytes = cover(&tensors)?;
    let file_end =
        data_start.checked_add(data_bytes).ok_or_else(|| malformed(JSON_START, "the data ends beyond 2^64".to_string()))?;
    if let Some(file) = known_length {
        if file < file_end {
            let last = tensors.last().map(|entry| shown(&entry.name)).unwrap_or_default();
            let problem = format!("the file is cut short: {last} should end at byte {file_end}, and the file ends here");
            return Err(malformed(file, problem));
        }
        if file > file_end {
            let problem = format!("{} bytes follow the last tensor and belong to none", file.saturating_sub(file_end));
            return Err(malformed(file_end, problem));
        }
    }
    Ok(Header { tensors, metadata: raw.metadata.unwrap_or_default(), data_start, data_bytes, notes })
}

/// Extends `bytes` to `end`, in doubling steps so that a false length allocates no more than twice what is there.
fn fill(source: &dyn RangeSource, bytes: &mut Vec<u8>, end: u64) -> Result<(), IngestError> {
    loop {
        let have = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let missing = end.saturating_sub(have);
        if missing == 0 {
            return Ok(());
        }
        let step = usize::try_from(missing).unwrap_or(usize::MAX).min(bytes.len().max(FIRST_READ));
        let more = source.read(have, step)?;
        if more.is_empty() {
            return Err(malformed(have, format!("the file ends inside the header, which should reach to byte {end}")));
        }
        bytes.extend_from_slice(&more);
    }
}

fn malformed(offset: u64, problem: String) -> IngestError {
    IngestError::Malformed { format: FORMAT, offset, problem }
}

fn first_shown(json: &[u8]) -> String {
    match json.first() {
        None => "nothing".to_string(),
        Some(byte) if byte.is_ascii_graphic() => format!("'{}'", char::from(*byte)),
        Some(byte) => format!("byte {byte:#04x}"),
    }
}

/// Where in the file a JSON error stands: its line and column counted back to an offset.
fn json_offset(json: &[u8], error: &serde_json::Error) -> u64 {
    let lines_before = error.line().saturating_sub(1);
    let line_start: usize = json.split(|byte| *byte == b'\n').take(lines_before).map(|line| line.len().saturating_add(1)).sum();
    let at = line_start.saturating_add(error.column().saturating_sub(1)).min(json.len());
    JSON_START.saturating_add(u64::try_from(at).unwrap_or(u64::MAX))
}

/// Every tensor by itself: its bytes are its shape times its number type.
fn check_tensors(raw: Vec<Entry>) -> Result<(Vec<Entry>, Vec<String>), IngestError> {
    let mut notes = Vec::new();
    for entry in &raw {
        let place = || format!("tensor {}", shown(&entry.name));
        if entry.end < entry.start {
            let found = format!("data_offsets [{}, {}]", entry.start, entry.end);
            return Err(IngestError::Field { place: place(), found, expected: "an end at or after the start".to_string() });
        }
        let overflow = || IngestError::Field {
            place: place(),
            found: format!("shape {:?} of {}", entry.shape, shown(&entry.dtype_name)),
            expected: "at most 2^53 - 1 elements".to_string(),
        };
        // Checked as a product of all dimensions: a zero among them does not excuse the others.
        let elements =
            entry.shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension)).ok_or_else(overflow)?;
        if elements > plimsoll_math::units::MAX_EXACT {
            return Err(overflow());
        }
        match entry.dtype {
            None => notes.push(format!(
                "tensor {}: number type {} is not known; its {} bytes are counted, its elements are not",
                shown(&entry.name),
                shown(&entry.dtype_name),
                entry.bytes()
            )),
            Some(dtype) => {
                let Some(bytes) = dtype.bytes(elements) else {
                    return Err(IngestError::Field {
                        place: place(),
                        found: format!("{elements} elements of {}", dtype.name()),
                        expected: "a whole number of bytes".to_string(),
                    });
                };
                if bytes != entry.bytes() {
                    return Err(IngestError::Field {
                        place: place(),
                        found: format!("{} bytes (data_offsets [{}, {}])", entry.bytes(), entry.start, entry.end),
                        expected: format!("{bytes} bytes for shape {:?} of {}", entry.shape, dtype.name()),
                    });
                }
            }
        }
    }
    let mut by_name: Vec<&str> = raw.iter().map(|entry| entry.name.as_str()).collect();
    by_name.sort_unstable();
    if let Some(twice) = by_name.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    }) {
        return Err(IngestError::Field {
            place: format!("tensor {}", shown(twice)),
            found: "the name twice in one header".to_string(),
            expected: "each name once".to_string(),
        });
    }
    let mut tensors = raw;
    tensors.sort_by_key(|entry| (entry.start, entry.end));
    Ok((tensors, notes))
}

/// All tensors together: sorted by offset they follow each other from 0 without holes or overlaps, as the format
/// demands. Answers where the last one ends.
fn cover(tensors: &[Entry]) -> Result<u64, IngestError> {
    let mut end = 0_u64;
    let mut before = "";
    for entry in tensors {
        let place = || format!("tensor {}", shown(&entry.name));
        let found = format!("data_offsets [{}, {}]", entry.start, entry.end);
        if entry.start > end {
            let hole = entry.start.saturating_sub(end);
            let expected = format!("data that begins at {end}: {hole} bytes before it belong to no tensor");
            return Err(IngestError::Field { place: place(), found, expected });
        }
        if entry.start < end {
            let expected = format!("data that begins at {end}, where {} ends: the two overlap", shown(before));
            return Err(IngestError::Field { place: place(), found, expected });
        }
        end = entry.end;
        before = &entry.name;
    }
    Ok(end)
}

/// The header while it is read: a list, so that a name that stands twice is seen.
struct RawHeader {
    limits: Limits,
    entries: Vec<Entry>,
    metadata: Option<Vec<(String, String)>>,
}

struct RawSeed<'a>(&'a mut RawHeader);

impl<'de> DeserializeSeed<'de> for RawSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RawSeed<'_> {
    type Value = ();
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let raw = self.0;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if raw.metadata.is_some() {
                    return Err(A::Error::custom("__metadata__ stands twice"));
                }
                raw.metadata = Some(map.next_value::<Option<Texts>>()?.map(|texts| texts.0).unwrap_or_default());
                continue;
            }
            if name.len() > raw.limits.name_bytes {
                return Err(A::Error::custom(format_args!(
                    "a tensor name is {} bytes long, above the limit of {}",
                    name.len(),
                    raw.limits.name_bytes
                )));
            }
            if raw.entries.len() >= raw.limits.tensors {
                return Err(A::Error::custom(format_args!("more than {} tensors", raw.limits.tensors)));
            }
            let entry = map.next_value_seed(EntrySeed { name, limits: raw.limits })?;
            raw.entries.push(entry);
        }
        Ok(())
    }
}

/// A map of texts that keeps its order.
struct Texts(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of texts (__metadata__)")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(pair) = map.next_entry::<String, String>()? {
                    texts.push(pair);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_map(TextsVisitor)
    }
}

struct EntrySeed {
    name: String,
    limits: Limits,
}

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = Entry;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = Entry;
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with dtype, shape and data_offsets for tensor {}", shown(&self.name))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let Self { name, limits } = self;
        let wrong = |text: &str| A::Error::custom(format_args!("tensor {}: {text}", shown(&name)));
        let mut dtype_name: Option<String> = None;
        let mut shape: Option<Vec<u64>> = None;
        let mut offsets: Option<(u64, u64)> = None;
        while let Some(key) = map.next_key::<String>()? {
            let again = match key.as_str() {
                "dtype" => dtype_name.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(ShapeSeed { dimensions: limits.dimensions })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if again {
                return Err(wrong(&format!("{key} stands twice")));
            }
        }
        let dtype_name = dtype_name.ok_or_else(|| wrong("has no dtype"))?;
        let shape = shape.ok_or_else(|| wrong("has no shape"))?;
        let (start, end) = offsets.ok_or_else(|| wrong("has no data_offsets"))?;
        Ok(Entry { dtype: Dtype::from_name(&dtype_name), name, dtype_name, shape, start, end })
    }
}

struct ShapeSeed {
    dimensions: usize,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Vec<u64>;
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of whole numbers (shape)")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element()? {
            if shape.len() >= self.dimensions {
                return Err(A::Error::custom(format_args!("a shape has more than {} dimensions", self.dimensions)));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}
