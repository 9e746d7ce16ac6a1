//! `cargo xtask builds`: what each build of the engine changed, from the rules of `build.rs` and from rows that were measured
//! with both builds. The page is `docs/engine-builds.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll_math::engine::llama_cpp::Build;
use serde_json::Value;

use crate::run::root;
use crate::truth::{rows, text};

const PAGE: &str = "docs/engine-builds.md";
const RULES: &str = "crates/math-core/src/engine/llama_cpp/build.rs";

/// Writes the page, or with `check` only compares it with what is there.
pub(crate) fn run(check: bool) -> Result<(), String> {
    println!("== builds of the engine");
    let now = page()?;
    let path = root().join(PAGE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == now) {
        return Ok(());
    }
    if check {
        return Err(format!("{PAGE} is out of date: run `cargo xtask builds`"));
    }
    std::fs::write(&path, now).map_err(|error| format!("{PAGE}: {error}"))?;
    println!("   wrote {PAGE}");
    Ok(())
}

/// Bytes of one row, term by term.
type Figures = BTreeMap<&'static str, u64>;

/// One question, put to several builds: architecture or model, and what each answered.
#[derive(Debug, Default)]
struct Question {
    about: String,
    answers: BTreeMap<String, Figures>,
}

fn page() -> Result<String, String> {
    let source = std::fs::read_to_string(root().join(RULES)).map_err(|error| format!("{RULES}: {error}"))?;
    let questions = questions()?;
    let mut out = format!(
        "# What each engine build changed\n\n\
         Written by `cargo xtask builds` from `{RULES}` and from rows among the fixtures that were measured with the same model and setting \
         in two builds; `cargo xtask test` fails when it is out of date. A new build is followed with \
         `cargo xtask conformance --package VERSION --record`, which compares every architecture with the engine and prints what changed \
         against the last record.\n\nOldest first: {}. The oldest is what node-llama-cpp ships as a release.\n",
        Build::ALL.iter().map(|build| build.tag()).collect::<Vec<_>>().join(", ")
    );
    for pair in Build::ALL.windows(2) {
        let [before, after] = pair else { continue };
        let _ = writeln!(out, "\n## {} to {}\n", before.tag(), after.tag());
        let rules = changed_rules(&source, *before, *after);
        let _ = writeln!(out, "Rules that differ ({}):\n", rules.len());
        for (name, text) in rules {
            let _ = writeln!(out, "- `{name}`: {text}");
        }
        out.push_str(&measured(&questions, before.tag(), after.tag()));
    }
    Ok(out)
}

/// The variant's name in the source, which a build's `Debug` prints.
fn variant(build: Build) -> String {
    format!("Self::{build:?}")
}

/// Functions whose arms tell two builds apart, with what their documentation says.
fn changed_rules(source: &str, before: Build, after: Build) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut said = String::new();
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(words) = line.strip_prefix("///") {
            said.push_str(words);
            continue;
        }
        if line.starts_with("#[") {
            continue;
        }
        let doc = std::mem::take(&mut said);
        let Some((_, rest)) = line.split_once("fn ") else { continue };
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        if !arguments.starts_with("self") || name == "tag" || name == "engine" {
            continue;
        }
        // The arm of each build, to the end of the function.
        let mut arms: [Option<usize>; 2] = [None, None];
        for (number, body) in lines.by_ref().take_while(|body| *body != "    }").enumerate() {
            let Some((pattern, _)) = body.split_once("=>") else { continue };
            for (slot, build) in arms.iter_mut().zip([before, after]) {
                let names = pattern.split(['|', ',', '(', ')']).map(str::trim);
                if slot.is_none() && names.clone().any(|found| found == variant(build)) {
                    *slot = Some(number);
                }
            }
        }
        if let [Some(first), Some(second)] = arms
            && first != second
        {
            out.push((name.to_owned(), doc.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    out
}

/// Every question that more than one build was asked.
fn questions() -> Result<Vec<Question>, String> {
    let mut all: BTreeMap<String, Question> = BTreeMap::new();
    let mut add = |key: String, about: &str, build: &str, figures: Figures| {
        let question = all.entry(key).or_default();
        about.clone_into(&mut question.about);
        question.answers.insert(build.to_owned(), figures);
    };
    let number = |row: &Value, key: &str| row.get(key).and_then(Value::as_u64);
    let total = |row: &Value, key: &str| -> u64 {
        row.get(key).and_then(Value::as_object).into_iter().flat_map(|buffers| buffers.values()).filter_map(Value::as_u64).sum()
    };
    for row in rows("truth/llama.cpp/graphs.jsonl.gz")? {
        let (Some(device), Some(host)) = (number(&row, "device"), number(&row, "host")) else { continue };
        let key = format!("graph {} {} {}", text(&row, "file"), text(&row, "backend"), settings(&row));
        add(key, text(&row, "arch"), text(&row, "engine"), BTreeMap::from([("compute", device + host)]));
    }
    for row in rows("truth/llama.cpp/corpus.jsonl.gz")? {
        let terms = [("weights", "weights"), ("caches and state", "context"), ("output", "output")];
        let figures: Option<Figures> = terms.into_iter().map(|(term, key)| Some((term, number(&row, key)?))).collect();
        let Some(figures) = figures else { continue };
        let key = format!("config {} {} {} {}", text(&row, "config"), text(&row, "quant"), text(&row, "device"), settings(&row));
        add(key, text(&row, "config"), text(&row, "engine"), figures);
    }
    let mut recorded = rows("truth/llama.cpp/truth.jsonl.gz")?;
    for build in Build::ALL {
        let record = crate::truth::fixture(&format!("truth/llama.cpp/conformance-{}.jsonl.gz", build.tag()));
        if record.exists() {
            recorded.extend(rows(&format!("truth/llama.cpp/conformance-{}.jsonl.gz", build.tag()))?);
        }
    }
    for row in recorded {
        if row.get("compute_bytes").is_none() {
            continue;
        }
        let model = match text(&row, "quant") {
            "" => text(&row, "model").to_owned(),
            quant => format!("{}.{quant}", text(&row, "model")),
        };
        let key = format!("model {model} {} {}", text(&row, "backend"), settings(&row));
        let figures = BTreeMap::from([
            ("weights", total(&row, "model_bytes")),
            ("caches and state", total(&row, "context_bytes")),
            ("output", total(&row, "output_bytes")),
            ("compute", total(&row, "compute_bytes")),
        ]);
        add(key, &model, text(&row, "engine"), figures);
    }
    Ok(all.into_values().filter(|question| question.answers.len() > 1).collect())
}

/// Settings with the server's defaults filled in, so that rows of different recordings can be told to ask the same.
fn settings(row: &Value) -> String {
    let params = row.get("params").and_then(Value::as_object);
    let defaults = [
        ("n_ctx", "4096"),
        ("parallel", "1"),
        ("n_batch", "2048"),
        ("n_ubatch", "512"),
        ("type_k", "f16"),
        ("type_v", "f16"),
        ("fa", "auto"),
        ("kv_unified", "false"),
        ("swa_full", "false"),
        ("extra_bufts", "true"),
    ];
    let mut all: BTreeMap<String, String> = defaults.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    for (key, value) in params.into_iter().flatten() {
        all.insert(key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    if all.get("parallel").is_some_and(|sequences| sequences == "1") {
        // One sequence shares nothing.
        all.insert("kv_unified".to_owned(), "false".to_owned());
    }
    all.into_iter().map(|(key, value)| format!("{key}={value} ")).collect()
}

/// How the measured bytes of two builds differ.
fn measured(questions: &[Question], before: &str, after: &str) -> String {
    // Term: rows, rows that changed, and the ratio of each; by architecture or model.
    let mut terms: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for question in questions {
        let (Some(old), Some(new)) = (question.answers.get(before), question.answers.get(after)) else { continue };
        for (term, old) in old {
            let Some(new) = new.get(term) else { continue };
            let (old, new) = (kibi(*old), kibi(*new));
            let ratio = if old > 0.0 { new / old } else { 1.0 };
            terms.entry(term).or_default().entry(&question.about).or_default().push(ratio);
        }
    }
    if terms.is_empty() {
        return "\nNo row among the fixtures was measured with both.\n".to_owned();
    }
    let mut out = String::from(
        "\nMeasured with both builds:\n\n| term | rows | changed | ratio: least | median | most |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for (term, by) in &terms {
        let mut ratios: Vec<f64> = by.values().flatten().copied().collect();
        ratios.sort_by(f64::total_cmp);
        let (changed, spread) = (moved(&ratios), spread(&ratios));
        let _ = writeln!(out, "| {term} | {} | {changed} | {spread} |", ratios.len());
    }
    for (term, by) in &terms {
        let mut most: Vec<(&str, Vec<f64>)> =
            by.iter().filter(|(_, ratios)| moved(ratios) > 0).map(|(about, ratios)| (*about, ratios.clone())).collect();
        if most.is_empty() {
            continue;
        }
        let far = |ratios: &[f64]| ratios.iter().map(|ratio| (ratio - 1.0).abs()).fold(0.0, f64::max);
        most.sort_by(|a, b| far(&b.1).total_cmp(&far(&a.1)));
        let _ = writeln!(out, "\nFarthest in {term}, of {} that changed:", most.len());
        let _ = writeln!(out, "\n| | rows | changed | least | median | most |\n|---|--:|--:|--:|--:|--:|");
        for (about, ratios) in most.iter_mut().take(12) {
            ratios.sort_by(f64::total_cmp);
            let _ = writeln!(out, "| {about} | {} | {} | {} |", ratios.len(), moved(ratios), spread(ratios));
        }
    }
    out
}

/// A count of bytes for ratios.
fn kibi(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX))
}

fn moved(ratios: &[f64]) -> usize {
    ratios.iter().filter(|ratio| (**ratio - 1.0).abs() > 1e-6).count()
}

/// Least, median and most of sorted ratios.
fn spread(ratios: &[f64]) -> String {
    let at = |index: usize| ratios.get(index).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    let last = ratios.len().saturating_sub(1);
    format!("{} | {} | {}", at(0), at(last / 2), at(last))
}
