//! What a candidate setting takes on each device and on the host, as the engine's own measurement has it: weights read, not
//! mapped (`common/fit.cpp:common_get_device_memory_data`).

use alloc::string::ToString;
use alloc::vec::Vec;

use super::Choice;
use crate::deployment::{Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::loader_facts::LoaderFacts;
use crate::engine::llama_cpp::memory::projected;
use crate::engine::llama_cpp::weights::weight_buffers;
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::tensor::TensorTable;
use crate::units::add;

/// What one place takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    pub(super) model: u64,
    context: u64,
    compute: u64,
}

impl Taken {
    pub(super) const fn total(&self) -> u64 {
        self.model.saturating_add(self.context).saturating_add(self.compute)
    }
}

/// What every place takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) devices: Vec<Taken>,
    host: Taken,
}

impl Measured {
    /// All devices together; the host without any.
    pub(super) fn used(&self) -> i64 {
        let sum = if self.devices.is_empty() {
            self.host.total()
        } else {
            self.devices.iter().fold(0_u64, |sum, device| sum.saturating_add(device.total()))
        };
        i64::try_from(sum).unwrap_or(i64::MAX)
    }
}

/// A model under measurement.
pub(super) struct Measuring<'a> {
    spec: &'a ModelSpec,
    table: &'a TensorTable,
    deployment: &'a Deployment,
    build: Build,
    exact: bool,
    count: u64,
}

impl<'a> Measuring<'a> {
    pub(super) const fn new(spec: &'a ModelSpec, table: &'a TensorTable, deployment: &'a Deployment, build: Build) -> Self {
        Self { spec, table, deployment, build, exact: true, count: 0 }
    }

    /// Whether all figures so far are exact.
    pub(super) const fn is_exact(&self) -> bool {
        self.exact
    }

    /// Measurements so far.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Memory of the host where there is no device: unknown here, so that nothing is reduced for it.
    pub(super) const fn host_memory(&self) -> u64 {
        crate::units::MAX_EXACT
    }

    pub(super) fn measure(&mut self, choice: &Choice) -> Result<Measured, MathError> {
        let deployment = Deployment { mmap: false, ..choice.apply(self.deployment)? };
        self.count = self.count.saturating_add(1);
        let memory = projected(self.spec, self.table, &deployment, self.build)?;
        let mut measured = Measured { devices: Vec::new(), host: Taken::default() };
        let computes = memory.compute.devices.iter();
        for (bounds, place) in computes.zip(memory.layout.places()) {
            self.exact &= bounds.low == bounds.high;
            let context = memory.at(place, &deployment)?.context()?;
            measured.devices.push(Taken { model: 0, context, compute: bounds.high });
        }
        if measured.devices.is_empty() {
            self.exact &= memory.compute.host.low == memory.compute.host.high;
        }
        measured.host.context = memory.at(Location::Host, &deployment)?.context()?;
        measured.host.compute = memory.compute.host.high;
        for buffer in weight_buffers(self.build, &LoaderFacts::of(self.spec, self.build)?, self.table, &deployment)? {
            let taken = match buffer.place.place() {
                Location::Host => &mut measured.host,
                Location::Device(device) => match measured.devices.get_mut(usize::from(device)) {
                    Some(taken) => taken,
                    None => {
                        return Err(MathError::Invalid {
                            field: "devices".to_string(),
                            found: alloc::format!("device {device}"),
                            expected: "a device of the deployment".to_string(),
                        });
                    }
                },
            };
            taken.model = add(taken.model, buffer.bytes.get())?;
        }
        Ok(measured)
    }
}
