//! Replicas for a load as people read them.

use plimsoll::planner::capacity::{Capacity, Choice, Latency, Played};

use super::text::{BAD, DIM, GOOD, headline, paint, width, wrap};
use super::{notes, page, run};

/// A time in the unit that suits it.
fn time(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

fn latency(latency: &Latency) -> String {
    format!("p50 {}, p95 {}, p99 {}", time(latency.p50), time(latency.p95), time(latency.p99))
}

fn played(label: &str, played: &Played) -> Vec<String> {
    let mut lines = vec![format!(
        "  {label}  {:.2} requests/s, {:.0} tokens/s, at work {:.0} % of the time, {:.1} sequences at a time",
        played.requests_per_s,
        played.tokens_per_s,
        played.utilisation * 100.0,
        played.sequences
    )];
    lines.push(format!("    first token  {}", latency(&played.ttft)));
    if let Some(tpot) = &played.tpot {
        lines.push(format!("    per token    {}", latency(tpot)));
    }
    lines
}

fn place(choice: &Choice) -> String {
    match choice.devices.as_slice() {
        [one] => one.clone(),
        [first, rest @ ..] if rest.iter().all(|other| other == first) => format!("{first} x{}", choice.devices.len()),
        all => all.join(" + "),
    }
}

fn one(choice: &Choice, width: usize) -> Vec<String> {
    let name = place(choice);
    let mut lines = match choice.replicas {
        Some(replicas) => {
            let what = if replicas == 1 { "replica" } else { "replicas" };
            let devices = choice.devices_in_all.unwrap_or(replicas);
            let slow = choice.replicas_if_slow.map_or_else(
                || ", and more than were asked for if it is as slow as one in ten measurements".to_owned(),
                |slow| {
                    if slow == replicas { String::new() } else { format!(", {slow} if it is as slow as one in ten measurements") }
                },
            );
            headline(GOOD, &format!("{replicas} {what}"), &format!(" on {name} ({devices} in all){slow}"), width)
        }
        None => headline(BAD, "Not enough", &format!(": {name}"), width),
    };
    lines.extend(wrap(&choice.why, width, "  "));
    if choice.sequences > 0 {
        lines.push(format!("  up to {} sequences at a time each", choice.sequences));
    }
    let label = if choice.replicas.is_some() { "as planned" } else { "as played " };
    lines.extend(choice.played.iter().flat_map(|it| played(label, it)));
    lines.extend(choice.one_fewer.iter().flat_map(|it| played("one fewer ", it)));
    lines.extend(choice.assumptions.iter().flat_map(|text| wrap(text, width, "  ")).map(|line| paint(DIM, &line)));
    lines
}

pub(crate) fn capacity(answer: &Capacity) -> String {
    let width = width();
    let mut lines = Vec::new();
    for choice in &answer.choices {
        lines.extend(one(choice, width));
        lines.push(String::new());
    }
    lines.push(format!("  {}: {} requests at {:.2} per second", answer.model, answer.requests, answer.rate));
    if let Some(best) = answer.choices.first().filter(|choice| choice.replicas.is_some()) {
        lines.extend(run("Run, each replica", &best.command, width));
    }
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
