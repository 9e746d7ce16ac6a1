//! `sweep --format parquet`, read back with the library of its format: the rows of the CSV, in their order, with types and gaps.
#![cfg(feature = "parquet")]

use std::fs::File;

use crate::run::plimsoll;
use parquet::basic::Type;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

/// A cell as the CSV writes it.
fn text(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Long(value) => value.to_string(),
        Field::Double(value) => value.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rows_are_those_of_the_csv() {
    let folder = std::env::temp_dir().join(format!("plimsoll-columns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("rows.parquet");
    let file = file.to_str().unwrap();
    // One device's rows have gaps: the engine refuses them there.
    let question = [
        "sweep",
        "@models/gemma-3-27b",
        "--contexts",
        "1k..64k*2",
        "--sequences",
        "1,3",
        "--kv-types",
        "f16,q8_0",
        "--quants",
        "Q4_K_M",
        "--flash-attention",
        "off",
        "--devices",
        "RTX 4090,RTX 3060 12GB",
    ];
    let ran = plimsoll(&[question.as_slice(), &["--format", "parquet", "--output", file]].concat());
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    let csv = plimsoll(&[question.as_slice(), &["--format", "csv"]].concat()).out;
    let mut lines = csv.lines();
    let heading: Vec<&str> = lines.next().unwrap().split(',').collect();

    let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr();
    let (mut refused, mut rows) = (0, 0);
    for (row, line) in reader.get_row_iter(None).unwrap().zip(lines.by_ref()) {
        let row = row.unwrap();
        let expected: Vec<&str> = line.split(',').collect();
        for (name, field) in row.get_column_iter() {
            let place = heading.iter().position(|head| head == name).unwrap_or_else(|| panic!("{name} of {heading:?}"));
            let (found, wanted) = (text(field), expected[place]);
            let equal = found == wanted || found.parse::<f64>().ok().zip(wanted.parse::<f64>().ok()).is_some_and(|(a, b)| a == b);
            assert!(equal, "row {rows}, {name}: {found} for {wanted}");
            refused += usize::from(name == "weights" && found.is_empty());
        }
        rows += 1;
    }
    assert_eq!((rows, lines.count()), (56, 0), "a row of the CSV is missing");
    assert_eq!(refused, 28, "quantized values need flash attention");
    let kinds = |name: &str| {
        let column = (0..schema.num_columns()).map(|index| schema.column(index)).find(|column| column.name() == name).unwrap();
        column.physical_type()
    };
    assert_eq!(kinds("kv_cache"), Type::INT64);
    assert_eq!(kinds("decode_tokens_per_s"), Type::DOUBLE);
    assert_eq!(kinds("device"), Type::BYTE_ARRAY);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn standard_output_is_no_file() {
    let ran = plimsoll(&[
        "sweep",
        "@models/llama-3.1-8b",
        "--quant",
        "Q4_K_M",
        "--contexts",
        "4k",
        "--device",
        "4090",
        "--format",
        "parquet",
    ]);
    assert!(ran.code == 64 && ran.out.is_empty() && ran.err.contains("--output FILE"), "{}", ran.err);
}
