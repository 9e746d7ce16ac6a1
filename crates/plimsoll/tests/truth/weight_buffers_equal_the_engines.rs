//! Bytes of every weight buffer on load, through both doors (a header, and shapes with a file type), beside what
//! llama.cpp itself allocates.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::headers::{model, read, shapes_only};
use crate::support::rows;
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment};
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::engine::llama_cpp::weights::weight_buffers;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};
use plimsoll_math::tensor::TensorTable;

/// The backend of a row of the truth; `None` for placements on several devices or part of one.
fn backend(name: &str) -> Option<Backend> {
    match name {
        "cpu" | "cpu+repack" => Some(Backend::Cpu),
        "metal" => Some(Backend::Metal),
        _ => name.strip_prefix("cuda-cc")?.parse().ok().map(|cc: u32| Backend::Cuda { compute_capability: cc }),
    }
}

fn check(
    what: &str,
    build: Build,
    facts: &LoaderFacts,
    table: &TensorTable,
    deployment: &Deployment,
    expect: &serde_json::Value,
) {
    let buffers = weight_buffers(build, facts, table, deployment).unwrap();
    let mut found = BTreeMap::new();
    let layout = Layout::new(facts.n_layers_all, deployment).unwrap();
    for buffer in &buffers {
        found.insert(buffer.place.engine_name(&layout), buffer.bytes.get());
        let term = buffer.term(build, &layout);
        let parts: u64 = term.children.iter().map(|child| child.bytes.get()).sum();
        assert_eq!(parts, term.bytes.get(), "{what}: the parts of {}", term.label);
    }
    assert_eq!(serde_json::to_value(&found).unwrap(), *expect, "{what}");
}

#[test]
fn on_every_row_of_one_device_or_the_processor() {
    let mut seen = BTreeSet::new();
    let mut tables: BTreeMap<String, (LoaderFacts, TensorTable)> = BTreeMap::new();
    let mut through_headers = 0;
    for row in rows("truth/llama.cpp/truth.jsonl.gz") {
        let Some(backend) = backend(row["backend"].as_str().unwrap()) else { continue };
        if row.get("error").is_some() {
            continue;
        }
        let (name, quant) = (row["model"].as_str().unwrap(), row["quant"].as_str().unwrap());
        let what = format!("{name} {quant} {} {} {}", row["engine"], row["backend"], row["params"]);
        let build = Build::parse(row["engine"].as_str().unwrap()).unwrap();
        let mut deployment = Deployment::new(ContextRequest::ModelMaximum, backend);
        deployment.repack = row["params"]["extra_bufts"].as_bool().unwrap_or(true);
        // Every setting of a context loads the same weights.
        if !seen.insert(format!("{name} {quant} {build} {} {}", row["backend"], deployment.repack)) {
            continue;
        }
        let (facts, shapes) = tables.entry(name.to_owned()).or_insert_with(|| {
            let (facts, table) = read(&model(name, "BF16").unwrap());
            (facts, shapes_only(&table))
        });
        if let Some(header) = model(name, quant) {
            check(&what, build, facts, &read(&header).1, &deployment, &row["model_bytes"]);
            through_headers += 1;
        }
        let table = quantize::file_tensors(Build::C0c1e57098, facts, shapes, FileType::parse(quant).unwrap()).unwrap();
        check(&what, build, facts, &table, &deployment, &row["model_bytes"]);
    }
    assert!(seen.len() > 300 && through_headers > 300, "{} rows, {through_headers} headers", seen.len());
}
