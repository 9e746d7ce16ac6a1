//! The engine's graph allocator (`ggml/src/ggml-alloc.c`), replayed.
//!
//! Tensors are laid into buffers in graph order. A tensor takes the smallest hole that holds it, or the open end of
//! the buffer; some operations write over their input when nobody else reads it; a tensor's room is given back after
//! its last reader. The result is the highest byte ever taken, per buffer.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::length::{Amount, Length};
use super::plan::{Read, Spot, Step};
use super::tensors::{Graph, GraphTensor};
use super::unroll::{Unrolled, Uses};
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

// A function, since an error that is made in advance has to be dropped again.
fn no_room() -> MathError {
    MathError::Overflow { quantity: "compute buffer" }
}

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
        let Some(chunk) = self.chunks.get_mut(chunk_index) else { return Err(no_room()) };
        let Some(hole) = chunk.holes.get_mut(hole_index) else { return Err(no_room()) };
        let offset = hole.offset;
        hole.offset = offset.plus(size)?;
        hole.size = hole.size.minus(size)?;
        let empty = A::equal(steps, hole.size, A::ZERO);
        let end = hole.offset;
        if empty {
            chunk.holes.remove(hole_index);
        }
        chunk.high = A::larger(steps, chunk.high, end);
        Ok(Address { chunk: u32::try_from(chunk_index).map_err(|_| no_room())?, offset })
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

impl<A> State<A> {
    const fn new(uses: &Uses) -> Self {
        Self { readers: uses.readers, views: uses.views, held: None }
    }
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

/// A graph whose sizes are straight lines along a stretch of settings.
#[derive(Debug, Clone)]
pub(super) struct Growing {
    pub(super) graph: Graph,
    pub(super) unrolled: Unrolled,
    /// For each tensor its elements' bytes and what one kind of buffer adds.
    pub(super) lengths: Vec<[Length; 2]>,
}

impl Sizes<Length> for Growing {
    fn graph(&self) -> &Graph {
        &self.graph
    }
    fn bytes(&self, index: usize, tensor: &GraphTensor, buffer: u32) -> Result<Length, MathError> {
        let [bytes, extra] = *self.lengths.get(index).ok_or_else(no_room)?;
        if tensor.has_extra_in(buffer) { bytes.plus(extra) } else { Ok(bytes) }
    }
}

struct Replay<'a, A: Amount, S> {
    sizes: &'a S,
    graph: &'a Graph,
    unrolled: &'a Unrolled,
    steps: &'a mut A::Steps,
    pools: Vec<Pool<A>>,
    /// Tensors that all layers have in common.
    states: Vec<State<A>>,
    /// Tensors of the layers around the one under way, from the first within reach to the last.
    layers: Vec<Vec<State<A>>>,
    /// Room for counting how tensors are used.
    left: Vec<Uses>,
}

/// Bytes of every buffer that the graph needs, in the order of `kinds`.
///
/// # Errors
/// [`MathError::Invalid`] when the graph names a tensor or buffer that it does not have, [`MathError::Overflow`].
pub fn buffer_bytes(graph: &Graph, kinds: &[BufferKind]) -> Result<Vec<u64>, MathError> {
    let unrolled = Unrolled::new(graph).ok_or_else(|| no_such("tensor"))?;
    replay::<u64, Graph>(graph, &unrolled, kinds, &mut ())
}

/// As [`buffer_bytes`] for sizes of any kind.
pub(super) fn replay<A: Amount, S: Sizes<A>>(
    sizes: &S,
    unrolled: &Unrolled,
    kinds: &[BufferKind],
    steps: &mut A::Steps,
) -> Result<Vec<A>, MathError> {
    let graph = sizes.graph();
    let mut replay = Replay {
        sizes,
        graph,
        unrolled,
        steps,
        pools: kinds.iter().map(|kind| Pool::new(*kind)).collect(),
        // Readers are counted first, so that nothing is given back too early.
        states: unrolled.uses.iter().map(State::new).collect(),
        layers: Vec::new(),
        left: Vec::new(),
    };
    replay.compute(0..unrolled.steps_before)?;
    replay.compute_layers()?;
    replay.pools.iter().map(Pool::high).collect()
}

/// The allocator's state between two layers: what decides everything that follows, but for tensors that stay until the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Between<A> {
    pools: Vec<Vec<Chunk<A>>>,
    held: Vec<Held<A>>,
}

/// A tensor that holds memory between two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held<A> {
    /// Which of the layers around.
    place: usize,
    /// Which of its tensors.
    rank: usize,
    /// Readers to come, and views that are still to be read or computed.
    uses: Uses,
    buffer: u32,
    address: Address<A>,
}

/// What a layer makes of a state.
#[derive(Debug, Clone)]
struct Move {
    from: usize,
    /// A layer that did.
    layer: usize,
    to: usize,
    /// Uses that it takes from tensors that all layers have in common, in its order.
    taken: Vec<Uses>,
}

/// States that were met between layers, and the moves between them.
#[derive(Debug)]
struct Memory<A> {
    states: Vec<Between<A>>,
    moves: Vec<Move>,
}

impl<A: Amount> Memory<A> {
    fn number(&mut self, state: Between<A>) -> usize {
        self.states.iter().rposition(|known| *known == state).unwrap_or_else(|| {
            self.states.push(state);
            self.states.len().saturating_sub(1)
        })
    }
}

impl<A: Amount, S: Sizes<A>> Replay<'_, A, S> {
    fn compute(&mut self, steps: Range<usize>) -> Result<(), MathError> {
        let plan = &self.unrolled.plan;
        for step in plan.steps(steps) {
            let reads = plan.reads(step);
            if step.takes {
                self.place(step, reads)?;
            }
            if step.is_computed {
                for read in reads {
                    self.done_reading(read)?;
                }
            }
        }
        Ok(())
    }

    /// Computes every layer. What a layer makes of a state is remembered: a state that comes back takes the same way again, as
    /// long as the layers that follow are the same too and nothing that all layers have in common is read for the last time.
    fn compute_layers(&mut self) -> Result<(), MathError> {
        let unrolled = self.unrolled;
        let mut memory = Memory { states: Vec::new(), moves: Vec::new() };
        let places = unrolled.reach.saturating_mul(2);
        // The last layer that a layer's tensors are used by.
        let ahead = |layer: usize| unrolled.layers.get(layer..=layer.saturating_add(places));
        if !unrolled.layers.is_empty() {
            for place in 0..=places {
                self.layers.push(Vec::new());
                self.begin(0, place);
            }
        }
        // The state that this layer begins in, and whether the pools still have to be brought to it.
        let mut now: Option<usize> = None;
        let mut behind = false;
        for (layer, &number) in unrolled.layers.iter().enumerate() {
            let Some(interval) = unrolled.intervals.get(at(number)) else { return Err(no_such("layer")) };
            let follows = if interval.times > 1 { ahead(layer) } else { None };
            let from = match (now, follows) {
                (None, Some(_)) => Some(memory.number(self.between())),
                (now, _) => now,
            };
            let known = memory.moves.iter().find(|known| Some(known.from) == from && ahead(known.layer) == follows);
            if let Some(known) = known
                && self.take(&interval.touches, &known.taken)
            {
                (now, behind) = (Some(known.to), true);
                continue;
            }
            if behind && let Some(state) = now.and_then(|state| memory.states.get(state)) {
                self.go_to(state, layer);
            }
            let before = self.uses(&interval.touches);
            self.compute(interval.steps.clone())?;
            // The next layer's view: the first goes, another comes within reach.
            self.layers.rotate_left(1);
            self.begin(layer.saturating_add(1), places);
            (now, behind) = (None, false);
            if let (Some(from), Some(_)) = (from, follows) {
                let to = memory.number(self.between());
                let after = self.uses(&interval.touches);
                // Tensors that go decide by where they are.
                if after.iter().all(|uses| uses.readers > 0) {
                    let taken = before.iter().zip(&after).map(|(before, after)| Uses {
                        readers: before.readers.saturating_sub(after.readers),
                        views: before.views.saturating_sub(after.views),
                    });
                    memory.moves.push(Move { from, layer, to, taken: taken.collect() });
                }
                now = Some(to);
            }
        }
        Ok(())
    }

    /// What is known of the tensors of the layer at `place` around another before any of them is computed.
    fn begin(&mut self, layer: usize, place: usize) {
        self.unrolled.left(layer, place, &mut self.left);
        if let Some(tensors) = self.layers.get_mut(place) {
            tensors.clear();
            tensors.extend(self.left.iter().map(State::new));
        }
    }
    fn uses(&self, tensors: &[u32]) -> Vec<Uses> {
        let states = tensors.iter().filter_map(|tensor| self.states.get(at(*tensor)));
        states.map(|state| Uses { readers: state.readers, views: state.views }).collect()
    }
    /// Takes uses from tensors, if each has more.
    fn take(&mut self, tensors: &[u32], uses: &[Uses]) -> bool {
        let stays =
            |(tensor, uses): (&u32, &Uses)| self.states.get(at(*tensor)).is_some_and(|state| state.readers > uses.readers);
        if !tensors.iter().zip(uses).all(stays) {
            return false;
        }
        for (tensor, uses) in tensors.iter().zip(uses) {
            if let Some(state) = self.states.get_mut(at(*tensor)) {
                state.readers = state.readers.saturating_sub(uses.readers);
                state.views = state.views.saturating_sub(uses.views);
            }
        }
        true
    }

    /// The state between the layer computed last and the next.
    fn between(&self) -> Between<A> {
        // What several chunks decide by depends on how far each has grown; with one it decides nothing.
        let pools = self.pools.iter().map(|pool| {
            let mut chunks = pool.chunks.clone();
            if let [only] = chunks.as_mut_slice() {
                only.high = A::ZERO;
            }
            chunks
        });
        let mut held = Vec::new();
        for (place, tensors) in self.layers.iter().enumerate() {
            for (rank, state) in tensors.iter().enumerate() {
                if let Some((buffer, address)) = state.held {
                    let uses = Uses { readers: state.readers, views: state.views };
                    held.push(Held { place, rank, uses, buffer, address });
                }
            }
        }
        Between { pools: pools.collect(), held }
    }
    /// Brings pools and tensors to a state that a layer begins in.
    fn go_to(&mut self, state: &Between<A>, layer: usize) {
        for (pool, chunks) in self.pools.iter_mut().zip(&state.pools) {
            // How far a chunk has grown is no part of the state.
            let highs: Vec<A> = pool.chunks.iter().map(|chunk| chunk.high).collect();
            pool.chunks.clone_from(chunks);
            if let ([only], [high]) = (pool.chunks.as_mut_slice(), highs.as_slice()) {
                only.high = *high;
            }
        }
        for place in 0..self.layers.len() {
            self.begin(layer, place);
        }
        for Held { place, rank, uses, buffer, address } in &state.held {
            if let Some(state) = self.layers.get_mut(*place).and_then(|tensors| tensors.get_mut(*rank)) {
                *state = State { held: Some((*buffer, *address)), ..State::new(uses) };
            }
        }
    }
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

impl<A: Amount, S: Sizes<A>> Replay<'_, A, S> {
    fn state(&mut self, spot: Spot) -> Result<&mut State<A>, MathError> {
        let tensors = match spot.place {
            Spot::COMMON => Some(&mut self.states),
            place => self.layers.get_mut(at(place)),
        };
        tensors.and_then(|tensors| tensors.get_mut(at(spot.index))).ok_or_else(|| no_such("tensor"))
    }
    fn bytes(&self, index: u32, buffer: u32) -> Result<A, MathError> {
        let tensor = self.graph.tensors.get(at(index)).ok_or_else(|| no_such("tensor"))?;
        self.sizes.bytes(at(index), tensor, buffer)
    }
    fn give_back(&mut self, buffer: u32, address: Address<A>, size: A) -> Result<(), MathError> {
        self.pools.get_mut(at(buffer)).ok_or_else(|| no_such("buffer"))?.give_back(address, size, self.steps)
    }

    /// Gives a tensor memory (`ggml_gallocr_allocate_node`).
    fn place(&mut self, step: &Step, reads: &[Read]) -> Result<(), MathError> {
        for read in reads {
            if read.yields && self.overwrite(step, read)? {
                return Ok(());
            }
        }
        let size = self.bytes(step.tensor, step.buffer)?;
        let address = self.pools.get_mut(at(step.buffer)).ok_or_else(|| no_such("buffer"))?.take(size, self.steps)?;
        self.state(step.spot)?.held = Some((step.buffer, address));
        Ok(())
    }

    /// Lets a tensor take over the memory of one of the same layout if it is the only reader; room that it does not need
    /// is given back.
    fn overwrite(&mut self, step: &Step, read: &Read) -> Result<bool, MathError> {
        let state = self.state(read.spot)?;
        let Some((buffer, address)) = state.held else { return Ok(false) };
        if state.readers != 1 || state.views != 0 {
            return Ok(false);
        }
        state.held = None;
        self.state(step.spot)?.held = Some((buffer, address));
        let held = self.bytes(read.tensor, buffer)?;
        let needed = self.bytes(step.tensor, buffer)?;
        if held == needed {
            return Ok(true);
        }
        let alignment = self.pools.get(at(buffer)).ok_or_else(|| no_such("buffer"))?.kind.alignment;
        let held = A::round_up(self.steps, held, alignment)?;
        let needed = A::round_up(self.steps, needed, alignment)?;
        if !A::at_least(self.steps, needed, held) {
            let rest = Address { chunk: address.chunk, offset: address.offset.plus(needed)? };
            self.give_back(buffer, rest, held.minus(needed)?)?;
        }
        Ok(true)
    }

    /// Counts one reader less, and gives memory back after the last (`ggml_gallocr_alloc_graph_impl`).
    fn done_reading(&mut self, read: &Read) -> Result<(), MathError> {
        let state = self.state(read.spot)?;
        state.readers = state.readers.saturating_sub(1);
        if state.readers > 0 || state.views > 0 {
            return Ok(());
        }
        let Some((base, spot)) = read.shows else { return self.release(read.tensor, read.spot) };
        let state = self.state(spot)?;
        state.views = state.views.saturating_sub(1);
        if state.views == 0 && state.readers == 0 { self.release(base, spot) } else { Ok(()) }
    }

    fn release(&mut self, index: u32, spot: Spot) -> Result<(), MathError> {
        if let Some((buffer, address)) = self.state(spot)?.held.take() {
            let size = self.bytes(index, buffer)?;
            self.give_back(buffer, address, size)?;
        }
        Ok(())
    }
}
