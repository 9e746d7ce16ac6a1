//! The engine's own command line for a deployment.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::deployment::{ContextRequest, FlashAttention};
use plimsoll_math::format::StorageFormat;

use crate::engine::{Planned, Question};
use crate::model::Basis;
use crate::request::Engine;

/// The file an engine would be given: the model's own, or the one that quantizing it would make.
pub(crate) fn file(question: &Question<'_>) -> String {
    match (&question.model.basis, &question.model.reference) {
        (Basis::Gguf, Some(reference)) => reference.clone(),
        _ => {
            let base = question.model.name.rsplit('/').next().unwrap_or_default();
            let stem: String = base
                .chars()
                .map(|character| if character.is_ascii_alphanumeric() || "._-+".contains(character) { character } else { '-' })
                .collect();
            let quant = question.quant.clone().unwrap_or_else(|| question.model.spec.weight_dtype.name().to_ascii_uppercase());
            format!("{stem}-{quant}.gguf")
        }
    }
}

/// Arguments that make `llama-server` allocate exactly what was planned. Every value is written out: the server's
/// own defaults (four unified slots, context reduced to what fits) would allocate something else.
#[must_use]
pub fn command(question: &Question<'_>, planned: &Planned) -> Vec<String> {
    match question.effective.engine {
        Engine::Ideal => return Vec::new(),
        Engine::Vllm => return crate::vllm::command(question, planned),
        Engine::Sglang | Engine::Mlx | Engine::TensorRtLlm | Engine::Transformers | Engine::Ollama => {
            return planned.served.as_ref().map(|served| served.command.clone()).unwrap_or_default();
        }
        Engine::LlamaCpp(_) => {}
    }
    let deployment = &question.effective.deployment;
    let mut out: Vec<String> = Vec::new();
    let mut option = |name: &str, value: &str| {
        out.push(name.to_string());
        if !value.is_empty() {
            out.push(value.to_string());
        }
    };
    option("llama-server", "");
    option("-m", &file(question));
    let total = match deployment.context {
        ContextRequest::PerSequence(tokens) => tokens.saturating_mul(deployment.sequences),
        ContextRequest::Total(tokens) => tokens,
        ContextRequest::ModelMaximum => question.model.spec.max_context.saturating_mul(deployment.sequences),
    };
    // A total that is no multiple of the engine's rounding is written as the engine will hold it.
    option("-c", &total.max(planned.resolved.total_context).to_string());
    option("-np", &deployment.sequences.to_string());
    option(if deployment.kv_unified { "--kv-unified" } else { "--no-kv-unified" }, "");
    option("-b", &deployment.batch.to_string());
    option("-ub", &deployment.ubatch.to_string());
    for word in crate::place::arguments(deployment) {
        option(&word, "");
    }
    option(
        "-fa",
        match deployment.flash_attention {
            FlashAttention::Auto => "auto",
            FlashAttention::On => "on",
            FlashAttention::Off => "off",
        },
    );
    if deployment.kv_type_k != StorageFormat::F16 {
        option("-ctk", deployment.kv_type_k.name());
    }
    if deployment.kv_type_v != StorageFormat::F16 {
        option("-ctv", deployment.kv_type_v.name());
    }
    if deployment.swa_full {
        option("--swa-full", "");
    }
    if !deployment.repack {
        option("--no-repack", "");
    }
    if !deployment.mmap {
        option("-lm", "none");
    }
    if deployment.embeddings {
        option("--embeddings", "");
    }
    if deployment.draft_context {
        option("--spec-type", "draft-mtp");
        option("--spec-draft-n-max", &deployment.draft_tokens.to_string());
    }
    for word in question.draft.iter().flat_map(|draft| draft.arguments(question)) {
        option(&word, "");
    }
    for word in question.projector.iter().flat_map(|projector| projector.arguments(question)) {
        option(&word, "");
    }
    if let Some(threads) = question.effective.threads {
        option("-t", &threads.to_string());
    }
    if question.effective.cache_ram != 8 << 30 {
        option("--cache-ram", &question.effective.cache_ram.div_ceil(1 << 20).to_string());
    }
    if question.effective.context_checkpoints != 32 {
        option("--ctx-checkpoints", &question.effective.context_checkpoints.to_string());
    }
    option("-fit", "off");
    out
}
