//! Devices as data: how much memory they have, how much of it a program can get, how fast they are, and what drives them.
//!
//! The table is generated from `fixtures/devices/` (`cargo xtask devices`); every figure says on what grounds it stands. What is
//! not in it is described by a memory size ([`Device::with_memory`]) or in full.

mod names;
mod probed;
mod row;
mod table;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use row::{Class, Vendor};

use crate::deployment::{Accelerator, Backend};
use crate::error::MathError;
use crate::units::Bytes;

/// What kind of processor a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DeviceKind {
    /// A graphics processor.
    Gpu,
    /// The host's processor.
    Cpu,
}

/// The interface through which engines drive a device, unless they are told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Driver {
    /// NVIDIA's.
    Cuda,
    /// Apple's.
    Metal,
    /// AMD's.
    Rocm,
    /// Khronos', for the rest.
    Vulkan,
    /// None: the host's processor.
    Cpu,
}

/// On what grounds a figure stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Origin {
    /// Read from a running device.
    Measured,
    /// What its maker states.
    Datasheet,
    /// A rule stands in for a figure.
    #[default]
    Estimated,
    /// The user's own.
    Asked,
}

/// A figure with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sourced {
    /// Bytes.
    pub bytes: Bytes,
    /// On what grounds it stands.
    #[cfg_attr(feature = "serde", serde(default))]
    pub kind: Origin,
    /// Where the figure comes from, in words.
    pub origin: String,
}

impl Sourced {
    fn because(kind: Origin, origin: &str) -> Self {
        Self { bytes: Bytes::ZERO, kind, origin: origin.to_owned() }
    }

    fn asked(bytes: Bytes) -> Self {
        Self { bytes, kind: Origin::Asked, origin: "as asked".to_owned() }
    }
}

/// Peak speeds: dense, without sparsity; 0 where the device has no such unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Speed {
    /// On what grounds the figures stand.
    pub origin: Origin,
    /// Memory bandwidth, 10^6 bytes per second.
    pub memory_mb_per_s: u64,
    /// Single precision, 10^9 operations per second.
    pub fp32_gflops: u64,
    /// Half precision, accumulated in single precision.
    pub fp16_gflops: u64,
    /// Brain floating point.
    pub bf16_gflops: u64,
    /// 8-bit floating point.
    pub fp8_gflops: u64,
    /// 8-bit integers.
    pub int8_gops: u64,
    /// 4-bit floating point.
    pub fp4_gflops: u64,
}

/// What joins a device to others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Link {
    /// Its name, such as `PCIe4x16` or `NVLink4`.
    pub name: String,
    /// 10^6 bytes per second in one direction; 0 where memory is shared instead.
    pub mb_per_s_per_direction: u64,
}

/// A device to plan for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Device {
    /// The full name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What drives it.
    pub driver: Driver,
    /// Whose memory rules an engine follows there.
    pub backend: Backend,
    /// All of its memory.
    pub total: Sourced,
    /// What one program can get when nothing else runs on it.
    pub usable: Sourced,
    /// Whether it shares the host's memory.
    pub unified: bool,
    /// Who makes it.
    pub vendor: Vendor,
    /// What it is sold as.
    pub class: Class,
    /// Its architecture's name, such as `Ada`; empty when unknown.
    pub architecture: String,
    /// Its instruction set, such as `sm_89` or `gfx1151`; empty when unknown.
    pub isa: String,
    /// How fast it is at best; `None` when unknown.
    pub speed: Option<Speed>,
    /// What joins it to others.
    pub link: Option<Link>,
    /// The power it may draw, watts.
    pub tdp_w: Option<u32>,
}

/// What a desktop with a browser was seen to hold on the GPU that draws it; taken off `usable` when asked.
pub const DISPLAY_RESERVE: u64 = 1 << 30;

impl Device {
    /// Every device of the table.
    ///
    /// # Errors
    /// [`MathError::Overflow`], which would be a fault of the table.
    pub fn all() -> Result<Vec<Self>, MathError> {
        table::DEVICES.iter().map(|row| row.device(None)).collect()
    }

    /// Short names a device also answers to.
    #[must_use]
    pub fn aliases(&self) -> &'static [&'static str] {
        table::DEVICES.iter().find(|row| row.name == self.name).map_or(&[], |row| row.aliases)
    }

    /// The sizes of memory, GiB, that the device is sold with where there are several.
    #[must_use]
    pub fn sold_sizes(&self) -> &'static [u32] {
        table::DEVICES.iter().find(|row| row.name == self.name).map_or(&[], |row| row.sizes)
    }

    /// The host's processor with `memory` to work in.
    #[must_use]
    pub fn cpu(memory: Bytes, origin: &str) -> Self {
        let figure = Sourced { bytes: memory, kind: Origin::Asked, origin: origin.to_owned() };
        Self { unified: true, kind: DeviceKind::Cpu, driver: Driver::Cpu, ..Self::bare("cpu", figure, Backend::Cpu) }
    }

    /// A GPU of which only the memory is known.
    #[must_use]
    pub fn with_memory(memory: Bytes, backend: Backend) -> Self {
        Self::bare("GPU", Sourced::asked(memory), backend)
    }

    fn bare(name: &str, memory: Sourced, backend: Backend) -> Self {
        let driver = match backend {
            Backend::Cpu => Driver::Cpu,
            Backend::Cuda { .. } => Driver::Cuda,
            Backend::Metal => Driver::Metal,
        };
        Self {
            name: name.to_owned(),
            kind: DeviceKind::Gpu,
            driver,
            backend,
            total: memory.clone(),
            usable: memory,
            unified: matches!(backend, Backend::Metal),
            vendor: Vendor::Custom,
            class: Class::Custom,
            architecture: String::new(),
            isa: String::new(),
            speed: None,
            link: None,
            tdp_w: None,
        }
    }

    /// The device as a deployment names it: nothing for the processor.
    #[must_use]
    pub fn accelerators(&self) -> Vec<Accelerator> {
        match self.backend {
            Backend::Cpu => Vec::new(),
            backend => Vec::from([Accelerator { backend, free: self.usable.bytes.get() }]),
        }
    }

    /// The same device with another amount of memory.
    #[must_use]
    pub fn resized(mut self, memory: Bytes) -> Self {
        self.total = Sourced::asked(memory);
        self.usable = Sourced::asked(memory);
        self
    }

    /// The same device while it draws the desktop: [`DISPLAY_RESERVE`] less is usable. Unified memory and processors are left as
    /// they are: what the desktop takes there is the host's.
    #[must_use]
    pub fn driving_displays(mut self) -> Self {
        if !self.unified
            && let Some(left) = Bytes::new(DISPLAY_RESERVE).ok().and_then(|reserve| self.usable.bytes.minus(reserve))
        {
            self.usable.bytes = left;
            self.usable.kind = Origin::Estimated;
            self.usable.origin.push_str(", less 1 GiB for the desktop it draws");
        }
        self
    }

    /// The device that `text` names, however it is spelled: `RTX 4090`, `rtx-4090`, `4090`,
    /// `NVIDIA GeForce RTX 4090` and `cuda-cc890` are one; `m3 max 64GB` is the one sold with that much memory. The processor has no
    /// figure of its own: see [`Device::cpu`].
    ///
    /// # Errors
    /// [`MathError::Invalid`] listing the candidates when more than one device answers to it, the nearest when none does.
    ///
    /// ```
    /// use plimsoll_math::device::Device;
    /// assert_eq!(Device::named("rtx-4090").unwrap().name, "NVIDIA GeForce RTX 4090");
    /// assert!(Device::named("A100").unwrap_err().to_string().contains("NVIDIA A100 80GB SXM"));
    /// ```
    pub fn named(text: &str) -> Result<Self, MathError> {
        let found = names::find(text)?;
        found.row.device(found.size_gib)
    }

    /// How many of which device: `2x h100-sxm`, `RTX 3090 x4`, or a name alone.
    ///
    /// # Errors
    /// As [`Device::named`], and for a count that is 0 or beyond reason.
    ///
    /// ```
    /// use plimsoll_math::device::Device;
    /// let (count, device) = Device::counted("2x h100-sxm").unwrap();
    /// assert_eq!((count, device.name.as_str()), (2, "NVIDIA H100 SXM"));
    /// ```
    pub fn counted(text: &str) -> Result<(u32, Self), MathError> {
        let (count, name) = names::counted(text)?;
        Ok((count, Self::named(name)?))
    }

    /// The backend's name: `cuda-cc890`, `metal`, `rocm`, `vulkan`, `cpu`.
    #[must_use]
    pub fn backend_name(&self) -> String {
        match self.driver {
            Driver::Rocm => "rocm".to_string(),
            Driver::Vulkan => "vulkan".to_string(),
            Driver::Cuda | Driver::Metal | Driver::Cpu => backend_name(self.backend),
        }
    }
}

/// The backend's name, as engines and the truth tables spell it: `cuda-cc890`, `metal`, `cpu`.
#[must_use]
pub fn backend_name(backend: Backend) -> String {
    match backend {
        Backend::Cpu => "cpu".to_string(),
        Backend::Cuda { compute_capability } => format!("cuda-cc{compute_capability}"),
        Backend::Metal => "metal".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn usable(name: &str, mib: u64, kind: Origin) {
        let device = Device::named(name).unwrap();
        assert_eq!((device.usable.bytes.get() >> 20, device.usable.kind), (mib, kind), "{name}: {}", device.usable.origin);
    }

    #[test]
    fn all_rows_are_devices() {
        assert_eq!(Device::all().unwrap().len(), 233);
    }

    /// Totals that llama.cpp printed on machines of these kinds.
    #[test]
    fn usable_memory_is_what_the_runtime_reports() {
        usable("RTX 5090", 32_109, Origin::Measured);
        usable("L40S", 45_467, Origin::Measured);
        usable("V100 SXM2 32GB", 32_494, Origin::Measured);
        usable("H200", 143_156, Origin::Measured);
        usable("RTX 4090", 24_080, Origin::Measured);
        usable("strix halo", 126_976, Origin::Measured);
        usable("gb10", 124_610, Origin::Measured);
        usable("M1 Pro 16c 32GB", 21_845, Origin::Estimated);
        usable("M3 Max 96GB", 73_728, Origin::Estimated);
    }

    #[test]
    fn usable_memory_is_part_of_the_total() {
        for device in Device::all().unwrap() {
            assert!(device.usable.bytes <= device.total.bytes, "{}", device.name);
            assert!(device.usable.bytes.get() * 2 >= device.total.bytes.get(), "{}", device.name);
            assert!(device.total.bytes.get() > 0, "{}", device.name);
            assert!(!device.usable.origin.is_empty(), "{}", device.name);
            let speed = device.speed.unwrap();
            assert!(speed.memory_mb_per_s > 0 && speed.fp32_gflops > 0, "{}", device.name);
        }
    }

    #[test]
    fn the_desktop_takes_its_share_of_a_board_and_not_of_unified_memory() {
        let board = Device::named("4090").unwrap();
        let drawing = board.clone().driving_displays();
        assert_eq!(board.usable.bytes.get() - drawing.usable.bytes.get(), DISPLAY_RESERVE);
        let mac = Device::named("m3-max-40c").unwrap();
        assert_eq!(mac.clone().driving_displays(), mac);
    }
}
