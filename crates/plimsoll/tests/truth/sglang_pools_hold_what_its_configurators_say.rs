//! Pools of SGLang hold as many tokens, states and requests as its own configurators say, over budgets, ranks, pages, cache
//! formats and ways of sizing.

use crate::support;
use plimsoll_ingest::{Ingested, hf};
use plimsoll_math::engine::sglang::pool::{CacheType, Request, Sizes, costs};
use plimsoll_math::engine::vllm::options::{Gpu, Knobs};
use plimsoll_math::error::MathError;
use serde_json::Value;

fn sizes(ingested: &Ingested, row: &Value, case: &Value) -> Result<Sizes, MathError> {
    let number = |key: &str| case[key].as_u64().unwrap();
    let mut knobs = Knobs::new(Gpu { capability: 90, memory: 80 << 30, a100: false });
    knobs.parallelism.tensor = number("tp");
    let cache = if case["kv"] == "auto" { CacheType::Auto } else { CacheType::Fp8 };
    let costs = costs(&ingested.spec, &ingested.checkpoint, &knobs, cache)?;
    costs.sizes(&Request {
        budget: number("budget"),
        page: number("page"),
        context: row["context_len"].as_u64().unwrap(),
        max_running: case["max_running"].as_u64(),
        window_share: if case["swa_ratio"].as_f64() == Some(0.8) { (4, 5) } else { (1, 4) },
        radix: case["radix"].as_bool().unwrap(),
        chunk: 8192,
    })
}

/// `Err` with what differs.
fn check(ours: &Sizes, case: &Value) -> Result<(), String> {
    let truth = |key: &str| case[key].as_u64().unwrap_or(0);
    let tokens = truth("tokens");
    // Without keys and values the pool is as long as a request.
    let windows = truth("swa");
    let mine = (ours.tokens, ours.window_tokens, ours.slots, ours.requests);
    let theirs = (tokens, windows, truth("mamba_slots"), truth("max_requests"));
    if mine == theirs { Ok(()) } else { Err(format!("{mine:?}, truth {theirs:?}")) }
}

#[test]
fn every_recorded_pool() {
    let configs = support::rows("truth/vllm/configs.jsonl.gz");
    let (mut problems, mut unknown, mut rows, mut refused) = (Vec::new(), Vec::new(), 0, 0);
    for row in support::rows("truth/sglang/sglang-0.5.23.jsonl.gz") {
        let file = format!("{}.json", row["model"].as_str().unwrap());
        let mut config = configs.iter().find(|config| config["file"] == file.as_str()).unwrap()["config"].clone();
        // As it was recorded: plain numbers in bfloat16.
        let map = config.as_object_mut().unwrap();
        map.remove("quantization_config");
        map.insert("torch_dtype".to_string(), "bfloat16".into());
        map.insert("dtype".to_string(), "bfloat16".into());
        let ingested = hf::ingest(&serde_json::to_vec(&config).unwrap(), &hf::Options::default()).unwrap();
        for case in row["cases"].as_array().unwrap() {
            match (sizes(&ingested, &row, case), case["refused"].is_string()) {
                (Err(MathError::Unsupported { mechanism, .. }), _) => unknown.push(format!("{file}: {mechanism}")),
                (Err(MathError::Refused { .. }), true) => refused += 1,
                (Ok(ours), false) => {
                    rows += 1;
                    if let Err(problem) = check(&ours, case) {
                        problems.push(format!("{file} {case}: {problem}"));
                    }
                }
                (ours, _) => problems.push(format!("{file} {case}: {ours:?}")),
            }
        }
    }
    unknown.sort();
    unknown.dedup();
    assert!(problems.is_empty(), "{} of {rows}\n{}\nunknown {unknown:#?}", problems.len(), problems.join("\n"));
    assert!(rows > 4000 && refused > 0, "{rows} rows, {refused} refused, unknown {unknown:#?}");
}
