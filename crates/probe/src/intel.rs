//! Intel boards through `xpu-smi`.

use serde_json::Value;

use crate::facts::{Facts, Maker, Reading, Unavailable};
use crate::json::{get, number, parse, size, string};
use crate::system::System;
use crate::{MAX_DEVICES, Probe};

/// Intel's tool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct XpuSmi;

impl Probe for XpuSmi {
    fn name(&self) -> &'static str {
        "xpu-smi"
    }

    fn maker(&self) -> Maker {
        Maker::Intel
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let list = parse("xpu-smi", &system.run("xpu-smi", &["discovery", "-j"])?)?;
        let mut found = Vec::new();
        for device in devices(&list) {
            // The list says less than the page of each device.
            let page = number(device, &["device_id"])
                .and_then(|id| system.run("xpu-smi", &["discovery", "-d", &id.to_string(), "-j"]).ok())
                .and_then(|raw| parse("xpu-smi", &raw).ok());
            let page = page.as_ref().filter(|page| size(page, &["memory_physical_size_byte"], 1).is_some());
            found.push(facts(page.unwrap_or(device)));
        }
        Ok(found)
    }
}

fn devices(list: &Value) -> Vec<&Value> {
    match get(list, &["device_list"]).unwrap_or(list) {
        Value::Array(list) => list.iter().filter(|device| device.is_object()).take(MAX_DEVICES).collect(),
        _ => Vec::new(),
    }
}

/// One device of the list, or its page.
fn facts(device: &Value) -> Facts {
    let mut facts = Facts::new("xpu-smi", Maker::Intel);
    let silent = |what: &str| format!("xpu-smi does not say {what}");
    // Drivers that do not know a board by name give its number: Intel(R) Graphics [0xe211].
    let name = string(device, &["device_name"]).map(|name| match string(device, &["pci_device_id"]) {
        Some(id) if name.contains("[0x") => by_number(&id).map_or(name, ToOwned::to_owned),
        _ => name,
    });
    facts.name = Reading::of(name, silent("a name"));
    facts.total = Reading::of(size(device, &["memory_physical_size_byte"], 1), silent("memory_physical_size_byte"));
    facts.free = Reading::of(size(device, &["memory_free_size_byte"], 1), silent("memory_free_size_byte"));
    facts.driver = Reading::of(string(device, &["driver_version"]), silent("a driver"));
    facts
}

/// Boards by the number that stands in for their name: as the PCI ID Project lists them under vendor 8086 (pci.ids of 2025-07-11, which the
/// crate `pci-ids` 0.2.6 packs); `e211`, which that list calls by its chip only, as a machine with the board printed it
/// (`fixtures/probes/xpu-smi/arc-pro-b60.json`). Others keep the number for a name.
fn by_number(id: &str) -> Option<&'static str> {
    Some(match id.trim_start_matches("0x") {
        "e20b" => "Intel Arc B580",
        "e20c" => "Intel Arc B570",
        "e211" => "Intel Arc Pro B60",
        "56a0" => "Intel Arc A770",
        "56a1" => "Intel Arc A750",
        "56a2" => "Intel Arc A580",
        "56a5" => "Intel Arc A380",
        "56a6" => "Intel Arc A310",
        _ => return None,
    })
}
