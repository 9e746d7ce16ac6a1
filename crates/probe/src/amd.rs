//! AMD boards and processors through `amd-smi`, and `rocm-smi` before it.

use serde_json::Value;

use crate::facts::{Facts, Maker, Reading, Unavailable};
use crate::json::{get, number, parse, size, string};
use crate::system::System;
use crate::{MAX_DEVICES, Probe};

/// The current tool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AmdSmi;

impl Probe for AmdSmi {
    fn name(&self) -> &'static str {
        "amd-smi"
    }

    fn maker(&self) -> Maker {
        Maker::Amd
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let fixed = system.run("amd-smi", &["static", "--json"])?;
        // What is in use comes from a second question, and may be missing.
        let used = system.run("amd-smi", &["metric", "--mem-usage", "--json"]).ok();
        amd_smi(&fixed, used.as_deref())
    }
}

/// A list of GPUs, bare or under `gpu_data`.
fn gpus(value: &Value) -> Vec<&Value> {
    let list = get(value, &["gpu_data"]).unwrap_or(value);
    match list {
        Value::Array(list) => list.iter().take(MAX_DEVICES).collect(),
        one => vec![one],
    }
}

pub(crate) fn amd_smi(fixed: &str, used: Option<&str>) -> Result<Vec<Facts>, Unavailable> {
    let fixed = parse("amd-smi", fixed)?;
    let used = used.and_then(|raw| parse("amd-smi", raw).ok());
    let used: Vec<&Value> = used.as_ref().map(gpus).unwrap_or_default();
    let mut found = Vec::new();
    for gpu in gpus(&fixed) {
        let Some(asic) = get(gpu, &["asic"]) else { continue };
        let mut facts = Facts::new("amd-smi", Maker::Amd);
        let silent = |what: &str| format!("amd-smi does not say {what}");
        facts.name = Reading::of(string(asic, &["market_name"]), silent("a market name"));
        facts.isa = Reading::of(string(asic, &["target_graphics_version"]), silent("a graphics version"));
        let vram = get(gpu, &["vram"]);
        facts.total =
            Reading::of(vram.and_then(|vram| size(vram, &["size", "vram_size"], 1 << 20)), silent("the size of its memory"));
        let driver = get(gpu, &["driver"]).and_then(|driver| string(driver, &["version"]));
        facts.driver = Reading::of(driver, silent("a driver"));
        let limit = get(gpu, &["limit"]).and_then(|limit| {
            let limit = get(limit, &["ppt0"]).unwrap_or(limit);
            let power = get(limit, &["socket_power", "socket_power_limit", "max_power", "max_power_limit"])?;
            number(power, &["value"]).and_then(|watts| u32::try_from(watts).ok()).filter(|watts| *watts > 0)
        });
        facts.power_limit_w = Reading::of(limit, silent("a power limit"));
        let index = number(gpu, &["gpu"]);
        let usage = used.iter().find(|one| number(one, &["gpu"]) == index).and_then(|one| get(one, &["mem_usage"]));
        facts.free = Reading::of(usage.and_then(|usage| size(usage, &["free_vram"], 1 << 20)), silent("how much is in use"));
        facts.shared = Reading::of(usage.and_then(|usage| size(usage, &["total_gtt"], 1 << 20)), silent("a translation table"));
        found.push(facts);
    }
    Ok(found)
}

/// The tool before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RocmSmi;

impl Probe for RocmSmi {
    fn name(&self) -> &'static str {
        "rocm-smi"
    }

    fn maker(&self) -> Maker {
        Maker::Amd
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let both = ["--showproductname", "--showmeminfo", "vram", "gtt", "--json"];
        let answer = system.run("rocm-smi", &both).or_else(|_| {
            let alone = ["--showproductname", "--showmeminfo", "vram", "--json"];
            system.run("rocm-smi", &alone)
        })?;
        rocm_smi(&answer)
    }
}

pub(crate) fn rocm_smi(raw: &str) -> Result<Vec<Facts>, Unavailable> {
    let answer = parse("rocm-smi", raw)?;
    let Some(cards) = answer.as_object() else {
        return Err(Unavailable("rocm-smi: its answer is no table of cards".to_owned()));
    };
    let version = get(&answer, &["system"]).and_then(|system| string(system, &["Driver version"]));
    let mut numbered: Vec<(u64, &Value)> = cards
        .iter()
        .filter_map(|(key, card)| Some((key.strip_prefix("card")?.trim_start_matches(':').parse().ok()?, card)))
        .collect();
    numbered.sort_by_key(|(index, _)| *index);
    let mut found = Vec::new();
    for (_, card) in numbered.into_iter().take(MAX_DEVICES) {
        let mut facts = Facts::new("rocm-smi", Maker::Amd);
        let silent = |what: &str| format!("rocm-smi does not say {what}");
        // Older versions give a number for a name.
        let name = string(card, &["Card Series", "Device Name", "Card Model"]).filter(|name| !name.starts_with("0x"));
        facts.name = Reading::of(name, silent("a name"));
        facts.isa = Reading::of(string(card, &["GFX Version"]), silent("a graphics version"));
        let total = size(card, &["VRAM Total Memory (B)"], 1);
        facts.total = Reading::of(total, silent("VRAM Total Memory"));
        let free = total.zip(number(card, &["VRAM Total Used Memory (B)"])).and_then(|(total, used)| total.checked_sub(used));
        facts.free = Reading::of(free, silent("VRAM Total Used Memory"));
        facts.shared = Reading::of(size(card, &["GTT Total Memory (B)"], 1), silent("GTT Total Memory"));
        facts.driver = Reading::of(version.clone(), silent("a driver"));
        found.push(facts);
    }
    Ok(found)
}
