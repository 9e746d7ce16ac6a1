//! The placement as a mixed-integer program.

use alloc::vec;
use alloc::vec::Vec;

use good_lp::{Expression, ProblemVariables, Solution, SolverModel, Variable, WithTimeLimit, constraint, microlp, variable};
use plimsoll_math::throughput::float;

use super::problem::Problem;

/// Sizes in the program, GiB: numbers near 1 keep the solver exact where it matters.
fn gib(bytes: u64) -> f64 {
    float(bytes) / 1_073_741_824.0
}

/// The best placement within `seconds`, and whether it is proven to be; `None` where the solver found none.
pub(super) fn place(problem: &Problem, first: &[u64], seconds: u64) -> Option<(Vec<u64>, bool)> {
    let mut variables = ProblemVariables::new();
    let mut counts: Vec<Variable> = Vec::with_capacity(problem.candidates.len());
    for candidate in &problem.candidates {
        let wanted = problem.wanted.get(candidate.model)?;
        let by_room = candidate
            .uses
            .iter()
            .filter_map(|(bin, bytes)| problem.bins.get(*bin)?.capacity.checked_div(*bytes))
            .min()
            .unwrap_or(wanted.replicas);
        let most = wanted.replicas.min(by_room).min(if wanted.spread { 1 } else { u64::MAX });
        counts.push(variables.add(variable().integer().min(0.0).max(float(most))));
    }
    // Whether a model is on a host, for those that must not share one.
    let mut presence: Vec<(usize, usize, Variable)> = Vec::new();
    for (model, wanted) in problem.wanted.iter().enumerate() {
        let concerned = !wanted.apart.is_empty() || problem.wanted.iter().any(|other| other.apart.contains(&model));
        if concerned {
            for host in 0..problem.hosts {
                presence.push((model, host, variables.add(variable().binary())));
            }
        }
    }
    let worth = |model: usize| problem.wanted.get(model).map_or(0.0, |wanted| float(wanted.worth));
    let goal: Expression = problem.candidates.iter().zip(&counts).map(|(candidate, count)| worth(candidate.model) * *count).sum();
    let mut program = variables.maximise(goal).using(microlp).with_time_limit(float(seconds));

    let mut bins = vec![Expression::default(); problem.bins.len()];
    let mut replicas = vec![Expression::default(); problem.wanted.len()];
    let mut on_host = vec![Expression::default(); problem.wanted.len() * problem.hosts.max(1)];
    for (candidate, count) in problem.candidates.iter().zip(&counts) {
        for (bin, bytes) in &candidate.uses {
            if let Some(sum) = bins.get_mut(*bin) {
                sum.add_mul(gib(*bytes), *count);
            }
        }
        if let Some(sum) = replicas.get_mut(candidate.model) {
            sum.add_mul(1.0, *count);
        }
        if let Some(sum) = on_host.get_mut(candidate.model * problem.hosts.max(1) + candidate.host) {
            sum.add_mul(1.0, *count);
        }
    }
    for (bin, sum) in problem.bins.iter().zip(bins) {
        program = program.with(constraint!(sum <= gib(bin.capacity)));
    }
    for (wanted, sum) in problem.wanted.iter().zip(replicas) {
        program = program.with(constraint!(sum <= float(wanted.replicas)));
    }
    for (model, wanted) in problem.wanted.iter().enumerate() {
        for host in 0..problem.hosts {
            let Some(sum) = on_host.get(model * problem.hosts.max(1) + host) else { continue };
            if wanted.spread {
                program = program.with(constraint!(sum.clone() <= 1.0));
            }
            let is_there =
                |model: usize| presence.iter().find(|(of, at, _)| *of == model && *at == host).map(|(.., there)| *there);
            if let Some(there) = is_there(model) {
                program = program.with(constraint!(sum.clone() <= float(wanted.replicas) * there));
                for other in wanted.apart.iter().filter_map(|other| is_there(*other)) {
                    program = program.with(constraint!(there + other <= 1.0));
                }
            }
        }
    }
    let solution = program.solve().ok()?;
    let proven = matches!(solution.status(), good_lp::solvers::SolutionStatus::Optimal);
    let found: Vec<u64> = counts
        .iter()
        .map(|count| {
            let value = solution.value(*count);
            // Whole numbers come back as floating-point ones.
            alloc::format!("{:.0}", value.max(0.0)).parse().unwrap_or(0)
        })
        .collect();
    // Rounding may have crossed a byte: what breaks a rule is no answer.
    if problem.keeps(&found) { Some((found, proven)) } else { (problem.keeps(first)).then(|| (first.to_vec(), false)) }
}
