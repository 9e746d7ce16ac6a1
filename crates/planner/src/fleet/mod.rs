//! Many models onto many hosts: which replica on which devices, what does not fit, and the cheapest fix.
//!
//! Every replica takes what the engine's policy plans for it on those devices, to the byte; a placement is a choice of replicas for
//! blocks of devices such that no device and no host holds more than its headroom leaves.

mod demand;
mod fix;
mod greedy;
mod improve;
mod problem;
#[cfg(feature = "fleet-solver")]
mod solve;
mod wire;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::units::Bytes;

pub use problem::{Bin, Candidate, Problem, Wanted};
pub use wire::{
    DeviceLoad, FLEET_SCHEMA, Fix, Fleet, FleetHost, FleetModel, FleetRequest, Headroom, HostLoad, Method, OnDevice, Placement,
    Spread, Unplaced,
};

use crate::error::PlanError;
use crate::model::Model;
use crate::size::short;
use demand::Ground;

/// The most candidates that are given to a solver: beyond, its branching finds nothing in the time that people wait (of random fleets
/// microlp proved most of up to 80 candidates in two seconds, one of 119, and had no placement at all for those of 200). The gap of what was
/// found without it is said instead.
#[cfg(feature = "fleet-solver")]
const MOST_FOR_A_SOLVER: usize = 200;
/// The most models, hosts and replicas of one question.
const MOST: usize = 10_000;

/// Places `request.model`, in the order of `models`, onto its hosts.
///
/// # Errors
/// [`PlanError`] for a request that cannot be, and for models that their engine does not know.
pub fn fleet(request: &FleetRequest, models: &[Model]) -> Result<Fleet, PlanError> {
    check(request, models)?;
    let ground = Ground::of(request)?;
    let (problem, demands) = demand::problem(request, models, &ground)?;
    let bound = problem.bound();
    let (counts, method) = arrange(&problem, request.solver_seconds.unwrap_or(2));
    let placed = problem.value(&counts);
    let optimal = placed >= bound || method == Method::Proven;
    let gap_percent = if optimal || bound == 0 { 0 } else { (bound - placed).saturating_mul(100).div_ceil(bound) };
    let left = problem.left(&counts);
    let placements = demand::placements(request, models, &ground, &problem, &demands, &counts)?;
    let mut unplaced = Vec::new();
    for (index, (wanted, model)) in problem.wanted.iter().zip(&request.model).enumerate() {
        let there: u64 = problem.of(index).map(|(option, _)| counts.get(option).copied().unwrap_or(0)).sum();
        if there >= wanted.replicas {
            continue;
        }
        let fixes = match models.get(index) {
            Some(facts) => fix::fixes(request, index, facts, &ground, &problem, &left, &counts)?,
            None => Vec::new(),
        };
        let reason = match reason(&problem, index, &left, &counts) {
            Some(reason) => reason,
            None => {
                let nearest = models.get(index).map(|facts| demand::nearest(model, facts, &ground)).transpose()?.flatten();
                let missing = nearest.map(|(place, bytes)| format!(": {} is missing on {place}, the nearest", short(bytes)));
                format!("not even a single replica fits on empty devices{}", missing.unwrap_or_default())
            }
        };
        unplaced.push(Unplaced { model: model.name.clone(), replicas: wanted.replicas - there, reason, fixes });
    }
    Ok(Fleet {
        schema: FLEET_SCHEMA.to_string(),
        method,
        optimal,
        gap_percent,
        placed_replicas: counts.iter().sum(),
        wanted_replicas: problem.wanted.iter().map(|wanted| wanted.replicas).sum(),
        hosts: ground.loads(&problem, &left)?,
        placements,
        unplaced,
        notes: ground.notes.clone(),
    })
}

/// Refuses what makes no sense before anything is worked out.
fn check(request: &FleetRequest, models: &[Model]) -> Result<(), PlanError> {
    let some = |field: &str, count: usize| {
        if (1..=MOST).contains(&count) { Ok(()) } else { Err(PlanError::request(field, count, format!("1 to {MOST} of them"))) }
    };
    some("model", request.model.len())?;
    some("host", request.host.len())?;
    if models.len() != request.model.len() {
        return Err(PlanError::request("model", format!("{} sources", models.len()), "one for every model of the request"));
    }
    for (index, model) in request.model.iter().enumerate() {
        let field = |what: &str| format!("model {} ({}), {what}", index + 1, model.name);
        if model.replicas.is_some_and(|count| count == 0 || count > 10_000) {
            return Err(PlanError::request(&field("replicas"), model.replicas.unwrap_or(0), "1 to 10000"));
        }
        if model.priority.is_some_and(|priority| priority == 0 || priority > 1_000_000) {
            return Err(PlanError::request(&field("priority"), model.priority.unwrap_or(0), "1 to 1000000"));
        }
        if request.model.iter().filter(|other| other.name == model.name).count() > 1 {
            return Err(PlanError::request(&field("name"), &model.name, "a name of its own"));
        }
        if let Some(stranger) =
            model.apart_from.iter().flatten().find(|name| request.model.iter().all(|other| other.name != **name))
        {
            return Err(PlanError::request(&field("apart_from"), stranger, "names of models of this request"));
        }
    }
    Ok(())
}

/// How many replicas go to each candidate: greedy where that is proven enough, then made better by a search, and where the problem is
/// small, looked at by a solver, which may take so many seconds. With none the greedy placement is the answer.
#[must_use]
pub fn arrange(problem: &Problem, seconds: u64) -> (Vec<u64>, Method) {
    let greedy = greedy::place(problem);
    let bound = problem.bound();
    if seconds == 0 || problem.value(&greedy) >= bound {
        return (greedy, Method::Greedy);
    }
    let found = improve::improved(problem, &greedy);
    let value = problem.value(&found);
    let (found, method) = if value > problem.value(&greedy) { (found, Method::Improved) } else { (greedy, Method::Greedy) };
    #[cfg(feature = "fleet-solver")]
    if value < bound
        && problem.candidates.len() <= MOST_FOR_A_SOLVER
        && let Some((solved, proven)) = solve::place(problem, &found, seconds)
    {
        let better = problem.value(&solved) > value;
        // What a solver proves and what the search found may be worth the same: then nothing better exists.
        if proven && problem.value(&solved) >= value {
            return (solved, Method::Proven);
        }
        if better {
            return (solved, Method::Solver);
        }
    }
    (found, method)
}

/// Why nothing more of a model fits; `None` where it fits nowhere even alone.
fn reason(problem: &Problem, model: usize, left: &[u64], counts: &[u64]) -> Option<String> {
    problem.of(model).next()?;
    let (kept, open): (Vec<_>, Vec<_>) =
        problem.of(model).partition(|(_, candidate)| problem.keeps_away(model, candidate.host, counts));
    let nearest = open
        .iter()
        .filter_map(|(_, candidate)| missing(candidate, left))
        .min_by_key(|(_, bytes)| *bytes)
        .map(|(bin, bytes)| (problem.bins.get(bin).map_or("", |bin| bin.name.as_str()), bytes))
        .map(|(name, bytes)| format!("{} is missing on {name}, the nearest", short(bytes)));
    let room = kept.iter().any(|(_, candidate)| missing(candidate, left).is_none());
    Some(match (nearest, room) {
        (Some(nearest), false) => nearest,
        (Some(nearest), true) => {
            format!("{nearest}; where there is room, a replica that it must not share a host with already is")
        }
        (None, _) => "every host on which it fits has a replica already that it must not share a host with".to_string(),
    })
}

/// The bin that misses most for a candidate.
fn missing(candidate: &Candidate, left: &[u64]) -> Option<(usize, u64)> {
    candidate
        .uses
        .iter()
        .filter_map(|(bin, bytes)| Some((*bin, bytes.checked_sub(left.get(*bin).copied()?)?)))
        .filter(|(_, bytes)| *bytes > 0)
        .max_by_key(|(_, bytes)| *bytes)
}

/// Bytes within the exact range.
fn exact(bytes: u64) -> Result<Bytes, PlanError> {
    Ok(Bytes::new(bytes)?)
}
