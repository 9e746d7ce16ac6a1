//! The ground floor of Plimsoll: pure functions of plain data that say what a language model weighs.
//!
//! No I/O, no clock, no threads, no global state, no vendor's file format: see `ARCHITECTURE.md`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod allocation;
pub mod deployment;
pub mod device;
pub mod engine;
pub mod error;
pub mod format;
pub mod projector;
pub mod quantization;
pub mod spec;
pub mod synth;
pub mod tensor;
pub mod throughput;
pub mod units;
