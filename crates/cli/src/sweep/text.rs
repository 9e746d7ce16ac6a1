//! Rows as text: columns for people, comma-separated values, JSON.

use std::io::Write;

use plimsoll::math::units::Bytes;
use plimsoll::planner::size::short;
use plimsoll::planner::speed::PerSecond;
use plimsoll::planner::sweep::{Row, SWEEP_SCHEMA, Standing, Sweep};

use super::Sink;
use crate::render::csv_field;
use crate::render::digits;
use crate::render::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, cut, left, paint, right};

/// Columns of a table for people. Widths follow from the axes, so that no row has to wait for another.
pub(super) struct Table {
    device: usize,
    quant: usize,
    kv_type: usize,
    engine: usize,
}

impl Table {
    pub(super) fn new(sweep: &Sweep<'_>) -> Self {
        // The labels of one line of every axis value say how wide the columns get; a sample is enough.
        let mut out = Self { device: 6, quant: 5, kv_type: 5, engine: 6 };
        for index in (0..sweep.lines()).take(64) {
            let Ok(line) = sweep.line(index) else { continue };
            let label = line.label();
            out.device = out.device.max(columns(&label.device)).min(28);
            out.quant = out.quant.max(columns(&label.quant)).min(12);
            out.kv_type = out.kv_type.max(columns(&label.kv_type)).min(10);
            out.engine = out.engine.max(columns(&label.engine)).min(12);
        }
        out
    }
}

fn rate(rate: Option<PerSecond>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| digits(rate.get()))
}

impl Sink for Table {
    fn head(&self, _: &Sweep<'_>) -> Vec<u8> {
        let line = format!(
            "{}  {}  {}  {}  {}  {}  {}  {}  {}  {}",
            left("engine", self.engine),
            left("device", self.device),
            left("quant", self.quant),
            left("cache", self.kv_type),
            right("seqs", 4),
            right("context", 8),
            right("used", 10),
            right("free", 10),
            right("tok/s", 6),
            right("all", 6)
        );
        format!("{}\n", paint(BOLD, &line)).into_bytes()
    }

    fn row(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        let label = row.label;
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
        let _ = writeln!(
            out,
            "{}  {}  {}  {}  {}  {}  {}  {}  {}  {}  {}",
            left(&cut(&label.engine, self.engine), self.engine),
            left(&cut(&label.device, self.device), self.device),
            left(&cut(&label.quant, self.quant), self.quant),
            left(&cut(&label.kv_type, self.kv_type), self.kv_type),
            right(&label.sequences.to_string(), 4),
            right(&row.context.to_string(), 8),
            right(&used, 10),
            right(&free, 10),
            right(&rate(row.decode_tokens_per_s), 6),
            right(&rate(row.aggregate_decode_tokens_per_s), 6),
            paint(style, sign)
        );
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
