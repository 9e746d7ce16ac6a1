//! The graph allocator alone: fed with graphs that the real engine dumped, it must need exactly the bytes that the
//! engine reserved.

use std::fs::File;
use std::path::Path;

use flate2::read::GzDecoder;
use plimsoll_math::engine::llama_cpp::graph::replay::{BufferKind, buffer_bytes};
use plimsoll_math::engine::llama_cpp::graph::tensors::{Graph, GraphTensor, Layout};
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

fn index(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
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
    let mut graph = Graph::default();
    for tensor in dump["tensors"].as_array().unwrap() {
        let type_name = tensor["type"].as_str().unwrap().to_owned();
        let type_id = types.iter().position(|known| *known == type_name).unwrap_or_else(|| {
            types.push(type_name);
            types.len() - 1
        });
        let operation = tensor["opn"].as_str().unwrap();
        let flags = tensor["flags"].as_u64().unwrap();
        let bytes = numbers(&tensor["alloc"]);
        let least = *bytes.iter().min().unwrap();
        let layout = Layout {
            type_id: u32::try_from(type_id).unwrap(),
            dims: numbers(&tensor["ne"]).try_into().unwrap(),
            strides: numbers(&tensor["nb"]).try_into().unwrap(),
        };
        let mut built = GraphTensor::new(layout, least);
        if let Some((on, most)) = bytes.iter().enumerate().max_by_key(|(_, bytes)| **bytes) {
            built.set_extra(u32::try_from(on).unwrap(), most - least);
        }
        built.set_view_of(tensor["view_src"].as_u64().map(|base| u32::try_from(base).unwrap()));
        built.is_operation = operation != "NONE";
        built.may_overwrite = MAY_OVERWRITE.contains(&operation);
        built.is_input = flags & 1 != 0;
        built.is_output = flags & 2 != 0;
        built.is_external = tensor["ext"].as_bool().unwrap();
        let sources: Vec<u32> = tensor["src"].as_array().unwrap().iter().map(index).collect();
        graph.push(built, &sources).unwrap();
    }
    let placed = |list: &str, backends: &str| -> Vec<(u32, u32)> {
        let list = dump[list].as_array().unwrap().iter();
        list.zip(dump[backends].as_array().unwrap())
            .map(|(tensor, backend)| {
                (index(tensor), u32::try_from(buffer_of_backend[usize::try_from(index(backend)).unwrap()]).unwrap())
            })
            .collect()
    };
    for (tensor, buffer) in placed("leafs", "leaf_backend") {
        graph.push_leaf(tensor, buffer);
    }
    for (tensor, buffer) in placed("nodes", "node_backend") {
        graph.push_node(tensor, buffer);
    }
    (graph, kinds, names)
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
