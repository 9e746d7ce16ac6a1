//! Devices that are not in the catalogue, as people describe them in a file or with options.

use alloc::format;
use alloc::string::{String, ToString};

use plimsoll_math::deployment::Backend;
use plimsoll_math::device::{Device, Driver, Link, Origin, Sourced, Speed};
use plimsoll_math::units::{Bytes, MAX_EXACT};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::PlanError;
use crate::size::{SIZE_GRAMMAR, parse_bytes, quoted};

/// The description of a device. What is left out is that of the device it is `like`, or unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomDevice {
    /// What to call it.
    pub name: Option<String>,
    /// The catalogue's device that it resembles.
    pub like: Option<String>,
    /// All of its memory.
    pub memory: Option<Size>,
    /// What a program can get of that; all of it when left out.
    pub usable: Option<Size>,
    /// What drives it: `cuda`, `cuda-cc890`, `rocm`, `vulkan`, `metal` or `cpu`.
    pub backend: Option<String>,
    /// Whether it shares the host's memory.
    pub unified: Option<bool>,
    /// Memory bandwidth, 10^9 bytes per second.
    pub bandwidth_gb_per_s: Option<Decimal>,
    /// Dense peak in single precision, 10^12 operations per second.
    pub fp32_tflops: Option<Decimal>,
    /// In half precision.
    pub fp16_tflops: Option<Decimal>,
    /// In brain floating point; as in half precision when left out.
    pub bf16_tflops: Option<Decimal>,
    /// In 8-bit floating point.
    pub fp8_tflops: Option<Decimal>,
    /// In 4-bit floating point.
    pub fp4_tflops: Option<Decimal>,
    /// In 8-bit integers.
    pub int8_tops: Option<Decimal>,
    /// What joins it to others, such as `PCIe4x16`.
    pub link: Option<String>,
    /// That link's 10^9 bytes per second in one direction.
    pub link_gb_per_s: Option<Decimal>,
    /// The power it may draw, watts.
    pub tdp_w: Option<u32>,
}

/// Bytes, written as a number or as `24GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Size;
            fn expecting(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                out.write_str(SIZE_GRAMMAR)
            }
            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                if bytes <= MAX_EXACT { Ok(Size(bytes)) } else { Err(E::custom("more than 2^53 - 1 bytes")) }
            }
            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map_err(|_| E::custom("less than nothing")).and_then(|bytes| self.visit_u64(bytes))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                parse_bytes("size", text).map(Size).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

/// A number above 0, kept to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimal {
    thousandths: u64,
}

impl Decimal {
    /// A number; `None` where it is not above 0, or beyond reason.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        if !(value > 0.0 && value <= 1e9) {
            return None;
        }
        format!("{:.0}", value * 1000.0)
            .parse()
            .ok()
            .filter(|thousandths| *thousandths > 0)
            .map(|thousandths| Self { thousandths })
    }

    /// In thousandths.
    #[must_use]
    pub const fn thousandths(self) -> u64 {
        self.thousandths
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(plimsoll_math::throughput::float(self.thousandths) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Self::new(value).ok_or_else(|| D::Error::custom(format!("{value}: expected a number above 0 and at most 10^9")))
    }
}

/// What drives a device, by the name that users give it.
fn backend(text: &str) -> Result<(Driver, Backend), PlanError> {
    const HIP: Backend = Backend::Cuda { compute_capability: 890 };
    let refuse = || PlanError::request("backend", quoted(text), "cuda, cuda-ccN such as cuda-cc890, rocm, vulkan, metal or cpu");
    Ok(match text {
        "cuda" => (Driver::Cuda, HIP),
        "rocm" => (Driver::Rocm, HIP),
        "vulkan" => (Driver::Vulkan, HIP),
        "metal" => (Driver::Metal, Backend::Metal),
        "cpu" => (Driver::Cpu, Backend::Cpu),
        other => {
            let digits = other.strip_prefix("cuda-cc").ok_or_else(refuse)?;
            let compute_capability = digits.parse().ok().filter(|version| (300..=2000).contains(version)).ok_or_else(refuse)?;
            (Driver::Cuda, Backend::Cuda { compute_capability })
        }
    })
}

fn positive(field: &str, size: Option<Size>) -> Result<Option<Bytes>, PlanError> {
    match size {
        Some(Size(0)) => Err(PlanError::request(field, "0", "1 byte or more")),
        Some(Size(bytes)) => Ok(Some(Bytes::new(bytes)?)),
        None => Ok(None),
    }
}

impl CustomDevice {
    /// The device.
    ///
    /// # Errors
    /// [`PlanError::Request`] naming the field that is missing or cannot be.
    pub fn device(&self) -> Result<Device, PlanError> {
        let like = match &self.like {
            Some(name) => Some(Device::named(name)?),
            None => None,
        };
        let driven = self.backend.as_deref().map(backend).transpose()?;
        let memory = positive("memory", self.memory)?;
        let device = match (like, memory) {
            (Some(like), None) => like,
            (Some(like), Some(memory)) => like.resized(memory),
            (None, Some(memory)) => match driven {
                Some((Driver::Cpu, _)) => Device::cpu(memory, "as described"),
                Some((_, backend)) => Device::with_memory(memory, backend),
                None => Device::with_memory(memory, Backend::Cuda { compute_capability: 890 }),
            },
            (None, None) => {
                return Err(PlanError::request(
                    "memory",
                    "nothing",
                    format!("{SIZE_GRAMMAR}, or `like` with a catalogue's name"),
                ));
            }
        };
        self.applied_to(device)
    }

    /// `device` with what is described put in; `like` is not looked at.
    ///
    /// # Errors
    /// [`PlanError::Request`] naming the field that cannot be.
    pub fn applied_to(&self, mut device: Device) -> Result<Device, PlanError> {
        if let Some((driver, backend)) = self.backend.as_deref().map(backend).transpose()? {
            device.driver = driver;
            device.backend = backend;
        }
        if let Some(memory) = positive("memory", self.memory)? {
            device = device.resized(memory);
        }
        let usable = positive("usable", self.usable)?;
        if let Some(unified) = self.unified {
            device.unified = unified;
        }
        if let Some(usable) = usable {
            if usable > device.total.bytes {
                let found = format!("{usable} B of {} B", device.total.bytes);
                return Err(PlanError::request("usable", found, "at most all of the memory"));
            }
            device.usable = Sourced { bytes: usable, kind: Origin::Asked, origin: "as asked".to_string() };
        }
        device.speed = self.speed(&device)?;
        match (&self.link, self.link_gb_per_s) {
            (Some(name), speed) => {
                device.link = Some(Link { name: name.clone(), mb_per_s_per_direction: speed.map_or(0, Decimal::thousandths) });
            }
            (None, Some(speed)) => {
                let name = device.link.take().map_or_else(|| "link".to_string(), |link| link.name);
                device.link = Some(Link { name, mb_per_s_per_direction: speed.thousandths() });
            }
            (None, None) => {}
        }
        if self.tdp_w.is_some() {
            device.tdp_w = self.tdp_w;
        }
        match (&self.name, &self.like) {
            (Some(name), _) if name.trim().is_empty() => {
                return Err(PlanError::request("name", quoted(name), "a name with letters"));
            }
            (Some(name), _) => device.name.clone_from(name),
            (None, Some(_)) if *self != (Self { like: self.like.clone(), ..Self::default() }) => {
                device.name.push_str(", as described");
            }
            _ => {}
        }
        Ok(device)
    }

    /// Speeds: those of the device it is like with what is given put in. Bandwidth alone says nothing about prompts, so without a
    /// model both are needed.
    fn speed(&self, device: &Device) -> Result<Option<Speed>, PlanError> {
        let given = [
            self.bandwidth_gb_per_s,
            self.fp32_tflops,
            self.fp16_tflops,
            self.bf16_tflops,
            self.fp8_tflops,
            self.fp4_tflops,
            self.int8_tops,
        ];
        if given.iter().all(Option::is_none) {
            return Ok(device.speed);
        }
        let known = device.speed;
        if known.is_none() && (self.bandwidth_gb_per_s.is_none() || self.fp16_tflops.is_none()) {
            let missing = if self.bandwidth_gb_per_s.is_none() { "bandwidth_gb_per_s" } else { "fp16_tflops" };
            return Err(PlanError::request(
                missing,
                "nothing",
                "a number: speed takes both bandwidth and compute, or `like` with a catalogue's name",
            ));
        }
        let figure = |given: Option<Decimal>, of: fn(&Speed) -> u64| {
            given.map_or_else(|| known.as_ref().map_or(0, of), Decimal::thousandths)
        };
        let half = figure(self.fp16_tflops, |speed| speed.fp16_gflops);
        let or_half = |value: u64| if value == 0 && known.is_none() { half } else { value };
        Ok(Some(Speed {
            origin: Origin::Asked,
            memory_mb_per_s: figure(self.bandwidth_gb_per_s, |speed| speed.memory_mb_per_s),
            fp32_gflops: figure(self.fp32_tflops, |speed| speed.fp32_gflops),
            fp16_gflops: half,
            bf16_gflops: or_half(figure(self.bf16_tflops, |speed| speed.bf16_gflops)),
            fp8_gflops: figure(self.fp8_tflops, |speed| speed.fp8_gflops),
            int8_gops: figure(self.int8_tops, |speed| speed.int8_gops),
            fp4_gflops: figure(self.fp4_tflops, |speed| speed.fp4_gflops),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::allow_attributes, clippy::unwrap_used, reason = "a test may fail loudly")]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Device, String> {
        let described: CustomDevice = serde_json::from_str(json).map_err(|error| error.to_string())?;
        described.device().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_described_is_the_device() {
        let device = read(
            r#"{"name": "Board", "memory": "24GiB", "usable": "23.5GiB", "backend": "cuda-cc890", "bandwidth_gb_per_s": 1008,
                "fp16_tflops": 165.2, "int8_tops": 661, "link": "PCIe4x16", "link_gb_per_s": 31.5}"#,
        )
        .unwrap();
        let speed = device.speed.unwrap();
        assert_eq!((device.total.bytes.get(), device.usable.bytes.get()), (24 << 30, 25_232_932_864));
        assert_eq!((speed.memory_mb_per_s, speed.fp16_gflops, speed.bf16_gflops), (1_008_000, 165_200, 165_200));
        assert_eq!(device.link.unwrap().mb_per_s_per_direction, 31_500);
        assert_eq!(device.backend, Backend::Cuda { compute_capability: 890 });
    }

    #[test]
    fn what_is_left_out_is_that_of_the_device_it_is_like() {
        let known = Device::named("RTX 4090").unwrap();
        let device = read(r#"{"name": "48 GB 4090", "like": "4090", "memory": "48GiB"}"#).unwrap();
        assert_eq!(device.speed, known.speed);
        assert_eq!(device.total.bytes.get(), 48 << 30);
        let faster = read(r#"{"like": "4090", "bandwidth_gb_per_s": 1200}"#).unwrap();
        assert_eq!(faster.speed.unwrap().memory_mb_per_s, 1_200_000);
        assert_eq!(faster.usable, known.usable);
        assert_ne!(faster.name, known.name);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (json, names) in [
            (r#"{"name": "x"}"#, "memory"),
            (r#"{"memory": 0}"#, "memory"),
            (r#"{"memory": -1}"#, "less than nothing"),
            (r#"{"memory": "24G"}"#, "24GiB"),
            (r#"{"memory": 9007199254740992}"#, "2^53"),
            (r#"{"memory": "24GiB", "usable": "25GiB"}"#, "usable"),
            (r#"{"memory": "24GiB", "bandwidth_gb_per_s": 1008}"#, "fp16_tflops"),
            (r#"{"memory": "24GiB", "fp16_tflops": 10}"#, "bandwidth_gb_per_s"),
            (r#"{"memory": "24GiB", "bandwidth_gb_per_s": -3}"#, "above 0"),
            (r#"{"memory": "24GiB", "bandwidth_gb_per_s": 1e300}"#, "above 0"),
            (r#"{"memory": "24GiB", "backend": "voodoo"}"#, "cuda-cc890"),
            (r#"{"memory": "24GiB", "backend": "cuda-cc1"}"#, "cuda-cc890"),
            (r#"{"like": "4060 Ti"}"#, "names several"),
            (r#"{"memory": "24GiB", "colour": "red"}"#, "colour"),
            (r#"{"memory": "24GiB", "name": " "}"#, "name"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(names), "{json}: {error}");
        }
    }
}
