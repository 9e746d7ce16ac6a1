//! Lists of devices: the catalogue, and this machine's own.

use plimsoll::math::device::{Device, Origin};
use plimsoll::planner::response::Devices;
use plimsoll::planner::size::{long, short};
use plimsoll_probe::{Found, Local, Reading};

use super::page;
use super::text::{BOLD, DIM, columns, device_name, left, paint, right, width, wrap};

/// Gigabytes or teraflops from thousandths, without trailing zeros.
fn thousandths(value: u64) -> String {
    if value == 0 {
        return "-".to_owned();
    }
    let text = format!("{}.{:03}", value / 1000, value % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The device list.
pub(crate) fn devices(list: &Devices) -> String {
    let width = width();
    let rows: Vec<[String; 6]> = list
        .devices
        .iter()
        .map(|row| {
            let speed = row.device.speed;
            [
                row.device.name.clone(),
                short(row.device.usable.bytes.get()),
                short(row.device.total.bytes.get()),
                thousandths(speed.map_or(0, |speed| speed.memory_mb_per_s)),
                thousandths(speed.map_or(0, |speed| speed.fp16_gflops)),
                format!("{}{}", row.device.backend_name(), if row.device.unified { " unified" } else { "" }),
            ]
        })
        .collect();
    let backends = rows.iter().map(|[.., backend]| columns(backend)).max().unwrap_or(0);
    let full = 2 + 9 + 2 + 9 + 2 + 7 + 2 + 7 + 2 + backends;
    let names = rows.iter().map(|[name, ..]| columns(name)).max().unwrap_or(0);
    // Where the terminal is narrow, what is usable is said and the nominal size is not, and names go without their maker.
    let narrow = names + full > width;
    let name_width = if narrow { names.min(width.saturating_sub(full - 11).max(16)) } else { names };
    let line = |name: &str, [usable, total, bandwidth, compute, backend]: [&str; 5]| {
        let mut cells = vec![left(&device_name(name, name_width), name_width), right(usable, 9)];
        if !narrow {
            cells.push(right(total, 9));
        }
        cells.extend([right(bandwidth, 7), right(compute, 7), backend.to_owned()]);
        cells.join("  ")
    };
    let mut lines = vec![paint(BOLD, &line("device", ["usable", "total", "GB/s", "TFLOP/s", "backend"]))];
    for [name, usable, total, bandwidth, compute, backend] in &rows {
        lines.push(line(name, [usable, total, bandwidth, compute, backend]));
    }
    lines.push(String::new());
    let text = "cpu is this machine's processor; --memory SIZE gives it, or any device, another size. TFLOP/s are in half precision, \
                dense. Names are forgiving: 4090, m3-max-40c, strix halo 128. --json says where each figure comes from.";
    lines.extend(wrap(text, width, "").into_iter().map(|line| paint(DIM, &line)));
    page(&lines)
}

const CSV_HEADING: &str = "name,backend,unified,total_bytes,total_origin,usable_bytes,usable_origin,memory_mb_per_s,fp32_gflops,\
                           fp16_gflops,bf16_gflops,fp8_gflops,int8_gops,fp4_gflops,speed_origin,link,link_mb_per_s,tdp_w";

/// How a word is written in JSON.
fn origin(origin: Origin) -> String {
    serde_json::to_value(origin).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The device list as comma-separated values.
pub(crate) fn devices_csv(list: &Devices) -> String {
    let mut out = format!("{CSV_HEADING}\n");
    for row in &list.devices {
        out.push_str(&csv_line(&csv_fields(&row.device)));
    }
    out
}

/// A device's cells.
fn csv_fields(device: &Device) -> Vec<String> {
    let mut fields = vec![
        device.name.clone(),
        device.backend_name(),
        device.unified.to_string(),
        device.total.bytes.to_string(),
        origin(device.total.kind),
        device.usable.bytes.to_string(),
        origin(device.usable.kind),
    ];
    match device.speed {
        Some(speed) => {
            let figures = [
                speed.memory_mb_per_s,
                speed.fp32_gflops,
                speed.fp16_gflops,
                speed.bf16_gflops,
                speed.fp8_gflops,
                speed.int8_gops,
                speed.fp4_gflops,
            ];
            fields.extend(figures.map(|figure| figure.to_string()));
            fields.push(origin(speed.origin));
        }
        None => fields.extend(vec![String::new(); 8]),
    }
    fields.push(device.link.as_ref().map_or_else(String::new, |link| link.name.clone()));
    fields.push(device.link.as_ref().map_or_else(String::new, |link| link.mb_per_s_per_direction.to_string()));
    fields.push(device.tdp_w.map_or_else(String::new, |watts| watts.to_string()));
    fields
}

/// Cells as a line.
fn csv_line(fields: &[String]) -> String {
    let cells: Vec<String> = fields.iter().map(|field| csv_field(field)).collect();
    format!("{}\n", cells.join(","))
}

/// Quoted where a comma, a quote or a line break would end the field.
pub(crate) fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// A value, or a dash.
fn shown<T>(reading: &Reading<T>, show: impl Fn(&T) -> String) -> String {
    reading.known().map_or_else(|| "unavailable".to_owned(), show)
}

/// This machine.
pub(crate) fn local(machine: &Local) -> String {
    let width = width();
    let mut lines = vec![paint(BOLD, "This machine")];
    let host = &machine.host;
    lines.push(format!("  processor  {}", shown(&host.processor, Clone::clone)));
    let threads = shown(&host.threads, ToString::to_string);
    lines.push(format!("  cores      {} ({threads} threads)", shown(&host.cores, ToString::to_string)));
    lines.push(format!("  memory     {}", shown(&host.memory, |bytes| long(*bytes))));
    lines.push(format!("  available  {}", shown(&host.available, |bytes| long(*bytes))));
    for (index, found) in machine.devices.iter().enumerate() {
        lines.push(String::new());
        lines.extend(device(index, found, width));
    }
    if machine.devices.is_empty() {
        lines.push(String::new());
        lines.push("No device beside the processor was found.".to_owned());
    }
    lines.push(String::new());
    for source in &machine.sources {
        let said = match &source.found {
            Reading::Known(count) => format!("{}: {count} found", source.name),
            Reading::Unavailable(reason) if reason.starts_with(source.name) => reason.clone(),
            Reading::Unavailable(reason) => format!("{}: {reason}", source.name),
        };
        lines.extend(wrap(&said, width, "  ").into_iter().map(|line| paint(DIM, &line)));
    }
    page(&lines)
}

fn device(index: usize, found: &Found, width: usize) -> Vec<String> {
    let facts = &found.facts;
    let name = found.device.known().map_or_else(|| shown(&facts.name, Clone::clone), |device| device.name.clone());
    let mut lines = vec![paint(BOLD, &format!("Device {index}: {name}"))];
    let mut line = |label: &str, text: String| {
        for (index, part) in wrap(&text, width, "             ").into_iter().enumerate() {
            lines.push(if index == 0 { format!("  {}{}", left(label, 11), part.trim_start()) } else { part });
        }
    };
    let reading = |reading: &Reading<u64>| match reading {
        Reading::Known(bytes) => long(*bytes),
        Reading::Unavailable(reason) => format!("unavailable: {reason}"),
    };
    match &found.device {
        Reading::Known(device) => {
            let memory = if device.unified { "memory" } else { "total" };
            line(memory, format!("{}, {}", long(device.total.bytes.get()), device.total.origin));
            line("usable", format!("{}, {}", long(device.usable.bytes.get()), device.usable.origin));
            line("free now", reading(&facts.free));
            let speed = device.speed.map_or_else(
                || "unavailable: the catalogue does not know the name; describe it in a file (--devices-file)".to_owned(),
                |speed| {
                    format!(
                        "{} GB/s, {} TFLOP/s in half precision",
                        thousandths(speed.memory_mb_per_s),
                        thousandths(speed.fp16_gflops)
                    )
                },
            );
            line("speed", speed);
            line(
                "backend",
                format!("{}{}", device.backend_name(), if device.unified { ", shares the host's memory" } else { "" }),
            );
        }
        Reading::Unavailable(reason) => line("memory", format!("unavailable: {reason}")),
    }
    line(
        "driver",
        match &facts.driver {
            Reading::Known(version) => format!("{version} (by {})", facts.source),
            Reading::Unavailable(reason) => format!("unavailable: {reason}"),
        },
    );
    lines
}

/// This machine's devices as comma-separated values; an empty cell is a value that cannot be read.
pub(crate) fn local_csv(machine: &Local) -> String {
    let mut out = format!("{CSV_HEADING},free_bytes,source,unavailable\n");
    let columns = CSV_HEADING.split(',').count();
    for found in &machine.devices {
        let mut fields = match &found.device {
            Reading::Known(device) => csv_fields(device),
            Reading::Unavailable(_) => {
                let mut fields = vec![found.facts.name.known().cloned().unwrap_or_default()];
                fields.resize(columns, String::new());
                fields
            }
        };
        fields.push(found.facts.free.known().map_or_else(String::new, ToString::to_string));
        fields.push(found.facts.source.to_owned());
        fields.push(match &found.device {
            Reading::Known(_) => String::new(),
            Reading::Unavailable(reason) => reason.clone(),
        });
        out.push_str(&csv_line(&fields));
    }
    out
}
