//! The scheduler's table of graph tensors: too small for some models, and the engine aborts when it is full.
//!
//! `llama-context.cpp:graph_max_nodes` allots eight slots per weight tensor, `ggml.c:ggml_hash_size` rounds up to a
//! prime, and `ggml-impl.h:ggml_hash_find_or_insert` aborts on the first tensor beyond. Models with few tensors and
//! many graph nodes a layer run over once rotations and streams add theirs.

use crate::deployment::Deployment;
use crate::engine::llama_cpp::cache::rotation_counts;
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::spec::{Attention, FeedForward, Layer, Mixer, ModelSpec, QkvLayout};
use crate::synth;
use crate::tensor::{Counts, Place, Tensor};
use crate::units::{add, mul};

/// The primes of `ggml.c:ggml_hash_size` from the smallest budget on.
const PRIMES: &[u64] = &[1031, 2053, 4099, 8209, 16411, 32771, 65537, 131_101, 262_147];

/// What a graph would need and what its table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeBudget {
    /// Tensors of the largest graph: nodes, weights, caches and inputs.
    pub(crate) needed: u64,
    /// Slots.
    pub(crate) slots: u64,
}

/// Graphs whose nodes are counted below: the plain decoder layer of `models/llama.cpp`, `granite.cpp` and
/// `phi3.cpp`. In others there are so many weight tensors to a layer that the table has room to spare.
const COUNTED: &[&str] = &["llama", "granite", "granitemoe", "phi3"];

/// The budget, `None` where no count is kept.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn node_budget(
    spec: &ModelSpec,
    facts: Facts<'_>,
    deployment: &Deployment,
    resolved: &Resolved,
) -> Result<Option<NodeBudget>, MathError> {
    if !COUNTED.contains(&facts.arch) {
        return Ok(None);
    }
    let weights = n_weights(spec)?;
    let granite = matches!(facts.arch, "granite" | "granitemoe");
    let (k_rotations, v_rotations) = rotation_counts(spec, facts, deployment)?;
    // Each rotation reshapes, multiplies and reshapes back for what is stored and for what is compared with it.
    let rotation_nodes = mul(6, add(k_rotations, v_rotations)?)?;
    let mut nodes = if granite { 8 } else { 6 };
    nodes = add(nodes, facts.build.extra_graph_nodes())?;
    nodes = add(nodes, rotation_nodes)?;
    let mut layers: u64 = 0;
    for layer in &spec.layers {
        let Mixer::Attention(attention) = &layer.mixer else { return Ok(None) };
        layers = add(layers, 1)?;
        nodes = add(nodes, attention_nodes(attention, resolved))?;
        nodes = add(nodes, if granite { 2 } else { 0 })?;
        nodes = add(
            nodes,
            match &layer.feed_forward {
                FeedForward::Dense(dense) if dense.fused_gate_up => 3,
                FeedForward::Dense(_) => 4,
                FeedForward::Moe(moe) => add(16, mul(2, moe.n_experts_per_token)?)?,
                FeedForward::ChannelMix { .. } | FeedForward::None => return Ok(None),
            },
        )?;
    }
    let rotation_leafs = if facts.build.rotation_matrices_are_cached() {
        add(k_rotations, v_rotations)?
    } else {
        k_rotations.min(1).saturating_add(v_rotations.min(1))
    };
    let inputs = add(6, rotation_leafs)?;
    let needed = add(add(nodes, weights)?, add(mul(2, layers)?, inputs)?)?;
    let wanted = mul(8, weights)?.max(1024);
    let slots = PRIMES.iter().copied().find(|prime| *prime >= wanted).unwrap_or(wanted | 1);
    Ok(Some(NodeBudget { needed, slots }))
}

/// Weight tensors of the model that the loader makes. Layers follow each other alike: one is counted for all.
fn n_weights(spec: &ModelSpec) -> Result<u64, MathError> {
    let count = |tensors: &[Tensor]| {
        let loaded = tensors.iter().filter(|tensor| {
            tensor.place != Place::Tower && matches!(tensor.counts, Counts::Parameter | Counts::Buffer | Counts::Derived)
        });
        loaded.fold(0_u64, |count, _| count.saturating_add(1))
    };
    let mut sum = count(&synth::table_with_layers(spec, &[])?.tensors);
    let mut before: Option<(&Layer, u64)> = None;
    for layer in &spec.layers {
        let own = match before {
            Some((known, own)) if known == layer => own,
            _ => count(&synth::tensors_of_layer(spec, layer)?),
        };
        before = Some((layer, own));
        sum = add(sum, own)?;
    }
    Ok(sum)
}

/// Nodes of norms, projections, rope, cache writes and reads, attention itself and both residuals of one layer.
const fn attention_nodes(attention: &Attention, resolved: &Resolved) -> u64 {
    let projections = match attention.layout {
        QkvLayout::Fused => 26,
        QkvLayout::Split | QkvLayout::ValueIsKey | QkvLayout::QueryOnly | QkvLayout::Listed => 27,
    };
    let streams = match (resolved.streams > 1, resolved.flash_attention) {
        (false, _) => 0,
        (true, true) => 2,
        (true, false) => 1,
    };
    let scores = if resolved.flash_attention { 0 } else { 5 };
    projections + streams + scores
}
