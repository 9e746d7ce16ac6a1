//! Compute buffers of made-up models from their GGUF headers, over settings and devices: 0 bytes off wherever the graph
//! of an architecture is built.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{deployment, json_lines, written};
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::memory::memory;
use plimsoll_math::spec::ModelSpec;
use serde_json::Value;

/// The architecture if our answer is the engine's, or what is wrong with it; bounds are no answer.
fn check(row: &Value, spec: &ModelSpec) -> Result<String, String> {
    let answer = memory(spec, &deployment(row), Build::parse(row["engine"].as_str().unwrap()).unwrap());
    let compute = answer.map_err(|error| error.to_string())?.compute;
    let device = compute.devices.first().copied().unwrap_or_default();
    if device.low < device.high || compute.host.low < compute.host.high {
        return Err("bounds".to_owned());
    }
    let (ours, engine) = ((device.high, compute.host.high), (row["device"].as_u64(), row["host"].as_u64()));
    if (Some(ours.0), Some(ours.1)) == engine {
        Ok(spec.llama_cpp_arch.clone().unwrap())
    } else {
        Err(format!("ours {ours:?}, the engine {engine:?}"))
    }
}

/// A model whose file says how embeddings are pooled.
fn pooled(model: &Value, pooling: u64) -> ModelSpec {
    let mut model = model.clone();
    let key = format!("{}.pooling_type", model["arch"].as_str().unwrap());
    model["kv"][key] = serde_json::json!(["u32", pooling]);
    ingest(&written(&model), &Options::default()).unwrap().spec
}

#[test]
fn graphs_of_the_menagerie_need_what_the_engine_reserves() {
    let mut specs: BTreeMap<(String, bool), ModelSpec> = BTreeMap::new();
    let mut models: BTreeMap<String, Value> = BTreeMap::new();
    for mut row in json_lines("truth/llama.cpp/menagerie.jsonl.gz") {
        let file = row["file"].as_str().unwrap().to_owned();
        specs.insert((file.clone(), true), ingest(&written(&row), &Options::default()).unwrap().spec);
        // Most rows were measured without the scales of NVFP4 matrices, which other files do not have.
        row["tensors"].as_array_mut().unwrap().retain(|tensor| !tensor[0].as_str().unwrap().ends_with("scale"));
        specs.insert((file.clone(), false), ingest(&written(&row), &Options::default()).unwrap().spec);
        models.insert(file, row);
    }
    let (mut exact, mut archs, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for row in json_lines("truth/llama.cpp/graphs.jsonl.gz") {
        let file = row["file"].as_str().unwrap();
        let scales = row["scales"].as_bool().unwrap_or(false);
        // Some rows are about the same file with a word on how embeddings are pooled.
        let pooled = row["pooling"].as_u64().map(|pooling| pooled(&models[file], pooling));
        match check(&row, pooled.as_ref().unwrap_or(&specs[&(file.to_owned(), scales)])) {
            Ok(arch) => {
                exact += 1;
                archs.insert(arch);
            }
            Err(what) => wrong.push(format!("{file} {} {}: {what}", row["backend"], row["params"])),
        }
    }
    assert!(wrong.is_empty(), "{} rows differ, {exact} do not: {wrong:#?}", wrong.len());
    assert!(exact > 6100 && archs.len() > 140, "{exact} rows of {archs:?}");
}
