//! The second context that drafts tokens with the model's own prediction layers (`--spec-type draft-mtp`): caches of those
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
use crate::deployment::{Deployment, Location};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::units::{Bytes, add, mul};

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
