//! What the allocator does for every node of a graph, found out once: which tensors take memory when, which of those that a
//! node reads have memory to give back, and which of them the node may be written over.
//!
//! None of it depends on sizes, so that one plan serves every graph that differs in its sizes alone.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::tensors::{Graph, GraphTensor};

/// Where the allocator keeps what it knows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// Which of the layers around the one under way; [`Spot::COMMON`] for tensors of no layer.
    pub(super) place: u32,
    /// Which of that layer's tensors, or of all.
    pub(super) index: u32,
}

impl Spot {
    /// The place of tensors that all layers have in common.
    pub(super) const COMMON: u32 = u32::MAX;

    pub(super) const fn common(tensor: u32) -> Self {
        Self { place: Self::COMMON, index: tensor }
    }
}

/// A tensor that a node reads. Weights, caches and results that the caller reads are none: their memory is never given back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub(super) tensor: u32,
    pub(super) spot: Spot,
    /// The tensor whose memory it shows.
    pub(super) shows: Option<(u32, Spot)>,
    /// Whether the node may be written over it, if nobody else reads it.
    pub(super) yields: bool,
}

/// What is done for a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) tensor: u32,
    pub(super) buffer: u32,
    pub(super) spot: Spot,
    /// Whether it takes memory here.
    pub(super) takes: bool,
    /// Whether it is computed, after which its sources have one reader less.
    pub(super) is_computed: bool,
    first_read: u32,
    end_of_reads: u32,
}

/// The steps of a graph.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    steps: Vec<Step>,
    reads: Vec<Read>,
    /// Tensors that have taken memory so far.
    taken: Vec<bool>,
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl Plan {
    /// A plan without steps for a graph.
    pub(super) fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes.len();
        let steps = Vec::with_capacity(nodes.saturating_add(graph.leafs.len()));
        Self { steps, reads: Vec::with_capacity(nodes.saturating_mul(2)), taken: vec![false; graph.tensors.len()] }
    }
    /// How many steps there are.
    pub(super) const fn len(&self) -> usize {
        self.steps.len()
    }
    pub(super) fn steps(&self, range: Range<usize>) -> &[Step] {
        self.steps.get(range).unwrap_or(&[])
    }
    pub(super) fn reads(&self, step: &Step) -> &[Read] {
        self.reads.get(at(step.first_read)..at(step.end_of_reads)).unwrap_or(&[])
    }

    /// What is there before anything is computed: leafs, then inputs, so that nothing overwrites them.
    pub(super) fn begin(&mut self, graph: &Graph, spot: &impl Fn(u32) -> Option<Spot>) -> Option<()> {
        for &(leaf, buffer) in &graph.leafs {
            self.place(graph, leaf, buffer, spot)?;
        }
        for &(node, buffer) in &graph.nodes {
            let tensor = graph.tensors.get(at(node))?;
            if tensor.is_input {
                self.place(graph, node, buffer, spot)?;
            }
            for &source in graph.sources(tensor) {
                if graph.tensors.get(at(source))?.is_input {
                    self.place(graph, source, buffer, spot)?;
                }
            }
        }
        Some(())
    }
    /// A node is computed; its step.
    pub(super) fn compute(&mut self, graph: &Graph, node: u32, buffer: u32, spot: &impl Fn(u32) -> Option<Spot>) -> Option<Step> {
        let tensor = graph.tensors.get(at(node))?;
        for &source in graph.sources(tensor) {
            // Most sources are results of nodes before.
            if self.taken.get(at(source)) == Some(&false) {
                self.place(graph, source, buffer, spot)?;
            }
        }
        let takes = self.takes(tensor, node);
        self.push(graph, node, buffer, takes, true, spot)?;
        self.steps.last().copied()
    }
    /// A tensor takes memory, unless it has some or needs none.
    fn place(&mut self, graph: &Graph, index: u32, buffer: u32, spot: &impl Fn(u32) -> Option<Spot>) -> Option<()> {
        let tensor = graph.tensors.get(at(index))?;
        if !self.takes(tensor, index) {
            return Some(());
        }
        self.push(graph, index, buffer, true, false, spot)
    }
    fn takes(&self, tensor: &GraphTensor, index: u32) -> bool {
        !tensor.is_external && tensor.view_of().is_none() && self.taken.get(at(index)) == Some(&false)
    }
    fn push(
        &mut self,
        graph: &Graph,
        index: u32,
        buffer: u32,
        takes: bool,
        is_computed: bool,
        spot: &impl Fn(u32) -> Option<Spot>,
    ) -> Option<()> {
        let tensor = graph.tensors.get(at(index))?;
        let first = self.reads.len();
        for &source in graph.sources(tensor) {
            let read = graph.tensors.get(at(source))?;
            let base = read.view_of();
            let owner = match base {
                Some(base) => graph.tensors.get(at(base))?,
                None => read,
            };
            if owner.is_external || owner.is_output {
                continue;
            }
            let shows = match base {
                Some(base) => Some((base, spot(base)?)),
                None => None,
            };
            let yields = takes && tensor.may_overwrite && base.is_none() && read.layout == tensor.layout;
            self.reads.push(Read { tensor: source, spot: spot(source)?, shows, yields });
        }
        self.steps.push(Step {
            tensor: index,
            buffer,
            spot: spot(index)?,
            takes,
            is_computed,
            first_read: u32::try_from(first).ok()?,
            end_of_reads: u32::try_from(self.reads.len()).ok()?,
        });
        if takes {
            *self.taken.get_mut(at(index))? = true;
        }
        Some(())
    }
}
