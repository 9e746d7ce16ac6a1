//! What the quantizer and the loader decide by is the same whether read from a file's metadata or derived from the
//! architecture that the file became: through every real header and one of each architecture.

use std::path::{Path, PathBuf};

use crate::support::fixture;
use crate::support::headers::{facts, header, read, shapes_only};
use plimsoll_ingest::gguf::{Options, from_header};
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment};
use plimsoll_math::engine::llama_cpp::weights::weight_buffers;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};

fn check(path: &Path) -> Result<(), String> {
    let build = Build::C0c1e57098;
    let read_header = header(path);
    let mut from_metadata = facts(&read_header);
    let (_, table) = read(&read_header);
    // The made-up header of ernie4_5 speaks of two experts and holds none.
    if !table.tensors.iter().any(|tensor| tensor.name.contains("_exps.")) {
        from_metadata.n_experts = 0;
    }
    let ingested = from_header(read_header, &Options::default()).map_err(|error| error.to_string())?;
    let derived = LoaderFacts::of(&ingested.spec, build).map_err(|error| error.to_string())?;
    let decisions = |facts: &LoaderFacts| {
        let kinds = (facts.arch.clone(), facts.n_layers, facts.n_layers_all, facts.is_70b(), facts.packed_experts);
        (kinds, facts.n_gqa() >= 4, facts.n_experts.min(9))
    };
    // The quantizer asks for the ratio of heads where values have a tensor of their own only.
    let has_values = table.tensors.iter().any(|tensor| tensor.name.contains("attn_v.") || tensor.name.contains("attn_qkv."));
    if has_values && decisions(&derived) != decisions(&from_metadata) {
        return Err(format!("derived {derived:?}, in the metadata {from_metadata:?}"));
    }
    for file_type in [FileType::Q4KM, FileType::Q2K, FileType::Iq3M, FileType::Iq2M, FileType::Mxfp4Moe] {
        let made = |facts: &LoaderFacts| quantize::file_tensors(build, facts, &shapes_only(&table), file_type).unwrap();
        if made(&derived) != made(&from_metadata) {
            return Err(format!("{file_type} differs: derived {derived:?}, in the metadata {from_metadata:?}"));
        }
    }
    for backend in [Backend::Cpu, Backend::Cuda { compute_capability: 890 }, Backend::Metal] {
        let deployment = Deployment::new(ContextRequest::ModelMaximum, backend);
        let of = |facts, table| weight_buffers(build, facts, table, &deployment).unwrap();
        let (ours, theirs) = (of(&derived, &ingested.tensors), of(&from_metadata, &table));
        let sizes = |buffers: &[plimsoll_math::engine::llama_cpp::weights::WeightBuffer]| {
            buffers.iter().map(|buffer| (buffer.place, buffer.bytes)).collect::<Vec<_>>()
        };
        if sizes(&ours) != sizes(&theirs) {
            return Err(format!("buffers on {backend:?}: derived {:?}, from the header {:?}", sizes(&ours), sizes(&theirs)));
        }
    }
    Ok(())
}

#[test]
fn of_every_header() {
    let mut failures = Vec::new();
    let mut checked = 0;
    for folder in ["truth/llama.cpp/gguf", "truth/llama.cpp/gguf-zoo"] {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if let Err(why) = check(&path) {
                failures.push(format!("{}: {why}", path.file_name().unwrap().display()));
            }
            checked += 1;
        }
    }
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
    assert!(checked >= 190, "{checked}");
}
