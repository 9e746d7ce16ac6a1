//! Every real header among the fixtures: tensors, parameters and bytes by type as llama.cpp counted them, and the
//! metadata of the vocabulary files.

use std::collections::BTreeMap;

use crate::support::{files, fixture, gunzip, json_lines};
use plimsoll_ingest::gguf::{Header, Limits, Value};

fn check(bytes: Vec<u8>, expect: &serde_json::Value) {
    let header = Header::read(&bytes, &Limits::default()).unwrap();
    let (model, ftype) = (&expect["model"], &expect["ftype"]);
    assert_eq!(header.tensors.len() as u64, expect["n_tensors"].as_u64().unwrap(), "{model} {ftype}");
    let params: u64 = header.tensors.iter().map(|tensor| tensor.shape.elements().unwrap()).sum();
    assert_eq!(params, expect["n_params"].as_u64().unwrap(), "{model} {ftype}");
    let mut by_type: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in &header.tensors {
        *by_type.entry(tensor.format.unwrap().name().to_owned()).or_default() += tensor.bytes.unwrap();
    }
    let expected: BTreeMap<String, u64> = serde_json::from_value(expect["bytes_by_type"].clone()).unwrap();
    assert_eq!(by_type, expected, "{model} {ftype}");
    assert!(header.notes.iter().any(|note| note.contains("without tensor data")), "{model}: {:?}", header.notes);
}

#[test]
fn tensors_parameters_and_bytes_equal_the_engines() {
    let weights = json_lines("truth/llama.cpp/weights.jsonl.gz");
    let mut checked = 0;
    for path in files("truth/llama.cpp/gguf") {
        let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".gguf.header.gz").unwrap().to_owned();
        let (model, ftype) = name.rsplit_once('.').unwrap();
        let same = |text: &str| text.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
        let expect = weights
            .iter()
            .find(|row| same(row["model"].as_str().unwrap()) == same(model) && row["ftype"] == ftype)
            .unwrap_or_else(|| panic!("no weights row for {model} {ftype}"));
        check(gunzip(&path), expect);
        checked += 1;
    }
    assert!(checked >= 100, "only {checked} headers");
}

#[test]
fn the_zoo_is_read() {
    for path in files("truth/llama.cpp/gguf-zoo") {
        let header = Header::read(&gunzip(&path), &Limits::default()).unwrap();
        assert!(!header.tensors.is_empty(), "{}", path.display());
        assert!(header.get("general.architecture").is_some(), "{}", path.display());
    }
}

#[test]
fn vocabulary_files_show_the_same_metadata() {
    let text = std::fs::read_to_string(fixture("corpus/gguf/headers.json")).unwrap();
    let headers: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(headers.len(), 5);
    for expect in headers {
        let file = expect["file"].as_str().unwrap();
        let bytes = gunzip(&fixture(&format!("corpus/gguf/{file}.gz")));
        let header = Header::read(&bytes, &Limits::default()).unwrap();
        assert_eq!(u64::from(header.version), expect["version"].as_u64().unwrap());
        assert_eq!(header.tensors.len() as u64, expect["n_tensors"].as_u64().unwrap());
        let kv = expect["kv"].as_object().unwrap();
        assert_eq!(header.metadata.len() as u64, kv["GGUF.kv_count"]["value"].as_u64().unwrap());
        for (key, entry) in kv.iter().filter(|(key, _)| !key.starts_with("GGUF.")) {
            let value = header.get(key).unwrap_or_else(|| panic!("{file}: {key}"));
            match value {
                Value::Array { len, .. } => {
                    let count = format!("<array {len}>");
                    let short = entry["value"].as_array().map(|list| list.len() as u64);
                    assert!(entry["value"] == count || short == Some(*len), "{file}: {key}: {len} is not {entry}");
                }
                Value::Int(number) => assert_eq!(Some(i128::from(entry["value"].as_i64().unwrap())), Some(*number), "{key}"),
                Value::Float(number) => assert_eq!(entry["value"].as_f64().unwrap(), *number, "{key}"),
                Value::Bool(truth) => assert_eq!(entry["value"].as_bool().unwrap(), *truth, "{key}"),
                Value::Text(text) => assert_eq!(entry["value"].as_str().unwrap(), text, "{key}"),
            }
        }
    }
}
