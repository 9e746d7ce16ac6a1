//! GGUF: metadata and tensor infos of llama.cpp's model files, never their data.
//!
//! [`Header::read`] reads a header from any [`RangeSource`](crate::source::RangeSource): a slice, a file, ranges of a
//! remote file. It accepts versions 1 to 3 in either byte order, counts token lists without keeping them, and asks
//! for no more than the header's bytes, so that a file of 400 GB costs what its header costs.
//!
//! [`ingest`] is the door: header to model. What a layer is made of is read from its tensors; what the metadata leave
//! out is a row of data per architecture.

mod arch;
mod cursor;
mod door;
mod file_type;
mod hparams;
mod keys;
mod layers;
mod limits;
mod names;
mod operations;
mod projector;
mod reader;
mod split;
mod value;

pub use door::{Options, from_header, ingest, ingest_set};
pub use limits::Limits;
pub use projector::{ingest_projector, projector_from_header};
pub use reader::{Header, TensorInfo};
pub use value::{ByteOrder, ElementType, Value};

/// The name of the format in errors.
pub(crate) const FORMAT: &str = "GGUF";
