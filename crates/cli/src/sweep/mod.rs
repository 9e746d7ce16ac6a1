//! `plimsoll sweep`: rows in their order while they are worked out, whatever their number.
//!
//! A batch of points is shared out among the processors, written as text where it was worked out, and put out in order;
//! then the next. Memory holds one batch.

mod chart;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "plot")]
mod plot;
mod text;

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;

use plimsoll::planner::PlanError;
use plimsoll::planner::sweep::{Line, Row, Sweep};
use rayon::prelude::*;

use crate::args::{Format, SweepArgs};
use crate::progress::Bar;
use crate::{FITS, model, print, render};

/// Points that are worked out before they are written.
const BATCH: u64 = 16_384;
/// Lines that are compiled at a time.
const LINES: u64 = 64;
/// Points that one processor takes at a time.
const SHARE: usize = 256;

/// Where rows go.
trait Sink: Sync {
    /// What stands before the rows.
    fn head(&self, sweep: &Sweep<'_>) -> Vec<u8>;
    /// One row.
    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>);
    /// What stands between two rows.
    fn between(&self) -> &'static [u8] {
        b""
    }
    /// What stands after the rows.
    fn foot(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Lines beside each other with a range of their contexts: what is worked out at a time.
struct Batch<'l, 's> {
    sweep: &'s Sweep<'s>,
    lines: &'l [Line<'s>],
    from: u64,
    to: u64,
}

impl<'l> Batch<'l, '_> {
    /// The points, line by line.
    fn cells(&self) -> Vec<(&'l Line<'_>, u64)> {
        self.lines
            .iter()
            .flat_map(|line| (self.from..self.to).map(move |column| (line, column)))
            .map(|(line, column)| (line, self.sweep.context(column)))
            .collect()
    }
}

/// Hands out every batch in order. `false` from `take` ends it early.
fn batches(sweep: &Sweep<'_>, mut take: impl FnMut(&Batch<'_, '_>) -> Result<bool, PlanError>) -> Result<(), PlanError> {
    // Rows that scroll by on a terminal are a progress of their own.
    let shown = !io::stdout().is_terminal();
    let bar = Bar::new(sweep.points(), "{bar:30} {human_pos} of {human_len} points, {eta} left", shown);
    let (all, width) = (sweep.lines(), sweep.width());
    let mut at = 0;
    while at < all {
        let count = (BATCH / width.max(1)).clamp(1, LINES).min(all - at);
        let lines: Vec<Line<'_>> =
            (at..at + count).into_par_iter().map(|index| sweep.line(index)).collect::<Result<_, PlanError>>()?;
        let step = (BATCH / count).max(1);
        let mut from = 0;
        while from < width {
            let to = width.min(from.saturating_add(step));
            if !take(&Batch { sweep, lines: &lines, from, to })? {
                return Ok(());
            }
            bar.passed((to - from).saturating_mul(count));
            from = to;
        }
        at += count;
    }
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> PlanError {
    PlanError::request("output", format!("{}: {error}", path.display()), "a file that can be written")
}

/// Writes all rows. A reader that went away is no error.
fn write(sweep: &Sweep<'_>, sink: &dyn Sink, path: Option<&Path>) -> Result<(), PlanError> {
    let mut out: Box<dyn Write> = match path {
        Some(path) => Box::new(BufWriter::new(File::create(path).map_err(|error| cannot_write(path, &error))?)),
        None => Box::new(BufWriter::new(anstream::stdout().lock())),
    };
    let result = rows(sweep, sink, &mut out);
    match result {
        Err(Stop::Written(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Stop::Written(error)) => Err(cannot_write(path.unwrap_or(Path::new("standard output")), &error)),
        Err(Stop::Planned(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Why rows end before their time.
enum Stop {
    Planned(PlanError),
    Written(io::Error),
}

fn rows(sweep: &Sweep<'_>, sink: &dyn Sink, out: &mut dyn Write) -> Result<(), Stop> {
    let mut failed = None;
    let mut put = |bytes: &[u8]| match out.write_all(bytes) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    };
    // Nothing is written before the first batch is worked out: a wrong question leaves standard output empty.
    let mut first = true;
    batches(sweep, |batch| {
        let texts: Vec<Vec<u8>> = batch
            .cells()
            .par_chunks(SHARE)
            .map(|cells| {
                let mut text = Vec::with_capacity(cells.len().saturating_mul(160));
                for (index, (line, context)) in cells.iter().enumerate() {
                    if index > 0 {
                        text.extend_from_slice(sink.between());
                    }
                    sink.row(&line.row(*context)?, &mut text);
                }
                Ok(text)
            })
            .collect::<Result<_, PlanError>>()?;
        for text in &texts {
            let before = if first { sink.head(sweep) } else { sink.between().to_vec() };
            first = false;
            if !(put(&before) && put(text)) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .map_err(Stop::Planned)?;
    put(&sink.foot());
    if let Some(error) = failed {
        return Err(Stop::Written(error));
    }
    out.flush().map_err(Stop::Written)
}

/// Every line is refused: that is no table, but one sentence.
fn all_refused(sweep: &Sweep<'_>) -> Result<(), PlanError> {
    let mut reason = None;
    for index in 0..sweep.lines().min(LINES) {
        let line = sweep.line(index)?;
        match line.refusal() {
            Some(text) => reason = reason.or_else(|| Some(text.to_owned())),
            None => return Ok(()),
        }
    }
    match reason {
        Some(reason) if sweep.lines() <= LINES => {
            Err(PlanError::request("sweep", reason, "at least one setting that an engine takes"))
        }
        _ => Ok(()),
    }
}

/// `plimsoll sweep`.
pub(crate) fn sweep(arguments: &SweepArgs) -> Result<u8, PlanError> {
    let axes = arguments.axes()?;
    let model = model(&arguments.source)?;
    let sweep = Sweep::new(&model, &arguments.options()?, axes)?;
    all_refused(&sweep)?;
    if let Some(path) = &arguments.plot {
        draw(&sweep, path)?;
    }
    if arguments.chart {
        print(&render::page(&chart::chart(&sweep)?));
        return Ok(FITS);
    }
    let path = arguments.output.as_deref();
    match arguments.format {
        _ if arguments.json => write(&sweep, &text::Document, path)?,
        None | Some(Format::Table) => write(&sweep, &text::Table::new(&sweep), path)?,
        Some(Format::Csv) => write(&sweep, &text::Csv, path)?,
        Some(Format::Jsonl) => write(&sweep, &text::Lines, path)?,
        Some(Format::Parquet) => columns(&sweep, path)?,
    }
    Ok(FITS)
}

#[cfg(feature = "parquet")]
fn columns(sweep: &Sweep<'_>, path: Option<&Path>) -> Result<(), PlanError> {
    let Some(path) = path else {
        return Err(PlanError::request("format", "parquet to standard output", "a file beside it: --output FILE"));
    };
    parquet::write(sweep, path)
}

#[cfg(not(feature = "parquet"))]
fn columns(_: &Sweep<'_>, _: Option<&Path>) -> Result<(), PlanError> {
    Err(PlanError::request(
        "format",
        "parquet, which this program was compiled without",
        "csv or jsonl, or a build with --features parquet",
    ))
}

#[cfg(feature = "plot")]
fn draw(sweep: &Sweep<'_>, path: &Path) -> Result<(), PlanError> {
    plot::draw(sweep, path)
}

#[cfg(not(feature = "plot"))]
fn draw(_: &Sweep<'_>, _: &Path) -> Result<(), PlanError> {
    Err(PlanError::request("plot", "a drawing, which this program was compiled without", "a build with --features plot"))
}
