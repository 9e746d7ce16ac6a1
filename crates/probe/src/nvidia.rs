//! NVIDIA boards through `nvidia-smi`.

use crate::facts::{Facts, Maker, Reading, Unavailable, bytes, leading_number, text};
use crate::system::System;
use crate::{MAX_DEVICES, Probe};

/// The columns asked for, oldest drivers first: newer ones know more of them.
const COLUMNS: [&str; 2] = [
    "name,memory.total,memory.free,compute_cap,display_active,driver_version,power.limit",
    "name,memory.total,memory.free,driver_version",
];

/// The program that comes with the driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NvidiaSmi;

impl Probe for NvidiaSmi {
    fn name(&self) -> &'static str {
        "nvidia-smi"
    }

    fn maker(&self) -> Maker {
        Maker::Nvidia
    }

    fn probe(&self, system: &dyn System) -> Result<Vec<Facts>, Unavailable> {
        let mut last = Unavailable("nvidia-smi: not asked".to_owned());
        for columns in COLUMNS {
            let query = format!("--query-gpu={columns}");
            match system.run("nvidia-smi", &[&query, "--format=csv"]) {
                Ok(table) => return parse(&table),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }
}

/// A table with a heading: columns are found by name, since drivers differ in which they know.
pub(crate) fn parse(table: &str) -> Result<Vec<Facts>, Unavailable> {
    let mut lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    let heading: Vec<&str> = lines.next().unwrap_or("").split(',').map(str::trim).collect();
    let column = |name: &str| heading.iter().position(|title| title.split(' ').next() == Some(name));
    if column("name").is_none() && column("memory.total").is_none() {
        return Err(Unavailable("nvidia-smi: its table has neither names nor memory".to_owned()));
    }
    let mut found = Vec::new();
    for line in lines.take(MAX_DEVICES) {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |name: &str| column(name).and_then(|index| cells.get(index)).and_then(|raw| text(raw));
        let mut facts = Facts::new("nvidia-smi", Maker::Nvidia);
        let mib = |name: &str| cell(name).and_then(|raw| leading_number(&raw)).and_then(|count| bytes(count, 1 << 20));
        let silent = |what: &str| format!("nvidia-smi does not say {what}");
        facts.name = Reading::of(cell("name"), silent("a name"));
        facts.total = Reading::of(mib("memory.total"), silent("memory.total: the board may share the host's memory"));
        facts.free = Reading::of(mib("memory.free"), silent("memory.free"));
        let isa = cell("compute_cap").and_then(|raw| {
            let (major, minor) = raw.split_once('.')?;
            let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
            (major < 100 && minor < 10).then(|| format!("sm_{major}{minor}"))
        });
        facts.isa = Reading::of(isa, silent("compute_cap"));
        facts.displays =
            Reading::of(cell("display_active").map(|state| state.eq_ignore_ascii_case("enabled")), silent("display_active"));
        facts.driver = Reading::of(cell("driver_version"), silent("driver_version"));
        let watts = cell("power.limit").and_then(|raw| leading_number(&raw)).and_then(|watts| u32::try_from(watts).ok());
        facts.power_limit_w = Reading::of(watts, silent("power.limit"));
        found.push(facts);
    }
    Ok(found)
}
