//! vLLM's own planning functions and its parser, run from its wheel where a Python has it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use plimsoll::ingest::hf;
use plimsoll::planner::{Basis, Model, Options, export};
use plimsoll_math::engine::vllm::VERSION_NUMBER;
use serde_json::Value;

use crate::run::{answers, root, step};
use crate::truth::unzipped;

#[path = "../../../crates/plimsoll/tests/truth/support/vllm_planner.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "shared with the tests, whose fixtures are the repository's own"
)]
mod planner;

/// Questions drawn anew in every run, beside the recorded ones.
const DRAWN: &str = "300";

/// What to run.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    python: Option<PathBuf>,
    install: bool,
}

impl Plan {
    /// Reads the task's options.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, String> {
        match words {
            [] => Ok(Self::default()),
            ["--python", path] => Ok(Self { python: Some(PathBuf::from(path)), install: false }),
            ["--install"] => Ok(Self { python: None, install: true }),
            _ => Err("conformance --engine vllm: --python PATH, an environment that has vLLM, or --install".to_owned()),
        }
    }
}

/// The Python that has vLLM; `None` where there is none, with what would make one.
fn python(plan: &Plan) -> Result<Option<PathBuf>, String> {
    let has = |python: &Path| answers(Command::new(python).args(["-c", "import importlib.metadata as m; m.version('vllm')"]));
    if let Some(python) = &plan.python {
        return if has(python) { Ok(Some(python.clone())) } else { Err(format!("{}: no vLLM there", python.display())) };
    }
    let folder = root().join("target/conformance/vllm");
    let python = folder.join("bin/python");
    if plan.install && !has(&python) {
        step("a virtual environment", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let wheel = format!("vllm=={VERSION_NUMBER}");
        step("vLLM's wheel, about 10 GB", Command::new(&python).args(["-m", "pip", "install", "--quiet", &wheel]))?;
    }
    Ok(has(&python).then_some(python))
}

/// Arguments that `export` writes, for models and options of all kinds.
fn commands() -> Result<Vec<Value>, String> {
    let plain = || Options {
        engine: Some("vllm".to_owned()),
        device: Some("H200 SXM".to_owned()),
        context: Some(8192),
        tensor_parallel: Some(8),
        skip_limits: Some(true),
        ..Options::default()
    };
    let text = |text: &str| Some(text.to_owned());
    let mut out = Vec::new();
    for name in ["llama-3.1-8b", "deepseek-v3", "qwen3-30b-a3b", "falcon-h1-7b"] {
        let path = root().join("fixtures/models").join(name).join("config.json");
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| format!("{name}: {error}"))?;
        let model = Model::new(Some(name), ingested, Basis::Config);
        let asked = [
            plain(),
            Options { kv_memory: Some(60 << 30), kv_type: text("fp8"), ..plain() },
            Options { pipeline_parallel: Some(2), memory_utilization: Some(850_000), ..plain() },
            Options { max_loras: Some(4), max_lora_rank: Some(64), ..plain() },
            Options { speculative: text("ngram:5"), data_parallel: Some(2), ..plain() },
            Options { speculative: text("mtp:2"), expert_parallel: Some(true), context_parallel: Some(4), ..plain() },
            Options { prefix_caching: Some(false), max_batched_tokens: Some(4096), max_sequences: Some(64), ..plain() },
        ];
        // What a model cannot have is refused by us before vLLM is asked.
        for answer in asked.iter().filter_map(|options| export(&model, options).ok()) {
            out.push(Value::from(answer.command.iter().skip(2).cloned().collect::<Vec<String>>()));
        }
    }
    Ok(out)
}

/// Runs the functions beside ours; says in a line why not where there is no vLLM.
///
/// # Errors
/// When an answer differs, or its parser refuses what we write.
pub(crate) fn run(plan: &Plan) -> Result<(), String> {
    let Some(python) = python(plan)? else {
        println!("   vLLM itself is not run: no environment has it (--install makes one of about 10 GB, --python names one)");
        return Ok(());
    };
    let start = Instant::now();
    let folder = root().join("target/conformance");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let recorded = unzipped("truth/vllm/planner-0.33.0.jsonl.gz")?.ok_or("planner-0.33.0.jsonl.gz: not there")?;
    let questions = folder.join("vllm-questions.jsonl");
    std::fs::write(&questions, recorded).map_err(|error| format!("{}: {error}", questions.display()))?;
    let written = commands()?;
    let asked = folder.join("vllm-commands.jsonl");
    let mut file = File::create(&asked).map_err(|error| format!("{}: {error}", asked.display()))?;
    for command in &written {
        writeln!(file, "{command}").map_err(|error| format!("{}: {error}", asked.display()))?;
    }
    let input = File::open(&asked).map_err(|error| format!("{}: {error}", asked.display()))?;
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs()).to_string();
    let log = folder.join("vllm.log");
    let mut child = Command::new(&python)
        .arg(root().join("xtask/vllm/planner.py"))
        .arg(&questions)
        .args([DRAWN, &seed])
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?)
        .spawn()
        .map_err(|error| format!("{}: {error}", python.display()))?;
    let (mut version, mut rows, mut wrong, mut parsed) = (String::new(), 0_u64, Vec::new(), 0_u64);
    let out = child.stdout.take().ok_or("vLLM's answers cannot be read")?;
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|error| format!("vLLM's answers: {error}"))?;
        let row: Value = serde_json::from_str(&line).map_err(|error| format!("vLLM's answers: {error}"))?;
        if let Some(text) = row.get("version").and_then(Value::as_str) {
            text.clone_into(&mut version);
        } else if row.get("question").is_some() {
            rows += 1;
            let found = planner::differences(&row);
            if !found.is_empty() {
                wrong.push(format!("{}: {}", row.get("question").unwrap_or(&Value::Null), found.join("; ")));
            }
        } else if let Some(reason) = row.get("unparsed").and_then(Value::as_str) {
            wrong.push(format!("its parser cannot be built: {reason}"));
        } else {
            parsed += 1;
            if row.get("refused").is_some_and(|refused| !refused.is_null()) {
                wrong.push(format!("the parser refuses {row}"));
            }
        }
    }
    let status = child.wait().map_err(|error| format!("{}: {error}", python.display()))?;
    println!(
        "   vLLM {version} itself: {rows} questions to its planner (seed {seed}), {parsed} command lines to its parser, {} mismatches, {:.1} s",
        wrong.len(),
        start.elapsed().as_secs_f64()
    );
    if !status.success() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        return Err(format!("vLLM's functions stopped after {rows} questions ({status}): {last} ({})", log.display()));
    }
    if rows == 0 || parsed == 0 {
        return Err(format!("{rows} questions and {parsed} command lines were answered; see {}", log.display()));
    }
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} answers differ, the first: {first}", wrong.len())),
    }
}
