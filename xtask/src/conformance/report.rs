//! The table of a run.

use std::fmt::Write as _;
use std::time::Duration;

use super::figures::TERMS;
use super::install::Engine;
use super::score::{Row, Sums, Verdict, group};

/// Prints rows by origin and place, the rows that differ, and the time of both sides.
pub(crate) fn print(engine: &Engine, rows: &[Row], worst: usize) {
    println!("   llama.cpp@{} from node-llama-cpp {}", engine.release.build, engine.release.package);
    println!("{}", table(rows));
    times(rows);
    let wrong = rows.iter().filter_map(|row| match &row.verdict {
        Verdict::Wrong(what) => Some((row, what)),
        _ => None,
    });
    for (row, what) in wrong.take(worst) {
        println!("   {} {} {}: {what}", row.model, row.place, row.setting);
    }
}

/// Sums by origin and place.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let _ = write!(out, "   {:<17} {:<19} {:>6}", "models", "place", "rows");
    for term in TERMS {
        let _ = write!(out, " {term:>8}");
    }
    let _ = write!(out, " {:>8} {:>8} {:>11} {:>6} {:>9}", "bounded", "refused", "unsupported", "wrong", "width p95");
    let line = |out: &mut String, name: &str, place: &str, sums: &Sums| {
        let _ = write!(out, "\n   {name:<17} {place:<19} {:>6}", sums.rows);
        for exact in sums.exact {
            let _ = write!(out, " {exact:>8}");
        }
        let Sums { bounded, refused, unsupported, wrong, .. } = sums;
        let width = f64::from(u32::try_from(sums.width(95)).unwrap_or(u32::MAX)) / 10.0;
        let _ = write!(out, " {bounded:>8} {refused:>8} {unsupported:>11} {wrong:>6} {width:>7.1} %");
    };
    for ((origin, place), sums) in group(rows, |row| (row.origin, row.place.clone())) {
        line(&mut out, origin.name(), &place, &sums);
    }
    for ((), sums) in group(rows, |_| ()) {
        line(&mut out, "all", "", &sums);
    }
    out
}

/// The middle of the times of both sides, of rows that the engine answered in this run.
fn times(rows: &[Row]) {
    let planned = || rows.iter().filter(|row| row.fresh && matches!(row.verdict, Verdict::Exact | Verdict::Bounded));
    let middle = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    };
    let ours = middle(planned().map(|row| row.our_time).collect());
    let theirs = middle(planned().map(|row| row.their_time).collect());
    if let (Some(ours), Some(theirs)) = (ours, theirs) {
        println!("   time per setting, median: ours {ours:.1?}, the engine's own simulation {theirs:.1?}");
    }
}
