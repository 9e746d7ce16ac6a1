//! A placement without a solver: the most wanted and hardest first, each where it leaves the least, then room made by moving one.

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::problem::{Candidate, Problem};

#[derive(Clone)]
pub(super) struct State<'a> {
    pub(super) problem: &'a Problem,
    left: Vec<u64>,
    pub(super) counts: Vec<u64>,
    /// Replicas of each model on each host.
    there: Vec<u64>,
    /// Replicas of each model.
    pub(super) placed: Vec<u64>,
    by_model: Vec<Vec<usize>>,
    /// Models that each model may not share a host with, whichever of the two says so.
    apart: Vec<Vec<usize>>,
}

impl<'a> State<'a> {
    pub(super) fn new(problem: &'a Problem) -> Self {
        let mut by_model = vec![Vec::new(); problem.wanted.len()];
        for (index, candidate) in problem.candidates.iter().enumerate() {
            if let Some(list) = by_model.get_mut(candidate.model) {
                list.push(index);
            }
        }
        let says = |one: usize, other: usize| problem.wanted.get(one).is_some_and(|wanted| wanted.apart.contains(&other));
        let count = problem.wanted.len();
        let apart = (0..count).map(|one| (0..count).filter(|other| says(one, *other) || says(*other, one)).collect()).collect();
        Self {
            apart,
            problem,
            left: problem.bins.iter().map(|bin| bin.capacity).collect(),
            counts: vec![0; problem.candidates.len()],
            there: vec![0; problem.wanted.len() * problem.hosts.max(1)],
            placed: vec![0; problem.wanted.len()],
            by_model,
        }
    }

    fn on(&self, model: usize, host: usize) -> u64 {
        self.there.get(model * self.problem.hosts.max(1) + host).copied().unwrap_or(0)
    }

    fn allowed(&self, candidate: &Candidate) -> bool {
        let Some(wanted) = self.problem.wanted.get(candidate.model) else { return false };
        let room = candidate.uses.iter().all(|(bin, bytes)| self.left.get(*bin).is_some_and(|left| left >= bytes));
        room && !(wanted.spread && self.on(candidate.model, candidate.host) > 0)
            && self
                .apart
                .get(candidate.model)
                .is_none_or(|others| others.iter().all(|other| self.on(*other, candidate.host) == 0))
    }

    /// Puts a replica where a candidate says, or takes it away.
    pub(super) fn put(&mut self, index: usize, add: bool) {
        let Some(candidate) = self.problem.candidates.get(index) else { return };
        let change = |value: &mut u64, by: u64| *value = if add { value.saturating_add(by) } else { value.saturating_sub(by) };
        for (bin, bytes) in &candidate.uses {
            if let Some(left) = self.left.get_mut(*bin) {
                *left = if add { left.saturating_sub(*bytes) } else { left.saturating_add(*bytes) };
            }
        }
        if let Some(count) = self.counts.get_mut(index) {
            change(count, 1);
        }
        if let Some(there) = self.there.get_mut(candidate.model * self.problem.hosts.max(1) + candidate.host) {
            change(there, 1);
        }
        if let Some(placed) = self.placed.get_mut(candidate.model) {
            change(placed, 1);
        }
    }

    /// Where a replica of a model leaves the least behind: the fewest devices, then the fullest.
    pub(super) fn best(&self, model: usize) -> Option<usize> {
        let list = self.by_model.get(model)?;
        let rest = |candidate: &Candidate| -> u64 {
            let left = |(bin, bytes): &(usize, u64)| self.left.get(*bin).map_or(0, |left| left.saturating_sub(*bytes));
            candidate.uses.iter().filter(|(bin, _)| self.problem.bins.get(*bin).is_some_and(|bin| bin.counts)).map(left).sum()
        };
        list.iter()
            .copied()
            .filter_map(|index| Some((index, self.problem.candidates.get(index)?)))
            .filter(|(_, candidate)| self.allowed(candidate))
            .min_by_key(|(index, candidate)| (candidate.uses.len(), rest(candidate), *index))
            .map(|(index, _)| index)
    }

    /// Makes room for a replica by moving one other replica somewhere else.
    fn best_after_a_move(&mut self, model: usize) -> Option<usize> {
        let occupied: Vec<usize> =
            (0..self.counts.len()).filter(|index| self.counts.get(*index).is_some_and(|count| *count > 0)).collect();
        for index in occupied {
            let moved = self.problem.candidates.get(index)?.model;
            self.put(index, false);
            if let Some(place) = self.best(model) {
                self.put(place, true);
                if let Some(elsewhere) = self.best(moved) {
                    self.put(elsewhere, true);
                    self.put(place, false);
                    return Some(place);
                }
                self.put(place, false);
            }
            self.put(index, true);
        }
        None
    }
}

/// How hard a model is to place: the share of a bin that its easiest candidate takes, in millionths.
pub(super) fn hardness(problem: &Problem, model: usize) -> u64 {
    let share = |candidate: &Candidate| -> u64 {
        let part = |(bin, bytes): &(usize, u64)| {
            let capacity = u128::from(problem.bins.get(*bin).map_or(1, |bin| bin.capacity.max(1)));
            u64::try_from(u128::from(*bytes) * 1_000_000 / capacity).unwrap_or(u64::MAX)
        };
        candidate.uses.iter().map(part).fold(0, u64::saturating_add)
    };
    problem.of(model).map(|(_, candidate)| share(candidate)).min().unwrap_or(0)
}

/// How many replicas go to each candidate.
pub(super) fn place(problem: &Problem) -> Vec<u64> {
    let mut state = State::new(problem);
    let mut order: Vec<(usize, u64, u64, usize)> = problem
        .wanted
        .iter()
        .enumerate()
        .map(|(model, wanted)| (model, wanted.worth, hardness(problem, model), state.by_model.get(model).map_or(0, Vec::len)))
        .collect();
    order.sort_by_key(|(model, worth, hard, ways)| (Reverse(*worth), Reverse(*hard), *ways, *model));
    for (model, ..) in order {
        let replicas = problem.wanted.get(model).map_or(0, |wanted| wanted.replicas);
        for _ in 0..replicas {
            let Some(place) = state.best(model).or_else(|| state.best_after_a_move(model)) else { break };
            state.put(place, true);
        }
    }
    state.counts
}
