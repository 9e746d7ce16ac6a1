//! `plimsoll which-quant` for people: the grid.

use anstyle::Style;
use plimsoll::planner::size::{grouped, short};
use plimsoll::planner::which_quant::{Cell, CellVerdict, WhichQuant};

use super::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, flow, headline, left, paint, right, width};
use super::{digits, notes, page};

/// A context as a column's head: `4k`, `131,072` where it is no whole number of thousands.
fn head(tokens: u64) -> String {
    if tokens.is_multiple_of(1 << 20) {
        format!("{}m", tokens >> 20)
    } else if tokens.is_multiple_of(1 << 10) {
        format!("{}k", tokens >> 10)
    } else {
        grouped(tokens)
    }
}

/// A sign that tells without colour, the speed, and how to paint both.
fn cell(cell: &Cell) -> (String, Style) {
    let speed = || cell.decode_tokens_per_s.map_or_else(String::new, |rate| format!(" {}", digits(rate.expected.get())));
    match &cell.verdict {
        CellVerdict::Fits { .. } => (format!("✓{}", speed()), GOOD),
        CellVerdict::FitsWithOffload { .. } => (format!("◐{}", speed()), MAYBE),
        CellVerdict::Refused { .. } => ("refused".to_owned(), DIM),
        CellVerdict::DoesNotFit { short_by } => (format!("✗ -{}", tight(short_by.get())), BAD),
        _ => ("?".to_owned(), DIM),
    }
}

/// A size in as few columns as possible: `12.3G`.
fn tight(bytes: u64) -> String {
    let text = short(bytes);
    text.replace(" B", "B").replace("iB", "").replace(' ', "")
}

/// The answer of `which-quant`.
pub(crate) fn which_quant(answer: &WhichQuant) -> String {
    let width = width();
    let fits: Vec<(&String, u64)> = answer
        .best
        .iter()
        .zip(&answer.contexts)
        .rev()
        .filter_map(|(best, tokens)| best.as_ref().map(|best| (best, *tokens)))
        .collect();
    let mut lines = match (fits.last(), fits.first()) {
        (Some((best, short)), Some((_, long))) => {
            let up_to = if short == long { String::new() } else { format!("; something fits up to {} tokens", grouped(*long)) };
            let rest = format!(" is the largest that fits {} tokens on {}{up_to}", grouped(*short), answer.device);
            headline(GOOD, best, &rest, width)
        }
        _ => headline(BAD, "Nothing fits", &format!(" on {} alone", answer.device), width),
    };
    lines.push(String::new());
    let sequences = if answer.sequences == 1 { "1 sequence".to_owned() } else { format!("{} sequences", answer.sequences) };
    let facts = [
        answer.model.name.clone(),
        format!("{} {}", answer.engine.name, answer.engine.version),
        format!("{} with {} usable", answer.device, short(answer.usable.get())),
        sequences,
        format!("cache {}", answer.kv_type),
    ];
    lines.extend(flow(facts.into_iter(), " · ", width, "  "));
    lines.push(String::new());

    let names = answer.rows.iter().map(|row| columns(&row.quant)).max().unwrap_or(0).max(6);
    let texts: Vec<Vec<(String, Style)>> = answer.rows.iter().map(|row| row.cells.iter().map(cell).collect()).collect();
    let cell_width = |column: usize, tokens: u64| {
        texts
            .iter()
            .filter_map(|row| row.get(column))
            .map(|(text, _)| columns(text))
            .max()
            .unwrap_or(0)
            .max(columns(&head(tokens)))
    };
    let widths: Vec<usize> = answer.contexts.iter().enumerate().map(|(column, tokens)| cell_width(column, *tokens)).collect();
    // What does not fit beside each other goes below.
    let fixed = 2 + names + 2 + 5 + 2 + 9;
    let mut start = 0;
    while start < widths.len() {
        let mut end = start;
        let mut taken = fixed;
        while let Some(more) = widths.get(end) {
            if end > start && taken + 2 + more > width {
                break;
            }
            taken += 2 + more;
            end += 1;
        }
        if start > 0 {
            lines.push(String::new());
        }
        let mut top = format!("  {}  {}  {}", left("", names), right("bits", 5), right("weights", 9));
        for (tokens, width) in answer.contexts.iter().zip(&widths).skip(start).take(end - start) {
            top.push_str(&format!("  {}", left(&head(*tokens), *width)));
        }
        lines.push(paint(BOLD, &top));
        for (row, texts) in answer.rows.iter().zip(&texts) {
            let bits = format!("{}.{:02}", row.millibits_per_weight / 1000, row.millibits_per_weight % 1000 / 10);
            let mut line = format!("  {}  {}  {}", left(&row.quant, names), right(&bits, 5), right(&short(row.weights.get()), 9));
            for ((text, style), width) in texts.iter().zip(&widths).skip(start).take(end - start) {
                line.push_str(&format!("  {}", paint(*style, &left(text, *width))));
            }
            lines.push(line);
        }
        start = end;
    }
    lines.push(String::new());
    let legend = [
        "✓ fits".to_owned(),
        "◐ fits with a part on the host".to_owned(),
        "✗ does not fit, and by how much".to_owned(),
        "numbers: tokens/s of one sequence, half way through its context".to_owned(),
    ];
    lines.extend(flow(legend.into_iter(), "   ", width, "  ").into_iter().map(|line| paint(DIM, &line)));
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
