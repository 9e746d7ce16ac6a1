//! What drivers' tools really print becomes devices; what they do not say is said to be unknown; nothing they print is fatal.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail loudly"
)]

use std::collections::BTreeMap;

use plimsoll_math::device::{Device, Origin};
use plimsoll_probe::{Host, Local, Os, Reading, System, Unavailable, local, probes};
use proptest::prelude::*;

/// A machine that was recorded.
struct Recorded {
    os: Os,
    memory: u64,
    programs: BTreeMap<&'static str, String>,
    files: BTreeMap<String, String>,
}

impl Recorded {
    fn new(os: Os, memory: u64) -> Self {
        Self { os, memory, programs: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// A program that prints what a fixture holds, whatever it is asked.
    fn prints(mut self, program: &'static str, fixture: &str) -> Self {
        let path = format!("{}/../../fixtures/probes/{fixture}", env!("CARGO_MANIFEST_DIR"));
        self.programs.insert(program, std::fs::read_to_string(&path).expect(&path));
        self
    }

    fn says(mut self, program: &'static str, text: &str) -> Self {
        self.programs.insert(program, text.to_owned());
        self
    }

    fn holds(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn look(&self) -> Local {
        local(self, &probes())
    }
}

impl System for Recorded {
    fn os(&self) -> Os {
        self.os
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Unavailable> {
        let key = if program == "sysctl" { arguments.last().copied().unwrap_or("") } else { program };
        self.programs.get(key).cloned().ok_or_else(|| Unavailable(format!("{program}: not installed")))
    }

    fn read(&self, path: &str) -> Result<String, Unavailable> {
        self.files.get(path).cloned().ok_or_else(|| Unavailable(format!("{path}: no such file")))
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/')?.split('/').next().map(str::to_owned))
            .collect();
        names.dedup();
        names
    }

    fn host(&self) -> Host {
        Host { memory: Reading::Known(self.memory), ..Host::unknown("recorded") }
    }
}

#[track_caller]
fn device(found: &Local, index: usize) -> &Device {
    found.devices[index].device.known().unwrap_or_else(|| panic!("{:?}", found.devices[index].device))
}

#[track_caller]
fn reason<T: std::fmt::Debug>(reading: &Reading<T>) -> &str {
    match reading {
        Reading::Known(value) => panic!("{value:?}"),
        Reading::Unavailable(reason) => reason,
    }
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

#[test]
fn boards_of_the_catalogue_keep_what_the_runtime_reports() {
    let found = Recorded::new(Os::Linux, 512 * GIB).prints("nvidia-smi", "nvidia-smi/l40s.csv").look();
    let l40s = device(&found, 0);
    assert_eq!(l40s.name, "NVIDIA L40S");
    // The driver reports 46,068 MiB, the CUDA runtime 45,467.
    assert_eq!((l40s.total.bytes.get() / MIB, l40s.usable.bytes.get() / MIB), (46_068, 45_467));
    assert_eq!((l40s.total.kind, l40s.usable.kind), (Origin::Measured, Origin::Measured));
    assert!(found.devices[0].in_catalogue && l40s.speed.is_some());
    assert_eq!(found.devices[0].facts.free, Reading::Known(36_346 * MIB));
    assert!(reason(&found.devices[0].facts.isa).contains("compute_cap"));
    // On Windows the runtime hands out what the driver reports.
    let windows = Recorded::new(Os::Windows, 512 * GIB).prints("nvidia-smi", "nvidia-smi/l40s.csv").look();
    assert_eq!(device(&windows, 0).usable.bytes.get() / MIB, 46_068);
}

#[test]
fn several_boards_are_several_devices() {
    let found = Recorded::new(Os::Linux, GIB).prints("nvidia-smi", "nvidia-smi/a100-sxm4-80gb.csv").look();
    assert_eq!(found.devices.len(), 4);
    assert_eq!(device(&found, 3).name, "NVIDIA A100 80GB SXM");
    assert_eq!(found.devices[3].facts.isa, Reading::Known("sm_80".to_owned()));
    let found = Recorded::new(Os::Linux, GIB).prints("nvidia-smi", "nvidia-smi/rtx-a6000.csv").look();
    assert_eq!(found.devices.len(), 2);
    assert!(device(&found, 0).name.contains("A6000"), "{}", device(&found, 0).name);
}

#[test]
fn memory_that_a_driver_does_not_report_is_unavailable_and_never_nothing() {
    let spark = Recorded::new(Os::Linux, 127_600_748 * 1024).prints("nvidia-smi", "nvidia-smi/gb10-memory.csv").look();
    assert!(reason(&spark.devices[0].facts.total).contains("memory.total"));
    assert!(reason(&spark.devices[0].device).contains("memory.total"), "a device without name and memory is none");
    // With its name it is known to share the host's memory.
    let named = Recorded::new(Os::Linux, 127_600_748 * 1024)
        .says("nvidia-smi", "name, memory.total [MiB], memory.free [MiB]\nNVIDIA GB10, [N/A], [N/A]\n")
        .look();
    let gb10 = device(&named, 0);
    assert!(gb10.unified && gb10.speed.is_some());
    assert_eq!(gb10.usable.bytes.get(), 127_600_748 * 1024);
}

#[test]
fn amd_boards_are_read_through_both_tools() {
    let old = Recorded::new(Os::Linux, 64 * GIB).prints("rocm-smi", "rocm-smi/rx-7900-xt.json").look();
    let board = device(&old, 0);
    assert_eq!(board.name, "AMD Radeon RX 7900 XT");
    assert_eq!(board.usable.bytes.get(), 21_458_059_264);
    assert_eq!(old.devices[0].facts.free, Reading::Known(21_458_059_264 - 27_856_896));
    assert_eq!(board.backend_name(), "rocm");
    let new = Recorded::new(Os::Linux, 64 * GIB)
        .prints("amd-smi", "amd-smi/mi210.json")
        .prints("rocm-smi", "rocm-smi/rx-7900-xt.json")
        .look();
    assert_eq!(new.devices.len(), 1, "the better tool alone answers for a maker");
    assert_eq!(device(&new, 0).total.bytes.get(), 65_520 * MIB);
    assert!(reason(&new.devices[0].facts.free).contains("in use"));
    let nameless = Recorded::new(Os::Linux, 64 * GIB).prints("rocm-smi", "rocm-smi/mi355x-without-a-name.json").look();
    assert!(reason(&nameless.devices[0].facts.name).contains("a name"));
    assert!(!nameless.devices[0].in_catalogue);
    assert_eq!(device(&nameless, 0).usable.bytes.get(), 308_902_100_992);
    assert_eq!(nameless.devices[0].facts.driver, Reading::Known("6.14.14".to_owned()));
    let die = Recorded::new(Os::Linux, 64 * GIB).prints("rocm-smi", "rocm-smi/mi250-two-dies.json").look();
    assert_eq!(device(&die, 0).total.bytes.get(), 68_702_699_520);
}

#[test]
fn a_shared_memory_gets_what_the_translation_table_grants() {
    let path = format!("{}/../../fixtures/probes/sysfs/strix-halo.txt", env!("CARGO_MANIFEST_DIR"));
    let mut machine = Recorded::new(Os::Linux, 124 * GIB)
        .holds("/sys/class/drm/card1/device/vendor", "0x1002\n")
        .holds("/sys/class/drm/card1/device/product_name", "AMD Radeon 8060S Graphics");
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let (file, figure) = line.split_once(' ').unwrap();
        machine = machine.holds(&format!("/sys/class/drm/card1/device/{file}"), figure);
    }
    let found = machine.look();
    let halo = device(&found, 0);
    assert!(halo.unified && found.devices[0].in_catalogue, "{}", halo.name);
    assert_eq!(halo.usable.bytes.get() / MIB, 98_304, "as ROCm reported there");
    assert_eq!(halo.total.bytes.get(), 128 * GIB);
}

#[test]
fn apple_machines_carry_the_share_that_the_system_grants() {
    let mac = || {
        Recorded::new(Os::Macos, 64 * GIB).prints("system_profiler", "macos/m3-max-40.json").says("hw.memsize", "68719476736\n")
    };
    let found = mac().says("iogpu.wired_limit_mb", "0\n").look();
    let max = device(&found, 0);
    assert_eq!(max.name, "Apple M3 Max (40c)");
    assert_eq!((max.total.bytes.get(), max.usable.bytes.get(), max.usable.kind), (64 * GIB, 48 * GIB, Origin::Estimated));
    assert!(reason(&found.devices[0].facts.free).contains("macmon"));
    let raised = mac().says("iogpu.wired_limit_mb", "57344\n").look();
    assert_eq!((device(&raised, 0).usable.bytes.get(), device(&raised, 0).usable.kind), (56 * GIB, Origin::Measured));
    let small = Recorded::new(Os::Macos, 24 * GIB)
        .prints("system_profiler", "macos/m1-7.json")
        .prints("macmon", "macos/macmon-24gb.json")
        .look();
    assert_eq!(device(&small, 0).usable.bytes.get(), 16 * GIB);
    assert_eq!(small.devices[0].facts.free, Reading::Known(25_769_803_776 - 20_985_479_168));
    assert_eq!(small.devices[0].facts.displays, Reading::Known(true));
}

#[test]
fn intel_boards_are_found_by_their_number_where_the_driver_has_no_name() {
    let found = Recorded::new(Os::Linux, 64 * GIB).prints("xpu-smi", "xpu-smi/arc-pro-b60.json").look();
    let board = device(&found, 0);
    assert_eq!(board.name, "Intel Arc Pro B60");
    assert_eq!(found.devices[0].facts.free, Reading::Known(25_447_600_128));
}

#[test]
fn a_card_without_a_tool_says_which_one_would_help() {
    let found = Recorded::new(Os::Linux, 8 * GIB)
        .holds("/sys/class/drm/card0/device/vendor", "0x8086\n")
        .holds("/sys/class/drm/card0/device/device", "0x56a0\n")
        .look();
    assert!(reason(&found.devices[0].device).contains("xpu-smi"));
    let bare = Recorded::new(Os::Linux, 8 * GIB).look();
    assert!(bare.devices.is_empty());
    for source in &bare.sources {
        assert!(!reason(&source.found).is_empty(), "{}", source.name);
    }
}

proptest! {
    /// Whatever a tool prints, no parser panics, and no size is nothing or beyond belief.
    #[test]
    fn no_answer_is_fatal(
        garbage in "(?s).{0,400}",
        number in any::<u64>(),
        name in "\\PC{0,40}",
    ) {
        let outputs = [
            garbage.clone(),
            format!("name, memory.total [MiB], compute_cap\n{name}, {number} MiB, {garbage}\n"),
            format!(r#"{{"card{number}": {{"VRAM Total Memory (B)": "{number}", "GTT Total Memory (B)": {number}, "Card Series": {name:?}}}}}"#),
            format!(r#"[{{"gpu": {number}, "asic": {{"market_name": {name:?}}}, "vram": {{"size": {{"value": {number}, "unit": "GB"}}}}}}]"#),
            format!(r#"{{"device_list": [{{"device_id": {number}, "device_name": {name:?}, "memory_physical_size_byte": "{number}"}}]}}"#),
            format!(r#"{{"SPDisplaysDataType": [{{"sppci_model": {name:?}, "sppci_cores": "{number}", "spdisplays_vram": "{number} GB"}}]}}"#),
        ];
        for output in &outputs {
            for os in [Os::Linux, Os::Macos] {
                let mut machine = Recorded::new(os, number);
                for program in ["nvidia-smi", "amd-smi", "rocm-smi", "xpu-smi", "system_profiler", "macmon", "hw.memsize"] {
                    machine = machine.says(program, output);
                }
                for found in machine.look().devices {
                    if let Reading::Known(total) = found.facts.total {
                        prop_assert!((1..=1 << 50).contains(&total));
                    }
                    if let Reading::Known(device) = &found.device {
                        prop_assert!(device.usable.bytes <= device.total.bytes, "{device:?}");
                    }
                }
            }
        }
    }
}
