//! `plimsoll capacity`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use plimsoll::ingest::error::IngestError;
use plimsoll::planner::capacity::lengths::arrivals;
use plimsoll::planner::capacity::trace::Trace;
use plimsoll::planner::capacity::{Asked, Promises, capacity};
use plimsoll::planner::{Options, PlanError};

use crate::args::CapacityArgs;
use crate::progress::Bar;
use crate::{DOES_NOT_FIT, FITS, render, show, source};

/// The longest line of a trace.
const MAX_LINE: u64 = 64 << 10;
/// The most requests that are played.
const MAX_REQUESTS: u32 = 100_000;

/// What a trace says, read line by line.
fn read(path: &Path) -> Result<Trace, PlanError> {
    let unavailable = |error: std::io::Error| {
        PlanError::Source(IngestError::Unavailable { what: path.display().to_string(), why: error.to_string() })
    };
    let data = |error: PlanError| match error {
        PlanError::Request { field, found, expected } => {
            PlanError::Source(IngestError::Field { place: format!("{}, {field}", path.display()), found, expected })
        }
        other => other,
    };
    let file = File::open(path).map_err(unavailable)?;
    // A pipe has no length: what is read is counted then, and that is all.
    let length = file.metadata().map_or(0, |facts| facts.len());
    let template =
        if length == 0 { "{spinner} {bytes} of the trace read" } else { "{bar:30} {percent} % of the trace, {eta} left" };
    let bar = Bar::new(length, template, true);
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let mut trace = Trace::default();
    let mut line = Vec::new();
    let mut unseen = 0_u64;
    loop {
        line.clear();
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(unavailable)?;
        if read == 0 {
            break;
        }
        if u64::try_from(read).unwrap_or(u64::MAX) == MAX_LINE && line.last() != Some(&b'\n') {
            return Err(data(PlanError::request("trace", format!("a line longer than {MAX_LINE} bytes"), "one request a line")));
        }
        trace.push(&String::from_utf8_lossy(&line)).map_err(data)?;
        unseen += u64::try_from(read).unwrap_or(0);
        if unseen >= 1 << 20 {
            bar.passed(unseen);
            unseen = 0;
        }
    }
    Ok(trace)
}

pub(crate) fn run(arguments: &CapacityArgs) -> Result<u8, PlanError> {
    let (arrivals, longest, notes) = match &arguments.trace {
        Some(path) => {
            let trace = read(path)?;
            let busiest = trace.busiest().map_err(|error| match error {
                PlanError::Request { found, expected, .. } => {
                    PlanError::Source(IngestError::Field { place: path.display().to_string(), found, expected })
                }
                other => other,
            })?;
            (busiest, trace.longest, trace.notes())
        }
        None => {
            let count = arguments.requests;
            if count == 0 || count > MAX_REQUESTS {
                return Err(PlanError::request("requests", count, format!("1 to {MAX_REQUESTS}")));
            }
            let rate = arguments.rate.unwrap_or(0.0);
            (arrivals(arguments.seed, rate, count, arguments.prompt, arguments.output)?, 0, Vec::new())
        }
    };
    let mut options = arguments.asked.options_beside(!arguments.on.is_empty())?;
    options = Options { assume_generic: arguments.source.assume_generic.then_some(true), ..options };
    let asked = Asked {
        arrivals,
        longest,
        promises: Promises { ttft_p95: Some(arguments.ttft), tpot_p95: arguments.tpot },
        places: arguments.on.clone(),
        most: Some(arguments.max_replicas),
        notes,
    };
    let model = source::open(&arguments.source.model, arguments.source.assume_generic)?;
    let answer = capacity(&model, &options, &asked)?;
    show(arguments.json, &answer, render::capacity)?;
    Ok(if answer.choices.iter().any(|choice| choice.replicas.is_some()) { FITS } else { DOES_NOT_FIT })
}
