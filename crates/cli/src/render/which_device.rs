//! `plimsoll which-device` for people.

use plimsoll::planner::mixed::MixedSet;
use plimsoll::planner::size::{grouped, short};
use plimsoll::planner::which_device::{Set, WhichDevice};

use super::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, device_name, flow, headline, left, paint, right, width, wrap};
use super::{digits, notes, page};

/// Cents in the unit that prices have.
fn amount(cents: u64) -> String {
    if cents.is_multiple_of(100) { grouped(cents / 100) } else { format!("{}.{:02}", grouped(cents / 100), cents % 100) }
}

/// A price with its day.
fn price(set: &Set) -> (String, String) {
    let Some(cents) = set.cents else { return ("-".to_owned(), String::new()) };
    (amount(cents), set.price.as_ref().map_or_else(String::new, |price| price.date.clone()))
}

fn name(set: &Set) -> String {
    if set.count == 1 { set.device.clone() } else { format!("{}x {}", set.count, set.device) }
}

fn table(title: &str, sets: &[Set], show: usize, width: usize) -> Vec<String> {
    let sets = sets.get(..show.min(sets.len())).unwrap_or(sets);
    let rest = 2 + 2 + 10 + 2 + 9 + 2 + 8 + 2 + 8 + 2 + 10;
    let most = width.saturating_sub(rest).max(16);
    let names = sets.iter().map(|set| columns(&device_name(&name(set), most))).max().unwrap_or(0).max(12);
    let heads = [right("usable", 10), right("free", 9), right("decode", 8), right("price", 8), "as of".to_owned()];
    let mut lines = vec![paint(BOLD, &format!("{}  {}", left(title, names + 2), heads.join("  ")))];
    for set in sets {
        let rate = set.decode_tokens_per_s.map_or_else(|| "-".to_owned(), |rate| digits(rate.expected.get()));
        let (price, date) = price(set);
        let figures = [
            right(&short(set.usable.get()), 10),
            right(&short(set.headroom.get()), 9),
            right(&rate, 8),
            right(&price, 8),
            left(&date, 10),
        ];
        let line = format!("  {}  {}", left(&device_name(&name(set), names), names), figures.join("  "));
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Sets of two kinds, with names on lines of their own where they are long.
fn mixed(sets: &[MixedSet], show: usize, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for set in sets.iter().take(show) {
        let names: Vec<String> = set
            .parts
            .iter()
            .map(|part| if part.count == 1 { part.device.clone() } else { format!("{}x {}", part.count, part.device) })
            .collect();
        let rate = set.decode_tokens_per_s.map_or_else(String::new, |rate| format!(", decode {}", digits(rate.expected.get())));
        let cost = set.cents.map_or_else(String::new, |cents| format!(", at {}", amount(cents)));
        let text = format!(
            "{}: {} usable, {} free on the fullest{rate}{cost}",
            names.join(" + "),
            short(set.usable.get()),
            short(set.headroom.get())
        );
        lines.extend(wrap(&text, width, "  "));
    }
    lines
}

/// The answer of `which-device`.
pub(crate) fn which_device(answer: &WhichDevice, show: usize) -> String {
    let width = width();
    let asked = format!("{} tokens x {}", grouped(answer.context), answer.sequences);
    let mut lines = match (answer.smallest.first(), answer.cheapest.first()) {
        (Some(smallest), cheapest) => {
            let cheap = cheapest
                .map(|set| format!("; the cheapest with a known price is {} at {}", name(set), price(set).0))
                .unwrap_or_default();
            headline(GOOD, &name(smallest), &format!(" is the smallest that is enough for {asked}{cheap}"), width)
        }
        (None, _) if !answer.mixed.is_empty() => {
            headline(MAYBE, "No device is enough alone", &format!(" for {asked}: two kinds together are"), width)
        }
        (None, _) => headline(BAD, "No device is enough", &format!(" for {asked}"), width),
    };
    lines.push(String::new());
    let mut facts = vec![answer.model.name.clone()];
    facts.extend(answer.model.quantization.clone());
    facts.push(format!("{} {}", answer.engine.name, answer.engine.version));
    facts.extend(answer.target.min_decode.map(|rate| format!("decode at {} tokens/s or more", digits(rate.get()))));
    facts.extend(answer.target.min_prefill.map(|rate| format!("prompts at {} tokens/s or more", digits(rate.get()))));
    lines.extend(flow(facts.into_iter(), " · ", width, "  "));
    if !answer.smallest.is_empty() {
        lines.push(String::new());
        lines.extend(table("Smallest", &answer.smallest, show, width));
    }
    if !answer.cheapest.is_empty() {
        lines.push(String::new());
        lines.extend(table("Cheapest", &answer.cheapest, show, width));
    }
    if !answer.mixed.is_empty() {
        lines.extend([String::new(), paint(BOLD, "Of two kinds")]);
        lines.extend(mixed(&answer.mixed, show, width));
    }
    lines.push(String::new());
    let left_out = &answer.left_out;
    let counts = [
        (left_out.too_small, "too small"),
        (left_out.too_slow, "too slow"),
        (left_out.too_expensive, "too expensive or without a price"),
        (left_out.refused, "not for this engine"),
    ];
    let parts: Vec<String> = counts.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    let mut text = format!("{} devices are enough", answer.smallest.len());
    if answer.smallest.len() > show {
        text.push_str(&format!(", {show} of each list are shown (--show N for more)"));
    }
    if !parts.is_empty() {
        text.push_str(&format!("; left out: {}", parts.join(", ")));
    }
    text.push_str(". decode: tokens/s of one sequence, half way through its context");
    lines.extend(wrap(&text, width, "").into_iter().map(|line| paint(DIM, &line)));
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
