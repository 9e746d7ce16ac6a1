//! vLLM's recorded plans, and the same questions for our policy.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_ingest::{Ingested, hf};
use plimsoll_math::deployment::Parallelism;
use plimsoll_math::engine::vllm::drafter::Drafter;
use plimsoll_math::engine::vllm::options::{CacheDtype, DraftMethod, Gpu, Knobs, MaxLength, Speculation, Usage};
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|folder| folder.join("fixtures")).find(|folder| folder.join("truth/vllm").is_dir()).unwrap()
}

fn lines(name: &str) -> Vec<Value> {
    let path = fixtures().join("truth/vllm").join(name);
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every recorded row: settings that were chosen, and settings drawn at random.
pub(crate) fn rows() -> Vec<Value> {
    ["vllm-0.33.0.jsonl.gz", "random-0.33.0.jsonl.gz", "drafts-0.33.0.jsonl.gz", "replicas-0.33.0.jsonl.gz"]
        .into_iter()
        .flat_map(lines)
        .collect()
}

/// The configs by file name: those of the rows, and those of the corpus.
pub(crate) fn configs() -> BTreeMap<String, Value> {
    let folder = std::fs::read_dir(fixtures().join("corpus/configs")).unwrap();
    let corpus = folder.map(|entry| {
        let entry = entry.unwrap();
        // Infinite numbers, which JSON lacks, as the other configs have them.
        let text = std::fs::read_to_string(entry.path()).unwrap().replace("Infinity", "1e308");
        let config = serde_json::from_str(&text).unwrap();
        (entry.file_name().into_string().unwrap(), config)
    });
    let own = lines("configs.jsonl.gz").into_iter().map(|row| (row["file"].as_str().unwrap().to_string(), row["config"].clone()));
    corpus.chain(own).collect()
}

/// The config of a row as the engine sees it: with what the row puts over it, and with ModelOpt's file beside it.
pub(crate) fn config(row: &Value, configs: &BTreeMap<String, Value>) -> Value {
    if let Some(own) = row.get("target_config") {
        return own.clone();
    }
    let name = row["config"].as_str().unwrap();
    let mut config = configs[name].clone();
    let side = name.replace("_config.json", "_hf_quant_config.json");
    let root = config.as_object_mut().unwrap();
    if side != name
        && let Some(quantization) = configs.get(&side)
        && !root.contains_key("quantization_config")
    {
        root.insert("quantization_config".to_string(), quantization.clone());
    }
    if let Some(over) = row["config_overrides"].as_object() {
        root.extend(over.clone());
    }
    config
}

/// The model of a row.
pub(crate) fn model(row: &Value, configs: &BTreeMap<String, Value>) -> Ingested {
    let text = config(row, configs).to_string();
    hf::ingest(text.as_bytes(), &hf::Options::default()).unwrap_or_else(|error| panic!("{}: {error}", row["config"]))
}

/// The GPUs of the recorded rows, with the memory their driver reports.
pub(crate) fn gpu(name: &str) -> Gpu {
    const GIB: u64 = 1 << 30;
    let (capability, memory) = match name {
        "A100-40G" => (80, 40 * GIB),
        "A100-80G" => (80, 80 * GIB),
        "H100" | "H20" => (90, 80 * GIB),
        "H200" => (90, 141 * GIB),
        "B200" => (100, 180 * GIB),
        "B300" => (103, 270 * GIB),
        "L4" => (89, 23 * GIB),
        "L40S" => (89, 45 * GIB),
        "RTX3090" => (86, 24 * GIB),
        "RTX4090" => (89, 24 * GIB),
        "RTX5090" => (120, 32 * GIB),
        "T4" => (75, 15 * GIB),
        other => panic!("no GPU {other}"),
    };
    Gpu { capability, memory, a100: name.starts_with("A100") }
}

/// The options of a row.
pub(crate) fn knobs(row: &Value) -> Knobs {
    let number = |value: &Value| value.as_u64();
    let mut knobs = Knobs::new(gpu(row["gpu"].as_str().unwrap()));
    knobs.parallelism = Parallelism {
        tensor: row["tp"].as_u64().unwrap(),
        pipeline: row["pp"].as_u64().unwrap(),
        data: 1,
        expert: row["enable_expert_parallel"] == true,
        decode_context: row["dcp"].as_u64().unwrap(),
    };
    knobs.usage = if row["usage_context"] == "LLM_CLASS" { Usage::Library } else { Usage::Server };
    knobs.max_length = match row["max_model_len_arg"].as_i64() {
        Some(-1) => MaxLength::Fit,
        Some(tokens) => MaxLength::Tokens(u64::try_from(tokens).unwrap()),
        None => MaxLength::Model,
    };
    knobs.cache_dtype = CacheDtype::parse(row["kv_cache_dtype_arg"].as_str().unwrap()).unwrap();
    knobs.block_tokens = number(&row["block_size_arg"]);
    let mut unknown = Vec::new();
    for (key, value) in row["engine_args"].as_object().unwrap() {
        match key.as_str() {
            "enable_prefix_caching" => knobs.prefix_caching = value.as_bool(),
            "async_scheduling" => knobs.async_scheduling = value.as_bool().unwrap(),
            "disable_hybrid_kv_cache_manager" => knobs.hybrid_manager = value != true,
            "data_parallel_size" => knobs.parallelism.data = value.as_u64().unwrap(),
            "max_num_batched_tokens" => knobs.max_batched_tokens = number(value),
            "max_num_seqs" => knobs.max_sequences = number(value),
            "num_gpu_blocks_override" => knobs.blocks_override = number(value),
            "mamba_cache_dtype" => knobs.state_dtype = Some(state_type(value)),
            "mamba_ssm_cache_dtype" => knobs.ssm_dtype = Some(state_type(value)),
            "kv_cache_dtype_skip_layers" => knobs.skip_sliding_window = true,
            "quantization" => knobs.online_quantization = value.as_str().map(ToString::to_string),
            "speculative_config" => {
                let named = |method: &&DraftMethod| value["method"] == method.name();
                let method = DraftMethod::ALL.iter().find(named).copied().unwrap_or_else(|| panic!("no method {value}"));
                knobs.drafter = row.get("draft_config").map(|config| {
                    let draft = hf::ingest(config.to_string().as_bytes(), &hf::Options::default()).unwrap();
                    Box::new(Drafter { spec: draft.spec, tensors: draft.tensors, checkpoint: draft.checkpoint })
                });
                knobs.speculation = Some(Speculation { method, tokens: value["num_speculative_tokens"].as_u64().unwrap() });
            }
            other => unknown.push(other.to_string()),
        }
    }
    assert!(unknown.is_empty(), "options that no test knows: {unknown:?}");
    knobs
}

fn state_type(value: &Value) -> StorageFormat {
    match value.as_str().unwrap() {
        "float32" => StorageFormat::F32,
        "bfloat16" => StorageFormat::Bf16,
        "float16" => StorageFormat::F16,
        other => panic!("no state type {other}"),
    }
}
