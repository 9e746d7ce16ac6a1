//! How fast the model runs as planned.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::TermKind;
use plimsoll_math::device::{Device, DeviceKind, Driver, Origin};
use plimsoll_math::throughput::setup::OnHost;
use plimsoll_math::throughput::{
    Estimate, Metric, Runtime, Setup, Speeds, VERSION, Work, decode, decode_bound, float, interval, prefill, prefill_bound,
    seconds,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::request::Engine;

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
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Share of held-out measurements that such intervals held, percent.
    pub interval_percent: u8,
    /// The calibration's number.
    pub calibration: String,
    /// What had to be assumed.
    pub assumptions: Vec<String>,
}

/// Prompts are quoted at this length, as llama-bench does.
const PROMPT: u64 = 512;

/// One device that stands for several which hold layers one after the other: each byte is read at its own device's pace.
fn together(devices: &[(Device, f64)]) -> Option<(Speeds, f64, bool)> {
    let known: Vec<(Speeds, f64, bool)> = devices
        .iter()
        .map(|(device, share)| {
            let estimated = device.speed.is_some_and(|speed| speed.origin == Origin::Estimated);
            Speeds::of(device).map(|speeds| (speeds, *share, estimated))
        })
        .collect::<Option<_>>()?;
    let total: f64 = known.iter().map(|(_, share, _)| share).sum();
    let count = float(u64::try_from(known.len()).unwrap_or(1));
    let (first, ..) = known.iter().max_by(|(_, left, _), (_, right, _)| left.total_cmp(right))?;
    let mut speeds = first.clone();
    let mean = |of: fn(&Speeds) -> f64| -> f64 {
        let weight = |share: f64| if total > 0.0 { share / total } else { 1.0 / count };
        let time: f64 = known.iter().map(|(speeds, share, _)| weight(*share) / of(speeds).max(1.0)).sum();
        1.0 / time.max(1e-30)
    };
    if known.len() > 1 {
        speeds.bandwidth = mean(|speeds| speeds.bandwidth);
        speeds.half = mean(|speeds| speeds.half);
        speeds.int8 = mean(|speeds| speeds.int8);
        speeds.usable = known.iter().map(|(speeds, ..)| speeds.usable).sum::<f64>() / count;
    }
    let estimated = known.iter().any(|(.., estimated)| *estimated);
    Some((speeds, count, estimated))
}

/// What stays on the host, by the bytes that the plan puts there.
fn on_host(question: &Question<'_>, planned: &Planned, work: &Work) -> Result<Option<OnHost>, PlanError> {
    let deployment = &question.effective.deployment;
    if deployment.devices.is_empty() {
        return Ok(None);
    }
    // The input embedding is on the host in any case, and one row of it is read.
    let there = (float(planned.allocation.host.of(TermKind::Weights)?.get()) - work.embedding_bytes).max(0.0);
    let all = work.dense_bytes + work.expert_bytes;
    if there < all * 0.01 {
        return Ok(None);
    }
    let host = Speeds::usual_host();
    let experts_first = deployment.cpu_moe || deployment.n_cpu_moe > 0;
    let (experts, rest) = if experts_first && work.expert_bytes > 0.0 {
        let experts = (there / work.expert_bytes).min(1.0);
        (experts, ((there - work.expert_bytes * experts) / work.dense_bytes.max(1.0)).clamp(0.0, 1.0))
    } else {
        (there / all, there / all)
    };
    Ok(Some(OnHost { host, experts, rest, layers: work.layers * experts.max(rest) }))
}

/// How fast `planned` runs; `None` for engines and devices whose speed is not modelled.
///
/// # Errors
/// [`PlanError::Math`] where a size leaves the exact range.
pub fn throughput(question: &Question<'_>, planned: &Planned) -> Result<Option<Throughput>, PlanError> {
    if !matches!(question.effective.engine, Engine::LlamaCpp(_)) || question.model.generic || question.model.is_embedder() {
        return Ok(None);
    }
    let deployment = &question.effective.deployment;
    let mut assumptions = Vec::new();
    let work = Work::new(&question.model.converted(), question.tensors(), deployment.kv_type_k, deployment.kv_type_v)?;
    let mut devices = Vec::new();
    for (device, place) in question.effective.devices.iter().zip(&planned.allocation.devices) {
        devices.push((device.clone(), float(place.of(TermKind::Weights)?.get())));
    }
    let alone_unknown = devices.iter().all(|(device, _)| device.kind == DeviceKind::Cpu && device.speed.is_none());
    let (speeds, count, estimated) = if alone_unknown {
        assumptions.push(
            "the processor is taken for a desktop's with two channels of DDR5: name one of `plimsoll devices` for another"
                .to_string(),
        );
        (Speeds::usual_host(), 1.0, true)
    } else {
        match together(&devices) {
            Some(found) => found,
            None => return Ok(None),
        }
    };
    let mut setup = Setup::new(Runtime::LlamaCpp, speeds);
    setup.devices = count;
    setup.without_flash = !planned.resolved.flash_attention;
    if setup.driver != Driver::Cpu {
        setup.on_host = on_host(question, planned, &work)?;
        if setup.on_host.is_some() {
            assumptions.push("the host is taken for a desktop with two channels of DDR5".to_string());
        }
    }
    let uncertain = estimated || setup.on_host.is_some();
    let rate = |metric: Metric, time: f64, amount: f64, bound: f64| -> Rate {
        interval(metric, setup.runtime, setup.driver, time, uncertain).as_rate(amount).at_most(bound).into()
    };
    let context = float(planned.resolved.context_per_sequence);
    let sequences = float(deployment.sequences.max(1));
    let at = |sequences: f64, depth: f64| {
        let time = seconds(&decode(&work, &setup, sequences, depth, None));
        rate(Metric::Decode, time, sequences, decode_bound(&work, &setup, sequences))
    };
    let prompt = PROMPT.min(planned.resolved.context_per_sequence).max(1);
    let tokens = float(prompt);
    let time = seconds(&prefill(&work, &setup, tokens, 0.0, float(planned.resolved.ubatch), None));
    Ok(Some(Throughput {
        prefill_tokens_per_s: rate(Metric::Prefill, time, tokens, prefill_bound(&work, &setup)),
        decode_tokens_per_s: at(1.0, 64.0),
        decode_tokens_per_s_at_full_context: at(1.0, context),
        aggregate_decode_tokens_per_s: at(sequences, context / 2.0),
        prompt,
        interval_percent: 80,
        calibration: VERSION.to_string(),
        assumptions,
    }))
}
