//! Any text as a file of devices: devices whose usable memory is within the total, or errors without control characters.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use plimsoll_planner::custom::CustomDevice;

fuzz_target!(|text: &str| {
    let Ok(described) = toml::from_str::<BTreeMap<String, Vec<CustomDevice>>>(text) else { return };
    for one in described.values().flatten().take(100) {
        match one.device() {
            Ok(device) => assert!(device.usable.bytes <= device.total.bytes && device.usable.bytes.get() > 0, "{one:?}"),
            Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error}"),
        }
    }
});
