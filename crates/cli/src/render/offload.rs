//! `plimsoll offload` for people.

use plimsoll::planner::offload::{Offload, Placement};
use plimsoll::planner::size::short;

use super::text::{BAD, BOLD, GOOD, MAYBE, columns, cut, headline, left, paint, right, width, wrap};
use super::{digits, heading, notes, page, run};

/// A placement in the engine's words.
fn words(placement: &Placement) -> String {
    const OVERRIDE: &str = "--override-tensor";
    let overrides = placement.options.iter().filter(|word| *word == OVERRIDE).count();
    if placement.options.is_empty() {
        return "everything on devices".to_owned();
    }
    if overrides <= 2 {
        return placement.options.join(" ");
    }
    // The engine's own choice names every layer: the command below has them.
    let mut kept: Vec<String> = Vec::new();
    let mut options = placement.options.iter();
    while let Some(word) = options.next() {
        if word == OVERRIDE {
            options.next();
        } else {
            kept.push(word.clone());
        }
    }
    kept.push(format!("{OVERRIDE} of {overrides} patterns"));
    kept.join(" ")
}

fn speed(placement: &Placement) -> String {
    placement.decode_tokens_per_s.map_or_else(
        || "speed not known".to_owned(),
        |rate| format!("{} ({} to {}) tokens/s", digits(rate.expected.get()), digits(rate.low.get()), digits(rate.high.get())),
    )
}

/// Two columns of figures beside every device: ours and the engine's own.
fn table(best: Option<&Placement>, own: Option<&Placement>, width: usize) -> Vec<String> {
    let Some(first) = best.or(own) else { return Vec::new() };
    let names = first.devices.iter().map(|device| columns(&device.name)).max().unwrap_or(0).max(12).min(width.saturating_sub(50));
    let head = format!(
        "{}  {}  {}  {}  {}",
        left("", names + 2),
        right("usable", 9),
        right("weights", 9),
        right("used", 9),
        right("free", 9)
    );
    let mut lines = Vec::new();
    for (title, placement) in [("Best", best), ("llama.cpp's own choice", own)] {
        let Some(placement) = placement else { continue };
        lines.push(format!("{}: {}", paint(BOLD, title), speed(placement)));
        lines.extend(wrap(&words(placement), width, "  "));
        lines.push(head.clone());
        for device in &placement.devices {
            let free = if device.headroom < 0 {
                format!("-{}", short(device.headroom.unsigned_abs()))
            } else {
                short(device.headroom.unsigned_abs())
            };
            lines.push(format!(
                "  {}  {}  {}  {}  {}",
                left(&cut(&device.name, names), names),
                right(&short(device.usable.get()), 9),
                right(&short(device.weights.get()), 9),
                right(&short(device.used.get()), 9),
                right(&free, 9)
            ));
        }
        lines.push(format!(
            "  {}  {}  {}  {}",
            left("host", names),
            right("", 9),
            right(&short(placement.host_weights.get()), 9),
            right(&short(placement.host_used.get()), 9)
        ));
    }
    lines
}

/// The answer of `offload`.
pub(crate) fn offload(answer: &Offload) -> String {
    let width = width();
    let mut lines = match &answer.best {
        Some(best) if answer.deployment_stays_on_devices() => {
            headline(GOOD, "Fits on devices", &format!(" alone: {}", speed(best)), width)
        }
        Some(best) => {
            let rest = format!(": {} on the host, {}", short(best.host_weights.get()), speed(best));
            headline(MAYBE, "Fits with a part on the host", &rest, width)
        }
        None => headline(BAD, "Does not fit", ", wherever things are put", width),
    };
    lines.push(String::new());
    lines.extend(heading(&answer.model, &answer.engine, &answer.deployment, width));
    lines.push(String::new());
    lines.extend(table(answer.best.as_ref(), answer.own_choice.placement.as_ref(), width));
    if !answer.differences.is_empty() {
        lines.push(String::new());
        lines.push(paint(BOLD, "Beside llama.cpp's own --fit"));
        for text in &answer.differences {
            for (index, line) in wrap(text, width.saturating_sub(2), "    ").into_iter().enumerate() {
                lines.push(if index == 0 { format!("  - {}", line.trim_start()) } else { line });
            }
        }
    }
    lines.extend(run("Run", &answer.command, width));
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
