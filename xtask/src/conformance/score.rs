//! How rows came out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::figures::{Answer, TERMS};
use super::grid::Setting;
use super::places::Where;
use super::subjects::{Origin, Subject};

/// What one row shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every term to the byte.
    Exact,
    /// Every term but compute to the byte, compute within bounds.
    Bounded,
    /// Both sides refuse.
    Refused,
    /// We do not cover what the engine loads: the reason.
    Unsupported(String),
    /// A term that we call exact differs, bounds do not hold, or one side refuses.
    Wrong(String),
}

/// One row of the run.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) origin: Origin,
    pub(crate) place: String,
    pub(crate) model: String,
    pub(crate) architecture: String,
    pub(crate) setting: String,
    pub(crate) verdict: Verdict,
    /// One flag per term: to the byte.
    pub(crate) exact: [bool; 5],
    /// Width of the compute bounds, in thousandths of the engine's figure.
    pub(crate) width: u64,
    pub(crate) our_time: Duration,
    pub(crate) their_time: Duration,
    /// Whether the engine was asked in this run.
    pub(crate) fresh: bool,
}

/// The row of a model's setting, from both answers, both times and whether the engine was asked in this run.
pub(crate) fn judge(
    subject: &Subject,
    place: Where,
    setting: &Setting,
    (ours, theirs): (&Answer, &Answer),
    (our_time, their_time, fresh): (Duration, Duration, bool),
) -> Row {
    let (verdict, exact, width) = verdict(ours, theirs);
    Row {
        origin: subject.origin,
        place: place.name(),
        model: subject.name.clone(),
        architecture: subject.architecture.clone(),
        setting: setting.short(),
        verdict,
        exact,
        width,
        our_time,
        their_time,
        fresh,
    }
}

/// Compares two answers.
fn verdict(ours: &Answer, theirs: &Answer) -> (Verdict, [bool; 5], u64) {
    let none = [false; 5];
    match (ours, theirs) {
        (Answer::Refused(_) | Answer::Unsupported(_), Answer::Refused(_)) => (Verdict::Refused, none, 0),
        (Answer::Unsupported(what), Answer::Figures(_)) => (Verdict::Unsupported(what.clone()), none, 0),
        (Answer::Refused(why), Answer::Figures(_)) => (Verdict::Wrong(format!("refused ({why}), the engine plans it")), none, 0),
        (Answer::Figures(_), Answer::Refused(why)) => (Verdict::Wrong(format!("the engine refuses: {why}")), none, 0),
        (_, Answer::Unsupported(why)) => (Verdict::Wrong(why.clone()), none, 0),
        (Answer::Figures(ours), Answer::Figures(theirs)) => {
            let mut exact = none;
            let mut wrong = Vec::new();
            let mut bounded = false;
            for (((name, ours), theirs), exact) in TERMS.iter().zip(&ours.terms).zip(&theirs.terms).zip(&mut exact) {
                *exact = ours == theirs;
                if *exact {
                    continue;
                }
                if !ours.is_exact() && ours.contains(theirs) {
                    bounded = true;
                } else {
                    wrong.push(format!("{name} {} B, the engine {} B", ours.text(), theirs.text()));
                }
            }
            if wrong.is_empty() && ours.weight_buffers != theirs.weight_buffers {
                wrong.push(format!("weight buffers of {:?} B, the engine's {:?} B", ours.weight_buffers, theirs.weight_buffers));
            }
            let width = match (ours.terms.last(), theirs.terms.last()) {
                (Some(ours), Some(theirs)) => {
                    ours.most().saturating_sub(ours.least()).saturating_mul(1000) / theirs.most().max(1)
                }
                _ => 0,
            };
            let verdict = match (wrong.is_empty(), bounded) {
                (false, _) => Verdict::Wrong(wrong.join("; ")),
                (true, true) => Verdict::Bounded,
                (true, false) => Verdict::Exact,
            };
            (verdict, exact, width)
        }
    }
}

/// Sums of a group of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) rows: u64,
    pub(crate) planned: u64,
    pub(crate) exact: [u64; 5],
    pub(crate) all_exact: u64,
    pub(crate) bounded: u64,
    pub(crate) refused: u64,
    pub(crate) unsupported: u64,
    pub(crate) wrong: u64,
    pub(crate) widths: Vec<u64>,
}

impl Sums {
    pub(crate) fn add(&mut self, row: &Row) {
        self.rows += 1;
        for (sum, exact) in self.exact.iter_mut().zip(row.exact) {
            *sum += u64::from(exact);
        }
        match row.verdict {
            Verdict::Exact => self.all_exact += 1,
            Verdict::Bounded => self.bounded += 1,
            Verdict::Refused => self.refused += 1,
            Verdict::Unsupported(_) => self.unsupported += 1,
            Verdict::Wrong(_) => self.wrong += 1,
        }
        if matches!(row.verdict, Verdict::Exact | Verdict::Bounded) {
            self.widths.push(row.width);
        }
        self.planned += u64::from(matches!(row.verdict, Verdict::Exact | Verdict::Bounded | Verdict::Wrong(_)));
    }

    /// Width of compute bounds at a percentile, thousandths of the engine's figure.
    pub(crate) fn width(&self, percent: usize) -> u64 {
        let mut widths = self.widths.clone();
        widths.sort_unstable();
        let index = widths.len().saturating_sub(1).saturating_mul(percent) / 100;
        widths.get(index).copied().unwrap_or(0)
    }
}

/// Sums by what `key` says.
pub(crate) fn group<K: Ord>(rows: &[Row], key: impl Fn(&Row) -> K) -> BTreeMap<K, Sums> {
    let mut groups: BTreeMap<K, Sums> = BTreeMap::new();
    for row in rows {
        groups.entry(key(row)).or_default().add(row);
    }
    groups
}
