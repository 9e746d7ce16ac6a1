//! The device table of the ground floor, generated from `fixtures/devices/`: a program that plans parses nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::csv::{Record, number, records, text};
use crate::run::root;
use crate::truth::fixture;

const TABLE: &str = "crates/math-core/src/device/table.rs";

/// Writes the table, or with `check` only compares it with what is there.
pub(crate) fn run(check: bool) -> Result<(), String> {
    println!("== device table");
    let now = table()?;
    let path = root().join(TABLE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == now) {
        return Ok(());
    }
    if check {
        return Err(format!("{TABLE} is out of date: run `cargo xtask devices`"));
    }
    std::fs::write(&path, now).map_err(|error| format!("{TABLE}: {error}"))?;
    println!("   wrote {TABLE}");
    Ok(())
}

fn read(name: &str) -> Result<Vec<Record>, String> {
    let text = std::fs::read_to_string(fixture(name)).map_err(|error| format!("{name}: {error}"))?;
    records(&text).map_err(|error| format!("{name}: {error}"))
}

fn table() -> Result<String, String> {
    let mut names: BTreeMap<String, Record> =
        read("devices/names.csv")?.into_iter().map(|record| (text(&record, "name").to_owned(), record)).collect();
    let devices = read("devices/devices.csv")?;
    let mut out = String::from(
        "//! Written by `cargo xtask devices` from `fixtures/devices/`: one row per device.\n\n\
         use super::row::{Class::*, Row, Vendor::*, row};\n\n\
         /// Memory is `[sold GB, driver's total MiB, runtime's total MiB]`, 0 where unknown; speeds are `[MB/s, then GFLOP/s in\n\
         /// fp32, fp16, bf16, fp8, int8 (GOP/s), fp4]`, dense, 0 where there is no such unit.\n\
         #[rustfmt::skip]\n\
         pub(super) const DEVICES: &[Row] = &[\n",
    );
    for device in &devices {
        let name = text(device, "name");
        let extra = names.remove(name).unwrap_or_default();
        line(&mut out, device, &extra).map_err(|error| format!("devices.csv: {name}: {error}"))?;
    }
    if let Some(name) = names.keys().next() {
        return Err(format!("names.csv: {name}: no such device in devices.csv"));
    }
    out.push_str("];\n");
    Ok(out)
}

fn line(out: &mut String, device: &Record, extra: &Record) -> Result<(), String> {
    let (name, vendor, class) = (text(device, "name"), text(device, "vendor"), text(device, "class"));
    let full = if class == "cpu" || name.starts_with(vendor) { name.to_owned() } else { format!("{vendor} {name}") };
    let list =
        |column: &str| text(extra, column).split(';').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let whole = |column: &str, scale: f64| -> Result<u32, String> {
        let value = number(device, column)?.unwrap_or(0.0) * scale;
        format!("{:.0}", value).parse().map_err(|_| format!("{column}: {value} does not fit"))
    };
    let memory = [whole("mem_gb_nominal", 1.0)?, whole("nvml_total_mib", 1.0)?, whole("runtime_total_mib_linux", 1.0)?];
    let mut speeds = vec![whole("mem_bw_gbs", 1000.0)?];
    for column in [
        "fp32_tflops",
        "fp16_dense_tflops_fp32acc",
        "bf16_dense_tflops",
        "fp8_dense_tflops",
        "int8_dense_tops",
        "fp4_dense_tflops",
    ] {
        speeds.push(whole(column, 1000.0)?);
    }
    // F: seen in a driver's log, K: read on a machine of this kind.
    let seen = text(device, "src").split(',').any(|letter| letter == "F" || letter == "K");
    let sizes = list("memory_sizes_gb").join(", ");
    let _ = writeln!(
        out,
        "    row({full:?}, &{:?}, {}, {}, {:?}, {:?}, {memory:?}, {seen}, {speeds:?}, {:?}, {}, {}, &[{sizes}]),",
        list("aliases"),
        variant(vendor),
        variant(class),
        text(device, "arch"),
        text(device, "isa"),
        text(device, "link"),
        whole("link_gbs_per_dir", 1000.0)?,
        whole("tdp_w", 1.0)?,
    );
    Ok(())
}

/// `nvidia` and `NVIDIA` as `Nvidia`.
fn variant(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect())
}
