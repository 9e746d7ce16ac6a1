//! The planner's answer for vLLM on the recorded questions: blocks, groups and concurrency in the pool that was given,
//! the refusals, and the laws of sharding.

use crate::support::vllm;
use std::collections::BTreeMap;

use plimsoll_math::engine::vllm::quantization::WeightScheme;
use plimsoll_math::engine::vllm::weights::weights;
use plimsoll_planner::{Basis, Model, Options};
use serde_json::{Value, json};

#[test]
fn fit_tells_blocks_groups_and_concurrency() {
    let configs = vllm::configs();
    let mut models = BTreeMap::new();
    let mut compared = 0;
    // Rows that need no option the planner lacks, and whose weights are followed.
    let rows = vllm::rows();
    let plain = rows.iter().filter(|row| {
        row.get("expected").is_some()
            && row["gpu"] == "H100"
            && row["usage_context"] == "OPENAI_API_SERVER"
            && row["engine_args"].as_object().unwrap().is_empty()
            && row["max_model_len_arg"] != -1
            // Models that keep nothing have no pool to tell of.
            && row["expected"]["groups"] != json!([])
    });
    for row in plain.step_by(5) {
        let key = vllm::config(row, &configs).to_string();
        let model = models.entry(key).or_insert_with(|| Model::new(None, vllm::model(row, &configs), Basis::Config));
        if model.checkpoint.scheme == Some(WeightScheme::Unknown) {
            continue;
        }
        let number = |key: &str| row[key].as_u64();
        for plan in row["expected"]["plans"].as_array().unwrap() {
            let options = Options {
                engine: Some("vllm".to_string()),
                device: Some("H100 SXM".to_string()),
                context: number("max_model_len_arg"),
                tensor_parallel: number("tp"),
                pipeline_parallel: number("pp"),
                context_parallel: number("dcp"),
                expert_parallel: row["enable_expert_parallel"].as_bool(),
                block_size: number("block_size_arg"),
                kv_type: row["kv_cache_dtype_arg"].as_str().map(ToString::to_string),
                kv_memory: plan["available_kv_bytes"].as_u64(),
                skip_limits: Some(true),
                ..Options::default()
            };
            let fit = plimsoll_planner::fit(model, &options).unwrap_or_else(|error| panic!("{}: {error}", row["model"]));
            let cache = serde_json::to_value(&fit.cache).unwrap();
            assert_eq!(cache["blocks"], plan["num_blocks"], "{} tp{} {}", row["model"], row["tp"], row["kv_cache_dtype_arg"]);
            assert_eq!(cache["tokens"], plan["kv_cache_size_tokens"], "{}", row["model"]);
            assert_eq!(cache["block_tokens"], row["expected"]["block_size"], "{}", row["model"]);
            let pages: Vec<&Value> = cache["groups"].as_array().unwrap().iter().map(|group| &group["page_bytes"]).collect();
            let theirs: Vec<&Value> =
                row["expected"]["groups"].as_array().unwrap().iter().map(|group| &group["spec"]["page_size_bytes"]).collect();
            assert_eq!(json!(pages), json!(theirs), "{}", row["model"]);
            if plan["num_blocks"].is_null() {
                assert!(fit.notes.iter().any(|note| note.starts_with("vllm would not start: ")), "{:?}", fit.notes);
            }
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared} plans compared");
}

#[test]
fn ranks_together_hold_at_least_the_model_and_one_rank_holds_exactly_it() {
    let configs = vllm::configs();
    let mut tried = 0;
    for name in configs.keys().filter(|name| !name.contains("hf_quant")) {
        let row = json!({"config": name, "config_overrides": null, "gpu": "H100", "tp": 1, "pp": 1, "dcp": 1,
                         "enable_expert_parallel": false, "usage_context": "OPENAI_API_SERVER", "max_model_len_arg": null,
                         "kv_cache_dtype_arg": "auto", "block_size_arg": null, "engine_args": {}});
        let model = vllm::model(&row, &configs);
        let total = |tensor: u64, pipeline: u64| -> Option<(u64, u64)> {
            let mut knobs = vllm::knobs(&row);
            knobs.parallelism.tensor = tensor;
            knobs.parallelism.pipeline = pipeline;
            let ranks = weights(&model.spec, &model.tensors, &model.checkpoint, &knobs).ok()?;
            let sum: u64 = ranks.iter().map(|rank| rank.bytes() * tensor).sum();
            let most = ranks.iter().map(|rank| rank.bytes()).max()?;
            Some((sum, most))
        };
        let Some((whole, _)) = total(1, 1) else { continue };
        for (tensor, pipeline) in [(2, 1), (4, 1), (8, 1), (1, 2), (2, 2)] {
            let Some((sum, most)) = total(tensor, pipeline) else { continue };
            assert!(sum >= whole, "{name}: {tensor} x {pipeline} ranks hold {sum} B together, the model is {whole} B");
            assert!(most <= whole, "{name}: one of {tensor} x {pipeline} ranks holds {most} B of {whole} B");
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried} shardings");
}

/// Options of `vllm serve` as its own parser lists them.
fn recorded_options() -> Vec<Value> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|folder| folder.join("fixtures/truth/vllm").is_dir()).unwrap();
    let file = std::fs::File::open(root.join("fixtures/truth/vllm/options-0.33.0.json.gz")).unwrap();
    serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap()
}

#[test]
fn exported_arguments_are_options_of_the_engines_parser_with_values_of_their_types() {
    let parser = recorded_options();
    let configs = vllm::configs();
    let name = configs.keys().find(|name| name.contains("DeepSeek-V3") && name.ends_with("_config.json")).unwrap();
    let deep = Model::new(None, vllm::model(&json!({"config": name, "config_overrides": null}), &configs), Basis::Config);
    let name = configs.keys().find(|name| name.contains("Llama-3") && !name.contains("hf_quant")).unwrap();
    let llama = Model::new(None, vllm::model(&json!({"config": name, "config_overrides": null}), &configs), Basis::Config);
    let plain = || Options {
        engine: Some("vllm".to_string()),
        device: Some("H200 SXM".to_string()),
        context: Some(8192),
        tensor_parallel: Some(8),
        skip_limits: Some(true),
        ..Options::default()
    };
    let text = |text: &str| Some(text.to_string());
    let questions = [
        (&llama, plain()),
        (&llama, Options { kv_memory: Some(20 << 30), kv_type: text("fp8"), block_size: Some(32), ..plain() }),
        (&llama, Options { max_loras: Some(4), max_lora_rank: Some(64), pipeline_parallel: Some(2), ..plain() }),
        (&llama, Options { speculative: text("ngram:5"), memory_utilization: Some(850_000), data_parallel: Some(2), ..plain() }),
        (&deep, Options { speculative: text("mtp:2"), expert_parallel: Some(true), context_parallel: Some(4), ..plain() }),
        (&deep, Options { prefix_caching: Some(false), max_batched_tokens: Some(4096), max_sequences: Some(64), ..plain() }),
    ];
    let mut seen = 0;
    for (model, options) in questions {
        let answer = plimsoll_planner::export(model, &options).unwrap_or_else(|error| panic!("{error}"));
        let mut words = answer.command.iter().skip(3).peekable();
        assert_eq!(answer.command[..2], ["vllm", "serve"]);
        while let Some(word) = words.next() {
            let known = |option: &&Value| option["names"].as_array().unwrap().iter().any(|name| name == word.as_str());
            let negated = word.strip_prefix("--no-").map(|rest| format!("--{rest}"));
            let option = parser.iter().find(known).or_else(|| {
                let positive = negated.clone()?;
                parser.iter().find(|option| option["names"].as_array().unwrap().iter().any(|name| name == positive.as_str()))
            });
            let option = option.unwrap_or_else(|| panic!("{word} is no option: {:?}", answer.command));
            seen += 1;
            if option["nargs"] == 0 {
                assert!(words.peek().is_none_or(|next| next.starts_with("--")), "{word} takes no value");
                continue;
            }
            let value = words.next().unwrap_or_else(|| panic!("{word} has no value"));
            if let Some(choices) = option["choices"].as_array() {
                assert!(choices.iter().any(|choice| choice == value.as_str()), "{word} {value}: one of {choices:?}");
            }
            match option["type"].as_str() {
                Some("int") => assert!(value.parse::<i64>().is_ok(), "{word} {value}: a whole number"),
                Some("float") => assert!(value.parse::<f64>().is_ok(), "{word} {value}: a number"),
                _ if value.starts_with('{') => assert!(serde_json::from_str::<Value>(value).is_ok(), "{word} {value}: JSON"),
                _ => {}
            }
        }
    }
    assert!(seen > 40, "{seen} options");
}
