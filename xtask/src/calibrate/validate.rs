//! How well the model does on rows it has not seen: every (device, model) group is held out, under many divisions into folds.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll::math::throughput::Metric;

use super::rows::{Data, Row};
use super::solve::Problem;

pub(crate) const FOLDS: u64 = 10;
/// Divisions into folds: how a figure varies with them is said beside it.
pub(crate) const SALTS: u64 = 20;
/// What divides the groups by which no level of coefficients was chosen from the rest.
const ASIDE: &str = "plimsoll untouched";

/// A row's residual, the logarithm of measured over predicted seconds, from a fit without its group.
#[derive(Debug, Clone)]
pub(crate) struct HeldOut {
    pub(crate) metric: Metric,
    pub(crate) engine: &'static str,
    pub(crate) stratum: &'static str,
    pub(crate) class: &'static str,
    pub(crate) moe: bool,
    pub(crate) salt: u64,
    pub(crate) fold: u64,
    pub(crate) residual: f64,
    pub(crate) group: String,
}

impl HeldOut {
    fn of(row: &Row, salt: u64, fold: u64, residual: f64) -> Self {
        Self {
            metric: row.metric,
            engine: row.engine,
            stratum: row.stratum,
            class: row.class,
            moe: row.moe,
            salt,
            fold,
            residual,
            group: format!("{} {}", row.group, row.engine),
        }
    }

    /// The error in percent of the measured figure: of the rate, or of the time under load.
    pub(crate) fn error(&self) -> f64 {
        let ratio = match self.metric {
            Metric::TimePerOutputToken => (-self.residual).exp(),
            _ => self.residual.exp(),
        };
        (ratio - 1.0).abs() * 100.0
    }
}

fn hash(salt: &str, group: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in salt.bytes().chain(group.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash >> 24
}

/// Which fold a group is held out in.
fn fold(salt: u64, group: &str) -> u64 {
    hash(&format!("plimsoll load line {salt}"), group) % FOLDS
}

/// One group of four, by which no level of coefficients was chosen.
fn is_aside(group: &str) -> bool {
    hash(ASIDE, group).is_multiple_of(4)
}

/// Residuals of the reported rows among `test`, by a fit to `train`.
fn residuals(problem: &Problem, rows: &[&Row], train: &[usize], test: &[usize], salt: u64, fold: u64) -> Vec<HeldOut> {
    let theta = problem.fit(train);
    test.iter()
        .filter_map(|index| rows.get(*index).map(|row| (*index, row)))
        .filter(|(_, row)| row.reported)
        .map(|(index, row)| HeldOut::of(row, salt, fold, problem.residual(index, &theta)))
        .collect()
}

/// All rows under all divisions, each predicted by a fit that has not seen its group.
pub(crate) fn cross_validate(data: &Data) -> Vec<HeldOut> {
    let mut out = Vec::new();
    for metric in Metric::ALL {
        let rows: Vec<&Row> = data.rows.iter().filter(|row| row.metric == metric).collect();
        let problem = Problem::new(metric, &rows, &data.names);
        let next = AtomicU64::new(0);
        let found = Mutex::new(Vec::new());
        let work = || {
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= SALTS * FOLDS {
                    break;
                }
                let (salt, held) = (job / FOLDS, job % FOLDS);
                let is_held = |index: &usize| rows.get(*index).is_some_and(|row| fold(salt, &row.group) == held);
                let (test, train): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(is_held);
                let own = residuals(&problem, &rows, &train, &test, salt, held);
                if let Ok(mut all) = found.lock() {
                    all.push((job, own));
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(work);
            }
        });
        // In the order of the jobs, so that the page is the same however the threads ran.
        let mut found = found.into_inner().unwrap_or_default();
        found.sort_by_key(|(job, _)| *job);
        out.extend(found.into_iter().flat_map(|(_, own)| own));
    }
    out
}

/// The groups by which no level was chosen, predicted by a fit to the others.
pub(crate) fn aside(data: &Data) -> Vec<HeldOut> {
    let mut out = Vec::new();
    for metric in Metric::ALL {
        let rows: Vec<&Row> = data.rows.iter().filter(|row| row.metric == metric).collect();
        let problem = Problem::new(metric, &rows, &data.names);
        let is_held = |index: &usize| rows.get(*index).is_some_and(|row| is_aside(&row.group));
        let (test, train): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(is_held);
        out.extend(residuals(&problem, &rows, &train, &test, 0, 0));
    }
    out
}

/// The value below which a share of `values` lies.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let place = (u32::try_from(last).map_or(0.0, f64::from) * share).round();
    let index = format!("{place:.0}").parse::<usize>().unwrap_or(0);
    values.get(index.min(last)).copied().unwrap_or(0.0)
}

/// A quantile of the errors under each division: the middle one, and the worst.
pub(crate) fn over_salts(held: &[&HeldOut], share: f64) -> (f64, f64) {
    let mut each: Vec<f64> = (0..SALTS)
        .map(|salt| {
            let mut errors: Vec<f64> = held.iter().filter(|row| row.salt == salt).map(|row| row.error()).collect();
            quantile(&mut errors, share)
        })
        .collect();
    (quantile(&mut each, 0.5), quantile(&mut each, 1.0))
}

/// What is left out on each side of an interval: a little less than a tenth, because groups that were never seen scatter more than rows
/// of known ones.
const TAIL: f64 = 0.08;

/// The ends between which four of five residuals lie, by metric and stratum.
pub(crate) fn intervals<'a>(held: impl Iterator<Item = &'a HeldOut>) -> BTreeMap<(Metric, &'static str), (f64, f64)> {
    let mut groups: BTreeMap<(Metric, &'static str), Vec<f64>> = BTreeMap::new();
    for row in held {
        groups.entry((row.metric, row.stratum)).or_default().push(row.residual);
    }
    groups.into_iter().map(|(key, mut values)| (key, (quantile(&mut values, TAIL), quantile(&mut values, 1.0 - TAIL)))).collect()
}

/// Each row, and whether it lies inside the interval that the other folds of its division give.
pub(crate) fn covered(held: &[HeldOut]) -> Vec<(&HeldOut, bool)> {
    let mut out = Vec::with_capacity(held.len());
    for salt in 0..SALTS {
        for own in 0..FOLDS {
            let ends = intervals(held.iter().filter(|row| row.salt == salt && row.fold != own));
            for row in held.iter().filter(|row| row.salt == salt && row.fold == own) {
                let (low, high) = ends.get(&(row.metric, row.stratum)).copied().unwrap_or((-0.7, 0.7));
                out.push((row, (low..=high).contains(&row.residual)));
            }
        }
    }
    out
}

/// The share of rows inside, in percent.
pub(crate) fn share_inside(covered: &[(&HeldOut, bool)], keep: impl Fn(&HeldOut) -> bool) -> f64 {
    let (mut inside, mut all) = (0_u32, 0_u32);
    for (_, is_inside) in covered.iter().filter(|(row, _)| keep(row)) {
        all += 1;
        inside += u32::from(*is_inside);
    }
    f64::from(inside) / f64::from(all.max(1)) * 100.0
}

/// Groups whose median error is large, most rows first.
pub(crate) fn worst(held: &[HeldOut], metric: Metric) -> Vec<(String, usize, f64)> {
    let mut groups: BTreeMap<&str, (usize, Vec<f64>)> = BTreeMap::new();
    for row in held.iter().filter(|row| row.metric == metric) {
        let entry = groups.entry(&row.group).or_default();
        entry.0 += usize::from(row.salt == 0);
        entry.1.push(row.error());
    }
    let mut list: Vec<(String, usize, f64)> = groups
        .into_iter()
        .map(|(group, (count, mut errors))| (group.to_owned(), count, quantile(&mut errors, 0.5)))
        .filter(|(.., error)| *error > 40.0)
        .collect();
    list.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    list
}
