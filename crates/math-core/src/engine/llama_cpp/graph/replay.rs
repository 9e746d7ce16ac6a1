//! The engine's graph allocator (`ggml/src/ggml-alloc.c`), replayed.
//!
//! Tensors are laid into buffers in graph order. A tensor takes the smallest hole that holds it, or the open end of
//! the buffer; some operations write over their input when nobody else reads it; a tensor's room is given back after
//! its last reader. The result is the highest byte ever taken, per buffer.

use alloc::vec;
use alloc::vec::Vec;

use super::length::{Length, Steps};
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

/// The tensors that one is computed from; at most ten (`ggml.h:GGML_MAX_SRC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    items: [u32; 10],
    count: u8,
}

impl Sources {
    /// Adds one.
    ///
    /// # Errors
    /// [`MathError::Overflow`] above ten, or for an index beyond `u32`.
    pub fn push(&mut self, index: usize) -> Result<(), MathError> {
        let full = MathError::Overflow { quantity: "sources of a graph tensor" };
        let slot = self.items.get_mut(usize::from(self.count)).ok_or(full.clone())?;
        *slot = u32::try_from(index).map_err(|_| full)?;
        self.count = self.count.saturating_add(1);
        Ok(())
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.items.iter().take(usize::from(self.count)).map(|index| usize::try_from(*index).unwrap_or(usize::MAX))
    }
}

/// A tensor of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphTensor {
    /// Type, dimensions and strides.
    pub layout: Layout,
    /// Bytes of its elements.
    pub bytes: Length,
    /// Bytes that one kind of buffer adds for the operation's own use: the buffer and the bytes.
    pub extra: Option<(usize, Length)>,
    /// The tensors it is computed from.
    pub sources: Sources,
    /// The tensor whose memory it shows.
    pub view_of: Option<usize>,
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

/// The scheduler's copy of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// Every tensor.
    pub tensors: Vec<GraphTensor>,
    /// Tensors that are not computed, in order, each with the buffer it goes to.
    pub leafs: Vec<(usize, usize)>,
    /// Tensors that are computed, in order, each with the buffer it goes to.
    pub nodes: Vec<(usize, usize)>,
}

/// How a kind of buffer lays out tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferKind {
    /// Bytes to which every tensor is aligned.
    pub alignment: u64,
    /// Bytes of the largest single allocation.
    pub largest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Hole {
    offset: Length,
    size: Length,
}

impl Hole {
    fn end(self) -> Result<Length, MathError> {
        self.offset.plus(self.size)
    }
}

/// One allocation of a buffer. The last hole is its open end.
#[derive(Debug, Clone)]
struct Chunk {
    holes: Vec<Hole>,
    high: Length,
}

impl Chunk {
    /// Makes one hole of the hole `left` and the next when they touch.
    fn join(&mut self, left: usize, steps: &mut Steps) -> Result<(), MathError> {
        let right = left.saturating_add(1);
        if let (Some(first), Some(second)) = (self.holes.get(left).copied(), self.holes.get(right).copied())
            && steps.equal(first.end()?, second.offset)
        {
            self.holes.remove(right);
            if let Some(hole) = self.holes.get_mut(left) {
                hole.size = first.size.plus(second.size)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Address {
    chunk: usize,
    offset: Length,
}

/// A buffer while tensors come and go (`ggml_dyn_tallocr`).
#[derive(Debug, Clone)]
struct Pool {
    kind: BufferKind,
    chunks: Vec<Chunk>,
}

/// Where a chunk's open end starts to count as endless: sizes never come near it.
const ENDLESS: u64 = 1 << 60;

impl Pool {
    const fn new(kind: BufferKind) -> Self {
        Self { kind, chunks: Vec::new() }
    }

    fn take(&mut self, size: Length, steps: &mut Steps) -> Result<Address, MathError> {
        let size = steps.round_up(size, self.kind.alignment)?;
        let found = match self.best_hole(size, steps) {
            Some(hole) => Some(hole),
            None => self.best_end(size, steps)?,
        };
        let (chunk_index, hole_index) = match found {
            Some(found) => found,
            None => {
                let room = steps.larger(Length::of(self.kind.largest.min(ENDLESS))?, size);
                self.chunks.push(Chunk { holes: vec![Hole { offset: Length::ZERO, size: room }], high: Length::ZERO });
                (self.chunks.len().saturating_sub(1), 0)
            }
        };
        let missing = MathError::Overflow { quantity: "compute buffer" };
        let chunk = self.chunks.get_mut(chunk_index).ok_or(missing.clone())?;
        let hole = chunk.holes.get_mut(hole_index).ok_or(missing)?;
        let offset = hole.offset;
        hole.offset = offset.plus(size)?;
        hole.size = hole.size.minus(size)?;
        let empty = steps.equal(hole.size, Length::ZERO);
        let end = hole.offset;
        if empty {
            chunk.holes.remove(hole_index);
        }
        chunk.high = steps.larger(chunk.high, end);
        Ok(Address { chunk: chunk_index, offset })
    }

    /// The smallest hole that holds `size`; of equal ones the last. A chunk's open end is no hole, and each chunk with a
    /// fitting hole outranks the chunks before it.
    fn best_hole(&self, size: Length, steps: &mut Steps) -> Option<(usize, usize)> {
        let mut best = None;
        for (chunk_index, chunk) in self.chunks.iter().enumerate() {
            let mut smallest: Option<Length> = None;
            let inner = chunk.holes.len().saturating_sub(1);
            for (hole_index, hole) in chunk.holes.iter().take(inner).enumerate() {
                if steps.at_least(hole.size, size) && smallest.is_none_or(|smallest| steps.at_least(smallest, hole.size)) {
                    smallest = Some(hole.size);
                    best = Some((chunk_index, hole_index));
                }
            }
        }
        best
    }

    /// The open end that wastes least: one that need not grow with the least left over, else the one that grows least.
    fn best_end(&self, size: Length, steps: &mut Steps) -> Result<Option<(usize, usize)>, MathError> {
        let mut best: Option<(usize, usize, Length)> = None;
        for (chunk_index, chunk) in self.chunks.iter().enumerate() {
            let Some(end) = chunk.holes.last() else { continue };
            if !steps.at_least(end.size, size) {
                continue;
            }
            // Bytes left below the mark once the tensor is in; negative when the chunk grows.
            let left = chunk.high.minus(end.offset)?.minus(size)?;
            let better = match best {
                None => true,
                Some((_, _, held)) => {
                    (!steps.at_least(held, Length::ZERO) && !steps.at_least(held, left))
                        || (steps.at_least(left, Length::ZERO) && !steps.at_least(left, held))
                }
            };
            if better {
                best = Some((chunk_index, chunk.holes.len().saturating_sub(1), left));
            }
        }
        Ok(best.map(|(chunk, hole, _)| (chunk, hole)))
    }

    fn give_back(&mut self, address: Address, size: Length, steps: &mut Steps) -> Result<(), MathError> {
        let size = steps.round_up(size, self.kind.alignment)?;
        let Some(chunk) = self.chunks.get_mut(address.chunk) else { return Ok(()) };
        let end = address.offset.plus(size)?;
        // The first hole that touches decides, also where tensors of no size left holes of no size behind: those can
        // keep neighbours apart, and the engine's buffers are the larger for it.
        let mut touching = None;
        for (index, hole) in chunk.holes.iter().enumerate() {
            if steps.equal(hole.end()?, address.offset) {
                touching = Some((index, true));
                break;
            }
            if steps.equal(hole.offset, end) {
                touching = Some((index, false));
                break;
            }
        }
        let Some((index, grows_up)) = touching else {
            let place = chunk.holes.iter().take_while(|hole| !steps.at_least(hole.offset, address.offset)).count();
            chunk.holes.insert(place, Hole { offset: address.offset, size });
            return Ok(());
        };
        let Some(hole) = chunk.holes.get_mut(index) else { return Ok(()) };
        hole.size = hole.size.plus(size)?;
        if grows_up {
            return chunk.join(index, steps);
        }
        hole.offset = address.offset;
        index.checked_sub(1).map_or(Ok(()), |left| chunk.join(left, steps))
    }

    fn high(&self) -> Result<Length, MathError> {
        self.chunks.iter().try_fold(Length::ZERO, |sum, chunk| sum.plus(chunk.high))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    readers: u32,
    views: u32,
    /// Buffer and address while it holds memory of its own.
    held: Option<(usize, Address)>,
}

struct Replay<'a> {
    graph: &'a Graph,
    steps: &'a mut Steps,
    pools: Vec<Pool>,
    states: Vec<State>,
}

/// Bytes of every buffer that the graph needs, in the order of `kinds`.
///
/// # Errors
/// [`MathError::Invalid`] when the graph names a tensor or buffer that it does not have, [`MathError::Overflow`].
pub fn buffer_bytes(graph: &Graph, kinds: &[BufferKind]) -> Result<Vec<u64>, MathError> {
    buffer_lengths(graph, kinds, &mut Steps::default())?.into_iter().map(Length::now).collect()
}

/// As [`buffer_bytes`] for sizes that grow with the context: `steps` ends up as the range in which the answer holds.
pub(super) fn buffer_lengths(graph: &Graph, kinds: &[BufferKind], steps: &mut Steps) -> Result<Vec<Length>, MathError> {
    let mut replay = Replay {
        graph,
        steps,
        pools: kinds.iter().map(|kind| Pool::new(*kind)).collect(),
        states: vec![State::default(); graph.tensors.len()],
    };
    for &(leaf, buffer) in &graph.leafs {
        replay.place(leaf, buffer)?;
    }
    // Readers are counted first, and inputs are placed before everything computed, so that nothing overwrites them.
    for &(node, buffer) in &graph.nodes {
        let tensor = replay.tensor(node)?;
        if let Some(base) = tensor.view_of.filter(|_| tensor.is_operation) {
            let state = replay.state(base)?;
            state.views = state.views.saturating_add(1);
        }
        if tensor.is_input {
            replay.place(node, buffer)?;
        }
        for source in tensor.sources.iter() {
            let state = replay.state(source)?;
            state.readers = state.readers.saturating_add(1);
            if replay.tensor(source)?.is_input {
                replay.place(source, buffer)?;
            }
        }
    }
    for &(node, buffer) in &graph.nodes {
        let tensor = replay.tensor(node)?;
        for source in tensor.sources.iter() {
            replay.place(source, buffer)?;
        }
        replay.place(node, buffer)?;
        for source in tensor.sources.iter() {
            replay.done_reading(source)?;
        }
    }
    replay.pools.iter().map(Pool::high).collect()
}

fn no_such(what: &str) -> MathError {
    MathError::Invalid {
        field: "graph".into(),
        found: alloc::format!("a reference to a {what} that is not there"),
        expected: alloc::format!("an existing {what}"),
    }
}

impl<'a> Replay<'a> {
    fn tensor(&self, index: usize) -> Result<&'a GraphTensor, MathError> {
        self.graph.tensors.get(index).ok_or_else(|| no_such("tensor"))
    }
    fn state(&mut self, index: usize) -> Result<&mut State, MathError> {
        self.states.get_mut(index).ok_or_else(|| no_such("tensor"))
    }
    fn take(&mut self, buffer: usize, size: Length) -> Result<Address, MathError> {
        self.pools.get_mut(buffer).ok_or_else(|| no_such("buffer"))?.take(size, self.steps)
    }
    fn give_back(&mut self, buffer: usize, address: Address, size: Length) -> Result<(), MathError> {
        self.pools.get_mut(buffer).ok_or_else(|| no_such("buffer"))?.give_back(address, size, self.steps)
    }
    fn bytes(tensor: &GraphTensor, buffer: usize) -> Result<Length, MathError> {
        match tensor.extra {
            Some((on, extra)) if on == buffer => tensor.bytes.plus(extra),
            Some(_) | None => Ok(tensor.bytes),
        }
    }

    /// Gives a tensor memory (`ggml_gallocr_allocate_node`), unless it has some or shows another's.
    fn place(&mut self, index: usize, buffer: usize) -> Result<(), MathError> {
        let tensor = self.tensor(index)?;
        if tensor.is_external || tensor.view_of.is_some() || self.state(index)?.held.is_some() {
            return Ok(());
        }
        if tensor.may_overwrite {
            for parent in tensor.sources.iter() {
                if self.overwrite(index, parent)? {
                    return Ok(());
                }
            }
        }
        let size = Self::bytes(tensor, buffer)?;
        let address = self.take(buffer, size)?;
        self.state(index)?.held = Some((buffer, address));
        Ok(())
    }

    /// Lets a tensor take over `parent`'s memory if it is the only reader of the same layout; room that it does not need
    /// is given back.
    fn overwrite(&mut self, index: usize, parent: usize) -> Result<bool, MathError> {
        let (tensor, source) = (self.tensor(index)?, self.tensor(parent)?);
        let state = *self.state(parent)?;
        let Some((buffer, address)) = state.held else { return Ok(false) };
        let alone = state.readers == 1 && state.views == 0;
        if !alone || source.is_output || source.view_of.is_some() || source.layout != tensor.layout {
            return Ok(false);
        }
        self.state(parent)?.held = None;
        self.state(index)?.held = Some((buffer, address));
        let alignment = self.pools.get(buffer).ok_or_else(|| no_such("buffer"))?.kind.alignment;
        let held = self.steps.round_up(Self::bytes(source, buffer)?, alignment)?;
        let needed = self.steps.round_up(Self::bytes(tensor, buffer)?, alignment)?;
        if !self.steps.at_least(needed, held) {
            let rest = Address { chunk: address.chunk, offset: address.offset.plus(needed)? };
            self.give_back(buffer, rest, held.minus(needed)?)?;
        }
        Ok(true)
    }

    /// Counts one reader less, and gives memory back after the last (`ggml_gallocr_alloc_graph_impl`).
    fn done_reading(&mut self, index: usize) -> Result<(), MathError> {
        let tensor = self.tensor(index)?;
        let state = self.state(index)?;
        state.readers = state.readers.saturating_sub(1);
        if state.readers > 0 || state.views > 0 {
            return Ok(());
        }
        match tensor.view_of {
            Some(base) => {
                let state = self.state(base)?;
                state.views = state.views.saturating_sub(1);
                if state.views == 0 && state.readers == 0 { self.release(base) } else { Ok(()) }
            }
            None => self.release(index),
        }
    }

    fn release(&mut self, index: usize) -> Result<(), MathError> {
        let tensor = self.tensor(index)?;
        if tensor.is_output {
            return Ok(());
        }
        if let Some((buffer, address)) = self.state(index)?.held.take() {
            let size = Self::bytes(tensor, buffer)?;
            self.give_back(buffer, address, size)?;
        }
        Ok(())
    }
}
