//! What the tests against engine truth share: the rows, and the models' architectures.

mod rows;
pub(crate) mod specs;

pub(crate) use rows::{fixture, rows};
