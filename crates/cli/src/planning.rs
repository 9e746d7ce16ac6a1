//! The verbs that ask more than one question at a time.

use plimsoll::planner::{self, PlanError};

use crate::args::CompareArgs;
use crate::{FITS, render, show, source};

/// `plimsoll compare`.
pub(crate) fn compare(arguments: &CompareArgs) -> Result<u8, PlanError> {
    let (a, b) = arguments.sides()?;
    let first = source::open(&a.model, arguments.assume_generic)?;
    let second = if a.model == b.model { first.clone() } else { source::open(&b.model, arguments.assume_generic)? };
    let answer = planner::compare((&first, &a.options), (&second, &b.options))?;
    show(arguments.json, &answer, render::compare)?;
    Ok(FITS)
}
