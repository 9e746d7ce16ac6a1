//! Compute buffers: the engine's computation graph, and its graph allocator replayed over it.
//!
//! The size of a compute buffer is the high-water mark of `ggml-alloc.c` over the scheduler's copy of the graph:
//! integer arithmetic without any measurement in it. A graph is built from the model's mechanisms (`parts`) in the
//! order of the architecture (`decoder`), split among backends (`schedule`) and replayed ([`replay`](mod@replay)).

mod adapters;
mod altup;
mod attention;
mod blocks;
mod choices;
mod compressed;
mod decoder;
mod delta;
mod depth;
mod encoder_decoder;
mod expanded;
mod experts;
mod feeding;
mod fused;
mod hybrid;
mod hyper;
mod kernels;
mod latent;
pub mod length;
mod lightning;
mod metal;
mod mixing;
pub mod op;
pub mod ops;
mod parts;
mod per_layer;
mod places;
mod plan;
mod pooling;
mod reading;
mod recurrent;
pub(super) mod regimes;
pub mod replay;
mod rows;
mod rwkv;
mod scales;
mod schedule;
mod selector;
mod shapes;
mod stacks;
mod stretch;
pub mod tensors;
pub(in crate::engine::llama_cpp) mod towers;
mod trunk;
mod unread;
mod unroll;
mod versions;
pub(super) mod work;

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::build::Build;
use super::cache::{BufferRules, CachePlan, CellRule, cache_plans};
use super::compute::{Bounds, ComputeBuffers};
use super::facts::Facts;
use super::layout::Layout;
use super::loader_facts::LoaderFacts;
use super::resolve::{ResolveFacts, Resolved, resolve_with};
use crate::deployment::{Backend, Deployment};
use crate::error::MathError;
use crate::spec::{Attention, Layer, Mixer, ModelSpec};
use crate::tensor::TensorTable;
use compressed::{CompressedCache, CompressedCaches};
use depth::Depth;
use fused::Fused;
pub(super) use fused::look_at_attention;
use hybrid::HybridRow;
use parts::{Parts, Setting};
use places::Places;
use replay::{BufferKind, replay};
use rows::{BuiltBy, Row};
use schedule::{Kernels, Machine, schedule};
use selector::SelectorCache;
use tensors::Graph;
use trunk::Caches;
use unroll::Unrolled;

/// Bytes of the compute buffers where one place does all the work: on the device (0 when the processor does everything)
/// and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ComputeBytes {
    /// On the device.
    pub device: u64,
    /// On the host.
    pub host: u64,
}

/// The compute buffers to the byte where one place does all the work, or `None` where the graph of this architecture, build
/// or backend is not known.
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn compute_bytes(
    spec: &ModelSpec,
    deployment: &Deployment,
    facts: Facts<'_>,
    resolved: &Resolved,
    plans: &[CachePlan],
) -> Result<Option<ComputeBytes>, MathError> {
    let places = Places::single(deployment.backend());
    let Some(recipe) = Recipe::new(spec, deployment, facts, places)? else { return Ok(None) };
    let Some(recipe) = recipe.settled(resolved, plans)? else { return Ok(None) };
    let Some(bytes) = recipe.bytes(resolved, plans)? else { return Ok(None) };
    let (host, device) = bytes.split_last().map_or((0, 0), |(host, rest)| (*host, rest.iter().copied().sum()));
    Ok(Some(ComputeBytes { device, host }))
}

/// The compute buffers to the byte wherever the layout puts layers, caches and weights, or `None` where the graph is not
/// known or `table` is missing.
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn compute_buffers(
    spec: &ModelSpec,
    table: Option<&TensorTable>,
    deployment: &Deployment,
    facts: Facts<'_>,
    layout: &Layout,
    resolved: &Resolved,
    plans: &[CachePlan],
) -> Result<Option<ComputeBuffers>, MathError> {
    let Some(places) = Places::new(spec, table, deployment, facts, layout)? else { return Ok(None) };
    let Some(recipe) = Recipe::new(spec, deployment, facts, places)? else { return Ok(None) };
    let Some(recipe) = recipe.settled(resolved, plans)? else { return Ok(None) };
    let Some(bytes) = recipe.bytes(resolved, plans)? else { return Ok(None) };
    let mut out = ComputeBuffers { devices: alloc::vec![Bounds::default(); layout.devices().len()], host: Bounds::default() };
    if let Some((host, devices)) = bytes.split_last() {
        out.host = Bounds::exactly(*host);
        for (device, bytes) in recipe.places.devices.iter().zip(devices) {
            if let Some(slot) = out.devices.get_mut(usize::from(*device)) {
                *slot = Bounds::exactly(*bytes);
            }
        }
    }
    Ok(Some(out))
}

/// The graphs that a context is reserved for, all layers shown, as the scheduler hands them to the allocator; `None` where
/// the graph of this architecture or backend is not known. For comparison with graphs that the engine dumped. `table` is
/// needed where several places share the work.
///
/// # Errors
/// As [`super::memory::memory_of`].
pub fn reserved(
    spec: &ModelSpec,
    table: Option<&TensorTable>,
    deployment: &Deployment,
    build: Build,
) -> Result<Option<Vec<Graph>>, MathError> {
    let facts = Facts::new(spec, build)?;
    let mut asked = ResolveFacts::new(spec, facts, deployment)?;
    let layout = Layout::new(LoaderFacts::of(spec, build)?.n_layers_all, deployment)?;
    look_at_attention(&mut asked, spec, table, deployment, facts, &layout)?;
    let resolved = resolve_with(&asked, deployment, deployment.context, deployment.sequences)?;
    let plans = cache_plans(spec, facts, deployment, &layout, asked.transposes_values(deployment))?;
    let Some(places) = Places::new(spec, table, deployment, facts, &layout)? else { return Ok(None) };
    let Some(recipe) = Recipe::new(spec, deployment, facts, places)? else { return Ok(None) };
    let Some(recipe) = recipe.settled(&resolved, &plans)? else { return Ok(None) };
    let mut graphs = Vec::new();
    for reserve in Reserve::all(&resolved, facts) {
        let Some(graph) = recipe.graph(&resolved, &plans, reserve, Depth::All)? else { return Ok(None) };
        graphs.push(graph);
    }
    Ok(Some(graphs))
}

/// Below this batch, norms are kept on their layers' devices also where only some layers are on devices
/// (`llama-context.cpp:graph_get_cb`).
const FEW_TOKENS: u64 = 32;

/// A graph that the engine reserves memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reserve {
    tokens: u64,
    sequences: u64,
    /// Rows of logits.
    outputs: u64,
    /// The engine only looks at how the graph is scheduled: norms are kept on their devices also where it projects.
    looks: bool,
}

impl Reserve {
    /// A full micro-batch, one token per sequence, and for some models a full micro-batch of one sequence. Buffers never
    /// shrink, so the largest need counts (`llama-context.cpp:sched_reserve`).
    fn all(resolved: &Resolved, facts: Facts<'_>) -> Vec<Self> {
        let outputs = resolved.outputs();
        let sequences = resolved.n_seq_max;
        let mut out = Vec::from([
            Self { tokens: resolved.graph_tokens, sequences, outputs, looks: false },
            Self { tokens: sequences, sequences, outputs: sequences, looks: false },
        ]);
        if facts.reserves_one_sequence() && sequences > 1 {
            out.push(Self { tokens: resolved.n_ctx.min(resolved.n_ubatch), sequences: 1, outputs, looks: false });
        }
        out
    }
}

/// What all graphs of a model and deployment have in common.
struct Recipe<'a> {
    spec: &'a ModelSpec,
    deployment: &'a Deployment,
    facts: Facts<'a>,
    row: Option<&'static Row>,
    hybrid: Option<&'static HybridRow>,
    places: Rc<Places>,
    asked: ResolveFacts,
    fused: Fused,
}

impl<'a> Recipe<'a> {
    /// `None` where the graph is not known.
    fn new(spec: &'a ModelSpec, deployment: &'a Deployment, facts: Facts<'a>, places: Places) -> Result<Option<Self>, MathError> {
        let (row, hybrid) = (rows::row(facts.arch), hybrid::row(facts.arch));
        let known = row.is_some() || hybrid.is_some() || facts.compresses_tokens();
        let served = !deployment.embeddings || spec.operations.pooling.is_some();
        let on_cuda = places.backends.iter().any(|backend| matches!(backend, Backend::Cuda { .. }));
        // What is fetched to the processor is as large as it is stored.
        let moves = on_cuda && facts.build.multiplies_expert_inputs_in_full(facts.arch) && places.is_single();
        if !known || !served || moves || spec.operations.others || !facts.build.graphs_are_known() {
            return Ok(None);
        }
        if !places.tells_weights_apart {
            return Ok(None);
        }
        let asked = ResolveFacts::new(spec, facts, deployment)?;
        Ok(Some(Self { spec, deployment, facts, row, hybrid, places: Rc::new(places), asked, fused: Fused::all(facts.build) }))
    }

    /// The buffers of the backends.
    fn buffer_kinds(&self) -> Vec<BufferKind> {
        let kind = |backend: &Backend| BufferKind { alignment: BufferRules::of(*backend).alignment, largest: u64::MAX };
        self.places.backends.iter().map(kind).collect()
    }

    /// Bytes of every backend's buffer.
    fn bytes(&self, resolved: &Resolved, plans: &[CachePlan]) -> Result<Option<Vec<u64>>, MathError> {
        let kinds = self.buffer_kinds();
        let mut out = alloc::vec![0; kinds.len()];
        // A projection adds up the first graph alone (`llama-context.cpp:sched_reserve`).
        let graphs = if self.places.forgets_pins { 1 } else { usize::MAX };
        // What one graph takes to be understood, the next takes too.
        let mut depth = Depth::Few;
        let mut before: Option<(Graph, Unrolled)> = None;
        for reserve in Reserve::all(resolved, self.facts).into_iter().take(graphs) {
            let bytes = loop {
                let Some(graph) = self.graph(resolved, plans, reserve, depth)? else { return Ok(None) };
                // Most often the graphs differ in their sizes alone.
                let unrolled = match before.take() {
                    Some((alike, unrolled)) if alike.is_alike(&graph) => Some(unrolled),
                    _ => Unrolled::new(&graph),
                };
                match unrolled {
                    Some(unrolled) => {
                        let bytes = replay::<u64, Graph>(&graph, &unrolled, &kinds, &mut ())?;
                        before = Some((graph, unrolled));
                        break bytes;
                    }
                    None if depth == Depth::All => return Ok(None),
                    None => depth = depth.next(),
                }
            };
            for (most, bytes) in out.iter_mut().zip(bytes) {
                *most = bytes.max(*most);
            }
        }
        Ok(Some(out))
    }

    /// A graph as the scheduler makes it, as deep as `depth` says.
    fn graph(
        &self,
        resolved: &Resolved,
        plans: &[CachePlan],
        reserve: Reserve,
        depth: Depth,
    ) -> Result<Option<Graph>, MathError> {
        match self.build(resolved, plans, reserve, depth)? {
            Some((parts, machine)) => schedule(parts.graph, machine).map(Some),
            None => Ok(None),
        }
    }

    /// A graph as the architecture makes it, with the machine to schedule it on.
    fn build(
        &self,
        resolved: &Resolved,
        plans: &[CachePlan],
        reserve: Reserve,
        depth: Depth,
    ) -> Result<Option<(Parts, Machine<'_>)>, MathError> {
        let Self { spec, deployment, facts, .. } = *self;
        // How other states keep their snapshots is not known.
        let keeps = |layer: &Layer| !matches!(layer.mixer, Mixer::CompressedAttention(_));
        if resolved.n_rs_seq > 0 && !spec.layers.iter().all(keeps) {
            return Ok(None);
        }
        let batch_only = !facts.has_memory() || self.row.is_some_and(|row| row.embeds_batches);
        let mut caches = Caches { batch_only, window_cells: None, v_widths: [0; 2], rotations: [[0; 2]; 2], selector: None };
        let mut compressed = CompressedCaches::default();
        let mut widest = 0;
        for plan in plans {
            let [rotation, _] = plan.rotations;
            let cells = plan.cells(resolved, deployment.swa_full)?;
            compressed.add(plan.tag, CompressedCache { cells, rotation });
            if matches!(plan.tag, "lid" | "dsa.lid") {
                caches.selector = Some(SelectorCache { cells, rotation });
                continue;
            }
            if plan.tag == "idx" {
                continue;
            }
            let slot = usize::from(matches!(plan.cells, CellRule::Window { .. }));
            if slot == 1 {
                caches.window_cells = Some(cells);
            }
            widest = plan.groups.iter().filter_map(|group| group.v_dim).fold(widest, u64::max);
            if let Some(rotation) = caches.rotations.get_mut(slot) {
                *rotation = plan.rotations;
            }
        }
        caches.v_widths = [widest; 2];
        if self.hybrid.is_some() && caches.window_cells.is_some() && !facts.build.rotates_windowed_hybrids() {
            caches.rotations = [[0; 2]; 2];
        }
        // Compressed tokens of different sequences never share a stream.
        let streams = if plans.iter().any(|plan| plan.always_streams) { resolved.n_seq_max } else { resolved.streams };
        let places = &self.places;
        let cached_rotations = facts.build.rotation_matrices_are_cached();
        let setting = Setting {
            tokens: reserve.tokens,
            sequences: reserve.sequences,
            states: resolved.n_seq_max,
            snapshots: resolved.n_rs_seq.saturating_add(1),
            outputs: reserve.outputs,
            streams,
            mask_streams: streams.min(reserve.sequences),
            cells: resolved.n_ctx_seq,
            k_format: deployment.kv_type_k,
            v_format: deployment.kv_type_v,
            flash: resolved.flash_attention,
            transposed: self.asked.transposes_values(deployment),
            device: 0,
            cache_device: 0,
            host: 0,
            pins_norms: (reserve.looks || !places.forgets_pins) && (places.everything_on_devices || reserve.tokens < FEW_TOKENS),
            rows_after_layers: facts.build.chooses_rows_after_layers(),
            flat_projections: facts.build.projects_sequences_together(),
            states_lie_with_input: facts.build.makes_with_the_input("hrm.z_l_init"),
            mixed_inputs: facts.build.mixes_tokens_and_embeddings(facts.arch),
            scales_rows: facts.build.scales_embedded_rows(facts.arch),
            cached_rotations,
            gathers_states: facts.build.gathers_states_at_once(),
            pads_batches: facts.build.pads_uncached_batches(),
            tables_first: facts.build.looks_tables_up_first(),
            hands_out_hidden_state: facts.build.hands_out_hidden_state(),
            fused: self.fused,
            shares_selector_mask: facts.build.masks_chosen_cells_at_once(),
            scales: scales::Reads::of(facts),
            unread: unread::Unread::of(facts.arch),
            pooling: spec.operations.pooling.filter(|_| deployment.embeddings),
            pools_before_logits: facts.build.pools_before_logits(),
            ranks_by_softmax: matches!(facts.arch, "qwen3" | "qwen3vl"),
            sections: facts.build.rotates_in_sections(facts.arch),
            full_expert_inputs: facts.build.multiplies_expert_inputs_in_full(facts.arch),
            asks_scoring: facts.build.asks_how_experts_are_scored(facts.arch),
            limits_experts: facts.build.limits_expert_activations(facts.arch),
        };
        let window = |attention: &Attention| {
            if batch_only { attention.window.tokens().is_some() } else { facts.window(attention.window).is_some() }
        };
        let mut parts = Parts::new(setting, depth, places);
        let told = self.row.filter(|_| facts.build.asks_about_expert_weights(facts.arch)).map(Row::asking);
        let built = match (told.as_ref().or(self.row), self.hybrid) {
            (Some(row), _) => match row.built_by {
                BuiltBy::Layers => decoder::build(&mut parts, spec, row, &caches, &window)?,
                BuiltBy::Adapters => adapters::build(&mut parts, spec, row, &caches)?,
                BuiltBy::AltUp => altup::build(&mut parts, spec, row, &caches, &window)?,
                BuiltBy::Versions => versions::build(&mut parts, spec, row, &caches, &window)?,
                BuiltBy::Rwkv => rwkv::build(&mut parts, spec, row)?,
                BuiltBy::EncoderDecoder => encoder_decoder::build(&mut parts, spec, row, &caches)?,
            },
            (None, Some(row)) => hybrid::build(&mut parts, spec, row, &caches, &window)?,
            (None, None) => compressed::build(&mut parts, spec, &compressed)?,
        };
        // A graph that does not say where its layers end says nothing about their devices either.
        if !built || (!places.is_single() && !parts.at_output) {
            return Ok(None);
        }
        // A device that orders operations by what they are has to know them all.
        if places.backends.contains(&Backend::Metal) && parts.graph.has_unnamed() {
            return Ok(None);
        }
        let machine = Machine {
            backends: &places.backends,
            offloads_operations: places.offloads_operations,
            copies: places.copies,
            keeps_unread_inputs: facts.build.keeps_unread_inputs(),
            kernels: Kernels {
                strided_unary: facts.build.unary_kernels_read_strided(),
                indexer_heads: facts.build.indexer_heads_on_cuda(),
            },
            weights_have_addresses: false,
        };
        Ok(Some((parts, machine)))
    }
}
