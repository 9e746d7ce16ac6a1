//! Metadata values.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Which byte of a number comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// The lowest (nearly every file).
    Little,
    /// The highest (files for s390x).
    Big,
}

/// The type of a metadata value, or of a list's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the number type it is named after")]
pub enum ElementType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ElementType {
    /// The type with this number in a file (`gguf.h:gguf_type`).
    pub(crate) const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element, `None` where they vary.
    pub(crate) const fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// A metadata value. Number widths are gone: what a key means decides what it may hold, not how it was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of any width, signed or not.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list.
    Array {
        /// What its elements are.
        element: ElementType,
        /// How many they are.
        len: u64,
        /// The elements, when they were kept: short lists of numbers and truth values, and lists that were asked for.
        values: Option<Vec<Value>>,
    },
}

impl Value {
    /// As a count.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            Self::Float(_) | Self::Bool(_) | Self::Text(_) | Self::Array { .. } => None,
        }
    }
    /// As a truth value.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Int(_) | Self::Float(_) | Self::Text(_) | Self::Array { .. } => None,
        }
    }
    /// As a number of any kind.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            Self::Int(number) => i32::try_from(*number).ok().map(f64::from),
            Self::Bool(_) | Self::Text(_) | Self::Array { .. } => None,
        }
    }
    /// As a text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Int(_) | Self::Float(_) | Self::Bool(_) | Self::Array { .. } => None,
        }
    }
    /// The kept elements of a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::Array { values, .. } => values.as_deref(),
            Self::Int(_) | Self::Float(_) | Self::Bool(_) | Self::Text(_) => None,
        }
    }
    /// A short rendering for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Int(number) => format!("{number}"),
            Self::Float(number) => format!("{number}"),
            Self::Bool(value) => format!("{value}"),
            Self::Text(text) => {
                let short: String = text.chars().take(60).collect();
                let rest = if short.len() < text.len() { "…" } else { "" };
                format!("\"{}{rest}\"", printable(&short))
            }
            Self::Array { element, len, .. } => format!("a list of {len} {element:?}"),
        }
    }
}

/// `text` without characters that would move a terminal's cursor or break a line: they are spelled out.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() { out.extend(letter.escape_unicode()) } else { out.push(letter) }
    }
    out
}
