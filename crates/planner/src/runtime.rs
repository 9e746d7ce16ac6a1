//! What llama-server takes in host memory as it runs, beside what it allocates when it starts.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Certainty, Term, TermKind};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::compute::Bounds;
use plimsoll_math::engine::llama_cpp::work_buffer;
use plimsoll_math::units::{Bytes, mul};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::request::Engine;

/// The most threads that the engine's processor backend starts (`ggml.h:GGML_MAX_N_THREADS`).
const MOST_THREADS: u64 = 512;

fn term(label: &str, bounds: Bounds, formula: String, source: String) -> Result<Term, PlanError> {
    let (low, high) = (Bytes::new(bounds.low)?, Bytes::new(bounds.high)?);
    Ok(Term {
        component: TermKind::Other,
        label: label.to_string(),
        bytes: high,
        certainty: if low == high { Certainty::Exact } else { Certainty::Bounded { low, high } },
        formula,
        source,
        children: Vec::new(),
    })
}

/// The processor's work buffer, where the number of threads is given and the processor has something to work on.
pub(crate) fn work(question: &Question<'_>, build: Build) -> Result<Option<Term>, PlanError> {
    let Some(threads) = question.effective.threads else { return Ok(None) };
    let bounds = work_bounds(question, build, threads)?;
    if bounds.high == 0 {
        return Ok(None);
    }
    let formula = format!("what the neediest operation on the processor takes with {threads} threads, and a line for each");
    Ok(Some(term("work buffer of the processor", bounds, formula, work_source(build))?))
}

fn work_bounds(question: &Question<'_>, build: Build, threads: u64) -> Result<Bounds, PlanError> {
    let deployment = &question.effective.deployment;
    Ok(work_buffer::bounds(&question.converted(), question.tensors(), deployment, build, threads)?)
}

fn work_source(build: Build) -> String {
    format!("{build}: ggml-cpu.c:ggml_graph_plan, made with the first graph that is computed")
}

/// What may come on top as the server runs: prompts of idle slots, copies of what cannot be rolled back, and the processor's
/// work buffer where the number of threads is not given.
pub(crate) fn limits(question: &Question<'_>, planned: &Planned) -> Result<Vec<Term>, PlanError> {
    let Engine::LlamaCpp(build) = question.effective.engine else { return Ok(Vec::new()) };
    let up_to = |label: &str, high: u64, formula: String, source: &str| {
        term(label, Bounds { low: 0, high }, formula, format!("{build}: {source}"))
    };
    let mut limits = Vec::new();
    // Prompts and checkpoints are kept for completions only, which an embedding server refuses.
    let completes = !question.effective.deployment.embeddings;
    if question.effective.cache_ram > 0 && completes {
        limits.push(up_to(
            "prompt cache",
            question.effective.cache_ram,
            "up to --cache-ram of idle prompts' states".to_string(),
            "tools/server/server-task.h:server_prompt_cache",
        )?);
    }
    let count = question.effective.context_checkpoints;
    let slots = question.effective.deployment.sequences;
    if planned.checkpoint_bytes > 0 && count > 0 && completes {
        limits.push(up_to(
            "context checkpoints",
            mul(planned.checkpoint_bytes, mul(count, slots)?)?,
            format!("up to {count} checkpoints x {slots} slots x {} B of windows and states", planned.checkpoint_bytes),
            "tools/server/server-context.cpp:create_checkpoint",
        )?);
    }
    if question.effective.threads.is_none() && !question.model.generic {
        let bounds = Bounds { low: work_bounds(question, build, 1)?.low, high: work_bounds(question, build, MOST_THREADS)?.high };
        if bounds.high > 0 {
            let formula = format!("1 to {MOST_THREADS} threads: --threads says how many, and makes it one figure");
            limits.push(term("work buffer of the processor", bounds, formula, work_source(build))?);
        }
    }
    Ok(limits)
}
