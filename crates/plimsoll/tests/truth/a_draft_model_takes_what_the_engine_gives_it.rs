//! A draft model beside its target, place by place: weights, caches, compute and output buffers of both contexts as the engine
//! sizes them, the draft's for the target's pool of tokens and with its own layers on devices and cache formats.

use std::collections::BTreeMap;
use std::io::Read;

use crate::support::{fixture, rows};
use plimsoll_ingest::gguf;
use plimsoll_math::allocation::{Term, TermKind};
use plimsoll_math::deployment::FlashAttention;
use plimsoll_math::units::Bytes;
use plimsoll_planner::{Basis, Model, Options, explain};
use serde_json::Value;

fn model(name: &str) -> Model {
    let path = fixture(&format!("truth/llama.cpp/gguf/{name}.Q4_K_M.gguf.header.gz"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    Model::new(Some(name), gguf::ingest(&bytes.as_slice(), &gguf::Options::default()).unwrap(), Basis::Gguf)
}

/// The question of a row.
fn options(row: &Value) -> Options {
    let (params, own) = (&row["params"], &row["draft_params"]);
    let number = |value: &Value| value.as_u64();
    let devices = row["devices"].as_u64().unwrap();
    Options {
        engine: Some(format!("llama.cpp@{}", row["engine"].as_str().unwrap())),
        total_context: number(&params["n_ctx"]),
        sequences: number(&params["parallel"]),
        ubatch: number(&params["n_ubatch"]),
        kv_unified: params["kv_unified"].as_bool(),
        flash_attention: Some(match params["fa"].as_str().unwrap() {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        }),
        repack: Some(false),
        mmap: Some(false),
        device: Some(if devices == 0 { "cpu".to_owned() } else { format!("RTX 4090x{devices}") }),
        memory: (devices == 0).then_some(1 << 40),
        gpu_layers: number(&params["ngl"]),
        draft_tokens: number(&own["n_draft"]),
        draft_gpu_layers: number(&own["ngl"]),
        draft_kv_type: own["type"].as_str().map(str::to_owned),
        skip_limits: Some(true),
        ..Options::default()
    }
}

/// Bytes of a kind of buffer in a place, as the engine names it.
fn measured(buffers: &Value, place: Option<usize>) -> u64 {
    let name = place.map(|device| format!("CUDA{device}"));
    let here = buffers.as_object().unwrap().iter().filter(|(buffer, _)| match &name {
        Some(name) => *buffer == name,
        None => !buffer.starts_with("CUDA") || *buffer == "CUDA_Host",
    });
    here.map(|(_, bytes)| bytes.as_u64().unwrap()).sum()
}

fn sum(terms: &[Term], draft: bool) -> u64 {
    let beside = [TermKind::DriverContext, TermKind::Other];
    let those = terms.iter().filter(|term| !beside.contains(&term.component) && (term.component == TermKind::Draft) == draft);
    Bytes::sum(those.map(|term| term.bytes)).unwrap().get()
}

#[test]
fn on_every_recorded_row() {
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    let (mut right, mut wrong) = (0, Vec::new());
    for row in rows("truth/llama.cpp/drafts.jsonl.gz") {
        let mut find = |key: &str| {
            let name = row[key].as_str().unwrap().to_owned();
            models.entry(name.clone()).or_insert_with(|| model(&name)).clone()
        };
        let mut target = find("model");
        target.draft = Some(Box::new(find("draft")));
        let answer = explain(&target, &options(&row)).unwrap();
        let devices = row["devices"].as_u64().unwrap();
        let mut places: Vec<(Option<usize>, &[Term])> = vec![(None, &answer.host.terms)];
        if devices == 0 {
            places = vec![(None, &answer.devices[0].terms)];
        } else {
            places.extend(answer.devices.iter().enumerate().map(|(index, device)| (Some(index), device.terms.as_slice())));
        }
        let mut off = Vec::new();
        for (place, terms) in places {
            for (draft, key) in [(false, "target_bytes"), (true, "draft_bytes")] {
                let parts = ["model_bytes", "context_bytes", "compute_bytes", "output_bytes"];
                let engine: u64 = parts.iter().map(|part| measured(&row[key][*part], place)).sum();
                let ours = sum(terms, draft);
                if ours != engine {
                    off.push(format!("{key} in {place:?}: {ours}, engine {engine}"));
                }
            }
        }
        if off.is_empty() {
            right += 1;
        } else {
            wrong.push(format!(
                "{} {} {} {}: {}",
                row["model"],
                row["engine"],
                row["params"],
                row["draft_params"],
                off.join("; ")
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows differ\n{}", wrong.len(), wrong.len() + right, wrong.join("\n"));
    assert!(right >= 150, "{right}");
}
