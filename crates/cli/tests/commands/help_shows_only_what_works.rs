//! Every option that `--help` names is tried and changes what it says it changes; nothing else is listed.

use std::collections::BTreeSet;

use crate::run::{json, plimsoll};
use serde_json::{Value, json as value};

/// An option, how it is tried on Llama 3.1 8B, and the JSON pointer and value that show its effect.
fn trials() -> Vec<(&'static str, Vec<&'static str>, &'static str, Value)> {
    let llama = |rest: &[&'static str]| {
        let mut all = vec!["fit", "@models/llama-3.1-8b"];
        all.extend(rest);
        if !rest.contains(&"--device") && !rest.contains(&"--memory") {
            all.extend(["--device", "4090"]);
        }
        if !rest.contains(&"--quant") {
            all.extend(["--quant", "Q4_K_M"]);
        }
        if !rest.contains(&"--context") && !rest.contains(&"--total-context") {
            all.extend(["--context", "8k"]);
        }
        all
    };
    let drafting = |rest: &[&'static str]| {
        let mut all = llama(&["--draft-model", "@models/llama-3.1-8b"]);
        all.extend(rest);
        all
    };
    let seeing = |rest: &[&'static str]| {
        let mut all = llama(&["--mmproj", "@projectors/mmproj-llava-4096.gguf"]);
        all.extend(rest);
        all
    };
    // On vLLM the model's own quantization counts, and ranks are devices.
    let vllm = |rest: &[&'static str]| {
        let mut all = vec!["fit", "@models/llama-3.1-8b", "--engine", "vllm", "--device", "h200", "--context", "8k"];
        all.extend(rest);
        all
    };
    let transformers = |rest: &[&'static str]| {
        let mut all = vec!["fit", "@models/llama-3.1-8b", "--engine", "transformers", "--device", "h200", "--context", "8k"];
        all.extend(rest);
        all
    };
    vec![
        ("--tensor-parallel", vllm(&["--tensor-parallel", "2"]), "/totals/weights", value!(16_061_054_976_u64)),
        ("--tp", vllm(&["--tp", "2"]), "/totals/weights", value!(16_061_054_976_u64)),
        ("--pp", vllm(&["--pp", "2"]), "/deployment/vllm/pipeline_parallel", value!(2)),
        ("--dp", vllm(&["--dp", "2"]), "/devices/1/name", value!("NVIDIA H200 SXM")),
        (
            "--ep",
            vec!["fit", "@models/qwen3-30b-a3b", "--engine", "vllm", "--device", "h200", "--context", "8k", "--ep"],
            "/deployment/vllm/expert_parallel",
            value!(true),
        ),
        ("--pipeline-parallel", vllm(&["--pipeline-parallel", "2"]), "/deployment/vllm/pipeline_parallel", value!(2)),
        ("--data-parallel", vllm(&["--data-parallel", "2"]), "/devices/1/name", value!("NVIDIA H200 SXM")),
        (
            "--expert-parallel",
            vec!["fit", "@models/qwen3-30b-a3b", "--engine", "vllm", "--device", "h200", "--context", "8k", "--expert-parallel"],
            "/deployment/vllm/expert_parallel",
            value!(true),
        ),
        (
            "--context-parallel",
            vllm(&["--tensor-parallel", "16", "--context-parallel", "2"]),
            "/deployment/vllm/context_parallel",
            value!(2),
        ),
        ("--memory-utilization", vllm(&["--memory-utilization", "0.5"]), "/deployment/vllm/memory_utilization", value!(500_000)),
        ("--kv-memory", vllm(&["--kv-memory", "20GiB"]), "/cache/blocks", value!(10_240)),
        ("--max-batched-tokens", vllm(&["--max-batched-tokens", "4k"]), "/deployment/vllm/max_batched_tokens", value!(4096)),
        ("--max-sequences", vllm(&["--max-sequences", "64"]), "/deployment/vllm/max_sequences", value!(64)),
        ("--block-size", vllm(&["--block-size", "64"]), "/cache/block_tokens", value!(64)),
        ("--speculative", vllm(&["--speculative", "ngram:5"]), "/deployment/vllm/speculative", value!("ngram:5")),
        ("--max-loras", vllm(&["--max-loras", "4"]), "/deployment/vllm/max_loras", value!(4)),
        ("--max-lora-rank", vllm(&["--max-lora-rank", "64"]), "/deployment/vllm/max_lora_rank", value!(64)),
        ("--no-prefix-caching", vllm(&["--no-prefix-caching"]), "/deployment/vllm/prefix_caching", value!(false)),
        ("--engine", llama(&["--engine", "llama.cpp@0c1e57098"]), "/engine/version", value!("0c1e57098")),
        ("--context", llama(&["--context", "16k"]), "/deployment/context", value!(16384)),
        ("--sequences", llama(&["--sequences", "3"]), "/totals/kv_cache", value!(3_221_225_472_u64)),
        (
            "--total-context",
            llama(&["--total-context", "16k", "--sequences", "2"]),
            "/deployment/context_per_sequence",
            value!(8192),
        ),
        ("--batch", llama(&["--batch", "256"]), "/deployment/ubatch", value!(256)),
        ("--ubatch", llama(&["--ubatch", "128"]), "/deployment/ubatch", value!(128)),
        ("--quant", llama(&["--quant", "Q8_0"]), "/deployment/quant", value!("Q8_0")),
        ("--kv-type", llama(&["--kv-type", "q8_0"]), "/totals/kv_cache", value!(573_046_784_u64)),
        ("--kv-type-k", llama(&["--kv-type-k", "q8_0"]), "/deployment/kv_type_k", value!("q8_0")),
        ("--kv-type-v", llama(&["--kv-type-v", "q8_0"]), "/deployment/kv_type_v", value!("q8_0")),
        ("--dtype", transformers(&["--dtype", "float32"]), "/totals/weights", value!(32_121_044_992_u64)),
        ("--cache", transformers(&["--cache", "static"]), "/deployment/settings/cache_implementation", value!("static")),
        ("--flash-attention", llama(&["--flash-attention", "off"]), "/deployment/flash_attention", value!("off")),
        ("--kv-unified", llama(&["--kv-unified", "--sequences", "2"]), "/deployment/context_per_sequence", value!(16384)),
        (
            "--swa-full",
            vec!["fit", "@models/gemma-3-27b", "--device", "4090", "--quant", "Q4_K_M", "--context", "8k", "--swa-full"],
            "/totals/kv_cache",
            value!(4_160_749_568_u64),
        ),
        ("--no-repack", llama(&["--no-repack", "--device", "cpu"]), "/totals/weights", value!(4_912_898_304_u64)),
        ("--no-mmap", llama(&["--no-mmap"]), "/deployment/mmap", value!(false)),
        ("--device", llama(&["--device", "h200"]), "/devices/0/name", value!("NVIDIA H200 SXM")),
        ("--displays", llama(&["--displays"]), "/devices/0/usable", value!(24_175_968_256_u64)),
        ("--gpu-layers", llama(&["--gpu-layers", "16"]), "/verdict/kind", value!("fits_with_offload")),
        (
            "--split-mode",
            llama(&["--device", "4090x2", "--split-mode", "none"]),
            "/devices/1/terms/0/component",
            value!("compute"),
        ),
        (
            "--tensor-split",
            llama(&["--device", "4090x2", "--tensor-split", "3,1"]),
            "/deployment/tensor_split",
            value!([3.0, 1.0]),
        ),
        (
            "--main-gpu",
            llama(&["--device", "4090x2", "--split-mode", "none", "--main-gpu", "1"]),
            "/devices/1/terms/0/component",
            value!("weights"),
        ),
        (
            "--cpu-moe",
            vec!["fit", "@models/qwen3-30b-a3b", "--device", "4090", "--quant", "Q4_K_M", "--context", "8k", "--cpu-moe"],
            "/verdict/kind",
            value!("fits_with_offload"),
        ),
        (
            "--n-cpu-moe",
            vec!["fit", "@models/qwen3-30b-a3b", "--device", "4090", "--quant", "Q4_K_M", "--context", "8k", "--n-cpu-moe", "12"],
            "/deployment/n_cpu_moe",
            value!(12),
        ),
        ("--override-tensor", llama(&["--override-tensor", "ffn_.*=CPU"]), "/deployment/override_tensor", value!(["ffn_.*=CPU"])),
        ("--draft-model", drafting(&[]), "/devices/0/terms/4/component", value!("draft")),
        ("--draft-tokens", drafting(&["--draft-tokens", "8"]), "/command/21", value!("8")),
        ("--draft-gpu-layers", drafting(&["--draft-gpu-layers", "4"]), "/command/23", value!("4")),
        ("--draft-kv-type", drafting(&["--draft-kv-type", "q8_0"]), "/command/25", value!("q8_0")),
        ("--draft-quant", drafting(&["--draft-quant", "Q8_0"]), "/command/17", value!("llama-3.1-8b-Q8_0.gguf")),
        ("--mmproj", seeing(&[]), "/deployment/mmproj/kinds/0", value!("mlp")),
        ("--no-mmproj-offload", seeing(&["--no-mmproj-offload"]), "/deployment/mmproj/offload", value!(false)),
        ("--image-min-tokens", seeing(&["--image-min-tokens", "8"]), "/command/19", value!("8")),
        ("--image-max-tokens", seeing(&["--image-max-tokens", "64"]), "/deployment/mmproj/image_max_tokens", value!(64)),
        // As the engine plans it for eight threads: half a mebibyte for each, a row in the format of products, a line each.
        (
            "--threads",
            llama(&["--device", "cpu", "--memory", "64GiB", "--threads", "8"]),
            "/devices/0/terms/5/label",
            value!("work buffer of the processor"),
        ),
        ("--no-kv-offload", llama(&["--no-kv-offload"]), "/host/terms/1/component", value!("kv_cache")),
        ("--no-op-offload", llama(&["--no-op-offload"]), "/deployment/op_offload", value!(false)),
        (
            "--like-engine",
            // As recorded from the engine, with 11.5 GiB free.
            {
                let mut all = vec!["fit", "@models/llama-3.1-8b", "--memory", "12348030976", "--quant", "Q4_K_M"];
                all.extend(["--engine", "llama.cpp@0c1e57098", "--like-engine"]);
                all
            },
            "/like_engine/total_context",
            value!(49408),
        ),
        (
            "--fit-margin",
            vec!["fit", "@models/llama-3.1-8b", "--device", "4090", "--quant", "Q4_K_M", "--like-engine", "--fit-margin", "2GiB"],
            "/like_engine/margin",
            value!(2_147_483_648_u64),
        ),
        (
            "--fit-context",
            vec![
                "fit",
                "@models/llama-3.1-8b",
                "--memory",
                "5GiB",
                "--quant",
                "Q4_K_M",
                "--like-engine",
                "--fit-context",
                "1024",
            ],
            "/like_engine/total_context",
            value!(1024),
        ),
        (
            "--mtp",
            vec!["fit", "@models/deepseek-v3", "--device", "h200x8", "--quant", "Q4_K_M", "--context", "4k", "--mtp"],
            "/deployment/prediction_layers",
            value!(true),
        ),
        (
            "--no-mtp",
            {
                let mut all = vec!["fit", "@truth/llama.cpp/configs/Qwen3.5-27B.config.json", "--device", "4090"];
                all.extend(["--quant", "Q4_K_M", "--context", "4k", "--no-mtp"]);
                all
            },
            "/deployment/prediction_layers",
            value!(false),
        ),
        (
            "--draft-mtp",
            {
                let mut all = vec!["fit", "@truth/llama.cpp/configs/Qwen3.5-27B.config.json", "--device", "4090"];
                all.extend(["--quant", "Q4_K_M", "--context", "4k", "--draft-mtp", "2"]);
                all
            },
            "/host/terms/1/component",
            value!("draft"),
        ),
        ("--embeddings", llama(&["--embeddings"]), "/deployment/embeddings", value!(true)),
        ("--cache-ram", llama(&["--cache-ram", "1GiB"]), "/host/limits/0/bytes", value!(1_073_741_824_u64)),
        (
            "--context-checkpoints",
            {
                let mut all = vec!["fit", "@models/gemma-3-27b", "--device", "4090", "--quant", "Q4_K_M", "--context", "8k"];
                all.extend(["--cache-ram", "0", "--context-checkpoints", "4"]);
                all
            },
            "/host/limits/0/label",
            value!("context checkpoints"),
        ),
        ("--memory", llama(&["--memory", "24GiB"]), "/devices/0/usable", value!(25_769_803_776_u64)),
        (
            "--devices-file",
            llama(&["--device", "4090 48gb", "--devices-file", "@devices/described.toml"]),
            "/devices/0/usable",
            value!(50_895_362_457_u64),
        ),
        ("--backend", llama(&["--backend", "vulkan"]), "/deployment/backend", value!("vulkan")),
        ("--bandwidth", llama(&["--bandwidth", "1200"]), "/devices/0/name", value!("NVIDIA GeForce RTX 4090, as described")),
        (
            "--compute",
            {
                let mut all = vec!["fit", "@models/llama-3.1-8b", "--memory", "24GiB", "--quant", "Q4_K_M", "--context", "8k"];
                all.extend(["--bandwidth", "1e-3", "--compute", "100"]);
                all
            },
            // A byte cannot be read faster than the bandwidth has it: 4.6 GB of weights at 1 MB/s.
            "/throughput/decode_tokens_per_s/expected",
            value!(0.0),
        ),
        ("--assume-generic", llama(&["--assume-generic"]), "/model/architecture", value!("LlamaForCausalLM")),
        ("--json", llama(&[]), "/schema", value!("plimsoll.fit/1")),
    ]
}

/// The long options of a command's help.
fn options(verb: &str) -> BTreeSet<String> {
    let help = plimsoll(&[verb, "--help"]);
    help.out
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches([',', '.', ':', ']', ')']).to_owned())
        .filter(|word| word != "--help")
        .collect()
}

#[track_caller]
fn check(option: &str, arguments: &[&str], pointer: &str, expect: &Value) {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    let answer = json(&arguments);
    assert_eq!(answer.pointer(pointer), Some(expect), "{option}: {arguments:?}");
}

#[test]
fn every_option_of_fit() {
    let trials = trials();
    for (option, arguments, pointer, expect) in &trials {
        check(option, arguments, pointer, expect);
    }
    let tried: BTreeSet<String> = trials.iter().map(|(option, ..)| (*option).to_owned()).collect();
    assert_eq!(options("fit"), tried);
}

#[test]
fn the_other_questions_take_the_same_options() {
    for verb in ["explain", "max-context", "max-sequences"] {
        assert_eq!(options(verb), options("fit"), "{verb}");
    }
    let beside_those = |verb: &str| -> BTreeSet<String> { options(verb).difference(&options("fit")).cloned().collect() };
    let named = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!(beside_those("which-quant"), named(&["--contexts", "--quants", "--host-memory", "--ram"]));
    assert_eq!(
        beside_those("which-device"),
        named(&["--min-decode", "--min-prefill", "--most", "--max-price", "--price", "--prices", "--show"])
    );
    assert_eq!(beside_those("offload"), named(&["--host-memory", "--ram", "--margin"]));
    assert_eq!(
        beside_those("sweep"),
        named(&["--contexts", "--kv-types", "--quants", "--devices", "--engines", "--format", "--output", "--plot", "--chart"])
    );
    assert_eq!(beside_those("compare"), BTreeSet::from(["--with".to_owned()]));
    assert_eq!(beside_those("export"), BTreeSet::from(["--as".to_owned()]));
    assert_eq!(options("fleet"), BTreeSet::from(["--devices-file", "--json", "--solver-seconds"].map(str::to_owned)));
    let of_load =
        ["--rate", "--prompt", "--output", "--trace", "--requests", "--seed", "--ttft", "--tpot", "--on", "--max-replicas"];
    assert_eq!(beside_those("capacity"), BTreeSet::from(of_load.map(str::to_owned)));
    let of_devices = ["--csv", "--devices-file", "--json", "--local"].map(str::to_owned);
    assert_eq!(options("devices"), BTreeSet::from(of_devices));
    assert_eq!(options("inspect"), BTreeSet::from(["--assume-generic".to_owned(), "--json".to_owned()]));
}

#[test]
fn completions_and_the_manual_page_know_every_command() {
    let verbs = [
        "fit",
        "explain",
        "max-context",
        "max-sequences",
        "compare",
        "which-quant",
        "which-device",
        "offload",
        "sweep",
        "inspect",
        "devices",
        "fleet",
        "capacity",
        "completions",
        "man",
    ];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = plimsoll(&["completions", shell]);
        assert_eq!((script.code, script.err.as_str()), (0, ""), "{shell}");
        for verb in verbs {
            assert!(script.out.contains(verb), "{shell}: {verb}");
        }
    }
    let page = plimsoll(&["man"]);
    assert_eq!((page.code, page.err.as_str()), (0, ""));
    assert!(page.out.contains(".TH plimsoll 1"), "{}", page.out);
    for verb in verbs {
        assert!(page.out.contains(&verb.replace('-', "\\-")), "man: {verb}");
    }
    assert!(page.out.contains("total\\-context"), "options of the commands are in the page");
}
