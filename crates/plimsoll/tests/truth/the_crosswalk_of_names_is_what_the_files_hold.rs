//! `docs/reference/names.md` lists the spellings that configs are read by, and the GGUF key of the same size; in real
//! models that are at hand in both forms the two hold the same number.
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_ingest::gguf::{Header, Limits};
use plimsoll_ingest::hf::{self, recipe};
use serde_json::Value;

/// Our word, what it counts, the config's spellings, the GGUF key after the architecture's name.
const ROWS: &[(&str, &str, &[&str], &str)] = &[
    ("`d_model`", "elements of the hidden state", recipe::D_MODEL, "embedding_length"),
    ("`n_layers`", "layers", recipe::N_LAYERS, "block_count"),
    ("`n_heads`", "query heads", recipe::N_HEADS, "attention.head_count"),
    ("`n_kv_heads`", "key-value heads", recipe::N_KV_HEADS, "attention.head_count_kv"),
    ("`k_head_dim`, `v_head_dim`", "elements of a head", recipe::HEAD_DIM, "attention.key_length"),
    ("`d_ff`", "elements of the feed-forward", recipe::D_FF, "feed_forward_length"),
    ("`n_vocab`", "rows of the vocabulary", recipe::N_VOCAB, "vocab_size"),
    ("`max_context`", "tokens the model was trained for", recipe::MAX_CONTEXT, "context_length"),
    ("`n_experts`", "routed experts", recipe::N_EXPERTS, "expert_count"),
    ("`n_experts_per_token`", "routed experts a token passes", recipe::TOP_K, "expert_used_count"),
    ("`d_ff_expert`", "elements of a routed expert", &["moe_intermediate_size"], "expert_feed_forward_length"),
    ("`window`", "tokens of a sliding window", &["sliding_window"], "attention.sliding_window"),
    ("`q_lora_rank`", "rank of compressed queries", &["q_lora_rank"], "attention.q_lora_rank"),
    ("`kv_lora_rank`", "rank of the cached latent", &["kv_lora_rank"], "attention.kv_lora_rank"),
    ("`qk_rope_head_dim`", "rotated elements beside the latent", &["qk_rope_head_dim"], "rope.dimension_count"),
];

/// Models whose files hold another number than their config, our word, and why.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("DeepSeek-V2-Lite", "`n_kv_heads`", "one latent serves all heads"),
    ("DeepSeek-V3.2", "`n_kv_heads`", "one latent serves all heads"),
    ("DeepSeek-V3_R1", "`n_kv_heads`", "one latent serves all heads"),
    ("GLM-4.5", "`n_layers`", "prediction layers are blocks of the file"),
    ("Qwen3.5-27B+MTP", "`n_layers`", "prediction layers are blocks of the file"),
    ("Qwen3.5-35B-A3B", "`n_layers`", "prediction layers are blocks of the file"),
    ("Kimi-Linear-48B-A3B", "`k_head_dim`, `v_head_dim`", "the file says what is cached: latent and rotated part"),
    ("gemma-4-26B-A4B", "`k_head_dim`, `v_head_dim`", "the file says the size of full layers, with a key of its own for windows"),
    ("Llama-4-Scout-17B-16E", "`d_ff`", "the file says the dense width, `intermediate_size_mlp`"),
    ("mamba-2.8b", "`d_ff`", "there is no feed-forward"),
    ("Mamba-Codestral-7B", "`n_heads`", "there is no attention"),
    ("gemma-3-27b", "`n_vocab`", "rows of placeholders are cut off"),
    ("gemma-3n-E4B", "`n_vocab`", "rows of placeholders are cut off"),
    ("Nemotron-H-56B", "`max_context`", "the converter writes a limit of its own"),
    ("granite-4.0-h-small-32B-A9B", "`max_context`", "the converter writes a limit of its own"),
    ("command-r-35b-v01", "`max_context`", "the converter prefers `model_max_length`"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page() -> String {
    let mut out = String::from(
        "# Names\n\nOne word per idea here; the words of others are read where their files are read. A config's first spelling \
         that is there counts; families with spellings of their own add them in their row (`crates/config-ingest/src/hf/families`). \
         The GGUF key follows the architecture's name and a dot.\n\n\
         | here | what | Hugging Face `config.json` | GGUF |\n|---|---|---|---|\n",
    );
    for (ours, what, theirs, gguf) in ROWS {
        let spellings: Vec<String> = theirs.iter().map(|key| format!("`{key}`")).collect();
        let _ = writeln!(out, "| {ours} | {what} | {} | `{gguf}` |", spellings.join(", "));
    }
    out.push_str("\n## Where a file holds another number\n\n| model | here | why |\n|---|---|---|\n");
    for (model, ours, why) in OTHERWISE {
        let _ = writeln!(out, "| {model} | {ours} | {why} |");
    }
    out
}

#[test]
fn the_page_lists_the_spellings_that_are_read() {
    let path = root().join("docs/reference/names.md");
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page(), "{} is out of date", path.display());
}

/// The size under the first spelling that is there, in the document or its language model.
fn said(config: &Value, keys: &[&str]) -> Option<u64> {
    let objects = [config.get("text_config"), Some(config)];
    objects.into_iter().flatten().find_map(|object| keys.iter().find_map(|key| object.get(key)?.as_u64()))
}

#[test]
fn both_forms_of_a_model_hold_the_same_sizes() {
    let truth = root().join("fixtures/truth/llama.cpp");
    let mut compared = [0_u32; ROWS.len()];
    let mut odd = Vec::new();
    for entry in std::fs::read_dir(truth.join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".config.json").to_owned();
        let Ok(file) = std::fs::File::open(truth.join(format!("gguf/{name}.BF16.gguf.header.gz"))) else { continue };
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        let header = Header::read(&bytes.as_slice(), &Limits::default()).unwrap();
        let arch = header.get("general.architecture").and_then(|value| value.as_text()).unwrap().to_owned();
        let config: Value = hf::parse(&std::fs::read(&path).unwrap()).unwrap();
        for (index, (ours, _, keys, gguf)) in ROWS.iter().enumerate() {
            let stored = header.get(&format!("{arch}.{gguf}")).and_then(|value| value.as_u64());
            if let (Some(stored), Some(said)) = (stored, said(&config, keys)) {
                compared[index] += 1;
                let known = OTHERWISE.iter().any(|(model, field, _)| *model == name && field == ours);
                if (stored != said) != known {
                    odd.push(format!("{name} {ours}: {said} in the config, {stored} in the file"));
                }
            }
        }
    }
    assert!(compared.iter().all(|count| *count > 0), "{compared:?}");
    assert!(odd.is_empty(), "{odd:#?}");
}
