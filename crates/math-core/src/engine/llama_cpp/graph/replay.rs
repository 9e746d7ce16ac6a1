//! The engine's graph allocator (`ggml/src/ggml-alloc.c`), replayed.
//!
//! Tensors are laid into buffers in graph order. A tensor takes the smallest hole that holds it, or the open end of
//! the buffer; some operations write over their input when nobody else reads it; a tensor's room is given back after
//! its last reader. The result is the highest byte ever taken, per buffer.

use alloc::vec;
use alloc::vec::Vec;

use super::length::{Amount, Length, Steps};
use super::tensors::{Graph, GraphTensor};
use crate::error::MathError;

/// How a kind of buffer lays out tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferKind {
    /// Bytes to which every tensor is aligned.
    pub alignment: u64,
    /// Bytes of the largest single allocation.
    pub largest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole<A> {
    offset: A,
    size: A,
}

impl<A: Amount> Hole<A> {
    fn end(self) -> Result<A, MathError> {
        self.offset.plus(self.size)
    }
}

/// One allocation of a buffer. The last hole is its open end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk<A> {
    holes: Vec<Hole<A>>,
    high: A,
}

impl<A: Amount> Chunk<A> {
    /// Makes one hole of the hole `left` and the next when they touch.
    fn join(&mut self, left: usize, steps: &mut A::Steps) -> Result<(), MathError> {
        let right = left.saturating_add(1);
        if let (Some(first), Some(second)) = (self.holes.get(left).copied(), self.holes.get(right).copied())
            && A::equal(steps, first.end()?, second.offset)
        {
            self.holes.remove(right);
            if let Some(hole) = self.holes.get_mut(left) {
                hole.size = first.size.plus(second.size)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address<A> {
    chunk: u32,
    offset: A,
}

/// A buffer while tensors come and go (`ggml_dyn_tallocr`).
#[derive(Debug, Clone)]
struct Pool<A> {
    kind: BufferKind,
    chunks: Vec<Chunk<A>>,
}

/// Where a chunk's open end starts to count as endless: sizes never come near it.
const ENDLESS: u64 = 1 << 60;

const NO_ROOM: MathError = MathError::Overflow { quantity: "compute buffer" };

impl<A: Amount> Pool<A> {
    const fn new(kind: BufferKind) -> Self {
        Self { kind, chunks: Vec::new() }
    }

    fn take(&mut self, size: A, steps: &mut A::Steps) -> Result<Address<A>, MathError> {
        let size = A::round_up(steps, size, self.kind.alignment)?;
        let found = match self.best_hole(size, steps) {
            Some(hole) => Some(hole),
            None => self.best_end(size, steps)?,
        };
        let (chunk_index, hole_index) = match found {
            Some(found) => found,
            None => {
                let room = A::larger(steps, A::of(self.kind.largest.min(ENDLESS))?, size);
                self.chunks.push(Chunk { holes: vec![Hole { offset: A::ZERO, size: room }], high: A::ZERO });
                (self.chunks.len().saturating_sub(1), 0)
            }
        };
        let Some(chunk) = self.chunks.get_mut(chunk_index) else { return Err(NO_ROOM) };
        let Some(hole) = chunk.holes.get_mut(hole_index) else { return Err(NO_ROOM) };
        let offset = hole.offset;
        hole.offset = offset.plus(size)?;
        hole.size = hole.size.minus(size)?;
        let empty = A::equal(steps, hole.size, A::ZERO);
        let end = hole.offset;
        if empty {
            chunk.holes.remove(hole_index);
        }
        chunk.high = A::larger(steps, chunk.high, end);
        Ok(Address { chunk: u32::try_from(chunk_index).map_err(|_| NO_ROOM)?, offset })
    }

    /// The smallest hole that holds `size`; of equal ones the last. A chunk's open end is no hole, and each chunk with a
    /// fitting hole outranks the chunks before it.
    fn best_hole(&self, size: A, steps: &mut A::Steps) -> Option<(usize, usize)> {
        let mut best = None;
        for (chunk_index, chunk) in self.chunks.iter().enumerate() {
            let mut smallest: Option<A> = None;
            let inner = chunk.holes.len().saturating_sub(1);
            for (hole_index, hole) in chunk.holes.iter().take(inner).enumerate() {
                if A::at_least(steps, hole.size, size) && smallest.is_none_or(|smallest| A::at_least(steps, smallest, hole.size))
                {
                    smallest = Some(hole.size);
                    best = Some((chunk_index, hole_index));
                }
            }
        }
        best
    }

    /// The open end that wastes least: one that need not grow with the least left over, else the one that grows least.
    fn best_end(&self, size: A, steps: &mut A::Steps) -> Result<Option<(usize, usize)>, MathError> {
        // Bytes left below the mark once the tensor is in, or what the chunk grows by.
        let mut best: Option<(usize, usize, bool, A)> = None;
        for (chunk_index, chunk) in self.chunks.iter().enumerate() {
            let Some(end) = chunk.holes.last() else { continue };
            if !A::at_least(steps, end.size, size) {
                continue;
            }
            let then = end.offset.plus(size)?;
            let fits = A::at_least(steps, chunk.high, then);
            let distance = if fits { chunk.high.minus(then)? } else { then.minus(chunk.high)? };
            let better = match best {
                None => true,
                Some((_, _, false, held)) => fits || !A::at_least(steps, distance, held),
                Some((_, _, true, held)) => fits && !A::at_least(steps, distance, held),
            };
            if better {
                best = Some((chunk_index, chunk.holes.len().saturating_sub(1), fits, distance));
            }
        }
        Ok(best.map(|(chunk, hole, ..)| (chunk, hole)))
    }

    fn give_back(&mut self, address: Address<A>, size: A, steps: &mut A::Steps) -> Result<(), MathError> {
        let size = A::round_up(steps, size, self.kind.alignment)?;
        let chunk = usize::try_from(address.chunk).ok().and_then(|index| self.chunks.get_mut(index));
        let Some(chunk) = chunk else { return Ok(()) };
        let end = address.offset.plus(size)?;
        // The first hole that touches decides, also where tensors of no size left holes of no size behind: those can
        // keep neighbours apart, and the engine's buffers are the larger for it.
        let mut touching = None;
        for (index, hole) in chunk.holes.iter().enumerate() {
            if A::equal(steps, hole.end()?, address.offset) {
                touching = Some((index, true));
                break;
            }
            if A::equal(steps, hole.offset, end) {
                touching = Some((index, false));
                break;
            }
        }
        let Some((index, grows_up)) = touching else {
            let place = chunk.holes.iter().take_while(|hole| !A::at_least(steps, hole.offset, address.offset)).count();
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

    fn high(&self) -> Result<A, MathError> {
        self.chunks.iter().try_fold(A::ZERO, |sum, chunk| sum.plus(chunk.high))
    }
}

#[derive(Debug, Clone, Copy)]
struct State<A> {
    readers: u32,
    views: u32,
    /// Buffer and address while it holds memory of its own.
    held: Option<(u32, Address<A>)>,
}

/// Sizes of tensors in buffers.
pub(super) trait Sizes<A> {
    /// The graph.
    fn graph(&self) -> &Graph;
    /// Bytes of a tensor in a buffer.
    fn bytes(&self, index: usize, tensor: &GraphTensor, buffer: u32) -> Result<A, MathError>;
}

impl Sizes<u64> for Graph {
    fn graph(&self) -> &Graph {
        self
    }
    fn bytes(&self, _: usize, tensor: &GraphTensor, buffer: u32) -> Result<u64, MathError> {
        Ok(tensor.bytes_in(buffer))
    }
}

/// A graph whose sizes are straight lines over the context.
#[derive(Debug, Clone)]
pub(super) struct Growing {
    pub(super) graph: Graph,
    /// For each tensor its elements' bytes and what one kind of buffer adds.
    pub(super) lengths: Vec<[Length; 2]>,
}

impl Sizes<Length> for Growing {
    fn graph(&self) -> &Graph {
        &self.graph
    }
    fn bytes(&self, index: usize, tensor: &GraphTensor, buffer: u32) -> Result<Length, MathError> {
        let [bytes, extra] = *self.lengths.get(index).ok_or(NO_ROOM)?;
        if tensor.has_extra_in(buffer) { bytes.plus(extra) } else { Ok(bytes) }
    }
}

struct Replay<'a, A: Amount, S> {
    sizes: &'a S,
    graph: &'a Graph,
    steps: &'a mut A::Steps,
    pools: Vec<Pool<A>>,
    states: Vec<State<A>>,
}

/// What a replay found.
#[derive(Debug, Clone)]
pub(super) struct Replayed<A> {
    /// Bytes of every buffer, in the order of their kinds.
    pub(super) bytes: Vec<A>,
    /// The allocator's state at every mark of the graph, in order.
    pub(super) snapshots: Vec<Snapshot<A>>,
}

/// The allocator's state between two rounds of layers: what decides everything that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot<A> {
    pools: Vec<Vec<Chunk<A>>>,
    held: Vec<Held<A>>,
}

/// A tensor that holds memory between two rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held<A> {
    /// Whether every round has one: it counts from the first tensor of the round that follows.
    repeats: bool,
    number: u32,
    copy: u32,
    buffer: u32,
    address: Address<A>,
}

/// Bytes of every buffer that the graph needs, in the order of `kinds`.
///
/// # Errors
/// [`MathError::Invalid`] when the graph names a tensor or buffer that it does not have, [`MathError::Overflow`].
pub fn buffer_bytes(graph: &Graph, kinds: &[BufferKind]) -> Result<Vec<u64>, MathError> {
    Ok(replay::<u64, Graph>(graph, kinds, &mut ())?.bytes)
}

/// As [`buffer_bytes`] for sizes that grow with the context: `steps` ends up as the range in which the answer holds.
pub(super) fn buffer_lengths(graph: &Growing, kinds: &[BufferKind], steps: &mut Steps) -> Result<Replayed<Length>, MathError> {
    replay(graph, kinds, steps)
}

/// The replay.
pub(super) fn replay<A: Amount, S: Sizes<A>>(
    sizes: &S,
    kinds: &[BufferKind],
    steps: &mut A::Steps,
) -> Result<Replayed<A>, MathError> {
    let graph = sizes.graph();
    let mut replay = Replay {
        sizes,
        graph,
        steps,
        pools: kinds.iter().map(|kind| Pool::new(*kind)).collect(),
        states: vec![State { readers: 0, views: 0, held: None }; graph.tensors.len()],
    };
    for &(leaf, buffer) in &graph.leafs {
        replay.place(leaf, buffer)?;
    }
    // Readers are counted first, and inputs are placed before everything computed, so that nothing overwrites them.
    for &(node, buffer) in &graph.nodes {
        let tensor = replay.tensor(node)?;
        if let Some(base) = tensor.view_of().filter(|_| tensor.is_operation) {
            let state = replay.state(base)?;
            state.views = state.views.saturating_add(1);
        }
        if tensor.is_input {
            replay.place(node, buffer)?;
        }
        for &source in graph.sources(tensor) {
            let state = replay.state(source)?;
            state.readers = state.readers.saturating_add(1);
            if replay.tensor(source)?.is_input {
                replay.place(source, buffer)?;
            }
        }
    }
    let mut snapshots = Vec::new();
    let mut marks = graph.marks.iter().peekable();
    for (position, &(node, buffer)) in graph.nodes.iter().enumerate() {
        while let Some(mark) = marks.next_if(|mark| mark.node <= position) {
            snapshots.push(replay.snapshot(mark.first, mark.loop_start));
        }
        let tensor = replay.tensor(node)?;
        for &source in graph.sources(tensor) {
            replay.place(source, buffer)?;
        }
        replay.place(node, buffer)?;
        for &source in graph.sources(tensor) {
            replay.done_reading(source)?;
        }
    }
    for mark in marks {
        snapshots.push(replay.snapshot(mark.first, mark.loop_start));
    }
    Ok(Replayed { bytes: replay.pools.iter().map(Pool::high).collect::<Result<_, _>>()?, snapshots })
}

fn no_such(what: &str) -> MathError {
    MathError::Invalid {
        field: "graph".into(),
        found: alloc::format!("a reference to a {what} that is not there"),
        expected: alloc::format!("an existing {what}"),
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl<'a, A: Amount, S: Sizes<A>> Replay<'a, A, S> {
    fn tensor(&self, index: u32) -> Result<&'a GraphTensor, MathError> {
        self.graph.tensors.get(at(index)).ok_or_else(|| no_such("tensor"))
    }
    fn state(&mut self, index: u32) -> Result<&mut State<A>, MathError> {
        self.states.get_mut(at(index)).ok_or_else(|| no_such("tensor"))
    }
    fn pool(&mut self, buffer: u32) -> Result<&mut Pool<A>, MathError> {
        self.pools.get_mut(at(buffer)).ok_or_else(|| no_such("buffer"))
    }
    fn give_back(&mut self, buffer: u32, address: Address<A>, size: A) -> Result<(), MathError> {
        self.pools.get_mut(at(buffer)).ok_or_else(|| no_such("buffer"))?.give_back(address, size, self.steps)
    }

    /// Gives a tensor memory (`ggml_gallocr_allocate_node`), unless it has some or shows another's.
    fn place(&mut self, index: u32, buffer: u32) -> Result<(), MathError> {
        let tensor = self.tensor(index)?;
        if tensor.is_external || tensor.view_of().is_some() || self.state(index)?.held.is_some() {
            return Ok(());
        }
        if tensor.may_overwrite {
            for &parent in self.graph.sources(tensor) {
                if self.overwrite(index, parent)? {
                    return Ok(());
                }
            }
        }
        let size = self.sizes.bytes(at(index), tensor, buffer)?;
        let address = self.pools.get_mut(at(buffer)).ok_or_else(|| no_such("buffer"))?.take(size, self.steps)?;
        self.state(index)?.held = Some((buffer, address));
        Ok(())
    }

    /// Lets a tensor take over `parent`'s memory if it is the only reader of the same layout; room that it does not need
    /// is given back.
    fn overwrite(&mut self, index: u32, parent: u32) -> Result<bool, MathError> {
        let state = *self.state(parent)?;
        let Some((buffer, address)) = state.held else { return Ok(false) };
        if state.readers != 1 || state.views != 0 {
            return Ok(false);
        }
        let (tensor, source) = (self.tensor(index)?, self.tensor(parent)?);
        if source.is_output || source.view_of().is_some() || source.layout != tensor.layout {
            return Ok(false);
        }
        self.state(parent)?.held = None;
        self.state(index)?.held = Some((buffer, address));
        let alignment = self.pool(buffer)?.kind.alignment;
        let held = self.sizes.bytes(at(parent), source, buffer)?;
        let held = A::round_up(self.steps, held, alignment)?;
        let needed = self.sizes.bytes(at(index), tensor, buffer)?;
        let needed = A::round_up(self.steps, needed, alignment)?;
        if !A::at_least(self.steps, needed, held) {
            let rest = Address { chunk: address.chunk, offset: address.offset.plus(needed)? };
            self.give_back(buffer, rest, held.minus(needed)?)?;
        }
        Ok(true)
    }

    /// Counts one reader less, and gives memory back after the last (`ggml_gallocr_alloc_graph_impl`).
    fn done_reading(&mut self, index: u32) -> Result<(), MathError> {
        let state = self.state(index)?;
        state.readers = state.readers.saturating_sub(1);
        if state.readers > 0 || state.views > 0 {
            return Ok(());
        }
        match self.tensor(index)?.view_of() {
            Some(base) => {
                let state = self.state(base)?;
                state.views = state.views.saturating_sub(1);
                if state.views == 0 && state.readers == 0 { self.release(base) } else { Ok(()) }
            }
            None => self.release(index),
        }
    }

    fn release(&mut self, index: u32) -> Result<(), MathError> {
        let tensor = self.tensor(index)?;
        if tensor.is_output {
            return Ok(());
        }
        if let Some((buffer, address)) = self.state(index)?.held.take() {
            let size = self.sizes.bytes(at(index), tensor, buffer)?;
            self.give_back(buffer, address, size)?;
        }
        Ok(())
    }

    /// The state before the round whose first tensor is `first`; tensors before `loop_start` are the same in every round.
    fn snapshot(&self, first: u32, loop_start: u32) -> Snapshot<A> {
        // What several chunks decide by depends on how far each has grown; with one it decides nothing.
        let pools = self.pools.iter().map(|pool| {
            let mut chunks = pool.chunks.clone();
            if let [only] = chunks.as_mut_slice() {
                only.high = A::ZERO;
            }
            chunks
        });
        let built = self.states.len().saturating_sub(self.graph.origins.len());
        let held = self.states.iter().enumerate().filter_map(|(index, state)| {
            let (buffer, address) = state.held?;
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            // A copy is known by its original.
            let added = index.checked_sub(built).and_then(|added| self.graph.origins.get(added).copied());
            let (number, copy) = added.unwrap_or((number, u32::MAX));
            // Tensors of a round count from the first of the round that follows.
            let repeats = number >= loop_start;
            let number = if repeats { number.wrapping_sub(first) } else { number };
            Some(Held { repeats, number, copy, buffer, address })
        });
        let mut held: Vec<Held<A>> = held.collect();
        held.sort_unstable_by_key(|held| (held.repeats, held.number, held.copy));
        Snapshot { pools: pools.collect(), held }
    }
}
