//! Ollama behind the planner's door: llama.cpp's rules with Ollama's own defaults.
//!
//! Ollama vendors a llama.cpp of its own and runs some models in an engine of its own, whose graphs are not followed:
//! weights and caches are llama.cpp's, compute buffers lie between those of the builds that are followed.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Allocation, Certainty, Term, TermKind};
use plimsoll_math::deployment::{ContextRequest, Deployment, FlashAttention};
use plimsoll_math::device::{Device, DeviceKind};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::units::Bytes;

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::request::Options;
use crate::served::{Served, reference};

/// The version that is followed: the documentation at 948f693.
pub const VERSION_NUMBER: &str = "948f693";
/// Tokens of a batch (`num_batch`).
const BATCH: u64 = 512;

/// The context of a request that names none, by the memory of all GPUs (`docs/context-length.mdx`).
const fn usual_context(memory: u64) -> u64 {
    match memory >> 30 {
        0..24 => 4096,
        24..48 => 32_768,
        _ => 262_144,
    }
}

/// Fills in what Ollama would, where the question leaves it open; each in one sentence.
///
/// # Errors
/// [`PlanError`] for values that Ollama does not have.
pub fn settle(options: &Options, deployment: &mut Deployment, devices: &[Device]) -> Result<Vec<String>, PlanError> {
    let mut notes = Vec::new();
    if options.batch.is_none() {
        deployment.batch = BATCH;
    }
    deployment.ubatch = deployment.batch;
    if !matches!(deployment.kv_type_k, StorageFormat::F16 | StorageFormat::Q8_0 | StorageFormat::Q4_0) {
        return Err(PlanError::request("kv_type", deployment.kv_type_k.name(), "f16, q8_0 or q4_0 (OLLAMA_KV_CACHE_TYPE)"));
    }
    if deployment.kv_type_k != StorageFormat::F16 {
        if deployment.flash_attention == FlashAttention::Off {
            return Err(PlanError::request("flash_attention", "off beside a quantized cache", "on: quantized caches need it"));
        }
        deployment.flash_attention = FlashAttention::On;
    }
    if matches!(deployment.context, ContextRequest::ModelMaximum) {
        let gpus = devices.iter().filter(|device| device.kind != DeviceKind::Cpu);
        let memory = gpus.fold(0_u64, |sum, device| sum.saturating_add(device.total.bytes.get()));
        let tokens = usual_context(memory);
        deployment.context = ContextRequest::PerSequence(tokens);
        notes.push(format!("no context was named: Ollama takes {tokens} tokens on GPUs of this memory, or the model's maximum"));
    }
    Ok(notes)
}

/// Plans a question with every build that is followed.
///
/// # Errors
/// [`PlanError::Math`] when all builds refuse.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let mut asked = question.clone();
    let deployment = &mut asked.effective.deployment;
    if let ContextRequest::PerSequence(tokens) = deployment.context
        && question.model.spec.max_context > 0
    {
        // More than the model was trained for is cut (`llm/server.go`).
        deployment.context = ContextRequest::PerSequence(tokens.min(question.model.spec.max_context));
    }
    let mut planned = asked.plan_llama_cpp(Build::default())?;
    for build in Build::ALL {
        // A build that does not know the model says nothing about it.
        if let Ok(other) = asked.plan_llama_cpp(*build) {
            widen(&mut planned.allocation, &other.allocation)?;
        }
    }
    let deployment = &asked.effective.deployment;
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| settings.insert(name.to_string(), value);
    set("num_ctx", planned.resolved.context_per_sequence.to_string());
    set("num_parallel", deployment.sequences.to_string());
    set("num_batch", deployment.batch.to_string());
    set("kv_cache_type", deployment.kv_type_k.name().to_string());
    let environment = [
        format!("OLLAMA_CONTEXT_LENGTH={}", planned.resolved.context_per_sequence),
        format!("OLLAMA_NUM_PARALLEL={}", deployment.sequences),
        format!("OLLAMA_KV_CACHE_TYPE={}", deployment.kv_type_k.name()),
        format!("OLLAMA_FLASH_ATTENTION={}", u8::from(planned.resolved.flash_attention)),
    ];
    let mut command = Vec::from(["env".to_string()]);
    command.extend(environment);
    command.extend(["ollama".to_string(), "serve".to_string()]);
    let notes = Vec::from([
        format!("{} is asked of the server below; num_ctx times num_parallel tokens are allocated", reference(question)),
        "compute buffers lie between those of the llama.cpp builds that are followed: Ollama's own build and engine are not"
            .to_string(),
    ]);
    planned.served = Some(Box::new(Served {
        kv_type: deployment.kv_type_k.name().to_string(),
        settings,
        notes,
        command,
        ..Served::default()
    }));
    Ok(planned)
}

/// Stretches compute terms over those of another build; a term that only one of them has may be nothing.
fn widen(allocation: &mut Allocation, other: &Allocation) -> Result<(), PlanError> {
    let of = |terms: &[Term]| -> Result<u64, PlanError> {
        Ok(Bytes::sum(terms.iter().filter(|term| term.component == TermKind::Compute).map(|term| term.bytes))?.get())
    };
    let places = allocation.devices.iter_mut().chain(core::iter::once(&mut allocation.host));
    for (place, there) in places.zip(other.devices.iter().chain(core::iter::once(&other.host))) {
        let bytes = of(&there.terms)?;
        let mut compute = place.terms.iter_mut().filter(|term| term.component == TermKind::Compute);
        let Some(term) = compute.next() else { continue };
        let (low, high) = match &term.certainty {
            Certainty::Bounded { low, high } => (low.get(), high.get()),
            _ => (term.bytes.get(), term.bytes.get()),
        };
        let (low, high) = (Bytes::new(low.min(bytes))?, Bytes::new(high.max(bytes))?);
        term.bytes = high;
        term.certainty = Certainty::Bounded { low, high };
        term.children = Vec::new();
    }
    Ok(())
}
