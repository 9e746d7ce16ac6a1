//! What the tests against engine truth share: the rows, the settings they were measured in, and the models' architectures.

pub(crate) mod headers;
pub(crate) mod places;
mod rows;
pub(crate) mod specs;
pub(crate) mod truth;
pub(crate) mod vllm;
pub(crate) mod vllm_planner;
pub(crate) mod vllm_rows;

pub(crate) use rows::{fixture, rows};
