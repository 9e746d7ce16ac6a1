//! The calibration of the throughput model, and how well it does on rows it has not seen.

mod rows;
mod solve;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use plimsoll::math::throughput::{Metric, Recorder, VERSION};

use crate::run::root;
use rows::{Data, Row};
use solve::Problem;

const TABLE: &str = "crates/math-core/src/throughput/coefficients.rs";
const READABLE: &str = "fixtures/bench/coefficients.csv";
const FOLDS: u64 = 10;
/// What the division into folds is drawn with.
const SALT: &str = "plimsoll load line 7";
/// Coefficients closer to nothing than this change no prediction by as much as a percent, and are left out of the table.
const SMALLEST: f64 = 0.008;

/// A row's residual, the logarithm of measured over predicted seconds, from a fit without its group.
#[derive(Debug, Clone)]
pub(crate) struct HeldOut {
    pub(crate) metric: Metric,
    pub(crate) engine: &'static str,
    pub(crate) stratum: &'static str,
    pub(crate) class: &'static str,
    pub(crate) moe: bool,
    pub(crate) fold: u64,
    pub(crate) residual: f64,
    pub(crate) group: String,
}

impl HeldOut {
    /// The error in percent of the measured figure: of the rate, or of the time under load.
    pub(crate) fn error(&self) -> f64 {
        let ratio = match self.metric {
            Metric::TimePerOutputToken => (-self.residual).exp(),
            _ => self.residual.exp(),
        };
        (ratio - 1.0).abs() * 100.0
    }
}

/// Which fold a (device, model) group is held out in.
fn fold(group: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in SALT.bytes().chain(group.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 24) % FOLDS
}

/// All rows, each predicted by a fit that has not seen its group.
pub(crate) fn cross_validate(data: &Data) -> Vec<HeldOut> {
    let mut out = Vec::new();
    for metric in Metric::ALL {
        let rows: Vec<&Row> = data.rows.iter().filter(|row| row.metric == metric).collect();
        let problem = Problem::new(metric, &rows, &data.names);
        let all: Vec<usize> = (0..rows.len()).collect();
        let start = problem.fit(&all, None, 25);
        let per_fold = |held: u64| -> Vec<HeldOut> {
            let is_held = |index: &usize| rows.get(*index).is_some_and(|row| fold(&row.group) == held);
            let (test, train): (Vec<usize>, Vec<usize>) = all.iter().copied().partition(is_held);
            let theta = problem.fit(&train, Some(&start), 10);
            test.into_iter()
                .filter_map(|index| rows.get(index).map(|row| (index, row)))
                .filter(|(_, row)| row.reported)
                .map(|(index, row)| HeldOut {
                    metric,
                    engine: row.engine,
                    stratum: row.stratum,
                    class: row.class,
                    moe: row.moe,
                    fold: held,
                    residual: problem.residual(index, &theta),
                    group: format!("{} {}", row.group, row.engine),
                })
                .collect()
        };
        let found: Vec<Vec<HeldOut>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..FOLDS).map(|held| scope.spawn(move || per_fold(held))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
        });
        out.extend(found.into_iter().flatten());
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

/// The ends between which four of five residuals lie, by metric and stratum.
fn intervals<'a>(held: impl Iterator<Item = &'a HeldOut>) -> BTreeMap<(Metric, &'static str), (f64, f64)> {
    let mut groups: BTreeMap<(Metric, &'static str), Vec<f64>> = BTreeMap::new();
    for row in held {
        groups.entry((row.metric, row.stratum)).or_default().push(row.residual);
    }
    groups
        .into_iter()
        .map(|(key, mut values)| {
            // A little less than a tenth on each side: groups that were never seen scatter more than rows of known ones.
            let tail = 0.08;
            (key, (quantile(&mut values, tail), quantile(&mut values, 1.0 - tail)))
        })
        .collect()
}

/// The share of rows inside intervals that were taken from the other folds.
pub(crate) fn coverage(held: &[HeldOut]) -> BTreeMap<Metric, f64> {
    let mut inside: BTreeMap<Metric, (u32, u32)> = BTreeMap::new();
    for own in 0..FOLDS {
        let ends = intervals(held.iter().filter(|row| row.fold != own));
        for row in held.iter().filter(|row| row.fold == own) {
            let (low, high) = ends.get(&(row.metric, row.stratum)).copied().unwrap_or((-0.7, 0.7));
            let count = inside.entry(row.metric).or_default();
            count.1 += 1;
            if (low..=high).contains(&row.residual) {
                count.0 += 1;
            }
        }
    }
    inside.into_iter().map(|(metric, (inside, all))| (metric, f64::from(inside) / f64::from(all) * 100.0)).collect()
}

/// Fits everything and writes the table.
pub(crate) fn run() -> Result<(), String> {
    println!("== calibration");
    let data = rows::load()?;
    println!("   {} rows, {} coefficients", data.rows.len(), data.names.len());
    for (reason, count) in &data.left_out {
        println!("   left out: {count} rows, {reason}");
    }
    for row in &data.impossible {
        println!("   impossible: {row}");
    }
    let held = cross_validate(&data);
    report(&held);
    let mut table: BTreeMap<u32, f64> = BTreeMap::new();
    for metric in Metric::ALL {
        let rows: Vec<&Row> = data.rows.iter().filter(|row| row.metric == metric).collect();
        let problem = Problem::new(metric, &rows, &data.names);
        let all: Vec<usize> = (0..rows.len()).collect();
        let theta = problem.fit(&all, None, 40);
        table.extend(problem.keys.iter().copied().zip(theta).filter(|(_, value)| value.abs() >= SMALLEST));
    }
    write(&table, &data.names, &intervals(held.iter()))
}

fn write(
    table: &BTreeMap<u32, f64>,
    names: &Recorder,
    intervals: &BTreeMap<(Metric, &'static str), (f64, f64)>,
) -> Result<(), String> {
    let distinct: BTreeSet<&String> = names.values().collect();
    if distinct.len() != names.len() {
        return Err("two coefficients share a key".to_owned());
    }
    let mut code = String::from(
        "//! Written by `cargo xtask calibrate` from `fixtures/bench/`; `fixtures/bench/coefficients.csv` has the names.\n\n\
         /// The calibration's number: it changes whenever a coefficient does.\n",
    );
    let mut readable = String::from("name,value\n");
    let mut hash: u32 = 0x811c_9dc5;
    let mut lines = String::new();
    for (index, (key, value)) in table.iter().enumerate() {
        let thousandths = format!("{:.0}", value * 1000.0);
        let name = names.get(key).map_or("", String::as_str);
        let quoted = if name.contains(',') { format!("\"{name}\"") } else { name.to_owned() };
        let _ = writeln!(readable, "{quoted},{:.3}", value);
        lines.push_str(if index % 6 == 0 { "\n    " } else { " " });
        let _ = write!(lines, "({key:#010x}, {thousandths}),");
        for byte in format!("{key} {thousandths}").bytes() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    let _ = writeln!(code, "pub const VERSION: &str = \"1-{hash:08x}\";\n\n/// Key and value in thousandths, by key.");
    let _ = writeln!(
        code,
        "#[rustfmt::skip]\n#[expect(clippy::unreadable_literal, reason = \"keys are hashes\")]\n\
         pub(super) const COEFFICIENTS: &[(u32, i16)] = &[{lines}\n];\n"
    );
    code.push_str(
        "/// Metric, group, and the logarithms between which four of five held-out measurements lie, in thousandths.\n",
    );
    code.push_str("#[rustfmt::skip]\npub(super) const INTERVALS: &[(&str, &str, i16, i16)] = &[\n");
    for ((metric, stratum), (low, high)) in intervals {
        let _ = writeln!(code, "    ({:?}, {stratum:?}, {:.0}, {:.0}),", metric.name(), low * 1000.0, high * 1000.0);
    }
    code.push_str("];\n");
    let mut sorted: Vec<&str> = readable.lines().skip(1).collect();
    sorted.sort_unstable();
    let readable = format!("name,value\n{}\n", sorted.join("\n"));
    for (path, content) in [(TABLE, code), (READABLE, readable)] {
        std::fs::write(root().join(path), content).map_err(|error| format!("{path}: {error}"))?;
        println!("   wrote {path}");
    }
    Ok(())
}

/// Groups by how much they add to the error: rows times median error.
fn worst(held: &[HeldOut], metric: Metric) -> Vec<(String, usize, f64)> {
    let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in held.iter().filter(|row| row.metric == metric) {
        groups.entry(&row.group).or_default().push(row.error());
    }
    let mut list: Vec<(String, usize, f64)> = groups
        .into_iter()
        .map(|(group, mut errors)| (group.to_owned(), errors.len(), quantile(&mut errors, 0.5)))
        .filter(|(.., error)| *error > 40.0)
        .collect();
    list.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    list
}

fn report(held: &[HeldOut]) {
    let covered = coverage(held);
    for metric in Metric::ALL {
        let of = |keep: &dyn Fn(&HeldOut) -> bool| -> Vec<f64> {
            held.iter().filter(|row| row.metric == metric && keep(row)).map(HeldOut::error).collect()
        };
        let mut all = of(&|_| true);
        println!(
            "   {}: {} rows, median {:.1} %, p90 {:.1} %, interval holds {:.1} %",
            metric.name(),
            all.len(),
            quantile(&mut all, 0.5),
            quantile(&mut all, 0.9),
            covered.get(&metric).copied().unwrap_or(0.0),
        );
        for (group, count, error) in worst(held, metric).into_iter().take(12) {
            println!("      ! {group}: {count} rows, {error:.0} %");
        }
        let strata: BTreeSet<&str> = held.iter().filter(|row| row.metric == metric).map(|row| row.stratum).collect();
        for stratum in strata {
            let mut values = of(&|row| row.stratum == stratum);
            println!(
                "      {stratum}: {} rows, {:.1} / {:.1}",
                values.len(),
                quantile(&mut values, 0.5),
                quantile(&mut values, 0.9)
            );
        }
    }
}

const START: &str = "<!-- throughput: measured against `fixtures/bench/` by `cargo xtask accuracy` -->\n";
const END: &str = "<!-- /throughput -->\n";

/// The accuracy page's section on speed. What stands there already is kept while it is the calibration's own: the fits behind it take a
/// minute.
pub(crate) fn section(page: &str) -> Result<String, String> {
    let there = page.split_once(START).and_then(|(_, rest)| rest.split_once(END)).map(|(section, _)| section);
    if let Some(section) = there.filter(|section| section.contains(&format!("calibration `{VERSION}`"))) {
        return Ok(format!("{START}{section}{END}"));
    }
    let data = rows::load()?;
    let held = cross_validate(&data);
    Ok(format!("{START}{}{END}", tables(&data, &held)))
}

fn tables(data: &Data, held: &[HeldOut]) -> String {
    let covered = coverage(held);
    let mut out = format!(
        "\n## Speed\n\nMeasurements of quality A and B in `fixtures/bench/measured.csv.gz` beside predictions, calibration `{VERSION}`. Each row is \
         predicted by a fit that has not seen its (device, model) group: {FOLDS} folds. Errors are of the rate (time, under load) in percent \
         of the measured figure. Forms of the model and the cut-offs of the robust fit were chosen by these same folds, so figures for \
         devices and models that are not in the file may be somewhat worse.\n\n\
         | what | rows | error, median | 90th percentile | inside the 80 % interval |\n|---|--:|--:|--:|--:|\n"
    );
    let title = |metric: Metric| match metric {
        Metric::Decode => "decode, tokens/s",
        Metric::Prefill => "prompt, tokens/s",
        Metric::TimePerOutputToken => "time per output token under load",
    };
    let line = |out: &mut String, name: &str, metric: Metric, keep: &dyn Fn(&HeldOut) -> bool, inside: &str| {
        let mut errors: Vec<f64> = held.iter().filter(|row| row.metric == metric && keep(row)).map(HeldOut::error).collect();
        if errors.is_empty() {
            return;
        }
        let (median, tail) = (quantile(&mut errors, 0.5), quantile(&mut errors, 0.9));
        let _ = writeln!(out, "| {name} | {} | {median:.1} % | {tail:.1} % |{inside}", errors.len());
    };
    for metric in Metric::ALL {
        let inside = format!(" {:.1} % |", covered.get(&metric).copied().unwrap_or(0.0));
        line(&mut out, title(metric), metric, &|_| true, &inside);
    }
    for metric in Metric::ALL {
        let _ = write!(
            out,
            "\n### {}\n\n| rows of | rows | error, median | 90th percentile |\n|---|--:|--:|--:|\n",
            match metric {
                Metric::Decode => "Decode",
                Metric::Prefill => "Prompts",
                Metric::TimePerOutputToken => "Time per output token under load",
            }
        );
        let classes: BTreeSet<&str> = held.iter().map(|row| row.class).collect();
        let engines: BTreeSet<&str> = held.iter().map(|row| row.engine).collect();
        for class in classes {
            line(&mut out, class, metric, &|row| row.class == class, "");
        }
        for engine in engines {
            line(&mut out, engine, metric, &|row| row.engine == engine, "");
        }
        line(&mut out, "mixtures of experts", metric, &|row| row.moe, "");
        line(&mut out, "dense models", metric, &|row| !row.moe, "");
        let groups = worst(held, metric);
        if !groups.is_empty() {
            out.push_str("\nWorst groups (median above 40 %): ");
            let named: Vec<String> =
                groups.iter().take(8).map(|(group, count, error)| format!("{group} ({count} rows, {error:.0} %)")).collect();
            let _ = writeln!(out, "{}.", named.join("; "));
        }
    }
    out.push_str("\n### Rows that break physics\n\nAbove bandwidth over bytes, or above the fastest unit's peak; neither fitted nor counted.\n\n");
    for row in &data.impossible {
        let _ = writeln!(out, "- {row}");
    }
    out.push('\n');
    out
}
