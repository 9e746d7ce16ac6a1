//! What `export` writes is read back by a YAML library, has the fields that its reader requires, and carries the planned arguments.

use crate::run::{json, plimsoll};
use serde_json::Value;

const LLAMA: [&str; 8] = ["export", "@models/llama-3.1-8b", "--quant", "Q4_K_M", "--context", "8k", "--device", "4090x2"];
const VLLM: [&str; 8] = ["export", "@models/llama-3.1-8b", "--engine", "vllm", "--context", "8k", "--device", "h200"];

fn text(base: &[&str], rest: &[&str]) -> String {
    let arguments: Vec<&str> = base.iter().chain(rest).copied().collect();
    let ran = plimsoll(&arguments);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
    ran.out
}

fn yaml(base: &[&str], rest: &[&str]) -> Value {
    let text = text(base, rest);
    serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn a_pod_asks_for_what_was_planned() {
    let pod = yaml(&LLAMA, &["--as", "kubernetes"]);
    // core/v1 Pod: apiVersion, kind, metadata.name (RFC 1123), spec.containers with name and image.
    assert_eq!((pod["apiVersion"].as_str(), pod["kind"].as_str()), (Some("v1"), Some("Pod")));
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert!(
        name.len() <= 63 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
        "{name}"
    );
    let server = &pod["spec"]["containers"][0];
    assert_eq!(server["image"], "ghcr.io/ggml-org/llama.cpp:server-cuda");
    assert_eq!(server["resources"]["limits"]["nvidia.com/gpu"], 2);
    let memory =
        |of: &str| server["resources"][of]["memory"].as_str().unwrap().strip_suffix("Mi").unwrap().parse::<u64>().unwrap();
    assert_eq!(memory("requests"), memory("limits"));
    let plan = json(&["fit", "@models/llama-3.1-8b", "--quant", "Q4_K_M", "--context", "8k", "--device", "4090x2", "--json"]);
    let host = plan["host"]["used"].as_u64().unwrap() >> 20;
    assert!(memory("requests") > host, "{} for {host} on the host", memory("requests"));
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    for mount in server["volumeMounts"].as_array().unwrap() {
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
    }
    let arguments = words(&server["args"]);
    let command = json(&[LLAMA.as_slice(), &["--json"]].concat());
    for word in words(&command["command"]).into_iter().skip(3) {
        assert!(arguments.contains(&word), "{word} of {arguments:?}");
    }
    assert!(arguments.windows(2).any(|pair| pair[0] == "-m" && pair[1].starts_with("/models/")), "{arguments:?}");
    let server = &yaml(&VLLM, &["--tensor-parallel", "2", "--as", "kubernetes"])["spec"]["containers"][0];
    assert_eq!(server["resources"]["limits"]["nvidia.com/gpu"], 2);
    // Of a server in Python only devices are planned: a made-up limit of the host's memory would end it.
    assert_eq!(server["resources"]["limits"].as_object().unwrap().len(), 1, "{server}");
    assert!(server["volumeMounts"].as_array().unwrap().iter().any(|mount| mount["mountPath"] == "/dev/shm"), "{server}");
    assert!(words(&server["args"]).windows(2).any(|pair| pair == ["--tensor-parallel-size", "2"]), "{server}");
}

#[test]
fn a_service_reserves_the_devices() {
    let file = yaml(&LLAMA, &["--as", "compose"]);
    let service = &file["services"]["llama-3-1-8b"];
    let wanted = &service["deploy"]["resources"]["reservations"]["devices"][0];
    assert_eq!((wanted["driver"].as_str(), wanted["count"].as_u64()), (Some("nvidia"), Some(2)));
    assert_eq!(wanted["capabilities"][0], "gpu");
    assert_eq!(service["ports"][0], "8080:8080");
    let mut amd = LLAMA;
    amd[7] = "7900 XTX";
    let file = yaml(&amd, &["--as", "compose"]);
    assert_eq!(file["services"]["llama-3-1-8b"]["devices"][0], "/dev/kfd:/dev/kfd");
    assert_eq!(file["services"]["llama-3-1-8b"]["image"], "ghcr.io/ggml-org/llama.cpp:server-rocm");
}

#[test]
fn a_modelfile_has_the_parameters_that_ollama_knows() {
    let text = text(&LLAMA, &["--sequences", "2", "--kv-type", "q8_0", "--flash-attention", "on", "--as", "ollama"]);
    // ollama: api/types.go, the fields of Runner.
    let known = ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"];
    let mut found = Vec::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["#", ..] => assert!(line.contains("OLLAMA_NUM_PARALLEL=2") && line.contains("OLLAMA_KV_CACHE_TYPE=q8_0"), "{line}"),
            ["FROM", file] => assert!(file.ends_with(".gguf"), "{line}"),
            ["PARAMETER", name, value] => {
                assert!(known.contains(name), "{line}");
                found.push(((*name).to_owned(), (*value).to_owned()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        found.contains(&("num_ctx".to_owned(), "8192".to_owned())) && found.contains(&("num_gpu".to_owned(), "33".to_owned())),
        "{found:?}"
    );
}

#[test]
fn sglang_gets_what_vllm_was_planned_with() {
    let text = text(&VLLM, &["--tensor-parallel", "2", "--as", "sglang"]);
    assert!(text.starts_with("python -m sglang.launch_server --model-path ") && text.contains(" --tp-size 2 "), "{text}");
    assert!(text.contains(" --context-length 8192 "), "{text}");
    let document = json(&[VLLM.as_slice(), &["--as", "sglang", "--json"]].concat());
    assert_eq!(document["document"]["form"], "sglang");
}

#[test]
fn what_a_form_cannot_say_is_refused() {
    for (rest, names) in [
        (&["--as", "ollama", "--tensor-split", "3,1"][..], "tensor_split"),
        (&["--as", "ollama", "--no-kv-offload"], "kv_offload"),
        (&["--as", "sglang"], "llama.cpp"),
    ] {
        let arguments: Vec<&str> = LLAMA.iter().chain(rest).copied().collect();
        let ran = plimsoll(&arguments);
        assert_eq!(ran.code, 64, "{rest:?}");
        assert!(ran.err.contains(names), "{}", ran.err);
    }
    let mac = plimsoll(&["export", "@models/llama-3.1-8b", "--quant", "Q4_K_M", "--device", "m3-max-40c", "--as", "kubernetes"]);
    assert!(mac.code == 64 && mac.err.contains("Metal"), "{}", mac.err);
}

/// Every option that is written is one of the engine's own list, in that version.
#[test]
fn every_option_is_one_that_the_engine_knows() {
    let known = |path: &str| -> Vec<String> {
        std::fs::read_to_string(crate::run::fixture(path)).unwrap().lines().map(str::to_owned).collect()
    };
    let check = |list: &[String], arguments: &[&str]| {
        let answer = json(&[arguments, &["--json"]].concat());
        let words = words(&answer["command"]);
        let is_option =
            |word: &&str| word.starts_with('-') && word[1..].starts_with(|next: char| next.is_ascii_alphabetic() || next == '-');
        // What stands before the program is the interpreter's.
        let program = if words.first() == Some(&"python") { 3 } else { 1 };
        let options: Vec<&str> = words.into_iter().skip(program).filter(is_option).collect();
        assert!(options.len() > 3, "{arguments:?}: {options:?}");
        for option in options {
            assert!(list.iter().any(|there| there == option), "{option}: {arguments:?}");
        }
    };
    // llama.cpp b12032: common/arg.cpp.
    let server = known("truth/llama.cpp/options-b12032.txt");
    for rest in [
        &["--kv-type-k", "q8_0", "--kv-type-v", "q4_0", "--flash-attention", "on", "--kv-unified", "--sequences", "3"][..],
        &["--tensor-split", "3,1", "--gpu-layers", "20", "--no-kv-offload", "--no-op-offload", "--no-mmap", "--no-repack"],
        &["--override-tensor", "blk\\.1\\.ffn_up=CPU", "--split-mode", "none", "--main-gpu", "1"],
        &["--cache-ram", "1GiB", "--context-checkpoints", "4", "--threads", "8", "--swa-full", "--flash-attention", "off"],
        &["--draft-model", "@models/llama-3.1-8b", "--draft-quant", "Q8_0", "--draft-gpu-layers", "2"],
    ] {
        check(&server, &[LLAMA.as_slice(), rest].concat());
    }
    let experts = ["export", "@models/qwen3-30b-a3b", "--quant", "Q4_K_M", "--context", "8k", "--device", "4090"];
    check(&server, &[experts.as_slice(), &["--cpu-moe"]].concat());
    check(&server, &[experts.as_slice(), &["--n-cpu-moe", "7"]].concat());
    // SGLang 0.5.23: the fields of ServerArgs and their aliases.
    let sglang = known("truth/sglang/options-0.5.23.txt");
    let base = ["export", "@models/qwen3-30b-a3b", "--engine", "sglang", "--context", "8k", "--device", "h200"];
    check(&sglang, &base);
    check(&sglang, &[base.as_slice(), &["--tensor-parallel", "2", "--expert-parallel", "--kv-type", "fp8_e4m3"]].concat());
    check(&sglang, &[base.as_slice(), &["--kv-memory", "20GiB", "--max-sequences", "64", "--no-prefix-caching"]].concat());
}
