//! Layers that a graph does not show, put back while it is replayed.
//!
//! A graph falls into intervals: what is computed from the last node of the layers before one layer to that layer's last node.
//! An interval uses tensors of its own layer and of a few neighbours; all others it reads are the same for every layer (inputs,
//! embedded tokens, a first layer's results that all read). So an interval can be computed again for each layer that it
//! stands for: tensors of the layers under way have places of their own, and the others keep theirs.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::plan::{Plan, Spot};
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
    /// What the allocator does for it.
    pub(super) steps: Range<usize>,
    /// How it uses the tensors of its own layer.
    own: Vec<Uses>,
    /// How it uses those of the layers around: few of them.
    around: Vec<Foreign>,
    /// Tensors of no layer that it reads, or reads views of.
    pub(super) touches: Vec<u32>,
}

/// How an interval uses a tensor of another layer.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    /// Which of the layers around, from the first within reach.
    place: usize,
    rank: usize,
    uses: Uses,
}

/// A graph with the layers that it does not show.
#[derive(Debug, Clone, Default)]
pub(super) struct Unrolled {
    slots: Vec<Slot>,
    /// How many nodes come before the first layer that is unrolled.
    before: usize,
    /// What the allocator does, and how much of it before the first layer.
    pub(super) plan: Plan,
    pub(super) steps_before: usize,
    pub(super) intervals: Vec<Interval>,
    /// The interval of every layer.
    pub(super) layers: Vec<u32>,
    /// How many layers before and after its own an interval uses tensors of.
    pub(super) reach: usize,
    /// Uses of the tensors that belong to no layer, by everything; of weights, caches and results that stay, none are counted.
    pub(super) uses: Vec<Uses>,
}

impl Unrolled {
    /// `None` where a layer's part of the graph depends on more neighbours than were looked at when layers were left out.
    pub(super) fn new(graph: &Graph) -> Option<Self> {
        let n_tensors = graph.tensors.len();
        let uses = vec![Uses::default(); n_tensors];
        let stacks: Vec<&Stack> = graph.stacks.iter().filter(|stack| stack.leaves_out()).collect();
        let mut out = Self { uses, plan: Plan::new(graph), ..Self::default() };
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

    fn owner(&self, tensor: u32) -> u32 {
        self.slots.get(at(tensor)).map_or(NONE, |slot| slot.owner)
    }
    fn times(&self, interval: u32) -> u32 {
        self.intervals.get(at(interval)).map_or(1, |interval| interval.times)
    }
    /// Which of the layers around an interval's own another one is; `None` beyond its reach.
    fn place(&self, interval: u32, owner: u32) -> Option<usize> {
        place(self.reach, interval, owner)
    }
    /// How often all that is left to be computed from a layer on uses the tensors of the layer at `place` around it, in their
    /// order.
    pub(super) fn left(&self, layer: usize, place: usize, out: &mut Vec<Uses>) {
        out.clear();
        let Some(own) = layer.saturating_add(place).checked_sub(self.reach).and_then(|own| self.interval_of(own)) else { return };
        if place >= self.reach {
            out.extend_from_slice(&own.own);
        } else {
            out.resize(own.tensors, Uses::default());
        }
        // As seen from later layers, it lies farther back.
        for steps in 0..=place {
            let Some(later) = self.interval_of(layer.saturating_add(steps)) else { return };
            for foreign in later.around.iter().filter(|foreign| foreign.place == place.saturating_sub(steps)) {
                if let Some(uses) = out.get_mut(foreign.rank) {
                    uses.readers = uses.readers.saturating_add(foreign.uses.readers);
                    uses.views = uses.views.saturating_add(foreign.uses.views);
                }
            }
        }
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
                    // Most of what a layer reads is its own.
                    let read_tensor = graph.tensors.get(at(read))?;
                    let base = read_tensor.view_of();
                    if self.owner(read) == number && !read_tensor.is_input && base.is_none_or(|base| self.owner(base) == number) {
                        continue;
                    }
                    for (seen, is_input) in base.map(|base| (base, false)).into_iter().chain([(read, read_tensor.is_input)]) {
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
        for interval in &mut self.intervals {
            interval.own = vec![Uses::default(); interval.tensors];
        }
    }

    /// Counts readers and views, and notes what the allocator does for each node.
    fn count(&mut self, graph: &Graph) -> Option<()> {
        let mut plan = core::mem::take(&mut self.plan);
        plan.begin(graph, &|tensor| spot(&self.slots, self.reach, NONE, tensor))?;
        self.count_in(graph, 0..self.before, NONE, &mut plan)?;
        self.steps_before = plan.len();
        for number in 0..count(self.intervals.len()) {
            let nodes = self.intervals.get(at(number))?.nodes.clone();
            let first = plan.len();
            self.count_in(graph, nodes, number, &mut plan)?;
            self.intervals.get_mut(at(number))?.steps = first..plan.len();
        }
        self.plan = plan;
        Some(())
    }
    fn count_in(&mut self, graph: &Graph, nodes: Range<usize>, number: u32, plan: &mut Plan) -> Option<()> {
        let times = self.times(number);
        for &(node, buffer) in graph.nodes.get(nodes)? {
            // A result that all layers have in common is computed once.
            if times > 1 && self.owner(node) == NONE {
                return None;
            }
            let computed = plan.compute(graph, node, buffer, &|tensor| spot(&self.slots, self.reach, number, tensor))?;
            let tensor = graph.tensors.get(at(node))?;
            if let Some(base) = tensor.view_of().filter(|_| tensor.is_operation) {
                let spot = spot(&self.slots, self.reach, number, base)?;
                let (uses, added) = self.uses_mut(spot, number, times)?;
                uses.views = uses.views.saturating_add(added);
            }
            // What has no memory to give back has to be where it is expected all the same: a layer that reads it elsewhere is
            // another layer.
            for &source in graph.sources(tensor) {
                let read = graph.tensors.get(at(source))?;
                let root = read.view_of().map_or(Some(read), |base| graph.tensors.get(at(base)))?;
                if !read.is_external && (root.is_external || root.is_output) {
                    let spot = spot(&self.slots, self.reach, number, source)?;
                    self.uses_mut(spot, number, times)?;
                }
            }
            for read in plan.reads(&computed) {
                let (uses, added) = self.uses_mut(read.spot, number, times)?;
                uses.readers = uses.readers.saturating_add(added);
                if times > 1 {
                    for spot in read.shows.map(|(_, spot)| spot).into_iter().chain([read.spot]) {
                        self.touch(spot, number)?;
                    }
                }
            }
        }
        Some(())
    }
    /// How a tensor is used, and how often an interval that stands for `times` layers adds to it.
    fn uses_mut(&mut self, spot: Spot, number: u32, times: u32) -> Option<(&mut Uses, u32)> {
        let Spot { place, index } = spot;
        if place == Spot::COMMON {
            return Some((self.uses.get_mut(at(index))?, times));
        }
        let (place, rank) = (at(place), at(index));
        let interval = self.intervals.get_mut(at(number))?;
        if place == self.reach {
            return Some((interval.own.get_mut(rank)?, 1));
        }
        let known = interval.around.iter().position(|foreign| (foreign.place, foreign.rank) == (place, rank));
        let known = known.unwrap_or_else(|| {
            interval.around.push(Foreign { place, rank, uses: Uses::default() });
            interval.around.len().saturating_sub(1)
        });
        Some((&mut interval.around.get_mut(known)?.uses, 1))
    }
    fn touch(&mut self, spot: Spot, number: u32) -> Option<()> {
        if spot.place == Spot::COMMON {
            let touches = &mut self.intervals.get_mut(at(number))?.touches;
            if !touches.contains(&spot.index) {
                touches.push(spot.index);
            }
        }
        Some(())
    }

    /// Whether every layer has the tensors that its neighbours use. Those shown beside it stand for others of their kinds: what
    /// the model made has the same numbers in all of them, what the scheduler added only where all have as much of it.
    fn layers_match(&self) -> Option<()> {
        let counts = |interval: Option<&Interval>| interval.map_or((0, 0), |interval| (interval.built, interval.tensors));
        let at_place = |layer: usize, place: usize| layer.saturating_add(place).checked_sub(self.reach);
        for (layer, number) in self.layers.iter().enumerate() {
            for foreign in &self.intervals.get(at(*number))?.around {
                let shown = at_place(at(*number), foreign.place).and_then(|shown| self.intervals.get(shown));
                let real = at_place(layer, foreign.place).and_then(|layer| self.interval_of(layer));
                let ((built, tensors), (real_built, real_tensors)) = (counts(shown), counts(real));
                if built != real_built || (foreign.rank >= built && tensors != real_tensors) {
                    return None;
                }
            }
        }
        Some(())
    }
}

/// Which of the layers around an interval's own another one is; `None` beyond its reach.
fn place(reach: usize, interval: u32, owner: u32) -> Option<usize> {
    let place = at(owner).saturating_add(reach).checked_sub(at(interval))?;
    (place <= reach.saturating_mul(2)).then_some(place)
}

/// Where an interval finds what is known of a tensor; `None` beyond its reach.
fn spot(slots: &[Slot], reach: usize, interval: u32, tensor: u32) -> Option<Spot> {
    match slots.get(at(tensor)) {
        Some(slot) if slot.owner != NONE => Some(Spot { place: count(place(reach, interval, slot.owner)?), index: slot.rank }),
        _ => Some(Spot::common(tensor)),
    }
}
