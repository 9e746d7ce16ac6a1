//! A computation graph while it is built: one function per operation, with the shape, strides and sources that the
//! engine gives its result (`ggml/src/ggml.c`). Only what decides memory is kept: no parameters, no data.

use alloc::vec::Vec;

use super::op::Op;
use super::shapes::{span, strides};
use super::tensors::{Graph, GraphTensor, Layout};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// A tensor of the graph under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub(super) u32);

impl Node {
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Where a tensor's memory is, if it has any before the graph is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Home {
    /// Allocated with the graph.
    Graph,
    /// A weight in a buffer of this backend.
    Weight(u8),
    /// A cache in a buffer of this backend.
    Cache(u8),
}

/// What the scheduler wants to know of a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Built {
    pub(super) op: Op,
    pub(super) home: Home,
    pub(super) format: StorageFormat,
    /// The backend it is pinned to by the engine's callback.
    pub(super) pinned: Option<u8>,
    /// Whether only the processor knows how to read it, or, of an operation, CUDA has no kernel for it.
    pub(super) repacked: bool,
    /// How many cells attention reads for a token at most, where it chooses; 0 where it reads all.
    pub(super) most_cells: u32,
    visited: bool,
}

impl Built {
    /// A tensor that is not computed.
    pub(super) const fn none(format: StorageFormat) -> Self {
        Self { op: Op::None, home: Home::Graph, format, pinned: None, repacked: false, most_cells: 0, visited: true }
    }
}

/// The graph so far: tensors, and the order in which they are computed.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    /// Tensors; its lists of leafs and nodes stay empty until the scheduler fills them.
    pub(super) graph: Graph,
    pub(super) built: Vec<Built>,
    pub(super) leafs: Vec<u32>,
    pub(super) nodes: Vec<u32>,
    /// Work left while nodes are put in order.
    stack: Vec<(u32, u32)>,
}

// A function, since an error that is made in advance has to be dropped again.
fn gone() -> MathError {
    MathError::Overflow { quantity: "graph" }
}

fn backend_number(backend: usize) -> Result<u8, MathError> {
    u8::try_from(backend).map_err(|_| gone())
}

type Built4 = Result<Node, MathError>;

impl Builder {
    /// An empty graph with room for as many tensors as two layers usually have.
    #[must_use]
    pub fn new() -> Self {
        let mut out = Self::default();
        out.graph.tensors.reserve(512);
        out.graph.sources.reserve(512);
        out.built.reserve(512);
        out.nodes.reserve(256);
        out.leafs.reserve(256);
        out
    }
    /// Makes room for so many layers.
    pub(super) fn expect_layers(&mut self, layers: usize) {
        let (tensors, sources) = (layers.saturating_mul(96), layers.saturating_mul(128));
        self.graph.tensors.reserve(tensors);
        self.graph.sources.reserve(sources);
        self.built.reserve(tensors);
        self.nodes.reserve(tensors);
    }
    fn push(
        &mut self,
        format: StorageFormat,
        dims: [u64; 4],
        strides: [u64; 4],
        op: Op,
        view_of: Option<u32>,
        sources: &[Node],
    ) -> Built4 {
        let layout = Layout { type_id: format.ggml_id().unwrap_or(u32::MAX), dims, strides };
        let bytes = span(format, dims, strides)?;
        self.push_sized(format, layout, bytes, op, view_of, sources)
    }
    fn push_sized(
        &mut self,
        format: StorageFormat,
        layout: Layout,
        bytes: u64,
        op: Op,
        view_of: Option<u32>,
        sources: &[Node],
    ) -> Built4 {
        let mut tensor = GraphTensor::new(layout, bytes);
        tensor.set_view_of(view_of);
        tensor.is_operation = op != Op::None;
        tensor.may_overwrite = op.may_overwrite();
        let number = self.graph.append(tensor, sources.iter().map(|source| source.0))?;
        self.built.push(Built { op, home: Home::Graph, format, pinned: None, repacked: false, most_cells: 0, visited: false });
        Ok(Node(number))
    }
    fn tensor(&self, node: Node) -> Result<&GraphTensor, MathError> {
        self.graph.tensors.get(node.index()).ok_or_else(gone)
    }
    fn tensor_mut(&mut self, node: Node) -> Result<&mut GraphTensor, MathError> {
        self.graph.tensors.get_mut(node.index()).ok_or_else(gone)
    }
    fn built_mut(&mut self, node: Node) -> Result<&mut Built, MathError> {
        self.built.get_mut(node.index()).ok_or_else(gone)
    }
    /// Whether some operation was not named.
    pub(super) fn has_unnamed(&self) -> bool {
        self.built.iter().any(|built| !built.op.is_named())
    }
    /// The operation of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn op(&self, node: Node) -> Result<Op, MathError> {
        Ok(self.built.get(node.index()).ok_or_else(gone)?.op)
    }
    /// Notes that a layer of the last stack begins.
    pub(super) fn begin_layer(&mut self) {
        let first = u32::try_from(self.graph.tensors.len()).unwrap_or(u32::MAX);
        if let Some(stack) = self.graph.stacks.last_mut() {
            stack.firsts.push(first);
        }
    }
    /// Dimensions of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn dims(&self, node: Node) -> Result<[u64; 4], MathError> {
        Ok(self.tensor(node)?.layout.dims)
    }
    /// Strides of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn strides(&self, node: Node) -> Result<[u64; 4], MathError> {
        Ok(self.tensor(node)?.layout.strides)
    }
    /// Element format of a tensor.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn format(&self, node: Node) -> Result<StorageFormat, MathError> {
        Ok(self.built.get(node.index()).ok_or_else(gone)?.format)
    }
    /// Bytes from the first to the last element.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn bytes(&self, node: Node) -> Result<u64, MathError> {
        Ok(self.tensor(node)?.bytes)
    }
    /// Whether two tensors show the same memory.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn same_memory(&self, a: Node, b: Node) -> Result<bool, MathError> {
        Ok(self.root(a)? == self.root(b)?)
    }
    fn root(&self, node: Node) -> Result<u32, MathError> {
        Ok(self.tensor(node)?.view_of().unwrap_or(node.0))
    }
    fn fresh(&mut self, format: StorageFormat, dims: [u64; 4], op: Op, sources: &[Node]) -> Built4 {
        let strides = strides(format, dims)?;
        // Nothing lies between its elements.
        let ([.., last], [.., cube]) = (dims, strides);
        let layout = Layout { type_id: format.ggml_id().unwrap_or(u32::MAX), dims, strides };
        self.push_sized(format, layout, mul(cube, last)?, op, None, sources)
    }
    fn like(&mut self, node: Node, op: Op, sources: &[Node]) -> Built4 {
        let (format, dims) = (self.format(node)?, self.dims(node)?);
        self.fresh(format, dims, op, sources)
    }

    /// A weight in a buffer of `backend`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn weight(&mut self, format: StorageFormat, dims: [u64; 4], backend: usize) -> Built4 {
        let node = self.fresh(format, dims, Op::None, &[])?;
        self.built_mut(node)?.home = Home::Weight(backend_number(backend)?);
        self.tensor_mut(node)?.is_external = true;
        Ok(node)
    }
    /// Says how many cells attention reads for a token at most; 0 for all (`ggml.c:ggml_flash_attn_ext_set_n_kv_max`).
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn limit_cells(&mut self, node: Node, most: u64) -> Result<(), MathError> {
        self.built_mut(node)?.most_cells = u32::try_from(most).map_err(|_| gone())?;
        Ok(())
    }
    /// Says that a weight is in a layout of the processor's own.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn repack(&mut self, node: Node) -> Result<(), MathError> {
        self.built_mut(node)?.repacked = true;
        Ok(())
    }
    /// Says that CUDA has no kernel for an operation as it is asked for.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn keep_on_processor(&mut self, node: Node) -> Result<(), MathError> {
        self.repack(node)
    }
    /// A cache in a buffer of `backend`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn cache(&mut self, format: StorageFormat, dims: [u64; 4], backend: usize) -> Built4 {
        let node = self.fresh(format, dims, Op::None, &[])?;
        self.built_mut(node)?.home = Home::Cache(backend_number(backend)?);
        self.tensor_mut(node)?.is_external = true;
        Ok(node)
    }
    /// An input that the caller fills for every micro-batch.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn input(&mut self, format: StorageFormat, dims: [u64; 4]) -> Built4 {
        let node = self.fresh(format, dims, Op::None, &[])?;
        self.tensor_mut(node)?.is_input = true;
        Ok(node)
    }
    /// A tensor without an operation that only this graph uses (zeros to be filled, `ggml_new_tensor`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn blank(&mut self, format: StorageFormat, dims: [u64; 4]) -> Built4 {
        self.fresh(format, dims, Op::None, &[])
    }
    /// Marks a result that the caller reads.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn output(&mut self, node: Node) -> Result<(), MathError> {
        self.tensor_mut(node)?.is_output = true;
        Ok(())
    }
    /// Pins a node to a backend (`ggml_backend_sched_set_tensor_backend`).
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn pin(&mut self, node: Node, backend: usize) -> Result<(), MathError> {
        self.built_mut(node)?.pinned = Some(backend_number(backend)?);
        Ok(())
    }
    /// Bytes that buffers of one backend add to a node.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn add_extra(&mut self, node: Node, backend: usize, bytes: u64) -> Result<(), MathError> {
        let backend = u32::try_from(backend).map_err(|_| gone())?;
        self.tensor_mut(node)?.set_extra(backend, bytes);
        Ok(())
    }

    /// Matrix product: `[a1, b1, b2, b3]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn mul_mat(&mut self, a: Node, b: Node) -> Built4 {
        let ([_, rows, ..], [_, b1, b2, b3]) = (self.dims(a)?, self.dims(b)?);
        self.fresh(StorageFormat::F32, [rows, b1, b2, b3], Op::MulMat, &[a, b])
    }
    /// Product with chosen matrices of a stack: `[a1, ids0, b2, 1]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn mul_mat_id(&mut self, a: Node, b: Node, ids: Node) -> Built4 {
        let ([_, rows, ..], [_, _, tokens, _], [chosen, ..]) = (self.dims(a)?, self.dims(b)?, self.dims(ids)?);
        self.fresh(StorageFormat::F32, [rows, chosen, tokens, 1], Op::MulMatId, &[a, b, ids])
    }
    /// Rows chosen by index: `[a0, ids0, ids1, ids2]`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn get_rows(&mut self, a: Node, ids: Node) -> Built4 {
        let ([row, ..], [n0, n1, n2, _]) = (self.dims(a)?, self.dims(ids)?);
        let format = if self.format(a)? == StorageFormat::I32 { StorageFormat::I32 } else { StorageFormat::F32 };
        self.fresh(format, [row, n0, n1, n2], Op::GetRows, &[a, ids])
    }
    /// Writes rows into `a` by index; the result shows `a`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn set_rows(&mut self, a: Node, rows: Node, ids: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(a)?, self.dims(a)?, self.strides(a)?, self.root(a)?);
        self.push(format, dims, strides, Op::SetRows, Some(root), &[rows, ids, a])
    }
    /// An operation whose result is shaped like `a`, its first source.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn apply(&mut self, op: Op, a: Node, others: &[Node]) -> Built4 {
        let node = self.like(a, op, &[a])?;
        for other in others {
            self.graph.push_source(other.0);
        }
        Ok(node)
    }
    /// Sum: the result is shaped like `a`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn sum(&mut self, a: Node, b: Node) -> Built4 {
        self.like(a, Op::Add, &[a, b])
    }
    /// Sum that shows `a` (`ggml.c:ggml_add_inplace`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn sum_in_place(&mut self, a: Node, b: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(a)?, self.dims(a)?, self.strides(a)?, self.root(a)?);
        self.push(format, dims, strides, Op::Add, Some(root), &[a, b])
    }
    /// Product of elements: the result is shaped like `a`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn product(&mut self, a: Node, b: Node) -> Built4 {
        self.like(a, Op::Mul, &[a, b])
    }
    /// Some operation on elements whose result is shaped like `a` and may take its memory. Where the operation is known,
    /// [`Self::apply`] says which: a device that reorders or fuses operations wants to know.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn elementwise(&mut self, a: Node, others: &[Node]) -> Built4 {
        self.apply(Op::Elementwise, a, others)
    }
    /// Some operation shaped like `a` that never writes over an input; see [`Self::apply`].
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn same_shape(&mut self, a: Node, others: &[Node]) -> Built4 {
        self.apply(Op::Other, a, others)
    }
    /// Rotary embedding.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn rope(&mut self, a: Node, positions: Node, factors: Option<Node>) -> Built4 {
        match factors {
            Some(factors) => self.like(a, Op::Rope, &[a, positions, factors]),
            None => self.like(a, Op::Rope, &[a, positions]),
        }
    }
    /// A rotation undone.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn rope_back(&mut self, a: Node, positions: Node) -> Built4 {
        self.like(a, Op::RopeBack, &[a, positions])
    }
    /// A gate times an up projection: two tensors of one shape.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn glu(&mut self, gate: Node, up: Node) -> Built4 {
        self.like(gate, Op::Glu, &[gate, up])
    }
    /// A gate times an up projection that lie side by side in one tensor: half as wide.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn glu_halves(&mut self, both: Node) -> Built4 {
        let [width, b, c, d] = self.dims(both)?;
        let format = self.format(both)?;
        self.fresh(format, [width / 2, b, c, d], Op::Glu, &[both])
    }
    /// Any operation with a new result of these dimensions; see [`Self::result`].
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn other(&mut self, format: StorageFormat, dims: [u64; 4], sources: &[Node]) -> Built4 {
        self.result(Op::Other, format, dims, sources)
    }
    /// An operation with a new result of these dimensions.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn result(&mut self, op: Op, format: StorageFormat, dims: [u64; 4], sources: &[Node]) -> Built4 {
        self.fresh(format, dims, op, sources)
    }
    /// An operation on elements in place: the result shows `a` (`ggml.c:ggml_scale_inplace`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn in_place(&mut self, a: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(a)?, self.dims(a)?, self.strides(a)?, self.root(a)?);
        self.push(format, dims, strides, Op::Clamp, Some(root), &[a])
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
        self.push(format, dims, strides, Op::Reshape, Some(root), &[a])
    }
    /// Part of a tensor: dimensions, and strides of all but the first.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn view(&mut self, a: Node, dims: [u64; 4], outer: [u64; 3]) -> Built4 {
        let (format, root) = (self.format(a)?, self.root(a)?);
        let [s1, s2, s3] = outer;
        self.push(format, dims, [format.block_bytes(), s1, s2, s3], Op::View, Some(root), &[a])
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
        self.push(format, dims, strides, Op::Permute, Some(root), &[a])
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
        self.fresh(format, dims, Op::Cont, &[a])
    }
    /// A copy in another format. Its second source is itself (`ggml.c:ggml_cast`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn cast(&mut self, a: Node, format: StorageFormat) -> Built4 {
        let dims = self.dims(a)?;
        let node = self.fresh(format, dims, Op::Copy, &[a])?;
        self.graph.push_source(node.0);
        Ok(node)
    }
    /// A copy into `b`; the result shows `b`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn copy(&mut self, a: Node, b: Node) -> Built4 {
        let (format, dims, strides, root) = (self.format(b)?, self.dims(b)?, self.strides(b)?, self.root(b)?);
        self.push(format, dims, strides, Op::Copy, Some(root), &[a, b])
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
        self.fresh(format, dims, Op::Concat, &[a, b])
    }
    /// Sums of rows.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn sum_rows(&mut self, a: Node) -> Built4 {
        let [_, b, c, d] = self.dims(a)?;
        let format = self.format(a)?;
        self.fresh(format, [1, b, c, d], Op::SumRows, &[a])
    }
    /// Indices of the `k` largest of each row: a view of all indices in order (`ggml.c:ggml_argsort_top_k`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn argsort_top_k(&mut self, a: Node, k: u64) -> Built4 {
        let dims = self.dims(a)?;
        let sorted = self.fresh(StorageFormat::I32, dims, Op::ArgSort, &[a])?;
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
        let node = self.fresh(StorageFormat::F32, [v0, q2, q1, q3], Op::FlashAttention, &[q, k, v])?;
        for source in [mask, sinks].into_iter().flatten() {
            self.graph.push_source(source.0);
        }
        Ok(node)
    }

    /// Appends what `node` needs, then `node` (`ggml.c:ggml_build_forward_expand`).
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a tensor of another graph.
    pub fn expand(&mut self, node: Node) -> Result<(), MathError> {
        let Self { graph, built, leafs, nodes, stack } = self;
        // Depth first, sources from left to right, without recursion: a graph may be thousands of nodes deep.
        stack.push((node.0, 0));
        while let Some((index, next)) = stack.pop() {
            let at = Node(index).index();
            let this = built.get_mut(at).ok_or_else(gone)?;
            if next == 0 {
                if this.visited {
                    continue;
                }
                this.visited = true;
            }
            let op = this.op;
            let tensor = graph.tensors.get(at).ok_or_else(gone)?;
            // The next source that is not in order yet.
            let mut waiting = None;
            let after = usize::try_from(next).unwrap_or(usize::MAX);
            for (position, source) in graph.sources(tensor).iter().enumerate().skip(after) {
                let Some(read) = built.get_mut(Node(*source).index()).filter(|read| !read.visited) else { continue };
                if read.op == Op::None {
                    // It has no sources of its own.
                    read.visited = true;
                    leafs.push(*source);
                } else {
                    waiting = Some((position, *source));
                    break;
                }
            }
            if let Some((position, source)) = waiting {
                stack.push((index, u32::try_from(position.saturating_add(1)).unwrap_or(u32::MAX)));
                stack.push((source, 0));
            } else if op == Op::None {
                leafs.push(index);
            } else {
                nodes.push(index);
            }
        }
        Ok(())
    }
}
