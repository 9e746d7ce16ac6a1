//! A graph as the allocator sees it: tensors, what they are computed from, and the order of both.

use alloc::vec::Vec;

use crate::error::MathError;

/// What makes two tensors interchangeable for an in-place operation: element type and dimensions with their strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The element type's number.
    pub type_id: u32,
    /// Elements of each dimension.
    pub dims: [u64; 4],
    /// Bytes from one element of a dimension to the next.
    pub strides: [u64; 4],
}

/// Stands for no tensor and no buffer.
const NONE: u32 = u32::MAX;

/// A tensor of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphTensor {
    /// Type, dimensions and strides.
    pub layout: Layout,
    /// Bytes of its elements.
    pub bytes: u64,
    /// Bytes that one kind of buffer adds for the operation's own use.
    extra: u64,
    /// That kind of buffer.
    extra_in: u32,
    /// Its sources are this many...
    n_sources: u32,
    /// ... from here on in the graph's list.
    first_source: u32,
    view_of: u32,
    /// Whether it is computed at all; weights, caches and inputs are not.
    pub is_operation: bool,
    /// Whether its operation may write over an input (`ggml-alloc.c:ggml_op_can_inplace`).
    pub may_overwrite: bool,
    /// Whether it is filled from outside: it keeps its memory apart from everything computed before.
    pub is_input: bool,
    /// Whether it is read from outside: its memory is never given back.
    pub is_output: bool,
    /// Whether it lives in a buffer of its own (weights, caches).
    pub is_external: bool,
}

impl GraphTensor {
    /// A tensor that is not computed.
    #[must_use]
    pub const fn new(layout: Layout, bytes: u64) -> Self {
        Self {
            layout,
            bytes,
            extra: 0,
            extra_in: NONE,
            n_sources: 0,
            first_source: 0,
            view_of: NONE,
            is_operation: false,
            may_overwrite: false,
            is_input: false,
            is_output: false,
            is_external: false,
        }
    }
    /// The tensor whose memory it shows.
    #[must_use]
    pub const fn view_of(&self) -> Option<u32> {
        if self.view_of == NONE { None } else { Some(self.view_of) }
    }
    /// Makes it show another's memory, or memory of its own.
    pub const fn set_view_of(&mut self, base: Option<u32>) {
        self.view_of = match base {
            Some(base) => base,
            None => NONE,
        };
    }
    /// Lets buffers of one kind add `bytes`.
    pub const fn set_extra(&mut self, buffer: u32, bytes: u64) {
        self.extra_in = buffer;
        self.extra = bytes;
    }
    /// What the operation's own use adds, and the kind of buffer that adds it.
    #[must_use]
    pub const fn extra(&self) -> Option<(u32, u64)> {
        if self.extra_in == NONE { None } else { Some((self.extra_in, self.extra)) }
    }
    pub(super) const fn has_extra_in(&self, buffer: u32) -> bool {
        self.extra_in == buffer
    }
    /// Bytes in a buffer.
    #[must_use]
    pub const fn bytes_in(&self, buffer: u32) -> u64 {
        if self.extra_in == buffer { self.bytes.saturating_add(self.extra) } else { self.bytes }
    }
}

/// Layers that follow each other, of which a graph may show fewer than the model has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stack {
    /// The first tensor of every layer shown.
    pub(super) firsts: Vec<u32>,
    /// For every layer of the model, which of those shown stands for it.
    pub(super) shown_as: Vec<u32>,
    /// Neighbours on each side that a layer follows from.
    pub(super) reach: usize,
}

impl Stack {
    /// Whether the graph shows fewer layers than the model has.
    pub(super) const fn leaves_out(&self) -> bool {
        self.firsts.len() < self.shown_as.len()
    }
}

/// The scheduler's copy of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// Every tensor.
    pub(super) tensors: Vec<GraphTensor>,
    /// Sources of all tensors, each tensor's in a row.
    pub(super) sources: Vec<u32>,
    /// Tensors that are not computed, in order, each with the buffer it goes to.
    pub(super) leafs: Vec<(u32, u32)>,
    /// Tensors that are computed, in order, each with the buffer it goes to.
    pub(super) nodes: Vec<(u32, u32)>,
    /// Layers that follow each other.
    pub(super) stacks: Vec<Stack>,
    /// How many tensors the model's graph has; the scheduler added the others.
    pub(super) n_built: usize,
    /// How many streams every cache has, where each keeps rows of one width: that tells them apart, and from states, which have
    /// no streams.
    pub(super) streams_of_caches: Option<u64>,
}

impl Graph {
    /// Adds a tensor with its sources and returns its number.
    ///
    /// # Errors
    /// [`MathError::Overflow`] beyond 2^32 - 2 tensors.
    pub fn push(&mut self, tensor: GraphTensor, sources: &[u32]) -> Result<u32, MathError> {
        self.append(tensor, sources.iter().copied())
    }
    /// As [`Self::push`].
    pub(super) fn append(&mut self, mut tensor: GraphTensor, sources: impl Iterator<Item = u32>) -> Result<u32, MathError> {
        let count = |n: usize| match u32::try_from(n) {
            Ok(n) if n != NONE => Ok(n),
            _ => Err(MathError::Overflow { quantity: "graph" }),
        };
        let first = self.sources.len();
        self.sources.extend(sources);
        tensor.first_source = count(first)?;
        tensor.n_sources = count(self.sources.len().saturating_sub(first))?;
        let number = count(self.tensors.len())?;
        self.tensors.push(tensor);
        Ok(number)
    }
    /// Adds a tensor to those that are not computed.
    pub fn push_leaf(&mut self, tensor: u32, buffer: u32) {
        self.leafs.push((tensor, buffer));
    }
    /// Adds a tensor to those that are computed.
    pub fn push_node(&mut self, tensor: u32, buffer: u32) {
        self.nodes.push((tensor, buffer));
    }
    /// Tensors that are computed, in order, each with the buffer it goes to.
    #[must_use]
    pub fn computed(&self) -> &[(u32, u32)] {
        &self.nodes
    }
    /// Tensors that are not computed, in order, each with the buffer it goes to.
    #[must_use]
    pub fn given(&self) -> &[(u32, u32)] {
        &self.leafs
    }
    /// A tensor and what it is computed from.
    #[must_use]
    pub fn tensor(&self, number: u32) -> Option<(&GraphTensor, &[u32])> {
        let tensor = self.tensors.get(usize::try_from(number).ok()?)?;
        Some((tensor, self.sources(tensor)))
    }
    /// Whether another graph differs from this in sizes alone: the same is computed in the same order, and may be written over
    /// the same.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let overwrites = |graph: &Self, tensor: &GraphTensor, source: u32| {
            let source = usize::try_from(source).ok().and_then(|source| graph.tensors.get(source));
            source.is_some_and(|source| source.layout == tensor.layout)
        };
        let is_alike = |(a, b): (&GraphTensor, &GraphTensor)| {
            let key = |tensor: &GraphTensor| {
                let GraphTensor { first_source, n_sources, view_of, .. } = *tensor;
                let GraphTensor { is_operation, may_overwrite, is_input, is_output, is_external, .. } = *tensor;
                ([first_source, n_sources, view_of], [is_operation, may_overwrite, is_input, is_output, is_external])
            };
            key(a) == key(b)
                && (!a.may_overwrite
                    || self.sources(a).iter().all(|source| overwrites(self, a, *source) == overwrites(other, b, *source)))
        };
        self.tensors.len() == other.tensors.len()
            && self.n_built == other.n_built
            && self.nodes == other.nodes
            && self.leafs == other.leafs
            && self.sources == other.sources
            && self.stacks == other.stacks
            && self.tensors.iter().zip(&other.tensors).all(is_alike)
    }
    /// The backend that computes a node.
    pub(super) fn backend_of(&self, node: super::ops::Node) -> Option<u32> {
        self.nodes.iter().find(|(index, _)| *index == node.0).map(|(_, backend)| *backend)
    }
    fn range(tensor: &GraphTensor) -> core::ops::Range<usize> {
        let first = usize::try_from(tensor.first_source).unwrap_or(usize::MAX);
        first..first.saturating_add(usize::try_from(tensor.n_sources).unwrap_or(usize::MAX))
    }
    /// What a tensor is computed from.
    pub(super) fn sources(&self, tensor: &GraphTensor) -> &[u32] {
        self.sources.get(Self::range(tensor)).unwrap_or(&[])
    }
    pub(super) fn sources_mut(&mut self, tensor: usize) -> &mut [u32] {
        let range = self.tensors.get(tensor).map_or(0..0, Self::range);
        self.sources.get_mut(range).unwrap_or(&mut [])
    }
    /// Adds a source to the tensor that was pushed last.
    pub(super) fn push_source(&mut self, source: u32) {
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.n_sources = tensor.n_sources.saturating_add(1);
            self.sources.push(source);
        }
    }
}
