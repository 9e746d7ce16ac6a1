//! GGUF: metadata and tensor infos of llama.cpp's model files, never their data.
//!
//! [`Header::read`] reads a header from any [`RangeSource`](crate::source::RangeSource): a slice, a file, ranges of a
//! remote file. It accepts versions 1 to 3 in either byte order, counts token lists without keeping them, and asks
//! for no more than the header's bytes, so that a file of 400 GB costs what its header costs.

mod cursor;
mod limits;
mod reader;
mod value;

pub use limits::Limits;
pub use reader::{Header, TensorInfo};
pub use value::{ByteOrder, ElementType, Value};

/// The name of the format in errors.
pub(crate) const FORMAT: &str = "GGUF";
