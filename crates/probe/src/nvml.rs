//! NVIDIA boards through the driver's own library, loaded at run time.

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;

use crate::facts::{Facts, Maker, Reading, Unavailable, bytes, text};
use crate::system::System;
use crate::{MAX_DEVICES, Probe};

/// The driver's library.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nvml;

fn read<T>(what: &str, value: Result<T, NvmlError>) -> Reading<T> {
    value.map_or_else(|error| Reading::Unavailable(format!("NVML, {what}: {error}")), Reading::Known)
}

impl Probe for Nvml {
    fn name(&self) -> &'static str {
        "nvml"
    }

    fn maker(&self) -> Maker {
        Maker::Nvidia
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        if !system.is_this_machine() {
            return Err(Unavailable("nvml: a recorded machine has no library".to_owned()));
        }
        let because = |error: NvmlError| match error {
            NvmlError::LibloadingError(_) => Unavailable("nvml: the driver's library is not installed".to_owned()),
            other => Unavailable(format!("nvml: {other}")),
        };
        let library = Library::init().map_err(because)?;
        let count = usize::try_from(library.device_count().map_err(because)?).unwrap_or(0).min(MAX_DEVICES);
        let version = read("driver version", library.sys_driver_version());
        let mut found = Vec::new();
        for index in 0..u32::try_from(count).unwrap_or(0) {
            let mut facts = Facts::new("nvml", Maker::Nvidia);
            facts.driver = version.clone();
            match library.device_by_index(index) {
                Ok(device) => {
                    facts.name = match device.name() {
                        Ok(name) => Reading::of(text(&name), "NVML gives no name"),
                        Err(error) => Reading::Unavailable(format!("NVML, name: {error}")),
                    };
                    match device.memory_info() {
                        Ok(memory) => {
                            facts.total = Reading::of(bytes(memory.total, 1), "NVML gives no total");
                            facts.free = Reading::Known(memory.free);
                        }
                        Err(error) => {
                            let reason = format!("NVML, memory: {error}; the board may share the host's memory");
                            facts.total = Reading::unavailable(reason.clone());
                            facts.free = Reading::unavailable(reason);
                        }
                    }
                    facts.isa = read(
                        "compute capability",
                        device.cuda_compute_capability().map(|cc| format!("sm_{}{}", cc.major, cc.minor)),
                    );
                    facts.displays = read("display", device.is_display_active());
                    facts.power_limit_w = read("power limit", device.enforced_power_limit().map(|milliwatts| milliwatts / 1000));
                }
                Err(error) => facts.name = Reading::Unavailable(format!("NVML, device {index}: {error}")),
            }
            found.push(facts);
        }
        Ok(found)
    }
}
