//! `cargo xtask bench`: criterion's benches, the engine's own simulation on the same models and setting beside them, and
//! the page `docs/benches.md`. Criterion's quick mode, which stops as soon as a figure stands still, unless `--full` is asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::conformance::peers_of_the_engine::planning_times;
use crate::run::{cargo, output, root, step};

const PAGE: &str = "docs/benches.md";

/// The context that `benches/estimates.rs` asks for.
const CONTEXT: u64 = 32_768;

/// What is measured for every model, with what it should stay below.
const COLUMNS: [(&str, &str); 7] = [
    ("replay", "200 µs"),
    ("from scratch", "-"),
    ("compiling", "-"),
    ("compiling for many", "-"),
    ("explained", "20 µs"),
    ("compiled", "50 ns"),
    ("sweep of 10,000", "1 ms"),
];

/// Questions with what they should stay below.
type Aims = &'static [(&'static str, &'static str)];

/// The planner's questions: criterion's group, its title on the page, and what some of them should stay below.
const QUESTIONS: [(&str, &str, Aims); 2] = [
    (
        "sweep Llama-3.1-8B",
        "Many points of one model",
        &[
            ("admission: one compiled point", "50 ns"),
            ("10,000 points, compiled line", "1 ms"),
            ("1,000,000 points, 16 lines, memory", "seconds"),
        ],
    ),
    (
        "search",
        "Searches",
        &[
            ("offload, dense on one device", "5 ms"),
            ("offload, experts on one device", "5 ms"),
            ("offload, experts on two devices", "5 ms"),
            ("fleet, 50 models on 20 hosts", "2 s"),
        ],
    ),
];

/// Nanoseconds of an iteration, by what was measured and the model.
type Times = BTreeMap<String, BTreeMap<String, f64>>;

/// Measures everything and writes the page.
pub(crate) fn run(options: &[&str]) -> Result<(), String> {
    let full = match options {
        [] => false,
        ["--full"] => true,
        other => return Err(format!("bench: unknown option {}", other.join(" "))),
    };
    let manifest = root().join("benches/Cargo.toml").to_string_lossy().into_owned();
    let mut benches = cargo(&["bench", "--quiet", "--manifest-path", &manifest]);
    if !full {
        benches.args(["--", "--quick"]);
    }
    step("benches", &mut benches)?;
    let folder = root().join("benches/target/criterion");
    let estimates = measured(&folder.join("estimate"))?;
    let models: Vec<&str> = estimates.get("explained").into_iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
    println!("== the engine's own simulation");
    let engine = match planning_times(&models, CONTEXT) {
        Ok(times) => times,
        Err(lacking) => {
            println!("   skipped: {lacking}");
            BTreeMap::new()
        }
    };
    let mut page = page(&estimates, &engine, full);
    for (group, title, aims) in QUESTIONS {
        let _ = writeln!(page, "\n## {title}\n\n| question | time | aim |\n|---|--:|--:|");
        for (question, nanoseconds) in single(&folder.join(group))? {
            let aim = aims.iter().find(|(name, _)| *name == question).map_or("", |(_, aim)| *aim);
            let _ = writeln!(page, "| {question} | {} | {aim} |", shown(nanoseconds));
        }
    }
    for (name, title) in [("gguf_header_152k_tokens", "GGUF header with 151,936 tokens"), ("config_json", "config.json")] {
        let _ = writeln!(page, "\n## {title}\n\n| who | time |\n|---|--:|");
        for (who, nanoseconds) in single(&folder.join(name))? {
            let _ = writeln!(page, "| {who} | {} |", shown(nanoseconds));
        }
    }
    print!("{page}");
    std::fs::write(root().join(PAGE), page).map_err(|error| format!("{PAGE}: {error}"))?;
    println!("   wrote {PAGE}");
    Ok(())
}

/// Folders in a folder, by name.
fn folders(folder: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let entries = entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "report");
    names.sort();
    Ok(names)
}

/// The median of what criterion measured last, in nanoseconds.
fn median(folder: &Path) -> Option<(String, f64)> {
    let read = |file: &str| -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(folder.join("new").join(file)).ok()?).ok()
    };
    let names = read("benchmark.json")?;
    let name = names.get("value_str").and_then(Value::as_str).or(names.get("function_id").and_then(Value::as_str))?.to_owned();
    Some((name, read("estimates.json")?.get("median")?.get("point_estimate")?.as_f64()?))
}

/// A group with one figure for each function.
fn single(folder: &Path) -> Result<BTreeMap<String, f64>, String> {
    Ok(folders(folder)?.iter().filter_map(|name| median(&folder.join(name))).collect())
}

/// A group with one figure for each function and model.
fn measured(folder: &Path) -> Result<Times, String> {
    folders(folder)?.into_iter().map(|function| Ok((function.clone(), single(&folder.join(function))?))).collect()
}

fn shown(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ..1e3 => (nanoseconds, "ns"),
        ..1e6 => (nanoseconds / 1e3, "µs"),
        ..1e9 => (nanoseconds / 1e6, "ms"),
        _ => (nanoseconds / 1e9, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// The processor's name, where the system tells it.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    named.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn page(estimates: &Times, engine: &BTreeMap<String, Duration>, full: bool) -> String {
    let compiler = output(std::process::Command::new("rustc").arg("--version")).unwrap_or_default();
    let mut out = format!(
        "# Benches\n\nWritten by `cargo xtask bench` on one core of {} ({}), in one run{}: medians of one call. The figures of this page belong \
         to that machine and whatever else it did; the ratios hold elsewhere.\n\n\
         ## One estimate\n\n\
         Q4_K_M on a CUDA device of compute capability 8.9, {CONTEXT} tokens, flash attention, build v0.5.0. *Engine*: llama.cpp's own \
         simulation of the context without allocating (`node-llama-cpp`'s libllama, the file loaded already). *Replay*: caches, states \
         and the compute buffers of all reserved graphs. *From scratch*: every term with its formula and source, the weights placed one by \
         one. *Explained*: the same terms from an estimator made once for model, device and options (*compiling*). *Compiled*: only the \
         bytes, from the same estimator. *Sweep*: 10,000 contexts in steps of 13 tokens, from an estimator made for many, contexts shorter \
         than a micro-batch too.\n\n",
        processor(),
        compiler.trim(),
        if full { "" } else { " of criterion's quick mode" }
    );
    let _ = write!(out, "| model | engine |");
    for (column, _) in COLUMNS {
        let _ = write!(out, " {column} |");
    }
    let _ = writeln!(out, " engine / from scratch | engine / compiled |\n|---|--:|{}--:|--:|", "--:|".repeat(COLUMNS.len()));
    let _ = write!(out, "| aim | |");
    for (_, aim) in COLUMNS {
        let _ = write!(out, " {aim} |");
    }
    let _ = writeln!(out, " | |");
    let of = |column: &str, model: &str| estimates.get(column).and_then(|times| times.get(model)).copied();
    for model in estimates.get("explained").into_iter().flat_map(BTreeMap::keys) {
        let simulated = engine.get(model).map(|time| time.as_secs_f64() * 1e9);
        let _ = write!(out, "| {model} | {} |", simulated.map_or_else(|| "-".to_owned(), shown));
        for (column, _) in COLUMNS {
            let _ = write!(out, " {} |", of(column, model).map_or_else(|| "-".to_owned(), shown));
        }
        for column in ["from scratch", "compiled"] {
            let ratio = simulated.zip(of(column, model)).map(|(engine, ours)| engine / ours);
            let _ = write!(out, " {} |", ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.0}")));
        }
        out.push('\n');
    }
    let known: Vec<&str> = COLUMNS.iter().map(|(column, _)| *column).collect();
    for (who, times) in estimates.iter().filter(|(who, _)| !known.contains(&who.as_str())) {
        for (model, nanoseconds) in times {
            let _ = writeln!(out, "\n{who}, {model}: {}.", shown(*nanoseconds));
        }
    }
    out
}
