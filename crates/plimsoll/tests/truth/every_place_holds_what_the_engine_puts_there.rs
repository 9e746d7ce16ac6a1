//! Weights, caches, states and the output buffer on every device and on the host, through the config door and the header
//! door, beside every measured row of partial offload and of two GPUs: 0 bytes off. Compute buffers lie in their bounds, and
//! almost all are to the byte.

use crate::support::places;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use crate::support::{fixture, rows};
use flate2::read::GzDecoder;
use plimsoll_ingest::{gguf, hf};
use plimsoll_math::allocation::{Certainty, PlaceAllocation, TermKind};
use plimsoll_math::deployment::Deployment;
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::{Counts, Place, TensorTable};
use serde_json::Value;

/// Bytes of a kind of buffer in a place, as the engine names it.
fn measured(row: &Value, key: &str, place: Option<usize>) -> u64 {
    let name = place.map(|device| format!("CUDA{device}"));
    let buffers = row[key].as_object().unwrap().iter();
    buffers
        .filter(|(buffer, _)| match &name {
            Some(name) => *buffer == name,
            None => buffer.starts_with("CPU") || *buffer == "CUDA_Host",
        })
        .map(|(_, bytes)| bytes.as_u64().unwrap())
        .sum()
}

/// What differs; `exact` becomes `false` when a compute buffer is no more than bounded.
fn check(
    row: &Value,
    spec: &ModelSpec,
    table: &TensorTable,
    deployment: &Deployment,
    build: Build,
    exact: &mut bool,
) -> Vec<String> {
    let allocated = match allocate(spec, table, deployment, build) {
        Ok(allocated) => allocated,
        Err(error) => return vec![error.to_string()],
    };
    let allocation = allocated.allocation;
    assert_eq!(allocation.devices.len(), deployment.devices.len());
    let mut wrong = Vec::new();
    if row["resolved"]["flash_attn"] != allocated.resolved.flash_attention {
        wrong.push(format!("flash attention {}", allocated.resolved.flash_attention));
    }
    let places = allocation.devices.iter().enumerate().map(|(index, device)| (Some(index), device));
    for (place, found) in places.chain([(None, &allocation.host)]) {
        let of = |kind| found.of(kind).unwrap().get();
        for (what, ours, theirs) in [
            ("weights", of(TermKind::Weights), measured(row, "model_bytes", place)),
            ("caches", of(TermKind::KvCache) + of(TermKind::RecurrentState), measured(row, "context_bytes", place)),
            ("output", of(TermKind::Output), measured(row, "output_bytes", place)),
        ] {
            if ours != theirs {
                let off = i128::from(ours) - i128::from(theirs);
                wrong.push(format!("{what} in {place:?}: {ours}, engine {theirs}, off by {off}"));
            }
        }
        let (low, high) = compute(found);
        *exact &= low == high;
        let reserved = measured(row, "compute_bytes", place);
        if !(low..=high).contains(&reserved) {
            wrong.push(format!("compute in {place:?}: {low}..={high}, engine {reserved}"));
        }
    }
    wrong
}

fn compute(place: &PlaceAllocation) -> (u64, u64) {
    place.terms.iter().filter(|term| term.component == TermKind::Compute).fold((0, 0), |(low, high), term| {
        let least = match &term.certainty {
            Certainty::Bounded { low, .. } => low.get(),
            _ => term.bytes.get(),
        };
        (low + least, high + term.bytes.get())
    })
}

type Door = fn(&str, &str, Build) -> Option<(ModelSpec, TensorTable)>;

fn file(name: &str) -> String {
    name.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect()
}

fn through_header(name: &str, quant: &str, _: Build) -> Option<(ModelSpec, TensorTable)> {
    let path = fixture(&format!("truth/llama.cpp/gguf/{}.{quant}.gguf.header.gz", file(name)));
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).ok()?).read_to_end(&mut bytes).unwrap();
    let ingested = gguf::ingest(&bytes.as_slice(), &gguf::Options::default()).unwrap();
    Some((ingested.spec, ingested.tensors))
}

fn through_config(name: &str, quant: &str, build: Build) -> Option<(ModelSpec, TensorTable)> {
    let bytes = std::fs::read(fixture(&format!("truth/llama.cpp/configs/{}.config.json", file(name)))).unwrap();
    let ingested = hf::ingest(&bytes, &hf::Options::default()).unwrap();
    let model = plimsoll_planner::Model::new(Some(name), ingested, plimsoll_planner::Basis::Config);
    // Measured twice: converted with its prediction layer, and without (`--no-mtp`).
    let spec = model.converted_with((name == "Qwen3.5-27B").then_some(false)).into_owned();
    let mut table = TensorTable { tensors: model.tensors.tensors };
    let predicts = !spec.mtp.is_empty();
    table.tensors.retain(|tensor| tensor.place != Place::Tower && (predicts || tensor.counts != Counts::MultiTokenPrediction));
    let facts = LoaderFacts::of(&spec, build).unwrap();
    let table = quantize::file_tensors(build, &facts, &table, FileType::parse(quant).unwrap()).unwrap();
    Some((spec, table))
}

fn walk(door: Door, file: &str, at_least: [usize; 2], not_yet: &[&str]) {
    let mut models: BTreeMap<(String, String), Option<(ModelSpec, TensorTable)>> = BTreeMap::new();
    let (mut right, mut n_exact, mut wrong) = (0, 0, Vec::new());
    for row in rows(file) {
        let Some((deployment, _)) = places::request(&row) else { continue };
        let build = Build::parse(row["engine"].as_str().unwrap()).unwrap();
        let (name, quant) = (row["model"].as_str().unwrap().to_owned(), row["quant"].as_str().unwrap().to_owned());
        if not_yet.contains(&name.as_str()) || row.get("error").is_some() {
            continue;
        }
        let model = models.entry((name.clone(), quant.clone())).or_insert_with(|| door(&name, &quant, build));
        let Some((spec, table)) = model else { continue };
        let mut exact = true;
        let found = check(&row, spec, table, &deployment, build, &mut exact);
        n_exact += usize::from(exact);
        if found.is_empty() {
            right += 1;
        } else {
            wrong.push(format!("{name} {quant} {build} {} {}: {}", row["backend"], row["params"], found.join("; ")));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows differ\n{}", wrong.len(), wrong.len() + right, wrong.join("\n"));
    let [at_least, exact_at_least] = at_least;
    assert!(right >= at_least && n_exact >= exact_at_least, "{right} rows, {n_exact} of them exact");
}

const TRUTH: &str = "truth/llama.cpp/truth.jsonl.gz";

/// Placements that were drawn at random, in every build that is followed.
const PLACEMENTS: &str = "truth/llama.cpp/placements.jsonl.gz";

#[test]
fn through_the_header_door() {
    walk(through_header, TRUTH, [280, 280], &[]);
}

#[test]
fn through_the_config_door() {
    // SmolLM3's window is the engine's through its header only.
    walk(through_config, TRUTH, [275, 275], &["SmolLM3-3B"]);
}

#[test]
fn in_every_build() {
    walk(through_header, PLACEMENTS, [300, 300], &[]);
}
