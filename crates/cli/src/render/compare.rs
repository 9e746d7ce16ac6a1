//! `plimsoll compare` for people: what is asked differently, then every term on both sides.

use plimsoll::planner::compare::{Compare, TermPair};
use plimsoll::planner::response::{Fit, Verdict};
use plimsoll::planner::size::{grouped, short};
use plimsoll::planner::speed::Rate;

use super::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, cut, headline, left, paint, right, width, wrap};
use super::{component, digits, heading, page};

fn verdict(fit: &Fit) -> String {
    match &fit.verdict {
        Verdict::Fits { headroom } => format!("{}, {} free", paint(GOOD, "fits"), short(headroom.get())),
        Verdict::FitsWithOffload { headroom, .. } => {
            format!("{}, {} free", paint(MAYBE, "fits with a part on the host"), short(headroom.get()))
        }
        Verdict::DoesNotFit { short_by, .. } => {
            format!("{}, {} short", paint(BAD, "does not fit"), short(short_by.get()))
        }
        _ => "no verdict".to_owned(),
    }
}

/// A signed number of bytes, short and exact.
fn signed(difference: i64) -> (String, String) {
    if difference == 0 {
        return ("=".to_owned(), String::new());
    }
    let sign = if difference < 0 { "-" } else { "+" };
    let bytes = difference.unsigned_abs();
    (format!("{sign}{}", short(bytes)), format!("({sign}{} B)", grouped(bytes)))
}

fn row(name: &str, a: u64, b: u64, difference: i64, width: usize) -> String {
    let (rounded, exact) = signed(difference);
    let line = format!("  {} {} {}  {}", left(name, 17), right(&short(a), 10), right(&short(b), 10), right(&rounded, 11));
    if exact.is_empty() || columns(&line) + 1 + columns(&exact) > width {
        return line;
    }
    format!("{line} {}", paint(DIM, &exact))
}

/// The formulas of a term that is not alike on both sides.
fn formulas(term: &TermPair, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let sides = [("A", &term.a_formulas, &term.b_formulas), ("B", &term.b_formulas, &term.a_formulas)];
    for (side, own, other) in sides {
        for formula in own.iter().filter(|formula| !other.contains(formula) && !formula.is_empty()) {
            lines.push(paint(DIM, &cut(&format!("      {side}: {formula}"), width)));
        }
    }
    lines
}

fn rate(rate: Option<&Rate>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| digits(rate.expected.get()))
}

fn metric(name: &str) -> &str {
    match name {
        "prefill_tokens_per_s" => "prompt",
        "decode_tokens_per_s" => "decode",
        "decode_tokens_per_s_at_full_context" => "decode, full",
        "aggregate_decode_tokens_per_s" => "all sequences",
        other => other,
    }
}

/// The answer of `compare`.
pub(crate) fn compare(answer: &Compare) -> String {
    let width = width();
    let total = answer.devices_difference.saturating_add(answer.host_difference);
    let (lead, style) = match total {
        0 => ("B takes as much as A".to_owned(), BOLD),
        less if less < 0 => (format!("B takes {} less", short(less.unsigned_abs())), GOOD),
        more => (format!("B takes {} more", short(more.unsigned_abs())), MAYBE),
    };
    let rest = format!(
        ": {} and {} on devices, {} and {} on the host",
        short(answer.devices_a.get()),
        short(answer.devices_b.get()),
        short(answer.host_a.get()),
        short(answer.host_b.get())
    );
    let mut lines = headline(style, &lead, &rest, width);
    for (side, fit) in [("A", &answer.a), ("B", &answer.b)] {
        lines.push(String::new());
        let device = fit.devices.first().map_or("", |device| device.name.as_str());
        let count = if fit.devices.len() > 1 { format!(" x{}", fit.devices.len()) } else { String::new() };
        lines.push(format!("{} {} on {device}{count}", paint(BOLD, side), verdict(fit)));
        lines.extend(heading(&fit.model, &fit.engine, &fit.deployment, width));
    }
    lines.push(String::new());
    lines.push(paint(BOLD, "What differs"));
    if answer.differences.is_empty() {
        lines.push("  nothing".to_owned());
    }
    let names = answer.differences.iter().map(|one| columns(&one.field)).max().unwrap_or(0).min(40);
    for one in &answer.differences {
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.push(cut(&format!("  {}  {} → {}", left(&one.field, names), text(&one.a), text(&one.b)), width));
    }
    for (place, title, used) in [
        ("devices", "On devices", (answer.devices_a, answer.devices_b, answer.devices_difference)),
        ("host", "On the host", (answer.host_a, answer.host_b, answer.host_difference)),
    ] {
        let terms: Vec<&TermPair> = answer.terms.iter().filter(|term| term.place == place).collect();
        if terms.is_empty() {
            continue;
        }
        lines.push(String::new());
        let head = format!("{} {} {}  {}", left(title, 19), right("A", 10), right("B", 10), right("B - A", 11));
        lines.push(paint(BOLD, &head));
        for term in terms {
            lines.push(row(component(term.component), term.a.get(), term.b.get(), term.difference, width));
            if term.difference != 0 {
                lines.extend(formulas(term, width));
            }
        }
        lines.push(row("all", used.0.get(), used.1.get(), used.2, width));
    }
    if !answer.speed.is_empty() {
        lines.push(String::new());
        let head = format!("{} {} {}  {}", left("Tokens/s", 19), right("A", 10), right("B", 10), right("B / A", 11));
        lines.push(paint(BOLD, &head));
        for pair in &answer.speed {
            let ratio = match (&pair.a, &pair.b) {
                (Some(a), Some(b)) if a.expected.get() > 0.0 => format!("x{:.2}", b.expected.get() / a.expected.get()),
                _ => "-".to_owned(),
            };
            let (a, b) = (rate(pair.a.as_ref()), rate(pair.b.as_ref()));
            lines.push(format!(
                "  {} {} {}  {}",
                left(metric(&pair.metric), 17),
                right(&a, 10),
                right(&b, 10),
                right(&ratio, 11)
            ));
        }
    }
    let limits = |fit: &Fit| {
        let value = |limit: Option<plimsoll::planner::response::Limit>| {
            limit.map_or_else(|| "-".to_owned(), |limit| grouped(limit.value))
        };
        (value(fit.limits.max_context), value(fit.limits.max_sequences))
    };
    let ((context_a, sequences_a), (context_b, sequences_b)) = (limits(&answer.a), limits(&answer.b));
    lines.push(String::new());
    lines.push(paint(BOLD, "Reachable"));
    lines.push(format!("  {} {} {}", left("context", 17), right(&context_a, 10), right(&context_b, 10)));
    lines.push(format!("  {} {} {}", left("sequences", 17), right(&sequences_a, 10), right(&sequences_b, 10)));
    let bounded = "sizes are upper bounds where a term is bounded; `plimsoll fit` and `explain` say which";
    lines.extend(wrap(bounded, width, "").into_iter().map(|line| paint(DIM, &line)));
    page(&lines)
}
