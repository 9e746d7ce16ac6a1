//! The command line as a person would use it: one program of all tests, one file for each sentence.
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

mod answers_keep_their_contract;
mod columns_hold_every_row;
mod devices_are_listed_described_and_probed;
mod every_engine_answers_and_refuses_by_name;
mod exit_codes_say_what_happened;
mod exports_are_read_by_their_readers;
mod fleets_and_loads_are_planned;
mod help_shows_only_what_works;
mod hostile_files_are_one_sentence;
mod planning_verbs_answer_as_asked;
mod run;
mod surfaces_answer_alike;
