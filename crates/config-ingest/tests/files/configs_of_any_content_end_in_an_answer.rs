//! A config with any field replaced by nonsense yields a model or a typed error, quickly, and never a panic.

use std::path::Path;

use plimsoll_ingest::error::IngestError;
use plimsoll_ingest::hf::{self, Options};
use serde_json::{Map, Value, json};

/// What stands in a field that should hold something else.
fn nonsense() -> Vec<Value> {
    vec![
        Value::Null,
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(9_007_199_254_740_991_u64),
        json!(1e300),
        json!(0.5),
        json!("text"),
        json!([]),
        json!([0, 1, "x"]),
        json!({}),
        json!({"type": 5}),
        json!(true),
    ]
}

fn check(value: &Value) -> Result<(), IngestError> {
    let ingested = hf::ingest(&serde_json::to_vec(value).unwrap(), &Options::default())?;
    // What is accepted has a size, or an error that says it has none.
    let _ = ingested.tensors.total_params();
    Ok(())
}

fn configs() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/corpus/configs");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    // A few configs hold numbers that JSON does not know (`Infinity`); the door reads them, this test leaves them out.
    paths.iter().filter_map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).ok()).collect()
}

/// Every place of an object, its nested objects included.
fn places(map: &Map<String, Value>, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in map {
        let place = format!("{prefix}/{key}");
        if let Value::Object(nested) = value {
            places(nested, &place, out);
        }
        out.push(place);
    }
}

#[test]
fn configs_of_any_content_end_in_an_answer() {
    let nonsense = nonsense();
    let mut turn = 0;
    let mut answers = 0;
    for config in configs() {
        let mut all = Vec::new();
        places(config.as_object().unwrap(), "", &mut all);
        for place in all {
            let mut changed = config.clone();
            let field = changed.pointer_mut(&place.replace('~', "~0"));
            let Some(field) = field else { continue };
            *field = nonsense.get(turn % nonsense.len()).unwrap().clone();
            turn += 1;
            if let Err(error) = check(&changed) {
                assert!(!error.to_string().is_empty(), "{place}: an error without a sentence");
            }
            answers += 1;
        }
    }
    assert!(answers > 5_000, "only {answers} configs were tried");
}

#[test]
fn what_no_machine_holds_is_refused_before_anything_is_allocated() {
    for (key, value) in [
        ("num_hidden_layers", 4_000_000_000_u64),
        ("vocab_size", 1 << 40),
        ("num_attention_heads", 1 << 40),
        ("num_local_experts", 1 << 40),
        ("hidden_size", 1 << 50),
        ("head_dim", 1 << 50),
    ] {
        let mut config = json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2
        });
        check(&config).unwrap();
        config.as_object_mut().unwrap().insert(key.to_owned(), json!(value));
        let error = check(&config).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_its_neighbours() {
    let config = json!({"architectures": ["LamaForCausalLM"], "model_type": "lama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100});
    let error = check(&config).unwrap_err();
    assert_eq!(error.code(), "unknown_architecture");
    let text = error.to_string();
    assert!(text.contains("LamaForCausalLM") && text.contains("LlamaForCausalLM"), "{text}");
    let options = Options { assume_generic: true, ..Options::default() };
    let generic = hf::ingest(&serde_json::to_vec(&config).unwrap(), &options).unwrap();
    assert!(generic.generic && generic.notes.iter().any(|note| note.contains("LamaForCausalLM")));
}

#[test]
fn every_wrong_field_is_listed() {
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": "wide", "num_hidden_layers": -3,
        "num_attention_heads": 32, "num_key_value_heads": 7, "vocab_size": 100, "intermediate_size": 10});
    let text = check(&config).unwrap_err().to_string();
    for field in ["$.hidden_size", "$.num_hidden_layers", "$.num_key_value_heads"] {
        assert!(text.contains(field), "{field} is missing in: {text}");
    }
}

#[test]
fn every_row_has_names_and_readable_defaults() {
    for family in plimsoll_ingest::hf::families::all() {
        assert!(!family.model_types.is_empty() || !family.architectures.is_empty());
        if !family.defaults.is_empty() {
            let read: Result<Map<String, Value>, _> = serde_json::from_str(family.defaults);
            assert!(read.is_ok(), "{}: {read:?}", family.name());
        }
    }
}
