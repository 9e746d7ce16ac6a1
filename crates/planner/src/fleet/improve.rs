//! A placement made better by clearing a host or two and filling them again in another order, over and over; what is worth less is
//! taken back. The draws come from a fixed seed and the work is counted, not timed: the same answer on every machine.

use alloc::vec::Vec;

use plimsoll_math::throughput::float;

use super::greedy::{State, hardness};
use super::problem::Problem;
use crate::random::Random;

/// Candidates looked at in all: less than a second of one processor.
const WORK: usize = 15_000_000;
/// Rounds for every candidate there is: small problems are soon looked at from all sides.
const ROUNDS: usize = 50;

/// What one model asks for.
struct Kind {
    worth: f64,
    hard: f64,
    ways: usize,
}

/// How many replicas go to each candidate, never worth less than `first`.
pub(super) fn improved(problem: &Problem, first: &[u64]) -> Vec<u64> {
    let bound = problem.bound();
    let kinds: Vec<Kind> = (0..problem.wanted.len())
        .map(|model| Kind {
            worth: problem.wanted.get(model).map_or(0.0, |wanted| float(wanted.worth)),
            hard: float(hardness(problem, model).max(1)),
            ways: problem.of(model).count(),
        })
        .collect();
    let mut state = State::new(problem);
    for (index, count) in first.iter().enumerate() {
        (0..*count).for_each(|_| state.put(index, true));
    }
    let (mut value, mut work, mut random) = (problem.value(&state.counts), 0, Random::new(0x706c_696d));
    let mut best = state.clone();
    let mut best_value = value;
    for _ in 0..ROUNDS.saturating_mul(problem.candidates.len()) {
        if best_value >= bound || work >= WORK {
            break;
        }
        let before = state.clone();
        clear(&mut state, &mut random);
        work += problem.candidates.len();
        work += refill(&mut state, &kinds, &mut random);
        let now = problem.value(&state.counts);
        // Sideways is allowed: it leads out of corners.
        if now < value {
            state = before;
            continue;
        }
        value = now;
        if value > best_value {
            best = state.clone();
            best_value = value;
        }
    }
    best.counts
}

/// Takes everything off one or two hosts.
fn clear(state: &mut State<'_>, random: &mut Random) {
    let hosts = state.problem.hosts;
    let chosen = [random.below(hosts), random.below(hosts)];
    let chosen = if random.below(2) == 0 { chosen.get(..1) } else { chosen.get(..) }.unwrap_or(&[]);
    let there: Vec<(usize, u64)> = state
        .problem
        .candidates
        .iter()
        .zip(&state.counts)
        .enumerate()
        .filter(|(_, (candidate, count))| **count > 0 && chosen.contains(&candidate.host))
        .map(|(index, (_, count))| (index, *count))
        .collect();
    for (index, count) in there {
        (0..count).for_each(|_| state.put(index, false));
    }
}

/// Places what is missing, in an order that is near a sensible one. Answers how many candidates were looked at.
fn refill(state: &mut State<'_>, kinds: &[Kind], random: &mut Random) -> usize {
    let by_worth = random.below(2) == 0;
    let mut order: Vec<(f64, usize)> = kinds
        .iter()
        .enumerate()
        .map(|(model, kind)| {
            let merit = if by_worth { kind.worth } else { kind.worth / kind.hard };
            (merit * (0.25 + random.uniform()), model)
        })
        .collect();
    order.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut work = 0;
    for (_, model) in order {
        let wanted = state.problem.wanted.get(model).map_or(0, |wanted| wanted.replicas);
        while state.placed.get(model).is_some_and(|placed| *placed < wanted) {
            work += kinds.get(model).map_or(0, |kind| kind.ways);
            let Some(place) = state.best(model) else { break };
            state.put(place, true);
        }
    }
    work
}
