//! Verbs with more to them than one call: one file each.

pub(crate) mod capacity;
pub(crate) mod devices;
pub(crate) mod export;
pub(crate) mod fleet;
