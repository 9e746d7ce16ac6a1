//! The verbs that ask more than one question at a time, run as a person would.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail loudly"
)]

mod run;

use run::{json, plimsoll};
use serde_json::Value;

const MODEL: &str = "@models/llama-3.1-8b";

fn bytes(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// What `fit` says of both sides is what `compare` sets side by side.
#[track_caller]
fn check_compare(arguments: &[&str], a: &[&str], b: &[&str]) -> Value {
    let answer = json(&[&["compare"], arguments, &["--json"]].concat());
    assert_eq!(answer["schema"], "plimsoll.compare/1");
    for (side, alone) in [("a", a), ("b", b)] {
        assert_eq!(answer[side], json(&[&["fit"], alone, &["--json"]].concat()), "{side} of {arguments:?}");
        let used: i64 = answer[side]["devices"].as_array().unwrap().iter().map(|device| bytes(&device["used"])).sum();
        assert_eq!(used, bytes(&answer[format!("devices_{side}")]));
        let terms = answer["terms"].as_array().unwrap();
        let sum: i64 = terms.iter().filter(|term| term["place"] == "devices").map(|term| bytes(&term[side])).sum();
        assert_eq!(sum, used);
    }
    for term in answer["terms"].as_array().unwrap() {
        assert_eq!(bytes(&term["b"]) - bytes(&term["a"]), bytes(&term["difference"]));
    }
    answer
}

#[test]
fn compare_sets_two_deployments_side_by_side() {
    let common = ["--device", "4090", "--context", "32k", "--quant", "Q4_K_M"];
    let alone = [&[MODEL], &common[..]].concat();
    let answer = check_compare(
        &[&[MODEL, "--with", "--kv-type q8_0"], &common[..]].concat(),
        &alone,
        &[&alone[..], &["--kv-type", "q8_0"]].concat(),
    );
    let fields: Vec<&str> = answer["differences"].as_array().unwrap().iter().map(|one| one["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["deployment.kv_type_k", "deployment.kv_type_v"]);
    // As llama.cpp allocates them: 4096 MiB, and 2176 MiB with 2.5 MiB of rotation matrices.
    let cache = answer["terms"].as_array().unwrap().iter().find(|term| term["component"] == "kv_cache").unwrap();
    assert_eq!(cache["a"], 4_294_967_296_u64);
    assert_eq!(cache["b"], 2_284_322_816_u64);
}

#[test]
fn compare_sets_two_engines_and_two_models_side_by_side() {
    let path = run::fixture("models/llama-3.1-8b").display().to_string();
    let first = format!("{path} --quant Q4_K_M");
    check_compare(
        &[&first, "--with", "--engine vllm --device h200", "--device", "4090", "--context", "8k"],
        &[MODEL, "--quant", "Q4_K_M", "--device", "4090", "--context", "8k"],
        &[MODEL, "--engine", "vllm", "--device", "h200", "--context", "8k"],
    );
    let common = ["--device", "h200", "--context", "8k", "--quant", "Q4_K_M"];
    let answer = check_compare(
        &[&[MODEL, "@models/qwen3-30b-a3b"], &common[..]].concat(),
        &[&[MODEL], &common[..]].concat(),
        &[&["@models/qwen3-30b-a3b"], &common[..]].concat(),
    );
    assert!(answer["devices_difference"].as_i64().unwrap() > 0);
    let text = plimsoll(&[&["compare", MODEL, "@models/qwen3-30b-a3b"], &common[..]].concat());
    assert!(text.out.starts_with("B takes 1") && text.out.contains("KV cache") && text.out.contains("x"), "{}", text.out);
}

/// Wrong questions: one sentence, and the code of wrong usage.
#[track_caller]
fn refused(arguments: &[&str], says: &str) {
    let ran = plimsoll(arguments);
    assert_eq!(ran.code, 64, "{arguments:?}: {}{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "{arguments:?}");
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(lines.len() <= 2 && lines[0].starts_with("error: ") && lines[0].contains(says), "{arguments:?}: {}", ran.err);
}

#[test]
fn what_cannot_be_compared_is_one_sentence() {
    refused(&["compare", MODEL, "--device", "4090"], "a second MODEL");
    refused(&["compare", MODEL, "--with", "--contxt 4k", "--device", "4090"], "--contxt");
    refused(&["compare", MODEL, "--with", "--kv-type 'q8_0", "--device", "4090"], "closing quote");
    refused(&["compare", MODEL, "--with", "--context -4", "--device", "4090"], "with");
    refused(&["compare", MODEL, "--with", "--device 4091", "--device", "4090"], "RTX 4090");
}
