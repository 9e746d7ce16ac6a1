//! Servers with a pool of tokens whose size does not depend on what is asked: SGLang and TensorRT-LLM.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Allocation, PlaceAllocation, TermKind};
use plimsoll_math::engine::ranks::{Stage, replicated_caches};
use plimsoll_math::engine::terms::between;
use plimsoll_math::engine::vllm::options::Knobs;
use plimsoll_math::error::MathError;
use plimsoll_math::units::{Bytes, add, mul, round_up};

use crate::engine::{Planned, Question, Resolved};
use crate::error::PlanError;
use crate::response::{CacheBrief, Concurrency, Limit, LimitedBy, Limits};
use crate::served::{Served, context};
use crate::size::{counted, grouped};

/// The pool of a rank: what it holds at least, and its bytes between two bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Tokens, at least and at most.
    pub(crate) tokens: (u64, u64),
    /// Bytes of keys and values.
    pub(crate) bytes: (u64, u64),
    /// Bytes of states.
    pub(crate) states: (u64, u64),
    /// Where the rule stands.
    pub(crate) source: String,
}

/// Everything the answer is made from.
pub(crate) struct Answered {
    /// Of every pipeline stage.
    pub(crate) stages: Vec<Stage>,
    /// Of every stage; the reason where the engine would not start.
    pub(crate) pools: Result<Vec<Pool>, String>,
    /// Bytes missing where it would not start.
    pub(crate) short_by: u64,
    /// Tokens of a page or block.
    pub(crate) page: u64,
    /// Bytes of a token on the fullest rank.
    pub(crate) token: u64,
    /// Sequences that run at a time at most.
    pub(crate) requests: u64,
    /// Tokens of a step.
    pub(crate) step: u64,
    /// How cached keys and values are stored, in the engine's words.
    pub(crate) kv_type: String,
    /// Values in effect.
    pub(crate) settings: BTreeMap<String, String>,
    /// The engine's own command line.
    pub(crate) command: Vec<String>,
    /// The engine's name and version.
    pub(crate) version: &'static str,
}

/// Ranks and GPU in vLLM's words, whose sharding the weights follow.
///
/// # Errors
/// [`PlanError`] for parallelism that is not followed.
pub(crate) fn knobs(question: &Question<'_>, not_followed: &[&'static str]) -> Result<Knobs, PlanError> {
    let knobs = crate::vllm::ranks_on_gpu(question)?;
    let engine = question.effective.engine.name();
    for (field, ranks) in [("data_parallel", knobs.parallelism.data), ("context_parallel", knobs.parallelism.decode_context)] {
        if ranks > 1 && not_followed.contains(&field) {
            return Err(PlanError::request(field, ranks, format!("1: more are not followed for {engine}")));
        }
    }
    Ok(knobs)
}

/// Bytes for the cache that were asked for, where they were.
///
/// # Errors
/// [`PlanError`] for two answers to one question.
pub(crate) fn cache_bytes(question: &Question<'_>) -> Result<Option<u64>, PlanError> {
    match (question.options.kv_memory, question.options.memory_utilization) {
        (Some(_), Some(_)) => Err(PlanError::request("kv_memory", "a value beside memory_utilization", "one of the two")),
        (bytes, _) => Ok(bytes.map(Bytes::new).transpose()?.map(Bytes::get)),
    }
}

/// A power of two or any number of tokens, at least 1.
///
/// # Errors
/// [`PlanError`] for 0.
pub(crate) fn page(question: &Question<'_>, usual: u64) -> Result<u64, PlanError> {
    match question.options.block_size {
        Some(0) => Err(PlanError::request("block_size", 0, "1 or more")),
        size => Ok(size.unwrap_or(usual)),
    }
}

/// The plan of a server whose numbers are known.
///
/// # Errors
/// [`PlanError::Math`] on overflow.
pub(crate) fn planned(question: &Question<'_>, answered: Answered) -> Result<Planned, PlanError> {
    let parallelism = crate::vllm::parallelism(&question.options)?;
    let replicas = parallelism.data.max(1);
    // Replicas share the sequences; what one of them lacks is what is missing.
    let sequences = question.effective.deployment.sequences.div_ceil(replicas);
    let context = context(question);
    let mut notes = Vec::new();
    let mut allocation = Allocation::default();
    let repeated = replicated_caches(&question.model.spec, &parallelism);
    for (index, stage) in answered.stages.iter().enumerate() {
        let mut terms = stage.terms(answered.version)?;
        if let Some(pool) = answered.pools.as_ref().ok().and_then(|pools| pools.get(index)) {
            let formula = format!("{} tokens at least x {} B{repeated}", grouped(pool.tokens.0), grouped(answered.token));
            let mut term = between(TermKind::KvCache, "pool of tokens", pool.bytes, formula, &pool.source)?;
            // The pool gives way to what stands beside it: planned with the smaller one.
            term.bytes = Bytes::new(pool.bytes.0)?;
            if pool.bytes.1 > 0 {
                terms.push(term);
            }
            if pool.states.1 > 0 {
                let formula = "a share of what is left, in slots of one sequence".to_string();
                let mut term = between(TermKind::RecurrentState, "pool of states", pool.states, formula, &pool.source)?;
                term.bytes = Bytes::new(pool.states.0)?;
                terms.push(term);
            }
        }
        for _rank in 0..parallelism.tensor.max(1) {
            allocation.devices.push(PlaceAllocation { terms: terms.clone() });
        }
    }
    let replica = allocation.devices.clone();
    for _further in 1..replicas {
        allocation.devices.extend(replica.iter().cloned());
    }
    let (tokens, at_most) = match &answered.pools {
        Ok(pools) => {
            (pools.iter().map(|pool| pool.tokens.0).min().unwrap_or(0), pools.iter().map(|pool| pool.tokens.1).min().unwrap_or(0))
        }
        Err(reason) => {
            notes.push(format!("{} would not start: {reason}", question.effective.engine.name()));
            (0, 0)
        }
    };
    let each = round_up(context, answered.page)?;
    let needed = mul(each, sequences)?;
    let mut short_by = answered.pools.is_err().then_some(answered.short_by.max(1));
    let mut at_best = None;
    if short_by.is_none() && needed > tokens {
        let spare = at_most.checked_sub(needed);
        notes.push(format!(
            "{} of {} tokens {} {} tokens of the pool, and it has {}{}: some would wait",
            counted(sequences, "sequence"),
            grouped(context),
            if sequences == 1 { "takes" } else { "take" },
            grouped(needed),
            grouped(tokens),
            if spare.is_some() { " at worst" } else { "" }
        ));
        at_best = spare.map(|spare| mul(spare, answered.token.max(1))).transpose()?.map(Bytes::new).transpose()?;
        short_by = Some(mul(needed - tokens, answered.token.max(1))?);
    }
    if short_by.is_none() && sequences > answered.requests {
        notes.push(format!("{} sequences run at a time at most: the others wait", answered.requests));
    }
    let trained = question.model.spec.max_context;
    let limit = |value: u64, cap: u64, at_cap: LimitedBy| Limit {
        value: value.min(cap),
        limited_by: if value >= cap { at_cap } else { LimitedBy::Memory },
    };
    let longest = tokens / sequences.max(1) / answered.page * answered.page;
    let most = tokens.checked_div(each).unwrap_or(0);
    let limits = Limits {
        max_context: (trained > 0).then(|| limit(longest, trained, LimitedBy::Model)),
        max_sequences: Some(limit(mul(most, replicas)?, mul(answered.requests, replicas)?, LimitedBy::Engine)),
    };
    let blocks = tokens / answered.page;
    let cache = CacheBrief {
        bytes_per_token: Bytes::new(answered.token)?,
        blocks: Some(blocks),
        block_tokens: Some(answered.page),
        max_concurrency: Concurrency::of(blocks, each / answered.page),
        tokens: Some(tokens),
        block_bytes: Some(Bytes::new(mul(answered.token, answered.page)?)?),
        groups: None,
    };
    let short_by = match short_by {
        Some(bytes) => Some(Bytes::new(bytes)?),
        None => None,
    };
    let served = Served {
        cache: Some(cache),
        kv_type: answered.kv_type,
        settings: answered.settings,
        short_by,
        at_best,
        limits: Some(limits),
        notes,
        command: answered.command,
    };
    Ok(Planned {
        allocation,
        resolved: Resolved {
            context_per_sequence: context,
            total_context: tokens,
            batch: answered.step,
            ubatch: answered.step,
            flash_attention: true,
        },
        cache_bytes_per_token: answered.token,
        vllm: None,
        served: Some(Box::new(served)),
        checkpoint_bytes: 0,
    })
}

/// Pools of both ends of a budget; the reason where the smaller one is refused.
///
/// # Errors
/// [`PlanError::Math`] for everything but a refusal.
pub(crate) fn both<T>(budget: (u64, u64), of: impl Fn(u64) -> Result<T, MathError>) -> Result<Result<(T, T), String>, PlanError> {
    match of(budget.0) {
        Ok(low) => Ok(Ok((low, of(budget.1)?))),
        Err(MathError::Refused { reason, .. }) => Ok(Err(reason)),
        Err(other) => Err(other.into()),
    }
}

/// A share of bytes given in millionths.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn share(bytes: u64, millionths: u64) -> Result<u64, MathError> {
    let share = u128::from(bytes).saturating_mul(u128::from(millionths)) / 1_000_000;
    u64::try_from(share).map_err(|_| MathError::Overflow { quantity: "share" })
}

/// Both bounds of a sum that is taken from a budget.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn taken(stage: &Stage, with_work: bool) -> Result<(u64, u64), MathError> {
    let (mut low, mut high) = stage.weights;
    if with_work {
        low = add(low, stage.work.0)?;
        high = add(high, stage.work.1)?;
    }
    Ok((low, high))
}
