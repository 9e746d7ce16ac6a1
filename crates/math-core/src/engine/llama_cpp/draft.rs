//! Drafting: a smaller model in a context of its own, or the second context that drafts tokens with the model's own prediction layers (`--spec-type draft-mtp`): caches of those
//! layers alone, and a graph of its own (`common/speculative.cpp:common_speculative_init_from_params`).

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::build::Build;
use super::cache::cache_plans;
use super::compute::ComputeShape;
use super::facts::Facts;
use super::layout::Layout;
use super::resolve::{ResolveFacts, Resolved};
use crate::allocation::{Certainty, Term, TermKind};
use crate::deployment::{ContextRequest, Deployment, Location};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::ModelSpec;
use crate::units::{Bytes, add, mul};

/// Token numbers by which the vocabularies of two models may differ (`common/speculative.cpp:SPEC_VOCAB_MAX_SIZE_DIFFERENCE`).
const LIKE_VOCABULARY: u64 = 128;

/// Refuses a draft model whose vocabulary is another (`common/speculative.cpp:common_speculative_are_compatible`).
///
/// # Errors
/// [`MathError::Refused`].
pub fn check_vocabularies(target: &ModelSpec, draft: &ModelSpec, build: Build) -> Result<(), MathError> {
    let (own, other) = (target.embedding.n_vocab, draft.embedding.n_vocab);
    if own.abs_diff(other) <= LIKE_VOCABULARY {
        return Ok(());
    }
    let reason = format!(
        "target vocab size {own} does not match draft vocab size {other}: they may differ by {LIKE_VOCABULARY}, and it drafts nothing"
    );
    Err(super::refuse::refused(build, reason))
}

/// What the server asks for its draft model, beside the target's context: as many tokens, the same batches, devices and
/// shares, but caches, layers on devices and overrides of its own, and one row of logits for each sequence
/// (`common/speculative.cpp:common_base_params_to_speculative`, `common_speculative_init_result`).
#[must_use]
pub fn drafting(
    target: &Deployment,
    resolved: &Resolved,
    gpu_layers: Option<u64>,
    kv_types: (StorageFormat, StorageFormat),
) -> Deployment {
    Deployment {
        context: ContextRequest::Total(resolved.n_ctx),
        gpu_layers,
        kv_type_k: kv_types.0,
        kv_type_v: kv_types.1,
        load_mtp: false,
        draft_context: false,
        draft_tokens: 0,
        embeddings: false,
        logits_for_all: false,
        tensor_overrides: Vec::new(),
        cpu_moe: false,
        n_cpu_moe: 0,
        ..target.clone()
    }
}

/// The terms of the drafting context, with their places; none where nothing drafts.
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn terms(
    spec: &ModelSpec,
    deployment: &Deployment,
    resolved: &Resolved,
    layout: &Layout,
    build: Build,
) -> Result<Vec<(Location, Term)>, MathError> {
    if !deployment.draft_context || spec.mtp.is_empty() {
        return Ok(Vec::new());
    }
    let layers = spec.mtp.iter().map(|mtp| mtp.layer.clone()).collect();
    let drafting = ModelSpec { layers, mtp: Vec::new(), ..spec.clone() };
    let facts = Facts::new(&drafting, build)?;
    let asked = ResolveFacts::new(spec, facts, deployment)?;
    let behind = layout.behind(spec.layers.len());
    let plans = cache_plans(&drafting, facts, deployment, &behind, asked.transposes_values(deployment))?;
    let source = format!("{build}: common/speculative.cpp:common_speculative_init_from_params");
    let mut terms = Vec::new();
    for place in layout.places() {
        let bytes =
            plans.iter().try_fold(0, |sum, plan| add(sum, plan.at(place).bytes(resolved, deployment, &behind)?.total()?))?;
        if bytes > 0 {
            let formula = format!("keys and values of {} prediction layers x {} cells", spec.mtp.len(), resolved.n_ctx);
            terms.push((place, term("drafting context, cache", bytes, bytes, formula, &source)?));
        }
    }
    let bounds = ComputeShape::new(&drafting, facts, deployment)?.bounds(&plans, resolved, deployment)?;
    let graph = format!("largest step of a graph of {} tokens through the prediction layers", resolved.graph_tokens);
    if let Location::Device(_) = behind.output() {
        terms.push((behind.output(), term("drafting context, compute buffer", 0, bounds.device.high, graph.clone(), &source)?));
    }
    let output = mul(4, mul(resolved.n_seq_max, spec.embedding.n_vocab)?)?;
    let host = add(bounds.host.high, output)?;
    terms.push((Location::Host, term("drafting context, compute and output buffers", output, host, graph, &source)?));
    Ok(terms)
}

fn term(label: &str, low: u64, high: u64, formula: alloc::string::String, source: &str) -> Result<Term, MathError> {
    let (low, high) = (Bytes::new(low)?, Bytes::new(high)?);
    Ok(Term {
        component: TermKind::Draft,
        label: label.to_string(),
        bytes: high,
        certainty: if low == high { Certainty::Exact } else { Certainty::Bounded { low, high } },
        formula,
        source: source.to_string(),
        children: Vec::new(),
    })
}
