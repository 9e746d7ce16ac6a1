//! Parameter counts of the corpus, from a config alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll::ingest::hf;
use serde_json::Value;

use crate::truth::{fixture, rows, text};

/// How the parameter counts of the corpus came out.
#[derive(Debug, Default)]
pub(super) struct Corpus {
    pub(super) exact: u64,
    pub(super) counted: u64,
    uncounted: Vec<String>,
    wrong: BTreeMap<String, String>,
}

pub(super) fn table() -> Result<Corpus, String> {
    let mut corpus = Corpus::default();
    for row in rows("corpus/manifest.jsonl")? {
        let slug = text(&row, "slug").to_owned();
        let truth = row.get("ground_truth").and_then(|truth| truth.get("params_total")).and_then(Value::as_u64);
        let bytes = std::fs::read(fixture("corpus").join(text(&row, "file"))).map_err(|error| format!("{slug}: {error}"))?;
        let ours = hf::ingest(&bytes, &hf::Options::default())
            .map_err(|error| error.to_string())
            .and_then(|ingested| ingested.tensors.total_params().map_err(|error| error.to_string()));
        let Some(truth) = truth else {
            corpus.uncounted.push(slug);
            continue;
        };
        corpus.counted += 1;
        match ours {
            Ok(ours) if ours.get() == truth => corpus.exact += 1,
            Ok(ours) => {
                corpus.wrong.insert(slug, format!("{ours} parameters, {truth} by the model class"));
            }
            Err(problem) => {
                corpus.wrong.insert(slug, problem);
            }
        }
    }
    Ok(corpus)
}

impl Corpus {
    /// The section of the page.
    pub(super) fn section(&self) -> String {
        let mut out = format!(
            "\n## Parameter counts from a config alone\n\n{} of {} configs exact, as counted by the model classes themselves \
             (`fixtures/corpus/manifest.jsonl`).\n\n",
            self.exact, self.counted
        );
        for (slug, what) in &self.wrong {
            let _ = writeln!(out, "- {slug}: {what}");
        }
        if !self.uncounted.is_empty() {
            let _ = writeln!(out, "\nWithout a trustworthy count to compare with: {}.", self.uncounted.join(", "));
        }
        out
    }
}
