//! Any text as a fleet: no placement holds more than its devices and hosts, or an error without control characters.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use plimsoll_ingest::hf;
use plimsoll_planner::fleet::{FleetRequest, fleet};
use plimsoll_planner::{Basis, Model};

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let config = include_bytes!("../../fixtures/models/llama-3.1-8b/config.json");
    Model::new(None, hf::ingest(config, &hf::Options::default()).expect("a config that is read"), Basis::Config)
});

fuzz_target!(|text: &str| {
    let Ok(mut request) = toml::from_str::<FleetRequest>(text) else { return };
    // What is slow by its size alone is for no fuzzer.
    let hosts: u64 = request.host.iter().map(|host| host.count.unwrap_or(1)).fold(0, u64::saturating_add);
    let replicas: u64 = request.model.iter().map(|model| model.replicas.unwrap_or(1)).fold(0, u64::saturating_add);
    let devices: usize = request.host.iter().map(|host| host.devices.len()).sum();
    if hosts > 8 || replicas > 50 || devices > 8 || request.model.len() > 3 {
        return;
    }
    request.solver_seconds = Some(0);
    let models = vec![MODEL.clone(); request.model.len()];
    let answer = match fleet(&request, &models) {
        Ok(answer) => answer,
        Err(error) => return assert!(!error.to_string().chars().any(char::is_control), "{error}"),
    };
    let mut used: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for placement in &answer.placements {
        for device in &placement.devices {
            *used.entry((&placement.host, device.index)).or_default() += device.bytes.get();
        }
    }
    for host in &answer.hosts {
        for (index, device) in (0_u64..).zip(&host.devices) {
            assert!(used.get(&(host.name.as_str(), index)).copied().unwrap_or(0) <= device.limit.get(), "{}", host.name);
            assert!(device.limit <= device.usable);
        }
    }
});
