//! Multimodal projectors: the engine's own buffers for the weights and the graphs of made-up towers of every kind, with the
//! size of the picture that it reserves for and whether it attends without storing scores.

use std::collections::BTreeSet;

use crate::support::rows;
use plimsoll_ingest::gguf::{Header, Limits, projector_from_header};
use plimsoll_math::deployment::{Backend, FlashAttention};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::projector::{ProjectorSetting, memory};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::projector::Projector;
use serde_json::Value;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

/// A metadata value as a file stores it: its type, then itself.
fn value(out: &mut Vec<u8>, value: &Value) {
    let plain = |out: &mut Vec<u8>, value: &Value, with_type: bool| {
        let id = |out: &mut Vec<u8>, id: u32| {
            if with_type {
                out.extend(id.to_le_bytes());
            }
        };
        match value {
            Value::Bool(flag) => {
                id(out, 7);
                out.push(u8::from(*flag));
            }
            Value::String(string) => {
                id(out, 8);
                text(out, string);
            }
            Value::Number(number) if number.is_u64() => {
                id(out, 4);
                out.extend(u32::try_from(number.as_u64().unwrap()).unwrap().to_le_bytes());
            }
            Value::Number(number) => {
                id(out, 12);
                out.extend(number.as_f64().unwrap().to_le_bytes());
            }
            other => panic!("{other}"),
        }
    };
    let Value::Array(list) = value else { return plain(out, value, true) };
    out.extend(9_u32.to_le_bytes());
    out.extend((if list.iter().all(Value::is_u64) { 4_u32 } else { 12 }).to_le_bytes());
    out.extend(u64::try_from(list.len()).unwrap().to_le_bytes());
    for one in list {
        plain(out, one, false);
    }
}

/// The projector of a row, through the bytes of a file's header.
fn projector(row: &Value) -> Projector {
    let (kv, tensors) = (row["kv"].as_object().unwrap(), row["tensors"].as_array().unwrap());
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(u64::try_from(tensors.len()).unwrap().to_le_bytes());
    bytes.extend(u64::try_from(kv.len()).unwrap().to_le_bytes());
    for (key, entry) in kv {
        text(&mut bytes, key);
        value(&mut bytes, entry);
    }
    let mut offset = 0;
    for tensor in tensors {
        let dims: Vec<u64> = tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let format = StorageFormat::from_name(tensor[2].as_str().unwrap()).unwrap();
        text(&mut bytes, tensor[0].as_str().unwrap());
        bytes.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        bytes.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(format.ggml_id().unwrap().to_le_bytes());
        bytes.extend(u64::to_le_bytes(offset));
        let rows: u64 = dims[1..].iter().product();
        offset += (format.row_bytes(dims[0]).unwrap().get() * rows).next_multiple_of(32);
    }
    projector_from_header(&Header::read(&bytes, &Limits::default()).unwrap()).unwrap()
}

fn setting(row: &Value) -> ProjectorSetting {
    ProjectorSetting {
        backend: match row["backend"].as_str().unwrap() {
            "cpu" => Backend::Cpu,
            "metal" => Backend::Metal,
            cuda => Backend::Cuda { compute_capability: cuda.strip_prefix("cuda-cc").unwrap().parse().unwrap() },
        },
        flash_attention: match row["fa"].as_str().unwrap() {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        },
        min_tokens: row["min"].as_u64(),
        max_tokens: row["max"].as_u64(),
    }
}

/// What differs between the engine's figures for a tower and ours.
fn differences(tower: &Value, ours: &plimsoll_math::engine::llama_cpp::projector::TowerMemory, backend: Backend) -> Vec<String> {
    let number = |key: &str| tower[key].as_u64().unwrap();
    let compute = tower["compute"].as_object().unwrap();
    let of = |host: bool| -> u64 {
        let here = compute.iter().filter(|(name, _)| (*name == "CPU") == host);
        here.map(|(_, bytes)| bytes.as_u64().unwrap()).sum()
    };
    let mut off = Vec::new();
    let mut check = |what: &str, engine: u64, ours: u64| {
        if engine != ours {
            off.push(format!("{what} {ours}, engine {engine}"));
        }
    };
    check("weights", number("weights"), ours.weights);
    check("tensor bytes", number("projected_weights"), ours.tensor_bytes);
    check("picture", number("warmup"), ours.reserved_for);
    check("flash", u64::from(tower["flash"] == "on"), u64::from(ours.flash_attention));
    let (own, host) = if backend == Backend::Cpu { (of(true), 0) } else { (of(false), of(true)) };
    check("compute", own, ours.compute);
    check("host compute", host, ours.host_compute);
    off
}

#[test]
fn on_every_recorded_row() {
    let (mut right, mut wrong) = (0, Vec::new());
    let mut kinds = BTreeSet::new();
    for line in rows("truth/llama.cpp/projectors.jsonl.gz") {
        let projector = projector(&line);
        for row in line["rows"].as_array().unwrap() {
            let build = Build::parse(row["engine"].as_str().unwrap()).unwrap();
            let setting = setting(row);
            let Some(towers) = row["towers"].as_array() else { continue };
            let ours = memory(&projector, &setting, build).unwrap();
            let mut off = Vec::new();
            if towers.len() != ours.len() {
                off.push(format!("{} towers, engine {}", ours.len(), towers.len()));
            }
            for (tower, ours) in towers.iter().zip(&ours) {
                off.extend(differences(tower, ours, setting.backend));
            }
            kinds.extend(towers.iter().map(|tower| tower["projector"].as_str().unwrap().to_owned()));
            if off.is_empty() {
                right += 1;
            } else {
                wrong.push(format!(
                    "{} {} {} fa {} max {} merge {}: {}",
                    line["name"],
                    row["engine"],
                    row["backend"],
                    row["fa"],
                    row["max"],
                    towers[0]["warmup"],
                    off.join("; ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows differ\n{}", wrong.len(), wrong.len() + right, wrong.join("\n"));
    assert!(right >= 900 && kinds.len() >= 31, "{right} rows, {} kinds", kinds.len());
}
