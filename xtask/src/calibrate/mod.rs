//! The calibration of the throughput model, and how well it does on rows it has not seen.

mod page;
mod rows;
mod solve;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use plimsoll::math::throughput::{Metric, Recorder};

pub(crate) use page::section;

use crate::run::root;
use rows::Row;
use solve::Problem;
use validate::{HeldOut, covered, cross_validate, intervals, over_salts, share_inside, worst};

const TABLE: &str = "crates/math-core/src/throughput/coefficients.rs";
const READABLE: &str = "fixtures/bench/coefficients.csv";

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
        let theta = problem.fit(&all);
        table.extend(problem.keys.iter().copied().zip(theta).filter(|(_, value)| *value != 0.0));
    }
    println!("   {} coefficients kept", table.len());
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
    let (mut keys, mut values) = (String::new(), String::new());
    for (index, (key, value)) in table.iter().enumerate() {
        let thousandths = format!("{:.0}", value * 1000.0);
        let name = names.get(key).map_or("", String::as_str);
        let quoted = if name.contains(',') { format!("\"{name}\"") } else { name.to_owned() };
        let _ = writeln!(readable, "{quoted},{value:.3}");
        keys.push_str(if index % 10 == 0 { "\n    " } else { " " });
        values.push_str(if index % 20 == 0 { "\n    " } else { " " });
        let _ = write!(keys, "{key:#010x},");
        let _ = write!(values, "{thousandths},");
        for byte in format!("{key} {thousandths}").bytes() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    let count = table.len();
    let _ = writeln!(code, "pub const VERSION: &str = \"2-{hash:08x}\";\n\n/// Keys of the coefficients, in order.");
    let _ = writeln!(
        code,
        "#[rustfmt::skip]\n#[expect(clippy::unreadable_literal, reason = \"keys are hashes\")]\n\
         pub(super) const KEYS: [u32; {count}] = [{keys}\n];\n\n\
         /// Their values in thousandths.\n#[rustfmt::skip]\npub(super) const VALUES: [i16; {count}] = [{values}\n];\n"
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

fn report(held: &[HeldOut]) {
    let inside = covered(held);
    for metric in Metric::ALL {
        let rows: Vec<&HeldOut> = held.iter().filter(|row| row.metric == metric).collect();
        let ((median, worst_median), (tail, worst_tail)) = (over_salts(&rows, 0.5), over_salts(&rows, 0.9));
        println!(
            "   {}: median {median:.1} % (worst {worst_median:.1}), p90 {tail:.1} % (worst {worst_tail:.1}), interval holds {:.1} %",
            metric.name(),
            share_inside(&inside, |row| row.metric == metric),
        );
        for (group, count, error) in worst(held, metric).into_iter().take(12) {
            println!("      ! {group}: {count} rows, {error:.0} %");
        }
    }
}
