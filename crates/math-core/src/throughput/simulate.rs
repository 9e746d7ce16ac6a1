//! A small discrete simulation of an engine's step scheduler: time to first token and time per output token under load.
//!
//! Every step gives each decoding sequence a token, and spends what is left of the token budget on the prompts that wait, first come
//! first served: vLLM's and SGLang's chunked prefill (`max_num_batched_tokens`, `max_num_seqs`), llama-server's slots and logical
//! batch. The same input gives the same output, to the last bit.

use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::error::MathError;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Seconds from the start.
    pub at: f64,
    /// Tokens of the prompt, at least 1.
    pub prompt: u32,
    /// Tokens of the answer, at least 1.
    pub output: u32,
}

/// Where requests come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// At their own times, in order.
    Open(Vec<Arrival>),
    /// A fixed number in flight: the next comes when one is done.
    Closed {
        /// In flight.
        concurrency: u32,
        /// In all.
        requests: u32,
        /// Tokens of each prompt.
        prompt: u32,
        /// Tokens of each answer.
        output: u32,
    },
}

impl Load {
    /// `count` requests whose gaps are exponentially distributed around `1 / rate`, drawn from `seed`.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for a rate that is not above nothing.
    pub fn poisson(seed: u64, rate: f64, count: u32, prompt: u32, output: u32) -> Result<Self, MathError> {
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(invalid("rate", &rate.to_string(), "a number of requests per second above 0"));
        }
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        let mut at = 0.0;
        let arrivals = (0..count)
            .map(|_| {
                // splitmix64
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let uniform = super::float((mixed ^ (mixed >> 31)) >> 11) / 9_007_199_254_740_992.0;
                at += -libm::log(1.0 - uniform) / rate;
                Arrival { at, prompt, output }
            })
            .collect();
        Ok(Self::Open(arrivals))
    }
}

/// How an engine fills its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    /// Sequences at once (`max_num_seqs`, slots).
    pub max_sequences: u32,
    /// Tokens of a step (`max_num_batched_tokens`, logical batch).
    pub max_batched_tokens: u32,
}

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Sequences that get a token.
    pub decoding: f64,
    /// Tokens each of them has, on average.
    pub depth: f64,
    /// Tokens of prompts.
    pub prompt: f64,
    /// Tokens that stood before those, on average.
    pub prompt_depth: f64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Seconds from arrival to the first token, in order of completion.
    pub time_to_first_token: Vec<f64>,
    /// `(end to end - time to first token) / (output tokens - 1)`, of answers with more than one token.
    pub time_per_output_token: Vec<f64>,
    /// Seconds from the first arrival to the last token.
    pub seconds: f64,
    /// Seconds in which a step ran.
    pub busy: f64,
    /// Tokens of answers.
    pub tokens: f64,
}

impl Outcome {
    /// The value below which `share` of `values` lies.
    #[must_use]
    pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let goal = share.clamp(0.0, 1.0) * super::float(u64::try_from(sorted.len()).unwrap_or(0));
        let mut passed = 0.0;
        for value in &sorted {
            passed += 1.0;
            if passed >= goal {
                return Some(*value);
            }
        }
        None
    }

    /// Requests per second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        let requests = super::float(u64::try_from(self.time_to_first_token.len()).unwrap_or(0));
        if self.seconds > 0.0 { requests / self.seconds } else { 0.0 }
    }
}

struct Running {
    arrived: f64,
    first: Option<f64>,
    prompt: u32,
    done: u32,
    output: u32,
    given: u32,
}

fn invalid(field: &str, found: &str, expected: &str) -> MathError {
    MathError::Invalid { field: field.to_string(), found: found.to_string(), expected: expected.to_string() }
}

/// The most steps that are simulated.
const MOST_STEPS: u64 = 200_000_000;

/// Runs `load` through `scheduler`; `seconds` says how long a step takes.
///
/// # Errors
/// [`MathError::Invalid`] for a load that is empty, out of order or has requests without tokens, a scheduler that admits nothing, and
/// steps without a time.
pub fn simulate(load: &Load, scheduler: Scheduler, mut seconds: impl FnMut(&Step) -> f64) -> Result<Outcome, MathError> {
    if scheduler.max_sequences == 0 || scheduler.max_batched_tokens == 0 {
        return Err(invalid("scheduler", "room for nothing", "at least one sequence and one token"));
    }
    let mut coming: VecDeque<Arrival> = VecDeque::new();
    let mut refill = None;
    match load {
        Load::Open(arrivals) => coming.extend(arrivals),
        Load::Closed { concurrency, requests, prompt, output } => {
            let request = Arrival { at: 0.0, prompt: *prompt, output: *output };
            let first = (*concurrency).min(*requests);
            coming.extend((0..first).map(|_| request));
            refill = Some((request, requests - first));
        }
    }
    let mut last = 0.0;
    for arrival in &coming {
        if arrival.prompt == 0 || arrival.output == 0 {
            return Err(invalid("request", "no tokens", "a prompt and an answer of at least one token"));
        }
        if !(arrival.at >= last && arrival.at.is_finite()) {
            return Err(invalid("arrival", &arrival.at.to_string(), "seconds that do not go back"));
        }
        last = arrival.at;
    }
    let Some(start) = coming.front().map(|arrival| arrival.at) else {
        return Err(invalid("load", "no requests", "at least one"));
    };
    let mut clock = start;
    let mut running: Vec<Running> = Vec::new();
    let mut outcome =
        Outcome { time_to_first_token: Vec::new(), time_per_output_token: Vec::new(), seconds: 0.0, busy: 0.0, tokens: 0.0 };
    for _ in 0..MOST_STEPS {
        while running.len() < usize::try_from(scheduler.max_sequences).unwrap_or(usize::MAX)
            && let Some(arrival) = coming.front().copied().filter(|arrival| arrival.at <= clock)
        {
            coming.pop_front();
            running.push(Running {
                arrived: arrival.at,
                first: None,
                prompt: arrival.prompt,
                done: 0,
                output: arrival.output,
                given: 0,
            });
        }
        if running.is_empty() {
            match coming.front() {
                Some(next) => clock = next.at,
                None => {
                    outcome.seconds = clock - start;
                    return Ok(outcome);
                }
            }
            continue;
        }
        clock += step(&mut running, scheduler, &mut seconds, &mut outcome)?;
        running.retain_mut(|sequence| {
            if sequence.done == sequence.prompt && sequence.first.is_none() {
                sequence.first = Some(clock);
            }
            let Some(first) = sequence.first.filter(|_| sequence.given == sequence.output) else { return true };
            outcome.time_to_first_token.push(first - sequence.arrived);
            if sequence.output > 1 {
                outcome.time_per_output_token.push((clock - first) / f64::from(sequence.output - 1));
            }
            outcome.tokens += f64::from(sequence.output);
            if let Some((request, left)) = refill.as_mut().filter(|(_, left)| *left > 0) {
                *left -= 1;
                coming.push_back(Arrival { at: clock, ..*request });
            }
            false
        });
    }
    Err(invalid("load", "more steps than are simulated", "fewer or shorter requests"))
}

/// One step: what it does, and how long it takes.
fn step(
    running: &mut [Running],
    scheduler: Scheduler,
    seconds: &mut impl FnMut(&Step) -> f64,
    outcome: &mut Outcome,
) -> Result<f64, MathError> {
    let mut budget = scheduler.max_batched_tokens;
    let (mut decoding, mut depth, mut prompt, mut prompt_depth) = (0.0, 0.0, 0.0, 0.0);
    for sequence in running.iter_mut().filter(|sequence| sequence.done == sequence.prompt) {
        if budget == 0 {
            break;
        }
        budget -= 1;
        depth += f64::from(sequence.prompt) + f64::from(sequence.given);
        sequence.given += 1;
        decoding += 1.0;
    }
    for sequence in running.iter_mut().filter(|sequence| sequence.done < sequence.prompt) {
        let chunk = budget.min(sequence.prompt - sequence.done);
        if chunk == 0 {
            break;
        }
        budget -= chunk;
        prompt_depth += f64::from(chunk) * f64::from(sequence.done);
        prompt += f64::from(chunk);
        sequence.done += chunk;
        if sequence.done == sequence.prompt {
            // The last chunk of a prompt yields the first token.
            sequence.given = 1;
        }
    }
    let work = Step {
        decoding,
        depth: if decoding > 0.0 { depth / decoding } else { 0.0 },
        prompt,
        prompt_depth: if prompt > 0.0 { prompt_depth / prompt } else { 0.0 },
    };
    let took = seconds(&work);
    if !(took > 0.0 && took.is_finite()) {
        return Err(invalid("step", &took.to_string(), "a time above 0"));
    }
    outcome.busy += took;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Scheduler = Scheduler { max_sequences: 8, max_batched_tokens: 512 };

    #[track_caller]
    fn run(load: &Load, scheduler: Scheduler) -> Outcome {
        simulate(load, scheduler, |step| 0.01 + 0.0001 * step.prompt).unwrap()
    }

    #[test]
    fn one_request_takes_its_prompt_and_then_a_step_a_token() {
        let outcome = run(&Load::Open(alloc::vec![Arrival { at: 3.0, prompt: 1000, output: 11 }]), ONE);
        // Two chunks: 512 and 488 tokens.
        assert!((outcome.time_to_first_token[0] - (0.02 + 0.1)).abs() < 1e-12, "{outcome:?}");
        assert!((outcome.time_per_output_token[0] - 0.01).abs() < 1e-12, "{outcome:?}");
        assert!((outcome.seconds - 0.22).abs() < 1e-12 && (outcome.busy - 0.22).abs() < 1e-12, "{outcome:?}");
    }

    #[test]
    fn every_request_of_a_closed_loop_is_answered() {
        let outcome = run(&Load::Closed { concurrency: 4, requests: 23, prompt: 100, output: 9 }, ONE);
        assert_eq!(outcome.time_to_first_token.len(), 23);
        assert!((outcome.tokens - 207.0).abs() < 1e-9);
    }

    #[test]
    fn requests_beyond_the_slots_wait() {
        let load = Load::Closed { concurrency: 16, requests: 16, prompt: 10, output: 50 };
        let crowded = run(&load, Scheduler { max_sequences: 2, ..ONE });
        let roomy = run(&load, Scheduler { max_sequences: 16, ..ONE });
        let last = |outcome: &Outcome| Outcome::quantile(&outcome.time_to_first_token, 1.0).unwrap();
        assert!(last(&crowded) > 7.0 * 0.5 && last(&roomy) < 0.1, "{} {}", last(&crowded), last(&roomy));
    }

    #[test]
    fn the_same_seed_gives_the_same_outcome() {
        let load = |seed| Load::poisson(seed, 2.0, 200, 300, 20).unwrap();
        assert_eq!(run(&load(7), ONE), run(&load(7), ONE));
        assert_ne!(load(7), load(8));
        let Load::Open(arrivals) = load(7) else { unreachable!() };
        let mean = arrivals.last().unwrap().at / 200.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let arrival = Arrival { at: 0.0, prompt: 1, output: 1 };
        for load in [
            Load::Open(Vec::new()),
            Load::Open(alloc::vec![Arrival { prompt: 0, ..arrival }]),
            Load::Open(alloc::vec![Arrival { at: f64::NAN, ..arrival }]),
            Load::Open(alloc::vec![Arrival { at: 2.0, ..arrival }, arrival]),
        ] {
            assert!(simulate(&load, ONE, |_| 0.1).is_err(), "{load:?}");
        }
        let one = Load::Open(alloc::vec![arrival]);
        assert!(simulate(&one, ONE, |_| 0.0).is_err());
        assert!(simulate(&one, Scheduler { max_sequences: 0, ..ONE }, |_| 0.1).is_err());
        assert!(Load::poisson(1, f64::NAN, 1, 1, 1).is_err());
    }
}
