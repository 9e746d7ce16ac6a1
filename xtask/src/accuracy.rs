//! The accuracy tables, computed from the fixtures: `docs/accuracy.md` and the summary in `README.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll::ingest::{gguf, hf};
use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::math::deployment::FlashAttention;
use plimsoll::math::error::MathError;
use plimsoll::planner::{Basis, Model, Options, PlanError, fit};
use serde_json::Value;

use crate::run::root;
use crate::truth::{fixture, rows, sum, text, unzipped};

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
    let engine = engine_tables()?;
    let corpus = corpus_table()?;
    let before = std::fs::read_to_string(root().join(PAGE)).unwrap_or_default();
    let page = format!("{}\n{}", page(&engine, &corpus), crate::calibrate::section(&before)?);
    let readme = std::fs::read_to_string(root().join("README.md")).map_err(|error| format!("README.md: {error}"))?;
    let (before, rest) = readme.split_once(START).ok_or("README.md: no accuracy section")?;
    let (_, after) = rest.split_once(END).ok_or("README.md: the accuracy section does not end")?;
    let readme_now = format!("{before}{START}{}{END}{after}", summary(&engine, &corpus));
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

/// How one group of rows came out.
#[derive(Debug, Default)]
struct Score {
    rows: u64,
    refusals: u64,
    refused: u64,
    exact: BTreeMap<&'static str, u64>,
    measured: u64,
    contained: u64,
    widths: Vec<f64>,
    wrong: BTreeMap<String, (u64, String)>,
}

impl Score {
    /// The share of sorted widths below, in percent of the truth.
    fn width(&self, percent: usize) -> String {
        let mut widths = self.widths.clone();
        widths.sort_by(f64::total_cmp);
        let index = widths.len().saturating_sub(1) * percent / 100;
        widths.get(index).map_or_else(|| "-".to_owned(), |width| format!("{:.0} %", width * 100.0))
    }
    fn miss(&mut self, name: &str, what: String) {
        let entry = self.wrong.entry(name.to_owned()).or_insert((0, what));
        entry.0 += 1;
    }
}

const TERMS: [&str; 3] = ["weights", "caches and state", "output"];

type Groups = BTreeMap<(&'static str, String, String), Score>;

/// Every row of the truth that one device or the processor serves, through both doors.
fn engine_tables() -> Result<Groups, String> {
    let mut groups = Groups::new();
    let mut models: BTreeMap<(bool, String, String), Option<Result<Model, PlanError>>> = BTreeMap::new();
    for row in rows("truth/llama.cpp/truth.jsonl.gz")? {
        let Some(options) = options(&row) else { continue };
        let (name, quant) = (text(&row, "model").to_owned(), text(&row, "quant").to_owned());
        for (from_header, door) in [(false, "config.json"), (true, "GGUF header")] {
            let key = (from_header, name.clone(), quant.clone());
            if !models.contains_key(&key) {
                let model = if from_header { header_model(&name, &quant)? } else { Some(config_model(&name)?) };
                models.insert(key.clone(), model);
            }
            let Some(Some(model)) = models.get(&key) else { continue };
            let asked = Options { quant: options.quant.clone().filter(|_| !from_header), ..options.clone() };
            let answer = match model {
                Ok(model) => fit(model, &asked),
                Err(error) => Err(error.clone()),
            };
            let group = (door, text(&row, "engine").to_owned(), text(&row, "backend").to_owned());
            score(groups.entry(group).or_default(), &name, &row, answer);
        }
    }
    Ok(groups)
}

fn score(score: &mut Score, name: &str, row: &Value, answer: Result<plimsoll::planner::response::Fit, PlanError>) {
    if row.get("error").is_some() {
        score.refusals += 1;
        if matches!(answer, Err(PlanError::Math(MathError::Refused { .. }))) {
            score.refused += 1;
        } else {
            score.miss(name, "not refused as the engine does".to_owned());
        }
        return;
    }
    score.rows += 1;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            score.miss(name, error.to_string());
            return;
        }
    };
    let totals = &answer.totals;
    let ours = [totals.weights.get(), totals.kv_cache.get() + totals.recurrent_state.get(), totals.output.get()];
    let theirs = [sum(row, "model_bytes"), sum(row, "context_bytes"), sum(row, "output_bytes")];
    for ((term, ours), theirs) in TERMS.iter().zip(ours).zip(theirs) {
        if ours == theirs {
            *score.exact.entry(term).or_default() += 1;
        } else {
            score.miss(name, format!("{term}: {ours} B, the engine {theirs} B"));
        }
    }
    let terms = answer.devices.iter().flat_map(|device| &device.terms).chain(&answer.host.terms);
    let (low, high) =
        terms.filter(|term| term.component == TermKind::Compute).map(range).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let truth = sum(row, "compute_bytes");
    score.measured += 1;
    if (low..=high).contains(&truth) {
        score.contained += 1;
        if low == high {
            *score.exact.entry("compute").or_default() += 1;
        }
    } else {
        score.miss(name, format!("compute {truth} B is not between {low} B and {high} B"));
    }
    score.widths.push(ratio(high.saturating_sub(low), truth));
}

fn range(term: &Term) -> (u64, u64) {
    match &term.certainty {
        Certainty::Bounded { low, high } => (low.get(), high.get()),
        _ => (term.bytes.get(), term.bytes.get()),
    }
}

/// A share for the printed tables.
fn ratio(part: u64, whole: u64) -> f64 {
    let clip = |value: u64| f64::from(u32::try_from(value / 1024).unwrap_or(u32::MAX));
    if whole == 0 { 0.0 } else { clip(part) / clip(whole).max(1.0) }
}

/// What the command line would be given for a row; `None` for placements of later versions.
fn options(row: &Value) -> Option<Options> {
    let params = row.get("params")?;
    let device = match text(row, "backend") {
        "cpu" | "cpu+repack" => "cpu",
        name if name.contains("partial") || name.starts_with("2x") => return None,
        name => name,
    };
    // Rows of the bare library: its rule for rows of logits is not that of the server.
    if params.get("server").and_then(Value::as_bool) == Some(false) {
        return None;
    }
    let number = |key: &str| params.get(key).and_then(Value::as_u64);
    let flag = |key: &str| params.get(key).and_then(Value::as_bool);
    let word = |key: &str| params.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Options {
        engine: Some(format!("llama.cpp@{}", text(row, "engine"))),
        total_context: number("n_ctx"),
        sequences: number("parallel"),
        batch: number("n_batch"),
        ubatch: number("n_ubatch"),
        quant: Some(text(row, "quant").to_owned()),
        kv_type_k: word("type_k"),
        kv_type_v: word("type_v"),
        flash_attention: Some(match text(params, "fa") {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        }),
        kv_unified: flag("kv_unified"),
        swa_full: flag("swa_full"),
        repack: flag("extra_bufts"),
        // The rows were measured with the weights read, not mapped, and whatever the device holds.
        mmap: Some(false),
        device: Some(device.to_owned()),
        memory: Some(1 << 50),
        skip_limits: Some(true),
        ..Options::default()
    })
}

fn file_name(model: &str) -> String {
    model.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect()
}

fn config_model(name: &str) -> Result<Result<Model, PlanError>, String> {
    let path = fixture(&format!("truth/llama.cpp/configs/{}.config.json", file_name(name)));
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let ingested = hf::ingest(&bytes, &hf::Options::default());
    Ok(ingested.map(|ingested| Model::new(Some(name), ingested, Basis::Config)).map_err(PlanError::from))
}

fn header_model(name: &str, quant: &str) -> Result<Option<Result<Model, PlanError>>, String> {
    let path = format!("truth/llama.cpp/gguf/{}.{quant}.gguf.header.gz", file_name(name));
    Ok(unzipped(&path)?.map(|bytes| {
        let ingested = gguf::ingest(&bytes.as_slice(), &gguf::Options::default());
        ingested.map(|ingested| Model::new(Some(name), ingested, Basis::Gguf)).map_err(PlanError::from)
    }))
}

/// How the parameter counts of the corpus came out.
#[derive(Debug, Default)]
struct Corpus {
    exact: u64,
    counted: u64,
    uncounted: Vec<String>,
    wrong: BTreeMap<String, String>,
}

fn corpus_table() -> Result<Corpus, String> {
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

fn summary(engine: &Groups, corpus: &Corpus) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "| what | rows | exact to the byte |\n|---|--:|--:|");
    for door in ["config.json", "GGUF header"] {
        let groups: Vec<&Score> = engine.iter().filter(|((name, ..), _)| *name == door).map(|(_, score)| score).collect();
        let rows: u64 = groups.iter().map(|score| score.rows).sum();
        for term in TERMS {
            let exact: u64 = groups.iter().filter_map(|score| score.exact.get(term)).sum();
            let _ = writeln!(out, "| llama.cpp, {term}, from a {door} | {rows} | {exact} |");
        }
        let (refusals, refused) = groups.iter().fold((0, 0), |sum, score| (sum.0 + score.refusals, sum.1 + score.refused));
        let _ = writeln!(out, "| llama.cpp, settings it refuses, from a {door} | {refusals} | {refused} refused |");
        let (measured, contained) = groups.iter().fold((0, 0), |sum, score| (sum.0 + score.measured, sum.1 + score.contained));
        let exact: u64 = groups.iter().filter_map(|score| score.exact.get("compute")).sum();
        let _ =
            writeln!(out, "| llama.cpp, compute buffers, from a {door} | {measured} | {exact}; bounds hold for {contained} |");
    }
    let _ = writeln!(out, "| parameter count from a config.json alone | {} | {} |", corpus.counted, corpus.exact);
    out
}

fn page(engine: &Groups, corpus: &Corpus) -> String {
    let mut out = String::from(
        "# Accuracy\n\nWritten by `cargo xtask accuracy` from `fixtures/`; `cargo xtask test` fails when it is out of date.\n\n\
         ## llama.cpp, one device or the processor\n\n\
         Bytes of the real engine (see `fixtures/README.md`) beside ours, by source, build and backend. Compute buffers are exact where \
         the architecture's graph is replayed, and bounds elsewhere: how many rows they hold, and their width in percent of the truth at the median and the 95th percentile. Rows that \
         were measured without the server's rule for rows of logits are left out.\n\n\
         | source | build | backend | rows | weights | caches and state | output | refusals | compute exact | compute inside | width p50 | width p95 |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for ((door, build, backend), score) in engine {
        let exact = TERMS.map(|term| score.exact.get(term).copied().unwrap_or(0).to_string()).join(" | ");
        let _ = writeln!(
            out,
            "| {door} | {build} | {backend} | {} | {exact} | {} of {} | {} | {} | {} | {} |",
            score.rows,
            score.refused,
            score.refusals,
            score.exact.get("compute").copied().unwrap_or(0),
            score.contained,
            score.width(50),
            score.width(95)
        );
    }
    out.push_str("\n### Rows that differ\n\n");
    let mut any = false;
    for ((door, build, backend), score) in engine {
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
    let _ = write!(
        out,
        "\n## Parameter counts from a config alone\n\n{} of {} configs exact, as counted by the model classes themselves \
         (`fixtures/corpus/manifest.jsonl`).\n\n",
        corpus.exact, corpus.counted
    );
    for (slug, what) in &corpus.wrong {
        let _ = writeln!(out, "- {slug}: {what}");
    }
    if !corpus.uncounted.is_empty() {
        let _ = writeln!(out, "\nWithout a trustworthy count to compare with: {}.", corpus.uncounted.join(", "));
    }
    out
}
