//! The graph allocator alone: fed with graphs that the real engine dumped, it must need exactly the bytes that the
//! engine reserved.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking")]

use std::fs::File;
use std::path::Path;

use flate2::read::GzDecoder;
use plimsoll_math::engine::llama_cpp::graph::length::Length;
use plimsoll_math::engine::llama_cpp::graph::replay::{BufferKind, Graph, GraphTensor, Layout, Sources, buffer_bytes};
use serde_json::Value;

/// Operations that may write over an input (`ggml-alloc.c:ggml_op_can_inplace`).
const MAY_OVERWRITE: &[&str] = &[
    "FILL",
    "SCALE",
    "DIAG_MASK_ZERO",
    "DIAG_MASK_INF",
    "ADD",
    "ADD_ID",
    "ADD1",
    "SUB",
    "MUL",
    "DIV",
    "SQR",
    "SQRT",
    "LOG",
    "UNARY",
    "ROPE",
    "ROPE_BACK",
    "SILU_BACK",
    "RMS_NORM",
    "RMS_NORM_BACK",
    "CLAMP",
    "SOFT_MAX",
    "SOFT_MAX_BACK",
];

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn graph(dump: &Value) -> (Graph, Vec<BufferKind>, Vec<String>) {
    let mut names: Vec<String> = Vec::new();
    let mut kinds = Vec::new();
    let mut buffer_of_backend = Vec::new();
    for backend in dump["backends"].as_array().unwrap() {
        let name = backend["buft"].as_str().unwrap().to_owned();
        let place = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            kinds.push(BufferKind {
                alignment: backend["alignment"].as_u64().unwrap(),
                largest: backend["max_size"].as_u64().unwrap(),
            });
            kinds.len() - 1
        });
        buffer_of_backend.push(place);
    }
    let mut types: Vec<String> = Vec::new();
    let tensors = dump["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| {
            let type_name = tensor["type"].as_str().unwrap().to_owned();
            let type_id = types.iter().position(|known| *known == type_name).unwrap_or_else(|| {
                types.push(type_name);
                types.len() - 1
            });
            let operation = tensor["opn"].as_str().unwrap();
            let flags = tensor["flags"].as_u64().unwrap();
            let bytes = numbers(&tensor["alloc"]);
            GraphTensor {
                layout: Layout {
                    type_id: u32::try_from(type_id).unwrap(),
                    dims: numbers(&tensor["ne"]).try_into().unwrap(),
                    strides: numbers(&tensor["nb"]).try_into().unwrap(),
                },
                bytes: Length::of(*bytes.iter().min().unwrap()).unwrap(),
                extra: bytes
                    .iter()
                    .enumerate()
                    .max_by_key(|(_, bytes)| **bytes)
                    .map(|(on, most)| (on, Length::of(most - bytes.iter().min().unwrap()).unwrap())),
                sources: tensor["src"].as_array().unwrap().iter().fold(Sources::default(), |mut all, source| {
                    all.push(index(source)).unwrap();
                    all
                }),
                view_of: tensor["view_src"].as_u64().map(|base| usize::try_from(base).unwrap()),
                is_operation: operation != "NONE",
                may_overwrite: MAY_OVERWRITE.contains(&operation),
                is_input: flags & 1 != 0,
                is_output: flags & 2 != 0,
                is_external: tensor["ext"].as_bool().unwrap(),
            }
        })
        .collect();
    let placed = |list: &str, backends: &str| {
        let list = dump[list].as_array().unwrap().iter();
        list.zip(dump[backends].as_array().unwrap())
            .map(|(tensor, backend)| (index(tensor), buffer_of_backend[index(backend)]))
            .collect()
    };
    (Graph { tensors, leafs: placed("leafs", "leaf_backend"), nodes: placed("nodes", "node_backend") }, kinds, names)
}

fn check(path: &Path) {
    let dump: Value = serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap();
    let (graph, kinds, names) = graph(&dump);
    let ours = buffer_bytes(&graph, &kinds).unwrap();
    for (name, bytes) in names.iter().zip(ours) {
        let real = dump["compute_real"][name].as_u64().unwrap_or(0);
        assert_eq!(bytes, real, "{}: {name}", path.display());
    }
}

#[test]
fn every_dumped_graph() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/truth/llama.cpp/graph-dumps");
    let mut dumps: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    dumps.sort();
    assert_eq!(dumps.len(), 21);
    for dump in &dumps {
        check(dump);
    }
}
