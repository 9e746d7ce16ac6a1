//! Rows as columns, for data frames: one row group a batch, so that memory holds no more than one.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::parser::parse_message_type;
use plimsoll::math::units::Bytes;
use plimsoll::planner::PlanError;
use plimsoll::planner::speed::PerSecond;
use plimsoll::planner::sweep::{Row, Sweep};
use rayon::prelude::*;

use super::{SHARE, batches};

const SCHEMA: &str = "message sweep {
    required binary engine (UTF8);
    required binary engine_version (UTF8);
    required binary device (UTF8);
    required binary quant (UTF8);
    required binary kv_type (UTF8);
    required int64 sequences;
    required int64 usable;
    required int64 context;
    required binary standing (UTF8);
    optional int64 headroom;
    optional int64 devices_used;
    optional int64 host_used;
    optional int64 weights;
    optional int64 kv_cache;
    optional int64 recurrent_state;
    optional int64 compute;
    optional int64 output;
    optional int64 driver_context;
    optional double decode_tokens_per_s;
    optional double aggregate_decode_tokens_per_s;
    optional double prefill_tokens_per_s;
}";

/// One row, in the order of the schema.
struct Record<'l> {
    texts: [&'l str; 5],
    counts: [i64; 3],
    standing: &'static str,
    sizes: [Option<i64>; 9],
    rates: [Option<f64>; 3],
}

/// Sizes are at most 2^53 - 1.
fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl<'l> Record<'l> {
    fn of(row: &Row<'l>) -> Self {
        let label = row.label;
        let size = |bytes: Option<Bytes>| bytes.map(|bytes| whole(bytes.get()));
        Self {
            texts: [&label.engine, &label.engine_version, &label.device, &label.quant, &label.kv_type],
            counts: [whole(label.sequences), whole(label.usable.get()), whole(row.context)],
            standing: row.standing.name(),
            sizes: [
                row.headroom,
                size(row.devices_used),
                size(row.host_used),
                size(row.weights),
                size(row.kv_cache),
                size(row.recurrent_state),
                size(row.compute),
                size(row.output),
                size(row.driver_context),
            ],
            rates: [row.decode_tokens_per_s, row.aggregate_decode_tokens_per_s, row.prefill_tokens_per_s]
                .map(|rate| rate.map(PerSecond::get)),
        }
    }
}

/// What one column holds of all records.
enum Values {
    Texts(Vec<ByteArray>),
    Counts(Vec<i64>),
    Sizes(Vec<i64>, Vec<i16>),
    Rates(Vec<f64>, Vec<i16>),
}

fn present<T: Copy>(values: impl Iterator<Item = Option<T>> + Clone) -> (Vec<T>, Vec<i16>) {
    (values.clone().flatten().collect(), values.map(|value| i16::from(value.is_some())).collect())
}

/// The columns in the order of the schema.
fn columns(records: &[Record<'_>]) -> Vec<Values> {
    let mut out = Vec::new();
    let text =
        |of: &dyn Fn(&Record<'_>) -> String| Values::Texts(records.iter().map(|record| of(record).into_bytes().into()).collect());
    for index in 0..5 {
        out.push(text(&|record| record.texts.get(index).map_or_else(String::new, |text| (*text).to_owned())));
    }
    for index in 0..3 {
        out.push(Values::Counts(records.iter().map(|record| record.counts.get(index).copied().unwrap_or(0)).collect()));
    }
    out.push(text(&|record| record.standing.to_owned()));
    for index in 0..9 {
        let (values, levels) = present(records.iter().map(move |record| record.sizes.get(index).copied().flatten()));
        out.push(Values::Sizes(values, levels));
    }
    for index in 0..3 {
        let (values, levels) = present(records.iter().map(move |record| record.rates.get(index).copied().flatten()));
        out.push(Values::Rates(values, levels));
    }
    out
}

fn put(writer: &mut SerializedColumnWriter<'_>, values: &Values) -> Result<(), ParquetError> {
    match (writer.untyped(), values) {
        (ColumnWriter::ByteArrayColumnWriter(writer), Values::Texts(values)) => writer.write_batch(values, None, None),
        (ColumnWriter::Int64ColumnWriter(writer), Values::Counts(values)) => writer.write_batch(values, None, None),
        (ColumnWriter::Int64ColumnWriter(writer), Values::Sizes(values, levels)) => {
            writer.write_batch(values, Some(levels), None)
        }
        (ColumnWriter::DoubleColumnWriter(writer), Values::Rates(values, levels)) => {
            writer.write_batch(values, Some(levels), None)
        }
        _ => Err(ParquetError::General("a column of another type than its schema".to_owned())),
    }
    .map(|_| ())
}

fn failed(path: &Path, error: impl ToString) -> PlanError {
    PlanError::request("output", format!("{}: {}", path.display(), error.to_string()), "a file that can be written")
}

/// Writes all rows.
pub(super) fn write(sweep: &Sweep<'_>, path: &Path) -> Result<(), PlanError> {
    let schema = parse_message_type(SCHEMA).map_err(|error| failed(path, error))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = File::create(path).map_err(|error| failed(path, error))?;
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(|error| failed(path, error))?;
    batches(sweep, |batch| {
        let records: Vec<Vec<Record<'_>>> = batch
            .cells()
            .par_chunks(SHARE)
            .map(|cells| cells.iter().map(|(line, context)| Ok(Record::of(&line.row(*context)?))).collect())
            .collect::<Result<_, PlanError>>()?;
        let records: Vec<Record<'_>> = records.into_iter().flatten().collect();
        let mut group = writer.next_row_group().map_err(|error| failed(path, error))?;
        for values in columns(&records) {
            let Some(mut column) = group.next_column().map_err(|error| failed(path, error))? else { break };
            put(&mut column, &values).and_then(|()| column.close()).map_err(|error| failed(path, error))?;
        }
        group.close().map_err(|error| failed(path, error))?;
        Ok(true)
    })?;
    writer.close().map(|_| ()).map_err(|error| failed(path, error))
}
