//! Questions put to vLLM's cache planner without a model: any caches on any ranks, in any memory.

use plimsoll_math::engine::vllm::cache_spec::{CacheKind, CacheSpec, Identity, RequestShape, StrideAlignment};
use plimsoll_math::engine::vllm::groups::{LayerCache, PoolLayout};
use plimsoll_math::engine::vllm::options::{Gpu, Knobs};
use plimsoll_math::engine::vllm::plan::CachePlan;
use plimsoll_math::error::MathError;
use serde_json::{Value, json};

fn spec(row: &Value) -> CacheSpec {
    let number = |key: &str| row[key].as_u64().unwrap();
    let element = match row["dtype"].as_str().unwrap() {
        "float32" => 4,
        "bfloat16" => 2,
        _ => 1,
    };
    let plain = CacheSpec {
        kind: CacheKind::Full,
        block_tokens: number("block_size"),
        head_slots: 1,
        state_bytes: 0,
        tokens_per_state: 1,
        padded_page: row["page_size_padded"].as_u64(),
        page_alignment: 1,
        stride_alignment: StrideAlignment::Any,
        context_sharded: true,
        tensor_shards: None,
        extra_retained: 0,
        identity: Identity::default(),
    };
    if row["kind"] == "mamba" {
        let shapes = row["shapes"].as_array().unwrap();
        let elements = |shape: &Value| shape.as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product::<u64>();
        let bytes = element * shapes.iter().map(elements).sum::<u64>();
        return CacheSpec {
            kind: CacheKind::State { speculative_blocks: number("spec_blocks"), checkpoint_blocks: 0 },
            state_bytes: bytes,
            tokens_per_state: 0,
            context_sharded: false,
            identity: Identity { shape: bytes, element_bytes: element, ..Identity::default() },
            ..plain
        };
    }
    let head = number("head_size");
    let latent = row["kind"] == "mla";
    let kind = match row["kind"].as_str().unwrap() {
        "full" => CacheKind::Full,
        "sliding" => CacheKind::SlidingWindow { tokens: number("window") },
        "chunked" => CacheKind::ChunkedLocal { tokens: number("chunk") },
        "mla" => CacheKind::Latent,
        other => panic!("no cache {other}"),
    };
    CacheSpec {
        kind,
        head_slots: number("heads"),
        state_bytes: head * element * if latent { 1 } else { 2 },
        tensor_shards: latent.then_some(1),
        identity: Identity {
            head_size: head,
            head_size_v: if latent { 0 } else { head },
            element_bytes: element,
            ..Identity::default()
        },
        ..plain
    }
}

/// Our answer to a question, in the words of the recorded one.
pub(crate) fn answer(question: &Value) -> Value {
    let mut layers = Vec::new();
    let mut names = Vec::new();
    let workers = question["workers"].as_array().unwrap();
    for (stage, worker) in workers.iter().enumerate() {
        for layer in worker.as_array().unwrap() {
            names.push(layer[0].as_str().unwrap().to_string());
            layers.push(LayerCache {
                label: layer[0].as_str().unwrap().to_string(),
                stage: u64::try_from(stage).unwrap(),
                draft: false,
                spec: spec(&layer[1]),
            });
        }
    }
    let number = |key: &str| question[key].as_u64();
    let request = RequestShape {
        max_tokens: number("max_model_len").unwrap(),
        in_flight_tokens: number("in_flight").unwrap(),
        encoder_tokens: number("batched").unwrap(),
        context_parallel: number("dcp").unwrap_or(1),
        // The engine asks its own options, not the caches.
        states_aligned: true,
    };
    let mut knobs = Knobs::new(Gpu { capability: 90, memory: 80 << 30, a100: false });
    knobs.blocks_override = number("override");
    let hybrid = question["no_hybrid"] != true;
    let stages = u64::try_from(workers.len()).unwrap();
    let plan = match CachePlan::new(layers, PoolLayout::LayerOuter, request, stages, hybrid) {
        Ok(plan) => plan,
        Err(error) => return json!({"refused": error.to_string()}),
    };
    let needed: Result<Vec<u64>, _> = (0..stages).map(|stage| plan.request_bytes(&plan.request, stage)).collect();
    let needed = match needed {
        Ok(needed) => needed,
        Err(error) => return json!({"refused": error.to_string()}),
    };
    let groups: Vec<Value> = plan
        .groups
        .iter()
        .map(|group| {
            let first = group.first().unwrap();
            let page: u64 =
                if group.mixed { group.specs.iter().map(|spec| spec.page().unwrap()).sum() } else { first.page().unwrap() };
            let class = if group.mixed { "UniformTypeKVCacheSpecs" } else { first.kind.class() };
            let members: Vec<&String> = group.layers.iter().map(|layer| &names[*layer]).collect();
            json!({"layers": members, "type": class, "block_size": first.block_tokens, "page_size": page})
        })
        .collect();
    let mut answer = json!({"groups": groups, "bytes_per_block": plan.block_bytes, "request_bytes": needed});
    let memory: Vec<u64> = question["memory"].as_array().unwrap().iter().map(|bytes| bytes.as_u64().unwrap()).collect();
    match plan.capacity(&memory, &knobs, question["fit"] == true) {
        Ok(capacity) => {
            answer["num_blocks"] = json!(capacity.blocks);
            answer["max_model_len"] = json!(capacity.max_tokens);
            answer["tokens"] = json!(capacity.tokens());
        }
        Err(MathError::Refused { reason, .. }) => answer["error"] = json!(reason),
        Err(other) => answer["error"] = json!(other.to_string()),
    }
    answer
}

/// What differs from the recorded answer, in words.
pub(crate) fn differences(row: &Value) -> Vec<String> {
    let ours = answer(&row["question"]);
    let theirs = &row["answer"];
    if theirs.get("refused").is_some() {
        return if ours.get("refused").is_some() { vec![] } else { vec![format!("accepted; vLLM: {}", theirs["refused"])] };
    }
    let mut found = Vec::new();
    for key in ["refused", "groups", "bytes_per_block", "request_bytes", "num_blocks", "max_model_len", "tokens"] {
        if ours[key] != theirs[key] {
            found.push(format!("{key}: ours {}, vLLM's {}", ours[key], theirs[key]));
        }
    }
    let head =
        |value: &Value| value["error"].as_str().unwrap_or_default().split("Try increasing").next().unwrap().trim().to_string();
    if head(&ours) != head(theirs) {
        found.push(format!("refusal: ours {}, vLLM's {}", head(&ours), head(theirs)));
    }
    found
}
