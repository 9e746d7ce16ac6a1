//! What the command line prints with `--json` is what the wire functions answer to the same request, with the keys that
//! programs rely on; and a checkpoint on disk answers with the bytes of its own tensors where the engine reads them.

use crate::run::{fixture, json};
use plimsoll::planner::wire;
use serde_json::{Value, json};

const MODELS: [&str; 5] = ["llama-3.1-8b", "qwen3-30b-a3b", "falcon-h1-7b", "gemma-3-27b", "bge-large-en-v1.5"];

type Verb = fn(&str) -> Result<String, String>;

/// The command line's answer and the wire's are one document.
#[track_caller]
fn check(verb: &str, wire: Verb, model: &str, arguments: &[&str], options: &Value) -> Value {
    check_with(verb, wire, model, arguments, options, None)
}

/// The same for a verb that asks something beside the options.
#[track_caller]
fn check_with(verb: &str, wire: Verb, model: &str, arguments: &[&str], options: &Value, ask: Option<Value>) -> Value {
    let path = format!("@models/{model}");
    let printed = json(&[&[verb, path.as_str()], arguments, &["--json"]].concat());
    let config = std::fs::read(fixture(&format!("models/{model}/config.json"))).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    // The command line names a model after its folder.
    let mut request = json!({"model": {"name": printed["model"]["name"], "config": config}, "options": options});
    if let Some(ask) = ask {
        request["ask"] = ask;
    }
    let answered: Value = serde_json::from_str(&wire(&request.to_string()).unwrap()).unwrap();
    assert_eq!(printed, answered, "{verb} {model}");
    printed
}

#[test]
fn fit_is_one_document_on_both_surfaces() {
    for model in MODELS {
        let arguments = ["--device", "RTX 4090", "--context", "512", "--sequences", "2", "--quant", "Q8_0"];
        let options = json!({"device": "RTX 4090", "context": 512, "sequences": 2, "quant": "Q8_0"});
        let fit = check("fit", wire::fit, model, &arguments, &options);
        assert_eq!(fit["schema"], "plimsoll.fit/1");
        for key in ["weights", "kv_cache", "recurrent_state", "compute", "output"] {
            assert!(fit["totals"][key].is_u64(), "{key}");
        }
    }
}

#[test]
fn explain_and_the_limits_are_one_document_too() {
    let arguments = ["--device", "cpu", "--memory", "64GiB", "--context", "4k", "--quant", "Q4_K_M"];
    let options = json!({"device": "cpu", "memory": 64_u64 << 30, "context": 4096, "quant": "Q4_K_M"});
    check("explain", wire::explain, "llama-3.1-8b", &arguments, &options);
    check("max-context", wire::max_context, "llama-3.1-8b", &arguments, &options);
    check("max-sequences", wire::max_sequences, "llama-3.1-8b", &arguments, &options);
}

#[test]
fn the_questions_of_planning_are_one_document_too() {
    let model = "llama-3.1-8b";
    let options = json!({"device": "RTX 4060", "context": 8192, "quant": "Q8_0"});
    let arguments = ["--device", "RTX 4060", "--context", "8k", "--quant", "Q8_0"];
    let with = |more: &[&'static str]| [&arguments[..], more].concat();
    check_with(
        "offload",
        wire::offload,
        model,
        &with(&["--host-memory", "64GiB"]),
        &options,
        Some(json!({"host_memory": 64_u64 << 30})),
    );
    check_with("explain", wire::explain_term, model, &with(&["kv_cache"]), &options, Some(json!({"term": "kv_cache"})));
    let grid = json!({"quants": ["Q8_0", "Q4_K_M"], "contexts": [4096, 65536]});
    let lists = ["--device", "RTX 4060", "--quants", "Q8_0,Q4_K_M", "--contexts", "4k,64k"];
    check_with("which-quant", wire::which_quant, model, &lists, &json!({"device": "RTX 4060"}), Some(grid));
    let target =
        json!({"min_decode": 30.0, "devices": ["3090", "4060"], "most": 4, "prices": [{"device": "3090", "cents": 70_000}]});
    let asked = [
        "--min-decode",
        "30",
        "--device",
        "3090",
        "--device",
        "4060",
        "--most",
        "4",
        "--price",
        "3090=700",
        "-c",
        "8k",
        "-q",
        "Q8_0",
    ];
    check_with("which-device", wire::which_device, model, &asked, &json!({"context": 8192, "quant": "Q8_0"}), Some(target));
    let axes = json!({"contexts": [4096, 8192], "devices": ["3090", "RTX 4060x2"], "kv_types": ["f16", "q8_0"]});
    let asked = ["--contexts", "4k,8k", "--devices", "3090,RTX 4060x2", "--kv-types", "f16,q8_0", "-q", "Q8_0"];
    let sweep = check_with("sweep", wire::sweep, model, &asked, &json!({"quant": "Q8_0"}), Some(axes));
    assert_eq!(sweep["rows"].as_array().unwrap().len(), 8);
    let refused = wire::sweep(&json!({"model": {"config": {}}, "ask": {"contexts": "4k"}}).to_string()).unwrap_err();
    assert!(refused.contains("contexts") || refused.contains("request"), "{refused}");
}

#[test]
fn inspect_is_one_document_with_the_published_keys() {
    for model in MODELS {
        let inspect = check("inspect", wire::inspect, model, &[], &json!({}));
        assert_eq!(inspect["schema"], "plimsoll.inspect/1");
        let parameters = &inspect["parameters"];
        for key in ["total", "active", "multi_token_prediction", "buffers"] {
            assert!(parameters[key].is_u64(), "{key}");
        }
        // Every part, and every layer with what stands outside layers, adds up to the total.
        let parts: u64 = parameters["by_component"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum();
        assert_eq!(Some(parts), parameters["total"].as_u64(), "{model}");
        for key in ["index", "mixer", "feed_forward", "parameters", "kv_dim_k", "kv_dim_v", "window", "state_bytes"] {
            assert!(inspect["layers"][0].get(key).is_some(), "{key}");
        }
        assert!(inspect["tensors"].is_u64() && inspect["notes"].is_array());
    }
}

/// A folder with one layer of Llama: matrices as bfloat16, norms in single precision.
fn checkpoint() -> (std::path::PathBuf, u64) {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("checkpoint-of-one-layer");
    std::fs::create_dir_all(&folder).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 1000,
        "intermediate_size": 160, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "torch_dtype": "bfloat16"});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let layer = "model.layers.0";
    let tensors = [
        ("model.embed_tokens", [1000, 64]),
        ("lm_head", [1000, 64]),
        (&format!("{layer}.self_attn.q_proj"), [64, 64]),
        (&format!("{layer}.self_attn.k_proj"), [32, 64]),
        (&format!("{layer}.self_attn.v_proj"), [32, 64]),
        (&format!("{layer}.self_attn.o_proj"), [64, 64]),
        (&format!("{layer}.mlp.gate_proj"), [160, 64]),
        (&format!("{layer}.mlp.up_proj"), [160, 64]),
        (&format!("{layer}.mlp.down_proj"), [64, 160]),
        (&format!("{layer}.input_layernorm"), [64, 0]),
        (&format!("{layer}.post_attention_layernorm"), [64, 0]),
        ("model.norm", [64, 0]),
    ];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, [rows, columns]) in tensors {
        let start = end;
        let (dtype, shape) = if columns == 0 { ("F32", json!([rows])) } else { ("BF16", json!([rows, columns])) };
        end += if columns == 0 { 4 * rows } else { 2 * rows * columns };
        header.insert(format!("{name}.weight"), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + usize::try_from(end).unwrap(), 0);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    (folder, end)
}

#[test]
fn a_checkpoint_answers_with_its_own_tensors() {
    let (folder, stored) = checkpoint();
    let folder = folder.display().to_string();
    let ideal = json(&["fit", &folder, "--engine", "ideal", "--device", "RTX 4090", "--context", "16", "--json"]);
    assert_eq!(ideal["totals"]["weights"].as_u64(), Some(stored));
    let inspect = json(&["inspect", &folder, "--json"]);
    assert_eq!(inspect["weight_bytes"].as_u64(), Some(stored));
    // llama.cpp reads no such file: its answer is the converted one's, and says so.
    let converted = json(&["fit", &folder, "--device", "RTX 4090", "--context", "16", "--json"]);
    let notes = converted["notes"].to_string();
    assert!(notes.contains("converter"), "{notes}");
}
