//! Devices as data: how much memory they have, how much of it a program can get, and which backend drives them.
//!
//! Every figure says where it comes from. The list is short on purpose; what is not in it is described by a memory
//! size ([`Device::with_memory`]).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::deployment::{Accelerator, Backend};
use crate::error::MathError;
use crate::units::Bytes;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

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

/// A figure with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sourced {
    /// Bytes.
    pub bytes: Bytes,
    /// Where the figure comes from.
    pub origin: String,
}

/// A device to plan for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Device {
    /// The full name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Which backend of an engine drives it.
    pub backend: Backend,
    /// All of its memory.
    pub total: Sourced,
    /// What one program can get when nothing else runs on it.
    pub usable: Sourced,
    /// Whether it shares the host's memory.
    pub unified: bool,
}

/// One row of the list.
#[derive(Debug)]
struct Row {
    name: &'static str,
    aliases: &'static [&'static str],
    backend: Backend,
    total: u64,
    total_origin: &'static str,
    usable: u64,
    usable_origin: &'static str,
    unified: bool,
}

const DRIVER_TOTAL: &str = "memory that the driver reports (nvidia-smi, memory.total)";
const RUNTIME_TOTAL: &str = "memory that the CUDA runtime reports on Linux (cudaMemGetInfo, total), from public logs";
const RUNTIME_ESTIMATE: &str = "no log at hand: the driver's figure less 3.5 %, the largest share that the runtime was \
                                seen to hold back on a board of this class (2.9 to 3.4 % on boards of 12 to 16 GiB)";
const WORKING_SET: &str = "three quarters of memory, the recommendedMaxWorkingSetSize that macOS grants the GPU from \
                           36 GB up (public logs; newer systems grant up to 84 % of 128 GB)";
const FITTED: &str = "memory the machine is sold with";

const fn cuda(compute_capability: u32) -> Backend {
    Backend::Cuda { compute_capability }
}

const fn board(
    name: &'static str,
    aliases: &'static [&'static str],
    compute_capability: u32,
    total_mib: u64,
    runtime_mib: Option<u64>,
) -> Row {
    let total = total_mib * MIB;
    let (usable, usable_origin) = match runtime_mib {
        Some(mib) => (mib * MIB, RUNTIME_TOTAL),
        None => (total / 1000 * 965, RUNTIME_ESTIMATE),
    };
    Row {
        name,
        aliases,
        backend: cuda(compute_capability),
        total,
        total_origin: DRIVER_TOTAL,
        usable,
        usable_origin,
        unified: false,
    }
}

const fn m3_max(name: &'static str, aliases: &'static [&'static str], gib: u64) -> Row {
    Row {
        name,
        aliases,
        backend: Backend::Metal,
        total: gib * GIB,
        total_origin: FITTED,
        usable: gib * GIB / 4 * 3,
        usable_origin: WORKING_SET,
        unified: true,
    }
}

/// The devices with figures, in the order in which they are listed to people.
const DEVICES: &[Row] = &[
    board("NVIDIA GeForce GTX 1080 Ti", &["cuda-cc610"], 610, 11264, None),
    board("NVIDIA GeForce RTX 2080 Ti", &["cuda-cc750"], 750, 11264, None),
    board("NVIDIA GeForce RTX 3090", &[], 860, 24576, Some(24126)),
    board("NVIDIA GeForce RTX 4090", &["cuda-cc890"], 890, 24564, Some(24080)),
    board("NVIDIA GeForce RTX 5090", &[], 1200, 32607, Some(32109)),
    board("NVIDIA H100 PCIe", &[], 900, 81559, Some(80995)),
    board("NVIDIA H100 SXM", &["NVIDIA H100 80GB HBM3", "H100 SXM5"], 900, 81559, Some(80995)),
    board("NVIDIA H200 SXM", &["NVIDIA H200", "H200 141GB"], 900, 143_771, Some(143_156)),
    m3_max("Apple M3 Max 36 GB", &["M3 Max (36 GB)"], 36),
    m3_max("Apple M3 Max 48 GB", &["M3 Max (48 GB)"], 48),
    m3_max("Apple M3 Max 64 GB", &["M3 Max (64 GB)"], 64),
    m3_max("Apple M3 Max 96 GB", &["M3 Max (96 GB)"], 96),
    m3_max("Apple M3 Max 128 GB", &["metal"], 128),
];

impl Row {
    fn device(&self) -> Result<Device, MathError> {
        Ok(Device {
            name: self.name.to_string(),
            kind: DeviceKind::Gpu,
            backend: self.backend,
            total: Sourced { bytes: Bytes::new(self.total)?, origin: self.total_origin.to_string() },
            usable: Sourced { bytes: Bytes::new(self.usable)?, origin: self.usable_origin.to_string() },
            unified: self.unified,
        })
    }
}

impl Device {
    /// Every device of the list.
    ///
    /// # Errors
    /// [`MathError::Overflow`], which would be a fault of the list.
    pub fn all() -> Result<Vec<Self>, MathError> {
        DEVICES.iter().map(Row::device).collect()
    }

    /// Short names a device also answers to.
    #[must_use]
    pub fn aliases(&self) -> &'static [&'static str] {
        DEVICES.iter().find(|row| row.name == self.name).map_or(&[], |row| row.aliases)
    }

    /// The host's processor with `memory` to work in.
    #[must_use]
    pub fn cpu(memory: Bytes, origin: &str) -> Self {
        Self {
            name: "cpu".to_string(),
            kind: DeviceKind::Cpu,
            backend: Backend::Cpu,
            total: Sourced { bytes: memory, origin: origin.to_string() },
            usable: Sourced { bytes: memory, origin: origin.to_string() },
            unified: true,
        }
    }

    /// A GPU of which only the memory is known.
    #[must_use]
    pub fn with_memory(memory: Bytes, backend: Backend) -> Self {
        let origin = "as asked";
        Self {
            name: "GPU".to_string(),
            kind: DeviceKind::Gpu,
            backend,
            total: Sourced { bytes: memory, origin: origin.to_string() },
            usable: Sourced { bytes: memory, origin: origin.to_string() },
            unified: matches!(backend, Backend::Metal),
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
        let sourced = Sourced { bytes: memory, origin: "as asked".to_string() };
        self.total = sourced.clone();
        self.usable = sourced;
        self
    }

    /// The device that `text` names, however it is spelled: `RTX 4090`, `rtx-4090`, `4090`,
    /// `NVIDIA GeForce RTX 4090` and `cuda-cc890` are one. The processor has no figure of its own: see
    /// [`Device::cpu`].
    ///
    /// # Errors
    /// [`MathError::Invalid`] listing the candidates when no device, or more than one, answers to it.
    ///
    /// ```
    /// use plimsoll_math::device::Device;
    /// assert_eq!(Device::named("rtx-4090").unwrap().name, "NVIDIA GeForce RTX 4090");
    /// assert!(Device::named("H100").unwrap_err().to_string().contains("NVIDIA H100 SXM"));
    /// ```
    pub fn named(text: &str) -> Result<Self, MathError> {
        let wanted = Words::of(text);
        let exact = DEVICES.iter().find(|row| row.spellings().any(|spelling| Words::of(spelling) == wanted));
        if let Some(row) = exact {
            return row.device();
        }
        let found: Vec<&Row> = if wanted.0.is_empty() {
            Vec::new()
        } else {
            DEVICES.iter().filter(|row| row.spellings().any(|spelling| wanted.all_in(&Words::of(spelling)))).collect()
        };
        match found.as_slice() {
            [row] => row.device(),
            [] => Err(MathError::Invalid {
                field: "device".to_string(),
                found: quoted(text),
                expected: format!("cpu or one of {}", names(nearest(&wanted))),
            }),
            several => Err(MathError::Invalid {
                field: "device".to_string(),
                found: format!("{}, which names several", quoted(text)),
                expected: format!("one of {}", names(several.to_vec())),
            }),
        }
    }
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().filter(|character| !character.is_control()).take(60).collect();
    format!("\"{shown}\"")
}

fn names(rows: Vec<&Row>) -> String {
    rows.into_iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

/// Devices that share a word with what was asked: a telling one, or else any; all of them when none does.
fn nearest(wanted: &Words) -> Vec<&'static Row> {
    let sharing = |telling: bool| -> Vec<&'static Row> {
        let shares = |row: &&Row| {
            let words = Words::of(row.name);
            wanted.0.iter().any(|word| words.0.contains(word) && !(telling && is_common(word)))
        };
        DEVICES.iter().filter(shares).collect()
    };
    [sharing(true), sharing(false)].into_iter().find(|rows| !rows.is_empty()).unwrap_or_else(|| DEVICES.iter().collect())
}

/// Words that many devices share.
fn is_common(word: &str) -> bool {
    matches!(word, "nvidia" | "geforce" | "apple" | "rtx" | "gtx" | "gb" | "ti")
}

/// A name cut where letters and digits meet and at every other character, lower case: `RTX4090` is `rtx 4090`.
#[derive(Debug, PartialEq, Eq)]
struct Words(Vec<String>);

impl Words {
    fn of(text: &str) -> Self {
        let mut words: Vec<String> = Vec::new();
        let mut last = None;
        for character in text.chars() {
            let class = if character.is_ascii_digit() {
                Some(0)
            } else if character.is_alphabetic() {
                Some(1)
            } else {
                None
            };
            if class.is_some() {
                match words.last_mut() {
                    Some(word) if last == Some(class) => word.extend(character.to_lowercase()),
                    _ => words.push(character.to_lowercase().collect()),
                }
            }
            last = Some(class);
        }
        for word in &mut words {
            if word == "g" || word == "gib" {
                *word = "gb".to_string();
            }
        }
        Self(words)
    }

    fn all_in(&self, other: &Self) -> bool {
        self.0.iter().all(|word| other.0.contains(word))
    }
}

impl Row {
    fn spellings(&self) -> impl Iterator<Item = &'static str> {
        core::iter::once(self.name).chain(self.aliases.iter().copied())
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
    fn check(text: &str, expect: &str) {
        assert_eq!(
            Device::named(text).map(|device| device.name).map_err(|error| error.to_string()),
            Ok(expect.to_string()),
            "{text}"
        );
    }

    #[test]
    fn names_are_forgiving() {
        for text in ["RTX 4090", "4090", "rtx-4090", "RTX4090", "nvidia geforce rtx 4090", "GeForce_RTX_4090", "cuda-cc890"] {
            check(text, "NVIDIA GeForce RTX 4090");
        }
        check("2080ti", "NVIDIA GeForce RTX 2080 Ti");
        check("cuda-cc750", "NVIDIA GeForce RTX 2080 Ti");
        check("1080 Ti", "NVIDIA GeForce GTX 1080 Ti");
        check("cuda-cc610", "NVIDIA GeForce GTX 1080 Ti");
        check("h100-pcie", "NVIDIA H100 PCIe");
        check("H100 SXM", "NVIDIA H100 SXM");
        check("H200", "NVIDIA H200 SXM");
        check("metal", "Apple M3 Max 128 GB");
        check("M3 Max 64GB", "Apple M3 Max 64 GB");
        check("m3 max (48GiB)", "Apple M3 Max 48 GB");
    }

    #[test]
    fn what_names_none_or_several_lists_candidates() {
        let several = Device::named("M3 Max").unwrap_err().to_string();
        assert!(several.contains("names several") && several.contains("Apple M3 Max 96 GB"), "{several}");
        let none = Device::named("RTX 4091").unwrap_err().to_string();
        assert!(none.contains("NVIDIA GeForce RTX 4090"), "{none}");
        let near = Device::named("H100 NVL").unwrap_err().to_string();
        assert!(near.contains("NVIDIA H100 PCIe") && !near.contains("4090"), "{near}");
        assert!(Device::named("").is_err());
        assert!(Device::named("NVIDIA").is_err());
    }

    #[test]
    fn no_two_devices_share_a_spelling() {
        let spellings: Vec<(Words, &str)> =
            DEVICES.iter().flat_map(|row| row.spellings().map(|spelling| (Words::of(spelling), row.name))).collect();
        for (index, (words, name)) in spellings.iter().enumerate() {
            for (other_words, other) in &spellings[index + 1..] {
                assert!(words != other_words || name == other, "{name} and {other}");
            }
        }
    }

    #[test]
    fn usable_memory_is_part_of_the_total() {
        for device in Device::all().unwrap() {
            assert!(device.usable.bytes <= device.total.bytes, "{}", device.name);
            assert!(device.usable.bytes.get() * 4 >= device.total.bytes.get() * 3, "{}", device.name);
        }
    }
}
