//! The header reader.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::Shape;
use plimsoll_math::units::round_up;

use super::FORMAT;
use super::cursor::Cursor;
use super::limits::Limits;
use super::value::{ByteOrder, ElementType, Value, printable};
use crate::error::IngestError;
use crate::source::RangeSource;

/// Data alignment of files that do not set `general.alignment` (`gguf.h:GGUF_DEFAULT_ALIGNMENT`).
const DEFAULT_ALIGNMENT: u64 = 32;
/// From this length on llama.cpp refuses a tensor name (`ggml.h:GGML_MAX_NAME`).
const ENGINE_NAME_BYTES: usize = 64;

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Dimensions, fastest first.
    pub shape: Shape,
    /// How many dimensions the file lists.
    pub n_dims: u32,
    /// The type's number in the file.
    pub type_id: u32,
    /// The format with that number, where it is known.
    pub format: Option<StorageFormat>,
    /// Where the data starts, counted from [`Header::data_offset`].
    pub offset: u64,
    /// Bytes of the data without padding. Of an unknown format, the distance to whatever follows; `None` when nothing
    /// follows and the file's length says nothing either.
    pub bytes: Option<u64>,
}

/// A file's metadata and tensor infos.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Format version, 1 to 3.
    pub version: u32,
    /// Byte order.
    pub byte_order: ByteOrder,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of tensor data.
    pub alignment: u64,
    /// Where tensor data starts in the file.
    pub data_offset: u64,
    /// Length of the file, where it is known.
    pub file_len: Option<u64>,
    /// What was unusual, one sentence each.
    pub notes: Vec<String>,
}

impl Header {
    /// Reads the header of `source`.
    ///
    /// # Errors
    /// [`IngestError::Malformed`] or [`IngestError::Limit`] when the bytes are no GGUF header, [`IngestError::Field`]
    /// when a key or tensor contradicts itself, [`IngestError::Unavailable`] when the source cannot be read.
    ///
    /// ```
    /// use plimsoll_ingest::gguf::{Header, Limits};
    /// let bytes: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    /// let header = Header::read(&bytes, &Limits::default()).unwrap();
    /// assert_eq!((header.version, header.tensors.len()), (3, 0));
    /// ```
    pub fn read(source: &dyn RangeSource, limits: &Limits) -> Result<Self, IngestError> {
        Self::read_keeping(source, limits, &[])
    }

    /// As [`Header::read`], and keeps the lists under `keys`, whatever they hold and however long they are.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn read_keeping(source: &dyn RangeSource, limits: &Limits, keys: &[&str]) -> Result<Self, IngestError> {
        let mut cursor = Cursor::new(source, *limits)?;
        magic(&mut cursor)?;
        let version = version(&mut cursor)?;
        let n_tensors = cursor.count("the number of tensors")?;
        let n_metadata = cursor.count("the number of metadata entries")?;
        plausible(&cursor, "the number of metadata entries", n_metadata, limits.metadata, if version == 1 { 9 } else { 13 })?;
        plausible(&cursor, "the number of tensors", n_tensors, limits.tensors, if version == 1 { 20 } else { 24 })?;

        let mut notes = Vec::new();
        let metadata = metadata(&mut cursor, limits, n_metadata, keys, &mut notes)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::new();
        for index in 0..n_tensors {
            tensors.push(tensor_info(&mut cursor, limits, index, &mut notes)?);
        }
        // Without tensors there is no data section to align (`gguf.cpp:gguf_init_from_reader`).
        let data_offset = if tensors.is_empty() { cursor.position } else { round_up(cursor.position, alignment)? };
        let mut header =
            Self { version, byte_order: cursor.order, metadata, tensors, alignment, data_offset, file_len: cursor.len, notes };
        header.check_names()?;
        header.check_layout()?;
        Ok(header)
    }

    /// The value under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn check_names(&mut self) -> Result<(), IngestError> {
        let mut names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.array_windows::<2>().find(|[one, two]| one == two) {
            return Err(IngestError::Field {
                place: (*name).to_string(),
                found: "two tensors of this name".to_string(),
                expected: "each name once".to_string(),
            });
        }
        let long = names.iter().filter(|name| name.len() >= ENGINE_NAME_BYTES).count();
        if long > 0 {
            self.notes.push(format!("{long} tensor names have {ENGINE_NAME_BYTES} bytes or more, which llama.cpp refuses"));
        }
        Ok(())
    }

    /// Holds the tensors' places against each other and the file's length, and sizes those of unknown format.
    fn check_layout(&mut self) -> Result<(), IngestError> {
        let data_len = self.file_len.map(|len| len.saturating_sub(self.data_offset));
        let mut order: Vec<(u64, usize)> = self.tensors.iter().map(|tensor| tensor.offset).zip(0..).collect();
        order.sort_unstable();
        // Ends of tensors of unknown format: the next start, or the end of the file.
        let starts: Vec<u64> = order.iter().map(|(offset, _)| *offset).skip(1).collect();
        for (rank, (offset, index)) in order.iter().enumerate() {
            let end = starts.get(rank).copied().or_else(|| data_len.filter(|len| len > offset));
            if let Some(tensor) = self.tensors.get_mut(*index)
                && tensor.format.is_none()
            {
                tensor.bytes = end.and_then(|end| end.checked_sub(*offset));
            }
        }
        let mut previous: Option<(&TensorInfo, u64)> = None;
        let mut gaps = 0_u64;
        for (_, index) in &order {
            let Some(tensor) = self.tensors.get(*index) else { continue };
            if !tensor.offset.is_multiple_of(self.alignment) {
                return Err(layout(tensor, format!("a multiple of the alignment {}", self.alignment)));
            }
            let end = tensor
                .offset
                .checked_add(tensor.bytes.unwrap_or(0))
                .filter(|end| self.data_offset.checked_add(*end).is_some_and(|end| i64::try_from(end).is_ok()));
            let Some(end) = end else {
                return Err(layout(tensor, "an offset whose tensor ends before 2^63".to_string()));
            };
            let expected = previous.map_or(Ok(0), |(_, end)| round_up(end, self.alignment))?;
            if let Some((before, before_end)) = previous
                && tensor.offset < before_end
                && tensor.bytes != Some(0)
            {
                return Err(layout(tensor, format!("at least {before_end}, where {} ends", before.name)));
            }
            if tensor.offset > expected {
                gaps = gaps.saturating_add(1);
            }
            previous = Some((tensor, end.max(previous.map_or(0, |(_, end)| end))));
        }
        let needed = previous.map_or(0, |(_, end)| end);
        if order.iter().map(|(_, index)| *index).ne(0..order.len()) {
            self.notes.push("the tensors' data is not in the order of their infos, which llama.cpp refuses".to_string());
        } else if gaps > 0 {
            self.notes.push(format!("the data section has {gaps} gaps between tensors, which llama.cpp refuses"));
        }
        match data_len {
            Some(0) if needed > 0 => {
                self.notes.push("the file holds a header without tensor data: enough to plan with, not to run".to_string());
            }
            Some(len) if len < needed => self.notes.push(format!(
                "the file is incomplete: it holds {len} of {needed} bytes of tensor data (an unfinished download?)"
            )),
            Some(_) | None => {}
        }
        self.note_unknown_formats();
        if self.version == 1 {
            self.notes.push("the file has format version 1, which llama.cpp no longer loads".to_string());
        }
        Ok(())
    }

    fn note_unknown_formats(&mut self) {
        let mut unknown: BTreeMap<u32, (u64, &str, bool)> = BTreeMap::new();
        for tensor in self.tensors.iter().filter(|tensor| tensor.format.is_none()) {
            let (n, _, sized) = unknown.entry(tensor.type_id).or_insert((0, &tensor.name, true));
            *n = n.saturating_add(1);
            *sized &= tensor.bytes.is_some();
        }
        let notes: Vec<String> = unknown
            .iter()
            .map(|(id, (n, first, sized))| {
                let size = if *sized { "their bytes are counted from offsets" } else { "the last one's size cannot be told" };
                format!("{n} tensors have the unknown type {id} (first: {first}); {size}")
            })
            .collect();
        self.notes.extend(notes);
    }
}

fn layout(tensor: &TensorInfo, expected: String) -> IngestError {
    IngestError::Field { place: tensor.name.clone(), found: format!("data at offset {}", tensor.offset), expected }
}

fn magic(cursor: &mut Cursor<'_>) -> Result<(), IngestError> {
    let offset = cursor.position;
    let magic = cursor.magic()?;
    let what = match &magic {
        b"GGUF" => return Ok(()),
        b"FUGG" => "the four letters of GGUF in reverse",
        b"tjgg" | b"fmgg" | b"lmgg" | b"algg" => "a GGML file from before GGUF, to be converted first",
        b"vers" => "what looks like a pointer of git LFS: the file itself was not downloaded",
        b"<!DO" | b"<!do" | b"<htm" | b"<HTM" => "a web page, not the file it should have led to",
        b"PK\x03\x04" => "a zip archive (a PyTorch or NumPy file?)",
        _ => "something else",
    };
    let found = magic.escape_ascii();
    let problem = format!("the file starts with \"{found}\" ({what}), expected \"GGUF\"");
    Err(IngestError::Malformed { format: FORMAT, offset, problem })
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, IngestError> {
    let offset = cursor.position;
    let mut version = cursor.u32("the format version")?;
    // A small number whose lower half is zero was written in the other byte order (`gguf.cpp:gguf_init_from_reader`).
    if version.trailing_zeros() >= 16 && version != 0 {
        version = version.swap_bytes();
        cursor.order = ByteOrder::Big;
    }
    if !(1..=3).contains(&version) {
        let problem = format!("format version {version}, expected 1, 2 or 3");
        return Err(IngestError::Malformed { format: FORMAT, offset, problem });
    }
    cursor.narrow = version == 1;
    Ok(version)
}

/// Refuses a count that is above its limit, or whose smallest encoding is longer than what is left of the file.
fn plausible(cursor: &Cursor<'_>, what: &str, found: u64, limit: u64, smallest: u64) -> Result<(), IngestError> {
    let remaining = cursor.remaining();
    if found.checked_mul(smallest).is_none_or(|bytes| bytes > remaining) {
        return Err(cursor.malformed(format!(
            "{what} is {found}, but no more than {} fit into the {remaining} bytes that follow",
            remaining / smallest.max(1)
        )));
    }
    if found > limit {
        return Err(IngestError::Limit { format: FORMAT, what: what.to_string(), found, limit });
    }
    Ok(())
}

fn metadata(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
    n: u64,
    keep: &[&str],
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Value>, IngestError> {
    let mut metadata = BTreeMap::new();
    for index in 0..n {
        let start = cursor.position;
        let what = format!("the key of metadata entry {index}");
        let key = printable(&utf8(cursor.text(limits.name_bytes, &what)?, &what, notes));
        if key.is_empty() {
            let problem = format!("{what} is empty");
            return Err(IngestError::Malformed { format: FORMAT, offset: start, problem });
        }
        let what = format!("the value of {key}");
        let element = element_type(cursor, &what)?;
        let value = value(cursor, limits, element, &what, keep.contains(&key.as_str()), 0, notes)?;
        match metadata.entry(key) {
            Entry::Vacant(place) => {
                place.insert(value);
            }
            Entry::Occupied(before) => {
                return Err(IngestError::Field {
                    place: before.key().clone(),
                    found: "two metadata entries of this key".to_string(),
                    expected: "each key once".to_string(),
                });
            }
        }
    }
    Ok(metadata)
}

fn element_type(cursor: &mut Cursor<'_>, what: &str) -> Result<ElementType, IngestError> {
    let offset = cursor.position;
    let id = cursor.u32(what)?;
    ElementType::from_id(id).ok_or_else(|| IngestError::Malformed {
        format: FORMAT,
        offset,
        problem: format!("{what} has the type {id}, expected 0 to 12"),
    })
}

fn value(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
    element: ElementType,
    what: &str,
    keep: bool,
    depth: u32,
    notes: &mut Vec<String>,
) -> Result<Value, IngestError> {
    Ok(match element {
        ElementType::U8 => Value::Int(cursor.u8(what)?.into()),
        ElementType::I8 => Value::Int(cursor.u8(what)?.cast_signed().into()),
        ElementType::U16 => Value::Int(cursor.u16(what)?.into()),
        ElementType::I16 => Value::Int(cursor.u16(what)?.cast_signed().into()),
        ElementType::U32 => Value::Int(cursor.u32(what)?.into()),
        ElementType::I32 => Value::Int(cursor.u32(what)?.cast_signed().into()),
        ElementType::U64 => Value::Int(cursor.u64(what)?.into()),
        ElementType::I64 => Value::Int(cursor.u64(what)?.cast_signed().into()),
        ElementType::F32 => Value::Float(f32::from_bits(cursor.u32(what)?).into()),
        ElementType::F64 => Value::Float(f64::from_bits(cursor.u64(what)?)),
        ElementType::Bool => Value::Bool(cursor.u8(what)? != 0),
        ElementType::Text => Value::Text(utf8(cursor.text(limits.text_bytes, what)?, what, notes)),
        ElementType::Array => array(cursor, limits, what, keep, depth, notes)?,
    })
}

fn array(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
    what: &str,
    keep: bool,
    depth: u32,
    notes: &mut Vec<String>,
) -> Result<Value, IngestError> {
    let element = element_type(cursor, what)?;
    let len = cursor.count(what)?;
    let prefix = if cursor.narrow { 4 } else { 8 };
    let smallest = match element {
        ElementType::Array => prefix + 4,
        other => other.size().unwrap_or(prefix),
    };
    plausible(cursor, &format!("the number of elements in {what}"), len, u64::MAX, smallest)?;
    let short_numbers = element.size().is_some() && len <= limits.kept_elements;
    let values = match (element, element.size()) {
        (ElementType::Array, _) => {
            if depth >= limits.nesting {
                return Err(IngestError::Limit {
                    format: FORMAT,
                    what: format!("the depth of nested lists in {what}"),
                    found: u64::from(depth).saturating_add(1),
                    limit: limits.nesting.into(),
                });
            }
            if depth == 0 {
                notes.push(format!("{what} is a list of lists, which llama.cpp refuses"));
            }
            for _ in 0..len {
                array(cursor, limits, what, false, depth.saturating_add(1), notes)?;
            }
            None
        }
        _ if depth == 0 && (keep || short_numbers) => {
            let mut values = Vec::new();
            for _ in 0..len {
                values.push(value(cursor, limits, element, what, false, depth, notes)?);
            }
            Some(values)
        }
        (_, Some(size)) => {
            cursor.skip(len.saturating_mul(size), what)?;
            None
        }
        (_, None) => {
            cursor.skip_texts(len, what)?;
            None
        }
    };
    Ok(Value::Array { element, len, values })
}

fn utf8(bytes: Vec<u8>, what: &str, notes: &mut Vec<String>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        // A file of nothing but bad texts should not yield as many notes.
        if notes.len() < 64 {
            notes.push(format!("{what} is no valid UTF-8; the bad bytes are replaced"));
        }
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, IngestError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    value.as_u64().filter(|alignment| alignment.is_power_of_two() && *alignment <= u32::MAX.into()).ok_or_else(|| {
        IngestError::Field {
            place: "general.alignment".to_string(),
            found: value.describe(),
            expected: "a power of two below 2^32".to_string(),
        }
    })
}

fn tensor_info(cursor: &mut Cursor<'_>, limits: &Limits, index: u64, notes: &mut Vec<String>) -> Result<TensorInfo, IngestError> {
    let what = format!("the name of tensor {index}");
    let name = printable(&utf8(cursor.text(limits.name_bytes, &what)?, &what, notes));
    let what = format!("the description of tensor {name}");
    let n_dims = cursor.u32(&what)?;
    let mut shape = [1_u64; 4];
    let dims = usize::try_from(n_dims).ok().and_then(|n| shape.get_mut(..n)).ok_or_else(|| IngestError::Field {
        place: name.clone(),
        found: format!("{n_dims} dimensions"),
        expected: "at most 4".to_string(),
    })?;
    for dim in dims {
        *dim = cursor.count(&what)?;
    }
    let shape = Shape(shape);
    let elements = shape.elements().ok().filter(|n| i64::try_from(*n).is_ok());
    let type_id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;
    let Some(elements) = elements else {
        let [a, b, c, d] = shape.0;
        return Err(IngestError::Field {
            place: name,
            found: format!("{a} x {b} x {c} x {d} elements"),
            expected: "below 2^63 in all".to_string(),
        });
    };
    let format = StorageFormat::from_ggml_id(type_id);
    let bytes = match format {
        None => None,
        Some(format) if !shape.row().is_multiple_of(format.block_len()) => {
            return Err(IngestError::Field {
                place: name,
                found: format!("rows of {} elements stored as {format}", shape.row()),
                expected: format!("a multiple of its block length {}", format.block_len()),
            });
        }
        Some(format) => {
            let bytes = (elements / format.block_len()).checked_mul(format.block_bytes());
            Some(bytes.ok_or_else(|| IngestError::Field {
                place: name.clone(),
                found: format!("{elements} elements stored as {format}"),
                expected: "bytes below 2^64".to_string(),
            })?)
        }
    };
    Ok(TensorInfo { name, shape, n_dims, type_id, format, offset, bytes })
}
