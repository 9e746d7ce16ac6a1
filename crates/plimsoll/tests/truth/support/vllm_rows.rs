//! A recorded row of vLLM beside our answer: what it plans, what its ranks load, what it refuses and why.

use plimsoll_ingest::Ingested;
use plimsoll_math::engine::vllm::layers::{Settled, cache_plan};
use plimsoll_math::engine::vllm::options::{Knobs, MaxLength};
use plimsoll_math::engine::vllm::plan::CachePlan;
use plimsoll_math::engine::vllm::weights::{RankWeights, draft_weights, weights};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::Mixer;
use serde_json::{Value, json};

/// How a row came out.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Whether the engine refuses the row.
    pub(crate) refused: bool,
    /// What differs in the plan or in the refusal, in words.
    pub(crate) plan: Vec<String>,
    /// What differs in the weights, in words.
    pub(crate) weights: Option<String>,
}

/// Both sides of a row.
pub(crate) fn judge(row: &Value, model: &Ingested, knobs: &Knobs) -> Judged {
    let planned = cache_plan(&model.spec, &model.checkpoint, knobs);
    let weighed = weights(&model.spec, &model.tensors, &model.checkpoint, knobs);
    if let Some(theirs) = row["unsupported"].as_str() {
        let refusals = [planned.err(), weighed.err()];
        return Judged { refused: true, plan: refusal(theirs, &refusals), ..Judged::default() };
    }
    let plan = match planned {
        Ok((plan, settled)) => differences(row, &plan, &settled, knobs),
        Err(error) => vec![format!("refused: {error}")],
    };
    let drafted = draft_differs(row, model, knobs);
    let differ: Vec<String> = weights_differ(row, weighed).into_iter().chain(drafted).collect();
    Judged { refused: false, plan, weights: (!differ.is_empty()).then(|| differ.join("; ")) }
}

/// A line that says which row it is.
pub(crate) fn name(row: &Value) -> String {
    let mut name = format!("{} {} {}", text(row, "model"), text(row, "tag"), text(row, "gpu"));
    for key in ["tp", "pp", "dcp", "kv_cache_dtype_arg", "max_model_len_arg", "block_size_arg"] {
        name.push_str(&format!(" {key}={}", row[key]));
    }
    if row["enable_expert_parallel"] == true {
        name.push_str(" ep");
    }
    format!("{name} {}", row["engine_args"])
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// What is wrong with our refusal of what the engine refuses.
fn refusal(theirs: &str, ours: &[Option<MathError>]) -> Vec<String> {
    let reasons: Vec<&str> = ours
        .iter()
        .flatten()
        .filter_map(|error| match error {
            MathError::Refused { reason, .. } => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    let wanted = essence(theirs);
    // An assertion without words has no reason that could be told.
    let said = !wanted.is_empty() && !theirs.starts_with("AssertionError");
    if reasons.iter().any(|reason| !said || essence(reason) == wanted) {
        return vec![];
    }
    let others: Vec<String> = ours.iter().flatten().map(ToString::to_string).collect();
    let ours = if others.is_empty() { "accepted".to_string() } else { others.join("; ") };
    vec![format!("ours {ours}; vLLM's {wanted}")]
}

/// A reason without what names a machine, a Python object, a layer or a library's page.
fn essence(reason: &str) -> String {
    let reason = reason.split("[type=").next().unwrap_or_default();
    let reason = reason.split(" with AttentionSelectorConfig").next().unwrap_or_default();
    let reason = reason.split(" with head_size=").next().unwrap_or_default();
    let reason = reason.split(" on NVIDIA").next().unwrap_or_default();
    let reason = reason.split(" on this GPU").next().unwrap_or_default();
    let reason = reason.rsplit("Error: ").next().unwrap_or_default();
    // Lists of everything there would be, and names of modules around the layers.
    let reason = reason.split(" Supported architectures").next().unwrap_or_default();
    let reason = reason.split(" Must be one of").next().unwrap_or_default();
    let reason = reason.replace("language_model.", "").replace("model.layers", "layers");
    let reason = reason.rsplit("Value error, ").next().unwrap_or_default().trim();
    match (reason.find(" for layer '"), reason.find("' is not divisible")) {
        (Some(from), Some(to)) => format!("{}{}", &reason[..from], &reason[to + 1..]),
        _ => reason.to_string(),
    }
}

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

/// Everything of a plan that differs, in words.
fn differences(row: &Value, plan: &CachePlan, settled: &Settled, knobs: &Knobs) -> Vec<String> {
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
    // A model without caches has no length of requests, and nothing to count them by.
    if plan.groups.is_empty() {
        return found;
    }
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

/// The weights of every rank by number type, where they are not the engine's.
fn weights_differ(row: &Value, weighed: Result<Vec<RankWeights>, MathError>) -> Option<String> {
    let theirs: Vec<&Value> =
        row["weights_per_pp_rank"].as_array().unwrap().iter().map(|rank| &rank["target"]["by_dtype"]).collect();
    let ours = match weighed {
        Err(error) => return Some(error.to_string()),
        Ok(ranks) => ranks
            .iter()
            .map(|rank| rank.by_type.iter().map(|(format, bytes)| (torch(*format).to_string(), json!(bytes))).collect())
            .map(Value::Object)
            .collect::<Vec<Value>>(),
    };
    (json!(ours) != json!(theirs)).then(|| format!("weights: ours {}, vLLM's {}", json!(ours), json!(theirs)))
}

/// The weights of what drafts, by number type. A model's own module is made with an embedding and an output matrix that
/// the model's take the place of.
fn draft_differs(row: &Value, model: &Ingested, knobs: &Knobs) -> Option<String> {
    let weighed = draft_weights(&model.spec, &model.tensors, &model.checkpoint, knobs);
    let theirs = row["weights_per_pp_rank"].as_array().unwrap().last().and_then(|rank| rank.get("draft"))?;
    let mut theirs_by = theirs["by_dtype"].as_object().unwrap().clone();
    if knobs.drafter.is_none() {
        // Modules that quantize in a way of their own are bounds in the answer.
        let followed =
            model.checkpoint.scheme.is_none() || model.spec.mtp.iter().all(|module| matches!(module.layer.mixer, Mixer::Mla(_)));
        if !followed || model.spec.mtp.is_empty() {
            return None;
        }
        let shared = theirs["embed_and_head_bytes"].as_u64().unwrap();
        let all = theirs_by["bfloat16"].as_u64().unwrap();
        theirs_by.insert("bfloat16".to_string(), json!(all - shared));
    }
    let ours: serde_json::Map<String, Value> = match weighed {
        Err(error) => return Some(format!("draft: {error}")),
        Ok(rank) => rank.by_type.iter().map(|(format, bytes)| (torch(*format).to_string(), json!(bytes))).collect(),
    };
    (ours != theirs_by).then(|| format!("draft: ours {}, vLLM's {}", json!(ours), json!(theirs_by)))
}

fn torch(format: StorageFormat) -> &'static str {
    use StorageFormat as F;
    match format {
        F::Bf16 => "bfloat16",
        F::F16 => "float16",
        F::F32 => "float32",
        F::F8E4M3 => "float8_e4m3fn",
        F::F8E8M0 => "float8_e8m0fnu",
        F::U8 => "uint8",
        F::I8 => "int8",
        F::I32 => "int32",
        F::I64 => "int64",
        other => other.name(),
    }
}
