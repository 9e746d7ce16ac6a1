//! The verbs that ask more than one question at a time.

use plimsoll::planner::which_quant::CellVerdict;
use plimsoll::planner::{self, Options, PlanError};

use crate::args::{CompareArgs, ExplainArgs, OffloadArgs, WhichDeviceArgs, WhichQuantArgs};
use crate::{DOES_NOT_FIT, FITS, FITS_WITH_OFFLOAD, asked, render, show, source};

/// `plimsoll compare`.
pub(crate) fn compare(arguments: &CompareArgs) -> Result<u8, PlanError> {
    let (a, b) = arguments.sides()?;
    let first = source::open(&a.model, arguments.assume_generic)?;
    let second = if a.model == b.model { first.clone() } else { source::open(&b.model, arguments.assume_generic)? };
    let answer = planner::compare((&first, &a.options), (&second, &b.options))?;
    show(arguments.json, &answer, render::compare)?;
    Ok(FITS)
}

/// `plimsoll explain`.
pub(crate) fn explain(arguments: &ExplainArgs) -> Result<u8, PlanError> {
    let question = &arguments.question;
    let answer = planner::explain_term(&asked(question)?, &question.options()?, arguments.term.as_deref())?;
    show(question.json, &answer, render::explain)?;
    Ok(FITS)
}

/// `plimsoll which-quant`: 0 where a cell fits, 2 where one fits with a part on the host, 3 where none does.
pub(crate) fn which_quant(arguments: &WhichQuantArgs) -> Result<u8, PlanError> {
    let question = &arguments.question;
    let answer = planner::which_quant(&asked(question)?, &question.options()?, &arguments.grid()?)?;
    show(question.json, &answer, render::which_quant)?;
    let any = |is: fn(&CellVerdict) -> bool| answer.rows.iter().flat_map(|row| &row.cells).any(|cell| is(&cell.verdict));
    Ok(if any(|verdict| matches!(verdict, CellVerdict::Fits { .. })) {
        FITS
    } else if any(|verdict| matches!(verdict, CellVerdict::FitsWithOffload { .. })) {
        FITS_WITH_OFFLOAD
    } else {
        DOES_NOT_FIT
    })
}

/// `plimsoll which-device`: 3 where no device is enough.
pub(crate) fn which_device(arguments: &WhichDeviceArgs) -> Result<u8, PlanError> {
    let (target, options) = arguments.target()?;
    let answer = planner::which_device(&asked(&arguments.question)?, &options, &target)?;
    show(arguments.question.json, &answer, |answer| render::which_device(answer, arguments.show))?;
    Ok(if answer.smallest.is_empty() && answer.mixed.is_empty() { DOES_NOT_FIT } else { FITS })
}

/// `plimsoll offload`: 0 where everything fits on devices, 2 with a part on the host, 3 where nothing fits.
pub(crate) fn offload(arguments: &OffloadArgs) -> Result<u8, PlanError> {
    let question = &arguments.question;
    let options = Options { fit_margin: arguments.margin, ..question.options()? };
    let answer = planner::offload(&asked(question)?, &options, arguments.host_memory)?;
    show(question.json, &answer, render::offload)?;
    Ok(match &answer.best {
        None => DOES_NOT_FIT,
        Some(_) if answer.deployment_stays_on_devices() => FITS,
        Some(_) => FITS_WITH_OFFLOAD,
    })
}
