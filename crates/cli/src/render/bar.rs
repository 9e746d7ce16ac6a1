//! The memory bar.

use anstyle::{AnsiColor, Style};
use plimsoll::math::allocation::{Term, TermKind};

use super::text::{DIM, paint};

/// How a component is drawn: a fill that tells it apart without colour, and a colour.
pub(crate) fn fill(kind: TermKind) -> (char, Style) {
    match kind {
        TermKind::Weights => ('█', AnsiColor::Blue.on_default()),
        TermKind::KvCache => ('▓', AnsiColor::Green.on_default()),
        TermKind::RecurrentState => ('▚', AnsiColor::Cyan.on_default()),
        TermKind::Compute => ('▒', AnsiColor::Yellow.on_default()),
        TermKind::Output => ('▞', AnsiColor::Magenta.on_default()),
        TermKind::DriverContext => ('░', AnsiColor::BrightBlack.on_default()),
        _ => ('▪', AnsiColor::White.on_default()),
    }
}

/// `terms` over `usable` bytes in `width` columns; what is over the limit comes after a bar.
pub(crate) fn bar(terms: &[Term], usable: u64, width: usize) -> String {
    let used = terms.iter().fold(0_u64, |sum, term| sum.saturating_add(term.bytes.get()));
    let scale = used.max(usable).max(1);
    let cells = width.saturating_sub(2).max(8);
    let position = |bytes: u64| -> usize {
        let cells = u128::try_from(cells).unwrap_or(8);
        let rounded = (u128::from(bytes) * cells + u128::from(scale) / 2) / u128::from(scale);
        usize::try_from(rounded).unwrap_or(usize::MAX)
    };
    let limit = position(usable);
    let mut out = paint(DIM, "▕");
    let (mut sum, mut at) = (0_u64, 0);
    let mut marked = used <= usable;
    for term in terms {
        sum = sum.saturating_add(term.bytes.get());
        let end = position(sum);
        let (glyph, style) = fill(term.component);
        let mut run = String::new();
        while at < end {
            if !marked && at >= limit {
                if !run.is_empty() {
                    out.push_str(&paint(style, &run));
                    run.clear();
                }
                out.push_str(&paint(AnsiColor::Red.on_default().bold(), "┃"));
                marked = true;
            } else {
                run.push(glyph);
            }
            at += 1;
        }
        if !run.is_empty() {
            out.push_str(&paint(style, &run));
        }
    }
    if at < cells {
        out.push_str(&paint(DIM, &"·".repeat(cells - at)));
    }
    out.push_str(&paint(DIM, "▏"));
    out
}
