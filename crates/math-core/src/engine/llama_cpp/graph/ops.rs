//! A computation graph while it is built: one function per operation, with the shape, strides and sources that the
//! engine gives its result (`ggml/src/ggml.c`). Only what decides memory is kept: no parameters, no data.

use alloc::vec::Vec;

use super::length::Length;
use super::replay::{GraphTensor, Layout, Sources};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// A tensor of the graph under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub(super) usize);

/// What an operation means to the scheduler and the allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No operation: a weight, a cache or an input.
    None,
    /// Shows another tensor's memory (reshape, view, permute, transpose).
    View,
    /// May write over an input (`ggml-alloc.c:ggml_op_can_inplace`).
    Elementwise,
    /// Rotary embedding: elementwise, and its factors do not choose the device.
    Rope,
    /// Flash attention: its sinks do not choose the device.
    FlashAttention,
    /// Anything else.
    Other,
}

/// Where a tensor's memory is, if it has any before the graph is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Home {
    /// Allocated with the graph.
    Graph,
    /// A weight in a buffer of this backend.
    Weight(usize),
    /// A cache in a buffer of this backend.
    Cache(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Built {
    pub(super) tensor: GraphTensor,
    pub(super) kind: Kind,
    pub(super) home: Home,
    pub(super) format: StorageFormat,
    /// The backend it is pinned to by the engine's callback.
    pub(super) pinned: Option<usize>,
    visited: bool,
}

/// The graph so far: tensors, and the order in which they are computed.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    pub(super) tensors: Vec<Built>,
    pub(super) leafs: Vec<usize>,
    pub(super) nodes: Vec<usize>,
}

type Built4 = Result<Node, MathError>;

fn strides(format: StorageFormat, dims: [u64; 4]) -> Result<[u64; 4], MathError> {
    let [a, b, c, _] = dims;
    let element = format.block_bytes();
    let row = mul(element, a / format.block_len())?;
    let plane = mul(row, b)?;
    Ok([element, row, plane, mul(plane, c)?])
}

/// Bytes from the first to the last element (`ggml.c:ggml_nbytes`).
fn span(format: StorageFormat, dims: [u64; 4], strides: [u64; 4]) -> Result<u64, MathError> {
    if dims.contains(&0) {
        return Ok(0);
    }
    let [n0, ..] = dims;
    let [s0, ..] = strides;
    let (mut bytes, skip) =
        if format.block_len() == 1 { (format.block_bytes(), 0) } else { (mul(n0, s0)? / format.block_len(), 1) };
    for (n, stride) in dims.iter().zip(strides).skip(skip) {
        bytes = add(bytes, mul(n.saturating_sub(1), stride)?)?;
    }
    Ok(bytes)
}

impl Builder {
    fn push(
        &mut self,
        format: StorageFormat,
        dims: [u64; 4],
        strides: [u64; 4],
        kind: Kind,
        view_of: Option<usize>,
        sources: &[Node],
    ) -> Built4 {
        let mut list = Sources::default();
        for source in sources {
            list.push(source.0)?;
        }
        let tensor = GraphTensor {
            layout: Layout { type_id: format.ggml_id().unwrap_or(u32::MAX), dims, strides },
            bytes: Length::of(span(format, dims, strides)?)?,
            extra: None,
            sources: list,
            view_of,
            is_operation: kind != Kind::None,
            may_overwrite: matches!(kind, Kind::Elementwise | Kind::Rope),
            is_input: false,
            is_output: false,
            is_external: false,
        };
        self.tensors.push(Built { tensor, kind, home: Home::Graph, format, pinned: None, visited: false });
        Ok(Node(self.tensors.len().saturating_sub(1)))
    }
    fn built(&self, node: Node) -> Result<&Built, MathError> {
        self.tensors.get(node.0).ok_or(MathError::Overflow { quantity: "graph" })
    }
    fn built_mut(&mut self, node: Node) -> Result<&mut Built, MathError> {
        self.tensors.get_mut(node.0).ok_or(MathError::Overflow { quantity: "graph" })
    }
    /// Dimensions of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn dims(&self, node: Node) -> Result<[u64; 4], MathError> {
        Ok(self.built(node)?.tensor.layout.dims)
    }
    /// Strides of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn strides(&self, node: Node) -> Result<[u64; 4], MathError> {
        Ok(self.built(node)?.tensor.layout.strides)
    }
    /// Element format of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn format(&self, node: Node) -> Result<StorageFormat, MathError> {
        Ok(self.built(node)?.format)
    }
    /// Bytes from the first to the last element.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn bytes(&self, node: Node) -> Result<u64, MathError> {
        self.built(node)?.tensor.bytes.now()
    }
    /// Whether two tensors show the same memory.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn same_memory(&self, a: Node, b: Node) -> Result<bool, MathError> {
        Ok(self.root(a)? == self.root(b)?)
    }
    fn root(&self, node: Node) -> Result<usize, MathError> {
        Ok(self.built(node)?.tensor.view_of.unwrap_or(node.0))
    }
    fn fresh(&mut self, format: StorageFormat, dims: [u64; 4], kind: Kind, sources: &[Node]) -> Built4 {
        let strides = strides(format, dims)?;
        self.push(format, dims, strides, kind, None, sources)
    }
    fn like(&mut self, node: Node, kind: Kind, sources: &[Node]) -> Built4 {
        let (format, dims) = (self.format(node)?, self.dims(node)?);
        self.fresh(format, dims, kind, sources)
    }

    /// A weight in a buffer of `backend`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn weight(&mut self, format: StorageFormat, dims: [u64; 4], backend: usize) -> Built4 {
        let node = self.fresh(format, dims, Kind::None, &[])?;
        let built = self.built_mut(node)?;
        built.home = Home::Weight(backend);
        built.tensor.is_external = true;
        Ok(node)
    }
    /// A cache in a buffer of `backend`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn cache(&mut self, format: StorageFormat, dims: [u64; 4], backend: usize) -> Built4 {
        let node = self.fresh(format, dims, Kind::None, &[])?;
        let built = self.built_mut(node)?;
        built.home = Home::Cache(backend);
        built.tensor.is_external = true;
        Ok(node)
    }
    /// An input that the caller fills for every micro-batch.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn input(&mut self, format: StorageFormat, dims: [u64; 4]) -> Built4 {
        let node = self.fresh(format, dims, Kind::None, &[])?;
        self.built_mut(node)?.tensor.is_input = true;
        Ok(node)
    }
    /// A tensor without an operation that only this graph uses (zeros to be filled, `ggml_new_tensor`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn blank(&mut self, format: StorageFormat, dims: [u64; 4]) -> Built4 {
        self.fresh(format, dims, Kind::None, &[])
    }
    /// Marks a result that the caller reads.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn output(&mut self, node: Node) -> Result<(), MathError> {
        self.built_mut(node)?.tensor.is_output = true;
        Ok(())
    }
    /// Pins a node to a backend (`ggml_backend_sched_set_tensor_backend`).
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn pin(&mut self, node: Node, backend: usize) -> Result<(), MathError> {
        self.built_mut(node)?.pinned = Some(backend);
        Ok(())
    }
    /// Bytes that buffers of one backend add to a node.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn add_extra(&mut self, node: Node, backend: usize, bytes: u64) -> Result<(), MathError> {
        self.built_mut(node)?.tensor.extra = Some((backend, Length::of(bytes)?));
        Ok(())
    }

    /// Matrix product: `[a1, b1, b2, b3]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn mul_mat(&mut self, a: Node, b: Node) -> Built4 {
        let ([_, rows, ..], [_, b1, b2, b3]) = (self.dims(a)?, self.dims(b)?);
        self.fresh(StorageFormat::F32, [rows, b1, b2, b3], Kind::Other, &[a, b])
    }
    /// Product with chosen matrices of a stack: `[a1, ids0, b2, 1]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn mul_mat_id(&mut self, a: Node, b: Node, ids: Node) -> Built4 {
        let ([_, rows, ..], [_, _, tokens, _], [chosen, ..]) = (self.dims(a)?, self.dims(b)?, self.dims(ids)?);
        self.fresh(StorageFormat::F32, [rows, chosen, tokens, 1], Kind::Other, &[a, b, ids])
    }
    /// Rows chosen by index: `[a0, ids0, ids1, ids2]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn get_rows(&mut self, a: Node, ids: Node) -> Built4 {
        let ([row, ..], [n0, n1, n2, _]) = (self.dims(a)?, self.dims(ids)?);
        let format = if self.format(a)? == StorageFormat::I32 { StorageFormat::I32 } else { StorageFormat::F32 };
        self.fresh(format, [row, n0, n1, n2], Kind::Other, &[a, ids])
    }
    /// Writes rows into `a` by index; the result shows `a`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn set_rows(&mut self, a: Node, rows: Node, ids: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(a)?, self.dims(a)?, self.strides(a)?, self.root(a)?);
        self.push(format, dims, strides, Kind::Other, Some(root), &[rows, ids, a])
    }
    /// An operation on elements whose result is shaped like `a`: norms, sums, products, activations, softmax.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn elementwise(&mut self, a: Node, others: &[Node]) -> Built4 {
        let mut sources = Vec::with_capacity(others.len().saturating_add(1));
        sources.push(a);
        sources.extend_from_slice(others);
        self.like(a, Kind::Elementwise, &sources)
    }
    /// An operation shaped like `a` that never writes over an input (`norm`, `l2_norm`, `cumsum` …).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn same_shape(&mut self, a: Node, others: &[Node]) -> Built4 {
        let mut sources = Vec::with_capacity(others.len().saturating_add(1));
        sources.push(a);
        sources.extend_from_slice(others);
        self.like(a, Kind::Other, &sources)
    }
    /// Rotary embedding.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn rope(&mut self, a: Node, positions: Node, factors: Option<Node>) -> Built4 {
        match factors {
            Some(factors) => self.like(a, Kind::Rope, &[a, positions, factors]),
            None => self.like(a, Kind::Rope, &[a, positions]),
        }
    }
    /// A gate times an up projection: two tensors of one shape.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn glu(&mut self, gate: Node, up: Node) -> Built4 {
        self.like(gate, Kind::Other, &[gate, up])
    }
    /// A gate times an up projection that lie side by side in one tensor: half as wide.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn glu_halves(&mut self, both: Node) -> Built4 {
        let [width, b, c, d] = self.dims(both)?;
        let format = self.format(both)?;
        self.fresh(format, [width / 2, b, c, d], Kind::Other, &[both])
    }
    /// Any operation with a new result of these dimensions.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn other(&mut self, format: StorageFormat, dims: [u64; 4], sources: &[Node]) -> Built4 {
        self.fresh(format, dims, Kind::Other, sources)
    }
    /// Limits values in place: the result shows `a` (`ggml.c:ggml_clamp`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn clamp(&mut self, a: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(a)?, self.dims(a)?, self.strides(a)?, self.root(a)?);
        self.push(format, dims, strides, Kind::Elementwise, Some(root), &[a])
    }
    /// The first `n` elements, or any `n` in a row.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn view_1d(&mut self, a: Node, n: u64) -> Built4 {
        let bytes = mul(self.format(a)?.block_bytes(), n)?;
        self.view(a, [n, 1, 1, 1], [bytes, bytes, bytes])
    }
    /// The same elements with other dimensions.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn reshape(&mut self, a: Node, dims: [u64; 4]) -> Built4 {
        let (format, root) = (self.format(a)?, self.root(a)?);
        let strides = strides(format, dims)?;
        self.push(format, dims, strides, Kind::View, Some(root), &[a])
    }
    /// Part of a tensor: dimensions, and strides of all but the first.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn view(&mut self, a: Node, dims: [u64; 4], outer: [u64; 3]) -> Built4 {
        let (format, root) = (self.format(a)?, self.root(a)?);
        let [s1, s2, s3] = outer;
        self.push(format, dims, [format.block_bytes(), s1, s2, s3], Kind::View, Some(root), &[a])
    }
    /// A matrix that is part of a tensor: rows `stride` apart.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn view_2d(&mut self, a: Node, n0: u64, n1: u64, stride: u64) -> Built4 {
        let plane = mul(stride, n1)?;
        self.view(a, [n0, n1, 1, 1], [stride, plane, plane])
    }
    /// Matrices that are part of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn view_3d(&mut self, a: Node, dims: [u64; 3], s1: u64, s2: u64) -> Built4 {
        let [n0, n1, n2] = dims;
        self.view(a, [n0, n1, n2, 1], [s1, s2, mul(s2, n2)?])
    }
    /// Dimensions in another order: dimension `i` of `a` becomes dimension `order[i]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn permute(&mut self, a: Node, order: [usize; 4]) -> Built4 {
        let (format, root) = (self.format(a)?, self.root(a)?);
        let (from_dims, from_strides) = (self.dims(a)?, self.strides(a)?);
        let (mut dims, mut strides) = ([1; 4], [0; 4]);
        for ((to, n), stride) in order.iter().zip(from_dims).zip(from_strides) {
            if let (Some(dim), Some(slot)) = (dims.get_mut(*to), strides.get_mut(*to)) {
                *dim = n;
                *slot = stride;
            }
        }
        self.push(format, dims, strides, Kind::View, Some(root), &[a])
    }
    /// The first two dimensions exchanged.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn transpose(&mut self, a: Node) -> Built4 {
        self.permute(a, [1, 0, 2, 3])
    }
    /// A contiguous copy with these dimensions.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn cont(&mut self, a: Node, dims: [u64; 4]) -> Built4 {
        let format = self.format(a)?;
        self.fresh(format, dims, Kind::Other, &[a])
    }
    /// A copy in another format. Its second source is itself (`ggml.c:ggml_cast`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn cast(&mut self, a: Node, format: StorageFormat) -> Built4 {
        let dims = self.dims(a)?;
        let node = self.fresh(format, dims, Kind::Other, &[a])?;
        self.built_mut(node)?.tensor.sources.push(node.0)?;
        Ok(node)
    }
    /// A copy into `b`; the result shows `b`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn copy(&mut self, a: Node, b: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(b)?, self.dims(b)?, self.strides(b)?, self.root(b)?);
        self.push(format, dims, strides, Kind::Other, Some(root), &[a, b])
    }
    /// Two tensors joined along a dimension.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn concat(&mut self, a: Node, b: Node, dimension: usize) -> Built4 {
        let mut dims = self.dims(a)?;
        let more = self.dims(b)?.get(dimension).copied().unwrap_or(0);
        if let Some(n) = dims.get_mut(dimension) {
            *n = add(*n, more)?;
        }
        let format = self.format(a)?;
        self.fresh(format, dims, Kind::Other, &[a, b])
    }
    /// Sums of rows.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn sum_rows(&mut self, a: Node) -> Built4 {
        let [_, b, c, d] = self.dims(a)?;
        let format = self.format(a)?;
        self.fresh(format, [1, b, c, d], Kind::Other, &[a])
    }
    /// Indices of the `k` largest of each row: a view of all indices in order (`ggml.c:ggml_argsort_top_k`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn argsort_top_k(&mut self, a: Node, k: u64) -> Built4 {
        let dims = self.dims(a)?;
        let sorted = self.fresh(StorageFormat::I32, dims, Kind::Other, &[a])?;
        let [_, s1, s2, s3] = self.strides(sorted)?;
        let [_, b, c, d] = dims;
        self.view(sorted, [k, b, c, d], [s1, s2, s3])
    }
    /// Flash attention: `[v0, q2, q1, q3]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn flash_attention(&mut self, q: Node, k: Node, v: Node, mask: Option<Node>, sinks: Option<Node>) -> Built4 {
        let ([_, q1, q2, q3], [v0, ..]) = (self.dims(q)?, self.dims(v)?);
        let mut sources = alloc::vec![q, k, v];
        sources.extend(mask);
        sources.extend(sinks);
        self.fresh(StorageFormat::F32, [v0, q2, q1, q3], Kind::FlashAttention, &sources)
    }

    /// Appends what `node` needs, then `node` (`ggml.c:ggml_build_forward_expand`).
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn expand(&mut self, node: Node) -> Result<(), MathError> {
        // Depth first, sources from left to right, without recursion: a graph may be thousands of nodes deep.
        let mut stack: Vec<(usize, usize)> = alloc::vec![(node.0, 0)];
        while let Some((index, next)) = stack.pop() {
            let built = self.built_mut(Node(index))?;
            if next == 0 {
                if built.visited {
                    continue;
                }
                built.visited = true;
            }
            if let Some(source) = built.tensor.sources.iter().nth(next) {
                stack.push((index, next.saturating_add(1)));
                stack.push((source, 0));
                continue;
            }
            if built.kind == Kind::None {
                self.leafs.push(index);
            } else {
                self.nodes.push(index);
            }
        }
        Ok(())
    }
}
