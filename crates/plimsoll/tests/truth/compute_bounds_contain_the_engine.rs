//! Bounds of compute buffers against every measured row of a single device or the processor alone: the truth lies
//! inside each of them.

use crate::support;
use crate::support::truth;
use std::collections::BTreeMap;

use plimsoll_math::engine::llama_cpp::compute::Bounds;
use plimsoll_math::engine::llama_cpp::memory::memory;
use plimsoll_math::spec::ModelSpec;
use serde_json::Value;

/// A row's measured buffers beside our bounds: the device's, then the host's.
fn check(row: &Value, spec: &ModelSpec) -> Vec<(&'static str, u64, Bounds)> {
    let (deployment, build) = truth::request(row).unwrap();
    let memory = memory(spec, &deployment, build).unwrap();
    let measured = row["compute_bytes"].as_object().unwrap();
    measured
        .iter()
        .map(|(name, bytes)| match name.as_str() {
            "CUDA0" | "MTL0" => ("device", bytes.as_u64().unwrap(), memory.compute.devices.first().copied().unwrap_or_default()),
            _ => ("host", bytes.as_u64().unwrap(), memory.compute.host),
        })
        .collect()
}

#[test]
fn compute_bounds_contain_the_engine() {
    let specs: BTreeMap<String, ModelSpec> = support::rows("truth/llama.cpp/layers.jsonl.gz")
        .iter()
        .map(|row| (row["model"].as_str().unwrap().to_string(), support::specs::of(row)))
        .collect();
    let (mut wrong, mut widths) = (Vec::new(), Vec::new());
    for row in support::rows("truth/llama.cpp/truth.jsonl.gz") {
        if truth::request(&row).is_none() || row.get("error").is_some() {
            continue;
        }
        for (place, truth, Bounds { low, high }) in check(&row, &specs[row["model"].as_str().unwrap()]) {
            widths.push((high - low) * 1000 / truth);
            if truth < low || truth > high {
                wrong.push(format!("{place}: {low} <= {truth} <= {high} {}", truth::describe(&row)));
            }
        }
    }
    widths.sort_unstable();
    let at = |percent: usize| widths[widths.len() * percent / 100];
    println!("{} bounds, width in thousandths of the truth: p50 {} p95 {}", widths.len(), at(50), at(95));
    assert!(widths.len() > 7000 && at(50) < 400, "the bounds are too wide to be of use");
    let shown = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} outside\n{shown}", wrong.len(), widths.len());
}
