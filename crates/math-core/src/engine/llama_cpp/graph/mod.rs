//! Compute buffers: the engine's computation graph, and its graph allocator replayed over it.
//!
//! The size of a compute buffer is the high-water mark of `ggml-alloc.c` over the scheduler's copy of the graph:
//! integer arithmetic without any measurement in it. A graph is built from the model's mechanisms ([`parts`]) in the
//! order of the architecture ([`decoder`]), split among backends ([`schedule`]) and replayed ([`replay`]).

mod decoder;
pub mod ops;
mod parts;
pub mod replay;
pub mod schedule;

use alloc::vec;

use super::build::Build;
use super::cache::{BufferRules, CachePlan, CellRule};
use super::facts::Facts;
use super::resolve::Resolved;
use crate::deployment::{Backend, Deployment};
use crate::error::MathError;
use crate::spec::ModelSpec;
use decoder::Caches;
use ops::Builder;
use parts::{Parts, Setting};
use replay::BufferKind;

/// Bytes of the compute buffers: on the device (0 when the processor does everything) and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
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
pub fn compute_bytes(
    spec: &ModelSpec,
    deployment: &Deployment,
    build: Build,
    resolved: &Resolved,
    plans: &[CachePlan],
) -> Result<Option<ComputeBytes>, MathError> {
    let facts = Facts::new(spec, build)?;
    let Some(row) = decoder::row(facts.arch) else { return Ok(None) };
    let on_device = match deployment.backend {
        Backend::Cpu => false,
        Backend::Cuda { .. } => true,
        Backend::Metal => return Ok(None),
    };
    if build != Build::C0c1e57098 {
        return Ok(None);
    }
    let mut caches = Caches { window_cells: None, v_widths: [0; 2], rotations: [[0; 2]; 2] };
    for plan in plans {
        let cells = plan.cells(resolved, deployment.swa_full)?;
        let slot = usize::from(matches!(plan.cells, CellRule::Window { .. }));
        if slot == 1 {
            caches.window_cells = Some(cells);
        }
        let widest = plan.groups.iter().filter_map(|group| group.v_dim).max().unwrap_or(0);
        if let Some(width) = caches.v_widths.get_mut(slot) {
            *width = widest;
        }
        if let Some(rotation) = caches.rotations.get_mut(slot) {
            *rotation = plan.rotations;
        }
    }
    let widest = caches.v_widths.iter().copied().max().unwrap_or(0);
    caches.v_widths = [widest; 2];
    let mut out = ComputeBytes::default();
    // The engine reserves the graph of a full micro-batch and that of one token per sequence; buffers never shrink.
    for tokens in [resolved.graph_tokens, resolved.n_seq_max] {
        let setting = Setting {
            tokens,
            outputs: if tokens == resolved.graph_tokens { resolved.n_outputs_max.min(tokens) } else { tokens },
            streams: resolved.streams,
            cells: resolved.n_ctx_seq,
            k_format: deployment.kv_type_k,
            v_format: deployment.kv_type_v,
            flash: resolved.flash_attention,
            device: 0,
            host: usize::from(on_device),
            copies_kv: on_device,
        };
        let mut parts = Parts { graph: Builder::default(), setting };
        let window = |attention: &crate::spec::Attention| facts.window(attention.window).is_some();
        if !decoder::build(&mut parts, spec, row, &caches, &window)? {
            return Ok(None);
        }
        let host_kind = BufferKind { alignment: BufferRules::of(Backend::Cpu).alignment, largest: u64::MAX };
        let mut kinds = vec![host_kind];
        if on_device {
            kinds.insert(0, BufferKind { alignment: BufferRules::of(deployment.backend).alignment, largest: u64::MAX });
        }
        let graph = schedule::schedule(&parts.graph, kinds.len())?;
        let bytes = replay::buffer_bytes(&graph, &kinds)?;
        if let [device, host] = bytes.as_slice() {
            out.device = out.device.max(*device);
            out.host = out.host.max(*host);
        } else if let [host] = bytes.as_slice() {
            out.host = out.host.max(*host);
        }
    }
    Ok(Some(out))
}
