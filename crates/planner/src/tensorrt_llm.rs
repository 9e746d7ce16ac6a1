//! TensorRT-LLM behind the planner's door: `trtllm-serve` with its PyTorch backend.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::engine::ranks::stages;
use plimsoll_math::engine::tensorrt_llm::{FREE_SHARE, TOKENS_PER_BLOCK, VERSION, token_bytes};
use plimsoll_math::engine::vllm::layers::stages as ranges;
use plimsoll_math::units::mul;

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::pooled::{Answered, Pool, cache_bytes, knobs, page, planned, share, taken};
use crate::request::Engine;
use crate::served::{context, reads_checkpoints, reference};
use crate::size::quoted;

/// Tokens of a step and sequences at a time, unless they are given (`llmapi/llm_args.py`).
const DEFAULTS: (u64, u64) = (8192, 2048);

/// Whether the question is something for TensorRT-LLM.
///
/// # Errors
/// [`PlanError`] naming what is not.
pub fn check(question: &Question<'_>) -> Result<(), PlanError> {
    reads_checkpoints(Engine::TensorRtLlm, question.model)?;
    let block = page(question, TOKENS_PER_BLOCK)?;
    if !block.is_power_of_two() || block < 2 {
        return Err(PlanError::request("block_size", block, "a power of two above 1"));
    }
    element(question)?;
    knobs(question, &["context_parallel", "data_parallel"]).map(|_| ())
}

fn element(question: &Question<'_>) -> Result<(u64, &'static str), PlanError> {
    match question.options.kv_type.as_deref() {
        None | Some("auto") => Ok((question.model.checkpoint.dtype.block_bytes(), "auto")),
        Some("fp8") => Ok((1, "fp8")),
        Some(other) => Err(PlanError::request("kv_type", quoted(other), "auto or fp8")),
    }
}

/// Plans a question.
///
/// # Errors
/// [`PlanError::Math`] for what is not followed.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let model = question.model;
    let knobs = knobs(question, &["context_parallel", "data_parallel"])?;
    let tensor = knobs.parallelism.tensor.max(1);
    let step = knobs.max_batched_tokens.unwrap_or(DEFAULTS.0);
    let requests = knobs.max_sequences.unwrap_or(DEFAULTS.1);
    let block = page(question, TOKENS_PER_BLOCK)?;
    let (element, kv_type) = element(question)?;
    let layers = u64::try_from(model.spec.layers.len()).unwrap_or(u64::MAX);
    let divided = ranges(layers, knobs.parallelism.pipeline);
    let stages = stages(VERSION, &model.spec, &model.tensors, &model.checkpoint, &knobs, &divided, (step, requests))?;
    let fraction = question.options.memory_utilization.unwrap_or(FREE_SHARE);
    let asked = cache_bytes(question)?;
    let (mut blocks, mut token) = ((u64::MAX, u64::MAX), 0);
    let mut tokens_of = Vec::new();
    let mut short_by = 0;
    for (stage, range) in stages.iter().zip(divided) {
        let each = token_bytes(&model.spec, range, tensor, element)?;
        let (least, most) = taken(stage, true)?;
        let total = knobs.gpu.memory;
        let budget = match asked {
            Some(bytes) => (bytes, bytes),
            None => (
                share(total.saturating_sub(stage.driver.1).saturating_sub(most), fraction)?,
                share(total.saturating_sub(stage.driver.0).saturating_sub(least), fraction)?,
            ),
        };
        let size = mul(each, block)?;
        let hold = |bytes: u64| bytes.checked_div(size).unwrap_or(u64::MAX);
        // All ranks take what the smallest has.
        blocks = (blocks.0.min(hold(budget.0)), blocks.1.min(hold(budget.1)));
        token = token.max(each);
        tokens_of.push(each);
        short_by = short_by.max(most.saturating_sub(total));
    }
    let tokens = (mul(blocks.0, block)?, mul(blocks.1, block)?);
    let mut pools = Vec::new();
    for each in tokens_of {
        pools.push(Pool {
            tokens,
            bytes: (mul(each, tokens.0)?, mul(each, tokens.1)?),
            states: (0, 0),
            source: "TensorRT-LLM at 001541b: _torch/pyexecutor/resource_manager.py, by its source; not checked by running it"
                .to_string(),
        });
    }
    let pools = if tokens.0 == 0 { Err("no block of the cache fits".to_string()) } else { Ok(pools) };
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| settings.insert(name.to_string(), value);
    set("tp_size", tensor.to_string());
    set("pp_size", knobs.parallelism.pipeline.to_string());
    set("tokens_per_block", block.to_string());
    set("max_num_tokens", step.to_string());
    set("max_batch_size", requests.to_string());
    match asked {
        Some(bytes) => set("max_gpu_total_bytes", bytes.to_string()),
        None => set("free_gpu_memory_fraction", crate::vllm::share_text(fraction)),
    };
    let command = command(question, fraction, requests, step);
    let kv_type = kv_type.to_string();
    planned(
        question,
        Answered { stages, pools, short_by, page: block, token, requests, step, kv_type, settings, command, version: VERSION },
    )
}

fn command(question: &Question<'_>, fraction: u64, requests: u64, step: u64) -> Vec<String> {
    let options = &question.options;
    let mut out: Vec<String> = ["trtllm-serve", "serve"].iter().map(ToString::to_string).collect();
    out.push(reference(question));
    let mut option = |name: &str, value: String| out.extend([name.to_string(), value]);
    option("--tp_size", options.tensor_parallel.unwrap_or(1).to_string());
    option("--pp_size", options.pipeline_parallel.unwrap_or(1).to_string());
    if options.expert_parallel == Some(true) {
        option("--ep_size", options.tensor_parallel.unwrap_or(1).to_string());
    }
    option("--max_seq_len", context(question).to_string());
    option("--max_batch_size", requests.to_string());
    option("--max_num_tokens", step.to_string());
    option("--kv_cache_free_gpu_memory_fraction", crate::vllm::share_text(fraction));
    out
}
