//! Caches, recurrent state, output buffer and effective parameters against every measured row of a single device or
//! the processor alone: 0 bytes off, and a refusal wherever the engine refuses.

use crate::support;
use crate::support::truth;
use std::collections::BTreeMap;

use plimsoll_math::engine::llama_cpp::memory::{Memory, memory};
use plimsoll_math::error::MathError;
use plimsoll_math::spec::ModelSpec;
use serde_json::{Value, json};

/// Sum of a row's bytes over buffers (`context_bytes`, `output_bytes`, ...).
fn total(row: &Value, key: &str) -> u64 {
    row[key].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum()
}

/// The engine's table of caches, as the row has it.
fn table(memory: &Memory) -> Vec<Value> {
    let mut out = Vec::new();
    let mut states = Vec::new();
    for (plan, bytes) in memory.plan.caches.iter().zip(&memory.caches) {
        out.push(json!({"tag": plan.tag, "cells": bytes.cells, "streams": bytes.streams, "layers": bytes.layers,
                        "k": bytes.k, "v": bytes.v}));
    }
    if let Some(bytes) = &memory.recurrent {
        let tag = "recr";
        states.push(json!({"tag": tag, "rows": bytes.rows, "layers": bytes.layers, "r": bytes.r, "s": bytes.s}));
    }
    for (plan, bytes) in memory.plan.compressors.iter().zip(&memory.compressors) {
        states.push(json!({"tag": plan.tag, "bytes": bytes}));
    }
    out.extend(states);
    out
}

/// The row's table with the same fields.
fn measured(row: &Value) -> Vec<Value> {
    let field = |cache: &Value, keys: &[&str]| {
        let mut out = serde_json::Map::new();
        for key in keys {
            out.insert((*key).to_string(), cache[*key].clone());
        }
        Value::Object(out)
    };
    row["memory"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cache| {
            if cache.get("buffers").is_some() {
                let bytes: u64 = cache["buffers"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
                json!({"tag": cache["tag"], "bytes": bytes})
            } else if cache.get("rows").is_some() {
                field(cache, &["tag", "rows", "layers", "r", "s"])
            } else {
                field(cache, &["tag", "cells", "streams", "layers", "k", "v"])
            }
        })
        .collect()
}

/// What is wrong with our answer to a row, `None` when nothing is.
fn check(row: &Value, spec: &ModelSpec) -> Option<String> {
    let (deployment, build) = truth::request(row)?;
    let answer = memory(spec, &deployment, build);
    if let Some(error) = row.get("error") {
        return match answer {
            Err(MathError::Refused { reason, .. }) => {
                let why = row["why"].as_str().unwrap_or_default();
                // The engine's log gives a reason; an abort gives none.
                let explained = why.is_empty() || why.contains(&reason);
                (!explained).then(|| format!("refused for {reason:?}, the engine says {why:?}"))
            }
            other => Some(format!("the engine refuses ({error}), we answer {:?}", other.map(|memory| memory.resolved))),
        };
    }
    let memory = match answer {
        Ok(memory) => memory,
        Err(error) => return Some(format!("{error}")),
    };
    let resolved = &memory.resolved;
    let ours = json!({
        "n_ctx": resolved.n_ctx, "n_ctx_seq": resolved.n_ctx_seq, "n_seq_max": resolved.n_seq_max,
        "n_batch": resolved.n_batch, "n_ubatch": resolved.n_ubatch, "n_outputs_max": resolved.n_outputs_max,
        "flash_attn": resolved.flash_attention, "kv_unified": resolved.kv_unified,
    });
    for (key, value) in ours.as_object().unwrap() {
        if row["resolved"][key] != *value {
            return Some(format!("{key}: {value}, the engine {}", row["resolved"][key]));
        }
    }
    let (table, measured) = (table(&memory), measured(row));
    if table != measured {
        return Some(format!("caches {table:?}\n    the engine {measured:?}"));
    }
    for (what, ours, theirs) in [
        ("context", memory.context().unwrap(), total(row, "context_bytes")),
        ("output", memory.output, total(row, "output_bytes")),
    ] {
        if ours != theirs {
            return Some(format!("{what}: {ours}, the engine {theirs}, off by {}", i128::from(ours) - i128::from(theirs)));
        }
    }
    None
}

#[test]
fn context_bytes_equal_the_engine() {
    let specs: BTreeMap<String, ModelSpec> = support::rows("truth/llama.cpp/layers.jsonl.gz")
        .iter()
        .map(|row| (row["model"].as_str().unwrap().to_string(), support::specs::of(row)))
        .collect();
    let (mut checked, mut refused, mut wrong) = (0, 0, Vec::new());
    for row in support::rows("truth/llama.cpp/truth.jsonl.gz") {
        if truth::request(&row).is_none() {
            continue;
        }
        checked += 1;
        refused += usize::from(row.get("error").is_some());
        let spec = &specs[row["model"].as_str().unwrap()];
        wrong.extend(check(&row, spec).map(|what| format!("{}\n  {what}", truth::describe(&row))));
    }
    assert!(checked > 4900 && refused > 150, "only {checked} rows, {refused} refusals");
    let shown = wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {checked} rows differ\n{shown}", wrong.len());
}
