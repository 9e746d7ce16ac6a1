//! SGLang 0.5.23: a static share of the GPU for weights and pools of tokens.
//!
//! How many tokens a budget holds is a pure function of the model and the options ([`pool`]), followed and checked against
//! SGLang's own configurators. What the budget is depends on what loading leaves free, which is bounded ([`super::ranks`]).

pub mod pool;

/// The version that is followed.
pub const VERSION: &str = "SGLang 0.5.23";
/// The version's number.
pub const VERSION_NUMBER: &str = "0.5.23";
