//! Compute buffers for every context at once: the ranges of contexts in which they grow along a line.
//!
//! Nothing is interpolated. A *stretch* is a run of settings whose graphs differ in their sizes alone, each of which lies on a
//! straight line: over the cells of a context, or over the tokens of a micro-batch where the context is shorter than one. Each
//! range of a stretch comes from a replay whose every decision holds throughout the range ([`super::length`]).

use alloc::vec::Vec;

use super::depth::Depth;
use super::length::{Amount, Length, RoundedLines, Steps};
use super::places::Places;
use super::replay::{BufferKind, Growing, replay};
use super::tensors::Graph;
use super::unroll::Unrolled;
use super::{ComputeBytes, Recipe, Reserve};
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

/// What is left to be spent. Contexts that no range covers are replayed when they are asked for.
#[derive(Debug)]
struct Budget(u64);

impl Budget {
    /// Pays for work on a graph; `false` when that was the last.
    fn pay(&mut self, graph: &Graph, times: usize) -> bool {
        let cost = u64::try_from(graph.nodes.len().saturating_mul(times)).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_sub(cost);
        self.0 > 0
    }
}

/// What building, scheduling and reading a graph costs beside a replay.
const BUILDING: usize = 3;

/// A run of contexts, and the buffers in it.
#[derive(Debug, Clone, Copy)]
struct Regime {
    /// Where the steps are counted from, and how far one goes: in cells, or in tokens of the micro-batch.
    origin: u64,
    unit: u64,
    first: u64,
    last: u64,
    /// Cells per sequence at the origin.
    cells: u64,
    /// Micro-batch at the origin, and rows of logits. They follow the context as it was asked for, before it is rounded up.
    tokens: u64,
    outputs: u64,
    lines: RoundedLines,
    device: Length,
    host: Length,
}

impl Regime {
    fn bytes(&self, at: u64) -> Result<Option<ComputeBytes>, MathError> {
        if at < self.first || at > self.last {
            return Ok(None);
        }
        let Some(step) = at.checked_sub(self.origin).and_then(|beyond| steps_of(beyond, self.unit)) else { return Ok(None) };
        Ok(Some(ComputeBytes { device: self.device.at(step, &self.lines)?, host: self.host.at(step, &self.lines)? }))
    }
    fn continues(&self, before: &Self) -> bool {
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
    list: Vec<Regime>,
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
    /// How many steps at most the graph's sizes can be lines over the cells of a context.
    fn most_steps(&self, here: &Resolved, next: &Resolved) -> Result<u64, MathError> {
        let mut most = self.most_cells().saturating_sub(here.n_ctx_seq) / CONTEXT_PAD;
        for plan in self.plans {
            // A window's cells grow with the context until they are as many as it needs, and then no more.
            let cells = |resolved: &Resolved| plan.cells(resolved, self.deployment.swa_full);
            let (now, then) = (cells(here)?, cells(next)?);
            if now != then {
                let last = cells(&Resolved { n_ctx_seq: MOST_CELLS, ..*here })?;
                match plan.cells {
                    CellRule::Context => {}
                    CellRule::Window { .. } => most = most.min(last.saturating_sub(now) / CONTEXT_PAD),
                    CellRule::Compressed { .. } | CellRule::None => most = 0,
                }
            }
        }
        // A selector chooses no more cells than there are.
        for top_k in self.spec.layers.iter().filter_map(|layer| layer.mixer.selector()).map(|indexer| indexer.top_k) {
            if let Some(rest) = top_k.checked_sub(here.n_ctx_seq).filter(|rest| *rest > 0) {
                most = most.min(rest / CONTEXT_PAD);
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
        let mut out = Self { sequences: asked.sequences(), list: Vec::new(), short: Vec::new() };
        Ok(out.add_long(asked, budget)?.then_some(out))
    }

    /// Adds the ranges of longer contexts; `false` where the graph is not known.
    pub(in crate::engine::llama_cpp) fn add_long(&mut self, asked: &Asked<'_>, budget: u64) -> Result<bool, MathError> {
        let mut budget = Budget(budget);
        let mut recipe: Option<Recipe<'_>> = None;
        let mut from = add(self.list.last().map_or(0, |regime| regime.last), CONTEXT_PAD)?;
        while from <= asked.most_cells() && budget.0 > 0 {
            // A context that the engine refuses is no range; neither is one beyond its counters.
            let (Ok(here), Ok(next)) = (asked.cells(from), asked.cells(add(from, CONTEXT_PAD)?)) else { break };
            if micro_batch(&here) != micro_batch(&next) {
                from = add(from, CONTEXT_PAD)?;
                continue;
            }
            let recipe = match &mut recipe {
                Some(recipe) => recipe,
                none => {
                    let Some(settled) = asked.recipe(&here)? else { return Ok(false) };
                    none.insert(settled)
                }
            };
            let at = |step: u64| asked.cells(add(from, mul(step, CONTEXT_PAD)?)?);
            let most = asked.most_steps(&here, &next)?;
            let Some(stretch) = Stretch::new(recipe, asked.plans, &at, most, &mut budget)? else { return Ok(false) };
            let origin = Origin { at: from, unit: CONTEXT_PAD, resolved: here };
            let Some(last) = stretch.ranges(&recipe.buffer_kinds(), &origin, &mut self.list, &mut budget)? else { break };
            from = add(last, CONTEXT_PAD)?;
        }
        Ok(true)
    }

    /// Adds the ranges of contexts that are shorter than a micro-batch, which then is as long as the context.
    pub(in crate::engine::llama_cpp) fn add_short(&mut self, asked: &Asked<'_>, budget: u64) -> Result<(), MathError> {
        let mut budget = Budget(budget);
        let sequences = asked.sequences();
        let follows = |resolved: &Resolved, tokens: u64| resolved.graph_tokens == tokens && resolved.n_ubatch == tokens;
        let mut tokens = sequences;
        while budget.0 > 0 {
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
            let Some(stretch) = Stretch::new(&recipe, asked.plans, &at, most, &mut budget)? else { break };
            let origin = Origin { at: tokens, unit: sequences, resolved: here };
            let Some(last) = stretch.ranges(&recipe.buffer_kinds(), &origin, &mut self.short, &mut budget)? else {
                break;
            };
            tokens = add(last, sequences)?;
        }
        Ok(())
    }

    /// The buffers for effective parameters, where a range covers them.
    pub(in crate::engine::llama_cpp) fn bytes(&self, resolved: &Resolved) -> Result<Option<ComputeBytes>, MathError> {
        let (cells, tokens) = (resolved.n_ctx_seq, resolved.graph_tokens);
        if resolved.n_seq_max != self.sequences {
            return Ok(None);
        }
        if let Some(regime) = among(&self.list, cells)
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

/// Where a stretch begins.
#[derive(Debug, Clone, Copy)]
struct Origin {
    at: u64,
    unit: u64,
    resolved: Resolved,
}

/// Settings whose graphs differ in their sizes alone.
struct Stretch {
    /// The graphs that are reserved.
    graphs: Vec<Growing>,
    /// The last step.
    most: u64,
}

/// Both buffers up to a step.
#[derive(Debug, Clone, Copy)]
struct Range {
    last: u64,
    device: Length,
    host: Length,
}

impl Stretch {
    /// The stretch that starts at `at(0)`, `most` steps long at most; `None` where the graph is not known.
    fn new(
        recipe: &Recipe<'_>,
        plans: &[CachePlan],
        at: &dyn Fn(u64) -> Result<Resolved, MathError>,
        mut most: u64,
        budget: &mut Budget,
    ) -> Result<Option<Self>, MathError> {
        let here = at(0)?;
        let next = if most > 0 { at(1)? } else { here };
        let mut graphs: Vec<Growing> = Vec::new();
        let mut depth = Depth::Few;
        let mut depths = Vec::new();
        for (reserve, later) in Reserve::all(&here, recipe.facts).into_iter().zip(Reserve::all(&next, recipe.facts)) {
            let growing = loop {
                let Some(now) = recipe.graph(&here, plans, reserve, depth)? else { return Ok(None) };
                budget.pay(&now, BUILDING);
                if let Some(unrolled) = Unrolled::new(&now) {
                    let Some(then) = recipe.graph(&next, plans, later, depth)? else { return Ok(None) };
                    budget.pay(&then, BUILDING);
                    break growing(now, unrolled, &then, &mut most)?;
                }
                if depth == Depth::All {
                    return Ok(None);
                }
                depth = depth.next();
            };
            graphs.push(growing);
            depths.push(depth);
        }
        // Two settings give a line; a third at its end and one in the middle show that nothing bends on the way: a choice
        // limited to so many cells, a kernel for longer contexts.
        let out = Self { graphs, most };
        while most > 1 {
            let mut is_paid = true;
            for growing in &out.graphs {
                is_paid &= budget.pay(&growing.graph, BUILDING);
            }
            let on_lines = |step: u64| out.is_on_lines(recipe, plans, &depths, at(step), step);
            if on_lines(most)? && (most == 2 || on_lines(most / 2)?) {
                break;
            }
            most = if is_paid { most / 2 } else { 1 };
        }
        Ok(Some(Self { most, ..out }))
    }

    /// Whether every size is where its line says at a step.
    fn is_on_lines(
        &self,
        recipe: &Recipe<'_>,
        plans: &[CachePlan],
        depths: &[Depth],
        far: Result<Resolved, MathError>,
        step: u64,
    ) -> Result<bool, MathError> {
        let Ok(far) = far else { return Ok(false) };
        let lines = RoundedLines::default();
        for ((reserve, growing), depth) in Reserve::all(&far, recipe.facts).into_iter().zip(&self.graphs).zip(depths) {
            let Some(graph) = recipe.graph(&far, plans, reserve, *depth)? else { return Ok(false) };
            let Growing { graph: near, lengths, .. } = growing;
            if !graph.is_alike(near) {
                return Ok(false);
            }
            for ((tensor, now), [bytes, extra]) in graph.tensors.iter().zip(&near.tensors).zip(lengths) {
                let same_buffer = tensor.extra().map(|(buffer, _)| buffer) == now.extra().map(|(buffer, _)| buffer);
                let more = tensor.extra().map_or(0, |(_, bytes)| bytes);
                // A line that falls below nothing on the way is none.
                if !same_buffer || bytes.at(step, &lines) != Ok(tensor.bytes) || extra.at(step, &lines) != Ok(more) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Adds the ranges of the stretch; the setting up to which they go, `None` where there is none.
    fn ranges(
        &self,
        kinds: &[BufferKind],
        origin: &Origin,
        list: &mut Vec<Regime>,
        budget: &mut Budget,
    ) -> Result<Option<u64>, MathError> {
        let mut steps = Steps::new(self.most);
        let mut all = Vec::with_capacity(self.graphs.len());
        for growing in &self.graphs {
            all.push(ranges_of(growing, kinds, &mut steps, budget)?);
        }
        let Origin { at: start, unit, resolved } = *origin;
        let setting = |step: u64| add(start, mul(step, unit)?);
        let mut from = 0;
        let mut end = None;
        loop {
            let mut here = steps.from(from);
            let (mut device, mut host) = (Length::ZERO, Length::ZERO);
            let mut known = !all.is_empty();
            for ranges in &all {
                let range = ranges.get(ranges.partition_point(|range| range.last < from));
                let Some(range) = range else {
                    known = false;
                    break;
                };
                here.limit(range.last);
                device = Length::larger(&mut here, device, range.device);
                host = Length::larger(&mut here, host, range.host);
            }
            if !known {
                return Ok(end);
            }
            let last = here.most();
            let regime = Regime {
                origin: start,
                unit,
                first: setting(from)?,
                last: setting(last)?,
                cells: resolved.n_ctx_seq,
                tokens: resolved.graph_tokens,
                outputs: resolved.n_outputs_max,
                lines: steps.lines(),
                device,
                host,
            };
            match list.last_mut() {
                Some(before) if regime.continues(before) => before.last = regime.last,
                _ => list.push(regime),
            }
            end = Some(regime.last);
            from = add(last, 1)?;
            if last >= self.most {
                return Ok(end);
            }
        }
    }
}

/// The buffers of one graph along a stretch, as far as the budget goes: a part of it, since there are other graphs.
fn ranges_of(growing: &Growing, kinds: &[BufferKind], steps: &mut Steps, budget: &mut Budget) -> Result<Vec<Range>, MathError> {
    let mut out: Vec<Range> = Vec::new();
    let mut from = 0;
    let least = budget.0 / 2;
    loop {
        let mut here = steps.from(from);
        let lengths = replay(growing, &growing.unrolled, kinds, &mut here)?;
        steps.keep_lines(&here);
        let (device, host) = match lengths.as_slice() {
            [device, host] => (*device, *host),
            [host] => (Length::ZERO, *host),
            _ => return Ok(Vec::new()),
        };
        let last = here.most();
        match out.last_mut() {
            Some(before) if (before.device, before.host) == (device, host) => before.last = last,
            _ => out.push(Range { last, device, host }),
        }
        budget.pay(&growing.graph, 1);
        if last >= steps.most() || budget.0 <= least {
            return Ok(out);
        }
        from = add(last, 1)?;
    }
}

/// A graph whose sizes are straight lines through two settings; `most` is 0 where there are none.
fn growing(now: Graph, unrolled: Unrolled, then: &Graph, most: &mut u64) -> Result<Growing, MathError> {
    let alike = now.is_alike(then);
    if !alike {
        *most = 0;
    }
    let mut lengths = Vec::with_capacity(now.tensors.len());
    for (index, tensor) in now.tensors.iter().enumerate() {
        let later = then.tensors.get(index).filter(|_| alike).unwrap_or(tensor);
        let extra = match (tensor.extra(), later.extra()) {
            (Some((buffer, bytes)), Some((also, more))) if buffer == also => Length::between(bytes, more)?,
            (None, None) => Length::ZERO,
            (extra, _) => {
                *most = 0;
                Length::of(extra.map_or(0, |(_, bytes)| bytes))?
            }
        };
        lengths.push([Length::between(tensor.bytes, later.bytes)?, extra]);
    }
    Ok(Growing { graph: now, unrolled, lengths })
}
