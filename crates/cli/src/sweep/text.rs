//! Rows as text: columns for people, comma-separated values, JSON.

use std::io::Write;

use plimsoll::math::units::Bytes;
use plimsoll::planner::size::short;
use plimsoll::planner::speed::PerSecond;
use plimsoll::planner::sweep::{Label, Row, SWEEP_SCHEMA, Standing, Sweep};

use super::Sink;
use crate::render::csv_field;
use crate::render::digits;
use crate::render::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, cut, flow, left, paint, right, width, wrap};

/// A part of a label as text.
type PartOf = fn(&Label) -> String;

/// Columns of a table for people. Widths follow from the axes, so that no row has to wait for another; what all rows share stands
/// once above them.
pub(super) struct Table {
    /// Columns of text: head, width, and which part of a label.
    texts: Vec<(&'static str, usize, PartOf)>,
    shared: Vec<String>,
}

impl Table {
    pub(super) fn new(sweep: &Sweep<'_>) -> Self {
        let axes = sweep.axes();
        // A sample of labels says how wide the columns get.
        let labels: Vec<Label> =
            (0..sweep.lines()).take(64).filter_map(|index| sweep.line(index).ok()).map(|line| line.label().clone()).collect();
        // Head, values of the axis, the most that the column may take.
        let columns_of: [(&'static str, usize, usize, PartOf); 5] = [
            ("engine", axes.engines.len(), 14, |label| label.engine.clone()),
            ("device", axes.devices.len(), 30, |label| label.device.clone()),
            ("quant", axes.quants.len(), 12, |label| label.quant.clone()),
            ("cache", axes.kv_types.len(), 10, |label| label.kv_type.clone()),
            ("seqs", axes.sequences.len(), 6, |label| label.sequences.to_string()),
        ];
        let mut out = Self { texts: Vec::new(), shared: vec![sweep.model_name().to_owned()] };
        for (head, values, most, of) in columns_of {
            if values > 1 {
                let widest = labels.iter().map(|label| columns(&of(label))).max().unwrap_or(0);
                out.texts.push((head, widest.max(columns(head)).min(most), of));
            } else if let Some(label) = labels.first() {
                out.shared.push(match head {
                    "cache" => format!("cache {}", of(label)),
                    "seqs" => format!("{} {}", of(label), if label.sequences == 1 { "sequence" } else { "sequences" }),
                    _ => of(label),
                });
            }
        }
        out
    }
}

fn rate(rate: Option<PerSecond>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| digits(rate.get()))
}

impl Sink for Table {
    fn head(&self, _: &Sweep<'_>) -> Vec<u8> {
        let mut head: Vec<String> = self.texts.iter().map(|(name, width, _)| left(name, *width)).collect();
        head.extend([right("context", 8), right("used", 10), right("free", 10), right("tok/s", 6), right("all", 6)]);
        let shared = flow(self.shared.iter().cloned(), " · ", width(), "").join("\n");
        format!("{shared}\n\n{}\n", paint(BOLD, &head.join("  "))).into_bytes()
    }

    fn foot(&self) -> Vec<u8> {
        let legend = "✓ fits   ◐ fits with a part on the host   ✗ does not fit; free: what is left, or missing, on the fullest device; \
                      tok/s: one sequence alone with its context full; all: all sequences together, half way through theirs";
        let lines: Vec<String> = wrap(legend, width(), "").into_iter().map(|line| paint(DIM, &line)).collect();
        format!("\n{}\n", lines.join("\n")).into_bytes()
    }

    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        let (sign, style) = match row.standing {
            Standing::Fits => ("✓", GOOD),
            Standing::FitsWithOffload => ("◐", MAYBE),
            Standing::DoesNotFit => ("✗", BAD),
            Standing::Refused => ("refused", DIM),
        };
        let free = row.headroom.map_or_else(
            || "-".to_owned(),
            |bytes| format!("{}{}", if bytes < 0 { "-" } else { "" }, short(bytes.unsigned_abs())),
        );
        let used = row.devices_used.map_or_else(|| "-".to_owned(), |bytes| short(bytes.get()));
        let mut cells: Vec<String> = self.texts.iter().map(|(_, width, of)| left(&cut(&of(row.label), *width), *width)).collect();
        cells.extend([
            right(&row.context.to_string(), 8),
            right(&used, 10),
            right(&free, 10),
            right(&rate(row.decode_tokens_per_s), 6),
            right(&rate(row.aggregate_decode_tokens_per_s), 6),
        ]);
        let _ = writeln!(out, "{}  {}", cells.join("  "), paint(style, sign));
    }
}

/// Comma-separated values.
pub(super) struct Csv;

impl Sink for Csv {
    fn head(&self, _: &Sweep<'_>) -> Vec<u8> {
        b"engine,engine_version,device,quant,kv_type,sequences,usable,context,standing,headroom,devices_used,host_used,weights,kv_cache,\
          recurrent_state,compute,output,driver_context,decode_tokens_per_s,aggregate_decode_tokens_per_s,prefill_tokens_per_s\n"
            .to_vec()
    }

    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        let label = row.label;
        for text in [&label.engine, &label.engine_version, &label.device, &label.quant, &label.kv_type] {
            let _ = write!(out, "{},", csv_field(text));
        }
        let _ = write!(out, "{},{},{},{}", label.sequences, label.usable.get(), row.context, row.standing.name());
        match row.headroom {
            Some(bytes) => {
                let _ = write!(out, ",{bytes}");
            }
            None => out.push(b','),
        }
        let sizes = [
            row.devices_used,
            row.host_used,
            row.weights,
            row.kv_cache,
            row.recurrent_state,
            row.compute,
            row.output,
            row.driver_context,
        ];
        for bytes in sizes {
            match bytes.map(Bytes::get) {
                Some(bytes) => {
                    let _ = write!(out, ",{bytes}");
                }
                None => out.push(b','),
            }
        }
        for rate in [row.decode_tokens_per_s, row.aggregate_decode_tokens_per_s, row.prefill_tokens_per_s] {
            match rate {
                Some(rate) => {
                    let _ = write!(out, ",{}", rate.get());
                }
                None => out.push(b','),
            }
        }
        out.push(b'\n');
    }
}

fn json(row: &Row<'_>, out: &mut Vec<u8>) {
    // Plain data into memory cannot fail.
    let _ = serde_json::to_writer(out, row);
}

/// One JSON object a line.
pub(super) struct Lines;

impl Sink for Lines {
    fn head(&self, _: &Sweep<'_>) -> Vec<u8> {
        Vec::new()
    }

    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        json(row, out);
        out.push(b'\n');
    }
}

/// One JSON document.
pub(super) struct Document;

impl Sink for Document {
    fn head(&self, sweep: &Sweep<'_>) -> Vec<u8> {
        format!("{{\"schema\":\"{SWEEP_SCHEMA}\",\"points\":{},\"rows\":[\n", sweep.points()).into_bytes()
    }

    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        json(row, out);
    }

    fn between(&self) -> &'static [u8] {
        b",\n"
    }

    fn foot(&self) -> Vec<u8> {
        b"\n]}\n".to_vec()
    }
}
