//! `cargo xtask compare`: the peers that install from registries, on the same models and the same setting as the engine
//! itself, and the page `docs/compare.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll::ingest::hf;
use plimsoll::planner::{Basis, Model, Options, fit};
use serde_json::Value;

use crate::conformance::peers_of_the_engine::{Truth, truth};
use crate::run::{output, root, step};
use crate::truth::{fixture, text};

const PAGE: &str = "docs/compare.md";
const CONTEXT: u64 = 8192;
const PYTHON_PEERS: [&str; 3] = ["hf-mem==0.5.6", "accelerate==1.15.0", "transformers==5.23.0"];

/// A model: its name among the fixtures, and in llmfit's catalogue.
const MODELS: [(&str, &str); 14] = [
    ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("Qwen3-8B", "Qwen/Qwen3-8B"),
    ("gemma-3-27b", "google/gemma-3-27b-it"),
    ("Mixtral-8x7B", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ("Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
    ("gpt-oss-20b", "openai/gpt-oss-20b"),
    ("Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    ("GLM-4.5", "zai-org/GLM-4.5"),
    ("DeepSeek-V3_R1", "deepseek-ai/DeepSeek-V3"),
    ("Qwen3-Next-80B-A3B", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("Falcon-H1-7B", "tiiuae/Falcon-H1-7B-Instruct"),
    ("Mamba-Codestral-7B", "mistralai/Mamba-Codestral-7B-v0.1"),
    ("LFM2-1.2B", "LiquidAI/LFM2-1.2B"),
    ("gemma-3n-E4B", "google/gemma-3n-E4B-it"),
];

/// Who answers, in the order of the columns.
const PEERS: [(&str, &str); 7] = [
    ("plimsoll", "Plimsoll, from the GGUF header"),
    ("plimsoll config", "Plimsoll, from config.json alone"),
    ("node simulation", "node-llama-cpp, V2 (runs the engine)"),
    ("node formula", "node-llama-cpp, closed formula"),
    ("hf-mem", "hf-mem"),
    ("llmfit", "llmfit"),
    ("accelerate", "accelerate estimate-memory, int4"),
];

/// One answer.
#[derive(Debug, Clone)]
enum Answer {
    Bytes(u64, Duration),
    Failed(String),
}

type Answers = BTreeMap<(String, &'static str), Answer>;

/// Asks everybody and writes the page.
pub(crate) fn run(words: &[&str]) -> Result<(), String> {
    println!("== compare");
    let python = match words {
        [] => None,
        ["--python", path] => Some(PathBuf::from(path)),
        _ => return Err("compare: only --python PATH, an environment that has the peers".to_owned()),
    };
    let names = MODELS.map(|(name, _)| name);
    let truths = truth(&names, CONTEXT)?;
    let mut answers = Answers::new();
    ours(&truths, &mut answers)?;
    node(&truths, &mut answers);
    llmfit(&mut answers);
    python_peers(&truths, python.as_deref(), &mut answers);
    let path = root().join(PAGE);
    std::fs::write(&path, page(&truths, &answers)).map_err(|error| format!("{PAGE}: {error}"))?;
    println!("   wrote {PAGE}");
    Ok(())
}

/// The middle of several runs.
fn median(mut ask: impl FnMut() -> Result<u64, String>) -> Answer {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..9 {
        let start = Instant::now();
        match ask() {
            Ok(answer) => bytes = answer,
            Err(problem) => return Answer::Failed(problem),
        }
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Answer::Bytes(bytes, times.get(times.len() / 2).copied().unwrap_or_default())
}

fn ours(truths: &[Truth], answers: &mut Answers) -> Result<(), String> {
    for truth in truths {
        let options = Options {
            total_context: Some(CONTEXT),
            repack: Some(false),
            mmap: Some(false),
            engine: Some(format!("llama.cpp@{}", truth.build)),
            device: Some("cpu".to_owned()),
            memory: Some(1 << 50),
            skip_limits: Some(true),
            ..Options::default()
        };
        let total = |model: &Model, options: &Options| {
            let answer = fit(model, options).map_err(|error| error.to_string())?;
            Ok(answer.devices.iter().map(|device| device.used.get()).sum::<u64>() + answer.host.used.get())
        };
        answers.insert((truth.name.clone(), "plimsoll"), median(|| total(&truth.model, &options)));
        let file = fixture(&format!("truth/llama.cpp/configs/{}.config.json", truth.name));
        let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let options = Options { quant: Some("Q4_K_M".to_owned()), ..options };
        let answer = median(|| {
            let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| error.to_string())?;
            total(&Model::new(Some(&truth.name), ingested, Basis::Config), &options)
        });
        answers.insert((truth.name.clone(), "plimsoll config"), answer);
    }
    Ok(())
}

/// An answer of a peer's script: bytes and milliseconds, or what went wrong.
fn answer(value: Option<&Value>) -> Answer {
    let Some(value) = value else { return Answer::Failed("no answer".to_owned()) };
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        return Answer::Failed(error.to_owned());
    }
    let time = value.get("ms").and_then(Value::as_f64).map(|ms| ms / 1e3);
    let time = time.or_else(|| value.get("ns").and_then(Value::as_f64).map(|ns| ns / 1e9)).unwrap_or(0.0);
    match value.get("bytes").and_then(Value::as_u64) {
        Some(bytes) => Answer::Bytes(bytes, Duration::from_secs_f64(time.max(0.0))),
        None => Answer::Failed("no bytes".to_owned()),
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn node(truths: &[Truth], answers: &mut Answers) {
    println!("   asking node-llama-cpp");
    let Some(first) = truths.first() else { return };
    let module = first.packages.join("node_modules/node-llama-cpp/dist/index.js");
    let mut command = Command::new("node");
    command.arg(root().join("xtask/compare/peers.mjs")).arg(module).arg(CONTEXT.to_string());
    command.args(truths.iter().map(|truth| &truth.file));
    let printed = lines(&output(&mut command).unwrap_or_default());
    for truth in truths {
        let file = truth.file.to_string_lossy();
        let line = printed.iter().find(|line| text(line, "file") == file);
        for (peer, part) in [("node formula", "formula"), ("node simulation", "simulation")] {
            answers.insert((truth.name.clone(), peer), answer(line.and_then(|line| line.get(part))));
        }
    }
}

fn llmfit(answers: &mut Answers) {
    println!("   asking llmfit");
    let manifest = root().join("benches/Cargo.toml");
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--example", "llmfit", "--manifest-path"]).arg(manifest).arg("--");
    command.arg(CONTEXT.to_string()).args(MODELS.map(|(_, catalogue)| catalogue));
    let printed = lines(&output(&mut command).unwrap_or_default());
    for (name, catalogue) in MODELS {
        let line = printed.iter().find(|line| text(line, "name") == catalogue);
        answers.insert((name.to_owned(), "llmfit"), answer(line));
    }
}

fn python_peers(truths: &[Truth], python: Option<&Path>, answers: &mut Answers) {
    println!("   asking hf-mem and accelerate");
    let printed = ask_python(truths, python);
    for truth in truths {
        for (peer, part) in [("hf-mem", "hf_mem"), ("accelerate", "accelerate")] {
            let answer = match &printed {
                Ok(lines) => answer(lines.iter().find(|line| text(line, "name") == truth.name).and_then(|line| line.get(part))),
                Err(problem) => Answer::Failed(problem.clone()),
            };
            answers.insert((truth.name.clone(), peer), answer);
        }
    }
}

fn ask_python(truths: &[Truth], python: Option<&Path>) -> Result<Vec<Value>, String> {
    let python = match python {
        Some(python) => python.to_path_buf(),
        None => environment()?,
    };
    let configs = root().join("target/compare/configs");
    let mut child = Command::new(python)
        .arg(root().join("xtask/compare/peers.py"))
        .arg(CONTEXT.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("Python: {error}"))?;
    let mut stdin = child.stdin.take().ok_or("Python has no input")?;
    for truth in truths {
        let folder = configs.join(&truth.name);
        let copied = std::fs::create_dir_all(&folder).and_then(|()| {
            let config = fixture(&format!("truth/llama.cpp/configs/{}.config.json", truth.name));
            std::fs::copy(config, folder.join("config.json"))
        });
        copied.map_err(|error| format!("{}: {error}", folder.display()))?;
        let line = serde_json::json!({"name": truth.name, "gguf": truth.file, "config": folder});
        writeln!(stdin, "{line}").map_err(|error| error.to_string())?;
    }
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    Ok(lines(&String::from_utf8_lossy(&output.stdout)))
}

/// A Python environment with the peers, made once.
fn environment() -> Result<PathBuf, String> {
    let folder = root().join("target/compare/python");
    let python = folder.join("bin/python");
    if !python.exists() {
        step("a Python environment", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let done = folder.join(PYTHON_PEERS.join(","));
    if !done.exists() {
        let mut pip = Command::new(&python);
        step(
            "the peers (accelerate brings PyTorch: gigabytes)",
            pip.args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PEERS),
        )?;
        std::fs::write(&done, "").map_err(|error| error.to_string())?;
    }
    Ok(python)
}

fn gib(bytes: u64) -> String {
    let whole = f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / f64::from(1 << 20);
    if bytes >> 42 > 0 { format!("{:.1}", whole) } else { format!("{whole:.3}") }
}

/// Off by so much of the truth, with its sign.
fn error(bytes: u64, truth: u64) -> String {
    if bytes == truth {
        return "0".to_owned();
    }
    let tenths = bytes.abs_diff(truth).saturating_mul(1000).saturating_add(truth / 2) / truth.max(1);
    let sign = if bytes > truth { '+' } else { '-' };
    if tenths == 0 { format!("{sign}{} B", bytes.abs_diff(truth)) } else { format!("{sign}{}.{} %", tenths / 10, tenths % 10) }
}

fn time(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1000 => format!("{micros} us"),
        1000..1_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

const ABOUT: &str = "\
## What each of them answers

- **Engine**: llama.cpp itself, allocation switched off: weights, caches, recurrent state, output and compute buffers of its release, as the
  conformance run reads them. The time is that of loading the file and planning the context.
- **Plimsoll** answers the same question, from the header of the same file, or from the `config.json` and the name of the file type.
  Where a compute buffer is bounded, the figure is the upper bound. The time is that of one `fit`, in a build for tests, without starting
  a process; from a config it includes reading it.
- **node-llama-cpp, V2** runs the same engine's simulation in process, and is true for node-llama-cpp's own contexts: those reserve logits
  for every row of a micro-batch, the library's default, where the server keeps one row per sequence. It leaves out the output buffer, and
  it needs the file and the engine's libraries.
- **node-llama-cpp, closed formula** (deprecated there) calculates weights and cache from the header and adds a rough figure for the graph.
- **hf-mem** adds the tensors of the file and, asked with `--experimental`, a cache of every layer's keys and values at full context; it has no
  compute buffers and no recurrent state, and does not claim to.
- **llmfit** multiplies parameters of its own catalogue with a bits-per-weight figure and adds cache and half a gigabyte. It reads neither
  config nor header. Its gigabytes are taken as 2^30 B, as in its own cache formula; its weights count 10^9 B to the gigabyte.
- **accelerate estimate-memory** answers another question: the weights of the model class at one number type for all of them (`int4` here, the
  nearest to Q4_K_M), without a cache or an engine. It builds the model class; `none` where that took more than 45 s or 12 GiB, or where
  a package of the model class is missing.

hf-mem and accelerate look models up on a hub. Here they got the same files from this machine: hf-mem through a transport that answers from
a folder, accelerate through its look-up answered with the folder (`xtask/compare/peers.py`). Catalogues of crates have no other reader of GGUF
headers that estimates memory; readers alone are in `cargo xtask bench`.
";

fn page(truths: &[Truth], answers: &Answers) -> String {
    let build = truths.first().map(|truth| truth.build.clone()).unwrap_or_default();
    let mut out = format!(
        "# Beside the peers\n\nWritten by `cargo xtask compare`. The same question to all: Q4_K_M on the processor, {CONTEXT} tokens, one sequence, f16 cache, \
         weights read and not repacked; llama.cpp {build}. Error is the difference to the engine's own bytes.\n\n| model | engine, GiB |"
    );
    for (_, title) in PEERS {
        let _ = write!(out, " {title} |");
    }
    out.push_str("\n|---|--:|");
    out.push_str(&"--:|".repeat(PEERS.len()));
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for truth in truths {
        let _ = write!(out, "\n| {} | {} |", truth.name, gib(truth.bytes));
        for (peer, _) in PEERS {
            let cell = match answers.get(&(truth.name.clone(), peer)) {
                Some(Answer::Bytes(bytes, time)) => {
                    times.entry(peer).or_default().push(*time);
                    error(*bytes, truth.bytes)
                }
                Some(Answer::Failed(_)) | None => "none".to_owned(),
            };
            let _ = write!(out, " {cell} |");
        }
    }
    let middle = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().map_or_else(|| "-".to_owned(), time)
    };
    let _ = write!(out, "\n| *time, median* | {} |", middle(truths.iter().map(|truth| truth.time).collect()));
    for (peer, _) in PEERS {
        let _ = write!(out, " {} |", middle(times.get(peer).cloned().unwrap_or_default()));
    }
    let _ = write!(
        out,
        "\n\n{ABOUT}\n## Every answer\n\n| model | who | bytes | the engine | off by | time |\n|---|---|--:|--:|--:|--:|\n"
    );
    for truth in truths {
        for (peer, title) in PEERS {
            let line = match answers.get(&(truth.name.clone(), peer)) {
                Some(Answer::Bytes(bytes, taken)) => {
                    format!("{bytes} | {} | {} | {}", truth.bytes, error(*bytes, truth.bytes), time(*taken))
                }
                Some(Answer::Failed(problem)) => format!("none: {} | {} | | ", problem.replace('|', "/"), truth.bytes),
                None => format!("none | {} | | ", truth.bytes),
            };
            let _ = writeln!(out, "| {} | {title} | {line} |", truth.name);
        }
    }
    out
}
