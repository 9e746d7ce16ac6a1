//! Every config of the corpus, counted from the config alone, holds exactly the parameters that its model class
//! holds: in total, part by part, active per token, and in stored buffers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use plimsoll_ingest::hf;
use plimsoll_math::spec::{FeedForward, Layer, ModelSpec};
use plimsoll_math::tensor::{Component, Place, TensorTable};
use serde_json::Value;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/corpus")
}

/// Parameters active for a token: all but the share of routed experts that it does not pass.
fn active(spec: &ModelSpec, tensors: &TensorTable) -> u64 {
    let mut idle = 0;
    for (index, layer) in (0_u32..).zip(&spec.layers) {
        let Layer { feed_forward: FeedForward::Moe(moe), .. } = layer else { continue };
        let routed = tensors.tensors.iter().filter(|tensor| {
            tensor.place == Place::Layer(index) && tensor.component == Component::Experts && tensor.counts.is_parameter()
        });
        let routed: u64 = routed.map(|tensor| tensor.params().unwrap().get()).sum();
        idle += routed / moe.n_experts * (moe.n_experts - moe.n_experts_per_token);
    }
    tensors.total_params().unwrap().get() - idle
}

/// `Err` with what differs between the truth and what we count, or why the config is refused.
fn check(row: &Value) -> Result<(), String> {
    let bytes = std::fs::read(corpus().join(row["file"].as_str().unwrap())).unwrap();
    let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| error.to_string())?;
    let (spec, tensors) = (&ingested.spec, &ingested.tensors);
    let mut wrong = Vec::new();
    let mut compare = |what: &str, ours: u64, truth: &Value| {
        if let Some(truth) = truth.as_u64().filter(|truth| *truth != ours) {
            wrong.push(format!("{what}: {ours}, truth {truth}"));
        }
    };
    let truth = &row["ground_truth"];
    compare("total", tensors.total_params().unwrap().get(), &truth["params_total"]);
    compare("total", tensors.total_params().unwrap().get(), &truth["params_total_published"]);
    let buffers = tensors.params_where(|tensor| tensor.counts.is_buffer()).unwrap().get();
    compare("buffers", buffers, &truth["persistent_buffers"]);
    if truth["moe"].is_object() {
        compare("active", active(spec, tensors), &truth["active_params"]);
    }
    if let Value::Object(parts) = &truth["breakdown"] {
        let mut ours: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in tensors.tensors.iter().filter(|tensor| tensor.counts.is_parameter()) {
            let Ok(Value::String(part)) = serde_json::to_value(tensor.component) else { panic!("a component is a text") };
            *ours.entry(part).or_default() += tensor.params().unwrap().get();
        }
        for part in parts.keys().cloned().chain(ours.keys().cloned()).collect::<BTreeSet<_>>() {
            let count = ours.get(&part).copied().unwrap_or(0);
            compare(&part, count, &parts.get(&part).cloned().unwrap_or(Value::from(0)));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
}

#[test]
fn parameter_counts_equal_the_corpus() {
    let manifest = std::fs::read_to_string(corpus().join("manifest.jsonl")).unwrap();
    let rows: Vec<Value> = manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wrong = rows.iter().filter_map(|row| check(row).err().map(|problem| format!("{}: {problem}", row["slug"])));
    let problems: Vec<String> = wrong.collect();
    assert!(problems.is_empty(), "{} of {} configs differ:\n{}", problems.len(), rows.len(), problems.join("\n"));
}
