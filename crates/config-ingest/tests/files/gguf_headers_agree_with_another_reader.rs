//! The crate `gguf-rs-lib` reads the same from the same bytes, where it reads them at all.

use std::io::Cursor;

use crate::support::{File, Meta, files, gunzip};
use gguf_rs_lib::format::metadata::MetadataValue;
use gguf_rs_lib::reader::file_reader::{GGUFFileReader, GGUFReaderConfig};
use plimsoll_ingest::gguf::{Header, Limits, Value};

fn same(ours: &Value, theirs: &MetadataValue) -> bool {
    match (ours, theirs) {
        (Value::Array { len, values, .. }, MetadataValue::Array(list)) => {
            *len == list.length && values.as_ref().is_none_or(|values| values.iter().zip(&list.values).all(|(a, b)| same(a, b)))
        }
        (Value::Text(text), MetadataValue::String(other)) => text == other,
        (Value::Bool(truth), MetadataValue::Bool(other)) => truth == other,
        (Value::Float(number), MetadataValue::F32(other)) => *number == f64::from(*other),
        (Value::Float(number), MetadataValue::F64(other)) => number == other,
        (Value::Int(number), other) => match (other.as_u64(), other.as_i64()) {
            (Some(other), _) => *number == i128::from(other),
            (None, Some(other)) => *number == i128::from(other),
            (None, None) => false,
        },
        _ => false,
    }
}

/// Compares the two readers on `bytes`; what the other one says when it refuses.
fn check(bytes: &Vec<u8>, name: &str) -> Option<String> {
    let ours = Header::read(bytes, &Limits::default()).unwrap();
    let config = GGUFReaderConfig { validate_integrity: false, ..GGUFReaderConfig::default() };
    let theirs = match GGUFFileReader::with_config(Cursor::new(bytes), config) {
        Ok(reader) => reader,
        Err(error) => return Some(error.to_string()),
    };
    assert_eq!(ours.metadata.len(), theirs.metadata().len(), "{name}");
    for (key, value) in &ours.metadata {
        let other = theirs.metadata().get(key).unwrap_or_else(|| panic!("{name}: only we read {key}"));
        assert!(same(value, other), "{name}: {key}: {value:?} is not {other:?}");
    }
    assert_eq!(ours.tensors.len(), theirs.tensor_count(), "{name}");
    for (tensor, other) in ours.tensors.iter().zip(theirs.tensor_infos()) {
        assert_eq!(tensor.name, other.name(), "{name}");
        let n_dims = usize::try_from(tensor.n_dims).unwrap();
        assert_eq!(&tensor.shape.0[..n_dims], other.shape().dims(), "{name}: {}", tensor.name);
        assert_eq!(tensor.offset, other.data_offset(), "{name}: {}", tensor.name);
        assert_eq!(tensor.bytes, Some(other.expected_data_size()), "{name}: {}", tensor.name);
    }
    // Without tensors the engine pads nothing, and there is nothing to find there.
    if !ours.tensors.is_empty() {
        assert_eq!(ours.data_offset, theirs.tensor_data_offset(), "{name}");
    }
    None
}

#[test]
fn on_every_header_that_both_read() {
    let mut agreed = 0;
    let mut refused = Vec::new();
    for folder in ["truth/llama.cpp/gguf", "truth/llama.cpp/gguf-zoo", "corpus/gguf"] {
        for path in files(folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "gz")) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            match check(&gunzip(&path), &name) {
                None => agreed += 1,
                Some(why) => refused.push((name, why)),
            }
        }
    }
    // It refuses a hyphen in a key, which llama.cpp's own names of architectures have.
    for (name, why) in &refused {
        assert!(why.contains("key") && why.contains('-'), "{name}: {why}");
    }
    assert!(agreed >= 150, "{agreed} agreed, {} refused", refused.len());
    assert!(!refused.is_empty(), "it reads everything now: say so in the notes on crates");
}

#[test]
fn and_what_else_it_refuses_we_read() {
    let file = File::default().text("general.architecture", "llama").f32_tensor("a.weight", &[8]);
    let wanted = [
        ("version 2", File { version: 2, ..file.clone() }),
        ("big endian", File { big_endian: true, ..file.clone() }),
        ("a hyphen in a key", file.clone().u32("gpt-oss.block_count", 1)),
        ("an unknown tensor type", file.clone().tensor("b.weight", &[8], 99, 32)),
        ("a tensor without dimensions", file.clone().with("a.scale", Meta::F32(1.0)).tensor("c", &[], 0, 32)),
    ];
    let refused: Vec<&str> =
        wanted.iter().filter(|(what, file)| check(&file.bytes(), what).is_some()).map(|(what, _)| *what).collect();
    assert_eq!(refused[..4], ["version 2", "big endian", "a hyphen in a key", "an unknown tensor type"]);
}
