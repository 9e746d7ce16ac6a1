//! The scheduler: which backend computes which node, and the copies that carry tensors between backends
//! (`ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph`).

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::ops::{Builder, Built, Home, Kind};
use super::replay::{Graph, GraphTensor, Sources};
use crate::error::MathError;

/// The scheduler's copy of a finished graph. Backends count from 0 in order of preference; the last is the processor.
///
/// # Errors
/// [`MathError::Overflow`] when a tensor refers to one that is not there.
pub fn schedule(builder: &Builder, n_backends: usize) -> Result<Graph, MathError> {
    let mut scheduler = Scheduler { builder, n_backends, backend: vec![None; builder.tensors.len()] };
    scheduler.assign()?;
    scheduler.split()
}

struct Scheduler<'a> {
    builder: &'a Builder,
    n_backends: usize,
    /// The backend of each tensor.
    backend: Vec<Option<usize>>,
}

impl<'a> Scheduler<'a> {
    fn built(&self, index: usize) -> Result<&'a Built, MathError> {
        self.builder.tensors.get(index).ok_or(MathError::Overflow { quantity: "graph" })
    }
    fn backend(&self, index: usize) -> Option<usize> {
        self.backend.get(index).copied().flatten()
    }
    fn set(&mut self, index: usize, backend: usize) {
        if let Some(slot) = self.backend.get_mut(index) {
            *slot = Some(backend);
        }
    }

    /// What a tensor's own memory, its flags and its weights say (`ggml_backend_sched_backend_id_from_cur`).
    fn given(&self, index: usize) -> Result<Option<usize>, MathError> {
        let built = self.built(index)?;
        if let Some(pinned) = built.pinned {
            return Ok(Some(pinned));
        }
        let root = self.built(built.tensor.view_of.unwrap_or(index))?;
        if let Home::Weight(backend) | Home::Cache(backend) = root.home {
            return Ok(Some(backend));
        }
        if built.tensor.is_input {
            return Ok(self.n_backends.checked_sub(1));
        }
        if !matches!(built.kind, Kind::Rope | Kind::FlashAttention) {
            for source in built.tensor.sources.iter() {
                if let Home::Weight(backend) = self.built(source)?.home {
                    return Ok(Some(backend));
                }
            }
        }
        Ok(None)
    }

    /// Gives every tensor a backend.
    fn assign(&mut self) -> Result<(), MathError> {
        let builder = self.builder;
        for &index in builder.leafs.iter().chain(&builder.nodes) {
            if let Some(backend) = self.given(index)? {
                self.set(index, backend);
            }
        }
        let last = self.n_backends.saturating_sub(1);
        let operations: Vec<usize> = builder
            .nodes
            .iter()
            .copied()
            .filter(|index| builder.tensors.get(*index).is_some_and(|built| built.kind != Kind::View))
            .collect();
        // First the devices spread to their neighbours, down and up, then the processor takes what is left between.
        for spread_processor in [false, true] {
            self.spread(operations.iter().copied(), last, spread_processor);
            self.spread(operations.iter().rev().copied(), last, spread_processor);
        }
        for &index in &builder.nodes {
            let built = self.built(index)?;
            if self.backend(index).is_none() {
                let from = built.tensor.view_of.and_then(|root| self.backend(root));
                if let Some(backend) = from {
                    self.set(index, backend);
                }
            }
            for source in built.tensor.sources.iter() {
                if self.backend(source).is_none() {
                    let from = match self.built(source)?.tensor.view_of {
                        Some(root) => self.backend(root),
                        None => self.backend(index),
                    };
                    if let Some(backend) = from {
                        self.set(source, backend);
                    }
                }
            }
            if self.backend(index).is_none() {
                self.set(index, 0);
            }
        }
        Ok(())
    }

    fn spread(&mut self, order: impl Iterator<Item = usize>, last: usize, spread_processor: bool) {
        let mut current = None;
        for index in order {
            match self.backend(index) {
                Some(backend) if backend == last && !spread_processor => current = None,
                Some(backend) => current = Some(backend),
                None => {
                    if let Some(backend) = current {
                        self.set(index, backend);
                    }
                }
            }
        }
    }

    /// Cuts the graph where the backend changes and inserts what each part copies in.
    fn split(&self) -> Result<Graph, MathError> {
        let mut tensors: Vec<GraphTensor> = self.builder.tensors.iter().map(|built| built.tensor.clone()).collect();
        let mut copies: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut nodes: Vec<(usize, usize)> = Vec::with_capacity(self.builder.nodes.len());
        // Nodes of the current part; they follow the copies that the part turns out to need.
        let mut part: Vec<(usize, usize)> = Vec::new();
        let mut inputs: Vec<(usize, usize)> = Vec::new();
        let mut current: Option<usize> = None;
        for &index in &self.builder.nodes {
            let built = self.built(index)?;
            let backend = self.backend(index).unwrap_or_default();
            if built.kind == Kind::View {
                part.push((index, backend));
                continue;
            }
            let foreign_weight = !inputs.is_empty()
                && current == Some(backend)
                && built.tensor.sources.iter().any(|source| {
                    matches!(self.built(source).map(|built| built.home), Ok(Home::Weight(_))) && self.backend(source) != current
                });
            if current.is_some_and(|current| current != backend) || foreign_weight {
                self.close(&mut tensors, &mut nodes, &mut inputs, &mut part)?;
            }
            current = Some(backend);
            let mut sources = Sources::default();
            for source in built.tensor.sources.iter() {
                if self.backend(source) == Some(backend) || self.backend(source).is_none() {
                    sources.push(source)?;
                    continue;
                }
                let copy = match copies.get(&(source, backend)) {
                    Some(copy) => *copy,
                    None => {
                        let original = self.built(source)?;
                        tensors.push(GraphTensor {
                            sources: Sources::default(),
                            view_of: None,
                            is_operation: false,
                            may_overwrite: false,
                            is_input: false,
                            is_output: false,
                            is_external: false,
                            extra: None,
                            ..original.tensor.clone()
                        });
                        let copy = tensors.len().saturating_sub(1);
                        copies.insert((source, backend), copy);
                        inputs.push((source, copy));
                        copy
                    }
                };
                sources.push(copy)?;
            }
            if let Some(tensor) = tensors.get_mut(index) {
                tensor.sources = sources;
            }
            part.push((index, backend));
        }
        self.close(&mut tensors, &mut nodes, &mut inputs, &mut part)?;
        let leafs = self.builder.leafs.iter().map(|&leaf| (leaf, self.backend(leaf).unwrap_or_default())).collect();
        Ok(Graph { tensors, leafs, nodes })
    }

    /// Ends a part: what it copies in comes first, each original kept alive until it is copied.
    fn close(
        &self,
        tensors: &mut Vec<GraphTensor>,
        nodes: &mut Vec<(usize, usize)>,
        inputs: &mut Vec<(usize, usize)>,
        part: &mut Vec<(usize, usize)>,
    ) -> Result<(), MathError> {
        let backend = part
            .iter()
            .find(|(index, _)| self.built(*index).is_ok_and(|built| built.kind != Kind::View))
            .map_or(0, |(_, backend)| *backend);
        for (source, copy) in inputs.drain(..) {
            let original = self.built(source)?;
            let mut sources = Sources::default();
            sources.push(source)?;
            tensors.push(GraphTensor {
                sources,
                view_of: Some(original.tensor.view_of.unwrap_or(source)),
                is_operation: false,
                may_overwrite: false,
                is_input: false,
                is_output: false,
                is_external: false,
                extra: None,
                ..original.tensor.clone()
            });
            nodes.push((tensors.len().saturating_sub(1), self.backend(source).unwrap_or_default()));
            nodes.push((copy, backend));
        }
        nodes.append(part);
        Ok(())
    }
}
