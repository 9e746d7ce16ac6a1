//! Every hostile safetensors file, index, npz archive and model name among the fixtures is refused with one sentence
//! that says what is wrong.

use crate::support::{files, fixture};
use plimsoll_ingest::error::IngestError;
use plimsoll_ingest::hub::HubId;
use plimsoll_ingest::mlx::{NpzLimits, read_npz};
use plimsoll_ingest::safetensors::{Context, Hints, Index, IndexLimits, Limits, read_header};

fn check(name: &str, answer: Result<(), IngestError>, expected: &str) -> Option<String> {
    let sentence = match answer {
        Ok(()) => return Some(format!("{name}: accepted")),
        Err(error) => error.to_string(),
    };
    let is_one_line = !sentence.chars().any(char::is_control) && sentence.len() < 500;
    (!sentence.contains(expected) || !is_one_line).then(|| format!("{name}: {sentence:?}, expected {expected:?}"))
}

fn of_folder(folder: &str, read: impl Fn(&str, &[u8]) -> Result<(), IngestError>) {
    let table = std::fs::read_to_string(fixture(&format!("{folder}/expected.tsv"))).unwrap();
    let mut wrong = Vec::new();
    let mut listed = 0;
    for line in table.lines() {
        let (file, expected) = line.split_once('\t').unwrap();
        let bytes = std::fs::read(fixture(&format!("{folder}/{file}"))).unwrap();
        wrong.extend(check(file, read(file, &bytes), expected));
        listed += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let about = ["make.py", "README.md", "expected.tsv"];
    let there = files(folder).iter().filter(|path| !about.iter().any(|name| path.ends_with(name))).count();
    assert_eq!(listed, there, "every file has an expectation");
}

#[test]
fn of_safetensors_files_and_indexes() {
    of_folder("attacks/safetensors", |file, bytes| {
        if file.ends_with(".json") {
            Index::parse(bytes, &IndexLimits::default()).map(|_| ())
        } else {
            read_header(&bytes, &Limits::default()).map(|_| ())
        }
    });
}

#[test]
fn of_npz_archives() {
    of_folder("attacks/npz", |_, bytes| {
        read_npz(&bytes, &NpzLimits::default(), Context::default(), &Hints::default()).map(|_| ())
    });
}

#[test]
fn of_model_names() {
    let table = std::fs::read_to_string(fixture("attacks/hub/names.tsv")).unwrap();
    let mut wrong = Vec::new();
    for line in table.lines() {
        let (name, expected) = line.split_once('\t').unwrap();
        let name: String = serde_json::from_str(name).unwrap();
        wrong.extend(check(&format!("{name:?}"), HubId::parse(&name).map(|_| ()), expected));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn small_limits_are_kept() {
    let header = |limits: Limits| {
        let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let mut file = u64::try_from(json.len()).unwrap().to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.extend([0, 0]);
        read_header(&file.as_slice(), &limits).map(|_| ())
    };
    assert!(header(Limits::default()).is_ok());
    assert_eq!(header(Limits { header_bytes: 50, ..Limits::default() }).unwrap_err().code(), "limit");
    assert!(header(Limits { tensors: 1, ..Limits::default() }).unwrap_err().to_string().contains("more than 1 tensors"));
    assert!(header(Limits { name_bytes: 0, ..Limits::default() }).is_err());
    assert!(header(Limits { dimensions: 0, ..Limits::default() }).is_err());
    let tight = IndexLimits { bytes: 10, ..IndexLimits::default() };
    assert_eq!(Index::parse(br#"{"weight_map":{"a":"b"}}"#, &tight).unwrap_err().code(), "limit");
}
