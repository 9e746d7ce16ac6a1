//! Models by their name on a hub: `org/name[@revision][:quant or file]`.
//!
//! Reading the name needs nothing; reaching the hub is the feature `hub`. What is downloaded is small: file lists,
//! `config.json`, indexes, and the header ranges of weight files.

mod id;

pub use id::{HubId, Select};
