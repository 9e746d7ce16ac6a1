//! Which architectures of the build are covered, and how.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::install::Engine;
use super::score::{Row, Sums, Verdict, group};

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
            Verdict::Wrong(what) | Verdict::Known(what) => Some(what.clone()),
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

/// `docs/architectures.md`.
pub(crate) fn page(engine: &Engine, known: &[String], rows: &[Row]) -> String {
    let standings = standings(known, rows);
    let count = |test: &dyn Fn(&Standing) -> bool| standings.values().filter(|standing| test(standing)).count();
    let checked = count(&|standing| matches!(standing, Standing::Checked(_)));
    let mut out = format!(
        "# Architectures of llama.cpp\n\nWritten by `cargo xtask conformance --record` from a run against llama.cpp {} (node-llama-cpp {}): {} architectures \
         that the build knows, {checked} of them supported and checked.\n\n\
         Every row is a setting of a model (context, sequences, cache formats, flash attention, micro-batch) on the processor or on a \
         stand-in RTX 4090. Weights, caches, state and output are to the byte in all of them. Compute buffers are exact where the \
         graph is replayed, and bounded elsewhere: the last column is the width of the bounds in percent of the engine's figure, at \
         the 95th percentile. Settings that both sides refuse are counted apart.\n\n\
         | architecture | rows | exact | bounded | refused by both | width p95 |\n|---|--:|--:|--:|--:|--:|\n",
        engine.release.build,
        engine.release.package,
        known.len(),
    );
    for (name, standing) in &standings {
        if let Standing::Checked(sums) = standing {
            let Sums { rows, all_exact, bounded, refused, .. } = **sums;
            let width = sums.width(95) / 10;
            let _ = writeln!(out, "| {name} | {rows} | {all_exact} | {bounded} | {refused} | {width} % |");
        }
    }
    let mut others = |title: &str, text: &dyn Fn(&Standing) -> Option<String>| {
        let lines: Vec<String> =
            standings.iter().filter_map(|(name, standing)| Some(format!("- {name}: {}\n", text(standing)?))).collect();
        if !lines.is_empty() {
            let _ = write!(out, "\n## {title}\n\n{}", lines.concat());
        }
    };
    others("Not supported", &|standing| match standing {
        Standing::Missing(what) => Some(what.clone()),
        _ => None,
    });
    others("Rows that differ", &|standing| match standing {
        Standing::Differs(what) => Some(what.clone()),
        _ => None,
    });
    others("Without a model to check", &|standing| {
        matches!(standing, Standing::Untested).then(|| "no model among the fixtures that this build loads".to_owned())
    });
    out
}
