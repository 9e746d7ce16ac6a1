//! Parameters counted from a GGUF header, part by part, are those that the model's own classes count.

use std::collections::BTreeMap;

use crate::support::{fixture, gunzip};
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::tensor::Counts;

/// Headers and the corpus models they are the language model of.
const SAME: &[(&str, &str)] = &[
    ("DeepSeek-V2-Lite", "deepseek-v2-lite"),
    ("DeepSeek-V3.2", "deepseek-v3.2"),
    ("GLM-4.5", "glm-4.5"),
    ("Jamba-1.5-Mini-52B", "ai21-jamba-mini-1.5"),
    ("LFM2-1.2B", "lfm2-1.2b"),
    ("Llama-3.2-3B", "llama-3.2-3b"),
    ("Llama-4-Scout-17B-16E", "llama-4-scout-17b-16e-instruct"),
    ("MiniMax-M1-456B", "minimax-text-01-hf"),
    ("Nemotron-H-56B", "nemotron-h-56b-base-8k"),
    ("Phi-3-mini-4k", "phi-3-mini-4k-instruct"),
    ("Qwen2.5-7B", "qwen2-7b"),
    ("Qwen3-0.6B", "qwen3-0.6b"),
    ("Qwen3-30B-A3B", "qwen3-vl-30b-a3b-instruct"),
    ("Qwen3-235B-A22B", "qwen3-vl-235b-a22b-instruct"),
    ("Qwen3.5-27B", "qwen3.5-27b"),
    ("Qwen3.5-27B+MTP", "qwen3.5-27b"),
    ("Qwen3.5-35B-A3B", "qwen3.5-35b-a3b"),
    ("command-r-35b-v01", "c4ai-command-r-v01"),
    ("gpt-oss-20b", "gpt-oss-20b"),
    ("granite-4.0-h-small-32B-A9B", "granite-4.0-h-small"),
    ("mamba-2.8b", "mamba-2.8b-hf"),
];

fn check(header: &str, truth: &serde_json::Value) {
    let bytes = gunzip(&fixture(&format!("truth/llama.cpp/gguf/{header}.Q4_K_M.gguf.header.gz")));
    let ingested = ingest(&bytes, &Options::default()).unwrap();
    assert_eq!(ingested.quantization.as_deref(), Some("Q4_K_M"), "{header}");
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in ingested.tensors.tensors.iter().filter(|tensor| tensor.counts == Counts::Parameter) {
        let part = serde_json::to_value(tensor.component).unwrap().as_str().unwrap().to_owned();
        *parts.entry(part).or_default() += tensor.params().unwrap().get();
    }
    let mut expected: BTreeMap<String, u64> = serde_json::from_value(truth["breakdown"].clone()).unwrap();
    // Towers are files of their own.
    let towers = expected.remove("vision_audio").unwrap_or(0);
    assert_eq!(parts, expected, "{header}");
    let total = ingested.tensors.total_params().unwrap().get();
    assert_eq!(total + towers, truth["params_total"].as_u64().unwrap(), "{header}");
}

#[test]
fn part_by_part() {
    let manifest = std::fs::read_to_string(fixture("corpus/manifest.jsonl")).unwrap();
    let truth: BTreeMap<String, serde_json::Value> = manifest
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|row| (row["slug"].as_str().unwrap().to_owned(), row["ground_truth"].clone()))
        .collect();
    for (header, slug) in SAME {
        check(header, &truth[*slug]);
    }
}
