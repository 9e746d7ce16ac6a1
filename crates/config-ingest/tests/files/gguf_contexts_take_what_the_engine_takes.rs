//! Context and output bytes of made-up models of every architecture, from their GGUF headers, over settings, devices
//! and builds: 0 bytes off, refused where the engine refuses, compute buffers inside their bounds.

use std::collections::BTreeMap;

use crate::support::{deployment, fixture, gunzip, json_lines, written};
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::compute::Bounds;
use plimsoll_math::engine::llama_cpp::memory::memory;
use plimsoll_math::error::MathError;
use plimsoll_math::spec::ModelSpec;
use serde_json::{Value, json};

/// What is wrong with our answer to a row.
fn check(row: &Value, spec: &ModelSpec) -> Option<String> {
    let answer = memory(spec, &deployment(row), Build::parse(row["engine"].as_str().unwrap()).unwrap());
    if row["error"].is_string() {
        let why = row["why"].as_str().unwrap_or_default();
        return match answer {
            Err(MathError::Refused { reason, .. }) if why.is_empty() || why.contains(&reason) => None,
            Err(error) => Some(format!("{error}, the engine says {why}")),
            Ok(_) => Some(format!("the engine refuses: {} {why}", row["error"])),
        };
    }
    let memory = match answer {
        Ok(memory) => memory,
        Err(error) => return Some(error.to_string()),
    };
    let resolved = &memory.resolved;
    let ours = json!({
        "n_ctx": resolved.n_ctx, "n_ctx_seq": resolved.n_ctx_seq, "n_seq_max": resolved.n_seq_max,
        "n_batch": resolved.n_batch, "n_ubatch": resolved.n_ubatch, "n_outputs_max": resolved.n_outputs_max,
        "flash_attn": resolved.flash_attention, "kv_unified": resolved.kv_unified,
    });
    let (context, output) = (memory.context().unwrap(), memory.output);
    if ours != row["resolved"] {
        Some(format!("{ours}\n    the engine {}", row["resolved"]))
    } else if context != row["context"] {
        Some(format!("context {context}, the engine {}", row["context"]))
    } else if output != row["output"] {
        Some(format!("output {output}, the engine {}", row["output"]))
    } else {
        let outside = |place: &str, bounds: Bounds| {
            let truth = row["compute"][place].as_u64().unwrap_or(0);
            let inside = bounds.low <= truth && truth <= bounds.high;
            (!inside).then(|| format!("compute on the {place}: {} <= {truth} <= {}", bounds.low, bounds.high))
        };
        outside("device", memory.compute.devices.first().copied().unwrap_or_default())
            .or_else(|| outside("host", memory.compute.host))
    }
}

#[test]
fn contexts_of_the_menagerie_equal_the_engines() {
    let mut specs: BTreeMap<String, ModelSpec> = BTreeMap::new();
    for row in json_lines("truth/llama.cpp/menagerie.jsonl.gz") {
        let spec = ingest(&written(&row), &Options::default()).unwrap().spec;
        specs.insert(row["file"].as_str().unwrap().to_owned(), spec);
    }
    let (mut checked, mut wrong) = (0, Vec::new());
    for row in json_lines("truth/llama.cpp/contexts.jsonl.gz") {
        let file = row["file"].as_str().unwrap();
        let spec = match specs.get(file) {
            Some(spec) => spec.clone(),
            None => {
                let path = fixture(&format!("truth/llama.cpp/gguf-zoo/{file}.gguf.header.gz"));
                ingest(&gunzip(&path), &Options::default()).unwrap().spec
            }
        };
        checked += 1;
        if let Some(what) = check(&row, &spec) {
            wrong.push(format!("{file} {} {} {}\n  {what}", row["engine"], row["backend"], row["params"]));
        }
    }
    let shown: Vec<&String> = wrong.iter().take(400).collect();
    assert!(wrong.is_empty(), "{} of {checked} rows differ: {shown:#?}", wrong.len());
    assert!(checked > 3000, "only {checked} rows");
}
