//! A row of the table and what it means: how much memory a program can get there, and on what grounds.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::{Device, DeviceKind, Driver, Link, Origin, Sourced, Speed};
use crate::deployment::Backend;
use crate::error::MathError;
use crate::units::{Bytes, mul};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Who makes a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Vendor {
    Nvidia,
    Amd,
    Apple,
    Intel,
    Ampere,
    Broadcom,
    /// Described by the user.
    Custom,
}

/// What a device is sold as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Class {
    Consumer,
    Prosumer,
    Workstation,
    Laptop,
    Datacenter,
    Jetson,
    Soc,
    Cpu,
    /// Described by the user.
    Custom,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    pub(super) vendor: Vendor,
    pub(super) class: Class,
    arch: &'static str,
    isa: &'static str,
    sold_gib: u32,
    driver_mib: u32,
    runtime_mib: u32,
    /// Whether the runtime's figure was seen in a log, or follows from others.
    seen: bool,
    speeds: [u32; 7],
    link: &'static str,
    link_mbs: u32,
    tdp_w: u32,
    /// Sizes of memory it is sold with, GiB, where there are several.
    pub(super) sizes: &'static [u32],
}

#[expect(clippy::too_many_arguments, reason = "a row of the generated table, read by nobody")]
pub(super) const fn row(
    name: &'static str,
    aliases: &'static [&'static str],
    vendor: Vendor,
    class: Class,
    arch: &'static str,
    isa: &'static str,
    [sold_gib, driver_mib, runtime_mib]: [u32; 3],
    seen: bool,
    speeds: [u32; 7],
    link: &'static str,
    link_mbs: u32,
    tdp_w: u32,
    sizes: &'static [u32],
) -> Row {
    Row { name, aliases, vendor, class, arch, isa, sold_gib, driver_mib, runtime_mib, seen, speeds, link, link_mbs, tdp_w, sizes }
}

/// What the CUDA runtime holds back of the memory that the driver reports. In public logs: 326 MiB of 4,094, 383 of 8,188,
/// 461 of 16,311, 484 of 24,564, 498 of 32,607, 611 of 46,068, 615 of 143,771. The line lies above them.
pub(super) const fn runtime_reserve_mib(total_mib: u64) -> u64 {
    let line = 340 + total_mib / 100;
    if line < 620 { line } else { 620 }
}

/// The working set that macOS grants the GPU without `iogpu.wired_limit_mb`.
pub(super) fn working_set(total: u64) -> (u64, &'static str) {
    if total < 36 * GIB {
        (total / 3 * 2, "two thirds of memory, the recommendedMaxWorkingSetSize that macOS grants the GPU below 36 GB")
    } else {
        (
            total / 4 * 3,
            "three quarters of memory, the recommendedMaxWorkingSetSize that macOS grants the GPU from 36 GB up (newer systems \
             were seen to grant 84 % of 128 GB; iogpu.wired_limit_mb sets it)",
        )
    }
}

impl Row {
    /// Whether the processor's memory is the device's memory.
    pub(super) const fn unified(&self) -> bool {
        matches!(self.class, Class::Soc | Class::Jetson | Class::Cpu)
    }

    fn driver(&self) -> Driver {
        match (self.class, self.vendor) {
            (Class::Cpu, _) => Driver::Cpu,
            (_, Vendor::Nvidia) => Driver::Cuda,
            (_, Vendor::Apple) => Driver::Metal,
            (_, Vendor::Amd) => Driver::Rocm,
            _ => Driver::Vulkan,
        }
    }

    fn backend(&self) -> Backend {
        match self.driver() {
            Driver::Cpu => Backend::Cpu,
            Driver::Metal => Backend::Metal,
            Driver::Cuda => {
                let version = self.isa.strip_prefix("sm_").and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(89);
                Backend::Cuda { compute_capability: version.saturating_mul(10) }
            }
            // ggml's HIP backend is its CUDA backend's source; the others are planned with the same rules, and say so.
            Driver::Rocm | Driver::Vulkan => Backend::Cuda { compute_capability: 890 },
        }
    }

    /// All of the memory, and what of it a program can get.
    fn memory(&self, size_gib: Option<u32>) -> Result<(Sourced, Sourced), MathError> {
        let gib = size_gib.unwrap_or(self.sold_gib);
        let resized = gib != self.sold_gib;
        let sold = mul(u64::from(gib), GIB)?;
        let (total, total_origin) = if self.driver_mib > 0 && !self.unified() {
            let text = "memory that the driver reports (nvidia-smi memory.total, ROCm's total)";
            (mul(u64::from(self.driver_mib), MIB)?, Sourced::because(Origin::Datasheet, text))
        } else {
            (sold, Sourced::because(Origin::Datasheet, "memory it is sold with"))
        };
        let runtime = mul(u64::from(self.runtime_mib), MIB)?;
        let (usable, origin, text) = match self.driver() {
            Driver::Cpu => (
                total,
                Origin::Estimated,
                "memory of a usual machine of this kind, all of it: give the size that is there".to_owned(),
            ),
            Driver::Metal => {
                let (bytes, text) = working_set(total);
                (bytes, Origin::Estimated, text.to_owned())
            }
            Driver::Rocm if self.unified() && self.driver_mib > 0 => {
                let bytes = if resized { sold / 32 * 31 } else { mul(u64::from(self.driver_mib), MIB)? };
                let origin = if resized { Origin::Estimated } else { Origin::Measured };
                let text = "what ROCm reports with the graphics translation table raised to nearly all of memory (ttm.pages_limit or \
                            amdgpu.gttsize); the system's default grants half";
                (bytes, origin, text.to_owned())
            }
            Driver::Rocm | Driver::Vulkan if self.unified() => {
                let text = "half of memory, the default size of the graphics translation table";
                (sold / 2, Origin::Estimated, text.to_owned())
            }
            Driver::Cuda if self.unified() && self.runtime_mib > 0 => {
                let text = "memory that the CUDA runtime reports, the system's MemTotal";
                (runtime, if self.seen { Origin::Measured } else { Origin::Estimated }, text.to_owned())
            }
            Driver::Cuda if self.runtime_mib > 0 && self.seen => {
                let text = "memory that the CUDA runtime reports on Linux (cudaMemGetInfo, total), from public logs";
                (runtime, Origin::Measured, text.to_owned())
            }
            Driver::Cuda if self.runtime_mib > 0 => {
                let text = "memory that the CUDA runtime reports on Linux, from boards with the same total";
                (runtime, Origin::Estimated, text.to_owned())
            }
            Driver::Cuda => {
                let held = runtime_reserve_mib(total / MIB).saturating_mul(MIB);
                let text = format!(
                    "no log at hand: the driver's figure less {} MiB, the most that the CUDA runtime was seen to hold back on boards \
                     of this size",
                    held / MIB
                );
                (total.saturating_sub(held), Origin::Estimated, text)
            }
            Driver::Rocm if self.driver_mib > 0 => {
                let origin = if self.seen { Origin::Measured } else { Origin::Estimated };
                (total, origin, "memory that the ROCm runtime reports".to_owned())
            }
            Driver::Rocm | Driver::Vulkan => {
                (total / 20 * 19, Origin::Estimated, "no log at hand: the memory it is sold with less 5 %".to_owned())
            }
        };
        // The smaller of the two: a runtime cannot hand out more than there is.
        let usable = usable.min(total);
        Ok((
            Sourced { bytes: Bytes::new(total)?, ..total_origin },
            Sourced { bytes: Bytes::new(usable)?, kind: origin, origin: text },
        ))
    }

    /// The device, with `size_gib` of memory where the row is sold with several sizes.
    pub(super) fn device(&self, size_gib: Option<u32>) -> Result<Device, MathError> {
        let (total, usable) = self.memory(size_gib)?;
        let [memory, fp32, fp16, bf16, fp8, int8, fp4] = self.speeds.map(u64::from);
        Ok(Device {
            name: match size_gib {
                Some(gib) if self.sizes.len() > 1 => format!("{} {gib} GB", self.name),
                _ => self.name.to_owned(),
            },
            kind: if self.class == Class::Cpu { DeviceKind::Cpu } else { DeviceKind::Gpu },
            driver: self.driver(),
            backend: self.backend(),
            total,
            usable,
            unified: self.unified(),
            vendor: self.vendor,
            class: self.class,
            architecture: self.arch.to_owned(),
            isa: self.isa.to_owned(),
            speed: Some(Speed {
                origin: if self.class == Class::Cpu { Origin::Estimated } else { Origin::Datasheet },
                memory_mb_per_s: memory,
                fp32_gflops: fp32,
                fp16_gflops: fp16,
                bf16_gflops: bf16,
                fp8_gflops: fp8,
                int8_gops: int8,
                fp4_gflops: fp4,
            }),
            link: Some(Link { name: String::from(self.link), mb_per_s_per_direction: u64::from(self.link_mbs) }),
            tdp_w: if self.tdp_w > 0 { Some(self.tdp_w) } else { None },
        })
    }
}
