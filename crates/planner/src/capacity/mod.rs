//! How many replicas of a model a load needs, and on what: the engine's steps played until the promised latencies hold.
//!
//! Requests are dealt out to the replicas in turn; each replica is the step simulation of its engine's scheduler. The answer is the
//! fewest replicas that keep the promises; one fewer is played as well, and says which promise binds.

pub mod lengths;
pub mod trace;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::throughput::simulate::{Arrival, Load, Outcome, Scheduler, Step, simulate};
use plimsoll_math::throughput::{Metric, float};
use serde::{Deserialize, Serialize};

use crate::change::room_of;
use crate::command::command;
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::model::Model;
use crate::pace::Pace;
use crate::request::Options;
use crate::size::short;

/// Schema name of [`Capacity`].
pub const CAPACITY_SCHEMA: &str = "plimsoll.capacity/1";
/// Replicas at most, unless asked otherwise.
const MOST_REPLICAS: u64 = 1024;

/// Latencies that are promised, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Promises {
    /// 95 of 100 first tokens come within this.
    pub ttft_p95: Option<f64>,
    /// 95 of 100 answers take at most this for each further token.
    pub tpot_p95: Option<f64>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Requests, in order of their times.
    pub arrivals: Vec<Arrival>,
    /// Tokens of the longest prompt with its answer where there are requests beside those that are played; 0 where there are none.
    pub longest: u64,
    /// Latencies.
    pub promises: Promises,
    /// Places to try: devices of one replica each, as in `device`. Those of the options when empty.
    pub places: Vec<String>,
    /// Replicas at most.
    pub most: Option<u64>,
    /// What is to be said about the requests.
    pub notes: Vec<String>,
}

/// Quantiles of a latency, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are below.
    pub p50: f64,
    /// 95 of 100 are below.
    pub p95: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

/// What stands in the way of fewer replicas, or of any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The model does not fit there.
    Memory,
    /// Requests are longer than the context.
    Context,
    /// First tokens come too late.
    TimeToFirstToken,
    /// Further tokens come too slowly.
    TimePerOutputToken,
    /// More comes in than is done.
    Throughput,
    /// Nothing: one replica is the least there is.
    Nothing,
}

/// A number of replicas as it was played.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Played {
    /// Replicas.
    pub replicas: u64,
    /// Time to the first token.
    pub ttft: Latency,
    /// Time per further token; `None` where no answer has any.
    pub tpot: Option<Latency>,
    /// Share of the time in which a replica works.
    pub utilisation: f64,
    /// Sequences that a replica decodes at a time while it works, on average.
    pub sequences: f64,
    /// Requests done per second.
    pub requests_per_s: f64,
    /// Tokens of answers per second.
    pub tokens_per_s: f64,
}

/// One place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Devices of one replica.
    pub devices: Vec<String>,
    /// Sequences that a replica runs at a time.
    pub sequences: u64,
    /// Replicas that keep the promises; `None` where no number does.
    pub replicas: Option<u64>,
    /// Devices of all replicas.
    pub devices_in_all: Option<u64>,
    /// The same were this engine as slow as one in ten measurements.
    pub replicas_if_slow: Option<u64>,
    /// What binds.
    pub binding: Binding,
    /// In words.
    pub why: String,
    /// As played.
    pub played: Option<Played>,
    /// One replica fewer, as played.
    pub one_fewer: Option<Played>,
    /// A replica's command line.
    pub command: Vec<String>,
    /// What had to be assumed.
    pub assumptions: Vec<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// The schema's name.
    pub schema: String,
    /// The model.
    pub model: String,
    /// Requests played.
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
    /// Latencies promised.
    pub promises: Promises,
    /// Places, the fewest devices first.
    pub choices: Vec<Choice>,
    /// What had to be assumed.
    pub notes: Vec<String>,
}

/// What the load needs on every place asked for.
///
/// # Errors
/// [`PlanError`] for a load or promises that cannot be, and as `fit`.
pub fn capacity(model: &Model, options: &Options, asked: &Asked) -> Result<Capacity, PlanError> {
    for (field, seconds) in [("ttft", asked.promises.ttft_p95), ("tpot", asked.promises.tpot_p95)] {
        if seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds.is_finite())) {
            return Err(PlanError::request(field, seconds.unwrap_or(0.0), "seconds, above 0"));
        }
    }
    if asked.promises.ttft_p95.is_none() {
        return Err(PlanError::request(
            "ttft",
            "nothing",
            "the seconds within which 95 of 100 first tokens must come: without it any queue would do",
        ));
    }
    let (Some(first), Some(last)) = (asked.arrivals.first(), asked.arrivals.last()) else {
        return Err(PlanError::request("requests", "none", "at least one"));
    };
    let most = asked.most.unwrap_or(MOST_REPLICAS);
    if most == 0 {
        return Err(PlanError::request("max_replicas", "0", "1 or more"));
    }
    let rate = float(u64::try_from(asked.arrivals.len()).unwrap_or(0)) / (last.at - first.at).max(1e-6);
    let mut choices = Vec::new();
    if asked.places.is_empty() {
        choices.push(choice(model, options, asked, most)?);
    }
    for place in &asked.places {
        let mut changed = options.clone();
        changed.device = Some(place.clone());
        changed.devices = None;
        changed.memory = None;
        choices.push(choice(model, &changed, asked, most)?);
    }
    choices.sort_by_key(|choice| (choice.devices_in_all.is_none(), choice.devices_in_all));
    Ok(Capacity {
        schema: CAPACITY_SCHEMA.to_string(),
        model: model.name.clone(),
        requests: u64::try_from(asked.arrivals.len()).unwrap_or(0),
        rate,
        promises: asked.promises,
        choices,
        notes: asked.notes.clone(),
    })
}

/// A place before any replica is counted.
struct Ready {
    pace: Pace,
    scheduler: Scheduler,
    /// How much slower one in ten measurements is.
    slow: f64,
}

fn choice(model: &Model, options: &Options, asked: &Asked, most: u64) -> Result<Choice, PlanError> {
    let question = Question::new(model, options)?;
    let planned = question.plan()?;
    let devices: Vec<String> = question.effective.devices.iter().map(|device| device.name.clone()).collect();
    let mean: f64 = {
        let tokens: f64 = asked.arrivals.iter().map(|one| f64::from(one.prompt) + f64::from(one.output)).sum();
        tokens / float(u64::try_from(asked.arrivals.len()).unwrap_or(1).max(1))
    };
    let mut answer = Choice {
        sequences: 0,
        replicas: None,
        devices_in_all: None,
        replicas_if_slow: None,
        binding: Binding::Memory,
        why: String::new(),
        played: None,
        one_fewer: None,
        command: command(&question, &planned),
        assumptions: Vec::new(),
        devices,
    };
    if let Err(missing) = room_of(&question, &planned)? {
        answer.why = format!("a replica does not fit: {} are missing", short(missing.get()));
        return Ok(answer);
    }
    let longest = asked.arrivals.iter().map(|one| u64::from(one.prompt) + u64::from(one.output)).max().unwrap_or(0);
    let context = planned.resolved.context_per_sequence;
    if asked.longest > longest.max(context) {
        answer.assumptions.push(format!(
            "requests beside those played are longer than the context of {context} tokens, the longest {}: they are not counted",
            asked.longest
        ));
    }
    if longest > context {
        let over = asked.arrivals.iter().filter(|one| u64::from(one.prompt) + u64::from(one.output) > context).count();
        answer.binding = Binding::Context;
        answer.why = format!(
            "{over} of {} requests are longer than the context of {context} tokens, the longest {longest}: ask for more with --context",
            asked.arrivals.len()
        );
        return Ok(answer);
    }
    let Some(pace) = Pace::new(&question, &planned)? else {
        return Err(PlanError::request("device", answer.devices.join(", "), "an engine and devices whose speed is modelled"));
    };
    answer.assumptions.extend(pace.assumptions.iter().cloned());
    let scheduler = scheduler(&question, &planned, mean, &mut answer.assumptions);
    answer.sequences = u64::from(scheduler.max_sequences);
    let around = pace.around(Metric::Decode, 1.0);
    let ready = Ready { slow: around.high.max(1.0), pace, scheduler };
    solve(&ready, asked, most, &mut answer)?;
    Ok(answer)
}

/// How the engine fills its steps.
fn scheduler(question: &Question<'_>, planned: &Planned, mean: f64, assumptions: &mut Vec<String>) -> Scheduler {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    let batched = narrow(planned.resolved.batch);
    let Some(server) = &planned.vllm else {
        return Scheduler { max_sequences: narrow(question.effective.deployment.sequences), max_batched_tokens: batched };
    };
    // The pool of blocks is shared: as many sequences run as their tokens have room, up to the scheduler's own limit.
    let by_room = float(planned.resolved.total_context) / mean.max(1.0);
    let by_room = format!("{:.0}", libm::floor(by_room).clamp(1.0, 1e6)).parse().unwrap_or(1);
    let sequences = narrow(server.brief.max_sequences).min(by_room);
    if by_room <= narrow(server.brief.max_sequences) {
        assumptions.push(format!("the pool of blocks has room for {by_room} sequences of the mean length at a time"));
    }
    Scheduler { max_sequences: sequences, max_batched_tokens: batched }
}

/// The fewest replicas that keep the promises.
fn solve(ready: &Ready, asked: &Asked, most: u64, answer: &mut Choice) -> Result<(), PlanError> {
    let mut times = Times::default();
    // Alone, no request waits: what is too slow then stays so.
    let alone = play(ready, &spaced(&asked.arrivals), 1, 1.0, &mut times)?;
    if let Some((binding, why)) = broken(&alone, asked.promises) {
        answer.binding = binding;
        answer.why = format!("no number of replicas is enough: even with one request at a time {why}");
        answer.played = Some(alone);
        return Ok(());
    }
    let Some(found) = fewest(ready, asked, most, 1.0, &mut times)? else {
        let played = play(ready, &asked.arrivals, most, 1.0, &mut times)?;
        answer.binding = broken(&played, asked.promises).map_or(Binding::Throughput, |(binding, _)| binding);
        answer.why = format!("more than {most} replicas would be needed");
        answer.played = Some(played);
        return Ok(());
    };
    let played = play(ready, &asked.arrivals, found, 1.0, &mut times)?;
    answer.replicas = Some(found);
    answer.devices_in_all = Some(found.saturating_mul(u64::try_from(answer.devices.len()).unwrap_or(1)));
    if found > 1 {
        let fewer = play(ready, &asked.arrivals, found - 1, 1.0, &mut times)?;
        let (binding, why) =
            broken(&fewer, asked.promises).unwrap_or((Binding::Throughput, "more comes in than is done".to_string()));
        answer.binding = binding;
        answer.why = if found == 2 { format!("with one replica {why}") } else { format!("with {} replicas {why}", found - 1) };
        answer.one_fewer = Some(fewer);
    } else {
        answer.binding = Binding::Nothing;
        answer.why = "one replica is enough".to_string();
    }
    answer.played = Some(played);
    let mut times = Times::default();
    answer.replicas_if_slow = fewest(ready, asked, most, ready.slow, &mut times)?;
    Ok(())
}

/// Doubled until it is enough, then halved in between.
fn fewest(ready: &Ready, asked: &Asked, most: u64, slower: f64, times: &mut Times) -> Result<Option<u64>, PlanError> {
    let mut enough = |replicas: u64| -> Result<bool, PlanError> {
        Ok(broken(&play(ready, &asked.arrivals, replicas, slower, times)?, asked.promises).is_none())
    };
    let (mut bad, mut good) = (0, 1);
    while !enough(good)? {
        bad = good;
        if good >= most {
            return Ok(None);
        }
        good = good.saturating_mul(2).min(most);
    }
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if enough(middle)? { good = middle } else { bad = middle }
    }
    Ok(Some(good))
}

/// The same requests, so far apart that none waits for another; at most a few hundred, which is enough for a percentile.
fn spaced(arrivals: &[Arrival]) -> Vec<Arrival> {
    let step = arrivals.len().div_ceil(200).max(1);
    let mut at = 0.0;
    arrivals
        .iter()
        .step_by(step)
        .map(|arrival| {
            at += 1e6;
            Arrival { at, ..*arrival }
        })
        .collect()
}

/// Times of steps that were worked out already. Depths are kept to a sixteenth of their power of two.
type Times = BTreeMap<[u64; 4], f64>;

/// `value` on a scale of sixteen steps for every doubling.
fn coarse(value: f64) -> f64 {
    if value < 1.0 { 0.0 } else { libm::exp2(libm::round(libm::log2(value) * 16.0) / 16.0) }
}

/// Plays the requests on so many replicas, dealt out in turn.
fn play(ready: &Ready, arrivals: &[Arrival], replicas: u64, slower: f64, times: &mut Times) -> Result<Played, PlanError> {
    let count = usize::try_from(replicas).unwrap_or(usize::MAX).max(1);
    let (mut first, mut further): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let (mut busy, mut seated, mut longest, mut tokens) = (0.0, 0.0, 0.0_f64, 0.0);
    for replica in 0..count.min(arrivals.len()) {
        let own: Vec<Arrival> = arrivals.iter().copied().skip(replica).step_by(count).collect();
        let outcome = simulate(&Load::Open(own), ready.scheduler, |step| {
            let (depth, prompt_depth) = (coarse(step.depth), coarse(step.prompt_depth));
            let prompt = if step.prompt > 64.0 { coarse(step.prompt) } else { step.prompt };
            let key = [step.decoding, depth, prompt, prompt_depth].map(f64::to_bits);
            let known = times
                .entry(key)
                .or_insert_with(|| ready.pace.step_seconds(&Step { decoding: step.decoding, depth, prompt, prompt_depth }));
            let seconds = *known * slower;
            seated += seconds * step.decoding;
            seconds
        })?;
        first.extend(&outcome.time_to_first_token);
        further.extend(&outcome.time_per_output_token);
        busy += outcome.busy;
        longest = longest.max(outcome.seconds);
        tokens += outcome.tokens;
    }
    first.sort_by(f64::total_cmp);
    further.sort_by(f64::total_cmp);
    let requests = float(u64::try_from(first.len()).unwrap_or(0));
    let span = longest.max(1e-9);
    Ok(Played {
        replicas,
        ttft: latency(&first).unwrap_or(Latency { p50: 0.0, p95: 0.0, p99: 0.0 }),
        tpot: latency(&further),
        sequences: if busy > 0.0 { seated / busy } else { 0.0 },
        utilisation: (busy / (span * float(replicas.max(1)))).min(1.0),
        requests_per_s: requests / span,
        tokens_per_s: tokens / span,
    })
}

fn latency(values: &[f64]) -> Option<Latency> {
    let at = |share| Outcome::quantile(values, share);
    Some(Latency { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
}

/// The promise that is broken, if one is.
fn broken(played: &Played, promises: Promises) -> Option<(Binding, String)> {
    let too_much = |found: f64, most: Option<f64>| most.is_some_and(|most| found > most);
    let per_token = played.tpot.map_or(0.0, |tpot| tpot.p95);
    if too_much(per_token, promises.tpot_p95) {
        return Some((
            Binding::TimePerOutputToken,
            format!("95 of 100 answers take up to {:.1} ms for each further token", per_token * 1e3),
        ));
    }
    if too_much(played.ttft.p95, promises.ttft_p95) {
        return Some((Binding::TimeToFirstToken, format!("95 of 100 first tokens take up to {:.2} s", played.ttft.p95)));
    }
    None
}
