//! What devices this machine has.
//!
//! Every driver's tool is one [`Probe`]: it asks a [`System`] (this machine, or one that was recorded) and answers with [`Facts`].
//! [`local`] asks them all, the best one of each maker first, and matches what they say with the catalogue. What cannot be read is
//! [`Reading::Unavailable`] with the reason, never 0. Outputs of tools are untrusted input: they are cut at [`MAX_OUTPUT`], and nothing
//! in them makes a parser panic.

mod amd;
mod apple;
mod facts;
mod host;
mod identify;
mod intel;
mod json;
mod nvidia;
#[cfg(feature = "nvml")]
mod nvml;
mod sysfs;
mod system;

use plimsoll_math::device::Device;
use serde::Serialize;

pub use facts::{Facts, MAX_DEVICES, Maker, Reading, Unavailable};
pub use host::Host;
pub use system::{MAX_OUTPUT, Os, System, ThisMachine};

/// One way to learn about devices.
pub trait Probe {
    /// The tool's name.
    fn name(&self) -> &'static str;

    /// Whose devices it knows.
    fn maker(&self) -> Maker;

    /// What it finds.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason: not installed, no device, an answer that is none.
    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable>;
}

/// Every probe, the best one of each maker first.
#[must_use]
pub fn probes() -> Vec<Box<dyn Probe>> {
    vec![
        #[cfg(feature = "nvml")]
        Box::new(nvml::Nvml),
        Box::new(nvidia::NvidiaSmi),
        Box::new(amd::AmdSmi),
        Box::new(amd::RocmSmi),
        Box::new(sysfs::Amdgpu),
        Box::new(intel::XpuSmi),
        Box::new(apple::SystemProfiler),
        Box::new(sysfs::Others),
    ]
}

/// A device of this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// What the tool read.
    pub facts: Facts,
    /// The device to plan for, where enough is known.
    pub device: Reading<Device>,
    /// Whether its name is one of the catalogue: speeds are then the catalogue's.
    pub in_catalogue: bool,
}

/// What a probe had to say.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// The tool.
    pub name: &'static str,
    /// How many devices it found, or why none.
    pub found: Reading<usize>,
}

/// This machine.
#[derive(Debug, Clone, Serialize)]
pub struct Local {
    /// The schema's name.
    pub schema: &'static str,
    /// Its processor and memory.
    pub host: Host,
    /// Its devices, in the drivers' order.
    pub devices: Vec<Found>,
    /// What was asked.
    pub sources: Vec<Source>,
}

/// Schema name of [`Local`].
pub const LOCAL_SCHEMA: &str = "plimsoll.local/1";

/// What `system` has: each maker's devices by the first probe that knows them.
#[must_use]
pub fn local(system: &dyn System, probes: &[Box<dyn Probe>]) -> Local {
    let host = system.host();
    let mut devices = Vec::new();
    let mut sources = Vec::new();
    let mut answered: Vec<Maker> = Vec::new();
    for probe in probes {
        if answered.contains(&probe.maker()) {
            continue;
        }
        let found = match probe.probe(system) {
            Ok(found) if !found.is_empty() => {
                let count = found.len();
                answered.push(probe.maker());
                devices.extend(found.into_iter().take(MAX_DEVICES).map(|facts| identify::identify(facts, &host, system.os())));
                Reading::Known(count)
            }
            Ok(_) => Reading::unavailable("it lists no device"),
            Err(Unavailable(reason)) => Reading::Unavailable(reason),
        };
        sources.push(Source { name: probe.name(), found });
    }
    Local { schema: LOCAL_SCHEMA, host, devices, sources }
}

/// This machine, as it is now.
#[must_use]
pub fn this_machine() -> Local {
    local(&ThisMachine, &probes())
}

/// This machine's processor and memory alone.
#[must_use]
pub fn host() -> Host {
    ThisMachine.host()
}
