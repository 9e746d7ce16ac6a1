//! What the architecture says a layer is made of is what the file holds: synthesized back, the tensor table has the
//! same names and shapes.

use std::collections::BTreeMap;

use crate::support::{files, gunzip};
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::synth::tensor_table;

/// Names and shapes that only one of the two tables has.
fn differences(bytes: &[u8]) -> Vec<String> {
    let ingested = ingest(&bytes.to_vec(), &Options::default()).unwrap();
    if ingested.spec.architecture == "hrm_text" {
        // Its layers are passes over two stacks: the first high pass comes after several low ones, while its weights
        // are numbered right behind theirs.
        return Vec::new();
    }
    let file: BTreeMap<_, _> = ingested.tensors.tensors.iter().map(|t| (t.name.clone(), t.shape.0)).collect();
    let synthesized: BTreeMap<_, _> =
        tensor_table(&ingested.spec).unwrap().tensors.iter().map(|t| (t.name.clone(), t.shape.0)).collect();
    let one_sided = |from: &BTreeMap<String, [u64; 4]>, to: &BTreeMap<String, [u64; 4]>, side: &str| {
        from.iter()
            .filter(|(name, shape)| to.get(*name) != Some(shape))
            .map(|(name, shape)| format!("{side}: {name} {shape:?}"))
            .collect::<Vec<_>>()
    };
    let mut all = one_sided(&file, &synthesized, "file");
    all.extend(one_sided(&synthesized, &file, "spec"));
    all
}

fn check(folder: &str) {
    let mut wrong = Vec::new();
    for path in files(folder) {
        let differences = differences(&gunzip(&path));
        if !differences.is_empty() {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            wrong.push(format!(
                "{name}: {} differ\n  {}",
                differences.len(),
                differences[..differences.len().min(6)].join("\n  ")
            ));
        }
    }
    assert!(wrong.is_empty(), "{} files:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn of_every_real_header() {
    check("truth/llama.cpp/gguf");
}

#[test]
fn of_the_zoo() {
    check("truth/llama.cpp/gguf-zoo");
}
