//! Which architectures of the build are covered, and how.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::install::write;
use super::record::{self, Replayed};
use super::score::{Row, Sums, Verdict, group};
use super::subjects;
use crate::run::root;

/// How an architecture stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Rows were compared and agree.
    Checked(Box<Sums>),
    /// Rows were compared and differ.
    Differs(String),
    /// What is missing.
    Missing(String),
    /// No model of it is among the fixtures.
    Untested,
}

/// Every architecture that the build knows.
pub(crate) fn standings(known: &[String], rows: &[Row]) -> BTreeMap<String, Standing> {
    let sums = group(rows, |row| row.architecture.clone());
    let mut all = BTreeMap::new();
    for name in known {
        let here = || rows.iter().filter(|row| row.architecture == *name);
        let missing = here().find_map(|row| match &row.verdict {
            Verdict::Unsupported(what) => Some(what.clone()),
            _ => None,
        });
        let differs = here().find_map(|row| match &row.verdict {
            Verdict::Wrong(what) => Some(what.clone()),
            _ => None,
        });
        let standing = match (sums.get(name), missing, differs) {
            (_, Some(what), _) => Standing::Missing(what),
            (_, None, Some(what)) => Standing::Differs(what),
            (Some(sums), None, None) if sums.planned > 0 => Standing::Checked(Box::new(sums.clone())),
            _ => Standing::Untested,
        };
        all.insert(name.clone(), standing);
    }
    all
}

/// The build whose record the page is written from.
const BUILD: &str = "v0.5.0";

/// Writes `docs/architectures.md` from the record of a build, or with `check` only compares.
pub(crate) fn page_of_record(check: bool) -> Result<(), String> {
    println!("== architectures");
    run(BUILD, check)
}

pub(crate) fn run(build: &str, check: bool) -> Result<(), String> {
    let replayed = record::replay(build, &subjects::all(false)?)?;
    let now = page(build, &replayed);
    let path = root().join(PAGE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == now) {
        return Ok(());
    }
    if check {
        return Err(format!("{PAGE} is out of date: run `cargo xtask architectures`"));
    }
    write(&path, now)?;
    println!("   wrote {PAGE}");
    Ok(())
}

const PAGE: &str = "docs/architectures.md";

/// Why a build lists an architecture of which no model can be checked.
fn without_model(architecture: &str) -> &'static str {
    match architecture {
        "clip" => "no language model: projectors and encoders of images and sound",
        "gptj" => "the engine lists the name and has no loader for it",
        _ => "no model among the fixtures that this build loads",
    }
}

fn page(build: &str, replayed: &Replayed) -> String {
    let Replayed { package, architectures: known, rows } = replayed;
    let standings = standings(known, rows);
    let count = |test: &dyn Fn(&Standing) -> bool| standings.values().filter(|standing| test(standing)).count();
    let checked = count(&|standing| matches!(standing, Standing::Checked(_)));
    let mut out = format!(
        "# Architectures of llama.cpp\n\nWritten by `cargo xtask architectures` from the record of a run against llama.cpp {build} ({package}): {} architectures \
         that the build knows, {checked} of them supported and checked.\n\n\
         Every row is a setting of a model (context, sequences, cache formats, flash attention, micro-batch) on the processor, on a \
         stand-in RTX 4090, on part of one (layers, experts, caches or tensors on the host) or on two. Weights, caches, state and output are to the byte in all of them. Compute buffers are exact where the \
         graph is replayed, and bounded elsewhere: the last column is the width of the bounds in percent of the engine's figure, at \
         the 95th percentile. Settings that both sides refuse are counted apart.\n\n\
         | architecture | rows | exact | bounded | refused by both | width p95 |\n|---|--:|--:|--:|--:|--:|\n",
        known.len(),
    );
    for (name, standing) in &standings {
        if let Standing::Checked(sums) = standing {
            let Sums { rows, all_exact, bounded, refused, .. } = **sums;
            let width = sums.width(95) / 10;
            let _ = writeln!(out, "| {name} | {rows} | {all_exact} | {bounded} | {refused} | {width} % |");
        }
    }
    let mut others = |title: &str, text: &dyn Fn(&str, &Standing) -> Option<String>| {
        let lines: Vec<String> =
            standings.iter().filter_map(|(name, standing)| Some(format!("- {name}: {}\n", text(name, standing)?))).collect();
        if !lines.is_empty() {
            let _ = write!(out, "\n## {title}\n\n{}", lines.concat());
        }
    };
    others("Not supported", &|_, standing| match standing {
        Standing::Missing(what) => Some(what.clone()),
        _ => None,
    });
    others("Rows that differ", &|_, standing| match standing {
        Standing::Differs(what) => Some(what.clone()),
        _ => None,
    });
    others("Without a model to check", &|name, standing| {
        matches!(standing, Standing::Untested).then(|| without_model(name).to_owned())
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every architecture that the recorded build knows is checked, or stands on the page with what is missing; no row
    /// of the record differs from what we answer now.
    #[test]
    fn every_architecture_is_checked_or_named() {
        let replayed = record::replay(BUILD, &subjects::all(false).unwrap()).unwrap();
        let wrong: Vec<String> = replayed
            .rows
            .iter()
            .filter_map(|row| match &row.verdict {
                Verdict::Wrong(what) => Some(format!("{} {} {}: {what}", row.model, row.place, row.setting)),
                _ => None,
            })
            .collect();
        let first: Vec<&String> = wrong.iter().take(20).collect();
        assert!(wrong.is_empty(), "{} of {} rows differ: {first:#?}", wrong.len(), replayed.rows.len());
        assert!(replayed.rows.len() > 7000, "{} rows", replayed.rows.len());
        let standings = standings(&replayed.architectures, &replayed.rows);
        assert!(standings.len() > 145, "{} architectures", standings.len());
        let checked = standings.values().filter(|standing| matches!(standing, Standing::Checked(_))).count();
        assert!(checked >= 140, "{checked} of {} architectures are checked", standings.len());
    }
}
