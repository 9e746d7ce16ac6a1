//! SGLang behind the planner's door.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::engine::ranks::stages;
use plimsoll_math::engine::sglang::VERSION;
use plimsoll_math::engine::sglang::pool::{CacheType, Costs, Request, Sizes, WINDOW_SHARE, costs_of, stages as ranges};
use plimsoll_math::engine::vllm::options::Knobs;
use plimsoll_math::error::MathError;
use plimsoll_math::spec::{Mixer, ModelSpec};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::pooled::{Answered, Pool, both, cache_bytes, knobs, page, planned, share, taken};
use crate::request::Engine;
use crate::served::{context, reads_checkpoints, reference};
use crate::size::quoted;

const MIB: u64 = 1 << 20;

/// Whether the question is something for SGLang.
///
/// # Errors
/// [`PlanError`] naming what is not.
pub fn check(question: &Question<'_>) -> Result<(), PlanError> {
    reads_checkpoints(Engine::Sglang, question.model)?;
    cache_type(question)?;
    knobs(question, &["context_parallel"]).map(|_| ())
}

fn cache_type(question: &Question<'_>) -> Result<CacheType, PlanError> {
    match question.options.kv_type.as_deref() {
        None | Some("auto" | "bfloat16" | "bf16") => Ok(CacheType::Auto),
        Some("fp8_e4m3" | "fp8_e5m2" | "fp8") => Ok(CacheType::Fp8),
        Some(other) => Err(PlanError::request("kv_type", quoted(other), "auto, bf16, fp8_e4m3 or fp8_e5m2")),
    }
}

/// Tokens of a prompt read at a time, and sequences of the largest captured graph, by the GPU's memory
/// (`arg_groups/memory_hook.py:handle_gpu_memory_settings`).
fn defaults(memory: u64, tensor: u64) -> (u64, u64) {
    let wide = tensor >= 4;
    match memory / MIB {
        ..20_480 => (2048, 8),
        20_480..35_840 => (4096, if wide { 160 } else { 48 }),
        35_840..61_440 => (4096, if wide { 160 } else { 32 }),
        61_440..163_840 => (8192, if wide { 512 } else { 256 }),
        _ => (16_384, 512),
    }
}

/// The share of the GPU that weights and pools get, in millionths, and whether the pools are sized after graphs are
/// captured (the same function).
fn static_share(spec: &ModelSpec, knobs: &Knobs, chunk: u64, batch: u64) -> (u64, bool) {
    let memory = knobs.gpu.memory / MIB;
    let ranks = knobs.parallelism.tensor.max(1).saturating_mul(knobs.parallelism.pipeline.max(1));
    let latent = spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Mla(_)));
    let reserved = if latent {
        let reserved = 512 + chunk.max(2048) * 3 / 2 + ranks * 128 + batch * 2 + 1536;
        if memory > 60 * 1024 { reserved.max(10 * 1024) } else { reserved }
    } else {
        1536 + ranks * 128
    };
    // Three digits, as Python rounds.
    let left = memory.saturating_sub(reserved);
    let thousandths = (left.saturating_mul(2000) + memory).checked_div(memory.saturating_mul(2)).unwrap_or(0);
    (thousandths * 1000, !latent)
}

/// Plans a question.
///
/// # Errors
/// [`PlanError::Math`] for what is not followed.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let model = question.model;
    let knobs = knobs(question, &["context_parallel"])?;
    let tensor = knobs.parallelism.tensor.max(1);
    let (chunk, batch) = defaults(knobs.gpu.memory, tensor);
    let chunk = knobs.max_batched_tokens.unwrap_or(chunk);
    let batch = knobs.max_sequences.map_or(batch, |most| batch.min(most));
    let cache = cache_type(question)?;
    let (page, context) = (page(question, 1)?, context(question));
    let ranges = ranges(u64::try_from(model.spec.layers.len()).unwrap_or(u64::MAX), knobs.parallelism.pipeline);
    let stages = stages(VERSION, &model.spec, &model.tensors, &model.checkpoint, &knobs, &ranges, (chunk, batch))?;
    let all: Vec<Costs> =
        ranges.iter().map(|range| costs_of(&model.spec, &model.checkpoint, &knobs, cache, *range)).collect::<Result<_, _>>()?;
    let divided = all.len() > 1;
    if divided && all.iter().any(|costs| costs.state > 0 || costs.windows > 0) {
        let mechanism = "pipelines of models with several pools".to_string();
        return Err(MathError::Unsupported { engine: VERSION.to_string(), mechanism }.into());
    }
    let (usual, after_capture) = static_share(&model.spec, &knobs, chunk, batch);
    let fraction = question.options.memory_utilization.unwrap_or(usual);
    let budget = match cache_bytes(question)? {
        Some(bytes) => (bytes, bytes),
        None => {
            let total = knobs.gpu.memory;
            // An encoder's work and caches of images are kept free beside the share.
            let towers = if model.spec.towers.is_empty() { 0 } else { 9 << 30 };
            // What the fullest rank has left is what all of them plan with.
            let mut budget = (u64::MAX, u64::MAX);
            for stage in &stages {
                let (least, most) = taken(stage, after_capture)?;
                let low = share(total.saturating_sub(stage.driver.1), fraction)?;
                let high = share(total.saturating_sub(stage.driver.0), fraction)?;
                budget.0 = budget.0.min(low.saturating_sub(most).saturating_sub(towers));
                budget.1 = budget.1.min(high.saturating_sub(least));
            }
            budget
        }
    };
    let radix = question.options.prefix_caching.unwrap_or(true);
    let request = |budget: u64| Request {
        budget,
        page,
        context,
        max_running: knobs.max_sequences,
        window_share: WINDOW_SHARE,
        radix,
        chunk,
    };
    // Stages agree on the tokens of the smallest pool.
    let sized = |budget: u64| -> Result<(Sizes, Vec<(u64, u64)>), MathError> {
        let mut least: Option<Sizes> = None;
        for costs in &all {
            let sizes = costs.sizes(&request(budget))?;
            if least.is_none_or(|least| sizes.tokens < least.tokens) {
                least = Some(sizes);
            }
        }
        let sizes = least.unwrap_or_default();
        Ok((sizes, all.iter().map(|costs| costs.bytes(&sizes, page)).collect::<Result<_, _>>()?))
    };
    let mut requests = knobs.max_sequences.unwrap_or(2048);
    // Its configurators were asked about one stage of one replica.
    let asked = knobs.parallelism.pipeline <= 1 && knobs.parallelism.data <= 1;
    let checked = if asked { "checked against its configurators" } else { "stages and replicas by the source alone" };
    let pools = both(budget, sized)?.map(|((low, less), (high, more))| {
        requests = low.requests;
        let pool = |(less, more): (&(u64, u64), &(u64, u64))| Pool {
            tokens: (low.tokens, high.tokens),
            bytes: (less.0, more.0),
            states: (less.1, more.1),
            source: alloc::format!("{VERSION}: srt/model_executor/pool_configurator.py; {checked}"),
        };
        less.iter().zip(&more).map(pool).collect::<Vec<_>>()
    });
    let (numerator, denominator) = WINDOW_SHARE;
    let token = all.iter().map(|costs| costs.full + costs.windows * numerator / denominator).max().unwrap_or(0);
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| settings.insert(name.to_string(), value);
    set("tp_size", tensor.to_string());
    set("pp_size", knobs.parallelism.pipeline.to_string());
    set("dp_size", knobs.parallelism.data.to_string());
    set("page_size", page.to_string());
    set("chunked_prefill_size", chunk.to_string());
    set("max_running_requests", requests.to_string());
    match question.options.kv_memory {
        Some(bytes) => set("kv_memory", bytes.to_string()),
        None => set("mem_fraction_static", crate::vllm::share_text(fraction)),
    };
    let kv_type = if cache == CacheType::Fp8 { "fp8_e4m3" } else { "auto" }.to_string();
    let tokens = pools.as_ref().ok().and_then(|pools| pools.first()).map(|pool| pool.tokens.0);
    let command = command(question, fraction, tokens, &kv_type, page, chunk);
    let short_by = stages.iter().map(|stage| stage.weights.1).fold(budget.0, u64::max);
    planned(
        question,
        Answered { stages, pools, short_by, page, token, requests, step: chunk, kv_type, settings, command, version: VERSION },
    )
}

fn command(question: &Question<'_>, fraction: u64, tokens: Option<u64>, kv_type: &str, page: u64, chunk: u64) -> Vec<String> {
    let options = &question.options;
    let mut out: Vec<String> = ["python", "-m", "sglang.launch_server", "--model-path"].iter().map(ToString::to_string).collect();
    out.push(reference(question));
    let mut option = |name: &str, value: String| out.extend([name.to_string(), value]);
    option("--context-length", context(question).to_string());
    option("--tp-size", options.tensor_parallel.unwrap_or(1).to_string());
    for (name, ranks) in [("--pp-size", options.pipeline_parallel), ("--dp-size", options.data_parallel)] {
        if let Some(ranks) = ranks.filter(|ranks| *ranks > 1) {
            option(name, ranks.to_string());
        }
    }
    match (options.kv_memory, tokens) {
        (Some(_), Some(tokens)) => option("--max-total-tokens", tokens.to_string()),
        _ => option("--mem-fraction-static", crate::vllm::share_text(fraction)),
    }
    option("--kv-cache-dtype", kv_type.to_string());
    option("--page-size", page.to_string());
    option("--chunked-prefill-size", chunk.to_string());
    if let Some(most) = options.max_sequences {
        option("--max-running-requests", most.to_string());
    }
    if options.prefix_caching == Some(false) {
        out.push("--disable-radix-cache".to_string());
    }
    if options.expert_parallel == Some(true) {
        out.extend(["--ep-size".to_string(), options.tensor_parallel.unwrap_or(1).to_string()]);
    }
    out
}
