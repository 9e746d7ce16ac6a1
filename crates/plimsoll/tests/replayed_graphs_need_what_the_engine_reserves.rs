//! Compute buffers by graph replay, beside every row of the truth whose graph we build.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail loudly"
)]

mod support;
#[path = "support/truth.rs"]
mod truth;

use std::collections::BTreeMap;

use plimsoll_math::engine::llama_cpp::{Build, memory};
use plimsoll_math::spec::ModelSpec;

#[test]
fn every_row_with_a_graph() {
    let mut specs: BTreeMap<String, ModelSpec> = BTreeMap::new();
    let mut score: BTreeMap<(String, String, String), (u64, u64, String)> = BTreeMap::new();
    for row in support::rows("truth/llama.cpp/truth.jsonl.gz") {
        let Some((deployment, build)) = truth::request(&row) else { continue };
        if row.get("error").is_some() {
            continue;
        }
        let name = row["model"].as_str().unwrap();
        let spec = specs.entry(name.to_owned()).or_insert_with(|| support::specs::of(&row));
        let Ok(memory) = memory::memory(spec, &deployment, build) else { continue };
        let (device_bounds, host_bounds) = (memory.compute.devices.first().copied().unwrap_or_default(), memory.compute.host);
        if device_bounds.low < device_bounds.high || host_bounds.low < host_bounds.high {
            continue;
        }
        let ours = (device_bounds.high, host_bounds.high);
        let truth = row["compute_bytes"].as_object().unwrap();
        let host: u64 =
            truth.iter().filter(|(name, _)| name.contains("Host") || *name == "CPU").map(|(_, b)| b.as_u64().unwrap()).sum();
        let device: u64 = truth.iter().filter(|(name, _)| name.starts_with("CUDA0")).map(|(_, b)| b.as_u64().unwrap()).sum();
        let key = (name.to_owned(), row["engine"].to_string(), row["backend"].to_string());
        let entry = score.entry(key).or_default();
        entry.1 += 1;
        if ours == (device, host) {
            entry.0 += 1;
        } else if entry.2.is_empty() {
            entry.2 = format!("ours {ours:?}, engine {device} {host}: {}", truth::describe(&row));
        }
    }
    let mut wrong = Vec::new();
    let mut exact = 0;
    let mut exact_in_newest = 0;
    for (key, (right, total, first)) in &score {
        exact += right;
        if key.1.contains(Build::default().tag()) {
            exact_in_newest += right;
        }
        if right < total {
            wrong.push(format!("{key:?}: {right} of {total}, first {first}"));
        }
    }
    assert!(wrong.is_empty(), "{exact} exact; {wrong:#?}");
    assert!(exact > 3300, "{exact}");
    assert!(exact_in_newest > 270, "{exact_in_newest}");
}
