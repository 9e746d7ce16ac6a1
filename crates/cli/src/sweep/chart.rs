//! Memory over the context in the terminal: one bar a context, the device's end marked.

use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::planner::PlanError;
use plimsoll::planner::point::Point;
use plimsoll::planner::size::{grouped, short};
use plimsoll::planner::sweep::Sweep;

use crate::render::text::{BOLD, cut, paint, right, width};
use crate::render::{bar, component, fill};

/// Charts of more lines, or of more contexts, are no help.
const MOST_LINES: u64 = 8;
const MOST_BARS: u64 = 40;

/// The parts of a point as terms, in the order of the bar.
fn terms(point: &Point) -> Vec<Term> {
    let parts = &point.parts;
    [
        (TermKind::Weights, parts.weights),
        (TermKind::KvCache, parts.kv_cache),
        (TermKind::RecurrentState, parts.recurrent_state),
        (TermKind::Compute, parts.compute),
        (TermKind::Output, parts.output),
        (TermKind::DriverContext, parts.driver_context),
        (TermKind::Other, parts.other),
    ]
    .into_iter()
    .filter(|(_, bytes)| bytes.get() > 0)
    .map(|(component, bytes)| Term {
        component,
        label: String::new(),
        bytes,
        certainty: Certainty::Exact,
        formula: String::new(),
        source: String::new(),
        children: Vec::new(),
    })
    .collect()
}

/// Contexts to draw: all of them, or evenly chosen ones.
pub(super) fn columns_of(sweep: &Sweep<'_>, most: u64) -> Vec<u64> {
    let width = sweep.width();
    let count = width.min(most).max(1);
    (0..count).map(|index| sweep.context(if count > 1 { index * (width - 1) / (count - 1) } else { 0 })).collect()
}

/// The lines of text.
pub(super) fn chart(sweep: &Sweep<'_>) -> Result<Vec<String>, PlanError> {
    let width = width();
    let contexts = columns_of(sweep, MOST_BARS);
    let mut lines = Vec::new();
    for index in 0..sweep.lines().min(MOST_LINES) {
        let line = sweep.line(index)?;
        let label = line.label();
        if index > 0 {
            lines.push(String::new());
        }
        let title = format!(
            "{} · {} · cache {} · {} {} · {}",
            label.device,
            label.quant,
            label.kv_type,
            label.sequences,
            if label.sequences == 1 { "sequence" } else { "sequences" },
            label.engine
        );
        lines.push(paint(BOLD, &cut(&title, width)));
        let mut points = Vec::new();
        for context in &contexts {
            points.push((*context, line.figures(*context)?));
        }
        let most =
            points.iter().filter_map(|(_, point)| point.as_ref()).map(|point| point.devices.get() + point.host.get()).max();
        let scale = most.unwrap_or(0).max(label.usable.get());
        for (context, point) in &points {
            let name = right(&grouped(*context), 9);
            let Some(point) = point else {
                lines.push(format!("{name}  refused"));
                continue;
            };
            let terms = terms(point);
            let sum = terms.iter().fold(0_u64, |sum, term| sum.saturating_add(term.bytes.get()));
            // Every bar has the same scale: the rest of the largest is left blank.
            let cells = width.saturating_sub(9 + 2 + 2 + 10);
            let own = u128::from(sum.max(label.usable.get())) * u128::try_from(cells).unwrap_or(60) / u128::from(scale.max(1));
            let drawn = bar(&terms, label.usable.get(), usize::try_from(own).unwrap_or(cells));
            lines.push(format!("{name}  {drawn}  {}", right(&short(sum), 9)));
        }
    }
    let kinds = [
        TermKind::Weights,
        TermKind::KvCache,
        TermKind::RecurrentState,
        TermKind::Compute,
        TermKind::Output,
        TermKind::DriverContext,
    ];
    lines.push(String::new());
    // Two lines: one is wider than a narrow terminal.
    for half in kinds.chunks(3) {
        let named = |kind: &TermKind| {
            let (glyph, style) = fill(*kind);
            format!("{} {}", paint(style, &glyph.to_string()), component(*kind))
        };
        lines.push(half.iter().map(named).collect::<Vec<_>>().join("   "));
    }
    lines.push("what lies beyond ┃ does not fit; what the host holds is counted as well".to_owned());
    if sweep.lines() > MOST_LINES {
        lines.push(format!("the first {MOST_LINES} of {} combinations are drawn", sweep.lines()));
    }
    Ok(lines)
}
