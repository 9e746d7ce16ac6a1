//! Compute buffers: the engine's computation graph, and its graph allocator replayed over it.
//!
//! The size of a compute buffer is the high-water mark of `ggml-alloc.c` over the scheduler's copy of the graph:
//! integer arithmetic without any measurement in it. A graph is built from the model's mechanisms (`parts`) in the
//! order of the architecture (`decoder`), split among backends ([`schedule`]) and replayed ([`replay`]).

mod decoder;
mod delta;
mod hybrid;
mod latent;
pub mod length;
pub mod ops;
mod parts;
mod recurrent;
pub(super) mod regimes;
pub mod replay;
pub mod schedule;

use alloc::vec::Vec;

use super::cache::{BufferRules, CachePlan, CellRule};
use super::facts::Facts;
use super::flash::runs_fused;
use super::resolve::{ResolveFacts, Resolved};
use crate::deployment::{Backend, Deployment};
use crate::error::MathError;
use crate::spec::{Attention, ModelSpec};
use decoder::Caches;
use ops::Builder;
use parts::{Parts, Setting};
use replay::{BufferKind, Graph};

/// Bytes of the compute buffers: on the device (0 when the processor does everything) and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ComputeBytes {
    /// On the device.
    pub device: u64,
    /// On the host.
    pub host: u64,
}

/// The compute buffers to the byte, or `None` where the graph of this architecture, build or backend is not known.
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
    let kinds = buffer_kinds(deployment.backend());
    let Some(graphs) = graphs(spec, deployment, facts, resolved, plans)? else { return Ok(None) };
    let mut out = ComputeBytes::default();
    for graph in &graphs {
        let bytes = replay::buffer_bytes(graph, &kinds)?;
        let (host, device) = bytes.split_last().map_or((0, 0), |(host, rest)| (*host, rest.iter().copied().sum()));
        out.device = out.device.max(device);
        out.host = out.host.max(host);
    }
    Ok(Some(out))
}

/// The buffers of a backend: the device's, if there is one, and the processor's.
fn buffer_kinds(backend: Backend) -> Vec<BufferKind> {
    let kind = |backend| BufferKind { alignment: BufferRules::of(backend).alignment, largest: u64::MAX };
    let mut kinds = Vec::new();
    if backend != Backend::Cpu {
        kinds.push(kind(backend));
    }
    kinds.push(kind(Backend::Cpu));
    kinds
}

/// The graphs that the engine reserves memory for: a full micro-batch, one token per sequence, and for some models a full
/// micro-batch of one sequence. Buffers never shrink, so the larger need counts (`llama-context.cpp:sched_reserve`).
fn graphs(
    spec: &ModelSpec,
    deployment: &Deployment,
    facts: Facts<'_>,
    resolved: &Resolved,
    plans: &[CachePlan],
) -> Result<Option<Vec<Graph>>, MathError> {
    let (row, hybrid) = (decoder::row(facts.arch), hybrid::row(facts.arch));
    if row.is_none() && hybrid.is_none() {
        return Ok(None);
    }
    let cuda = match deployment.backend() {
        Backend::Cpu => None,
        Backend::Cuda { compute_capability } => Some(compute_capability),
        Backend::Metal => return Ok(None),
    };
    let on_device = cuda.is_some();
    // Without a kernel for its heads, attention falls back to the processor and the graph is cut in places of its own.
    let falls_back = on_device && resolved.flash_attention && !runs_fused(spec, facts, deployment)?;
    if !facts.build.graphs_are_known() || deployment.embeddings || deployment.load_mtp || falls_back {
        return Ok(None);
    }
    let mut caches = Caches { window_cells: None, v_widths: [0; 2], rotations: [[0; 2]; 2] };
    let mut widest = 0;
    for plan in plans {
        let slot = usize::from(matches!(plan.cells, CellRule::Window { .. }));
        if slot == 1 {
            caches.window_cells = Some(plan.cells(resolved, deployment.swa_full)?);
        }
        widest = plan.groups.iter().filter_map(|group| group.v_dim).fold(widest, u64::max);
        if let Some(rotation) = caches.rotations.get_mut(slot) {
            *rotation = plan.rotations;
        }
    }
    caches.v_widths = [widest; 2];
    let transposed = ResolveFacts::new(spec, facts, deployment)?.transposes_values(deployment);
    let window = |attention: &Attention| facts.window(attention.window).is_some();
    let build = |tokens: u64, sequences: u64, outputs: u64| -> Result<Option<Graph>, MathError> {
        let setting = Setting {
            tokens,
            sequences,
            states: resolved.n_seq_max,
            outputs,
            streams: resolved.streams,
            cells: resolved.n_ctx_seq,
            k_format: deployment.kv_type_k,
            v_format: deployment.kv_type_v,
            flash: resolved.flash_attention,
            transposed,
            device: 0,
            host: usize::from(on_device),
            cuda,
            rows_after_layers: facts.build.chooses_rows_after_layers(),
            flat_delta: facts.build.delta_output_is_flat(),
            mixed_inputs: facts.build.mixes_tokens_and_embeddings(facts.arch),
            scales_rows: facts.build.scales_embedded_rows(facts.arch),
            cached_rotations: facts.build.rotation_matrices_are_cached(),
            gathers_states: facts.build.gathers_states_at_once(),
            limits_experts: facts.build.limits_expert_activations(facts.arch),
        };
        let mut parts = Parts { graph: Builder::default(), setting };
        let built = match (row, hybrid) {
            (Some(row), _) => decoder::build(&mut parts, spec, row, &caches, &window)?,
            (None, Some(row)) => hybrid::build(&mut parts, spec, row, &caches, &window)?,
            (None, None) => false,
        };
        if !built {
            return Ok(None);
        }
        schedule::schedule(&parts.graph, buffer_kinds(deployment.backend()).len()).map(Some)
    };
    let tokens = resolved.graph_tokens;
    // Rows of logits are limited before the micro-batch is rounded up to whole sequences.
    let outputs = resolved.n_outputs_max.min(resolved.n_ubatch).min(resolved.n_ctx);
    let sequences = resolved.n_seq_max;
    let mut out = Vec::new();
    for (tokens, sequences, outputs) in [(tokens, sequences, outputs), (sequences, sequences, sequences)] {
        let Some(graph) = build(tokens, sequences, outputs)? else { return Ok(None) };
        out.push(graph);
    }
    Ok(Some(out))
}
