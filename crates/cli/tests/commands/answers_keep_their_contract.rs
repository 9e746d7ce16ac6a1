//! The JSON of `fit` and `inspect`: the fields that programs rely on, with their types, and figures that add up.

use crate::run::{command, json, plimsoll};
use serde_json::Value;

/// Every path of `shape` is in `found` with the same kind of value; `null` in the shape stands for any kind.
#[track_caller]
fn check(found: &Value, shape: &Value, path: &str) {
    match shape {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, expected) in fields {
                let inner = found.get(key).unwrap_or_else(|| panic!("{path}.{key} is missing"));
                check(inner, expected, &format!("{path}.{key}"));
            }
        }
        Value::Array(items) => {
            let list = found.as_array().unwrap_or_else(|| panic!("{path} is no list"));
            if let Some(item) = items.first() {
                assert!(!list.is_empty(), "{path} is empty");
                for (index, inner) in list.iter().enumerate() {
                    check(inner, item, &format!("{path}[{index}]"));
                }
            }
        }
        // A fraction in the shape stands for any number, a whole one for a count.
        Value::Number(number) if number.is_f64() => assert!(found.is_f64(), "{path}: {found}"),
        Value::Number(_) => assert!(found.is_u64(), "{path}: {found}"),
        Value::String(_) => assert!(found.is_string(), "{path}: {found}"),
        Value::Bool(_) => assert!(found.is_boolean(), "{path}: {found}"),
    }
}

fn fit_shape() -> Value {
    serde_json::json!({
        "schema": "",
        "model": {"name": "", "architecture": "", "parameters": {"total": 0, "active": 0, "embedding": 0}, "max_context": 0},
        "engine": {"name": "", "version": ""},
        "deployment": {
            "context": 0, "sequences": 0, "total_context": 0, "context_per_sequence": 0, "batch": 0, "ubatch": 0,
            "kv_type_k": "", "kv_type_v": "", "flash_attention": "", "kv_unified": true, "swa_full": true,
            "repack": true, "mmap": true, "device": "", "backend": "", "memory": 0
        },
        "devices": [{"name": "", "kind": "", "usable": 0, "used": 0,
            "terms": [{"component": "", "bytes": 0, "certainty": {"kind": ""}, "formula": "", "source": ""}]}],
        "host": {"terms": []},
        "totals": {"weights": 0, "kv_cache": 0, "recurrent_state": 0, "compute": 0, "output": 0},
        "cache": {"bytes_per_token": 0, "blocks": null, "block_tokens": null, "max_concurrency": null},
        "verdict": {"kind": ""},
        "throughput": {"prefill_tokens_per_s": {"expected": 0.5, "low": 0.5, "high": 0.5}, "decode_tokens_per_s": {"expected": 0.5, "low": 0.5, "high": 0.5}},
        "command": [""]
    })
}

const GPU: &[&str] =
    &["fit", "@models/llama-3.1-8b", "--device", "RTX 4090", "--context", "32k", "--quant", "Q4_K_M", "--no-mmap", "--json"];

#[test]
fn of_fit() {
    for arguments in
        [GPU, &["fit", "@models/falcon-h1-7b", "--device", "cpu", "--memory", "64GiB", "-c", "4k", "-q", "Q8_0", "--json"]]
    {
        let answer = json(arguments);
        check(&answer, &fit_shape(), "$");
        let terms: Vec<&Value> = ["/devices/0/terms", "/host/terms"]
            .iter()
            .flat_map(|list| answer.pointer(list).unwrap().as_array().unwrap())
            .collect();
        for (component, total) in answer["totals"].as_object().unwrap() {
            let sum: u64 =
                terms.iter().filter(|term| term["component"] == *component).map(|term| term["bytes"].as_u64().unwrap()).sum();
            assert_eq!(sum, total.as_u64().unwrap(), "{component}");
        }
        let device = &answer["devices"][0];
        let used: u64 = device["terms"].as_array().unwrap().iter().map(|term| term["bytes"].as_u64().unwrap()).sum();
        assert_eq!(device["used"], used);
        assert_eq!(answer["verdict"]["headroom"].as_u64().unwrap(), device["usable"].as_u64().unwrap() - used);
        for term in terms {
            if term["certainty"]["kind"] == "bounded" {
                assert!(term["certainty"]["low"].as_u64() <= term["bytes"].as_u64());
                assert_eq!(term["certainty"]["high"], term["bytes"]);
            }
        }
    }
}

#[test]
fn of_fit_in_figures() {
    let answer = json(GPU);
    // llama.cpp itself: 4403.49 + 281.81 MiB of weights, 4 GiB of cache, 501 KiB of logits.
    assert_eq!(answer["totals"]["weights"], 4_912_898_304_u64);
    assert_eq!(answer["totals"]["kv_cache"], 4_294_967_296_u64);
    assert_eq!(answer["totals"]["output"], 513_024);
    assert_eq!(answer["cache"]["bytes_per_token"], 131_072);
    assert_eq!(answer["model"]["parameters"]["total"], 8_030_261_248_u64);
    assert_eq!(answer["verdict"]["kind"], "fits");
    assert_eq!(answer["command"][0], "llama-server");
}

#[test]
fn of_fit_when_it_does_not() {
    let answer = json(&["fit", "@models/llama-3.1-8b", "--memory", "6GiB", "--context", "32k", "--quant", "Q4_K_M", "--json"]);
    assert_eq!(answer["verdict"]["kind"], "does_not_fit");
    assert!(answer["verdict"]["short_by"].as_u64().unwrap() > 0);
    let closest = answer["verdict"]["closest"].as_array().unwrap();
    assert!(!closest.is_empty());
    for change in closest {
        // Each change that is offered does fit when it is taken.
        let mut arguments = vec!["fit", "@models/llama-3.1-8b", "--context", "32k", "--quant", "Q4_K_M", "--json"];
        let options: Vec<&str> = change["options"].as_array().unwrap().iter().map(|option| option.as_str().unwrap()).collect();
        for option in ["--context", "--quant", "--kv-type", "--gpu-layers"] {
            if let Some(at) = arguments.iter().position(|argument| *argument == option && options.contains(&option)) {
                arguments.drain(at..at + 2);
            }
        }
        if !options.contains(&"--device") {
            arguments.extend(["--memory", "6GiB"]);
        }
        let on_host = change["change"].as_str().unwrap().ends_with("on the host");
        arguments.extend(options);
        assert_eq!(plimsoll(&arguments).code, if on_host { 2 } else { 0 }, "{arguments:?}");
    }
    assert!(answer["totals"]["weights"].as_u64().unwrap() > 0, "terms are there all the same");
}

#[test]
fn of_inspect() {
    let answer = json(&["inspect", "@models/qwen3-30b-a3b", "--json"]);
    let shape = serde_json::json!({
        "schema": "",
        "model": {"name": "", "architecture": "", "max_context": 0},
        "parameters": {"total": 0, "active": 0, "by_component": {"embeddings": 0, "attention": 0, "experts": 0, "router": 0},
            "multi_token_prediction": 0, "buffers": 0},
        "layers": [{"index": 0, "mixer": "", "feed_forward": "", "parameters": 0, "kv_dim_k": 0, "kv_dim_v": 0,
            "window": null, "state_bytes": 0}],
        "tensors": 0,
        "notes": []
    });
    check(&answer, &shape, "$");
    assert_eq!(answer["schema"], "plimsoll.inspect/1");
    assert_eq!(answer["parameters"]["total"], 30_532_122_624_u64);
    let parts: u64 = answer["parameters"]["by_component"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum();
    assert_eq!(answer["parameters"]["total"], parts);
    assert_eq!(answer["layers"].as_array().unwrap().len(), 48);
}

#[test]
fn of_text_that_is_piped() {
    let arguments = ["fit", "--device", "4090", "--context", "8k", "--quant", "Q4_K_M"];
    let model = crate::run::fixture(crate::run::LLAMA).display().to_string();
    let run_with = |variables: &[(&str, &str)]| {
        let mut command = command(&arguments);
        command.arg(&model);
        for (name, text) in variables {
            command.env(name, text);
        }
        crate::run::ran(command.output().unwrap()).out
    };
    assert!(!run_with(&[]).contains('\x1b'), "no colour codes in a pipe");
    assert!(run_with(&[("CLICOLOR_FORCE", "1")]).contains('\x1b'), "unless they are asked for");
    assert!(!run_with(&[("CLICOLOR_FORCE", "0"), ("NO_COLOR", "1")]).contains('\x1b'));
    for line in run_with(&[]).lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}
