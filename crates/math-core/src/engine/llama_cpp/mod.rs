//! llama.cpp: what its loader, its caches and its graph allocator take, by build.

pub mod build;

pub use build::Build;
