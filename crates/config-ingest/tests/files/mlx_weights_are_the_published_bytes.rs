//! Bytes of MLX checkpoints, from the architecture's config and the groups, against published checkpoints.

use std::fmt::Write;

use crate::support::fixture;
use plimsoll_ingest::hf;
use plimsoll_ingest::mlx::{Quantization, stored_table};

fn published(model: &str) -> u64 {
    let text = std::fs::read_to_string(fixture("corpus/mlx_bytes.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = rows.iter().find(|row| row["model_id"] == format!("mlx-community/{model}")).unwrap();
    assert_eq!(row["rounded_estimate"], false);
    row["weight_bytes"].as_u64().unwrap()
}

/// Our bytes, and those that the checkpoint adds when it keeps the decay of linear attention (`A_log`) in single
/// precision, as some conversions do and others of the same architecture do not.
fn check(config: &str, quantization: &str) -> (u64, u64) {
    let bytes = std::fs::read(fixture(&format!("corpus/configs/{config}.config.json"))).unwrap();
    let table = hf::ingest(&bytes, &hf::Options::default()).unwrap().tensors;
    let config = serde_json::from_str(&format!(r#"{{"quantization":{quantization}}}"#)).unwrap();
    let quantization = Quantization::from_config(&config).unwrap().unwrap();
    let stored = stored_table(&table, &quantization).unwrap();
    let decays = stored.params_where(|tensor| tensor.name.ends_with("ssm_a")).unwrap().get();
    (stored.bytes_where(|_| true).unwrap().get(), 2 * decays)
}

/// Routers and shared gates at 8 bits, as the converter writes it for models that ask for it.
fn with_gates(bits: u64, n_layers: u64, names: &[&str]) -> String {
    let mut text = format!(r#"{{"group_size":64,"bits":{bits}"#);
    for layer in 0..n_layers {
        for name in names {
            write!(text, r#","model.layers.{layer}.{name}":{{"group_size":64,"bits":8}}"#).unwrap();
        }
    }
    text + "}"
}

fn wrong(rows: &[(&str, &str, String)], decays_in_f32: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for (config, model, quantization) in rows {
        let (ours, decays) = check(config, quantization);
        let ours = if decays_in_f32 { ours + decays } else { ours };
        let theirs = published(model);
        if ours != theirs {
            wrong.push(format!("{model}: {ours}, published {theirs}, off by {}", i128::from(ours) - i128::from(theirs)));
        }
    }
    wrong
}

fn plain(bits: u64) -> String {
    format!(r#"{{"group_size":64,"bits":{bits}}}"#)
}

#[test]
fn of_dense_hybrids_and_experts() {
    let gates = |bits| with_gates(bits, 40, &["mlp.gate", "mlp.shared_expert_gate"]);
    let wrong = wrong(
        &[
            ("nvidia-nemotron-nano-9b-v2", "NVIDIA-Nemotron-Nano-9B-v2-4bits", plain(4)),
            ("nvidia-nemotron-nano-9b-v2", "NVIDIA-Nemotron-Nano-9B-v2-6bit", plain(6)),
            ("qwen3.5-27b", "Qwen3.6-27B-4bit", plain(4)),
            ("qwen3.5-27b", "Qwen3.6-27B-8bit", plain(8)),
            ("qwen3.5-35b-a3b", "Qwen3.6-35B-A3B-4bit", gates(4)),
            ("qwen3.5-35b-a3b", "Qwen3.6-35B-A3B-5bit", gates(5)),
            ("qwen3.5-35b-a3b", "Qwen3.6-35B-A3B-8bit", gates(8)),
            ("gemma-4-31b-it", "gemma-4-31b-it-4bit", plain(4)),
            ("gemma-4-31b-it", "gemma-4-31b-it-6bit", plain(6)),
            ("gemma-4-31b-it", "gemma-4-31b-it-8bit", plain(8)),
        ],
        false,
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn of_conversions_that_keep_decays_in_single_precision() {
    let wrong = wrong(
        &[
            ("qwen3.5-27b", "Qwen3.5-27B-4bit", plain(4)),
            ("qwen3.5-27b", "Qwen3.5-27B-8bit", plain(8)),
            ("qwen3.5-35b-a3b", "Qwen3.5-35B-A3B-4bit", plain(4)),
            ("qwen3.5-35b-a3b", "Qwen3.5-35B-A3B-8bit", plain(8)),
            ("qwen3.5-122b-a10b", "Qwen3.5-122B-A10B-4bit", plain(4)),
            ("qwen3.5-122b-a10b", "Qwen3.5-122B-A10B-6bit", plain(6)),
            ("qwen3.5-122b-a10b", "Qwen3.5-122B-A10B-8bit", plain(8)),
            ("qwen3.5-397b-a17b", "Qwen3.5-397B-A17B-4bit", plain(4)),
            ("qwen3.5-397b-a17b", "Qwen3.5-397B-A17B-6bit", plain(6)),
            ("qwen3.5-397b-a17b", "Qwen3.5-397B-A17B-8bit", plain(8)),
        ],
        true,
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
