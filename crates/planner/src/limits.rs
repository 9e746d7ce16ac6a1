//! Reverse questions: the largest context, the most sequences.
//!
//! What an engine takes never shrinks when it is asked for more, so a bisection finds the last value that fits; the
//! next one does not. The engine's own rounding is inside the figure that is searched.

use alloc::string::ToString;

use plimsoll_math::deployment::ContextRequest;
use plimsoll_math::device::Device;
use plimsoll_math::engine::llama_cpp::resolve::MAX_SEQUENCES;
use plimsoll_math::error::MathError;
use plimsoll_math::units::Bytes;

use crate::command::command;
use crate::engine::{Compiled, Question};
use crate::error::PlanError;
use crate::fit::{Used, deployment_brief, engine_brief, model_brief};
use crate::model::Model;
use crate::request::{Engine, Options};
use crate::response::{Limit, LimitedBy, Limits, REACH_SCHEMA, Reach};

/// Whether so much context for so many sequences fits; `None` when the engine refuses it.
fn fits(compiled: &Compiled<'_>, devices: &[Device], context: ContextRequest, sequences: u64) -> Result<Option<bool>, PlanError> {
    match compiled.used(context, sequences) {
        Ok(used) => Ok(Some(used.headroom(devices)?.is_ok())),
        Err(PlanError::Math(MathError::Refused { .. })) => Ok(None),
        // More than can be counted, or than the engine can count, is more than fits.
        Err(PlanError::Math(MathError::Overflow { .. } | MathError::Invalid { .. })) => Ok(Some(false)),
        Err(other) => Err(other),
    }
}

/// The largest value in `1..=cap` that fits; what stops it.
fn search(
    cap: u64,
    at_cap: LimitedBy,
    mut check: impl FnMut(u64) -> Result<Option<bool>, PlanError>,
) -> Result<Limit, PlanError> {
    if check(cap)? == Some(true) {
        return Ok(Limit { value: cap, limited_by: at_cap });
    }
    let (mut good, mut bad, mut refused) = (0, cap, false);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match check(middle)? {
            Some(true) => good = middle,
            Some(false) => {
                bad = middle;
                refused = false;
            }
            None => {
                bad = middle;
                refused = true;
            }
        }
    }
    Ok(Limit { value: good, limited_by: if refused { LimitedBy::Engine } else { LimitedBy::Memory } })
}

/// The largest context per sequence, up to what the model was trained for; `None` when no context is asked of the
/// engine at all (it keeps no cache) or the source does not say what the model was trained for.
///
/// # Errors
/// [`PlanError`] when the engine does not know the model.
pub fn max_context(question: &Question<'_>) -> Result<Option<Limit>, PlanError> {
    if question.effective.engine == Engine::Vllm {
        return Ok(question.plan()?.vllm.and_then(|answer| answer.limits.max_context));
    }
    if let Some(limits) = question.served_limits()? {
        return Ok(limits.max_context);
    }
    let cap = question.model.spec.max_context;
    if cap == 0 {
        return Ok(None);
    }
    let compiled = question.compile()?;
    let sequences = question.effective.deployment.sequences;
    search(cap, LimitedBy::Model, |tokens| {
        fits(&compiled, &question.effective.devices, ContextRequest::PerSequence(tokens), sequences)
    })
    .map(Some)
}

/// The most sequences, each with the context asked for.
///
/// # Errors
/// [`PlanError`] when the engine does not know the model.
pub fn max_sequences(question: &Question<'_>) -> Result<Option<Limit>, PlanError> {
    if question.effective.engine == Engine::Vllm {
        return Ok(question.plan()?.vllm.and_then(|answer| answer.limits.max_sequences));
    }
    if let Some(limits) = question.served_limits()? {
        return Ok(limits.max_sequences);
    }
    let compiled = question.compile()?;
    let context = question.effective.deployment.context;
    // An engine that has no slots takes as many sequences as memory does.
    let cap = if question.effective.engine.is_served() { 1 << 16 } else { MAX_SEQUENCES };
    search(cap, LimitedBy::Engine, |sequences| fits(&compiled, &question.effective.devices, context, sequences)).map(Some)
}

/// Both limits.
///
/// # Errors
/// As the two searches.
pub fn both(question: &Question<'_>) -> Result<Limits, PlanError> {
    Ok(Limits { max_context: max_context(question)?, max_sequences: max_sequences(question)? })
}

fn reach(
    mut question: Question<'_>,
    of: &str,
    limit: Limit,
    apply: impl FnOnce(&mut Question<'_>, u64),
) -> Result<Reach, PlanError> {
    apply(&mut question, limit.value.max(1));
    let planned = question.plan()?;
    Ok(Reach {
        schema: REACH_SCHEMA.to_string(),
        model: model_brief(&question)?,
        engine: engine_brief(&question),
        deployment: deployment_brief(&question, &planned),
        of: of.to_string(),
        limit,
        used: Used::of(&planned)?.on_devices()?,
        usable: Bytes::sum(question.effective.devices.iter().map(|device| device.usable.bytes))?,
        command: command(&question, &planned),
        notes: question.effective.notes.clone(),
    })
}

/// What the engine chooses is an answer of `fit`, and no limit.
fn not_chosen(options: &Options) -> Result<(), PlanError> {
    if options.like_engine == Some(true) {
        return Err(PlanError::request("like_engine", "a question for a limit", "`fit`, which answers what the engine chooses"));
    }
    Ok(())
}

/// Answers `max-context`.
///
/// # Errors
/// [`PlanError`].
pub fn reach_context(model: &Model, options: &Options) -> Result<Reach, PlanError> {
    not_chosen(options)?;
    let question = Question::new(model, options)?;
    let limit = max_context(&question)?.ok_or_else(|| {
        PlanError::request("context", "a model that does not say what it was trained for", "a context of your own")
    })?;
    reach(question, "context", limit, |question, tokens| {
        question.effective.deployment.context = ContextRequest::PerSequence(tokens);
    })
}

/// Answers `max-sequences`.
///
/// # Errors
/// [`PlanError`].
pub fn reach_sequences(model: &Model, options: &Options) -> Result<Reach, PlanError> {
    not_chosen(options)?;
    let question = Question::new(model, options)?;
    let limit = max_sequences(&question)?.unwrap_or(Limit { value: 0, limited_by: LimitedBy::Memory });
    reach(question, "sequences", limit, |question, sequences| {
        question.effective.deployment.sequences = sequences;
    })
}
