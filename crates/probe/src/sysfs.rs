//! What Linux itself knows of graphics cards, where no tool is installed.

use crate::facts::{Facts, Maker, Reading, Unavailable, bytes};
use crate::system::{Os, System};
use crate::{MAX_DEVICES, Probe};

const FOLDER: &str = "/sys/class/drm";

/// Folders of cards with their makers' numbers.
fn cards(system: &dyn System) -> Result<Vec<(String, String)>, Unavailable> {
    if system.os() != Os::Linux {
        return Err(Unavailable(format!("{FOLDER}: only on Linux")));
    }
    let numbered = |name: &str| {
        name.strip_prefix("card").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let found: Vec<(String, String)> = system
        .list(FOLDER)
        .into_iter()
        .filter(|name| numbered(name))
        .take(MAX_DEVICES)
        .map(|name| format!("{FOLDER}/{name}/device"))
        .filter_map(|folder| Some((system.read(&format!("{folder}/vendor")).ok()?.trim().to_owned(), folder)))
        .map(|(vendor, folder)| (folder, vendor))
        .collect();
    if found.is_empty() { Err(Unavailable(format!("{FOLDER}: no graphics card"))) } else { Ok(found) }
}

/// AMD's kernel driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amdgpu;

impl Probe for Amdgpu {
    fn name(&self) -> &'static str {
        "amdgpu"
    }

    fn maker(&self) -> Maker {
        Maker::Amd
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let mut found = Vec::new();
        for (folder, _) in cards(system)?.into_iter().filter(|(_, vendor)| vendor == "0x1002") {
            let mut facts = Facts::new("amdgpu", Maker::Amd);
            let figure = |file: &str| system.read(&format!("{folder}/{file}")).ok()?.trim().parse::<u64>().ok();
            let silent = |file: &str| format!("{folder}/{file} cannot be read");
            let name = system.read(&format!("{folder}/product_name")).ok().and_then(|raw| crate::facts::text(&raw));
            facts.name = Reading::of(name, "the kernel does not name it: amd-smi or rocm-smi does");
            let total = figure("mem_info_vram_total").and_then(|count| bytes(count, 1));
            facts.total = Reading::of(total, silent("mem_info_vram_total"));
            let free = total.zip(figure("mem_info_vram_used")).and_then(|(total, used)| total.checked_sub(used));
            facts.free = Reading::of(free, silent("mem_info_vram_used"));
            facts.shared =
                Reading::of(figure("mem_info_gtt_total").and_then(|count| bytes(count, 1)), silent("mem_info_gtt_total"));
            found.push(facts);
        }
        if found.is_empty() { Err(Unavailable(format!("{FOLDER}: no card of AMD's"))) } else { Ok(found) }
    }
}

/// Cards of makers whose tool is not installed: they are named, and their memory is said to be unknown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others;

impl Probe for Others {
    fn name(&self) -> &'static str {
        "sysfs"
    }

    fn maker(&self) -> Maker {
        Maker::Other
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let mut found = Vec::new();
        for (folder, vendor) in cards(system)? {
            let (maker, tool) = match vendor.as_str() {
                "0x8086" => (Maker::Intel, "xpu-smi (Intel XPU Manager) would read its memory"),
                "0x10de" => (Maker::Nvidia, "nvidia-smi (NVIDIA's driver) would read its memory"),
                "0x1002" => continue,
                _ => (Maker::Other, "no tool is known that reads its memory: describe it with --memory or in a file"),
            };
            let mut facts = Facts::new("sysfs", maker);
            let number = system.read(&format!("{folder}/device")).ok().and_then(|raw| crate::facts::text(&raw));
            facts.name =
                Reading::of(number.map(|number| format!("graphics card {vendor}:{number}")), "the kernel does not name it");
            facts.total = Reading::unavailable(tool);
            facts.free = Reading::unavailable(tool);
            found.push(facts);
        }
        Ok(found)
    }
}
