//! Graphs of towers for images and sound (`tools/mtmd/clip.cpp`, `tools/mtmd/models`): a scheduler of their own, with the
//! device that the projector runs on and the processor.

mod connect;
mod images;
mod inputs;
mod layers;
mod llava;
mod more;
mod qwen;
mod sound;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::op::Op;
use super::ops::{Builder, Node};
use super::replay::{BufferKind, buffer_bytes};
use super::schedule::{Kernels, Machine, schedule};
use super::tensors::Graph;
use crate::deployment::Backend;
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::BufferRules;
use crate::engine::llama_cpp::flash::{Heads, has_kernel};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::projector::{Modality, ProjectorTower};
use crate::tensor::Tensor;

/// A tower with the picture that its graph is built for.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::llama_cpp) struct Subject<'a> {
    /// What the file says.
    pub(in crate::engine::llama_cpp) tower: &'a ProjectorTower,
    /// The engine's kind.
    pub(in crate::engine::llama_cpp) kind: &'static str,
    /// Pixels of a side of the picture.
    pub(in crate::engine::llama_cpp) side: u64,
    /// Pixels of a side of a patch.
    pub(in crate::engine::llama_cpp) patch: u64,
    /// Patches of a side that are merged into one.
    pub(in crate::engine::llama_cpp) merge: u64,
    /// Where it runs.
    pub(in crate::engine::llama_cpp) backend: Backend,
    /// The build.
    pub(in crate::engine::llama_cpp) build: Build,
}

/// Bytes of the compute buffers of a tower, and whether it attends without storing scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::llama_cpp) struct TowerBuffers {
    /// Where it runs.
    pub(in crate::engine::llama_cpp) own: u64,
    /// Of the processor beside a device.
    pub(in crate::engine::llama_cpp) host: u64,
    /// Flash attention as it will be.
    pub(in crate::engine::llama_cpp) flash: bool,
}

/// The compute buffers of a tower; `None` where the graph of its kind is not known. `flash` is `None` to find out.
///
/// # Errors
/// [`MathError::Invalid`] for a tensor that the kind needs and the file lacks, [`MathError::Overflow`].
pub(in crate::engine::llama_cpp) fn buffers<'a>(
    subject: Subject<'a>,
    tensors: impl Iterator<Item = &'a Tensor>,
    flash: Option<bool>,
) -> Result<Option<TowerBuffers>, MathError> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let wanted = flash.unwrap_or(true);
    let Some((bytes, runs)) = reserve(subject, &tensors, wanted)? else { return Ok(None) };
    let [mut own, mut host] = bytes;
    // Where the device has no such kernel, the engine reserves once more without, and buffers never shrink.
    let gives_up = flash.is_none() && !runs;
    if gives_up {
        let Some(([more, host_more], _)) = reserve(subject, &tensors, false)? else { return Ok(None) };
        (own, host) = (own.max(more), host.max(host_more));
    }
    Ok(Some(TowerBuffers { own, host, flash: wanted && !gives_up }))
}

type Reserved = ([u64; 2], bool);

/// Bytes of both buffers, and whether the device has all kernels for flash attention.
fn reserve(subject: Subject<'_>, tensors: &BTreeMap<&str, &Tensor>, flash: bool) -> Result<Option<Reserved>, MathError> {
    let Some((graph, runs)) = scheduled(subject, tensors, flash)? else { return Ok(None) };
    let backends = backends(subject.backend);
    let kind = |backend: &Backend| BufferKind { alignment: BufferRules::of(*backend).alignment, largest: u64::MAX };
    let kinds: Vec<BufferKind> = backends.iter().map(kind).collect();
    let bytes = buffer_bytes(&graph, &kinds)?;
    let bytes = match bytes.as_slice() {
        [own] => [*own, 0],
        [own, host, ..] => [*own, *host],
        [] => [0, 0],
    };
    Ok(Some((bytes, runs)))
}

fn backends(backend: Backend) -> Vec<Backend> {
    match backend {
        Backend::Cpu => Vec::from([Backend::Cpu]),
        device => Vec::from([device, Backend::Cpu]),
    }
}

fn scheduled(subject: Subject<'_>, tensors: &BTreeMap<&str, &Tensor>, flash: bool) -> Result<Option<(Graph, bool)>, MathError> {
    let mut tower = Tower::new(subject, tensors, flash);
    if !images::build(&mut tower)? {
        return Ok(None);
    }
    if subject.backend == Backend::Metal && tower.graph.has_unnamed() {
        return Ok(None);
    }
    let runs = tower.runs_flash;
    let backends = backends(subject.backend);
    let machine = Machine {
        backends: &backends,
        offloads_operations: true,
        copies: 1,
        keeps_unread_inputs: subject.build.keeps_unread_inputs(),
        kernels: Kernels {
            strided_unary: subject.build.unary_kernels_read_strided(),
            indexer_heads: subject.build.indexer_heads_on_cuda(),
        },
        // The loader allocates them even where it only measures (`clip.cpp:load_tensors`).
        weights_have_addresses: true,
    };
    Ok(Some((schedule(tower.graph, machine)?, runs)))
}

type Made = Result<Node, MathError>;

/// A graph of a tower while it is built.
struct Tower<'a> {
    subject: Subject<'a>,
    tensors: &'a BTreeMap<&'a str, &'a Tensor>,
    weights: BTreeMap<String, Node>,
    graph: Builder,
    flash: bool,
    runs_flash: bool,
    /// Whether products are kept between limits (`models/gemma4v.cpp:build_mm`).
    clamps: bool,
}

/// How a norm divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NormKind {
    /// By mean and variance.
    Mean,
    /// By the root of the mean square.
    RootMeanSquare,
}

impl<'a> Tower<'a> {
    fn new(subject: Subject<'a>, tensors: &'a BTreeMap<&'a str, &'a Tensor>, flash: bool) -> Self {
        Self { subject, tensors, weights: BTreeMap::new(), graph: Builder::new(), flash, runs_flash: true, clamps: false }
    }

    /// Patches of a side.
    const fn across(&self) -> u64 {
        match self.subject.side.checked_div(self.subject.patch) {
            Some(across) => across,
            None => 0,
        }
    }
    /// Patches of the picture.
    const fn patches(&self) -> u64 {
        self.across().saturating_mul(self.across())
    }
    const fn width(&self) -> u64 {
        self.subject.tower.width
    }
    const fn heads(&self) -> u64 {
        self.subject.tower.heads
    }
    fn kv_heads(&self) -> u64 {
        self.subject.tower.kv_heads.unwrap_or(self.subject.tower.heads)
    }
    /// Elements of a head.
    fn head(&self) -> u64 {
        self.subject.tower.head_width.unwrap_or_else(|| self.width().checked_div(self.heads()).unwrap_or(0))
    }

    /// What the names of its tensors begin with.
    fn letter(&self) -> &'static str {
        if self.subject.tower.modality == Modality::Vision { "v" } else { "a" }
    }
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    fn dims_of(&self, name: &str) -> Option<[u64; 4]> {
        self.tensors.get(name).map(|tensor| tensor.shape.0)
    }

    /// A weight, where the file has it.
    fn weight(&mut self, name: &str) -> Result<Option<Node>, MathError> {
        if let Some(node) = self.weights.get(name) {
            return Ok(Some(*node));
        }
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let node = self.graph.weight(tensor.format, tensor.shape.0, 0)?;
        self.weights.insert(name.to_string(), node);
        Ok(Some(node))
    }
    /// A weight that the kind needs.
    fn must(&mut self, name: &str) -> Made {
        self.weight(name)?.ok_or_else(|| MathError::Invalid {
            field: name.to_string(),
            found: "nothing".to_string(),
            expected: format!("this tensor, which projectors of the kind {} have", self.subject.kind),
        })
    }

    /// A product with `<name>.weight`, and `<name>.bias` added where there is one (`build_mm`, `ggml_add`).
    fn linear(&mut self, name: &str, input: Node) -> Made {
        let product = self.product_of(&format!("{name}.weight"), input)?;
        self.biased(name, product)
    }
    /// A product with the weight of this name (`build_mm`).
    fn product_of(&mut self, name: &str, input: Node) -> Made {
        let weight = self.must(name)?;
        if !self.clamps {
            return self.graph.mul_mat(weight, input);
        }
        let limited = self.graph.apply(Op::Clamp, input, &[])?;
        let product = self.graph.mul_mat(weight, limited)?;
        self.graph.apply(Op::Clamp, product, &[])
    }
    fn biased(&mut self, name: &str, input: Node) -> Made {
        match self.weight(&format!("{name}.bias"))? {
            Some(bias) => self.graph.sum(input, bias),
            None => Ok(input),
        }
    }
    /// A norm with `<name>.weight` and `<name>.bias`, where they are (`build_norm`).
    fn norm(&mut self, name: &str, input: Node, kind: NormKind) -> Made {
        let op = if kind == NormKind::RootMeanSquare { Op::RmsNorm } else { Op::Norm };
        let mut out = self.graph.apply(op, input, &[])?;
        if let Some(weight) = self.weight(&format!("{name}.weight"))? {
            out = self.graph.product(out, weight)?;
        }
        self.biased(name, out)
    }
    /// The same where no bias is used though the file may have one.
    fn scaled_norm(&mut self, name: &str, input: Node, kind: NormKind) -> Made {
        let op = if kind == NormKind::RootMeanSquare { Op::RmsNorm } else { Op::Norm };
        let out = self.graph.apply(op, input, &[])?;
        match self.weight(name)? {
            Some(weight) => self.graph.product(out, weight),
            None => Ok(out),
        }
    }
    fn scaled(&mut self, name: &str, input: Node) -> Made {
        match self.weight(name)? {
            Some(weight) => self.graph.product(input, weight),
            None => Ok(input),
        }
    }
    fn activate(&mut self, input: Node) -> Made {
        self.graph.apply(Op::Unary, input, &[])
    }
    /// Whole numbers that the caller fills.
    fn indices(&mut self, count: u64) -> Made {
        self.graph.input(StorageFormat::I32, [count, 1, 1, 1])
    }

    /// Notes whether the device has a kernel for flash attention.
    fn note_kernel(&mut self, heads: Heads, grouped: bool) {
        let formats = (StorageFormat::F16, StorageFormat::F16);
        let backend = self.subject.backend;
        self.runs_flash &= backend == Backend::Cpu || has_kernel(backend, heads, formats, grouped);
    }
}
