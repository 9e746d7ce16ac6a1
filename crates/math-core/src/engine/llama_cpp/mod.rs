//! llama.cpp: what its loader, its caches and its graph allocator take, by build.

pub mod build;
pub mod cache;
mod facts;
pub mod memory;
pub mod recurrent;
pub mod refuse;
pub mod resolve;

pub use build::Build;
pub use resolve::{Resolved, resolve};
