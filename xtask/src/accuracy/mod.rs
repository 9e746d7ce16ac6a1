//! The accuracy tables, computed from the fixtures: `docs/accuracy.md` and the summary in `README.md`.

mod corpus;
mod engine;

use std::fmt::Write as _;

use corpus::Corpus;
use engine::{Bounded, DOORS, Group, Groups, Placement, Score, TERMS};

use crate::run::root;
use crate::vllm::Scores;

const PAGE: &str = "docs/accuracy.md";
const START: &str = "<!-- accuracy: written by `cargo xtask accuracy` -->\n";
const END: &str = "<!-- /accuracy -->";

/// Why a model's recorded rows are not the engine's for its published files.
const REASONS: &[(&str, &str)] = &[(
    "SmolLM3-3B",
    "the rows were recorded for a file with an output matrix of its own, because the config says nothing of \
     `tie_word_embeddings` and the recording took that for false. The model class ties unless told otherwise \
     (`SmolLM3Config`, transformers 5.23.0), the published safetensors hold 3,075,098,624 parameters and no \
     `lm_head.weight`, and llama.cpp's converter writes only what the checkpoint holds: the real file has no \
     `output.weight`. Through the header of the recorded file all its rows are exact",
)];

/// Writes the tables, or with `check` only compares them with what is there.
pub(crate) fn run(check: bool) -> Result<(), String> {
    println!("== accuracy");
    let engine = engine::table()?;
    let corpus = corpus::table()?;
    let vllm = Scores::of_the_record();
    let before = std::fs::read_to_string(root().join(PAGE)).unwrap_or_default();
    let page = format!("{}\n{}", page(&engine, &corpus, &vllm), crate::calibrate::section(&before)?);
    let readme = std::fs::read_to_string(root().join("README.md")).map_err(|error| format!("README.md: {error}"))?;
    let (before, rest) = readme.split_once(START).ok_or("README.md: no accuracy section")?;
    let (_, after) = rest.split_once(END).ok_or("README.md: the accuracy section does not end")?;
    let readme_now = format!("{before}{START}{}{END}{after}", summary(&engine, &corpus, &vllm));
    for (name, now) in [(PAGE, &page), ("README.md", &readme_now)] {
        let path = root().join(name);
        if std::fs::read_to_string(&path).is_ok_and(|there| there == *now) {
            continue;
        }
        if check {
            return Err(format!("{name} is out of date: run `cargo xtask accuracy`"));
        }
        std::fs::write(&path, now).map_err(|error| format!("{name}: {error}"))?;
        println!("   wrote {name}");
    }
    Ok(())
}

/// Rows of a placement and a door.
fn rows_of<'a>(engine: &'a Groups, placement: Placement, door: &str) -> Vec<&'a Score> {
    let wanted = |group: &&Group| group.placement == placement && group.door == door;
    engine.iter().filter(|(group, _)| wanted(group)).map(|(_, score)| score).collect()
}

fn total(scores: &[&Score], of: impl Fn(&Score) -> u64) -> u64 {
    scores.iter().map(|score| of(score)).sum()
}

fn exact(score: &Score, term: &str) -> u64 {
    score.exact.get(term).copied().unwrap_or(0)
}

const PLACEMENTS: [(Placement, &str); 3] = [
    (Placement::OnePlace, "one device or the processor"),
    (Placement::Partial, "partial offload"),
    (Placement::TwoDevices, "two GPUs"),
];

fn summary(engine: &Groups, corpus: &Corpus, vllm: &Scores) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "| what | rows | weights | caches and state | output | compute exact | compute inside bounds | refused as the engine does |"
    );
    let _ = writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|");
    for (placement, name) in PLACEMENTS {
        for door in DOORS {
            let scores = rows_of(engine, placement, door);
            let terms = TERMS.map(|term| total(&scores, |score| exact(score, term)).to_string()).join(" | ");
            let _ = writeln!(
                out,
                "| llama.cpp, {name}, from a {door} | {} | {terms} | {} | {} | {} of {} |",
                total(&scores, |score| score.rows),
                total(&scores, |score| score.compute_exact),
                total(&scores, |score| score.compute_inside),
                total(&scores, |score| score.refused),
                total(&scores, |score| score.refusals),
            );
        }
    }
    let _ = writeln!(out, "\n{}", vllm.summary());
    let _ = writeln!(out, "\nParameter counts from a config.json alone: {} of {} exact.", corpus.exact, corpus.counted);
    out
}

fn page(engine: &Groups, corpus: &Corpus, vllm: &Scores) -> String {
    let mut out = String::from(
        "# Accuracy\n\nWritten by `cargo xtask accuracy` from `fixtures/`; `cargo xtask test` fails when it is out of date.\n\n\
         ## llama.cpp\n\n\
         Bytes of the real engine (see `fixtures/README.md`) beside ours, by place, source, build and backend: rows on which a term is exact in \
         every buffer. Compute buffers are exact where the architecture's graph is replayed, and bounds elsewhere: how many rows lie \
         inside them, how many are bounds, and the width of those bounds in percent of the truth at the median and the 95th percentile. Rows \
         that were measured without the server's rule for rows of logits are left out.\n",
    );
    for (placement, name) in PLACEMENTS {
        let _ =
            writeln!(out, "\n### {}{}\n", name.get(..1).unwrap_or_default().to_uppercase(), name.get(1..).unwrap_or_default());
        out.push_str(
            "| source | build | backend | rows | weights | caches and state | output | refusals | compute exact | compute inside | bounds | width p50 | width p95 |\n\
             |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for (group, score) in engine.iter().filter(|(group, _)| group.placement == placement) {
            let terms = TERMS.map(|term| exact(score, term).to_string()).join(" | ");
            let width = |percent| score.width(percent).map_or_else(|| "-".to_owned(), |width| format!("{width:.1} %"));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {terms} | {} of {} | {} | {} | {} | {} | {} |",
                group.door,
                group.build,
                group.backend,
                score.rows,
                score.refused,
                score.refusals,
                score.compute_exact,
                score.compute_inside,
                score.bounded.len(),
                width(50),
                width(95)
            );
        }
    }
    out.push_str(&widest(engine));
    out.push_str(&differing(engine));
    let _ = write!(
        out,
        "\n## vLLM\n\n\
         What vLLM 0.33.0's own planner gives models under recorded settings beside ours: a plan is equal when block size, padding, groups, \
         bytes of a block and of a request, blocks, tokens, length and concurrency are, in every size of memory; weights are equal when the \
         bytes of every number type are on every pipeline rank. Rows of what is not followed are not among those drawn at random, so that the \
         share here is not that of all settings: of the last 312 drawn nine differed. `fixtures/README.md` names what is left \
         out.\n\n{}\n### Rows that differ from vLLM\n\n{}",
        vllm.table(),
        vllm.wrong()
    );
    out.push_str(&corpus.section());
    out
}

/// How many of the widest bounds are named.
const NAMED: usize = 12;

/// The rows whose compute buffers are stated least precisely.
fn widest(engine: &Groups) -> String {
    let mut out = String::from("\n### Widest bounds\n\n");
    let mut rows: Vec<(&Group, &Bounded)> =
        engine.iter().flat_map(|(group, score)| score.bounded.iter().map(move |bounded| (group, bounded))).collect();
    if rows.is_empty() {
        out.push_str("No row is a bound.\n");
        return out;
    }
    rows.sort_by(|a, b| b.1.width.total_cmp(&a.1.width));
    let within = rows.iter().filter(|(_, bounded)| bounded.width <= 5.0).count();
    let _ = writeln!(out, "{} rows are bounds, {within} of them at most 5 % wide. The widest:\n", rows.len());
    for (Group { door, build, backend, .. }, Bounded { width, row }) in rows.iter().take(NAMED) {
        let _ = writeln!(out, "- {width:.1} %: {row}, {door}, {build}, {backend}");
    }
    out
}

/// The rows on which some term is another than the engine's.
fn differing(engine: &Groups) -> String {
    let mut out = String::from("\n### Rows that differ\n\n");
    let mut any = false;
    for (Group { door, build, backend, .. }, score) in engine {
        for (name, (count, what)) in &score.wrong {
            any = true;
            let _ = writeln!(out, "- {name}, {door}, {build}, {backend}: {count}, first: {what}");
        }
    }
    if !any {
        out.push_str("None.\n");
    }
    let named = |model: &str| engine.values().any(|score| score.wrong.contains_key(model));
    for (model, reason) in REASONS.iter().filter(|(model, _)| named(model)) {
        let _ = writeln!(out, "\n{model}: {reason}.");
    }
    out
}
