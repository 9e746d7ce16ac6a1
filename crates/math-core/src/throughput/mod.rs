//! How fast: tokens per second and latencies, with intervals, from the same facts as memory.
//!
//! A step's time is a sum of terms, each the time that physics asks for (bytes over bandwidth, operations over peak) times an
//! efficiency that was calibrated on published measurements:
//!
//! `t = sqrt(weights^2 + linear^2) + attention + launch + communication + …`, every term `base * exp(sum of coefficients)`.
//!
//! What is read and computed follows from the architecture ([`Work`]); the coefficients form one small versioned table, fitted by
//! `cargo xtask calibrate` from `fixtures/bench/`, and shrink from device to quantization to architecture to backend to nothing where
//! measurements are few. Floating point is at home here, and nowhere near bytes. The formulas with their sources: `docs/throughput.md`.

mod calibration;
mod coefficients;
mod kernels;
pub mod setup;
pub mod simulate;
mod single;
mod terms;
mod under_load;
mod work;

pub use calibration::{Estimate, Metric, VERSION, interval, stratum};
pub use setup::{Era, Parallel, Runtime, Setup, Speeds};
pub use single::{decode, decode_bound, prefill, prefill_bound};
pub use terms::{Built, Group, Recorder, Term, level_of, seconds, share_of};
pub use under_load::{LoadedRequest, decode_step, prefill_step, time_per_output_token};
pub use work::{CacheWork, Facts, Family, Mechanism, Work};

/// A whole number as a floating-point one; exact up to 2^53.
#[must_use]
pub fn float(value: u64) -> f64 {
    let high = u32::try_from(value >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}
