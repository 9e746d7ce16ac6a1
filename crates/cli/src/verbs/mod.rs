//! Verbs with more to them than one call: one file each.

pub(crate) mod devices;
