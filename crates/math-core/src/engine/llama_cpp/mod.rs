//! llama.cpp: what its loader, its caches and its graph allocator take, by build.

pub mod allocate;
pub mod build;
pub mod cache;
pub mod compute;
pub mod conversion;
pub mod draft;
pub mod estimator;
mod facts;
pub mod file_type;
pub mod fit;
mod flash;
pub mod graph;
pub mod layout;
pub mod loader_facts;
pub mod memory;
mod nodes;
pub mod pattern;
pub mod placement;
pub mod projector;
pub mod quantize;
pub mod recurrent;
pub mod refuse;
pub mod resolve;
mod spread;
pub mod weights;
pub mod work_buffer;

pub use build::Build;
pub use file_type::FileType;
pub use loader_facts::LoaderFacts;
pub use resolve::{Resolved, resolve};
