//! Bytes of the weights of every pipeline rank, by number type, against what vLLM's model classes create.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeMap;

use plimsoll_math::engine::vllm::weights::weights;
use plimsoll_math::error::MathError;
use serde_json::{Value, json};

#[path = "support/vllm.rs"]
mod vllm;

fn torch(format: plimsoll_math::format::StorageFormat) -> &'static str {
    use plimsoll_math::format::StorageFormat as F;
    match format {
        F::Bf16 => "bfloat16",
        F::F16 => "float16",
        F::F32 => "float32",
        F::F8E4M3 => "float8_e4m3fn",
        F::F8E8M0 => "float8_e8m0fnu",
        F::U8 => "uint8",
        F::I8 => "int8",
        F::I32 => "int32",
        F::I64 => "int64",
        other => other.name(),
    }
}

#[test]
fn every_rank_weighs_what_was_recorded() {
    let configs = vllm::configs();
    let mut models = BTreeMap::new();
    let mut answers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut wrong: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut compared = 0;
    for row in vllm::rows().iter().filter(|row| row.get("expected").is_some()) {
        let key = vllm::config(row, &configs).to_string();
        let model = models.entry(key).or_insert_with(|| vllm::model(row, &configs));
        let knobs = vllm::knobs(row);
        compared += 1;
        let theirs: Vec<Value> =
            row["weights_per_pp_rank"].as_array().unwrap().iter().map(|rank| rank["target"]["by_dtype"].clone()).collect();
        let question = format!("{} {} {:?} {}", row["config"], row["config_overrides"], knobs.parallelism, knobs.gpu.capability);
        let ours =
            answers.entry(question).or_insert_with(|| match weights(&model.spec, &model.tensors, &model.checkpoint, &knobs) {
                Ok(ranks) => ranks
                    .iter()
                    .map(|rank| rank.by_type.iter().map(|(format, bytes)| (torch(*format).to_string(), json!(bytes))).collect())
                    .map(Value::Object)
                    .collect(),
                Err(error) => vec![json!(error.to_string())],
            });
        if *ours != theirs {
            let line = format!(
                "{} {} tp{} pp{} ep{} {} {}: ours {} vLLM's {}",
                row["tag"],
                row["gpu"],
                row["tp"],
                row["pp"],
                row["enable_expert_parallel"],
                row["context"]["quantization"],
                row["engine_args"],
                json!(ours),
                json!(theirs)
            );
            let entry = wrong.entry(row["model"].to_string()).or_insert((0, line));
            entry.0 += 1;
        }
    }
    for (model, (count, first)) in &wrong {
        eprintln!("{count} x {model}: {first}");
    }
    assert!(compared > 1_300, "{compared} rows compared");
    let total: usize = wrong.values().map(|(count, _)| count).sum();
    assert_eq!(total, 0, "{total} of {compared} rows differ");
}

#[test]
fn what_the_engine_refuses_for_its_weights_is_refused_with_its_reason() {
    let configs = vllm::configs();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in vllm::rows().iter().filter(|row| row.get("unsupported").is_some()) {
        if !row["tag"].as_str().unwrap().starts_with("quant:") {
            continue;
        }
        let theirs = row["unsupported"].as_str().unwrap();
        let theirs =
            theirs.rsplit("Value error, ").next().unwrap().split("  [type=").next().unwrap().split(" [type=").next().unwrap();
        let theirs = theirs.trim_start_matches("ValueError: ").trim();
        let model = vllm::model(row, &configs);
        let answer = weights(&model.spec, &model.tensors, &model.checkpoint, &vllm::knobs(row));
        compared += 1;
        match answer {
            Err(MathError::Refused { reason, .. })
                if theirs.starts_with("AssertionError") || reason_of(&reason) == reason_of(theirs) => {}
            other => wrong.push(format!("{} {}: ours {other:?}, vLLM's {theirs}", row["model"], row["tag"])),
        }
    }
    assert!(compared > 8, "{compared} rows compared");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A reason without the layer it was found at.
fn reason_of(text: &str) -> String {
    match (text.find(" for layer '"), text.find("' is not divisible")) {
        (Some(from), Some(to)) => format!("{}{}", &text[..from], &text[to + 1..]),
        _ => text.to_string(),
    }
}
