//! Every recorded row of vLLM beside our answer, counted by where the settings come from and by GPU.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

#[path = "../../../crates/plimsoll/tests/truth/support/vllm.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "shared with the tests, whose fixtures are the repository's own"
)]
mod fixtures;
#[path = "../../../crates/plimsoll/tests/truth/support/vllm_rows.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "shared with the tests, whose fixtures are the repository's own"
)]
mod judging;

/// Rows of one kind on one GPU.
#[derive(Debug, Default)]
pub(crate) struct Score {
    rows: u64,
    planned: u64,
    memories: u64,
    plans_equal: u64,
    weights_equal: u64,
    refusals: u64,
    refused: u64,
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    groups: BTreeMap<(&'static str, String), Score>,
    /// By model: how many rows differ, and how the first does.
    wrong: BTreeMap<String, (u64, String)>,
}

impl Scores {
    /// Judges every recorded row.
    pub(crate) fn of_the_record() -> Self {
        let configs = fixtures::configs();
        let mut models = BTreeMap::new();
        let mut scores = Self::default();
        for row in fixtures::rows() {
            let key = fixtures::config(&row, &configs).to_string();
            let model = models.entry(key).or_insert_with(|| fixtures::model(&row, &configs));
            let judged = judging::judge(&row, model, &fixtures::knobs(&row));
            let drawn = text(&row, "tag").starts_with("random");
            let kind = if drawn { "drawn at random" } else { "chosen" };
            let score = scores.groups.entry((kind, text(&row, "gpu").to_owned())).or_default();
            score.rows += 1;
            if judged.refused {
                score.refusals += 1;
                score.refused += u64::from(judged.plan.is_empty());
            } else {
                score.planned += 1;
                let memories = row.pointer("/expected/plans").and_then(Value::as_array).map_or(0, Vec::len);
                score.memories += u64::try_from(memories).unwrap_or(u64::MAX);
                score.plans_equal += u64::from(judged.plan.is_empty());
                score.weights_equal += u64::from(judged.weights.is_none());
            }
            let mut off = judged.plan;
            off.extend(judged.weights);
            if !off.is_empty() {
                let first = || (0, format!("{}: {}", judging::name(&row), off.join("; ")));
                scores.wrong.entry(text(&row, "model").to_owned()).or_insert_with(first).0 += 1;
            }
        }
        scores
    }

    /// Rows on which something is another than the engine's.
    pub(crate) fn differing(&self) -> u64 {
        self.wrong.values().map(|(count, _)| count).sum()
    }

    /// All rows.
    pub(crate) fn rows(&self) -> u64 {
        self.total(|score| score.rows)
    }

    fn total(&self, of: impl Fn(&Score) -> u64) -> u64 {
        self.groups.values().map(of).sum()
    }

    /// A table in Markdown, and the rows that differ.
    pub(crate) fn table(&self) -> String {
        let mut out = String::from(
            "| settings | GPU | rows | planned by vLLM | sizes of memory | plans equal | weights equal | refused by vLLM | refused with its reason |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for ((kind, gpu), score) in &self.groups {
            let Score { rows, planned, memories, plans_equal, weights_equal, refusals, refused } = score;
            let _ = writeln!(
                out,
                "| {kind} | {gpu} | {rows} | {planned} | {memories} | {plans_equal} | {weights_equal} | {refusals} | {refused} |"
            );
        }
        let _ = writeln!(
            out,
            "| all | | {} | {} | {} | {} | {} | {} | {} |",
            self.rows(),
            self.total(|score| score.planned),
            self.total(|score| score.memories),
            self.total(|score| score.plans_equal),
            self.total(|score| score.weights_equal),
            self.total(|score| score.refusals),
            self.total(|score| score.refused),
        );
        out
    }

    /// The rows that differ, a model in a line.
    pub(crate) fn wrong(&self) -> String {
        if self.wrong.is_empty() {
            return "None.\n".to_owned();
        }
        self.wrong.iter().fold(String::new(), |mut out, (model, (count, first))| {
            let _ = writeln!(out, "- {model}: {count}, first: {first}");
            out
        })
    }

    /// The line of the README's table.
    pub(crate) fn summary(&self) -> String {
        let planned = self.total(|score| score.planned);
        format!(
            "vLLM 0.33.0: {} of {planned} plans of its cache and {} of {planned} weights of its ranks equal to the engine's, {} of {} \
             refusals with its reason.",
            self.total(|score| score.plans_equal),
            self.total(|score| score.weights_equal),
            self.total(|score| score.refused),
            self.total(|score| score.refusals),
        )
    }
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}
