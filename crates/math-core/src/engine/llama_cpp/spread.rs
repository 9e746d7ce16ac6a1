//! Bounds of the compute buffers where several places share the work, for graphs that are not replayed.
//!
//! Every place may have to do what one place would do alone, as often as the pipeline has copies, and twice where work is
//! handed from place to place in the middle of a layer. A device may hold the weights that it fetches from the host
//! (`ggml-backend.cpp:ggml_backend_sched_split_graph`: one operation's at a time, while the next one's are on their way).

use alloc::vec::Vec;

use super::build::Build;
use super::cache::CachePlan;
use super::compute::{Bounds, ComputeBuffers, ComputeShape};
use super::facts::Facts;
use super::layout::Layout;
use super::loader_facts::LoaderFacts;
use super::resolve::Resolved;
use super::weights::largest_on_host;
use crate::deployment::{Accelerator, Deployment};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::tensor::{Place, TensorTable};
use crate::units::{add, mul};

/// What the bounds are made from.
pub(super) struct Spread<'a> {
    pub(super) build: Build,
    pub(super) spec: &'a ModelSpec,
    pub(super) table: &'a TensorTable,
    pub(super) plans: &'a [CachePlan],
    pub(super) resolved: &'a Resolved,
    pub(super) deployment: &'a Deployment,
    pub(super) layout: &'a Layout,
}

impl Spread<'_> {
    /// The bounds of every place.
    pub(super) fn bounds(&self) -> Result<ComputeBuffers, MathError> {
        let fetched = if self.layout.offloads_operations() {
            mul(2, largest_on_host(self.build, &LoaderFacts::of(self.spec, self.build)?, self.table, self.deployment)?)?
        } else {
            0
        };
        let copies = self.layout.pipeline_copies();
        // A layer that comes again works where its number says, and fetches its weights from where they lie.
        let again = if self.spec.layers.iter().any(|layer| layer.weights_of.is_some()) {
            let weights = self.table.bytes_where(|tensor| matches!(tensor.place, Place::Layer(_)))?.get();
            mul(copies.max(1), weights)?
        } else {
            0
        };
        let fetched = add(fetched, again)?;
        let alone = |devices: &[Accelerator]| -> Result<u64, MathError> {
            let deployment = Deployment { devices: devices.to_vec(), ..self.deployment.clone() };
            let facts = Facts::new(self.spec, self.build)?;
            let shape = ComputeShape::new(self.spec, facts, &deployment)?;
            let bounds = shape.bounds(self.plans, self.resolved, &deployment)?;
            let high = add(bounds.device.high, bounds.host.high)?;
            mul(copies.max(2), high)
        };
        let on_host = alone(&[])?;
        let mut devices = Vec::new();
        for (device, accelerator) in (0_u8..).zip(self.layout.devices()) {
            let high =
                if self.layout.used().contains(&device) { add(add(alone(&[*accelerator])?, on_host)?, fetched)? } else { 0 };
            devices.push(Bounds { low: 0, high });
        }
        let widest = devices.iter().map(|bounds| bounds.high).max().unwrap_or(0);
        // The host may keep what it hands to a device beside its own work.
        Ok(ComputeBuffers { devices, host: Bounds { low: 0, high: add(on_host, widest)? } })
    }
}
