//! Layers that a graph does not show, put back while it is replayed.
//!
//! A graph falls into intervals: what is computed from the first node of one layer to the first node of the next. An interval
//! reads tensors of its own layer and of the one before; all others it reads are the same for every layer (inputs, embedded
//! tokens, a first layer's results that all read). So an interval can be computed again for each layer that it stands for:
//! tensors of the two layers under way have places of their own, and the others keep theirs.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::tensors::{Graph, Stack};

/// Stands for no interval.
const NONE: u32 = u32::MAX;

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(NONE)
}

/// How often a tensor is read, and how many views of it are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Uses {
    pub(super) readers: u32,
    pub(super) views: u32,
}

/// Where a tensor is while layers come and go.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The interval whose layer it belongs to.
    owner: u32,
    /// Which of that layer's tensors it is.
    rank: u32,
}

/// What is computed from one layer's first node to the next layer's.
#[derive(Debug, Clone, Default)]
pub(super) struct Interval {
    pub(super) nodes: Range<usize>,
    /// How many layers it stands for.
    pub(super) times: u32,
    /// How this interval uses the tensors of its own layer, and of the layer before.
    pub(super) own: Vec<Uses>,
    pub(super) before: Vec<Uses>,
    /// Tensors of no layer that it reads, or reads views of.
    pub(super) touches: Vec<u32>,
}

/// A graph with the layers that it does not show.
#[derive(Debug, Clone, Default)]
pub(super) struct Unrolled {
    slots: Vec<Slot>,
    /// How many nodes come before the first layer that is unrolled.
    pub(super) before: usize,
    pub(super) intervals: Vec<Interval>,
    /// The interval of every layer.
    pub(super) layers: Vec<u32>,
    /// Uses of the tensors that belong to no layer, by everything.
    pub(super) uses: Vec<Uses>,
    /// The most tensors that a layer has.
    pub(super) most: usize,
}

impl Unrolled {
    /// `None` where a layer's part of the graph depends on more than its neighbours: such a graph has to show all layers.
    pub(super) fn new(graph: &Graph) -> Option<Self> {
        let n_tensors = graph.tensors.len();
        let mut out = Self {
            slots: vec![Slot { owner: NONE, rank: 0 }; n_tensors],
            uses: vec![Uses::default(); n_tensors],
            ..Self::default()
        };
        let stacks: Vec<&Stack> = graph.stacks.iter().filter(|stack| stack.leaves_out()).collect();
        if stacks.is_empty() {
            out.before = graph.nodes.len();
            out.count(graph)?;
            return Some(out);
        }
        out.own_layers(graph, &stacks);
        out.cut(graph, &stacks)?;
        out.own_added(graph);
        out.release_far(graph)?;
        out.rank(graph);
        out.count(graph)?;
        out.layers_match()?;
        Some(out)
    }

    /// The layer that a tensor belongs to, and which of its tensors it is; `None` for those that all layers have in common.
    pub(super) fn slot(&self, tensor: u32) -> Option<(u32, usize)> {
        let slot = self.slots.get(at(tensor))?;
        if slot.owner == NONE { None } else { Some((slot.owner, at(slot.rank))) }
    }
    fn owner(&self, tensor: u32) -> u32 {
        self.slots.get(at(tensor)).map_or(NONE, |slot| slot.owner)
    }
    fn interval(&self, number: u32) -> Option<&Interval> {
        self.intervals.get(at(number))
    }
    fn times(&self, interval: u32) -> u32 {
        self.interval(interval).map_or(1, |interval| interval.times)
    }

    /// Tensors belong to the layer that made them.
    fn own_layers(&mut self, graph: &Graph, stacks: &[&Stack]) {
        let mut number = 0;
        for stack in stacks {
            // What follows the last layer may as well be its own: it is shown once.
            let ends = stack.firsts.iter().skip(1).copied().chain([count(graph.n_built)]);
            for (first, end) in stack.firsts.iter().zip(ends) {
                let tensors = self.slots.iter_mut().zip(&graph.tensors).take(at(end)).skip(at(*first));
                for (slot, tensor) in tensors {
                    slot.owner = if tensor.is_external { NONE } else { number };
                }
                number = number.saturating_add(1);
            }
        }
    }

    /// Cuts the nodes into intervals.
    fn cut(&mut self, graph: &Graph, stacks: &[&Stack]) -> Option<()> {
        let n_intervals = stacks.iter().map(|stack| stack.firsts.len()).sum();
        let mut starts: Vec<usize> = Vec::with_capacity(n_intervals);
        for (position, &(node, _)) in graph.nodes.iter().enumerate() {
            let owner = self.owner(node);
            if owner != NONE && at(owner) >= starts.len() {
                // Layers begin one after the other.
                if at(owner) > starts.len() {
                    return None;
                }
                starts.push(position);
            }
        }
        if starts.len() != n_intervals {
            return None;
        }
        let ends = starts.iter().skip(1).copied().chain([graph.nodes.len()]);
        for (start, end) in starts.iter().zip(ends) {
            self.intervals.push(Interval { nodes: *start..end, ..Interval::default() });
        }
        self.before = starts.first().copied()?;
        let mut first = 0;
        for stack in stacks {
            self.layers.extend(stack.shown_as.iter().map(|shown| shown.saturating_add(first)));
            first = first.saturating_add(count(stack.firsts.len()));
        }
        for layer in &self.layers {
            let interval = self.intervals.get_mut(at(*layer))?;
            interval.times = interval.times.saturating_add(1);
        }
        Some(())
    }

    /// What the scheduler added belongs where it is computed.
    fn own_added(&mut self, graph: &Graph) {
        for (number, interval) in (0_u32..).zip(&self.intervals) {
            for (node, _) in graph.nodes.get(interval.nodes.clone()).unwrap_or(&[]) {
                if at(*node) >= graph.n_built
                    && let Some(slot) = self.slots.get_mut(at(*node))
                {
                    slot.owner = number;
                }
            }
        }
    }

    /// Takes tensors out of layers that stand for themselves only, where more than the next layer reads them or their memory
    /// is there from the beginning.
    fn release_far(&mut self, graph: &Graph) -> Option<()> {
        for &(leaf, _) in &graph.leafs {
            self.release(leaf)?;
        }
        let parts: Vec<(u32, Range<usize>)> =
            (0_u32..).zip(&self.intervals).map(|(number, interval)| (number, interval.nodes.clone())).collect();
        for (number, nodes) in parts {
            for &(node, _) in graph.nodes.get(nodes)? {
                let tensor = graph.tensors.get(at(node))?;
                for &read in graph.sources(tensor).iter().chain([&node]) {
                    let base = graph.tensors.get(at(read))?.view_of();
                    for seen in base.into_iter().chain([read]) {
                        let owner = self.owner(seen);
                        let is_near = owner == number || owner.saturating_add(1) == number && owner != NONE;
                        if !is_near || graph.tensors.get(at(seen))?.is_input {
                            self.release(seen)?;
                        }
                    }
                }
            }
        }
        Some(())
    }
    fn release(&mut self, tensor: u32) -> Option<()> {
        let owner = self.owner(tensor);
        if owner != NONE {
            if self.times(owner) > 1 {
                return None;
            }
            self.slots.get_mut(at(tensor))?.owner = NONE;
        }
        Some(())
    }

    /// Numbers the tensors of each layer: those of the model in the order in which they were made, then those of the
    /// scheduler in the order in which they are computed.
    fn rank(&mut self, graph: &Graph) {
        let mut next = vec![0_u32; self.intervals.len()];
        let added = graph.nodes.iter().map(|(node, _)| *node).filter(|node| at(*node) >= graph.n_built);
        for tensor in (0..count(graph.n_built)).chain(added) {
            if let Some(slot) = self.slots.get_mut(at(tensor))
                && let Some(next) = next.get_mut(at(slot.owner))
            {
                slot.rank = *next;
                *next = next.saturating_add(1);
            }
        }
        let mut before = 0;
        for (interval, own) in self.intervals.iter_mut().zip(next) {
            interval.own = vec![Uses::default(); at(own)];
            interval.before = vec![Uses::default(); before];
            before = at(own);
            self.most = self.most.max(before);
        }
    }

    /// Counts readers and views.
    fn count(&mut self, graph: &Graph) -> Option<()> {
        let mut number = 0;
        for (position, &(node, _)) in graph.nodes.iter().enumerate() {
            while self.intervals.get(at(number)).is_some_and(|interval| interval.nodes.end <= position) {
                number = number.saturating_add(1);
            }
            let within = self.intervals.get(at(number)).filter(|interval| interval.nodes.contains(&position));
            let (number, times) = within.map_or((NONE, 1), |interval| (number, interval.times));
            // A result that all layers have in common is computed once.
            if times > 1 && self.owner(node) == NONE {
                return None;
            }
            let tensor = graph.tensors.get(at(node))?;
            if let Some(base) = tensor.view_of().filter(|_| tensor.is_operation) {
                let more = if self.owner(base) == NONE { times } else { 1 };
                let uses = self.uses_mut(base, number)?;
                uses.views = uses.views.saturating_add(more);
            }
            for &source in graph.sources(tensor) {
                let more = if self.owner(source) == NONE { times } else { 1 };
                let uses = self.uses_mut(source, number)?;
                uses.readers = uses.readers.saturating_add(more);
                if times > 1 {
                    let base = graph.tensors.get(at(source))?.view_of();
                    for seen in base.into_iter().chain([source]) {
                        self.touch(graph, seen, number)?;
                    }
                }
            }
        }
        Some(())
    }
    fn uses_mut(&mut self, tensor: u32, number: u32) -> Option<&mut Uses> {
        let slot = *self.slots.get(at(tensor))?;
        if slot.owner == NONE {
            return self.uses.get_mut(at(tensor));
        }
        let interval = self.intervals.get_mut(at(number))?;
        let uses = if slot.owner == number { &mut interval.own } else { &mut interval.before };
        uses.get_mut(at(slot.rank))
    }
    fn touch(&mut self, graph: &Graph, tensor: u32, number: u32) -> Option<()> {
        if self.owner(tensor) == NONE && !graph.tensors.get(at(tensor))?.is_external {
            let touches = &mut self.intervals.get_mut(at(number))?.touches;
            if !touches.contains(&tensor) {
                touches.push(tensor);
            }
        }
        Some(())
    }

    /// Whether every layer has as many tensors as the layer after it reads from.
    fn layers_match(&self) -> Option<()> {
        for (layer, next) in self.layers.iter().zip(self.layers.iter().skip(1)) {
            if self.interval(*layer)?.own.len() != self.interval(*next)?.before.len() {
                return None;
            }
        }
        Some(())
    }
}
