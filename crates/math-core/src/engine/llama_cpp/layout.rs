//! Where everything goes: layers, the output, caches and single tensors, on devices and on the host.
//!
//! The rules are `llama-model.cpp:load_tensors` (layers and output), `llama-kv-cache.cpp:llama_kv_cache` and
//! `llama-memory-recurrent.cpp:llama_memory_recurrent` (caches), `llama-model-loader.cpp:create_tensor` (overrides) and
//! `llama-context.cpp:llama_context` (pipeline). The input layer is always the host's.
//!
//! ```
//! use plimsoll_math::deployment::{Accelerator, Backend, ContextRequest, Deployment, Location};
//! use plimsoll_math::engine::llama_cpp::layout::Layout;
//!
//! let card = Accelerator { backend: Backend::Cuda { compute_capability: 890 }, free: 24 << 30 };
//! let mut deployment = Deployment::new(ContextRequest::ModelMaximum, card.backend);
//! deployment.devices = vec![card, card];
//! let layout = Layout::new(32, &deployment).unwrap();
//! assert_eq!(layout.layer(16), Location::Device(0));
//! assert_eq!(layout.layer(17), Location::Device(1));
//! assert_eq!(layout.pipeline_copies(), 4);
//! ```

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::pattern::Pattern;
use crate::deployment::{Accelerator, Backend, Deployment, Location, SplitMode};
use crate::error::MathError;
use crate::spec::ModelSpec;

/// Devices that a build can be compiled for (`llama.h:llama_max_devices`).
pub const MAX_DEVICES: usize = 16;

/// Copies of graph inputs, so that one micro-batch can be prepared while others are under way
/// (`ggml-backend.cpp:GGML_SCHED_MAX_COPIES`).
pub const PIPELINE_COPIES: u64 = 4;

/// Names of routed experts' matrices, as `--cpu-moe` and `--n-cpu-moe` look for them (`common.h:LLM_FFN_EXPS_REGEX`).
const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Layout {
    devices: Vec<Accelerator>,
    used: Vec<u8>,
    layers: Vec<Location>,
    output: Location,
    kv_offload: bool,
    op_offload: bool,
    pipelined: bool,
    projected: bool,
    overrides: Vec<(Pattern, Location)>,
}

impl Layout {
    /// The layout of a model with this many layers, those of multi-token prediction included.
    ///
    /// # Errors
    /// [`MathError::Refused`] where the engine does not start, [`MathError::Unsupported`] for splits that are not followed,
    /// [`MathError::Invalid`] for a pattern or a place that cannot be.
    pub fn new(n_layers: u32, deployment: &Deployment) -> Result<Self, MathError> {
        let devices = deployment.devices.clone();
        if devices.len() > MAX_DEVICES || devices.iter().any(|device| device.backend == Backend::Cpu) {
            return Err(MathError::Invalid {
                field: "devices".to_string(),
                found: format!("{} devices", devices.len()),
                expected: format!("at most {MAX_DEVICES}, none of them the processor"),
            });
        }
        let all = (0_u8..).take(devices.len());
        let used: Vec<u8> = match deployment.split_mode {
            SplitMode::Layer => all.collect(),
            SplitMode::None if devices.is_empty() => Vec::new(),
            SplitMode::None if usize::from(deployment.main_gpu) < devices.len() => Vec::from([deployment.main_gpu]),
            SplitMode::None => {
                return Err(MathError::Refused {
                    engine: "llama.cpp".to_string(),
                    reason: format!("invalid value for main_gpu: {} (available devices: {})", deployment.main_gpu, devices.len()),
                });
            }
            SplitMode::Row | SplitMode::Tensor if devices.is_empty() => Vec::new(),
            // Neither CUDA nor Metal has buffers of divided matrices any more, and the loader asks for them before it looks
            // where layers go (`llama-model.cpp:make_gpu_buft_list`): the same for one device and for none of its layers.
            SplitMode::Row => {
                let device = engine_name(&devices, Location::Device(0));
                return Err(MathError::Refused {
                    engine: "llama.cpp".to_string(),
                    reason: format!("device {device} does not support split buffers (--split-mode row)"),
                });
            }
            // One device holds all parts.
            SplitMode::Tensor if devices.len() == 1 => all.collect(),
            SplitMode::Tensor => return Err(not_followed("tensors split among devices (--split-mode tensor)")),
        };
        let mut overrides = Vec::new();
        for wanted in &deployment.tensor_overrides {
            if let Location::Device(device) = wanted.place
                && usize::from(device) >= devices.len()
            {
                return Err(MathError::Invalid {
                    field: "override tensor".to_string(),
                    found: format!("device {device}"),
                    expected: format!("the host or one of {} devices", devices.len()),
                });
            }
            overrides.push((Pattern::new(&wanted.pattern)?, wanted.place));
        }
        if deployment.cpu_moe {
            overrides.push((Pattern::new(EXPERTS)?, Location::Host));
        }
        for layer in 0..deployment.n_cpu_moe.min(u64::from(n_layers)) {
            overrides.push((Pattern::new(&format!(r"blk\.{layer}{EXPERTS}"))?, Location::Host));
        }
        let with_output = u64::from(n_layers).saturating_add(1);
        let asked = deployment.gpu_layers.unwrap_or(with_output);
        let divided = divide(&used, &devices, deployment, with_output, asked);
        let (output, layers) = match divided.split_last() {
            Some((output, layers)) => (*output, layers.to_vec()),
            None => (Location::Host, Vec::new()),
        };
        let has_overrides = !overrides.is_empty() || deployment.n_cpu_moe > 0;
        // Devices must do without waiting for the host; both kinds that we know in numbers can.
        let pipelined = used.len() > 1
            && asked > u64::from(n_layers)
            && deployment.split_mode == SplitMode::Layer
            && deployment.kv_offload
            && !has_overrides;
        Ok(Self {
            devices,
            used,
            layers,
            output,
            kv_offload: deployment.kv_offload,
            op_offload: deployment.op_offload,
            pipelined,
            projected: false,
            overrides,
        })
    }

    /// The layout of a model.
    ///
    /// # Errors
    /// As [`Layout::new`], and [`MathError::Overflow`] when there are more layers than a file can number.
    pub fn of(spec: &ModelSpec, deployment: &Deployment) -> Result<Self, MathError> {
        // Encoder-decoder files number their blocks by the encoder (`block_count`).
        let trunk = spec.encoder.as_ref().map_or(spec.layers.len(), |encoder| encoder.layers.len());
        let layers = u32::try_from(trunk.saturating_add(spec.mtp.len())).ok();
        let layers = layers.and_then(|layers| layers.checked_add(spec.operations.n_missing_layers));
        Self::new(layers.ok_or(MathError::Overflow { quantity: "layers" })?, deployment)
    }

    /// The host and every device of the deployment, devices first.
    pub fn places(&self) -> impl Iterator<Item = Location> + use<> {
        (0_u8..).take(self.devices.len()).map(Location::Device).chain([Location::Host])
    }

    /// The layout of the layers behind the first `count`, those of multi-token prediction.
    #[must_use]
    pub fn behind(&self, count: usize) -> Self {
        Self { layers: self.layers.get(count..).unwrap_or_default().to_vec(), ..self.clone() }
    }

    /// All devices of the deployment, those that hold nothing included. [`Location::Device`] counts them.
    #[must_use]
    pub fn devices(&self) -> &[Accelerator] {
        &self.devices
    }

    /// The devices that the engine works with, in its order: all of them, or the main one where nothing is split. It makes
    /// a backend for each, whether or not a layer goes there, and the processor's after them.
    #[must_use]
    pub fn used(&self) -> &[u8] {
        &self.used
    }

    /// What drives a place.
    #[must_use]
    pub fn backend(&self, place: Location) -> Backend {
        match place {
            Location::Host => Backend::Cpu,
            Location::Device(device) => self.devices.get(usize::from(device)).map_or(Backend::Cpu, |device| device.backend),
        }
    }

    /// The engine's name of a place's own memory: `CUDA0`, `MTL0`, `CPU`.
    #[must_use]
    pub fn engine_name(&self, place: Location) -> String {
        engine_name(&self.devices, place)
    }

    /// Where a layer's weights and work go, layers of multi-token prediction counted after the trunk's.
    #[must_use]
    pub fn layer(&self, layer: u32) -> Location {
        usize::try_from(layer).ok().and_then(|layer| self.layers.get(layer)).copied().unwrap_or(Location::Host)
    }

    /// Every layer's place.
    #[must_use]
    pub fn layers(&self) -> &[Location] {
        &self.layers
    }

    /// Where the last norm and the output matrix go.
    #[must_use]
    pub const fn output(&self) -> Location {
        self.output
    }

    /// Where the embeddings are looked up.
    #[must_use]
    pub const fn input(&self) -> Location {
        Location::Host
    }

    /// Where a layer's cache or recurrent state lies.
    #[must_use]
    pub fn cache(&self, layer: u32) -> Location {
        if self.kv_offload { self.layer(layer) } else { Location::Host }
    }

    /// Where the pattern of an override sends a tensor of this name; `None` where none matches.
    #[must_use]
    pub fn overridden(&self, name: &str) -> Option<Location> {
        self.overrides.iter().find(|(pattern, _)| pattern.is_in(name)).map(|(_, place)| *place)
    }

    /// The device whose pinned host memory the engine takes for inputs and for what stays on the host: the first that has
    /// such memory.
    #[must_use]
    pub fn pinning_device(&self) -> Option<u8> {
        self.used.iter().copied().find(|&device| has_pinned_memory(self.backend(Location::Device(device))))
    }

    /// Copies of every graph input and of what crosses from device to device.
    #[must_use]
    pub const fn pipeline_copies(&self) -> u64 {
        if self.pipelined { PIPELINE_COPIES } else { 1 }
    }

    /// The same layout as the engine measures it without allocating: it forgets which norms were pinned to their layer's
    /// device before it splits the graph, and so projects more for the later devices than it then takes
    /// (`llama-context.cpp:graph_reserve`, `ggml-backend.cpp:ggml_backend_sched_reserve_size`).
    #[must_use]
    pub fn as_projected(self) -> Self {
        Self { projected: true, ..self }
    }

    /// Whether this is the engine's projection and not what it allocates.
    #[must_use]
    pub const fn is_projected(&self) -> bool {
        self.projected
    }

    /// Whether products of large batches are done on a device although the weights are on the host.
    #[must_use]
    pub const fn offloads_operations(&self) -> bool {
        self.op_offload && !self.used.is_empty()
    }

    /// Whether caches lie where their layers are.
    #[must_use]
    pub const fn offloads_caches(&self) -> bool {
        self.kv_offload
    }

    /// The one place that does all the work: the host without a device, or the one device that holds every layer, the output
    /// and all caches. `None` for everything else.
    #[must_use]
    pub fn only_place(&self) -> Option<Location> {
        let place = match self.used.as_slice() {
            [] => Location::Host,
            [device] => Location::Device(*device),
            _ => return None,
        };
        let whole = self.output == place && self.layers.iter().all(|layer| *layer == place);
        let together = place == Location::Host || (self.kv_offload && self.overrides.is_empty());
        (whole && together).then_some(place)
    }
}

/// The engine's name of a place: devices of one kind are counted together.
fn engine_name(devices: &[Accelerator], place: Location) -> String {
    let kind = |backend: Backend| match backend {
        Backend::Cuda { .. } => Some("CUDA"),
        Backend::Metal => Some("MTL"),
        Backend::Cpu => None,
    };
    let own = match place {
        Location::Host => None,
        Location::Device(device) => devices.get(usize::from(device)).and_then(|own| Some((device, kind(own.backend)?))),
    };
    let Some((device, prefix)) = own else { return "CPU".to_string() };
    let alike = devices.iter().take(usize::from(device)).filter(|other| kind(other.backend) == Some(prefix));
    format!("{prefix}{}", alike.count())
}

fn not_followed(mechanism: &str) -> MathError {
    MathError::Unsupported { engine: "llama.cpp".to_string(), mechanism: mechanism.to_string() }
}

/// Whether a backend offers pinned host memory (`ggml_backend_dev_host_buffer_type`).
const fn has_pinned_memory(backend: Backend) -> bool {
    match backend {
        Backend::Cuda { .. } => true,
        Backend::Cpu | Backend::Metal => false,
    }
}

/// A number in the engine's single precision, rounded to nearest.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "the engine divides layers in single precision")]
const fn single(value: u64) -> f32 {
    value as f32
}

/// The place of every layer and, last, of the output: the last `asked` go to devices, each device taking the part that its
/// share comes to, by single-precision arithmetic (`llama-model.cpp:load_tensors`, `get_layer_buft_list`).
fn divide(used: &[u8], devices: &[Accelerator], deployment: &Deployment, count: u64, asked: u64) -> Vec<Location> {
    let given: Vec<f32> = deployment.tensor_split.iter().map(|share| share.get()).take(used.len()).collect();
    let shares: Vec<f32> = if given.iter().all(|share| *share == 0.0) {
        let free = |device: &u8| devices.get(usize::from(*device)).map_or(0, |device| device.free);
        // A device that reports nothing counts like the host, the same for all of them.
        let unknown = used.iter().all(|device| free(device) == 0);
        used.iter().map(|device| if unknown { 1.0 } else { single(free(device)) }).collect()
    } else {
        given
    };
    let mut bounds = Vec::with_capacity(used.len());
    let mut sum = 0.0_f32;
    for position in 0..used.len() {
        sum += shares.get(position).copied().unwrap_or(0.0);
        bounds.push(sum);
    }
    let on_devices = if used.is_empty() { 0 } else { asked.min(count) };
    let first = count.saturating_sub(on_devices);
    (0..count)
        .map(|layer| {
            if layer < first {
                return Location::Host;
            }
            let part = single(layer.saturating_sub(first)) / single(on_devices);
            let found = used.iter().zip(&bounds).find(|(_, bound)| **bound / sum > part);
            found.map(|(device, _)| *device).or_else(|| used.last().copied()).map_or(Location::Host, Location::Device)
        })
        .collect()
}
