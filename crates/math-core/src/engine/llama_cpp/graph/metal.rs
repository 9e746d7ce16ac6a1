//! Metal's own order of a graph (`ggml-metal-common.cpp:ggml_graph_optimize`) and what its fused kernels keep alive
//! (`ggml-metal-fusion.cpp`).
//!
//! Nodes that do not wait for each other are moved together so that they run side by side. Operations that one kernel can
//! do are found first and moved as one. Memory of all that a fused kernel reads stays until its last operation.

use alloc::vec;
use alloc::vec::Vec;

use super::op::Op;
use super::ops::{Built, Home};
use super::tensors::{Graph, GraphTensor, Layout};
use crate::engine::llama_cpp::resolve::CONTEXT_PAD;
use crate::format::StorageFormat;

/// Operations that one kernel may take (`GGML_METAL_FUSION_MAX`).
const MOST_FUSED: usize = 16;

/// How far ahead the engine looks for a node to move.
const AHEAD: usize = 64;

/// Experts of a fused router.
const MOST_EXPERTS: u64 = 1024;

/// Experts whose results one kernel adds up at most (`ggml-metal-fusion.cpp`).
const MOST_ADDED: usize = 8;

/// Sequences of operations that have a kernel, views included, those of sums and of experts apart; longer ones are preferred.
const SHORT_PATTERNS: &[&[Op]] = &[
    &[Op::Norm, Op::Mul],
    &[Op::Norm, Op::Mul, Op::Add],
    &[Op::Norm, Op::Scale],
    &[Op::RmsNorm, Op::Mul],
    &[Op::RmsNorm, Op::Mul, Op::Add],
    &[Op::RmsNorm, Op::Scale],
    &[Op::GatedDeltaNet, Op::Copy],
    &[Op::SoftMax, Op::Reshape, Op::ArgSort, Op::View, Op::GetRows],
    &[Op::SoftMax, Op::Reshape, Op::ArgSort, Op::View, Op::GetRows, Op::Scale],
    &[Op::SoftMax, Op::Reshape, Op::ArgSort, Op::View, Op::GetRows, Op::Reshape, Op::SumRows, Op::Clamp, Op::Div, Op::Reshape],
    &[
        Op::SoftMax,
        Op::Reshape,
        Op::ArgSort,
        Op::View,
        Op::GetRows,
        Op::Reshape,
        Op::SumRows,
        Op::Clamp,
        Op::Div,
        Op::Reshape,
        Op::Scale,
    ],
    &[Op::SsmConv, Op::Unary],
];

/// All sequences: those above, sums of up to seven terms, and the weighted results of up to eight experts, a view of each, added
/// up.
fn patterns() -> Vec<Vec<Op>> {
    let mut out: Vec<Vec<Op>> = SHORT_PATTERNS.iter().map(|pattern| pattern.to_vec()).collect();
    for count in 2..=MOST_ADDED {
        let sums = count.saturating_sub(1);
        let views = core::iter::repeat_n(Op::View, count);
        out.push(core::iter::once(Op::Mul).chain(views).chain(core::iter::repeat_n(Op::Add, sums)).collect());
        if sums > 1 {
            out.push(vec![Op::Add; sums]);
        }
    }
    out
}

/// A run of nodes on the device, in the order in which they are computed.
pub(super) struct Ordered {
    pub(super) nodes: Vec<u32>,
    /// Tensors that stay until a node is computed, in the order of those nodes' numbers.
    pub(super) kept: Vec<(u32, Vec<u32>)>,
}

/// The engine's order of `nodes`. `uses`: how often the whole graph reads each tensor; `addresses`: whether weights have
/// their own.
pub(super) fn order(graph: &Graph, built: &[Built], uses: &[u32], nodes: &[u32], addresses: bool) -> Ordered {
    let run = Run { graph, built, uses, nodes, ranges: ranges(graph, built, addresses), patterns: patterns() };
    let mut kept = run.kept();
    kept.sort_unstable_by_key(|(until, _)| *until);
    let groups = run.groups();
    let mut ordered = Vec::with_capacity(nodes.len());
    for group in run.reordered(&groups) {
        let Some((first, count)) = groups.get(group).copied() else { continue };
        ordered.extend_from_slice(nodes.get(first..first.saturating_add(count)).unwrap_or(&[]));
    }
    Ordered { nodes: ordered, kept }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// What stands for the memory that each tensor is in: the tensor whose memory it shows, and for weights and caches the first
/// of their buffer. The engine compares addresses, and where it only simulates an allocation, as `--fit` does, all of a buffer
/// have the same (`llama-kv-cache.cpp:llama_kv_cache`, `no_alloc`); recurrent state is allocated even then.
fn ranges(graph: &Graph, built: &[Built], addresses: bool) -> Vec<u32> {
    let mut caches: Vec<([u64; 3], Home, u32)> = Vec::new();
    let mut out: Vec<u32> = Vec::with_capacity(graph.tensors.len());
    for ((number, tensor), built) in (0_u32..).zip(&graph.tensors).zip(built) {
        let range = match tensor.view_of() {
            Some(base) => out.get(at(base)).copied().unwrap_or(base),
            None => {
                if tensor.is_external && tensor.bytes == 0 {
                    // Memory of no size overlaps nothing.
                    out.push(u32::MAX);
                    continue;
                }
                let [width, cells, streams, _] = tensor.layout.dims;
                let width = if graph.streams_of_caches.is_some() { width } else { 0 };
                let is_cache = graph.streams_of_caches.is_none_or(|all| all == streams);

                let shared = match built.home {
                    Home::Weight(_) if !addresses => Some([0; 3]),
                    Home::Cache(_) if is_cache && cells.is_multiple_of(CONTEXT_PAD) => Some([width, cells, streams]),
                    Home::Weight(_) | Home::Cache(_) | Home::Graph => None,
                };
                if let Some(key) = shared {
                    match caches.iter().find(|(known, home, _)| *known == key && *home == built.home) {
                        Some((.., first)) => *first,
                        None => {
                            caches.push((key, built.home, number));
                            number
                        }
                    }
                } else {
                    number
                }
            }
        };
        out.push(range);
    }
    out
}

const NOTHING: Layout = Layout { type_id: u32::MAX, dims: [0; 4], strides: [0; 4] };

struct Run<'a> {
    graph: &'a Graph,
    built: &'a [Built],
    uses: &'a [u32],
    nodes: &'a [u32],
    ranges: Vec<u32>,
    patterns: Vec<Vec<Op>>,
}

impl<'a> Run<'a> {
    fn node(&self, position: usize) -> u32 {
        self.nodes.get(position).copied().unwrap_or(u32::MAX)
    }
    fn tensor(&self, index: u32) -> Option<&'a GraphTensor> {
        self.graph.tensors.get(at(index))
    }
    fn op_of(&self, index: u32) -> Op {
        self.built.get(at(index)).map_or(Op::None, |built| built.op)
    }
    fn op(&self, position: usize) -> Op {
        self.op_of(self.node(position))
    }
    fn sources(&self, index: u32) -> &'a [u32] {
        self.tensor(index).map_or(&[], |tensor| self.graph.sources(tensor))
    }
    fn source(&self, index: u32, nth: usize) -> u32 {
        self.sources(index).get(nth).copied().unwrap_or(u32::MAX)
    }
    fn layout(&self, index: u32) -> Layout {
        self.tensor(index).map_or(NOTHING, |tensor| tensor.layout)
    }
    fn dims(&self, index: u32) -> [u64; 4] {
        self.layout(index).dims
    }
    fn base(&self, index: u32) -> u32 {
        self.tensor(index).and_then(GraphTensor::view_of).unwrap_or(index)
    }
    fn range(&self, index: u32) -> u32 {
        self.ranges.get(at(index)).copied().unwrap_or(index)
    }
    fn is_f32(&self, index: u32) -> bool {
        self.built.get(at(index)).is_some_and(|built| built.format == StorageFormat::F32)
    }
    fn is_output(&self, index: u32) -> bool {
        self.tensor(index).is_some_and(|tensor| tensor.is_output)
    }
    fn is_contiguous(&self, index: u32) -> bool {
        let Layout { dims, strides, .. } = self.layout(index);
        let mut next = 4_u64;
        for (n, stride) in dims.iter().zip(strides) {
            if *n != 1 {
                if stride != next {
                    return false;
                }
                next = next.saturating_mul(*n);
            }
        }
        true
    }

    /// What fused kernels keep alive. Only the operations are compared, in the order of the graph as it was built
    /// (`ggml_metal_fusion_add_alloc_deps`).
    fn kept(&self) -> Vec<(u32, Vec<u32>)> {
        let mut out = Vec::new();
        let mut position = 0;
        while position < self.nodes.len() {
            let matches = |pattern: &[Op]| {
                position.saturating_add(pattern.len()) <= self.nodes.len()
                    && pattern.iter().enumerate().all(|(nth, op)| self.op(position.saturating_add(nth)) == *op)
            };
            let mut longest = 0;
            for pattern in &self.patterns {
                if pattern.len() > longest && matches(pattern) {
                    longest = pattern.len();
                }
            }
            if longest == 0 {
                position = position.saturating_add(1);
                continue;
            }
            let mut seen: Vec<u32> = Vec::new();
            let mut keep = Vec::new();
            for nth in 0..longest {
                let node = self.node(position.saturating_add(nth));
                for &source in self.sources(node) {
                    if !seen.contains(&source) {
                        seen.push(source);
                        keep.push(source);
                    }
                }
                seen.push(node);
            }
            position = position.saturating_add(longest);
            out.push((self.node(position.saturating_sub(1)), keep));
        }
        out
    }

    /// Nodes that move together: the position of the first, and how many.
    fn groups(&self) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        let mut position = 0;
        while position < self.nodes.len() {
            let count = self.fused(position).max(1).min(self.nodes.len().saturating_sub(position));
            out.push((position, count));
            position = position.saturating_add(count);
        }
        out
    }

    /// How many nodes from here on one or several fused kernels take (`ggml_metal_fusion_max`).
    fn fused(&self, position: usize) -> usize {
        if self.op(position).is_empty() {
            return 1;
        }
        let computed: Vec<usize> =
            (position..self.nodes.len()).filter(|position| !self.op(*position).is_empty()).take(MOST_FUSED).collect();
        let mut taken = 0;
        while taken < computed.len() {
            let length = self.longest(computed.get(taken..).unwrap_or(&[]));
            if length <= 1 || taken.saturating_add(length) > MOST_FUSED {
                break;
            }
            taken = taken.saturating_add(length);
        }
        let last = taken.checked_sub(1).and_then(|last| computed.get(last));
        last.map_or(1, |last| last.saturating_sub(position).saturating_add(1).min(MOST_FUSED))
    }

    /// How many of these operations the longest fused kernel takes (`ggml_metal_fusion_next`).
    fn longest(&self, computed: &[usize]) -> usize {
        let mut best = 1;
        for pattern in &self.patterns {
            let ops = || pattern.iter().filter(|op| !op.is_empty());
            let count = ops().count();
            if count <= best || count > computed.len() {
                continue;
            }
            let positions = computed.get(..count).unwrap_or(&[]);
            if !ops().zip(positions).all(|(op, position)| self.op(*position) == *op) {
                continue;
            }
            let takes = match pattern.as_slice() {
                [Op::GatedDeltaNet, ..] => self.stores_state(positions),
                [Op::SoftMax, ..] => self.routes(positions, pattern),
                [Op::Mul, ..] => self.sums_experts(positions, pattern),
                _ => self.chain(positions),
            };
            if takes {
                best = count;
            }
        }
        best
    }

    /// Operations that each read the one before and nothing else reads (`ggml_can_fuse_subgraph_ext`): norms with weights
    /// and biases, sums, a convolution with its activation.
    fn chain(&self, positions: &[usize]) -> bool {
        let nodes: Vec<u32> = positions.iter().map(|position| self.node(*position)).collect();
        let Some(&first) = nodes.first() else { return false };
        for (before, &node) in nodes.iter().zip(nodes.iter().skip(1)) {
            if self.source(node, 0) != *before || self.dims(node) != self.dims(*before) || !self.is_f32(node) {
                return false;
            }
            if !self.only_read_by(*before, &nodes) {
                return false;
            }
            let other = self.source(node, 1);
            let fits = match (self.op_of(first), self.op_of(node)) {
                (Op::Add, _) => self.layout(other) == self.layout(self.source(*before, 1)),
                (_, Op::Scale | Op::Unary) => true,
                (_, _) => self.dims(other)[0] == self.dims(first)[0] && self.layout(other).strides[0] == 4,
            };
            if !fits {
                return false;
            }
        }
        true
    }

    /// Whether a tensor is read by these nodes alone, and not by the caller.
    fn only_read_by(&self, tensor: u32, nodes: &[u32]) -> bool {
        if self.is_output(tensor) {
            return false;
        }
        let mut own = 0_u32;
        for node in nodes {
            for source in self.sources(*node) {
                if *source == tensor {
                    own = own.saturating_add(1);
                }
            }
        }
        self.uses.get(at(tensor)).copied() == Some(own)
    }

    /// A delta rule whose state goes straight to the cache (`ggml_metal_fusion_check_gdn_cache`).
    fn stores_state(&self, positions: &[usize]) -> bool {
        let [rule, copy] = positions else { return false };
        let (rule, copy) = (self.node(*rule), self.node(*copy));
        let (from, to) = (self.source(copy, 0), self.source(copy, 1));
        let [head, heads, _, sequences] = self.dims(self.source(rule, 2));
        let state = head.saturating_mul(head).saturating_mul(heads);
        !self.is_output(rule)
            && !self.is_output(copy)
            && self.op_of(from) == Op::View
            && self.base(from) == rule
            && self.is_contiguous(from)
            && self.is_f32(to)
            && self.dims(to) == [state, sequences, 1, 1]
            && self.layout(to).strides[0] == 4
            && self.layout(to).strides[1] == state.saturating_mul(4)
    }

    /// A router (`ggml_metal_fusion_check_topk_moe`): softmax, choice, weights of the chosen, divided by their sum, scaled.
    fn routes(&self, positions: &[usize], pattern: &[Op]) -> bool {
        let (Some(&start), count) = (positions.first(), pattern.len()) else { return false };
        if start.saturating_add(count) > self.nodes.len() {
            return false;
        }
        if !pattern.iter().enumerate().all(|(nth, op)| self.op(start.saturating_add(nth)) == *op) {
            return false;
        }
        let nodes: Vec<u32> = (start..start.saturating_add(count)).map(|position| self.node(position)).collect();
        let [soft, rows, sorted, ids, weights, rest @ ..] = nodes.as_slice() else { return false };
        let (logits, out) = (self.source(*soft, 0), nodes.last().copied().unwrap_or(u32::MAX));
        let ([experts, tokens, l2, l3], [chosen, per, i2, i3]) = (self.dims(logits), self.dims(*ids));
        if self.sources(*soft).len() != 1
            || experts > MOST_EXPERTS
            || (l2, l3) != (1, 1)
            || (per, i2, i3) != (tokens, 1, 1)
            || self.dims(out) != [1, chosen, tokens, 1]
            || !self.is_contiguous(logits)
            || !self.is_contiguous(out)
            || self.source(*rows, 0) != *soft
            || self.source(*sorted, 0) != *soft
            || self.source(*ids, 0) != *sorted
            || self.source(*weights, 0) != *rows
            || self.source(*weights, 1) != *ids
        {
            return false;
        }
        let linked = match rest {
            [] => true,
            [scaled] => self.source(*scaled, 0) == *weights,
            [flat, sum, limited, divided, back, ..] => {
                self.source(*flat, 0) == *weights
                    && self.source(*sum, 0) == *flat
                    && self.source(*limited, 0) == *sum
                    && self.source(*divided, 0) == *flat
                    && self.source(*divided, 1) == *limited
                    && self.source(*back, 0) == *divided
            }
            _ => false,
        };
        linked && nodes.iter().all(|node| node == ids || *node == out || self.only_read_by(*node, &nodes))
    }

    /// Weighted results of experts added up (`ggml_metal_fusion_match_moe_reduce`).
    fn sums_experts(&self, positions: &[usize], pattern: &[Op]) -> bool {
        let (Some(&start), count) = (positions.first(), pattern.len()) else { return false };
        if start.saturating_add(count) > self.nodes.len() {
            return false;
        }
        if !pattern.iter().enumerate().all(|(nth, op)| self.op(start.saturating_add(nth)) == *op) {
            return false;
        }
        let chosen = count / 2;
        // No view more than experts.
        if self.op(start.saturating_add(chosen).saturating_add(1)) == Op::View {
            return false;
        }
        let nodes: Vec<u32> = (start..start.saturating_add(count)).map(|position| self.node(position)).collect();
        let Some((&product, others)) = nodes.split_first() else { return false };
        let (views, sums) = others.split_at(chosen.min(others.len()));
        let (results, weights, out) =
            (self.source(product, 0), self.source(product, 1), nodes.last().copied().unwrap_or(u32::MAX));
        let ([width, n, tokens, r3], wanted) = (self.dims(results), u64::try_from(chosen).unwrap_or(u64::MAX));
        if n != wanted
            || r3 != 1
            || self.dims(weights) != [1, n, tokens, 1]
            || self.dims(out) != [width, tokens, 1, 1]
            || !self.is_contiguous(results)
            || !self.is_contiguous(weights)
            || !self.is_contiguous(out)
            || !views.iter().all(|view| self.source(*view, 0) == product && self.dims(*view) == [width, tokens, 1, 1])
        {
            return false;
        }
        let mut before = views.first().copied().unwrap_or(u32::MAX);
        for (sum, view) in sums.iter().zip(views.iter().skip(1)) {
            if self.source(*sum, 0) != before || self.source(*sum, 1) != *view {
                return false;
            }
            before = *sum;
        }
        nodes.iter().all(|node| *node == out || self.only_read_by(*node, &nodes))
    }

    /// Groups in the order in which they are computed (`ggml_metal_graph_optimize_reorder`).
    fn reordered(&self, groups: &[(usize, usize)]) -> Vec<usize> {
        let mut out = Vec::with_capacity(groups.len());
        let mut used = vec![false; groups.len()];
        let tensors = self.graph.tensors.len();
        let mut together = Touched::new(tensors);
        let mut waiting = Touched::new(tensors);
        for first in 0..groups.len() {
            if used.get(first) == Some(&true) {
                continue;
            }
            let group = self.group(groups, first);
            if !self.is_empty(group) && !self.may_join(&together, group) {
                waiting.clear();
                self.touch(&mut waiting, group);
                for later in first.saturating_add(1)..groups.len().min(first.saturating_add(AHEAD)) {
                    if used.get(later) == Some(&true) {
                        continue;
                    }
                    let other = self.group(groups, later);
                    if !self.may_move(other) {
                        break;
                    }
                    if (self.is_empty(other) || self.may_join(&together, other)) && self.may_join(&waiting, other) {
                        self.touch(&mut together, other);
                        out.push(later);
                        if let Some(slot) = used.get_mut(later) {
                            *slot = true;
                        }
                    } else {
                        self.touch(&mut waiting, other);
                    }
                }
                together.clear();
            }
            self.touch(&mut together, group);
            out.push(first);
        }
        out
    }

    fn group(&self, groups: &[(usize, usize)], index: usize) -> &'a [u32] {
        let (first, count) = groups.get(index).copied().unwrap_or((0, 0));
        self.nodes.get(first..first.saturating_add(count)).unwrap_or(&[])
    }
    fn is_empty(&self, group: &[u32]) -> bool {
        group.first().is_none_or(|node| self.op_of(*node).is_empty())
    }
    /// Whether the engine moves such nodes at all.
    fn may_move(&self, group: &[u32]) -> bool {
        let op = group.first().map_or(Op::None, |node| self.op_of(*node));
        op.is_empty()
            || matches!(
                op,
                Op::MulMat
                    | Op::MulMatId
                    | Op::Rope
                    | Op::Norm
                    | Op::RmsNorm
                    | Op::GroupNorm
                    | Op::L2Norm
                    | Op::SumRows
                    | Op::SsmConv
                    | Op::SsmScan
                    | Op::Clamp
                    | Op::Triangle
                    | Op::Mul
                    | Op::Add
                    | Op::Sub
                    | Op::Div
                    | Op::Glu
                    | Op::Scale
                    | Op::Unary
                    | Op::GetRows
                    | Op::SetRows
                    | Op::Copy
                    | Op::Cont
                    | Op::Repeat
            )
    }
    /// Whether a group reads nothing that the others write, and writes nothing that they touch.
    fn may_join(&self, others: &Touched, group: &[u32]) -> bool {
        group.iter().all(|node| {
            let outside = self.sources(*node).iter().filter(|source| !group.contains(source));
            outside.into_iter().all(|source| !others.writes(self.range(*source))) && !others.touches(self.range(*node))
        })
    }
    fn touch(&self, set: &mut Touched, group: &[u32]) {
        for node in group {
            for source in self.sources(*node) {
                if !group.contains(source) {
                    set.add(self.range(*source), Touched::READ);
                }
            }
            set.add(self.range(*node), Touched::WRITTEN);
        }
    }
}

/// Tensors that a set of nodes reads and writes; a view counts as the tensor whose memory it shows.
struct Touched {
    marks: Vec<u8>,
    list: Vec<u32>,
}

impl Touched {
    const READ: u8 = 1;
    const WRITTEN: u8 = 2;

    fn new(tensors: usize) -> Self {
        Self { marks: vec![0; tensors], list: Vec::new() }
    }
    fn clear(&mut self) {
        for index in self.list.drain(..) {
            if let Some(mark) = self.marks.get_mut(at(index)) {
                *mark = 0;
            }
        }
    }
    fn add(&mut self, index: u32, how: u8) {
        if let Some(mark) = self.marks.get_mut(at(index)) {
            if *mark == 0 {
                self.list.push(index);
            }
            *mark |= how;
        }
    }
    fn writes(&self, index: u32) -> bool {
        self.marks.get(at(index)).is_some_and(|mark| mark & Self::WRITTEN != 0)
    }
    fn touches(&self, index: u32) -> bool {
        self.marks.get(at(index)).is_some_and(|mark| *mark != 0)
    }
}
