//! The fit: a robust ridge regression of logarithms, by Gauss-Newton steps with conjugate gradients inside.

use std::collections::BTreeMap;

use plimsoll::math::throughput::{Group, Metric, Recorder, level_of};

use super::rows::Row;

/// Rows in columns.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Keys by column.
    pub(crate) keys: Vec<u32>,
    penalties: Vec<f64>,
    robust: f64,
    rows: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    terms: Vec<(bool, f64, Vec<usize>)>,
    target: f64,
    weight: f64,
}

/// Coefficients closer to nothing than this change a prediction by a few percent at most, and are left out of the table.
const SMALLEST: f64 = 0.03;
/// What holds a coefficient at nothing.
const NAILED: f64 = 1e9;

/// How firmly a coefficient is held at nothing, by its level: chosen by cross-validation, for the rates of one sequence and for
/// prompts and servers, whose rows cover fewer devices and more releases.
fn penalty(metric: Metric, level: &str) -> f64 {
    let is_decode = metric == Metric::Decode;
    match level {
        "" => 0.01,
        "backend" if is_decode => 0.3,
        "arch" if is_decode => 0.5,
        "device" if is_decode => 1.5,
        "backend" => 0.5,
        "mechanism" if !is_decode => 0.3,
        _ => 1.0,
    }
}

/// The residual beyond which a row pulls no harder, chosen by cross-validation: rates of one sequence scatter less than prompts.
const fn robust(metric: Metric) -> f64 {
    match metric {
        Metric::Decode => 0.08,
        Metric::Prefill => 0.3,
        Metric::TimePerOutputToken => 0.15,
    }
}

impl Problem {
    /// Columns for the rows of one metric.
    pub(crate) fn new(metric: Metric, rows: &[&Row], names: &Recorder) -> Self {
        let mut columns: BTreeMap<u32, usize> = BTreeMap::new();
        let mut sizes: BTreeMap<&str, f64> = BTreeMap::new();
        for row in rows {
            *sizes.entry(&row.group).or_default() += 1.0;
            for key in row.terms.iter().flat_map(|term| &term.keys).chain(&row.common) {
                let next = columns.len();
                columns.entry(*key).or_insert(next);
            }
        }
        let mut keys = vec![0; columns.len()];
        for (key, column) in &columns {
            if let Some(place) = keys.get_mut(*column) {
                *place = *key;
            }
        }
        let penalties = keys.iter().map(|key| penalty(metric, names.get(key).map_or("", |name| level_of(name)))).collect();
        let compiled = rows
            .iter()
            .map(|row| {
                let column = |key: &u32| columns.get(key).copied();
                let terms = row
                    .terms
                    .iter()
                    .map(|term| {
                        let own = term.keys.iter().chain(&row.common).filter_map(column).collect();
                        (term.group == Group::Overlapped, term.base, own)
                    })
                    .collect();
                // Many rows of one model on one device say little more than one.
                let group = sizes.get(row.group.as_str()).copied().unwrap_or(1.0);
                Compiled { terms, target: row.measured_seconds.ln(), weight: if row.reported { 1.0 } else { 0.2 } / group.sqrt() }
            })
            .collect();
        Self { keys, penalties, robust: robust(metric), rows: compiled }
    }

    fn at(theta: &[f64], column: usize) -> f64 {
        theta.get(column).copied().unwrap_or(0.0)
    }

    /// The logarithm of the predicted seconds, and its derivatives by column where asked.
    fn predict(row: &Compiled, theta: &[f64], derivatives: Option<&mut Vec<(usize, f64)>>) -> f64 {
        let each: Vec<f64> = row
            .terms
            .iter()
            .map(|(_, base, own)| base * own.iter().map(|column| Self::at(theta, *column)).sum::<f64>().clamp(-8.0, 8.0).exp())
            .collect();
        let (mut squares, mut sum) = (0.0, 0.0);
        for ((overlapped, ..), seconds) in row.terms.iter().zip(&each) {
            if *overlapped {
                squares += seconds * seconds;
            } else {
                sum += seconds;
            }
        }
        let root = f64::sqrt(squares).max(1e-15);
        let total = root + sum;
        if let Some(derivatives) = derivatives {
            derivatives.clear();
            for ((overlapped, _, own), seconds) in row.terms.iter().zip(&each) {
                let share = if *overlapped { seconds * seconds / (root * total) } else { seconds / total };
                derivatives.extend(own.iter().map(|column| (*column, share)));
            }
        }
        total.ln()
    }

    /// Logarithm of measured over predicted seconds.
    pub(crate) fn residual(&self, index: usize, theta: &[f64]) -> f64 {
        self.rows.get(index).map_or(0.0, |row| row.target - Self::predict(row, theta, None))
    }

    /// The coefficients that fit the rows `chosen`: once with all of them, then with those alone that came out larger than [`SMALLEST`],
    /// so that the table stays small and the ones that are kept make up for the others.
    pub(crate) fn fit(&self, chosen: &[usize]) -> Vec<f64> {
        let all = self.descend(chosen, vec![0.0; self.keys.len()], &self.penalties, 12);
        let kept: Vec<bool> = all.iter().map(|value| value.abs() >= SMALLEST).collect();
        let penalties: Vec<f64> =
            self.penalties.iter().zip(&kept).map(|(penalty, kept)| if *kept { *penalty } else { NAILED }).collect();
        let start = all.iter().zip(&kept).map(|(value, kept)| if *kept { *value } else { 0.0 }).collect();
        let theta = self.descend(chosen, start, &penalties, 4);
        theta.into_iter().zip(kept).map(|(value, kept)| if kept { value } else { 0.0 }).collect()
    }

    fn descend(&self, chosen: &[usize], start: Vec<f64>, penalties: &[f64], steps: usize) -> Vec<f64> {
        let mut theta = start;
        for _ in 0..steps {
            let mut jacobian: Vec<(f64, Vec<(usize, f64)>)> = Vec::with_capacity(chosen.len());
            let mut gradient: Vec<f64> = theta.iter().zip(penalties).map(|(value, penalty)| -value * penalty).collect();
            let mut diagonal: Vec<f64> = penalties.iter().map(|penalty| penalty + 1e-3).collect();
            for row in chosen.iter().filter_map(|index| self.rows.get(*index)) {
                let mut derivatives = Vec::new();
                let residual = row.target - Self::predict(row, &theta, Some(&mut derivatives));
                let weight = row.weight / (residual.abs() / self.robust).max(1.0);
                merge(&mut derivatives);
                for (column, share) in &derivatives {
                    if let (Some(slope), Some(curve)) = (gradient.get_mut(*column), diagonal.get_mut(*column)) {
                        *slope += weight * share * residual;
                        *curve += weight * share * share;
                    }
                }
                jacobian.push((weight, derivatives));
            }
            let step = Self::solve(&jacobian, &gradient, &diagonal, penalties);
            let mut largest = 0.0_f64;
            for (value, change) in theta.iter_mut().zip(step) {
                let change = change.clamp(-1.0, 1.0);
                largest = largest.max(change.abs());
                *value += change;
            }
            if largest < 3e-3 {
                break;
            }
        }
        theta
    }

    /// Conjugate gradients on `(J' W J + penalties) step = gradient`, scaled by the diagonal.
    fn solve(jacobian: &[(f64, Vec<(usize, f64)>)], gradient: &[f64], diagonal: &[f64], penalties: &[f64]) -> Vec<f64> {
        let apply = |vector: &[f64]| -> Vec<f64> {
            let mut out: Vec<f64> = vector.iter().zip(penalties).map(|(value, penalty)| value * (penalty + 1e-3)).collect();
            for (weight, derivatives) in jacobian {
                let product: f64 = derivatives.iter().map(|(column, share)| share * Self::at(vector, *column)).sum();
                for (column, share) in derivatives {
                    if let Some(place) = out.get_mut(*column) {
                        *place += weight * share * product;
                    }
                }
            }
            out
        };
        let dot = |left: &[f64], right: &[f64]| -> f64 { left.iter().zip(right).map(|(a, b)| a * b).sum() };
        let scaled = |vector: &[f64]| -> Vec<f64> { vector.iter().zip(diagonal).map(|(value, scale)| value / scale).collect() };
        let mut step = vec![0.0; gradient.len()];
        let mut rest = gradient.to_vec();
        let mut direction = scaled(&rest);
        let mut energy = dot(&rest, &direction);
        let goal = energy * 1e-8;
        for _ in 0..300 {
            if energy <= goal {
                break;
            }
            let moved = apply(&direction);
            let length = energy / dot(&direction, &moved);
            for ((value, left), (toward, away)) in step.iter_mut().zip(rest.iter_mut()).zip(direction.iter().zip(&moved)) {
                *value += length * toward;
                *left -= length * away;
            }
            let next = scaled(&rest);
            let after = dot(&rest, &next);
            let turn = after / energy;
            energy = after;
            for (value, fresh) in direction.iter_mut().zip(next) {
                *value = fresh + turn * *value;
            }
        }
        step
    }
}

/// One entry per column.
fn merge(derivatives: &mut Vec<(usize, f64)>) {
    derivatives.sort_unstable_by_key(|(column, _)| *column);
    let mut merged: Vec<(usize, f64)> = Vec::with_capacity(derivatives.len());
    for (column, share) in derivatives.drain(..) {
        match merged.last_mut() {
            Some((last, sum)) if *last == column => *sum += share,
            _ => merged.push((column, share)),
        }
    }
    *derivatives = merged;
}
