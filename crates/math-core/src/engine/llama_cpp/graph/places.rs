//! Where a graph's layers, caches and weights are, by backend: the devices that the engine works with in its order, then
//! the processor.

use alloc::vec;
use alloc::vec::Vec;

use super::depth::kinds;
use super::reading;
use super::scales::Reads;
use super::unread::Unread;
use crate::deployment::{Backend, Deployment, Location};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::loader_facts::LoaderFacts;
use crate::engine::llama_cpp::placement::WeightPlace;
use crate::engine::llama_cpp::weights::weight_homes;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{KvSource, Layer, ModelSpec};
use crate::tensor::TensorTable;

/// A weight as the loader made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredWeight {
    pub(super) dims: [u64; 4],
    pub(super) format: StorageFormat,
    pub(super) backend: usize,
    /// Whether only the processor knows how to read it.
    pub(super) repacked: bool,
    /// Whether it is made for looking up tokens.
    pub(super) looks_up: bool,
}

/// Where a layer works and keeps its cache, and which of its weights are elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerPlace {
    pub(super) backend: usize,
    pub(super) cache: usize,
}

/// Architectures that load factors of the rotary embedding and rotate without them (`models/*.cpp`, `ggml_rope_ext`).
const WITHOUT_ROPE_FACTORS: &[&str] = &["cogvlm", "falcon-h1", "llada", "pangu-embedded"];

/// The position of a weight that is read at some time or other.
const UNKNOWN: usize = usize::MAX;

/// What names begin with in the stack of layers that the graph shows, and in the one that it does not: files of
/// encoder-decoders hold two.
fn stacks(spec: &ModelSpec) -> (&'static str, Option<&'static str>) {
    match &spec.encoder {
        None => ("", None),
        Some(_) if spec.layers.iter().all(|layer| layer.cross_attention.is_none()) => ("enc.", Some("dec.")),
        Some(_) => ("dec.", Some("enc.")),
    }
}

/// The layer whose cache this one reads.
fn keeper(layer: &Layer, index: u32) -> u32 {
    match layer.mixer.attention().map(|attention| attention.kv_source) {
        Some(KvSource::Layer { layer }) => layer,
        Some(KvSource::Own | KvSource::NotCached) | None => index,
    }
}

/// Where everything of a graph is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The devices, then the processor.
    pub(super) backends: Vec<Backend>,
    /// The engine's device behind each backend but the last.
    pub(super) devices: Vec<u8>,
    layers: Vec<LayerPlace>,
    /// The layer that keeps each layer's cache.
    keepers: Vec<usize>,
    pub(super) output: usize,
    /// For each layer, a number for what is where: equal numbers, equal places.
    kinds: Vec<usize>,
    /// Weights of each layer; empty when everything is in one place.
    weights: Vec<Vec<StoredWeight>>,
    /// Weights of no layer.
    others: Vec<StoredWeight>,
    /// Whether it is known which weight a graph means wherever that makes a difference.
    pub(super) tells_weights_apart: bool,
    /// How many factors the rotary embedding has, where the file has them.
    pub(super) rope_factors: Option<u64>,
    /// Whether the graph reads them.
    pub(super) reads_rope_factors: bool,
    /// Norms are kept on their layer's device whatever the batch.
    pub(super) everything_on_devices: bool,
    /// The engine projects without allocating, and forgets that norms are kept.
    pub(super) forgets_pins: bool,
    /// Attention goes where its cache is.
    pub(super) attention_follows_cache: bool,
    pub(super) offloads_operations: bool,
    pub(super) copies: usize,
}

impl Places {
    /// Everything in one place.
    pub(super) fn single(backend: Backend) -> Self {
        let backends = match backend {
            Backend::Cpu => vec![Backend::Cpu],
            device => vec![device, Backend::Cpu],
        };
        Self {
            devices: if backends.len() > 1 { vec![0] } else { Vec::new() },
            backends,
            layers: Vec::new(),
            keepers: Vec::new(),
            output: 0,
            kinds: Vec::new(),
            weights: Vec::new(),
            others: Vec::new(),
            tells_weights_apart: true,
            rope_factors: None,
            reads_rope_factors: true,
            everything_on_devices: true,
            forgets_pins: false,
            attention_follows_cache: false,
            offloads_operations: true,
            copies: 1,
        }
    }

    /// The places of a layout; `None` without the tensors when they are in several places.
    pub(super) fn new(
        spec: &ModelSpec,
        table: Option<&TensorTable>,
        deployment: &Deployment,
        facts: Facts<'_>,
        layout: &Layout,
    ) -> Result<Option<Self>, MathError> {
        let build = facts.build;
        let on_cuda = |place: Location| matches!(layout.backend(place), Backend::Cuda { .. });
        // Whether the processor fetches weights of what has a device to itself otherwise.
        let fetches = build.multiplies_expert_inputs_in_full(facts.arch);
        if let Some(place) = layout.only_place().filter(|place| !fetches || !on_cuda(*place) || table.is_none()) {
            let mut single = Self::single(layout.backend(place));
            single.forgets_pins = layout.is_projected();
            if let Location::Device(device) = place {
                single.devices = vec![device];
            }
            return Ok(Some(single));
        }
        let Some(table) = table else { return Ok(None) };
        let devices = layout.used().to_vec();
        let mut backends: Vec<Backend> = devices.iter().map(|device| layout.backend(Location::Device(*device))).collect();
        backends.push(Backend::Cpu);
        let host = devices.len();
        let number = |place: Location| match place {
            Location::Host => host,
            Location::Device(device) => devices.iter().position(|used| *used == device).unwrap_or(host),
        };
        let keepers: Vec<u32> = (0_u32..).zip(&spec.layers).map(|(index, layer)| keeper(layer, index)).collect();
        let layers: Vec<LayerPlace> = (0_u32..)
            .zip(&keepers)
            .map(|(layer, keeper)| LayerPlace { backend: number(layout.layer(layer)), cache: number(layout.cache(*keeper)) })
            .collect();
        let mut weights: Vec<Vec<StoredWeight>> = vec![Vec::new(); layers.len()];
        let mut others = Vec::new();
        let mut has_lookup = false;
        let mut rope_factors = None;
        let mut order: Vec<Vec<usize>> = vec![Vec::new(); layers.len()];
        let loader = LoaderFacts::of(spec, build)?;
        let mut order_of_others = Vec::new();
        let (stack, other_stack) = stacks(spec);
        let unread = Unread::of(facts.arch);
        let scales = Reads::of(facts);
        for (tensor, place) in weight_homes(build, &loader, table, deployment)? {
            if tensor.name.starts_with("rope_f") {
                rope_factors = Some(tensor.shape.row());
            }
            // A second one of that name is the output matrix.
            let looks_up = tensor.name == "token_embd.weight" && !has_lookup;
            has_lookup |= looks_up;
            let stored = StoredWeight {
                looks_up,
                dims: tensor.shape.0,
                format: tensor.format,
                backend: number(place.place()),
                repacked: place == WeightPlace::HostRepacked,
            };
            if other_stack.is_some_and(|prefix| tensor.name.starts_with(prefix)) {
                continue;
            }
            let name = tensor.name.strip_prefix(stack).unwrap_or(&tensor.name);
            let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let in_layer = in_layer.and_then(|(layer, base)| Some((layer.parse::<usize>().ok()?, base)));
            let (layer, base) = in_layer.map_or((None, name), |(layer, base)| (Some(layer), base));
            let (list, ranks) = match layer {
                Some(layer) => (weights.get_mut(layer), order.get_mut(layer)),
                None => (Some(&mut others), Some(&mut order_of_others)),
            };
            let in_same_layer =
                |other: &str| layer.is_some_and(|layer| table.get(&alloc::format!("blk.{layer}.{other}")).is_some());
            if unread.leaves(base) || scales.leaves(base) || Unread::is_repeated(base, in_same_layer) {
                continue;
            }
            if let (Some(list), Some(ranks)) = (list, ranks) {
                let rank = reading::position(base).unwrap_or(UNKNOWN);
                let place = ranks.partition_point(|known| *known <= rank);
                ranks.insert(place, rank);
                list.insert(place, stored);
            }
        }
        // Layers that come again read the weights of the first time (Nanbeige).
        for (index, layer) in spec.layers.iter().enumerate() {
            let Some(first) = layer.weights_of.and_then(|first| usize::try_from(first).ok()) else { continue };
            let found = (weights.get(first).cloned(), order.get(first).cloned());
            if let ((Some(from), Some(ranks)), Some(to), Some(slot)) = (found, weights.get_mut(index), order.get_mut(index)) {
                (*to, *slot) = (from, ranks);
            }
        }
        let known = |((weights, ranks), place): ((&Vec<StoredWeight>, &Vec<usize>), &LayerPlace)| {
            let own = place.backend;
            weights.iter().zip(ranks).all(|(weight, rank)| {
                let mut alike = weights.iter().filter(|other| other.dims == weight.dims);
                let at_home = |weight: &StoredWeight| weight.backend == own && own != host;
                *rank != UNKNOWN || alike.clone().all(at_home) || alike.all(|other| other == weight)
            })
        };
        let tells_weights_apart = weights.iter().zip(&order).zip(&layers).all(known);
        // Weights on their layer's own device are as good as any; those on the host may be fetched.
        let foreign = weights.iter().zip(&layers).map(|(weights, place)| {
            let own = place.backend;
            let elsewhere: Vec<StoredWeight> =
                weights.iter().filter(|weight| fetches || weight.backend != own || own == host).copied().collect();
            (*place, elsewhere)
        });
        let kinds = kinds(foreign);
        Ok(Some(Self {
            backends,
            devices: devices.clone(),
            output: number(layout.output()),
            kinds,
            weights,
            others,
            tells_weights_apart,
            rope_factors,
            reads_rope_factors: !WITHOUT_ROPE_FACTORS.contains(&facts.arch),
            everything_on_devices: layout.output() != Location::Host && !layers.iter().any(|layer| layer.backend == host),
            forgets_pins: layout.is_projected(),
            attention_follows_cache: !layout.offloads_caches(),
            offloads_operations: layout.offloads_operations(),
            copies: usize::try_from(layout.pipeline_copies()).unwrap_or(1),
            layers,
            keepers: keepers.iter().map(|keeper| usize::try_from(*keeper).unwrap_or(usize::MAX)).collect(),
        }))
    }

    /// The number of the processor.
    pub(super) fn host(&self) -> usize {
        self.backends.len().saturating_sub(1)
    }
    /// Whether one place does everything.
    pub(super) fn is_single(&self) -> bool {
        self.layers.is_empty()
    }
    pub(super) fn layer(&self, layer: usize) -> LayerPlace {
        self.layers.get(layer).copied().unwrap_or(LayerPlace { backend: 0, cache: 0 })
    }
    /// The layer that keeps the cache of this one.
    pub(super) fn keeper(&self, layer: usize) -> usize {
        self.keepers.get(layer).copied().unwrap_or(layer)
    }
    /// A number for what is where in a layer.
    pub(super) fn kind(&self, layer: usize) -> usize {
        self.kinds.get(layer).copied().unwrap_or(0)
    }
    /// The weights of a layer, or those of none.
    pub(super) fn weights(&self, layer: Option<usize>) -> &[StoredWeight] {
        match layer {
            Some(layer) => self.weights.get(layer).map_or(&[], Vec::as_slice),
            None => &self.others,
        }
    }
}
