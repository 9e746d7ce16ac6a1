//! Our header reader beside the format's own crate: on real files, and on files made up at random.

use plimsoll_ingest::safetensors::{Dtype, Header, Limits, read_header};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn whole(length: usize) -> u64 {
    u64::try_from(length).unwrap()
}

fn ours(file: &[u8]) -> Result<Header, String> {
    read_header(&file, &Limits::default()).map_err(|error| error.to_string())
}

/// Both readers agree whether `file` is one; and if so, about every tensor.
fn check(file: &[u8]) -> Result<(), TestCaseError> {
    let theirs = SafeTensors::read_metadata(file);
    match (ours(file), theirs) {
        (Ok(header), Ok((length, metadata))) => {
            prop_assert_eq!(header.data_start, whole(length) + 8);
            let tensors = metadata.tensors();
            prop_assert_eq!(header.tensors.len(), tensors.len());
            for entry in &header.tensors {
                let info = tensors.get(&entry.name).expect("the reference knows the name");
                let shape: Vec<u64> = info.shape.iter().map(|dimension| whole(*dimension)).collect();
                prop_assert_eq!(&entry.shape, &shape);
                prop_assert_eq!((entry.start, entry.end), (whole(info.data_offsets.0), whole(info.data_offsets.1)));
                let dtype = info.dtype.to_string();
                prop_assert_eq!(entry.dtype.map(Dtype::name), Some(dtype.as_str()));
            }
            prop_assert_eq!(header.file_bytes(), whole(file.len()));
            Ok(())
        }
        (Err(_), Err(_)) => Ok(()),
        (Ok(_), Err(error)) => Err(TestCaseError::fail(format!("only the reference refuses: {error}"))),
        (Err(error), Ok(_)) => Err(TestCaseError::fail(format!("only we refuse: {error}"))),
    }
}

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut file = whole(json.len()).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn real_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/corpus/safetensors");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(ours(&bytes).is_ok(), "{}", path.display());
            check(&bytes).unwrap();
            files += 1;
        }
    }
    assert_eq!(files, 3);
}

#[test]
fn every_number_type_has_the_size_the_reference_gives_it() {
    for dtype in Dtype::ALL {
        let bytes = dtype.bits();
        let json = format!(r#"{{"t":{{"dtype":"{}","shape":[8],"data_offsets":[0,{bytes}]}}}}"#, dtype.name());
        let good = file(&json, usize::try_from(bytes).unwrap());
        assert!(ours(&good).is_ok(), "{}", dtype.name());
        check(&good).unwrap();
        if let Some(format) = dtype.format() {
            assert_eq!(format.row_bytes(8).unwrap().get(), bytes, "{}", dtype.name());
        }
    }
}

/// A tensor whose offsets follow the one before, more or less.
#[derive(Debug, Clone)]
struct Draft {
    dtype: usize,
    shape: Vec<u64>,
    gap: i64,
    stretch: i64,
}

fn draft() -> impl Strategy<Value = Draft> {
    let mostly_zero = || prop_oneof![9 => Just(0_i64), 1 => -3_i64..4];
    (0..Dtype::ALL.len(), prop::collection::vec(0_u64..6, 0..5), mostly_zero(), mostly_zero())
        .prop_map(|(dtype, shape, gap, stretch)| Draft { dtype, shape, gap, stretch })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_headers(drafts in prop::collection::vec(draft(), 0..6), extra in prop_oneof![4 => Just(0_i64), 1 => -4_i64..5], reversed: bool) {
        let mut end = 0_i64;
        let mut rows = Vec::new();
        for (number, draft) in drafts.iter().enumerate() {
            let dtype = Dtype::ALL[draft.dtype];
            let bits = draft.shape.iter().product::<u64>() * dtype.bits();
            let start = (end + draft.gap).max(0);
            let stop = (start + i64::try_from(bits / 8).unwrap() + draft.stretch).max(0);
            rows.push(format!(r#""t{number}":{{"dtype":"{}","shape":{:?},"data_offsets":[{start},{stop}]}}"#, dtype.name(), draft.shape));
            end = stop;
        }
        if reversed {
            rows.reverse();
        }
        let bytes = file(&format!("{{{}}}", rows.join(",")), usize::try_from((end + extra).max(0)).unwrap());
        check(&bytes)?;
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(ours(&bytes).is_err() || SafeTensors::read_metadata(&bytes).is_ok());
    }

    #[test]
    fn one_changed_byte(position in 0_usize..300, value: u8) {
        let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
        let mut bytes = file(json, 22);
        if let Some(byte) = bytes.get_mut(position) {
            *byte = value;
        }
        // An unknown number type and a name that stands twice are where we differ on purpose.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        prop_assume!(text.contains("\"a\"") && text.contains("\"b\""));
        match ours(&bytes) {
            Ok(header) if header.tensors.iter().any(|entry| entry.dtype.is_none()) => {}
            // Field names that stand twice are refused by both; header bytes beyond JSON likewise.
            _ => check(&bytes)?,
        }
    }
}

#[test]
fn sizes_beyond_32_bits_are_exact() {
    let bytes: u64 = 600 << 30;
    let json = format!(r#"{{"experts":{{"dtype":"BF16","shape":[300,1073741824],"data_offsets":[0,{bytes}]}}}}"#);
    let head = file(&json, 0);
    let length = Some(whole(head.len()) + bytes);
    let source = plimsoll_ingest::source::PrefixSource::new("big".into(), head, length);
    let header = read_header(&source, &Limits::default()).unwrap();
    assert_eq!(header.data_bytes, bytes);
}

#[test]
fn what_the_reference_lets_pass_or_refuses_and_we_do_not() {
    // The reference keeps one of the two and forgets the other.
    let twice =
        file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#, 4);
    assert_eq!(ours(&twice).unwrap_err(), "tensor a: found the name twice in one header, expected each name once");
    // The reference fails the whole file.
    let unknown = file(r#"{"a":{"dtype":"F5","shape":[8],"data_offsets":[0,5]}}"#, 5);
    let header = ours(&unknown).unwrap();
    assert_eq!(header.notes, ["tensor a: number type F5 is not known; its 5 bytes are counted, its elements are not"]);
    assert_eq!(header.data_bytes, 5);
}
