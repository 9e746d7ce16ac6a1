//! Operations that the engine computes as one where they stay on their layer's device (`llama-context.cpp:resolve_fused_ops`).
//!
//! The engine schedules graphs of one token per sequence and looks where its fused operations went; one that left its layer's
//! device in any layer is built of simple operations in all of them. Delta rules and the scores of lightning indexers are
//! fused wherever they run.

use alloc::vec::Vec;

use super::depth::Depth;
use super::ops::Node;
use super::places::Places;
use super::schedule::schedule;
use super::{Recipe, Reserve};
use crate::deployment::{Deployment, FlashAttention};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{CachePlan, cache_plans};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::resolve::{ResolveFacts, Resolved, resolve_with};
use crate::error::MathError;
use crate::spec::{Mixer, ModelSpec};
use crate::tensor::TensorTable;

/// What may be fused, in the order in which the engine decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fusible {
    /// Flash attention.
    Attention,
    /// Versions of the hidden state mixed into one (`ggml_dsv4_hc_pre`).
    MixVersions,
    /// The weights with which versions go over into each other (`ggml_dsv4_hc_comb`).
    CombineVersions,
    /// A result put back into all versions (`ggml_dsv4_hc_post`).
    SpreadVersions,
    /// A mask with all but the chosen cells hidden.
    TopKMask,
}

/// A node that is fused, and the device of its layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct FusedNode {
    pub(super) what: Fusible,
    pub(super) node: Node,
    pub(super) device: usize,
}

/// Which operations of a context are fused, flash attention apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fused {
    pub(super) mix: bool,
    pub(super) combine: bool,
    pub(super) spread: bool,
    pub(super) top_k_mask: bool,
}

impl Fused {
    /// All that a build has.
    pub(super) const fn all(build: Build) -> Self {
        Self { mix: true, combine: true, spread: true, top_k_mask: build.masks_chosen_cells_at_once() }
    }

    const fn without(self, what: Fusible) -> Self {
        match what {
            Fusible::Attention => self,
            Fusible::MixVersions => Self { mix: false, ..self },
            Fusible::CombineVersions => Self { combine: false, ..self },
            Fusible::SpreadVersions => Self { spread: false, ..self },
            Fusible::TopKMask => Self { top_k_mask: false, ..self },
        }
    }
}

/// Lets the graph say whether fused attention stays with its layers, where `--flash-attn auto` asks and several places share
/// the work of a model whose graph is known. Elsewhere what the layers say stands.
///
/// # Errors
/// [`MathError::Overflow`].
pub(in crate::engine::llama_cpp) fn look_at_attention(
    asked: &mut ResolveFacts,
    spec: &ModelSpec,
    table: Option<&TensorTable>,
    deployment: &Deployment,
    facts: Facts<'_>,
    layout: &Layout,
) -> Result<(), MathError> {
    if layout.only_place().is_some() || asked.wanted(deployment) != FlashAttention::Auto {
        return Ok(());
    }
    let fused = ResolveFacts { runs_fused: true, ..*asked };
    let resolved = resolve_with(&fused, deployment, deployment.context, deployment.sequences)?;
    let plans = cache_plans(spec, facts, deployment, layout, asked.transposes_values(deployment))?;
    let Some(places) = Places::new(spec, table, deployment, facts, layout)? else { return Ok(()) };
    let Some(recipe) = Recipe::new(spec, deployment, facts, places)? else { return Ok(()) };
    if let Some(left) = recipe.leaves_its_device(&resolved, &plans)? {
        asked.runs_fused = left.first() != Some(&Fusible::Attention);
    }
    Ok(())
}

impl Recipe<'_> {
    /// The recipe with what is fused as the engine finds it out; `None` where it ends up with a graph that is not known.
    pub(super) fn settled(mut self, resolved: &Resolved, plans: &[CachePlan]) -> Result<Option<Self>, MathError> {
        let looks = |mixer: &Mixer| matches!(mixer, Mixer::CompressedAttention(_)) || mixer.selector().is_some();
        if !self.spec.layers.iter().any(|layer| looks(&layer.mixer)) {
            return Ok(Some(self));
        }
        let mut decided = Fusible::Attention;
        loop {
            let Some(left) = self.leaves_its_device(resolved, plans)? else { return Ok(None) };
            let Some(next) = left.into_iter().find(|what| *what > decided) else { return Ok(Some(self)) };
            self.fused = self.fused.without(next);
            decided = next;
        }
    }

    /// What the scheduler takes away from its layer's device, in order; `None` where the graph is not known.
    fn leaves_its_device(&self, resolved: &Resolved, plans: &[CachePlan]) -> Result<Option<Vec<Fusible>>, MathError> {
        let sequences = resolved.n_seq_max;
        let reserve = Reserve { tokens: sequences, sequences, outputs: sequences, looks: true };
        let Some((parts, machine)) = self.build(resolved, plans, reserve, Depth::Few)? else { return Ok(None) };
        let fused = parts.fused.clone();
        let graph = schedule(parts.graph, machine)?;
        let mut left: Vec<Fusible> = Vec::new();
        for FusedNode { what, node, device } in fused {
            if graph.backend_of(node).is_some_and(|backend| usize::try_from(backend) != Ok(device)) {
                left.push(what);
            }
        }
        left.sort_unstable();
        left.dedup();
        Ok(Some(left))
    }
}
