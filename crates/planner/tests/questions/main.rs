//! The planner's promises: one program of all tests, one file for each sentence.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "a test may fail loudly, and not every feature uses everything here"
)]

mod capacity_keeps_promises;
mod every_engine_keeps_the_laws;
mod fleet_placements_hold;
mod laws_of_planning;
mod limits_are_tight;
mod models;
mod pools_between_bounds_say_so;
