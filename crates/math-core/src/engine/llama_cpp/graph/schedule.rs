//! The scheduler: which backend computes which node, and the copies that carry tensors between backends
//! (`ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph`).

use alloc::vec;
use alloc::vec::Vec;

pub(super) use super::kernels::Kernels;
use super::kernels::{extra_bytes, runs};
use super::metal;
use super::op::Op;
use super::ops::{Builder, Built, Home};
use super::tensors::{Graph, GraphTensor};
use crate::deployment::Backend;
use crate::engine::llama_cpp::flash::OFFLOADED_BATCH;
use crate::error::MathError;

/// What graphs are scheduled on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    /// Backends in order of preference; the last is the processor.
    pub(super) backends: &'a [Backend],
    /// Whether devices take over operations on weights that lie on the host.
    pub(super) offloads_operations: bool,
    /// Copies of every input, for micro-batches that follow each other through several devices.
    pub(super) copies: usize,
    /// Whether inputs that no operation reads are kept for each micro-batch too (`build.rs:keeps_unread_inputs`).
    pub(super) keeps_unread_inputs: bool,
    pub(super) kernels: Kernels,
    /// Whether every weight has an address of its own when the graph is reserved: a projector's have, a model's that is only
    /// simulated have not.
    pub(super) weights_have_addresses: bool,
}

// A function, since an error that is made in advance has to be dropped again.
fn gone() -> MathError {
    MathError::Overflow { quantity: "graph" }
}

/// Sources that a tensor may have (`ggml.h:GGML_MAX_SRC`).
const MOST_SOURCES: usize = 10;

/// A tensor without a backend.
const NOWHERE: u8 = u8::MAX;

/// The scheduler's copy of a finished graph.
///
/// # Errors
/// [`MathError::Overflow`] when a tensor refers to one that is not there.
pub(super) fn schedule(builder: Builder, machine: Machine<'_>) -> Result<Graph, MathError> {
    let Builder { mut graph, built, leafs, nodes, .. } = builder;
    graph.n_built = built.len();
    let Some(last) = machine.backends.len().checked_sub(1).and_then(|last| u8::try_from(last).ok()) else { return Err(gone()) };
    let n_tensors = built.len();
    let scheduler =
        Scheduler { graph, built, leafs, nodes, machine, last, backend: vec![NOWHERE; n_tensors], read_inputs: Vec::new() };
    if last == 0 { scheduler.single() } else { scheduler.several() }
}

struct Scheduler<'a> {
    graph: Graph,
    built: Vec<Built>,
    leafs: Vec<u32>,
    nodes: Vec<u32>,
    machine: Machine<'a>,
    /// The processor.
    last: u8,
    /// The backend of each tensor.
    backend: Vec<u8>,
    /// Inputs that operations read, in that order.
    read_inputs: Vec<u32>,
}

/// A run of nodes on one backend, and the tensors that are copied there before it.
struct Part {
    backend: u8,
    nodes: core::ops::Range<usize>,
    inputs: Vec<u32>,
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl Scheduler<'_> {
    fn backend(&self, index: u32) -> u8 {
        self.backend.get(at(index)).copied().unwrap_or(NOWHERE)
    }
    fn set(&mut self, index: u32, backend: u8) {
        if let Some(slot) = self.backend.get_mut(at(index)) {
            *slot = backend;
        }
    }
    fn tensor(&self, index: u32) -> Result<&GraphTensor, MathError> {
        self.graph.tensors.get(at(index)).ok_or_else(gone)
    }
    fn built(&self, index: u32) -> Result<&Built, MathError> {
        self.built.get(at(index)).ok_or_else(gone)
    }
    fn kind(&self, backend: u8) -> Backend {
        self.machine.backends.get(usize::from(backend)).copied().unwrap_or(Backend::Cpu)
    }
    /// The backend of the buffer that a tensor's memory lies in before the graph is allocated.
    fn home(&self, index: u32) -> Result<Option<u8>, MathError> {
        let root = self.tensor(index)?.view_of().unwrap_or(index);
        Ok(match self.built(root)?.home {
            Home::Weight(backend) | Home::Cache(backend) => Some(backend),
            Home::Graph => None,
        })
    }
    /// Whether a backend has a kernel for a node.
    fn runs(&self, index: u32, backend: u8) -> Result<bool, MathError> {
        if backend == self.last {
            return Ok(true);
        }
        // A device reads no other device's memory.
        for &source in self.graph.sources(self.tensor(index)?) {
            if let Home::Weight(home) | Home::Cache(home) = self.built(source)?.home
                && home != backend
                && home != self.last
            {
                return Ok(false);
            }
        }
        Ok(runs(&self.graph, &self.built, at(index), self.kind(backend), self.machine.kernels))
    }

    /// Everything runs on the processor: nothing to assign, nothing to copy.
    fn single(mut self) -> Result<Graph, MathError> {
        self.graph.leafs = self.leafs.iter().map(|&leaf| (leaf, 0)).collect();
        self.graph.nodes = self.nodes.iter().map(|&node| (node, 0)).collect();
        Ok(self.graph)
    }

    fn several(mut self) -> Result<Graph, MathError> {
        self.assign_given()?;
        // Nodes that show another's memory follow it and are passed over.
        let mut operations = Vec::with_capacity(self.nodes.len());
        for &index in &self.nodes {
            if !self.built(index)?.op.is_view() {
                operations.push(index);
            }
        }
        // First the devices spread to their neighbours, down and up, then the processor takes what is left between.
        for spread_processor in [false, true] {
            self.spread(operations.iter().copied(), spread_processor)?;
            self.spread(operations.iter().rev().copied(), spread_processor)?;
        }
        self.assign_by_sources(&operations)?;
        self.assign_rest()?;
        self.split()
    }

    /// What memory, flags and weights say (`ggml_backend_sched_backend_id_from_cur`).
    fn assign_given(&mut self) -> Result<(), MathError> {
        let (leafs, nodes) = (core::mem::take(&mut self.leafs), core::mem::take(&mut self.nodes));
        for &index in leafs.iter().chain(&nodes) {
            let backend = self.given(index)?;
            self.set(index, backend);
        }
        (self.leafs, self.nodes) = (leafs, nodes);
        Ok(())
    }

    fn given(&self, index: u32) -> Result<u8, MathError> {
        let built = self.built(index)?;
        if let Some(pinned) = built.pinned
            && self.runs(index, pinned)?
        {
            return Ok(pinned);
        }
        if let Some(home) = self.home(index)? {
            return Ok(home);
        }
        let tensor = self.tensor(index)?;
        if tensor.is_input {
            return Ok(self.last);
        }
        if matches!(built.op, Op::Rope | Op::FlashAttention) {
            return Ok(NOWHERE);
        }
        for &source in self.graph.sources(tensor) {
            let Home::Weight(home) = self.built(source)?.home else { continue };
            if !self.runs(index, home)? {
                return Ok(NOWHERE);
            }
            if home == self.last && self.machine.offloads_operations && !self.built(source)?.repacked {
                for device in 0..self.last {
                    if self.takes_over(index, device)? {
                        return Ok(device);
                    }
                }
            }
            return Ok(home);
        }
        Ok(NOWHERE)
    }

    /// Whether a device computes what could stay with its weights on the host (`offload_op`).
    fn takes_over(&self, index: u32, device: u8) -> Result<bool, MathError> {
        let op = self.built(index)?.op;
        let [_, rows, planes, cubes] = self.tensor(index)?.layout.dims;
        let batch = match (op, self.kind(device)) {
            (Op::MulMat, _) => rows,
            (Op::MulMatId, _) => planes,
            (_, Backend::Metal | Backend::Cpu) | (Op::GetRows, Backend::Cuda { .. }) => 0,
            (Op::Rope | Op::RopeBack, Backend::Cuda { .. }) => planes,
            (_, Backend::Cuda { .. }) => rows.saturating_mul(planes).saturating_mul(cubes),
        };
        Ok(batch >= OFFLOADED_BATCH && self.runs(index, device)?)
    }

    fn spread(&mut self, order: impl Iterator<Item = u32>, spread_processor: bool) -> Result<(), MathError> {
        let mut current = NOWHERE;
        for index in order {
            match self.backend(index) {
                NOWHERE if current == NOWHERE => {}
                NOWHERE => {
                    if self.runs(index, current)? {
                        self.set(index, current);
                    }
                }
                backend if backend == self.last && !spread_processor => current = NOWHERE,
                backend => current = backend,
            }
        }
        Ok(())
    }

    /// Nodes that none of their neighbours' backends could take: the backend that reads most of the sources as they are.
    fn assign_by_sources(&mut self, operations: &[u32]) -> Result<(), MathError> {
        for &index in operations {
            if self.backend(index) != NOWHERE {
                continue;
            }
            let mut best = None;
            for backend in 0..=self.last {
                if !self.runs(index, backend)? {
                    continue;
                }
                let mut readable = 0_u32;
                for &source in self.graph.sources(self.tensor(index)?) {
                    if self.reads(source, backend)? {
                        readable = readable.saturating_add(1);
                    }
                }
                if best.is_none_or(|(_, most)| readable > most) {
                    best = Some((backend, readable));
                }
            }
            if let Some((backend, _)) = best {
                self.set(index, backend);
            }
        }
        Ok(())
    }

    /// Whether a backend reads a tensor where it is (`ggml_backend_sched_buffer_supported`).
    fn reads(&self, index: u32, backend: u8) -> Result<bool, MathError> {
        if let Some(home) = self.home(index)? {
            return Ok(home == backend);
        }
        let mut there = self.backend(index);
        if there == NOWHERE
            && let Some(root) = self.tensor(index)?.view_of()
        {
            there = self.backend(root);
        }
        Ok(there == backend)
    }

    fn assign_rest(&mut self) -> Result<(), MathError> {
        let nodes = core::mem::take(&mut self.nodes);
        for &index in &nodes {
            let mut backend = self.backend(index);
            if backend == NOWHERE
                && let Some(root) = self.tensor(index)?.view_of()
            {
                backend = self.backend(root);
                self.set(index, backend);
            }
            let range = 0..self.graph.sources(self.tensor(index)?).len();
            for position in range {
                let Some(source) = self.graph.sources(self.tensor(index)?).get(position).copied() else { continue };
                if self.backend(source) == NOWHERE {
                    let from = match self.tensor(source)?.view_of() {
                        Some(root) => self.backend(root),
                        None => backend,
                    };
                    self.set(source, from);
                }
            }
            if backend == NOWHERE {
                for candidate in 0..=self.last {
                    if self.runs(index, candidate)? {
                        self.set(index, candidate);
                        break;
                    }
                }
            }
        }
        self.nodes = nodes;
        Ok(())
    }

    /// Cuts the graph where the backend changes, with what each part copies in.
    fn split(mut self) -> Result<Graph, MathError> {
        let nodes = core::mem::take(&mut self.nodes);
        let uses = if self.machine.backends.contains(&Backend::Metal) { self.uses(&nodes)? } else { Vec::new() };
        let backends = self.machine.backends.len();
        let mut copies = Copies { first: vec![u32::MAX; self.built.len().saturating_mul(backends)], backends };
        let mut parts: Vec<Part> = Vec::new();
        for (position, &index) in nodes.iter().enumerate() {
            let op = self.built(index)?.op;
            if op.is_view() {
                continue;
            }
            let backend = self.backend(index);
            let cut = match parts.last() {
                None => true,
                Some(part) => {
                    part.backend != backend || (!part.inputs.is_empty() && self.reads_foreign_weight(index, backend)?)
                }
            };
            if cut {
                let start = parts.last_mut().map_or(0, |part| {
                    part.nodes.end = position;
                    position
                });
                parts.push(Part { backend, nodes: start..nodes.len(), inputs: Vec::new() });
            }
            let n_sources = self.graph.sources(self.tensor(index)?).len();
            for place in 0..n_sources {
                let Some(source) = self.graph.sources(self.tensor(index)?).get(place).copied() else { continue };
                if self.machine.copies > 1 && self.tensor(source)?.is_input && !self.read_inputs.contains(&source) {
                    self.read_inputs.push(source);
                }
                if self.backend(source) == backend || self.reads(source, backend)? {
                    continue;
                }
                let copy = match copies.get(source, backend) {
                    Some(copy) => copy,
                    None => {
                        let copy = self.copy(source)?;
                        copies.set(source, backend, copy);
                        if let Some(part) = parts.last_mut() {
                            part.inputs.push(source);
                        }
                        copy
                    }
                };
                if let Some(slot) = self.graph.sources_mut(at(index)).get_mut(place) {
                    *slot = copy;
                }
            }
        }
        self.finish(&nodes, &parts, &copies, &uses)
    }

    /// Whether a node reads a weight that its backend cannot read: a part of its own lets earlier such weights go.
    fn reads_foreign_weight(&self, index: u32, backend: u8) -> Result<bool, MathError> {
        for &source in self.graph.sources(self.tensor(index)?) {
            // A copy of a weight is no weight.
            let Some(built) = self.built.get(at(source)) else { continue };
            if matches!(built.home, Home::Weight(_)) && self.backend(source) != backend && !self.reads(source, backend)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies of a tensor for another backend, one for each micro-batch in flight; the first is returned, the others
    /// follow it.
    fn copy(&mut self, source: u32) -> Result<u32, MathError> {
        let original = self.tensor(source)?;
        let mut copy = GraphTensor::new(original.layout, original.bytes);
        if self.machine.copies > 1 {
            copy.is_input = true;
            copy.is_output = true;
        }
        let first = self.push(copy.clone(), &[], source)?;
        for _ in 1..self.machine.copies {
            self.push(copy.clone(), &[], source)?;
        }
        Ok(first)
    }

    fn push(&mut self, tensor: GraphTensor, sources: &[u32], of: u32) -> Result<u32, MathError> {
        let format = self.built(of)?.format;
        let number = self.graph.push(tensor, sources)?;
        self.built.push(Built::none(format));
        self.backend.push(NOWHERE);
        Ok(number)
    }

    /// The scheduler's copy of the graph: what each part copies in comes first, each original kept alive until then.
    fn finish(mut self, nodes: &[u32], parts: &[Part], copies: &Copies, uses: &[u32]) -> Result<Graph, MathError> {
        let leafs = core::mem::take(&mut self.leafs);
        let mut order: Vec<(u32, u32)> = Vec::with_capacity(nodes.len().saturating_add(16));
        for part in parts {
            let backend = u32::from(part.backend);
            for &source in &part.inputs {
                let original = self.tensor(source)?;
                let mut keeps = GraphTensor::new(original.layout, original.bytes);
                keeps.set_view_of(Some(original.view_of().unwrap_or(source)));
                let keeper = self.push(keeps, &[source], source)?;
                order.push((keeper, u32::from(self.backend(source))));
                if let Some(copy) = copies.get(source, part.backend) {
                    order.push((copy, backend));
                }
            }
            let own = nodes.get(part.nodes.clone()).unwrap_or(&[]);
            if self.kind(part.backend) == Backend::Metal {
                let ordered = metal::order(&self.graph, &self.built, uses, own, self.machine.weights_have_addresses);
                self.push_kept(&ordered, backend, &mut order)?;
            } else {
                order.extend(own.iter().map(|&index| (index, u32::from(self.backend(index)))));
            }
        }
        let mut leading: Vec<(u32, u32)> = Vec::new();
        if self.machine.copies > 1 {
            // Every input is kept once for each micro-batch in flight.
            let read = core::mem::take(&mut self.read_inputs);
            for &leaf in if self.machine.keeps_unread_inputs { &leafs } else { &read } {
                if !self.tensor(leaf)?.is_input {
                    continue;
                }
                let backend = self.backend(leaf);
                if copies.get(leaf, backend).is_none() {
                    let original = self.tensor(leaf)?.clone();
                    if let Some(tensor) = self.graph.tensors.get_mut(at(leaf)) {
                        tensor.is_output = true;
                    }
                    leading.push((leaf, u32::from(backend)));
                    for _ in 1..self.machine.copies {
                        let mut copy = GraphTensor::new(original.layout, original.bytes);
                        copy.is_input = true;
                        copy.is_output = true;
                        let copy = self.push(copy, &[], leaf)?;
                        leading.push((copy, u32::from(backend)));
                    }
                }
            }
            for part in parts {
                for &source in &part.inputs {
                    let Some(first) = copies.get(source, part.backend) else { continue };
                    let count = u32::try_from(self.machine.copies).unwrap_or(u32::MAX);
                    leading.extend((first..first.saturating_add(count)).map(|copy| (copy, u32::from(part.backend))));
                }
            }
        }
        leading.extend(leafs.iter().map(|&leaf| (leaf, u32::from(self.backend(leaf)))));
        self.graph.leafs = leading;
        self.graph.nodes = order;
        self.add_extras()?;
        Ok(self.graph)
    }

    /// How often each tensor is read.
    fn uses(&self, nodes: &[u32]) -> Result<Vec<u32>, MathError> {
        let mut uses = vec![0_u32; self.built.len()];
        for &index in nodes {
            for &source in self.graph.sources(self.tensor(index)?) {
                if let Some(count) = uses.get_mut(at(source)) {
                    *count = count.saturating_add(1);
                }
            }
        }
        Ok(uses)
    }

    /// Nodes in a device's own order, each followed by readers of what stays until then.
    fn push_kept(&mut self, ordered: &metal::Ordered, backend: u32, order: &mut Vec<(u32, u32)>) -> Result<(), MathError> {
        for &index in &ordered.nodes {
            order.push((index, u32::from(self.backend(index))));
            let found = ordered.kept.binary_search_by_key(&index, |(until, _)| *until);
            let Some((_, kept)) = found.ok().and_then(|found| ordered.kept.get(found)) else { continue };
            for some in kept.chunks(MOST_SOURCES) {
                let Some(&first) = some.first() else { continue };
                let original = self.tensor(first)?;
                let mut keeper = GraphTensor::new(original.layout, original.bytes);
                keeper.set_view_of(Some(original.view_of().unwrap_or(first)));
                let keeper = self.push(keeper, some, first)?;
                order.push((keeper, backend));
            }
        }
        Ok(())
    }

    /// What devices' buffers add to results of some operations, and to copies of rows in blocks: of those for later
    /// micro-batches no node is made, so that they are among the leafs alone.
    fn add_extras(&mut self) -> Result<(), MathError> {
        let n_leafs = self.graph.leafs.len();
        for position in 0..n_leafs.saturating_add(self.graph.nodes.len()) {
            let listed = match position.checked_sub(n_leafs) {
                Some(node) => self.graph.nodes.get(node),
                None => self.graph.leafs.get(position),
            };
            let Some(&(index, backend)) = listed else { continue };
            let kind = u8::try_from(backend).map_or(Backend::Cpu, |backend| self.kind(backend));
            let extra = extra_bytes(&self.graph, &self.built, at(index), kind)?;
            if extra > 0
                && let Some(tensor) = self.graph.tensors.get_mut(at(index))
            {
                tensor.set_extra(backend, extra);
            }
        }
        Ok(())
    }
}

/// The first copy of each tensor on each backend.
struct Copies {
    first: Vec<u32>,
    backends: usize,
}

impl Copies {
    fn slot(&self, source: u32, backend: u8) -> usize {
        at(source).saturating_mul(self.backends).saturating_add(usize::from(backend))
    }
    fn get(&self, source: u32, backend: u8) -> Option<u32> {
        self.first.get(self.slot(source, backend)).copied().filter(|copy| *copy != u32::MAX)
    }
    fn set(&mut self, source: u32, backend: u8, copy: u32) {
        let slot = self.slot(source, backend);
        if let Some(place) = self.first.get_mut(slot) {
            *place = copy;
        }
    }
}
