//! Layers that a graph does not show, put back while it is replayed.
//!
//! A graph falls into intervals: what is computed from the last node of the layers before one layer to that layer's last node.
//! An interval uses tensors of its own layer and of a few neighbours; all others it reads are the same for every layer (inputs,
//! embedded tokens, a first layer's results that all read). So an interval can be computed again for each layer that it
//! stands for: tensors of the layers under way have places of their own, and the others keep theirs.

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

/// What is computed for a layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Interval {
    pub(super) nodes: Range<usize>,
    /// How many layers it stands for.
    pub(super) times: u32,
    /// Tensors of its layer.
    pub(super) tensors: usize,
    /// How many of them the model made; the scheduler added the others.
    built: usize,
    /// How it uses the tensors of the layers around, from the first that it reaches to the last.
    pub(super) around: Vec<Vec<Uses>>,
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
    /// How many layers before and after its own an interval uses tensors of.
    pub(super) reach: usize,
    /// Uses of the tensors that belong to no layer, by everything.
    pub(super) uses: Vec<Uses>,
}

impl Unrolled {
    /// `None` where a layer's part of the graph depends on more neighbours than were looked at when layers were left out.
    pub(super) fn new(graph: &Graph) -> Option<Self> {
        let n_tensors = graph.tensors.len();
        let uses = vec![Uses::default(); n_tensors];
        let stacks: Vec<&Stack> = graph.stacks.iter().filter(|stack| stack.leaves_out()).collect();
        let mut out = Self { uses, ..Self::default() };
        if stacks.is_empty() {
            out.before = graph.nodes.len();
            out.count(graph)?;
            return Some(out);
        }
        out.slots = vec![Slot { owner: NONE, rank: 0 }; n_tensors];
        out.reach = stacks.iter().map(|stack| stack.reach).max().unwrap_or(0);
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
    fn times(&self, interval: u32) -> u32 {
        self.intervals.get(at(interval)).map_or(1, |interval| interval.times)
    }
    /// Which of the layers around an interval's own another one is; `None` beyond its reach.
    pub(super) fn place(&self, interval: u32, owner: u32) -> Option<usize> {
        let place = at(owner).saturating_add(self.reach).checked_sub(at(interval))?;
        (place <= self.reach.saturating_mul(2)).then_some(place)
    }
    /// How many times all that is left to be computed from a layer on uses the tensors of the layer at `place` around it.
    pub(super) fn left(&self, layer: usize, place: usize) -> impl Iterator<Item = Uses> + '_ {
        let own = layer.saturating_add(place).checked_sub(self.reach).and_then(|own| self.interval_of(own));
        let tensors = own.map_or(0, |interval| interval.tensors);
        // As seen from later layers, it lies farther back.
        let later = move |rank: usize| {
            (0..=place).filter_map(move |steps| {
                let around = &self.interval_of(layer.saturating_add(steps))?.around;
                around.get(place.saturating_sub(steps))?.get(rank).copied()
            })
        };
        (0..tensors).map(move |rank| {
            later(rank).fold(Uses::default(), |sum, uses| Uses {
                readers: sum.readers.saturating_add(uses.readers),
                views: sum.views.saturating_add(uses.views),
            })
        })
    }
    fn interval_of(&self, layer: usize) -> Option<&Interval> {
        self.intervals.get(at(*self.layers.get(layer)?))
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
        // The end of each layer's own nodes.
        let mut ends = vec![0; n_intervals];
        let mut start = None;
        for (position, &(node, _)) in graph.nodes.iter().enumerate() {
            if let Some(end) = ends.get_mut(at(self.owner(node))) {
                start = start.or(Some(position));
                *end = position.saturating_add(1);
            }
        }
        self.before = start?;
        *ends.last_mut()? = graph.nodes.len();
        let mut start = self.before;
        for end in ends {
            let end = end.max(start);
            self.intervals.push(Interval { nodes: start..end, ..Interval::default() });
            start = end;
        }
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

    /// Takes tensors out of layers that stand for themselves only, where layers out of reach use them or their memory is there
    /// from the beginning.
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
                    let read_tensor = graph.tensors.get(at(read))?;
                    for (seen, is_input) in
                        read_tensor.view_of().map(|base| (base, false)).into_iter().chain([(read, read_tensor.is_input)])
                    {
                        let owner = self.owner(seen);
                        if owner != NONE && (is_input || self.place(number, owner).is_none()) {
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
        let added = graph.nodes.iter().map(|(node, _)| *node).filter(|node| at(*node) >= graph.n_built);
        for tensor in (0..count(graph.n_built)).chain(added) {
            if let Some(slot) = self.slots.get_mut(at(tensor))
                && let Some(owner) = self.intervals.get_mut(at(slot.owner))
            {
                slot.rank = count(owner.tensors);
                owner.tensors = owner.tensors.saturating_add(1);
                if at(tensor) < graph.n_built {
                    owner.built = owner.tensors;
                }
            }
        }
        let sizes: Vec<usize> = self.intervals.iter().map(|interval| interval.tensors).collect();
        for (number, interval) in self.intervals.iter_mut().enumerate() {
            let places = 0..=self.reach.saturating_mul(2);
            let size = |place: usize| {
                let layer = number.saturating_add(place).checked_sub(self.reach);
                layer.and_then(|layer| sizes.get(layer)).copied().unwrap_or(0)
            };
            interval.around = places.map(|place| vec![Uses::default(); size(place)]).collect();
        }
    }

    /// Counts readers and views.
    fn count(&mut self, graph: &Graph) -> Option<()> {
        self.count_in(graph, 0..self.before, NONE)?;
        for number in 0..count(self.intervals.len()) {
            let nodes = self.intervals.get(at(number))?.nodes.clone();
            self.count_in(graph, nodes, number)?;
        }
        Some(())
    }
    fn count_in(&mut self, graph: &Graph, nodes: Range<usize>, number: u32) -> Option<()> {
        let times = self.times(number);
        for &(node, _) in graph.nodes.get(nodes)? {
            // A result that all layers have in common is computed once.
            if times > 1 && self.owner(node) == NONE {
                return None;
            }
            let tensor = graph.tensors.get(at(node))?;
            if let Some(base) = tensor.view_of().filter(|_| tensor.is_operation) {
                let (uses, times) = self.uses_mut(base, number, times)?;
                uses.views = uses.views.saturating_add(times);
            }
            for &source in graph.sources(tensor) {
                let (uses, added) = self.uses_mut(source, number, times)?;
                uses.readers = uses.readers.saturating_add(added);
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
    /// How a tensor is used, and how often an interval that stands for `times` layers adds to it.
    fn uses_mut(&mut self, tensor: u32, number: u32, times: u32) -> Option<(&mut Uses, u32)> {
        let Some((owner, rank)) = self.slot(tensor) else { return Some((self.uses.get_mut(at(tensor))?, times)) };
        let place = self.place(number, owner)?;
        let interval = self.intervals.get_mut(at(number))?;
        Some((interval.around.get_mut(place)?.get_mut(rank)?, 1))
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

    /// Whether every layer has the tensors that its neighbours use. Those shown beside it stand for others of their kinds: what
    /// the model made has the same numbers in all of them, what the scheduler added only where all have as much of it.
    fn layers_match(&self) -> Option<()> {
        let interval = |layer: usize| self.interval_of(layer);
        for (layer, number) in self.layers.iter().enumerate() {
            for (place, used) in (0_usize..).zip(&interval(layer)?.around) {
                let shown = at(*number).saturating_add(place).checked_sub(self.reach).and_then(|shown| self.intervals.get(shown));
                let real = layer.saturating_add(place).checked_sub(self.reach).and_then(interval);
                let counts = |interval: Option<&Interval>| interval.map_or((0, 0), |interval| (interval.built, interval.tensors));
                let ((built, tensors), (real_built, real_tensors)) = (counts(shown), counts(real));
                let last_used = used.iter().rposition(|uses| *uses != Uses::default());
                let matches = match last_used {
                    None => true,
                    Some(rank) if rank < built => built == real_built,
                    Some(_) => built == real_built && tensors == real_tensors,
                };
                if !matches {
                    return None;
                }
            }
        }
        Some(())
    }
}
