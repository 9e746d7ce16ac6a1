//! Compute buffers: the engine's computation graph, and its graph allocator replayed over it.
//!
//! The size of a compute buffer is the high-water mark of `ggml-alloc.c` over the scheduler's copy of the graph:
//! integer arithmetic without any measurement in it.

pub mod replay;
