//! Transformers 5.23.0: what `model.generate` keeps on one device.
//!
//! The cache is a list of layers, one class for each kind of mixer ([`cache`]): tensors that grow with every token
//! (`DynamicCache`), tensors of their final size (`StaticCache`), or 8-bit floats. Weights are the checkpoint's
//! parameters as they are loaded ([`allocate`]).

pub mod allocate;
pub mod cache;

/// The version that is followed.
pub const VERSION: &str = "Transformers 5.23.0";
/// The version's number.
pub const VERSION_NUMBER: &str = "5.23.0";
