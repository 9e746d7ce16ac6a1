//! The tensor table made from a model's `config.json` is the one that its converted GGUF file holds: the same names
//! with the same shapes, and the same architecture.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_ingest::gguf::{Header, Limits};
use plimsoll_ingest::hf;
use plimsoll_math::tensor::{Counts, Shape};

/// Measured with an output matrix of its own, although the published checkpoint ties it to the embedding (its
/// safetensors hold 3,075,098,624 parameters) and the converter therefore writes none.
const MEASURED_UNTIED: &str = "SmolLM3-3B";

fn truth() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/truth/llama.cpp")
}

fn header(model: &str) -> Header {
    let file = std::fs::File::open(truth().join(format!("gguf/{model}.BF16.gguf.header.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    Header::read(&bytes.as_slice(), &Limits::default()).unwrap()
}

/// `Err` with the first few differences between config and file.
fn check(model: &str) -> Result<(), String> {
    let bytes = std::fs::read(truth().join(format!("configs/{model}.config.json"))).unwrap();
    let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| error.to_string())?;
    let header = header(model);
    let mut wrong = Vec::new();
    let architecture = header.get("general.architecture").and_then(|value| value.as_text()).map(ToOwned::to_owned);
    if architecture != ingested.spec.llama_cpp_arch {
        wrong.push(format!("architecture {:?}, file {architecture:?}", ingested.spec.llama_cpp_arch));
    }
    let mut theirs: BTreeMap<String, Shape> = header.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape)).collect();
    if model == MEASURED_UNTIED {
        assert!(theirs.remove("output.weight").is_some(), "{model} is tied in the truth as well now");
    }
    // Converters can leave the prediction layers out; then the file holds none of their tensors.
    let has_mtp = theirs.keys().any(|name| name.contains(".nextn."));
    let written = ingested.tensors.tensors.iter().filter(|tensor| {
        // The image and sound towers go to a file of their own.
        tensor.counts.is_in_gguf()
            && tensor.place != plimsoll_math::tensor::Place::Tower
            && (has_mtp || tensor.counts != Counts::MultiTokenPrediction)
    });
    let mut ours: BTreeMap<String, Shape> = BTreeMap::new();
    for tensor in written {
        if ours.insert(tensor.name.clone(), tensor.shape).is_some() {
            wrong.push(format!("{} twice", tensor.name));
        }
    }
    for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        if ours.get(name) != theirs.get(name) {
            wrong.push(format!("{name}: {:?}, file {:?}", ours.get(name), theirs.get(name)));
        }
    }
    let count = wrong.len();
    wrong.truncate(5);
    if wrong.is_empty() { Ok(()) } else { Err(format!("{count} differences: {}", wrong.join(", "))) }
}

#[test]
fn config_and_gguf_agree_on_every_tensor() {
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(truth().join("configs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let model = name.strip_suffix(".config.json").unwrap();
        if let Err(problem) = check(model) {
            problems.push(format!("{model}: {problem}"));
        }
    }
    problems.sort();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
