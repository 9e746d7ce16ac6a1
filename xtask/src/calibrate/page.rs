//! The accuracy page's section on speed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use plimsoll::math::throughput::{Metric, VERSION};

use super::rows::{self, Data};
use super::validate::{FOLDS, HeldOut, SALTS, aside, covered, cross_validate, over_salts, quantile, share_inside, worst};

const START: &str = "<!-- throughput: measured against `fixtures/bench/` by `cargo xtask accuracy` -->\n";
const END: &str = "<!-- /throughput -->\n";

/// The section. What stands there already is kept while it is the calibration's own: the fits behind it take minutes.
pub(crate) fn section(page: &str) -> Result<String, String> {
    let there = page.split_once(START).and_then(|(_, rest)| rest.split_once(END)).map(|(section, _)| section);
    if let Some(section) = there.filter(|section| section.contains(&format!("calibration `{VERSION}`"))) {
        return Ok(format!("{START}{section}{END}"));
    }
    let data = rows::load()?;
    let held = cross_validate(&data);
    Ok(format!("{START}{}{END}", tables(&data, &held, &aside(&data))))
}

const fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::Decode => "decode, tokens/s",
        Metric::Prefill => "prompt, tokens/s",
        Metric::TimePerOutputToken => "time per output token under load",
    }
}

const fn heading(metric: Metric) -> &'static str {
    match metric {
        Metric::Decode => "Decode",
        Metric::Prefill => "Prompts",
        Metric::TimePerOutputToken => "Time per output token under load",
    }
}

fn tables(data: &Data, held: &[HeldOut], aside: &[HeldOut]) -> String {
    let inside = covered(held);
    let mut out = format!(
        "\n## Speed\n\nMeasurements of quality A and B in `fixtures/bench/measured.csv.gz` beside predictions, calibration `{VERSION}`. Each row is \
         predicted by a fit that has not seen its (device, model) group: {FOLDS} folds, divided in {SALTS} ways. A figure is the one of the \
         division in the middle, and of the worst of them behind the bar. Errors are of the rate (time, under load) in percent of the \
         measured figure.\n\n\
         | what | rows | error, median / worst | 90th percentile / worst | inside the 80 % interval |\n|---|--:|--:|--:|--:|\n"
    );
    for metric in Metric::ALL {
        let _ = writeln!(out, "{}", line(title(metric), held, &inside, |row| row.metric == metric).unwrap_or_default());
    }
    out.push_str(
        "\nWhich levels of coefficients are kept was chosen on three quarters of the groups; what the terms are made of was looked for with all \
         rows in sight. The other quarter, predicted by a fit to the three:\n\n| what | rows | error, median | 90th percentile |\n|---|--:|--:|--:|\n",
    );
    for metric in Metric::ALL {
        let mut errors: Vec<f64> = aside.iter().filter(|row| row.metric == metric).map(HeldOut::error).collect();
        let (median, tail) = (quantile(&mut errors, 0.5), quantile(&mut errors, 0.9));
        let _ = writeln!(out, "| {} | {} | {median:.1} % | {tail:.1} % |", title(metric), errors.len());
    }
    for metric in Metric::ALL {
        let _ = write!(
            out,
            "\n### {}\n\n| rows of | rows | error, median / worst | 90th percentile / worst | inside the 80 % interval |\n|---|--:|--:|--:|--:|\n",
            heading(metric)
        );
        let classes: BTreeSet<&str> = held.iter().map(|row| row.class).collect();
        let engines: BTreeSet<&str> = held.iter().map(|row| row.engine).collect();
        let mut lines: Vec<Option<String>> = Vec::new();
        for class in classes {
            lines.push(line(class, held, &inside, |row| row.metric == metric && row.class == class));
        }
        for engine in engines {
            lines.push(line(engine, held, &inside, |row| row.metric == metric && row.engine == engine));
        }
        lines.push(line("mixtures of experts", held, &inside, |row| row.metric == metric && row.moe));
        lines.push(line("dense models", held, &inside, |row| row.metric == metric && !row.moe));
        for one in lines.into_iter().flatten() {
            let _ = writeln!(out, "{one}");
        }
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

/// A line of a table, `None` without rows.
fn line(name: &str, held: &[HeldOut], inside: &[(&HeldOut, bool)], keep: impl Fn(&HeldOut) -> bool) -> Option<String> {
    let rows: Vec<&HeldOut> = held.iter().filter(|row| keep(row)).collect();
    let count = rows.iter().filter(|row| row.salt == 0).count();
    if count == 0 {
        return None;
    }
    let ((median, worst_median), (tail, worst_tail)) = (over_salts(&rows, 0.5), over_salts(&rows, 0.9));
    Some(format!(
        "| {name} | {count} | {median:.1} / {worst_median:.1} % | {tail:.1} / {worst_tail:.1} % | {:.1} % |",
        share_inside(inside, keep)
    ))
}
