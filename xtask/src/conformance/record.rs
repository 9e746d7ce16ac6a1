//! `--record`: what the engine said, kept among the fixtures, and what changed against the last record.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::install::{Engine, write};
use super::score::Row;
use super::{architectures, engine};
use crate::run::root;
use crate::truth::{fixture, rows as lines};

/// The settings and figures of a row, as the fixtures keep them.
pub(crate) fn line(row: &Row, answer: &Value) -> Value {
    let mut out = Map::new();
    out.insert("model".to_owned(), json!(row.model));
    out.insert("place".to_owned(), json!(row.place));
    out.insert("settings".to_owned(), json!(row.setting));
    for key in ["error", "why", "effective", "weights", "memory", "state", "output", "compute", "projected"] {
        if let Some(value) = answer.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    Value::Object(out)
}

fn path(build: &str) -> String {
    format!("truth/llama.cpp/conformance-{build}.jsonl.gz")
}

/// Which row it is.
fn key(line: &Value) -> String {
    let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("{} {} {}", field("model"), field("place"), field("settings"))
}

/// Prints what changed, and writes the record and the table of architectures.
pub(crate) fn record(engine: &Engine, command: &str, rows: &[(Row, Value)]) -> Result<(), String> {
    let new: Vec<Value> = rows.iter().map(|(row, answer)| line(row, answer)).collect();
    let build = &engine.release.build;
    println!("{}", changes(build, &new)?);
    let provenance = json!({
        "engine": format!("llama.cpp@{build}"), "package": format!("node-llama-cpp@{}", engine.release.package),
        "command": command, "rows": new.len(),
        "allocation": "switched off; the CUDA device is a stand-in that runs the engine's own planning code",
    });
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let problem = |error: std::io::Error| format!("{}: {error}", path(build));
    writeln!(packed, "{provenance}").map_err(problem)?;
    for line in &new {
        writeln!(packed, "{line}").map_err(problem)?;
    }
    write(&fixture(&path(build)), packed.finish().map_err(problem)?)?;
    let known = engine::architectures(engine)?;
    let plain: Vec<Row> = rows.iter().map(|(row, _)| row.clone()).collect();
    write(&root().join("docs/architectures.md"), architectures::page(engine, &known, &plain))?;
    println!("   wrote fixtures/{} ({} rows) and docs/architectures.md", path(build), new.len());
    Ok(())
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
        for part in ["error", "effective", "weights", "memory", "state", "output", "compute", "projected"] {
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
