//! safetensors: headers, indexes, shards.
//!
//! A file is an 8-byte little-endian length, a JSON object of that length that names every tensor with its number
//! type, shape and byte range, and the data. Only the first two parts are read, at most once each. Lengths stay `u64`
//! throughout, so that a browser (32-bit `usize`) reads the header of a 100 GB file as well as a server does.

mod checkpoint;
mod dtype;
mod header;
mod index;
mod layout;
mod names;

#[cfg(feature = "std")]
pub(crate) use checkpoint::pickles;
pub use checkpoint::{Checkpoint, Context, Shard, StoredTensor};
pub use dtype::Dtype;
pub use header::{Entry, Header, Limits, read_header};
pub use index::{Index, IndexLimits, TotalSize};
pub use layout::{Hints, Layout, LayoutSummary, Part, Summary};
pub use names::{Position, classify};

/// A name out of an untrusted file, fit to stand in a sentence.
pub(crate) fn shown(name: &str) -> alloc::string::String {
    const LONGEST: usize = 100;
    let mut text: alloc::string::String = name.escape_debug().take(LONGEST).collect();
    if name.escape_debug().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

/// Whether a file name is that of a PyTorch checkpoint: a program that builds its tensors when run.
#[must_use]
pub fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending))
}
