//! Where and with what a model runs.

use alloc::string::String;

use super::float;
use super::work::Family;
use crate::device::{Class, Device, Driver};

/// A program that runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Runtime {
    LlamaCpp,
    Llamafile,
    Ollama,
    IkLlamaCpp,
    Mlx,
    Vllm,
    Sglang,
    TensorRtLlm,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::LlamaCpp, Self::Llamafile, Self::Ollama, Self::IkLlamaCpp, Self::Mlx, Self::Vllm, Self::Sglang, Self::TensorRtLlm];

    /// The name, as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Llamafile => "llamafile",
            Self::Ollama => "ollama",
            Self::IkLlamaCpp => "ik_llama.cpp",
            Self::Mlx => "mlx",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TensorRtLlm => "tensorrt-llm",
        }
    }
}

/// A device as far as speed depends on it.
#[derive(Debug, Clone)]
pub struct Speeds {
    /// Its full name.
    pub name: String,
    /// Its architecture; of processors the instruction set.
    pub architecture: String,
    /// Its instruction set.
    pub isa: String,
    /// What it is sold as.
    pub class: Class,
    /// What drives it.
    pub driver: Driver,
    /// Bytes per second of memory.
    pub bandwidth: f64,
    /// Operations per second in single precision, outside units for matrices.
    pub single: f64,
    /// Operations per second in half precision (single precision where there is no faster unit).
    pub half: f64,
    /// In brain floating point.
    pub brain: f64,
    /// In 8-bit floating point, 0 without.
    pub float8: f64,
    /// In 4-bit floating point, 0 without.
    pub float4: f64,
    /// In 8-bit integers, 0 without.
    pub int8: f64,
    /// Bytes that a program can get.
    pub usable: f64,
    /// Bytes per second between the device and its host's memory.
    pub link: f64,
}

/// What the link to the host moves in one direction: the catalogue's figure where that link is PCIe, its generation's otherwise (a link
/// between devices says nothing of the host's), and memory itself where both share it.
fn link(device: &Device, bandwidth: f64) -> f64 {
    const PCIE4: f64 = 31.5e9;
    match &device.link {
        Some(link) if link.name.contains("unified") => bandwidth,
        Some(link) if link.name.starts_with("PCIe") => float(link.mb_per_s_per_direction) * 1e6,
        // Devices whose links carry 8-bit floating point are of PCIe's fifth generation.
        Some(_) if device.speed.is_some_and(|speed| speed.fp8_gflops > 0) => 2.0 * PCIE4,
        _ if device.driver == Driver::Cpu => bandwidth,
        _ => PCIE4,
    }
}

impl Speeds {
    /// The speeds of a device; `None` where its bandwidth is not known.
    #[must_use]
    pub fn of(device: &Device) -> Option<Self> {
        let speed = device.speed.filter(|speed| speed.memory_mb_per_s > 0)?;
        let giga = |value: u64| float(value) * 1e9;
        let single = giga(speed.fp32_gflops);
        let half = giga(speed.fp16_gflops).max(single);
        Some(Self {
            name: device.name.clone(),
            architecture: if device.driver == Driver::Cpu { device.isa.clone() } else { device.architecture.clone() },
            isa: device.isa.clone(),
            class: device.class,
            driver: device.driver,
            bandwidth: float(speed.memory_mb_per_s) * 1e6,
            single,
            half,
            brain: giga(speed.bf16_gflops).max(single),
            float8: giga(speed.fp8_gflops),
            float4: giga(speed.fp4_gflops),
            int8: giga(speed.int8_gops),
            usable: float(device.usable.bytes.get()),
            link: link(device, float(speed.memory_mb_per_s) * 1e6),
        })
    }

    /// A host of which nothing is known: two channels of DDR5 and a desktop's processor.
    #[must_use]
    pub fn usual_host() -> Self {
        Self {
            name: String::from("host"),
            architecture: String::from("avx2"),
            isa: String::from("avx2"),
            class: Class::Cpu,
            driver: Driver::Cpu,
            bandwidth: 83e9,
            single: 1.2e12,
            half: 1.2e12,
            brain: 1.2e12,
            float8: 0.0,
            float4: 0.0,
            int8: 2.4e12,
            usable: 64e9,
            link: 83e9,
        }
    }

    /// The peak that a prompt's matrices can reach: llama.cpp multiplies quantized weights in 8-bit integers on processors
    /// (ggml-cpu/quants.c, rows are quantized to `vec_dot_type`), CUDA and ROCm (ggml-cuda/mmq.cuh), and in the floating-point units
    /// elsewhere.
    #[must_use]
    pub(super) fn local_peak(&self, driver: Driver, family: Family) -> f64 {
        match driver {
            Driver::Cpu | Driver::Cuda | Driver::Rocm if family != Family::Half => self.int8.max(self.half),
            // cuBLAS is asked to sum in half precision (`ggml_cuda_op_mul_mat_cublas`), which desktop boards do at twice the rate that
            // data sheets give with single-precision sums: half of what they do in 8-bit integers.
            Driver::Cuda => self.half.max(self.int8 / 2.0),
            _ => self.half,
        }
    }

    /// The peak of a prompt's attention: units for matrices on CUDA (ggml-cuda/fattn-mma-f16.cuh) and Metal, ordinary ones with AMD's
    /// drivers (fattn-tile.cuh).
    #[must_use]
    pub(super) fn attention_peak(&self, driver: Driver) -> f64 {
        match driver {
            Driver::Rocm | Driver::Vulkan => self.single,
            _ => self.local_peak(driver, Family::Half),
        }
    }

    /// The peak of a server's matrices, in the weights' own precision.
    #[must_use]
    pub(super) fn server_peak(&self, family: Family) -> f64 {
        match family {
            Family::Float4 if self.float4 > 0.0 => self.float4,
            Family::Float4 | Family::Float8 if self.float8 > 0.0 => self.float8,
            _ => self.brain.max(1.0),
        }
    }
}

/// What stays on the host of a model that is divided between a device and its host.
#[derive(Debug, Clone)]
pub struct OnHost {
    /// The host's processor.
    pub host: Speeds,
    /// The share of the routed experts that is there.
    pub experts: f64,
    /// The share of everything else that is there.
    pub rest: f64,
    /// The share of the caches that is there: attention over it is computed there.
    pub cache: f64,
    /// Layers that have some there: each costs a hop.
    pub layers: f64,
}

/// How a server divides a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parallel {
    /// Devices that share each attention layer.
    pub tensor: f64,
    /// Copies of attention, each with its own requests.
    pub data: f64,
    /// Devices that each hold whole experts; 1 shares every expert.
    pub expert: f64,
    /// Devices that share each expert.
    pub expert_tensor: f64,
}

impl Parallel {
    /// One device.
    pub const ONE: Self = Self { tensor: 1.0, data: 1.0, expert: 1.0, expert_tensor: 1.0 };
}

/// When a program was built: kernels of llama.cpp became twice as fast within two years, backend by backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// In 2024 or before.
    Before2025,
    /// In 2025.
    Of2025,
    /// Later, or not said.
    Recent,
}

impl Era {
    /// The era of a year.
    #[must_use]
    pub const fn of_year(year: u32) -> Self {
        match year {
            ..=2024 => Self::Before2025,
            2025 => Self::Of2025,
            _ => Self::Recent,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Before2025 => "2024",
            Self::Of2025 => "2025",
            Self::Recent => "recent",
        }
    }
}

/// Where and with what a model runs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub runtime: Runtime,
    /// What drives the device; a device may run on another driver than its usual one.
    pub driver: Driver,
    /// The device.
    pub device: Speeds,
    /// How many of them hold the model's layers one after the other.
    pub devices: f64,
    /// When the program was built.
    pub era: Era,
    /// Whether flash attention was switched off.
    pub without_flash: bool,
    /// What stays on the host.
    pub on_host: Option<OnHost>,
}

impl Setup {
    /// One device with everything at its default.
    #[must_use]
    pub fn new(runtime: Runtime, device: Speeds) -> Self {
        Self { runtime, driver: device.driver, device, devices: 1.0, era: Era::Recent, without_flash: false, on_host: None }
    }
}

pub(super) const fn driver_name(driver: Driver) -> &'static str {
    match driver {
        Driver::Cuda => "cuda",
        Driver::Metal => "metal",
        Driver::Rocm => "rocm",
        Driver::Vulkan => "vulkan",
        Driver::Cpu => "cpu",
    }
}

pub(super) const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Consumer => "consumer",
        Class::Prosumer => "prosumer",
        Class::Workstation => "workstation",
        Class::Laptop => "laptop",
        Class::Datacenter => "datacenter",
        Class::Jetson => "jetson",
        Class::Soc => "soc",
        Class::Cpu => "cpu",
        Class::Custom => "custom",
    }
}
