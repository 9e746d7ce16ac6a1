//! Compute buffers by graph replay, beside every row of the truth whose graph we build.

use crate::support;
use crate::support::places;
use crate::support::truth;
use std::collections::BTreeMap;

use plimsoll_math::deployment::{Backend, Deployment};
use plimsoll_math::engine::llama_cpp::compute::{Bounds, ComputeBuffers};
use plimsoll_math::engine::llama_cpp::graph::replay::{BufferKind, buffer_bytes};
use plimsoll_math::engine::llama_cpp::graph::reserved;
use plimsoll_math::engine::llama_cpp::{Build, memory};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::TensorTable;
use serde_json::Value;

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
        let memory = memory::memory(spec, &deployment, build).unwrap();
        let (device_bounds, host_bounds) = (memory.compute.devices.first().copied().unwrap_or_default(), memory.compute.host);
        let exact = device_bounds.low == device_bounds.high && host_bounds.low == host_bounds.high;
        // Bounds are no answer for a model of the truth on the processor and on CUDA.
        if !exact && deployment.backend() == Backend::Metal {
            continue;
        }
        let ours = (device_bounds.high, host_bounds.high);
        let truth = row["compute_bytes"].as_object().unwrap();
        let host: u64 =
            truth.iter().filter(|(name, _)| name.contains("Host") || *name == "CPU").map(|(_, b)| b.as_u64().unwrap()).sum();
        let device: u64 =
            truth.iter().filter(|(name, _)| matches!(name.as_str(), "CUDA0" | "MTL0")).map(|(_, b)| b.as_u64().unwrap()).sum();
        let key = (name.to_owned(), row["engine"].to_string(), row["backend"].to_string());
        let entry = score.entry(key).or_default();
        entry.1 += 1;
        if exact && ours == (device, host) {
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
    assert!(exact > 4700, "{exact}");
    assert!(exact_in_newest > 560, "{exact_in_newest}");
}

/// Bytes of every buffer, devices first, where they are exact.
fn exact(buffers: &ComputeBuffers) -> Option<Vec<u64>> {
    let one = |bounds: &Bounds| (bounds.low == bounds.high).then_some(bounds.high);
    buffers.devices.iter().chain([&buffers.host]).map(one).collect()
}

fn measured(row: &Value, devices: usize) -> Vec<u64> {
    let bytes = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        let buffers = row["compute_bytes"].as_object().unwrap();
        buffers.iter().filter(|(name, _)| wanted(name)).map(|(_, bytes)| bytes.as_u64().unwrap()).sum()
    };
    let device = |number: usize| bytes(&|name| name == format!("CUDA{number}"));
    (0..devices).map(device).chain([bytes(&|name| name == "CPU" || name == "CUDA_Host")]).collect()
}

#[test]
fn every_row_of_several_places_with_a_graph() {
    let mut models: BTreeMap<(String, String), Option<(ModelSpec, TensorTable)>> = BTreeMap::new();
    let mut right: BTreeMap<String, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in support::rows("truth/llama.cpp/truth.jsonl.gz") {
        let Some((deployment, build)) = places::request(&row) else { continue };
        let key = (row["model"].to_string(), row["quant"].to_string());
        let Some((spec, table)) = models.entry(key).or_insert_with(|| places::model(&row)) else { continue };
        let memory = memory::memory_of(spec, table, &deployment, build).unwrap();
        let Some(ours) = exact(&memory.compute) else { continue };
        let engine = measured(&row, deployment.devices.len());
        if ours == engine {
            *right.entry(row["backend"].as_str().unwrap().to_owned()).or_default() += 1;
        } else {
            wrong.push(format!("ours {ours:?}, engine {engine:?}: {}", truth::describe(&row)));
        }
    }
    assert!(wrong.is_empty(), "{right:?} exact; {wrong:#?}");
    assert!(right["cuda-cc890-partial"] >= 169 && right["2xcuda-cc890"] >= 96, "{right:?}");
}

/// The buffers of all layers, however deep, in the order of [`exact`].
fn at_full_depth(spec: &ModelSpec, table: &TensorTable, deployment: &Deployment, build: Build) -> Vec<u64> {
    let kind = |backend: Backend| BufferKind {
        alignment: if matches!(backend, Backend::Cuda { .. }) { 128 } else { 32 },
        largest: u64::MAX,
    };
    let mut kinds: Vec<BufferKind> = deployment.devices.iter().map(|device| kind(device.backend)).collect();
    kinds.push(kind(Backend::Cpu));
    let graphs = reserved(spec, Some(table), deployment, build).unwrap().unwrap();
    let mut most = vec![0; kinds.len()];
    for graph in &graphs {
        for (most, bytes) in most.iter_mut().zip(buffer_bytes(graph, &kinds).unwrap()) {
            *most = bytes.max(*most);
        }
    }
    most
}

#[test]
fn layers_left_out_change_nothing() {
    let mut models: BTreeMap<String, Option<(ModelSpec, TensorTable)>> = BTreeMap::new();
    let mut compared = 0;
    let mut wrong = Vec::new();
    // Every so many rows: all layers of all rows would take minutes.
    for (number, row) in support::rows("truth/llama.cpp/truth.jsonl.gz").into_iter().enumerate() {
        let several = places::request(&row);
        if row.get("error").is_some() || !number.is_multiple_of(if several.is_some() { 2 } else { 11 }) {
            continue;
        }
        let Some((deployment, build)) = several.or_else(|| truth::request(&row)) else { continue };
        let key = format!("{} {}", row["model"], row["quant"]);
        let Some((spec, table)) = models.entry(key).or_insert_with(|| places::model(&row)) else { continue };
        let Ok(memory) = memory::memory_of(spec, table, &deployment, build) else { continue };
        let Some(ours) = exact(&memory.compute) else { continue };
        let full = at_full_depth(spec, table, &deployment, build);
        compared += 1;
        if ours != full {
            wrong.push(format!("{ours:?}, all layers {full:?}: {}", truth::describe(&row)));
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}: {wrong:#?}", wrong.len());
    assert!(compared > 350, "{compared}");
}
