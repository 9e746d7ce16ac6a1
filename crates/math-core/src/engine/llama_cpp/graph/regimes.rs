//! Compute buffers for every context at once: the ranges of contexts in which they grow along a line.
//!
//! Nothing is interpolated. A *stretch* is a run of settings whose graphs differ in their sizes alone, each of which lies on a
//! straight line: over the cells of a context, or over the tokens of a micro-batch where the context is shorter than one. Each
//! range of a stretch comes from a replay whose every decision holds throughout the range ([`super::length`]).

use alloc::vec::Vec;

use super::length::{Length, RoundedLines};
use super::places::Places;
use super::stretch::{Along, Budget, Origin, Stills, Stretch};
use super::{ComputeBytes, Recipe};
use crate::deployment::{ContextRequest, Deployment};
use crate::engine::llama_cpp::cache::{CachePlan, CellRule};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::resolve::{CONTEXT_PAD, ResolveFacts, Resolved, resolve_with};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::units::{add, mul};

/// Cells up to which ranges are looked for whatever the model's length, and never beyond.
const LONG_CONTEXT: u64 = 1 << 17;
const MOST_CELLS: u64 = 1 << 27;

/// How much looking for ranges may cost where few contexts will be asked for, counted in nodes of graphs: a few replays' worth.
pub(in crate::engine::llama_cpp) const FEW_CONTEXTS: u64 = 20_000;

/// Where many will be.
pub(in crate::engine::llama_cpp) const MANY_CONTEXTS: u64 = 1_000_000;

/// A run of contexts, and the buffers in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Regime {
    /// Where the steps are counted from, and how far one goes: in cells, or in tokens of the micro-batch.
    pub(super) origin: u64,
    pub(super) unit: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Cells per sequence at the origin.
    pub(super) cells: u64,
    /// Micro-batch at the origin, and rows of logits. They follow the context as it was asked for, before it is rounded up.
    pub(super) tokens: u64,
    pub(super) outputs: u64,
    pub(super) lines: RoundedLines,
    pub(super) device: Length,
    pub(super) host: Length,
}

impl Regime {
    fn bytes(&self, at: u64) -> Result<Option<ComputeBytes>, MathError> {
        if at < self.first || at > self.last {
            return Ok(None);
        }
        let Some(step) = at.checked_sub(self.origin).and_then(|beyond| steps_of(beyond, self.unit)) else { return Ok(None) };
        Ok(Some(ComputeBytes { device: self.device.at(step, &self.lines)?, host: self.host.at(step, &self.lines)? }))
    }
    pub(super) fn continues(&self, before: &Self) -> bool {
        let alike = |regime: &Self| (regime.origin, regime.device, regime.host, regime.lines);
        alike(self) == alike(before)
    }
}

/// How many whole units there are in a distance; `None` where something is left over. Nearly every unit is a power of two, and
/// a division takes longer than all the rest of an estimate.
fn steps_of(beyond: u64, unit: u64) -> Option<u64> {
    if unit.is_power_of_two() {
        let steps = beyond >> unit.trailing_zeros();
        return (steps << unit.trailing_zeros() == beyond).then_some(steps);
    }
    if beyond.is_multiple_of(unit) { beyond.checked_div(unit) } else { None }
}

/// The ranges for one number of sequences.
#[derive(Debug, Clone)]
pub(in crate::engine::llama_cpp) struct Regimes {
    sequences: u64,
    /// Of longer contexts: those whose cells leave the same remainder together, as many lists as there are remainders.
    lists: Vec<Vec<Regime>>,
    /// Of contexts shorter than a micro-batch, by tokens.
    short: Vec<Regime>,
}

/// A model and deployment, and the parameters under which its ranges are looked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::llama_cpp) struct Asked<'a> {
    pub(in crate::engine::llama_cpp) spec: &'a ModelSpec,
    pub(in crate::engine::llama_cpp) deployment: &'a Deployment,
    pub(in crate::engine::llama_cpp) facts: Facts<'a>,
    pub(in crate::engine::llama_cpp) resolve: &'a ResolveFacts,
    pub(in crate::engine::llama_cpp) plans: &'a [CachePlan],
}

impl<'a> Asked<'a> {
    fn total(&self, pool: u64) -> Result<Resolved, MathError> {
        resolve_with(self.resolve, self.deployment, ContextRequest::Total(pool), self.sequences())
    }
    fn cells(&self, cells: u64) -> Result<Resolved, MathError> {
        self.total(if self.deployment.kv_unified { cells } else { mul(cells, self.sequences())? })
    }
    fn sequences(&self) -> u64 {
        self.deployment.sequences.max(1)
    }
    /// Cells up to which ranges are looked for: the model's length, for all sequences where they share a pool.
    fn most_cells(&self) -> u64 {
        let pooled = if self.deployment.kv_unified { self.sequences() } else { 1 };
        self.spec.max_context.max(LONG_CONTEXT).saturating_mul(pooled).min(MOST_CELLS)
    }
    fn cells_of_caches(&self, resolved: &Resolved) -> Result<Vec<u64>, MathError> {
        self.plans.iter().map(|plan| plan.cells(resolved, self.deployment.swa_full)).collect()
    }
    /// The recipe of the graphs; `None` where they are not known.
    fn recipe(&self, resolved: &Resolved) -> Result<Option<Recipe<'a>>, MathError> {
        let places = Places::single(self.deployment.backend());
        let Some(recipe) = Recipe::new(self.spec, self.deployment, self.facts, places)? else { return Ok(None) };
        recipe.settled(resolved, self.plans)
    }
    /// How far one step over the cells of a context goes, in paddings: caches of compressed tokens grow by whole paddings, so that
    /// only every so many contexts lie on a line.
    fn paddings(&self) -> u64 {
        let ratio = |plan: &CachePlan| if let CellRule::Compressed { ratio } = plan.cells { Some(ratio) } else { None };
        self.plans.iter().filter_map(ratio).filter(|ratio| *ratio > 1).min().unwrap_or(1)
    }
    /// How many steps of `unit` cells at most the graph's sizes can be lines over the cells of a context.
    fn most_steps(&self, here: &Resolved, next: &Resolved, unit: u64) -> Result<u64, MathError> {
        let steps = |cells: u64| cells.checked_div(unit).unwrap_or(0);
        let mut most = steps(self.most_cells().saturating_sub(here.n_ctx_seq));
        for plan in self.plans {
            let cells = |resolved: &Resolved| plan.cells(resolved, self.deployment.swa_full);
            let (now, then) = (cells(here)?, cells(next)?);
            match plan.cells {
                CellRule::Context | CellRule::None => {}
                // A window's cells grow with the context until they are as many as it needs, and then no more.
                CellRule::Window { .. } if now != then => {
                    let last = cells(&Resolved { n_ctx_seq: MOST_CELLS, ..*here })?;
                    most = most.min(steps(last.saturating_sub(now)));
                }
                CellRule::Window { .. } => {}
                CellRule::Compressed { ratio } => {
                    let padding = mul(CONTEXT_PAD, ratio.max(1))?;
                    if padding > unit {
                        // Until one more padding of compressed tokens is needed.
                        most = most.min(steps(mul(now, ratio)?.saturating_sub(here.n_ctx_seq)));
                    } else if !unit.is_multiple_of(padding) {
                        most = 0;
                    }
                }
            }
        }
        // A selector chooses no more cells than there are.
        for top_k in self.spec.layers.iter().filter_map(|layer| layer.mixer.selector()).map(|indexer| indexer.top_k) {
            if let Some(rest) = top_k.checked_sub(here.n_ctx_seq).filter(|rest| *rest > 0) {
                most = most.min(steps(rest));
            }
        }
        Ok(most)
    }
}

/// What a setting's micro-batch is, which follows the context only while it is shorter.
const fn micro_batch(resolved: &Resolved) -> (u64, u64, u64) {
    (resolved.graph_tokens, resolved.n_outputs_max, resolved.n_ubatch)
}

impl Regimes {
    /// The ranges of a deployment for its number of sequences, from the first context that fills a micro-batch on, as far as
    /// `budget` goes; `None` where the graph is not known.
    pub(in crate::engine::llama_cpp) fn new(asked: &Asked<'_>, budget: u64) -> Result<Option<Self>, MathError> {
        let mut out = Self { sequences: asked.sequences(), lists: Vec::new(), short: Vec::new() };
        out.lists.resize(usize::try_from(asked.paddings()).unwrap_or(1), Vec::new());
        Ok(out.add_long(asked, budget)?.then_some(out))
    }

    /// Adds the ranges of longer contexts; `false` where the graph is not known.
    pub(in crate::engine::llama_cpp) fn add_long(&mut self, asked: &Asked<'_>, budget: u64) -> Result<bool, MathError> {
        let mut budget = Budget::new(budget);
        let mut recipe: Option<Recipe<'_>> = None;
        let unit = mul(CONTEXT_PAD, u64::try_from(self.lists.len()).unwrap_or(1))?;
        for (start, list) in (1_u64..).zip(&mut self.lists) {
            let mut from = match list.last() {
                Some(last) => add(last.last, unit)?,
                None => mul(start, CONTEXT_PAD)?,
            };
            while from <= asked.most_cells() && !budget.is_spent() {
                // A context that the engine refuses is no range; neither is one beyond its counters.
                let (Ok(here), Ok(next)) = (asked.cells(from), asked.cells(add(from, unit)?)) else { break };
                if micro_batch(&here) != micro_batch(&next) {
                    from = add(from, unit)?;
                    continue;
                }
                let recipe = match &mut recipe {
                    Some(recipe) => recipe,
                    none => {
                        let Some(settled) = asked.recipe(&here)? else { return Ok(false) };
                        none.insert(settled)
                    }
                };
                let at = |step: u64| asked.cells(add(from, mul(step, unit)?)?);
                let along = Along { plans: asked.plans, at: &at, most: asked.most_steps(&here, &next, unit)?, stills: None };
                let Some(stretch) = Stretch::new(recipe, along, &mut budget)? else { return Ok(false) };
                let origin = Origin { at: from, unit, resolved: here };
                let Some(last) = stretch.ranges(&recipe.buffer_kinds(), &origin, list, &mut budget)? else { break };
                from = add(last, unit)?;
            }
        }
        Ok(true)
    }

    /// Adds the ranges of contexts that are shorter than a micro-batch, which then is as long as the context.
    pub(in crate::engine::llama_cpp) fn add_short(&mut self, asked: &Asked<'_>, budget: u64) -> Result<(), MathError> {
        let mut budget = Budget::new(budget);
        let mut stills = Stills::default();
        let sequences = asked.sequences();
        let follows = |resolved: &Resolved, tokens: u64| resolved.graph_tokens == tokens && resolved.n_ubatch == tokens;
        let mut tokens = sequences;
        while !budget.is_spent() {
            let at = |step: u64| asked.total(add(tokens, mul(step, sequences)?)?);
            let Ok(here) = at(0) else { break };
            if !follows(&here, tokens) {
                break;
            }
            let cells = asked.cells_of_caches(&here)?;
            let mut most = 0;
            while let Ok(next) = at(add(most, 1)?) {
                let alike = (next.n_ctx_seq, next.n_outputs_max) == (here.n_ctx_seq, here.n_outputs_max)
                    && follows(&next, add(tokens, mul(add(most, 1)?, sequences)?)?)
                    && asked.cells_of_caches(&next)? == cells;
                if !alike {
                    break;
                }
                most = add(most, 1)?;
            }
            let Some(recipe) = asked.recipe(&here)? else { break };
            stills.of_cells(&cells);
            let along = Along { plans: asked.plans, at: &at, most, stills: Some(&mut stills) };
            let Some(stretch) = Stretch::new(&recipe, along, &mut budget)? else { break };
            let origin = Origin { at: tokens, unit: sequences, resolved: here };
            let Some(last) = stretch.ranges(&recipe.buffer_kinds(), &origin, &mut self.short, &mut budget)? else {
                break;
            };
            tokens = add(last, sequences)?;
        }
        Ok(())
    }

    /// The ranges of contexts with as many cells.
    fn list(&self, cells: u64) -> Option<&Vec<Regime>> {
        match self.lists.as_slice() {
            [only] => Some(only),
            // The first list is that of one padding.
            lists => {
                let paddings = (cells / CONTEXT_PAD).checked_sub(1)?;
                lists.get(usize::try_from(paddings.checked_rem(u64::try_from(lists.len()).ok()?)?).ok()?)
            }
        }
    }

    /// The buffers for effective parameters, where a range covers them.
    pub(in crate::engine::llama_cpp) fn bytes(&self, resolved: &Resolved) -> Result<Option<ComputeBytes>, MathError> {
        let (cells, tokens) = (resolved.n_ctx_seq, resolved.graph_tokens);
        if resolved.n_seq_max != self.sequences {
            return Ok(None);
        }
        if let Some(regime) = self.list(cells).and_then(|list| among(list, cells))
            && (regime.tokens, regime.outputs) == (tokens, resolved.n_outputs_max)
        {
            return regime.bytes(cells);
        }
        match among(&self.short, tokens) {
            Some(regime) if resolved.n_ubatch == tokens && (regime.cells, regime.outputs) == (cells, resolved.n_outputs_max) => {
                regime.bytes(tokens)
            }
            _ => Ok(None),
        }
    }
}

/// The range that could cover a setting.
fn among(list: &[Regime], at: u64) -> Option<&Regime> {
    list.get(list.partition_point(|regime| regime.last < at))
}
