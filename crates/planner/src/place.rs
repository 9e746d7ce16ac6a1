//! Where a model goes: devices by name and number, and the engine's switches for what goes to which.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, Location, SplitMode, TensorOverride};
use plimsoll_math::device::Device;
use plimsoll_math::engine::llama_cpp::layout::{Layout, MAX_DEVICES};
use plimsoll_math::error::MathError;
use plimsoll_math::units::Bytes;

use crate::error::PlanError;
use crate::request::Options;
use crate::size::quoted;

fn named(text: &str) -> Result<(u32, Device), PlanError> {
    Device::counted(text).map_err(|error| match error {
        MathError::Invalid { field, found, expected } => PlanError::Request { field, found, expected },
        other => PlanError::Math(other),
    })
}

impl Options {
    /// The devices asked for, and what had to be assumed.
    ///
    /// # Errors
    /// [`PlanError`] when none is named, or none or several answer to a name.
    pub fn devices(&self) -> Result<(Vec<Device>, Option<String>), PlanError> {
        let (mut devices, note) = self.plain_devices()?;
        if self.displays == Some(true)
            && let Some(first) = devices.first_mut()
        {
            *first = first.clone().driving_displays();
        }
        Ok((devices, note))
    }

    /// A device by name, the described ones first.
    fn lookup(&self, text: &str) -> Result<(u32, Device), PlanError> {
        let described = |name: &str| self.custom_devices.iter().flatten().find(|device| device.name.eq_ignore_ascii_case(name));
        if let Some(device) = described(text) {
            return Ok((1, device.clone()));
        }
        if let Ok((count, name)) = Device::count_of(text)
            && let Some(device) = described(name)
        {
            return Ok((count, device.clone()));
        }
        named(text)
    }

    fn plain_devices(&self) -> Result<(Vec<Device>, Option<String>), PlanError> {
        let memory = match self.memory {
            None => None,
            Some(0) => return Err(PlanError::request("memory", "0", "1 byte or more")),
            Some(bytes) => Some(Bytes::new(bytes)?),
        };
        let names: Vec<&String> = self.device.iter().chain(self.devices.iter().flatten()).collect();
        if names.is_empty() {
            let Some(memory) = memory else {
                return Err(PlanError::request("device", "nothing", "a device such as \"RTX 4090\" or cpu, or a memory size"));
            };
            let backend = Backend::Cuda { compute_capability: 890 };
            let note = "no device was named: a CUDA GPU of compute capability 8.9 is assumed".to_string();
            return Ok((vec![Device::with_memory(memory, backend)], Some(note)));
        }
        let mut devices = Vec::new();
        for text in &names {
            if text.eq_ignore_ascii_case("cpu") {
                if names.len() > 1 {
                    return Err(PlanError::request("device", "cpu beside other devices", "cpu alone, or devices alone"));
                }
                let Some(memory) = memory else {
                    return Err(PlanError::request("memory", "nothing", "the size of the host's memory, beside device cpu"));
                };
                return Ok((vec![Device::cpu(memory, "as asked")], None));
            }
            let (count, device) = self.lookup(text)?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let device = memory.map_or_else(|| device.clone(), |memory| device.clone().resized(memory));
            if count == 0 || devices.len().saturating_add(count) > MAX_DEVICES {
                return Err(PlanError::request("device", quoted(text), format!("1 to {MAX_DEVICES} devices in all")));
            }
            devices.extend(core::iter::repeat_n(device, count));
        }
        Ok((devices, None))
    }

    /// The deployment on `devices` with the switches for what goes where.
    pub(crate) fn placed(&self, context: ContextRequest, devices: &[Device]) -> Result<Deployment, PlanError> {
        let mut deployment = Deployment::new(context, Backend::Cpu);
        deployment.devices = devices.iter().flat_map(Device::accelerators).collect();
        deployment.gpu_layers = self.gpu_layers;
        deployment.split_mode = self.split_mode.unwrap_or_default();
        deployment.tensor_split = self.tensor_split.clone().unwrap_or_default();
        deployment.main_gpu = self.main_gpu.unwrap_or(0);
        deployment.cpu_moe = self.cpu_moe.unwrap_or(false);
        deployment.n_cpu_moe = self.n_cpu_moe.unwrap_or(0);
        deployment.kv_offload = self.kv_offload.unwrap_or(true);
        deployment.op_offload = self.op_offload.unwrap_or(true);
        let layout = Layout::new(0, &deployment)?;
        for text in self.override_tensor.iter().flatten() {
            for part in text.split(',') {
                deployment.tensor_overrides.push(tensor_override(part, &layout)?);
            }
        }
        if deployment.tensor_split.len() > deployment.devices.len() {
            let found = format!("{} shares for {} devices", deployment.tensor_split.len(), deployment.devices.len());
            return Err(PlanError::request("tensor_split", found, "at most one share a device"));
        }
        Ok(deployment)
    }

    /// The names of the options about places that are set: engines without such switches refuse them.
    #[must_use]
    pub fn places_set(&self) -> Vec<&'static str> {
        let set = [
            ("gpu_layers", self.gpu_layers.is_some()),
            ("split_mode", self.split_mode.is_some()),
            ("tensor_split", self.tensor_split.is_some()),
            ("main_gpu", self.main_gpu.is_some()),
            ("cpu_moe", self.cpu_moe == Some(true)),
            ("n_cpu_moe", self.n_cpu_moe.is_some()),
            ("override_tensor", self.override_tensor.is_some()),
            ("kv_offload", self.kv_offload == Some(false)),
            ("op_offload", self.op_offload == Some(false)),
            ("draft_mtp", self.draft_mtp.is_some()),
            ("embeddings", self.embeddings == Some(true)),
            ("cache_ram", self.cache_ram.is_some()),
            ("context_checkpoints", self.context_checkpoints.is_some()),
            ("threads", self.threads.is_some()),
            ("like_engine", self.like_engine == Some(true)),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
    }
}

/// `PATTERN=DEVICE`, the device by the engine's own name: `CPU`, `CUDA0`, `CUDA1`, `MTL0`.
fn tensor_override(text: &str, layout: &Layout) -> Result<TensorOverride, PlanError> {
    let (pattern, device) = text.split_once('=').unwrap_or((text, ""));
    match layout.places().find(|place| layout.engine_name(*place) == device) {
        Some(place) => Ok(TensorOverride { pattern: pattern.to_string(), place }),
        None => {
            let names: Vec<String> = layout.places().map(|place| layout.engine_name(place)).collect();
            Err(PlanError::request(
                "override_tensor",
                quoted(text),
                format!("PATTERN=DEVICE, DEVICE one of {}", names.join(", ")),
            ))
        }
    }
}

/// What of the layers is not on devices although there are some.
#[must_use]
pub(crate) fn stays_on_host(layout: &Layout, deployment: &Deployment) -> bool {
    !layout.devices().is_empty()
        && (layout.layers().contains(&Location::Host)
            || layout.output() == Location::Host
            || deployment.cpu_moe
            || deployment.n_cpu_moe > 0
            || !deployment.kv_offload
            || deployment.tensor_overrides.iter().any(|one| one.place == Location::Host))
}

/// The overrides as the engine takes them: `PATTERN=DEVICE`.
pub(crate) fn overrides(deployment: &Deployment) -> Vec<String> {
    let Ok(layout) = Layout::new(0, deployment) else { return Vec::new() };
    let text = |one: &TensorOverride| format!("{}={}", one.pattern, layout.engine_name(one.place));
    deployment.tensor_overrides.iter().map(text).collect()
}

/// The engine's arguments for where things go.
pub(crate) fn arguments(deployment: &Deployment) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut option = |words: &[&str]| out.extend(words.iter().map(|word| (*word).to_string()));
    if deployment.devices.is_empty() {
        option(&["-dev", "none"]);
        return out;
    }
    match deployment.gpu_layers {
        None => option(&["-ngl", "all"]),
        Some(layers) => option(&["-ngl", &layers.to_string()]),
    }
    match deployment.split_mode {
        SplitMode::Row => option(&["-sm", "row"]),
        SplitMode::None => option(&["-sm", "none", "-mg", &deployment.main_gpu.to_string()]),
        SplitMode::Tensor => option(&["-sm", "tensor"]),
        _ => {}
    }
    if !deployment.tensor_split.is_empty() {
        let shares: Vec<String> = deployment.tensor_split.iter().map(|share| share.get().to_string()).collect();
        option(&["-ts", &shares.join(",")]);
    }
    let overrides = overrides(deployment);
    if !overrides.is_empty() {
        option(&["-ot", &overrides.join(",")]);
    }
    if deployment.cpu_moe {
        option(&["-cmoe"]);
    }
    if deployment.n_cpu_moe > 0 {
        option(&["-ncmoe", &deployment.n_cpu_moe.to_string()]);
    }
    if !deployment.kv_offload {
        option(&["-nkvo"]);
    }
    if !deployment.op_offload {
        option(&["--no-op-offload"]);
    }
    out
}
