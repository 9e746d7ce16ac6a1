//! `--record`: what the engine said, kept among the fixtures, and what changed against the last record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::figures::{self, Ready};
use super::grid::Setting;
use super::install::{Engine, write};
use super::places::Where;
use super::score::{Row, judge};
use super::subjects::Subject;
use super::{architectures, engine};
use crate::truth::{fixture, rows as lines, text};

/// The checker's names beside those of the fixtures.
const NAMES: [(&str, &str); 9] = [
    ("error", "error"),
    ("why", "why"),
    ("effective", "resolved"),
    ("weights", "model_bytes"),
    ("memory", "context_bytes"),
    ("state", "state_bytes"),
    ("output", "output_bytes"),
    ("compute", "compute_bytes"),
    ("projected", "compute_bytes_fit"),
];

/// A question and the engine's answer.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) place: Where,
    pub(crate) setting: Setting,
    pub(crate) answer: Value,
    pub(crate) row: Row,
}

fn line(build: &str, asked: &Asked) -> Value {
    let mut out = Map::new();
    out.insert("model".to_owned(), json!(asked.row.model));
    out.insert("engine".to_owned(), json!(build));
    out.insert("backend".to_owned(), json!(asked.place.name()));
    out.insert("params".to_owned(), asked.setting.params());
    for (theirs, ours) in NAMES {
        if let Some(value) = asked.answer.get(theirs) {
            out.insert(ours.to_owned(), value.clone());
        }
    }
    Value::Object(out)
}

/// The record of a build.
pub(crate) fn path(build: &str) -> String {
    format!("truth/llama.cpp/conformance-{build}.jsonl.gz")
}

/// Which row it is.
fn key(line: &Value) -> String {
    let params = line.get("params").map(Value::to_string).unwrap_or_default();
    format!("{} {} {params}", text(line, "model"), text(line, "backend"))
}

/// Prints what changed, and writes the record and the table of architectures. Unless `is_whole`, rows of the build's record that were
/// not asked this time stay as they are.
pub(crate) fn record(engine: &Engine, asked: &[Asked], is_whole: bool) -> Result<(), String> {
    let build = &engine.release.build;
    let mut new: Vec<Value> = asked.iter().map(|asked| line(build, asked)).collect();
    println!("{}", changes(build, &new)?);
    if !is_whole && fixture(&path(build)).exists() {
        let known: BTreeSet<String> = new.iter().map(key).collect();
        let before = lines(&path(build))?;
        new.extend(before.into_iter().skip(1).filter(|line| !known.contains(&key(line))));
        println!("   {} rows of the record were not asked this time and stay", new.len().saturating_sub(known.len()));
        new.sort_by_cached_key(key);
    }
    let provenance = json!({
        "engine": format!("llama.cpp@{build}"), "package": format!("node-llama-cpp@{}", engine.release.package),
        "command": format!("cargo xtask conformance --record --package {}", engine.release.package), "rows": new.len(),
        "allocation": "switched off; the CUDA device is a stand-in that runs the engine's own planning code",
        "architectures": engine::architectures(engine)?,
    });
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let problem = |error: std::io::Error| format!("{}: {error}", path(build));
    writeln!(packed, "{provenance}").map_err(problem)?;
    for line in &new {
        writeln!(packed, "{line}").map_err(problem)?;
    }
    write(&fixture(&path(build)), packed.finish().map_err(problem)?)?;
    println!("   wrote fixtures/{} ({} rows)", path(build), new.len());
    architectures::run(build, false)?;
    crate::builds::run(false)
}

/// A record again, with what we answer now.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// Package and release.
    pub(crate) package: String,
    /// Architectures that the build knows.
    pub(crate) architectures: Vec<String>,
    /// The rows.
    pub(crate) rows: Vec<Row>,
}

/// Compares a record with what we answer now, without the engine.
pub(crate) fn replay(build: &str, subjects: &[Subject]) -> Result<Replayed, String> {
    let mut lines = lines(&path(build))?.into_iter();
    let head = lines.next().ok_or("an empty record")?;
    let names = head.get("architectures").and_then(Value::as_array).into_iter().flatten();
    let architectures = names.filter_map(Value::as_str).map(str::to_owned).collect();
    let mut by_model: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines {
        by_model.entry(text(&line, "model").to_owned()).or_default().push(line);
    }
    let mut rows = Vec::new();
    for subject in subjects {
        let ready = Ready::of(subject);
        for line in by_model.remove(&subject.name).unwrap_or_default() {
            let place = Where::from_name(text(&line, "backend")).ok_or("a record of an unknown backend")?;
            let setting = line.get("params").and_then(Setting::from_params).ok_or("a record of unknown settings")?;
            let mut answer = Map::new();
            for (theirs, ours) in NAMES {
                if let Some(value) = line.get(ours) {
                    answer.insert(theirs.to_owned(), value.clone());
                }
            }
            let answer = Value::Object(answer);
            let (ours, our_time) = figures::ours(&ready, build, place, &setting);
            let times = (our_time, Duration::ZERO, false);
            rows.push(judge(subject, place, &setting, (&ours, &figures::theirs(&answer)), times));
        }
    }
    if let Some(model) = by_model.keys().next() {
        return Err(format!("{}: no model {model} among the fixtures", path(build)));
    }
    Ok(Replayed { package: text(&head, "package").to_owned(), architectures, rows })
}

/// What the engine says differently now: against the record of this build, or of the newest other one.
fn changes(build: &str, new: &[Value]) -> Result<String, String> {
    let folder = fixture("truth/llama.cpp");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut records: Vec<String> =
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    records.retain(|name| name.starts_with("conformance-"));
    records.sort();
    let own = format!("conformance-{build}.jsonl.gz");
    let Some(name) = records.iter().find(|name| **name == own).or_else(|| records.last()) else {
        return Ok("   no record to compare with".to_owned());
    };
    let old: BTreeMap<String, Value> =
        lines(&format!("truth/llama.cpp/{name}"))?.into_iter().skip(1).map(|line| (key(&line), line)).collect();
    let mut counts: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    let mut common = 0_u64;
    for line in new {
        let Some(before) = old.get(&key(line)) else { continue };
        common += 1;
        for (_, part) in NAMES.into_iter().filter(|(_, part)| *part != "why") {
            let (before, now) = (before.get(part), line.get(part));
            if before != now {
                let text = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
                let first = format!("{}: {} before, {} now", key(line), text(before), text(now));
                counts.entry(part).or_insert((0, first)).0 += 1;
            }
        }
    }
    let mut out = format!("   against {name}: {common} of {} rows are in both", new.len());
    if counts.is_empty() {
        out.push_str(", none changed");
    }
    for (part, (count, first)) in counts {
        let _ = write!(out, "\n   {part} changed in {count} rows, first: {first}");
    }
    Ok(out)
}
