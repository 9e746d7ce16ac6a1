//! Any text as what every driver's tool prints and every file of the kernel holds: devices with memory above nothing, or a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_probe::{Host, Os, Reading, System, Unavailable, local, probes};

/// A machine on which every program and every file says the same.
struct Says<'a> {
    os: Os,
    text: &'a str,
}

impl System for Says<'_> {
    fn os(&self) -> Os {
        self.os
    }

    fn run(&self, _: &str, _: &[&str]) -> Result<String, Unavailable> {
        Ok(self.text.to_owned())
    }

    fn read(&self, _: &str) -> Result<String, Unavailable> {
        Ok(self.text.to_owned())
    }

    fn list(&self, _: &str) -> Vec<String> {
        self.text.lines().take(64).map(str::to_owned).collect()
    }

    fn host(&self) -> Host {
        Host { memory: Reading::Known(64 << 30), ..Host::unknown("not asked") }
    }
}

fuzz_target!(|text: &str| {
    for os in [Os::Linux, Os::Macos, Os::Windows, Os::Other] {
        let machine = local(&Says { os, text }, &probes());
        for device in machine.devices.iter().filter_map(|found| found.device.known()) {
            assert!(device.total.bytes.get() > 0 && device.usable.bytes.get() > 0, "{device:?}");
            assert!(device.usable.bytes <= device.total.bytes, "{device:?}");
        }
    }
});
