//! Making terms: the parts of an answer that every engine writes alike.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::allocation::{Certainty, Term, TermKind};
use crate::error::MathError;
use crate::units::Bytes;

/// A term that follows the engine's rule to the byte.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn exact(component: TermKind, label: &str, bytes: u64, formula: String, source: &str) -> Result<Term, MathError> {
    Ok(Term {
        component,
        label: label.to_string(),
        bytes: Bytes::new(bytes)?,
        certainty: Certainty::Exact,
        formula,
        source: source.to_string(),
        children: Vec::new(),
    })
}

/// A term between two bounds, planned with the upper one; exact where they meet.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn between(
    component: TermKind,
    label: &str,
    (low, high): (u64, u64),
    formula: String,
    source: &str,
) -> Result<Term, MathError> {
    let mut term = exact(component, label, high, formula, source)?;
    if low != high {
        term.certainty = Certainty::Bounded { low: Bytes::new(low)?, high: term.bytes };
    }
    Ok(term)
}

/// The sum of parts, as certain as the least certain of them; `None` where there are none.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn sum(label: &str, formula: &str, source: &str, parts: Vec<Term>) -> Result<Option<Term>, MathError> {
    let Some(first) = parts.first() else { return Ok(None) };
    let component = first.component;
    let least = |term: &Term| match &term.certainty {
        Certainty::Bounded { low, .. } | Certainty::Calibrated { low, .. } => low.get(),
        Certainty::Exact => term.bytes.get(),
    };
    let high = Bytes::sum(parts.iter().map(|part| part.bytes))?.get();
    let low = Bytes::sum(parts.iter().map(|part| Bytes::new(least(part))).collect::<Result<Vec<_>, _>>()?)?.get();
    if parts.len() == 1 {
        return Ok(parts.into_iter().next());
    }
    let mut term = between(component, label, (low, high), formula.to_string(), source)?;
    term.children = parts;
    Ok(Some(term))
}
