//! Answers as people read them: the verdict first, then what every byte pays for.

mod bar;
mod capacity;
mod compare;
mod devices;
mod explain;
mod fit;
mod fleet;
mod inspect;
mod offload;
pub(crate) mod text;
mod which_device;
mod which_quant;

use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::planner::response::{DeploymentBrief, EngineBrief, LimitedBy, ModelBrief, Reach};
use plimsoll::planner::size::{count, grouped, long, short};

pub(crate) use bar::{bar, fill};
pub(crate) use capacity::capacity;
pub(crate) use compare::compare;
pub(crate) use devices::{csv_field, devices, devices_csv, local, local_csv};
pub(crate) use explain::explain;
pub(crate) use fit::fit;
pub(crate) use fleet::fleet;
pub(crate) use inspect::inspect;
pub(crate) use offload::offload;
pub(crate) use which_device::which_device;
pub(crate) use which_quant::which_quant;

use text::{BAD, BOLD, GOOD, command, cut, flow, headline, paint, width, wrap};

/// The engine's own command line, to paste.
pub(crate) fn export(answer: &plimsoll::planner::response::Export) -> String {
    let mut text = command(&answer.command, width(), "").join("\n");
    text.push('\n');
    text
}

/// One sign for how sure a term's figure is. A pool that gives way to what stands beside it is planned with its least.
fn mark(term: &Term) -> &'static str {
    match &term.certainty {
        Certainty::Exact => "=",
        Certainty::Bounded { high, .. } if term.bytes < *high => "≥",
        Certainty::Bounded { .. } => "≤",
        _ => "~",
    }
}

/// What the signs mean that stand beside `terms`.
fn legend<'a>(terms: impl Iterator<Item = &'a Term>, width: usize) -> Vec<String> {
    let used: Vec<&str> = terms.map(mark).collect();
    let meanings = [("=", "exact"), ("≤", "at most"), ("≥", "at least"), ("~", "measured")];
    let shown = meanings.into_iter().filter(|(sign, _)| *sign != "≥" || used.contains(sign));
    flow(shown.map(|(sign, meaning)| format!("{sign} {meaning}")), "   ", width, "")
}

/// What a component is called on screen.
pub(crate) fn component(kind: TermKind) -> &'static str {
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

/// A section of its own, one sentence each; nothing where there are none.
fn notes(notes: &[String], width: usize) -> Vec<String> {
    if notes.is_empty() {
        return Vec::new();
    }
    // Keys without effect are many and alike: one line names them all.
    const UNUSED: &str = ": not used (no effect on sizes is known)";
    let unused: Vec<&str> = notes.iter().filter_map(|note| note.strip_suffix(UNUSED)).collect();
    let mut shown: Vec<String> = notes.iter().filter(|note| !note.ends_with(UNUSED)).cloned().collect();
    if !unused.is_empty() {
        shown.push(format!("not used, no effect on sizes is known: {}", unused.join(", ")));
    }
    let mut lines = vec![String::new(), paint(BOLD, "Notes")];
    for note in &shown {
        for (index, line) in wrap(note, width.saturating_sub(2), "    ").into_iter().enumerate() {
            lines.push(if index == 0 { format!("  - {}", line.trim_start()) } else { line });
        }
    }
    lines
}

/// A section with a command to paste; nothing where there is none.
fn run(title: &str, arguments: &[String], width: usize) -> Vec<String> {
    if arguments.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), paint(BOLD, title)];
    lines.extend(command(arguments, width, "  "));
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
pub(crate) fn digits(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{rate:.0}")
    } else if rate >= 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.2}")
    }
}

/// Lines of text.
pub(crate) fn page(lines: &[String]) -> String {
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
    if value > 0 {
        lines.extend(run("Run", &answer.command, width));
    }
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}

/// What a bounded term says beside its figure.
fn certainty_text(term: &Term) -> String {
    match &term.certainty {
        Certainty::Exact => String::new(),
        Certainty::Bounded { high, .. } if term.bytes < *high => format!("at most {}", short(high.get())),
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
