//! Blocks, pages, groups and capacity against every plan that vLLM itself made: 0 blocks off.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeMap;

use plimsoll_math::engine::vllm::layers::{Settled, cache_plan};
use plimsoll_math::engine::vllm::options::MaxLength;
use plimsoll_math::engine::vllm::plan::CachePlan;
use plimsoll_math::error::MathError;
use serde_json::{Value, json};

#[path = "support/vllm.rs"]
mod vllm;

/// The groups of a plan as a row has them.
fn groups(plan: &CachePlan) -> Vec<Value> {
    plan.groups
        .iter()
        .map(|group| {
            let first = group.first().unwrap();
            let page: u64 =
                if group.mixed { group.specs.iter().map(|spec| spec.page().unwrap()).sum() } else { first.page().unwrap() };
            let class = if group.mixed { "UniformTypeKVCacheSpecs" } else { first.kind.class() };
            json!({"n_layers": group.layers.len(), "type": class, "block_size": first.block_tokens, "page_size_bytes": page,
                   "max_blocks_per_req": plan.group_blocks(group, &plan.request).unwrap()})
        })
        .collect()
}

fn expected_groups(row: &Value) -> Vec<Value> {
    row["expected"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            json!({"n_layers": group["n_layers"], "type": group["spec"]["type"], "block_size": group["spec"]["block_size"],
                   "page_size_bytes": group["spec"]["page_size_bytes"], "max_blocks_per_req": group["max_blocks_per_req"]})
        })
        .collect()
}

/// Everything that differs, in words.
fn differences(
    row: &Value,
    plan: &CachePlan,
    settled: &Settled,
    knobs: &plimsoll_math::engine::vllm::options::Knobs,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, ours: Value, theirs: &Value| {
        if ours != *theirs {
            found.push(format!("{what}: ours {ours}, vLLM's {theirs}"));
        }
    };
    let expected = &row["expected"];
    let context = &row["context"];
    check("block_size", json!(settled.block_tokens), &expected["block_size"]);
    check("mamba_page_size_padded", json!(settled.state_page), &expected["mamba_page_size_padded"]);
    check("cache_dtype", json!(settled.cache_dtype.name()), &context["cache_dtype"]);
    check("max_num_batched_tokens", json!(settled.max_batched_tokens), &context["max_num_batched_tokens"]);
    check("max_num_seqs", json!(settled.max_sequences), &context["max_num_seqs"]);
    check("prefix caching", json!(settled.prefix_caching), &context["enable_prefix_caching"]);
    check("in flight", json!(plan.request.in_flight_tokens), &context["max_in_flight_tokens"]);
    check("groups", json!(groups(plan)), &json!(expected_groups(row)));
    check("bytes_per_block", json!(plan.block_bytes), &expected["bytes_per_block_per_pp_rank"]);
    let needed: Vec<u64> = (0..plan.stages).map(|stage| plan.request_bytes(&plan.request, stage).unwrap()).collect();
    if !matches!(knobs.max_length, MaxLength::Fit) {
        check("request bytes", json!(needed), &expected["max_len_request_bytes_per_pp_rank"]);
    }
    for theirs in expected["plans"].as_array().unwrap() {
        let bytes = theirs["available_kv_bytes"].as_u64().unwrap();
        let memory = vec![bytes; usize::try_from(plan.stages).unwrap()];
        match plan.capacity(&memory, knobs, matches!(knobs.max_length, MaxLength::Fit)) {
            Ok(capacity) => {
                check("blocks", json!(capacity.blocks), &theirs["num_blocks"]);
                check("tokens", json!(capacity.tokens()), &theirs["kv_cache_size_tokens"]);
                check("length", json!(capacity.max_tokens), &theirs["effective_max_model_len"]);
                #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "as Python divides")]
                let concurrency = capacity.blocks as f64 / capacity.blocks_per_request as f64;
                // The text of a number may be read one unit in the last place off.
                let off = theirs["max_concurrency"].as_f64().is_none_or(|said| (said - concurrency).abs() > said * 1e-14);
                check("concurrency", json!(off), &json!(false));
                check("replicas", json!(plan.tensor_replicas(knobs.parallelism.tensor)), &theirs["kv_tp_replicas"]);
            }
            Err(MathError::Refused { reason, .. }) => {
                let said = theirs["error"].as_str().unwrap_or("nothing");
                let head = |text: &str| text.split("Try increasing").next().unwrap_or_default().to_string();
                if head(said) != head(&reason) {
                    check("refusal", json!(head(&reason)), &json!(head(said)));
                }
            }
            Err(other) => check("error", json!(other.to_string()), &Value::Null),
        }
    }
    found
}

#[test]
fn every_recorded_plan_is_ours() {
    let configs = vllm::configs();
    let mut models = BTreeMap::new();
    let mut wrong: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut compared = 0;
    for row in vllm::rows().iter().filter(|row| row.get("expected").is_some()) {
        let key = vllm::config(row, &configs).to_string();
        let model = models.entry(key).or_insert_with(|| vllm::model(row, &configs));
        let knobs = vllm::knobs(row);
        compared += 1;
        let differences = match cache_plan(&model.spec, &model.checkpoint, &knobs) {
            Ok((plan, settled)) => differences(row, &plan, &settled, &knobs),
            Err(error) => vec![format!("refused: {error}")],
        };
        if !differences.is_empty() {
            let id = format!(
                "{} {} tp{} pp{} dcp{} {} {}",
                row["model"], row["gpu"], row["tp"], row["pp"], row["dcp"], row["kv_cache_dtype_arg"], row["engine_args"]
            );
            let entry = wrong.entry(row["model"].to_string()).or_insert((0, format!("{id}\n   {}", differences.join("\n   "))));
            entry.0 += 1;
        }
    }
    for (model, (count, first)) in &wrong {
        eprintln!("{count} x {model}: {first}");
    }
    assert!(compared > 1_300, "{compared} rows compared");
    let total: usize = wrong.values().map(|(count, _)| count).sum();
    assert_eq!(total, 0, "{total} of {compared} rows differ");
}

/// The engine's reason without what names a machine, a Python object or a library's page.
fn essence(reason: &str) -> String {
    let reason = reason.split("[type=").next().unwrap_or_default();
    let reason = reason.split(" with AttentionSelectorConfig").next().unwrap_or_default();
    let reason = reason.split(" with head_size=").next().unwrap_or_default();
    let reason = reason.split(" on NVIDIA").next().unwrap_or_default();
    let reason = reason.split(" on this GPU").next().unwrap_or_default();
    let reason = reason.rsplit("Error: ").next().unwrap_or_default();
    let reason = reason.rsplit("Value error, ").next().unwrap_or_default();
    reason.trim().to_string()
}

#[test]
fn what_the_engine_refuses_for_its_cache_or_ranks_is_refused_with_its_reason() {
    let configs = vllm::configs();
    let mut compared = 0;
    let mut wrong = Vec::new();
    for row in vllm::rows().iter().filter(|row| row.get("unsupported").is_some()) {
        if row["tag"].as_str().unwrap().contains("quant") {
            continue;
        }
        compared += 1;
        let model = vllm::model(row, &configs);
        let theirs = essence(row["unsupported"].as_str().unwrap());
        match cache_plan(&model.spec, &model.checkpoint, &vllm::knobs(row)) {
            Err(MathError::Refused { reason, .. }) if essence(&reason) == theirs => {}
            Err(other) => wrong.push(format!("{} tp{}: ours {other}; vLLM's {theirs}", row["model"], row["tp"])),
            Ok(_) => {
                wrong.push(format!("{} tp{} {}: accepted; vLLM's {theirs}", row["model"], row["tp"], row["kv_cache_dtype_arg"]))
            }
        }
    }
    assert!(compared > 40, "{compared} rows compared");
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
}
