//! `weights.npz`, which MLX wrote before safetensors: a zip archive with one `.npy` file per tensor.
//!
//! The archive's directory stands at its end, so three kinds of ranges are read: the end, the directory, and the first
//! bytes of each tensor. Tensors that are compressed count by the sizes that the directory states.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::IngestError;
use crate::safetensors::{Checkpoint, Context, Dtype, Entry, Header, Hints, shown};
use crate::source::RangeSource;

const FORMAT: &str = "npz";
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const DIRECTORY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
const END_BYTES: u64 = 22;
const LONGEST_COMMENT: u64 = 65_535;
/// Says "see the 64-bit field" in a 32-bit one.
const IN_64: u64 = 0xffff_ffff;

/// What an archive may hold before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NpzLimits {
    /// Longest directory in bytes.
    pub directory_bytes: u64,
    /// Most tensors.
    pub tensors: u64,
    /// Longest header of one `.npy` file.
    pub npy_header_bytes: u64,
    /// Most dimensions of a tensor.
    pub dimensions: usize,
}

impl Default for NpzLimits {
    fn default() -> Self {
        Self { directory_bytes: 64 << 20, tensors: 200_000, npy_header_bytes: 64 << 10, dimensions: 16 }
    }
}

/// Reads the headers of an archive.
///
/// # Errors
/// [`IngestError::Malformed`], [`IngestError::Limit`] or [`IngestError::Field`] for an archive that is not what it should
/// be, [`IngestError::Unavailable`] from the source.
pub fn read_npz(
    source: &dyn RangeSource,
    limits: &NpzLimits,
    context: Context,
    hints: &Hints,
) -> Result<Checkpoint, IngestError> {
    let header = header(source, limits)?;
    Checkpoint::assemble([(source.name(), header)].into(), Vec::new(), context, hints)
}

fn malformed(offset: u64, problem: impl Into<String>) -> IngestError {
    IngestError::Malformed { format: FORMAT, offset, problem: problem.into() }
}

/// Whole numbers in little-endian bytes; nothing is read beyond them.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    bytes: &'a [u8],
    /// Where they stand in the file, for messages.
    at: u64,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], IngestError> {
        let end = usize::try_from(length).ok().filter(|end| *end <= self.bytes.len());
        let Some((taken, rest)) = end.and_then(|end| self.bytes.split_at_checked(end)) else {
            return Err(malformed(self.at, format!("{length} bytes are announced, {} are there", self.bytes.len())));
        };
        self.bytes = rest;
        self.at = self.at.saturating_add(length);
        Ok(taken)
    }
    fn number(&mut self, length: u64) -> Result<u64, IngestError> {
        Ok(self.take(length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
    fn signature(&mut self, signature: &[u8], what: &str) -> Result<(), IngestError> {
        let at = self.at;
        if self.take(4)? == signature { Ok(()) } else { Err(malformed(at, format!("{what} does not begin with its signature"))) }
    }
}

/// Where the directory stands.
struct End {
    entries: u64,
    bytes: u64,
    offset: u64,
}

fn end(source: &dyn RangeSource, length: u64) -> Result<End, IngestError> {
    let start = length.saturating_sub(END_BYTES.saturating_add(LONGEST_COMMENT));
    let tail = source.read(start, usize::try_from(length.saturating_sub(start)).unwrap_or(usize::MAX))?;
    let Some(position) = tail.windows(4).rposition(|window| window == END) else {
        return Err(malformed(length, "no end of a zip directory: not an archive, or cut short"));
    };
    let at = start.saturating_add(u64::try_from(position).unwrap_or(u64::MAX));
    let mut bytes = Bytes { bytes: tail.get(position..).unwrap_or_default(), at };
    bytes.signature(END, "the end of the directory")?;
    let (disk, first_disk) = (bytes.number(2)?, bytes.number(2)?);
    let (_, entries) = (bytes.number(2)?, bytes.number(2)?);
    let (size, offset) = (bytes.number(4)?, bytes.number(4)?);
    if entries != 0xffff && size != IN_64 && offset != IN_64 {
        if disk != 0 || first_disk != 0 {
            return Err(malformed(at, "an archive in several volumes is not read"));
        }
        return Ok(End { entries, bytes: size, offset });
    }
    const LOCATOR_BYTES: u64 = 20;
    let Some(locator) = at.checked_sub(LOCATOR_BYTES) else {
        // The count alone may be 65,535 without any 64-bit fields.
        return Ok(End { entries, bytes: size, offset });
    };
    let found = source.read(locator, 20)?;
    let mut bytes = Bytes { bytes: &found, at: locator };
    if bytes.take(4)? != LOCATOR_64 {
        return if size == IN_64 || offset == IN_64 {
            Err(malformed(locator, "64-bit fields are announced and not there"))
        } else {
            Ok(End { entries, bytes: size, offset })
        };
    }
    bytes.take(4)?;
    let at = bytes.number(8)?;
    let found = source.read(at, 56)?;
    let mut bytes = Bytes { bytes: &found, at };
    bytes.signature(END_64, "the 64-bit end of the directory")?;
    bytes.take(28)?;
    Ok(End { entries: bytes.number(8)?, bytes: bytes.number(8)?, offset: bytes.number(8)? })
}

/// One file of the archive.
struct Member {
    name: String,
    stored: bool,
    encrypted: bool,
    packed: u64,
    unpacked: u64,
    offset: u64,
}

fn member(bytes: &mut Bytes<'_>) -> Result<Member, IngestError> {
    let at = bytes.at;
    bytes.signature(DIRECTORY, "an entry of the directory")?;
    bytes.take(4)?;
    let (flags, method) = (bytes.number(2)?, bytes.number(2)?);
    bytes.take(8)?;
    let (mut packed, mut unpacked) = (bytes.number(4)?, bytes.number(4)?);
    let (name, extra, comment) = (bytes.number(2)?, bytes.number(2)?, bytes.number(2)?);
    bytes.take(8)?;
    let mut offset = bytes.number(4)?;
    let name = bytes.take(name)?;
    let mut extra = Bytes { at: bytes.at, bytes: bytes.take(extra)? };
    bytes.take(comment)?;
    while extra.bytes.len() >= 4 {
        let (id, length) = (extra.number(2)?, extra.number(2)?);
        let mut field = Bytes { at: extra.at, bytes: extra.take(length)? };
        if id == 1 {
            for value in [&mut unpacked, &mut packed, &mut offset] {
                if *value == IN_64 {
                    *value = field.number(8)?;
                }
            }
        }
    }
    let name = core::str::from_utf8(name).map_err(|_| malformed(at, "a name is not valid UTF-8"))?.to_owned();
    Ok(Member { name, stored: method == 0, encrypted: flags & 1 != 0, packed, unpacked, offset })
}

fn header(source: &dyn RangeSource, limits: &NpzLimits) -> Result<Header, IngestError> {
    let Some(length) = source.len()? else {
        return Err(IngestError::Unavailable {
            what: source.name(),
            why: "its length is not known, and a zip archive is read from its end".to_string(),
        });
    };
    let end = end(source, length)?;
    let limit = |what: &str, found: u64, limit: u64| {
        if found > limit { Err(IngestError::Limit { format: FORMAT, what: what.to_string(), found, limit }) } else { Ok(()) }
    };
    limit("the number of files", end.entries, limits.tensors)?;
    limit("the length of the directory", end.bytes, limits.directory_bytes)?;
    if end.offset.checked_add(end.bytes).is_none_or(|stop| stop > length) {
        return Err(malformed(end.offset, format!("the directory of {} bytes reaches past the end of the file", end.bytes)));
    }
    let directory = source.read(end.offset, usize::try_from(end.bytes).unwrap_or(usize::MAX))?;
    let mut bytes = Bytes { bytes: &directory, at: end.offset };
    let mut header = Header::default();
    let mut compressed = 0_u64;
    let mut position = 0_u64;
    for _ in 0..end.entries {
        let member = member(&mut bytes)?;
        let Some(name) = member.name.strip_suffix(".npy") else {
            header.notes.push(format!("{} in the archive is no .npy file and is left out", shown(&member.name)));
            continue;
        };
        if member.encrypted {
            return Err(malformed(member.offset, format!("{} is encrypted", shown(name))));
        }
        let (dtype, dtype_name, shape, size) = if member.stored {
            if member.packed != member.unpacked {
                return Err(malformed(
                    member.offset,
                    format!("{} is stored in {} bytes and said to have {}", shown(name), member.packed, member.unpacked),
                ));
            }
            let array = array(source, &member, name, length, limits)?;
            let elements = array.shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
            let data = member.unpacked.saturating_sub(array.header_bytes);
            let expected = array.dtype.and_then(|dtype| elements.and_then(|elements| dtype.bytes(elements)));
            if array.dtype.is_some() && expected != Some(data) {
                return Err(IngestError::Field {
                    place: format!("tensor {}", shown(name)),
                    found: format!("{data} bytes of data"),
                    expected: format!("the bytes of shape {:?} of {}", array.shape, shown(&array.descr)),
                });
            }
            if array.dtype.is_none() {
                header.notes.push(format!(
                    "tensor {}: number type {} is not known; its {data} bytes are counted, its elements are not",
                    shown(name),
                    shown(&array.descr)
                ));
            }
            (array.dtype, array.descr, array.shape, data)
        } else {
            compressed = compressed.saturating_add(1);
            // The header inside is packed as well; its usual length is 128.
            (None, "compressed".to_owned(), Vec::new(), member.unpacked.saturating_sub(128))
        };
        let stop = position.checked_add(size).ok_or_else(|| malformed(member.offset, "sizes add up beyond 2^64"))?;
        header.tensors.push(Entry { name: name.to_owned(), dtype, dtype_name, shape, start: position, end: stop });
        position = stop;
    }
    if compressed > 0 {
        header
            .notes
            .push(format!("{compressed} tensors are compressed: their bytes are the directory's, their shapes are not read"));
    }
    let mut names: Vec<&str> = header.tensors.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some([twice, _]) = names.windows(2).find_map(|pair| <[&str; 2]>::try_from(pair).ok().filter(|[a, b]| a == b)) {
        return Err(malformed(end.offset, format!("tensor {} stands twice", shown(twice))));
    }
    header.data_start = length.saturating_sub(position);
    header.data_bytes = position;
    Ok(header)
}

/// What the first bytes of a `.npy` file say.
struct Array {
    descr: String,
    dtype: Option<Dtype>,
    shape: Vec<u64>,
    header_bytes: u64,
}

fn array(source: &dyn RangeSource, member: &Member, name: &str, file: u64, limits: &NpzLimits) -> Result<Array, IngestError> {
    // The local header repeats the name and has extra fields of its own; a tensor's header is rarely above 128 bytes.
    const FIRST: usize = 1024;
    let first = source.read(member.offset, FIRST)?;
    let mut bytes = Bytes { bytes: &first, at: member.offset };
    bytes.signature(LOCAL, "a file in the archive")?;
    bytes.take(22)?;
    let (name_bytes, extra) = (bytes.number(2)?, bytes.number(2)?);
    let start = member.offset.saturating_add(30).saturating_add(name_bytes).saturating_add(extra);
    if start.checked_add(member.packed).is_none_or(|stop| stop > file) {
        return Err(malformed(member.offset, format!("{} reaches past the end of the archive", shown(name))));
    }
    let broken = |problem: &str| malformed(start, format!("tensor {}: {problem}", shown(name)));
    let head = source.read(start, 12)?;
    let mut bytes = Bytes { bytes: &head, at: start };
    if bytes.take(6)? != b"\x93NUMPY" {
        return Err(broken("is no .npy file"));
    }
    let (major, _) = (bytes.number(1)?, bytes.number(1)?);
    let (length, prefix) = match major {
        1 => (bytes.number(2)?, 10),
        2 | 3 => (bytes.number(4)?, 12),
        _ => return Err(broken("a .npy version above 3")),
    };
    if length > limits.npy_header_bytes {
        return Err(IngestError::Limit {
            format: FORMAT,
            what: format!("the header of {}", shown(name)),
            found: length,
            limit: limits.npy_header_bytes,
        });
    }
    let header_bytes = length.saturating_add(prefix);
    if header_bytes > member.unpacked {
        return Err(broken("its header is longer than itself"));
    }
    let text = source.read(start.saturating_add(prefix), usize::try_from(length).unwrap_or(usize::MAX))?;
    let text = core::str::from_utf8(&text).map_err(|_| broken("its header is no text"))?;
    let (descr, shape) =
        dictionary(text, limits.dimensions).ok_or_else(|| broken("its header has no descr and shape of the usual form"))?;
    Ok(Array { dtype: dtype(&descr), descr, shape, header_bytes })
}

/// The number type of an array protocol string: byte order, kind, bytes. bfloat16 has no letter and is written as two
/// bytes of no type.
fn dtype(descr: &str) -> Option<Dtype> {
    Some(match descr.trim_start_matches(['<', '>', '|', '=']) {
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "V2" | "bfloat16" => Dtype::Bf16,
        "u1" => Dtype::U8,
        "u2" => Dtype::U16,
        "u4" => Dtype::U32,
        "u8" => Dtype::U64,
        "i1" => Dtype::I8,
        "i2" => Dtype::I16,
        "i4" => Dtype::I32,
        "i8" => Dtype::I64,
        "b1" | "?" => Dtype::Bool,
        "c8" => Dtype::C64,
        _ => return None,
    })
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`. Order in memory changes no size, so it is not kept.
fn dictionary(text: &str, dimensions: usize) -> Option<(String, Vec<u64>)> {
    let mut rest = text.trim().strip_prefix('{')?;
    let (mut descr, mut shape) = (None, None);
    loop {
        rest = rest.trim_start_matches([' ', ',', '\n', '\t']);
        if rest.starts_with('}') {
            break;
        }
        let quote = rest.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (key, after) = rest.get(1..)?.split_once(quote)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = if let Some(open) = value.strip_prefix('(') {
            let (inside, after) = open.split_once(')')?;
            let numbers = inside.split(',').map(|number| number.trim().trim_end_matches('L')).filter(|number| !number.is_empty());
            let list = numbers.map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>()?;
            if key == "shape" {
                shape = Some(list).filter(|list| list.len() <= dimensions);
            }
            after
        } else if let Some(quote) = value.chars().next().filter(|quote| matches!(quote, '\'' | '"')) {
            let (inside, after) = value.get(1..)?.split_once(quote)?;
            if key == "descr" {
                descr = Some(inside.to_owned());
            }
            after
        } else {
            value.find([',', '}']).and_then(|stop| value.get(stop..))?
        };
    }
    Some((descr?, shape?))
}
