//! Apple machines through `system_profiler` and `sysctl`, and `macmon` where it is installed.

use serde_json::Value;

use crate::facts::{Facts, Maker, Reading, Unavailable, bytes, text};
use crate::json::{get, number, parse, size, string};
use crate::system::{Os, System};
use crate::{MAX_DEVICES, Probe};

/// The tool that every Mac has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemProfiler;

impl Probe for SystemProfiler {
    fn name(&self) -> &'static str {
        "system_profiler"
    }

    fn maker(&self) -> Maker {
        Maker::Apple
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        if system.os() != Os::Macos {
            return Err(Unavailable("system_profiler: only on macOS".to_owned()));
        }
        let sysctl = |key: &str| system.run("sysctl", &["-n", key]).ok().and_then(|raw| raw.trim().parse::<u64>().ok());
        let memory = sysctl("hw.memsize").and_then(|count| bytes(count, 1));
        // 0 leaves the share to the system.
        let limit = sysctl("iogpu.wired_limit_mb").filter(|mib| *mib > 0).and_then(|mib| bytes(mib, 1 << 20));
        let monitor = system.run("macmon", &["pipe", "-s", "1"]).ok().and_then(|raw| parse("macmon", &raw).ok());
        let displays = system.run("system_profiler", &["SPDisplaysDataType", "-json"])?;
        system_profiler(&displays, memory, limit, monitor.as_ref())
    }
}

pub(crate) fn system_profiler(
    raw: &str,
    memory: Option<u64>,
    limit: Option<u64>,
    monitor: Option<&Value>,
) -> Result<Vec<Facts>, Unavailable> {
    let answer = parse("system_profiler", raw)?;
    let Some(Value::Array(list)) = get(&answer, &["SPDisplaysDataType"]) else {
        return Err(Unavailable("system_profiler: its answer has no SPDisplaysDataType".to_owned()));
    };
    let seen = monitor.and_then(|monitor| get(monitor, &["memory"]));
    let mut found = Vec::new();
    for gpu in list.iter().take(MAX_DEVICES) {
        let silent = |what: &str| format!("system_profiler does not say {what}");
        let name = string(gpu, &["sppci_model", "_name"]).and_then(|name| text(&name));
        let apple = string(gpu, &["spdisplays_vendor"]).is_some_and(|vendor| vendor.contains("Apple"))
            || name.as_deref().is_some_and(|name| name.starts_with("Apple"));
        let mut facts = Facts::new("system_profiler", if apple { Maker::Apple } else { Maker::Other });
        facts.name = Reading::of(name, silent("a model"));
        facts.unified = Some(apple);
        let shown = get(gpu, &["spdisplays_ndrvs"]).and_then(Value::as_array).map(|displays| !displays.is_empty());
        facts.displays = Reading::Known(shown.unwrap_or(false));
        if apple {
            facts.cores = Reading::of(
                number(gpu, &["sppci_cores"]).and_then(|cores| u32::try_from(cores).ok()).filter(|cores| *cores > 0),
                silent("how many cores the GPU has"),
            );
            let total = memory.or_else(|| seen.and_then(|seen| size(seen, &["ram_total"], 1)));
            facts.total = Reading::of(total, "neither sysctl hw.memsize nor macmon answers");
            facts.shared = Reading::of(limit, "iogpu.wired_limit_mb is not set: the system's own share holds");
            let used = seen.and_then(|seen| number(seen, &["ram_usage"]));
            let free = total.zip(used).and_then(|(total, used)| total.checked_sub(used));
            facts.free = Reading::of(free, "macmon is not installed: what is in use is not known");
        } else {
            let vram = string(gpu, &["spdisplays_vram", "_spdisplays_vram"]).and_then(|raw| {
                let (count, unit) = raw.split_once(' ')?;
                let unit = match unit {
                    "MB" => 1 << 20,
                    "GB" => 1 << 30,
                    _ => return None,
                };
                bytes(count.parse().ok()?, unit)
            });
            facts.total = Reading::of(vram, silent("the size of its memory"));
        }
        found.push(facts);
    }
    Ok(found)
}
