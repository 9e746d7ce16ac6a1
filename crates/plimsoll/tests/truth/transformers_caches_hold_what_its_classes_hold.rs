//! Parameters and caches of Transformers are those of its own classes: every row was recorded by running the model class
//! at its real size on empty tensors, a prompt and then single tokens, with each cache.

use crate::support;
use plimsoll_ingest::hf;
use plimsoll_math::allocation::TermKind;
use plimsoll_math::engine::transformers::allocate::{Loaded, Request, allocate};
use plimsoll_math::engine::transformers::cache::{CacheClass, CacheRequest, layers};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

const TRUTH: &str = "truth/transformers/transformers-5.23.0.jsonl.gz";

fn class(name: &str) -> CacheClass {
    match name {
        "dynamic" => CacheClass::Dynamic,
        "static" => CacheClass::Static,
        "fp8" => CacheClass::Fp8,
        other => unreachable!("{other}"),
    }
}

fn model(name: &str) -> plimsoll_ingest::Ingested {
    let bytes = std::fs::read(support::fixture(&format!("corpus/configs/{name}.config.json"))).unwrap();
    hf::ingest(&bytes, &hf::Options::default()).unwrap()
}

fn request(row: &Value, case: &Value) -> CacheRequest {
    let number = |key: &str| case[key].as_u64().unwrap();
    CacheRequest {
        class: class(case["cache"].as_str().unwrap()),
        dtype: match row["dtype"].as_str().unwrap() {
            "float32" => StorageFormat::F32,
            "float16" => StorageFormat::F16,
            _ => StorageFormat::Bf16,
        },
        context: number("prompt") + number("steps"),
        sequences: number("batch"),
    }
}

/// `Err` with what differs.
fn check(ingested: &plimsoll_ingest::Ingested, row: &Value, case: &Value) -> Result<(), String> {
    let request = request(row, case);
    let kept = layers(&ingested.spec, ingested.checkpoint.transformers, request.class).map_err(|error| error.to_string())?;
    let (mut kv, mut state, mut behind, mut behind_at_most) = (0, 0, 0, 0);
    for layer in kept {
        let bytes = request.bytes(layer).unwrap();
        kv += bytes.kv;
        state += bytes.state;
        behind += bytes.behind;
        behind_at_most += bytes.behind_at_most;
    }
    let number = |key: &str| case[key].as_u64().unwrap();
    let truth = (number("kv"), number("state"));
    if (kv, state) != truth {
        return Err(format!("{:?} {kv} and {state}, truth {truth:?}", case["cache"]));
    }
    let held = number("storage") - number("kv");
    let after_a_prompt = number("steps") == 0;
    // After single tokens the exact memory behind the windows; after a prompt as long as the context the most of it.
    let expected = if after_a_prompt { behind_at_most } else { behind };
    if held == expected { Ok(()) } else { Err(format!("{held} behind windows, we say {expected}")) }
}

#[test]
fn every_recorded_cache() {
    let mut problems = Vec::new();
    let (mut rows, mut refused, mut unknown) = (0, 0, Vec::new());
    for row in support::rows(TRUTH) {
        let ingested = model(row["model"].as_str().unwrap());
        for case in row["cases"].as_array().unwrap() {
            let what = format!("{} {} {}", row["model"], row["class"], case);
            if case["refused"].is_string() {
                let answer = layers(&ingested.spec, ingested.checkpoint.transformers, class(case["cache"].as_str().unwrap()));
                refused += 1;
                if !matches!(answer, Err(MathError::Refused { .. } | MathError::Unsupported { .. })) {
                    problems.push(format!("{what}: not refused"));
                }
                continue;
            }
            rows += 1;
            match layers(&ingested.spec, ingested.checkpoint.transformers, CacheClass::Dynamic) {
                Err(MathError::Unsupported { mechanism, .. }) => unknown.push(format!("{}: {mechanism}", row["model"])),
                _ => {
                    if let Err(problem) = check(&ingested, &row, case) {
                        problems.push(format!("{what}: {problem}"));
                    }
                }
            }
        }
    }
    unknown.dedup();
    assert!(problems.is_empty(), "{} of {rows}\n{}", problems.len(), problems.join("\n"));
    assert!(rows > 300 && refused > 30, "{rows} rows, {refused} refused");
}

#[test]
fn weights_are_the_parameters_of_the_class() {
    let mut problems = Vec::new();
    let mut checked = 0;
    for row in support::rows(TRUTH) {
        let ingested = model(row["model"].as_str().unwrap());
        // Multimodal models were recorded as their language model's class, without towers.
        if row["class"].as_str() != Some(&ingested.spec.architecture) {
            continue;
        }
        checked += 1;
        let Some(case) = row["cases"].as_array().unwrap().first() else { continue };
        let request = Request {
            cache: CacheRequest { class: CacheClass::Dynamic, ..request(&row, case) },
            class: ingested.checkpoint.transformers,
            cuda: true,
            device: true,
        };
        let Ok(allocation) = allocate(&ingested.spec, Loaded::Plain(&ingested.tensors), &request) else { continue };
        let bytes = allocation.total(TermKind::Weights).unwrap().get();
        if Some(bytes) != row["parameters_bytes"].as_u64() {
            problems.push(format!("{} {}: {bytes}, truth {}", row["model"], row["class"], row["parameters_bytes"]));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(checked > 10, "{checked} models");
}
