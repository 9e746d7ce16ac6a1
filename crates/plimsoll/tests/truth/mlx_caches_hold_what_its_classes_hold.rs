//! Weights and caches of MLX-LM are those of its own classes: every row was recorded by building the model class at its
//! real size without evaluating anything, and running a prompt in parts and then single tokens through it.

use crate::support;
use plimsoll_ingest::{Ingested, hf};
use plimsoll_math::engine::mlx::cache::{CacheRequest, layers};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::{LmHead, Mixer, Mla};
use plimsoll_planner::mlx::language_model;
use serde_json::Value;

const TRUTH: &str = "truth/mlx/mlx-lm-0.32.2.jsonl.gz";

fn models() -> Vec<(Value, Ingested)> {
    let configs = support::rows("truth/vllm/configs.jsonl.gz");
    support::rows(TRUTH)
        .into_iter()
        .map(|row| {
            let name = row["model"].as_str().unwrap();
            let mut config: Value = if row["from"] == "corpus" {
                let path = support::fixture(&format!("corpus/configs/{name}.config.json"));
                serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
            } else {
                let file = format!("{name}.json");
                configs.iter().find(|config| config["file"] == file.as_str()).unwrap()["config"].clone()
            };
            // As it was recorded: the classes in plain numbers.
            config.as_object_mut().unwrap().remove("quantization_config");
            let ingested = hf::ingest(&serde_json::to_vec(&config).unwrap(), &hf::Options::default()).unwrap();
            (row, ingested)
        })
        .collect()
}

fn dtype(row: &Value) -> StorageFormat {
    match row["dtype"].as_str().unwrap() {
        "float32" => StorageFormat::F32,
        "float16" => StorageFormat::F16,
        _ => StorageFormat::Bf16,
    }
}

/// `Err` with what differs.
fn check(row: &Value, ingested: &Ingested, case: &Value) -> Result<(), String> {
    let chunks: Vec<u64> = case["chunks"].as_array().unwrap().iter().map(|chunk| chunk.as_u64().unwrap()).collect();
    let steps = case["steps"].as_u64().unwrap();
    let request = CacheRequest {
        dtype: dtype(row),
        bits: None,
        context: chunks.iter().sum::<u64>() + steps,
        sequences: case["batch"].as_u64().unwrap(),
    };
    let (mut low, mut high, mut reading, mut state) = (0, 0, 0, 0);
    for layer in layers(&ingested.spec, ingested.checkpoint.mlx).map_err(|error| error.to_string())? {
        let bytes = request.bytes(layer).unwrap();
        low += bytes.kv.0;
        high += bytes.kv.1;
        reading += bytes.while_reading;
        state += bytes.state;
    }
    let (kv, truth) = (case["kv"].as_u64().unwrap(), case["state"].as_u64().unwrap());
    let most = if steps == 0 { high + reading } else { high };
    if (low..=most).contains(&kv) && (steps > 0 || chunks.len() > 1 || kv == high + reading || low < high) && state == truth {
        Ok(())
    } else {
        Err(format!("{low} to {most} and {state}, truth {kv} and {truth}"))
    }
}

#[test]
fn every_recorded_cache() {
    let (mut problems, mut unknown, mut rows) = (Vec::new(), Vec::new(), 0);
    for (row, ingested) in models() {
        for case in row["cases"].as_array().unwrap() {
            rows += 1;
            match layers(&ingested.spec, ingested.checkpoint.mlx) {
                Err(MathError::Unsupported { mechanism, .. }) => unknown.push(format!("{}: {mechanism}", row["model"])),
                _ => {
                    if let Err(problem) = check(&row, &ingested, case) {
                        problems.push(format!("{} {} {case}: {problem}", row["model"], row["class"]));
                    }
                }
            }
        }
    }
    unknown.dedup();
    assert!(problems.is_empty(), "{} of {rows}\n{}\nunknown {unknown:?}", problems.len(), problems.join("\n"));
    assert!(rows > 300 && unknown.len() < 6, "{rows} rows, {unknown:?}");
}

#[test]
fn weights_are_the_arrays_of_the_class() {
    let (mut problems, mut checked) = (Vec::new(), 0);
    for (row, ingested) in models() {
        // Recorded with every array in the model's type.
        let ours = language_model(&ingested.tensors, dtype(&row));
        let bytes = ours.bytes_where(|_| true).unwrap().get();
        // Some classes build an output matrix that loading drops where it is the embedding (`Model.sanitize`).
        let (row_bytes, rows) = (ingested.spec.d_model * dtype(&row).block_bytes(), ingested.spec.embedding.n_vocab);
        let is_head = |more: u64| more.is_multiple_of(row_bytes) && (rows..rows + 128).contains(&(more / row_bytes));
        let tied = ingested.spec.head.lm_head == LmHead::Tied;
        // A class with selectors builds one in every layer; the checkpoint fills those that are used.
        let reuses = ingested
            .spec
            .layers
            .iter()
            .any(|layer| matches!(&layer.mixer, Mixer::Mla(Mla { indexer: Some(indexer), .. }) if !indexer.own));
        checked += 1;
        let truth = row["parameter_bytes"].as_u64().unwrap();
        if truth != bytes && !(tied && truth > bytes && is_head(truth - bytes)) && !(reuses && truth > bytes) {
            problems.push(format!("{} {}: {bytes}, truth {}", row["model"], row["class"], row["parameter_bytes"]));
        }
    }
    assert!(problems.is_empty(), "{} of {checked}\n{}", problems.len(), problems.join("\n"));
}
