//! `plimsoll explain`: every byte as a tree.

use plimsoll::math::allocation::{Term, TermKind};
use plimsoll::planner::response::{DeviceUse, Explain};
use plimsoll::planner::size::long;

use super::text::{BOLD, DIM, left, paint, width, wrap};
use super::{certainty_text, component, heading, label, legend, mark, notes, page};

/// A source that is the parent's own is not said again.
fn branch(lines: &mut Vec<String>, terms: &[Term], said: &str, prefix: &str, width: usize) {
    let last = terms.len().saturating_sub(1);
    for (index, term) in terms.iter().enumerate() {
        let (arm, stem) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let below = format!("{prefix}{stem}");
        let inner = format!("{below}{}", if term.children.is_empty() { "   " } else { "│  " });
        let certainty = certainty_text(term);
        let certainty = if certainty.is_empty() { certainty } else { format!(", {certainty}") };
        lines.push(format!(
            "{}{} {} {}{}",
            paint(DIM, &format!("{prefix}{arm}")),
            mark(term),
            paint(BOLD, &label(term, 60)),
            long(term.bytes.get()),
            paint(DIM, &certainty)
        ));
        if !term.formula.is_empty() {
            lines.extend(wrap(&term.formula, width, &inner));
        }
        if !term.source.is_empty() && term.source != said {
            lines.extend(wrap(&term.source, width, &inner).into_iter().map(|line| paint(DIM, &line)));
        }
        branch(lines, &term.children, &term.source, &below, width);
    }
}

/// The textbook's answer beside the engine's, for the components that a textbook knows.
fn textbook(answer: &Explain, width: usize) -> Vec<String> {
    let terms = || answer.devices.iter().flat_map(|device| &device.terms).chain(&answer.host.terms);
    let mut components: Vec<TermKind> = terms().map(|term| term.component).collect();
    components.sort_unstable();
    components.dedup();
    let mut lines = Vec::new();
    for kind in components {
        let truth = terms().filter(|term| term.component == kind).fold(0_u64, |sum, term| sum.saturating_add(term.bytes.get()));
        let told = match kind {
            TermKind::Weights => answer.naive.weights.get(),
            TermKind::KvCache => answer.naive.kv_cache.get(),
            _ => {
                lines.push(format!("  {} nothing, of {}", left(component(kind), 16), long(truth)));
                continue;
            }
        };
        lines.push(format!("  {} {}, of {}", left(component(kind), 16), long(told), long(truth)));
    }
    lines.extend(wrap(&answer.naive.formula, width, "  ").into_iter().map(|line| paint(DIM, &line)));
    lines
}

/// The answer of `explain`.
pub(crate) fn explain(answer: &Explain) -> String {
    let width = width();
    let mut lines: Vec<String> = heading(&answer.model, &answer.engine, &answer.deployment, width)
        .into_iter()
        .map(|line| line.trim_start().to_owned())
        .collect();
    let shown = |terms: &[Term]| terms.iter().fold(0_u64, |sum, term| sum.saturating_add(term.bytes.get()));
    for (index, device) in answer.devices.iter().enumerate().filter(|(_, device)| !device.terms.is_empty()) {
        let same = |other: &DeviceUse| other.name == device.name && other.terms == device.terms;
        if answer.devices.iter().take(index).any(same) {
            continue;
        }
        let alike: Vec<String> =
            (0_u64..).zip(&answer.devices).filter(|(_, other)| same(other)).map(|(number, _)| number.to_string()).collect();
        let which = match (answer.devices.len(), alike.as_slice()) {
            (1, _) => String::new(),
            (_, [one]) => format!(" (device {one})"),
            (_, several) => format!(" (each of devices {})", several.join(", ")),
        };
        lines.push(String::new());
        lines.push(format!("{}{which} {}", paint(BOLD, &device.name), long(shown(&device.terms))));
        branch(&mut lines, &device.terms, "", "", width);
    }
    if !answer.host.terms.is_empty() {
        lines.push(String::new());
        lines.push(format!("{} {}", paint(BOLD, "host"), long(shown(&answer.host.terms))));
        branch(&mut lines, &answer.host.terms, "", "", width);
    }
    lines.push(String::new());
    let terms = answer.devices.iter().flat_map(|device| &device.terms).chain(&answer.host.terms);
    lines.extend(legend(terms, width).into_iter().map(|line| paint(DIM, &line)));
    lines.push(String::new());
    lines.push(paint(BOLD, "The textbook says"));
    lines.extend(textbook(answer, width));
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
