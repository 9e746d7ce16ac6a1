//! vLLM behind the same door: options in its words, ranks as devices, and an answer about its pool of blocks.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::deployment::{Backend, ContextRequest, Parallelism};
use plimsoll_math::device::{Device, Driver};
use plimsoll_math::engine::vllm::allocate::{Allocated, Budget, DEFAULT_UTILIZATION, allocate};
use plimsoll_math::engine::vllm::drafter::Drafter;
use plimsoll_math::engine::vllm::lora::Adapters;
use plimsoll_math::engine::vllm::options::{CacheDtype, Gpu, Knobs, MaxLength, Speculation};
use plimsoll_math::engine::vllm::plan::Capacity;
use plimsoll_math::error::MathError;
use plimsoll_math::units::{Bytes, add, mul};

use crate::engine::{Planned, Question, Resolved};
use crate::error::PlanError;
use crate::model::{Basis, Model};
use crate::request::Options;
use crate::response::{CacheBrief, CacheGroup, Concurrency, Limit, LimitedBy, Limits, VllmBrief};
use crate::size::{counted, grouped};

/// The largest rank of adapters unless it is given (`vllm/config/lora.py:max_lora_rank`).
const DEFAULT_LORA_RANK: u64 = 16;

/// What only vLLM knows about a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The cache.
    pub cache: CacheBrief,
    /// Values in effect.
    pub brief: VllmBrief,
    /// Bytes missing on the fullest rank.
    pub short_by: Option<Bytes>,
    /// Bytes of the pool that are left where everything beside it takes no more than its least, when it lacks some
    /// otherwise and that is enough.
    pub at_best: Option<Bytes>,
    /// What is reachable.
    pub limits: Limits,
    /// What was assumed or refused.
    pub notes: Vec<String>,
}

/// Options that only vLLM has, by name.
#[must_use]
pub fn options_set(options: &Options) -> Vec<&'static str> {
    let set = [
        ("tensor_parallel", options.tensor_parallel.is_some()),
        ("pipeline_parallel", options.pipeline_parallel.is_some()),
        ("data_parallel", options.data_parallel.is_some()),
        ("expert_parallel", options.expert_parallel == Some(true)),
        ("context_parallel", options.context_parallel.is_some()),
        ("memory_utilization", options.memory_utilization.is_some()),
        ("kv_memory", options.kv_memory.is_some()),
        ("max_batched_tokens", options.max_batched_tokens.is_some()),
        ("max_sequences", options.max_sequences.is_some()),
        ("block_size", options.block_size.is_some()),
        ("prefix_caching", options.prefix_caching.is_some()),
        ("speculative", options.speculative.is_some()),
        ("max_loras", options.max_loras.is_some()),
        ("max_lora_rank", options.max_lora_rank.is_some()),
    ];
    set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

pub(crate) fn parallelism(options: &Options) -> Result<Parallelism, PlanError> {
    let count = |field: &'static str, value: Option<u64>| match value {
        Some(0) => Err(PlanError::request(field, "0", "1 or more")),
        Some(value) if value > 1024 => Err(PlanError::request(field, value, "1 to 1024")),
        value => Ok(value.unwrap_or(1)),
    };
    Ok(Parallelism {
        tensor: count("tensor_parallel", options.tensor_parallel)?,
        pipeline: count("pipeline_parallel", options.pipeline_parallel)?,
        data: count("data_parallel", options.data_parallel)?,
        expert: options.expert_parallel.unwrap_or(false),
        decode_context: count("context_parallel", options.context_parallel)?,
    })
}

/// One device for every rank: as many of the kind that was named as there are ranks.
///
/// # Errors
/// [`PlanError`] for devices that no rank can run on, or more or fewer of them than ranks.
pub fn ranks(options: &Options, engine: &str, devices: Vec<Device>) -> Result<Vec<Device>, PlanError> {
    if !options.places_set().is_empty() {
        return Err(PlanError::request(
            "engine",
            options.places_set().join(", "),
            format!("llama.cpp: {engine} has no such switches"),
        ));
    }
    let ranks = parallelism(options)?.devices()?;
    let wanted = usize::try_from(ranks).unwrap_or(usize::MAX);
    if devices.iter().any(|device| device.driver != Driver::Cuda) {
        return Err(PlanError::request(
            "device",
            "a device without CUDA",
            format!("an NVIDIA GPU: {engine} is followed on CUDA only"),
        ));
    }
    let devices = match devices.as_slice() {
        [one] => core::iter::repeat_n(one.clone(), wanted).collect(),
        _ => devices,
    };
    if devices.len() != wanted {
        return Err(PlanError::request(
            "device",
            format!("{} devices", devices.len()),
            format!("{ranks}: tensor x pipeline x data parallel ranks"),
        ));
    }
    if let Some((first, rest)) = devices.split_first()
        && let Some(other) = rest.iter().find(|other| other.name != first.name)
    {
        return Err(PlanError::request(
            "device",
            format!("{} beside {}", other.name, first.name),
            "ranks on devices of one kind",
        ));
    }
    Ok(devices)
}

/// Whether the model and the options are something for vLLM.
///
/// # Errors
/// [`PlanError`] naming what is not.
pub fn check(model: &Model, options: &Options) -> Result<(), PlanError> {
    if model.basis == Basis::Gguf {
        return Err(PlanError::request("model", "a GGUF file", "a checkpoint or its config: this version of vllm reads no GGUF"));
    }
    if options.quant.is_some() {
        return Err(PlanError::request("quant", "a file type", "none: vllm serves the checkpoint as it is stored"));
    }
    for (field, set) in [
        ("kv_type_k", options.kv_type_k.is_some()),
        ("kv_type_v", options.kv_type_v.is_some()),
        ("total_context", options.total_context.is_some()),
        ("like_engine", options.like_engine == Some(true)),
        ("prediction_layers", options.prediction_layers.is_some()),
        ("draft_mtp", options.draft_mtp.is_some()),
        ("threads", options.threads.is_some()),
        ("embeddings", options.embeddings.is_some()),
        ("cache_ram", options.cache_ram.is_some()),
        ("context_checkpoints", options.context_checkpoints.is_some()),
    ] {
        if set {
            return Err(PlanError::request(field, "a value", "none with vllm, which has no such option"));
        }
    }
    Ok(())
}

/// The GPU and the ranks, and what a step takes; all else is vLLM's default.
pub(crate) fn ranks_on_gpu(question: &Question<'_>) -> Result<Knobs, PlanError> {
    let device = &question.effective.device;
    let capability = match device.backend {
        Backend::Cuda { compute_capability } => u64::from(compute_capability) / 10,
        _ => 0,
    };
    let gpu = Gpu { capability, memory: device.total.bytes.get(), a100: device.name.contains("A100") };
    let mut knobs = Knobs::new(gpu);
    knobs.parallelism = parallelism(&question.options)?;
    knobs.max_batched_tokens = question.options.max_batched_tokens;
    knobs.max_sequences = question.options.max_sequences;
    Ok(knobs)
}

fn knobs(question: &Question<'_>) -> Result<Knobs, PlanError> {
    let options = &question.options;
    let mut knobs = ranks_on_gpu(question)?;
    knobs.max_length = match question.effective.deployment.context {
        ContextRequest::PerSequence(tokens) | ContextRequest::Total(tokens) => MaxLength::Tokens(tokens),
        ContextRequest::ModelMaximum => MaxLength::Model,
    };
    knobs.block_tokens = options.block_size;
    knobs.prefix_caching = options.prefix_caching;
    if let Some(text) = &options.kv_type {
        knobs.cache_dtype = CacheDtype::parse(text)?;
    }
    if let Some(text) = &options.speculative {
        knobs.speculation = Some(Speculation::parse(text)?);
    }
    knobs.drafter = question.model.draft.as_deref().map(|draft| {
        let (spec, tensors) = (draft.spec.clone(), draft.tensors.clone());
        Box::new(Drafter { spec, tensors, checkpoint: draft.checkpoint.clone() })
    });
    if options.max_loras.is_some() || options.max_lora_rank.is_some() {
        let rank = options.max_lora_rank.unwrap_or(DEFAULT_LORA_RANK);
        knobs.adapters = Some(Adapters { count: options.max_loras.unwrap_or(1), rank });
    }
    Ok(knobs)
}

fn budget(options: &Options) -> Result<Budget, PlanError> {
    match (options.memory_utilization, options.kv_memory) {
        (Some(_), Some(_)) => Err(PlanError::request("kv_memory", "a value beside memory_utilization", "one of the two")),
        (None, Some(bytes)) => Ok(Budget::Cache { bytes: Bytes::new(bytes)?.get() }),
        (Some(millionths), None) if (1..=1_000_000).contains(&millionths) => Ok(Budget::Utilization { millionths }),
        (Some(millionths), None) => {
            Err(PlanError::request("memory_utilization", format!("{millionths} millionths"), "more than 0, at most 1"))
        }
        (None, None) => Ok(Budget::Utilization { millionths: DEFAULT_UTILIZATION }),
    }
}

/// Plans a question.
///
/// # Errors
/// [`PlanError::Math`] for what the engine refuses.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let knobs = knobs(question)?;
    let budget = budget(&question.options)?;
    let model = question.model;
    let allocated = allocate(&model.spec, &model.tensors, &model.checkpoint, &knobs, budget)?;
    // Replicas share the sequences.
    let sequences = question.effective.deployment.sequences.div_ceil(knobs.parallelism.data.max(1));
    let request = allocated.plan.request;
    let per_request = allocated.plan.blocks_per_request(&request)?;
    let mut notes = Vec::new();
    let widest = allocated.plan.block_bytes.iter().copied().max().unwrap_or(0);
    let needed = if per_request > 0 { add(mul(per_request, sequences)?, 1)? } else { 0 };
    let spare_at_best = match &allocated.capacity_at_best {
        Ok(capacity) => capacity.blocks.checked_sub(needed).map(|blocks| mul(blocks, widest)).transpose()?,
        Err(_) => None,
    };
    let (blocks, mut short_by) = match &allocated.capacity {
        Ok(capacity) => (Some(capacity.blocks), None),
        Err(MathError::Refused { reason, .. }) => {
            let when = if spare_at_best.is_some() { "at worst, " } else { "" };
            notes.push(format!("{when}vllm would not start: {reason}"));
            (None, allocated.short_by)
        }
        Err(other) => return Err(PlanError::Math(other.clone())),
    };
    if let Some(blocks) = blocks
        && needed > blocks
    {
        notes.push(format!(
            "{} of {} tokens {} {} blocks, and the pool has {}{}: some would wait",
            counted(sequences, "sequence"),
            grouped(request.max_tokens),
            if sequences == 1 { "takes" } else { "take" },
            grouped(needed),
            grouped(blocks),
            if spare_at_best.is_some() { " at worst" } else { "" }
        ));
        short_by = Some(mul(needed - blocks, widest)?);
    }
    let at_best = if short_by.is_some() { spare_at_best.map(Bytes::new).transpose()? } else { None };
    let answer = answer(question, &knobs, budget, &allocated, blocks, (short_by, at_best), notes)?;
    Ok(Planned {
        checkpoint_bytes: 0,
        resolved: Resolved {
            context_per_sequence: request.max_tokens,
            total_context: blocks.map_or(0, |blocks| {
                Capacity { blocks, blocks_per_request: per_request, max_tokens: request.max_tokens }.tokens()
            }),
            batch: allocated.settled.max_batched_tokens,
            ubatch: allocated.settled.max_batched_tokens,
            flash_attention: true,
        },
        cache_bytes_per_token: answer.cache.bytes_per_token.get(),
        allocation: allocated.allocation,
        vllm: Some(Box::new(answer)),
        served: None,
    })
}

fn answer(
    question: &Question<'_>,
    knobs: &Knobs,
    budget: Budget,
    allocated: &Allocated,
    blocks: Option<u64>,
    (short_by, at_best): (Option<u64>, Option<Bytes>),
    notes: Vec<String>,
) -> Result<Answer, PlanError> {
    let plan = &allocated.plan;
    let request = plan.request;
    let per_request = plan.blocks_per_request(&request)?;
    let mut bytes_per_token = 0;
    for stage in 0..plan.stages {
        bytes_per_token = bytes_per_token.max(plan.bytes_per_token(stage)?);
    }
    let mut groups = Vec::new();
    for group in &plan.groups {
        let Some(first) = group.first() else { continue };
        let page =
            if group.mixed { group.specs.iter().try_fold(0, |sum, spec| add(sum, spec.page()?))? } else { first.page()? };
        groups.push(CacheGroup {
            kind: if group.mixed { "UniformTypeKVCacheSpecs" } else { first.kind.class() }.to_string(),
            layers: u64::try_from(group.layers.len()).unwrap_or(u64::MAX),
            block_tokens: first.block_tokens,
            page_bytes: Bytes::new(page)?,
            blocks_per_sequence: plan.group_blocks(group, &request)?,
        });
    }
    let tokens =
        blocks.map(|blocks| Capacity { blocks, blocks_per_request: per_request, max_tokens: request.max_tokens }.tokens());
    let settled = &allocated.settled;
    let device = &question.effective.device;
    let (utilization, of_free, kv_memory) = match budget {
        Budget::Cache { bytes } => (None, None, Some(Bytes::new(bytes)?)),
        Budget::Utilization { millionths } => {
            let requested = u128::from(device.total.bytes.get()).saturating_mul(u128::from(millionths));
            let of_free =
                requested.checked_div(u128::from(device.usable.bytes.get())).and_then(|share| u64::try_from(share).ok());
            (Some(millionths), of_free, None)
        }
    };
    let brief = VllmBrief {
        tensor_parallel: knobs.parallelism.tensor,
        pipeline_parallel: knobs.parallelism.pipeline,
        data_parallel: knobs.parallelism.data,
        expert_parallel: knobs.parallelism.expert,
        context_parallel: knobs.parallelism.decode_context,
        memory_utilization: utilization,
        memory_utilization_of_free: of_free,
        kv_memory,
        max_batched_tokens: settled.max_batched_tokens,
        max_sequences: settled.max_sequences,
        block_size: settled.block_tokens,
        kv_cache_dtype: settled.cache_dtype.name().to_string(),
        prefix_caching: settled.prefix_caching,
        speculative: question.options.speculative.clone(),
        max_loras: knobs.adapters.map(|adapters| adapters.count),
        max_lora_rank: knobs.adapters.map(|adapters| adapters.rank),
        attention_backends: settled.backends.clone(),
    };
    let limits = limits(question, knobs, allocated, blocks, per_request)?;
    let short_by = match short_by {
        Some(bytes) => Some(Bytes::new(bytes)?),
        None => None,
    };
    Ok(Answer {
        cache: CacheBrief {
            bytes_per_token: Bytes::new(bytes_per_token)?,
            blocks,
            block_tokens: Some(settled.block_tokens),
            max_concurrency: blocks.and_then(|blocks| Concurrency::of(blocks, per_request)),
            tokens,
            block_bytes: plan.block_bytes.iter().copied().max().map(Bytes::new).transpose()?,
            groups: Some(groups),
        },
        brief,
        short_by,
        at_best,
        limits,
        notes,
    })
}

/// The longest sequences, and the most of them, that this pool serves.
fn limits(
    question: &Question<'_>,
    knobs: &Knobs,
    allocated: &Allocated,
    blocks: Option<u64>,
    per_request: u64,
) -> Result<Limits, PlanError> {
    let plan = &allocated.plan;
    let replicas = knobs.parallelism.data.max(1);
    let sequences = question.effective.deployment.sequences.div_ceil(replicas).max(1);
    let trained = question.model.spec.max_context;
    let mut memory = Vec::new();
    for (stage, block) in (0_u64..).zip(&plan.block_bytes) {
        let place = usize::try_from(stage.saturating_mul(knobs.parallelism.tensor.max(1))).unwrap_or(usize::MAX);
        let pool = allocated
            .allocation
            .devices
            .get(place)
            .map_or(Ok(Bytes::ZERO), |place| place.of(plimsoll_math::allocation::TermKind::KvCache))?;
        memory.push(pool.get().saturating_sub(*block) / sequences);
    }
    let longest = plan.longest_request(&memory, trained)?;
    let by = |value: u64, cap: u64, at_cap: LimitedBy| Limit {
        value,
        limited_by: if value >= cap { at_cap } else { LimitedBy::Memory },
    };
    let max_sequences = blocks.and_then(|blocks| blocks.saturating_sub(1).checked_div(per_request)).map(|most| {
        let cap = allocated.settled.max_sequences.saturating_mul(replicas);
        by(most.saturating_mul(replicas).min(cap), cap, LimitedBy::Engine)
    });
    Ok(Limits { max_context: (trained > 0).then(|| by(longest, trained, LimitedBy::Model)), max_sequences })
}

/// `vllm serve` with every value that decides about memory.
#[must_use]
pub fn command(question: &Question<'_>, planned: &Planned) -> Vec<String> {
    let Some(answer) = &planned.vllm else { return Vec::new() };
    let brief = &answer.brief;
    let model = question.model.reference.clone().unwrap_or_else(|| question.model.name.clone());
    let mut out = vec!["vllm".to_string(), "serve".to_string(), model];
    let mut option = |name: &str, value: String| {
        out.push(name.to_string());
        out.push(value);
    };
    option("--max-model-len", planned.resolved.context_per_sequence.to_string());
    option("--tensor-parallel-size", brief.tensor_parallel.to_string());
    if brief.pipeline_parallel > 1 {
        option("--pipeline-parallel-size", brief.pipeline_parallel.to_string());
    }
    if brief.data_parallel > 1 {
        option("--data-parallel-size", brief.data_parallel.to_string());
    }
    if brief.context_parallel > 1 {
        option("--decode-context-parallel-size", brief.context_parallel.to_string());
    }
    match (brief.kv_memory, brief.memory_utilization) {
        (Some(bytes), _) => option("--kv-cache-memory-bytes", bytes.get().to_string()),
        (None, share) => option("--gpu-memory-utilization", share_text(share.unwrap_or(DEFAULT_UTILIZATION))),
    }
    option("--max-num-batched-tokens", brief.max_batched_tokens.to_string());
    option("--max-num-seqs", brief.max_sequences.to_string());
    let asked = question.options.kv_type.clone().unwrap_or_else(|| "auto".to_string());
    option("--kv-cache-dtype", asked);
    if let Some(tokens) = question.options.block_size {
        option("--block-size", tokens.to_string());
    }
    if let Some(Ok(speculation)) = question.options.speculative.as_deref().map(Speculation::parse) {
        let mut config =
            format!("{{\"method\":\"{}\",\"num_speculative_tokens\":{}", speculation.method.name(), speculation.tokens);
        if let Some(draft) = &question.model.draft {
            config.push_str(&format!(",\"model\":{:?}", draft.reference.as_ref().unwrap_or(&draft.name)));
        }
        config.push('}');
        option("--speculative-config", config);
    }
    if question.options.max_loras.is_some() || question.options.max_lora_rank.is_some() {
        option("--max-loras", question.options.max_loras.unwrap_or(1).to_string());
        option("--max-lora-rank", question.options.max_lora_rank.unwrap_or(DEFAULT_LORA_RANK).to_string());
        out.push("--enable-lora".to_string());
    }
    if brief.expert_parallel {
        out.push("--enable-expert-parallel".to_string());
    }
    out.push(if brief.prefix_caching { "--enable-prefix-caching" } else { "--disable-prefix-caching" }.to_string());
    out
}

/// Millionths as a decimal fraction.
pub(crate) fn share_text(millionths: u64) -> String {
    let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    let text = text.trim_end_matches('0');
    text.strip_suffix('.').map_or_else(|| text.to_string(), ToString::to_string)
}
