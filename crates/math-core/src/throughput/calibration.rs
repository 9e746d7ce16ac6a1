//! From seconds to a figure with an interval.

use super::coefficients::INTERVALS;
pub use super::coefficients::VERSION;
use super::setup::Runtime;
use crate::device::Driver;

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Tokens per second of one sequence.
    Decode,
    /// Tokens per second of a prompt.
    Prefill,
    /// Seconds per output token under load.
    TimePerOutputToken,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Decode, Self::Prefill, Self::TimePerOutputToken];

    /// A short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::TimePerOutputToken => "tpot",
        }
    }
}

/// A figure with the interval that held four of five measurements that were not used to fit it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The figure to expect.
    pub expected: f64,
    /// One of ten lies below.
    pub low: f64,
    /// One of ten lies above.
    pub high: f64,
}

/// The group of measurements that an interval is taken from.
#[must_use]
pub const fn stratum(metric: Metric, runtime: Runtime, driver: Driver) -> &'static str {
    match (metric, runtime, driver) {
        (Metric::TimePerOutputToken, Runtime::Vllm, _) => "vllm",
        (Metric::TimePerOutputToken, Runtime::Sglang, _) => "sglang",
        (Metric::TimePerOutputToken, ..) => "tensorrt-llm",
        (_, Runtime::Llamafile, _) => "llamafile",
        (.., Driver::Cpu) => "cpu",
        (.., Driver::Metal) => "metal",
        (.., Driver::Cuda) => "cuda",
        (.., Driver::Rocm | Driver::Vulkan) => "rocm-vulkan",
    }
}

/// The estimate around `expected`, a time: the interval's ends are times as well. `uncertain` widens it for a device whose own
/// figures are estimates.
#[must_use]
pub fn interval(metric: Metric, runtime: Runtime, driver: Driver, seconds: f64, uncertain: bool) -> Estimate {
    let name = stratum(metric, runtime, driver);
    let (low, high) = INTERVALS
        .iter()
        .find(|(of, there, ..)| *of == metric.name() && *there == name)
        .map_or((-700, 700), |(.., low, high)| (*low, *high));
    let widened = if uncertain { 1.25 } else { 1.0 };
    let at = |thousandths: i16| seconds * libm::exp(f64::from(thousandths) / 1000.0 * widened);
    Estimate { expected: seconds, low: at(low.min(0)), high: at(high.max(0)) }
}

impl Estimate {
    /// A time for `amount` as a rate: the interval's ends change places.
    #[must_use]
    pub fn as_rate(&self, amount: f64) -> Self {
        let rate = |seconds: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        Self { expected: rate(self.expected), low: rate(self.high), high: rate(self.low) }
    }

    /// Nothing above `bound`.
    #[must_use]
    pub fn at_most(&self, bound: f64) -> Self {
        Self { expected: self.expected.min(bound), low: self.low.min(bound), high: self.high.min(bound) }
    }
}
