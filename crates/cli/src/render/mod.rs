//! Answers as people read them: the verdict first, then what every byte pays for.

mod bar;
mod compare;
mod explain;
mod fit;
mod inspect;
mod text;

use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::planner::response::{DeploymentBrief, Devices, EngineBrief, LimitedBy, ModelBrief, Reach};
use plimsoll::planner::size::{count, grouped, long, short};

pub(crate) use compare::compare;
pub(crate) use explain::explain;
pub(crate) use fit::fit;
pub(crate) use inspect::inspect;

use text::{BAD, BOLD, DIM, GOOD, columns, command, cut, flow, headline, left, paint, right, width, wrap};

/// The engine's own command line, to paste.
pub(crate) fn export(answer: &plimsoll::planner::response::Export) -> String {
    let mut text = command(&answer.command, width(), "").join("\n");
    text.push('\n');
    text
}

/// One sign for how sure a figure is.
fn mark(certainty: &Certainty) -> &'static str {
    match certainty {
        Certainty::Exact => "=",
        Certainty::Bounded { .. } => "≤",
        _ => "~",
    }
}

/// What a component is called on screen.
fn component(kind: TermKind) -> &'static str {
    match kind {
        TermKind::Weights => "weights",
        TermKind::KvCache => "KV cache",
        TermKind::RecurrentState => "recurrent state",
        TermKind::Compute => "compute",
        TermKind::Output => "output",
        TermKind::Draft => "draft model",
        TermKind::Projector => "projector",
        TermKind::DriverContext => "driver context",
        _ => "other",
    }
}

/// The model and the deployment in two or more lines.
fn heading(model: &ModelBrief, engine: &EngineBrief, deployment: &DeploymentBrief, width: usize) -> Vec<String> {
    let mut facts = vec![model.name.clone(), model.architecture.clone()];
    facts.push(format!("{} parameters", count(model.parameters.total.get())));
    if model.parameters.active != model.parameters.total {
        facts.push(format!("{} active", count(model.parameters.active.get())));
    }
    facts.extend(model.quantization.clone());
    let mut asked = vec![format!("{} {}", engine.name, engine.version)];
    asked.push(format!("{} tokens", grouped(deployment.context)));
    asked.push(format!("{} {}", deployment.sequences, if deployment.sequences == 1 { "sequence" } else { "sequences" }));
    if deployment.kv_type_k == deployment.kv_type_v {
        asked.push(format!("cache {}", deployment.kv_type_k));
    } else {
        asked.push(format!("cache {}/{}", deployment.kv_type_k, deployment.kv_type_v));
    }
    if matches!(deployment.flash_attention, plimsoll::math::deployment::FlashAttention::Off) {
        asked.push("no flash attention".to_owned());
    }
    if deployment.kv_unified {
        asked.push("one cache for all".to_owned());
    }
    asked.extend(deployment.gpu_layers.map(|layers| format!("{layers} layers on devices")));
    if !deployment.tensor_split.is_empty() {
        let shares: Vec<String> = deployment.tensor_split.iter().map(|share| share.get().to_string()).collect();
        asked.push(format!("shares {}", shares.join(":")));
    }
    if deployment.cpu_moe {
        asked.push("experts on the host".to_owned());
    } else if deployment.n_cpu_moe > 0 {
        asked.push(format!("experts of {} layers on the host", deployment.n_cpu_moe));
    }
    if !deployment.kv_offload {
        asked.push("cache on the host".to_owned());
    }
    let mut lines = flow(facts.into_iter(), " · ", width, "  ");
    lines.extend(flow(asked.into_iter(), " · ", width, "  "));
    lines
}

fn notes(notes: &[String], width: usize) -> Vec<String> {
    // Keys without effect are many and alike: one line names them all.
    const UNUSED: &str = ": not used (no effect on sizes is known)";
    let unused: Vec<&str> = notes.iter().filter_map(|note| note.strip_suffix(UNUSED)).collect();
    let mut shown: Vec<String> = notes.iter().filter(|note| !note.ends_with(UNUSED)).cloned().collect();
    if !unused.is_empty() {
        shown.push(format!("not used, no effect on sizes is known: {}", unused.join(", ")));
    }
    let mut lines = Vec::new();
    for note in &shown {
        for (index, line) in wrap(note, width.saturating_sub(2), "    ").into_iter().enumerate() {
            lines.push(if index == 0 { format!("  - {}", line.trim_start()) } else { line });
        }
    }
    lines
}

fn limited(by: LimitedBy) -> &'static str {
    match by {
        LimitedBy::Memory => "memory",
        LimitedBy::Model => "the model's own maximum",
        _ => "the engine's maximum",
    }
}

/// Three digits, as much as such a figure is good for.
fn digits(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{rate:.0}")
    } else if rate >= 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.2}")
    }
}

/// Lines of text.
fn page(lines: &[String]) -> String {
    let mut out = String::new();
    for line in lines {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Answer of `max-context` and `max-sequences`.
pub(crate) fn reach(answer: &Reach) -> String {
    let width = width();
    let device = &answer.deployment.device;
    let mut lines = Vec::new();
    let (value, what) = (answer.limit.value, answer.of.as_str());
    if value == 0 {
        let least = if what == "context" { "one token of context" } else { "one sequence" };
        lines.extend(headline(BAD, "Does not fit", &format!(": {device} has no room for {least}"), width));
    } else {
        let unit = if what == "context" { "tokens per sequence" } else { "sequences" };
        let lead = format!("{} {unit}", grouped(value));
        let rest = format!(" on {device}, limited by {}", limited(answer.limit.limited_by));
        lines.extend(headline(GOOD, &lead, &rest, width));
    }
    lines.push(String::new());
    lines.extend(heading(&answer.model, &answer.engine, &answer.deployment, width));
    lines.push(format!("  used {} of {}", long(answer.used.get()), short(answer.usable.get())));
    if value > 0 && !answer.command.is_empty() {
        lines.push(String::new());
        lines.push(paint(BOLD, "Run"));
        lines.extend(command(&answer.command, width, "  "));
    }
    if !answer.notes.is_empty() {
        lines.push(String::new());
        lines.push(paint(BOLD, "Notes"));
        lines.extend(notes(&answer.notes, width));
    }
    page(&lines)
}

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
    let name_width = rows.iter().map(|[name, ..]| columns(name)).max().unwrap_or(0);
    let head = [right("usable", 9), right("total", 9), right("GB/s", 7), right("TFLOP/s", 7)].join("  ");
    let mut lines = vec![paint(BOLD, &format!("{}  {head}  backend", left("device", name_width)))];
    for [name, usable, total, bandwidth, compute, backend] in rows {
        let figures = [right(&usable, 9), right(&total, 9), right(&bandwidth, 7), right(&compute, 7)].join("  ");
        lines.push(format!("{}  {figures}  {backend}", left(&name, name_width)));
    }
    lines.push(String::new());
    let text = "cpu is this machine's processor; --memory SIZE gives it, or any device, another size. TFLOP/s are in half precision, \
                dense. Names are forgiving: 4090, m3-max-40c, strix halo 128. --json says where each figure comes from.";
    lines.extend(wrap(text, width, "").into_iter().map(|line| paint(DIM, &line)));
    page(&lines)
}

/// The device list as comma-separated values.
pub(crate) fn devices_csv(list: &Devices) -> String {
    let mut out = String::from(
        "name,backend,unified,total_bytes,total_origin,usable_bytes,usable_origin,memory_mb_per_s,fp32_gflops,fp16_gflops,bf16_gflops,\
         fp8_gflops,int8_gops,fp4_gflops,speed_origin,link,link_mb_per_s,tdp_w\n",
    );
    let origin =
        |origin| serde_json::to_value(origin).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    for row in &list.devices {
        let device = &row.device;
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
        let line: Vec<String> = fields.iter().map(|field| csv_field(field)).collect();
        out.push_str(&line.join(","));
        out.push('\n');
    }
    out
}

/// Quoted where a comma, a quote or a line break would end the field.
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// What a bounded term says beside its figure.
fn certainty_text(term: &Term) -> String {
    match &term.certainty {
        Certainty::Exact => String::new(),
        Certainty::Bounded { low, .. } => format!("at least {}", short(low.get())),
        Certainty::Calibrated { low, high, samples, .. } => {
            format!("{} to {}, {samples} measurements", short(low.get()), short(high.get()))
        }
        _ => String::new(),
    }
}

/// A term's label, or its component where the label says nothing.
fn label(term: &Term, width: usize) -> String {
    cut(if term.label.is_empty() { component(term.component) } else { &term.label }, width)
}
