//! What loading the weights takes, buffer by buffer.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::build::Build;
use super::layout::Layout;
use super::loader_facts::LoaderFacts;
use super::placement::{Reader, Stage, WeightPlace, place, reader};
use crate::allocation::{Certainty, Term, TermKind};
use crate::deployment::{Backend, Deployment};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::tensor::{Tensor, TensorTable};
use crate::units::{Bytes, add, mul, round_up};

/// CUDA pads rows of quantized matrices to this many elements (`ggml-cuda/common.cuh:MATRIX_ROW_PADDING`).
const CUDA_ROW: u64 = 512;

/// Tables above this size are read row by row from the file where the loader allows it
/// (`llama-model-loader.cpp:lazy_read::add`).
const LAZY_ABOVE: u64 = 4 << 30;

/// What a group of tensors is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WeightPart {
    /// Embeddings.
    Input,
    /// Layers.
    Layers,
    /// Last norm and output matrix.
    Output,
    /// A second copy of the embedding that serves as output matrix.
    TiedCopy,
}

impl WeightPart {
    const ALL: [Self; 4] = [Self::Input, Self::Layers, Self::Output, Self::TiedCopy];

    const fn label(self) -> &'static str {
        match self {
            Self::Input => "embeddings",
            Self::Layers => "layers",
            Self::Output => "last norm and output",
            Self::TiedCopy => "copy of the tied embedding as output",
        }
    }
}

/// Tensors of one part in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WeightGroup {
    /// What they are for.
    pub part: WeightPart,
    /// How many.
    pub tensors: u64,
    /// Their bytes as stored.
    pub stored: Bytes,
    /// What rounding rows and tensors up adds.
    pub padding: Bytes,
}

/// One buffer of weights.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WeightBuffer {
    /// Where it lies.
    pub place: WeightPlace,
    /// Its size.
    pub bytes: Bytes,
    /// Whether it is a range of the file instead of memory of its own.
    pub mapped: bool,
    /// What is in it.
    pub groups: Vec<WeightGroup>,
}

/// A tensor as it will be created.
struct Created<'a> {
    tensor: &'a Tensor,
    place: WeightPlace,
    part: WeightPart,
    /// Where its data starts in the file, counted from the first tensor.
    offset: u64,
}

/// Encoders and others that have no output matrix at all: a missing one is not replaced by the embedding
/// (`src/models/*.cpp:load_arch_tensors`).
const WITHOUT_OUTPUT: &[&str] = &[
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "wavtokenizer-dec",
    "bitnet",
    "clip",
];

/// The buffers that weights take: on the devices in their order, then on the host.
///
/// `table` is the file's tensors in file order ([`super::quantize::file_tensors`], or a header).
///
/// # Errors
/// [`MathError::Overflow`] or [`MathError::PartialBlock`] for a table that no file can hold; as [`Layout::new`].
pub fn weight_buffers(
    build: Build,
    facts: &LoaderFacts,
    table: &TensorTable,
    deployment: &Deployment,
) -> Result<Vec<WeightBuffer>, MathError> {
    let layout = Layout::new(facts.n_layers_all, deployment)?;
    let created = created(build, facts, table, deployment, &layout)?;
    let devices = (0_u8..).take(layout.devices().len()).map(WeightPlace::Device);
    let mut buffers = Vec::new();
    for place in devices.chain([WeightPlace::HostPinned, WeightPlace::HostRepacked, WeightPlace::Host]) {
        let here: Vec<&Created<'_>> = created.iter().filter(|created| created.place == place).collect();
        if here.is_empty() {
            continue;
        }
        let mut groups = Vec::new();
        for part in WeightPart::ALL {
            let mut group = WeightGroup { part, tensors: 0, stored: Bytes::ZERO, padding: Bytes::ZERO };
            for created in here.iter().filter(|created| created.part == part) {
                let stored = created.tensor.bytes()?;
                let allocated = round_up(allocated(&layout, place, created.tensor)?, place.alignment(&layout))?;
                group.tensors = add(group.tensors, 1)?;
                group.stored = group.stored.plus(stored)?;
                group.padding = group.padding.plus(Bytes::new(allocated.saturating_sub(stored.get()))?)?;
            }
            if group.tensors > 0 {
                groups.push(group);
            }
        }
        let mapped = is_mapped(&layout, deployment, place);
        let bytes = if mapped {
            mapped_bytes(build, &here)?
        } else {
            groups.iter().try_fold(Bytes::ZERO, |sum, group| sum.plus(group.stored)?.plus(group.padding))?
        };
        buffers.push(WeightBuffer { place, bytes, mapped, groups });
    }
    Ok(buffers)
}

/// The buffer of every tensor that the loader creates, by name: what a graph needs to know about its weights. A tensor that
/// exists more than once (a tied embedding, rotation factors) is listed for each of its buffers.
///
/// # Errors
/// As [`weight_buffers`].
pub fn weight_places<'a>(
    build: Build,
    facts: &LoaderFacts,
    table: &'a TensorTable,
    deployment: &Deployment,
) -> Result<Vec<(&'a str, WeightPlace)>, MathError> {
    let layout = Layout::new(facts.n_layers_all, deployment)?;
    let created = created(build, facts, table, deployment, &layout)?;
    Ok(created.into_iter().map(|created| (created.tensor.name.as_str(), created.place)).collect())
}

/// As [`weight_places`], the tensors themselves.
pub(super) fn weight_homes<'a>(
    build: Build,
    facts: &LoaderFacts,
    table: &'a TensorTable,
    deployment: &Deployment,
) -> Result<Vec<(&'a Tensor, WeightPlace)>, MathError> {
    let layout = Layout::new(facts.n_layers_all, deployment)?;
    let created = created(build, facts, table, deployment, &layout)?;
    Ok(created.into_iter().map(|created| (created.tensor, created.place)).collect())
}

/// Bytes of the largest tensor that stays on the host and is read layer by layer: what a device may fetch at once.
pub(super) fn largest_on_host(
    build: Build,
    facts: &LoaderFacts,
    table: &TensorTable,
    deployment: &Deployment,
) -> Result<u64, MathError> {
    let layout = Layout::new(facts.n_layers_all, deployment)?;
    created(build, facts, table, deployment, &layout)?
        .iter()
        .filter(|created| !created.place.is_device() && created.part != WeightPart::Input)
        .try_fold(0_u64, |largest, created| Ok(largest.max(created.tensor.bytes()?.get())))
}

/// What reads the tensors of layers, by their names without the layer's number: the same in every layer, and most often in
/// the same order.
#[derive(Default)]
struct Readers<'a> {
    known: Vec<(&'a str, (Stage, Reader))>,
    next: usize,
}

impl<'a> Readers<'a> {
    fn of(&mut self, facts: &LoaderFacts, name: &'a str) -> (Stage, Reader) {
        let Some((_, base)) = layer_and_base(name) else { return reader(facts, name) };
        let there =
            self.known.iter().skip(self.next).position(|(known, _)| *known == base).map(|ahead| ahead.saturating_add(self.next));
        let there = there.or_else(|| self.known.iter().position(|(known, _)| *known == base));
        let found = there.and_then(|index| Some((index, self.known.get(index)?.1)));
        let (index, read) = found.unwrap_or_else(|| {
            let read = reader(facts, name);
            self.known.push((base, read));
            (self.known.len().saturating_sub(1), read)
        });
        self.next = index.saturating_add(1);
        read
    }
}

/// Every tensor that the loader creates, with its place.
fn created<'a>(
    build: Build,
    facts: &LoaderFacts,
    table: &'a TensorTable,
    deployment: &Deployment,
    layout: &Layout,
) -> Result<Vec<Created<'a>>, MathError> {
    let mut created = Vec::with_capacity(table.tensors.len().saturating_add(1));
    let mut offset = 0;
    let mut has_output = false;
    let mut embedding = None;
    let mut readers = Readers::default();
    for tensor in table.tensors.iter().filter(|tensor| tensor.counts.is_in_gguf()) {
        let start = offset;
        offset = round_up(add(offset, tensor.bytes()?.get())?, 32)?;
        let (mut stage, read_by) = readers.of(facts, &tensor.name);
        if build.makes_with_the_input(&tensor.name) {
            stage = Stage::Input;
        }
        has_output |= tensor.name == "output.weight";
        if read_by == Reader::Unused || skips(facts, table, tensor, deployment.load_mtp) {
            continue;
        }
        let lazy = is_lazy(facts, tensor)?;
        let place = |layer| {
            let place = place(layout, deployment.repack, facts, tensor, (stage, read_by), layer);
            if lazy { WeightPlace::Host } else { unpinned(deployment, place) }
        };
        let part = match stage {
            Stage::Input => WeightPart::Input,
            Stage::Layer => WeightPart::Layers,
            Stage::Output => WeightPart::Output,
        };
        if read_by == Reader::Rope {
            // One table for all layers is made again in every buffer that holds such a layer.
            let mut places: Vec<WeightPlace> = Vec::new();
            for layer in (0..facts.n_layers).filter(|&layer| facts.takes_rope_factors(layer)) {
                let place = place(layer);
                if !places.contains(&place) {
                    places.push(place);
                    created.push(Created { tensor, place, part, offset: start });
                }
            }
            continue;
        }
        // Tensors of the input that the loader counts among the layers' go with the first one.
        let place = place(layer_of(&tensor.name).unwrap_or(0));
        if tensor.name == "token_embd.weight" {
            embedding = Some((tensor, place, start));
        }
        created.push(Created { tensor, place, part, offset: start });
    }
    if let Some((tensor, embedding_place, offset)) = embedding
        && !has_output
        && !WITHOUT_OUTPUT.contains(&facts.arch.as_str())
    {
        let place = super::placement::place(layout, deployment.repack, facts, tensor, (Stage::Output, Reader::MulMat), 0);
        let place = unpinned(deployment, place);
        // The loader uses a tensor that already exists in the same buffer again, but only if it was made before.
        let made_before = build.gemma_output_precedes_embedding() && matches!(facts.arch.as_str(), "gemma3n" | "gemma4");
        if place != embedding_place || made_before {
            created.push(Created { tensor, place, part: WeightPart::TiedCopy, offset });
        }
    }
    Ok(created)
}

/// With the file mapped, what would lie in pinned memory stays in the file.
const fn unpinned(deployment: &Deployment, place: WeightPlace) -> WeightPlace {
    match place {
        WeightPlace::HostPinned if deployment.mmap => WeightPlace::Host,
        place => place,
    }
}

/// The layer that a tensor's name gives.
fn layer_of(name: &str) -> Option<u32> {
    let inner = name.strip_prefix("enc.").or_else(|| name.strip_prefix("dec.")).unwrap_or(name);
    Some(layer_and_base(inner)?.0)
}

/// Architectures whose loader skips multi-token-prediction layers whatever is asked (`src/models/*.cpp`).
const NEVER_LOADS_MTP: &[&str] = &["bailingmoe2", "exaone4", "exaone-moe", "glm4", "dots3note"];

/// Whether the loader leaves a tensor of a multi-token-prediction layer out.
fn skips(facts: &LoaderFacts, table: &TensorTable, tensor: &Tensor, load_mtp: bool) -> bool {
    let Some((layer, base)) = layer_and_base(&tensor.name) else { return false };
    if layer < facts.n_layers || (load_mtp && !NEVER_LOADS_MTP.contains(&facts.arch.as_str())) {
        return false;
    }
    // DeepSeek V4's loader takes such a layer for one of the trunk when the joining projection is missing.
    let is_trunk = facts.arch == "deepseek4" && table.get(&format!("blk.{}.nextn.eh_proj.weight", facts.n_layers)).is_none();
    !is_trunk && !is_loaded_unasked(&facts.arch, base)
}

/// Tensors of skipped layers that are loaded all the same, because the loader leaves the flag out for them.
fn is_loaded_unasked(arch: &str, base: &str) -> bool {
    let head = matches!(base, "nextn.embed_tokens.weight" | "nextn.shared_head_head.weight" | "nextn.shared_head_norm.weight");
    let feed_forward = (base.starts_with("ffn_") && !base.starts_with("ffn_norm")) || base.starts_with("exp_probs_b");
    match arch {
        "deepseek32" | "glm-dsa" => base == "exp_probs_b.bias",
        "cohere2moe" => head,
        "hy_v3" => head || feed_forward,
        "step35" => head || feed_forward || matches!(base, "attn_q_norm.weight" | "attn_k_norm.weight" | "attn_gate.weight"),
        _ => false,
    }
}

fn layer_and_base(name: &str) -> Option<(u32, &str)> {
    let (layer, base) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, base))
}

/// Whether a table is read from disk row by row: it then stays in plain host memory.
fn is_lazy(facts: &LoaderFacts, tensor: &Tensor) -> Result<bool, MathError> {
    let may = matches!((facts.arch.as_str(), tensor.name.as_str()), ("gemma4" | "qwen4exp", "per_layer_token_embd.weight"));
    Ok(may && tensor.bytes()?.get() > LAZY_ABOVE)
}

/// Bytes that a buffer reserves for a tensor before alignment.
fn allocated(layout: &Layout, place: WeightPlace, tensor: &Tensor) -> Result<u64, MathError> {
    let stored = tensor.bytes()?.get();
    let beyond = tensor.shape.row() % CUDA_ROW;
    let pads = matches!(layout.backend(place.place()), Backend::Cuda { .. })
        && tensor.format.is_quantized()
        && tensor.opaque_bytes.is_none()
        && beyond != 0;
    if pads { add(stored, padding_row(tensor.format, CUDA_ROW - beyond)?) } else { Ok(stored) }
}

/// Bytes of `elements` more in a row, whole blocks as the engine counts them (`ggml_row_size`).
fn padding_row(format: StorageFormat, elements: u64) -> Result<u64, MathError> {
    Ok(mul(elements, format.block_bytes())? / format.block_len())
}

/// Plain host buffers, and those of devices that share memory with the host, are ranges of the file.
fn is_mapped(layout: &Layout, deployment: &Deployment, place: WeightPlace) -> bool {
    deployment.mmap
        && match place {
            WeightPlace::Host => true,
            WeightPlace::Device(_) => layout.backend(place.place()) == Backend::Metal,
            WeightPlace::HostPinned | WeightPlace::HostRepacked => false,
        }
}

/// The range of the file that a buffer maps (`llama-model-loader.cpp:get_mapping_range`): everything from its first
/// tensor to its last, or only the tensors themselves.
fn mapped_bytes(build: Build, here: &[&Created<'_>]) -> Result<Bytes, MathError> {
    let range = |created: &Created<'_>| Ok((created.offset, add(created.offset, created.tensor.bytes()?.get())?));
    let own = merged(here.iter().map(|created| range(created)).collect::<Result<_, MathError>>()?);
    if !build.maps_only_own_ranges() {
        let first = own.first().map_or(0, |&(first, _)| first);
        let last = own.last().map_or(0, |&(_, last)| last);
        return Bytes::new(last.saturating_sub(first));
    }
    Bytes::sum(own.iter().map(|&(first, last)| Bytes::new(last.saturating_sub(first))).collect::<Result<Vec<_>, _>>()?)
}

/// Ranges in order, those that touch joined.
fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

impl WeightBuffer {
    /// The buffer as a line of an allocation.
    #[must_use]
    pub fn term(&self, build: Build, layout: &Layout) -> Term {
        let engine_name = self.place.engine_name(layout);
        let source = format!("{build}: llama-model-loader.cpp:create_tensor, llama-model.cpp:load_tensors");
        let label = match self.place {
            WeightPlace::Device(_) => "weights",
            WeightPlace::HostPinned if self.groups.iter().all(|group| group.part == WeightPart::Input) => {
                "weights of the input layer, pinned host memory"
            }
            WeightPlace::HostPinned => "weights that stay on the host, pinned host memory",
            WeightPlace::HostRepacked => "weights in the processor's interleaved layout",
            WeightPlace::Host if layout.used().is_empty() => "weights",
            WeightPlace::Host => "weights that stay on the host",
        };
        let child = |group: &WeightGroup| Term {
            component: TermKind::Weights,
            label: group.part.label().to_string(),
            bytes: group.stored.plus(group.padding).unwrap_or(group.stored),
            certainty: Certainty::Exact,
            formula: formula(group.tensors, group.stored, group.padding),
            source: source.clone(),
            children: Vec::new(),
        };
        let (children, formula) = if self.mapped {
            (Vec::new(), format!("{} bytes of the file, mapped ({engine_name}_Mapped)", self.bytes))
        } else {
            let names: Vec<String> = self.groups.iter().map(|group| group.part.label().to_string()).collect();
            (self.groups.iter().map(child).collect(), format!("{engine_name}: {}", names.join(" + ")))
        };
        Term {
            component: TermKind::Weights,
            label: if self.mapped { format!("{label}, mapped from the file") } else { label.to_string() },
            bytes: self.bytes,
            certainty: Certainty::Exact,
            formula,
            source,
            children,
        }
    }
}

fn formula(tensors: u64, stored: Bytes, padding: Bytes) -> String {
    let plural = if tensors == 1 { "tensor" } else { "tensors" };
    if padding == Bytes::ZERO {
        format!("{tensors} {plural}, {stored} B in whole blocks")
    } else {
        format!("{tensors} {plural}, {stored} B in whole blocks + {padding} B of padding")
    }
}
