//! The engine's own `--fit` beside ours on every recorded row: context, layers on devices, shares, overrides.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use crate::support::{fixture, rows};
use flate2::read::GzDecoder;
use plimsoll_ingest::gguf;
use plimsoll_math::deployment::{Accelerator, Backend, ContextRequest, Deployment, Location};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::fit::{Aim, Choice, choose};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::TensorTable;
use serde_json::Value;

/// `cuda:860:8G:7.5G`: compute capability, total and free memory.
fn card(text: &str) -> Accelerator {
    let parts: Vec<&str> = text.split(':').collect();
    let tenths: u64 = {
        let number = parts[3].strip_suffix('G').unwrap();
        let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
        whole.parse::<u64>().unwrap() * 10 + tenth.parse::<u64>().unwrap()
    };
    Accelerator { backend: Backend::Cuda { compute_capability: parts[1].parse().unwrap() }, free: tenths * (1 << 30) / 10 }
}

fn model(name: &str, quant: &str) -> (ModelSpec, TensorTable) {
    let file: String = name.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect();
    let path = fixture(&format!("truth/llama.cpp/gguf/{file}.{quant}.gguf.header.gz"));
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    let ingested = gguf::ingest(&bytes.as_slice(), &gguf::Options::default()).unwrap();
    (ingested.spec, ingested.tensors)
}

/// What differs, nothing when the choice is the engine's.
fn check(choice: &Choice, row: &Value) -> Option<String> {
    let layers = choice.gpu_layers.map_or(-1, |layers| i64::try_from(layers).unwrap());
    // The recording ends a list of shares at the first that is zero.
    let split: Vec<u64> = choice.tensor_split.iter().copied().take_while(|layers| *layers > 0).collect();
    let recorded: Vec<u64> = row["tensor_split"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share.as_f64().unwrap().to_string().parse().unwrap())
        .collect();
    let first = choice.overrides.first().map(|one| {
        let place = match one.place {
            Location::Host => "CPU".to_owned(),
            Location::Device(device) => format!("CUDA{device}"),
        };
        vec![one.pattern.clone(), place]
    });
    let ours = format!(
        "context {} layers {layers} split {split:?} {} overrides, first {first:?}",
        choice.context,
        choice.overrides.len()
    );
    let wanted: Option<Vec<String>> = serde_json::from_value(row["first_override"].clone()).unwrap();
    let theirs = format!(
        "context {} layers {} split {recorded:?} {} overrides, first {wanted:?}",
        row["n_ctx"], row["n_gpu_layers"], row["n_overrides"]
    );
    (ours != theirs).then(|| format!("{ours}\n      engine {theirs}"))
}

#[test]
fn on_every_recorded_row() {
    let mut models: BTreeMap<(String, String), (ModelSpec, TensorTable)> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows("truth/llama.cpp/fit_truth.jsonl.gz") {
        let (name, quant) = (row["model"].as_str().unwrap().to_owned(), row["quant"].as_str().unwrap().to_owned());
        let (spec, table) = models.entry((name.clone(), quant.clone())).or_insert_with(|| model(&name, &quant));
        let params = &row["params"];
        let devices: Vec<Accelerator> = row["gpus"].as_array().unwrap().iter().map(|gpu| card(gpu.as_str().unwrap())).collect();
        let asked = params["n_ctx"].as_u64();
        let context = asked.map_or(ContextRequest::ModelMaximum, ContextRequest::Total);
        let kind = match (devices.len(), row["n_gpu_layers"] == -1) {
            (1, true) => "one device, context alone",
            (1, false) => "one device, layers and experts",
            (_, true) => "several devices, context alone",
            (_, false) => "several devices, layers and experts",
        };
        let deployment = Deployment {
            sequences: params["parallel"].as_u64().unwrap_or(4),
            kv_unified: params["kv_unified"].as_bool().unwrap_or(true),
            devices,
            ..Deployment::new(context, Backend::Cpu)
        };
        let aim = Aim { chooses_context: asked.is_none(), ..Aim::default() };
        let counts = kinds.entry(kind).or_default();
        counts.1 += 1;
        match choose(spec, table, &deployment, Build::C0c1e57098, aim) {
            Ok(choice) => {
                counts.2 += u32::from(choice.is_exact);
                match check(&choice, &row) {
                    None => counts.0 += 1,
                    Some(what) => {
                        let certain = if choice.is_exact { "exact" } else { "bounds" };
                        wrong.push(format!("{name} {quant} {} {params} ({certain})\n  {what}", row["gpus"]));
                    }
                }
            }
            Err(error) => wrong.push(format!("{name} {quant} {} {params}: {error}", row["gpus"])),
        }
    }
    let text: Vec<String> = kinds
        .iter()
        .map(|(kind, (right, all, exact))| format!("{kind}: {right} of {all} equal, {exact} decided by exact figures"))
        .collect();
    eprintln!("{}\n{}", wrong.join("\n"), text.join("\n"));
    let equal: u32 = kinds.values().map(|(right, ..)| right).sum();
    let rows: u32 = kinds.values().map(|(_, all, _)| all).sum();
    assert!(rows >= 546 && equal == rows, "{equal} of {rows}: {text:?}\n{}", wrong.join("\n"));
}
