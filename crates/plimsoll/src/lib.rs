//! Will it fit? Exact memory planning for language models, per engine, to the byte.
//!
//! This crate re-exports the three libraries it is made of: [`math`] (the formulas), [`ingest`] (configs and headers
//! into facts) and [`planner`] (the questions).

pub use plimsoll_ingest as ingest;
pub use plimsoll_math as math;
pub use plimsoll_planner as planner;
