//! Bytes of each file type of each model of the truth, from names and shapes alone, beside the engine's own quantizer.

use std::collections::BTreeMap;

use crate::support::headers::{model, read, shapes_only};
use crate::support::rows;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, conversion, quantize};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::TensorTable;

/// Sums by format, as the truth has them.
fn check(what: &str, build: Build, facts: &LoaderFacts, shapes: &TensorTable, row: &serde_json::Value) {
    let file_type = FileType::parse(row["ftype"].as_str().unwrap()).unwrap();
    let table = quantize::file_tensors(build, facts, shapes, file_type).unwrap();
    let mut bytes = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (format, (count, sum)) in quantize::by_format(&table).unwrap() {
        bytes.insert(format.name(), sum.get());
        tensors.insert(format.name(), count);
    }
    assert_eq!(serde_json::to_value(&tensors).unwrap(), row["tensors_by_type"], "{what}: tensors by format");
    assert_eq!(serde_json::to_value(&bytes).unwrap(), row["bytes_by_type"], "{what}: bytes by format");
    assert_eq!(bytes.values().sum::<u64>(), row["bytes"].as_u64().unwrap(), "{what}");
}

/// The header of DeepSeek-V3.2 at BF16 was laid out with the sparse selector's 61 projections in bf16. The converter
/// itself keeps them in single precision (`conversion/base.py:prepare_tensors`, `INDEXER_PROJ`), and so do we; from
/// every other file type the difference is gone.
fn corrected(row: &mut serde_json::Value) {
    let elements = 61 * 7168 * 64;
    for (format, count, bytes) in [("bf16", -61, -2 * elements), ("f32", 61, 4 * elements)] {
        for (key, change) in [("tensors_by_type", count), ("bytes_by_type", bytes)] {
            row[key][format] = (row[key][format].as_i64().unwrap() + change).into();
        }
    }
    row["bytes"] = (row["bytes"].as_i64().unwrap() + 2 * elements).into();
}

#[test]
fn of_every_model_at_every_file_type() {
    let mut by_model: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    let mut checked = 0;
    for row in rows("truth/llama.cpp/weights.jsonl.gz") {
        by_model.entry(row["model"].as_str().unwrap().to_owned()).or_default().push(row);
    }
    for (name, rows) in by_model {
        let (facts, table) = read(&model(&name, "BF16").unwrap_or_else(|| panic!("no header of {name}")));
        let shapes = shapes_only(&table);
        for mut row in rows {
            if name == "DeepSeek-V3.2" && row["ftype"] == "BF16" {
                corrected(&mut row);
            }
            check(&format!("{name} {}", row["ftype"]), Build::C0c1e57098, &facts, &shapes, &row);
            checked += 1;
        }
    }
    assert_eq!(checked, 942);
}

#[test]
fn tensor_by_tensor() {
    let mut checked = 0;
    let names: std::collections::BTreeSet<String> =
        rows("truth/llama.cpp/weights.jsonl.gz").iter().map(|row| row["model"].as_str().unwrap().to_owned()).collect();
    for name in names {
        let (facts, bf16) = read(&model(&name, "BF16").unwrap());
        for tensor in &bf16.tensors {
            if !(name == "DeepSeek-V3.2" && tensor.name.ends_with(".indexer.proj.weight")) {
                let format = conversion::converted_format(&facts, tensor, StorageFormat::Bf16);
                assert_eq!(format, tensor.format, "{name} {}", tensor.name);
            }
        }
        for file_type in ["Q4_K_M", "Q8_0", "MXFP4_MOE"] {
            let Some(header) = model(&name, file_type) else { continue };
            let (_, expected) = read(&header);
            let table =
                quantize::file_tensors(Build::C0c1e57098, &facts, &shapes_only(&bf16), FileType::parse(file_type).unwrap())
                    .unwrap();
            for (tensor, expected) in table.tensors.iter().zip(&expected.tensors) {
                assert_eq!(tensor, expected, "{name} {file_type}");
                checked += 1;
            }
            assert_eq!(table.tensors.len(), expected.tensors.len(), "{name} {file_type}");
        }
    }
    assert!(checked > 50_000, "{checked} tensors");
}
