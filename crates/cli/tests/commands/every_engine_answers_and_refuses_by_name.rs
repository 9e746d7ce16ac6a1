//! Every engine answers every question about a model that it serves, and refuses options of others by name.

use crate::run::{json, plimsoll};

const ENGINES: [(&str, &str); 7] = [
    ("vllm", "h200"),
    ("sglang", "h200"),
    ("mlx", "M3 Ultra (80c)"),
    ("tensorrt-llm", "h200"),
    ("transformers", "h200"),
    ("ollama", "4090"),
    ("ideal", "h200"),
];

fn asked<'a>(verb: &'a str, engine: &'a str, device: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec![verb, "@models/llama-3.1-8b", "--engine", engine, "--device", device];
    if engine == "mlx" {
        all.extend(["--memory", "256GiB"]);
    }
    all.extend(more);
    all
}

#[test]
fn every_question() {
    for (engine, device) in ENGINES {
        let fit = json(&asked("fit", engine, device, &["--context", "8k", "--json"]));
        assert_eq!(fit["engine"]["name"], engine, "{engine}");
        assert!(fit["totals"]["weights"].as_u64().unwrap() > 10_000_000_000, "{engine}");
        assert!(fit["totals"]["kv_cache"].as_u64().unwrap() > 0, "{engine}");
        for (verb, least) in [("max-context", 8192), ("max-sequences", 1)] {
            let reach = json(&asked(verb, engine, device, &["--context", "8k", "--json"]));
            assert!(reach["limit"]["value"].as_u64().unwrap() >= least, "{engine} {verb}: {reach}");
        }
        let export = json(&asked("export", engine, device, &["--context", "8k", "--json"]));
        assert_eq!(export["command"].as_array().unwrap().is_empty(), engine == "ideal", "{engine}");
        let text = plimsoll(&asked("fit", engine, device, &["--context", "8k"]));
        assert!(text.err.is_empty() && text.out.contains(engine), "{engine}: {}", text.err);
    }
}

#[test]
fn options_of_others() {
    for (engine, option, value, named) in [
        ("sglang", "--ubatch", "128", "ubatch"),
        ("sglang", "--n-cpu-moe", "2", "n_cpu_moe"),
        ("tensorrt-llm", "--data-parallel", "2", "data_parallel"),
        ("mlx", "--memory-utilization", "0.5", "memory_utilization"),
        ("tensorrt-llm", "--cache", "static", "cache"),
        ("transformers", "--block-size", "16", "block_size"),
        ("ollama", "--ubatch", "128", "ubatch"),
        ("ollama", "--tensor-parallel", "2", "tensor_parallel"),
        ("vllm", "--cache", "static", "cache"),
        ("ideal", "--dtype", "float16", "dtype"),
    ] {
        let device = ENGINES.iter().find(|(name, _)| *name == engine).unwrap().1;
        let answer = plimsoll(&asked("fit", engine, device, &["--context", "8k", option, value]));
        assert_eq!(answer.code, 64, "{engine} {option}: {}", answer.out);
        assert!(answer.err.starts_with(&format!("error: {named}: ")), "{engine} {option}: {}", answer.err);
    }
}

#[test]
fn caches_of_transformers_and_mlx_by_their_classes() {
    let cache = |arguments: &[&str]| json(arguments)["totals"]["kv_cache"].as_u64().unwrap();
    // 32 layers x 8 heads x 256 x 2 B x 8192 tokens, as its classes hold it.
    let plain = ["--context", "8k", "--json"];
    assert_eq!(cache(&asked("fit", "transformers", "h200", &plain)), 1_073_741_824);
    let eight = ["--context", "8k", "--kv-type", "fp8", "--json"];
    assert_eq!(cache(&asked("fit", "transformers", "h200", &eight)), 536_870_912);
    // A step of 256 tokens is taken whole.
    let odd = ["--context", "8193", "--json"];
    assert_eq!(cache(&asked("fit", "mlx", "M3 Ultra (80c)", &odd)), 131_072 * 8448);
}

/// What a shared rule refuses is refused in the name of the engine that was asked, and in vLLM's own words by vLLM, which
/// lost bitsandbytes.
#[test]
fn quantizations_that_are_not_followed() {
    for (engine, device, refusal) in [
        ("vllm", "h200", "vLLM 0.33.0 refuses this: Unknown quantization method: bitsandbytes. Must be one of ['awq', "),
        ("sglang", "h200", "SGLang 0.5.23 does not support \"bitsandbytes\" quantization"),
        ("tensorrt-llm", "h200", "TensorRT-LLM 1.3 does not support \"bitsandbytes\" quantization"),
    ] {
        let run = plimsoll(&["fit", "@corpus/configs/orpheus-3b-0.1-ft.config.json", "--engine", engine, "--device", device]);
        assert_eq!(run.code, 64, "{engine}");
        assert!(run.err.contains(refusal), "{engine}: {}", run.err);
    }
}

/// A quantized checkpoint of which only the config is there is a bound, and the bound holds the parameters that vLLM creates
/// for one (`fixtures/truth/vllm`) and the published files of the other (`fixtures/corpus/checkpoints.jsonl`).
#[test]
fn quantized_weights_by_the_config_alone() {
    for (config, stored) in [("qwen3-32b-fp8", 34_326_243_840_u64), ("gpt-oss-20b", 13_761_316_904)] {
        let path = format!("@corpus/configs/{config}.config.json");
        for (engine, device) in [("transformers", "h200"), ("transformers", "cpu"), ("mlx", "M3 Ultra (80c)")] {
            let memory: &[&str] = if device == "h200" { &[] } else { &["--memory", "256GiB"] };
            let asked = [&["fit", &path, "--engine", engine, "--device", device, "--context", "4k", "--json"], memory].concat();
            let answer = json(&asked);
            let places = answer["devices"].as_array().unwrap().iter().chain([&answer["host"]]);
            let terms = places.flat_map(|place| place["terms"].as_array().unwrap());
            let weights = terms.clone().find(|term| term["component"] == "weights").unwrap();
            let bound = |end: &str| weights["certainty"][end].as_u64().unwrap();
            assert!(bound("low") <= stored && stored <= bound("high"), "{config} {engine} {device}: {weights}");
        }
    }
}
