//! Compute buffers for every context at once: the ranges of contexts in which they grow along a straight line.
//!
//! Nothing is interpolated. Each range comes from a replay whose every decision holds throughout the range
//! ([`super::length`]).

use alloc::vec::Vec;

use super::depth::Depth;
use super::length::{Amount, Length, Steps};
use super::places::Places;
use super::replay::{Growing, replay};
use super::tensors::Graph;
use super::{ComputeBytes, Recipe, Reserve};
use crate::deployment::{ContextRequest, Deployment};
use crate::engine::llama_cpp::cache::{CachePlan, CellRule};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::resolve::{CONTEXT_PAD, ResolveFacts, Resolved, resolve_with};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::units::{add, mul};

/// Cells up to which ranges are looked for; beyond, the last one goes on only as far as it was shown to.
const MOST_CELLS: u64 = 1 << 27;

/// How many ranges are looked for before the rest is left to replays.
const MOST_REGIMES: usize = 24;

/// Contexts from `from` to `to` cells per sequence, and the buffers in between.
#[derive(Debug, Clone, Copy)]
struct Regime {
    from: u64,
    to: u64,
    /// Micro-batch and rows of logits. They follow the context as it was asked for, before it is rounded up.
    tokens: u64,
    outputs: u64,
    device: Length,
    host: Length,
}

impl Regime {
    const fn covers(&self, resolved: &Resolved) -> bool {
        self.from <= resolved.n_ctx_seq && self.tokens == resolved.graph_tokens && self.outputs == resolved.n_outputs_max
    }
}

/// The ranges for one number of sequences.
#[derive(Debug, Clone)]
pub(in crate::engine::llama_cpp) struct Regimes {
    sequences: u64,
    list: Vec<Regime>,
}

impl Regimes {
    /// The ranges of a deployment for its number of sequences; `None` where the graph is not known.
    pub(in crate::engine::llama_cpp) fn new(
        spec: &ModelSpec,
        deployment: &Deployment,
        facts: Facts<'_>,
        resolve_facts: &ResolveFacts,
        plans: &[CachePlan],
    ) -> Result<Option<Self>, MathError> {
        let sequences = deployment.sequences.max(1);
        let at = |cells: u64| -> Result<Resolved, MathError> {
            let pool = if deployment.kv_unified { cells } else { mul(cells, sequences)? };
            resolve_with(resolve_facts, deployment, ContextRequest::Total(pool), sequences)
        };
        let Some(mut recipe) = Recipe::new(spec, deployment, facts, Places::single(deployment.backend()))? else {
            return Ok(None);
        };
        let mut out = Self { sequences, list: Vec::new() };
        let mut from = CONTEXT_PAD;
        while from <= MOST_CELLS && out.list.len() < MOST_REGIMES {
            // A context that the engine refuses is no range; neither is one beyond its counters.
            let (Ok(here), Ok(next)) = (at(from), at(add(from, CONTEXT_PAD)?)) else { break };
            if out.list.is_empty() {
                let Some(settled) = recipe.settled(&here, plans)? else { return Ok(None) };
                recipe = settled;
            }
            let Some(regime) = regime(&recipe, plans, [&here, &next], &at)? else { return Ok(None) };
            from = add(regime.to, CONTEXT_PAD)?;
            out.list.push(regime);
        }
        Ok(Some(out))
    }

    /// The buffers for effective parameters, where a range covers them.
    pub(in crate::engine::llama_cpp) fn bytes(&self, resolved: &Resolved) -> Result<Option<ComputeBytes>, MathError> {
        let cells = resolved.n_ctx_seq;
        if resolved.n_seq_max != self.sequences || !cells.is_multiple_of(CONTEXT_PAD) {
            return Ok(None);
        }
        let index = self.list.partition_point(|regime| regime.to < cells);
        let Some(regime) = self.list.get(index).filter(|regime| regime.covers(resolved)) else { return Ok(None) };
        let steps = cells.saturating_sub(regime.from) / CONTEXT_PAD;
        Ok(Some(ComputeBytes { device: regime.device.after(steps)?, host: regime.host.after(steps)? }))
    }
}

/// How many cells the selectors of sparse attention choose.
fn chosen_cells(spec: &ModelSpec) -> impl Iterator<Item = u64> + '_ {
    spec.layers.iter().filter_map(|layer| layer.mixer.selector()).map(|indexer| indexer.top_k)
}

/// The range that starts at `here`.
fn regime(
    recipe: &Recipe<'_>,
    plans: &[CachePlan],
    [here, next]: [&Resolved; 2],
    at: &dyn Fn(u64) -> Result<Resolved, MathError>,
) -> Result<Option<Regime>, MathError> {
    let deployment = recipe.deployment;
    let mut steps = Steps::default();
    steps.limit(MOST_CELLS / CONTEXT_PAD);
    // Micro-batch and rows of logits follow the context only while it is shorter than they are.
    if (here.graph_tokens, here.n_outputs_max, here.n_ubatch) != (next.graph_tokens, next.n_outputs_max, next.n_ubatch) {
        steps.limit(0);
    }
    for plan in plans {
        // A window's cells grow with the context until they are as many as it needs, and then no more.
        let (now, then) = (plan.cells(here, deployment.swa_full)?, plan.cells(next, deployment.swa_full)?);
        if now != then {
            let most = plan.cells(&Resolved { n_ctx_seq: MOST_CELLS, ..*here }, deployment.swa_full)?;
            match plan.cells {
                CellRule::Context => {}
                CellRule::Window { .. } => steps.limit(most.saturating_sub(now) / CONTEXT_PAD),
                CellRule::Compressed { .. } | CellRule::None => steps.limit(0),
            }
        }
    }
    // A selector chooses no more cells than there are.
    for top_k in chosen_cells(recipe.spec) {
        if let Some(rest) = top_k.checked_sub(here.n_ctx_seq).filter(|rest| *rest > 0) {
            steps.limit(rest / CONTEXT_PAD);
        }
    }
    let kinds = recipe.buffer_kinds();
    let (mut device, mut host) = (Length::ZERO, Length::ZERO);
    let mut lines: Vec<(Growing, Depth)> = Vec::new();
    for (reserve, later) in Reserve::all(here, recipe.facts).into_iter().zip(Reserve::all(next, recipe.facts)) {
        let mut depth = Depth::Few;
        let lengths = loop {
            let Some(now) = recipe.graph(here, plans, reserve, depth)? else { return Ok(None) };
            let Some(then) = recipe.graph(next, plans, later, depth)? else { return Ok(None) };
            let mut own = steps;
            let growing = growing(now, &then, &mut own)?;
            match replay(&growing, &kinds, &mut own)? {
                Some(lengths) => {
                    steps = own;
                    lines.push((growing, depth));
                    break lengths;
                }
                None if depth == Depth::All => return Ok(None),
                None => depth = depth.next(),
            }
        };
        let (needs_host, needs_device) = match lengths.as_slice() {
            [device, host] => (*host, *device),
            [host] => (*host, Length::ZERO),
            _ => return Ok(None),
        };
        device = Length::larger(&mut steps, device, needs_device);
        host = Length::larger(&mut steps, host, needs_host);
    }
    let from = here.n_ctx_seq;
    // Two contexts give a line; a third, at its end, shows that nothing bends on the way: a choice limited to so many cells, a
    // kernel for longer contexts.
    loop {
        let far = add(from, mul(steps.most().min(MOST_CELLS / CONTEXT_PAD), CONTEXT_PAD)?)?;
        let most = steps.most();
        if most <= 1 || ends_on_lines(recipe, plans, &lines, at(far), most)? {
            break;
        }
        steps.limit(most / 2);
    }
    let to = add(from, mul(steps.most().min(MOST_CELLS / CONTEXT_PAD), CONTEXT_PAD)?)?;
    Ok(Some(Regime { from, to, tokens: here.graph_tokens, outputs: here.n_outputs_max, device, host }))
}

/// Whether every size is where its line says at the far end of a range.
fn ends_on_lines(
    recipe: &Recipe<'_>,
    plans: &[CachePlan],
    lines: &[(Growing, Depth)],
    far: Result<Resolved, MathError>,
    steps: u64,
) -> Result<bool, MathError> {
    let Ok(far) = far else { return Ok(false) };
    for (reserve, (growing, depth)) in Reserve::all(&far, recipe.facts).into_iter().zip(lines) {
        let Some(graph) = recipe.graph(&far, plans, reserve, *depth)? else { return Ok(false) };
        let Growing { graph: near, lengths } = growing;
        if graph.tensors.len() != near.tensors.len() || graph.nodes != near.nodes || graph.leafs != near.leafs {
            return Ok(false);
        }
        for ((tensor, now), [bytes, extra]) in graph.tensors.iter().zip(&near.tensors).zip(lengths) {
            let same_buffer = tensor.extra().map(|(buffer, _)| buffer) == now.extra().map(|(buffer, _)| buffer);
            let more = tensor.extra().map_or(0, |(_, bytes)| bytes);
            if !same_buffer || bytes.after(steps)? != tensor.bytes || extra.after(steps)? != more {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A graph whose sizes are straight lines through two contexts.
fn growing(now: Graph, then: &Graph, steps: &mut Steps) -> Result<Growing, MathError> {
    let mut lengths = Vec::with_capacity(now.tensors.len());
    let alike = now.tensors.len() == then.tensors.len()
        && now.nodes == then.nodes
        && now.leafs == then.leafs
        && now.sources == then.sources;
    if !alike {
        steps.limit(0);
        for tensor in &now.tensors {
            lengths.push([Length::of(tensor.bytes)?, Length::of(tensor.extra().map_or(0, |(_, bytes)| bytes))?]);
        }
        return Ok(Growing { graph: now, lengths });
    }
    for (tensor, later) in now.tensors.iter().zip(&then.tensors) {
        if tensor.may_overwrite {
            let source = |graph: &Graph, index: u32, layout| {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                graph.tensors.get(index).is_some_and(|tensor| tensor.layout == layout)
            };
            // Whether an input may be written over has to be so in both.
            let changes = |index: u32| source(&now, index, tensor.layout) != source(then, index, later.layout);
            if now.sources(tensor).iter().any(|&index| changes(index)) {
                steps.limit(0);
            }
        }
        let extra = match (tensor.extra(), later.extra()) {
            (Some((buffer, bytes)), Some((also, more))) if buffer == also => Length::between(bytes, more)?,
            (None, None) => Length::ZERO,
            (extra, _) => {
                steps.limit(0);
                Length::of(extra.map_or(0, |(_, bytes)| bytes))?
            }
        };
        lengths.push([Length::between(tensor.bytes, later.bytes)?, extra]);
    }
    Ok(Growing { graph: now, lengths })
}
