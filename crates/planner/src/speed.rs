//! How fast the model runs as planned.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::throughput::simulate::{Load, Outcome, Scheduler, simulate};
use plimsoll_math::throughput::{Estimate, Metric, VERSION, float};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::pace::Pace;

/// Tokens per second, to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PerSecond {
    thousandths: u64,
}

impl PerSecond {
    /// A rate; what is no number, or beyond all reason, becomes 0.
    #[must_use]
    pub fn new(rate: f64) -> Self {
        let thousandths = format!("{:.0}", (rate * 1000.0).clamp(0.0, 1e15)).parse().unwrap_or(0);
        Self { thousandths }
    }

    /// The rate as a number.
    #[must_use]
    pub fn get(self) -> f64 {
        float(self.thousandths) / 1000.0
    }
}

impl Serialize for PerSecond {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.get())
    }
}

impl<'de> Deserialize<'de> for PerSecond {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(f64::deserialize(deserializer)?))
    }
}

/// A rate with the interval that held four of five measurements not used to fit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// The rate to expect.
    pub expected: PerSecond,
    /// One of ten lies below.
    pub low: PerSecond,
    /// One of ten lies above.
    pub high: PerSecond,
}

impl From<Estimate> for Rate {
    fn from(estimate: Estimate) -> Self {
        Self {
            expected: PerSecond::new(estimate.expected),
            low: PerSecond::new(estimate.low),
            high: PerSecond::new(estimate.high),
        }
    }
}

/// A time in seconds, to a microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Seconds {
    millionths: u64,
}

impl Seconds {
    /// A time; what is no number, or beyond all reason, becomes 0.
    #[must_use]
    pub fn new(seconds: f64) -> Self {
        Self { millionths: format!("{:.0}", (seconds * 1e6).clamp(0.0, 1e15)).parse().unwrap_or(0) }
    }

    /// The time as a number.
    #[must_use]
    pub fn get(self) -> f64 {
        float(self.millionths) / 1e6
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.get())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(f64::deserialize(deserializer)?))
    }
}

/// A time with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The time to expect.
    pub expected: Seconds,
    /// One of ten is shorter.
    pub low: Seconds,
    /// One of ten is longer.
    pub high: Seconds,
}

impl From<Estimate> for Wait {
    fn from(estimate: Estimate) -> Self {
        Self { expected: Seconds::new(estimate.expected), low: Seconds::new(estimate.low), high: Seconds::new(estimate.high) }
    }
}

/// How fast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throughput {
    /// Tokens per second of a prompt of `prompt` tokens, nothing before it.
    pub prefill_tokens_per_s: Rate,
    /// Tokens per second of one sequence alone, at its beginning.
    pub decode_tokens_per_s: Rate,
    /// Tokens per second of one sequence alone, with its context full.
    pub decode_tokens_per_s_at_full_context: Rate,
    /// Tokens per second of all sequences together, half way through their contexts.
    pub aggregate_decode_tokens_per_s: Rate,
    /// Seconds from a request's arrival to its first token while the deployment's sequences are all kept busy: the median.
    pub time_to_first_token_s: Option<Wait>,
    /// `(end to end - time to first token) / (output tokens - 1)`, seconds, under the same load: the median.
    pub time_per_output_token_s: Option<Wait>,
    /// Answers completed in a second under the same load.
    pub requests_per_s: Option<PerSecond>,
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens of the answers of that load.
    pub output: u64,
    /// Share of held-out measurements that such intervals held, percent.
    pub interval_percent: u8,
    /// The calibration's number.
    pub calibration: String,
    /// What had to be assumed.
    pub assumptions: Vec<String>,
}

/// Prompts are quoted at this length, as llama-bench does.
const PROMPT: u64 = 512;

/// Answers of the load are this long.
const OUTPUT: u64 = 128;

impl Throughput {
    /// Its rates by name.
    #[must_use]
    pub fn rates(&self) -> Vec<(&'static str, Rate)> {
        [
            ("prefill_tokens_per_s", self.prefill_tokens_per_s),
            ("decode_tokens_per_s", self.decode_tokens_per_s),
            ("decode_tokens_per_s_at_full_context", self.decode_tokens_per_s_at_full_context),
            ("aggregate_decode_tokens_per_s", self.aggregate_decode_tokens_per_s),
        ]
        .into()
    }
}

/// Every sequence answers one request after the other: the step scheduler, simulated.
fn under_load(pace: &Pace, planned: &Planned, sequences: u64, prompt: u64, output: u64) -> Option<Outcome> {
    let small = |value: u64| u32::try_from(value).ok();
    let concurrency = small(sequences.min(MOST_SIMULATED))?;
    let load =
        Load::Closed { concurrency, requests: concurrency.saturating_mul(2), prompt: small(prompt)?, output: small(output)? };
    let scheduler = Scheduler { max_sequences: concurrency, max_batched_tokens: small(planned.resolved.batch)? };
    simulate(&load, scheduler, |step| pace.step_seconds(step)).ok()
}

/// More sequences than these are not simulated for one answer of `fit`.
const MOST_SIMULATED: u64 = 1024;

/// How fast `planned` runs; `None` for engines and devices whose speed is not modelled.
///
/// # Errors
/// [`PlanError::Math`] where a size leaves the exact range.
pub fn throughput(question: &Question<'_>, planned: &Planned) -> Result<Option<Throughput>, PlanError> {
    let Some(pace) = Pace::new(question, planned)? else { return Ok(None) };
    let tokens = planned.resolved.context_per_sequence;
    let context = float(tokens);
    let sequences = question.effective.deployment.sequences.max(1);
    let prompt = PROMPT.min(tokens).max(1);
    let output = OUTPUT.min(tokens.saturating_sub(prompt)).max(2);
    let outcome = under_load(&pace, planned, sequences, prompt, output);
    let median = |metric, values: fn(&Outcome) -> &[f64]| -> Option<Wait> {
        let middle = Outcome::quantile(values(outcome.as_ref()?), 0.5)?;
        Some(pace.around(metric, middle).into())
    };
    Ok(Some(Throughput {
        prefill_tokens_per_s: pace.prefill(float(prompt), 0.0),
        decode_tokens_per_s: pace.decode(1.0, 64.0),
        decode_tokens_per_s_at_full_context: pace.decode(1.0, context),
        aggregate_decode_tokens_per_s: pace.decode(float(sequences), context / 2.0),
        time_to_first_token_s: median(Metric::Prefill, |outcome| &outcome.time_to_first_token),
        time_per_output_token_s: median(Metric::Decode, |outcome| &outcome.time_per_output_token),
        requests_per_s: outcome.as_ref().map(|outcome| PerSecond::new(outcome.requests_per_second())),
        prompt,
        output,
        interval_percent: 80,
        calibration: VERSION.to_string(),
        assumptions: pace.assumptions,
    }))
}
