//! Runs of settings whose graphs differ in their sizes alone, each of which lies on a straight line; and the ranges in them
//! throughout which every decision of a replay holds.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::depth::Depth;
use super::length::{Amount, Length, RoundedLines, Steps};
use super::regimes::Regime;
use super::replay::{BufferKind, Growing, replay};
use super::tensors::Graph;
use super::unroll::Unrolled;
use super::{Recipe, Reserve};
use crate::engine::llama_cpp::cache::CachePlan;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::units::{add, mul};

/// What is left to be spent. Contexts that no range covers are replayed when they are asked for.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) const fn new(nodes: u64) -> Self {
        Self(nodes)
    }
    pub(super) const fn is_spent(&self) -> bool {
        self.0 == 0
    }
    /// Pays for work on a graph; `false` when that was the last.
    fn pay(&mut self, graph: &Graph, times: usize) -> bool {
        let cost = u64::try_from(graph.nodes.len().saturating_mul(times)).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_sub(cost);
        self.0 > 0
    }
}

/// What building, scheduling and reading a graph costs beside a replay.
const BUILDING: usize = 3;

/// Where a stretch begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) at: u64,
    pub(super) unit: u64,
    pub(super) resolved: Resolved,
}

/// Settings along which a stretch is looked for.
pub(super) struct Along<'a> {
    pub(super) plans: &'a [CachePlan],
    /// The setting of every step.
    pub(super) at: &'a dyn Fn(u64) -> Result<Resolved, MathError>,
    /// The last step.
    pub(super) most: u64,
    /// Graphs that no step changes, where all steps have the same cells.
    pub(super) stills: Option<&'a mut Stills>,
}

/// Graphs for the same tokens and cells at every step, and their buffers.
#[derive(Debug, Default)]
pub(super) struct Stills {
    cells: Vec<u64>,
    known: Vec<(Reserve, Range)>,
}

impl Stills {
    /// Forgets what was known of other cells.
    pub(super) fn of_cells(&mut self, cells: &[u64]) {
        if self.cells != cells {
            self.cells = cells.to_vec();
            self.known.clear();
        }
    }
}

/// A graph that is reserved along a stretch.
enum Part {
    /// Its sizes are lines.
    Growing(Box<Growing>, Depth),
    /// Nothing changes.
    Still(Range),
}

/// Settings whose graphs differ in their sizes alone.
pub(super) struct Stretch {
    /// The graphs that are reserved.
    parts: Vec<Part>,
    /// The last step.
    most: u64,
}

/// Both buffers up to a step.
#[derive(Debug, Clone, Copy)]
struct Range {
    /// The last step; of graphs that nothing changes, any.
    last: u64,
    device: Length,
    host: Length,
}

impl Stretch {
    /// The stretch that starts at the first step; `None` where the graph is not known.
    pub(super) fn new(recipe: &Recipe<'_>, along: Along<'_>, budget: &mut Budget) -> Result<Option<Self>, MathError> {
        let Along { plans, at, mut most, mut stills } = along;
        let here = at(0)?;
        let next = if most > 0 { at(1)? } else { here };
        let kinds = recipe.buffer_kinds();
        let mut parts: Vec<Part> = Vec::new();
        let mut depth = Depth::Few;
        for (reserve, later) in Reserve::all(&here, recipe.facts).into_iter().zip(Reserve::all(&next, recipe.facts)) {
            let mut still = stills.as_deref_mut().filter(|_| reserve == later);
            if let Some((_, range)) = still.iter().flat_map(|stills| &stills.known).find(|(known, _)| *known == reserve) {
                parts.push(Part::Still(*range));
                continue;
            }
            let (now, unrolled) = loop {
                let Some(now) = recipe.graph(&here, plans, reserve, depth)? else { return Ok(None) };
                budget.pay(&now, BUILDING);
                if let Some(unrolled) = Unrolled::new(&now) {
                    break (now, unrolled);
                }
                if depth == Depth::All {
                    return Ok(None);
                }
                depth = depth.next();
            };
            if let Some(stills) = &mut still {
                let bytes = replay::<u64, Graph>(&now, &unrolled, &kinds, &mut ())?;
                let Some((device, host)) = device_and_host(&bytes) else { return Ok(None) };
                let range = Range { last: u64::MAX, device: Length::of(device)?, host: Length::of(host)? };
                stills.known.push((reserve, range));
                parts.push(Part::Still(range));
                continue;
            }
            let Some(then) = recipe.graph(&next, plans, later, depth)? else { return Ok(None) };
            budget.pay(&then, BUILDING);
            parts.push(Part::Growing(Box::new(growing(now, unrolled, &then, &mut most)?), depth));
        }
        // Two settings give a line; a third at its end and one in the middle show that nothing bends on the way: a choice
        // limited to so many cells, a kernel for longer contexts.
        let out = Self { parts, most };
        let mut pay = || {
            let growing =
                out.parts.iter().filter_map(|part| if let Part::Growing(growing, _) = part { Some(growing) } else { None });
            growing.fold(true, |_, growing| budget.pay(&growing.graph, BUILDING))
        };
        let on_lines = |step: u64| out.is_on_lines(recipe, plans, at(step), step);
        let holds = |most: u64| Ok::<bool, MathError>(on_lines(most)? && (most == 2 || on_lines(most / 2)?));
        while most > 1 {
            let is_paid = pay();
            if holds(most)? {
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
        far: Result<Resolved, MathError>,
        step: u64,
    ) -> Result<bool, MathError> {
        let Ok(far) = far else { return Ok(false) };
        let lines = RoundedLines::default();
        for (reserve, part) in Reserve::all(&far, recipe.facts).into_iter().zip(&self.parts) {
            let Part::Growing(growing, depth) = part else { continue };
            let Growing { graph: near, lengths, .. } = growing.as_ref();
            let Some(graph) = recipe.graph(&far, plans, reserve, *depth)? else { return Ok(false) };
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
    pub(super) fn ranges(
        &self,
        kinds: &[BufferKind],
        origin: &Origin,
        list: &mut Vec<Regime>,
        budget: &mut Budget,
    ) -> Result<Option<u64>, MathError> {
        let mut steps = Steps::new(self.most);
        let mut all = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            all.push(match part {
                Part::Growing(growing, _) => ranges_of(growing, kinds, &mut steps, budget)?,
                Part::Still(range) => Vec::from([*range]),
            });
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

/// The buffers of one device, if there is one, and of the host.
fn device_and_host<A: Amount>(buffers: &[A]) -> Option<(A, A)> {
    match buffers {
        [device, host] => Some((*device, *host)),
        [host] => Some((A::ZERO, *host)),
        _ => None,
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
        let Some((device, host)) = device_and_host(&lengths) else { return Ok(Vec::new()) };
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
